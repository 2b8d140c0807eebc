"""Compaction in a live runtime: an agent talks for ever, whatever fails meanwhile. parity: C1, C2, C3, C4"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, let_sleep, log_of, wait_for
from tests.runtime.test_machine_schedules import faults

from nitinol import Agent, AgentRef, Budget, Compaction, Halt, Hooks, Message, ModelRequest, Prices, Runtime, run, tool
from nitinol import events as ev
from nitinol.compaction import HANDOFF, estimate_tokens
from nitinol.errors import ConfigurationError, ContextOverflow, InvalidRequest, Overloaded
from nitinol.hooks import HookContext
from nitinol.http import Http
from nitinol.inputs import Opened
from nitinol.journal.audit import audit
from nitinol.machine import step, summary_due
from nitinol.messages import Text
from nitinol.provider import ModelResponse
from nitinol.retry import Retry
from nitinol.state import AgentState
from nitinol.testing import Answer, ScriptedProvider, Wait, call, crash, fail, gate, say
from nitinol.usage import Usage, quarters

WINDOW = 2000
POLICY = Compaction(reserve_tokens=500, keep_recent_tokens=400)
FIRST = "The code of the door is 4711. Keep it."
LONG = "blah " * 150


class Counting(ScriptedProvider):
    """Counts as our estimate does, times a factor, and refuses what is longer than its window."""

    def __init__(
        self, script: Any, *, window: int = WINDOW, told: int | None = 0, factor: float = 1.0, **more: Any
    ) -> None:
        super().__init__(script, context_window=window if told == 0 else told, **more)
        self.window, self.factor = window, factor
        self.refused = 0

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[Any]:
        words = quarters(request.instructions or "") + sum(tool.size for tool in request.tools)
        asked = int((sum(map(estimate_tokens, request.messages)) + words // 4) * self.factor)
        assert not faults(request.messages), faults(request.messages)
        if asked > self.window:
            self.refused += 1
            raise ContextOverflow("too long", status_code=400)
        async for part in super().stream(request, http):
            if isinstance(part, ModelResponse):
                made = estimate_tokens(part.message)
                part = part.replace(usage=Usage(input_tokens=asked, output_tokens=made))
            yield part


@tool
def look(n: int) -> str:
    """Look."""
    return f"seen {n} {LONG}"


def chatty(request: ModelRequest) -> Answer:
    if request.purpose == "compact":
        return f"Goal: the door. Facts: 4711. So far {request.turn}/{request.attempt}."
    return f"I say {LONG}"


def an_agent(model: Any, **options: Any) -> Agent[Any]:
    values: dict[str, Any] = {"compaction": POLICY, "retry": Retry(base=0.001), **options}
    return Agent(name="talker", model=model, **values)


def talk(ref: AgentRef[Any], times: int, start: int = 0) -> None:
    for number in range(start, start + times):
        result = ref.ask(FIRST if not number else f"go on {number} {LONG}", timeout=SOON)
        assert result.status == "completed", result.error
        assert result.text.startswith("I say")


def summing(answer: Answer) -> Callable[[ModelRequest], Answer]:
    """Each summary is this answer."""

    def script(request: ModelRequest) -> Answer:
        return answer if request.purpose == "compact" else f"I say {LONG}"

    return script


def of_type(ref: AgentRef[Any], *types: str) -> list[Any]:
    return [event for event in log_of(ref) if event.type in types]


def answers_sent(model: ScriptedProvider) -> list[ModelRequest]:
    return [request for request in model.requests if request.purpose == "answer"]


def summaries(model: ScriptedProvider) -> list[ModelRequest]:
    return [request for request in model.requests if request.purpose == "compact"]


# ---- the tiers


def test_a_long_life_is_summarised_again_and_again() -> None:
    """The first message stays, the newest stay, the rest is one handoff; the history is whole. parity: C1"""
    model = Counting(chatty)
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 30)
        made = of_type(ref, "context.compacted")
        assert len(made) >= 3, "several times in one life"
        assert model.refused == 0
        assert len(ref.history()) == 60
        seen = ref.messages()
        assert seen[0].text.startswith(FIRST)
        assert f"{HANDOFF}\n\nGoal: the door. Facts: 4711." in seen[0].text
        assert seen[0].text.count("Goal:") == 1, "a later handoff covers the earlier one"
        assert seen[1:] == ref.history()[-len(seen[1:]) :], "the newest messages are as they were"
        for event, after in pairwise(made):
            assert event.tokens_before > event.tokens_after > 0
            assert event.removed > 0
            assert event.through < after.through < 60, "each names the last message that it covers"
            assert event.fallback is None
        for request in summaries(model):
            assert request.tools == ()
            assert "handoff notes" in (request.instructions or "")
            assert request.messages[0].role == "user"
            assert len(request.messages) == 1
        assert "notes of what was said before" in summaries(model)[1].messages[0].text
        assert_valid(ref)


def test_a_summary_is_an_attempt_of_its_turn_and_shown_to_nobody() -> None:
    """It has its number, its row of the bill, its intent; and no word of it is a delta, an answer or a message. rule 1"""
    model = Counting(chatty, prices=Prices(input="1", output="1"))
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 4)
        with rt.subscribe(key="k") as events:
            handle = ref.send(f"go on {LONG}")
            text = "".join(handle.text())
            seen: list[Any] = []
            while not seen or seen[-1].type != "run.finished":
                seen.append(events.get(SOON))
        started = [event for event in seen if event.type == "model.started"]
        assert [event.attempt for event in started] == [1, 2]
        assert started[0].compacting is not None
        assert started[0].context_window == WINDOW
        assert started[1].compacting is None
        assert {event.attempt for event in seen if event.type in ("model.delta", "model.first_token")} == {2}
        assert [event.attempt for event in seen if event.type == "usage.updated"] == [1, 2]
        assert all(event.cost > 0 for event in seen if event.type == "usage.updated")
        assert text.startswith("I say")
        assert "Goal" not in text + str(ref.history()) + str(handle.result(SOON).messages)
        assert handle.result(SOON).turns == 1
        types = [event.type for event in seen if event.durable]
        assert types[types.index("model.started") :][:5] == [
            "model.started", "model.finished", "usage.updated", "context.compacted", "model.started",
        ]  # fmt: skip


def test_old_tool_results_are_cleared_first_and_no_model_is_asked() -> None:
    """In one batch, with the tool's name in their place; calls and recent results stay. parity: C1"""

    def looking(request: ModelRequest) -> Answer:
        assert request.purpose == "answer"
        return call("look", n=request.turn) if request.turn < 20 else "done"

    model = Counting(looking)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, tools=[look], max_turns=50), key="k")
        assert ref.ask(FIRST, timeout=SOON).text == "done"
        made = of_type(ref, "context.compacted")
        assert 1 <= len(made) < 8, "in batches"
        assert all(event.removed > 1 for event in made)
        answers = [part for message in ref.messages() for part in message.parts if part.type == "tool_answer"]
        cleared = [part for part in answers if part.text == "[The result of look was cleared for want of room.]"]
        assert len(cleared) > 5
        assert answers[-1].text.startswith("seen 19")
        assert all(
            part.text.startswith("seen")
            for message in ref.history()
            for part in message.parts
            if part.type == "tool_answer"
        )
        assert summaries(model) == []
        assert model.refused == 0


