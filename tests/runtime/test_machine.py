"""The machine, one behaviour at a time: what an input means, and what should be in flight then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from nitinol import events as ev
from nitinol.agent import Agent
from nitinol.budget import Budget
from nitinol.budget import decide as decide_budget
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
    Limit,
    Opened,
    Park,
    Prepared,
    Reset,
    Resolve,
    Send,
    Stop,
    Tick,
)
from nitinol.journal.base import verify
from nitinol.machine import (
    GRACE,
    AskApproval,
    CallModel,
    Effect,
    PrepareTool,
    RunTool,
    Wait,
    decide,
    effects,
    step,
)
from nitinol.messages import InputMode, Message, Outcome, Part, StopReason, Text, ToolCall
from nitinol.prices import Prices
from nitinol.provider import ModelResponse
from nitinol.retry import Retry
from nitinol.state import AgentState, RunState
from nitinol.tool_spec import Approval, tool
from nitinol.usage import Usage

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
PRICES = Prices(input="1", output="10")


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


@tool(approval=True)
def ask(a: int = 0) -> str:
    """Waits for a person for ever."""
    return ""


@tool(approval=Approval(timeout=60))
def ask_a_minute() -> str:
    """Denied after a minute."""
    return ""


@tool(approval=Approval(timeout=60, default="approve"))
def tell() -> str:
    """Approved after a minute."""
    return ""


@tool(serial=True, approval=True)
def ask_alone() -> str:
    """Runs alone, once a person says so."""
    return ""


class Guard(Hooks):
    """Makes the machine want `PrepareTool`."""

    def before_tool(self, ctx: HookContext, call: ToolCall) -> None:
        return None


TOOLS = (add, look, alone, ask, ask_a_minute, tell, ask_alone)


def user(text: str) -> Message:
    return Message(role="user", parts=(Text(text),))


def wants(call_id: str, name: str = "add", **arguments: Any) -> ToolCall:
    return ToolCall(call_id=call_id, name=name, arguments=arguments)


class Bench:
    """A machine, a clock, and everything that was decided so far."""

    def __init__(self, **options: Any) -> None:
        values: dict[str, Any] = {"model": "test:one", "tools": TOOLS, **options}
        self.agent: Agent[Any] = Agent(name="a", **values)
        self.state = AgentState(key="a/1", agent="a", definition=self.agent)
        self.now = START
        self.log: list[ev.Event] = []
        self.give(Opened())

    def give(self, input: Input) -> list[str]:
        """An input; the types of the events it means."""
        return [event.type for event in self.decide(input)]

    def decide(self, input: Input) -> list[ev.Event]:
        events, self.state = step(self.state, input, self.now)
        self.log += events
        assert not verify(self.log), verify(self.log)
        return events

    # -- inputs

    def send(self, run_id: str = "r1", text: str = "go", **more: Any) -> list[str]:
        return self.give(Send(run_id=run_id, prompt=user(text), **more))

    def ready(self, **more: Any) -> list[str]:
        values: dict[str, Any] = {
            "run_id": self.run.run_id,
            "turn": self.run.turn,
            "attempt": self.run.attempt + 1,
            "provider": "test",
            "model": "one",
        }
        size = {name: more.pop(name) for name in ("input_tokens", "max_output_tokens", "prices") if name in more}
        return self.give(AttemptReady(**{**values, **self.granted(**size), **more}))

    def granted(
        self, input_tokens: int = 100, max_output_tokens: int | None = None, prices: Prices | None = PRICES
    ) -> dict[str, Any]:
        """What the ledger says of such a request, without a budget of the store."""
        grant = decide_budget(self.state.accounts(self.now), input_tokens, max_output_tokens, prices)
        return {"grant": grant, "price_source": None if prices is None else prices.source}

    def says(self, *parts: str | Part, stop: StopReason | None = None, cost: str | None = "0.01") -> list[str]:
        """A request goes out, and the model answers so."""
        if not self.run.attempt_open:
            self.ready()
        made = tuple(Text(part) if isinstance(part, str) else part for part in parts)
        message = Message(role="assistant", parts=made)
        response = ModelResponse(
            message=message, usage=None, stop_reason=stop or ("tool_use" if message.tool_calls else "end_turn")
        )
        return self.give(
            Answered(
                run_id=self.run.run_id,
                turn=self.run.turn,
                attempt=self.run.attempt,
                provider="test",
                model="one",
                response=response,
                usage=Usage(input_tokens=100, output_tokens=10),
                cost=None if cost is None else Decimal(cost),
                price_source="given",
                estimated=False,
                duration=1.0,
            )
        )

    def fails(self, retryable: bool = True, **more: Any) -> list[str]:
        """A request goes out, and fails."""
        if not self.run.attempt_open:
            self.ready()
        values: dict[str, Any] = {
            "run_id": self.run.run_id,
            "turn": self.run.turn,
            "attempt": self.run.attempt,
            "provider": "test",
            "model": "one",
            "error_type": "Overloaded",
            "error": "too much",
            "retryable": retryable,
            "usage": Usage(input_tokens=100),
            "cost": Decimal("0.001"),
        }
        return self.give(Failed(**{**values, **more}))

    def grant(self, call_id: str) -> list[str]:
        return self.give(Granted(run_id=self.run.run_id, turn=self.run.turn, call_id=call_id))

    def done(
        self, call_id: str, text: str = "3", *, execution: int | None = None, outcome: Outcome = "ok", turn: int = 0
    ) -> list[str]:
        call = self.run.call(call_id)
        number = execution if execution is not None else call.execution if call is not None else 1
        return self.give(
            Done(
                run_id=self.run.run_id,
                turn=turn or self.run.turn,
                call_id=call_id,
                execution=number,
                outcome=outcome,
                text=text,
            )
        )

    def runs(self, call_id: str, text: str = "3") -> list[str]:
        self.grant(call_id)
        return self.done(call_id, text)

    def add(self, mode: InputMode, text: str, run_id: str = "r1") -> list[str]:
        return self.give(Add(run_id=run_id, input_id=f"i{len(self.log)}", mode=mode, prompt=user(text)))

    def cancel(self, run_id: str = "r1", **more: Any) -> list[str]:
        return self.give(Cancel(run_id=run_id, by="user", **more))

    def resolve(self, call_id: str, decision: Any = "approve", arguments: Mapping[str, Any] | None = None) -> list[str]:
        return self.give(
            Resolve(run_id="r1", call_id=call_id, decision=decision, arguments=arguments, by="kim", reason="because")
        )

    def crash(self, *adopted: tuple[str, int]) -> list[str]:
        self.give(Crashed(error_type="RuntimeError", error="boom"))
        return self.give(Opened(adopted=frozenset(adopted), restarts=1, delay=0.1))

    def after(self, seconds: float) -> list[str]:
        self.now += int(seconds * SECOND)
        return self.give(Tick())

    # -- what is true now

    @property
    def run(self) -> RunState:
        assert self.state.run is not None
        return self.state.run

    @property
    def wanted(self) -> set[Effect]:
        return effects(self.state)

    def tools_wanted(self) -> list[str]:
        return sorted(effect.call_id for effect in self.wanted if isinstance(effect, RunTool))

    def model_wanted(self) -> CallModel | None:
        return next((effect for effect in self.wanted if isinstance(effect, CallModel)), None)

    def due(self) -> float | None:
        """Seconds from now to the first timer."""
        untils = [effect.until for effect in self.wanted if isinstance(effect, Wait)]
        return (min(untils) - self.now) / SECOND if untils else None

    def last(self, type: str) -> Any:
        return next(event for event in reversed(self.log) if event.type == type)

    def end(self, run_id: str = "r1") -> ev.RunFinished:
        ends = [event for event in self.log if isinstance(event, ev.RunFinished) and event.run_id == run_id]
        assert len(ends) == 1
        return ends[0]

    def answers(self) -> list[tuple[str, str]]:
        """Outcome and text of each answered call."""
        return [(event.outcome, event.text) for event in self.log if isinstance(event, ev.ToolFinished)]

    def texts(self) -> list[str]:
        """The transcript, a line for each message."""
        return [
            f"{message.role}: " + (message.text or ",".join(getattr(part, "text", "") for part in message.parts))
            for message in self.state.transcript
        ]


# ---- a run


def test_a_message_is_a_run_and_an_answer_without_calls_ends_it() -> None:
    """One commit accepts and starts it; the model is wanted; its answer completes the run. parity: L1"""
    bench = Bench()
    assert bench.send() == ["run.queued", "run.started", "message.appended", "turn.started"]
    assert bench.wanted == {CallModel("r1", 1, 1, 0, 0)}
    assert bench.ready() == ["model.started"]
    assert bench.wanted == {CallModel("r1", 1, 1, 0, 0)}, "an open attempt stays wanted"
    assert bench.says("hello") == [
        "model.finished",
        "usage.updated",
        "message.appended",
        "turn.finished",
        "run.finished",
    ]
    assert (bench.end().status, bench.end().text, bench.end().turns) == ("completed", "hello", 1)
    assert bench.wanted == set()
    assert bench.texts() == ["user: go", "assistant: hello"]


def test_several_calls_of_a_turn_run_at_once_and_their_answers_keep_call_order() -> None:
    """The loop goes on until the model stops asking. parity: L2"""
    bench = Bench()
    bench.send()
    bench.says("Let me.", wants("c1", a=1, b=2), wants("c2", "look"))
    assert bench.tools_wanted() == ["c1", "c2"]
    bench.grant("c1")
    bench.grant("c2")
    assert bench.done("c2", "second") == ["tool.finished"]
    assert bench.done("c1", "first") == ["tool.finished", "message.appended", "turn.finished", "turn.started"]
    assert bench.texts()[-1] == "tool: first,second"
    assert bench.model_wanted() == CallModel("r1", 2, 1, 0, 0)
    bench.says("3")
    assert (bench.end().status, bench.end().turns) == ("completed", 2)


def test_the_history_that_is_given_comes_before_the_prompt() -> None:
    """`messages=` is continued, also with no new prompt. parity: L1"""
    bench = Bench()
    bench.give(Send(run_id="r1", prompt=None, history=(user("earlier"),)))
    assert bench.texts() == ["user: earlier"]
    assert bench.model_wanted() is not None


def test_a_run_that_is_sent_twice_is_one_run() -> None:
    """The same run_id is the same run, open or queued. parity: A2; rule 2"""
    bench = Bench()
    bench.send("r1")
    bench.send("r2")
    assert bench.send("r1") == []
    assert bench.send("r2") == []


def test_a_decision_is_a_function_and_leaves_its_state_alone() -> None:
    """Section 1: pure. The same state, input and time give the same events."""
    bench = Bench()
    before = bench.state
    input = Send(run_id="r1", prompt=user("go"))
    first, second = (decide(before, input, START) for _ in range(2))
    assert [event.to_json() for event in first] == [event.to_json() for event in second]
    assert (before.run, before.seq, len(before.transcript)) == (None, 1, 0)
    assert before.fold(first) == step(before, input, START)[1]


def test_an_agent_without_a_definition_wants_nothing() -> None:
    """Rule 12: a missing definition leaves the run where it is, visible."""
    bench = Bench()
    bench.send()
    bench.state.definition = None
    assert bench.wanted == set()
    assert bench.give(Tick()) == []


# ---- limits


def test_a_run_stops_at_max_turns_and_still_has_its_result() -> None:
    """parity: L3"""
    bench = Bench(max_turns=1)
    bench.send()
    bench.says("working", wants("c1"))
    bench.runs("c1")
    assert (bench.end().status, bench.end().text, bench.end().turns) == ("max_turns", "working", 1)
    assert bench.texts()[-1] == "tool: 3", "the calls of the last turn are answered"


def test_a_turn_that_would_pass_max_tool_calls_ends_the_run_with_its_calls_answered() -> None:
    """None of the turn's calls runs; each is answered `cancelled`."""
    bench = Bench(max_tool_calls=2)
    bench.send()
    bench.says(wants("c1"))
    bench.runs("c1")
    bench.says(wants("c1"), wants("c2"))
    assert bench.end().status == "max_tool_calls"
    assert [outcome for outcome, _ in bench.answers()] == ["ok", "cancelled", "cancelled"]
    assert bench.texts()[-1].startswith("tool: ")


