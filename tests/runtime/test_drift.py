"""Definitions that change while a run is open: what was pinned stays, what a person agreed to is asked anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, let_sleep, log_of, wait_for

from nitinol import Agent, Approval, Delta, ModelRequest, Prices, Runtime, Tool, Usage, tool
from nitinol.errors import AgentParked, NotFound
from nitinol.http import Http
from nitinol.messages import Message, Text
from nitinol.provider import ModelResponse, StreamPart, UsageSoFar
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@tool(approval=Approval(timeout=3600))
def launch(to: str) -> str:
    """Launch a rocket."""
    return f"launched to {to}"


def script(request: ModelRequest) -> Answer:
    last = request.messages[-1]
    return getattr(last.parts[0], "text", "") if last.role == "tool" else call("launch", to="the moon")


def scout(*tools: Tool, script: Callable[[ModelRequest], Answer] = script, **options: Any) -> Agent[str]:
    return Agent(name="scout", model=ScriptedProvider(script), tools=tools, **options)


def interrupt(path: Path, *tools: Tool) -> str:
    """A run that waits for an approval when its process ends; its id."""
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        handle = rt.start(scout(*tools), key="k").send("go")
        wait_for(pauses, "run.paused")
        return handle.run_id


def asked(log: list[Any]) -> list[str]:
    return [event.tool_hash for event in log if event.type == "approval.requested"]


def test_an_unchanged_tool_is_not_asked_for_again(path: Path) -> None:
    """A restart alone changes nothing. rule 12"""
    run_id = interrupt(path, launch)
    with Runtime(path, agents=[scout(launch)], drain=0.0) as rt:
        rt.handle(run_id).approve("call_1_0")
        assert rt.handle(run_id).result(SOON).text == "launched to the moon"
        log = log_of(rt.get("k"))
        assert asked(log) == [launch.digest]
        assert "agent.configured" not in [event.type for event in log]


def test_a_changed_tool_asks_its_approval_anew(path: Path) -> None:
    """Once, with the pinned arguments: a person agrees to what the tool is now. rule 12"""
    run_id = interrupt(path, launch)
    changed = launch.replace(description="Launch a rocket, and pay for it.")
    for _ in range(2):  # however often it is opened
        with Runtime(path, drain=0.0) as rt, rt.subscribe("agent.started") as starts:
            ref = rt.start(scout(changed), key="k")
            wait_for(starts, "agent.started")
            log = log_of(ref)
            assert asked(log) == [launch.digest, changed.digest]
            [told] = [event for event in log if event.type == "agent.configured"]
            assert list(told.changes) == ["definition"]
    with Runtime(path, agents=[scout(changed)], drain=0.0) as rt:
        rt.handle(run_id).approve("call_1_0")
        assert rt.handle(run_id).result(SOON).text == "launched to the moon"
        assert_valid(rt.get("k"))


@pytest.mark.parametrize("asleep", [False, True])
def test_a_run_in_progress_goes_on_by_its_own_definition(path: Path, asleep: bool) -> None:
    """One that was changed meanwhile is the next run's, whether the agent slept or not. rule 12"""

    @tool(approval=True, name="launch")
    def changed(to: str) -> str:
        """Launch another rocket."""
        return f"another went to {to}"

    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(launch), key="k")
        for definition, said in ((launch, "launched to the moon"), (changed, "another went to the moon")):
            with rt.subscribe("run.paused") as pauses:
                handle = ref.send("go")
                wait_for(pauses, "run.paused")
            if asleep:
                let_sleep(rt)
            rt.start(scout(changed), key="k")
            handle.approve(ref.pending_approvals()[0].call_id)
            assert handle.result(SOON).text == said, definition
        assert_valid(ref)


def test_a_tool_that_is_gone_is_an_error_answer(path: Path) -> None:
    """The model is told, and the run goes on; nobody is asked for a call that cannot run. rule 12"""
    run_id = interrupt(path, launch)
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        result = rt.handle(run_id).result(SOON)
        assert [(record.name, record.outcome) for record in result.tool_calls] == [("launch", "error")]
        assert "no tool 'launch' any more" in result.text
        assert_valid(ref)


def test_a_run_whose_definition_is_missing_waits_and_is_seen(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not lost, and not touched; a start of its agent goes on with it. rule 12"""
    held = gate("never")
    with Runtime(path, drain=0.0) as rt:
        handle = rt.start(scout(script=lambda request: held), key="k").send("go")
        assert held.reached()
    with Runtime(path, agents=[Agent(name="other", model=ScriptedProvider(["x"]))], drain=0.0) as rt:
        with pytest.raises(NotFound, match=r"'k', whose definition is not known here; give it as agents="):
            rt.handle(handle.run_id)
        with pytest.raises(NotFound):
            rt.get("k")
        assert rt.agents() == []
        rt.start(scout(script=lambda request: "now"), key="k")
        assert rt.handle(handle.run_id).result(SOON).text == "now"
    assert "an interrupted run waits for its agent" in caplog.text


def test_a_run_that_waits_for_approval_is_not_overlooked(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody opens its agent, which has nothing to do; that its definition was not given is told all the same."""
    run_id = interrupt(path, launch)
    with Runtime(path, agents=[scout(launch)], drain=0.0):
        assert "its agent is not known" not in caplog.text
    with Runtime(path, drain=0.0) as rt:
        assert "a run waits for approval, and its agent is not known" in caplog.text
        assert "key='k'" in caplog.text
        rt.start(scout(launch), key="k")
        rt.handle(run_id).approve("call_1_0")
        assert rt.handle(run_id).result(SOON).text == "launched to the moon"


def test_a_parked_agent_ends_a_run_that_is_cancelled() -> None:
    """Nobody would see what its effects come to: the run ends at once, its attempt billed as lost. rule 8"""
    held = gate("late")
    with Runtime(drain=0.0) as rt:
        ref = rt.start(scout(script=lambda request: held), key="k")
        handle = ref.send("go")
        assert held.reached()
        for _ in range(6):
            crash(ref)
        with pytest.raises(AgentParked):
            handle.result(SOON)
        handle.cancel()
        assert handle.result(SOON).status in ("cancelled", "sealed")
        assert_valid(ref)


def test_the_report_of_an_attempt_that_a_crash_cut_off_is_billed() -> None:
    """The gateway closes the stream and settles it; the reservation is owed only where nobody reports. rule 5"""

    class Hangs(ScriptedProvider):
        async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
            self.requests.append(request)
            if len(self.requests) == 1:
                yield UsageSoFar(Usage(input_tokens=7, output_tokens=3))
                yield Delta("text", "half")
                await asyncio.Event().wait()
            message = Message(role="assistant", parts=(Text("whole"),))
            yield ModelResponse(message=message, usage=Usage(input_tokens=1, output_tokens=1), stop_reason="end_turn")

    model = Hangs([], prices=Prices(input="1000000", output="1000000"), max_output_tokens=1000)
    with Runtime(drain=0.0) as rt:
        ref = rt.start(Agent(name="scout", model=model), key="k")
        with rt.subscribe("model.delta", key="k") as deltas:
            handle = ref.send("go")
            wait_for(deltas, "model.delta")
        crash(ref)
        result = handle.result(SOON)
        assert (result.text, result.usage.total_tokens, result.cost) == ("whole", 12, Decimal(12))
        assert [event.recoveries for event in log_of(ref) if event.type == "run.resumed"] == [1]
        assert_valid(ref)
