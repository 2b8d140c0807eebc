"""The fold: an agent's state is what its durable events add up to, and nothing else.

An `AgentState` is a value: whoever holds one may keep it for ever. `apply` gives a new one. (Inside, `absorb` changes a
private draft in place, so that a decision of ten events, or a log of ten thousand, costs one copy.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar, cast, overload

from nitinol import events as ev
from nitinol.agent import Agent
from nitinol.budget import NOTHING, UNSPENT, Account, Amount, Budget, Spending
from nitinol.compaction import UNTOLD, Gauge, Shown, estimate_tokens, size_of
from nitinol.errors import NitinolError
from nitinol.messages import (
    NOTHING_COMPACTED,
    Compacted,
    InputMode,
    Media,
    Message,
    Outcome,
    RunStatus,
    StopReason,
    ToolCall,
)
from nitinol.usage import MEASURE, NO_USAGE, Usage

T = TypeVar("T")
E = TypeVar("E", bound=ev.EventBase)

FOLD = 4
"""The version of the fold. Raise it with any change of what `absorb` makes of a log: older snapshots are then not used."""

Activity = Literal["idle", "running", "paused", "cancelling", "parked", "stopped"]
Stage = Literal["proposed", "waiting", "approval", "running", "done"]


class Log(Sequence[T], Generic[T]):
    """An immutable sequence that grows by the end in constant time.

    All versions share one list and each sees its own length; only a second branch from the same version copies.
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def append(self, item: T) -> Log[T]:
        """A longer version."""
        new = cast("Log[T]", object.__new__(Log))
        # An empty one is anybody's: its list is never shared.
        items = self._items if 0 < self._length == len(self._items) else self._items[: self._length]
        items.append(item)
        new._items, new._length = items, self._length + 1
        return new

    def continues(self, other: Log[T]) -> bool:
        """Whether it is that version, or one that has grown out of it. Says no where it cannot tell at once."""
        return self._items is other._items and self._length >= other._length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            return self._items[start:stop:step] if step > 0 else [self._items[at] for at in range(start, stop, step)]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._items[index if index >= 0 else self._length + index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._items[: self._length])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Log) and list(self) == list(other)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]

    __hash__ = None  # type: ignore[assignment]