def test_the_deadline_is_one_for_the_whole_run() -> None:
    """A timer is wanted from `run.started` on; when it is due the run ends. parity: R3"""
    bench = Bench(deadline=10.0)
    bench.send()
    assert bench.due() == 10.0
    bench.now += 6 * SECOND
    bench.says(wants("c1"))
    bench.runs("c1")
    assert bench.due() == 4.0
    assert bench.after(3.9) == []
    assert bench.after(0.1)[-1] == "run.finished"
    assert bench.end().status == "deadline_exceeded"


def test_an_attempt_that_is_open_at_the_deadline_is_settled_before_the_run_ends() -> None:
    """What it cost is on the bill. parity: R3; rule 8"""
    bench = Bench(deadline=10.0)
    bench.send()
    bench.ready()
    assert bench.after(10) == ["run.cancelling"]
    assert bench.fails(False, error_type="Cancelled", text="half")[-1] == "run.finished"
    assert (bench.end().status, bench.end().text) == ("deadline_exceeded", "half")
    assert bench.end().cost == Decimal("0.001")


def test_a_failure_at_the_deadline_is_the_deadline() -> None:
    """The HTTP timeout and the timer are due at once; whoever is first, the run says why. parity: R3"""
    bench = Bench(deadline=10.0, fallbacks=["test:two"])
    bench.send()
    bench.ready()
    bench.now += 10 * SECOND
    bench.fails(error_type="ProviderTimeout", text="half")
    assert (bench.end().status, bench.end().text) == ("deadline_exceeded", "half")


