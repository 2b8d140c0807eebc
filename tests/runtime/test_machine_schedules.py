"""The machine under random schedules: whatever happens in whatever order, its promises hold (issue 2, Shows 3).

A `World` is a perfect actor around the pure machine: it keeps in flight what `effects` wants, and lets outcomes come in
any order, late, twice or never; it crashes, forgets, and comes back from the log. A `Witness` reads every event as an
outsider and keeps its own books; after each commit the two must agree. A schedule is a seed:

    NITINOL_SCHEDULES=20000 pytest tests/runtime/test_machine_schedules.py -s     # that many
    NITINOL_SEED=4711 pytest tests/runtime/test_machine_schedules.py -s           # this one, told event by event
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from nitinol import events as ev
from nitinol.agent import Agent
from nitinol.budget import Account, Amount, Budget, Grant, Refusal
from nitinol.budget import decide as decide_budget
from nitinol.compaction import Compaction, estimate_tokens
from nitinol.errors import AgentBusy, AlreadyResolved, NotFound
from nitinol.hooks import HookContext, Hooks
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
    Opened,
    Park,
    Prepared,
    Reset,
    Resolve,
    Send,
    Stop,
    Tick,
    TooLong,
)
from nitinol.journal.base import verify
from nitinol.machine import (
    MAX_RECOVERIES,
    AskApproval,
    CallModel,
    Effect,
    PrepareTool,
    RunTool,
    Wait,
    decide,
    effects,
    plan_for,
    step,
)
from nitinol.messages import (
    Compacted,
    InputMode,
    Message,
    Outcome,
    Part,
    RunStatus,
    StopReason,
    Text,
    Thinking,
    ToolAnswer,
    ToolCall,
)
from nitinol.prices import Prices
from nitinol.provider import ModelResponse
from nitinol.repair import view
from nitinol.retry import Retry
from nitinol.state import AgentState
from nitinol.tool_spec import Approval, tool
from nitinol.usage import NO_USAGE, Usage

pytestmark = pytest.mark.slow

SECOND = 1_000_000_000
PRICES = Prices(input="3", output="15")
STEPS = (20, 60)
"""How many steps a schedule has."""


# ---- what the agents are made of


@tool
def add(a: int, b: int) -> int:
    """Never replayed."""
    return a + b


@tool(replay="safe")
def look() -> str:
    """Replayed."""
    return ""


@tool(serial=True)
def alone() -> str:
    """Runs alone."""
    return ""


@tool(serial=True, replay="safe", approval=Approval(timeout=5.0, default="approve"))
def gated(a: int = 0, b: int = 0) -> str:
    """Alone, after a person or five seconds."""
    return ""


@tool(approval=Approval(timeout=3.0))
def risky(a: int = 0, b: int = 0) -> str:
    """Needs a person within three seconds."""
    return ""


@tool(approval=True)
def asked(a: int = 0, b: int = 0) -> str:
    """Needs a person, for ever."""
    return ""


TOOLS = (add, look, alone, gated, risky, asked)
NAMES = [tool.name for tool in TOOLS]
STOPS: tuple[StopReason, ...] = ("end_turn", "tool_use", "max_tokens", "refusal", "content_filter", "pause", "other")


class BeforeTool(Hooks):
    """Makes the machine want `PrepareTool`; the world plays the hook."""

    def before_tool(self, ctx: HookContext, call: ToolCall) -> None:
        return None


POLICIES = (
    Compaction(reserve_tokens=0, keep_recent_tokens=20, deadline=2.0),
    Compaction(reserve_tokens=40, keep_recent_tokens=8000),
    Compaction(reserve_tokens=12_000, keep_recent_tokens=0, fallback=None),
)
WINDOWS = (40, 100, 250, 200_000)
NOTES = "notes, which are no answer"


def some_agent(rng: Random) -> Agent[Any]:
    """A definition, mostly with tight limits, so that schedules meet them."""
    budget = None
    if rng.random() < 0.3:
        budget = rng.choice((Budget(usd="0.02"), Budget(tokens=3000), Budget(usd="0.05", tokens=8000)))
    return Agent(
        name="a",
        model="test:one",
        fallbacks=[f"test:fall{n}" for n in range(rng.choice((0, 0, 1, 2)))],
        tools=TOOLS,
        hooks=[BeforeTool()] if rng.random() < 0.3 else [],
        output=int if rng.random() < 0.1 else None,
        max_turns=rng.choice((1, 2, 3, 5, 25)),
        max_tool_calls=rng.choice((None, None, 0, 3, 6)),
        deadline=rng.choice((None, None, 8.0, 60.0)),
        budget=budget,
        on_unpriced=rng.choice(("block", "warn")),
        retry=Retry(attempts=rng.choice((1, 2, 4))),
        busy="reject" if rng.random() < 0.1 else "queue",
        max_pending=rng.choice((0, 1, 3, 16)),
        max_output_tokens=rng.choice((None, 100, 1000)),
        compaction=rng.choice((None, *POLICIES)),
    )


# ---- the strict checker of transcripts


def faults(messages: Sequence[Message]) -> list[str]:
    """What a provider would refuse in a request; empty where nothing. Written apart from `repair`, on purpose."""
    found: list[str] = []
    if messages and messages[0].role != "user":
        found.append(f"starts with {messages[0].role}")
    for index, message in enumerate(messages):
        before = messages[index - 1] if index else None
        after = messages[index + 1] if index + 1 < len(messages) else None
        if not message.parts:
            found.append(f"{index}: empty {message.role} message")
        if any(isinstance(part, Text) and not part.text for part in message.parts):
            found.append(f"{index}: empty text")
        if message.role == "user" and before is not None and before.role == "user":
            found.append(f"{index}: two users in a row")
        calls = [part.call_id for part in message.parts if isinstance(part, ToolCall)]
        answers = [part.call_id for part in message.parts if isinstance(part, ToolAnswer)]
        if calls and message.role != "assistant":
            found.append(f"{index}: a {message.role} calls a tool")
        if answers and message.role != "tool":
            found.append(f"{index}: a {message.role} answers a call")
        if message.role == "tool":
            asked_for = [] if before is None else [call.call_id for call in before.tool_calls]
            if len(answers) != len(message.parts):
                found.append(f"{index}: a tool message that holds more than answers")
            if answers != asked_for:
                found.append(f"{index}: answers {answers} to calls {asked_for}")
        if calls and len(set(calls)) != len(calls):
            found.append(f"{index}: call ids repeat in one message: {calls}")
        if calls and (after is None or after.role != "tool"):
            found.append(f"{index}: calls {calls} are not answered")
    return found


# ---- the witness: an outsider's books


class Witness:
    """Reads events in order and holds them against the promises, knowing nothing of `state` or `machine`."""

    def __init__(self, compacts: bool) -> None:
        self.seq = 0
        self.queue: list[str] = []
        self.open: str | None = None
        """The run in progress."""
        self.finished: dict[str, str] = {}
        self.ending: set[str] = set()
        self.inputs: dict[str, tuple[str, str]] = {}
        """Undelivered: input id to run and mode."""
        self.settled_inputs: set[str] = set()
        self.attempts: set[tuple[str, int, int]] = set()
        self.attempt: tuple[str, int, int] | None = None
        self.calls: dict[str, str] = {}
        """Of the open turn: call id to requested, running or done."""
        self.executions: dict[tuple[str, int, str], tuple[int, int]] = {}
        """Last execution of a call, and the incarnation that started it."""
        self.keys: dict[str, tuple[str, int, str]] = {}
        self.resolved: Counter[tuple[str, int, str, int]] = Counter()
        self.usage, self.cost = NO_USAGE, Decimal(0)
        self.costs_known = True
        self.run_usage: Usage = NO_USAGE
        self.run_cost: Decimal | None = Decimal(0)
        self.recoveries = 0
        self.compacts = compacts
        self.view = Compacted()
        self.messages = 0
        self.summary: tuple[str, int, int] | None = None
        """The last attempt that was to make a summary."""
        self.summarised = False
        """It gave a whole answer, and nothing was made of it yet."""
        self.overflows: Counter[tuple[str, int, int]] = Counter()
        self.fallbacks = 0
        """In this turn."""
        self.must_shorten = False
        """The last request was too long for its model, and is to be made once more, shorter."""
        self.again = False
        """The last failure may be tried again."""
        self.turns: list[Counter[tuple[str, str, str, str]]] = []
        """What each turn of the run called, and what came of it."""
        self.asked: dict[str, tuple[str, str]] = {}
        self.came: dict[str, tuple[str, str, str, str]] = {}
        self.nudges = 0

    def read(self, commit: Sequence[ev.Event], transcript_before: Sequence[Message]) -> None:
        """One commit."""
        for index, event in enumerate(commit):
            assert event.durable
            assert event.seq == self.seq + 1, f"seq {event.seq} after {self.seq}"
            self.seq = event.seq
            assert event.id.endswith(f"#{event.seq}")
            method = getattr(self, "_" + event.type.replace(".", "_"), None)
            if method is not None:
                method(event)
            if event.type == "input.delivered":
                following = commit[index + 1]
                assert following.type == "message.appended", "an input is delivered in one commit with its message"
                assert any(later.type == "turn.started" for later in commit[index:]), (
                    "delivered, but no request follows"
                )

    def _run_queued(self, event: ev.RunQueued) -> None:
        assert event.run_id is not None
        assert event.run_id not in self.finished
        assert event.run_id not in self.queue
        assert event.pending_count == len(self.queue) + (self.open is not None)
        self.queue.append(event.run_id)

    def _run_started(self, event: ev.RunStarted) -> None:
        assert self.open is None, "two runs at once"
        assert event.run_id == self.queue[0], "runs start in the order they were queued"
        self.open = self.queue.pop(0)
        self.run_usage, self.run_cost, self.recoveries = NO_USAGE, Decimal(0), 0
        self.turns, self.nudges = [], 0

    def _run_cancelling(self, event: ev.RunCancelling) -> None:
        assert event.run_id is not None
        assert event.run_id == self.open
        assert event.run_id not in self.ending, "the first committed end wins"
        self.ending.add(event.run_id)

    def _run_resumed(self, event: ev.RunResumed) -> None:
        if event.reason != "recovered":
            assert event.recoveries == self.recoveries
        self.recoveries = event.recoveries

    def _run_finished(self, event: ev.RunFinished) -> None:
        run_id = event.run_id
        assert run_id is not None
        assert run_id not in self.finished, "finished twice"
        self.finished[run_id] = event.status
        left = [input_id for input_id, (of, _) in self.inputs.items() if of == run_id]
        assert not left, f"{left} were neither delivered nor dropped"
        if run_id == self.open:
            assert self.attempt is None, "an attempt is open"
            assert all(stage == "done" for stage in self.calls.values()), f"calls are open: {self.calls}"
            assert event.usage == self.run_usage
            assert event.cost == self.run_cost
            if event.status not in ("completed", "halted", "cancelled"):
                assert event.error, f"{event.status} and no reason"
            assert NOTES not in event.text, "a summary is no answer"
            assert (event.status == "loop_detected") == (self.nudges == 2), "a circle ends the run, and nothing else so"
            self.must_shorten = self.summarised = False
            self.open, self.calls = None, {}
        else:
            self.queue.remove(run_id)
            assert event.turns == 0

    def _turn_started(self, event: ev.TurnStarted) -> None:
        assert self.open not in self.ending
        assert all(stage == "done" for stage in self.calls.values())
        self.calls = {}
        self.fallbacks, self.must_shorten = 0, False

    def _turn_finished(self, event: ev.TurnFinished) -> None:
        assert all(stage == "done" for stage in self.calls.values())
        assert event.tool_calls == len(self.calls)
        self.recoveries = 0
        if self.calls:
            self.turns.append(Counter(self.came.values()))
        self.came = {}

    def _loop_detected(self, event: ev.LoopDetected) -> None:
        """Three of one kind in the last five turns, and no more than one other among them."""
        last = self.turns[-5:]
        same = [at for at, turn in enumerate(last) if turn == last[-1]]
        assert len(same) >= 3
        others = [turn for turn in last[same[-3] :] if turn != last[-1]]
        assert all(turn == others[0] for turn in others)
        self.nudges = 2 if event.action == "stop" else 1
        assert (event.action, event.count) in (("nudge", 3), ("stop", 6))

    def _context_compacted(self, event: ev.ContextCompacted) -> None:
        old, new = self.view, event.view
        assert self.compacts
        assert self.open not in self.ending
        assert self.attempt is None, "while a request is under way"
        assert 0 <= event.through < self.messages
        assert event.removed > 0
        assert (new.hidden, new.lost) >= (old.hidden, old.lost), "what went does not come back"
        if new.hidden > old.hidden:
            assert event.through == new.hidden - 1
            if event.fallback is None:
                assert self.summarised, "no summary stands for them"
                assert NOTES in new.handoff
                assert new.lost == old.lost
            else:
                assert (new.handoff, new.lost) == (old.handoff, old.lost + event.removed)
        assert max(new.kept, default=-1) < new.hidden
        assert not new.kept or not old.kept or new.kept[0] == old.kept[0], "the first message stays"
        self.view, self.summarised, self.must_shorten = new, False, False

    def _conversation_reset(self, event: ev.ConversationReset) -> None:
        self.view, self.messages = Compacted(), 0

    def _model_fallback(self, event: ev.ModelFallback) -> None:
        self.fallbacks += 1
        self.must_shorten = False

    def _message_appended(self, event: ev.MessageAppended) -> None:
        self.messages += 1
        if event.attempt:
            assert self.summary != (event.run_id, event.turn, event.attempt), "a summary is no message"
        for call in event.message.tool_calls if event.attempt else ():
            self.calls[call.call_id] = "asked"

    def _model_started(self, event: ev.ModelStarted) -> None:
        assert event.run_id == self.open
        assert self.open is not None
        assert self.open not in self.ending, "an attempt after run.cancelling"
        at = (self.open, event.turn, event.attempt)
        assert at not in self.attempts, f"attempt {at} started twice"
        assert self.attempt is None
        assert all(stage == "done" for stage in self.calls.values()), "a request with open calls"
        self.attempts.add(at)
        self.attempt = at
        if event.compacting is not None:
            self.summary = at
            assert event.compacting.hidden > self.view.hidden
        assert not self.must_shorten or event.compacting is not None, "the same request again, and it was too long"

    def _model_finished(self, event: ev.ModelFinished) -> None:
        assert self.attempt == (event.run_id, event.turn, event.attempt)
        self.summarised = self.attempt == self.summary
        self.attempt = None

    def _model_failed(self, event: ev.ModelFailed) -> None:
        assert self.attempt in (None, (event.run_id, event.turn, event.attempt))
        at = (event.run_id or "", event.turn, event.attempt)
        if event.error_type == "ContextOverflow" and at != self.summary:
            self.overflows[at[0], at[1], self.fallbacks] += 1
            assert self.overflows[at[0], at[1], self.fallbacks] <= 2, "compacted once, tried again once"
            self.must_shorten = self.compacts
        self.again = event.retryable or (self.must_shorten and at != self.summary)
        self.attempt = None

    def _model_retrying(self, event: ev.ModelRetrying) -> None:
        assert self.again, "what no second try can help"

    def _tool_requested(self, event: ev.ToolRequested) -> None:
        assert self.calls[event.call_id or ""] == "asked"
        self.calls[event.call_id or ""] = "requested"
        self.asked[event.call_id or ""] = event.name, repr(sorted(event.arguments.items()))
        at = (event.run_id or "", event.turn, event.call_id or "")
        assert self.keys.setdefault(event.idempotency_key, at) == at, "an idempotency key of two calls"

    def _tool_started(self, event: ev.ToolStarted) -> None:
        assert self.open not in self.ending, "a tool after run.cancelling"
        call_id = event.call_id or ""
        at = (self.open or "", event.turn, call_id)
        tool = next(tool for tool in TOOLS if tool.name == event.name)
        last = self.executions.get(at)
        if last is None:
            assert event.execution == 1
            assert self.calls[call_id] == "requested"
        else:
            assert tool.replay == "safe", f"{event.name} is never replayed, and was"
            assert event.execution == last[0] + 1
            assert event.incarnation > last[1], "replayed without a crash"
        self.executions[at] = (event.execution, event.incarnation)
        self.calls[call_id] = "running:" + event.name
        running = [stage for stage in self.calls.values() if stage.startswith("running")]
        serial = {f"running:{tool.name}" for tool in TOOLS if tool.serial}
        assert len(running) == 1 or not serial.intersection(running), f"a serial tool is not alone: {running}"

    def _tool_finished(self, event: ev.ToolFinished) -> None:
        assert self.calls.get(event.call_id or "", "done") != "done", f"call {event.call_id} answered twice"
        self.calls[event.call_id or ""] = "done"
        name, arguments = self.asked.pop(event.call_id or "", (event.name, ""))
        self.came[event.call_id or ""] = name, arguments, event.outcome, event.text

    def _approval_resolved(self, event: ev.ApprovalResolved) -> None:
        assert self.calls[event.call_id or ""] == "requested"

    def _input_queued(self, event: ev.InputQueued) -> None:
        assert event.run_id == self.open or event.run_id in self.queue
        assert event.run_id not in self.ending
        self.inputs[event.input_id] = (event.run_id or "", event.mode)

    def _input_delivered(self, event: ev.InputDelivered) -> None:
        of, _ = self.inputs.pop(event.input_id)
        assert of == self.open
        assert self.open not in self.ending
        assert self.attempt is None
        assert all(stage == "done" for stage in self.calls.values()), "delivered while calls are open"

    def _input_dropped(self, event: ev.InputDropped) -> None:
        of, _ = self.inputs.pop(event.input_id)
        assert of == event.run_id

    def _usage_updated(self, event: ev.UsageUpdated) -> None:
        self.usage += event.usage
        self.run_usage += event.usage
        if event.cost is None:
            self.costs_known, self.run_cost = False, None
        else:
            self.cost += event.cost
            self.run_cost = None if self.run_cost is None else self.run_cost + event.cost
        assert event.run_usage == self.run_usage, "the bill is the sum of its rows"
        assert event.run_cost == self.run_cost
        assert event.agent_usage == self.usage
        assert event.agent_cost == (self.cost if self.costs_known else None), "unknown is never zero"

    def agrees_with(self, state: AgentState) -> None:
        """The fold and the books say the same."""
        assert state.seq == self.seq
        assert [queued.run_id for queued in state.queue] == self.queue
        assert (state.run.run_id if state.run else None) == self.open
        assert {item.input_id for item in state.inputs} == set(self.inputs)
        assert state.usage == self.usage
        assert state.cost == (self.cost if self.costs_known else None)
        if state.run is not None:
            assert state.run.attempt_open == (self.attempt is not None)
            assert state.run.recoveries == self.recoveries
            assert state.compacted == self.view
            assert len(state.transcript) == self.messages
            assert (state.run.ending is not None) == (self.open in self.ending)


# ---- the world: what is in flight


@dataclass(eq=False)
class Attempt:
    """A task of the gateway: it builds a request, has it announced, sends it, and reports."""

    effect: CallModel
    sent: bool = False
    stopped: bool = False
    summarises: bool = False


@dataclass(eq=False)
class Preparing:
    """A task that runs the `before_tool` hooks."""

    effect: PrepareTool
    call: ToolCall


@dataclass(eq=False)
class Execution:
    """A job of the pool. It outlives the actor."""

    effect: RunTool
    number: int = 0
    """0 until its slot was granted."""
    stopped: bool = False
    reported: bool = field(default=False)


Task = Attempt | Preparing | Execution


@dataclass(frozen=True)
class Portrait:
    """A state, and what it looked like when it was new."""

    state: AgentState
    shown: str

    @staticmethod
    def shows(state: AgentState) -> str:
        return repr((state, list(state.transcript)[-3:], len(state.transcript)))


class World:
    """A perfect actor, its cell, pool, gateway and users, driven by one source of chance."""

    def __init__(self, rng: Random, tell: Callable[[str], object] | None = None) -> None:
        self.rng, self.tell = rng, tell
        self.agent = some_agent(rng)
        self.stubborn = rng.choice((["look"], ["look", "nope"])) if rng.random() < 0.1 else []
        """What its model calls again and again."""
        if self.stubborn:
            self.agent = self.agent.replace(max_turns=25, max_tool_calls=None, budget=None, deadline=None)
        self.now = 1_700_000_000 * SECOND
        self.log: list[ev.Event] = []
        self.lines: list[str] = []
        self.blank = AgentState(key="a/1", agent="a", definition=self.agent)
        self.state = self.replica = self.revived = self.blank
        self.witness = Witness(self.agent.compaction is not None)
        self.window = rng.choice(WINDOWS)
        self.up = False
        self.calm = False
        """No more trouble: everything reports, nothing crashes."""
        self.in_flight: set[Effect] = set()
        self.attempts: list[Attempt] = []
        self.preparing: list[Preparing] = []
        self.pool: dict[tuple[str, int, str], Execution] = {}
        self.adrift: list[Execution] = []
        """Executions that nobody waits for any more; they may still report."""
        self.granting: list[Execution] = []
        """A slot was asked for, and the answer is on its way."""
        self.due: int | None = None
        self.past: list[Input] = []
        """Outcomes that were told once; they may be told again."""
        self.runs: list[str] = []
        self.ids = 0
        self.portraits: list[Portrait] = []
        self.counts: Counter[str] = Counter()
        self.open_up()

    # -- the actor

    def decide(self, input: Input) -> Sequence[ev.Event]:
        """Decide, commit, reconcile; now and then die right after the commit."""
        before, rng = self.state, self.rng
        self.counts[type(input).__name__] += 1
        try:
            events, after = step(before, input, self.now)
        except (AgentBusy, AlreadyResolved, NotFound):
            assert before.seq == self.witness.seq, "a refusal changed the state"
            raise
        if self.tell is not None:
            self.tell(f"{self.now / SECOND:.3f} {input}")
            for event in events:
                self.tell(f"        {event!r}")
        if rng.random() < 0.02:
            again = [event.to_json() for event in decide(before, input, self.now)]
            assert again == [event.to_json() for event in events], "decide is not a function"
        if not events:
            assert after is before
            return events
        if isinstance(input, Done):
            number, _ = self.witness.executions.get((input.run_id, input.turn, input.call_id), (0, 0))
            assert input.execution in (0, number), f"execution {input.execution} answered for {number}"
        self.commit(events, after)
        if self.up:
            if not self.calm and rng.random() < 0.01:
                self.crash()
                return ()  # the answer found nobody
            self.reconcile()
        return events

    def commit(self, events: Sequence[ev.Event], after: AgentState) -> None:
        self.witness.read(events, self.state.transcript)
        for event in events:
            # Each prefix of the log folds, from the event itself and from its JSON.
            self.replica = self.replica.apply(event)
            line = event.to_json()
            self.lines.append(line)
            self.revived = self.revived.apply(ev.from_json(line))
            self.log.append(event)
            self.counts[event.type] += 1
            if event.type == "model.started":
                _, added, removed = view(self.replica.shown)
                assert (added, removed) == (0, 0), "a request needed a repair"
            if event.type == "run.finished":
                self.counts[event.status] += 1
        self.state = after
        assert self.replica == after, "fold(log) is not the working state"
        assert self.revived == after, "fold(JSON of the log) is not the working state"
        self.witness.agrees_with(after)
        self.check(after)
        if self.rng.random() < 0.1:
            self.portraits.append(Portrait(after, Portrait.shows(after)))

    def check(self, state: AgentState) -> None:
        """What is true of every committed state."""
        sent, _, _ = view(state.shown)
        assert not faults(sent), faults(sent)
        assert not sent or sent[0].parts[0] == state.transcript[0].parts[0], "the first message stays"
        assert state.estimated_tokens == sum(map(estimate_tokens, state.shown))
        wanted, run = effects(state), state.run
        if run is None or state.parked or state.stopped:
            assert not wanted, "an idle agent wants nothing"
            return
        if run.ending is not None:
            assert all(isinstance(effect, Wait) for effect in wanted), "work after run.cancelling"
            return
        running = {call.call.call_id for call in run.calls if call.stage == "running"}
        kept = {effect.call_id for effect in wanted if isinstance(effect, RunTool)}
        assert running <= kept, f"calls that run are not wanted: {running - kept}"
        assert wanted, "a run is open and nothing moves it on"
        assert len([effect for effect in wanted if isinstance(effect, CallModel)]) <= 1

    def reconcile(self) -> None:
        """As the actor does: start what is wanted and not in flight, stop what is in flight and not wanted."""
        wanted = effects(self.state)
        for effect in self.in_flight - wanted:
            self.in_flight.discard(effect)
            self.stop(effect)
        self.due = min((effect.until for effect in wanted if isinstance(effect, Wait)), default=None)
        fresh = [effect for effect in wanted if not isinstance(effect, Wait) and effect not in self.in_flight]
        for effect in sorted(fresh, key=repr):
            self.in_flight.add(effect)
            match effect:
                case CallModel():
                    self.attempts.append(Attempt(effect))
                case PrepareTool():
                    assert self.state.run is not None
                    self.preparing.append(Preparing(effect, self.state.run.calls[effect.index].call))
                case RunTool():
                    self.pool.setdefault((effect.run_id, effect.turn, effect.call_id), Execution(effect))
                case _:
                    pass

    def stop(self, effect: Effect) -> None:
        match effect:
            case CallModel():
                for attempt in [attempt for attempt in self.attempts if attempt.effect == effect]:
                    attempt.stopped = True
                    if not attempt.sent:
                        self.attempts.remove(attempt)
            case PrepareTool():
                self.preparing = [task for task in self.preparing if task.effect != effect]
            case RunTool():
                execution = self.pool.get((effect.run_id, effect.turn, effect.call_id))
                if execution is not None:
                    execution.stopped = True
            case _:
                pass

    # -- life and death

    def crash(self) -> None:
        """The incarnation dies; sometimes its process does. The cell tells; the next incarnation takes over."""
        rng = self.rng
        self.up, self.due = False, None
        killed = rng.random() < 0.3
        before = self.state
        self.in_flight.clear()
        self.preparing.clear()
        self.attempts = [attempt for attempt in self.attempts if attempt.sent and not killed]
        for attempt in self.attempts:
            attempt.stopped = True
        while self.granting:  # the answer gets through, or the pool gives up; before anybody opens again
            granted = self.granting.pop()
            effect = granted.effect
            call = before.run.calls[effect.index] if before.run is not None and before.run.calls else None
            if call is not None and call.stage == "running" and rng.random() < 0.5:
                granted.number = call.execution
            else:
                self.pool.pop((effect.run_id, effect.turn, effect.call_id), None)
        for at, execution in list(self.pool.items()):
            if killed or (execution.number and rng.random() < 0.5):
                del self.pool[at]
                if not killed:
                    self.adrift.append(execution)
        if killed:
            self.adrift.clear()
            self.revived = self.replica = self.state = self.blank.fold([ev.from_json(line) for line in self.lines])
            assert self.state == before, "the log does not give the state back"
        else:
            self.decide(Crashed(error_type="RuntimeError", error="boom"))
            if rng.random() < 0.1:
                self.decide(Park(restarts=5, reason="too many crashes"))
        self.open_up(restarts=0 if killed else rng.randrange(1, 4))

    def crash_again_and_again(self) -> None:
        """Three deaths at work, with little work between."""
        for _ in range(3):
            for _ in range(8):
                if any(attempt.sent for attempt in self.attempts) or self.witness.open is None:
                    break
                self.finish_something()
            self.crash()

    def restart_cleanly(self) -> None:
        """The agent is stopped on purpose, and started again."""
        self.decide(Stop(reason="deploy"))
        if not self.state.stopped:  # it crashed in stopping, and is up again
            return
        for _ in range(self.rng.randrange(3)):
            if self.state.stopped:
                self.finish_something()
        if not self.state.stopped:
            return
        self.in_flight.clear()
        self.preparing.clear()
        self.attempts.clear()
        self.pool.clear()
        self.up = False
        self.open_up()

    def open_up(self, restarts: int = 0) -> None:
        run, known = self.state.run, self.pool
        adopted = {
            (at[2], execution.number)
            for at, execution in known.items()
            if execution.number and run is not None and at[:2] == (run.run_id, run.turn)
        }
        if not self.calm and self.rng.random() < 0.2:
            adopted.add((self.rng.choice(("c0", "c1")), 99))  # of an execution that is not the log's
        expected = None
        if run is not None:
            lost = any(
                call.stage == "running" and (call.call.call_id, call.execution) not in adopted for call in run.calls
            )
            expected = run.recoveries + (not self.state.stopped and (lost or run.attempt_open))
        events, after = step(
            self.state,
            Opened(adopted=frozenset(adopted), restarts=restarts, delay=0.5, by_hand=self.state.parked),
            self.now,
        )
        if self.tell is not None:
            self.tell(f"{self.now / SECOND:.3f} Opened(adopted={adopted}, restarts={restarts})")
            for event in events:
                self.tell(f"        {event!r}")
        resumed = [event for event in events if event.type == "run.resumed" and event.reason == "recovered"]
        assert [event.recoveries for event in resumed] == ([] if expected is None else [expected])
        if expected is not None and expected > MAX_RECOVERIES:
            assert any(event.type == "run.finished" for event in events), "not given up"
        self.commit(events, after)
        self.up = True
        self.reconcile()

    # -- what outcomes there are

    def finish_something(self) -> bool:
        """Move one task on, by one step."""
        tasks: list[Task] = [*self.attempts, *self.preparing, *self.pool.values(), *self.adrift]
        if not tasks:
            return False
        task = self.rng.choice(tasks)
        match task:
            case Attempt():
                self.move_attempt(task)
            case Preparing():
                self.move_hook(task)
            case Execution():
                self.move_tool(task)
        return True

    def outcome(self, input: Input) -> None:
        self.past.append(input)
        self.decide(input)

    def move_attempt(self, task: Attempt) -> None:
        rng, effect = self.rng, task.effect
        if task.sent:
            self.attempts.remove(task)
            self.report(task)
            return
        if effect.not_before > self.now:
            if not self.calm and rng.random() < 0.5:
                return
            self.now = effect.not_before
        chance = 1.0 if self.calm else rng.random()
        if chance < 0.08:  # the request could not be built
            self.attempts.remove(task)
            kind = rng.choice(("MissingKey", "HookFailed", "MalformedResponse"))
            self.outcome(self.failed(task, error_type=kind, retryable=kind == "MalformedResponse", usage=None))
            if kind == "HookFailed":
                self.decide(Cancel(run_id=effect.run_id, by="hook", status="failed", reason="a hook raised"))
            return
        if chance < 0.11:
            self.attempts.remove(task)
            self.decide(Cancel(run_id=effect.run_id, by="hook", status="halted", reason="enough"))
            return
        size = self.state.estimated_tokens + 10
        plan = plan_for(self.state, "test:one", size, self.window)
        if plan is not None and plan.tier != "summarise":
            self.attempts.remove(task)
            self.decide(
                TooLong(
                    run_id=effect.run_id, turn=effect.turn, attempt=effect.attempt, provider="test", model="one",
                    estimated_tokens=size, context_window=self.window,
                )
            )  # fmt: skip
            return
        task.summarises = plan is not None
        prices = PRICES if rng.random() < 0.85 else None
        ready = AttemptReady(
            run_id=effect.run_id,
            turn=effect.turn,
            attempt=effect.attempt,
            provider="test",
            model="one",
            grant=self.some_grant(prices),
            price_source=None if prices is None else prices.source,
            estimated_tokens=size,
            context_window=self.window,
            compacting=None if plan is None else plan.compacted,
        )
        events = self.decide(ready)
        if any(event.type == "model.started" for event in events):
            task.sent = True
        elif task in self.attempts:
            self.attempts.remove(task)

    def some_grant(self, prices: Prices | None) -> Grant | Refusal:
        """What the ledger may say: also that a store which others share has nothing left."""
        rng, size = self.rng, self.rng.choice((10, 100, 1000))
        accounts = [*self.state.accounts(self.now)]
        if rng.random() < 0.2:
            accounts.append(Account("store", Budget(tokens=1500), Amount(tokens=rng.choice((0, 900, 1400)))))
        grant = decide_budget(accounts, size, self.agent.max_output_tokens, prices)
        assert grant is not None
        return grant

    def report(self, task: Attempt) -> None:
        """A request that was sent has its end."""
        rng, effect = self.rng, task.effect
        chance = rng.random()
        if task.stopped:
            if chance < 0.1 and not self.calm:
                return  # never heard of again
            if chance < 0.8:
                self.outcome(self.failed(task, error_type="Cancelled", retryable=False))
                return
        elif chance < 0.25 and not self.calm:
            kind = rng.choice(("RateLimited", "RateLimited", "ContextOverflow"))
            retryable = kind == "RateLimited" and rng.random() < 0.7
            self.outcome(self.failed(task, error_type=kind, retryable=retryable))
            return
        if chance > 0.97:
            self.decide(Cancel(run_id=effect.run_id, by="hook", status="halted", reason="enough"))
        usage = self.some_usage()
        self.outcome(
            Answered(
                run_id=effect.run_id,
                turn=effect.turn,
                attempt=effect.attempt,
                provider="test",
                model="one",
                response=self.some_notes() if task.summarises else self.some_answer(),
                usage=usage,
                cost=PRICES.cost(usage) if rng.random() < 0.9 else None,
                price_source="given",
                estimated=rng.random() < 0.1,
                duration=1.0,
            )
        )

    def failed(self, task: Attempt, *, error_type: str, retryable: bool, usage: Usage | None = NO_USAGE) -> Failed:
        rng, effect = self.rng, task.effect
        partial = usage is not None and rng.random() < 0.5
        usage = self.some_usage() if partial else usage
        return Failed(
            run_id=effect.run_id,
            turn=effect.turn,
            attempt=effect.attempt,
            provider="test",
            model="one",
            error_type=error_type,
            error="it failed",
            retryable=retryable,
            retry_after=rng.choice((None, None, 2.0, 100.0)),
            usage=usage,
            cost=None if usage is None else PRICES.cost(usage),
            text="half an ans" if partial else "",
            characters=11 if partial else 0,
        )

    def some_usage(self) -> Usage:
        rng = self.rng
        return Usage(input_tokens=rng.randrange(1, 500), output_tokens=rng.randrange(200))

    def some_notes(self) -> ModelResponse:
        """A summary, mostly."""
        chance = 1.0 if self.calm else self.rng.random()
        text = "" if chance < 0.1 else NOTES * 100 if chance < 0.2 else NOTES
        stop: StopReason = "refusal" if 0.2 < chance < 0.3 else "end_turn"
        message = Message(role="assistant", parts=(Text(text),), provider="test", model="one")
        return ModelResponse(message=message, usage=None, stop_reason=stop)

    def some_answer(self) -> ModelResponse:
        rng = self.rng
        parts: list[Part] = []
        stop: StopReason = "end_turn"
        if self.stubborn and (not self.calm or rng.random() < 0.9):
            parts.append(ToolCall(call_id="c0", name=rng.choice(self.stubborn), arguments={"a": 1}))
            stop = "tool_use"
        elif self.calm:
            parts.append(Text("7"))
        else:
            if rng.random() < 0.2:
                parts.append(Thinking(text="hm", signature="s" if rng.random() < 0.5 else None))
            if rng.random() < 0.7:
                parts.append(Text(rng.choice(("", "so", "7", "I say"))))
            for number in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
                call_id = rng.choice(("c0", "c1", "c2", "")) if rng.random() < 0.05 else f"c{number}"
                name = "nope" if rng.random() < 0.1 else rng.choice(NAMES)
                malformed = '{"a": 1,' if rng.random() < 0.1 else None
                parts.append(
                    ToolCall(call_id=call_id, name=name, arguments={} if malformed else {"a": 1}, malformed=malformed)
                )
                stop = "tool_use"
            if rng.random() < 0.2:
                stop = rng.choice(STOPS)
        message = Message(role="assistant", parts=tuple(parts), provider="test", model="one")
        return ModelResponse(message=message, usage=None, stop_reason=stop)

    def move_hook(self, task: Preparing) -> None:
        rng, effect = self.rng, task.effect
        self.preparing.remove(task)
        chance = 1.0 if self.calm else rng.random()
        if chance < 0.05:
            status: RunStatus = rng.choice(("halted", "failed"))
            self.decide(Cancel(run_id=effect.run_id, by="hook", status=status, reason="enough"))
            return
        call = task.call
        if chance < 0.3:
            call = call.replace(arguments={"a": 2}, name=rng.choice(NAMES))
        blocked = "no" if 0.3 < chance < 0.4 else None
        self.outcome(
            Prepared(run_id=effect.run_id, turn=effect.turn, call_id=effect.call_id, call=call, blocked=blocked)
        )

    def move_tool(self, task: Execution) -> None:
        rng, effect = self.rng, task.effect
        at = (effect.run_id, effect.turn, effect.call_id)
        if task.number == 0:
            if task.stopped or (rng.random() < 0.03 and not self.calm):
                del self.pool[at]
                self.outcome(self.done(task, "cancelled" if task.stopped else "error"))
                return
            granted = Granted(run_id=effect.run_id, turn=effect.turn, call_id=effect.call_id)
            self.granting.append(task)
            events = self.decide(granted)
            if not self.granting:
                return  # a crash came between
            self.granting.clear()
            started = next((event for event in events if isinstance(event, ev.ToolStarted)), None)
            if started is not None:
                task.number = started.execution
                if rng.random() < 0.2:
                    assert not decide(self.state, granted, self.now), "one slot, two executions"
            else:
                del self.pool[at]
            return
        if task in self.adrift:
            self.adrift.remove(task)
        else:
            del self.pool[at]
        if task.stopped and rng.random() < 0.2 and not self.calm:
            return  # it hangs for ever
        outcomes: tuple[Outcome, ...] = ("ok", "ok", "ok", "error", "timeout", "uncertain", "cancelled")
        if not task.stopped:
            outcomes = outcomes[: 2 if self.stubborn else 5]
        self.outcome(self.done(task, rng.choice(outcomes)))

    def done(self, task: Execution, outcome: Outcome) -> Done:
        effect = task.effect
        return Done(
            run_id=effect.run_id,
            turn=effect.turn,
            call_id=effect.call_id,
            execution=task.number,
            outcome=outcome,
            text=outcome,
            data={"n": 1} if outcome == "ok" else None,
            duration=0.5,
        )

    # -- what users and time do

    def new_id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}{self.ids}"

    def user(self, input: Input) -> None:
        try:
            self.decide(input)
        except (AgentBusy, AlreadyResolved, NotFound) as refusal:
            self.counts[type(refusal).__name__] += 1

    def send(self) -> None:
        rng = self.rng
        history: tuple[Message, ...] = ()
        if rng.random() < 0.1:
            history = (Message(role="user", parts=(Text("a"),)), Message(role="assistant", parts=(Text("b"),)))
        run_id = self.new_id("r")
        self.runs.append(run_id)
        self.user(Send(run_id=run_id, prompt=Message(role="user", parts=(Text("do it"),)), history=history))

    def send_again(self) -> None:
        """The same run twice. (That a run has ended, only the journal knows; the actor asks it.)"""
        live = [*self.witness.queue, *([self.witness.open] if self.witness.open else [])]
        if live:
            before = self.state
            self.decide(Send(run_id=self.rng.choice(live), prompt=None))
            assert self.state is before

    def add(self) -> None:
        if not self.runs:
            return
        rng = self.rng
        live = [*self.witness.queue, *([self.witness.open] if self.witness.open else [])]
        run_id = rng.choice(live) if live and rng.random() < 0.9 else rng.choice(self.runs)
        prompt = Message(role="user", parts=(Text("also"),))
        mode: InputMode = "steer" if rng.random() < 0.7 else "follow_up"
        self.user(Add(run_id=run_id, input_id=self.new_id("i"), mode=mode, prompt=prompt))

    def cancel(self) -> None:
        live = [*self.witness.queue, *([self.witness.open] if self.witness.open else []), "unknown"]
        self.user(Cancel(run_id=self.rng.choice(live), by="user"))

    def resolve(self) -> None:
        run, rng = self.state.run, self.rng
        if run is None:
            return
        waiting = [call.call.call_id for call in run.calls if call.stage == "approval"]
        call_id = rng.choice(waiting) if waiting and rng.random() < 0.9 else rng.choice(("c0", "c1", "nope"))
        decision: Literal["approve", "deny"] = "approve" if rng.random() < 0.7 else "deny"
        arguments = {"b": 3} if rng.random() < 0.3 else None
        resolve = Resolve(run_id=run.run_id, call_id=call_id, decision=decision, arguments=arguments, by="kim")
        self.user(resolve)
        if rng.random() < 0.2:
            before = self.state
            with pytest.raises((AlreadyResolved, NotFound)):
                step(before, resolve, self.now)

    def tick(self) -> None:
        """A timer: on time, early, late, or twice."""
        if self.due is not None and self.rng.random() < 0.7:
            self.now = max(self.now, self.due)
        self.decide(Tick())

    def wait(self) -> None:
        rng = self.rng
        self.now += int(rng.choice((0.001, 0.5, 3.0, 20.0, 3600.0)) * SECOND)
        if rng.random() < 0.05:
            self.now -= int(100 * SECOND)  # somebody set the clock

    def tell_again(self) -> None:
        """An outcome of long ago comes a second time; or of an execution that never was."""
        run = self.state.run
        running = [call for call in run.calls if call.stage == "running"] if run is not None else []
        if run is not None and running:
            call = self.rng.choice(running)
            effect = RunTool(run.run_id, run.turn, call.call.call_id, call.index)
            self.decide(self.done(Execution(effect, call.execution + (1 if call.execution == 1 else -1)), "ok"))
        if not self.past:
            return
        old = self.rng.choice(self.past)
        if isinstance(old, Done) and not old.execution:
            return  # a pool tells once that a call never started
        if isinstance(old, Done) and self.rng.random() < 0.3:
            old = replace(old, execution=old.execution + 7)
        self.decide(old)

    def reset(self) -> None:
        self.user(Reset())

    def configure(self) -> None:
        model = self.rng.choice(("test:two", "test:three"))
        agent = self.state.definition
        assert agent is not None
        self.user(Configure(changes={"model": model}, definition=agent, idle=self.rng.random() < 0.5))

    ACTIONS: ClassVar[dict[str, float]] = {
        "finish_something": 34,
        "send": 6,
        "send_again": 1,
        "add": 4,
        "cancel": 1,
        "resolve": 4,
        "tick": 3,
        "wait": 3,
        "tell_again": 3,
        "crash": 1,
        "crash_again_and_again": 0.3,
        "restart_cleanly": 1,
        "reset": 1,
        "configure": 1,
    }

    def act(self, name: str | None = None) -> None:
        """One step of the schedule."""
        chosen = name or self.rng.choices(list(self.ACTIONS), list(self.ACTIONS.values()))[0]
        if self.rng.random() < 0.3:
            self.now += int(self.rng.random() * SECOND)
        if getattr(self, chosen)() is False and self.witness.open is None:
            self.send()  # else most schedules would be silence

    # -- the end

    def drain(self) -> None:
        """From here all goes well: every run ends, in bounded steps."""
        self.calm = True
        state = self.state
        turns_left = (1 + len(state.queue)) * self.agent.max_turns + len(state.inputs)
        for _ in range(50 + 30 * turns_left):
            run = self.state.run
            if run is None:
                break
            waiting = [effect for effect in effects(self.state) if isinstance(effect, AskApproval)]
            if self.finish_something():
                continue
            if waiting:
                self.decide(Resolve(run_id=run.run_id, call_id=waiting[0].call_id, decision="approve"))
                continue
            assert self.due is not None, f"nothing is in flight, nothing is due, and {run} hangs"
            self.now = max(self.now, self.due)
            self.decide(Tick())
        self.close_the_books()

    def close_the_books(self) -> None:
        witness = self.witness
        assert self.state.run is None, f"{self.state.run} does not end"
        assert not self.state.queue
        assert not effects(self.state)
        assert not witness.inputs
        queued = Counter(event.run_id for event in self.log if event.type == "run.queued")
        finished = Counter(event.run_id for event in self.log if event.type == "run.finished")
        assert queued == finished
        assert not queued or set(queued.values()) == {1}
        assert not verify(self.log), verify(self.log)
        assert self.blank.fold(self.log) == self.state
        assert self.blank.fold([ev.from_json(line) for line in self.lines]) == self.state
        for portrait in self.portraits:
            assert Portrait.shows(portrait.state) == portrait.shown, "an old state has changed"


def play(seed: int, tell: Callable[[str], object] | None = None) -> World:
    """One schedule, from a seed to the end of every run."""
    rng = Random(seed)
    world = World(rng, tell)
    for _ in range(rng.randrange(*STEPS)):
        world.act()
    world.drain()
    return world


# ---- tests


@pytest.mark.timeout(3600)
def test_the_promises_hold_under_random_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    """Rules 6, 7, 8, 10 and 11; section 1's fold; a run ends exactly once. `NITINOL_SCHEDULES` says how many."""
    one = os.environ.get("NITINOL_SEED")
    if one is not None:
        with capsys.disabled():
            play(int(one), print)
        return
    count = int(os.environ.get("NITINOL_SCHEDULES", "700"))
    first = int(os.environ.get("NITINOL_FIRST_SEED", "0"))
    counts: Counter[str] = Counter()
    events = 0
    began = time.perf_counter()
    for seed in range(first, first + count):
        try:
            world = play(seed)
        except BaseException:
            print(f"\nschedule {seed} fails; replay it with NITINOL_SEED={seed} pytest {__file__} -s")
            raise
        counts += world.counts
        events += len(world.log)
    seconds = time.perf_counter() - began
    with capsys.disabled():
        print(f"\n{count} schedules, {events} events in {seconds:.1f} s; seeds {first} to {first + count - 1}")
        print(", ".join(f"{name} {number}" for name, number in sorted(counts.items())))
    if count >= 700:
        missing = [status for status in REACHED if not counts[status]]
        assert not missing, f"no schedule comes to {missing}: the driver has grown blind"