EMPTY: Log[Any] = Log()
"""No conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRun:
    """A run that was accepted and has not started."""

    run_id: str
    parent_run_id: str | None
    root_run_id: str | None
    prompt: Message | None
    history: tuple[Message, ...]
    budget: Budget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingInput:
    """A steer or a follow-up that was accepted and has not been delivered."""

    input_id: str
    run_id: str
    mode: InputMode
    prompt: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class CallState:
    """One tool call of the turn in progress."""

    call: ToolCall
    """As pinned by `tool.requested`; before that, as the model wrote it."""
    index: int
    stage: Stage = "proposed"
    execution: int = 0
    incarnation: int = 0
    """Which started the execution."""
    started_at: int = 0
    expires_at: int | None = None
    idempotency_key: str = ""
    tool_hash: str = ""
    """Of the tool as it was when the call was pinned, or its approval last asked for."""
    outcome: Outcome | None = None
    text: str = ""
    media: tuple[Media, ...] = ()


@dataclass(slots=True)
class RunState:
    """The run in progress."""

    run_id: str
    parent_run_id: str | None = None
    root_run_id: str | None = None
    started_at: int = 0
    deadline: float | None = None
    definition: str = ""
    budget: Budget | None = None
    paused_at: int | None = None
    paused: int = 0
    """Nanoseconds spent paused, before `paused_at`."""
    recoveries: int = 0
    since: int = 0
    """Where in the transcript its own messages begin, behind those that it was given as history."""
    turn: int = 0
    attempt: int = 0
    """Of this turn: the last one started."""
    attempt_open: bool = False
    provider: str = ""
    model: str = ""
    """Of the last attempt started."""
    reserved: Decimal | None = None
    reserved_usage: Usage = NO_USAGE
    price_source: str | None = None
    """What the attempt owes if nobody ever reports on it, and by which prices."""
    capped: str | None = None
    """The scope whose budget has lowered what the attempt's answer may have."""
    scopes: tuple[str, ...] = ()
    """In which the attempt has reserved something that is not settled."""
    estimated_tokens: int = 0
    """Of its request, before calibration; 0 = nobody knows, or another measure."""
    context_window: int | None = None
    compacting: Compacted | None = None
    """A summary is being made: what the view will leave out then."""
    compacting_since: int = 0
    overflows: int = 0
    """Requests of this turn, to this model, that were too long for it."""
    overflowed: bool = False
    """The last one was, and nothing was done about it yet."""
    model_index: int = 0
    """Which of the agent's models: 0, then the fallbacks."""
    failures: int = 0
    """Attempts at this model that failed in a row."""
    retry_after: float | None = None
    failed_at: int = 0
    asking: bool = False
    """The turn's model call has not been answered yet."""
    calls: tuple[CallState, ...] = ()
    stop_reason: StopReason = "end_turn"
    tool_calls: int = 0
    """Of the whole run."""
    echoes: tuple[str, ...] = ()
    """What the last turns did and what came of it, as hashes."""
    nudged: bool = False
    """The model was told that it goes round in circles, and has done little else since."""
    usage: Usage = NO_USAGE
    cost: Decimal | None = Decimal(0)
    spent: Amount = NOTHING
    text: str = ""
    ending: RunStatus | None = None
    """Set by `run.cancelling`: no new effect starts; the run ends so when all is answered, or the grace is over."""
    ending_reason: str | None = None
    ending_at: int = 0

    def call(self, call_id: str) -> CallState | None:
        """The call of this id in the turn in progress."""
        return next((call for call in self.calls if call.call.call_id == call_id), None)

    def due(self) -> int | None:
        """When the deadline strikes, in nanoseconds since 1970; `None` while paused or without one."""
        if self.deadline is None or self.paused_at is not None:
            return None
        return later(self.started_at, self.deadline) + self.paused


