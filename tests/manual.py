"""A world of the test's own: a clock that stands still until it is moved, and a loop that runs when it is told to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nitinol.env import Env, Timer

ALMOST_ONE = 1.0 - 2.0**-53
"""The largest number that `Env.random` may give: a delay is, but for a hair, as long as it can be."""


class ManualEnv(Env):
    """A clock that stands still until it is moved, and chance that is fixed."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.clock = 1000.0
        self.chance = ALMOST_ONE

    def monotonic(self) -> float:
        return self.clock

    def random(self) -> float:
        return self.chance


@dataclass(slots=True, eq=False)
class ManualTimer:
    """A call that is made when the clock has come to `due`."""

    due: float
    function: Callable[..., object]
    args: tuple[Any, ...]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualLoop:
    """A `Loop` that runs in the test's thread, and only when it is told to."""

    name = "manual"

    def __init__(self, env: ManualEnv) -> None:
        self._env = env
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[ManualTimer] = []

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        self._calls.append((function, args))
        return True

    def call_later(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        timer = ManualTimer(self._env.clock + delay, function, args)
        self._timers.append(timer)
        return timer

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        raise NotImplementedError("the supervisor has no coroutines")

    def is_current(self) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True

    def pending(self) -> int:
        """Timers that are still to come."""
        return sum(not timer.cancelled for timer in self._timers)

    def run(self) -> None:
        """Make the calls that wait; no timer."""
        while self._calls:
            function, args = self._calls.popleft()
            function(*args)

    def advance(self, seconds: float) -> None:
        """Move the clock, and do on the way what is due."""
        self.run()
        until = self._env.clock + seconds
        while True:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            timer = min(self._timers, key=lambda timer: timer.due, default=None)
            if timer is None or timer.due > until:
                break
            self._timers.remove(timer)
            self._env.clock = max(self._env.clock, timer.due)
            timer.function(*timer.args)
            self.run()
        self._env.clock = until
