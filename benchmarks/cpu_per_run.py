"""CPU time of a run: 200 two-turn runs, 50 at a time, beside bare loops on the same server in the same minutes.

The server (`chat_server.py`) has a process and a core of its own; each row is a fresh process on the other core, and what is
counted is that process's CPU time, user and system, after a warm-up. Rounds alternate through the rows, so that a noisy
minute hurts all alike; the ratio is of the medians. Without a pause between chunks a client that is busy finds several in
one read, which is cheaper for all; with one, nearly every chunk is a wake-up of its own, as from a real model.

Nitinol's rows do all that it does: supervised agents, a journal (in memory, or a SQLite file with `synchronous=FULL`), sync tools on worker threads, and every
delta published to a subscriber that reads it in a thread of its own, none coalesced.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import chat_server
import measure

ROWS = {
    "bare loop, stock httpx": ("bare", "httpx"),
    "bare loop, httpx on aiohttp": ("bare", "aiohttp"),
    "Nitinol, stock httpx": ("memory", "httpx"),
    "Nitinol, httpx on aiohttp": ("memory", "aiohttp"),
    "Nitinol in SQLite, stock httpx": ("sqlite", "httpx"),
    "Nitinol in SQLite, httpx on aiohttp": ("sqlite", "aiohttp"),
}
AT_ONCE = 50


async def bare(transport: str, url: str, runs: int) -> dict[str, float]:
    import bare_loop

    async with bare_loop.make_client(transport) as client:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                text = await bare_loop.run(client, url, f"Add 1 to 2 and 3 to 4, number {number}.")
                assert text == chat_server.ANSWER

        await asyncio.gather(*(one(number) for number in range(AT_ONCE)))
        began, started = measure.cpu(), time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(runs)))
        return {"cpu": measure.cpu() - began, "wall": time.perf_counter() - started}


async def nitinol(store: Path | None, url: str, runs: int) -> dict[str, float]:
    from nitinol import Agent, Runtime, tool
    from nitinol_providers import OpenAICompatible

    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    agent = Agent(name="bench", model=OpenAICompatible("bench", base_url=url, api_key="none"), tools=[add])
    deltas, ended, all_ended = 0, 0, threading.Event()

    async with Runtime(store) as rt:
        subscription = rt.subscribe(maxsize=1_000_000)

        def follow() -> None:
            nonlocal deltas, ended
            for event in subscription:
                if event.type == "model.delta":
                    deltas += 1
                elif event.type == "run.finished":
                    ended += 1
                    if ended == AT_ONCE + runs:
                        all_ended.set()

        reader = threading.Thread(target=follow)
        reader.start()
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                result = await rt.start(agent).aask(f"Add 1 to 2 and 3 to 4, number {number}.")
                assert result.text == chat_server.ANSWER, result
                assert [record.data for record in result.tool_calls] == [3, 7], result

        await asyncio.gather(*(one(number) for number in range(AT_ONCE)))
        began, started = measure.cpu(), time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(runs)))
        all_ended.wait(60)
        spent = {"cpu": measure.cpu() - began, "wall": time.perf_counter() - started}
        subscription.close()
        reader.join()
    # 100 of text, and 4 of the calls' arguments
    assert deltas == (AT_ONCE + runs) * (chat_server.CHUNKS + 4), f"the subscriber saw {deltas} deltas"
    return spent


def row(kind: str, transport: str, url: str, runs: int) -> None:
    """The inner part: one row, once."""
    measure.pin(0)
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "agents.db" if kind == "sqlite" else None
        spent = asyncio.run(bare(transport, url, runs) if kind == "bare" else nitinol(store, url, runs))
    print(json.dumps(spent))


def main(runs: int, rounds: int, pace: float) -> None:
    paced = f"one every {pace * 1000:g} ms" if pace else "without a pause"
    measure.title(f"cpu_per_run: {runs} two-turn runs, {AT_ONCE} at a time, chunks {paced}, median of {rounds} rounds")
    server = subprocess.Popen(
        [sys.executable, str(measure.HERE / "chat_server.py"), str(pace)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        spent: dict[str, list[float]] = {name: [] for name in ROWS}
        walls: dict[str, list[float]] = {name: [] for name in ROWS}
        for _ in range(rounds):
            for name, (kind, transport) in ROWS.items():
                found = measure.child(
                    "cpu_per_run.py",
                    "--row",
                    kind,
                    transport,
                    url,
                    str(runs),
                    env={"NITINOL_HTTP_TRANSPORT": transport},
                )
                spent[name].append(found["cpu"] / runs * 1000)
                walls[name].append(found["wall"])
    finally:
        server.kill()
        server.wait()
    base = measure.median(next(iter(spent.values())))
    rows: list[list[object]] = []
    for name, times in spent.items():
        middle = measure.median(times)
        spread = f"{min(times):.2f}-{max(times):.2f}"
        rows.append([name, f"{middle:.2f}", spread, f"{middle / base:.2f}", f"{measure.median(walls[name]):.1f}"])
    measure.table(["", "CPU ms/run", "range", "ratio", "wall s"], rows)


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--pace", type=float, help="seconds between two chunks of a stream; by default 0 and 0.005")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--row", nargs=4, metavar=("KIND", "TRANSPORT", "URL", "RUNS"), help="one row, once")
    given = parser.parse_args()
    if given.row:
        row(given.row[0], given.row[1], given.row[2], int(given.row[3]))
    else:
        for pace in (0.0, 0.005) if given.pace is None else (given.pace,):
            main(*(100, given.rounds or 3) if given.quick else (200, given.rounds or 5), pace)
