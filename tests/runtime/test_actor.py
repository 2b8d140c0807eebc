"""Actors: their end, their order, their turns, and the loops they live on. Pykka's facts are in `test_pykka_facts`."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pykka
import pytest
from tests.logs_of import SOON
from tests.some_actors import KINDS, Downs, Kind, LoopDoer, hold, launch, made, settle, started

from nitinol import Agent, ChildRef, ChildSpec, Runtime, tool
from nitinol.actors.actor import BATCH, ActorRef, LoopActor
from nitinol.env import Loop, LoopThread, on_a_loop
from nitinol.errors import AgentDown, WouldDeadlock
from nitinol.testing import ScriptedProvider, call

# ---- whatever escapes, only that one dies

ESCAPES = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, MemoryError, GeneratorExit]
escapes = pytest.mark.parametrize("error", ESCAPES)


class Crowd:
    """Actors of both kinds that must not notice, and one of each kind that watches."""

    def __init__(self, loop: Loop) -> None:
        self.others = [started(kind, loop) for kind in KINDS for _ in range(5)]
        self.downs = [Downs(), Downs()]

    def watch(self, actor: Any) -> None:
        for downs in self.downs:
            actor.watch(downs)

    def verify(self, error: BaseException, failures: list[Any], actor: Any, loop: Loop) -> None:
        """One crash, told once to each; all others answer."""
        for downs in self.downs:
            assert (downs.wait().reason, downs.wait().error) == ("crash", error)
        settle(actor, loop)
        assert actor.failures == failures
        assert not actor.actor_ref.is_alive()
        assert [other.actor_ref.ask("x", timeout=SOON) for other in self.others] == [1] * 10
        assert [len(downs.all) for downs in self.downs] == [1, 1]


@escapes
@pytest.mark.parametrize("how", ["told", "asked", "awaited", "proxy told", "proxy asked"])
def test_an_escape_in_a_handler_kills_its_actor_alone(
    kind: Kind, loop: Loop, error: type[BaseException], how: str
) -> None:
    """Who asked gets it, an exit as `AgentDown`, and goes on; who watches is told once, with the error. Shows 5"""
    crowd, actor, escape = Crowd(loop), started(kind, loop), error("now")
    crowd.watch(actor)
    ref = actor.actor_ref
    expected: Any = MemoryError if error is MemoryError else AgentDown

    async def wait() -> None:
        with pytest.raises(expected):
            await ref.ask(escape, block=False, timeout=SOON)
        await asyncio.sleep(0)  # raises, if it was cancelled

    match how:
        case "told":
            ref.tell(escape)
        case "asked":
            with pytest.raises(expected):
                ref.ask(escape, timeout=SOON)
        case "awaited":
            asyncio.run(wait())
        case "proxy told":
            ref.proxy().fail.defer(escape)
        case _:
            with pytest.raises(expected):
                ref.proxy().fail(escape).get()
    crowd.verify(escape, [escape], actor, loop)


@escapes
@pytest.mark.parametrize("hook", ["on_start", "on_stop", "on_failure"])
def test_an_escape_in_a_hook_kills_its_actor_alone(
    kind: Kind, loop: Loop, error: type[BaseException], hook: str
) -> None:
    """A start that fails and a stop that fails are crashes; an `on_failure` that raises does not hide the crash. Shows 5"""
    escape, first = error("now"), ValueError("first")

    class Escapes:
        failures: list[Any]

        def on_start(self) -> None:
            if hook == "on_start":
                raise escape

        def on_stop(self) -> None:
            if hook == "on_stop":
                raise escape

        def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
            self.failures.append(exception_value)
            if hook == "on_failure":
                raise escape

    crowd, actor = Crowd(loop), made(kind, loop, Escapes)
    crowd.watch(actor)
    waits = actor.actor_ref.ask("x", block=False, timeout=SOON)
    stopping = actor.actor_ref.stop(block=False) if hook == "on_stop" else None
    if hook == "on_failure":
        actor.actor_ref.tell(first)
    launch(actor)
    if hook == "on_failure":
        assert waits.get() == 1
        crowd.verify(first, [first], actor, loop)
    else:
        with pytest.raises(AgentDown):
            waits.get()
        crowd.verify(escape, [escape] if hook == "on_start" else [], actor, loop)
    if stopping is not None:
        assert stopping.get() is True


def test_an_on_failure_that_raises_the_crash_again_does_not_tangle_it(kind: Kind, loop: Loop) -> None:
    """An exception whose context is itself is a trap for whoever walks along it."""

    class Clumsy:
        def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
            raise exception_value

    actor, downs, error = started(kind, loop, Clumsy), Downs(), ValueError("first")
    actor.watch(downs)
    actor.actor_ref.tell(error)
    assert downs.wait().error is error
    assert error.__context__ is None


# ---- a handler must not wait


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


class Child(LoopDoer):
    """A loop actor under a supervisor."""

    def __init__(self) -> None:
        LoopActor.__init__(self)
        self.count = 0


WAITS = ["ask", "stop", "get", "proxy", "child"]


def waiting(how: str, ref: ActorRef[Any], child: ChildRef) -> Callable[[], Any]:
    """Ways to wait for an actor."""
    ways: dict[str, Callable[[], Any]] = {
        "ask": lambda: ref.ask("x", timeout=SOON),
        "stop": lambda: ref.stop(),
        "get": lambda: ref.ask(lambda: None, block=False, timeout=SOON).get(),
        "proxy": lambda: ref.proxy().count.get(),
        "child": lambda: child.ask("x", timeout=SOON),
    }
    return ways[how]


@pytest.mark.parametrize("how", WAITS)
def test_a_handler_must_not_wait(kind: Kind, loop: Loop, rt: Runtime, how: str) -> None:
    """`WouldDeadlock` at once, also where the other one would have answered; nothing was asked."""
    other, actor = started("thread", loop), started(kind, loop)
    child = rt.supervise(ChildSpec("child", Child.start))
    go = hold(other)
    with pytest.raises(WouldDeadlock, match="handler would wait"):
        actor.actor_ref.ask(waiting(how, other.actor_ref, child), timeout=SOON)
    go.set()
    assert other.actor_ref.ask("x", timeout=SOON) == 1
    assert child.ask("x", timeout=SOON) == 1


def test_hooks_must_not_wait_either(kind: Kind, loop: Loop) -> None:
    """`on_start` and `on_stop` run where handlers do."""
    other = started("thread", loop)

    class Waits:
        def on_start(self) -> None:
            if early:
                other.actor_ref.ask("x", timeout=SOON)

        def on_stop(self) -> None:
            other.actor_ref.ask("x", timeout=SOON)

    for early in (True, False):  # noqa: B007 # on_start looks at it
        actor, downs = started(kind, loop, Waits), Downs()
        actor.watch(downs)
        actor.actor_ref.stop(timeout=SOON)
        assert isinstance(downs.wait().error, WouldDeadlock)


def test_a_handler_may_take_an_answer_that_is_there(kind: Kind, loop: Loop) -> None:
    """It need not wait for that."""
    other, actor = started("thread", loop), started(kind, loop)
    answer, stopped = other.actor_ref.ask("x", block=False, timeout=SOON), other.actor_ref.stop(block=False)
    assert stopped.get() is True
    answer.when_set(lambda: None)
    answers = [answer.map(str), stopped]

    def take() -> list[Any]:
        taken: list[Any] = []
        for each in answers:
            try:
                taken.append(each.get())
            except AgentDown:
                taken.append("refused")
        return taken

    assert actor.actor_ref.ask(take, timeout=SOON)[1] is True


def test_a_tool_may_wait(rt: Runtime) -> None:
    """Nobody waits for the worker that it runs on, but its pool."""
    child = rt.supervise(ChildSpec("child", Child.start))
    ref = child.actor_ref

    @tool
    def wait_for_all() -> str:
        """Wait in each way there is."""
        answered = ref.ask("x", block=False, timeout=SOON).get()
        return f"{answered} {ref.ask('x', timeout=SOON)} {child.ask('x', timeout=SOON)} {ref.proxy().count.get()}"

    agent = Agent(name="waits", model=ScriptedProvider([[call("wait_for_all")], "done"]), tools=[wait_for_all])
    result = rt.start(agent).ask("go", timeout=SOON)
    assert [record.text for record in result.tool_calls] == ["1 2 3 3"], result.tool_calls


# ---- given up


def test_who_is_given_up_is_down_at_once(kind: Kind, loop: Loop) -> None:
    """Though its handler hangs: who watches is told `killed`, who asked is refused, what was told is handed back."""
    handed_back = threading.Event()

    class HandsBack:
        def on_unhandled(self, message: Any) -> None:
            handed_back.set()

    actor, downs = started(kind, loop, HandsBack), Downs()
    actor.watch(downs)
    go, busy = threading.Event(), threading.Event()

    def hang() -> str:
        busy.set()
        go.wait(SOON)
        return "too late"

    hangs = actor.actor_ref.ask(hang, block=False, timeout=SOON)
    assert busy.wait(SOON)
    waits = actor.actor_ref.ask("x", block=False, timeout=SOON)
    actor.actor_ref.tell("x")
    actor.abandon()
    assert (downs.wait().reason, downs.wait().error) == ("killed", None)
    for answer in (hangs, waits):
        with pytest.raises(AgentDown):
            answer.get()
    assert handed_back.wait(SOON)
    with pytest.raises(AgentDown):
        actor.actor_ref.ask("x", timeout=SOON)
    go.set()
    settle(actor, loop)
    assert (len(downs.all), actor.count, actor.failures) == (1, 0, [])


def test_who_is_given_up_before_its_start_does_not_start(kind: Kind, loop: Loop) -> None:
    """Nor does it keep a thread."""
    ran: list[str] = []

    class Starts:
        def on_start(self) -> None:
            ran.append("on_start")

    actor, downs = made(kind, loop, Starts), Downs()
    actor.watch(downs, lambda: ran.append("up"))
    actor.abandon()
    launch(actor)
    settle(actor, loop)
    assert (downs.wait().reason, ran) == ("killed", [])


def test_who_is_given_up_while_it_waits_leaves_no_thread(loop: Loop) -> None:
    """A start that came up too late, for one."""
    actor = started("thread", loop)
    assert actor.actor_ref.ask("x", timeout=SOON) == 1
    actor.abandon()
    actor.thread.join(SOON)
    assert not actor.thread.is_alive()


# ---- the end of an actor


def test_an_ask_to_a_dead_actor_fails_at_once(kind: Kind, loop: Loop) -> None:
    """Stopped or crashed; the error is ours, and the one that Pykka's users expect."""
    stopped, crashed = started(kind, loop).actor_ref, started(kind, loop).actor_ref
    assert stopped.stop(timeout=SOON)
    crashed.tell(ValueError())
    for expected in (AgentDown, pykka.ActorDeadError):
        with pytest.raises(expected):
            crashed.ask("x", timeout=SOON)
        with pytest.raises(expected):
            stopped.ask("x", timeout=SOON)
        with pytest.raises(expected):
            stopped.tell("x")
    assert stopped.stop(timeout=SOON) is False


