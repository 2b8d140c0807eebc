"""A cancel at every point of a run: what it waits for, whatever it does, it ends `cancelled` within the grace."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of
from tests.servers import Connection, Server, head, stream

from nitinol import Agent, AgentRef, Hooks, Runtime, Tool, ToolContext, tool
from nitinol.env import Env
from nitinol.errors import RateLimited
from nitinol.handle import RunHandle
from nitinol.http import Http
from nitinol.machine import GRACE
from nitinol.messages import Message, Text
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart
from nitinol.retry import Retry
from nitinol.testing import Answer, ScriptedProvider, call, crash, fail, gate


class Patient(Env):
    """An agent that crashed is not restarted before the test wants it to be."""

    def random(self) -> float:
        return 10_000.0


class Vendor:
    """A provider behind a server."""

    name, model = "vendor", "vendor-1"

    def __init__(self, url: str) -> None:
        self.url = url

    def info(self) -> ModelInfo:
        return ModelInfo()

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        text = ""
        async for data in http.sse("POST", self.url, json={}):
            text += data.decode()
            yield Delta("text", data.decode())
        yield ModelResponse(message=Message(role="assistant", parts=(Text(text),)), usage=None, stop_reason="end_turn")


@dataclass
class Stage:
    """Where a case brings a run to its point."""

    rt: Runtime
    after: ExitStack
    """What is done when the run has ended: threads that nobody can stop are let go."""
    here: threading.Event = field(default_factory=threading.Event)
    """The run is at its point."""
    gone: threading.Event = field(default_factory=threading.Event)
    """What was in flight there has been cancelled: the connection is closed, the coroutine has cleaned up."""
    outcomes: list[str] = field(default_factory=list[str])
    """Of its calls, wanted."""
    at_once: bool = True
    """Nothing that is in flight keeps the run from ending."""

    def send(self, answer: Answer, *tools: Tool, **options: Any) -> RunHandle[str]:
        """A run of an agent whose first answer is this one."""
        made: Any = {"name": "a", "model": first(answer), "tools": tools, **options}
        return self.rt.start(Agent(**made), key="a").send("go")

    def let_go_later(self) -> threading.Event:
        """For a function that heeds nothing: it waits for this, until the run has ended."""
        released = threading.Event()
        self.after.callback(released.set)
        return released

    async def hang(self) -> None:
        """For a coroutine: it waits for ever, and says when it is cancelled."""
        self.here.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.gone.set()

    def block(self) -> None:
        """For a function: it waits until the run has ended."""
        released = self.let_go_later()
        self.gone.set()  # nobody can stop a thread
        self.here.set()
        released.wait(SOON)


def first(answer: Answer) -> ScriptedProvider:
    """A provider that gives this answer once, and then ends every run."""
    answers = iter([answer])
    return ScriptedProvider(lambda request: next(answers, "end"))


@tool
def work() -> str:
    """Work."""
    return "worked"


CASES: dict[str, Callable[[Stage], RunHandle[Any]]] = {}


def case(function: Callable[[Stage], RunHandle[Any]]) -> Callable[[Stage], RunHandle[Any]]:
    """A point of a run. It returns the run's handle; the run is there when `stage.here` is set."""
    CASES[function.__name__] = function
    return function


# ---- before it starts, and before the model answers


@case
def at_once_after_it_was_sent(stage: Stage) -> RunHandle[Any]:
    held = gate("never")

    def answer(request: ModelRequest) -> Answer:
        last = request.messages[-1].parts[-1]
        return held if isinstance(last, Text) and last.text == "go" else "end"

    stage.here.set()
    stage.gone.set()
    return stage.send("", model=ScriptedProvider(answer))


@case
def queued(stage: Stage) -> RunHandle[Any]:
    held = gate("held")
    before = stage.send(held)
    assert held.reached()
    handle = stage.rt.get("a").send("queued")
    stage.after.callback(before.result, SOON)
    stage.after.callback(held.release)
    stage.here.set()
    stage.gone.set()
    return handle


@case
def waiting_for_the_rate_limit(stage: Stage) -> RunHandle[Any]:
    return _waiting(stage, RateLimited(retry_after=3000.0), Retry())


@case
def in_retry_backoff(stage: Stage) -> RunHandle[Any]:
    return _waiting(stage, RateLimited(), Retry(base=1e6, cap=1e6))


