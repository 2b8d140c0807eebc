"""Who watches an actor, or an agent, is told exactly once that it is down, and why."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from tests.logs_of import SOON
from tests.some_actors import Doer, Downs, Kind, hold, started

from nitinol import Agent, AgentRef, ChildRef, ChildSpec, Runtime
from nitinol.actors.actor import Down, LoopActor, ThreadActor
from nitinol.env import Loop
from nitinol.errors import AgentParked
from nitinol.testing import ScriptedProvider, crash


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


class Looped(Doer, LoopActor):
    """On the user loop."""

    def __init__(self) -> None:
        super().__init__()


class Threaded(Doer, ThreadActor):
    """On a thread."""


def spec(kind: Kind, id: str = "child", **options: Any) -> ChildSpec:
    """A child of either kind that is not restarted."""
    start = Looped.start if kind == "loop" else Threaded.start
    return ChildSpec(id, start, **cast("Any", {"restart": "transient", "intensity": 0, **options}))


# ---- actors


ENDS: dict[str, tuple[Callable[[Any], object], str]] = {
    "stop": (lambda actor: actor.actor_ref.stop(), "normal"),
    "crash": (lambda actor: actor.actor_ref.tell(ValueError("crash")), "crash"),
    "exit": (lambda actor: actor.actor_ref.tell(SystemExit("crash")), "crash"),
    "abandon": (lambda actor: actor.abandon(), "killed"),
}


@pytest.mark.parametrize("how", ENDS)
def test_who_watches_is_told_once_why(kind: Kind, loop: Loop, how: str) -> None:
    """Whoever watched before the end, and whoever watches after it; whatever is done to the dead one."""
    end, reason = ENDS[how]
    actor, before, after = started(kind, loop), Downs(), Downs()
    actor.watch(before)
    end(actor)
    assert before.wait().reason == reason
    assert (before.wait().error is not None) == (reason == "crash")
    actor.watch(after)
    assert after.all == [before.wait()]
    actor.abandon()
    actor.actor_ref.stop()
    assert before.all == after.all == [before.wait()]


@pytest.mark.parametrize("how", ["crash", "abandon"])
def test_a_thousand_who_begin_to_watch_as_it_goes_down_are_told_once(kind: Kind, loop: Loop, how: str) -> None:
    """From eight threads; whoever is too late is told at once."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            actor, begin = started(kind, loop), threading.Barrier(9)
            watchers = [Downs() for _ in range(1000)]

            def watch(share: list[Downs], actor: Any = actor, begin: threading.Barrier = begin) -> None:
                begin.wait(SOON)
                for each in share:
                    actor.watch(each)

            with ThreadPoolExecutor(8) as pool:
                watching = [pool.submit(watch, watchers[number::8]) for number in range(8)]
                begin.wait(SOON)
                ENDS[how][0](actor)
                for each in watching:
                    each.result(SOON)
            assert {watcher.wait().reason for watcher in watchers} == {ENDS[how][1]}
    finally:
        sys.setswitchinterval(before)


def test_one_watcher_that_raises_does_not_keep_the_others_from_knowing(kind: Kind, loop: Loop) -> None:
    """Nor its actor from ending: who asks is refused."""

    def raises(down: Down) -> None:
        raise SystemExit

    actor, downs = started(kind, loop), Downs()
    actor.watch(raises)
    actor.watch(downs)
    actor.actor_ref.tell(ValueError("crash"))
    assert downs.wait().reason == "crash"
    actor.watch(raises)


# ---- children of a supervisor


@pytest.mark.parametrize("how", ["stop", "supervisor", "crash", "killed"])
def test_a_child_is_watched(rt: Runtime, kind: Kind, how: str) -> None:
    """`normal` for a stop of its own, `shutdown` by its supervisor, `crash`, `killed` at its deadline; the id is the child's."""
    child = rt.supervise(spec(kind, shutdown=0.05 if how == "killed" else 5.0))
    futures, go = [child.watch() for _ in range(3)], None
    ref = child.actor_ref
    if how == "stop":
        ref.stop()
    elif how == "crash":
        child.tell(ValueError("crash"))
    else:
        if how == "killed":
            go = hold(ref._actor_weakref())  # pyright: ignore[reportPrivateUsage]
        child.stop()
    downs = [future.result(SOON) for future in futures]
    if go is not None:
        go.set()
    assert {down.reason for down in downs} == {{"stop": "normal", "supervisor": "shutdown"}.get(how, how)}
    assert {down.id for down in downs} == {"child"}
    assert (downs[0].error is not None) == (how == "crash")
    assert child.watch().result(SOON).reason == downs[0].reason


