"""`@tool(isolation="process")`: another process, the same answers; and a kill where a thread would hang."""

# pyright: reportPrivateUsage=false
# Reason: what is left behind is counted where it would be.

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, wait_for
from tests.runtime.test_worker_pool import ManualEnv, ManualLoop

from nitinol import Agent, Image, Runtime, Tool, ToolContext, ToolError, run, tool
from nitinol.actors.processes import IDLE, ProcessCall, Processes, ProcessLost, RaisedThere
from nitinol.errors import ConfigurationError
from nitinol.result import ToolCallRecord
from nitinol.testing import Call, ScriptedProvider, call

linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells of the end of any process")


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


@pytest.fixture
def processes() -> Iterator[Processes]:
    """The processes of no runtime."""
    env = ManualEnv()
    made = Processes(env, ManualLoop(env))
    yield made
    made.stop()
    made.join(SOON)


def agent(*tools: Tool, calls: list[Call] | None = None, **options: Any) -> Agent[str]:
    """An agent that makes its calls once, then ends."""
    wanted = calls if calls is not None else [call(tool.name) for tool in tools]
    script = ScriptedProvider(lambda request: "end" if request.messages[-1].role == "tool" else wanted)
    return Agent(name="worker", model=script, tools=tools, **options)


def records(rt: Runtime, *tools: Tool, calls: list[Call] | None = None, **options: Any) -> tuple[ToolCallRecord, ...]:
    """What came of these calls."""
    ref = rt.start(agent(*tools, calls=calls, **options))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.text) == ("completed", "end"), result
    assert_valid(ref)
    return result.tool_calls


def called(processes: Processes, tool: Tool, **arguments: Any) -> Any:
    """Call a tool in one of these processes; its data."""
    return ProcessCall(processes).run(tool, arguments, ToolContext()).data


def ends(pid: int) -> bool:
    """Whether a process ends soon, whoever's child it is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        return bool(waiting.poll(SOON * 1000))
    finally:
        os.close(descriptor)


@tool(isolation="process")
def pid() -> int:
    """Tell."""
    return os.getpid()


@tool(isolation="process")
def dies(how: str) -> None:
    """Die."""
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))


@tool(isolation="process")
def raises(how: str) -> Any:
    """Raise."""
    match how:
        case "sys.exit":
            sys.exit(3)
        case "ToolError":
            raise ToolError("give an https address")
        case "object":
            return object()
        case _:
            raise {"ValueError": ValueError, "KeyboardInterrupt": KeyboardInterrupt, "MemoryError": MemoryError}[how](
                how
            )


# ---- the same as anywhere


@dataclass
class Deps:
    """Something to depend on."""

    name: str
    seen: list[int]


def test_it_is_told_about_its_call(rt: Runtime, tmp_path: Path) -> None:
    """All of the context, `deps` as a copy; `tool.started` names the isolation; progress comes in between."""

    @tool(isolation="process", timeout=30)
    def look(ctx: ToolContext) -> dict[str, Any]:
        """Look."""
        ctx.progress({"half": Path("/x")})
        ctx.deps.seen.append(os.getpid())
        return {
            "names": [ctx.agent, ctx.key, ctx.run_id, ctx.turn, ctx.call_id, ctx.idempotency_key, ctx.deps.name],
            "paths": [ctx.working_directory, *(ctx.allowed_paths or ())],
            "deadline": ctx.deadline,
            "cancelled": ctx.cancelled,
            "process": os.getpid(),
        }

    deps = Deps("deps", [])
    ref = rt.start(
        agent(look, deps=deps, working_directory=tmp_path, allowed_paths=["in", "/tmp"], deadline=20.0), key="k"
    )
    with rt.subscribe("tool.*") as seen:
        result = ref.ask("go", timeout=SOON)
        progress = wait_for(seen, "tool.progress")
        wait_for(seen, "tool.finished")
    (record,), log = result.tool_calls, log_of(ref)
    requested = next(event for event in log if event.type == "tool.requested")
    started = next(event for event in log if event.type == "tool.started")
    begun = next(event for event in log if event.type == "run.started")
    told = record.data
    assert told["names"] == [
        "worker", "k", result.run_id, 1, record.call_id, requested.idempotency_key, "deps",
    ]  # fmt: skip
    assert told["paths"] == [str(tmp_path), str(tmp_path / "in"), "/tmp"]
    assert abs(told["deadline"] - (begun.ts / 1e9 + 20.0)) < 1e-3
    assert told["cancelled"] is False
    assert told["process"] != os.getpid()
    assert deps.seen == []
    assert started.isolation == "process"
    assert progress.type == "tool.progress"
    assert (progress.call_id, progress.data) == (record.call_id, {"half": "/x"})


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("sys.exit", "SystemExit: 3"), ("ValueError", "ValueError: ValueError"), ("MemoryError", "MemoryError: MemoryError"),
        ("KeyboardInterrupt", "KeyboardInterrupt: KeyboardInterrupt"), ("ToolError", "give an https address"),
        ("object", "the tool returned object, which is neither text nor JSON: Unable to serialize unknown type: <class 'object'>"),
    ],
)  # fmt: skip
def test_what_it_raises_is_an_answer(processes: Processes, how: str, text: str) -> None:
    """With the texts of a thread's tool, and the process serves the next call."""
    before = called(processes, pid)
    with pytest.raises((ToolError, RaisedThere)) as caught:
        called(processes, raises, how=how)
    assert str(caught.value) == text
    if isinstance(caught.value, RaisedThere):
        assert "in raises" in caught.value.told
    assert called(processes, pid) == before


