"""Events: everything that happens, one frozen dataclass for each type.

Durable events are committed to the journal first and published second; ephemeral ones are only published. An event's
payload fields are public API. `event.type` and `isinstance` both narrow the union `Event`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from itertools import compress
from operator import attrgetter, eq
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, cast, get_args

from pydantic import Discriminator, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import dataclass_transform

from nitinol.messages import (
    NOTHING_COMPACTED,
    Compacted,
    DeltaKind,
    InputMode,
    Media,
    Message,
    Outcome,
    RunStatus,
    StopReason,
)
from nitinol.usage import Usage

T = TypeVar("T")
E = TypeVar("E", bound="EventBase")


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def _event(cls: type[T]) -> type[T]:
    return dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)(cls)


@_event
class EventBase:
    """The envelope of every event."""

    v: ClassVar[int] = 1
    type: ClassVar[str] = ""
    durable: ClassVar[bool] = True

    id: str = ""
    """Unique in a store; `key#seq` of a durable event."""
    seq: int = 0
    """Counts one agent's durable events from 1, without a gap, across restarts. An ephemeral event has the last one's."""
    position: int = 0
    """An opaque cursor over the store; give it as `after=`. 0 is the beginning."""
    ts: int = 0
    """Nanoseconds since 1970, UTC."""
    agent: str = ""
    key: str = ""
    incarnation: int = 0
    run_id: str | None = None
    parent_run_id: str | None = None
    root_run_id: str | None = None
    group_id: str | None = None
    turn: int = 0
    """Of its run, from 1; 0 before the first."""
    attempt: int = 0
    """Of its turn, from 1; 0 where no attempt is meant."""
    call_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data: times are ISO 8601, money is text."""
        data = cast("dict[str, Any]", _adapter(self.__class__).dump_python(cast("Any", self), mode="json"))
        return {"v": self.v, "type": self.type, "durable": self.durable, **data, "ts": to_iso(self.ts)}

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    def to_sse(self) -> str:
        """As a server-sent event: `id` is the position, `event` the type, `data` the JSON."""
        return f"id: {self.position}\nevent: {self.type}\ndata: {self.to_json()}\n\n"

    def __repr__(self) -> str:
        shown = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


@_event
class AgentStarted(EventBase):
    """An incarnation of an agent is up; `recovered`: it had a life before."""

    type: ClassVar[Literal["agent.started"]] = "agent.started"
    recovered: bool


@_event
class AgentCrashed(EventBase):
    """The actor died of an exception."""

    type: ClassVar[Literal["agent.crashed"]] = "agent.crashed"
    error_type: str
    error: str


@_event
class AgentRestarted(EventBase):
    """The supervisor brought it back, the `restarts`-th time, after `delay` seconds."""

    type: ClassVar[Literal["agent.restarted"]] = "agent.restarted"
    restarts: int
    delay: float


@_event
class AgentParked(EventBase):
    """The supervisor gave up: too many crashes in its period. `ref.resume()` tries again."""

    type: ClassVar[Literal["agent.parked"]] = "agent.parked"
    restarts: int
    reason: str


@_event
class AgentResumed(EventBase):
    """A parked agent was brought back by hand."""

    type: ClassVar[Literal["agent.resumed"]] = "agent.resumed"


@_event
class AgentStopped(EventBase):
    """The agent was stopped on purpose."""

    type: ClassVar[Literal["agent.stopped"]] = "agent.stopped"
    reason: str


@_event
class AgentConfigured(EventBase):
    """The definition changed: field name to its new value, as text."""

    type: ClassVar[Literal["agent.configured"]] = "agent.configured"
    changes: dict[str, str]


@_event
class ConversationReset(EventBase):
    """The conversation is empty again; the bill goes on."""

    type: ClassVar[Literal["conversation.reset"]] = "conversation.reset"


@_event
class RunQueued(EventBase):
    """A run was accepted; `pending_count` runs are ahead of it."""

    type: ClassVar[Literal["run.queued"]] = "run.queued"
    prompt: Message | None
    pending_count: int
    history: tuple[Message, ...] = ()
    budget: dict[str, Any] | None = None
    """Of this run, where it has one of its own: `usd`, `tokens`."""


@_event
class RunStarted(EventBase):
    """A run begins. `deadline`: seconds from here, pauses not counted; `definition`: hash of the agent's."""

    type: ClassVar[Literal["run.started"]] = "run.started"
    model: str
    deadline: float | None
    definition: str = ""
    budget: dict[str, Any] | None = None
    """What it may cost: `usd`, `tokens`."""


