"""The machine: what an input means (`decide`), and what should be in flight (`effects`). Pure: no I/O, clock or thread.

The data goes one way round: an input and the state give events; events change the state; the state says which effects
should be in flight; their outcomes are inputs again. Recovery is not a special path: fold, `Opened`, then `effects`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import pydantic

from nitinol import events as ev
from nitinol.agent import Agent, parse_output
from nitinol.budget import Refusal
from nitinol.compaction import DEFAULT_WINDOW, Compaction, Plan, handoff_of, plan, size_of
from nitinol.decision import Decision
from nitinol.errors import AgentBusy, AlreadyResolved, ConfigurationError, NotFound
from nitinol.inputs import (
    Add,
    Answered,
    AttemptReady,
    Cancel,
    Configure,
    Crashed,
    Done,
    Failed,
    Granted,
    Input,
    Limit,
    Look,
    Opened,
    Park,
    Prepared,
    Reset,
    Resolve,
    Send,
    Stop,
    Tick,
    TooLong,
    Warn,
)
from nitinol.messages import Compacted, Message, Part, StopReason, Text, ToolCall
from nitinol.state import AgentState, CallState, RunState, later
from nitinol.usage import MEASURE, NO_USAGE

GRACE = 2.0
"""Seconds that calls in flight have to end after a cancel; then they are `uncertain`."""
MAX_CALLS = 128
"""Calls of one answer that run. A model decides how many it asks for; a turn of thousands would keep others waiting."""
FULL = 0.98
"""How much of a window request and answer fill when the answer was cut off by its end: servers count a little apart."""
MAX_RECOVERIES = 2
"""A run that was open at work in more deaths than this is sealed."""

# ---- effects: what should be in flight


@dataclass(frozen=True, slots=True)
class CallModel:
    """An attempt at the model."""

    run_id: str
    turn: int
    attempt: int
    model_index: int
    not_before: int = field(compare=False)
    """Nanoseconds since 1970; 0 = at once."""
    compactions: int = 0
    """Of its agent so far: after one more, the request is another."""


@dataclass(frozen=True, slots=True)
class PrepareTool:
    """The `before_tool` hooks see a call."""

    run_id: str
    turn: int
    call_id: str
    index: int


@dataclass(frozen=True, slots=True)
class RunTool:
    """A tool call that may run."""

    run_id: str
    turn: int
    call_id: str
    index: int


@dataclass(frozen=True, slots=True)
class AskApproval:
    """A person's decision is awaited; `approval.requested` told so."""

    run_id: str
    turn: int
    call_id: str
    index: int


@dataclass(frozen=True, slots=True)
class Wait:
    """A `Tick` is due."""

    until: int
    """Nanoseconds since 1970."""


Effect: TypeAlias = CallModel | PrepareTool | RunTool | AskApproval | Wait


def effects(state: AgentState) -> set[Effect]:
    """What should be in flight. The actor starts what is not, and stops what is in flight and not here."""
    run, agent = state.run, state.definition
    wanted: set[Effect] = set()
    if run is None or agent is None or state.parked or state.stopped:
        return wanted
    wanted.update(Wait(until) for until in _waits(run))
    if run.ending is not None:
        return wanted
    if run.asking:
        attempt = run.attempt if run.attempt_open else run.attempt + 1
        not_before = _retry_at(run, agent)
        wanted.add(CallModel(run.run_id, run.turn, attempt, run.model_index, not_before, state.compactions))
    barrier = False
    for call in run.calls:
        if call.stage == "done":
            continue
        tool = agent.tool(call.call.name)
        alone = tool is not None and tool.serial
        at = (run.run_id, run.turn, call.call.call_id, call.index)
        match call.stage:
            case "proposed":
                wanted.add(PrepareTool(*at))
            case "approval":
                wanted.add(AskApproval(*at))
            case _:
                # A hook may make a serial call of one that was not; what runs by then goes on, and is waited for.
                if call.stage == "running" or not (barrier or (alone and _others_first(run, call))):
                    wanted.add(RunTool(*at))
        barrier = barrier or alone
    return wanted


def next_due(state: AgentState) -> int | None:
    """When the next `Tick` is due, in nanoseconds since 1970, whoever is there to see it; `None` = never."""
    run = state.run
    return None if run is None or state.parked else min(_waits(run), default=None)


