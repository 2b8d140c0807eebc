"""Actors for tests: one that does what it is sent, on a loop, on a thread, and on Pykka's own ground."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any, ClassVar, Literal

import pykka
from tests.logs_of import SOON

from nitinol.actors.actor import Actor, Down, LoopActor, ThreadActor
from nitinol.env import Loop

Kind = Literal["loop", "thread"]
KINDS: tuple[Kind, ...] = ("loop", "thread")


class Doer(Actor):
    """Raises what it is sent, if that is an exception; calls what can be called; counts the rest."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count = 0
        self.failures: list[Any] = []
        self.unhandled: list[Any] = []
        self.ended = threading.Event()

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if callable(message):
            return message()
        self.count += 1
        return self.count

    def fail(self, error: BaseException) -> None:
        """For proxies."""
        raise error

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.failures.append(exception_value)

    def on_stop(self) -> None:
        self.ended.set()

    def on_unhandled(self, message: Any) -> None:
        self.unhandled.append(message)


class LoopDoer(Doer, LoopActor):
    """On a loop."""


class ThreadDoer(Doer, ThreadActor):
    """On a thread."""

    alive: ClassVar[set[Any]] = set()
    """References to all that live: a test need not stop its own, and yet leaves no thread to the next one."""
    thread: threading.Thread | None = None

    def _actor_loop(self) -> None:
        self.thread = threading.current_thread()
        self.alive.add(self.actor_ref)
        try:
            super()._actor_loop()
        finally:
            self.alive.discard(self.actor_ref)


class PykkaDoer(pykka.ThreadingActor):
    """On a thread, as Pykka has it."""

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


class Downs:
    """Who watches: what it was told."""

    def __init__(self) -> None:
        self.all: list[Down] = []
        self._first = threading.Event()

    def __call__(self, down: Down) -> None:
        self.all.append(down)
        self._first.set()

    def wait(self) -> Down:
        """The one `Down`; there must be no other."""
        assert self._first.wait(SOON)
        (down,) = self.all
        return down


def made(kind: Kind, loop: Loop, variant: type[Any] = object) -> Any:
    """A doer that was not started, perhaps with some methods of another class."""
    base: type[Any] = LoopDoer if kind == "loop" else ThreadDoer
    actor_class: type[Any] = base if variant is object else type(variant.__name__, (variant, base), {})
    return actor_class(loop) if kind == "loop" else actor_class()


def started(kind: Kind, loop: Loop, variant: type[Any] = object) -> Any:
    """A doer that was started."""
    actor = made(kind, loop, variant)
    launch(actor)
    return actor


def launch(actor: Any) -> None:
    """Start one that was made."""
    actor._start_actor_loop()


def hold(actor: Any) -> threading.Event:
    """Keep an actor busy until the event is set."""
    go, busy = threading.Event(), threading.Event()

    def work() -> None:
        busy.set()
        go.wait(SOON)

    actor.actor_ref.tell(work)
    assert busy.wait(SOON)
    return go


def settle(actor: Any, loop: Loop) -> None:
    """Wait until what is left of an actor that is down was handed back."""
    if isinstance(actor, LoopActor):
        done = threading.Event()
        loop.call(loop.call, done.set)  # behind a drain that was asked for meanwhile
        assert done.wait(SOON)
    elif actor.thread is not None:
        actor.thread.join(SOON)


def run_python(program: str, timeout: float = SOON) -> str:
    """Run a program in a process of its own; its output."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def in_pykka(program: str) -> str:
    """Run a program with one of Pykka's actors, `A`, in a process of its own; its output."""
    head = "import pykka, threading\nclass A(pykka.ThreadingActor):\n    use_daemon_thread = True\n"
    return run_python(head + program)