@_event
class RunPaused(EventBase):
    """The run waits: `reason` is `"approval"`."""

    type: ClassVar[Literal["run.paused"]] = "run.paused"
    reason: str


@_event
class RunResumed(EventBase):
    """The run goes on; `recoveries`: how often it was open when an incarnation died at work."""

    type: ClassVar[Literal["run.resumed"]] = "run.resumed"
    reason: str
    recoveries: int


@_event
class RunCancelling(EventBase):
    """The run is being cancelled; no new work starts, and it will end as `status`."""

    type: ClassVar[Literal["run.cancelling"]] = "run.cancelling"
    by: str
    status: RunStatus = "cancelled"
    reason: str | None = None


@_event
class RunFinished(EventBase):
    """The one end of a run. `duration` in seconds from `run.started`."""

    type: ClassVar[Literal["run.finished"]] = "run.finished"
    status: RunStatus
    text: str
    turns: int
    usage: Usage
    cost: Decimal | None
    duration: float
    error: str | None = None
    error_type: str | None = None


@_event
class TurnStarted(EventBase):
    """A model call is about to be made."""

    type: ClassVar[Literal["turn.started"]] = "turn.started"
    message_count: int
    estimated_tokens: int


@_event
class TurnFinished(EventBase):
    """The model answered and all its tool calls are answered. `echo`: a hash of the calls and what came of them."""

    type: ClassVar[Literal["turn.finished"]] = "turn.finished"
    stop_reason: StopReason
    tool_calls: int
    echo: str = ""


@_event
class MessageAppended(EventBase):
    """The transcript grew by one message."""

    type: ClassVar[Literal["message.appended"]] = "message.appended"
    message: Message


@_event
class ModelStarted(EventBase):
    """An attempt: one request is about to be sent. `reserved`: dollars it may cost at most, by `price_source`, where known.

    `reserved_tokens`: in and out, at most. `capped`: the scope whose budget has lowered `max_output_tokens`.
    `estimated_tokens`: of the whole request, by this `measure`, before calibration. `compacting`: the attempt is to make a summary, which is
    no answer and not shown; what the view will leave out, with the summary still to come.
    """

    type: ClassVar[Literal["model.started"]] = "model.started"
    provider: str
    model: str
    reserved: Decimal | None
    max_output_tokens: int | None = None
    reserved_tokens: int = 0
    capped: str | None = None
    estimated_tokens: int = 0
    context_window: int | None = None
    compacting: Compacted | None = None
    price_source: str | None = None
    measure: int = 0


@_event
class ModelFinished(EventBase):
    """The attempt gave a whole answer. `duration` in seconds."""

    type: ClassVar[Literal["model.finished"]] = "model.finished"
    stop_reason: StopReason
    response_id: str | None
    duration: float


@_event
class ModelFailed(EventBase):
    """The attempt failed; `retryable`: by its type."""

    type: ClassVar[Literal["model.failed"]] = "model.failed"
    error_type: str
    error: str
    status_code: int | None
    retry_after: float | None
    request_id: str | None
    retryable: bool


@_event
class ModelDiscarded(EventBase):
    """Readers drop this attempt's text, `characters` long."""

    type: ClassVar[Literal["model.discarded"]] = "model.discarded"
    characters: int


@_event
class ModelRetrying(EventBase):
    """The same model is tried again in `delay` seconds."""

    type: ClassVar[Literal["model.retrying"]] = "model.retrying"
    delay: float


@_event
class ModelFallback(EventBase):
    """The next model of `fallbacks=` takes over."""

    type: ClassVar[Literal["model.fallback"]] = "model.fallback"
    from_model: str
    to_model: str


@_event
class ToolRequested(EventBase):
    """A tool call, after hooks; pinned from here on."""

    type: ClassVar[Literal["tool.requested"]] = "tool.requested"
    name: str
    arguments: dict[str, Any]
    idempotency_key: str
    tool_hash: str = ""


@_event
class ToolStarted(EventBase):
    """The call has a slot and is about to run, for the `execution`-th time; `timeout` in seconds."""

    type: ClassVar[Literal["tool.started"]] = "tool.started"
    name: str
    isolation: str
    timeout: float
    execution: int


@_event
class ToolFinished(EventBase):
    """The call is answered. `duration` in seconds, 0 if it never ran."""

    type: ClassVar[Literal["tool.finished"]] = "tool.finished"
    name: str
    outcome: Outcome
    text: str
    data: Any
    error: str | None
    duration: float
    media: tuple[Annotated[Media, Discriminator("type")], ...] = ()


