"""How often a child may crash, and how long it waits each time: intensity and backoff. No clock, no chance of its own."""

from __future__ import annotations

import math
from collections import deque

BACKOFF_BASE = 0.1
"""Seconds, before jitter, after a first crash; doubled for each crash in a row."""
BACKOFF_CAP = 30.0
HEALTHY = 60.0
"""Seconds a child must live for its backoff to begin anew."""


class Patience:
    """What a supervisor remembers of the crashes of a child.

    Args:
        intensity: Restarts within a period.
        period: Seconds.
    """

    __slots__ = ("_crashes", "_in_a_row", "_intensity", "_lives_since", "_period", "delay", "restarts")

    def __init__(self, intensity: int, period: float) -> None:
        self._intensity, self._period = intensity, period
        self._crashes: deque[float] = deque()
        self._in_a_row = 0
        self._lives_since = 0.0
        self.restarts = 0
        self.delay = 0.0
        """Seconds of the last backoff."""

    def crash(self, now: float, chance: float) -> float | None:
        """The child crashed: how many seconds it waits, or `None`, as it has crashed too often."""
        self._in_a_row = 1 if now - self._lives_since >= HEALTHY else self._in_a_row + 1
        self._lives_since = math.inf
        self._crashes.append(now)
        self._forget(now)
        if len(self._crashes) > self._intensity:
            return None
        self.delay = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(self._in_a_row - 1, 32)) * chance
        return self.delay

    def restart(self) -> None:
        """The child is started again."""
        self.restarts += 1

    def up(self, now: float) -> None:
        """The child is up: from here it may become healthy."""
        self._lives_since = now

    def is_repeated(self) -> bool:
        """Whether the last crash was not the first of its period."""
        return len(self._crashes) > 1

    def clear(self) -> None:
        """Somebody has seen to the child."""
        self._crashes.clear()

    @property
    def spent(self) -> str:
        """Why there is no more of it."""
        return f"{len(self._crashes)} crashes in {self._period:g} s"

    def _forget(self, now: float) -> None:
        while self._crashes[0] < now - self._period:
            self._crashes.popleft()