def test_pictures_and_much_text_come_back(rt: Runtime) -> None:
    """Media as they are, ten megabytes cut, and arguments of megabytes arrive."""

    @tool(isolation="process")
    def paints(text: str) -> list[Any]:
        """Paint."""
        return [str(len(text)), Image(data=b"\x89PNG" * 1_000_000, media_type="image/png")]

    @tool(isolation="process")
    def floods() -> str:
        """Flood."""
        return "a" * 5_000_000 + "b" * 5_000_000

    calls = [call("paints", text="x" * 3_000_000), call("floods")]
    picture, flood = records(rt, paints, floods, calls=calls, compaction=None)
    assert (picture.outcome, picture.text) == ("ok", "3000000")
    assert "9,800,000 characters left out" in flood.text


def test_a_process_serves_many_calls_in_the_surroundings_of_now(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after another in one process; directory and environment are those of this process at each call."""

    @tool(isolation="process")
    def moves() -> list[Any]:
        """Move."""
        found = [os.getpid(), os.getcwd(), os.environ.get("NITINOL_SEEN")]
        os.chdir("/")
        os.environ["NITINOL_SEEN"] = "moved"
        return found

    first = called(processes, moves)
    monkeypatch.chdir(tmp_path)
    assert called(processes, moves) == [first[0], str(tmp_path), None]
    monkeypatch.setenv("NITINOL_SEEN", "now")
    assert called(processes, moves) == [first[0], str(tmp_path), "now"]


def test_scripts_need_no_guard_and_prints_go_where_theirs_go() -> None:
    """Tools, closures, lambdas and classes of `__main__`; half a line of output disturbs nothing."""
    script = """
from dataclasses import dataclass
from nitinol import Runtime, Agent, ToolContext, tool
from nitinol.testing import ScriptedProvider, call
import sys

@dataclass
class Deps:
    name: str

factor = 3

@tool
def triple(number: int) -> int:
    "Triple."
    return number * factor

def made(shift):
    @tool(isolation="process")
    def compute(ctx: ToolContext, number: int) -> int:
        "Compute."
        print("printed there", ctx.deps.name, end="")
        print("said there", file=sys.stderr)
        return (lambda x: triple(x) + shift)(number)
    return compute

calls = [call("compute", number=4)]
script = ScriptedProvider(lambda request: "end" if request.messages[-1].role == "tool" else calls)
with Runtime() as rt:
    result = rt.start(Agent(name="a", model=script, tools=[made(30)], deps=Deps("Kim"))).ask("go", timeout=20)
print("", result.tool_calls[0].text)
"""
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("printed there Kim 42\n", "said there\n")


def test_what_a_finished_call_still_says_is_nobodys(processes: Processes) -> None:
    """A thread that a tool left behind tells of progress: the next call on that process is not disturbed."""

    @tool(isolation="process")
    def leaves(ctx: ToolContext) -> int:
        """Leave."""
        setattr(sys, "left", ctx)  # noqa: B010
        return os.getpid()

    @tool(isolation="process")
    def goes_on() -> int:
        """Go on."""
        getattr(sys, "left").progress("late")  # noqa: B009
        return os.getpid()

    seen: list[Any] = []
    first = ProcessCall(processes).run(leaves, {}, ToolContext(report=seen.append)).data
    second = ProcessCall(processes).run(goes_on, {}, ToolContext(report=seen.append)).data
    assert (first == second, seen) == (True, [])


# ---- what cannot be


def test_a_bad_definition_is_refused_when_it_is_made() -> None:
    """A coroutine by `@tool`; a function that holds what cannot be sent, by `Agent`; both name the tool and the way out."""
    lock = threading.Lock()

    async def waits() -> None:
        """Wait."""

    @tool(isolation="process")
    def locks() -> bool:
        """Lock."""
        return lock.locked()

    with pytest.raises(ConfigurationError, match=r"'waits'.*for def"):
        tool(isolation="process")(waits)
    with pytest.raises(ConfigurationError, match=r"(?s)function of 'locks' cannot be sent.*lock.*inside the function"):
        agent(locks)
    assert agent(locks.replace(isolation="thread")).tools[0].isolation == "thread"


def test_what_cannot_be_sent_is_an_answer_that_names_it(rt: Runtime) -> None:
    """`deps` with a lock, if the tool is told of them; a function of a module that is not there."""

    @tool(isolation="process")
    def told(ctx: ToolContext) -> None:
        """Be told."""

    (refused, fine) = records(rt, told, pid, deps=threading.Lock())
    assert refused.outcome == "error"
    assert "the deps= of agent 'worker' cannot be sent" in refused.text
    assert 'isolation="thread"' in refused.text
    assert fine.outcome == "ok"


def test_a_module_that_is_not_there_is_named(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be imported in the process is told, with the way out."""
    module: Any = types.ModuleType("only_here")
    exec("def helper():\n    return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    helper: Callable[[], int] = module.helper

    @tool(isolation="process")
    def helped() -> int:
        """Help."""
        return helper()

    with pytest.raises(
        ToolError, match=r"(?s)function of 'helped' cannot be read.*only_here.*register_pickle_by_value"
    ):
        called(processes, helped)
    assert called(processes, pid)


def test_there_is_no_runtime_in_a_process(processes: Processes) -> None:
    """`run` says so, and what to do: its run would be in nobody's log and on nobody's bill."""

    @tool(isolation="process")
    def asks() -> str:
        """Ask."""
        return run("go", model="ollama:none").text

    with pytest.raises(RaisedThere, match=r'ConfigurationError: .*isolation="thread"'):
        called(processes, asks)


# ---- death


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "exited with status 7"), ("SIGSEGV", "was killed by SIGSEGV (11)"), ("SIGKILL", "for want of memory"),
        ("SIGTERM", "was killed by SIGTERM (15)"),
    ],
)  # fmt: skip
def test_a_process_that_dies_costs_its_call_alone(rt: Runtime, how: str, text: str) -> None:
    """The answer says how it died; the siblings' results and the next call do not notice."""
    died, fine = records(rt, dies, pid, calls=[call("dies", how=how), call("pid")])
    assert (died.outcome, fine.outcome) == ("error", "ok")
    assert died.text.startswith("'dies' failed: its process ")
    assert text in died.text
    assert records(rt, pid)[0].outcome == "ok"