@_event
class ApprovalRequested(EventBase):
    """A person must decide, on this version of the tool. `expires_at`: nanoseconds since 1970, UTC, or never."""

    type: ClassVar[Literal["approval.requested"]] = "approval.requested"
    name: str
    arguments: dict[str, Any]
    expires_at: int | None
    tool_hash: str = ""


@_event
class ApprovalResolved(EventBase):
    """Decided."""

    type: ClassVar[Literal["approval.resolved"]] = "approval.resolved"
    decision: Literal["approve", "deny"]
    arguments: dict[str, Any] | None
    by: str
    reason: str | None


@_event
class InputQueued(EventBase):
    """A steer or a follow-up was accepted."""

    type: ClassVar[Literal["input.queued"]] = "input.queued"
    input_id: str
    mode: InputMode
    prompt: Message


@_event
class InputDelivered(EventBase):
    """It is in the transcript now."""

    type: ClassVar[Literal["input.delivered"]] = "input.delivered"
    input_id: str


@_event
class InputDropped(EventBase):
    """The run ended before it could be delivered."""

    type: ClassVar[Literal["input.dropped"]] = "input.dropped"
    input_id: str
    reason: str


@_event
class UsageUpdated(EventBase):
    """The bill: one row for each attempt. `estimated`: the provider did not say all."""

    type: ClassVar[Literal["usage.updated"]] = "usage.updated"
    provider: str
    model: str
    usage: Usage
    cost: Decimal | None
    estimated: bool
    price_source: str | None
    run_usage: Usage
    run_cost: Decimal | None
    agent_usage: Usage
    agent_cost: Decimal | None


@_event
class BudgetReserved(EventBase):
    """An attempt may cost so much at most: `amount` US dollars, `tokens` in and out. Others in the scope leave it alone."""

    type: ClassVar[Literal["budget.reserved"]] = "budget.reserved"
    scope: str
    amount: Decimal
    tokens: int


@_event
class BudgetSettled(EventBase):
    """What was reserved for an attempt is free again, but for what it cost: `amount` US dollars, or `None` if unknown."""

    type: ClassVar[Literal["budget.settled"]] = "budget.settled"
    scope: str
    amount: Decimal | None
    tokens: int


@_event
class BudgetWarning(EventBase):
    """More than this fraction of a limit is spent: 0.5, 0.8 or 0.95."""

    type: ClassVar[Literal["budget.warning"]] = "budget.warning"
    scope: str
    limit: str
    spent: str
    fraction: float


@_event
class BudgetExceeded(EventBase):
    """A limit ends the run: `spent` so far, `needed` for the next request."""

    type: ClassVar[Literal["budget.exceeded"]] = "budget.exceeded"
    scope: str
    limit: str
    spent: str
    needed: str


@_event
class ContextCompacted(EventBase):
    """The view of the conversation became shorter; the transcript is as long as before.

    `tokens_before` and `tokens_after`: of the view, estimated. `removed`: messages that went, or whose results did;
    `through`: the index in `ref.history()` of the last of them. `fallback`: `"truncate"` where no summary stands for them.
    """

    type: ClassVar[Literal["context.compacted"]] = "context.compacted"
    tokens_before: int
    tokens_after: int
    removed: int
    through: int
    fallback: Literal["truncate"] | None
    view: Compacted = NOTHING_COMPACTED


@_event
class ContextRepaired(EventBase):
    """The transcript was not valid for a model and was mended on the way."""

    type: ClassVar[Literal["context.repaired"]] = "context.repaired"
    added: int
    removed: int


@_event
class LoopDetected(EventBase):
    """The same call had the same result `count` times."""

    type: ClassVar[Literal["loop.detected"]] = "loop.detected"
    name: str
    count: int
    action: Literal["nudge", "stop"]


@_event
class ModelFirstToken(EventBase):
    """The first piece of an answer came, `seconds` after the request."""

    type: ClassVar[Literal["model.first_token"]] = "model.first_token"
    durable: ClassVar[bool] = False
    seconds: float


@_event
class ModelDelta(EventBase):
    """A piece of an answer; `index`: which part, or which call."""

    type: ClassVar[Literal["model.delta"]] = "model.delta"
    durable: ClassVar[bool] = False
    kind: DeltaKind
    text: str
    index: int = 0


