"""Loop actors beside Pykka's own: each fact of Pykka 4.5 that the design goes around, and what it is here.

Where Pykka would stop every actor of the process, or leave somebody waiting for ever, its side runs in a process of its
own.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pykka
import pytest
from tests.logs_of import SOON

from nitinol.actors.actor import BATCH, LoopActor, ThreadActor
from nitinol.env import Loop, LoopThread, on_a_loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that ends with the test."""
    loop = LoopThread("test-loop")
    yield loop
    assert loop.close(SOON)


@pytest.fixture
def pykka_actors() -> Iterator[None]:
    """Pykka's own actors of a test are stopped at its end."""
    yield
    pykka.ActorRegistry.stop_all(timeout=SOON)


class Told:
    """What an actor's starter was told of its end."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        self._once = threading.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self._once.set()

    def wait(self) -> list[BaseException | None]:
        """All it was told, once it was told something."""
        assert self._once.wait(SOON)
        return self.errors


class Counter(LoopActor):
    """Counts; raises what it is sent, if that is an exception; calls what can be called."""

    def __init__(self, loop: Loop, on_down: Any = None) -> None:
        super().__init__(loop, on_down)
        self.count = 0
        self.failures: list[BaseException] = []
        self.unhandled: list[Any] = []
        self.stopped = False

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if callable(message):
            return message()
        self.count += 1
        return self.count

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.failures.append(exception_value)

    def on_stop(self) -> None:
        self.stopped = True

    def on_unhandled(self, message: Any) -> None:
        self.unhandled.append(message)


class PykkaCounter(pykka.ThreadingActor):
    """The same, on Pykka's own ground."""

    use_daemon_thread = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if callable(message):
            return message()
        self.count += 1
        return self.count


def in_pykka(program: str) -> str:
    """Run a program in a process of its own; its output."""
    head = "import pykka, threading\nclass A(pykka.ThreadingActor):\n    use_daemon_thread = True\n"
    done = subprocess.run(
        [sys.executable, "-c", head + program], capture_output=True, text=True, timeout=SOON, check=True
    )
    return done.stdout.strip()


# ---- exceptions


@pytest.mark.usefixtures("pykka_actors")
def test_pykka_lets_an_actor_live_on_after_an_exception_under_ask() -> None:
    """The asker gets it; the actor, whose state it may have broken, goes on as if nothing had happened."""
    ref = PykkaCounter.start()
    with pytest.raises(ValueError, match="broken"):
        ref.ask(ValueError("broken"))
    assert ref.is_alive()
    assert ref.ask("next") == 1


def test_here_an_exception_is_a_crash_also_under_ask(loop: Loop) -> None:
    """The asker gets it, and the actor is down: whoever started it is told, once."""
    told = Told()
    ref = Counter.start(loop, told)
    with pytest.raises(ValueError, match="broken"):
        ref.ask(ValueError("broken"), timeout=SOON)
    assert [type(error) for error in told.wait()] == [ValueError]
    assert not ref.is_alive()
    assert loop.is_current() is False


def test_pykka_does_not_tell_of_a_failed_start() -> None:
    """`on_failure` is not called: a supervisor that listens there never hears of it."""
    program = """
    def on_start(self):
        raise ValueError
    def on_failure(self, *args):
        print("on_failure")
ref = A.start()
ref.actor_stopped.wait(5)
print("stopped", not ref.is_alive())
"""
    assert in_pykka(program) == "stopped True"


class FailsToStart(Counter):
    """Never comes up."""

    def on_start(self) -> None:
        raise ValueError("no start")


