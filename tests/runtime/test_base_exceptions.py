"""What ends a program, raised by a user's code: it ends that call or that run, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid

from nitinol import Agent, AgentRef, Hooks, Runtime, tool
from nitinol.errors import AuthenticationFailed
from nitinol.testing import Answer, ScriptedProvider, call, fail

EVILS = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, MemoryError, GeneratorExit]
POINTS = [
    "agent_start",
    "before_model",
    "after_model",
    "before_tool",
    "after_tool",
    "on_error",
    "after_run",
    "agent_stop",
]
KINDS = ["sync", "async"]


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime with one worker for tools: it must outlive them all."""
    with Runtime(workers=1, drain=0.0) as runtime:
        yield runtime


class Bystander:
    """Another agent, in the middle of an async tool while the evil happens, and well afterwards."""

    def __init__(self, rt: Runtime) -> None:
        self._go_on = asyncio.Event()
        self._rt = rt
        started = threading.Event()

        @tool
        async def waits() -> str:
            """Wait on the user loop."""
            started.set()
            await self._go_on.wait()
            return "undisturbed"

        @tool
        def works() -> str:
            """Work on the worker's thread."""
            return threading.current_thread().name

        calls = iter([call("waits")])
        script = ScriptedProvider(
            lambda request: "end" if request.messages[-1].role == "tool" else next(calls, call("works"))
        )
        self._ref: AgentRef[Any] = rt.start(Agent(name="bystander", model=script, tools=[waits, works]))
        self._handle = self._ref.send("go")
        assert started.wait(SOON)

    def check(self) -> None:
        """Its tool was not disturbed, and tools, hooks and agents of this runtime go on as before."""
        self._rt._system.user.call(self._go_on.set)  # pyright: ignore[reportPrivateUsage] # the loop of async tools
        result = self._handle.result(SOON)
        assert (result.status, result.tool_calls[0].text) == ("completed", "undisturbed")
        result = self._ref.ask("again", timeout=SOON)
        assert (result.status, result.tool_calls[0].outcome) == ("completed", "ok")
        assert self._ref.status().incarnation == 1
        assert_valid(self._ref)
        calm: Agent[str] = Agent(
            name="calm", model=ScriptedProvider(["calm"]), hooks=[at("before_model", lambda: None)]
        )
        assert self._rt.start(calm).ask("go", timeout=SOON).text == "calm"


def raising(evil: type[BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise evil("evil")

    return act


def at(point: str, act: Callable[[], None], kind: str = "sync") -> Hooks:
    """Hooks that do something at one point."""

    def hook(self: Hooks, *args: Any) -> None:
        act()

    async def hook_async(self: Hooks, *args: Any) -> None:
        await asyncio.sleep(0)
        act()

    made: Any = type("At", (Hooks,), {point: hook if kind == "sync" else hook_async})
    hooks: Hooks = made()
    return hooks


@tool
def work() -> str:
    """Work."""
    return "worked"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("evil", EVILS)
def test_a_tool_that_raises_what_ends_a_program_loses_its_own_call(
    rt: Runtime, evil: type[BaseException], kind: str
) -> None:
    """The model is told, its sibling has its result, the run completes; the agent was not restarted. Shows 5"""
    act = raising(evil)

    @tool
    def bad() -> None:
        """Raise."""
        act()

    @tool
    async def bad_async() -> None:
        """Raise."""
        await asyncio.sleep(0)
        act()

    bystander = Bystander(rt)
    name = "bad" if kind == "sync" else "bad_async"
    calls: Answer = [call(name), call("work")]
    script = ScriptedProvider([calls, "end"])
    ref: AgentRef[Any] = rt.start(Agent(name="a", model=script, tools=[bad, bad_async, work]))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.text) == ("completed", "end")
    assert [record.outcome for record in result.tool_calls] == ["error", "ok"]
    assert result.tool_calls[0].text == f"{evil.__name__}: evil"
    assert ref.status().incarnation == 1
    assert_valid(ref)
    bystander.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("evil", EVILS)
def test_a_hook_that_raises_what_ends_a_program_fails_its_own_run(
    rt: Runtime, evil: type[BaseException], point: str, kind: str
) -> None:
    """The asker is told by which hook, with a valid log; a last hook's failure is only logged. Shows 5"""
    bystander = Bystander(rt)
    first: Answer = fail(AuthenticationFailed("no")) if point == "on_error" else call("work")
    answers = iter([first])
    script = ScriptedProvider(lambda request: next(answers, "end"))
    agent: Agent[str] = Agent(name="a", model=script, tools=[work], hooks=[at(point, raising(evil), kind)])
    ref = rt.start(agent)
    result = ref.ask("go", timeout=SOON)
    if point in ("after_run", "agent_stop"):
        assert (result.status, result.text) == ("completed", "end")
    else:
        assert result.status == ("halted" if point == "agent_start" else "failed")
        assert evil.__name__ in str(result.error)
    assert ref.status().incarnation == 1
    assert_valid(ref)
    ref.stop()
    assert ref.status().state == "stopped"
    bystander.check()


@pytest.mark.parametrize("how", ["task", "callback", "stop"])
@pytest.mark.parametrize("evil", [SystemExit, KeyboardInterrupt])
def test_what_a_tool_leaves_behind_on_the_user_loop_ends_nothing(
    rt: Runtime, evil: type[BaseException], how: str
) -> None:
    """A task or a callback of a tool's own that raises, and a tool that stops its loop: the loop goes on. Shows 5"""
    act, done = raising(evil), threading.Event()

    @tool
    async def leaves() -> str:
        """Leave something behind."""
        loop = asyncio.get_running_loop()

        async def stray() -> None:
            try:
                act()
            finally:
                done.set()

        if how == "task":
            tasks.append(loop.create_task(stray()))
        elif how == "callback":
            loop.call_soon(act)
            loop.call_soon(done.set)
        else:
            loop.stop()
            loop.call_soon(done.set)
        return "left"

    tasks: list[asyncio.Task[None]] = []
    bystander = Bystander(rt)
    ref: AgentRef[Any] = rt.start(Agent(name="a", model=ScriptedProvider([call("leaves"), "end"]), tools=[leaves]))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.tool_calls[0].text) == ("completed", "left")
    assert done.wait(SOON)
    bystander.check()
    for task in tasks:  # or its collector would tell of it in another test
        assert isinstance(task.exception(), evil)
