"""Recorded answers, damaged at random, through each provider: `NITINOL_FUZZ=300 python -m tests.fuzz`, for 300 s each.

Bytes are lost, changed and repeated; events are lost, doubled and swapped; values in them become others of any type; and
what is left comes in chunks of any size. A provider may give a whole answer, which must be sound, or raise a
`ProviderError`, and nothing else. What an answer says is then sent on to each provider, which must be able to write it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tests.fakes.said import Bill, Turn
from tests.protocols import PROTOCOLS, Protocol
from tests.replay import Replay

from nitinol import tool
from nitinol.errors import ProviderError
from nitinol.events import MessageAppended, from_json, pack
from nitinol.messages import Message, Text, fault, to_message
from nitinol.provider import ModelRequest, ModelResponse, Provider
from nitinol.repair import view

NOWHERE = "http://127.0.0.1:9"
SECONDS = float(os.environ.get("NITINOL_FUZZ", "0"))


@tool
def look_up(word: str, many: int = 1) -> str:
    """Look a word up."""
    return word * many


ASK = ModelRequest(messages=(to_message("Hello"),), tools=(look_up,), run_id="RUN", turn=3)
_TURNS = (
    Turn(thinking="Hm hm.", text="Look: 😀.", calls=[("look_up", {"word": "é", "many": 2}), ("look_up", {"word": ""})]),
    Turn(text='Plain \u2028 words, "quoted".'),
    Turn(calls=[("look_up", {"word": "x" * 50, "deep": {"a": [1, None, {"b": 2.5}]}})]),
)
_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    7,
    10**30,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud83d",
    "NaN",
    "1e999",
    [],
    [[]],
    {},
    [None],
    ["x", 1],
    {"x": None},
    {"type": "x"},
    {"text": 1},
)


@dataclass
class Fuzzer:
    """One protocol's providers and the answers to damage."""

    protocol: Protocol
    chance: random.Random = field(default_factory=random.Random)
    outcomes: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        fake = self.protocol.fake()
        bill = Bill(input=100, output=9, reasoning=2, cached=50)
        told = [b"".join(fake.write(turn, bill)) for turn in _TURNS]
        self.answers = [*told, *self.protocol.recordings().values()]
        self.provider = self.protocol.make(self.protocol.model, NOWHERE)
        self.others = [protocol.make(protocol.model, NOWHERE) for protocol in PROTOCOLS]

    async def once(self) -> None:
        """Damage an answer and have it read.

        Raises:
            AssertionError: What came out is not sound.
            Exception: What the provider raised, if it is no `ProviderError`.
        """
        data = self.damaged()
        http = Replay(data, is_json=True) if data.startswith(b"{") else Replay(*self.chunks(data))
        try:
            response = await _read(self.provider, http)
        except ProviderError as error:
            self.outcomes[type(error).__name__] += 1
            return
        self.outcomes["answered"] += 1
        check(response)
        await self.send_on(response.message)

    async def send_on(self, message: Message) -> None:
        """The next request of a conversation that holds this answer, by each provider."""
        messages, _, _ = view([*ASK.messages, message, to_message("And then?")])
        for provider in self.others:
            http = Replay(b"")
            try:
                await _read(provider, http, ASK.replace(messages=messages))
            except ProviderError:
                json.dumps(http.sent, default=dict).encode()  # as http would

    def chunks(self, data: bytes) -> list[bytes]:
        """The data, cut at random."""
        cuts = sorted(self.chance.randint(0, len(data)) for _ in range(self.chance.choice((0, 1, 3, 20))))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def damaged(self) -> bytes:
        """One of the answers, with some damage."""
        chance = self.chance
        data = chance.choice(self.answers)
        damage = chance.choice((self.garbled, self.values, self.values, self.values, self.order, self.whole))
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            data = damage(data)
        return data

    def garbled(self, data: bytes) -> bytes:
        """Some bytes lost, changed, doubled, or from elsewhere."""
        chance = self.chance
        a, b = sorted((chance.randint(0, len(data)), chance.randint(0, len(data))))
        near = min(b, a + chance.choice((0, 1, 2, 30)))
        match chance.randrange(6):
            case 0:
                return data[:a] + data[near:]
            case 1:
                return data[:a] + chance.randbytes(chance.choice((1, 1, 3))) + data[near:]
            case 2:
                return data[:b] + data[a:]
            case 3:
                return data[:a]
            case 4:
                other = chance.choice(self.answers)
                return data[:a] + other[chance.randint(0, len(other)) :]
            case _:
                ends = (b"\n", b"\r", b"\r\n", b"\n\n", b"\x00", b"\xef\xbb\xbf", b"data: ", b"data:[DONE]\n\n", b":")
                return data[:a] + chance.choice(ends) + data[a:]

    def order(self, data: bytes) -> bytes:
        """Events lost, doubled, swapped."""
        pieces = re.split(rb"(?<=\n\n)", data.replace(b"\r\n", b"\n"))
        a, b = self.chance.randrange(len(pieces)), self.chance.randrange(len(pieces))
        match self.chance.randrange(3):
            case 0:
                del pieces[a]
            case 1:
                pieces.insert(b, pieces[a])
            case _:
                pieces[a], pieces[b] = pieces[b], pieces[a]
        return b"".join(pieces)

    def values(self, data: bytes) -> bytes:
        """A value in an event is another, or gone, or under another name."""
        pieces = re.split(rb"(?<=\n\n)", data.replace(b"\r\n", b"\n"))
        at = self.chance.randrange(len(pieces))
        head, mark, written = pieces[at].partition(b"data: ")
        try:
            value = json.loads(written)
        except ValueError:
            return data
        pieces[at] = head + mark + json.dumps(self.changed(value)).encode() + b"\n\n"
        return b"".join(pieces)

    def whole(self, data: bytes) -> bytes:
        """One event alone, as an answer that is not streamed."""
        found = re.findall(rb"data: (.*)", data)
        return self.chance.choice(found) if found else data

    def changed(self, value: Any) -> Any:
        """The value, with one place in it changed."""
        chance = self.chance
        places: list[tuple[Any, Any]] = []
        _walk(value, places)
        if not places or chance.random() < 0.03:
            return chance.choice(_ODD)
        container, key = chance.choice(places)
        match chance.randrange(8):
            case 0:
                del container[key]
            case 1:
                other, other_key = chance.choice(places)
                container[key] = json.loads(json.dumps(other[other_key]))
            case 2 if isinstance(container, dict):
                container[chance.choice(("type", "text", "id", "index", "delta", "error", "usage"))] = container[key]
            case 3 if isinstance(container[key], str):
                word = container[key]
                container[key] = word[: chance.randint(0, len(word))] + chance.choice(("", "x", "\ud83d", "{", "\\"))
            case 4 if hasattr(container, "append"):
                container.append(json.loads(json.dumps(container[key])))
            case _:
                container[key] = chance.choice(_ODD)
        return value


