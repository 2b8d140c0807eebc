"""Inputs: everything that can happen to an agent, as `machine.decide` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from nitinol.agent import Agent
from nitinol.budget import Budget, Grant, Refusal
from nitinol.messages import Compacted, InputMode, Media, Message, Outcome, RunStatus, ToolCall
from nitinol.provider import ModelResponse
from nitinol.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An incarnation begins: the state is folded; `adopted` are the tool executions still in flight for it."""

    adopted: frozenset[tuple[str, int]] = frozenset()
    restarts: int = 0
    delay: float = 0.0
    by_hand: bool = False
    suspended: bool = False
    """The store failed, not the agent: that counts against no run."""
    reported: bool = False
    """The open attempt ended meanwhile: its report is the next input."""
    woken: bool = False
    """It slept, and nothing was in flight: no new incarnation, the same one goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """The incarnation died; the cell tells, since the dead cannot."""

    error_type: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Park:
    """The supervisor gives up."""

    restarts: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A user's message: a run."""

    run_id: str
    prompt: Message | None
    history: tuple[Message, ...] = ()
    parent_run_id: str | None = None
    root_run_id: str | None = None
    budget: Budget | None = None
    is_new: bool = False
    """The id was made for it: nobody can have sent it before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """A steer or a follow-up to an open or queued run."""

    run_id: str
    input_id: str
    mode: InputMode
    prompt: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    run_id: str
    by: str
    status: RunStatus = "cancelled"
    reason: str | None = None


def by_hook(run_id: str, status: RunStatus, reason: str) -> Cancel:
    """A hook ends a run."""
    return Cancel(run_id=run_id, by="hook", status=status, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolve:
    """A person's word on a call that waits for approval."""

    run_id: str
    call_id: str
    decision: Literal["approve", "deny"]
    arguments: Mapping[str, Any] | None = None
    by: str = "user"
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Nothing happens; who asks knows then that the log was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Forget the conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Another definition, from the next run on."""

    changes: Mapping[str, str]
    definition: Agent[Any]
    idle: bool = False
    """Only between runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A budget of the key, for life: what was spent already counts."""

    budget: Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Warn:
    """A budget that others share is nearly spent, and this agent has spent the last of it."""

    scope: str
    limit: str
    spent: str
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    reason: str
    forgotten: bool = False
    """It is dropped next, with all that nobody will report on any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReady:
    """A request is built, and its budgets were asked: it is about to be sent, or may not be."""

    run_id: str
    turn: int
    attempt: int
    provider: str
    model: str
    grant: Grant | Refusal
    price_source: str | None
    """Of the amount of the grant; `None` where nobody knows it in money."""
    added: int = 0
    removed: int = 0
    estimated_tokens: int = 0
    """Of the request, before calibration."""
    context_window: int | None = None
    """Of the model, in tokens."""
    compacting: Compacted | None = None
    """It asks for a summary; what the view will leave out then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """A request is longer than its model takes, by `machine.plan_for`, and no summary would help: it is not sent."""

    run_id: str
    turn: int
    attempt: int
    provider: str
    model: str
    estimated_tokens: int
    """Of the request, before calibration."""
    context_window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An attempt gave a whole answer."""

    run_id: str
    turn: int
    attempt: int
    provider: str
    model: str
    response: ModelResponse
    usage: Usage
    cost: Decimal | None
    price_source: str | None
    estimated: bool
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An attempt failed, or was cut off. `attempt` may not have started, if its request could not even be built."""

    run_id: str
    turn: int
    attempt: int
    provider: str
    model: str
    error_type: str
    error: str
    retryable: bool
    status_code: int | None = None
    retry_after: float | None = None
    request_id: str | None = None
    usage: Usage | None = None
    """`None` = the request was never sent, so nothing is owed."""
    estimated: bool = True
    cost: Decimal | None = None
    price_source: str | None = None
    text: str = ""
    """The words that were shown."""
    characters: int = 0
    """How much was shown: words, thinking and arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The `before_tool` hooks have seen a call."""

    run_id: str
    turn: int
    call_id: str
    call: ToolCall
    blocked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A call has its slot in the pool."""

    run_id: str
    turn: int
    call_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """An execution of a call ended. `execution` 0: it never started."""

    run_id: str
    turn: int
    call_id: str
    execution: int
    outcome: Outcome
    text: str
    data: Any = None
    media: tuple[Media, ...] = ()
    error: str | None = None
    duration: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed: a `Wait` is due."""


Input: TypeAlias = (
    Opened | Crashed | Park | Look | Send | Add | Cancel | Resolve | Reset | Configure | Limit | Warn | Stop
    | AttemptReady | TooLong | Answered | Failed | Prepared | Granted | Done | Tick
)  # fmt: skip
