"""Loop actors: Pykka actors that share a loop instead of owning a thread each.

A loop actor keeps Pykka's mailbox semantics, references and futures, and costs a few hundred bytes instead of a
thread's stack. Four things differ from Pykka's own actors, each for a reason:

- its messages are handled on a `Loop`, a bounded number in a row, so that one busy actor does not starve the others;
- *every* exception that escapes a handler is a crash, asked or told, `BaseException`s included; the asker gets it too,
  and no other actor in the process is stopped by it;
- it is not in `pykka.ActorRegistry`, which is linear in its size and whose `stop_all` anyone may call;
- whoever started it is told once that it is down, by `on_down`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pykka
from pykka._envelope import Envelope
from pykka.messages import _ActorStop  # pyright: ignore[reportPrivateUsage] # how Pykka asks an actor to stop

from nitinol.env import Loop

BATCH = 100
"""Messages one actor handles before the loop looks at the others."""

Down = Callable[[BaseException | None], None]
"""Told once, in the actor's loop: the crash, or `None` after an orderly stop."""


class Flag:
    """As much of a `threading.Event` as Pykka asks of `actor_stopped`, in a tenth of its memory."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value = False

    def is_set(self) -> bool:
        return self._value

    def set(self) -> None:
        self._value = True


class Inbox:
    """The inbox of a loop actor: `put` from any thread wakes its loop once, however many messages wait."""

    __slots__ = ("_drain", "_envelopes", "_loop", "_scheduled")

    def __init__(self) -> None:
        self._envelopes: deque[Envelope[Any]] = deque()
        self._loop: Loop | None = None
        self._drain: Callable[[], None] | None = None
        self._scheduled = False

    def bind(self, loop: Loop, drain: Callable[[], None]) -> None:
        """Say who handles the messages; those that wait are handled now."""
        self._loop, self._drain = loop, drain
        if self._envelopes:
            self._schedule()

    def unbind(self) -> None:
        """Nobody will put anything more."""
        self._loop = self._drain = None

    def put(self, envelope: Envelope[Any], /) -> None:
        self._envelopes.append(envelope)
        if not self._scheduled and self._drain is not None:
            self._schedule()

    def get(self) -> Envelope[Any]:
        return self._envelopes.popleft()

    def empty(self) -> bool:
        return not self._envelopes

    def rest(self) -> None:
        """The drain is about to look at the inbox; a `put` from now on schedules it again."""
        self._scheduled = False

    def again(self) -> None:
        """The drain stops early; it goes on after the other actors had their turn."""
        self._schedule()

    def __len__(self) -> int:
        return len(self._envelopes)

    def _schedule(self) -> None:
        self._scheduled = True
        cast("Loop", self._loop).call(cast("Callable[[], None]", self._drain))


class LoopActor(pykka.Actor):
    """An actor whose messages are handled on a loop.

    Args:
        loop: Where its messages are handled.
        on_down: Told once when it is down.
    """

    def __init__(self, loop: Loop, on_down: Down | None = None) -> None:
        # Not Pykka's __init__: the same fields, without a UUID and a threading.Event for each of a hundred thousand.
        self.actor_urn = f"nitinol:{id(self):x}"
        self.actor_inbox = Inbox()
        self.actor_stopped = Flag()  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue] # see Flag
        self._actor_ref = pykka.ActorRef(self)
        self._loop = loop
        self._on_down = on_down

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        return pykka.ThreadingFuture()

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the actor and start it. From any thread; `on_start` runs on the loop."""
        actor = cls(*args, **kwargs)
        actor._start_actor_loop()
        return actor.actor_ref

    def launch(self) -> None:
        """Start an actor that was made by its constructor. Its maker keeps it alive."""
        self._start_actor_loop()

    def post(self, message: Any) -> None:
        """`actor_ref.tell` for those who hold the actor: no reference, no liveness check."""
        cast("Inbox", self.actor_inbox).put(Envelope(message))

    def halt(self) -> None:
        """Stop at once, before the messages that wait. On its loop, and not from one of its own handlers."""
        if not self.actor_stopped.is_set():
            self._stop()

    def vanish(self) -> None:
        """As `halt`, and without a cycle that only the collector would free. Only where nobody else knows the actor."""
        self.halt()
        cast("Inbox", self.actor_inbox).unbind()

    def _start_actor_loop(self) -> None:
        self._loop.call(self._begin)

    def _begin(self) -> None:
        try:
            self.on_start()
        except BaseException as error:
            self._die(error)
        # Bound also after a failed start: whoever asks from now on must be refused, not left waiting.
        cast("Inbox", self.actor_inbox).bind(self._loop, self._drain)

    def _drain(self) -> None:
        inbox = cast("Inbox", self.actor_inbox)
        inbox.rest()
        stopped = self.actor_stopped
        for _ in range(BATCH):
            if inbox.empty() or stopped.is_set():
                break
            envelope = inbox.get()
            try:
                reply = self._handle_receive(envelope.message)
            except BaseException as error:
                if envelope.reply_to is not None:
                    envelope.reply_to.set_exception()
                self._die(error)
                return
            if envelope.reply_to is not None:
                envelope.reply_to.set(reply)
        if stopped.is_set():
            self._refuse_rest()
        elif not inbox.empty():
            inbox.again()

    def _stop(self) -> None:
        self.actor_stopped.set()
        failure: BaseException | None = None
        try:
            self.on_stop()
        except BaseException as error:
            failure = error
        self._tell_down(failure)

    def _die(self, error: BaseException) -> None:
        self.actor_stopped.set()
        try:
            self.on_failure(type(error), error, error.__traceback__)
        except BaseException as second:
            second.__context__ = error
        self._refuse_rest()
        self._tell_down(error)

    def _refuse_rest(self) -> None:
        """Who asked is told that nobody will answer; what was told is handed to `on_unhandled`."""
        inbox = cast("Inbox", self.actor_inbox)
        while not inbox.empty():
            envelope = inbox.get()
            if envelope.reply_to is None:
                if not isinstance(envelope.message, _ActorStop):
                    self.on_unhandled(envelope.message)
            elif isinstance(envelope.message, _ActorStop):
                envelope.reply_to.set(None)
            else:
                try:
                    raise pykka.ActorDeadError(f"{self.actor_ref} stopped before handling the message")
                except pykka.ActorDeadError:
                    envelope.reply_to.set_exception(sys.exc_info())

    def on_unhandled(self, message: Any) -> None:
        """A message that was told to an actor which is down now. Does nothing by default."""

    def _tell_down(self, error: BaseException | None) -> None:
        told, self._on_down = self._on_down, None
        if told is not None:
            told(error)


class ThreadActor(pykka.ThreadingActor):
    """A `pykka.ThreadingActor` on a daemon thread, outside Pykka's registry."""

    use_daemon_thread = True

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the actor and start its thread."""
        actor = cls(*args, **kwargs)
        actor._start_actor_loop()
        return actor.actor_ref
