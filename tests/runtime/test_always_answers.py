"""Whatever a bad hook or tool blocks, agents answer: status, cancel, restart, and all that does not need what is blocked."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, wait_for

from nitinol import Agent, AgentRef, Hooks, Runtime, tool
from nitinol.handle import RunHandle
from nitinol.testing import ScriptedProvider, call, crash


@tool
def work() -> str:
    """Work."""
    return "worked"


@contextmanager
def blocked(rt: Runtime, kind: str) -> Generator[tuple[AgentRef[Any], RunHandle[Any]]]:
    """A hook of an agent blocks its thread, or the loop of all users' coroutines, until you leave."""
    reached, release = threading.Event(), threading.Event()

    def block() -> None:
        reached.set()
        assert release.wait(4 * SOON)

    class Bad(Hooks):
        def before_model(self, ctx: Any, request: Any) -> None:
            block()

    class BadAsync(Hooks):
        async def before_model(self, ctx: Any, request: Any) -> None:
            block()

    hooks = [BadAsync() if kind == "async" else Bad()]
    ref: AgentRef[Any] = rt.start(Agent(name="bad", model=ScriptedProvider(lambda request: "end"), hooks=hooks))
    handle = ref.send("go")
    try:
        assert reached.wait(SOON)
        yield ref, handle
    finally:
        release.set()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_crashed_agent_is_back_while_a_hook_of_another_blocks(kind: str) -> None:
    """The supervisor's loop is its own: it restarts, the agent works, and the hook still blocks. Shows 8"""
    with Runtime(drain=0.0) as rt:
        script = ScriptedProvider(lambda request: "end" if request.messages[-1].role == "tool" else call("work"))
        other: AgentRef[Any] = rt.start(Agent(name="other", model=script, tools=[work]))
        other.ask("before", timeout=SOON)
        with blocked(rt, kind) as (bad, handle):
            with rt.subscribe("agent.restarted", key=other.key) as restarted:
                crash(other)
                wait_for(restarted, "agent.restarted")
            result = other.ask("after", timeout=SOON)
            assert (result.status, result.tool_calls[0].text) == ("completed", "worked")
            assert other.status().incarnation == 2
            assert (bad.status().state, bad.status().run_id) == ("running", handle.run_id)
            assert {node.id for node in rt.tree().children[-1].children} == {bad.key, other.key}
            assert not handle.done()
        assert handle.result(SOON).status == "completed"
        assert_valid(other)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_run_whose_hook_blocks_can_be_cancelled(kind: str) -> None:
    """It ends while the hook still blocks, and its agent takes the next run."""
    with Runtime(drain=0.0) as rt:
        with blocked(rt, kind) as (bad, handle):
            handle.cancel()
            assert handle.result(SOON).status == "cancelled"
            following = bad.send("next")
            assert bad.status().run_id == following.run_id
            following.cancel()
            assert following.result(SOON).status == "cancelled"
        assert_valid(bad)
