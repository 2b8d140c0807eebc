"""Actors: Pykka's mailbox, references and futures, under rules that can be supervised.

There are two kinds. A `ThreadActor` has a thread of its own, and may block in its handlers. A `LoopActor` shares a loop with
others, costs a few hundred bytes instead of a thread's stack, and must never block. Both differ from Pykka's own actors,
each time for a reason:

- *every* exception that escapes a handler is a crash, asked or told, `BaseException`s included; so is one in `on_start` or
  `on_stop`. The asker gets it too (an exit as `AgentDown`: it is none of the asker's), and no other actor in the process is stopped by it;
- who watches an actor is told once that it is down, also if it was down already; messages behind its end are refused or
  handed back, never lost in silence;
- a stop overtakes the messages that wait, and an inbox is bounded;
- an ask has a deadline, and is not begun once that has passed, or whoever asked has given it up; a handler must not wait for
  another actor's answer;
- in a fork, where their threads are not, actors are down;
- threads are daemons, and no actor is in `pykka.ActorRegistry`, which is linear in its size and whose `stop_all` anyone may
  call.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import pykka
from pykka._envelope import Envelope
from pykka.messages import (
    ProxyCall,
    ProxyGetAttr,
    ProxySetAttr,
    _ActorStop,  # pyright: ignore[reportPrivateUsage] # how Pykka asks an actor to stop
)

from nitinol.env import Env, Loop, in_child, on_a_loop
from nitinol.errors import AgentDown, ConfigurationError, InboxFull, WouldDeadlock
from nitinol.logs import describe, get_logger

T = TypeVar("T")
A = TypeVar("A", bound=pykka.Actor)

BATCH = 100
"""Messages one loop actor handles before the loop looks at the others."""
INBOX = 1000
"""Messages of users that may wait in an inbox."""
PROXY_DEADLINE = 5.0
"""Seconds that an answer through a Pykka proxy may take, which has no place for a deadline of the caller's."""

Reason = Literal["normal", "shutdown", "crash", "killed"]
"""How an actor ended: by itself, or stopped by whoever held it; by its supervisor; by an escape; given up at a deadline."""

_PYKKAS = (_ActorStop, ProxyCall, ProxyGetAttr, ProxySetAttr)
"""Messages that Pykka handles itself."""
_lives = threading.RLock()
"""Held for the moments in which an actor comes up, goes down, gets a watcher, or a bounded inbox of a loop is filled. It may be
taken again by its holder: a finalizer, which runs anywhere, may tell."""
_thread = threading.local()
_forks = 0
"""How many forks lie between this process and the one that began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """An actor is down. Told exactly once to each who watches it."""

    id: str
    """The `id` of its child spec, an agent's key, or the name of its class."""
    reason: Reason
    error: BaseException | None = None
    """What escaped, for a crash; not kept for those who come late to an agent's."""
    text: str = ""

    @property
    def why(self) -> str:
        """The reason in words."""
        return self.text or (self.reason if self.error is None else words_of(self.error))


CONTROL: frozenset[type[Any]] = frozenset({_ActorStop, Down})
"""Messages that overtake those of users, and are taken however many wait."""


def words_of(error: BaseException) -> str:
    """An error in words, of which some are a user's code."""
    try:
        return f"{type(error).__name__}: {describe(error)[:2000]}"
    except BaseException:
        return "an error that cannot be told"


def crash_of(id: str, error: BaseException) -> Down:
    """A crash, told in words here and now, and nowhere else."""
    return Down(id=id, reason="crash", error=error, text=words_of(error))


class ActorDown(AgentDown, pykka.ActorDeadError):
    """Also the error that Pykka's users expect."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where actors live that a supervisor starts: what they are called, their clock, and the loop of loop actors."""

    id: str
    env: Env
    loop: Loop
    born: list[Actor] = field(default_factory=list["Actor"])
    """Those that were made here. Held, as their references are weak, and one may be down before it is looked at."""


home: ContextVar[Home | None] = ContextVar("home", default=None)
"""Set while a supervisor calls the `start` of a child spec."""