def test_a_halt_overtakes_what_waits(loop: Loop) -> None:
    """For an agent that must not take another step: at once, in order, and only once."""
    told: list[BaseException | None] = []
    actor, downs = LoopDoer(loop, told.append), Downs()
    actor.watch(downs)
    actor.launch()

    def halt() -> None:
        actor.post("waits")
        actor.halt()
        actor.halt()

    loop.call(halt)
    assert downs.wait().reason == "normal"
    settle(actor, loop)
    assert (actor.count, actor.unhandled, actor.ended.is_set(), told) == (0, ["waits"], True, [None])


# ---- order, number, fairness


def test_messages_of_one_sender_keep_their_order(loop: Loop) -> None:
    """From eight threads at once, told and asked."""
    seen: dict[int, list[int]] = {number: [] for number in range(8)}
    ref = LoopDoer.start(loop)

    def send(sender: int) -> None:
        note: Callable[[int], Callable[[], None]] = lambda number: lambda: seen[sender].append(number)  # noqa: E731
        for number in range(500):
            if number % 50 == 49:
                ref.ask(note(number), timeout=SOON)
            else:
                ref.tell(note(number))

    with ThreadPoolExecutor(8) as pool:
        for sent in [pool.submit(send, sender) for sender in range(8)]:
            sent.result(SOON)
    assert all(numbers == list(range(500)) for numbers in seen.values())