def _waiting(stage: Stage, error: Exception, retry: Retry) -> RunHandle[Any]:
    with stage.rt.subscribe("model.retrying") as retrying:
        handle = stage.send(fail(error), retry=retry)
        retrying.get(SOON)
    stage.here.set()
    stage.gone.set()
    return handle


@case
def before_the_headers(stage: Stage) -> RunHandle[Any]:
    return _at_the_vendor(stage)


@case
def after_the_headers(stage: Stage) -> RunHandle[Any]:
    return _at_the_vendor(stage, head(connection="close"))


@case
def in_mid_stream(stage: Stage) -> RunHandle[Any]:
    return _at_the_vendor(stage, head(connection="close"), b"data: some\n\n")


def _at_the_vendor(stage: Stage, *pieces: bytes) -> RunHandle[Any]:
    async def stall(connection: Connection) -> None:
        await connection.send(*pieces)
        if len(pieces) < 2:  # else it is there when its reader has seen some of it
            stage.here.set()
        await connection.closed()
        stage.gone.set()

    server = stage.after.enter_context(Server(stall, stream(b"data: end\n\n")))
    with stage.rt.subscribe("model.delta") as deltas:
        agent: Agent[str] = Agent(name="a", model=Vendor(server.url))
        handle = stage.rt.start(agent, key="a").send("go")
        if len(pieces) > 1:
            deltas.get(SOON)
            stage.here.set()
    return handle


@case
def while_instructions_are_made(stage: Stage) -> RunHandle[Any]:
    def instructions(_: object) -> str:
        if not stage.here.is_set():
            stage.block()
        return "x"

    return stage.send("end", instructions=instructions)


# ---- in tools


@case
def in_an_async_tool(stage: Stage) -> RunHandle[Any]:
    @tool
    async def waits() -> None:
        """Wait."""
        await stage.hang()

    stage.outcomes = ["cancelled"]
    return stage.send(call("waits"), waits)


@case
def in_an_async_tool_that_refuses_to_die(stage: Stage) -> RunHandle[Any]:
    stubborn = stage.let_go_later()

    @tool
    async def refuses() -> None:
        """Refuse."""
        stage.here.set()
        while not stubborn.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                stage.gone.set()

    stage.outcomes, stage.at_once = ["uncertain"], False
    return stage.send(call("refuses"), refuses)


@case
def in_a_function_that_heeds(stage: Stage) -> RunHandle[Any]:
    @tool
    def heeds(ctx: ToolContext) -> str:
        """Look now and then."""
        stage.here.set()
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        stage.gone.set()
        return "stopped in order"

    stage.outcomes = ["ok"]
    return stage.send(call("heeds"), heeds)


@case
def in_a_function_that_raises_when_cancelled(stage: Stage) -> RunHandle[Any]:
    @tool
    def heeds(ctx: ToolContext) -> str:
        """Look now and then."""
        stage.here.set()
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        stage.gone.set()
        raise InterruptedError

    stage.outcomes = ["cancelled"]
    return stage.send(call("heeds"), heeds)


@case
def in_a_function_that_does_not_heed(stage: Stage) -> RunHandle[Any]:
    @tool
    def hangs() -> None:
        """Hang."""
        stage.block()

    stage.outcomes, stage.at_once = ["uncertain"], False
    return stage.send(call("hangs"), hangs)


@case
def queued_for_a_slot(stage: Stage) -> RunHandle[Any]:
    started = threading.Event()
    released = stage.let_go_later()

    @tool
    def hogs() -> None:
        """Keep a worker."""
        started.set()
        released.wait(SOON)

    workers = stage.rt._system.workers  # pyright: ignore[reportPrivateUsage]
    hog: Agent[str] = Agent(name="hog", model=first([call("hogs")] * workers), tools=[hogs])
    other = stage.rt.start(hog, key="hog").send("go")
    stage.after.callback(other.result, SOON)
    stage.after.callback(released.set)
    assert started.wait(SOON)
    with stage.rt.subscribe("pool.saturated") as full:
        handle = stage.send(call("work"), work)
        full.get(SOON)
    stage.here.set()
    stage.gone.set()
    stage.outcomes = ["cancelled"]
    return handle


@case
def behind_a_serial_tool(stage: Stage) -> RunHandle[Any]:
    @tool(serial=True)
    async def alone() -> None:
        """Alone."""
        await stage.hang()

    stage.outcomes = ["cancelled", "cancelled"]
    return stage.send([call("alone"), call("work")], alone, work)