def test_a_result_that_alone_is_too_long_is_clipped() -> None:
    """What no clearing and no summary can help: its beginning and its end are shown, and how much is missing."""

    @tool
    def dump() -> str:
        """Dump."""
        return "BEGIN " + "x" * 50_000 + " END"

    def dumping(request: ModelRequest) -> Answer:
        return "done" if request.messages[-1].role == "tool" else call("dump")

    model = Counting(dumping)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, tools=[dump]), key="k")
        assert ref.ask(FIRST, timeout=SOON).text == "done"
        shown = ref.messages()[-2].parts[0]
        assert shown.type == "tool_answer"
        assert shown.text.startswith("BEGIN xxx")
        assert shown.text.endswith("xxx END")
        assert "characters are left out here" in shown.text
        made = of_type(ref, "context.compacted")
        assert [(event.fallback, event.removed, event.through) for event in made] == [("truncate", 1, 2)]
        assert model.refused == 0


def test_what_the_user_asked_for_last_stays_too() -> None:
    """A run of many turns does not forget its own prompt, nor a steer."""

    def looking(request: ModelRequest) -> Answer:
        if request.purpose == "compact":
            return "notes"
        return [say(LONG * 2), call("look", n=request.turn)] if request.turn < 12 else "done"

    model = Counting(looking)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, tools=[look], max_turns=50), key="k")
        ref.ask("Hello, I am Kim.", timeout=SOON)
        assert ref.ask("Now count the apples.", timeout=SOON).text == "done"
        last = answers_sent(model)[-1].messages[0].text
        assert last.startswith("Hello, I am Kim.")
        assert "notes" in last
        assert last.endswith("Now count the apples.")
        assert of_type(ref, "context.compacted")[-1].view.kept == (0, 24)