def in_handler() -> bool:
    """Whether the caller is an actor's handler, on a thread of its own or on a loop: nothing that it waits for may wait for it."""
    return getattr(_thread, "handles", False) or on_a_loop()


class Answer(pykka.ThreadingFuture[T]):
    """What an ask comes to. `get` waits until the ask's deadline at most; `await` waits as a coroutine does.

    Whoever stops waiting gives the ask up: the actor passes over it if it has not begun it.
    """

    def __init__(self, clock: Callable[[], float] | None = None, until: float | None = None) -> None:
        super().__init__()
        self._clock, self._until = clock, until
        self._given_up = False
        self._told: list[Callable[[], object]] | None = None

    @property
    def expired(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up or (self._until is not None and self._clock is not None and self._clock() >= self._until)

    def get(self, *, timeout: float | None = None) -> Any:
        """The answer, within `timeout` seconds, and before the deadline of the ask in any case.

        Raises:
            WouldDeadlock: Called by an actor's handler, while there is no answer yet.
        """
        if self._result is not None:
            return super().get()
        if self._get_hook is None and in_handler():  # a hook asks others, and each of them refuses
            raise WouldDeadlock(
                "an actor's handler would wait for another actor, which may wait for this one; tell it, and let it tell you"
            )
        if self._until is not None and self._clock is not None:
            left = max(self._until - self._clock(), 0.0)
            timeout = left if timeout is None else min(timeout, left)
        try:
            return super().get(timeout=timeout)
        except pykka.Timeout:
            self._given_up = True
            raise

    def set(self, value: T | None = None) -> None:
        super().set(value)
        self._tell()

    def set_exception(self, exc_info: Any = None) -> None:
        super().set_exception(exc_info)
        self._tell()

    def refuse(self, why: str, cause: BaseException | None = None) -> None:
        """Set `AgentDown`, unless there is an answer."""
        error = ActorDown(why)
        error.__cause__ = cause
        self._fail(error)

    def lapse(self) -> None:
        """Nobody will handle it any more, as it was too late: whoever waits all the same is told."""
        self._fail(pykka.Timeout("the ask was given up, or its deadline had passed, before it was begun"))

    def _fail(self, error: Exception) -> None:
        with suppress(queue.Full):
            self.set_exception((type(error), error, None))

    def when_set(self, told: Callable[[], object]) -> None:
        """Call `told` once there is an answer: at once, or in the thread that gives it."""
        with self._condition:
            if self._result is None:
                self._told = [*(self._told or ()), told]
                return
        told()

    def _tell(self) -> None:
        told = self._told  # there is an answer: nobody comes any more
        if told is not None:
            call_each(told)

    @property
    def failed(self) -> bool:
        """Whether the answer is an exception."""
        return self._result is not None and self._result.exc_info is not None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if self._get_hook is not None:  # it is made of others: Pykka's map, join and the like
            return await asyncio.to_thread(self.get)
        loop, answered = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # whoever waited is gone, and its loop too
                loop.call_soon_threadsafe(answered.set)

        self.when_set(wake)
        left = None if self._until is None or self._clock is None else max(self._until - self._clock(), 0.0)
        try:
            async with asyncio.timeout(left):
                await answered.wait()
        except BaseException as error:
            self._given_up = True
            if isinstance(error, TimeoutError):
                raise pykka.Timeout(f"{left} seconds") from None
            raise
        return self.get()


class ActorRef(pykka.ActorRef[A]):
    """A reference to an actor of ours. From any thread; holding one does not keep a thread alive."""

    def __init__(self, actor: A) -> None:
        super().__init__(actor)
        self._limit = cast("Actor", actor).inbox_limit
        self._env = cast("Actor", actor).env
        self._forks = _forks

    def __str__(self) -> str:
        actor = self._actor_weakref()
        return super().__str__() if actor is None else str(actor)

    def is_alive(self) -> bool:
        """Whether it takes messages. In a fork no actor of the parent process does."""
        return not self.actor_stopped.is_set() and self._forks == _forks

    def tell(self, message: Any) -> None:
        """Send a message; a stop overtakes those that wait.

        Raises:
            AgentDown: The actor is down.
            InboxFull: As many wait as may.
        """
        if self.actor_stopped.is_set() or self._forks != _forks:
            raise ActorDown(self._why_down())
        inbox: Any = self.actor_inbox
        if type(message) in CONTROL:
            inbox.put(Envelope(message))
        elif not inbox.offer(Envelope(message), self._limit):
            raise self._full()

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send a message and wait for the reply; with `block=False` give its future, an `Answer`.

        Args:
            message: What its `on_receive` gets.
            block: Whether to wait.
            timeout: Seconds. When they have passed, the message is not handled any more. Only Pykka's proxies have a default.

        Raises:
            AgentDown: The actor is down, or went down before it got to the message.
            InboxFull: As many messages wait as may.
            WouldDeadlock: Called by an actor's handler, with `block=True`.
            pykka.Timeout: There was no answer in time.
            Exception: What the actor raised; it has crashed by it.
        """
        until: float | None = None
        if timeout is None and isinstance(message, (ProxyCall, ProxyGetAttr, ProxySetAttr)):
            timeout = PROXY_DEADLINE
        if timeout is not None:
            until = self._env.monotonic() + timeout
        elif not isinstance(message, _ActorStop):
            raise TypeError(f"an ask needs a deadline: {self.actor_class.__name__}.ask(…, timeout=seconds)")
        if block:
            self._check_may_wait()
        answer: Answer[Any] = Answer(self._env.monotonic, until)
        if self.is_alive():
            inbox: Any = self.actor_inbox
            if type(message) in CONTROL:
                inbox.put(Envelope(message, answer))
            elif not inbox.offer(Envelope(message, answer), self._limit):
                raise self._full()
        else:
            answer.refuse(self._why_down())
        return answer.get() if block else answer

    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Stop the actor: it ends what it is at, and runs its `on_stop`. Also if nobody waits for it so long.

        Args:
            block: Whether to wait until it has stopped; else a future is given, an `Answer`.
            timeout: Seconds to wait; `None`: as long as it takes.

        Returns:
            Whether it was stopped; False if it was down before.

        Raises:
            WouldDeadlock: Called by an actor's handler, with `block=True`.
            pykka.Timeout: It has not stopped in time, and will when it comes to it.
        """
        if block:
            self._check_may_wait()
        asked = cast("Answer[None]", self.ask(_ActorStop(), block=False))
        stopped: Answer[bool] = Answer()
        asked.when_set(lambda: stopped.set(not asked.failed))
        return stopped.get(timeout=timeout) if block else stopped

    def _check_may_wait(self) -> None:
        if in_handler():
            raise WouldDeadlock(
                f"an actor's handler would wait for {self}, which may wait for this one; tell it, and let it tell you"
            )

    def _why_down(self) -> str:
        if self._forks != _forks:
            return (
                f"{self} lives in the process that this one was forked from; start actors, and runtimes, after a fork"
            )
        return f"{self} is down"

    def _full(self) -> InboxFull:
        return InboxFull(
            f"{self} has {self._limit} messages waiting and takes no more for now; try again, or raise its inbox_limit"
        )


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

    __slots__ = ("_closed", "_drain", "_envelopes", "_last", "_loop", "_scheduled")

    def __init__(self) -> None:
        self._envelopes: deque[Envelope[Any]] = deque()
        self._last: deque[Envelope[Any]] | None = None
        """What users have sent: it waits behind stops, and behind what actors tell each other."""
        self._loop: Loop | None = None
        self._drain: Callable[[], None] | None = None
        self._scheduled = False
        self._closed = False

    def bind(self, loop: Loop, drain: Callable[[], None]) -> None:
        """Say who handles the messages; those that wait are handled now."""
        self._loop, self._drain = loop, drain
        if not self.empty():
            self._schedule()

    def unbind(self) -> None:
        """Nobody will put anything more."""
        self._loop = self._drain = None

    def put(self, envelope: Envelope[Any], /) -> None:
        """A message that overtakes those of users."""
        self._envelopes.append(envelope)
        if not self._scheduled and self._drain is not None:
            self._schedule()

    def put_last(self, envelope: Envelope[Any]) -> None:
        """A message of a user's. On the actor's loop."""
        if self._last is None:
            self._last = deque()
        self._last.append(envelope)
        if not self._scheduled and self._drain is not None:
            self._schedule()

    def offer(self, envelope: Envelope[Any], limit: int) -> bool:
        """A message of a user's, from any thread, unless as many wait as may; whether it was taken.

        Raises:
            AgentDown: It was told, and nobody takes anything more.
        """
        with _lives:
            last = self._last
            if last is None:
                last = self._last = deque()
            if len(last) >= limit:
                return False
            closed = self._closed
            if not closed:
                last.append(envelope)
        if closed:
            _refuse(envelope)
            return True
        if not self._scheduled and self._drain is not None:
            self._schedule()
        return True

    def get(self) -> Envelope[Any]:
        """The next one.

        Raises:
            IndexError: None is left.
        """
        return (self._envelopes or self._last or self._envelopes).popleft()

    def empty(self) -> bool:
        return not self._envelopes and not self._last

    def shrink(self) -> None:
        """Free what is kept for users' messages, if there are none. Only where all of them come by `put_last`."""
        if not self._last:
            self._last = None

    def rest(self) -> None:
        """The drain is about to look at the inbox; a `put` from now on schedules it again."""
        self._scheduled = False

    def again(self) -> None:
        """The drain stops early; it goes on after the other actors had their turn."""
        if not self._scheduled:  # else a put has done it meanwhile, and two drains would be two turns
            self._schedule()

    def close(self) -> None:
        """Nobody will take anything more of users: what they send from now on is refused at once."""
        with _lives:
            self._closed = True

    def __len__(self) -> int:
        return len(self._envelopes) + len(self._last or ())

    def _schedule(self) -> None:
        self._scheduled = True
        if not cast("Loop", self._loop).call(cast("Callable[[], None]", self._drain)):
            self._scheduled = False
            _refuse_all(self, "its loop has ended")


class ThreadInbox:
    """The inbox of a thread actor, in the same two lanes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # its holder may take it again: see `_lives`
        self._envelopes: deque[Envelope[Any]] = deque()
        self._last: deque[Envelope[Any]] = deque()
        self._closed = False

    def put(self, envelope: Envelope[Any], /) -> None:
        """A message that overtakes those of users."""
        self._put(self._envelopes, envelope, sys.maxsize)

    def offer(self, envelope: Envelope[Any], limit: int) -> bool:
        """A message of a user's, unless as many wait as may; whether it was taken.

        Raises:
            AgentDown: It was told, and nobody takes anything more.
        """
        return self._put(self._last, envelope, limit)

    def get(self) -> Envelope[Any]:
        """The next one; waits for it.

        Raises:
            IndexError: None is left, and none will come.
        """
        with self._changed:
            while self.empty() and not self._closed:
                self._changed.wait()
            return self._take()

    def take(self) -> Envelope[Any]:
        """The next one.

        Raises:
            IndexError: None is left.
        """
        with self._changed:
            return self._take()

    def close(self) -> None:
        """Nobody will take anything more: what is put from now on is refused at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def empty(self) -> bool:
        return not self._envelopes and not self._last

    def __len__(self) -> int:
        return len(self._envelopes) + len(self._last)

    def _put(self, lane: deque[Envelope[Any]], envelope: Envelope[Any], limit: int) -> bool:
        with self._changed:
            if not self._closed:
                if len(lane) >= limit:
                    return False
                lane.append(envelope)
                self._changed.notify()
                return True
        _refuse(envelope)
        return True

    def _take(self) -> Envelope[Any]:
        return (self._envelopes or self._last).popleft()


class Actor(pykka.Actor):
    """What thread actors and loop actors have in common: how a message is handled, and what happens at the end."""

    inbox_limit: ClassVar[int] = INBOX
    """Messages of users that may wait; one more is refused with `InboxFull`."""
    env: Env = Env()
    """Where its clock is."""
    _name: str | None = None
    _reason: Reason = "normal"
    _down: Down | None = None
    _watchers: list[tuple[Callable[[Down], object], Callable[[], object] | None]] | None = None
    _answering: Answer[Any] | None = None
    _is_up = False
    _remembers: ClassVar[bool] = True
    """Whether who watches it when it is down already is told the error. It is a cycle, by the frames of its traceback."""

    @staticmethod
    def _create_future() -> pykka.Future[Any]:
        return Answer()

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the actor and start it; from any thread. `on_start` runs where its messages are handled."""
        actor = cls(*args, **kwargs)
        actor._start_actor_loop()
        return actor.actor_ref

    def watch(self, told: Callable[[Down], object], up: Callable[[], object] | None = None) -> None:
        """Be told once that the actor is down, at once if it is; and, with `up`, that its `on_start` is done.

        Both are called where the actor's messages are handled, or here; they must not block. From any thread. What they raise
        is logged.
        """
        with _lives:
            down, is_up = self._down, self._is_up
            if down is None:
                self._watchers = [*(self._watchers or ()), (told, None if is_up else up)]
        if is_up and up is not None:  # also if it is down by now: it did start
            call_each([up])
        if down is not None:
            call_each([partial(told, down)])

    def abandon(self) -> None:
        """Give it up: it is down now for everyone, although a handler of its may still run. From any thread."""
        self._reason = "killed"
        self.actor_stopped.set()
        answering = self._answering
        if answering is not None:
            answering.refuse(f"{self._title} was given up")
        inbox = cast("Inbox | ThreadInbox", self.actor_inbox)
        inbox.close()
        if not inbox.empty():
            self.env.start_thread(f"refuse-{self.id}", self._refuse_rest)  # with `on_unhandled`, which may block
        self._tell_down(Down(id=self.id, reason="killed"))

    @property
    def id(self) -> str:
        """What it is called: by its supervisor, or after its class."""
        return self._name or type(self).__name__

    def on_unhandled(self, message: Any) -> None:
        """A message that was told to an actor which is down now. Does nothing by default."""

    @property
    def _title(self) -> str:  # not __str__: a user's may raise
        return f"{type(self).__name__} {self._name!r}" if self._name else f"{type(self).__name__} ({self.actor_urn})"

    def __str__(self) -> str:
        return self._title

    # -- where its messages are handled

    def _come_up(self) -> bool:
        """Run `on_start`; whether it is up."""
        if self.actor_stopped.is_set():  # given up before it began
            return False
        try:
            self.on_start()
        except BaseException as error:
            self._die(error)
            return False
        if self.actor_stopped.is_set():  # it was given up meanwhile, and lets go of what it has opened
            self._stop()
            return False
        with _lives:
            if self.actor_stopped.is_set():
                return False
            self._is_up = True
            watchers = self._watchers or ()
        call_each([up for _, up in watchers if up is not None])
        return True

    def _handle(self, envelope: Envelope[Any]) -> None:
        """Handle a message; whatever escapes is a crash."""
        answer = cast("Answer[Any] | None", envelope.reply_to)
        if answer is None:
            try:
                self._handle_receive(envelope.message)
            except BaseException as error:
                self._die(error)
            return
        if answer.expired:  # never of a stop, which has no deadline
            answer.lapse()
            return
        self._answering = answer
        if self.actor_stopped.is_set():  # it was given up in this moment, and that did not see the answer yet
            answer.refuse(f"{self._title} was given up")
            return
        try:
            reply = self._handle_receive(envelope.message)
        except BaseException as error:
            self._answering = None
            if isinstance(error, Exception):
                with suppress(queue.Full):
                    answer.set_exception()
            else:  # an exit of this actor is none of its asker's
                answer.refuse(f"{self._title} went down by this: {type(error).__name__}: {describe(error)}", error)
            self._die(error)
            return
        self._answering = None
        try:
            answer.set(reply)
        except queue.Full:  # it was given up meanwhile
            return

    def _handle_receive(self, message: Any) -> Any:
        return super()._handle_receive(message) if isinstance(message, _PYKKAS) else self.on_receive(message)

    def _stop(self) -> None:
        self.actor_stopped.set()
        try:
            self.on_stop()
        except BaseException as error:
            self._tell_down(self._crash(error))
            return
        self._tell_down(Down(id=self.id, reason=self._reason))

    def _die(self, error: BaseException) -> None:
        self.actor_stopped.set()
        call_each([partial(self.on_failure, type(error), error, error.__traceback__)])
        self._refuse_rest()
        self._tell_down(self._crash(error))

    def _crash(self, error: BaseException) -> Down:
        return crash_of(self.id, error) if self._remembers else Down(id=self.id, reason="crash", error=error)

    def _refuse_rest(self) -> None:
        """Who asked is told that nobody will answer; what was told is handed to `on_unhandled`."""
        inbox = cast("Inbox | ThreadInbox", self.actor_inbox)
        inbox.close()
        if not inbox.empty():
            _refuse_all(inbox, f"{self._title} went down", self.on_unhandled)

    def _tell_down(self, down: Down) -> bool:
        """Tell who watches; whether it was the first to."""
        with _lives:
            if self._down is not None:
                return False
            self._down = down if self._remembers else Down(id=down.id, reason=down.reason)
            watchers, self._watchers = self._watchers or (), None
        call_each([partial(told, down) for told, _ in watchers])
        return True


class LoopActor(Actor):
    """An actor whose messages are handled on a loop, by plain functions that never block.

    Args:
        loop: Where its messages are handled; one that a supervisor starts for a user lives on the user loop.
        on_down: Told once when it is down: the crash, or `None` after an orderly stop.
    """

    def __init__(self, loop: Loop | None = None, on_down: Callable[[BaseException | None], None] | None = None) -> None:
        # Not Pykka's __init__: the same fields, without a UUID and a threading.Event for each of a hundred thousand.
        self.actor_urn = f"nitinol:{id(self):x}"
        self.actor_inbox = Inbox()
        self.actor_stopped = Flag()  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue] # see Flag
        self._on_down = on_down
        if loop is None:
            loop = _settle(self).loop
            if inspect.iscoroutinefunction(self.on_receive):
                raise ConfigurationError(
                    f"{type(self).__name__}.on_receive is a coroutine; a loop actor handles one message after the other, by a plain function"
                )
        self._actor_ref = ActorRef(self)
        self._loop = loop

    @staticmethod
    def _create_actor_inbox() -> Inbox:
        return Inbox()

    def launch(self) -> None:
        """Start an actor that was made by its constructor. Its maker keeps it alive."""
        self._start_actor_loop()

    def post(self, message: Any) -> None:
        """`actor_ref.tell` for those who hold the actor: no reference, no liveness check, no limit."""
        cast("Inbox", self.actor_inbox).put(Envelope(message))

    def post_last(self, message: Any) -> None:
        """As `post`, of a user's: it waits behind all others. On its loop."""
        cast("Inbox", self.actor_inbox).put_last(Envelope(message))

    def halt(self) -> None:
        """Stop at once, before the messages that wait. On its loop, and not from one of its own handlers."""
        if not self.actor_stopped.is_set():
            self._stop()

    def vanish(self) -> None:
        """As `halt`, and gone from memory. Only where nobody else knows the actor."""
        self.halt()
        self.let_go()

    def let_go(self) -> None:
        """End the cycle that only the collector would free. Only of one that is down, and that nobody else knows."""
        cast("Inbox", self.actor_inbox).unbind()

    def _start_actor_loop(self) -> None:
        if not self._loop.call(self._begin):
            self._die(ActorDown(f"{self._title}: its loop has ended"))

    def _begin(self) -> None:
        self._come_up()
        # Bound also after a failed start: whoever asks from now on must be refused, not left waiting.
        cast("Inbox", self.actor_inbox).bind(self._loop, self._drain)

    def _drain(self) -> None:
        inbox = cast("Inbox", self.actor_inbox)
        inbox.rest()
        stopped, handle = self.actor_stopped, self._handle
        for _ in range(BATCH):
            if stopped.is_set() or inbox.empty():
                break
            handle(inbox.get())
        if stopped.is_set():
            self._refuse_rest()
        elif not inbox.empty():
            inbox.again()

    def _tell_down(self, down: Down) -> bool:
        is_first = super()._tell_down(down)
        told, self._on_down = self._on_down, None
        if is_first and told is not None:
            call_each([partial(told, down.error)])
        return is_first


class ThreadActor(Actor, pykka.ThreadingActor):
    """A `pykka.ThreadingActor` on a daemon thread: its handlers may block, and its every escape is a crash."""

    use_daemon_thread = True
    waits: ClassVar[bool] = False
    """Whether its handlers may wait for the answers of others: only those that nobody asks may."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()
        if home.get() is not None:
            _settle(self)
        self._actor_ref = ActorRef(self)

    @staticmethod
    def _create_actor_inbox() -> ThreadInbox:
        return ThreadInbox()

    def _start_actor_loop(self) -> None:
        name = self._name or type(self).__name__.lower()
        threading.Thread(target=self._actor_loop, name=f"nitinol-{name}", daemon=self.use_daemon_thread).start()

    def _actor_loop(self) -> None:
        _thread.handles = not self.waits
        inbox = cast("ThreadInbox", self.actor_inbox)
        self._come_up()
        while not self.actor_stopped.is_set():
            try:
                envelope = inbox.get()
            except IndexError:  # it was given up with nothing to do, and lets go of what it holds
                self._stop()
                break
            self._handle(envelope)
        self._refuse_rest()


def shut_down(actor: Actor) -> None:
    """Stop an actor, as its supervisor; soon."""
    actor._reason = "shutdown"  # pyright: ignore[reportPrivateUsage]
    cast("Inbox | ThreadInbox", actor.actor_inbox).put(Envelope(_ActorStop()))


def _settle(actor: Actor) -> Home:
    """Make an actor at home where its supervisor is."""
    at = home.get()
    if at is None:
        raise ConfigurationError(
            f"a {type(actor).__name__} needs a loop: start it under a supervisor, rt.supervise(ChildSpec(…)), or give it loop="
        )
    actor.env, actor._name = at.env, at.id  # pyright: ignore[reportPrivateUsage]
    at.born.append(actor)
    return at


def _refuse_all(inbox: Inbox | ThreadInbox, why: str, unhandled: Callable[[Any], object] | None = None) -> None:
    """Refuse what waits in the inbox of an actor that is down. Several threads may, at once."""
    take = inbox.take if isinstance(inbox, ThreadInbox) else inbox.get
    while True:
        try:
            envelope = take()
        except IndexError:
            return
        if envelope.reply_to is not None:
            _refuse(envelope, why)
        elif unhandled is not None and not isinstance(envelope.message, _ActorStop):
            call_each([partial(unhandled, envelope.message)])


def _refuse(envelope: Envelope[Any], why: str = "the actor went down") -> None:
    """Refuse one. A stop has what it wanted.

    Raises:
        AgentDown: It was told: whoever tells it is told.
    """
    answer = cast("Answer[Any] | None", envelope.reply_to)
    if isinstance(envelope.message, _ActorStop):
        if answer is not None:
            with suppress(queue.Full):
                answer.set(None)
    elif answer is not None:
        answer.refuse(f"{why} before it handled the message")
    else:
        raise ActorDown(why)


def call_each(calls: Iterable[Callable[[], object]]) -> None:
    """Call each, also if one raises: nobody who is told of an end, or hands something back, prevents what else it must come to."""
    for call in calls:
        try:
            call()
        except BaseException as error:
            get_logger().error("an actor's hook or a watcher raised", exc_info=error)


@in_child
def _forked() -> None:
    """In the child of a fork, where a thread that held the lock is not."""
    global _forks, _lives
    _forks += 1
    _lives = threading.RLock()