@case
def in_one_tool_when_another_has_ended(stage: Stage) -> RunHandle[Any]:
    @tool
    async def waits() -> None:
        """Wait."""
        await stage.hang()

    stage.outcomes = ["ok", "cancelled"]
    with stage.rt.subscribe("tool.finished", key="a") as finished:
        handle = stage.send([call("work"), call("waits")], work, waits)
        finished.get(SOON)
    return handle


@case
def waiting_for_approval(stage: Stage) -> RunHandle[Any]:
    with stage.rt.subscribe("approval.requested") as asked:
        handle = stage.send(call("work"), work.replace(approval=True))
        asked.get(SOON)
    stage.here.set()
    stage.gone.set()
    stage.outcomes = ["cancelled"]
    return handle


# ---- in hooks


def _hooks(stage: Stage, point: str, is_async: bool) -> RunHandle[Any]:
    async def hook_async(self: Hooks, *args: Any) -> None:
        if not stage.here.is_set():
            await stage.hang()

    def hook(self: Hooks, *args: Any) -> None:
        if not stage.here.is_set():
            stage.block()

    made: Any = type("At", (Hooks,), {point: hook_async if is_async else hook})
    answer: Answer = fail(RateLimited()) if point == "on_error" else call("work")
    # What has ended has ended: a result that a hook was to see is the call's outcome.
    stage.outcomes = {"before_tool": ["cancelled"], "after_tool": ["ok"]}.get(point, [])
    return stage.send(answer, work, hooks=[made()])


for _point in ("before_model", "after_model", "before_tool", "after_tool", "on_error"):
    for _is_async in (False, True):

        def _in_hook(stage: Stage, point: str = _point, is_async: bool = _is_async) -> RunHandle[Any]:
            return _hooks(stage, point, is_async)

        CASES[f"in_{'async' if _is_async else 'sync'}_{_point}"] = _in_hook


# ---- in the hands of the supervisor


@case
def in_the_supervisors_backoff(stage: Stage) -> RunHandle[Any]:
    held = gate("held")
    handle = stage.send(held)
    assert held.reached()
    crash(stage.rt.get("a"))
    assert stage.rt.get("a").status().state == "restarting"
    stage.here.set()
    stage.gone.set()
    return handle


@case
def in_backoff_with_a_tool_that_runs(stage: Stage) -> RunHandle[Any]:
    @tool
    async def waits() -> None:
        """Wait."""
        await stage.hang()

    stage.outcomes = ["cancelled"]
    handle = stage.send(call("waits"), waits)
    assert stage.here.wait(SOON)
    crash(stage.rt.get("a"))
    return handle


@case
def parked(stage: Stage) -> RunHandle[Any]:
    # Queued behind nothing, but not at work either: three deaths at work would seal it.
    with stage.rt.subscribe("approval.requested", "agent.parked") as told:
        handle = stage.send(call("work"), work.replace(approval=True))
        told.get(SOON)
        while stage.rt.get("a").status().state != "parked":
            crash(stage.rt.get("a"))
            if len([event for event in log_of(stage.rt.get("a")) if event.type == "agent.crashed"]) > 5:
                assert told.get(SOON).type == "agent.parked"
    stage.outcomes = ["cancelled"]
    stage.here.set()
    stage.gone.set()
    return handle


