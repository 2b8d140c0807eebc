"""Each fact of Pykka 4.5 that the design goes around: first Pykka's own behaviour, so that an upgrade tells of a change, then ours.

Where Pykka would stop every actor of the process, or leave somebody waiting for ever, its side runs in a process of its
own.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pykka
import pytest
from tests.logs_of import SOON
from tests.some_actors import (
    Downs,
    Kind,
    PykkaDoer,
    hold,
    in_pykka,
    launch,
    made,
    run_python,
    settle,
    started,
)

from nitinol.actors.actor import Answer, Inbox, ThreadInbox
from nitinol.env import Loop
from nitinol.errors import AgentDown, InboxFull

A_WHILE = 0.3
"""Seconds after which whoever still waits is taken to wait for ever."""


@pytest.fixture
def pykka_actors() -> Iterator[None]:
    """Pykka's own actors of a test are stopped at its end."""
    yield
    pykka.ActorRegistry.stop_all(timeout=SOON)


# ---- an exception under ask goes to the caller, and the actor lives on


@pytest.mark.usefixtures("pykka_actors")
def test_pykka_lets_an_actor_live_on_after_an_exception_under_ask() -> None:
    """The asker gets it; the actor, whose state it may have broken, goes on as if nothing had happened."""
    ref = PykkaDoer.start()
    with pytest.raises(ValueError, match="broken"):
        ref.ask(ValueError("broken"))
    assert ref.is_alive()
    assert ref.ask("next") == 1


def test_here_an_exception_is_a_crash_also_under_ask(kind: Kind, loop: Loop) -> None:
    """The asker gets it, the actor is down, and who watches is told."""
    actor, downs = started(kind, loop), Downs()
    actor.watch(downs)
    error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        actor.actor_ref.ask(error, timeout=SOON)
    assert (downs.wait().reason, downs.wait().error) == ("crash", error)
    assert actor.failures == [error]
    assert not actor.actor_ref.is_alive()


# ---- an exception in on_start never reaches on_failure


def test_pykka_does_not_tell_of_a_failed_start() -> None:
    """A supervisor that listens at `on_failure` never hears of it."""
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


class FailsToStart:
    """Never comes up."""

    def on_start(self) -> None:
        raise ValueError("no start")


def test_here_a_failed_start_is_a_crash(kind: Kind, loop: Loop) -> None:
    """`on_failure` and who watches hear of it; what was told is handed back; who asks is refused."""
    actor, downs, ups = made(kind, loop, FailsToStart), Downs(), list[str]()
    actor.watch(downs, lambda: ups.append("up"))
    actor.actor_ref.tell("before")
    asked = actor.actor_ref.ask("before", block=False, timeout=SOON)
    launch(actor)
    assert str(downs.wait().error) == "no start"
    assert [str(error) for error in actor.failures] == ["no start"]
    with pytest.raises(AgentDown):
        asked.get()
    with pytest.raises(AgentDown):
        actor.actor_ref.ask("after", timeout=SOON)
    assert (actor.unhandled, ups) == (["before"], [])


# ---- a BaseException stops every actor in the process and leaves the asker waiting for ever


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError"])
def test_pykka_stops_every_actor_on_a_base_exception_and_leaves_the_asker_waiting(error: str) -> None:
    """A tool's `sys.exit()` in one actor ends all others in the process, and its asker waits for ever."""
    program = f"""
    def on_receive(self, message):
        raise {error}
class B(pykka.ThreadingActor):
    use_daemon_thread = True
from asyncio import CancelledError
bystander = B.start()
future = A.start().ask("x", block=False)
bystander.actor_stopped.wait(5)
print("bystander alive", bystander.is_alive())
try:
    future.get(timeout={A_WHILE})
except pykka.Timeout:
    print("the asker waits")
"""
    assert in_pykka(program) == "bystander alive False\nthe asker waits"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_here_a_base_exception_kills_one_actor_and_the_asker_is_told(
    kind: Kind, loop: Loop, error: type[BaseException]
) -> None:
    """As `AgentDown`, with the cause: the asker is not exited itself. The bystander does not notice."""
    bystander, actor, downs = started(kind, loop), started(kind, loop), Downs()
    actor.watch(downs)
    exit = error("now")
    with pytest.raises(AgentDown, match=f"{error.__name__}: now") as told:
        actor.actor_ref.ask(exit, timeout=SOON)
    assert told.value.__cause__ is exit
    assert downs.wait().error is exit
    assert bystander.actor_ref.ask("next", timeout=SOON) == 1


# ---- messages queued behind a failing tell vanish


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