def test_what_a_dead_tool_has_forked_keeps_nobody_waiting(processes: Processes) -> None:
    """A child of its own that lives on, with all its descriptors: the end is seen all the same, and the child is killed."""

    @tool(isolation="process")
    def leaves_a_child(keeps: int) -> None:
        """Leave."""
        if os.fork():
            os._exit(5)
        signal.pause()

    reading, writing = os.pipe()
    with os.fdopen(reading):
        os.close(writing)
        with pytest.raises(ProcessLost, match="status 5"):
            called(processes, leaves_a_child, keeps=reading)
    assert called(processes, pid)


@linux
def test_a_hung_process_is_killed_with_its_group_at_the_deadline(rt: Runtime, tmp_path: Path) -> None:
    """The call is `timeout`; whatever it had started is dead too; the others go on in other processes."""
    told = tmp_path / "pids"

    @tool(isolation="process", timeout=0.5)
    def starts_and_hangs() -> None:
        """Hang."""
        child = subprocess.Popen(["sleep", "1000"])
        told.write_text(f"{os.getpid()} {child.pid}")
        signal.pause()

    found = records(rt, starts_and_hangs, pid)
    assert [record.outcome for record in found] == ["timeout", "ok"]
    assert found[0].text == "'starts_and_hangs' did not answer within 0.5 seconds and its process was killed."
    pids = [int(word) for word in told.read_text().split()]
    assert all(ends(each) for each in pids)
    assert records(rt, pid)[0].data not in pids
    assert rt._system.pool.abandoned == 0