# ---- what goes wrong


def failing(*failures: Exception) -> Callable[[ModelRequest], Answer]:
    left = list(failures)

    def script(request: ModelRequest) -> Answer:
        return fail(left.pop(0)) if request.purpose == "compact" and left else chatty(request)

    return script


def test_a_summary_is_tried_again() -> None:
    """By the retry policy, as any attempt."""
    model = Counting(failing(Overloaded("busy"), Overloaded("busy")))
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 5)
        (made,) = of_type(ref, "context.compacted")
        assert made.fallback is None
        assert len(summaries(model)) == 3
        assert len(of_type(ref, "model.retrying")) == 2
        assert_valid(ref)


@pytest.mark.parametrize(
    "answer",
    [
        fail(InvalidRequest("no")),
        fail(ContextOverflow("long")),
        say(" "),
        say("no", stop_reason="refusal"),
    ],
    ids=["refused", "too long", "empty", "refusal"],
)
def test_without_a_summary_the_old_messages_go_without_one(answer: Any) -> None:
    """`fallback="truncate"`: the run goes on, readers are told, and the model is. parity: C1"""
    model = Counting(summing(answer))
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 12)
        made = of_type(ref, "context.compacted")
        assert {event.fallback for event in made} == {"truncate"}
        assert ref.messages()[0].text.startswith(FIRST)
        lost = len(ref.history()) - len(ref.messages())
        assert f"[{lost} older messages are left out, for want of room.]" in ref.messages()[0].text
        assert of_type(ref, "model.fallback") == []
        assert model.refused == 0
        assert_valid(ref)


def test_a_summary_that_rambles_is_clipped() -> None:
    """It may not fill what it is to make free."""
    model = Counting(summing("BEGIN " + "long " * 3000 + "END"))
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 12)
        made = of_type(ref, "context.compacted")
        assert {event.fallback for event in made} == {None}
        handoff = made[-1].view.handoff
        assert handoff.startswith("BEGIN")
        assert handoff.endswith("END")
        assert len(handoff) <= 6 * 375
        assert all(request.max_output_tokens == 750 for request in summaries(model))
        assert model.refused == 0


def test_a_later_summary_covers_what_can_still_be_covered() -> None:
    """What was truncated once is told of."""
    model = Counting(failing(InvalidRequest("no")))
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 14)
        assert [event.fallback for event in of_type(ref, "context.compacted")][:2] == ["truncate", None]
        first = ref.messages()[0].text
        assert "Goal: the door" in first
        assert "older messages are left out" in first


def test_no_fallback_ends_the_run() -> None:
    """`fallback=None`: nothing goes that no summary stands for."""
    model = Counting(failing(InvalidRequest("no")))
    with Runtime() as rt:
        ref = rt.start(
            an_agent(model, compaction=Compaction(reserve_tokens=500, keep_recent_tokens=400, fallback=None)), key="k"
        )
        talk(ref, 3)
        results = [ref.ask(LONG, timeout=SOON) for _ in range(3)]
        failed = [result for result in results if result.status != "completed"]
        assert [(result.status, result.error_type) for result in failed] == [("failed", "ContextOverflow")]
        assert "no summary came" in str(failed[0].error)


def test_a_summary_has_a_deadline_of_its_own() -> None:
    """A model that hangs over it holds nobody up for longer."""
    held = gate("never")
    model = Counting(summing(held))
    policy = Compaction(reserve_tokens=500, keep_recent_tokens=400, deadline=0.05)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, compaction=policy), key="k")
        talk(ref, 5)
        (made,) = of_type(ref, "context.compacted")
        assert made.fallback == "truncate"
        (failed,) = of_type(ref, "model.failed")
        assert (failed.error_type, failed.attempt) == ("ProviderTimeout", 1)
        assert_valid(ref)