def test_no_turn_starts_after_the_deadline() -> None:
    """Also if the timer is late. parity: R3"""
    bench = Bench(deadline=10.0)
    bench.send()
    bench.says(wants("c1"))
    bench.grant("c1")
    bench.now += 11 * SECOND
    bench.done("c1")
    assert bench.end().status == "deadline_exceeded"


def test_a_pause_does_not_count_towards_the_deadline() -> None:
    """Rule 10: while a person is asked, no timer but theirs runs; afterwards the rest of the time is left."""
    bench = Bench(deadline=10.0)
    bench.send()
    bench.now += 4 * SECOND
    bench.says(wants("c1", "ask"))
    assert bench.state.activity == "paused"
    assert bench.due() is None
    assert bench.after(3600) == []
    assert "run.resumed" in bench.resolve("c1")
    assert bench.due() == 6.0


# ---- money


def test_a_budget_lowers_the_cap_of_the_answer_to_what_is_left() -> None:
    """Section 8: 100 in at $1 and the rest out at $10 per million."""
    bench = Bench(budget=Budget(usd="0.0131"))
    bench.send()
    bench.ready(max_output_tokens=5000)
    began = bench.last("model.started")
    assert began.max_output_tokens == 1300
    assert began.reserved == Decimal("0.0131")


def test_a_budget_that_does_not_hold_the_next_request_ends_the_run_before_it() -> None:
    """Under 256 output tokens nothing is sent. parity: L4"""
    bench = Bench(budget=Budget(usd="0.0127"))
    bench.send()
    bench.says(wants("c1"), cost="0.0101")
    bench.runs("c1")
    assert bench.ready(max_output_tokens=5000) == ["budget.exceeded", "run.finished"]
    assert bench.end().status == "budget_exceeded"
    assert bench.last("budget.exceeded").needed == "$0.00266"


def test_an_answer_that_may_be_short_needs_no_256_tokens() -> None:
    """The floor is what the agent allows, where that is less."""
    bench = Bench(budget=Budget(tokens=120))
    bench.send()
    assert bench.ready(max_output_tokens=20) == ["model.started", "budget.reserved"]


def test_a_budget_of_tokens_counts_input_and_output() -> None:
    """110 of 1,000 are spent; 100 go in; 790 may come out."""
    bench = Bench(budget=Budget(tokens=1000))
    bench.send()
    bench.says(wants("c1"))
    bench.runs("c1")
    bench.ready(prices=None)
    assert bench.last("model.started").max_output_tokens == 790


def test_what_was_reserved_is_settled_by_the_row_of_the_bill() -> None:
    """In every scope that has a budget, with the answer or with the failure."""
    bench = Bench(budget=Budget(usd=1))
    bench.give(Limit(budget=Budget(tokens=9000)))
    bench.send()
    assert bench.ready() == ["model.started", "budget.reserved", "budget.reserved"]
    reserved = [event for event in bench.log if event.type == "budget.reserved"]
    assert [event.scope for event in reserved] == ["run:r1", f"key:{bench.state.key}"]
    assert {event.amount for event in reserved} == {bench.last("model.started").reserved}
    bench.fails()
    settled = [event for event in bench.log if event.type == "budget.settled"]
    assert [event.scope for event in settled] == ["run:r1", f"key:{bench.state.key}"]
    assert bench.run.scopes == ()


def test_a_budget_is_warned_of_once_for_each_fraction_that_is_passed() -> None:
    """At 50, 80 and 95 per cent; a row that passes two of them warns of the higher one."""
    bench = Bench(budget=Budget(usd=1))
    bench.send()
    for cost, fractions in (("0.49", []), ("0.01", [0.5]), ("0.1", []), ("0.36", [0.95])):
        before = len(bench.log)
        bench.says(wants("c1"), cost=cost)
        bench.runs("c1")
        assert [event.fraction for event in bench.log[before:] if event.type == "budget.warning"] == fractions
    assert bench.last("budget.warning").spent.startswith("$0.96,")


def test_an_answer_that_a_budget_has_cut_short_ends_the_run_and_runs_no_call() -> None:
    """Section 8: `budget_exceeded`; the words that came are the result's."""
    bench = Bench(budget=Budget(usd="0.0131"))
    bench.send()
    bench.ready(max_output_tokens=5000)
    assert bench.last("model.started").capped == "run:r1"
    bench.says("So far", wants("c1"), stop="max_tokens")
    assert (bench.end().status, bench.end().text) == ("budget_exceeded", "So far")
    assert bench.last("budget.exceeded").scope == "run:r1"
    assert bench.last("tool.finished").outcome == "cancelled"
    assert not any(event.type == "tool.started" for event in bench.log)


def test_an_answer_of_its_own_limit_is_no_matter_of_the_budget() -> None:
    """What the agent or the model allows ends as it always does."""
    bench = Bench(budget=Budget(usd=1))
    bench.send()
    bench.ready(max_output_tokens=300)
    bench.says("So far", stop="max_tokens")
    assert bench.end().status == "completed"


def test_a_run_may_have_a_budget_of_its_own() -> None:
    """In place of the definition's; the next run has that one again."""
    bench = Bench(budget=Budget(usd=1))
    bench.send("r1", budget=Budget(usd=2))
    assert bench.run.budget == Budget(usd=2)
    bench.says("done")
    bench.send("r2")
    assert bench.run.budget == Budget(usd=1)


def test_a_key_has_its_budget_for_life_and_a_larger_one_tops_it_up() -> None:
    """What was spent before counts; the same budget again says nothing."""
    bench = Bench()
    bench.send("r1")
    bench.says("hello", cost="0.9")
    assert bench.give(Limit(budget=Budget(usd=1))) == ["agent.configured"]
    assert bench.give(Limit(budget=Budget(usd=1))) == []
    bench.send("r2")
    bench.says("hello", cost="0.1")
    bench.send("r3")
    assert bench.ready() == ["budget.exceeded", "run.finished"]
    assert "key's budget" in (bench.end("r3").error or "")
    bench.give(Limit(budget=Budget(usd=2)))
    bench.send("r4")
    bench.says("hello again")
    assert bench.end("r4").status == "completed"


def test_a_budget_of_days_begins_anew_at_midnight() -> None:
    """UTC; what was spent stays in the bill."""
    bench = Bench()
    bench.give(Limit(budget=Budget(usd="0.5", per="day")))
    bench.send("r1")
    bench.says("hello", cost="0.5")
    bench.send("r2")
    assert bench.ready() == ["budget.exceeded", "run.finished"]
    bench.now += 86_400 * 10**9
    bench.send("r3")
    bench.says("hello", cost="0.2")
    assert bench.end("r3").status == "completed"
    assert bench.state.cost == Decimal("0.7")


def test_what_has_no_price_counts_for_nothing_and_what_has_goes_on_counting() -> None:
    """`on_unpriced="warn"`: the cost is unknown, and the budget holds against the rest."""
    bench = Bench(budget=Budget(usd="0.02"), on_unpriced="warn")
    bench.send()
    assert bench.ready(prices=None) == ["model.started", "budget.reserved"]
    assert bench.last("model.started").reserved is None
    bench.says(wants("c1"), cost=None)
    bench.runs("c1")
    bench.says(wants("c1"), cost="0.019")
    bench.runs("c1")
    assert bench.ready(max_output_tokens=5000) == ["budget.exceeded", "run.finished"]
    assert bench.end().cost is None


