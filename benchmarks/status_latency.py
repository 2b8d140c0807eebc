"""How long `status()` takes while 64 agents run sync tools of 2 seconds that release the GIL, on 32 workers.

Asked from the main thread, of one agent after the other: in a tight loop, and once a millisecond, as a monitor would. The
second row beside it is the same with no agent at work.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import measure

AGENTS = 64


def main(seconds: float) -> None:
    from nitinol import Agent, AgentRef, Runtime, tool
    from nitinol.testing import ScriptedProvider, call, say

    @tool
    def wait() -> str:
        """Wait."""
        time.sleep(2.0)
        return "waited"

    def times(refs: Sequence[AgentRef[str]], pause: float) -> list[float]:
        found: list[float] = []
        until = time.perf_counter() + seconds
        for ref in itertools.cycle(refs):
            began = time.perf_counter()
            ref.status()
            ended = time.perf_counter()
            found.append(ended - began)
            if ended > until:
                return found
            if pause:
                time.sleep(pause)
        return found

    measure.title(f"status_latency: {AGENTS} agents in sync tools of 2 s, 32 workers")
    script = ScriptedProvider(lambda request: say("done") if request.messages[-1].role == "tool" else [call("wait")])
    agent = Agent(name="bench", model=script, tools=[wait])
    rows: list[list[object]] = []

    def add(name: str, found: Sequence[float]) -> None:
        cells = [f"{value * 1e6:.1f}" for value in (*(measure.percentile(found, at) for at in (0.5, 0.99)), max(found))]
        rows.append([name, f"{len(found):,}", *cells])

    with Runtime(workers=32) as rt:
        refs = [rt.start(agent, key=f"bench/{number}") for number in range(AGENTS)]
        add("idle, once a ms", times(refs, 0.001))
        handles = [ref.send("wait") for ref in refs]
        add("at work, once a ms", times(refs, 0.001))
        assert not all(handle.done() for handle in handles)
        for handle in handles:
            assert handle.result(30).status == "completed"
        handles = [ref.send("wait") for ref in refs]
        add("at work, tight loop", times(refs, 0.0))
        for handle in handles:
            assert handle.result(30).status == "completed"
    measure.table(["", "calls", "p50 us", "p99 us", "max us"], rows)


if __name__ == "__main__":
    given = measure.options(__doc__).parse_args()
    main(1.0 if given.quick else 3.0)