def _walk(value: Any, places: list[tuple[Any, Any]]) -> None:
    """Every place in a value: what holds it, and under which name or number."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        pairs = list(cast("dict[str, Any]", value).items())
    elif isinstance(value, list):
        pairs = list(enumerate(cast("Sequence[Any]", value)))
    for key, item in pairs:
        places.append((cast("Any", value), key))
        _walk(item, places)


async def _read(provider: Provider, http: Replay, request: ModelRequest = ASK) -> ModelResponse:
    parts = [part async for part in provider.stream(request, http)]
    response = parts[-1]
    assert isinstance(response, ModelResponse), "the last part is no response"
    assert not any(isinstance(part, ModelResponse) for part in parts[:-1]), "two responses"
    for part in parts:
        usage = getattr(part, "usage", None)
        assert usage is None or usage.fault() is None, usage
    return response


def check(response: ModelResponse) -> None:
    """An answer is what the log can hold, and what a fold can read again."""
    message = response.message
    assert fault(message, "assistant") is None, fault(message, "assistant")
    assert all(call.call_id for call in message.tool_calls), "a call without an id"
    assert all(call.name for call in message.tool_calls), "a call without a name"
    assert all(part.text for part in message.parts if isinstance(part, Text)), "a text without words"
    appended = MessageAppended(message=message)
    assert repr(from_json(appended.to_json())) == repr(appended), "it is not read as it was written"
    assert pack(appended)


async def fuzz(fuzzer: Fuzzer, seed: object, *, seconds: float = 0.0, least: int = 1) -> int:
    """Damage answers for so long, and so many at least; how many there were.

    Raises:
        AssertionError: With the seed that shows it again, and what was raised.
    """
    ends = time.monotonic() + seconds
    number = 0
    while number < least or time.monotonic() < ends:
        fuzzer.chance.seed(f"{seed}/{number}")
        try:
            await fuzzer.once()
        except Exception:
            told = traceback.format_exc()
            raise AssertionError(f"{fuzzer.protocol}, seed {seed}/{number}:\n{told}") from None
        number += 1
    return number


def main() -> int:
    """Fuzz each protocol, one after the other."""
    seed = random.randrange(2**32)
    for protocol in PROTOCOLS:
        fuzzer = Fuzzer(protocol)
        number = asyncio.run(fuzz(fuzzer, seed, seconds=SECONDS or 15.0))
        outcomes = ", ".join(f"{many} {name}" for name, many in fuzzer.outcomes.most_common())
        print(f"{protocol}: {number} damaged answers of seed {seed}: {outcomes}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