def test_here_messages_behind_a_failure_are_handed_back(kind: Kind, loop: Loop) -> None:
    """`on_unhandled` has each of them, in order, though one of them makes it raise; who asked is told."""

    class Picky:
        unhandled: list[Any]

        def on_unhandled(self, message: Any) -> None:
            self.unhandled.append(message)
            if message == "first":
                raise SystemExit

    actor, downs = started(kind, loop, Picky), Downs()
    actor.watch(downs)
    go = hold(actor)
    ref = actor.actor_ref
    ref.tell(ValueError("fail"))
    ref.tell("first")
    asked = ref.ask("asked", block=False, timeout=SOON)
    ref.tell("second")
    go.set()
    with pytest.raises(AgentDown, match="before it handled the message"):
        asked.get()
    assert str(downs.wait().error) == "fail"
    settle(actor, loop)
    assert actor.unhandled == ["first", "second"]


# ---- is_alive, then put, is a race


def test_pykka_loses_what_is_put_after_is_alive() -> None:
    """The actor ends between the two, and nobody looks at its inbox again: the asker waits for ever."""
    program = f"""
import queue
class Late(queue.Queue):
    def put(self, envelope):
        if envelope.message == "late":
            ref.stop()
            for thread in threading.enumerate():
                if thread.name.startswith("A-"):
                    thread.join(5)
        super().put(envelope)
A._create_actor_inbox = staticmethod(Late)
ref = A.start()
try:
    ref.ask("late", timeout={A_WHILE})
except pykka.Timeout:
    print("the asker waits")
ref = A.start()
ref.tell("late")
print("told nothing")
"""
    assert in_pykka(program) == "the asker waits\ntold nothing"


def test_here_who_loses_that_race_is_told(kind: Kind, loop: Loop) -> None:
    """Asked or told, in exactly that moment: refused at once, or handed back."""
    actor: Any = None

    def end_it() -> None:
        actor.actor_ref.stop()
        settle(actor, loop)

    class Late(Inbox):
        def offer(self, envelope: Any, limit: int) -> bool:
            end_it()
            return super().offer(envelope, limit)

    class LateThread(ThreadInbox):
        def offer(self, envelope: Any, limit: int) -> bool:
            end_it()
            return super().offer(envelope, limit)

    for send in ("ask", "tell"):
        actor = made(kind, loop)
        actor.actor_inbox = actor.actor_ref.actor_inbox = Late() if kind == "loop" else LateThread()
        launch(actor)
        ref = actor.actor_ref
        late = partial(ref.ask, "late", timeout=SOON) if send == "ask" else partial(ref.tell, "late")
        with pytest.raises(AgentDown):
            late()
        assert actor.count == 0


# ---- an ask without a timeout never ends; one that timed out still runs later


@pytest.mark.usefixtures("pykka_actors")
def test_pykka_has_no_deadline_for_an_ask() -> None:
    """Whoever asks an actor that hangs hangs with it."""
    ref, go = PykkaDoer.start(), threading.Event()
    asker = threading.Thread(target=ref.ask, args=(lambda: go.wait(SOON),), daemon=True)
    asker.start()
    asker.join(A_WHILE)
    assert asker.is_alive()
    go.set()
    asker.join(SOON)


def test_here_an_ask_needs_a_deadline(kind: Kind, loop: Loop) -> None:
    """It is refused without one, also as a future; a stop needs none; a proxy has one."""
    ref = started(kind, loop).actor_ref
    for block in (True, False):
        with pytest.raises(TypeError, match="needs a deadline"):
            ref.ask("x", block=block)
    assert ref.proxy().count.get() == 0
    assert ref.stop() is True


@pytest.mark.usefixtures("pykka_actors")
def test_pykka_runs_a_message_that_has_timed_out() -> None:
    """Who has given it up, and tried elsewhere, has done it twice."""
    ref, go, ran = PykkaDoer.start(), threading.Event(), threading.Event()
    ref.tell(lambda: go.wait(SOON))
    with pytest.raises(pykka.Timeout):
        ref.ask(ran.set, timeout=0.01)
    go.set()
    assert ran.wait(SOON)


