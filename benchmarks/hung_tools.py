"""Tools that hang, three times as many as the pool has workers, in each isolation: what do they cost the others?

`answered` is how long after a call's deadline its `timeout` was committed; `dead` how long after it the process was seen
dead, by another thread. `behind` is how long after the first deadlines of those before it a call began that had waited for
a slot all the time, and `new` how long a call took from its request to its first line when all had hung; `refused` when too many threads had.
The last columns count what is left after `stop`, the given-up threads apart. A process's first call pays for the
start of what forks them, unless an agent with such a tool was started a third of a second earlier.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
import time
from typing import Any

import measure

from nitinol import Agent, Runtime, ToolContext, tool
from nitinol.actors.processes import ProcessCall, Processes
from nitinol.env import Env
from nitinol.testing import ScriptedProvider, call

SIZE = 8
TIMEOUT = 0.5

release = threading.Event()
stranded: set[threading.Thread] = set()


def tools() -> dict[str, tuple[Any, Any]]:
    """By isolation: a tool that hangs, and one that tells when it began."""

    @tool(timeout=TIMEOUT)
    async def hangs_async() -> None:
        """Hang."""
        await asyncio.Event().wait()

    @tool(timeout=TIMEOUT)
    def hangs_thread() -> None:
        """Hang."""
        stranded.add(threading.current_thread())
        release.wait(120)

    @tool(timeout=TIMEOUT, isolation="process")
    def hangs_process(ctx: ToolContext) -> None:
        """Hang."""
        ctx.progress(os.getpid())
        while True:
            time.sleep(1)

    def began() -> int:
        """Tell."""
        return time.time_ns()

    async def began_async() -> int:
        """Tell."""
        return time.time_ns()

    return {
        "async": (hangs_async, tool(name="began")(began_async)),
        "thread": (hangs_thread, tool(name="began")(began)),
        "process": (hangs_process, tool(name="began", isolation="process")(began)),
    }


def agent(*called: Any) -> Any:
    """An agent that calls its tools once."""

    script = ScriptedProvider(
        lambda request: "end" if request.messages[-1].role == "tool" else [call(tool.name) for tool in called]
    )
    return Agent(name="bench", model=script, tools=called)


class Coroner(threading.Thread):
    """Notes when processes die."""

    def __init__(self, subscription: Any) -> None:
        super().__init__(daemon=True)
        self.subscription = subscription
        self.died: dict[str, int] = {}
        self.start()

    def run(self) -> None:
        waiting, known = select.poll(), dict[int, str]()
        while True:
            try:
                event = self.subscription.get(0.0 if known else 0.01)
                descriptor = os.pidfd_open(event.data)
                known[descriptor] = event.call_id + event.key
                waiting.register(descriptor, select.POLLIN)
            except TimeoutError:
                pass
            except Exception:  # closed
                return
            for descriptor, _ in waiting.poll(1):
                self.died[known.pop(descriptor)] = time.time_ns()
                waiting.unregister(descriptor)
                os.close(descriptor)


def measured(kind: str, rounds: int) -> list[object]:
    """A row."""

    hangs, probe = tools()[kind]
    stranded.clear()
    release.clear()
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
    threads, descriptors = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    answered: list[float] = []
    dead: list[float] = []
    behind: list[float] = []
    new: list[float] = []
    refused: list[float] = []
    processes: set[int] = set()
    for _ in range(rounds):
        with (
            Runtime(workers=SIZE, drain=0.0) as rt,
            rt.subscribe("tool.progress", maxsize=1000) as progress,
            rt.subscribe("tool.*", maxsize=10_000) as seen,
        ):
            first = rt.start(agent(probe)).ask("go", timeout=30)  # all is warm
            coroner = Coroner(progress)
            handles = [rt.start(agent(hangs)).send("go") for _ in range(3 * SIZE)]
            waiting = rt.start(agent(probe), key="behind").send("go")
            for handle in handles:
                assert handle.result(60).tool_calls[0].outcome == "timeout"
            begun_behind = waiting.result(60).tool_calls[0].data
            for number in range(10):
                result = rt.start(agent(probe), key=f"new/{number}").ask("go", timeout=30)
                assert result.tool_calls[0].data > first.tool_calls[0].data
            if kind == "thread":
                more = [rt.start(agent(hangs)).send("go") for _ in range(SIZE + 1)]
                for handle in more:
                    handle.result(60)
                for number in range(10):
                    result = rt.start(agent(probe), key=f"refused/{number}").ask("go", timeout=30)
                    assert "tools hang" in result.tool_calls[0].text
            events = []
            while True:
                try:
                    events.append(seen.get(0.05))
                except TimeoutError:
                    break
            due: dict[str, int] = {}
            asked: dict[str, int] = {}
            for event in events:
                at = f"{event.call_id}{event.key}"
                if event.type == "tool.requested":
                    asked[event.key] = event.ts
                elif event.type == "tool.started" and event.name == hangs.name:
                    due[at] = event.ts + int(TIMEOUT * 1e9)
                elif event.type == "tool.finished" and at in due:
                    answered.append((event.ts - due[at]) / 1e6)
                elif event.type == "tool.finished" and event.key.startswith("new/"):
                    new.append((int(event.data) - asked[event.key]) / 1e6)
                elif event.type == "tool.finished" and event.key.startswith("refused/"):
                    refused.append((event.ts - asked[event.key]) / 1e6)
            if kind != "async":  # which need not wait
                free = min(at_ns for at_ns in due.values() if at_ns > begun_behind - TIMEOUT * 0.4e9)
                behind.append((begun_behind - free) / 1e6)
            dead += [(at_ns - due[at]) / 1e6 for at, at_ns in coroner.died.items()]
            template = rt._system.processes._template
            if template is not None:
                processes.add(template._popen.pid)
    left = set(threading.enumerate()) - threads - stranded
    for thread in left:
        thread.join(1.0)
    alive = sum(thread.is_alive() for thread in left)
    release.set()
    return [
        kind,
        *(
            f"{measure.median(values):.1f} / {max(values):.1f}" if values else "-"
            for values in (answered, dead, behind, new, refused)
        ),
        alive,
        sum(os.path.exists(f"/proc/{pid}") for pid in processes),
        len(set(os.listdir("/proc/self/fd")) - descriptors),
    ]


def warm_calls(count: int) -> list[list[object]]:
    """What a call costs in a process that waits for one, and in a new one, in milliseconds."""

    @tool(isolation="process")
    def pid() -> int:
        """Tell."""
        return os.getpid()

    env = Env()
    core = env.start_loop("bench")
    processes = Processes(env, core)
    began = time.perf_counter()
    ProcessCall(processes).run(pid, {}, ToolContext())
    cold = time.perf_counter() - began
    warm: list[float] = []
    fresh: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        ProcessCall(processes).run(pid, {}, ToolContext())
        warm.append((time.perf_counter() - began) * 1000)
    for _ in range(count // 10):
        taken = processes.take()  # the one that waits
        began = time.perf_counter()
        ProcessCall(processes).run(pid, {}, ToolContext())
        fresh.append((time.perf_counter() - began) * 1000)
        taken.end(1.0)
    processes.stop()
    processes.join(5.0)
    core.close(5.0)
    rows: list[list[object]] = [["the very first", f"{cold * 1000:.0f}", ""]]
    for name, values in (("in a new process", fresh), ("in one that waits", warm)):
        rows.append([name, f"{measure.median(values):.2f}", f"{measure.percentile(values, 0.99):.2f}"])
    return rows


def main(rounds: int) -> None:
    logging.getLogger("nitinol").setLevel(logging.CRITICAL)
    if not hasattr(os, "pidfd_open"):
        print("this bench needs Linux, which tells when a process dies")
        return
    measure.title(
        f"hung tools: {3 * SIZE} calls that hang in a pool of {SIZE}, with a timeout of {TIMEOUT:g} s; ms, median / worst"
    )
    rows = [measured(kind, rounds) for kind in ("async", "thread", "process")]
    head = ["isolation", "answered", "dead", "behind", "new", "refused", "threads left", "processes left", "fds left"]
    measure.table(head, rows)
    measure.table(["a call of a process tool", "median ms", "p99 ms"], warm_calls(50 * rounds))


if __name__ == "__main__":
    main(2 if measure.options(__doc__).parse_args().quick else 8)
