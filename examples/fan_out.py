"""Many agents at once: each researches one topic, all of them in parallel, and one failure is nobody else's."""

import asyncio

from nitinol import Agent, Retry, Runtime
from nitinol.errors import ServerError
from nitinol.provider import ModelRequest
from nitinol.testing import Answer, ScriptedProvider, after, fail, say

TOPICS = [f"topic {number}" for number in range(1, 51)]


def answer(request: ModelRequest) -> Answer:
    """A scripted model that takes a tenth of a second, and fails for one of the topics."""
    topic = request.messages[0].text
    return fail(ServerError()) if topic.endswith(" 13") else after(0.1, say(f"What I found on {topic}."))


scout = Agent(name="scout", model=ScriptedProvider(answer), retry=Retry(attempts=2, base=0.01))


async def main() -> None:
    """Ask fifty agents, and print what came of it."""
    async with Runtime() as rt:
        asks = [rt.start(scout, key=f"scout/{topic}").aask(topic, timeout=30) for topic in TOPICS]
        results = await asyncio.gather(*asks)
    for result in results[:3]:
        print(result.key, "->", result.text)
    done = sum(result.status == "completed" for result in results)
    print(f"{done} of {len(results)} completed, {sum(result.duration for result in results):.1f} s of work")
    for result in results:
        if result.status != "completed":
            print(f"{result.key} {result.status}: {result.error}")


asyncio.run(main())
