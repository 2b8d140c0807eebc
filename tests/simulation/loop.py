"""One thread, many loops: an asyncio of our own, in virtual time, whose every choice comes from a seed.

Each of the runtime's loops is a `SimLoop`, a whole asyncio event loop: its callbacks keep their order, as they do on a
`LoopThread`. Which loop runs next is chance, as it is between threads; and between any two callbacks time may pass.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events as asyncio_events
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

from nitinol.env import AT_ONCE, Env

STEP = 40_000
"""Nanoseconds that a callback takes at most."""
STALL = 0.0015
"""How likely it is, at each step, that a loop's thread is not run for a while."""
EPOCH = 1_750_000_000 * 1_000_000_000


class Stuck(Exception):
    """Nothing is left to run, and what was waited for has not happened."""


class Clockwork:
    """The scheduler of a life: it knows all loops, what is ready, and what time it is.

    Args:
        random: Where every choice comes from.
        elapsed: Nanoseconds since the world began.
    """

    def __init__(self, random: Random, elapsed: int = 0) -> None:
        self.chance = random.random
        self.elapsed = elapsed
        self.steps = 0
        self.dead = False
        """Nothing runs any more, and nothing that still happens counts."""
        self.current: SimLoop | None = None
        self.loops: list[SimLoop] = []
        self.failed: Callable[[str, BaseException | None], object] = lambda message, error: None
        """Told what escaped a callback."""
        self._ready: list[SimLoop] = []
        self._timers: list[tuple[int, int, asyncio.Handle | None, SimLoop]] = []
        """`None`: the loop's thread is run again."""
        self._numbers = 0

    def loop(self, name: str) -> SimLoop:
        """One more loop."""
        made = SimLoop(self, name)
        self.loops.append(made)
        return made

    def run(self, until: Callable[[], bool], *, seconds: float | None = None) -> bool:
        """Run until it is so, or the life ends, or time is up; whether it is so.

        Raises:
            Stuck: Nothing will ever happen again.
        """
        limit = None if seconds is None else self.elapsed + int(seconds * 1e9)
        while not until():
            if self.dead or (limit is not None and self.elapsed >= limit):
                return False
            self._step(limit)
        return True

    def at(self, when: int, handle: asyncio.Handle | None, loop: SimLoop) -> None:
        """Make a handle ready at a time."""
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle, loop))

    def wake(self, loop: SimLoop) -> None:
        """A loop has something to do."""
        loop.listed = True
        self._ready.append(loop)

    def bury(self) -> None:
        """End a life for good: what it left behind never runs, and is heard of no more. Outside of every callback."""
        self.dead = True
        for loop in self.loops:
            loop.bury()
        self._ready.clear()
        self._timers.clear()

    def _step(self, limit: int | None) -> None:
        self.steps += 1
        timers, ready = self._timers, self._ready
        if not ready:
            while timers and (first := timers[0][2]) is not None and first.cancelled():
                heapq.heappop(timers)
            if not timers:
                if limit is None:
                    raise Stuck(f"nothing is left to run, {self.elapsed / 1e9:.3f} s after the world began")
                self.elapsed = limit
                return
            if limit is not None and timers[0][0] > limit:
                self.elapsed = limit
                return
            self.elapsed = max(self.elapsed, timers[0][0])
        while timers and timers[0][0] <= self.elapsed:
            _, _, handle, loop = heapq.heappop(timers)
            if handle is None:
                loop.unstall()
            elif not handle.cancelled():
                loop.put(handle)
        if not ready:
            return
        index = int(self.chance() * len(ready))
        loop = ready[index]
        ready[index] = ready[-1]
        ready.pop()
        draw = self.chance()
        if draw < STALL:  # the system gives its thread no time for a while
            self.at(self.elapsed + int(self.chance() ** 4 * 2e9), None, loop)
            loop.stalled = True
            return
        self.elapsed += int(draw * STEP)
        self.current = loop
        asyncio_events._set_running_loop(loop)  # pyright: ignore[reportPrivateUsage] # meant for those who implement loops
        try:
            loop.step()
        finally:
            asyncio_events._set_running_loop(None)  # pyright: ignore[reportPrivateUsage]
            self.current = None
        if loop.has_work:
            ready.append(loop)
        else:
            loop.listed = False


_EventLoop: Any = asyncio.AbstractEventLoop
"""Untyped, as much of it is left out that nobody here asks for: sockets, processes, signals."""


