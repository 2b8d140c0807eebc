"""32 agents that spend one budget until there is nothing left, or somebody kills them: `python spender.py STORE BOOKS`.

It says a word for each request that the vendor hears. The vendor writes what it bills to BOOKS, before anybody is told.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from nitinol import Agent, Budget, Delta, ModelInfo, ModelRequest, Prices, Runtime
from nitinol.http import Http
from nitinol.messages import Message, Text
from nitinol.provider import ModelResponse, StreamPart, UsageSoFar
from nitinol.usage import Usage

AGENTS = 32
BUDGET = Budget(usd="1.50")
PRICES = Prices(input="3", output="15")


class Vendor:
    name, model = "vendor", "one"

    def __init__(self, books: Path) -> None:
        self._books = os.open(books, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def info(self) -> ModelInfo:
        return ModelInfo(max_output_tokens=400, prices=PRICES)

    def _bill(self, usage: Usage) -> None:
        os.write(self._books, f"{PRICES.cost(usage)}\n".encode())

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        print("request", flush=True)
        known = Usage(input_tokens=request.messages[-1].text.count(" "))
        self._bill(known)
        yield UsageSoFar(known)
        pieces = random.randint(1, (request.max_output_tokens or 400) // 50)
        for _ in range(pieces):
            await asyncio.sleep(random.random() * 0.02)
            self._bill(Usage(output_tokens=50))
            yield Delta("text", "word" * 50)
        yield ModelResponse(
            message=Message(role="assistant", parts=(Text("word" * 50 * pieces),)),
            usage=Usage(input_tokens=known.input_tokens, output_tokens=50 * pieces),
            stop_reason="end_turn",
        )


async def main() -> None:
    """Every agent asks until its budget says no."""
    store, books = Path(sys.argv[1]), Path(sys.argv[2])
    agent = Agent(name="spender", model=Vendor(books))

    async def spend(rt: Runtime, number: int) -> None:
        ref = rt.start(agent, key=f"spender/{number}")
        while (await ref.aask("go on " * 20)).status != "budget_exceeded":
            await ref.areset()

    async with Runtime(store, agents=[agent], budget=BUDGET, drain=0.0) as rt:
        await asyncio.gather(*(spend(rt, number) for number in range(AGENTS)))


if __name__ == "__main__":
    asyncio.run(main())
