"""Budgets of a key and of a store in a live runtime: who waits, who is refused, what counts, and what is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, types_of, wait_for

from nitinol import Agent, Budget, HookContext, Hooks, Prices, Retry, Runtime, errors, run
from nitinol.errors import ConfigurationError, ReadOnly
from nitinol.http import Http
from nitinol.journal.audit import audit
from nitinol.messages import Message, Text
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart
from nitinol.testing import Answer, ScriptedProvider, crash, fail, gate, override_model, say
from nitinol.usage import Usage

PRICES = Prices(input="0", output="1000")
"""A tenth of a cent for each token of the answer, so that sums are seen at a glance."""


def scripted(script: Any, output_tokens: int = 100, **options: Any) -> Agent[Any]:
    """An agent whose answers cost 0.1 cent a token, each `output_tokens` long, and may have 300."""
    model = ScriptedProvider(script, usage=Usage(output_tokens=output_tokens), prices=PRICES)
    options = {"max_output_tokens": 300, **options}
    return Agent(name="spender", model=model, **options)


def hello(request: ModelRequest) -> Answer:
    return "hello"


# ---- the store


def test_agents_that_race_for_one_budget_wait_for_each_other_in_their_order() -> None:
    """Two of three fit at a time; the third is sent when the first has cost less than it might have."""
    first, second = gate("one"), gate("two")
    agent = scripted([first, second, "three"])
    with Runtime(budget=Budget(usd="0.70")) as rt, rt.subscribe("model.started", "run.finished") as events:
        handles = list[Any]()
        for number in range(3):
            handles.append(rt.start(agent, key=f"k/{number}").send("go"))
            if number < 2:
                assert wait_for(events, "model.started").key == f"k/{number}"
        waiting = rt.get("k/2")
        assert waiting.status().state == "running"
        assert "model.started" not in types_of(waiting)
        first.release()
        assert wait_for(events, "model.started").key == "k/2"
        second.release()
        assert [handle.result(SOON).status for handle in handles] == ["completed"] * 3
        assert rt.spend("agent")["spender"].cost == Decimal("0.3")
        reserved = [event for event in log_of(waiting) if event.type == "budget.reserved"]
        assert [(event.scope, event.amount) for event in reserved] == [("store", Decimal("0.3"))]


def test_only_what_is_spent_refuses_a_request() -> None:
    """Under 256 tokens of the answer nothing is sent; the error says what is missing."""
    with Runtime(budget=Budget(usd="0.40")) as rt:
        agent = scripted(hello)
        assert rt.start(agent, key="a").ask("go", timeout=SOON).status == "completed"
        assert rt.start(agent, key="b").ask("go", timeout=SOON).status == "completed"
        result = rt.start(agent, key="c").ask("go", timeout=SOON)
        assert result.status == "budget_exceeded"
        assert result.error == (
            "the store's budget of $0.40 does not hold the next request, which may need $0.256, even with a short answer;"
            " spent: $0.2, 200 tokens. Runtime(budget=) gives all of them more."
        )
        assert result.cost == 0
        assert_valid(rt.get("c"))


def test_who_waits_for_money_can_be_cancelled_and_has_a_deadline() -> None:
    """And gives up the place in the queue."""
    first = gate("one")
    with Runtime(budget=Budget(usd="0.40")) as rt, rt.subscribe("model.started") as events:
        holder = rt.start(scripted([first]), key="holder").send("go")
        wait_for(events, "model.started")
        late = rt.start(scripted(hello, deadline=0.05), key="late").send("go")
        cancelled = rt.start(scripted(hello), key="cancelled").send("go")
        assert late.result(SOON).status == "deadline_exceeded"
        cancelled.cancel()
        assert cancelled.result(SOON).status == "cancelled"
        first.release()
        holder.result(SOON)
        assert rt.start(scripted(hello), key="next").ask("go", timeout=SOON).status == "completed"


def test_a_failed_attempt_and_its_retry_are_in_the_same_budget() -> None:
    """What broke after it was shown is paid; what never came is not."""
    script = [say("x" * 400, cut=True), fail(errors.RateLimited("no", status_code=429)), "done"]
    with Runtime(budget=Budget(usd=1)) as rt:
        ref = rt.start(scripted(script, retry=Retry(attempts=4, base=0.001)), key="k")
        result = ref.ask("go", timeout=SOON)
        assert result.status == "completed"
        settled = [event.amount for event in log_of(ref) if event.type == "budget.settled"]
        assert settled == [Decimal("0.1"), Decimal(0), Decimal("0.1")]
        assert rt.spend("key")["k"].cost == result.cost == Decimal("0.2")


def test_an_agent_that_crashes_in_mid_answer_owes_what_was_heard(tmp_path: Path) -> None:
    """Its stream is closed, and settled before it goes on."""
    agent = scripted([gate("never"), "again"])
    with Runtime(tmp_path / "agents.db", budget=Budget(usd=1)) as rt, rt.subscribe("model.started") as events:
        ref = rt.start(agent, key="k")
        handle = ref.send("go")
        wait_for(events, "model.started")
        crash(ref)
        assert handle.result(SOON).status == "completed"
        rows = [event for event in log_of(ref) if event.type == "usage.updated"]
        assert [(row.estimated, row.cost) for row in rows] == [(True, Decimal(0)), (False, Decimal("0.1"))]


def test_a_parked_agent_keeps_nobody_waiting() -> None:
    """What it has reserved counts as spent until it says what that came to."""
    types = ("model.started", "agent.started", "agent.parked")
    with Runtime(budget=Budget(usd="0.556")) as rt, rt.subscribe(*types) as events:
        ref = rt.start(scripted([gate("never")]), key="parked")
        for _ in range(5):
            wait_for(events, "agent.started")
            crash(ref)
        wait_for(events, "agent.started")
        ref.send("go")
        wait_for(events, "model.started")
        crash(ref)
        wait_for(events, "agent.parked")
        other = rt.start(scripted(hello), key="other")
        assert other.ask("go", timeout=SOON).status == "completed"
        started = [event for event in log_of(other) if event.type == "model.started"]
        assert [(event.max_output_tokens, event.capped) for event in started] == [(256, "store")]


def test_a_budget_of_the_store_knows_what_was_spent_before(tmp_path: Path) -> None:
    """By the store's bill, of all its days, or of this one."""
    path = tmp_path / "agents.db"
    with Runtime(path) as rt:
        rt.start(scripted(hello), key="a").ask("go", timeout=SOON)
    for budget in (Budget(usd="0.35"), Budget(usd="0.35", per="day"), Budget(usd="0.35", per="month")):
        with Runtime(path, budget=budget) as rt:
            result = rt.start(scripted(hello), key="b").ask("go", timeout=SOON)
            assert result.status == "budget_exceeded"
            assert f"store's budget of {budget.limit}" in str(result.error)
    with Runtime(path, budget=Budget(usd="0.36")) as rt:
        assert rt.start(scripted(hello), key="b").ask("go", timeout=SOON).status == "completed"


