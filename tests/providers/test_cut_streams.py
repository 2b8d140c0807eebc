"""Streams that are cut, after any byte of an answer, of every vendor: tried again, billed, and no word of them kept.

`NITINOL_EVERY_BYTE=1` takes each byte through the whole runtime, too, for some minutes; else all bytes around the ends of
events are taken through it, and some of the others.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from tests.fakes.said import Bill, Turn
from tests.logs_of import assert_valid, log_of
from tests.protocols import PROTOCOLS, Protocol
from tests.replay import Replay
from tests.servers import Connection, Server, answer, cut, stream

from nitinol import Agent, AgentRef, Prices, Retry, Runtime, tool
from nitinol.errors import ProviderError
from nitinol.messages import Message, to_message
from nitinol.provider import ModelRequest, ModelResponse
from nitinol.repair import view
from nitinol.usage import Usage

pytestmark = pytest.mark.slow


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} means 42"


CALLS = Turn(thinking="Hm hm.", text="Look: 😀.", calls=[("look_up", {"word": "é"})])


@tool
def get_weather(city: str, units: str) -> str:
    """Tell the weather."""
    return f"the sky of {city} means 42 {units}"


@tool
def get_time(tz: str) -> str:
    """Tell the time."""
    return f"noon in {tz} means 42"


RECORDED = Bill(input=100, output=40, reasoning=0, cached=0)
ENDS = Turn(thinking="Ah.", text="It means 42.")
BILLS = (Bill(input=120, output=9, reasoning=2, cached=50), Bill(input=150, output=5, reasoning=1, cached=120))
ASK = ModelRequest(messages=(to_message("cut"),), tools=(look_up,), run_id="RUN", turn=1)
PRICES = Prices(input="3", output="15", cache_read="0.3", cache_write="3.75")
AT_ONCE = 250
EVERY_BYTE = bool(os.environ.get("NITINOL_EVERY_BYTE"))


def places(data: bytes, many: int) -> list[int]:
    """Where to cut: around the ends of lines, and at so many other places."""
    ends = [end.start() + step for end in re.finditer(rb"\n", data) for step in (0, 1)]
    return (
        list(range(len(data)))
        if EVERY_BYTE
        else sorted({*ends, *range(0, len(data), max(1, len(data) // many))} - {len(data)})
    )


@dataclass
class Cutter:
    """The script of a server: an agent's first answer is cut where its question says, the next ones come whole."""

    protocol: Protocol
    recording: str | None
    """Of a server that somebody else wrote; None = a strict fake, which looks at what it is sent, too."""
    asked: dict[int, int] = field(default_factory=lambda: defaultdict[int, int](int))
    """Of each cut, the requests so far."""
    faults: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.fake = self.protocol.fake()
        self.whole = b"".join(self.fake.write(CALLS, BILLS[0]))
        self.bills = BILLS
        if self.recording is not None:
            self.whole = self.protocol.recordings()[self.recording]
            self.bills = (RECORDED, BILLS[1])
        self.ends = b"".join(self.fake.write(ENDS, BILLS[1]))

    async def __call__(self, connection: Connection) -> bool | None:
        wrong, _ = self.fake.read(connection.request)
        if wrong and self.recording is None:
            self.faults += wrong
            return await answer(400, self.fake.error(400, "; ".join(wrong)))(connection)
        at = int(re.findall(rb"cut after byte (\d+)", connection.request.body)[0])
        self.asked[at] += 1
        if b"means 42" in connection.request.body:
            return await stream(self.ends)(connection)
        if self.asked[at] == 1:
            return await cut(self.whole[:at])(connection)
        return await stream(self.whole)(connection)


