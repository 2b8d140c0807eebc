"""The watchdog of loops: what stands still is told once, with the culprit; what does not costs nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON

from nitinol import Agent, Hooks, Runtime, tool
from nitinol import events as ev
from nitinol.actors.bus import Subscription
from nitinol.env import Env
from nitinol.http import Http
from nitinol.messages import Message, Text
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart
from nitinol.testing import ScriptedProvider, call
from nitinol.watchdog import LASTING, LIMIT, QUIET, TICK, Blocking, Pulse, Watchdog


@dataclass
class Bench:
    """A watchdog on a clock of the test's own, and the pulse of a loop that lives in the test's thread."""

    clock: float = 1000.0
    pulse: Pulse = field(default_factory=lambda: Pulse("test-loop"))
    noticed: list[Blocking] = field(default_factory=list[Blocking])
    told: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self.pulse.thread = threading.get_ident()
        self.watchdog = Watchdog(
            [self.pulse], lambda: self.clock, self.noticed.append, lambda blocking: self.told.append(blocking.seconds)
        )

    def work(self) -> None:
        """The loop goes to work now."""
        self.pulse.busy_since = self.clock

    def rest(self) -> None:
        """The loop waits."""
        self.pulse.busy_since = 0.0

    def watch(self, seconds: float) -> bool:
        """Time passes, with a look at each tick; what the last look said."""
        working = True
        for _ in range(round(seconds / TICK)):
            self.clock += TICK
            working = self.watchdog.look()
        return working


class TestLook:
    def test_a_loop_that_works_longer_than_the_limit_is_noticed_once_and_told_once(self) -> None:
        """With the stack while it was blocked; and told, when it goes on, how long that was."""
        bench = Bench()
        bench.work()
        bench.watch(LIMIT)
        bench.watch(5 * TICK)
        (blocking,) = bench.noticed
        assert blocking.loop == "test-loop"
        assert "test_a_loop_that_works_longer_than" in blocking.stack
        assert bench.told == []
        bench.rest()
        bench.watch(10 * TICK)
        assert bench.noticed == [blocking]
        assert bench.told == [pytest.approx(LIMIT + 6 * TICK)]

    def test_each_blocking_is_told(self) -> None:
        """Also one right after another."""
        bench = Bench()
        for _ in range(3):
            bench.work()
            bench.watch(2 * LIMIT)
        bench.rest()
        bench.watch(TICK)
        assert (len(bench.noticed), len(bench.told)) == (3, 3)

    def test_one_that_never_ends_is_told_after_a_while(self) -> None:
        """Once, though it lasts on."""
        bench = Bench()
        bench.work()
        bench.watch(LASTING - TICK)
        assert bench.told == []
        bench.watch(10 * LASTING)
        assert bench.told == [pytest.approx(LASTING, abs=2 * TICK)]
        bench.rest()
        bench.watch(LIMIT)
        assert len(bench.told) == 1
        assert bench.noticed[0].seconds == pytest.approx(11 * LASTING, abs=3 * TICK)

    def test_short_work_is_never_told(self) -> None:
        """However much of it there is: a busy loop is no blocked one."""
        bench = Bench()
        for _ in range(100):
            bench.work()
            bench.watch(LIMIT - TICK)
        assert (bench.noticed, bench.told) == ([], [])

    def test_a_process_that_was_stopped_raises_no_alarm(self) -> None:
        """SIGSTOP, a suspended machine, C code that holds the GIL: the watchdog could not look either."""
        bench = Bench()
        for _ in range(1000):
            bench.work()
            bench.watch(TICK)
            bench.clock += 10.0
            bench.watchdog.look()
        bench.rest()
        bench.watch(TICK)
        assert (bench.noticed, bench.told) == ([], [])

    def test_a_loop_that_stays_blocked_after_a_stop_is_told(self) -> None:
        """What was not watched does not count; what is, does."""
        bench = Bench()
        bench.work()
        bench.watch(TICK)
        bench.clock += 10.0
        bench.watch(LIMIT)
        assert len(bench.noticed) == 1

    def test_after_a_quiet_while_it_may_sleep(self) -> None:
        """And not before: bursts of work do not make a thread wake for each."""
        bench = Bench()
        bench.work()
        bench.watch(TICK)
        bench.rest()
        assert bench.watch(QUIET - 2 * TICK)
        assert not bench.watch(3 * TICK)


# ---- live


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


def only_blocking(told: Subscription, rt: Runtime, culprit: str) -> ev.LoopBlocked:
    """The one event whose stack names a culprit. A busy machine may make other work late, too."""
    while True:
        event = told.get(SOON)
        if isinstance(event, ev.LoopBlocked) and culprit in event.stack:
            break
    rt.publish("now")
    while (more := told.get(SOON)).type != "custom":
        assert not isinstance(more, ev.LoopBlocked) or culprit not in more.stack, more
    return event


def answers(*calls: str) -> ScriptedProvider:
    return ScriptedProvider(
        lambda request: "end" if request.messages[-1].role == "tool" or not calls else [call(name) for name in calls]
    )


def test_an_async_tool_that_blocks_is_told_once(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """The event and the warning name the loop and the line of the tool."""

    @tool
    async def bad_manners() -> str:
        """Block the user loop."""
        time.sleep(0.3)
        return "done"

    ref = rt.start(Agent(name="a", model=answers("bad_manners"), tools=[bad_manners]))
    with rt.subscribe("loop.blocked", "custom") as told, caplog.at_level(logging.WARNING, "nitinol"):
        assert ref.ask("go", timeout=SOON).tool_calls[0].outcome == "ok"
        event = only_blocking(told, rt, "bad_manners")
    assert event.loop == "nitinol-user"
    assert "time.sleep(0.3)" in event.stack
    assert 0.2 < event.seconds < 5.0
    assert not event.durable
    warnings = [record.getMessage() for record in caplog.records if "bad_manners" in record.getMessage()]
    assert len(warnings) == 1
    assert "loop='nitinol-user'" in warnings[0]


def test_an_async_hook_that_blocks_is_told_once(rt: Runtime) -> None:
    """With its function."""

    class Bad(Hooks):
        async def before_model(self, ctx: Any, request: Any) -> None:
            time.sleep(0.3)

    ref = rt.start(Agent(name="a", model=answers(), hooks=[Bad()]))
    with rt.subscribe("loop.blocked", "custom") as told:
        assert ref.ask("go", timeout=SOON).text == "end"
        assert only_blocking(told, rt, "before_model").loop == "nitinol-user"


class Blocks:
    """A provider that blocks the core loop."""

    name, model = "blocks", "blocks-1"

    def info(self) -> ModelInfo:
        return ModelInfo()

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        yield Delta("text", "x")
        time.sleep(0.3)
        yield ModelResponse(message=Message(role="assistant", parts=(Text("x"),)), usage=None, stop_reason="end_turn")


def test_a_blocked_core_loop_is_told_when_it_goes_on(rt: Runtime) -> None:
    """It publishes the event itself, with the stack of then, and the whole time."""
    ref = rt.start(Agent(name="a", model=Blocks()))
    with rt.subscribe("loop.blocked", "custom") as told:
        assert ref.ask("go", timeout=SOON).text == "x"
        event = only_blocking(told, rt, "time.sleep(0.3)")
    assert event.loop == "nitinol-core"
    assert event.seconds > 0.2


def test_a_loop_that_hangs_for_good_is_told_while_it_hangs(rt: Runtime) -> None:
    """After a second: nobody has to wait for an end that may never come."""
    release = threading.Event()

    @tool(timeout=0.05)
    async def hangs() -> None:
        """Hang, and the user loop with it."""
        release.wait(3 * SOON)

    ref = rt.start(Agent(name="a", model=answers("hangs"), tools=[hangs]))
    try:
        with rt.subscribe("loop.blocked", "custom") as told:
            handle = ref.send("go")
            assert only_blocking(told, rt, "hangs").loop == "nitinol-user"
        assert handle.result(SOON).tool_calls[0].outcome == "timeout"
    finally:
        release.set()


def bad_manners() -> None:
    """Block a loop."""
    time.sleep(0.3)


@pytest.mark.parametrize("loop", ["core", "user", "supervising", "journal"])
def test_every_loop_is_watched(loop: str, tmp_path: Path) -> None:
    """Core, user, supervisor, and the journal's writer."""
    with Runtime(tmp_path / "agents.db", drain=0.0) as rt, rt.subscribe("loop.blocked", "custom") as told:
        system: Any = rt._system  # pyright: ignore[reportPrivateUsage]
        watched = system.journal._loop if loop == "journal" else getattr(system, loop)
        watched.call(bad_manners)
        assert only_blocking(told, rt, "bad_manners").loop == watched.name