def test_the_bill_is_the_sum_of_its_rows() -> None:
    """Run and agent; one unknown cost makes the sum unknown for good. parity: A1"""
    bench = Bench()
    bench.send("r1")
    bench.fails()
    bench.says("one", cost="0.01")
    assert (bench.end().cost, bench.end().usage.total_tokens) == (Decimal("0.011"), 210)
    bench.send("r2")
    bench.says("two", cost=None)
    assert bench.end("r2").cost is None
    assert bench.state.cost is None
    bench.send("r3")
    bench.says("three", cost="0.02")
    assert bench.end("r3").cost == Decimal("0.02")
    assert bench.state.cost is None
    assert bench.state.usage.total_tokens == 430


def test_a_lost_attempt_owes_its_reservation() -> None:
    """Section 8: an orphaned attempt debits what was reserved, estimated, in money and in tokens."""
    bench = Bench(model="test:one", fallbacks=["other:two"])
    bench.send()
    bench.fails(False)
    bench.ready(provider="other", model="two", max_output_tokens=500)
    bench.crash()
    row = bench.last("usage.updated")
    assert (row.provider, row.model, row.cost, row.estimated) == ("other", "two", Decimal("0.0051"), True)
    assert (row.usage.output_tokens, row.price_source) == (500, "given")


def test_a_parked_agent_that_is_stopped_owes_what_it_left_open() -> None:
    """Nobody will report on it, and it may be forgotten next: what it has cost must not go with it."""
    bench = Bench()
    bench.send()
    bench.ready(max_output_tokens=500)
    bench.give(Crashed(error_type="RuntimeError", error="boom"))
    bench.give(Park(restarts=5, reason="it crashed"))
    assert bench.give(Stop(reason="forgotten")) == ["model.failed", "usage.updated", "model.discarded", "agent.stopped"]
    assert bench.last("usage.updated").cost == Decimal("0.0051")
    bench.give(Opened())
    assert [event.type for event in bench.log].count("usage.updated") == 1
    bench.says("done")
    assert bench.end().status == "completed"


def test_an_estimate_of_another_measure_says_nothing() -> None:
    """A store of a version that has counted otherwise: its ratios would be laid on other estimates."""
    bench = Bench()
    bench.send()
    bench.ready(estimated_tokens=80)
    bench.says("one")
    assert (bench.state.gauge.real, bench.state.gauge.estimated) == (100, 80)
    older = [replace(event, measure=0) if event.type == "model.started" else event for event in bench.log]
    state = AgentState(key="a/1", agent="a", definition=bench.agent).fold(older)
    assert (state.gauge.real, state.gauge.estimated) == (0, 0)


# ---- the model fails


def test_a_failure_of_a_retryable_kind_is_tried_again_after_a_delay() -> None:
    """A new attempt, not before its time; the delay is within base and the same whenever it is computed. parity: R2"""
    bench = Bench(retry=Retry(attempts=3, base=2.0))
    bench.send()
    assert bench.fails() == ["model.failed", "usage.updated", "model.retrying"]
    delay = bench.last("model.retrying").delay
    assert 0 <= delay < 2
    effect = bench.model_wanted()
    assert effect is not None
    assert (effect.attempt, effect.not_before) == (2, bench.now + int(delay * SECOND))
    again = effects(AgentState(key="a/1", agent="a", definition=bench.agent).fold(bench.log))
    assert [(e.attempt, e.not_before) for e in again if isinstance(e, CallModel)] == [(2, effect.not_before)]


def test_the_provider_says_how_long_to_wait() -> None:
    """`Retry-After` is obeyed, also beyond the cap. parity: R2"""
    bench = Bench(retry=Retry(base=0.0, cap=1.0))
    bench.send()
    bench.fails(retry_after=45.0)
    assert bench.last("model.retrying").delay == 45.0
    effect = bench.model_wanted()
    assert effect is not None
    assert effect.not_before == bench.now + 45 * SECOND


def test_attempts_are_counted_for_each_turn_and_the_last_error_is_the_runs() -> None:
    """parity: R2"""
    bench = Bench(retry=Retry(attempts=2))
    bench.send()
    bench.fails()
    bench.says(wants("c1"))
    bench.runs("c1")
    bench.fails(error="first")
    bench.fails(error="second", text="half", characters=4)
    assert (bench.end().status, bench.end().error, bench.end().error_type) == ("failed", "second", "Overloaded")
    assert bench.end().text == "half", "a partial answer is given"


def test_one_attempt_turns_retries_off() -> None:
    """parity: R2"""
    bench = Bench(retry=Retry(attempts=1))
    bench.send()
    assert bench.fails()[-1] == "run.finished"


def test_no_retry_is_planned_past_the_deadline() -> None:
    """parity: R2, R3"""
    bench = Bench(deadline=10.0)
    bench.send()
    bench.fails(retry_after=10.0)
    assert (bench.end().status, bench.end().error) == ("failed", "too much")


def test_the_next_model_goes_on_where_one_failed_for_good() -> None:
    """At once, with attempts of its own; the last error when all fail. parity: R4"""
    bench = Bench(fallbacks=["test:two"], retry=Retry(attempts=2))
    bench.send()
    bench.fails()
    assert bench.fails()[-1] == "model.fallback"
    assert (bench.last("model.fallback").from_model, bench.last("model.fallback").to_model) == ("test:one", "test:two")
    assert bench.model_wanted() == CallModel("r1", 1, 3, 1, 0)
    assert bench.fails()[-1] == "model.retrying"
    assert bench.fails(False, error="the last")[-1] == "run.finished"
    assert bench.end().error == "the last"


def test_an_attempt_that_never_started_uses_up_its_number() -> None:
    """Else the actor would take the next attempt for the one it knows, and wait for ever."""
    bench = Bench()
    bench.send()
    bench.give(
        Failed(
            run_id="r1", turn=1, attempt=1, provider="", model="", error_type="MalformedResponse", error="no request",
            retryable=True,
        )
    )  # fmt: skip
    assert bench.model_wanted() == CallModel("r1", 1, 2, 0, 0)
    assert not [event for event in bench.log if event.type == "usage.updated"], "nothing was sent, nothing is owed"
    assert bench.says("hello")[-1] == "run.finished"


def test_what_was_shown_of_a_failed_attempt_is_discarded() -> None:
    """Alloy never retried once text was shown; here readers are told. parity: R5"""
    bench = Bench()
    bench.send()
    assert bench.fails(characters=4) == ["model.failed", "usage.updated", "model.discarded", "model.retrying"]
    assert bench.last("model.discarded").characters == 4


def test_an_outcome_of_an_older_attempt_means_nothing() -> None:
    """Nor one of an older turn, or of a run that has ended."""
    bench = Bench()
    bench.send()
    bench.fails()
    bench.ready()
    assert bench.fails(attempt=1) == []
    assert bench.fails(turn=7) == []
    assert bench.fails(run_id="r0") == []
    assert bench.ready(attempt=1) == []