@linux
def test_a_cancel_is_heeded_or_the_process_is_killed(rt: Runtime, tmp_path: Path) -> None:
    """One looks at `ctx.cancelled` and gives what it has; one does not, and is `cancelled`, for it is seen to be dead."""
    told = tmp_path / "pid"

    @tool(isolation="process")
    def heeds(ctx: ToolContext) -> str:
        """Heed."""
        ctx.progress("begun")
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        return "so far"

    @tool(isolation="process")
    def ignores(ctx: ToolContext) -> None:
        """Ignore."""
        told.write_text(str(os.getpid()))
        ctx.progress("begun")
        signal.pause()

    ref = rt.start(agent(heeds, ignores))
    with rt.subscribe("tool.progress") as seen:
        handle = ref.send("go")
        wait_for(seen, "tool.progress", count=2)
    handle.cancel()
    result = handle.result(SOON)
    assert result.status == "cancelled"
    assert [(record.outcome, record.text) for record in result.tool_calls] == [
        ("ok", "so far"),
        ("cancelled", "The call was cancelled."),
    ]
    assert ends(int(told.read_text()))
    assert_valid(ref)


@linux
def test_a_process_is_started_anew_after_a_kill(processes: Processes) -> None:
    """And one that died while it was idle is not given a call."""
    first = called(processes, pid)
    os.kill(first, signal.SIGKILL)
    assert ends(first)
    second = called(processes, pid)
    hung = ProcessCall(processes)
    told: list[Any] = []

    def kill(data: Any) -> None:
        told.append(data)
        hung.kill()

    @tool(isolation="process")
    def hangs_on(ctx: ToolContext) -> None:
        """Hang."""
        ctx.progress(os.getpid())
        signal.pause()

    with pytest.raises(ProcessLost, match="SIGKILL"):
        hung.run(hangs_on, {}, ToolContext(report=kill))
    assert told == [second]
    assert len({first, second, called(processes, pid)}) == 3


def test_no_call_begins_before_processes_can_be_forked(rt: Runtime) -> None:
    """So that its timeout is its own."""
    with rt.subscribe("tool.started") as seen:
        handle = rt.start(agent(pid)).send("go")
        seen.get(SOON)
        assert rt._system.processes.ready
    assert handle.result(SOON).tool_calls[0].outcome == "ok"


def test_one_that_is_killed_before_it_begins_does_not_begin(processes: Processes, tmp_path: Path) -> None:
    """The kill came first."""
    touched = tmp_path / "touched"

    @tool(isolation="process")
    def touches() -> None:
        """Touch."""
        touched.touch()

    killed = ProcessCall(processes)
    killed.kill()
    with pytest.raises(ProcessLost):
        killed.run(touches, {}, ToolContext())
    assert called(processes, pid)
    assert not touched.exists()


@linux
def test_when_what_forks_is_killed_its_calls_fail_and_the_next_ones_run(processes: Processes) -> None:
    """Its workers die with it; another takes its place."""

    @tool(isolation="process")
    def kills_its_parent() -> None:
        """Kill."""
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()

    idle, taken = processes.take(), called(processes, pid)
    with pytest.raises(ProcessLost, match="was lost"):
        called(processes, kills_its_parent)
    assert ends(taken)
    idle.end()
    assert called(processes, pid) != taken


