"""A model that does the same again and again is told so, and stopped if it goes on. parity: C4"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of

from nitinol import Agent, ModelRequest, RunResult, Runtime, run, tool
from nitinol.testing import Answer, Call, ScriptedProvider, call, crash, gate


@tool
def same(x: int = 0) -> str:
    """The same each time."""
    return "nothing"


@tool
def other(x: int = 0, y: int = 0) -> str:
    """The same each time, too."""
    return "nothing"


def polled() -> Any:
    """A tool whose answer changes."""
    asked = 0

    @tool
    def poll(job: str) -> str:
        """Look how far it is."""
        nonlocal asked
        asked += 1
        return f"{asked} % done"

    return poll


S, T, POLL = call("same"), call("other"), call("poll", job="a")


def steps(answers: Iterable[Call | list[Call]]) -> tuple[RunResult[str], list[tuple[str, int, int]], ScriptedProvider]:
    """The result of a run that calls this, turn by turn, then ends; and when it was told, or stopped."""
    left = iter(answers)

    def script(request: ModelRequest) -> Answer:
        calls = next(left, None)
        return "done" if calls is None else calls

    model = ScriptedProvider(script)
    with Runtime() as rt:
        ref = rt.start(Agent(name="a", model=model, tools=[same, other, polled()], max_turns=40), key="k")
        result = ref.ask("go", timeout=SOON)
        assert_valid(ref)
        told = [(str(event.action), event.count, event.turn) for event in log_of(ref) if event.type == "loop.detected"]
        return result, told, model


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([S] * 20, [("nudge", 3, 3), ("stop", 6, 6)]),
        ([S, T] * 10, [("nudge", 3, 5), ("stop", 6, 10)]),
        ([call("none")] * 20, [("nudge", 3, 3), ("stop", 6, 6)]),
        ([[S, T], [T, S]] * 10, [("nudge", 3, 3), ("stop", 6, 6)]),
        ([call("other", x=1, y=2), call("other", y=2, x=1)] * 10, [("nudge", 3, 3), ("stop", 6, 6)]),
    ],
    ids=["one", "by turns", "no such tool", "in another order", "arguments in another order"],
)
def test_a_circle_is_told_of_and_then_ended(answers: Any, told: Any) -> None:
    result, found, model = steps(answers)
    assert (result.status, found) == ("loop_detected", told)
    assert result.turns == len(model.requests) == told[-1][2]
    nudges = [message.text for message in model.requests[-1].messages if "with the same arguments" in message.text]
    assert len(nudges) == 1
    assert "if this goes on, the run ends" in nudges[0]
    assert result.messages[-1].role == "tool", "every call is answered"


@pytest.mark.parametrize(
    "answers",
    [
        [S] * 2,
        [POLL] * 30,
        [POLL, S] * 15,
        [[POLL, S]] * 30,
        [[S] * 5] * 2,
        [call("same", x=n) for n in range(30)],
        [call("same", x=n % 3) for n in range(30)],
    ],
    ids=[
        "twice",
        "a poll that tells something new",
        "with something new between",
        "beside something new",
        "at once, before one was answered",
        "other arguments",
        "three by turns",
    ],
)
def test_what_is_no_circle_goes_on(answers: Any) -> None:
    result, told, _ = steps(answers)
    assert (result.status, told) == ("completed", [])


def test_who_does_something_else_is_told_anew() -> None:
    """Not ended for what it did long ago."""
    result, told, _ = steps([S] * 3 + [call("same", x=n) for n in range(1, 5)] + [S] * 3)
    assert (result.status, told) == ("completed", [("nudge", 3, 3), ("nudge", 3, 10)])


def test_a_run_that_ends_for_another_reason_hears_nothing() -> None:
    """No word behind its last result."""
    model = ScriptedProvider(lambda request: S)
    result = run("go", model=model, tools=[same], max_turns=3)
    assert (result.status, [message.role for message in result.messages][-2:]) == ("max_turns", ["assistant", "tool"])
    assert run("go", model=model, tools=[same]).status == "loop_detected"


def test_the_next_run_begins_anew() -> None:
    """What went before does not count."""
    model = ScriptedProvider(lambda request: S if request.turn <= 2 else "done")
    with Runtime() as rt:
        ref = rt.start(Agent(name="a", model=model, tools=[same]), key="k")
        for _ in range(4):
            assert ref.ask("go", timeout=SOON).status == "completed"
        assert "loop.detected" not in [event.type for event in log_of(ref)]


def test_a_crash_forgets_no_circle() -> None:
    """What was done stands in the log."""
    held = gate(S)
    answers: list[Answer] = [S, S, S, S, S, held, S]

    def script(request: ModelRequest) -> Answer:
        return answers[len(model.requests) - 1]

    model = ScriptedProvider(script)
    with Runtime() as rt:
        ref = rt.start(Agent(name="a", model=model, tools=[same]), key="k")
        handle = ref.send("go")
        assert held.reached()
        crash(ref)
        result = handle.result(SOON)
        assert (result.status, result.turns) == ("loop_detected", 6)
        assert_valid(ref)


def test_who_is_steered_out_of_a_circle_may_follow() -> None:
    """The user's word is heard before the run ends; if nothing comes of it, the run ends then."""
    for heeds, status, turns in ((True, "completed", 7), (False, "loop_detected", 7)):
        held = gate(S)
        answers: list[Answer] = [S, S, S, S, S, held, "as you say" if heeds else S, "too late"]
        model = ScriptedProvider(answers)
        with Runtime() as rt:
            ref = rt.start(Agent(name="a", model=model, tools=[same]), key="k")
            handle = ref.send("go")
            assert held.reached()
            handle.steer("stop that")
            held.release()
            result = handle.result(SOON)
            assert (result.status, result.turns) == (status, turns)
            assert model.requests[-1].messages[-1].text == "stop that"
            assert_valid(ref)