def test_here_a_message_that_has_timed_out_does_not_run(kind: Kind, loop: Loop) -> None:
    """Not by the ask's own deadline, not when `get` or `await` has given up sooner; who still waits is told at once."""
    actor = started(kind, loop)
    ref, ran, go = actor.actor_ref, list[str](), hold(actor)
    with pytest.raises(pykka.Timeout):
        ref.ask(lambda: ran.append("its deadline"), timeout=0.01)
    early = ref.ask(lambda: ran.append("get"), block=False, timeout=SOON * 10)
    with pytest.raises(pykka.Timeout):
        early.get(timeout=0.01)
    cancelled = ref.ask(lambda: ran.append("await"), block=False, timeout=SOON * 10)

    async def give_up() -> None:
        await asyncio.wait_for(cancelled, 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    go.set()
    assert ref.ask("next", timeout=SOON) == 1
    assert ran == []
    for answer in (early, cancelled):
        with pytest.raises(pykka.Timeout, match="before it was begun"):
            answer.get()


def test_a_stop_that_nobody_waits_for_any_more_is_carried_out(kind: Kind, loop: Loop) -> None:
    """Unlike an ask: whoever wanted an actor down still wants it."""
    actor, downs = started(kind, loop), Downs()
    actor.watch(downs)
    go = hold(actor)
    with pytest.raises(pykka.Timeout):
        actor.actor_ref.stop(timeout=0.01)
    go.set()
    assert downs.wait().reason == "normal"


# ---- get_all(timeout) applies per future


def test_pykka_waits_for_each_future_anew() -> None:
    """A thousand futures, `timeout=1`: up to a thousand seconds."""
    timeouts: list[float | None] = []

    def note(timeout: float | None) -> int:
        timeouts.append(timeout)
        return 1

    futures = [pykka.ThreadingFuture[int]() for _ in range(3)]
    for future in futures:
        future.set_get_hook(note)
    assert pykka.get_all(futures, timeout=1.0) == [1, 1, 1]
    assert timeouts == [1.0, 1.0, 1.0]


def test_here_each_answer_has_the_deadline_of_its_ask(kind: Kind, loop: Loop) -> None:
    """Whatever `get_all` says: all have ended when the last ask's time is over."""
    actor = started(kind, loop)
    go, began = hold(actor), time.monotonic()
    answers = [actor.actor_ref.ask("x", block=False, timeout=A_WHILE) for _ in range(100)]
    for answer in answers:
        with pytest.raises(pykka.Timeout):
            pykka.get_all([answer], timeout=SOON)
    assert time.monotonic() - began < 10 * A_WHILE
    go.set()


# ---- await future blocks the loop


def test_pykka_blocks_the_loop_that_awaits() -> None:
    """What the loop itself would do to set the future is not done."""
    future = pykka.ThreadingFuture[str]()
    seen: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.01, lambda: seen.append("the loop goes on"))
        seen.append(await future)

    waits = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    waits.start()
    waits.join(A_WHILE)
    future.set("set from outside")
    waits.join(SOON)
    assert seen[0] == "set from outside"


def test_here_the_loop_goes_on(kind: Kind, loop: Loop) -> None:
    """A hundred coroutines await one actor, and the loop sets what it waits for."""
    actor = started(kind, loop)
    go = hold(actor)

    async def main() -> list[int]:
        alone: Answer[int] = Answer()
        running = asyncio.get_running_loop()
        running.call_later(0.01, alone.set, 0)
        first = await alone
        answers = [actor.actor_ref.ask("x", block=False, timeout=SOON) for _ in range(100)]
        running.call_later(0.01, go.set)
        return [first, *await asyncio.gather(*answers)]

    assert asyncio.run(main()) == list(range(101))


def test_an_answer_for_a_loop_that_has_ended_harms_nobody(
    kind: Kind, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """Who awaited it was cancelled, and its loop is closed when the actor answers."""
    actor = started(kind, loop)
    answers: list[Any] = []

    async def main(go: threading.Event) -> None:
        answers.append(actor.actor_ref.ask(lambda: go.wait(SOON), block=False, timeout=SOON))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answers[0], 0.01)

    go = threading.Event()
    asyncio.run(main(go))
    go.set()
    assert actor.actor_ref.ask("next", timeout=SOON) == 1
    assert caplog.records == []


# ---- the registry is O(n)


@pytest.mark.usefixtures("pykka_actors")
def test_pykka_keeps_a_list_of_all_actors() -> None:
    """Each end of an actor looks through it, and anyone may stop them all."""
    ref = PykkaDoer.start()
    assert type(pykka.ActorRegistry._actor_refs) is list  # pyright: ignore[reportPrivateUsage]
    assert ref in pykka.ActorRegistry.get_all()
    pykka.ActorRegistry.stop_all(timeout=SOON)
    assert not ref.is_alive()


def test_here_no_actor_is_in_that_list(kind: Kind, loop: Loop) -> None:
    """And `stop_all` does not stop it."""
    before = set(pykka.ActorRegistry.get_all())
    ref = started(kind, loop).actor_ref
    assert ref.ask("x", timeout=SOON) == 1
    assert set(pykka.ActorRegistry.get_all()) == before
    pykka.ActorRegistry.stop_all(timeout=SOON)
    assert ref.ask("x", timeout=SOON) == 2
    assert ref.stop(timeout=SOON)


