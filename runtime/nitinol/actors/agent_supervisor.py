"""The supervisor of agents: dynamic, each restarted for itself.

An agent starts by itself, and its supervisor first hears of it when it crashes: so a hundred thousand that never do cost it
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from nitinol.actors.actor import Down
from nitinol.actors.child_spec import STORM
from nitinol.actors.supervisor import Child, Supervisor, Wake
from nitinol.env import Env, Loop

INTENSITY = 5
"""Restarts of one agent within `PERIOD` seconds; one more crash parks it."""
PERIOD = 60.0


class Restartable(Protocol):
    """An agent, as its supervisor sees it. Its methods may be called from the supervisors' loop."""

    key: str

    def restart(self, restarts: int, delay: float, by_hand: bool) -> None:
        """Start a new incarnation."""
        ...

    def park(self, restarts: int, reason: str) -> None:
        """Start no more incarnations until somebody resumes the agent."""
        ...


@dataclass(frozen=True, slots=True)
class Crashed:
    """An agent crashed, and its log says so."""

    agent: Restartable
    why: str


@dataclass(frozen=True, slots=True)
class Gone:
    """An agent will not come back; the next one of this key starts with a clean record."""

    key: str


class _AgentChild(Child):
    """An agent that has crashed before."""

    __slots__ = ("agent", "by_hand")

    def __init__(self, agent: Restartable) -> None:
        super().__init__(agent.key, "transient", 5.0, INTENSITY, PERIOD)
        self.agent = agent
        self.state = "up"
        self.number = 1
        self.by_hand = False

    def begin(self, by: Supervisor) -> None:
        by_hand, self.by_hand = self.by_hand, False
        self.agent.restart(self.patience.restarts, self.patience.delay, by_hand)

    def park(self, reason: str) -> None:
        self.agent.park(self.patience.restarts, reason)


class AgentSupervisor(Supervisor):
    """Restarts agents, each for itself: a sibling never notices.

    Args:
        crowd: How many agents there are: it bears as many repeated crashes in a period, or `STORM`.
        ready: Called once it is up.
    """

    def __init__(
        self,
        env: Env,
        loop: Loop,
        crowd: Callable[[], int] = lambda: 0,
        ready: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(
            env, loop, "agents", [], "dynamic", storm=lambda: max(STORM, crowd()), period=PERIOD, ready=ready
        )
        self._records: dict[str, _AgentChild] = {}

    def on_receive(self, message: Any) -> None:
        match message:
            case Crashed(agent, why):
                child = self._records.get(agent.key)
                if child is None:
                    child = self._records[agent.key] = _AgentChild(agent)
                self._crashed(child, Down(id=agent.key, reason="crash", text=why))
            case Wake(agent, by_hand):
                child = self._records.get(agent.key)
                if child is None and by_hand:  # it was parked under another incarnation of this supervisor
                    child = self._records[agent.key] = _AgentChild(agent)
                    child.state = "parked"
                if child is not None:
                    child.by_hand = child.state == "parked"
                    self._woken(child, by_hand)
            case Gone(key):
                child = self._records.pop(key, None)
                if child is not None and child.timer is not None:
                    child.timer.cancel()
            case _:
                super().on_receive(message)
