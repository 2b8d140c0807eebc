"""The event bus: one ordered stream that any number of subscribers follow, each at its own pace.

Publishing happens on the core loop, never blocks, and costs nothing for a subscriber that has fallen behind: once its
queue is full it is *behind*, and reads the journal from its cursor in its own thread until it has caught up. So a
durable event is never lost; of ephemeral events a subscriber behind is told how many it missed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, Self, cast

from nitinol import events as ev
from nitinol.env import Env, on_a_loop, wait_for, wake
from nitinol.errors import RuntimeStopped, SubscriptionClosed, SubscriptionOverflow, WouldDeadlock
from nitinol.journal.base import Journal
from nitinol.messages import DeltaKind

Overflow = Literal["coalesce", "drop", "close"]

PAGE = 500
"""Durable events read from the journal at a time."""
MERGED = 65_536
"""Characters that coalesced deltas grow to."""
KEYS = 10_000
"""Keys of which a subscription remembers whether its pattern matches them."""


class OpenAttempt:
    """An attempt in progress: makes its deltas, and keeps what it has shown for those who join late."""

    __slots__ = ("key", "last", "make", "pieces", "run_id")

    def __init__(self, started: ev.ModelStarted) -> None:
        self.run_id = started.run_id or ""
        self.key = started.key
        self.make = ev.delta_maker(started)
        self.pieces: list[str] = []
        self.last: tuple[int, int, int] = (started.ts, started.seq, started.position)

    def so_far(self, position: int) -> ev.ModelDelta | None:
        """All text shown, as one delta for who has read up to a position: no cursor may lead back behind it."""
        ts, seq, _ = self.last
        return self.make(ts, seq, position, "text", "".join(self.pieces), 0) if self.pieces else None


class EventBus:
    """Publishes to subscribers. `publish` on the core loop only; everything else from any thread."""

    def __init__(self, env: Env, journal: Journal) -> None:
        self.env = env
        self.journal = journal
        self.position = 0
        """Of the last durable event that was published."""
        self.stopped: Exception | None = None
        self._lock = threading.Lock()
        self._everyone: list[Subscription] = []
        self._by_run: dict[str, list[Subscription]] = defaultdict(list)
        self._by_key: dict[str, list[Subscription]] = defaultdict(list)
        self._finished: dict[str, list[Callable[[], object]]] = {}
        self._attempts: dict[str, OpenAttempt] = {}
        self._leaving: deque[Callable[[], None]] = deque()
        """What to take back once the lock is free: see `_leave`."""

    def publish(self, events: Sequence[ev.Event]) -> None:
        """Hand events to the subscribers they concern. Durable ones are committed, and come in journal order."""
        finished: list[str] = []
        with self._lock:
            self._let_go()
            for event in events:
                if event.durable:
                    self.position = event.position
                    self._follow_attempts(event, finished)
                else:
                    ev.stamp(event, self.position)
                for subscription in self._everyone:
                    subscription.offer(event)
                if event.run_id is not None and event.run_id in self._by_run:
                    for subscription in self._by_run[event.run_id]:
                        subscription.offer(event)
                if event.key in self._by_key:
                    for subscription in self._by_key[event.key]:
                        subscription.offer(event)
            waiters = [waiter for run_id in finished for waiter in self._finished.pop(run_id, ())]
        for waiter in waiters:
            waiter()

    def open_attempt(self, started: ev.ModelStarted) -> OpenAttempt:
        """Begin to follow an attempt; its end is seen in the events."""
        attempt = self._attempts[started.run_id or ""] = OpenAttempt(started)
        return attempt

    def publish_delta(self, attempt: OpenAttempt, seq: int, kind: DeltaKind, text: str, index: int) -> None:
        """Publish a piece of an answer. The hot path: nothing is made where nobody listens."""
        now = self.env.now()
        with self._lock:
            if self._leaving:
                self._let_go()
            if kind == "text":
                attempt.pieces.append(text)
                attempt.last = (now, seq, self.position)
            by_run = self._by_run.get(attempt.run_id)
            if self._everyone or by_run or self._by_key:
                delta = attempt.make(now, seq, self.position, kind, text, index)
                for subscription in self._everyone:
                    subscription.offer(delta)
                for subscription in by_run or ():
                    subscription.offer(delta)
                for subscription in self._by_key.get(delta.key, ()):
                    subscription.offer(delta)

    def when_finished(self, run_id: str, done: Callable[[], object]) -> Callable[[], None]:
        """Call `done` once, in any thread, when the run has ended or the bus stops; returns how to take it back."""
        with self._lock:
            if self.stopped is None:
                self._finished.setdefault(run_id, []).append(done)

                def forget() -> None:
                    waiters = self._finished.get(run_id, [])
                    if done in waiters:
                        waiters.remove(done)
                    if not waiters:
                        self._finished.pop(run_id, None)

                return partial(self._leave, forget)
        done()
        return lambda: None

    def wake(self, run_ids: Sequence[str]) -> None:
        """Let those who wait for these runs, or follow them, look again, although they have not ended."""
        with self._lock:
            waiters = [waiter for run_id in run_ids for waiter in self._finished.pop(run_id, ())]
            for run_id in run_ids:
                for subscription in self._by_run.get(run_id, ()):
                    subscription.wake()
        for waiter in waiters:
            waiter()

    def stop(self, error: Exception) -> None:
        """End all subscriptions: they deliver what they have, then stop; waiters look again."""
        with self._lock:
            self.stopped = error
            waiters = [waiter for waiting in self._finished.values() for waiter in waiting]
            self._finished.clear()
            subscriptions = [*self._everyone]
            for group in (*self._by_run.values(), *self._by_key.values()):
                subscriptions.extend(group)
        for subscription in subscriptions:
            subscription.end()
        for waiter in waiters:
            waiter()

    def disown(self, error: Exception) -> None:
        """In the child of a fork: nothing will come, and the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        for group in (self._everyone, *self._by_run.values(), *self._by_key.values()):
            for subscription in group:
                subscription.disown(error)
        self.stopped = error

    def _follow_attempts(self, event: ev.Event, finished: list[str]) -> None:
        match event.type:
            case "model.finished" | "model.failed":
                self._attempts.pop(event.run_id or "", None)
            case "run.finished":
                self._attempts.pop(event.run_id or "", None)
                if event.run_id is not None and event.run_id in self._finished:
                    finished.append(event.run_id)
            case "agent.stopped" | "agent.crashed":
                for run_id in [id for id, attempt in self._attempts.items() if attempt.key == event.key]:
                    del self._attempts[run_id]
            case _:
                pass

    # -- for subscriptions

    def join(self, subscription: Subscription) -> bool:
        """Make it live, if its cursor is where the stream is: not behind it, and not ahead in what is yet to come."""
        with self._lock:
            if subscription.scanned != self.position:
                return False
            self._go_live(subscription)
            return True

    def attach(self, subscription: Subscription) -> None:
        """Offer it events from now on.

        Raises:
            RuntimeStopped: There will be none.
        """
        with self._lock:
            if self.stopped is not None:
                raise RuntimeStopped(str(self.stopped))
            self._group(subscription).append(subscription)
            if not subscription.behind:
                subscription.scanned = self.position
                self._go_live(subscription)

    def _go_live(self, subscription: Subscription) -> None:
        subscription.behind = False
        if subscription.fresh:  # only once: after a relapse it has seen a part of these texts already
            subscription.fresh = False
            for attempt in self._attempts.values():
                shown = attempt.so_far(self.position)
                if shown is not None and subscription.matches(shown):
                    subscription.queue.append(shown)

    def detach(self, subscription: Subscription) -> None:
        """Offer it nothing more. Also from a finalizer."""
        self._leave(partial(self._detach, subscription))

    def _detach(self, subscription: Subscription) -> None:
        group = self._group(subscription)
        if subscription in group:
            group.remove(subscription)
        if group:
            return
        if group is self._by_run.get(subscription.run_id or ""):
            del self._by_run[subscription.run_id or ""]
        elif group is self._by_key.get(subscription.key or ""):
            del self._by_key[subscription.key or ""]

    def _leave(self, action: Callable[[], None]) -> None:
        """Carry out an action under the lock, now or by whoever takes the lock next.

        The garbage collector may end an abandoned iteration anywhere, also in a thread that holds the lock: to wait for
        the lock here would be to wait for ever.
        """
        self._leaving.append(action)
        if self._lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        while self._leaving:
            self._leaving.popleft()()

    def _group(self, subscription: Subscription) -> list[Subscription]:
        if subscription.run_id is not None:
            return self._by_run[subscription.run_id]
        if subscription.key is not None and not _is_glob(subscription.key):
            return self._by_key[subscription.key]
        return self._everyone


