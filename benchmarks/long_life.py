"""A long life: one agent on a SQLite file that takes 10,000 turns, as runs of one turn and as one run; nothing is compacted.

A request holds the whole conversation, so what makes it is proportional to it, and measured apart: the view of the transcript
as it is then. The rest of a turn, and the memory beside the conversation, must not grow: the slope is by least squares.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import measure
from quiet_model import QuietModel

PARTS = 10
"""Looks at a life."""


def size_of(messages: Any) -> int:
    """Bytes of messages and all that only they hold."""
    found: dict[int, int] = {}
    waiting: list[Any] = list(messages)
    while waiting:
        item = waiting.pop()
        if id(item) in found or isinstance(item, type) or sys.getrefcount(item) > 1_000_000:
            continue
        found[id(item)] = sys.getsizeof(item) + (16 if gc.is_tracked(item) else 0)
        waiting.extend(gc.get_referents(item))
    return sum(found.values())


def live(shape: str, turns: int, path: Path) -> list[dict[str, float]]:
    """What a tenth of a life took, ten times."""
    from nitinol import Agent, Runtime, tool

    step = turns // PARTS
    rows: list[dict[str, float]] = []

    @tool(replay="safe")
    async def step_(number: int) -> str:
        """Take a step."""
        if number % step == 0:
            await asyncio.to_thread(look, number)
        return f"step {number} was taken"

    def look(done: int) -> None:
        spent = measure.cpu()
        transcript = ref._cell.committed.transcript
        began = time.thread_time()
        for _ in range(100):
            ref._cell.view_of(transcript)
        building = (time.thread_time() - began) / 100
        messages = list(transcript)
        some = messages[-200:]
        held = size_of(some) / len(some) * len(messages)
        del messages, some
        gc.collect()
        files = sum(file.stat().st_size for file in path.parent.iterdir() if file.name.startswith(path.name))
        row = {"turns": done, "cpu": spent, "building": building, "rss": measure.rss(), "held": held, "file": files}
        rows.append(row | {"looking": measure.cpu() - spent})

    calls = turns if shape == "turns" else 0
    agent = Agent(name="bench", model=QuietModel(calls), tools=[step_.replace(name="step")], max_turns=turns + 2)
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(agent, key="k")
        if shape == "turns":
            ref.send("Take many steps.").result(3600)
        else:
            for number in range(1, turns + 1):
                ref.ask("a question of some words", timeout=600)
                if number % step == 0:
                    look(number)
    return rows


def slope(xs: list[float], ys: list[float]) -> float:
    """By least squares."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def show(shape: str, turns: int, rows: list[dict[str, float]]) -> None:
    what = "runs of one turn" if shape == "runs" else "turns of one run, each a call of a tool"
    measure.title(f"long_life: {turns:,} {what}, SQLite, nothing compacted")
    shown: list[list[object]] = []
    rest: list[float] = []
    beside: list[float] = []
    for before, row in pairwise(rows):
        count = row["turns"] - before["turns"]
        spent = (row["cpu"] - before["cpu"] - before["looking"]) / count
        building = (before["building"] + row["building"]) / 2
        rest.append((spent - building) * 1000)
        beside.append((row["rss"] - row["held"]) / 1e6)
        a_turn = (row["file"] - before["file"]) / count
        shown.append(
            [f"{row['turns']:,.0f}", f"{spent * 1000:.2f}", f"{building * 1000:.2f}", f"{rest[-1]:.2f}", f"{row['rss'] / 1e6:.1f}",
             f"{row['held'] / 1e6:.1f}", f"{beside[-1]:.1f}", f"{a_turn:,.0f}"]
        )  # fmt: skip
    measure.table(
        [
            "turns",
            "CPU ms/turn",
            "of it the view",
            "the rest",
            "RSS MB",
            "conversation MB",
            "beside it MB",
            "file bytes/turn",
        ],
        shown,
    )
    at = [row["turns"] / 1000 for row in rows[1:]]
    print(
        f"  slope per 1,000 turns: the rest of a turn {slope(at, rest) * 1000:+.1f} us, memory beside the conversation {slope(at, beside) * 1000:+.0f} KB"
    )


def main(turns: int) -> None:
    for shape in ("runs", "turns"):
        show(shape, turns, measure.child("long_life.py", "--live", shape, str(turns))["rows"])


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--live", nargs=2, metavar=("SHAPE", "TURNS"), help="one life, once")
    given = parser.parse_args()
    if given.live:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps({"rows": live(given.live[0], int(given.live[1]), Path(directory) / "agents.db")}))
    else:
        main(1_000 if given.quick else 10_000)