def test_an_idle_runtime_is_silent_and_its_watchdog_sleeps() -> None:
    """No loop works, nobody looks: the thread waits to be woken, and a loop's next work wakes it."""
    pulse = Pulse("test-loop")
    noticed: list[Blocking] = []
    looks: list[float] = []
    asleep, seen = threading.Event(), threading.Event()

    def now() -> float:
        looks.append(time.monotonic() * 50)  # so that the quiet while is short
        return looks[-1]

    def told(blocking: Blocking) -> None:
        noticed.append(blocking)
        seen.set()

    class Sleeps(Pulse):
        """Tells when the watchdog has asked to be woken."""

        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "waker" and value is not None:
                asleep.set()

    pulse = Sleeps("test-loop")
    pulse.thread = threading.get_ident()
    watchdog = Watchdog([pulse], now, told, lambda blocking: None)
    thread = threading.Thread(target=watchdog.run, daemon=True)
    thread.start()
    assert asleep.wait(SOON)
    assert noticed == []
    waker = pulse.waker
    assert waker is not None
    pulse.busy_since = now()
    waker()
    assert seen.wait(SOON)
    watchdog.stop()
    thread.join(SOON)
    assert not thread.is_alive()


def test_an_idle_runtime_tells_nothing_and_leaves_no_thread() -> None:
    """Agents that wait for a model block nobody; after the stop the watchdog's thread has ended."""
    before = set(threading.enumerate())
    with Runtime(drain=0.0) as rt, rt.subscribe("loop.blocked") as told:
        names = {thread.name for thread in set(threading.enumerate()) - before}
        assert "nitinol-watchdog" in names
        with pytest.raises(TimeoutError):
            told.get(1.0)
    assert [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("nitinol")] == []


def test_who_listens_may_raise() -> None:
    """A log handler of a user's, for instance: the watchdog goes on."""
    loop = (env := Env()).start_loop("test-loop")
    told = threading.Event()

    def raises(blocking: Blocking) -> None:
        raise ZeroDivisionError

    end = env.watch(raises, lambda blocking: told.set())
    loop.call(time.sleep, 0.3)
    assert told.wait(SOON)
    end(SOON)
    assert loop.close(SOON)


def test_the_callable_of_a_pulse_is_taken_around_the_wait() -> None:
    """While it waits a loop does not count as busy; before and after it does, from the time it woke."""
    pulse = Pulse("test-loop")
    clock = iter([5.0, 6.0])
    during: list[float] = []
    woken: list[None] = []

    def select(timeout: float | None) -> str:
        during.append(pulse.busy_since)
        return "events"

    wait: Callable[..., object] = pulse.around(select, lambda: next(clock))
    assert wait(None) == "events"
    assert pulse.busy_since == 5.0
    pulse.waker = lambda: woken.append(None)
    assert wait(1.0) == "events"
    assert (pulse.busy_since, during, len(woken)) == (6.0, [0.0, 0.0], 1)