@pytest.mark.parametrize("stop", ["refusal", "content_filter"])
def test_a_refusal_fails_the_run_with_its_words_kept(stop: StopReason) -> None:
    """Stop reasons stay distinct. parity: P6"""
    bench = Bench()
    bench.send()
    bench.says("I won't.", stop=stop)
    assert (bench.end().status, bench.end().error_type, bench.end().text) == ("failed", "ContentRefused", "I won't.")
    assert bench.last("turn.finished").stop_reason == stop


def test_a_pause_of_the_model_is_another_turn() -> None:
    """`pause_turn`: the model is called again with what it said. parity: P6"""
    bench = Bench()
    bench.send()
    assert bench.says("searching", stop="pause")[-1] == "turn.started"
    bench.says("found")
    assert (bench.end().status, bench.end().turns) == ("completed", 2)


def test_an_empty_answer_leaves_no_message() -> None:
    """No empty assistant message; empty words among others are dropped."""
    bench = Bench()
    bench.send("r1")
    bench.says("")
    assert bench.end("r1").status == "completed"
    bench.send("r2")
    bench.says("", wants("c1"))
    assert [len(message.parts) for message in bench.state.transcript] == [1, 1, 1]


def test_an_answer_that_does_not_fit_the_schema_is_asked_for_again() -> None:
    """`output=int`: the model is told what is wrong."""
    bench = Bench(output=int)
    bench.send()
    assert bench.says("seven")[-1] == "turn.started"
    assert "does not fit the schema" in bench.texts()[-1]
    bench.says("7")
    assert (bench.end().status, bench.end().text) == ("completed", "7")


# ---- tool calls


def test_a_call_with_malformed_arguments_is_answered_with_an_error() -> None:
    """The model can mend it. parity: P8"""
    bench = Bench()
    bench.send()
    bench.says(ToolCall(call_id="c1", name="add", malformed='{"a": '))
    [(outcome, text)] = bench.answers()
    assert outcome == "error"
    assert '{"a": ' in text
    assert bench.run.turn == 2


def test_a_call_of_an_unknown_tool_is_answered_with_the_names_of_the_known() -> None:
    """Others are unaffected. parity: T3"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "subtract"), wants("c2"))
    assert bench.tools_wanted() == ["c2"]
    [(outcome, text)] = bench.answers()
    assert outcome == "error"
    assert "'subtract'" in text
    assert "add, look" in text


def test_two_calls_of_one_id_in_one_answer_get_ids_of_their_own() -> None:
    """Whatever a provider makes of it, each call is answered once; ids may repeat across turns."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c1"), wants(""))
    ids = [call.call.call_id for call in bench.run.calls]
    assert ids[0] == "c1"
    assert len(set(ids)) == 3
    assert all(ids)
    for call_id in ids:
        bench.runs(call_id)
    bench.says(wants("c1"))
    assert bench.tools_wanted() == ["c1"]


def test_a_serial_tool_is_a_barrier() -> None:
    """It waits for the calls before it; the calls behind it wait for it."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2", "alone"), wants("c3"), wants("c4", "alone"))
    assert bench.tools_wanted() == ["c1"]
    bench.runs("c1")
    assert bench.tools_wanted() == ["c2"]
    bench.runs("c2")
    assert bench.tools_wanted() == ["c3"]
    bench.runs("c3")
    assert bench.tools_wanted() == ["c4"]


def test_a_serial_tool_is_a_barrier_also_while_a_person_is_asked() -> None:
    """Else what runs behind it would be stopped by the approval."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "ask_alone"), wants("c2"))
    assert bench.tools_wanted() == []
    bench.resolve("c1")
    assert bench.tools_wanted() == ["c1"]
    bench.runs("c1")
    assert bench.tools_wanted() == ["c2"]


def test_a_call_that_runs_goes_on_when_a_hook_makes_an_earlier_one_serial() -> None:
    """The serial one waits for it."""
    bench = Bench(hooks=[Guard()])
    bench.send()
    bench.says(wants("c1"), wants("c2"))
    bench.give(Prepared(run_id="r1", turn=1, call_id="c2", call=wants("c2")))
    bench.grant("c2")
    bench.give(Prepared(run_id="r1", turn=1, call_id="c1", call=wants("c1", "alone")))
    assert bench.tools_wanted() == ["c2"]
    bench.done("c2")
    assert bench.tools_wanted() == ["c1"]


def test_a_second_grant_of_a_call_that_runs_means_nothing() -> None:
    """An execution is started once. rule 6"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2", "look"))
    assert bench.grant("c1") == ["tool.started"]
    assert bench.grant("c1") == []
    assert bench.grant("c2") == ["tool.started"]
    assert bench.grant("c2") == []


def test_a_result_counts_for_its_own_execution_only() -> None:
    """Rule 5: results match (run_id, call_id, execution); the first one wins."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2"))
    bench.grant("c1")
    assert bench.done("c1", execution=2) == []
    assert bench.done("c1", turn=9) == []
    assert bench.done("c2", execution=1) == [], "it was never started"
    assert bench.done("c1") == ["tool.finished"]
    assert bench.done("c1") == []


def test_every_outcome_but_ok_is_an_error_to_the_model() -> None:
    """And the call keeps its id. parity: T3, T4"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2"))
    bench.grant("c1")
    bench.done("c1", "too long", outcome="timeout")
    bench.runs("c2")
    message = bench.state.transcript[-1]
    assert [(getattr(part, "call_id", ""), getattr(part, "error", None)) for part in message.parts] == [
        ("c1", True),
        ("c2", False),
    ]


# ---- before_tool hooks


def test_hooks_see_each_call_before_it_is_pinned() -> None:
    """What they change is what runs, and what `tool.requested` tells. parity: H1"""
    bench = Bench(hooks=[Guard()])
    bench.send()
    bench.says(wants("c1", a=1), wants("c2"))
    assert bench.wanted == {PrepareTool("r1", 1, "c1", 0), PrepareTool("r1", 1, "c2", 1)}
    bench.give(Prepared(run_id="r1", turn=1, call_id="c1", call=wants("c1", a=2)))
    assert bench.last("tool.requested").arguments == {"a": 2}
    assert bench.run.calls[0].call.arguments == {"a": 2}
    assert bench.wanted == {RunTool("r1", 1, "c1", 0), PrepareTool("r1", 1, "c2", 1)}
    assert bench.give(Prepared(run_id="r1", turn=1, call_id="c1", call=wants("c1"))) == [], "pinned once"


def test_a_blocked_call_is_answered_and_the_run_goes_on() -> None:
    """parity: H1"""
    bench = Bench(hooks=[Guard()])
    bench.send()
    bench.says(wants("c1"))
    bench.give(Prepared(run_id="r1", turn=1, call_id="c1", call=wants("c1"), blocked="read only"))
    assert bench.answers() == [("blocked", "The call was blocked: read only")]
    assert bench.run.turn == 2


def test_a_halting_hook_ends_the_run_as_halted_with_its_calls_answered() -> None:
    """parity: H1, L7"""
    bench = Bench(hooks=[Guard()])
    bench.send()
    bench.says(wants("c1"))
    bench.give(Cancel(run_id="r1", by="hook", status="halted", reason="enough"))
    assert (bench.end().status, bench.end().error) == ("halted", "enough")
    assert [outcome for outcome, _ in bench.answers()] == ["cancelled"]


def test_a_failing_hook_fails_the_run_and_its_second_word_is_no_error() -> None:
    """The attempt fails first, which may end the run; the cancel that follows finds it gone, and nobody to refuse."""
    bench = Bench()
    bench.send()
    bench.give(
        Failed(
            run_id="r1", turn=1, attempt=1, provider="test", model="one", error_type="HookFailed", error="it raised",
            retryable=False,
        )
    )  # fmt: skip
    assert (bench.end().status, bench.end().error) == ("failed", "it raised")
    assert bench.give(Cancel(run_id="r1", by="hook", status="failed", reason="it raised")) == []


def test_a_hook_that_fails_after_the_answer_fails_the_run() -> None:
    """An `after_tool` that raised: the call keeps its result, the transcript stays valid."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2"))
    bench.runs("c1")
    bench.give(Cancel(run_id="r1", by="hook", status="failed", reason="it raised"))
    assert bench.end().status == "failed"
    assert [outcome for outcome, _ in bench.answers()] == ["ok", "cancelled"]