def test_ten_thousand_actors_share_one_thread(loop: Loop) -> None:
    """Each answers, each stops; no thread is made for any."""
    threads = set(threading.enumerate())
    refs = [LoopDoer.start(loop) for _ in range(10_000)]
    futures = [ref.ask("x", block=False, timeout=SOON) for ref in refs]
    assert {future.get(timeout=SOON) for future in futures} == {1}
    assert set(threading.enumerate()) <= threads, "those of earlier tests may end meanwhile"
    stops = [ref.stop(block=False) for ref in refs]
    assert all(stop.get(timeout=SOON) for stop in stops)


def test_a_busy_actor_lets_the_others_have_their_turn(loop: Loop) -> None:
    """It handles a batch, then the loop looks at the others."""
    order: list[str] = []
    go = threading.Event()
    hold, busy, modest = LoopDoer.start(loop), LoopDoer.start(loop), LoopDoer.start(loop)
    hold.tell(lambda: go.wait(SOON))
    for _ in range(BATCH * 5):
        busy.tell(lambda: order.append("busy"))
    modest.tell(lambda: order.append("modest"))
    go.set()
    busy.ask("x", timeout=SOON)
    assert order.index("modest") <= BATCH * 2
    assert order.count("busy") == BATCH * 5


def test_a_busy_actor_has_one_turn_at_a_time(loop: Loop) -> None:
    """Also while it is sent more and more: messages that come during its turn do not give it two."""
    turns: list[str] = []
    go, done = threading.Event(), threading.Event()
    first, busy, modest = LoopDoer.start(loop), LoopDoer(loop), LoopDoer(loop)
    busy.launch()
    modest.launch()
    first.tell(lambda: go.wait(SOON))

    def work() -> None:
        turns.append("busy")
        if len(turns) < 20 * BATCH:
            busy.post(work)
        else:
            done.set()

    def look() -> None:
        turns.append("modest")
        if len(turns) < 20 * BATCH:
            modest.post(look)

    for _ in range(3 * BATCH):
        busy.post(work)
    modest.post(look)
    go.set()
    assert done.wait(SOON)
    looks = [number for number, turn in enumerate(turns[: 20 * BATCH]) if turn == "modest"]
    gaps = [after - before for before, after in pairwise(looks)]
    assert max(gaps) <= BATCH + 1, gaps


