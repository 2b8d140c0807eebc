"""The watchdog of loops: which of them stands still, for how long, and what its thread does meanwhile.

A loop takes its own pulse: before it waits, and when it goes to work. That is all it does; looking is the business of
one thread, which sleeps while all loops wait. So whatever runs on a loop is seen, a callback, a task, a timer, and an
idle loop costs nothing.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

LIMIT = 0.1
"""Seconds that a loop may work without a look at its timers and sockets."""
TICK = 0.025
"""Seconds between two looks, while any loop works."""
LATE = 0.05
"""Seconds that count of the time between two looks, at most. The watchdog itself was kept from looking for the rest, by
a stopped process or by C code that holds the GIL, and so was the loop: it is not to blame."""
LASTING = 1.0
"""Seconds after which a blocking is told although it lasts."""
QUIET = 1.0
"""Seconds without work on any loop after which the watchdog sleeps."""
FRAMES = 50
"""Of a stack, the innermost."""


class Pulse:
    """A loop's sign of life: written in its own thread, read by the watchdog's."""

    __slots__ = ("busy_since", "name", "thread", "waker")

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread = 0
        """The ident of the loop's thread."""
        self.busy_since = 0.0
        """When the loop went to work after its last look at timers and sockets; 0 = it waits, or has ended."""
        self.waker: Callable[[], object] | None = None
        """Wakes the watchdog, while that sleeps."""

    def around(self, select: Callable[..., object], now: Callable[[], float]) -> Callable[..., object]:
        """A loop's wait for timers and sockets, with the pulse taken on both sides of it."""

        def wait(timeout: float | None = None) -> object:
            self.busy_since = 0.0
            found = select(timeout)
            self.busy_since = now()
            if self.waker is not None:
                self.waker()
            return found

        return wait


@dataclass(slots=True, eq=False)
class Blocking:
    """One blocking of a loop."""

    loop: str
    stack: str
    """Of the loop's thread while it was blocked, the innermost frame last."""
    seconds: float
    """So far; it grows until the loop goes on."""


@dataclass(slots=True, eq=False)
class _Watched:
    pulse: Pulse
    since: float = 0.0
    seen: float = 0.0
    """Seconds that it was seen at the same piece of work."""
    blocking: Blocking | None = None
    told: bool = False


class Watchdog:
    """Looks at pulses. What it calls, it calls in its own thread, which may be any.

    Args:
        pulses: Of the loops to watch.
        now: The clock that the pulses are taken by.
        noticed: Called at once when a loop is found blocked, once for each blocking.
        told: Called when a blocking is over, or has lasted for a second; once for each blocking.
    """

    def __init__(
        self,
        pulses: Sequence[Pulse],
        now: Callable[[], float],
        noticed: Callable[[Blocking], object],
        told: Callable[[Blocking], object],
    ) -> None:
        self._watched = [_Watched(pulse) for pulse in pulses]
        self._now, self._noticed, self._told = now, noticed, told
        self._looked = self._worked = now()
        self._woken = threading.Event()
        self._stopped = False

    def run(self) -> None:
        """Look until `stop`."""
        while not self._stopped:
            working = True
            with suppress(Exception):  # of who was told: a log may be a user's own
                working = self.look()
            if working:
                self._woken.wait(TICK)  # set only by `stop`
            else:
                self._sleep()

    def stop(self) -> None:
        """End `run` soon. From any thread."""
        self._stopped = True
        self._woken.set()

    def look(self) -> bool:
        """Look at all loops once; False if none of them has worked for a while."""
        now = self._now()
        passed, self._looked = min(now - self._looked, LATE), now
        for watched in self._watched:
            since = watched.pulse.busy_since
            if since:
                self._worked = now
            if since != watched.since:
                self._went_on(watched, now)
                watched.since, watched.seen = since, min(now - since, passed) if since else 0.0
            elif since:
                watched.seen += passed
                self._stands_still(watched, now)
        return now - self._worked < QUIET

    def _stands_still(self, watched: _Watched, now: float) -> None:
        blocking = watched.blocking
        if blocking is not None:
            blocking.seconds = now - watched.since
            if blocking.seconds >= LASTING:
                self._tell(watched, blocking)
        elif watched.seen >= LIMIT:
            stack = _stack(watched.pulse.thread)
            if watched.pulse.busy_since == watched.since:  # else it went on meanwhile, and the stack is of other work
                watched.blocking = Blocking(watched.pulse.name, stack, now - watched.since)
                self._noticed(watched.blocking)

    def _went_on(self, watched: _Watched, now: float) -> None:
        blocking, watched.blocking = watched.blocking, None
        if blocking is not None:
            blocking.seconds = now - watched.since
            self._tell(watched, blocking)
            watched.told = False

    def _tell(self, watched: _Watched, blocking: Blocking) -> None:
        if not watched.told:
            watched.told = True
            self._told(blocking)

    def _sleep(self) -> None:
        """Wait until a loop goes to work."""
        pulses = [watched.pulse for watched in self._watched]
        for pulse in pulses:
            pulse.waker = self._woken.set
        # A loop that went to work before it saw its waker is seen here; one that did so later sets it.
        if not any(pulse.busy_since for pulse in pulses):
            self._woken.wait()
        for pulse in pulses:
            pulse.waker = None
        if not self._stopped:
            self._woken.clear()
        self._looked = self._worked = self._now()


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] # the one way to another thread's stack
    return "" if frame is None else "".join(traceback.format_stack(frame, limit=FRAMES))