@_event
class ToolProgress(EventBase):
    """What a tool told by `ctx.progress`."""

    type: ClassVar[Literal["tool.progress"]] = "tool.progress"
    durable: ClassVar[bool] = False
    data: Any


@_event
class ToolLateResult(EventBase):
    """A call that had been given up came back, `after` seconds later; its result is dropped."""

    type: ClassVar[Literal["tool.late_result"]] = "tool.late_result"
    durable: ClassVar[bool] = False
    after: float


@_event
class PoolSaturated(EventBase):
    """All workers are busy and `queued` calls wait."""

    type: ClassVar[Literal["pool.saturated"]] = "pool.saturated"
    durable: ClassVar[bool] = False
    queued: int
    workers: int


@_event
class LoopBlocked(EventBase):
    """A loop stood still, for `seconds` or longer; `stack`: of its thread meanwhile, the culprit's line last."""

    type: ClassVar[Literal["loop.blocked"]] = "loop.blocked"
    durable: ClassVar[bool] = False
    seconds: float
    stack: str
    loop: str = ""


@_event
class BusGap(EventBase):
    """This subscriber missed `lost` ephemeral events behind the position `after`."""

    type: ClassVar[Literal["bus.gap"]] = "bus.gap"
    durable: ClassVar[bool] = False
    lost: int
    after: int


@_event
class Custom(EventBase):
    """An event of a user's own, or of a version that this one does not know."""

    type: ClassVar[Literal["custom"]] = "custom"
    durable: ClassVar[bool] = False
    name: str
    payload: dict[str, Any]


Event: TypeAlias = (
    AgentStarted
    | AgentCrashed
    | AgentRestarted
    | AgentParked
    | AgentResumed
    | AgentStopped
    | AgentConfigured
    | ConversationReset
    | RunQueued
    | RunStarted
    | RunPaused
    | RunResumed
    | RunCancelling
    | RunFinished
    | TurnStarted
    | TurnFinished
    | MessageAppended
    | ModelStarted
    | ModelFinished
    | ModelFailed
    | ModelDiscarded
    | ModelRetrying
    | ModelFallback
    | ToolRequested
    | ToolStarted
    | ToolFinished
    | ApprovalRequested
    | ApprovalResolved
    | InputQueued
    | InputDelivered
    | InputDropped
    | UsageUpdated
    | BudgetReserved
    | BudgetSettled
    | BudgetWarning
    | BudgetExceeded
    | ContextCompacted
    | ContextRepaired
    | LoopDetected
    | ModelFirstToken
    | ModelDelta
    | ToolProgress
    | ToolLateResult
    | PoolSaturated
    | LoopBlocked
    | BusGap
    | Custom
)
"""Every event: a closed union, so that `match` and `if event.type ==` narrow."""

TYPES: Mapping[str, type[EventBase]] = {cls.type: cls for cls in get_args(Event)}
"""Every event type by its name."""

ENVELOPE = tuple(field.name for field in fields(EventBase))
"""The names of the envelope's fields."""


def from_json(line: str | bytes) -> Event:
    """An event from its JSON. A type this version does not know becomes `Custom`, with the payload as it came.

    Raises:
        ValueError: It is no event.
    """
    data = json.loads(line)
    if not isinstance(data, dict) or "type" not in data:
        raise ValueError(f"not an event: {line[:80]!r}")
    return from_dict(cast("dict[str, Any]", data))


def from_dict(data: Mapping[str, Any]) -> Event:
    """As `from_json`, from parsed data."""
    values = {name: value for name, value in data.items() if name not in ("v", "type", "durable")}
    if isinstance(values.get("ts"), str):
        values["ts"] = from_iso(values["ts"])
    cls = TYPES.get(data["type"])
    if cls is None:
        envelope = {name: value for name, value in values.items() if name in ENVELOPE}
        payload = {name: value for name, value in values.items() if name not in ENVELOPE}
        return Custom(name=str(data["type"]), payload=payload, **envelope)
    known = {field.name for field in fields(cls)}
    event = _adapter(cls).validate_python({name: value for name, value in values.items() if name in known})
    return cast("Event", event)


def pack(event: EventBase) -> bytes:
    """A durable event's fields for a store, without its type and position, and what of its envelope says nothing."""
    says_nothing = tuple(map(eq, _envelope(event), _NOTHING))
    silent = _silent.get(says_nothing)
    if silent is None:
        silent = _silent[says_nothing] = {"position", *compress(ENVELOPE, says_nothing)}
    return to_bytes(_adapter(event.__class__), event, exclude=silent)