@linux
def test_a_process_with_nothing_to_do_is_ended() -> None:
    """After a minute; one that had a call meanwhile stays."""
    env = ManualEnv()
    loop = ManualLoop(env)
    processes = Processes(env, loop)
    try:
        one, two = processes.take(), processes.take()
        first = ProcessCall(processes)
        processes_of: list[int] = []
        for process in (one, two):
            while not process.reusable:
                process._read_note()
            processes_of.append(process._pid or 0)
        processes.give_back(one)
        loop.run_until(lambda: bool(loop._timers))
        loop.advance(IDLE / 2)
        processes.give_back(two)
        loop.advance(IDLE / 2)
        assert ends(processes_of[0])
        assert first.run(pid, {}, ToolContext()).data == processes_of[1]
        loop.advance(IDLE / 2)
        assert called(processes, pid) == processes_of[1]
        loop.advance(IDLE)
        loop.advance(IDLE)
        assert ends(processes_of[1])
        assert processes._idle == []
    finally:
        processes.stop()
        processes.join(SOON)


@linux
def test_the_dead_are_buried(processes: Processes) -> None:
    """Once one is seen dead, no zombie is left of it, however long what has forked it lives."""
    with pytest.raises(ProcessLost):
        called(processes, dies, how="exit")
    killed = called(processes, pid)
    processes.take().end(SOON)
    assert called(processes, pid) != killed  # which was forked after the other was let go
    assert not Path(f"/proc/{killed}").exists()
    assert len(list(children_of(processes))) == 1


def children_of(processes: Processes) -> Iterator[int]:
    """The workers that the system knows of, dead ones included."""
    template = processes._template
    assert template is not None
    known = Path(f"/proc/{template._popen.pid}/task/{template._popen.pid}/children")
    yield from (int(word) for word in known.read_text().split())


@linux
@pytest.mark.parametrize("state", ["busy", "stopped"])
def test_kill_9_leaves_no_process(state: str) -> None:
    """The runtime's process is killed: what it had started dies, a tool in a loop and what that had started included.

    Also where the tool's process can do nothing about it.
    """
    script = """
import os, signal, subprocess, sys
from nitinol import Runtime, Agent, ToolContext, tool
from nitinol.testing import ScriptedProvider, call

@tool(isolation="process")
def hangs(ctx: ToolContext) -> None:
    "Hang."
    child = subprocess.Popen(["nohup", "sleep", "1000"], stderr=subprocess.DEVNULL)
    print(os.getppid(), os.getpid(), child.pid, flush=True)
    if sys.argv[1] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass

with Runtime() as rt:
    rt.start(Agent(name="a", model=ScriptedProvider([[call("hangs")]]), tools=[hangs])).ask("go")
"""
    with subprocess.Popen([sys.executable, "-c", script, state], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
        assert len(pids) == 3
        assert all(ends(each) for each in pids)


@linux
def test_nothing_is_left_after_a_stop(tmp_path: Path) -> None:
    """A call that hangs, processes that are idle, and what forks them: no process, no descriptor, no thread."""
    told = tmp_path / "pids"

    @tool(isolation="process")
    def hangs_on(ctx: ToolContext) -> None:
        """Hang."""
        told.write_text(f"{os.getpid()} {os.getppid()}")
        ctx.progress("begun")
        signal.pause()

    async def nothing() -> None:
        """So that what asyncio keeps is there before."""

    asyncio.run(nothing())
    before, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    with Runtime(drain=0.0) as rt, rt.subscribe("tool.progress") as seen:
        idle = records(rt, pid, calls=[call("pid")] * 3)
        rt.start(agent(hangs_on)).send("go")
        wait_for(seen, "tool.progress")
    pids = [int(word) for word in told.read_text().split()] + [record.data for record in idle]
    assert all(ends(each) for each in pids)
    for thread in set(threading.enumerate()) - threads:
        thread.join(SOON)
        assert not thread.is_alive(), thread
    assert set(os.listdir("/proc/self/fd")) == before