def only_waits(state: AgentState) -> bool:
    """Whether the run in progress waits for nothing but people: no incarnation would have anything to do for it."""
    run = state.run
    return (
        run is not None
        and run.paused_at is not None
        and run.ending is None
        and all(call.stage in ("approval", "done") for call in run.calls)
    )


def _waits(run: RunState) -> list[int]:
    """When the run must be looked at, come what may."""
    if run.ending is not None:
        return [run.ending_at + int(GRACE * 1e9)]
    due = run.due()
    waits = [] if due is None else [due]
    waits += [call.expires_at for call in run.calls if call.stage == "approval" and call.expires_at is not None]
    return waits


def _others_first(run: RunState, call: CallState) -> bool:
    return any(
        other.stage == "running" or (other.stage != "done" and other.index < call.index)
        for other in run.calls
        if other.index != call.index
    )


def _retry_at(run: RunState, agent: Agent[Any]) -> int:
    if not run.failures or run.attempt_open:
        return 0
    return run.failed_at + int(_retry_delay(agent, run) * 1e9)


def _retry_delay(agent: Agent[Any], run: RunState) -> float:
    # The jitter is chance that the log already holds: it differs by run, attempt and nanosecond, and a fold repeats it.
    jitter = random.Random(f"{run.run_id}/{run.turn}/{run.attempt}/{run.failed_at}").random()
    return agent.retry.delay(run.failures, run.retry_after, jitter)


def plan_for(state: AgentState, model: str, estimated_tokens: int, context_window: int) -> Plan | None:
    """What is to be done before a request of so many tokens is sent; `None` = it is sent as it is.

    Args:
        state: With the run in progress.
        model: That it goes to, as `provider:model`.
        estimated_tokens: Of the whole request, by our estimate before calibration.
        context_window: Of its model.

    Returns:
        To *summarise* is an attempt of its own (`AttemptReady.compacting`); anything else is `TooLong`.
    """
    run, agent, gauge, size = state.run, state.definition, state.gauge.asks(model), state.estimated_tokens
    if run is None or agent is None or agent.compaction is None:
        return None
    if run.compacting is not None:
        return Plan("summarise", run.compacting)
    room = gauge.room(agent.compaction, context_window, estimated_tokens - size)
    if size <= room and not run.overflowed:
        return None
    must = run.overflowed or gauge.tokens(estimated_tokens) > context_window
    found = plan(
        state.transcript, state.compacted, agent.compaction, room=room, size=size, since=run.since, must=must
    )  # fmt: skip
    # A server is the better judge of a request that only a bold calibration finds too long.
    hopeless = run.overflowed or min(gauge.tokens(estimated_tokens), estimated_tokens) > context_window
    return found or (Plan("give up", state.compacted) if hopeless else None)


def summary_due(state: AgentState) -> int | None:
    """When a summary that is being made must be there, in nanoseconds since 1970."""
    run, agent = state.run, state.definition
    if run is None or run.compacting is None:
        return None
    policy = (agent.compaction if agent is not None else None) or Compaction()
    return later(run.compacting_since, policy.deadline)


# ---- decide


def decide(state: AgentState, input: Input, now: int) -> list[ev.Event]:
    """What an input means: the events of one commit, in order, possibly none.

    The heart, and `step` without the state after it; agents call `step`, since a decision folds its events in any case.

    Args:
        state: By which to decide. It is not changed.
        input: What happened.
        now: Nanoseconds since 1970; stands in every event as its `ts`.

    Raises:
        AgentBusy, AlreadyResolved, NotFound: The input is refused; nothing happened.
    """
    return step(state, input, now)[0]


def step(state: AgentState, input: Input, now: int) -> tuple[list[ev.Event], AgentState]:
    """As `decide`, with the state after the events: the same as folding them. What agents call."""
    decision = Decision(state, now)
    _DECIDE[type(input)](decision, input)
    return decision.events, decision.state if decision.events else state