class Subscription:
    """A reader of the event stream: iterate it, `async for` it, or `get(timeout)`. Close it, or use `with`.

    It may be used from any thread or event loop, by one reader at a time. It ends when it is closed or its runtime stops.
    """

    def __init__(
        self,
        bus: EventBus,
        types: frozenset[str] | None = None,
        *,
        agent: str | None = None,
        key: str | None = None,
        run_id: str | None = None,
        after: int | None = None,
        maxsize: int = 1000,
        overflow: Overflow = "coalesce",
        check: Callable[[], object] | None = None,
    ) -> None:
        """As `Runtime.subscribe`; `check` is called before each wait, and raises if waiting is in vain."""
        self.bus = bus
        self.types = types
        self.agent = agent
        self.key = key
        self.run_id = run_id
        self.maxsize = maxsize
        self.overflow = overflow
        self.queue: deque[ev.Event] = deque()
        self.behind = after is not None
        """It must read the journal before it can follow the stream."""
        self.scanned = after or 0
        """Position up to which durable events were given to this subscriber, or passed over by its filter."""
        self.fresh = True
        """It has not been live yet."""
        self._lost = 0
        self._lost_after = 0
        self._closed = False
        self._ended = False
        """There will be no more events; those in the queue and the journal are still to be read."""
        self._failure: Exception | None = None
        self._waiters: deque[Callable[[], None]] = deque()
        self._keys: dict[str, bool] = {}
        self._all = types is None and agent is None and key is None and run_id is None
        self._check = check
        bus.attach(self)

    # -- the publisher's side: under the bus's lock

    def matches(self, event: ev.Event) -> bool:
        """Whether the filter lets it through."""
        if self._all:
            return True
        if self.types is not None and event.type not in self.types:
            return False
        if self.run_id is not None and event.run_id != self.run_id:
            return False
        if self.agent is not None and event.agent != self.agent:
            return False
        if self.key is None:
            return True
        found = self._keys.get(event.key)
        if found is None:
            if len(self._keys) >= KEYS:
                self._keys.clear()
            found = self._keys[event.key] = fnmatchcase(event.key, self.key)
        return found

    def offer(self, event: ev.Event) -> None:
        """Take an event into the queue, if it is wanted and there is room."""
        if self._failure is not None:
            return
        if self.behind:
            if event.durable:
                self.wake()
            elif not self.fresh and self.matches(event):  # what came before it joined is not lost to it
                self._lose()
            return
        if event.durable:
            if event.position <= self.scanned:
                return
            self.scanned = event.position
        if not self.matches(event):
            return
        queue = self.queue
        if len(queue) >= self.maxsize:
            self._overflow(event)
        else:
            queue.append(event)
        if self._waiters:
            self.wake()

    def _overflow(self, event: ev.Event) -> None:
        if self.overflow == "close":
            self._failure = SubscriptionOverflow(f"the subscriber fell {self.maxsize} events behind; overflow='close'")
        elif event.durable:
            # From here the journal is its queue. It has everything before this event. In this order: the reader looks
            # at `scanned` once it sees that it is behind.
            self.scanned = event.position - 1
            self.behind = True
        elif event.type != "model.delta" or self.overflow == "drop" or not self._coalesce(event):
            self._lose()

    def _coalesce(self, delta: ev.ModelDelta) -> bool:
        # The last event is taken out while it is merged: the reader, on the other side, never sees it half done.
        try:
            last = self.queue.pop()
        except IndexError:
            self.queue.append(delta)
            return True
        merges = last.type == "model.delta" and _same_stream(last, delta) and len(last.text) < MERGED
        self.queue.append(_merge(delta, last.text + delta.text) if merges and last.type == "model.delta" else last)
        return merges

    def _lose(self) -> None:
        if not self._lost:
            self._lost_after = max(self.scanned, self.bus.position)
        self._lost += 1

    def end(self) -> None:
        """Deliver what there is, then stop."""
        self._ended = True
        self.wake()

    def wake(self) -> None:
        """Let the reader look again. From any thread."""
        waiters = self._waiters
        while waiters:
            try:
                waiter = waiters.popleft()
            except IndexError:  # another thread was faster
                return
            waiter()

    def disown(self, error: Exception) -> None:
        """In the child of a fork: it is the parent's."""
        self._failure, self.behind = error, False
        self.queue.clear()
        self._lost = 0

    # -- the reader's side

    def poll(self) -> ev.Event | None:
        """The next event that is there now, or `None`. Never blocks for longer than reading a page of the journal."""
        while True:
            try:
                event = self.queue.popleft()
            except IndexError:
                if self.behind and not self._closed and self._catch_up():
                    continue
                # Told only where the stream is: a cursor taken from it must not skip what was not read yet.
                return self._gap() if self._lost and not self.queue else None
            if self._lost and event.position > self._lost_after:
                self.queue.appendleft(event)
                return self._gap()
            return event

    def _gap(self) -> ev.BusGap:
        after = self._lost_after
        lost, self._lost = self._lost, 0
        return ev.BusGap(ts=self.bus.env.now(), position=after, lost=lost, after=after)

    def _catch_up(self) -> bool:
        """Read a page of the journal into the queue, or join the live stream; whether to look at the queue again."""
        position = self.bus.position
        page = self.bus.journal.scan(self.scanned, PAGE)
        wanted = [cast("ev.Event", event) for event in page if self.matches(cast("ev.Event", event))]
        if page:
            self.scanned = page[-1].position
            self.queue.extend(wanted)
            return True
        # What the journal does not show up to a position that was published before the look was forgotten.
        self.scanned = max(self.scanned, position)
        return self.bus.join(self)

    def get(self, timeout: float | None = None) -> ev.Event:
        """The next event; waits up to `timeout` seconds, or for ever.

        Raises:
            TimeoutError: None came in time.
            SubscriptionClosed: There will be none.
            SubscriptionOverflow: It fell behind, and `overflow="close"`.
        """
        deadline = None if timeout is None else self.bus.env.monotonic() + timeout
        while True:
            event = self.poll()
            if event is not None:
                return event
            signal = threading.Event()
            waiter = signal.set
            self._waiters.append(waiter)
            try:
                event = self.poll()  # what came before the waiter was seen
                if event is not None:
                    return event
                self._check_end()
                if on_a_loop():
                    raise WouldDeadlock(
                        "waiting here would block a loop of the runtime; use `async for`, or await aget()"
                    )
                left = None if deadline is None else deadline - self.bus.env.monotonic()
                if not wait_for(signal, left):
                    raise TimeoutError(f"no event within {timeout} seconds")
            finally:
                self._retire(waiter)

    async def aget(self) -> ev.Event:
        """As `get`, for coroutines of any loop; give it a timeout with `asyncio.timeout`."""
        while True:
            event = self.poll()
            if event is not None:
                return event
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            waiter = partial(wake, loop, future)
            self._waiters.append(waiter)
            try:
                event = self.poll()
                if event is not None:
                    return event
                self._check_end()
                await future
            finally:
                self._retire(waiter)

    def _retire(self, waiter: Callable[[], None]) -> None:
        with suppress(ValueError):  # it was woken
            self._waiters.remove(waiter)

    def _check_end(self) -> None:
        """Raise if waiting is in vain. Only after `poll` has found nothing."""
        if self._failure is not None and not self.queue:
            raise self._failure
        if self._closed or (self._ended and not self.queue):
            raise SubscriptionClosed("the subscription was closed, or its runtime stopped")
        if self._check is not None:
            self._check()

    def close(self) -> None:
        """Stop; iteration ends. From any thread."""
        self._closed = True
        self.bus.detach(self)
        self.queue.clear()
        self.wake()

    def __iter__(self) -> Iterator[ev.Event]:
        return self

    def __next__(self) -> ev.Event:
        try:
            return self.get()
        except SubscriptionClosed:
            raise StopIteration from None

    def __aiter__(self) -> AsyncIterator[ev.Event]:
        return self

    async def __anext__(self) -> ev.Event:
        try:
            return await self.aget()
        except SubscriptionClosed:
            raise StopAsyncIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def matching_types(patterns: Sequence[str]) -> frozenset[str] | None:
    """The event types that match any of the patterns; `None` = all.

    Raises:
        ValueError: A pattern matches no type.
    """
    if not patterns:
        return None
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in ev.TYPES if fnmatchcase(name, pattern)}
        if not matched:
            raise ValueError(f"no event type matches {pattern!r}; the types are: {', '.join(ev.TYPES)}")
        found |= matched
    return frozenset(found)


def _is_glob(pattern: str) -> bool:
    return any(char in pattern for char in "*?[")


def _same_stream(one: ev.ModelDelta, other: ev.ModelDelta) -> bool:
    return (one.run_id, one.turn, one.attempt, one.kind, one.index) == (
        other.run_id,
        other.turn,
        other.attempt,
        other.kind,
        other.index,
    )


def _merge(delta: ev.ModelDelta, text: str) -> ev.ModelDelta:
    return ev.delta_maker(delta)(delta.ts, delta.seq, delta.position, delta.kind, text, delta.index)