class Held:
    """Answers, and holds its first summary back."""

    def __init__(self) -> None:
        self.gate: Wait = gate("Goal: the door. Facts: 4711.")
        self.asked = 0

    def __call__(self, request: ModelRequest) -> Answer:
        if request.purpose == "compact":
            self.asked += 1
            return self.gate if self.asked == 1 else chatty(request)
        return f"I say {LONG}"


def test_a_cancel_in_the_middle_ends_the_run() -> None:
    """At once, with the attempt on the bill; the next run compacts."""
    held = Held()
    with Runtime() as rt:
        ref = rt.start(an_agent(Counting(held, prices=Prices(input="1", output="1"))), key="k")
        talk(ref, 4)
        handle = ref.send(f"go on {LONG}")
        assert held.gate.reached()
        assert ref.status().state == "running"
        handle.cancel()
        result = handle.result(SOON)
        assert (result.status, result.text) == ("cancelled", "")
        assert of_type(ref, "context.compacted") == []
        assert of_type(ref, "usage.updated")[-1].estimated
        talk(ref, 1, start=6)
        assert len(of_type(ref, "context.compacted")) == 1
        assert_valid(ref)


def test_a_crash_in_the_middle_is_recovered() -> None:
    """The summary is made again; the lost attempt is on the bill."""
    held = Held()
    model = Counting(held)
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 4)
        handle = ref.send(f"go on {LONG}")
        assert held.gate.reached()
        crash(ref)
        assert handle.result(SOON).status == "completed"
        assert len(summaries(model)) == 2
        (made,) = of_type(ref, "context.compacted")
        assert made.fallback is None
        assert_valid(ref)


def test_a_process_that_dies_in_the_middle_goes_on_in_the_next(tmp_path: Path) -> None:
    """Also if it was stopped, an hour ago: the deadline of a summary counts only what somebody lived."""
    held, path = Held(), tmp_path / "agents.db"
    model = Counting(held)
    agent = an_agent(model)
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(agent, key="k")
        talk(ref, 4)
        handle = ref.send(f"go on {LONG}")
        assert held.gate.reached()
    with Runtime(path, agents=[agent], drain=0.0) as rt:
        assert rt.handle(handle.run_id).result(SOON).status == "completed"
        ref = rt.get("k")
        assert [event.fallback for event in of_type(ref, "context.compacted")] == [None]
        seen, history = ref.messages(), ref.history()
        assert_valid(ref)
    assert audit(path).faults == []
    with Runtime(path, agents=[agent], drain=0.0) as rt:
        assert rt.get("k").messages() == seen
        assert rt.get("k").history() == history


def test_the_deadline_of_a_summary_counts_only_what_somebody_lived() -> None:
    """An hour without a process is none of its seconds."""
    held, hour = Held(), 3600 * 10**9
    agent = an_agent(Counting(held))
    with Runtime(drain=0.0) as rt:
        ref = rt.start(agent, key="k")
        talk(ref, 4)
        ref.send(f"go on {LONG}")
        assert held.gate.reached()
        events = log_of(ref)
    state = AgentState(key="k", agent="talker", definition=agent).fold(events)
    before = summary_due(state)
    _, later = step(state, Opened(), events[-1].ts + hour)
    assert before is not None
    assert summary_due(later) == before + hour


# ---- overflow and calibration


def test_an_overflow_compacts_once_and_tries_once_more() -> None:
    """A window that nobody knows is learned from its refusals. It is no failure of the retry policy. parity: C3"""
    model = Counting(chatty, window=2000, told=None)  # so it is taken to be 200,000
    with Runtime() as rt:
        ref = rt.start(an_agent(model, retry=Retry(attempts=1)), key="k")
        talk(ref, 40)
        overflows = [event for event in of_type(ref, "model.failed")]
        assert {event.error_type for event in overflows} == {"ContextOverflow"}
        assert 1 <= len(overflows) == model.refused
        made = of_type(ref, "context.compacted")
        print(f"\n{model.refused} refusals and {len(made)} compactions in 40 turns of an unknown window")
        assert len(made) > 2 * model.refused, "most are made before anybody must refuse"
        assert ref.messages()[0].text.startswith(FIRST)
        assert_valid(ref)


