"""How long `status()` takes while 200 agents run tools of 10 seconds, and the supervisor's answer while a hook blocks.

First, asked from the main thread, of one agent after the other: once a millisecond, as a monitor would, and in a tight
loop; the row above is the same with no agent at work. The tools are functions that release the GIL, a thread for each.

Then a bad hook blocks for a second: a function on its thread, and a coroutine that blocks the loop of users' coroutines.
Meanwhile the supervisor is asked, each millisecond, and agents crash: how much later than its backoff each was back.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import measure

AGENTS = 200
TOOL = 10.0
"""Seconds of a tool."""
HOOK = 1.0
"""Seconds for which the bad hook blocks."""


def times(ask: Callable[[], object], until: Callable[[], bool], pause: float) -> list[float]:
    """How long each call took, until it is enough."""
    found: list[float] = []
    while not until():
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
        if pause:
            time.sleep(pause)
    return found


def row(name: str, found: Sequence[float]) -> list[object]:
    spread = (*(measure.percentile(found, at) for at in (0.5, 0.99)), max(found))
    return [name, f"{len(found):,}", *(f"{value * 1e6:.1f}" for value in spread)]


def after(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() > until


def at_work(seconds: float) -> list[list[object]]:
    """`status()`, while all agents run tools."""
    from nitinol import Agent, Runtime, tool
    from nitinol.testing import ScriptedProvider, call, say

    release = threading.Event()

    @tool
    def wait() -> str:
        """Wait."""
        release.wait(TOOL)
        return "waited"

    script = ScriptedProvider(lambda request: say("done") if request.messages[-1].role == "tool" else [call("wait")])
    agent = Agent(name="bench", model=script, tools=[wait])
    rows: list[list[object]] = []
    with Runtime(workers=AGENTS) as rt:
        refs = [rt.start(agent, key=f"bench/{number}") for number in range(AGENTS)]
        turn = itertools.cycle(refs)
        rows.append(row("idle, once a ms", times(lambda: next(turn).status(), after(seconds), 0.001)))
        with rt.subscribe("tool.started", maxsize=AGENTS) as started:
            handles = [ref.send("wait") for ref in refs]
            for _ in refs:
                started.get(30)
        rows.append(row("at work, once a ms", times(lambda: next(turn).status(), after(seconds), 0.001)))
        rows.append(row("at work, tight loop", times(lambda: next(turn).status(), after(seconds), 0.0)))
        assert not any(handle.done() for handle in handles), "the tools ended before all was measured"
        release.set()
        for handle in handles:
            assert handle.result(60).status == "completed"
    return rows


def while_a_hook_blocks(is_async: bool, rounds: int) -> list[list[object]]:
    """The supervisor's answers, `status()`, and restarts, while a hook blocks."""
    from nitinol import Agent, Hooks, Runtime
    from nitinol.testing import ScriptedProvider, crash

    blocking = threading.Event()

    class Bad(Hooks):
        def before_model(self, ctx: Any, request: Any) -> None:
            blocking.set()
            time.sleep(HOOK)

    class BadAsync(Hooks):
        async def before_model(self, ctx: Any, request: Any) -> None:
            blocking.set()
            time.sleep(HOOK)

    asked: list[float] = []
    looked: list[float] = []
    late: list[float] = []
    script = ScriptedProvider(lambda request: "done")
    with Runtime(drain=0.0) as rt:
        supervising = rt._system.supervising
        bad = rt.start(Agent(name="bad", model=script, hooks=[BadAsync() if is_async else Bad()]))

        def ask() -> None:
            answer: Future[None] = Future()
            supervising.call(answer.set_result, None)
            answer.result(30)

        for _ in range(rounds):
            blocking.clear()
            handle = bad.send("go")
            assert blocking.wait(30)
            asked += times(ask, after(HOOK / 3), 0.001)
            looked += times(bad.status, after(HOOK / 6), 0.001)
            victim = rt.start(Agent(name="victim", model=script))
            victim.ask("hi", timeout=30)
            with rt.subscribe("agent.restarted", "agent.started", key=victim.key) as told:
                began = time.perf_counter()
                crash(victim)
                restarted = told.get(30)
                told.get(30)
                late.append(time.perf_counter() - began - restarted.delay)
            assert not handle.done(), "the hook had ended before all was measured"
            handle.result(30)
    kind = "coroutine" if is_async else "function"
    return [
        row(f"supervisor answers, {kind} blocks", asked),
        row(f"status(), {kind} blocks", looked),
        row(f"back after its backoff, {kind} blocks", late),
    ]


def main(seconds: float, rounds: int) -> None:
    head = ["", "calls", "p50 us", "p99 us", "max us"]
    measure.title(f"status_latency: {AGENTS} agents in tools of {TOOL:g} s, each on a thread")
    measure.table(head, at_work(seconds))
    measure.title(f"status_latency: a bad hook blocks for {HOOK:g} s")
    measure.table(head, [*while_a_hook_blocks(False, rounds), *while_a_hook_blocks(True, rounds)])


if __name__ == "__main__":
    given = measure.options(__doc__).parse_args()
    main(*(1.0, 2) if given.quick else (3.0, 10))
