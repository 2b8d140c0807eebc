"""Agents that sleep: 10,000 on a SQLite file, awake, asleep, and awake again; ten questions and long answers each.

After a full garbage collection each time; asleep is what `Runtime(idle=)` makes of them. What sleeps is given back to the
allocators at once, as the blocks in use show; glibc gives it to the system when the runtime asks it to, after the sweep, on
a thread of its own: the last row asks once more. Python's allocator keeps a page in which anything lives on.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import journal
import measure
from quiet_model import QuietModel


def inner(count: int) -> None:
    from nitinol import Agent, Runtime
    from nitinol.env import Env

    agent = Agent(name="bench", model=QuietModel())
    rows: list[tuple[str, float, float, float, float]] = []
    began, spent = time.perf_counter(), measure.cpu()

    def lap(what: str, collect: bool = True) -> None:
        nonlocal began, spent
        seconds, busy = time.perf_counter() - began, measure.cpu() - spent
        if collect:
            gc.collect()
        rows.append((what, seconds, busy, measure.rss(), sys.getallocatedblocks()))
        began, spent = time.perf_counter(), measure.cpu()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agents.db"
        measure.child("sleeping.py", "--make", str(path), str(count))
        with Runtime(path, drain=0.0, idle=None) as rt:
            first = rt.start(agent, key="warm")
            first.ask("a question of some words")
            lap("none")
            with rt.subscribe("agent.started", maxsize=count) as up:
                refs = [rt.start(agent, key=f"bench/{number:05}") for number in range(count)]
                for _ in refs:
                    up.get(600)
            lap("all awake")
            let_sleep(rt)
            lap("all asleep")
            refs[count // 2].ask("a question of some words")
            lap("one is woken, and answers", collect=False)
            with rt.subscribe("run.finished", maxsize=count) as ends:
                asyncio.run(ask(refs))
                for _ in refs:
                    ends.get(600)
            lap("all are woken, and answer")
            let_sleep(rt)
            lap("all asleep again")
            Env().give_back_memory()
            lap("and asked once more")
    print(json.dumps({"rows": rows}))


async def ask(refs: list[Any]) -> None:
    for at in range(0, len(refs), 1000):
        await asyncio.gather(*(ref.asend("a question of some words") for ref in refs[at : at + 1000]))


def let_sleep(rt: Any) -> None:
    """As the sweep does after `idle` seconds; those who just answered may still be busy."""
    system = rt._system
    while any(cell.life != "asleep" for cell in system.cells.values()):
        system.core.call(system.let_sleep, 0.0)
        time.sleep(0.05)


def main(count: int) -> None:
    measure.title(f"sleeping: {count:,} agents on a SQLite file, 20 messages and 10 KB of words each")
    rows = measure.child("sleeping.py", "--count", str(count))["rows"]
    _, _, _, least, none = rows[0]
    shown = [
        [
            what,
            f"{seconds:.3f}",
            f"{spent:.3f}",
            f"{rss / 1e6:.1f}",
            f"{(rss - least) / count:,.0f}",
            f"{(blocks - none) / count:.1f}",
        ]
        for what, seconds, spent, rss, blocks in rows[1:]
    ]
    measure.table(["", "s", "CPU s", "RSS MB", "RSS bytes/agent", "blocks in use/agent"], shown)


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--count", type=int)
    parser.add_argument("--make", nargs=2, metavar=("PATH", "COUNT"))
    given = parser.parse_args()
    if given.make:
        journal.make_store(Path(given.make[0]), int(given.make[1]), interrupted=False, words="words of an answer " * 50)
        print("{}")
    elif given.count:
        inner(given.count)
    else:
        main(1_000 if given.quick else 10_000)