def test_a_shared_budget_is_warned_of_in_the_log_of_who_spends_the_last_of_it() -> None:
    """At 50, 80 and 95 per cent."""
    agent = scripted(hello, output_tokens=300)
    with Runtime(budget=Budget(usd=1)) as rt, rt.subscribe("budget.warning") as events:
        for number in range(3):
            rt.start(agent, key=f"k/{number}").ask("go", timeout=SOON)
        told = [events.get(SOON), events.get(SOON)]
        assert [(event.type, event.key) for event in told] == [("budget.warning", "k/1"), ("budget.warning", "k/2")]
        assert [getattr(event, "fraction", None) for event in told] == [0.5, 0.8]
        assert getattr(told[0], "limit", None) == "$1"


def test_a_model_without_a_price_is_refused_under_money() -> None:
    """Of a run, a key or a store; the next model of `fallbacks=` may have one."""
    unpriced = ScriptedProvider(lambda request: "free?")
    agent = Agent(name="a", model=unpriced)
    with Runtime(budget=Budget(usd=1)) as rt:
        result = rt.start(agent, key="k").ask("go", timeout=SOON)
        assert (result.status, "prices=" in str(result.error)) == ("failed", True)
        assert result.error_type == "ConfigurationError"
        priced = ScriptedProvider(lambda request: "paid", prices=PRICES)
        assert rt.start(agent.replace(fallbacks=[priced]), key="k").ask("go", timeout=SOON).text == "paid"
        allowed = rt.start(agent.replace(on_unpriced="warn"), key="w").ask("go", timeout=SOON)
        assert (allowed.text, allowed.cost) == ("free?", None)
    with Runtime(budget=Budget(tokens=100_000)) as rt:
        assert rt.start(agent, key="k").ask("go", timeout=SOON).text == "free?", "tokens need no price"


