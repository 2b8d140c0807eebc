"""Supervised restarts: crash all agents at once, and wait until every one is back.

With the supervisor's real backoff: before its first restart an agent waits a random part of 0.1 seconds, so no wall time
here can be under 0.1 s. The CPU time says what the machine could do. A sibling that did not crash keeps answering.
"""

from __future__ import annotations

import logging
import time

import measure


def measured(count: int) -> tuple[float, float, float]:
    """Seconds until all are back, CPU seconds, and the slowest answer of a sibling meanwhile, in seconds."""
    from nitinol import Agent, Runtime
    from nitinol.actors.agent_actor import Crash
    from nitinol.testing import ScriptedProvider, say

    agent = Agent(name="bench", model=ScriptedProvider(lambda _: say("yes")))
    with Runtime() as rt:
        refs = [rt.start(agent, key=f"bench/{number}") for number in range(count)]
        sibling = rt.start(agent, key="sibling")
        for ref in (*refs, sibling):
            assert ref.ask("Are you there?", timeout=60).text == "yes"
        with rt.subscribe("agent.restarted", maxsize=count + 1) as back:

            def crash() -> None:
                for ref in refs:
                    actor = ref._cell.actor
                    assert actor is not None
                    actor.post(
                        Crash(RuntimeError)
                    )  # a class: an instance would be kept alive by the frames that it has

            spent, began, slowest = measure.cpu(), time.perf_counter(), 0.0
            rt._system.core.call(crash)
            asked = time.perf_counter()
            assert sibling.ask("And you?", timeout=60).text == "yes"
            slowest = time.perf_counter() - asked
            for _ in refs:
                back.get(60)
            wall, spent = time.perf_counter() - began, measure.cpu() - spent
        assert all(ref.status().incarnation == 2 and ref.status().state == "idle" for ref in refs)
        assert sibling.status().incarnation == 1
        assert all(ref.ask("Still there?", timeout=60).text == "yes" for ref in refs[:50])
    return wall, spent, slowest


def main(counts: list[int]) -> None:
    # A warning per crash is right in production, and not what is measured here.
    logging.getLogger("nitinol").setLevel(logging.CRITICAL)
    measure.title("restarts: all agents crash at once, with the real backoff of up to 0.1 s")
    rows: list[list[object]] = []
    for count in counts:
        wall, spent, slowest = measured(count)
        rows.append(
            [
                f"{count:,}",
                f"{wall:.2f}",
                f"{count / wall:,.0f}",
                f"{spent:.2f}",
                f"{count / spent:,.0f}",
                f"{slowest * 1000:.0f}",
            ]
        )
    measure.table(["agents", "wall s", "restarts/s", "CPU s", "restarts/CPU s", "sibling's answer ms"], rows)


if __name__ == "__main__":
    given = measure.options(__doc__).parse_args()
    main([200] if given.quick else [1_000, 10_000])