# ---- approvals


def test_a_call_that_needs_approval_pauses_the_run_until_it_is_approved() -> None:
    """Its siblings run; an effect stands for the question, so that a restarted agent still asks."""
    bench = Bench()
    bench.send()
    events = bench.says(wants("c1", "ask"), wants("c2"))
    assert events[-3:] == ["approval.requested", "run.paused", "tool.requested"]
    assert bench.wanted == {AskApproval("r1", 1, "c1", 0), RunTool("r1", 1, "c2", 1)}
    bench.crash()
    assert bench.wanted == {AskApproval("r1", 1, "c1", 0), RunTool("r1", 1, "c2", 1)}
    assert bench.state.activity == "paused"
    assert bench.resolve("c1") == ["approval.resolved", "run.resumed"]
    assert bench.tools_wanted() == ["c1", "c2"]


def test_a_denied_call_is_answered_with_who_and_why() -> None:
    """And the run goes on."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "ask"))
    bench.resolve("c1", "deny")
    assert bench.answers() == [("denied", "The call was denied by kim: because")]
    assert bench.run.turn == 2


def test_an_approval_may_change_the_arguments() -> None:
    """What was approved is what runs."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "ask", a=1))
    bench.resolve("c1", arguments={"a": 2})
    assert bench.run.calls[0].call.arguments == {"a": 2}
    assert bench.last("approval.resolved").arguments == {"a": 2}


def test_the_first_resolution_wins() -> None:
    """Rule 12: others are told."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "ask"), wants("c2"))
    bench.resolve("c1")
    with pytest.raises(AlreadyResolved, match="'c1'"):
        bench.resolve("c1", "deny")
    with pytest.raises(AlreadyResolved, match="'c2'"):
        bench.resolve("c2")
    with pytest.raises(AlreadyResolved, match="'c9'"):
        bench.resolve("c9")


def test_a_queued_run_waits_for_no_approval() -> None:
    """It has not started."""
    bench = Bench()
    bench.send("r0")
    bench.send("r1")
    with pytest.raises(NotFound):
        bench.resolve("c1")


@pytest.mark.parametrize(("name", "outcome"), [("ask_a_minute", "denied"), ("tell", None)])
def test_an_approval_that_nobody_gives_has_a_default(name: str, outcome: str | None) -> None:
    """Durable: the due time is in the event."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", name))
    assert bench.last("approval.requested").expires_at == bench.now + 60 * SECOND
    assert bench.due() == 60.0
    assert bench.after(59) == []
    bench.after(1)
    assert bench.last("approval.resolved").by == "timeout"
    if outcome is None:
        assert bench.tools_wanted() == ["c1"]
    else:
        assert [given for given, _ in bench.answers()] == [outcome]
        assert bench.run.turn == 2


def test_two_questions_are_one_pause() -> None:
    """The run resumes when the last one is decided."""
    bench = Bench(deadline=10.0)
    bench.send()
    bench.says(wants("c1", "ask"), wants("c2", "ask"))
    assert "run.resumed" not in bench.resolve("c1")
    assert bench.state.activity == "paused"
    assert "run.resumed" in bench.resolve("c2")
    assert [event.type for event in bench.log].count("run.paused") == 1


# ---- steers and follow-ups


