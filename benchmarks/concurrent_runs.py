"""10,000 runs at once, each of an agent of its own that waits 1 second on a scripted model. The journal is in memory.

CPU seconds of the whole process from the first `start` to the last result, sent and awaited by one asyncio loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import measure


async def measured(count: int) -> list[tuple[str, float, float]]:
    from nitinol import Agent, Runtime
    from nitinol.testing import ScriptedProvider, after, say

    agent = Agent(name="bench", model=ScriptedProvider(lambda _: after(1.0, say("done"))))
    marks = [("", measure.cpu(), time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, measure.cpu(), time.perf_counter()))

    async with Runtime() as rt:
        refs = [rt.start(agent) for _ in range(count)]
        mark("start")
        handles = await asyncio.gather(*(ref.asend("wait") for ref in refs))
        mark("accepted")
        results = await asyncio.gather(*handles)
        mark("ended")
        assert all(result.text == "done" for result in results)
    return [(name, at[0] - before[0], at[1] - before[1]) for (_, *before), (name, *at) in itertools.pairwise(marks)]


def main(count: int) -> None:
    measure.title(f"concurrent_runs: {count:,} runs at once, each waiting 1 s on its model")
    found = asyncio.run(measured(count))
    total = ("all", sum(cpu for _, cpu, _ in found), sum(wall for *_, wall in found))
    measure.table(
        ["until", "CPU s", "wall s", "CPU us/run"],
        [[name, f"{cpu:.2f}", f"{wall:.2f}", f"{cpu / count * 1e6:.0f}"] for name, cpu, wall in (*found, total)],
    )


if __name__ == "__main__":
    given = measure.options(__doc__).parse_args()
    main(1_000 if given.quick else 10_000)