@dataclass(slots=True)
class AgentState:
    """Everything that is true of an agent, by its log up to `seq`."""

    key: str
    agent: str
    definition: Agent[Any] | None = field(default=None, compare=False, repr=False)
    """Not of the log: the live definition, by which `decide` decides."""
    next_definition: Agent[Any] | None = field(default=None, compare=False, repr=False)
    """Not of the log: takes over with the next run."""
    seq: int = 0
    incarnation: int = 0
    transcript: Log[Message] = field(default_factory=Log[Message])
    message_count: int = 0
    """Of the transcript, also while an agent that sleeps does not hold it."""
    queue: tuple[QueuedRun, ...] = ()
    inputs: tuple[PendingInput, ...] = ()
    run: RunState | None = None
    model: str | None = None
    """Set by `set_model`; `None` = the definition's."""
    usage: Usage = NO_USAGE
    cost: Decimal | None = Decimal(0)
    budget: Budget | None = None
    """Of the key, set by `start`."""
    spending: Spending = UNSPENT
    """What counts against it."""
    compacted: Compacted = NOTHING_COMPACTED
    """What the view leaves out of the transcript."""
    compactions: int = 0
    estimated_tokens: int = 0
    """Of the view, before calibration."""
    gauge: Gauge = UNTOLD
    parked: bool = False
    parked_because: str | None = None
    stopped: bool = False
    started_at: int = 0
    last_event_at: int = 0

    @property
    def activity(self) -> Activity:
        """One word for `status()`."""
        if self.parked:
            return "parked"
        if self.stopped:
            return "stopped"
        if self.run is None:
            return "idle"
        if self.run.ending is not None:
            return "cancelling"
        return "paused" if self.run.paused_at is not None else "running"

    @property
    def reserved(self) -> Amount | None:
        """For the attempt in flight, if there is one."""
        if self.run is None or not self.run.attempt_open:
            return None
        return Amount(self.run.reserved or Decimal(0), self.run.reserved_usage.total_tokens)

    def accounts(self, now: int) -> tuple[Account, ...]:
        """The agent's own scopes that have a budget."""
        run = self.run
        accounts: tuple[Account, ...] = ()
        if run is not None and run.budget is not None:
            accounts += (Account(f"run:{run.run_id}", run.budget, run.spent),)
        if self.budget is not None:
            accounts += (Account(f"key:{self.key}", self.budget, self.spending.of(self.budget.per, now)),)
        return accounts

    @property
    def shown(self) -> Sequence[Message]:
        """The view, before it is repaired."""
        return self.transcript if self.compacted == NOTHING_COMPACTED else Shown(self.transcript, self.compacted)

    @property
    def open_run_ids(self) -> list[str]:
        """Of the runs that wait, in their order, and then of the one in progress: as they are cancelled, so that none begins."""
        ids = [queued.run_id for queued in self.queue]
        return ids if self.run is None else [*ids, self.run.run_id]

    def has_open(self, run_id: str) -> bool:
        """Whether this run is in progress, or waits."""
        current = self.run is not None and self.run.run_id == run_id
        return current or any(queued.run_id == run_id for queued in self.queue)

    def copy(self) -> AgentState:
        """A draft of its own."""
        new = _copy(self)
        if self.run is not None:
            new.run = _copy(self.run)
        return new

    def apply(self, event: ev.EventBase) -> AgentState:
        """The state after one more event. This one stays as it is."""
        return self.copy().absorb(event)

    def fold(self, events: Iterable[ev.EventBase]) -> AgentState:
        """The state after more events."""
        new = self.copy()
        for event in events:
            new.absorb(event)
        return new

    def asleep(self) -> AgentState:
        """What is kept of it in memory while the agent sleeps: all but the conversation.

        What is small is made anew: else it would hold the memory between the messages it was read with.
        """
        new = self.copy()
        new.transcript = EMPTY
        new.usage = replace(self.usage)
        return new

    def absorb(self, event: ev.EventBase) -> AgentState:
        """Change this draft in place. Only for a copy that nobody else has seen.

        Raises:
            BrokenLog: The event is not the next one, or a newer version wrote it.
        """
        if not event.durable:
            if isinstance(event, ev.Custom) and event.seq > self.seq:
                raise BrokenLog(
                    f"agent {self.key!r}: event {event.seq} is a {event.name!r}, which this version does not know; upgrade nitinol"
                )
            return self
        if event.seq != self.seq + 1:
            raise BrokenLog(f"agent {self.key!r}: event {event.seq} follows {self.seq}; the log has a gap or a double")
        self.seq = event.seq
        change = _CHANGES.get(event.type)
        if change is not None:
            change(self, event)
        self.last_event_at = event.ts
        return self


FAR = 6e9
"""Seconds, about 190 years: what is due later than that is due then, so that nanoseconds fit into 64 bits."""


def later(at: int, seconds: float) -> int:
    """So many seconds after a moment, both in nanoseconds since 1970; `inf` is far away."""
    return at + int(min(seconds, FAR) * 1e9)


class BrokenLog(NitinolError):
    """A log that cannot be folded; the agent is parked, nothing is lost."""


def _copy(value: T) -> T:
    cls = type(value)
    return cls(*_FIELDS[cls](value))


def _running(state: AgentState, event: ev.EventBase) -> RunState:
    if state.run is None or state.run.run_id != event.run_id:
        raise BrokenLog(
            f"agent {state.key!r}: event {event.seq} ({event.type}) is of run {event.run_id!r}, which is not open"
        )
    return state.run


def _set_call(run: RunState, call_id: str | None, **changes: Any) -> None:
    calls = list(run.calls)
    for index, call in enumerate(calls):
        if call.call.call_id == call_id:
            calls[index] = replace(call, **changes)
            break
    run.calls = tuple(calls)


_CHANGES: dict[str, Callable[[AgentState, Any], None]] = {}