@pytest.mark.parametrize("error", [Overloaded("busy"), InvalidRequest("no"), ContextOverflow("long")])
def test_a_summary_after_an_overflow_is_tried_no_more_often_than_another(error: Exception) -> None:
    """What the overflow is forgiven, the summary is not: it has its own number of attempts, and then is done without."""
    model = Counting(summing(fail(error)), window=2000, told=None)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, retry=Retry(attempts=2, base=0.001)), key="k")
        talk(ref, 8)
        assert model.refused >= 1
        made = of_type(ref, "context.compacted")
        assert {event.fallback for event in made} == {"truncate"}
        assert len(summaries(model)) <= 2 * len(made)
        assert_valid(ref)


def test_a_second_overflow_in_a_turn_goes_to_the_next_model() -> None:
    """Or the run fails, and says what to do."""

    def refuses(request: ModelRequest) -> Answer:
        return fail(ContextOverflow("too long")) if request.purpose == "answer" and full else chatty(request)

    full = False
    small, large = ScriptedProvider(refuses, model="small"), Counting(chatty, window=100_000, model="large")
    with Runtime() as rt:
        ref = rt.start(an_agent(small, fallbacks=[large]), key="k")
        talk(ref, 4)
        full = True
        result = ref.ask(f"go on {LONG}", timeout=SOON)
        assert result.status == "completed"
        types = [event.type for event in log_of(ref)]
        assert types.count("context.compacted") == 1
        assert [event.error_type for event in of_type(ref, "model.failed")] == ["ContextOverflow"] * 2
        (fallback,) = of_type(ref, "model.fallback")
        assert fallback.to_model == "scripted:large"
    full = False
    with Runtime() as rt:
        ref = rt.start(an_agent(small), key="k")
        talk(ref, 4)
        full = True
        result = ref.ask(f"go on {LONG}", timeout=SOON)
        assert (result.status, result.error_type) == ("failed", "ContextOverflow")
        assert_valid(ref)


def test_a_first_message_that_is_longer_than_the_window_fails_and_says_what_to_do() -> None:
    """At once, not in a loop, and nothing is sent; the agent lives on."""
    model = Counting(chatty)
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        result = ref.ask("word " * 5000, timeout=SOON)
        assert (result.status, result.error_type) == ("failed", "ContextOverflow")
        assert "for a window of 2000" in str(result.error)
        assert "ref.reset()" in str(result.error)
        assert model.requests == []
        ref.reset()
        assert ref.ask("hi", timeout=SOON).status == "completed"
        assert_valid(ref)


def test_it_goes_to_a_model_that_is_large_enough() -> None:
    """Where there is one among the fallbacks."""
    small, large = Counting(chatty), Counting(chatty, window=100_000, model="large")
    result = run("word " * 5000, an_agent(small, fallbacks=[large]))
    assert result.status == "completed"
    assert (small.requests, len(large.requests)) == ([], 1)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.7, 3.0])
def test_the_estimate_learns_how_the_model_counts(factor: float) -> None:
    """By the last real usage: no request is refused, and most of the window is used. parity: C3"""
    model = Counting(chatty, window=6000, factor=factor)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, compaction=Compaction(reserve_tokens=1000, keep_recent_tokens=500)), key="k")
        talk(ref, 60)
        fullest = max(event.usage.input_tokens for event in of_type(ref, "usage.updated"))
        made = of_type(ref, "context.compacted")
        print(f"\nfactor {factor}: {len(made)} compactions, fullest request {fullest} of 5000, {model.refused} refused")
        assert model.refused == 0
        assert 4000 < fullest <= 5100
        assert made


def test_an_answer_that_the_window_cuts_off_is_asked_for_again() -> None:
    """Once, after a compaction; readers drop the half of it."""

    def cut(request: ModelRequest) -> Answer:
        if request.purpose == "compact":
            return "notes"
        return (
            say("half", stop_reason="max_tokens")
            if any(message.text == LONG for message in request.messages)
            else "whole"
        )

    class Full(ScriptedProvider):
        async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[Any]:
            async for part in super().stream(request, http):
                yield (
                    part.replace(usage=Usage(input_tokens=1900, output_tokens=100))
                    if isinstance(part, ModelResponse)
                    else part
                )

    given = [Message(role="user", parts=(Text(FIRST),)), Message(role="assistant", parts=(Text(LONG),))]
    model = Full(cut, context_window=2000)
    result = run(
        "and?", an_agent(model, compaction=Compaction(reserve_tokens=0, keep_recent_tokens=50)), messages=given
    )
    assert (result.status, result.text) == ("completed", "whole")
    assert [request.purpose for request in model.requests] == ["answer", "compact", "answer"]


