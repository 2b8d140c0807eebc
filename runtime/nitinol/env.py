"""The one source of time, chance, ids and concurrency.

Nothing else in the library reads a clock, draws a number, or starts a thread or a loop, but `http`, the
worker threads and the stores on disk. A simulator gives another `Env` and runs the same code from a seed.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

AT_ONCE = 100
"""Calls that a loop makes before it looks at its timers and sockets."""
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_log = logging.getLogger("nitinol")
_thread = threading.local()
_loops: weakref.WeakSet[LoopThread] = weakref.WeakSet()


class Timer(Protocol):
    """What `Loop.call_later` returns."""

    def cancel(self) -> None:
        """Forget the call, if it has not been made."""
        ...


class Loop(Protocol):
    """A single-threaded place where callbacks and coroutines run in order."""

    name: str

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        """Run `function(*args)` on the loop soon. From any thread; calls keep their order. False once it has closed."""
        ...

    def call_later(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        """Run `function(*args)` in `delay` seconds. On the loop only."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task. On the loop only."""
        ...

    def is_current(self) -> bool:
        """Whether the caller runs on this loop."""
        ...

    def close(self, timeout: float) -> bool:
        """Cancel what is left and end the loop; False if it did not end within `timeout` seconds."""
        ...


class LoopThread:
    """A `Loop`: asyncio on a daemon thread of its own.

    `call` gathers: however many calls arrive before the loop wakes, it is woken once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False
        self._closed = False
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_escape)
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()
        _loops.add(self)

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        self._calls.append((function, args))
        if self._ended:
            return False
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed in this moment
                return False
        return True

    def call_later(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        return self._loop.call_later(delay, function, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        task.add_done_callback(_log_failure)
        return task

    def is_current(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def close(self, timeout: float) -> bool:
        if not self._closed:
            self._closed = True
            self.call(self._loop.stop)
        if self.is_current():
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _drain(self) -> None:
        # The flag falls before the queue is read: a call that arrives after the last look wakes the loop again.
        self._woken = False
        calls = self._calls
        # Only those that are there now, and not thousands: calls must not keep the loop from its timers and sockets.
        for _ in range(min(len(calls), AT_ONCE)):
            function, args = calls.popleft()
            try:
                function(*args)
            except BaseException as error:  # a callback's escape must never end the loop, not even SystemExit
                self._loop.call_exception_handler({"message": f"{function!r} failed", "exception": error})
        if calls and not self._woken:
            self._woken = True
            self._loop.call_soon(self._drain)

    def _main(self) -> None:
        _thread.is_loop = True
        asyncio.set_event_loop(self._loop)
        try:
            while not self._closed:
                try:
                    self._loop.run_forever()
                except (
                    BaseException
                ) as error:  # a task's SystemExit or KeyboardInterrupt leaves run_forever; the loop goes on
                    self._loop.call_exception_handler({"message": f"loop {self.name!r} goes on", "exception": error})
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=2.0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            # Before the last look: whoever calls from now on is told, whoever called before is heard.
            self._ended = True
            for _ in range(len(self._calls) // AT_ONCE + 1):
                self._drain()
            self._loop.close()


def on_a_loop() -> bool:
    """Whether the caller runs on a `LoopThread`, whichever runtime's: none of them may ever block."""
    return getattr(_thread, "is_loop", False)


def _forked() -> None:
    """In the child of a fork, which has none of the threads: whoever calls a loop of the parent's is told that it has ended."""
    for loop in _loops:
        loop._ended = True  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_forked)


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Log what a task raised now, on its loop; asyncio would do it when the garbage is collected, in any thread."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a task failed", exc_info=error)


def _log_escape(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What escapes goes to the library's own logger: asyncio's would print it where nobody configured logging."""
    _log.error(context["message"], exc_info=context.get("exception"))


class Env:
    """The real world. A simulator overrides every method."""

    crash_point: Callable[[str], object] | None = None
    """Called at each of `journal.base.CRASH_POINTS` by its name, in whatever thread gets there; `None` = by nobody.
    `testing.crash_at` sets it for all instances."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def now(self) -> int:
        """Nanoseconds since 1970, UTC. For records and due times; order never comes from it."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back. For durations and intensity."""
        return time.monotonic()

    def random(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()

    def new_id(self) -> str:
        """A ULID: 26 characters that sort by the millisecond of their making."""
        number = (self.now() // 1_000_000) << 80 | self._random.getrandbits(80)
        return "".join([_PAIRS[number >> shift & 1023] for shift in range(120, -1, -10)])

    def start_loop(self, name: str) -> Loop:
        """Start a loop."""
        return LoopThread(name)

    def start_worker(self, actor_class: type[Any], *args: Any) -> Any:
        """Start an actor that runs what blocks: on a thread of its own. Its reference takes `tell` and `stop`."""
        return actor_class.start(*args)

    def start_thread(self, name: str, function: Callable[[], object]) -> None:
        """Run a function that may block, and never raises, on a daemon thread of its own."""
        threading.Thread(target=function, name=f"nitinol-{name}", daemon=True).start()

    def give_back_memory(self) -> None:
        """Let the operating system have what is free: glibc keeps it otherwise. From any thread; may take a while."""
        try:
            trim = ctypes.CDLL(None).malloc_trim
        except (AttributeError, OSError, TypeError):  # not glibc's
            return
        trim(0)

    def process_id(self) -> int:
        """The process, to tell a fork from its parent."""
        return os.getpid()