def _on(event_class: type[E]) -> Callable[[Callable[[AgentState, E], None]], Callable[[AgentState, E], None]]:
    def register(function: Callable[[AgentState, E], None]) -> Callable[[AgentState, E], None]:
        _CHANGES[event_class.type] = function
        return function

    return register


@_on(ev.AgentStarted)
def _agent_started(state: AgentState, event: ev.AgentStarted) -> None:
    state.incarnation = event.incarnation
    state.started_at = state.started_at or event.ts
    if state.run is not None and state.run.paused_at is None:
        gap = max(event.ts - state.last_event_at, 0)  # no process ran: that is not the run's time
        state.run.paused += gap
        state.run.compacting_since += gap
    state.parked = state.stopped = False


@_on(ev.AgentParked)
def _agent_parked(state: AgentState, event: ev.AgentParked) -> None:
    state.parked, state.parked_because = True, event.reason


@_on(ev.AgentResumed)
def _agent_resumed(state: AgentState, event: ev.AgentResumed) -> None:
    state.parked = False


@_on(ev.AgentStopped)
def _agent_stopped(state: AgentState, event: ev.AgentStopped) -> None:
    state.stopped = True


@_on(ev.AgentConfigured)
def _agent_configured(state: AgentState, event: ev.AgentConfigured) -> None:
    state.model = event.changes.get("model", state.model)
    if "key_budget" in event.changes:
        state.budget = Budget.from_json(json.loads(event.changes["key_budget"]))
    if state.run is not None:
        state.run.definition = event.changes.get("definition", state.run.definition)


@_on(ev.ConversationReset)
def _conversation_reset(state: AgentState, event: ev.ConversationReset) -> None:
    state.transcript = Log()
    state.message_count = 0
    state.compacted = NOTHING_COMPACTED
    state.estimated_tokens = 0


@_on(ev.RunQueued)
def _run_queued(state: AgentState, event: ev.RunQueued) -> None:
    assert event.run_id is not None
    state.queue += (
        QueuedRun(
            run_id=event.run_id,
            parent_run_id=event.parent_run_id,
            root_run_id=event.root_run_id,
            prompt=event.prompt,
            history=event.history,
            budget=Budget.from_json(event.budget),
        ),
    )


@_on(ev.RunStarted)
def _run_started(state: AgentState, event: ev.RunStarted) -> None:
    assert event.run_id is not None
    given = sum(len(queued.history) for queued in state.queue if queued.run_id == event.run_id)
    state.queue = tuple(queued for queued in state.queue if queued.run_id != event.run_id)
    state.run = RunState(
        run_id=event.run_id,
        parent_run_id=event.parent_run_id,
        root_run_id=event.root_run_id,
        started_at=event.ts,
        deadline=event.deadline,
        definition=event.definition,
        budget=Budget.from_json(event.budget),
        since=state.message_count + given,
    )


@_on(ev.RunPaused)
def _run_paused(state: AgentState, event: ev.RunPaused) -> None:
    _running(state, event).paused_at = event.ts


@_on(ev.RunResumed)
def _run_resumed(state: AgentState, event: ev.RunResumed) -> None:
    run = _running(state, event)
    run.recoveries = event.recoveries
    if run.paused_at is not None and event.reason != "recovered":
        run.paused += event.ts - run.paused_at
        run.paused_at = None


@_on(ev.RunCancelling)
def _run_cancelling(state: AgentState, event: ev.RunCancelling) -> None:
    run = _running(state, event)
    run.ending, run.ending_reason, run.ending_at = event.status, event.reason, event.ts
    if run.paused_at is not None:
        run.paused += event.ts - run.paused_at
        run.paused_at = None


@_on(ev.RunFinished)
def _run_finished(state: AgentState, event: ev.RunFinished) -> None:
    if state.run is not None and state.run.run_id == event.run_id:
        state.run = None
    state.queue = tuple(queued for queued in state.queue if queued.run_id != event.run_id)
    state.inputs = tuple(item for item in state.inputs if item.run_id != event.run_id)