def test_here_a_failed_start_is_a_crash(loop: Loop) -> None:
    """`on_failure` and `on_down` hear of it; what was told is handed back; who asks is refused."""
    told = Told()
    actor = FailsToStart(loop, told)
    actor.actor_ref.tell("before")
    actor.launch()
    assert [str(error) for error in told.wait()] == ["no start"]
    assert [str(error) for error in actor.failures] == ["no start"]
    with pytest.raises(pykka.ActorDeadError):
        actor.actor_ref.ask("after", timeout=SOON)
    assert actor.unhandled == ["before"]


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_pykka_stops_every_actor_on_a_base_exception_and_leaves_the_asker_waiting(error: str) -> None:
    """A tool's `sys.exit()` in one actor ends all others in the process, and its asker waits for ever."""
    program = f"""
    def on_receive(self, message):
        raise {error}
class B(pykka.ThreadingActor):
    use_daemon_thread = True
bystander = B.start()
future = A.start().ask("x", block=False)
bystander.actor_stopped.wait(5)
print("bystander alive", bystander.is_alive())
try:
    future.get(timeout=0.2)
except pykka.Timeout:
    print("the asker waits")
"""
    assert in_pykka(program) == "bystander alive False\nthe asker waits"


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError()])
def test_here_a_base_exception_kills_one_actor_and_the_asker_is_told(loop: Loop, error: BaseException) -> None:
    """The bystander on the same loop does not notice."""
    told = Told()
    bystander, ref = Counter.start(loop), Counter.start(loop, told)
    with pytest.raises(type(error)):
        ref.ask(error, timeout=SOON)
    assert told.wait() == [error]
    assert bystander.ask("next", timeout=SOON) == 1
    assert bystander.is_alive()


def test_pykka_lets_messages_behind_a_failing_tell_vanish() -> None:
    """What was told behind it is dropped without a word; who asked is told."""
    program = """
    def on_receive(self, message):
        if message == "hold":
            go.wait(5)
        elif message == "fail":
            raise ValueError
        else:
            print("handled", message)
go = threading.Event()
ref = A.start()
ref.tell("hold"); ref.tell("fail"); ref.tell("lost")
asked = ref.ask("asked", block=False)
go.set()
try:
    asked.get(timeout=5)
except pykka.ActorDeadError:
    print("asker told")
"""
    assert in_pykka(program) == "asker told"


def test_here_messages_behind_a_failure_are_handed_back(loop: Loop) -> None:
    """`on_unhandled` has each of them, in order; who asked is told."""
    told, go = Told(), threading.Event()
    actor = Counter(loop, told)
    ref = actor.actor_ref
    actor.launch()
    ref.tell(lambda: go.wait(SOON))
    ref.tell(ValueError("fail"))
    ref.tell("first")
    asked = ref.ask("asked", block=False, timeout=SOON)
    ref.tell("second")
    go.set()
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=SOON)
    told.wait()
    deadline = Told()
    loop.call(deadline, None)
    deadline.wait()
    assert actor.unhandled == ["first", "second"]


def test_an_on_failure_that_raises_does_not_hide_the_crash(loop: Loop) -> None:
    """Whoever started it is told of the first error all the same."""

    class Clumsy(Counter):
        def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
            raise ZeroDivisionError

    told = Told()
    Clumsy.start(loop, told).tell(ValueError("first"))
    assert [str(error) for error in told.wait()] == ["first"]


# ---- the end of an actor


@pytest.mark.usefixtures("pykka_actors")
def test_both_refuse_an_ask_to_a_dead_actor() -> None:
    """`ActorDeadError`, at once."""
    ref = PykkaCounter.start()
    ref.stop()
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("x", timeout=SOON)


def test_an_ask_to_a_dead_actor_fails_at_once(loop: Loop) -> None:
    """Stopped or crashed, from any thread."""
    stopped, crashed = Counter.start(loop), Counter.start(loop)
    assert stopped.stop(timeout=SOON)
    crashed.tell(ValueError())
    with pytest.raises(pykka.ActorDeadError):
        crashed.ask("x", timeout=SOON)
    with pytest.raises(pykka.ActorDeadError):
        stopped.ask("x", timeout=SOON)
    with pytest.raises(pykka.ActorDeadError):
        stopped.tell("x")
    assert stopped.stop(timeout=SOON) is False


def test_asks_that_race_with_the_end_are_all_answered(loop: Loop) -> None:
    """`is_alive`, then `put`, is a race: here whoever loses it is told, not left waiting."""
    for _ in range(50):
        ref = Counter.start(loop)
        go = threading.Barrier(5)

        def ask(ref: Any = ref, go: threading.Barrier = go) -> str:
            go.wait(SOON)
            try:
                while True:
                    ref.ask("x", timeout=SOON)
            except pykka.ActorDeadError:
                return "refused"

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask) for _ in range(4)]
            go.wait(SOON)
            ref.stop(block=False)
            assert {ask.result(SOON) for ask in asked} == {"refused"}