def test_a_watch_that_nobody_waits_for_any_more_harms_nobody(
    rt: Runtime, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """Its coroutine was cancelled: the others are told, and the child is restarted."""
    child = rt.supervise(spec(kind, restart="permanent", intensity=5))

    async def give_up() -> None:
        await asyncio.wait_for(asyncio.wrap_future(child.watch()), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    later = child.watch()
    child.tell(ValueError("crash"))
    assert later.result(SOON).reason == "crash"
    child.resume()
    wait_until_up(child)
    assert [r for r in caplog.records if "an actor crashed" not in r.getMessage()] == []


def wait_until_up(child: ChildRef) -> None:
    """Ask until an incarnation answers."""
    answered = threading.Event()
    while not answered.is_set():
        try:
            child.ask("x", timeout=SOON)
            answered.set()
        except Exception:
            answered.wait(0.01)


def test_a_down_overtakes_what_users_have_sent(rt: Runtime, kind: Kind) -> None:
    """`watch(to=other)`: it is handled before the messages that wait there."""
    seen: list[Any] = []

    class Notes:
        def on_receive(self, message: Any) -> Any:
            if callable(message):
                return message()
            seen.append(message)
            return len(seen)

    base = Looped if kind == "loop" else Threaded
    noting: Any = type("Noting", (Notes, base), {})
    other = rt.supervise(ChildSpec("other", noting.start))
    child = rt.supervise(spec("thread"))
    go = hold(other.actor_ref._actor_weakref())  # pyright: ignore[reportPrivateUsage]
    for number in range(10):
        other.tell(number)
    down = child.watch(to=other)
    by_ref = child.watch(to=other.actor_ref)
    child.tell(ValueError("crash"))
    expected = down.result(SOON)
    assert by_ref.result(SOON) is expected
    go.set()
    assert other.ask("last", timeout=SOON) == 13
    assert seen == [expected, expected, *range(10), "last"]


def test_a_down_for_one_that_is_down_itself_is_dropped(rt: Runtime, kind: Kind) -> None:
    """The future has it all the same."""
    other, child = rt.supervise(spec(kind, "other")), rt.supervise(spec(kind))
    told = child.watch(to=other)
    other.stop()
    child.tell(ValueError("crash"))
    assert told.result(SOON).reason == "crash"


# ---- agents


def agent(**options: Any) -> Agent[str]:
    """One that answers."""
    return Agent(name="watched", model=ScriptedProvider(lambda request: "ok"), **options)


def crash_until_parked(ref: AgentRef[str]) -> None:
    """Crash it as often as it takes."""
    for _ in range(6):
        crash(ref, timeout=SOON)
        try:
            ref.ask("wake", timeout=SOON)
        except AgentParked:
            return
    raise AssertionError("it was not parked")


def test_an_agent_that_crashes_is_down_once_for_each_watch(rt: Runtime) -> None:
    """A watch is of the incarnation that lives: the next one has to be watched anew."""
    ref = rt.start(agent())
    first = [ref.watch() for _ in range(100)]
    crash(ref, timeout=SOON)
    downs = [watch.result(SOON) for watch in first]
    assert {(down.id, down.reason) for down in downs} == {(ref.key, "crash")}
    assert downs[0].error is not None
    assert ref.ask("go", timeout=SOON).text == "ok"
    second = ref.watch()
    assert not second.done()
    crash(ref, timeout=SOON)
    assert second.result(SOON).reason == "crash"


def test_a_watch_of_an_agent_that_was_given_up_harms_nobody(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """Its coroutine was cancelled: the agent comes back all the same."""
    ref = rt.start(agent())

    async def give_up() -> None:
        await asyncio.wait_for(asyncio.wrap_future(ref.watch()), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    later = ref.watch()
    crash(ref, timeout=SOON)
    assert later.result(SOON).reason == "crash"
    assert ref.ask("go", timeout=SOON).text == "ok"
    assert ["agent crashed" in record.getMessage() for record in caplog.records] == [True]


def test_a_parked_agent_is_down(rt: Runtime) -> None:
    """At once, with its last crash; also for who watched before."""
    ref = rt.start(agent())
    crash_until_parked(ref)
    down = ref.watch().result(SOON)
    assert (down.reason, down.id) == ("crash", ref.key)
    assert down.why == "RuntimeError: crashed by nitinol.testing"
    ref.resume()
    assert ref.ask("go", timeout=SOON).text == "ok"
    assert not ref.watch().done()


def test_an_agent_that_is_stopped_is_down(rt: Runtime) -> None:
    """`normal` by whoever holds it; at once if it was stopped before; the next one of its key has to be watched anew."""
    ref = rt.start(agent(), key="k")
    watch = ref.watch()
    ref.stop()
    assert (watch.result(SOON).reason, ref.watch().result(SOON).reason) == ("normal", "normal")
    again = rt.start(agent(), key="k")
    assert again.ask("go", timeout=SOON).text == "ok"
    assert not again.watch().done()


def test_an_agent_goes_down_with_its_runtime() -> None:
    """`shutdown`."""
    with Runtime(drain=0.0) as rt:
        ref = rt.start(agent())
        assert ref.ask("go", timeout=SOON).text == "ok"
        watch = ref.watch()
    assert watch.result(SOON).reason == "shutdown"
    assert ref.watch().result(SOON).reason == "shutdown"