@_on(ev.TurnStarted)
def _turn_started(state: AgentState, event: ev.TurnStarted) -> None:
    run = _running(state, event)
    run.turn = event.turn
    run.asking = True
    run.calls = ()
    run.attempt = run.failures = run.overflows = 0
    run.overflowed = False
    run.retry_after = run.compacting = None


@_on(ev.TurnFinished)
def _turn_finished(state: AgentState, event: ev.TurnFinished) -> None:
    run = _running(state, event)
    if event.echo:
        run.echoes = (*run.echoes, event.echo)[-ECHOES:]
        run.nudged = run.nudged and len(set(run.echoes)) <= 2
    run.calls = ()
    run.recoveries = 0


@_on(ev.MessageAppended)
def _message_appended(state: AgentState, event: ev.MessageAppended) -> None:
    message = event.message
    state.transcript = state.transcript.append(message)
    state.message_count += 1
    state.estimated_tokens += estimate_tokens(message)
    if message.role == "assistant" and state.run is not None and state.run.asking and event.attempt:
        run = state.run
        run.asking = False
        run.text = message.text or run.text
        run.calls = tuple(CallState(call=call, index=index) for index, call in enumerate(message.tool_calls))
        run.tool_calls += len(run.calls)


@_on(ev.ModelStarted)
def _model_started(state: AgentState, event: ev.ModelStarted) -> None:
    run = _running(state, event)
    run.attempt, run.attempt_open = event.attempt, True
    run.provider, run.model, run.reserved = event.provider, event.model, event.reserved
    output = event.max_output_tokens or 0
    run.reserved_usage = Usage(input_tokens=max(event.reserved_tokens - output, 0), output_tokens=output)
    run.price_source, run.capped = event.price_source, event.capped
    run.context_window = event.context_window
    run.estimated_tokens = event.estimated_tokens if event.measure == MEASURE else 0
    if event.compacting is not None and run.compacting is None:
        run.compacting_since = event.ts
    run.compacting = event.compacting
    state.gauge = state.gauge.asks(f"{event.provider}:{event.model}")


@_on(ev.BudgetReserved)
def _budget_reserved(state: AgentState, event: ev.BudgetReserved) -> None:
    _running(state, event).scopes += (event.scope,)


@_on(ev.BudgetSettled)
def _budget_settled(state: AgentState, event: ev.BudgetSettled) -> None:
    run = _running(state, event)
    run.scopes = tuple(scope for scope in run.scopes if scope != event.scope)


@_on(ev.ModelFinished)
def _model_finished(state: AgentState, event: ev.ModelFinished) -> None:
    run = _running(state, event)
    run.attempt_open, run.stop_reason, run.failures, run.retry_after = False, event.stop_reason, 0, None


@_on(ev.ModelFailed)
def _model_failed(state: AgentState, event: ev.ModelFailed) -> None:
    run = _running(state, event)
    run.attempt, run.attempt_open = event.attempt, False  # also of one that never started: its number is used
    if event.error_type == "ContextOverflow" and run.compacting is None:
        run.overflows += 1
        run.overflowed = True
        if run.estimated_tokens:
            state.gauge = state.gauge.refused(run.estimated_tokens)
    elif event.error_type not in ("Interrupted", "Cancelled"):  # by a crash or a stop: no failure of the model's
        run.failures += 1
        run.failed_at, run.retry_after = event.ts, event.retry_after


@_on(ev.ModelFallback)
def _model_fallback(state: AgentState, event: ev.ModelFallback) -> None:
    run = _running(state, event)
    run.model_index += 1
    run.failures = run.overflows = 0
    run.retry_after, run.overflowed = None, False


@_on(ev.ToolRequested)
def _tool_requested(state: AgentState, event: ev.ToolRequested) -> None:
    run = _running(state, event)
    call = run.call(event.call_id or "")
    if call is None:
        raise BrokenLog(
            f"agent {state.key!r}: event {event.seq} asks for call {event.call_id!r}, which the model did not make"
        )
    pinned = call.call.replace(name=event.name, arguments=event.arguments)
    _set_call(
        run,
        event.call_id,
        call=pinned,
        stage="waiting",
        idempotency_key=event.idempotency_key,
        tool_hash=event.tool_hash,
    )


