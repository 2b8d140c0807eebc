"""Memory of an idle agent: resident bytes of a fresh process before and after 10,000 and 100,000 agents come up.

Each is started by `Runtime.start` and has no conversation yet. The breakdown walks from one agent to everything that no other
agent can reach, and adds up their sizes by type.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import Counter
from types import FunctionType, ModuleType

import measure

WARM = 200


def reachable(root: object, walls: tuple[type, ...]) -> dict[int, object]:
    """Everything that can be reached from here, by its id; not through modules, classes, functions and `walls`."""
    found: dict[int, object] = {}
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in found or isinstance(item, (ModuleType, type, FunctionType, *walls)):
            continue
        found[id(item)] = item
        waiting.extend(gc.get_referents(item))
    return found


def own(root: object, other: object, walls: tuple[type, ...]) -> Counter[str]:
    """Bytes by type of what `root` has to itself; `walls` are types of what all agents share."""
    shared = reachable(other, walls)
    sizes: Counter[str] = Counter()
    for place, item in reachable(root, walls).items():
        if place not in shared:
            sizes[type(item).__qualname__] += sys.getsizeof(item) + (16 if gc.is_tracked(item) else 0)
    return sizes


def inner(count: int) -> None:
    from nitinol import Agent, Runtime
    from nitinol.actors.agent_actor import Services
    from nitinol.env import Env, LoopThread
    from nitinol.testing import ScriptedProvider

    agent = Agent(name="bench", model=ScriptedProvider([]), instructions="You wait.")

    def start(rt: Runtime, first: int, last: int) -> None:
        refs = [rt.start(agent, key=f"bench/{number}") for number in range(first, last)]
        for ref in refs:
            while ref.status().state != "idle":
                time.sleep(0.01)

    with Runtime() as rt:
        start(rt, 0, WARM)
        gc.collect()
        before, began = measure.rss(), measure.cpu()
        start(rt, WARM, WARM + count)
        spent = measure.cpu() - began
        gc.collect()
        after = measure.rss()
        walls = (Agent, Env, LoopThread, Services)
        system = rt._system
        some = rt.get(f"bench/{WARM + count // 2}")
        parts = own(some._cell, rt.get("bench/0")._cell, walls)
        parts.update(own(system.journal.read(some.key), system.journal.read("bench/0"), walls))
        print(json.dumps({"bytes": (after - before) / count, "cpu": spent, "parts": parts.most_common()}), flush=True)


def main(counts: list[int]) -> None:
    measure.title("idle_memory: resident bytes of an idle agent")
    found = {count: measure.child("idle_memory.py", "--count", str(count)) for count in counts}
    measure.table(
        ["agents", "bytes/agent", "KiB", "start, CPU us"],
        [
            [f"{count:,}", f"{row['bytes']:.0f}", f"{row['bytes'] / 1024:.2f}", f"{row['cpu'] / count * 1e6:.0f}"]
            for count, row in found.items()
        ],
    )
    parts: list[tuple[str, int]] = found[counts[0]]["parts"]
    total = sum(size for _, size in parts)
    shown = ", ".join(f"{name} {size}" for name, size in parts[:12])
    print(f"  one agent's own objects and its log, {total} bytes: {shown}")
    print("  the rest is the tables that all agents are in, and what the allocator keeps")


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    if given.count:
        inner(given.count)
    else:
        main([1_000, 10_000] if given.quick else [10_000, 100_000])