def test_actors_that_never_rest_do_not_keep_timers_and_sockets_waiting(loop: Loop) -> None:
    """Two actors send to each other without end: a timer of the same loop still strikes."""
    struck, stop = threading.Event(), threading.Event()

    def bounce(here: Any, there: Any) -> None:
        if not stop.is_set():
            there.tell(lambda: bounce(there, here))

    one, two = LoopDoer.start(loop), LoopDoer.start(loop)
    bounce(one, two)
    loop.call(lambda: loop.call_later(0.001, struck.set))
    assert struck.wait(SOON)
    stop.set()


def test_a_callback_that_raises_does_not_end_the_loop(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    """Not even `SystemExit`, neither in a call nor in a task; each is logged by the library's logger."""

    def exit_now() -> None:
        raise SystemExit(1)

    async def exit_later() -> None:
        raise SystemExit(2)

    done = threading.Event()
    loop.call(exit_now)
    loop.call(lambda: loop.spawn(exit_later()))
    for _ in range(3):
        loop.call(exit_now)
    loop.call(lambda: loop.call_later(0.001, done.set))  # behind what the task has left in the loop
    assert done.wait(SOON)
    assert {record.name for record in caplog.records} == {"nitinol"}
    logged = len(caplog.records)
    gc.collect()
    assert len(caplog.records) == logged  # at once, not when the garbage is collected


def test_a_loop_knows_its_own_thread(loop: Loop) -> None:
    """So that whoever would block it can be refused."""
    seen: list[tuple[bool, bool]] = []
    done = threading.Event()

    def look() -> None:
        seen.append((loop.is_current(), on_a_loop()))
        done.set()

    loop.call(look)
    assert done.wait(SOON)
    assert seen == [(True, True)]
    assert (loop.is_current(), on_a_loop()) == (False, False)


def test_a_closed_loop_says_that_it_drops_what_it_is_given() -> None:
    """And what it was given before is still done."""
    loop = LoopThread("closing")
    done: list[int] = []
    for number in range(100):
        loop.call(done.append, number)
    assert loop.close(SOON)
    assert done == list(range(100))
    assert loop.call(done.append, 100) is False
    assert loop.close(SOON)
