"""The supervisor of agents: one for one, with backoff, and an end to patience.

It runs on a loop of its own, so that nothing an agent, a hook or a tool does can stall it. It never sleeps: a delay is
a timer. What a restart means is the child's business; when, and how often, is decided here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from nitinol.actors.actor import Down, LoopActor
from nitinol.env import Env, Loop, Timer

INTENSITY = 5
"""Restarts of one child within `PERIOD` seconds; one more crash parks it."""
PERIOD = 60.0
BACKOFF_BASE = 0.1
"""Seconds, before jitter, after a first crash; doubled for each crash in a row."""
BACKOFF_CAP = 30.0
HEALTHY = 60.0
"""Seconds a child must live for its backoff to begin anew."""


class Restartable(Protocol):
    """A child, as its supervisor sees it. Its methods may be called from the supervisor's loop."""

    key: str

    def restart(self, restarts: int, delay: float, by_hand: bool) -> None:
        """Start a new incarnation."""
        ...

    def park(self, restarts: int, reason: str) -> None:
        """Start no more incarnations until somebody resumes the child."""
        ...


@dataclass(frozen=True, slots=True)
class ChildDown:
    """A child crashed."""

    child: Restartable
    reason: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Somebody needs the child now: a delay is cut short; a parked child, if `by_hand`, is tried again."""

    child: Restartable
    by_hand: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """A child will not come back; the next one of this key starts with a clean record."""

    key: str


@dataclass(slots=True)
class _Record:
    crashes: deque[float] = field(default_factory=deque[float])
    in_a_row: int = 0
    restarts: int = 0
    restarted_at: float = 0.0
    timer: Timer | None = None
    delay: float = 0.0
    parked: bool = False


class AgentSupervisor(LoopActor):
    """Restarts agents, each for itself: a sibling never notices."""

    def __init__(self, env: Env, loop: Loop, on_down: Down) -> None:
        super().__init__(loop, on_down)
        self._env = env
        self._records: dict[str, _Record] = {}

    def on_receive(self, message: Any) -> None:
        match message:
            case ChildDown():
                self._child_down(message.child, message.reason)
            case Wake():
                self._wake(message.child, message.by_hand)
            case Gone():
                record = self._records.pop(message.key, None)
                if record is not None and record.timer is not None:
                    record.timer.cancel()
            case _:
                raise TypeError(f"the supervisor does not know {message!r}")

    def _child_down(self, child: Restartable, reason: str) -> None:
        record = self._records.setdefault(child.key, _Record())
        now = self._env.monotonic()
        record.in_a_row = 1 if now - record.restarted_at >= HEALTHY else record.in_a_row + 1
        record.crashes.append(now)
        while record.crashes[0] < now - PERIOD:
            record.crashes.popleft()
        if len(record.crashes) > INTENSITY:
            record.parked = True
            child.park(record.restarts, f"{len(record.crashes)} crashes in {PERIOD:g} s, the last: {reason}")
            return
        record.delay = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** (record.in_a_row - 1)) * self._env.random()
        record.timer = self._loop.call_later(record.delay, self._restart, child, record, False)

    def _wake(self, child: Restartable, by_hand: bool) -> None:
        record = self._records.get(child.key)
        if record is None:
            return
        if record.timer is not None:
            record.timer.cancel()
            self._restart(child, record, False)
        elif record.parked and by_hand:
            record.parked = False
            record.crashes.clear()
            self._restart(child, record, True)

    def _restart(self, child: Restartable, record: _Record, by_hand: bool) -> None:
        record.timer = None
        record.restarts += 1
        record.restarted_at = self._env.monotonic()
        child.restart(record.restarts, record.delay, by_hand)