def _opened(d: Decision, input: Opened) -> None:
    if input.woken:
        return
    recovered, stopped = d.state.incarnation > 0, d.state.stopped
    if d.state.parked and input.by_hand:
        d.emit(ev.AgentResumed)
    if input.restarts:
        d.emit(ev.AgentRestarted, restarts=input.restarts, delay=input.delay)
    d.emit(ev.AgentStarted, run_id=None, recovered=recovered, incarnation=d.state.incarnation + 1)
    run = d.state.run
    if run is None or d.state.definition is None:
        return d.start_next()
    lost = [
        call
        for call in run.calls
        if call.stage == "running" and (call.call.call_id, call.execution) not in input.adopted
    ]
    at_work = run.attempt_open or bool(lost)
    recoveries = run.recoveries + (at_work and not stopped and not input.suspended)  # a clean stop never counts
    d.emit(ev.RunResumed, reason="recovered", recoveries=recoveries)
    if run.attempt_open and not input.reported:
        d.charge_lost_attempt("the agent was restarted")
    for call in lost:
        tool = d.agent.tool(call.call.name)
        if run.ending is not None or tool is None or tool.replay == "never":
            d.answer(
                call,
                "uncertain",
                "The call was interrupted while it ran; whether it took effect is not known. Check before you repeat it.",
            )
    if recoveries > MAX_RECOVERIES:
        if run.ending is None:
            d.emit(
                ev.RunCancelling,
                by="supervisor",
                status="sealed",
                reason=f"the agent died {recoveries} times at work on this run",
            )
        return d.settle(force=True)
    if run.ending is not None:
        return d.settle()
    if run.definition != d.agent.digest:
        _drifted(d)
    if not run.asking:
        d.after_answer()


def _drifted(d: Decision) -> None:
    """The run began under another definition. What was pinned stays; what a person agreed to is asked anew, if it changed."""
    d.emit(ev.AgentConfigured, changes={"definition": d.agent.digest})
    for call in d.run.calls:
        tool = d.agent.tool(call.call.name)
        if call.stage == "done" or call.stage == "proposed":
            continue
        if tool is None:
            d.answer(call, "error", f"There is no tool {call.call.name!r} any more.")
        elif tool.approval is not None and tool.digest != call.tool_hash:
            d.ask_approval(call, tool.approval, tool.digest)


def _crashed(d: Decision, input: Crashed) -> None:
    d.emit(ev.AgentCrashed, error_type=input.error_type, error=input.error)


def _park(d: Decision, input: Park) -> None:
    d.emit(ev.AgentParked, restarts=input.restarts, reason=input.reason)


def _send(d: Decision, input: Send) -> None:
    state = d.state
    if state.has_open(input.run_id):
        return  # the same run_id is the same run
    ahead = len(state.open_run_ids)
    if ahead and d.agent.busy == "reject":
        raise AgentBusy(
            f"agent {state.key!r} is busy with run {state.run.run_id if state.run else '?'!r}, and its definition says busy='reject'"
        )
    if state.run is not None and len(state.queue) >= d.agent.max_pending:
        raise AgentBusy(f"agent {state.key!r} has {len(state.queue)} runs waiting; max_pending={d.agent.max_pending}")
    d.emit(
        ev.RunQueued,
        run_id=input.run_id,
        parent_run_id=input.parent_run_id,
        root_run_id=input.root_run_id or input.run_id,
        prompt=input.prompt,
        pending_count=ahead,
        history=input.history,
        budget=None if input.budget is None else input.budget.to_json(),
    )
    d.start_next()


def _known(d: Decision, run_id: str) -> Literal["open", "queued"]:
    if d.state.run is not None and d.state.run.run_id == run_id:
        return "open"
    if any(queued.run_id == run_id for queued in d.state.queue):
        return "queued"
    raise AlreadyResolved(f"run {run_id!r} of {d.state.key!r} has ended")


def _add(d: Decision, input: Add) -> None:
    if _known(d, input.run_id) == "open" and d.run.ending is not None:
        raise AlreadyResolved(f"run {input.run_id!r} of {d.state.key!r} is ending")
    d.emit(ev.InputQueued, run_id=input.run_id, input_id=input.input_id, mode=input.mode, prompt=input.prompt)


def _cancel(d: Decision, input: Cancel) -> None:
    queued = next((queued for queued in d.state.queue if queued.run_id == input.run_id), None)
    if queued is None:
        if input.status != "cancelled" and (d.state.run is None or d.state.run.run_id != input.run_id):
            return  # a hook's word that comes too late; there is nobody to refuse it to
        _known(d, input.run_id)
        return d.end(input.by, input.status, input.reason)
    of: dict[str, Any] = {
        "run_id": queued.run_id,
        "parent_run_id": queued.parent_run_id,
        "root_run_id": queued.root_run_id,
    }
    for item in d.state.inputs:
        if item.run_id == input.run_id:
            d.emit(ev.InputDropped, **of, input_id=item.input_id, reason="the run was cancelled")
    d.emit(
        ev.RunFinished, **of, status=input.status, text="", turns=0, usage=NO_USAGE, cost=Decimal(0),
        duration=0.0, error=input.reason,
    )  # fmt: skip