# ---- the one promise


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What carries the requests."""
    chosen: str = request.param
    monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", chosen)
    return chosen


VENDOR = ("before_the_headers", "after_the_headers", "in_mid_stream")


@pytest.mark.parametrize("name", [name for name in CASES if name not in VENDOR])
def test_a_cancel_ends_a_run(name: str) -> None:
    """Accepted by its commit; the run ends within the grace, with a valid log; nothing is left; the agent goes on. rule 8"""
    check(name)


@pytest.mark.parametrize("name", VENDOR)
def test_a_cancel_ends_a_request(name: str, transport: str) -> None:
    """And closes its connection, on both transports."""
    check(name)


def check(name: str) -> None:
    with Runtime(workers=2, drain=0.0, env=Patient()) as rt:
        with ExitStack() as after:
            stage = Stage(rt, after)
            handle = CASES[name](stage)
            assert stage.here.wait(SOON)
            ref: AgentRef[Any] = rt.get("a")
            handle.cancel()
            mine = [event for event in log_of(ref) if event.run_id == handle.run_id]
            assert [event for event in mine if event.type in ("run.cancelling", "run.finished")], mine

            result = handle.result(SOON)
            assert result.status == "cancelled"
            assert [record.outcome for record in result.tool_calls] == stage.outcomes
            mine = [event for event in log_of(ref) if event.run_id == handle.run_id]
            began = next((event.ts for event in mine if event.type == "run.cancelling"), mine[-1].ts)
            took = (mine[-1].ts - began) / 1e9
            assert took < GRACE if stage.at_once else GRACE <= took < GRACE + 2.0
            assert stage.gone.wait(SOON), "what was in flight was not cancelled"

            if ref.status().state == "parked":
                ref.resume()
            if name != "queued":
                assert ref.ask("next", timeout=SOON).text == "end"
                assert_nothing_in_flight(rt, "a")
        if name == "queued":
            assert ref.ask("next", timeout=SOON).text == "end"
        assert_valid(ref)
        assert_nothing_in_flight(rt, "a")
        assert_all_idle(rt)


def assert_nothing_in_flight(rt: Runtime, key: str) -> None:
    """No effect, no execution, and no call that waits for a worker."""
    system: Any = rt._system  # pyright: ignore[reportPrivateUsage]

    async def look() -> tuple[Any, ...]:
        actor = system.cells[key].actor
        waiting = [job for lane in (system.pool._threads, system.pool._coroutines) for job in lane._groups.get(key, ())]
        return dict(actor.in_flight), system.tools.in_flight(key), waiting, dict(system.bus._attempts)

    assert system.on_core(look).result(SOON) == ({}, {}, [], {})


def assert_all_idle(rt: Runtime) -> None:
    """Once threads that could not be stopped have come back: no task on the loops, no busy slot, nobody abandoned."""
    system: Any = rt._system  # pyright: ignore[reportPrivateUsage]

    def tasks_end_on(loop: Any) -> None:
        ended = threading.Event()

        async def main() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                await asyncio.wait(others)
            ended.set()

        loop.call(lambda: loop.spawn(main()))
        assert ended.wait(SOON), f"tasks are left on {loop.name}"

    for loop in (system.user, system.core):
        tasks_end_on(loop)

    pools = (system.pool, system.hook_pool)
    lanes = [lane for pool in pools for lane in (pool._threads, pool._coroutines)]

    async def come_to_rest() -> list[tuple[int, int]]:
        async with asyncio.timeout(SOON):
            while any(pool.abandoned for pool in pools) or any(lane.busy for lane in lanes):
                await asyncio.sleep(0)  # a turn of the core loop, on which whoever comes back is heard
        return [(lane.queued, len(lane._groups)) for lane in lanes]

    assert system.on_core(come_to_rest).result(SOON + 1.0) == [(0, 0)] * 4


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


def test_a_second_cancel_is_accepted_and_changes_nothing(rt: Runtime) -> None:
    """While the run is ending; the first word on how it ends counts. rule 8"""
    started, release = threading.Event(), threading.Event()

    @tool
    def hangs() -> None:
        """Hang."""
        started.set()
        release.wait(SOON)

    ref: AgentRef[Any] = rt.start(Agent(name="a", model=first(call("hangs")), tools=[hangs]))
    handle = ref.send("go")
    assert started.wait(SOON)
    handle.cancel(by="kim")
    handle.cancel(by="lee")
    release.set()
    assert handle.result(SOON).status == "cancelled"
    assert [event.by for event in log_of(ref) if event.type == "run.cancelling"] == ["kim"]
    assert_valid(ref)


def test_a_cancel_from_inside_of_the_tool_ends_its_own_run(rt: Runtime) -> None:
    """A coroutine may cancel the run that it works for: it is cancelled itself at its next wait."""
    ended = threading.Event()

    @tool
    async def quits(ctx: ToolContext) -> None:
        """Quit."""
        try:
            await rt.handle(ctx.run_id).acancel(by="itself")
            await asyncio.Event().wait()
        finally:
            ended.set()

    ref: AgentRef[Any] = rt.start(Agent(name="a", model=first(call("quits")), tools=[quits]))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.tool_calls[0].outcome) == ("cancelled", "cancelled")
    assert ended.wait(SOON)
    assert_valid(ref)
