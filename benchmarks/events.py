"""Events a second to 10 subscribers, each reading in a thread of its own, and what a stalled one costs the others.

The events are the deltas of ten runs at once, from a model that never waits. A subscriber may hold 1,000 events (the
default); one that falls behind gets deltas coalesced, so fewer are delivered, and misses those that have nothing to be
merged with: `missing`, of which `bus.gap` told it. The last rows give every subscriber room for all. `published` is when the runs have ended, `read by all` when the slowest
subscriber has read everything; deliveries are those of all subscribers together.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import measure

READERS = 10
RUNS = 10
CASES = {
    "10 subscribers": (1_000, False),
    "10, and one that never reads": (1_000, True),
    "10, none coalesced": (10**9, False),
    "10, none coalesced, and a stalled one": (10**9, True),
}


async def inner(maxsize: int, stalled: bool, count: int) -> dict[str, float]:
    from nitinol import Agent, Delta, Message, ModelInfo, ModelRequest, ModelResponse, Runtime
    from nitinol.messages import Text
    from nitinol.provider import StreamPart

    each = count // RUNS

    class Flood:
        name, model = "flood", "flood"

        def info(self) -> ModelInfo:
            return ModelInfo(context_window=None, max_output_tokens=None, prices=None)

        async def stream(self, request: ModelRequest, http: Any) -> AsyncIterator[StreamPart]:
            for number in range(each):
                if number % 50 == 0:
                    await asyncio.sleep(0)
                yield Delta("text", "four", 0)
            yield ModelResponse(
                message=Message(role="assistant", parts=(Text("done"),)), usage=None, stop_reason="end_turn"
            )

    agent = Agent(name="bench", model=Flood())
    read, characters, gaps = [0] * READERS, [0] * READERS, [0] * READERS

    async with Runtime() as rt:
        subscriptions = [rt.subscribe(maxsize=maxsize) for _ in range(READERS)]
        idle = rt.subscribe() if stalled else None

        def follow(place: int) -> None:
            ended = seen = text = lost = 0
            for event in subscriptions[place]:
                seen += 1
                if event.type == "model.delta":
                    text += len(event.text)
                elif event.type == "bus.gap":
                    lost += event.lost
                elif event.type == "run.finished":
                    ended += 1
                    if ended == RUNS:
                        break
            read[place], characters[place], gaps[place] = seen, text, lost

        threads = [threading.Thread(target=follow, args=(place,)) for place in range(READERS)]
        for thread in threads:
            thread.start()
        refs = [rt.start(agent) for _ in range(RUNS)]
        before, spent, began = measure.rss(), measure.cpu(), time.perf_counter()
        for result in await asyncio.gather(*(ref.aask("go", timeout=600) for ref in refs)):
            assert result.status == "completed", result
        published = time.perf_counter() - began
        for thread in threads:
            await asyncio.to_thread(thread.join)
        wall, spent = time.perf_counter() - began, measure.cpu() - spent
        after = measure.rss()
        if idle is not None:
            idle.close()
        for subscription in subscriptions:
            subscription.close()
    return {
        "published": published,
        "wall": wall,
        "cpu": spent,
        "read": sum(read),
        "missing": sum(each * RUNS * 4 - got for got in characters) / 4,
        "told": sum(gaps),
        "before": before,
        "after": after,
    }


def main(count: int, rounds: int) -> None:
    measure.title(f"events: {count:,} deltas to {READERS} subscribers, median of {rounds} rounds")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, (maxsize, stalled) in CASES.items():
            found[name].append(measure.child("events.py", "--inner", str(maxsize), str(int(stalled)), str(count)))
    rows: list[list[object]] = []
    for name, cases in found.items():
        middle = sorted(cases, key=lambda case: case["wall"])[len(cases) // 2]
        wall = middle["wall"]
        rows.append(
            [
                name,
                f"{count / middle['published']:,.0f}",
                f"{count / wall:,.0f}",
                f"{middle['read'] / wall:,.0f}",
                f"{middle['read']:,}",
                f"{middle['missing']:,.0f}",
                f"{middle['told']:,.0f}",
                f"{middle['cpu'] / count * 1e6:.1f}",
                f"{middle['before'] / 2**20:.0f} -> {middle['after'] / 2**20:.0f}",
            ]
        )
    head = [
        "",
        "published/s",
        "read by all/s",
        "deliveries/s",
        "delivered",
        "missing",
        "told in gaps",
        "CPU us/event",
        "RSS MiB",
    ]
    measure.table(head, rows)


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--inner", nargs=3, type=int, metavar=("MAXSIZE", "STALLED", "COUNT"))
    given = parser.parse_args()
    if given.inner:
        print(json.dumps(asyncio.run(inner(given.inner[0], bool(given.inner[1]), given.inner[2]))))
    else:
        main(*(20_000, 1) if given.quick else (100_000, 3))