def test_without_compaction_a_request_is_sent_as_long_as_it_is() -> None:
    """`compaction=None`: and an overflow is an error as any other."""
    model = Counting(chatty)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, compaction=None), key="k")
        talk(ref, 4)
        results = [ref.ask(LONG, timeout=SOON) for _ in range(4)]
        assert [(result.status, result.error_type) for result in results][-1] == ("failed", "ContextOverflow")
        assert of_type(ref, "context.compacted") == []


# ---- windows


@pytest.mark.parametrize(
    ("own", "told", "compacts"), [(None, None, False), (None, 2000, True), (2000, None, True), (200_000, 2000, False)]
)
def test_the_window_is_the_agents_the_providers_or_200_000(own: int | None, told: int | None, compacts: bool) -> None:
    """In this order. parity: C4"""
    model = Counting(chatty, window=100_000, told=told)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, context_window=own), key="k")
        talk(ref, 6)
        assert bool(of_type(ref, "context.compacted")) == compacts
        assert of_type(ref, "model.started")[0].context_window == (own or told or 200_000)


def test_another_model_has_another_window() -> None:
    """`set_model` looks anew; what was left out stays out. parity: C4"""
    small, large = Counting(chatty), Counting(chatty, window=100_000, model="large")
    with Runtime() as rt:
        ref = rt.start(an_agent(large), key="k")
        talk(ref, 6)
        assert of_type(ref, "context.compacted") == []
        ref.set_model(small)
        talk(ref, 1, start=6)
        assert len(of_type(ref, "context.compacted")) == 1
        seen = ref.messages()[0]
        ref.set_model(large)
        talk(ref, 10, start=7)
        assert len(of_type(ref, "context.compacted")) == 1
        assert ref.messages()[0] == seen


# ---- hooks, budgets, stores


class Watching(Hooks):
    """Sees what goes."""

    def __init__(self, answer: Callable[[], Any] = lambda: None) -> None:
        self.answer = answer
        self.seen: list[tuple[str, Sequence[Message]]] = []
        self.purposes: list[str] = []

    def on_compaction(self, ctx: HookContext, messages: tuple[Message, ...]) -> Any:
        self.seen.append((ctx.key, messages))
        return self.answer()

    def before_model(self, ctx: HookContext, request: ModelRequest) -> None:
        self.purposes.append(request.purpose)


def test_a_hook_sees_what_is_about_to_go() -> None:
    """Once for each compaction, before it is committed. parity: C2"""
    hook, model = Watching(), Counting(chatty)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, hooks=[hook]), key="k")
        talk(ref, 12)
        made = of_type(ref, "context.compacted")
        assert [key for key, _ in hook.seen] == ["k"] * len(made)
        gone = [message for _, messages in hook.seen for message in messages]
        assert len(gone) == sum(event.removed for event in made)
        assert gone == list(ref.history()[1 : 1 + len(gone)]), "all but the first, in order, once"
        assert hook.purposes == [request.purpose for request in model.requests]


def test_it_is_asked_once_however_often_the_summary_is_tried() -> None:
    """What goes is the same. parity: C2"""
    hook, model = Watching(), Counting(failing(Overloaded("busy"), Overloaded("busy")))
    with Runtime() as rt:
        ref = rt.start(an_agent(model, hooks=[hook]), key="k")
        talk(ref, 5)
        assert len(summaries(model)) == 3
        assert len(hook.seen) == len(of_type(ref, "context.compacted")) == 1


def breaks() -> None:
    raise RuntimeError("no")


let_go = threading.Event()


def hangs() -> None:
    let_go.wait(SOON)