def _resolve(d: Decision, input: Resolve) -> None:
    if _known(d, input.run_id) == "queued":
        raise NotFound(f"run {input.run_id!r} has not started; it waits for no approval")
    call = d.run.call(input.call_id)
    if call is None or call.stage != "approval":
        raise AlreadyResolved(f"call {input.call_id!r} of run {input.run_id!r} waits for no approval")
    if input.arguments is not None and not isinstance(input.arguments, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"arguments={input.arguments!r} must be a dict; the call still waits for approval")
    arguments = None if input.arguments is None else dict(input.arguments)
    tool = d.agent.tool(call.call.name)
    if arguments is not None and tool is not None and (wrong := tool.misfit(arguments)) is not None:
        raise ConfigurationError(f"the call still waits for approval: {wrong}")
    d.emit(
        ev.ApprovalResolved,
        call_id=input.call_id,
        decision=input.decision,
        arguments=arguments,
        by=input.by,
        reason=input.reason,
    )
    if input.decision == "deny":
        d.answer(call, "denied", f"The call was denied by {input.by}" + (f": {input.reason}" if input.reason else "."))
    d.after_answer()


def _look(d: Decision, input: Look) -> None:
    """No event."""


def _reset(d: Decision, input: Reset) -> None:
    _refuse_if_open(d, "reset")
    d.emit(ev.ConversationReset)


def _configure(d: Decision, input: Configure) -> None:
    if input.idle:
        _refuse_if_open(d, "set_model")
    d.emit(ev.AgentConfigured, changes=dict(input.changes), run_id=None)
    d.state.next_definition = input.definition
    if d.state.run is None:
        d.adopt_definition()


def _limit(d: Decision, input: Limit) -> None:
    if input.budget != d.state.budget:
        d.emit(ev.AgentConfigured, changes={"key_budget": json.dumps(input.budget.to_json())}, run_id=None)


def _warn(d: Decision, input: Warn) -> None:
    d.warn(input.scope, input.limit, input.spent, input.fraction)


def _refuse_if_open(d: Decision, what: str) -> None:
    if d.state.run is not None or d.state.queue:
        raise AgentBusy(f"agent {d.state.key!r} has an open run; {what} needs an idle agent: wait for it, or cancel it")


def _stop(d: Decision, input: Stop) -> None:
    run = d.state.run
    if (d.state.parked or input.forgotten) and run is not None and run.attempt_open:
        d.charge_lost_attempt("the agent was forgotten" if input.forgotten else "the agent was parked")
    if not d.state.stopped:
        d.emit(ev.AgentStopped, reason=input.reason)


def _is_current(d: Decision, input: AttemptReady | TooLong | Answered | Failed | Prepared | Granted | Done) -> bool:
    run = d.state.run
    return run is not None and run.run_id == input.run_id and run.turn == input.turn


def _is_next(d: Decision, input: AttemptReady | TooLong) -> bool:
    """Whether it is of the attempt that is to be made now."""
    run = d.state.run
    current = run is not None and _is_current(d, input) and run.asking and run.ending is None
    if d.state.stopped:
        return False  # the stop has overtaken it, and nobody would fly it
    return run is not None and current and not run.attempt_open and run.attempt + 1 == input.attempt


def _too_long(d: Decision, input: TooLong) -> None:
    if not _is_next(d, input):
        return
    model = f"{input.provider}:{input.model}"
    found = plan_for(d.state, model, input.estimated_tokens, input.context_window)
    if found is None:
        return  # whoever says so has seen another state
    if found.tier != "give up":
        return d.compact(found.compacted, fallback="truncate" if found.tier == "truncate" else None)
    if d.fall_back(input.attempt, model):
        return
    needed = d.state.gauge.tokens(input.estimated_tokens)
    d.finish(
        "failed",
        f"the conversation is too long for {model}, and what must stay of it cannot be shortened: about {needed} tokens, "
        f"for a window of {input.context_window}; say less at once, give a model with a larger window, or ref.reset()",
        error_type="ContextOverflow",
    )


