"""Many agents, one budget: they race for it, wait for each other, and never spend more than there is."""

import asyncio
from collections import Counter

from nitinol import Agent, Budget, Prices, Runtime
from nitinol.provider import ModelRequest
from nitinol.testing import Answer, ScriptedProvider, after, say

PRICES = Prices(input="3", output="15", source="this example")


def answer(request: ModelRequest) -> Answer:
    """A scripted model whose answers are of different lengths."""
    return after(0.01, say("word " * (100 + 7 * len(request.key))))


model = ScriptedProvider(answer, prices=PRICES)
writer = Agent(name="writer", model=model, max_output_tokens=400)


async def main() -> None:
    """Let forty agents write until half a dollar is gone."""
    async with Runtime(budget=Budget(cents=50)) as rt, rt.subscribe("budget.*") as events:
        asks = [
            rt.start(writer, key=f"writer/{agent}").aask(f"Chapter {chapter}.", timeout=60)
            for agent in range(40)
            for chapter in range(10)
        ]
        results = await asyncio.gather(*asks)
        print(Counter(result.status for result in results))
        print("spent:", rt.spend(by="agent")["writer"].cost)
        while (event := events.poll()) is not None:
            if event.type == "budget.warning":
                print(f"{event.fraction:.0%} of {event.limit}: {event.spent}")


asyncio.run(main())
