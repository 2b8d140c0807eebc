"""Three times as many hung tools as the pool has workers, and parents that wait in their tools for children."""

# pyright: reportPrivateUsage=false
# Reason: what is left behind is counted where it would be.

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, wait_for

from nitinol import Agent, HookContext, Hooks, Runtime, Tool, ToolContext, arun, run, tool
from nitinol.actors.worker_pool import ABANDONED
from nitinol.events import Event
from nitinol.oneshot import default_runtime
from nitinol.provider import ModelRequest
from nitinol.result import ToolCallRecord
from nitinol.testing import ScriptedProvider, call

SIZE = 4
TIMEOUT = 0.2

release = threading.Event()
"""Lets the hung threads go."""
stranded: set[threading.Thread] = set()
"""The hung threads."""


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    release.clear()
    stranded.clear()
    yield
    release.set()


@tool(timeout=TIMEOUT)
async def hangs_async() -> None:
    """Hang."""
    await asyncio.Event().wait()


@tool(timeout=TIMEOUT)
def hangs_thread() -> None:
    """Hang."""
    stranded.add(threading.current_thread())
    release.wait(SOON * 6)


@tool(timeout=TIMEOUT, isolation="process")
def hangs_process() -> None:
    """Hang, and hold the interpreter's lock as far as that goes."""
    while True:
        pass


@tool
async def fine_async() -> str:
    """Fine."""
    return "fine"


@tool
def fine_thread() -> str:
    """Fine."""
    return "fine"


@tool(isolation="process")
def fine_process() -> str:
    """Fine."""
    return "fine"


def agent(*tools: Tool, times: int = 1) -> Agent[str]:
    """An agent that calls each of its tools, and ends."""
    calls = [call(tool.name) for tool in tools] * times
    script = ScriptedProvider(lambda request: "end" if request.messages[-1].role == "tool" else calls)
    return Agent(name="worker", model=script, tools=tools)


def records(rt: Runtime, *tools: Tool, times: int = 1) -> tuple[ToolCallRecord, ...]:
    """What came of calling these tools."""
    ref = rt.start(agent(*tools, times=times))
    result = ref.ask("go", timeout=SOON * 3)
    assert (result.status, result.text) == ("completed", "end"), result
    assert_valid(ref)
    return result.tool_calls


def kinds() -> pytest.MarkDecorator:
    """Each isolation: what hangs there, what does not, how many threads are given up for one that hangs."""
    return pytest.mark.parametrize(
        ("hangs", "fine", "strands"),
        [(hangs_async, fine_async, 0), (hangs_thread, fine_thread, 1), (hangs_process, fine_process, 0)],
        ids=["async", "thread", "process"],
    )


@kinds()
def test_agents_go_on_while_three_times_the_pool_hangs(hangs: Tool, fine: Tool, strands: int) -> None:
    """Every call that hangs is `timeout`, its agent's run completes, and calls of any kind run afterwards."""
    with Runtime(workers=SIZE, drain=0.0) as rt:
        handles = [rt.start(agent(hangs), key=f"hung/{number}").send("go") for number in range(3 * SIZE)]
        behind = rt.start(agent(fine), key="behind").send("go")
        results = [handle.result(SOON) for handle in handles]
        assert [result.status for result in results] == ["completed"] * (3 * SIZE)
        assert {record.outcome for result in results for record in result.tool_calls} == {"timeout"}
        assert behind.result(SOON).tool_calls[0].text == "fine"
        assert rt._system.pool.abandoned == 3 * SIZE * strands
        assert [record.outcome for record in records(rt, fine_async, fine_thread, fine_process)] == ["ok"] * 3
        release.set()


def test_beyond_the_cap_calls_of_threads_are_refused_and_no_others() -> None:
    """Of many that hang at once, some more than four times the pool's size strand a thread; the rest is told why not."""
    cap = SIZE * ABANDONED
    with Runtime(workers=SIZE, drain=0.0) as rt:
        found = records(rt, hangs_thread, times=cap * 2)
        timeouts = [record for record in found if record.outcome == "timeout"]
        refused = [record for record in found if record.outcome == "error"]
        assert len(timeouts) + len(refused) == cap * 2
        assert cap < len(timeouts) <= cap + SIZE
        assert rt._system.pool.abandoned == len(timeouts)
        assert all("tools hang past their deadline" in record.text for record in refused)
        outcomes = [
            (record.outcome, record.duration > 0) for record in records(rt, fine_thread, fine_async, fine_process)
        ]
        assert outcomes == [("error", False), ("ok", True), ("ok", True)]
        with rt.subscribe("tool.late_result") as late:
            release.set()
            wait_for(late, "tool.late_result", count=len(timeouts))
        assert records(rt, fine_thread)[0].outcome == "ok"