def test_a_model_that_stands_in_for_another_needs_no_price(caplog: pytest.LogCaptureFixture) -> None:
    """Under `override_model` it costs nothing; with prices of its own it costs, and budgets hold."""
    agent = Agent(name="a", model="anthropic:claude-sonnet-4-6", budget=Budget(cents=1), max_output_tokens=300)
    with override_model(ScriptedProvider(hello)), Runtime(budget=Budget(usd=1)) as rt:
        result = rt.start(agent, key="k").ask("go", timeout=SOON)
        assert (result.status, result.cost) == ("completed", None)
    assert "no price" not in caplog.text
    dear = Prices(input="30000", output="15")
    with override_model(ScriptedProvider(hello, prices=dear)), Runtime() as rt:
        assert rt.start(agent, key="k").ask("go", timeout=SOON).status == "budget_exceeded"


# ---- a key


def test_a_budget_of_a_key_is_for_life_and_outlives_the_process(tmp_path: Path) -> None:
    """Start it again with more to top it up; without, to leave it as it is."""
    path, agent = tmp_path / "agents.db", scripted(hello)
    with Runtime(path) as rt:
        ref = rt.start(agent, key="k", budget=Budget(usd="0.45"))
        assert [ref.ask("go", timeout=SOON).status for _ in range(3)] == ["completed", "completed", "budget_exceeded"]
        assert rt.start(agent, key="other").ask("go", timeout=SOON).status == "completed", "it is the key's alone"
    with Runtime(path) as rt:
        ref = rt.start(agent, key="k")
        assert ref.ask("go", timeout=SOON).status == "budget_exceeded"
        rt.start(agent, key="k", budget=Budget(usd="0.50"))
        assert ref.ask("go", timeout=SOON).status == "completed"
        rt.start(agent, key="k", budget=Budget(usd="0.50"))
        changed = [event for event in log_of(ref) if event.type == "agent.configured"]
        assert len(changed) == 2, "the same budget again says nothing"
        assert_valid(ref)


def test_a_topped_up_budget_counts_for_the_run_in_progress() -> None:
    """Its next request asks for what there is then."""
    go_on = gate("more")
    agent = scripted([go_on, "done"])
    with Runtime() as rt, rt.subscribe("model.started") as events:
        ref = rt.start(agent, key="k", budget=Budget(usd="0.3"))
        handle = ref.send("go")
        wait_for(events, "model.started")
        handle.follow_up("and then?")
        rt.start(agent, key="k", budget=Budget(usd=1))
        go_on.release()
        assert handle.result(SOON).text == "done"


# ---- a run


def test_a_message_may_have_a_budget_of_its_own() -> None:
    """In place of the definition's."""
    agent = scripted(hello, budget=Budget(usd="0.2"))
    with Runtime() as rt:
        ref = rt.start(agent, key="k")
        assert ref.ask("go", timeout=SOON).status == "budget_exceeded"
        assert ref.ask("go", timeout=SOON, budget=Budget(usd=1)).status == "completed"
        assert ref.send("go", budget=Budget(usd=1)).result(SOON).status == "completed"


# ---- what is refused


@pytest.mark.parametrize("budget", ["1", 1, Decimal(1), {"usd": 1}])
def test_a_budget_is_a_budget(budget: Any) -> None:
    """Anything else is refused before it could be spent."""
    with pytest.raises(ConfigurationError, match="must be a Budget"):
        Runtime(budget=budget)
    with Runtime() as rt:
        with pytest.raises(ConfigurationError, match="must be a Budget"):
            rt.start(scripted(hello), budget=budget)
        with pytest.raises(ConfigurationError, match="must be a Budget"):
            rt.start(scripted(hello)).send("go", budget=budget)


