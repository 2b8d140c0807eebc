"""Agents that sleep: out of memory, but never out of reach."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, let_sleep, log_of, wait_for

from nitinol import Agent, AgentRef, Approval, Hooks, ModelRequest, Runtime, tool
from nitinol.env import Env
from nitinol.errors import ConfigurationError
from nitinol.hooks import HookContext
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


def echo(request: ModelRequest) -> Answer:
    return f"you said {request.messages[-1].text}"


def scout(script: Callable[[ModelRequest], Answer] = echo, **options: Any) -> Agent[str]:
    return Agent(name="scout", model=ScriptedProvider(script), **options)


@tool(approval=Approval(timeout=3600))
def launch() -> str:
    """Launch it."""
    return "launched"


def launching(request: ModelRequest) -> Answer:
    return "done" if request.messages[-1].role == "tool" else call("launch")


def life(ref: AgentRef[Any]) -> str:
    return ref._cell.life  # pyright: ignore[reportPrivateUsage]


def test_an_idle_agent_leaves_memory_and_its_next_input_wakes_it(path: Path) -> None:
    """Its conversation goes, its status stays; it wakes as the same incarnation, with all it knew. parity: A1"""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        ref.ask("one", timeout=SOON)
        before, cell = ref.status(), ref._cell  # pyright: ignore[reportPrivateUsage]
        gone = threading.Event()
        weakref.finalize(cell.actor, gone.set)
        kept = len(log_of(ref))
        let_sleep(rt)
        assert life(ref) == "asleep"
        assert gone.wait(SOON)
        assert len(cell.committed.transcript) == 0
        assert ref.status() == before
        assert [agent.key for agent in rt.agents()] == ["k"]
        assert ref.ask("two", timeout=SOON).text == "you said two"
        assert [message.text for message in ref.history()] == ["one", "you said one", "two", "you said two"]
        assert ref.status().incarnation == before.incarnation
        assert "agent.started" not in [event.type for event in log_of(ref)[kept:]]
        assert_valid(ref)


@pytest.mark.parametrize("getter", ["history", "messages"])
def test_looking_at_one_who_sleeps_wakes_it(path: Path, getter: str) -> None:
    """Never an empty conversation. parity: A1"""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        ref.ask("one", timeout=SOON)
        for _ in range(3):
            let_sleep(rt)
            assert len(getattr(ref, getter)()) == 2


def test_sleep_comes_by_itself(path: Path) -> None:
    """After `idle` seconds; inputs that race with it are all accepted, once and in order. rule 2"""
    with Runtime(path, drain=0.0, idle=0.001) as rt:
        ref = rt.start(scout(), key="k")
        for number in range(100):
            assert ref.ask(str(number), timeout=SOON).text == f"you said {number}"
        said = [message.text for message in ref.history() if message.role == "user"]
        assert said == [str(number) for number in range(100)]
        assert ref.status().incarnation == 1
        assert_valid(ref)


def test_one_at_work_does_not_sleep(path: Path) -> None:
    """Nor one with a run that waits."""
    held = gate("late")
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(lambda request: held if request.messages[-1].text == "work" else "ok"), key="k")
        handle, queued = ref.send("work"), ref.send("next")
        assert held.reached()
        let_sleep(rt)
        assert life(ref) == "up"
        held.release()
        assert (handle.result(SOON).text, queued.result(SOON).text) == ("late", "ok")


def test_one_that_waits_for_a_person_sleeps(path: Path) -> None:
    """For days if need be: the call stays visible, those who wait go on waiting, and the word wakes it."""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(launching, tools=[launch]), key="k")
        with rt.subscribe("run.paused") as pauses:
            handle = ref.send("go")
            wait_for(pauses, "run.paused")
        let_sleep(rt)
        assert life(ref) == "asleep"
        assert (ref.status().state, [pending.name for pending in ref.pending_approvals()]) == ("paused", ["launch"])
        assert ref.current is not None
        handle.approve(ref.pending_approvals()[0].call_id)
        assert handle.result(SOON).text == "done"
        assert_valid(ref)


class Later(Env):
    """A wall clock that a test can set forward; timers go by the other one."""

    ahead = 0

    def now(self) -> int:
        return super().now() + self.ahead


@tool(approval=Approval(timeout=0.2))
def hurry() -> str:
    """Launch it soon."""
    return "launched"


def hurrying(request: ModelRequest) -> Answer:
    return "done" if request.messages[-1].role == "tool" else call("hurry")


def test_a_timer_wakes_one_who_sleeps(path: Path) -> None:
    """An approval that nobody gives expires on time, also asleep. rule 10"""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(hurrying, tools=[hurry]), key="k")
        with rt.subscribe("run.paused") as pauses:
            handle = ref.send("go")
            wait_for(pauses, "run.paused")
        let_sleep(rt)
        assert [record.outcome for record in handle.result(SOON).tool_calls] == ["denied"]


def test_a_timer_wakes_one_that_nobody_opens(path: Path) -> None:
    """In the next process: its log is not read before, and the approval expires all the same. rule 10"""
    agent = scout(launching, tools=[launch])
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        run_id = rt.start(agent, key="k").send("go").run_id
        wait_for(pauses, "run.paused")
    with Runtime(path, agents=[agent], drain=0.0, env=Env()) as rt:
        assert rt.agents() == []
        assert rt.tree().children[-1].children == ()
    env = Later()
    env.ahead = int(3600.5e9)
    with Runtime(path, agents=[agent], drain=0.0, env=env) as rt, rt.subscribe("approval.resolved", after=0) as words:
        word = wait_for(words, "approval.resolved")
        assert word.type == "approval.resolved"
        assert (word.by, word.decision) == ("timeout", "deny")
        assert rt.handle(run_id).result(SOON).text == "done"
        assert_valid(rt.get("k"))


def test_one_that_waits_is_found_by_its_run(path: Path) -> None:
    """After a restart nobody has opened it; its handle does, and the word counts."""
    agent = scout(launching, tools=[launch])
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        run_id = rt.start(agent, key="k").send("go").run_id
        wait_for(pauses, "run.paused")
    with Runtime(path, agents=[agent], drain=0.0) as rt:
        handle = rt.handle(run_id)
        [pending] = [part for message in rt.get("k").history() for part in message.tool_calls]
        handle.approve(pending.call_id)
        assert handle.result(SOON).text == "done"


def test_a_crash_of_one_who_slept_is_a_crash_as_any(path: Path) -> None:
    """It comes back with its conversation. parity: A5"""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        ref.ask("one", timeout=SOON)
        let_sleep(rt)
        crash(ref)
        assert ref.ask("two", timeout=SOON).text == "you said two"
        assert ref.status().incarnation == 2
        assert_valid(ref)


def test_a_stop_lets_sleep(path: Path) -> None:
    """No log is read to stop those who sleep, unless a hook wants to see it; the next process goes on with them. parity: A7"""
    stopped: list[str] = []

    class Goodbye(Hooks):
        def agent_stop(self, ctx: HookContext, reason: str) -> None:
            stopped.append(ctx.key)

    with Runtime(path, drain=0.0) as rt:
        rt.start(scout(), key="plain").ask("hi", timeout=SOON)
        rt.start(scout(hooks=[Goodbye()]), key="hooked").ask("hi", timeout=SOON)
        let_sleep(rt)
    assert stopped == ["hooked"]
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        for key in ("plain", "hooked"):
            ref = rt.get(key)
            assert ref.ask("again", timeout=SOON).text == "you said again"
            assert [event.recoveries for event in log_of(ref) if event.type == "run.resumed"] == []
            assert_valid(ref)


def test_stop_and_forget_reach_one_who_sleeps(path: Path) -> None:
    """Nothing of it is left."""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        ref.ask("one", timeout=SOON)
        let_sleep(rt)
        rt.forget("k")
        assert rt.agents() == []
        other = rt.start(scout(), key="other")
        other.ask("one", timeout=SOON)
        let_sleep(rt)
        other.stop()
        assert other.status().state == "stopped"


def test_without_a_store_nobody_sleeps() -> None:
    """What is kept only in memory cannot leave it."""
    with Runtime(drain=0.0, idle=0.001) as rt:
        ref = rt.start(scout(), key="k")
        ref.ask("one", timeout=SOON)
        assert rt._system.alarm is None  # pyright: ignore[reportPrivateUsage]
        assert life(ref) == "up"


@pytest.mark.parametrize("idle", [0, -1, "long", float("nan")])
def test_idle_is_seconds(path: Path, idle: Any) -> None:
    """Or None: never."""
    with pytest.raises(ConfigurationError, match="idle="):
        Runtime(path, idle=idle)