def _attempt_ready(d: Decision, input: AttemptReady) -> None:
    if not _is_next(d, input):
        return
    grant = input.grant
    if isinstance(grant, Refusal):
        return _exceed(d, grant)
    if input.added or input.removed:
        d.emit(ev.ContextRepaired, added=input.added, removed=input.removed)
    d.emit(
        ev.ModelStarted, attempt=input.attempt, provider=input.provider, model=input.model,
        reserved=None if input.price_source is None else grant.amount.usd, max_output_tokens=grant.max_output_tokens,
        reserved_tokens=grant.amount.tokens, capped=grant.capped, estimated_tokens=input.estimated_tokens,
        context_window=input.context_window, compacting=input.compacting, price_source=input.price_source,
        measure=MEASURE,
    )  # fmt: skip
    for scope in grant.scopes:
        d.emit(
            ev.BudgetReserved, attempt=input.attempt, scope=scope, amount=grant.amount.usd, tokens=grant.amount.tokens
        )  # fmt: skip


def _exceed(d: Decision, refusal: Refusal) -> None:
    """A budget does not hold the next request."""
    d.emit(
        ev.BudgetExceeded, scope=refusal.scope, limit=refusal.limit, spent=refusal.spent, needed=refusal.needed
    )  # fmt: skip
    scope = refusal.scope.partition(":")[0]
    d.finish(
        "budget_exceeded",
        f"the {scope}'s budget of {refusal.limit} does not hold the next request, which may need {refusal.needed}, even"
        f" with a short answer; spent: {refusal.spent}. {_MORE[scope].format(key=d.state.key)}",
    )


_MORE = {
    "run": "Agent(budget=) or send(budget=) gives a run more.",
    "key": "rt.start(agent, key={key!r}, budget=…) gives the key more.",
    "store": "Runtime(budget=) gives all of them more.",
}


def _answered(d: Decision, input: Answered) -> None:
    if not _is_current(d, input) or not d.run.attempt_open or d.run.attempt != input.attempt:
        return
    response = input.response
    message = _tidy(response.message)
    if _is_cut_by_window(d, input):
        return _failed(d, _overflow(input, message.text))
    d.emit(
        ev.ModelFinished, attempt=input.attempt, stop_reason=response.stop_reason, response_id=response.response_id,
        duration=input.duration,
    )  # fmt: skip
    d.charge(input.provider, input.model, input.usage, input.cost, input.price_source, input.attempt, input.estimated)
    if d.run.compacting is not None:
        return _summarised(d, d.run.compacting, message, response.stop_reason)
    if d.run.ending is not None:
        # A cancel was committed first: the answer is paid for, and discarded.
        d.emit(ev.ModelDiscarded, attempt=input.attempt, characters=len(message.text))
        return d.settle(text=message.text)
    if message.parts:
        d.emit(ev.MessageAppended, attempt=input.attempt, message=message)
    if d.run.capped and response.stop_reason == "max_tokens":
        return _cut_short(d)
    refused = response.stop_reason in ("refusal", "content_filter")
    why = f"the model ended with {response.stop_reason}"
    if d.run.calls:
        return d.end("model", "failed", why) if refused else _begin_calls(d)
    d.emit(ev.TurnFinished, stop_reason=response.stop_reason, tool_calls=0)
    if refused:
        return d.finish("failed", why, error_type="ContentRefused")
    if response.stop_reason == "pause":
        return d.next_turn()
    if follow_ups := d.pending("follow_up"):
        return d.next_turn(*follow_ups)
    wrong = _misfit(d.agent.output, message.text)
    if wrong is not None:
        d.emit(
            ev.MessageAppended,
            message=Message(
                role="user",
                parts=(Text(f"The answer does not fit the schema: {wrong}. Answer again, with JSON only."),),
            ),
        )
        return d.next_turn()
    d.finish("completed")


def _summarised(d: Decision, planned: Compacted, message: Message, stop_reason: StopReason) -> None:
    """The answer is the handoff that stands for the older messages, if it is one."""
    if d.run.ending is not None:
        return d.settle()
    policy = d.agent.compaction or Compaction()
    room = d.state.gauge.room(policy, d.run.context_window or DEFAULT_WINDOW, 0)
    handoff = handoff_of(message.text, room)
    then = replace(planned, handoff=handoff)
    if not handoff or stop_reason in ("refusal", "content_filter"):
        return d.truncate(f"the model answered none, and ended with {stop_reason}")
    if size_of(d.state.transcript, then) >= d.state.estimated_tokens:
        return d.truncate("it is as long as what it stands for")
    d.compact(then)


