"""What the gateway and the pool know of an agent: where its inputs go, and what it shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from nitinol import events as ev
from nitinol.inputs import (
    Input,
)
from nitinol.messages import Message
from nitinol.state import AgentState

Stopper = Callable[[], object]
"""Stops an effect, on the core loop; harmless once it has ended."""


class Port(Protocol):
    """An agent's stable side: it outlives incarnations. On the core loop only."""

    key: str
    committed: AgentState

    def view_of(self, state: AgentState) -> tuple[tuple[Message, ...], int, int]:
        """As `repair.view`; of one that goes on where the last one ended, only what is new is looked at."""
        ...

    def tell(self, input: Input) -> None:
        """An outcome, for whichever incarnation lives, or the next one."""
        ...

    def ask(self, input: Input) -> asyncio.Future[Sequence[ev.Event]]:
        """An input whose events are wanted once they are committed; empty if it came too late."""
        ...