# ---- refs are weak


def test_pykkas_references_are_weak() -> None:
    """What keeps an actor is its thread alone; a reference to none is a reference all the same."""
    actor = PykkaDoer()
    ref, seen = actor.actor_ref, weakref.ref(actor)
    del actor
    gc.collect()
    assert seen() is None
    assert ref.is_alive()


def test_here_an_actor_lives_as_long_as_it_has_a_reference(kind: Kind, loop: Loop) -> None:
    """Also one that has no thread; and none is left behind when it has ended."""
    actor = started(kind, loop)
    ref, seen, thread = actor.actor_ref, weakref.ref(actor), getattr(actor, "thread", None)
    del actor
    assert ref.ask("x", timeout=SOON) == 1
    gc.collect()
    assert ref.ask("x", timeout=SOON) == 2
    assert ref.stop(timeout=SOON)
    if thread is not None:
        thread.join(SOON)
    assert loop.close(SOON)
    del ref
    gc.collect()
    assert seen() is None


# ---- stop is a FIFO poison pill


@pytest.mark.usefixtures("pykka_actors")
def test_pykkas_stop_waits_behind_all_messages() -> None:
    """However long they take."""
    ref, go = PykkaDoer.start(), threading.Event()
    ref.tell(lambda: go.wait(SOON))
    before = ref.ask("before", block=False)
    stopping = ref.stop(block=False)
    go.set()
    assert stopping.get(timeout=SOON) is True
    assert before.get(timeout=SOON) == 1


def test_here_a_stop_overtakes(kind: Kind, loop: Loop) -> None:
    """The message that is handled is handled to its end; what waits is refused, or handed back."""
    actor, downs = started(kind, loop), Downs()
    actor.watch(downs)
    ref, go = actor.actor_ref, hold(actor)
    ref.tell("told")
    asked = ref.ask("asked", block=False, timeout=SOON)
    stopping = ref.stop(block=False)
    ref.tell("behind")
    go.set()
    assert stopping.get(timeout=SOON) is True
    with pytest.raises(AgentDown):
        asked.get()
    assert (downs.wait().reason, downs.wait().error) == ("normal", None)
    settle(actor, loop)
    assert (actor.ended.is_set(), actor.failures, actor.count, actor.unhandled) == (True, [], 0, ["told", "behind"])
    assert ref.stop(timeout=SOON) is False


# ---- after fork, asks hang


def test_pykka_hangs_after_a_fork() -> None:
    """The child has the reference, and none of the threads."""
    program = f"""
    def on_receive(self, message):
        return 1
import os
ref = A.start()
pid = os.fork()
if not pid:
    try:
        ref.ask("x", timeout={A_WHILE})
    except pykka.Timeout:
        print("the asker waits", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert in_pykka(program) == "the asker waits"


def test_here_actors_are_down_in_a_fork() -> None:
    """Who asks or tells in the child is told at once, of both kinds; the parent's live on, and the child may have its own."""
    program = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from nitinol import errors
from nitinol.env import LoopThread
from tests.some_actors import launch, made
loop = LoopThread("loop")
actors = [made("loop", loop), made("thread", loop)]
for actor in actors:
    launch(actor)
    assert actor.actor_ref.ask("x", timeout={SOON}) == 1
pid = os.fork()
if not pid:
    for actor in actors:
        assert not actor.actor_ref.is_alive()
        for send in (lambda: actor.actor_ref.ask("x", timeout={SOON}), lambda: actor.actor_ref.tell("x")):
            try:
                send()
            except errors.AgentDown as error:
                assert "was forked from" in str(error), error
            else:
                raise AssertionError
    assert not loop.call(print)
    own = LoopThread("own")
    for kind in ("loop", "thread"):
        actor = made(kind, own)
        launch(actor)
        assert actor.actor_ref.ask("x", timeout={SOON}) == 1
    print("child done", flush=True)
    os._exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0
for actor in actors:
    assert actor.actor_ref.ask("x", timeout={SOON}) == 2