def _is_cut_by_window(d: Decision, input: Answered) -> bool:
    """Whether an answer ends where the model's window does, and a shorter view would leave room for more of it."""
    run, state, policy = d.run, d.state, d.agent.compaction
    cut = input.response.stop_reason == "max_tokens" and not input.estimated and run.context_window is not None
    if not cut or policy is None or run.compacting is not None or run.ending is not None or run.overflows or run.capped:
        return False
    if d.agent.max_output_tokens is not None and input.usage.output_tokens >= d.agent.max_output_tokens:
        return False
    size = state.estimated_tokens
    full = input.usage.total_tokens >= (run.context_window or 0) * FULL
    shorter = plan(state.transcript, state.compacted, policy, room=size * 3 // 4, size=size, since=run.since, must=True)
    return full and shorter is not None


def _overflow(input: Answered, text: str) -> Failed:
    return Failed(
        run_id=input.run_id, turn=input.turn, attempt=input.attempt, provider=input.provider, model=input.model,
        error_type="ContextOverflow", error="the answer was cut off where the model's context window ends",
        retryable=False, usage=input.usage, estimated=input.estimated, cost=input.cost, price_source=input.price_source,
        text=text, characters=len(text),
    )  # fmt: skip


def _cut_short(d: Decision) -> None:
    """An answer that a budget has cut short: no call in it runs, and what would follow has no money."""
    scope = d.run.capped or ""
    account = next((account for account in d.state.accounts(d.now) if account.scope == scope), None)
    limit, spent = ("", "") if account is None else (account.budget.limit, str(account.spent))
    d.emit(ev.BudgetExceeded, scope=scope, limit=limit, spent=spent, needed="a longer answer")
    if not d.run.calls:
        d.emit(ev.TurnFinished, stop_reason="max_tokens", tool_calls=0)
    d.end(
        "budget",
        "budget_exceeded",
        f"the answer was cut short: the {scope.partition(':')[0]}'s budget paid for no longer one",
    )


def _begin_calls(d: Decision) -> None:
    """The model asked for tools: pin each call, or leave it to the `before_tool` hooks (see `effects`)."""
    run, agent = d.run, d.agent
    if agent.max_tool_calls is not None and run.tool_calls > agent.max_tool_calls:
        reason = f"the run asked for {run.tool_calls} tool calls; max_tool_calls={agent.max_tool_calls}"
        return d.end("limit", "max_tool_calls", reason)
    for call in run.calls[MAX_CALLS:]:
        d.answer(call, "error", f"Not run: one answer may ask for {MAX_CALLS} calls. Ask again, for fewer.")
    if agent.has_hook("before_tool"):
        return
    for call in run.calls:
        if call.stage == "proposed":
            d.request(call)
    d.after_answer()


def _prepared(d: Decision, input: Prepared) -> None:
    if not _is_current(d, input) or d.run.ending is not None:
        return
    call = d.run.call(input.call_id)
    if call is None or call.stage != "proposed":
        return
    d.request(CallState(call=input.call, index=call.index), input.blocked)
    d.after_answer()


def _granted(d: Decision, input: Granted) -> None:
    if not _is_current(d, input) or d.run.ending is not None:
        return
    call = d.run.call(input.call_id)
    tool = d.agent.tool(call.call.name) if call is not None else None
    if call is None or tool is None or call.stage not in ("waiting", "running"):
        return
    if call.stage == "running" and (tool.replay == "never" or call.incarnation == d.state.incarnation):
        return  # it runs already; only a crash makes a safe one run again
    isolation = "async" if tool.is_async else tool.isolation
    d.emit(
        ev.ToolStarted,
        call_id=input.call_id,
        name=tool.name,
        isolation=isolation,
        timeout=tool.timeout,
        execution=call.execution + 1,
    )


def _done(d: Decision, input: Done) -> None:
    if not _is_current(d, input):
        return
    call = d.run.call(input.call_id)
    if call is None or call.stage == "done" or (input.execution and call.execution != input.execution):
        return
    if d.state.stopped and d.run.ending is None and input.outcome in ("cancelled", "uncertain"):
        return  # the stop's own doing: the next start decides, by the call's stage and its tool's `replay`
    d.answer(call, input.outcome, input.text, input)
    d.after_answer()


def _failed(d: Decision, input: Failed) -> None:
    if not _is_current(d, input) or not d.run.asking:
        return
    run, agent = d.run, d.agent
    open_now = run.attempt_open and run.attempt == input.attempt
    if not open_now and (run.attempt_open or run.attempt + 1 != input.attempt or run.ending is not None):
        return
    d.emit(
        ev.ModelFailed,
        attempt=input.attempt,
        error_type=input.error_type,
        error=input.error,
        status_code=input.status_code,
        retry_after=input.retry_after,
        request_id=input.request_id,
        retryable=input.retryable,
    )
    if input.usage is not None:
        d.charge(
            input.provider, input.model, input.usage, input.cost, input.price_source, input.attempt, input.estimated
        )
    if input.characters:
        d.emit(ev.ModelDiscarded, attempt=input.attempt, characters=input.characters)
    if run.ending is not None:
        return d.settle(text=input.text)
    if d.state.stopped or input.error_type == "Cancelled":
        return  # suspended, or cut off by a crash of its agent: the next start goes on from here
    delay = _retry_delay(agent, run)
    due = run.due()
    if due is not None and d.now >= due:
        return d.finish("deadline_exceeded", f"the deadline of {run.deadline:g} s has passed", text=input.text)
    if run.overflowed and run.overflows == 1 and run.compacting is None and agent.compaction is not None:
        d.emit(ev.ModelRetrying, attempt=input.attempt, delay=0.0)  # shorter: see `plan_for`
        return
    dues = [moment for moment in (due, summary_due(d.state)) if moment is not None]
    in_time = not dues or d.now + int(delay * 1e9) < min(dues)
    if input.retryable and run.failures < agent.retry.attempts and in_time:
        d.emit(ev.ModelRetrying, attempt=input.attempt, delay=delay)
        return
    if run.compacting is not None:
        return d.truncate(f"{input.error_type}: {input.error}")
    if d.fall_back(input.attempt, f"{input.provider}:{input.model}"):
        return
    d.finish("failed", input.error, error_type=input.error_type, text=input.text)


def _tick(d: Decision, input: Tick) -> None:
    run = d.state.run
    if run is None or d.state.definition is None:
        return
    if run.ending is not None:
        if d.now >= run.ending_at + int(GRACE * 1e9):
            d.settle(force=True)
        return
    due = run.due()
    if due is not None and d.now >= due:
        return d.end("deadline", "deadline_exceeded", f"the deadline of {run.deadline:g} s has passed")
    expired = [
        call
        for call in run.calls
        if call.stage == "approval" and call.expires_at is not None and d.now >= call.expires_at
    ]
    for call in expired:
        tool = d.agent.tool(call.call.name)
        decision = tool.approval.default if tool is not None and tool.approval is not None else "deny"
        d.emit(
            ev.ApprovalResolved, call_id=call.call.call_id, decision=decision, arguments=None, by="timeout", reason=None
        )
        if decision == "deny":
            d.answer(call, "denied", "Nobody approved the call in time.")
    if expired:
        d.after_answer()


def _tidy(message: Message) -> Message:
    """Without empty words, and each call with an id of its own, whatever the provider made of them."""
    parts: list[Part] = []
    taken: set[str] = set()
    for part in message.parts:
        if isinstance(part, Text) and not part.text:
            continue
        if isinstance(part, ToolCall):
            call_id = part.call_id
            while not call_id or call_id in taken:
                call_id = f"{part.call_id or 'call'}_{len(parts)}" if call_id == part.call_id else call_id + "x"
            taken.add(call_id)
            part = part if call_id == part.call_id else part.replace(call_id=call_id)
        parts.append(part)
    return message if tuple(parts) == message.parts else replace(message, parts=tuple(parts))


def _misfit(output: type[Any] | None, text: str) -> str | None:
    try:
        parse_output(output, text)
    except pydantic.ValidationError as error:
        return "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'answer'}: {item['msg']}"
            for item in error.errors(include_url=False)[:5]
        )
    return None


_DECIDE: dict[type[Any], Any] = {
    Opened: _opened,
    Crashed: _crashed,
    Park: _park,
    Send: _send,
    Add: _add,
    Cancel: _cancel,
    Resolve: _resolve,
    Look: _look,
    Reset: _reset,
    Configure: _configure,
    Limit: _limit,
    Warn: _warn,
    Stop: _stop,
    AttemptReady: _attempt_ready,
    TooLong: _too_long,
    Answered: _answered,
    Failed: _failed,
    Prepared: _prepared,
    Granted: _granted,
    Done: _done,
    Tick: _tick,
}
