"""Circles: the same tool, the same arguments, the same result, again and again. First the model is told, then the run ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of
from tests.runtime.test_machine_schedules import faults

from nitinol import Agent, ModelRequest, Runtime, run, tool
from nitinol.result import RunResult
from nitinol.testing import Answer, Call, ScriptedProvider, call, crash

clock = count()


@tool
def look(a: int = 0, b: int = 0) -> str:
    """Sees always the same."""
    return f"seen {a} {b}"


@tool
def poll() -> str:
    """Sees something else each time."""
    return f"tick {next(clock)}"


@tool
def edit(n: int) -> str:
    """Changes something."""
    return f"changed {n}"


TOOLS = [look, poll, edit]
Script = Callable[[int], "Call | Sequence[Call] | str"]


def walk(script: Script, **options: Any) -> tuple[RunResult[Any], list[Any], list[ModelRequest]]:
    """A run whose `turn`-th answer the script gives; its result, its loop.detected events, and what the model was sent."""

    def answer(request: ModelRequest) -> Answer:
        assert not faults(request.messages)
        given = script(request.turn)
        return given if isinstance(given, (str, Call)) else list(given)

    model = ScriptedProvider(answer)
    with Runtime() as rt:
        ref = rt.start(Agent(name="a", model=model, tools=TOOLS, **options), key="k")
        result = ref.ask("go", timeout=SOON)
        told = [(event.name, event.count, event.action) for event in log_of(ref) if event.type == "loop.detected"]
        assert_valid(ref)
        assert not faults(ref.messages())
    return result, told, model.requests


NUDGE, STOP = ("look", 3, "nudge"), ("look", 6, "stop")


def test_the_same_again_and_again_is_told_to_the_model_and_then_ends_the_run() -> None:
    """After three turns a nudge, which the model reads; after three more the end. L7: a status of its own."""
    result, told, requests = walk(lambda turn: call("look", a=1, b=2))
    assert (result.status, result.turns, len(result.tool_calls)) == ("loop_detected", 6, 6)
    assert told == [NUDGE, STOP]
    assert "'look'" in str(result.error)
    assert [request.messages[-1].role for request in requests] == ["user", "tool", "tool", "user", "tool", "tool"]
    assert requests[3].messages[-1].text.startswith("You have called 'look' 3 times with the same arguments")
    assert result.messages[-1].role == "tool", "every call is answered"


def test_a_model_that_takes_the_hint_goes_on() -> None:
    """And the run completes."""
    result, told, _ = walk(lambda turn: call("look") if turn <= 3 else "I stop")
    assert (result.status, result.text, told) == ("completed", "I stop", [NUDGE])


def test_arguments_are_compared_as_what_they_mean() -> None:
    """Not as they are written."""
    result, told, _ = walk(lambda turn: call("look", a=1, b=2) if turn % 2 else call("look", b=2, a=1))
    assert (result.status, told) == ("loop_detected", [NUDGE, STOP])


def circling(turn: int) -> Call:
    return call("look", a=turn % 2)


def parallel(turn: int) -> Sequence[Call]:
    return [call("look", a=turn % 2), call("look", a=(turn + 1) % 2)]


@pytest.mark.parametrize("script", [circling, parallel])
def test_two_that_take_turns_are_a_circle_too(script: Script) -> None:
    """Nothing new comes of it."""
    result, told, _ = walk(script)
    assert result.status == "loop_detected"
    assert [action for _, _, action in told] == ["nudge", "stop"]


def test_a_tool_that_is_not_there_is_a_circle_too() -> None:
    """The same error is the same result."""
    result, told, _ = walk(lambda turn: call("nope"))
    assert (result.status, told) == ("loop_detected", [("nope", 3, "nudge"), ("nope", 6, "stop")])


def other_arguments(turn: int) -> Call:
    return call("look", a=turn)


def other_results(turn: int) -> Call:
    return call("poll")


def one_of_two_changes(turn: int) -> Sequence[Call]:
    return [call("look"), call("poll")]


def edits_between(turn: int) -> Call:
    return call("edit", n=turn) if turn % 2 else call("look")


def three_by_turns(turn: int) -> Call:
    return call("look", a=turn % 3)


@pytest.mark.parametrize("script", [other_arguments, other_results, one_of_two_changes, edits_between, three_by_turns])
def test_what_changes_is_no_circle(script: Script) -> None:
    """Polling, work on something between, and whatever has another result each time."""
    result, told, _ = walk(lambda turn: script(turn) if turn <= 20 else "done")
    assert (result.status, told) == ("completed", [])


def test_many_the_same_in_one_answer_are_no_circle() -> None:
    """The model has not seen their results yet."""
    result, told, _ = walk(lambda turn: [call("look")] * 5 if turn <= 2 else "done")
    assert (result.status, told) == ("completed", [])


def test_a_run_that_ends_for_another_reason_hears_nothing() -> None:
    """No word behind its last result."""
    result, told, _ = walk(lambda turn: call("look"), max_turns=3)
    assert (result.status, told) == ("max_turns", [])
    assert result.messages[-1].role == "tool"


def test_the_next_run_begins_anew() -> None:
    """What went before does not count."""
    model = ScriptedProvider(lambda request: call("look") if request.turn <= 2 else "done")
    with Runtime() as rt:
        ref = rt.start(Agent(name="a", model=model, tools=TOOLS), key="k")
        for _ in range(4):
            assert ref.ask("go", timeout=SOON).status == "completed"
        assert "loop.detected" not in [event.type for event in log_of(ref)]


def test_a_crash_does_not_make_it_forget(tmp_path: Path) -> None:
    """What is counted is of the log: an agent that crashes in each turn still ends."""
    model = ScriptedProvider(lambda request: call("look"))
    with Runtime(tmp_path / "agents.db", drain=0.0) as rt:
        ref = rt.start(Agent(name="a", model=model, tools=TOOLS), key="k")
        with rt.subscribe("turn.finished", "run.finished", key="k") as turns:
            handle = ref.send("go")
            crashes = 0
            while turns.get(SOON).type == "turn.finished":
                if crashes < 4 and ref.status().state == "running":
                    crash(ref)
                    crashes += 1
        assert handle.result(SOON).status == "loop_detected"
        assert crashes
        assert_valid(ref)


def test_a_one_shot_ends_too() -> None:
    """`run` never raises."""
    assert run("go", model=ScriptedProvider(lambda request: call("look")), tools=[look]).status == "loop_detected"