@_on(ev.ApprovalRequested)
def _approval_requested(state: AgentState, event: ev.ApprovalRequested) -> None:
    changes: dict[str, Any] = {"tool_hash": event.tool_hash} if event.tool_hash else {}
    _set_call(_running(state, event), event.call_id, stage="approval", expires_at=event.expires_at, **changes)


@_on(ev.ApprovalResolved)
def _approval_resolved(state: AgentState, event: ev.ApprovalResolved) -> None:
    run = _running(state, event)
    call = run.call(event.call_id or "")
    if call is not None:
        pinned = call.call if event.arguments is None else call.call.replace(arguments=event.arguments)
        _set_call(run, event.call_id, call=pinned, stage="waiting")


@_on(ev.ToolStarted)
def _tool_started(state: AgentState, event: ev.ToolStarted) -> None:
    _set_call(
        _running(state, event), event.call_id, stage="running", execution=event.execution, incarnation=event.incarnation,
        started_at=event.ts,
    )  # fmt: skip


@_on(ev.ToolFinished)
def _tool_finished(state: AgentState, event: ev.ToolFinished) -> None:
    _set_call(
        _running(state, event), event.call_id, stage="done", outcome=event.outcome, text=event.text, media=event.media
    )


@_on(ev.InputQueued)
def _input_queued(state: AgentState, event: ev.InputQueued) -> None:
    assert event.run_id is not None
    state.inputs += (PendingInput(input_id=event.input_id, run_id=event.run_id, mode=event.mode, prompt=event.prompt),)


@_on(ev.InputDelivered)
def _input_delivered(state: AgentState, event: ev.InputDelivered) -> None:
    state.inputs = tuple(item for item in state.inputs if item.input_id != event.input_id)


@_on(ev.InputDropped)
def _input_dropped(state: AgentState, event: ev.InputDropped) -> None:
    state.inputs = tuple(item for item in state.inputs if item.input_id != event.input_id)


@_on(ev.UsageUpdated)
def _usage_updated(state: AgentState, event: ev.UsageUpdated) -> None:
    state.usage, state.cost = event.agent_usage, event.agent_cost
    amount = Amount(event.cost or Decimal(0), event.usage.total_tokens)
    state.spending = state.spending.plus(amount, event.ts)
    run = state.run
    if run is None or run.run_id != event.run_id:
        return
    run.usage, run.cost = event.run_usage, event.run_cost
    run.spent += amount
    if event.usage.input_tokens and not event.estimated and run.estimated_tokens and run.attempt == event.attempt:
        state.gauge = state.gauge.told(event.usage.input_tokens, run.estimated_tokens)


@_on(ev.ContextCompacted)
def _context_compacted(state: AgentState, event: ev.ContextCompacted) -> None:
    state.compacted = event.view
    state.compactions += 1
    state.estimated_tokens = size_of(state.transcript, event.view)
    run = state.run
    if run is None or not run.overflowed:
        state.gauge = state.gauge.rises()
    if run is not None:
        run.compacting, run.retry_after = None, None
        run.overflowed, run.failures = False, 0


@_on(ev.LoopDetected)
def _loop_detected(state: AgentState, event: ev.LoopDetected) -> None:
    run = _running(state, event)
    run.nudged, run.echoes = True, ()


ECHOES = 5
"""Turns that a circle is looked for in: three of one kind, and two between."""


_FIELDS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    cls: attrgetter(*(item.name for item in fields(cls))) for cls in (AgentState, RunState)
}

__all__ = [
    "ECHOES",
    "FOLD",
    "AgentState",
    "BrokenLog",
    "CallState",
    "Log",
    "PendingInput",
    "QueuedRun",
    "RunState",
]