def to_bytes(adapter: TypeAdapter[T], value: T, exclude: set[str] | None = None) -> bytes:
    """A value as JSON for a store. A lone surrogate, which no UTF-8 can hold, becomes a question mark."""
    serializer = adapter.serializer  # not by `dump_json`, whose own work is as much again
    try:
        return serializer.to_json(value, exclude=exclude)
    except PydanticSerializationError:
        data = serializer.to_python(value, mode="json", exclude=exclude)
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def unpack(type: str, body: bytes) -> EventBase:
    """The inverse of `pack`. What this version does not know, a type or a shape, becomes `Custom`; so does rubbish."""
    cls = TYPES.get(type)
    try:
        if cls is not None:
            return cast("EventBase", _adapter(cls).validator.validate_json(body))
    except ValidationError:
        pass
    try:
        data: Any = json.loads(body)
    except ValueError:
        data = None
    values = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    envelope = {name: value for name, value in values.items() if name in ENVELOPE}
    return Custom(name=type, payload={name: values[name] for name in values.keys() - envelope}, **envelope)


def ephemeral(event_class: type[E], envelope: EventBase, ts: int, seq: int, **payload: Any) -> E:
    """An ephemeral event in the envelope of a durable one. Its position is given when it is published."""
    values: dict[str, Any] = {name: getattr(envelope, name) for name in ENVELOPE}
    values.update(payload, ts=ts, seq=seq)
    return event_class(**values)


def delta_maker(envelope: EventBase) -> Callable[[int, int, int, DeltaKind, str, int], ModelDelta]:
    """A fast maker of an attempt's deltas: `make(ts, seq, position, kind, text, index)`.

    Deltas are the one kind of event made by the hundred thousand. A frozen dataclass fills its slots through
    `object.__setattr__`, five times the cost of plain assignment; this makes a twin of the same layout and turns it
    into a `ModelDelta`.
    """
    e = envelope
    new: type[Any] = _DeltaTwin
    final = ModelDelta

    def make(ts: int, seq: int, position: int, kind: DeltaKind, text: str, index: int) -> ModelDelta:
        delta = new(
            e.id, seq, position, ts, e.agent, e.key, e.incarnation, e.run_id, e.parent_run_id, e.root_run_id,
            e.group_id, e.turn, e.attempt, e.call_id, kind, text, index,
        )  # fmt: skip
        delta.__class__ = final  # the same slots in the same order: a test says
        return cast("ModelDelta", delta)

    return make


def to_iso(ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 in UTC, to the nanosecond."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def from_iso(text: str) -> int:
    """The inverse of `to_iso`."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(rest.ljust(9, "0")[:9] or 0)


def stamp(event: EventBase, position: int) -> None:
    """Give an event its position, as it is committed or published: the one change an event ever sees."""
    object.__setattr__(event, "position", position)


class _DeltaTwin(EventBase):
    """The layout of `ModelDelta`, without its frost."""

    __slots__ = ("index", "kind", "text")
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__  # both, or CPython goes through Python for either

    def __init__(
        self: Any, id: str, seq: int, position: int, ts: int, agent: str, key: str, incarnation: int, run_id: str | None,
        parent_run_id: str | None, root_run_id: str | None, group_id: str | None, turn: int, attempt: int,
        call_id: str | None, kind: DeltaKind, text: str, index: int,
    ) -> None:  # fmt: skip
        self.id = id
        self.seq = seq
        self.position = position
        self.ts = ts
        self.agent = agent
        self.key = key
        self.incarnation = incarnation
        self.run_id = run_id
        self.parent_run_id = parent_run_id
        self.root_run_id = root_run_id
        self.group_id = group_id
        self.turn = turn
        self.attempt = attempt
        self.call_id = call_id
        self.kind = kind
        self.text = text
        self.index = index


def _adapter(cls: type[EventBase]) -> TypeAdapter[EventBase]:
    adapter = _adapters.get(cls.type)
    if adapter is None:
        adapter = _adapters[cls.type] = TypeAdapter(cls)
    return adapter


_envelope = attrgetter(*ENVELOPE)
_NOTHING = tuple(field.default for field in fields(EventBase))
_silent: dict[tuple[bool, ...], set[str]] = {}
"""What to leave out, by which fields of the envelope say nothing: a few dozen patterns."""
_adapters: dict[str, TypeAdapter[EventBase]] = {}
