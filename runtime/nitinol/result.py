"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, Self, cast

from typing_extensions import TypeVar

from nitinol.errors import RunFailed
from nitinol.messages import Message, Outcome, RunStatus, StopReason
from nitinol.usage import Usage

OutT = TypeVar("OutT", default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallRecord:
    """One tool call of a run and what came of it."""

    call_id: str
    name: str
    arguments: dict[str, Any]
    outcome: Outcome
    text: str
    """What the model read."""
    data: Any
    """What the tool returned for programs."""
    error: str | None
    duration: float
    """Seconds from the slot in the pool to the answer; 0 if it never ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult(Generic[OutT]):
    """What a run came to. Whatever the status, `text`, `messages`, `usage` and `cost` are there."""

    status: RunStatus
    text: str
    """The last answer, also a partial one."""
    run_id: str
    key: str
    messages: tuple[Message, ...]
    """What was given as `messages=`, then this run's own."""
    tool_calls: tuple[ToolCallRecord, ...]
    """In call order."""
    usage: Usage
    cost: Decimal | None
    """US dollars; `None` = unknown."""
    turns: int
    duration: float
    """Seconds from `run.started` to `run.finished`; 0 if it never started."""
    error: str | None
    error_type: str | None = None
    stop_reason: StopReason | None = None
    """Why the model ended its last answer: `max_tokens` means that it is cut short. `None` = it gave none."""
    parsed: Any = None
    """The typed output; the text where the agent has no `output=`."""

    @property
    def output(self) -> OutT:
        """The typed answer: an instance of the agent's `output=`, else the text.

        Raises:
            RunFailed: The run did not complete.
        """
        self.raise_for_status()
        if self.error is not None:
            raise RunFailed(f"run {self.run_id!r} of {self.key!r}: {self.error}", self)
        return cast("OutT", self.parsed)

    def raise_for_status(self) -> Self:
        """Itself, or `RunFailed` unless completed."""
        if self.status != "completed":
            why = f": {self.error}" if self.error else ""
            raise RunFailed(f"run {self.run_id!r} of {self.key!r} ended {self.status!r}{why}", self)
        return self
