"""Ask once: a prompt, a model, a tool; text as it comes, and a result with what it cost.

python examples/one_shot.py                       a scripted model, no network
python examples/one_shot.py ollama:llama3.2       a real one
"""

import sys

from nitinol import Prices, run, tool
from nitinol.testing import ScriptedProvider, call, say


@tool
def population(city: str) -> int:
    """How many people live in a city.

    Args:
        city: Its English name.
    """
    return {"Oslo": 717_710, "Bergen": 291_940}[city]


scripted = ScriptedProvider(
    [
        [call("population", city="Oslo"), call("population", city="Bergen")],  # two calls, run in parallel
        say("Oslo is larger than Bergen by 425,770 people.", chunks=5),
    ],
    prices=Prices(input="3", output="15"),  # dollars per million tokens
)

result = run(
    "By how much is Oslo larger than Bergen?",
    model=sys.argv[1] if len(sys.argv) > 1 else scripted,
    tools=[population],
    max_turns=5,
    on_text=lambda text: print(text, end="", flush=True),
)

print()
for record in result.tool_calls:
    print(f"  {record.name}({record.arguments}) -> {record.text}")
print(f"  {result.status}: {result.turns} turns, {result.usage.total_tokens} tokens, cost {result.cost}")
result.raise_for_status()