def test_a_budget_of_a_run_does_not_renew() -> None:
    """And says where one does."""
    daily = Budget(usd=1, per="day")
    with pytest.raises(ConfigurationError, match=r"rt\.start\(budget=\)"):
        scripted(hello, budget=daily)
    with Runtime() as rt, pytest.raises(ConfigurationError, match=r"Runtime\(budget=\)"):
        rt.start(scripted(hello)).send("go", budget=daily)


def test_who_only_looks_on_has_no_budget(tmp_path: Path) -> None:
    """It spends nothing."""
    path = tmp_path / "agents.db"
    with Runtime(path) as rt:
        rt.start(scripted(hello), key="k").ask("go", timeout=SOON)
    with pytest.raises(ConfigurationError, match="read_only=True limits nothing"):
        Runtime(path, read_only=True, budget=Budget(usd=1))
    with Runtime(path, read_only=True) as rt:
        assert rt.spend("key")["k"].cost == Decimal("0.1")
        with pytest.raises(ReadOnly):
            rt.start(scripted(hello), key="k", budget=Budget(usd=1))


# ---- the bill


def test_spend_tells_the_bill_by_what_is_asked(tmp_path: Path) -> None:
    """In memory and in a store alike; forgotten agents are in it, unpriced rows are known to be there."""
    for store in (None, tmp_path / "agents.db"):
        with Runtime(store) as rt:
            rt.start(scripted(hello), key="a").ask("go", timeout=SOON)
            unpriced = Agent(name="other", model=ScriptedProvider(hello))
            rt.start(unpriced, key="b").ask("go", timeout=SOON)
            rt.forget("a")
            by_agent = rt.spend(by="agent")
            assert list(by_agent) == ["other", "spender"]
            assert by_agent["spender"].cost == by_agent["spender"].priced == Decimal("0.1")
            assert (by_agent["other"].cost, by_agent["other"].unpriced) == (None, 1)
            assert sum(spent.priced for spent in rt.spend("day").values()) == Decimal("0.1")
            assert list(rt.spend("model")) == ["scripted:script"]
            assert list(rt.spend("key")) == (["b"] if store is None else ["a", "b"])
            with pytest.raises(ValueError, match="must be one of agent, key, model, day"):
                rt.spend("hour")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_many_threads_and_one_budget() -> None:
    """Real threads that ask real agents: never more than the budget, and nearly all of it."""
    agent = scripted(hello, output_tokens=300)
    with Runtime(budget=Budget(usd=20)) as rt:

        def spend(number: int) -> None:
            ref = rt.start(agent, key=f"k/{number}")
            while ref.ask("go", timeout=60).status == "completed":
                pass

        threads = [threading.Thread(target=spend, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        spent = rt.spend("agent")["spender"].cost
        assert spent is not None
        assert Decimal("19.7") < spent <= 20


# ---- what others bring along


class Odd:
    """A price list of a third party's."""

    source = "odd"

    def __init__(self, cost: Any = Decimal(1), at_most: Any = Decimal(1)) -> None:
        self._cost, self._at_most = cost, at_most

    def cost(self, usage: Usage) -> Any:
        if isinstance(self._cost, Exception):
            raise self._cost
        return self._cost

    def at_most(self, input_tokens: int, output_tokens: int) -> Any:
        if isinstance(self._at_most, Exception):
            raise self._at_most
        return self._at_most


@pytest.mark.parametrize("wrong", [ValueError("no"), Decimal(-5), Decimal("NaN"), 0.5])
def test_prices_that_are_no_amount_harm_nobody_else(wrong: Any) -> None:
    """Of what was used, the worst case counts; where that is not known, nothing is sent. Others go on."""
    with Runtime(budget=Budget(usd=10)) as rt:
        model = ScriptedProvider(hello, prices=Odd(cost=wrong))
        result = rt.start(Agent(name="a", model=model), key="a").ask("go", timeout=SOON)
        assert (result.status, result.cost) == ("completed", Decimal(1))
        model = ScriptedProvider(hello, prices=Odd(at_most=wrong))
        result = rt.start(Agent(name="b", model=model), key="b").ask("go", timeout=SOON)
        assert (result.status, result.error_type) == ("failed", "ConfigurationError")
        assert rt.start(scripted(hello), key="c").ask("go", timeout=SOON).status == "completed"
        assert rt.spend("key")["a"].priced == 1


def test_a_fee_that_nobody_knows_leaves_no_hole_in_a_budget() -> None:
    """Its tokens count, as an estimate; without a budget of money the cost is unknown, as the bill says."""
    model = ScriptedProvider(hello, usage=Usage(output_tokens=300, server_tool_calls=1), prices=PRICES)
    agent = Agent(name="a", model=model, max_output_tokens=300)
    with Runtime() as rt:
        assert rt.start(agent, key="free").ask("go", timeout=SOON).cost is None
        ref = rt.start(agent, key="k", budget=Budget(usd="0.5"))
        assert [ref.ask("go", timeout=SOON).status for _ in range(2)] == ["completed", "budget_exceeded"]
        rows = [event for event in log_of(ref) if event.type == "usage.updated"]
        assert [(row.cost, row.estimated) for row in rows] == [(Decimal("0.3"), True)]


class Change(Hooks):
    """Sends something else."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def before_model(self, ctx: HookContext, request: ModelRequest) -> ModelRequest:
        return request.replace(**self._changes)


def test_what_a_hook_sends_is_what_is_reserved() -> None:
    """Its messages, not those of the log."""
    long = Message(role="user", parts=(Text("x" * 40_000),))
    with Runtime(budget=Budget(tokens=10_000)) as rt:
        ref = rt.start(scripted(hello, hooks=[Change(messages=(long,))]), key="k")
        assert ref.ask("go", timeout=SOON).status == "budget_exceeded"


@pytest.mark.parametrize("wrong", [-5, 0, 1.5, "many", True])
def test_a_hook_cannot_ask_for_an_answer_of_no_length(wrong: Any) -> None:
    """Which would reserve less than nothing."""
    with Runtime(budget=Budget(usd=1)) as rt:
        result = rt.start(scripted(hello, hooks=[Change(max_output_tokens=wrong)]), key="k").ask("go", timeout=SOON)
        assert result.status == "failed"
        assert f"max_output_tokens={wrong!r}" in str(result.error)


class Ask(Hooks):
    """Asks another agent about an answer, or an error."""

    rt: Runtime

    def after_model(self, ctx: HookContext, response: ModelResponse) -> None:
        self.answer = self.rt.start(scripted(hello), key="judge").ask("well?", timeout=SOON).text

    def on_error(self, ctx: HookContext, error: str) -> None:
        self.answer = self.rt.start(scripted(hello), key="nurse").ask("well?", timeout=SOON).text


@pytest.mark.parametrize("answer", ["an answer", say("", cut=True)])
def test_hooks_may_run_agents_out_of_the_same_budget(answer: Any) -> None:
    """Once an attempt is over, it holds no more than what it came to."""
    hook = Ask()
    with Runtime(budget=Budget(usd="0.5")) as rt:
        hook.rt = rt
        rt.start(scripted([answer], hooks=[hook], retry=Retry(attempts=1)), key="k").ask("go", timeout=SOON)
        assert hook.answer == "hello"


@pytest.mark.parametrize("forget", [False, True])
def test_a_stop_in_mid_answer_is_in_the_bill(forget: bool, tmp_path: Path) -> None:
    """As it is when the run is cancelled: nothing stays reserved, and who is forgotten has paid."""
    model = ScriptedProvider([gate("never")], prices=Prices(input="1000", output="1000"))
    with Runtime(tmp_path / "agents.db", budget=Budget(usd=5)) as rt, rt.subscribe("model.started") as events:
        ref = rt.start(Agent(name="a", model=model), key="k")
        ref.send("go")
        wait_for(events, "model.started")
        rt.forget("k") if forget else ref.stop()
        assert rt.spend("agent")["a"].priced > 0
        assert rt._system.journal.heads(reserved=True) == []  # pyright: ignore[reportPrivateUsage]


def exported_in_flight(path: Path) -> list[str]:
    """An agent `k`, as lines of JSON, of which an attempt was open."""
    held = gate("late")
    with Runtime(path) as rt, rt.subscribe("model.started") as events:
        handle = rt.start(scripted([held]), key="k").send("go")
        wait_for(events, "model.started")
        lines = list(rt.export_agent("k"))
        held.release()
        handle.result(SOON)
    return lines


def test_what_an_imported_agent_has_in_flight_counts_as_spent(tmp_path: Path) -> None:
    """Until it comes back, and its row of the bill says what that was."""
    lines = exported_in_flight(tmp_path / "a.db")
    with Runtime(tmp_path / "b.db", budget=Budget(usd="0.5")) as rt:
        rt.import_agent(lines)
        assert rt.start(scripted(hello), key="other").ask("go", timeout=SOON).status == "budget_exceeded"


def test_who_is_forgotten_in_the_store_alone_has_paid(tmp_path: Path) -> None:
    """An attempt that its last process left open is owed as it was reserved: its bill stays, and so does its money."""
    lines = exported_in_flight(tmp_path / "a.db")
    path = tmp_path / "b.db"
    with Runtime(path, budget=Budget(usd=1)) as rt, rt.subscribe("usage.updated") as events:
        rt.import_agent(lines)
        rt.forget("k")
        assert rt.spend("key")["k"].priced == Decimal("0.3")
        row: Any = wait_for(events, "usage.updated")
        assert (row.estimated, row.cost, row.price_source) == (True, Decimal("0.3"), "given")
        other = rt.start(scripted(hello, max_output_tokens=1000), key="other")
        assert other.ask("go", timeout=SOON).status == "completed"
        (started,) = [event for event in log_of(other) if event.type == "model.started"]
        assert started.reserved == Decimal("0.7")
    assert not audit(path).faults


def test_a_parked_agent_that_is_stopped_pays_what_its_attempt_came_to(tmp_path: Path) -> None:
    """Its stream was closed, and settled: that is known, though no incarnation was there to hear it."""
    types = ("model.started", "agent.started", "agent.parked")
    with Runtime(tmp_path / "agents.db", budget=Budget(usd=1)) as rt, rt.subscribe(*types) as events:
        agent = scripted([gate("never"), "again"])
        ref = rt.start(agent, key="k")
        for _ in range(5):
            wait_for(events, "agent.started")
            crash(ref)
        wait_for(events, "agent.started")
        handle = ref.send("go")
        wait_for(events, "model.started")
        crash(ref)
        wait_for(events, "agent.parked")
        ref.stop()
        rows = [event for event in log_of(ref) if event.type == "usage.updated"]
        assert [(row.estimated, row.cost) for row in rows] == [(True, Decimal(0))]
        assert rt.start(agent, key="k").key == "k"
        assert rt.handle(handle.run_id).result(SOON).text == "again"


class Stubborn:
    """A provider whose stream does not heed that it is cancelled."""

    name, model = "stubborn", "one"

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def info(self) -> ModelInfo:
        return ModelInfo(max_output_tokens=300, prices=PRICES)

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        yield Delta("text", "hello")
        while not self.let_go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        raise errors.ServerError("too late")


def test_who_is_forgotten_before_its_stream_is_closed_has_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the last word of one that does not heed; what it had reserved is charged."""
    monkeypatch.setattr("nitinol.actors.gateway.CLOSING", 0.05)
    provider = Stubborn()
    with Runtime(tmp_path / "agents.db", budget=Budget(usd=1)) as rt, rt.subscribe("model.delta") as events:
        rt.start(Agent(name="a", model=provider), key="k").send("go")
        wait_for(events, "model.delta")
        rt.forget("k")
        assert rt.spend("key")["k"].priced == Decimal("0.3")
        provider.let_go.set()


def test_instructions_and_tools_are_measured_as_all_else_is() -> None:
    """Else the first request of an agent with long ones would cost more than was reserved."""
    model = ScriptedProvider(["hello"], prices=Prices(input="3", output="15"))
    result = run("go", model=model, instructions="7" * 40_000, budget=Budget(usd="0.05"))
    assert (result.status, model.requests) == ("budget_exceeded", [])
