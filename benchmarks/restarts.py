"""Supervised restarts: crash all agents at once, or one of many without end, or a thousand actors of a user's.

With the supervisor's real backoff: before its first restart an agent waits a random part of 0.1 seconds, so no wall time
here can be under 0.1 s. The CPU time says what the machine could do. A sibling that did not crash keeps answering.

In a crash loop one agent of many crashes whenever it is back, until it is parked: that costs next to no CPU, as nobody
waits in a loop; all others keep their incarnation, and answer.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

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


def crash_loop(count: int) -> tuple[float, float, int]:
    """One of `count` agents crashes until it is parked: wall seconds, CPU seconds, and restarts. The others are looked at."""
    from nitinol import Agent, Runtime
    from nitinol.testing import ScriptedProvider, crash, say

    agent = Agent(name="bench", model=ScriptedProvider(lambda _: say("yes")))
    with Runtime() as rt:
        refs = [rt.start(agent, key=f"bench/{number}") for number in range(count)]
        for handle in [ref.send("Are you there?") for ref in refs]:
            assert handle.result(60).text == "yes"
        looping, *others = refs
        with rt.subscribe("agent.restarted", "agent.parked", key=looping.key) as told:
            spent, began = measure.cpu(), time.perf_counter()
            crash(looping)
            while told.get(60).type != "agent.parked":
                crash(looping)
            wall, spent = time.perf_counter() - began, measure.cpu() - spent
        assert looping.status().state == "parked"
        assert all(ref.status().incarnation == 1 for ref in others)
        for handle in [ref.send("Still there?") for ref in others]:
            assert handle.result(60).text == "yes"
        assert all(ref.status().incarnation == 1 for ref in others)
        return wall, spent, looping.status().incarnation - 1


def users_actors(count: int) -> tuple[float, float]:
    """All loop actors under one dynamic supervisor crash at once: wall and CPU seconds until all are back."""
    from nitinol import ChildSpec, LoopActor, Runtime, SupervisorSpec

    up = threading.Semaphore(0)

    class Feed(LoopActor):
        def on_start(self) -> None:
            up.release()

        def on_receive(self, message: Any) -> Any:
            if isinstance(message, Exception):
                raise message
            return message

    with Runtime() as rt:
        sibling = rt.supervise(ChildSpec("sibling", Feed.start))
        specs = [ChildSpec(f"feed/{number}", Feed.start) for number in range(count)]
        feeds = rt.supervise(SupervisorSpec("feeds", specs, strategy="dynamic"))
        refs = [feeds.child(spec.id) for spec in specs]
        for _ in range(count + 1):
            assert up.acquire(timeout=60)
        spent, began = measure.cpu(), time.perf_counter()
        for ref in refs:
            ref.tell(RuntimeError("crashed by the bench"))
        assert sibling.ask("And you?", timeout=60) == "And you?"
        for _ in refs:
            assert up.acquire(timeout=60)
        wall, spent = time.perf_counter() - began, measure.cpu() - spent
        assert feeds.restarts == sibling.restarts == 0
        while not all(ref.state == "up" for ref in refs):  # which their supervisor hears a moment later
            assert sibling.ask("", timeout=60) == ""
        assert all(ref.restarts == 1 and ref.ask("Still there?", timeout=60) for ref in refs)
    return wall, spent


def main(counts: list[int], crowd: int) -> None:
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
    measure.title(
        f"one of {crowd:,} agents in a crash loop, until it is parked; the others keep incarnation 1, and answer"
    )
    wall, spent, restarts = crash_loop(crowd)
    measure.table(
        ["restarts", "wall s", "CPU s", "CPU %"], [[restarts, f"{wall:.2f}", f"{spent:.3f}", f"{spent / wall:.1%}"]]
    )
    measure.title("1,000 loop actors of a user's under one dynamic supervisor, crashed at once")
    wall, spent = users_actors(1000)
    row = [f"{wall:.2f}", f"{1000 / wall:,.0f}", f"{spent:.2f}", f"{1000 / spent:,.0f}"]
    measure.table(["wall s", "restarts/s", "CPU s", "restarts/CPU s"], [row])


if __name__ == "__main__":
    given = measure.options(__doc__).parse_args()
    if given.quick:
        main([200], 1_000)
    else:
        main([1_000, 10_000], 10_000)
