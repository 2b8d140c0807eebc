"""The one source of time, chance, ids and concurrency.

Nothing else in the library reads a clock, draws a number, or starts a thread or a loop, but `http`, the
worker threads and processes, and the stores on disk. A simulator gives another `Env` and runs the same code from a seed.
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
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, Protocol, TypeVar

from nitinol.watchdog import Blocking, Pulse, Watchdog

AT_ONCE = 100
"""Calls that a loop makes before it looks at its timers and sockets."""
LOOK_UP = 0.25
"""Seconds that the main thread blocks at most before it looks for signals."""
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_log = logging.getLogger("nitinol")
_thread = threading.local()
P = ParamSpec("P")
T = TypeVar("T")


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


class Inherited(Protocol):
    """What a fork leaves in the child without the threads, locks and files that it stood on."""

    def disown(self) -> None:
        """Never wait for anybody again, and touch nothing that the parent uses. In the child, before all else."""
        ...


def disown_in_child(thing: Inherited) -> None:
    """Have a thing told, in the child of a fork, that it is the parent's. It is not kept alive for that."""
    _inherited.add(thing)


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Have a function called in the child of each fork, where there are forks. For decorating."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


@in_child
def _disown() -> None:
    _thread.is_loop = False  # the child's one thread runs no loop of ours, even if it was forked from one
    for thing in list(_inherited):
        thing.disown()


class DaemonExecutor(ThreadPoolExecutor):
    """A loop's executor (`asyncio.to_thread`, name look-ups) whose threads never hold up the end of the interpreter.

    Those of `concurrent.futures` are joined at exit: one function that hangs, and the process never ends. A thread ends
    when it has had nothing to do for `LINGER` seconds, or at the shutdown.
    """

    LINGER = 10.0

    def __init__(self, name: str) -> None:
        super().__init__(thread_name_prefix=name)
        self._name, self._most = name, min(32, (os.cpu_count() or 1) + 4)
        self._waiting: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._free = self._started = 0
        self._ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            if self._ended:
                raise RuntimeError("the loop of this executor was closed")
            self._waiting.append(work)
            if self._free >= len(self._waiting):
                self._changed.notify()
            elif self._started < self._most:
                self._started += 1
                try:
                    threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
                except RuntimeError:  # there are too many threads
                    self._started -= 1
                    if not self._started:
                        self._waiting.remove(work)
                        raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more; idle threads end now, the others when their function does. Waits for nobody."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._free += 1
                self._changed.wait_for(lambda: self._waiting or self._ended, self.LINGER)
                self._free -= 1
                if not self._waiting:
                    self._started -= 1
                    return
                work = self._waiting.popleft()
            work()
            del work  # not kept while it waits


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
        self.pulse = Pulse(name)
        selector: Any = getattr(self._loop, "_selector", None)
        if selector is not None:  # a loop that is not asyncio's own, such as uvloop's, is not watched
            selector.select = self.pulse.around(selector.select, time.monotonic)
        self._loop.set_default_executor(DaemonExecutor(f"{name}-executor"))
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._disowned = False
        disown_in_child(self)
        try:
            self._thread.start()
        except BaseException:  # there are too many threads
            self._loop.close()
            raise

    def disown(self) -> None:
        # Its selector is the parent's too: to close the loop here would take the parent's wake-up pipe from it.
        self._closed = self._ended = self._disowned = True
        if self.is_current():  # forked from a coroutine
            self._loop.stop()

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
            except BaseException:  # a signal's handler raised in here: the call stands, and the loop must wake for it
                self._loop.call_soon_threadsafe(self._drain)
                raise
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
        if self._disowned:
            return True
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
        self.pulse.thread = threading.get_ident()
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
            if not self._disowned:
                self._wind_up()

    def _wind_up(self) -> None:
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
        self.pulse.busy_since = 0.0


def resolve(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """Give a future its outcome, unless it has one, or whoever waited for it has given up."""
    with suppress(InvalidStateError):
        if not future.done() and future.set_running_or_notify_cancel():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def wake(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Let whoever waits for the future on that loop go on. From any thread."""

    def set_result() -> None:
        if not future.done():
            future.set_result(None)

    with suppress(RuntimeError):  # the loop is closed, and the waiter with it
        loop.call_soon_threadsafe(set_result)


def wait_for(event: threading.Event, timeout: float | None = None) -> bool:
    """Wait for it, at most `timeout` seconds; whether it came.

    The main thread looks up now and then: Python runs the handler of a signal that comes just before a thread blocks only
    once that thread goes on, so that a Ctrl-C or SIGTERM in that moment would be lost on a thread that waits for ever.
    """
    if threading.current_thread() is not threading.main_thread():
        return event.wait(timeout)
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left = LOOK_UP if until is None else min(LOOK_UP, until - time.monotonic())
        if event.wait(left):
            return True
        if until is not None and time.monotonic() >= until:
            return False


def on_a_loop() -> bool:
    """Whether the caller runs on a `LoopThread`, whichever runtime's: none of them may ever block."""
    return getattr(_thread, "is_loop", False)


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
        self._pulses: list[Pulse] = []

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
        loop = LoopThread(name)
        self._pulses.append(loop.pulse)
        return loop

    def watch(
        self, noticed: Callable[[Blocking], object], told: Callable[[Blocking], object]
    ) -> Callable[[float], object]:
        """Watch all loops that were started, in a thread that calls `noticed` and `told`: see `Watchdog`.

        Returns:
            What ends it, and waits for that some seconds at most.
        """
        watchdog = Watchdog(self._pulses, time.monotonic, noticed, told)
        thread = threading.Thread(target=watchdog.run, name="nitinol-watchdog", daemon=True)
        thread.start()

        def end(timeout: float) -> None:
            watchdog.stop()
            thread.join(timeout)

        return end

    def start_worker(self, actor_class: type[Any], *args: Any) -> Any:
        """Start an actor that runs what blocks: on a thread of its own. Its reference takes `tell` and `stop`."""
        return actor_class.start(*args)

    def start_thread(self, name: str, function: Callable[[], object]) -> None:
        """Run a function on a daemon thread of its own; in the caller's where no thread is to be had."""
        try:
            threading.Thread(target=function, name=f"nitinol-{name}", daemon=True).start()
        except RuntimeError:  # there are too many, or the interpreter ends
            function()

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