def test_a_steer_is_delivered_before_the_next_request_with_all_calls_answered() -> None:
    """In one commit with its message, behind the answers. rule 11"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2"))
    bench.runs("c1")
    assert bench.add("steer", "look at 2026") == ["input.queued"]
    assert bench.runs("c2")[-4:] == ["turn.finished", "input.delivered", "message.appended", "turn.started"]
    assert bench.texts()[-2:] == ["tool: 3,3", "user: look at 2026"]


def test_a_steer_that_comes_too_late_is_dropped_in_the_commit_that_ends_the_run() -> None:
    """And told. rule 11"""
    bench = Bench()
    bench.send()
    bench.ready()
    bench.add("steer", "wait!")
    assert bench.says("done")[-2:] == ["input.dropped", "run.finished"]
    assert bench.last("input.dropped").reason == "the run ended completed"
    assert bench.end().status == "completed"


def test_follow_ups_continue_the_run_where_it_would_have_ended() -> None:
    """In order, and a steer that waits comes with them. rule 11"""
    bench = Bench()
    bench.send()
    bench.ready()
    bench.add("follow_up", "and then?")
    bench.add("follow_up", "and why?")
    bench.add("steer", "in short")
    assert bench.says("one")[-1] == "turn.started"
    assert bench.texts()[-3:] == ["user: and then?", "user: and why?", "user: in short"]
    bench.says("two")
    assert (bench.end().status, bench.end().text, bench.end().turns) == ("completed", "two", 2)


def test_a_follow_up_at_a_limit_is_dropped_not_lost_in_the_transcript() -> None:
    """No model would read it. rule 11"""
    bench = Bench(max_turns=1)
    bench.send()
    bench.ready()
    bench.add("follow_up", "and then?")
    assert bench.says("one")[-2:] == ["input.dropped", "run.finished"]
    assert bench.end().status == "max_turns"
    assert bench.texts()[-1] == "assistant: one"


def test_a_steer_waits_with_a_queued_run_and_goes_with_it() -> None:
    """Delivered with its first request; dropped if it is cancelled in the queue."""
    bench = Bench()
    for run_id in ("r1", "r2", "r3"):
        bench.send(run_id, run_id)
    bench.add("steer", "two", "r2")
    bench.add("steer", "three", "r3")
    assert bench.cancel("r3") == ["input.dropped", "run.finished"]
    bench.says("done")
    assert bench.texts() == ["user: r1", "assistant: done", "user: r2", "user: two"]


def test_an_input_to_a_run_that_ends_or_has_ended_is_refused() -> None:
    """`AlreadyResolved`, before anything is accepted."""
    bench = Bench()
    bench.send()
    bench.ready()
    bench.cancel()
    with pytest.raises(AlreadyResolved, match="is ending"):
        bench.add("steer", "wait")
    bench.fails(False)
    with pytest.raises(AlreadyResolved, match="has ended"):
        bench.add("steer", "wait")


def test_an_input_tells_which_run_it_is_of() -> None:
    """Also the root, for those who follow a tree of runs."""
    bench = Bench()
    bench.send("r1", parent_run_id="p", root_run_id="root")
    bench.add("steer", "x")
    queued = bench.last("input.queued")
    assert (queued.run_id, queued.parent_run_id, queued.root_run_id, queued.turn) == ("r1", "p", "root", 1)
    bench.send("r2", parent_run_id="p", root_run_id="root")
    bench.cancel("r2")
    assert bench.end("r2").root_run_id == "root"


# ---- cancel


def test_a_cancel_before_the_request_is_sent_ends_at_once() -> None:
    """`run.cancelling` is committed first. parity: A4; rule 8"""
    bench = Bench()
    bench.send()
    assert bench.cancel() == ["run.cancelling", "run.finished"]
    assert bench.end().status == "cancelled"
    assert bench.wanted == set()


def test_a_cancel_in_mid_stream_waits_for_the_attempts_bill() -> None:
    """No effect is wanted but the end of the grace; the partial text is given. rule 8"""
    bench = Bench()
    bench.send()
    bench.ready()
    assert bench.cancel() == ["run.cancelling"]
    assert bench.state.activity == "cancelling"
    assert bench.wanted == {Wait(bench.now + int(GRACE * SECOND))}
    assert bench.cancel() == [], "the first one wins"
    bench.fails(False, error_type="Cancelled", text="half an ans", characters=11)
    assert (bench.end().status, bench.end().text, bench.end().cost) == ("cancelled", "half an ans", Decimal("0.001"))


def test_an_answer_that_comes_after_the_cancel_is_paid_for_and_discarded() -> None:
    """It is no message, and its calls do not run. rule 8"""
    bench = Bench()
    bench.send()
    bench.ready()
    bench.cancel()
    assert bench.says("too late", wants("c1")) == ["model.finished", "usage.updated", "model.discarded", "run.finished"]
    assert (bench.end().status, bench.end().cost) == ("cancelled", Decimal("0.01"))
    assert bench.texts() == ["user: go"]


def test_a_cancel_answers_what_has_not_started_and_waits_for_what_runs() -> None:
    """Results count until all calls are answered. rule 8"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2"), wants("c3", "ask"))
    bench.grant("c1")
    assert bench.cancel() == ["run.cancelling", "tool.finished", "tool.finished"]
    assert bench.grant("c2") == []
    with pytest.raises(AlreadyResolved):
        bench.resolve("c3")
    assert bench.done("c1", "just in time")[-1] == "run.finished"
    assert bench.texts()[-1].startswith("tool: just in time,")
    assert [outcome for outcome, _ in bench.answers()] == ["cancelled", "cancelled", "ok"]


def test_what_runs_when_the_grace_is_over_is_uncertain() -> None:
    """Two seconds; a timer is wanted for it. rule 8"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"))
    bench.grant("c1")
    bench.cancel()
    assert bench.after(GRACE - 0.1) == []
    assert bench.after(0.1)[-1] == "run.finished"
    assert [outcome for outcome, _ in bench.answers()] == ["uncertain"]
    assert bench.give(Done(run_id="r1", turn=1, call_id="c1", execution=1, outcome="ok", text="late")) == []


def test_an_attempt_that_does_not_report_within_the_grace_owes_its_reservation() -> None:
    """Never zero. rule 8; section 8"""
    bench = Bench()
    bench.send()
    bench.ready(max_output_tokens=1000)
    bench.cancel()
    assert bench.after(GRACE) == ["model.failed", "usage.updated", "model.discarded", "run.finished"]
    assert bench.end().cost == Decimal("0.0101")


def test_a_queued_run_is_cancelled_without_ever_starting() -> None:
    """The one that runs does not notice. parity: A4"""
    bench = Bench()
    bench.send("r1")
    bench.send("r2")
    assert bench.cancel("r2") == ["run.finished"]
    assert (bench.end("r2").status, bench.end("r2").turns, bench.end("r2").cost) == ("cancelled", 0, Decimal(0))
    assert bench.run.run_id == "r1"


def test_cancelling_an_unknown_run_is_an_error() -> None:
    """parity: A4"""
    bench = Bench()
    bench.send("r1")
    with pytest.raises(AlreadyResolved, match="'r9'"):
        bench.cancel("r9")


def test_after_a_cancel_the_agent_goes_on_with_the_next_run() -> None:
    """In the same commit. parity: A4"""
    bench = Bench()
    bench.send("r1")
    bench.send("r2")
    assert bench.cancel("r1") == ["run.cancelling", "run.finished", "run.started", "message.appended", "turn.started"]
    bench.says("hello")
    assert bench.end("r2").status == "completed"


# ---- the queue


def test_runs_start_in_the_order_they_were_sent() -> None:
    """parity: A3"""
    bench = Bench()
    for run_id in ("r1", "r2", "r3"):
        bench.send(run_id)
    for _ in range(3):
        bench.says("done")
    started = [event.run_id for event in bench.log if event.type == "run.started"]
    assert started == ["r1", "r2", "r3"]
    assert [event.pending_count for event in bench.log if isinstance(event, ev.RunQueued)] == [0, 1, 2]


def test_a_full_queue_rejects() -> None:
    """`max_pending` runs may wait beside the one that runs. parity: A3"""
    bench = Bench(max_pending=1)
    bench.send("r1")
    bench.send("r2")
    with pytest.raises(AgentBusy, match="max_pending=1"):
        bench.send("r3")
    assert len(bench.state.queue) == 1


def test_a_busy_agent_rejects_if_it_is_defined_so() -> None:
    """`busy="reject"`. parity: A3"""
    bench = Bench(busy="reject")
    bench.send("r1")
    with pytest.raises(AgentBusy, match="'r1'"):
        bench.send("r2")
    bench.says("done")
    assert bench.send("r2")[0] == "run.queued"


def test_reset_and_set_model_need_an_idle_agent() -> None:
    """Reset empties the conversation and keeps the bill; set_model keeps both. parity: A1, A3"""
    bench = Bench()
    bench.send()
    agent = bench.state.definition
    assert agent is not None
    set_model = Configure(changes={"model": "test:two"}, definition=agent.replace(model="test:two"), idle=True)
    for input in (Reset(), set_model):
        with pytest.raises(AgentBusy):
            bench.give(input)
    bench.says("done")
    bench.give(set_model)
    assert len(bench.state.transcript) == 2
    assert bench.give(Reset()) == ["conversation.reset"]
    assert len(bench.state.transcript) == 0
    assert bench.state.cost == Decimal("0.01")
    bench.send("r2")
    assert bench.last("run.started").model == "test:two"


# ---- recovery


def test_a_call_that_had_no_slot_runs_after_a_crash() -> None:
    """Rule 6: without `tool.started`, it runs; and the crash was not at work."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"))
    assert bench.crash() == ["agent.restarted", "agent.started", "run.resumed"]
    assert bench.run.recoveries == 0
    assert bench.tools_wanted() == ["c1"]