@kinds()
def test_nothing_is_left_of_what_hung(hangs: Tool, fine: Tool, strands: int) -> None:
    """After a stop: no thread but those that were given up, no process, no descriptor."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors are counted in /proc")
    with asyncio.Runner() as runner:  # what asyncio keeps once is there before
        runner.run(asyncio.sleep(0))
    before, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    with Runtime(workers=SIZE, drain=0.0) as rt:
        assert {record.outcome for record in records(rt, hangs, times=3 * SIZE)} == {"timeout"}
        records(rt, fine)
        hung = rt.start(agent(hangs.replace(timeout=60.0))).send("go")
        with rt.subscribe("tool.started", run_id=hung.run_id, after=0) as started:
            wait_for(started, "tool.started")
        template = rt._system.processes._template
    left = set(threading.enumerate()) - threads
    for thread in left - stranded:
        thread.join(SOON)
        assert not thread.is_alive(), thread
    assert len(stranded) == (3 * SIZE + 1) * strands
    assert set(os.listdir("/proc/self/fd")) == before
    if template is not None:
        assert template._popen.returncode is not None
    release.set()
    for thread in stranded:
        thread.join(SOON)
        assert not thread.is_alive(), thread


# ---- parents and children


PARENTS = 64


def child_agent() -> Agent[str]:
    """An agent with a tool that takes a slot."""

    @tool
    def leaf() -> str:
        """Work."""
        return threading.current_thread().name

    script = ScriptedProvider(lambda request: "leaf done" if request.messages[-1].role == "tool" else [call("leaf")])
    return Agent(name="child", model=script, tools=[leaf])


def delegates(how: str, rt: Runtime, child: Agent[str]) -> Tool:
    """A tool that runs the child agent, and waits for it."""

    @tool
    def by_ask(ctx: ToolContext) -> str:
        """Delegate."""
        return rt.start(child, key=f"child/{ctx.key}").ask("go", timeout=SOON * 3).text

    @tool
    def by_run(ctx: ToolContext) -> str:
        """Delegate."""
        return run("go", child, timeout=SOON * 3).text

    @tool
    async def by_arun(ctx: ToolContext) -> str:
        """Delegate, twice."""
        one, two = await asyncio.gather(arun("go", child), rt.start(child, key=f"child/{ctx.key}").aask("go"))
        assert one.text == two.text
        return one.text

    tools: dict[str, Tool] = {"ask": by_ask, "run": by_run, "arun": by_arun}
    return tools[how].replace(timeout=SOON * 6)


@pytest.mark.parametrize("how", ["ask", "run", "arun"])
def test_parents_that_wait_for_children_do_not_lock_up(how: str) -> None:
    """64 parents and a pool of 8: while a parent's tool waits, its slot is its child's. Who is whose child is in the log."""
    child = child_agent()
    with Runtime(workers=8, drain=0.0) as rt:
        deputy = delegates(how, rt, child)
        with children_of(default_runtime(), rt) as begun:
            handles = [rt.start(agent(deputy), key=f"parent/{number}").send("go") for number in range(PARENTS)]
            results = [handle.result(SOON * 6) for handle in handles]
            found = begun()
        assert [result.tool_calls[0].text for result in results] == ["leaf done"] * PARENTS
        parents = {handle.run_id for handle in handles}
        each = 2 if how == "arun" else 1
        assert sorted(str(event.parent_run_id) for event in found) == sorted([*parents] * each)
        assert all(event.root_run_id == event.parent_run_id for event in found)
        assert (rt._system.pool._threads.slots, rt._system.pool._threads.busy) == (8, 0)
        for handle in handles[:4]:
            assert_valid(rt.start(agent(deputy), key=handle.key))


class children_of:
    """The `run.queued` of agents called `child`, in several runtimes."""

    def __init__(self, *runtimes: Runtime) -> None:
        self._subscriptions = [rt.subscribe("run.queued", agent="child", maxsize=1000) for rt in runtimes]

    def __enter__(self) -> Callable[[], list[Event]]:
        return self._found

    def __exit__(self, *_: object) -> None:
        for subscription in self._subscriptions:
            subscription.close()

    def _found(self) -> list[Event]:
        found: list[Event] = []
        for subscription in self._subscriptions:
            try:
                while True:
                    found.append(subscription.get(0.0))
            except TimeoutError:
                continue
        return found


def test_a_grandchild_knows_its_root(tmp_path: Any) -> None:
    """Three deep: the root is the first of them. Who sends from outside has no parent."""
    leaf = child_agent()
    with Runtime(workers=1, drain=0.0) as rt:

        @tool
        def asks_leaf() -> str:
            """Ask."""
            return rt.start(leaf, key="leaf").ask("go", timeout=SOON).text

        middle = agent(asks_leaf)

        @tool
        def asks_middle() -> str:
            """Ask."""
            return rt.start(middle, key="middle").ask("go", timeout=SOON).text

        root = rt.start(agent(asks_middle), key="root").ask("go", timeout=SOON)
        events = {key: log_of(rt.get(key))[1] for key in ("root", "middle", "leaf")}
        assert [event.type for event in events.values()] == ["run.queued"] * 3
        runs = {key: event.run_id for key, event in events.items()}
        assert runs["root"] == root.run_id
        assert [event.parent_run_id for event in events.values()] == [None, runs["root"], runs["middle"]]
        assert {event.root_run_id for event in events.values()} == {root.run_id}


def test_what_a_tool_wakes_is_not_its_child() -> None:
    """A hook of another agent, whose run a tool has begun, runs an agent too: that is nobody's child."""
    leaf = child_agent()

    class Asks(Hooks):
        async def before_model(self, ctx: HookContext, request: ModelRequest) -> None:
            await rt.start(leaf, key="leaf").aask("go", timeout=SOON)

    with Runtime(workers=1, drain=0.0) as rt:
        middle = Agent(name="middle", model=ScriptedProvider(["end"]), hooks=[Asks()])

        @tool
        def asks_middle() -> str:
            """Ask."""
            return rt.start(middle, key="middle").ask("go", timeout=SOON).text

        root = rt.start(agent(asks_middle), key="root").ask("go", timeout=SOON)
        events = [log_of(rt.get(key))[1] for key in ("middle", "leaf")]
        assert [event.parent_run_id for event in events] == [root.run_id, None]