print("parent done")
"""
    assert run_python(program).splitlines() == ["child done", "parent done"]


def test_a_runtime_has_stopped_in_a_fork() -> None:
    """Whoever uses the parent's runtime in the child is told at once; the child may open its own."""
    program = f"""
import os, warnings
warnings.simplefilter("ignore")
from nitinol import Agent, Runtime, errors
from nitinol.testing import ScriptedProvider
def agent():
    return Agent(name="a", model=ScriptedProvider(lambda request: "ok"))
with Runtime() as rt:
    ref = rt.start(agent())
    pid = os.fork()
    if not pid:
        for use in (lambda: ref.send("x"), lambda: ref.ask("x", timeout={SOON}), ref.stop, lambda: ref.watch().result({SOON}).reason == "shutdown" or 1 / 0):
            try:
                use()
            except errors.RuntimeStopped:
                pass
        with Runtime() as own:
            print("child", own.start(agent()).ask("x", timeout={SOON}).text, flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print("parent", ref.ask("x", timeout={SOON}).text)
"""
    assert run_python(program).splitlines() == ["child ok", "parent ok"]


# ---- non-daemon threads keep the process alive


def test_pykkas_threads_keep_the_process_alive() -> None:
    """A program that forgets one actor never ends."""
    program = "import pykka\npykka.ThreadingActor.start()\nprint('end of main', flush=True)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "end of main\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2 * A_WHILE)
        process.kill()


def test_here_a_process_ends_whatever_its_actors_do() -> None:
    """One that waits, and one that hangs in a handler."""
    program = """
from nitinol.env import LoopThread
from tests.some_actors import hold, launch, made
loop = LoopThread("loop")
for kind in ("loop", "thread"):
    launch(made(kind, loop))
    busy = made(kind, loop)
    launch(busy)
    hold(busy)
print("end of main")
"""
    began = time.monotonic()
    assert run_python(program) == "end of main"
    assert time.monotonic() - began < SOON


# ---- no queue has a bound


@pytest.mark.usefixtures("pykka_actors")
def test_pykkas_inbox_has_no_bound() -> None:
    """Whoever is faster than the actor fills the memory."""
    ref, go = PykkaDoer.start(), threading.Event()
    ref.tell(lambda: go.wait(SOON))
    for _ in range(5000):
        ref.tell("x")
    inbox: Any = ref.actor_inbox
    assert type(inbox) is queue.Queue
    assert inbox.qsize() >= 5000
    go.set()


@pytest.mark.parametrize("how", ["tell", "ask"])
def test_here_an_inbox_takes_exactly_its_limit(kind: Kind, loop: Loop, how: str) -> None:
    """From eight threads at once: 1,000 are taken, the others are refused; a stop is taken all the same."""
    before = sys.getswitchinterval()
    actor = started(kind, loop)
    ref, go = actor.actor_ref, hold(actor)
    begin = threading.Barrier(8)
    send: Callable[[], object] = (
        (lambda: ref.tell("x")) if how == "tell" else (lambda: ref.ask("x", block=False, timeout=SOON))
    )

    def fill() -> tuple[int, int]:
        taken = refused = 0
        begin.wait(SOON)
        for _ in range(250):
            try:
                send()
                taken += 1
            except InboxFull:
                refused += 1
        return taken, refused

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            counts = [filled.result(SOON) for filled in [pool.submit(fill) for _ in range(8)]]
    finally:
        sys.setswitchinterval(before)
    assert sum(taken for taken, _ in counts) == 1000
    assert sum(refused for _, refused in counts) == 1000
    stopping = ref.stop(block=False)
    go.set()
    assert stopping.get(timeout=SOON) is True
    settle(actor, loop)
    assert len(actor.unhandled) == (1000 if how == "tell" else 0)


def test_an_actor_has_its_own_limit(kind: Kind, loop: Loop) -> None:
    """`inbox_limit`; room that is made is room."""

    class Small:
        inbox_limit = 2

    actor = started(kind, loop, Small)
    go = hold(actor)
    actor.actor_ref.tell("x")
    answer = actor.actor_ref.ask("x", block=False, timeout=SOON)
    with pytest.raises(InboxFull, match="2 messages waiting"):
        actor.actor_ref.tell("x")
    go.set()
    assert answer.get() == 2
    assert actor.actor_ref.ask("x", timeout=SOON) == 3


def test_a_finalizer_may_tell_while_an_inbox_is_filled(kind: Kind, loop: Loop) -> None:
    """It runs anywhere, also where the inbox is locked: in the limit's comparison, for one."""
    actor = started(kind, loop)
    ref = actor.actor_ref

    class Limit(int):
        def __le__(self, other: Any) -> bool:
            ref._limit = 1000
            ref.tell("from within")
            return False

    ref._limit = Limit(1000)
    teller = threading.Thread(target=ref.tell, args=("x",), daemon=True)
    teller.start()
    teller.join(SOON)
    assert not teller.is_alive()
    assert ref.ask("x", timeout=SOON) == 3