def test_a_stop_is_orderly(loop: Loop) -> None:
    """After the messages before it; `on_stop` runs; the starter is told `None`; what comes behind is handed back."""
    told = Told()
    actor = Counter(loop, told)
    ref = actor.actor_ref
    go = threading.Event()
    actor.launch()
    ref.tell(lambda: go.wait(SOON))
    before = ref.ask("x", block=False, timeout=SOON)
    stopping = ref.stop(block=False)
    ref.tell("behind")
    go.set()
    assert before.get(timeout=SOON) == 1
    assert stopping.get(timeout=SOON) is True
    assert told.wait() == [None]
    assert (actor.stopped, actor.failures, actor.count) == (True, [], 1)


def test_a_halt_overtakes_what_waits(loop: Loop) -> None:
    """For an agent that must not take another step: at once, in order, and only once."""
    told = Told()
    actor = Counter(loop, told)
    actor.launch()

    def halt() -> None:
        actor.post("waits")
        actor.halt()
        actor.halt()

    loop.call(halt)
    assert told.wait() == [None]
    after = Told()
    loop.call(after, None)
    after.wait()
    assert (actor.count, actor.unhandled, actor.stopped) == (0, ["waits"], True)


def test_an_actor_lives_as_long_as_it_has_a_reference(loop: Loop) -> None:
    """Pykka's references are weak; nobody else need hold a loop actor."""
    ref = Counter.start(loop)
    ref.ask("x", timeout=SOON)
    gc.collect()
    assert ref.ask("x", timeout=SOON) == 2


def test_no_actor_is_in_pykkas_registry(loop: Loop) -> None:
    """It is linear in its size, and anyone may call its `stop_all`."""

    class Thread(ThreadActor):
        def on_receive(self, message: Any) -> Any:
            return threading.current_thread().daemon

    before = set(pykka.ActorRegistry.get_all())
    ref, thread = Counter.start(loop), Thread.start()
    assert ref.ask("x", timeout=SOON) == 1
    assert thread.ask("x", timeout=SOON) is True
    assert set(pykka.ActorRegistry.get_all()) == before
    pykka.ActorRegistry.stop_all(timeout=SOON)
    assert ref.is_alive()
    assert thread.is_alive()
    thread.stop(timeout=SOON)


# ---- order, number, fairness


def test_messages_of_one_sender_keep_their_order(loop: Loop) -> None:
    """From eight threads at once, told and asked."""
    seen: dict[int, list[int]] = {number: [] for number in range(8)}
    ref = Counter.start(loop)

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
    threads = threading.active_count()
    refs = [Counter.start(loop) for _ in range(10_000)]
    futures = [ref.ask("x", block=False, timeout=SOON) for ref in refs]
    assert {future.get(timeout=SOON) for future in futures} == {1}
    assert threading.active_count() == threads
    stops = [ref.stop(block=False) for ref in refs]
    assert all(stop.get(timeout=SOON) for stop in stops)


def test_a_busy_actor_lets_the_others_have_their_turn(loop: Loop) -> None:
    """It handles a batch, then the loop looks at the others."""
    order: list[str] = []
    go = threading.Event()
    hold, busy, modest = Counter.start(loop), Counter.start(loop), Counter.start(loop)
    hold.tell(lambda: go.wait(SOON))
    for _ in range(BATCH * 5):
        busy.tell(lambda: order.append("busy"))
    modest.tell(lambda: order.append("modest"))
    go.set()
    busy.ask("x", timeout=SOON)
    assert order.index("modest") <= BATCH * 2
    assert order.count("busy") == BATCH * 5


def test_actors_that_never_rest_do_not_keep_timers_and_sockets_waiting(loop: Loop) -> None:
    """Two actors send to each other without end: a timer of the same loop still strikes."""
    struck, stop = threading.Event(), threading.Event()

    def bounce(here: Any, there: Any) -> None:
        if not stop.is_set():
            there.tell(lambda: bounce(there, here))

    one, two = Counter.start(loop), Counter.start(loop)
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


@pytest.mark.usefixtures("pykka_actors")
def test_a_timed_out_ask_still_runs_later(loop: Loop) -> None:
    """In both: the end of a wait takes nothing back. Hence a run has a cancel of its own."""
    for ref in (Counter.start(loop), PykkaCounter.start()):
        go, ran = threading.Event(), threading.Event()
        ref.tell(lambda go=go: go.wait(SOON))
        began = time.monotonic()
        with pytest.raises(pykka.Timeout):
            ref.ask(ran.set, timeout=0.01)
        assert time.monotonic() - began < SOON
        go.set()
        assert ran.wait(SOON)