def test_a_call_that_may_not_be_replayed_is_uncertain_after_a_crash() -> None:
    """Rule 6: `replay="never"`, the default; the model is told and decides."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"), wants("c2"))
    bench.grant("c1")
    bench.crash()
    assert bench.run.recoveries == 1
    [(outcome, text)] = bench.answers()
    assert outcome == "uncertain"
    assert "Check before you repeat it" in text
    assert bench.tools_wanted() == ["c2"]
    assert bench.runs("c2")[-1] == "turn.started"


def test_a_safe_call_runs_again_after_a_crash_with_its_old_key() -> None:
    """Rule 6: a second execution, the idempotency key minted once; the first one's late result is void."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "look"))
    key = bench.run.calls[0].idempotency_key
    bench.grant("c1")
    bench.crash()
    assert bench.tools_wanted() == ["c1"]
    bench.grant("c1")
    assert bench.last("tool.started").execution == 2
    assert bench.run.calls[0].idempotency_key == key == "r1/1/c1"
    assert bench.done("c1", "late", execution=1) == []
    assert bench.done("c1", "good")[0] == "tool.finished"


def test_an_execution_that_outlived_the_actor_is_adopted() -> None:
    """Rule 5: it goes on, its result counts, and the death was not at work."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1"))
    bench.grant("c1")
    bench.crash(("c1", 1))
    assert bench.run.recoveries == 0
    assert bench.tools_wanted() == ["c1"]
    assert bench.done("c1", "3", execution=1)[-1] == "turn.started"
    assert bench.answers() == [("ok", "3")]


def test_an_execution_of_another_number_is_not_adopted() -> None:
    """Rule 5: results match the execution."""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "look"))
    bench.grant("c1")
    bench.crash()
    bench.grant("c1")
    bench.crash(("c1", 1))
    assert bench.run.recoveries == 2


def test_an_attempt_that_was_open_is_closed_billed_and_tried_again() -> None:
    """Readers are told to drop its text. parity: A5"""
    bench = Bench()
    bench.send()
    bench.ready(max_output_tokens=100)
    assert bench.crash()[-4:] == ["run.resumed", "model.failed", "usage.updated", "model.discarded"]
    effect = bench.model_wanted()
    assert effect is not None
    assert effect.attempt == 2
    bench.says("hello")
    assert bench.end().cost == Decimal("0.0111")


def test_a_run_that_dies_three_times_at_work_is_sealed() -> None:
    """n = 2 resumes alone, n = 3 gives up; the agent lives on with the next run. rule 7"""
    bench = Bench()
    bench.send("r1")
    bench.send("r2")
    for recoveries in (1, 2):
        bench.ready()
        bench.crash()
        assert bench.run.recoveries == recoveries
    bench.ready()
    bench.crash()
    assert bench.end("r1").status == "sealed"
    assert "3 times" in (bench.end("r1").error or "")
    assert (bench.run.run_id, bench.run.recoveries) == ("r2", 0)


def test_a_sealed_run_leaves_no_call_open() -> None:
    """What ran is uncertain, what waited is cancelled; the transcript is valid. rule 7"""
    bench = Bench()
    bench.send()
    bench.says(wants("c1", "look"), wants("c2"), wants("c3", "look"))
    for _ in range(3):
        bench.grant("c1")
        bench.crash()
    assert bench.end().status == "sealed"
    assert [outcome for outcome, _ in bench.answers()] == ["uncertain", "cancelled", "cancelled"]
    assert bench.texts()[-1].startswith("tool: ")


def test_a_finished_turn_resets_the_count() -> None:
    """Rule 7: it was no crash loop."""
    bench = Bench()
    bench.send()
    for _ in range(4):
        bench.ready()
        bench.crash()
        bench.says(wants("c1"))
        bench.runs("c1")
    assert bench.run.recoveries == 0
    assert bench.run.turn == 5


def test_no_attempt_starts_once_the_agent_is_stopped() -> None:
    """A stop overtakes what was about to be sent: nobody would fly it, and it would be owed."""
    bench = Bench()
    bench.send("r1")
    bench.give(Stop(reason="deploy"))
    bench.ready()
    assert bench.state.reserved is None
    assert not bench.run.attempt_open


def test_a_clean_stop_never_counts() -> None:
    """Rule 7: also if an attempt was open. A stopped agent begins nothing; its queue waits."""
    bench = Bench()
    bench.send("r1")
    for _ in range(4):
        bench.ready()
        bench.give(Stop(reason="deploy"))
        assert bench.state.activity == "stopped"
        assert bench.wanted == set()
        assert bench.give(Stop(reason="again")) == []
        bench.give(Opened())
        assert bench.run.recoveries == 0
    bench.ready()
    bench.give(Stop(reason="deploy"))
    bench.send("r2")
    assert bench.says("done")[-1] == "run.finished"
    assert bench.state.run is None
    assert "run.started" in bench.give(Opened())


def test_a_crash_in_a_cancel_starts_nothing() -> None:
    """Rule 8: recovery then only settles; what runs elsewhere still has its grace."""
    bench = Bench()
    bench.send("r1")
    bench.says(wants("c1", "look"), wants("c2", "look"))
    bench.grant("c1")
    bench.grant("c2")
    bench.cancel()
    bench.crash(("c2", 1))
    assert [outcome for outcome, _ in bench.answers()] == ["uncertain"]
    assert bench.wanted == {Wait(bench.run.ending_at + int(GRACE * SECOND))}
    bench.done("c2")
    assert bench.end().status == "cancelled"


def test_a_parked_agent_wants_nothing_until_it_is_resumed_by_hand() -> None:
    """The run stays open, visible."""
    bench = Bench()
    bench.send()
    bench.give(Crashed(error_type="RuntimeError", error="boom"))
    assert bench.give(Park(restarts=5, reason="too many crashes")) == ["agent.parked"]
    assert (bench.state.activity, bench.wanted) == ("parked", set())
    assert bench.give(Opened(by_hand=True))[:2] == ["agent.resumed", "agent.started"]
    assert bench.model_wanted() is not None


def test_a_crash_between_runs_is_only_a_new_incarnation() -> None:
    """Incarnation: 1 + its restarts."""
    bench = Bench()
    bench.send()
    bench.says("hello")
    assert bench.crash() == ["agent.restarted", "agent.started"]
    assert bench.last("agent.started").recovered is True
    assert (bench.state.incarnation, bench.state.activity) == (2, "idle")
    bench.send("r2")
    assert bench.texts() == ["user: go", "assistant: hello", "user: go"]