def reported(protocol: Protocol, data: bytes) -> Usage | None:
    """What the events that came whole say of usage, read without our parsers."""
    told: Usage | None = None
    for block in re.split(rb"\r\n\r\n|\n\n", data)[:-1]:
        written = block.partition(b"data: ")[2]
        event: Any = {} if written == b"[DONE]" else json.loads(written)
        match protocol.name:
            case "chat":
                raw = event.get("usage")
                names = ("prompt_tokens", "completion_tokens")
            case "responses":
                raw = event.get("response", {}).get("usage")
                names = ("input_tokens", "output_tokens")
            case "gemini":
                raw = event.get("usageMetadata")
                names = ("promptTokenCount", "totalTokenCount")
                raw = raw and {**raw, "totalTokenCount": raw["totalTokenCount"] - raw["promptTokenCount"]}
            case _:
                raw = event.get("message", event).get("usage")
                names = ("input_tokens", "output_tokens")
                if raw and told:
                    raw = {"input_tokens": told.input_tokens, **raw}
                elif raw:
                    raw = {**raw, "input_tokens": raw["input_tokens"] + raw.get("cache_read_input_tokens", 0)}
        if raw:
            told = Usage(input_tokens=raw[names[0]], output_tokens=raw[names[1]])
    return told


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_what_ends_too_soon_is_no_answer(protocol: Protocol) -> None:
    """Also where the connection is closed in good order, and nothing but the bytes tell: it is an error, or it was whole."""
    provider = protocol.make(protocol.model, "http://127.0.0.1:9")
    told = {"a fake": b"".join(protocol.fake().write(CALLS, BILLS[0])), **protocol.recordings()}

    async def ask(data: bytes) -> Message | ProviderError:
        try:
            parts = [part async for part in provider.stream(ASK, Replay(data))]
        except ProviderError as error:
            return error
        (response,) = [part for part in parts if isinstance(part, ModelResponse)]
        return response.message

    async def main() -> None:
        for name, data in told.items():
            whole = await ask(data)
            if isinstance(whole, ProviderError):  # a recording of what went wrong
                continue
            for at in range(len(data)) if name == "a fake" else places(data, 100):
                found = await ask(data[:at])
                if isinstance(found, ProviderError):
                    assert found.retryable, (name, at, found)
                else:
                    assert found == whole, (name, at)
                    assert at > len(data) / 2, (name, at)

    asyncio.run(main())


def costs(bill: Bill) -> Decimal:
    """In dollars, by the list above."""
    return (Decimal(bill.input - bill.cached) * 3 + bill.cached * Decimal("0.3") + bill.output * 15) / 1_000_000


RECORDINGS = {
    "chat": "thinking_text_and_two_tool_calls",
    "responses": "thinking_text_and_two_tool_calls",
    "messages": "aimock_thinking_and_two_calls",
    "gemini": "aimock",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("is_recorded", [False, True], ids=["fake", "recorded"])
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_a_stream_cut_after_any_byte_is_tried_again(protocol: Protocol, is_recorded: bool) -> None:
    """Or was whole. Each attempt has its row in the bill, and the transcript is valid."""
    cutter = Cutter(protocol, RECORDINGS[protocol.name] if is_recorded else None)
    with Server(cutter, keep=False) as server, Runtime() as rt:
        agent = Agent(
            name="reader",
            model=protocol.make(protocol.model, server.url),
            tools=[look_up, get_weather, get_time],
            prices=PRICES,
            retry=Retry(attempts=2, base=0.0),
        )
        cuts = places(cutter.whole, 50)
        for start in range(0, len(cuts), AT_ONCE):
            some = cuts[start : start + AT_ONCE]
            refs = [rt.start(agent, key=f"cut/{at}") for at in some]
            handles = [ref.send(f"cut after byte {at}") for at, ref in zip(some, refs, strict=True)]
            for at, ref, handle in zip(some, refs, handles, strict=True):
                result = handle.result(timeout=60)
                assert (result.status, result.text) == ("completed", ENDS.text), (at, result.error)
                assert [call.outcome for call in result.tool_calls] == ["ok"] * (2 if is_recorded else 1), at
                check(cutter, at, ref)
                rt.forget(ref.key)
    assert cutter.faults == []


def check(cutter: Cutter, at: int, ref: AgentRef[str]) -> None:
    """The log of one agent, and its bill."""
    assert_valid(ref)
    transcript = tuple(ref.history())
    assert view(transcript) == (transcript, 0, 0), at
    log = log_of(ref)
    rows = [event for event in log if event.type == "usage.updated"]
    failed = [event for event in log if event.type == "model.failed"]
    assert len(rows) == cutter.asked[at], at
    for row, bill in zip(rows[-2:], cutter.bills, strict=True):
        told = (
            row.usage.input_tokens,
            row.usage.cache_read_tokens,
            row.usage.output_tokens,
            row.usage.reasoning_tokens,
        )
        assert (told, row.estimated) == ((bill.input, bill.cached, bill.output, bill.reasoning), False), at
        assert row.cost == costs(bill), at
    assert len(failed) == len(rows) - 2, at
    for row, failure in zip(rows, failed, strict=False):
        assert failure.error_type in ("ConnectionFailed", "MalformedResponse"), (at, failure.error)
        told_before = reported(cutter.protocol, cutter.whole[:at]) or Usage()
        assert row.estimated
        assert row.usage.input_tokens >= told_before.input_tokens
        assert row.usage.input_tokens > 0
        assert row.usage.output_tokens >= told_before.output_tokens
        shown = sum(event.characters for event in log if event.type == "model.discarded")
        assert row.usage.output_tokens * 4 >= shown, (at, shown)
        assert row.cost
    assert rows[-1].run_cost == sum(row.cost or 0 for row in rows)