REACHED = (
    "completed", "max_turns", "max_tool_calls", "budget_exceeded", "deadline_exceeded", "halted", "cancelled", "failed",
    "sealed", "model.discarded", "model.fallback", "model.retrying", "input.dropped", "input.delivered", "agent.parked",
    "run.paused", "approval.resolved", "conversation.reset", "agent.stopped", "AgentBusy", "AlreadyResolved",
    "context.compacted", "loop.detected", "loop_detected",
)  # fmt: skip


class Schedule(RuleBasedStateMachine):
    """The same world with hypothesis at the wheel, which shrinks what fails to few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @rule(seed=st.integers(0, 1 << 32), action=st.sampled_from(sorted(World.ACTIONS)))
    def act(self, seed: int, action: str) -> None:
        if self.world is None:
            self.world = World(Random(seed))
        self.world.rng.seed(seed)
        self.world.act(action)

    @rule(seeds=st.lists(st.integers(0, 1 << 32), max_size=8))
    def move_on(self, seeds: list[int]) -> None:
        """Most of life is outcomes."""
        for seed in seeds:
            if self.world is not None:
                self.world.rng.seed(seed)
                self.world.act("finish_something")

    def teardown(self) -> None:
        if self.world is not None:
            self.world.drain()


@pytest.mark.timeout(3600)
def test_hypothesis_finds_no_schedule_that_breaks_a_promise() -> None:
    """As above, by a hypothesis state machine: what fails is shrunk."""
    count = max(60, int(os.environ.get("NITINOL_SCHEDULES", "0")) // 20)
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Schedule,
        settings=settings(max_examples=count, stateful_step_count=40, deadline=None, suppress_health_check=slow),
    )
