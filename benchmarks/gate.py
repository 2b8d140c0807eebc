"""A limit on the rate: 200 agents at once against a server that takes 5 requests a second, with the shared gate and without.

The server (in a thread) takes so many requests in each second and refuses the others with 429 and `Retry-After: 1`. What is
counted is on its side: how many requests it was sent, and how many it refused. Without the gate each agent has only its own
`Retry` (4 attempts). The least time is that of a client that sends exactly what is allowed.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import measure

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
CHUNK = {"choices": [{"index": 0, "delta": {"content": "done"}, "finish_reason": "stop"}]}
DONE = HEAD + b"data: " + json.dumps(CHUNK).encode() + b"\n\ndata: [DONE]\n\n"
REFUSED = b"HTTP/1.1 429 Slow\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Server:
    """Takes `rate` requests in each second, counted from its start."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.requests = self.refused = 0
        self._second = self._taken = 0
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True).start()
        self._ready.wait()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
            self.requests += 1
            if int(time.monotonic()) != self._second:
                self._second, self._taken = int(time.monotonic()), 0
            self._taken += 1
            self.refused += self._taken > self.rate
            writer.write(REFUSED if self._taken > self.rate else DONE)
            await writer.drain()
        finally:
            writer.close()


class Ungated:
    """In the place of the gates: everybody leaves at once."""

    async def enter(self, *_: object) -> None:
        return None


async def ask_all(server: Server, agents: int, gated: bool) -> tuple[dict[str, int], float]:
    from nitinol import Agent, Runtime
    from nitinol_providers import OpenAICompatible

    agent = Agent(name="bench", model=OpenAICompatible("bench", base_url=server.url, api_key="none"))
    async with Runtime() as rt:
        if not gated:
            gateway: Any = rt._system.gateway  # pyright: ignore[reportPrivateUsage]
            gateway.gates = Ungated()
        began = time.perf_counter()
        results = await asyncio.gather(*(rt.start(agent).aask("go") for _ in range(agents)))
        seconds = time.perf_counter() - began
    statuses = [result.status for result in results]
    return {status: statuses.count(status) for status in sorted(set(statuses))}, seconds


def main(agents: int, rate: int) -> None:
    measure.title(f"gate: {agents} agents at once, a server that takes {rate} requests a second")
    rows: list[list[object]] = []
    for name, gated in (("with the gate", True), ("without", False)):
        server = Server(rate)
        statuses, seconds = asyncio.run(ask_all(server, agents, gated))
        least = (agents - rate) / rate if gated else None
        rows.append(
            [
                name,
                statuses.get("completed", 0),
                statuses.get("failed", 0),
                server.requests,
                server.refused,
                f"{server.refused / agents:.2f}",
                f"{seconds:.1f}",
                "" if least is None else f"{least:.1f}",
            ]
        )
    head = ["", "completed", "failed", "requests", "refused", "refused per run", "wall s", "least s"]
    measure.table(head, rows)


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rate", type=int, help="requests a second; by default 5, and 50 with --quick")
    given = parser.parse_args()
    main(given.agents, given.rate or (50 if given.quick else 5))