class SimLoop(_EventLoop):  # type: ignore[misc] # pyright: ignore[reportUntypedBaseClass] # see there
    """A `Loop` of the runtime's, and an event loop for what runs on it."""

    def __init__(self, clockwork: Clockwork, name: str) -> None:
        self.name = name
        self.clockwork = clockwork
        self.listed = False
        """The scheduler knows that it has something to do."""
        self.stalled = False
        self._ready: deque[asyncio.Handle | None] = deque()
        """`None` stands for the calls that came from other threads since it was put there."""
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._draining = 0
        self._ended = False
        self._tasks: dict[asyncio.Task[Any], None] = {}

    # -- the scheduler's side

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._ready) or self._draining > 0

    def put(self, handle: asyncio.Handle | None) -> None:
        """Make a handle ready."""
        self._ready.append(handle)
        if not self.listed:
            self.clockwork.wake(self)

    def unstall(self) -> None:
        """Its thread is run again."""
        self.stalled = False
        self.clockwork.wake(self)

    def step(self) -> None:
        """Run one callback. Calls are run as a `LoopThread` does: those that were there when it looked, in a row."""
        if self._draining:
            self._draining -= 1
            self._make_call()
            if not self._draining and self._calls and not self._woken:
                self._woken = True
                self._ready.append(None)
            return
        if not self._ready:  # it has been closed since it was listed
            return
        handle = self._ready.popleft()
        if handle is None:
            self._woken = False
            self._draining = min(len(self._calls), AT_ONCE)
        elif not handle.cancelled():
            try:
                handle._run()
            except BaseException as error:  # a task's SystemExit
                self.clockwork.failed(f"loop {self.name!r} goes on", error)

    def _make_call(self) -> None:
        function, args = self._calls.popleft()
        try:
            function(*args)
        except BaseException as error:
            self.clockwork.failed(f"{function!r} failed", error)

    def bury(self) -> None:
        """Close the coroutines that will never go on, so that no collector complains of them."""
        self._ended = True
        for task in list(self._tasks):
            if not task.done():
                setattr(task, "_log_destroy_pending", False)  # noqa: B010 # asyncio's own switch, which no stub knows
                coroutine: Any = task.get_coro()
                with suppress(BaseException):
                    coroutine.close()
        self._tasks.clear()
        self._ready.clear()
        self._calls.clear()

    # -- Loop

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        if self._ended:
            return False
        self._calls.append((function, args))
        if not self._woken:
            self._woken = True
            self.put(None)
        return True

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.create_task(coroutine)
        task.add_done_callback(self._tell_failure)
        return task

    def is_current(self) -> bool:
        return self.clockwork.current is self

    def close(self, timeout: float = 0.0) -> bool:
        if self._ended or self.clockwork.current is not None:
            return self._ended
        ended = asyncio.Event()
        self.call(ended.set)
        clockwork = self.clockwork
        clockwork.run(ended.is_set)
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            self.call(task.cancel)
        clockwork.run(lambda: all(task.done() for task in tasks), seconds=2.0)
        self._ended = True
        while self._calls:
            self._make_call()
        self._ready.clear()
        self._draining = 0
        return True

    def _tell_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.clockwork.failed("a task failed", error)

    # -- what asyncio asks of an event loop

    def time(self) -> float:
        return self.clockwork.elapsed / 1e9

    def call_soon(self, function: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(function, args, self, context)
        if not self._ended:
            self.put(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, function: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(function, args, self, context)
        if not self._ended:
            self.clockwork.at(self.clockwork.elapsed + max(int(delay * 1e9), 0), handle, self)
        return handle

    def call_at(self, when: float, function: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_later(when - self.time(), function, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or self.name, **options)
        self._tasks[task] = None
        if len(self._tasks) >= 64:
            self._tasks = {task: None for task in self._tasks if not task.done()}
        return task

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self._ended

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.clockwork.failed(str(context.get("message")), context.get("exception"))


class _Letterbox:
    """The inbox of a worker that has no thread: it handles a message after a while, one at a time."""

    def __init__(self, env: SimEnv, loop: SimLoop) -> None:
        self._env, self._loop = env, loop
        self.handle: Callable[[Any], object] | None = None

    def put(self, envelope: Any, /) -> None:
        self._loop.call_later(self._env.pace(), self._take, envelope)

    def offer(self, envelope: Any, _limit: int) -> bool:
        self.put(envelope)
        return True

    def _take(self, envelope: Any) -> None:
        assert self.handle is not None
        self.handle(envelope.message)


class SimEnv(Env):
    """The `Env` of a life.

    Args:
        clockwork: Where its loops live.
        seed: Of its chance and its ids.
        skew: Nanoseconds that its wall clock is ahead; clocks are set at will between two lives.
        slowness: Seconds that a function on a worker may take.
    """

    def __init__(self, clockwork: Clockwork, seed: str, skew: int = 0, slowness: float = 4.0) -> None:
        self._random = Random(seed)
        self.clockwork = clockwork
        self.skew, self.slowness = skew, slowness
        self._workers = clockwork.loop("workers")
        self._paces = Random(seed + "/pace")

    def now(self) -> int:
        return EPOCH + self.clockwork.elapsed + self.skew

    def monotonic(self) -> float:
        return self.clockwork.elapsed / 1e9

    def start_loop(self, name: str) -> SimLoop:
        return self.clockwork.loop(name)

    def pace(self) -> float:
        """Seconds until a worker begins, or is heard of again: mostly short."""
        return float(self._paces.random() ** 8 * self.slowness)

    def start_worker(self, actor_class: type[Any], *args: Any) -> Any:
        """The real worker, with time instead of a thread: some before its job runs, some after it has run."""
        box = _Letterbox(self, self._workers)

        class Worker(actor_class):  # type: ignore[misc] # whichever it is
            @staticmethod
            def _create_actor_inbox() -> Any:
                return box

        def later(told: Any) -> Any:
            def tell(*outcome: Any) -> None:
                self._workers.call_later(self.pace(), told, *outcome)

            return tell if callable(told) else told

        worker = Worker(*(later(arg) for arg in args))
        box.handle = worker._handle_receive
        return worker.actor_ref

    def process_id(self) -> int:
        return 1