@pytest.mark.parametrize("answer", [breaks, lambda: "nonsense", hangs], ids=["raises", "returns nonsense", "hangs"])
def test_its_failure_never_stops_the_compaction(answer: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    """It is logged. parity: C2"""
    hook = Watching(answer)
    hook.timeout = 0.05  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    let_go.clear()
    with Runtime() as rt:
        ref = rt.start(an_agent(Counting(chatty), hooks=[hook]), key="k")
        talk(ref, 5)
        assert len(of_type(ref, "context.compacted")) == 1
        let_go.set()
    assert "on_compaction failed" in caplog.text


def test_a_hook_may_halt_instead() -> None:
    """As any hook."""
    with Runtime() as rt:
        ref = rt.start(an_agent(Counting(chatty), hooks=[Watching(lambda: Halt("nothing may go"))]), key="k")
        talk(ref, 4)
        result = ref.ask(f"go on {LONG}", timeout=SOON)
        assert (result.status, result.error) == ("halted", "nothing may go")
        assert_valid(ref)


def test_a_summary_is_paid_from_the_same_budget() -> None:
    """Section 8."""
    model = Counting(chatty, prices=Prices(input="1000", output="1000"), max_output_tokens=100)
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k", budget=Budget(usd="8"))
        results = [ref.ask(f"go on {LONG}", timeout=SOON) for _ in range(12)]
        rows = of_type(ref, "usage.updated")
        assert "budget_exceeded" in {result.status for result in results}
        assert summaries(model)
        assert len(rows) == len(model.requests)
        assert sum(row.cost for row in rows) == ref.status().cost
        assert sum(row.cost for row in rows) <= Decimal(8)


def test_what_was_compacted_survives_sleep_export_and_snapshots(tmp_path: Path) -> None:
    """The view is the same after all of them; `verify` finds nothing."""
    path = tmp_path / "agents.db"
    agent = an_agent(Counting(chatty))
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(agent, key="k")
        talk(ref, 20)
        seen, lines = ref.messages(), list(rt.export_agent("k"))
        let_sleep(rt)
        assert ref.messages() == seen
        talk(ref, 1, start=20)
        rt.import_agent(lines, key="copy")
        copy = rt.start(agent, key="copy")
        assert copy.messages() == seen
        talk(copy, 3, start=20)
        assert_valid(copy)
    assert audit(path).faults == []
    with Runtime(path, agents=[agent], drain=0.0) as rt:
        assert rt.get("copy").messages()[0].text.startswith(FIRST)
        ref = rt.get("k")
        ref.reset()
        assert ref.messages() == ()
        talk(ref, 6)
        assert ref.messages()[0].text.startswith(FIRST)
    assert audit(path).faults == []


def test_a_steer_during_a_summary_waits_for_its_turn() -> None:
    """And is delivered before the next request that may hold it."""
    held = Held()

    def script(request: ModelRequest) -> Answer:
        if request.purpose == "answer" and request.run_id == "r" and request.turn == 1:
            return call("look", n=1)
        return held(request)

    model = Counting(script)
    with Runtime() as rt:
        ref = rt.start(an_agent(model, tools=[look]), key="k")
        talk(ref, 4)
        with rt.subscribe("input.queued") as inputs:
            handle = ref.send(f"go on {LONG}", run_id="r")
            assert held.gate.reached()
            handle.steer("be brief")
            wait_for(inputs, "input.queued")
        held.gate.release()
        assert handle.result(SOON).status == "completed"
        assert answers_sent(model)[-1].messages[-1].text == "be brief"
        assert_valid(ref)


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {"reserve_tokens": -1},
        {"reserve_tokens": 1.5},
        {"keep_recent_tokens": True},
        {"fallback": "forget"},
        {"deadline": 0},
        {"deadline": "soon"},
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Compaction(**options)


def test_the_defaults_are_the_designs() -> None:
    """And what is no `Compaction` is refused."""
    policy = Agent(name="a", model="test:one").compaction
    assert policy == Compaction(reserve_tokens=12_000, keep_recent_tokens=8_000, fallback="truncate")
    with pytest.raises(ConfigurationError, match="compaction=True"):
        Agent(name="a", model="test:one", compaction=True)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_events_of_compaction_are_json_both_ways() -> None:
    """With the view that they make."""
    model = Counting(chatty)
    with Runtime() as rt:
        ref = rt.start(an_agent(model), key="k")
        talk(ref, 6)
        for event in of_type(ref, "context.compacted", "model.started"):
            assert ev.from_json(event.to_json()).to_json() == event.to_json()
