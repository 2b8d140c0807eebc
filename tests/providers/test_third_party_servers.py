"""Every provider against a server that somebody else wrote, through the whole runtime: words, tools, bills and faults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import aimock
from tests.logs_of import SOON
from tests.protocols import PROTOCOLS, Protocol

from nitinol import Agent, Retry, RunResult, Runtime, tool
from nitinol.events import Event, ModelFailed, UsageUpdated
from nitinol.repair import view

pytestmark = pytest.mark.slow

HELLO = 'naïve 😀 line\u2028sep nel\u0085x 中文 "q" \\ back\nnew'
AFTER = "It is 14 degrees in Paris, and half past nine."
LONG = "This answer is long enough that a server can stop in the middle of it, and never come back."
FINE = "All is well again."


@tool
def get_weather(city: str, units: str) -> dict[str, Any]:
    """Tell the weather.

    Args:
        city: Where.
        units: Of the temperature.
    """
    return {"city": city, "sky": "rain", "temperature": 14, "units": units}


@tool
async def get_time(tz: str) -> str:
    """Tell the time.

    Args:
        tz: The time zone.
    """
    return f"09:30 in {tz}"


_BILL = {"prompt_tokens": 100, "completion_tokens": 40}
_CALLS = [
    {"id": "call_abc", "name": "get_weather", "arguments": {"city": "Paris", "units": "metric"}},
    {"id": "call_def", "name": "get_time", "arguments": {"tz": "Europe/Paris"}},
]
_ANSWERS: dict[str, dict[str, Any]] = {
    "hello": {"content": HELLO, "usage": _BILL},
    "think": {"reasoning": "Six times seven.", "content": "Forty-two."},
    "weather": {"reasoning": "I need the tools.", "content": "Let me check.", "toolCalls": _CALLS, "usage": _BILL},
    "mixed": {
        "blocks": [
            {"type": "toolCall", **_CALLS[0]},
            {"type": "text", "text": "Hm."},
            {"type": "toolCall", **_CALLS[1]},
        ]
    },
    "capped": {"content": "As far as", "finishReason": "length"},
    "filtered": {"content": "I", "finishReason": "content_filter"},
}
"""What the first word of a prompt is answered with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with the first answer, and as what we know it. The second one is `FINE`, if there may be one."""

    fixture: dict[str, Any]
    error_type: str
    status_code: int | None = None
    retried: bool = True
    retry_after: float | None = None
    billed: bool = True


def _refusal(status: int, kind: str, message: str, **more: Any) -> dict[str, Any]:
    return {"response": {"error": {"message": message, "type": kind}, "status": status, **more}}


FAULTS = {
    "limited": Fault(
        fixture=_refusal(429, "rate_limit_error", "slowly", retryAfter=1),
        error_type="RateLimited",
        status_code=429,
        retry_after=1.0,
        billed=False,
    ),
    "broken": Fault(fixture=_refusal(500, "api_error", "oh"), error_type="ServerError", status_code=500, billed=False),
    "overloaded": Fault(
        fixture=_refusal(529, "overloaded_error", "no room"), error_type="Overloaded", status_code=529, billed=False
    ),
    "overlong": Fault(
        fixture=_refusal(400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum"),
        error_type="ContextOverflow",
        status_code=400,
        retried=False,
        billed=False,
    ),
    "unwanted": Fault(
        fixture=_refusal(400, "invalid_request_error", "what is this"),
        error_type="InvalidRequest",
        status_code=400,
        retried=False,
        billed=False,
    ),
    "locked": Fault(
        fixture=_refusal(401, "authentication_error", "no such key"),
        error_type="AuthenticationFailed",
        status_code=401,
        retried=False,
        billed=False,
    ),
    "truncated": Fault(
        fixture={"response": {"content": LONG}, "latency": 20, "truncateAfterChunks": 4},
        error_type="ConnectionFailed",
        status_code=200,
    ),
    "dropped": Fault(
        fixture={"response": {"content": LONG}, "chunkSize": 5, "latency": 20, "disconnectAfterMs": 100},
        error_type="ConnectionFailed",
        status_code=200,
    ),
    "hanging": Fault(
        fixture={"response": {"content": LONG}, "streamingProfile": {"ttft": 0, "tps": 1, "jitter": 0}},
        error_type="ProviderTimeout",
        status_code=200,
    ),
    "garbled": Fault(
        fixture={"response": {"content": LONG}, "chaos": {"malformedRate": 1}}, error_type="MalformedResponse"
    ),
    "refused": Fault(
        fixture={"response": {"content": LONG}, "chaos": {"disconnectRate": 1}},
        error_type="ConnectionFailed",
        billed=False,
    ),
}
"""By the first word of a prompt."""


def _fixtures() -> Iterator[dict[str, Any]]:
    for word in ("weather", "mixed"):
        usage = {"prompt_tokens": 321, "completion_tokens": 12}
        yield {"match": {"userMessage": word, "hasToolResult": True}, "response": {"content": AFTER, "usage": usage}}
    for word, response in _ANSWERS.items():
        yield {"match": {"userMessage": word}, "response": response}
    yield {"match": {"userMessage": "drip"}, "response": {"content": LONG}, "chunkSize": 1, "latency": 3}
    for protocol in PROTOCOLS:  # each has its own first answer
        for word, fault in FAULTS.items():
            match = {"userMessage": word, "model": f"m-{protocol}"}
            yield {"match": {**match, "sequenceIndex": 0}, **fault.fixture}
            yield {"match": match, "response": {"content": FINE, "usage": _BILL}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[aimock.Aimock]:
    """One server for the tests of this file."""
    try:
        entry = aimock.find(install=bool(os.environ.get("CI")))
    except aimock.Missing as error:
        pytest.skip(str(error))
    with aimock.Aimock(entry, tmp_path_factory.mktemp("aimock"), _fixtures()) as running:
        yield running


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """A run, and all that was told of it."""

    result: RunResult[str]
    events: list[Event]

    @property
    def bill(self) -> list[UsageUpdated]:
        return [event for event in self.events if event.type == "usage.updated"]

    @property
    def failures(self) -> list[ModelFailed]:
        return [event for event in self.events if event.type == "model.failed"]

    def said(self, kind: str) -> list[str]:
        """The pieces of one kind, in order, of all attempts."""
        return [event.text for event in self.events if event.type == "model.delta" and event.kind == kind]


@pytest.fixture(params=PROTOCOLS, ids=str)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    """Each of the four."""
    found: Protocol = request.param
    return found


def live(protocol: Protocol, server: aimock.Aimock, prompt: str, **options: Any) -> Lived:
    """One run of an agent with tools, which tries twice."""
    options.setdefault("retry", Retry(attempts=2, base=0.0, stall=SOON))
    model = protocol.make(f"m-{protocol}", server.url)
    agent = Agent(name="guest", model=model, tools=[get_weather, get_time], instructions="Be brief.", **options)
    with Runtime() as rt, rt.subscribe(maxsize=10_000) as told:  # first, so that no delta is missed
        result = rt.start(agent, key="guest").ask(prompt, timeout=30)
        events = [told.get(SOON)]
        while events[-1].type != "run.finished":
            events.append(told.get(SOON))
    assert view(result.messages) == (result.messages, 0, 0), "the transcript is not valid as it is"
    assert len([event for event in events if event.type == "model.started"]) == len(
        [event for event in events if event.type == "usage.updated"]
    ), "an attempt has no row in the bill, or two"
    return Lived(result=result, events=events)


def test_words_come_as_they_are_sent(protocol: Protocol, server: aimock.Aimock) -> None:
    """In pieces, whatever characters they are of, and with the usage that the server told."""
    lived = live(protocol, server, "hello")
    assert (lived.result.status, lived.result.stop_reason) == ("completed", "end_turn")
    assert lived.result.text == HELLO
    assert "".join(lived.said("text")) == HELLO
    assert len(lived.said("text")) > 1
    usage = lived.result.usage
    assert (usage.input_tokens, usage.output_tokens) == (100, 40)
    assert [row.estimated for row in lived.bill] == [False]


def test_thinking_is_no_text(protocol: Protocol, server: aimock.Aimock) -> None:
    lived = live(protocol, server, "think", thinking="low")
    assert lived.result.text == "".join(lived.said("text")) == "Forty-two."
    assert "".join(lived.said("thinking")) == "Six times seven."
    kinds = [part.type for part in lived.result.messages[-1].parts]
    assert [kind for kind in kinds if kind != "native"] == ["thinking", "text"]


@pytest.mark.parametrize("order", ["weather", "mixed"])
def test_tools_are_called_in_parallel_and_answered(protocol: Protocol, server: aimock.Aimock, order: str) -> None:
    """The server, which reads all four protocols as one, is given each answer beside its own call."""
    lived = live(protocol, server, f"{order} in Paris?")
    assert lived.result.status == "completed", lived.result.error
    assert lived.result.text == AFTER
    assert [(call.name, call.outcome) for call in lived.result.tool_calls] == [
        ("get_weather", "ok"),
        ("get_time", "ok"),
    ]
    assert lived.result.tool_calls[0].arguments == {"city": "Paris", "units": "metric"}
    read = [body for body in server.received(f"m-{protocol}") if order in str(body)][-1]["messages"]
    calls = [call for message in read for call in message.get("tool_calls") or ()]
    answers = {message["tool_call_id"]: message["content"] for message in read if message["role"] == "tool"}
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time"]
    assert [json.loads(call["function"]["arguments"]) for call in calls][1] == {"tz": "Europe/Paris"}
    assert "rain" in answers[calls[0]["id"]]
    assert "09:30 in Europe/Paris" in answers[calls[1]["id"]]
    assert any("Be brief." in str(message["content"]) for message in read if message["role"] == "system")


def test_each_turn_is_billed_as_the_server_counts(protocol: Protocol, server: aimock.Aimock) -> None:
    lived = live(protocol, server, "weather in Paris?")
    rows = [(row.usage.input_tokens, row.usage.output_tokens, row.estimated) for row in lived.bill]
    assert rows == [(100, 40, False), (321, 12, False)]
    assert (lived.result.usage.input_tokens, lived.result.usage.output_tokens) == (421, 52)


@pytest.mark.parametrize("word", ["capped", "filtered"])
def test_why_an_answer_ends_is_told(protocol: Protocol, server: aimock.Aimock, word: str) -> None:
    reasons = {"capped": "max_tokens", "filtered": "content_filter"}
    if protocol.name == "responses":
        pytest.skip("aimock ends a cut answer with response.completed, where the vendor says response.incomplete")
    if (protocol.name, word) == ("messages", "filtered"):
        reasons[word] = "other"  # no stop reason of this vendor's
    assert live(protocol, server, word).result.stop_reason == reasons[word]


def test_slow_bytes_are_no_stall(protocol: Protocol, server: aimock.Aimock) -> None:
    """A character every few milliseconds: all of them come, each as soon as it does."""
    lived = live(protocol, server, "drip")
    assert (lived.result.status, lived.result.text) == ("completed", LONG)
    assert len(lived.said("text")) >= len(LONG) - 1
    assert lived.failures == []


def test_what_cannot_be_started_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is the reason that the others are skipped for; nothing is installed unasked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(aimock.Missing, match=r"Node\.js"):
        aimock.find(install=True)
    (tmp_path / "node").touch(mode=0o755)
    with pytest.raises(aimock.Missing, match="python -m tests"):
        aimock.find(install=False)
    with pytest.raises(aimock.Missing, match="npm, which installs aimock"):
        aimock.find(install=True)
    assert not (tmp_path / "nitinol-tests").exists()


@pytest.mark.parametrize("word", FAULTS)
def test_what_goes_wrong_is_typed_and_tried_again(protocol: Protocol, server: aimock.Aimock, word: str) -> None:
    """By type: what may pass is tried again, what will not is not; what was cut is billed as an estimate, a refusal not."""
    fault = FAULTS[word]
    patience = {"retry": Retry(attempts=2, base=0.0, stall=0.5)} if word == "hanging" else {}
    lived = live(protocol, server, word, **patience)
    (failed,) = lived.failures
    assert (failed.error_type, failed.status_code) == (fault.error_type, fault.status_code), failed.error
    assert failed.retry_after == fault.retry_after
    first = lived.bill[0]
    assert first.estimated == fault.billed
    assert (first.usage.input_tokens > 0) == fault.billed
    if fault.retried:
        assert (lived.result.status, lived.result.text) == ("completed", FINE)
        assert [row.usage.output_tokens for row in lived.bill[1:]] == [40]
    else:
        assert (lived.result.status, lived.result.error_type) == ("failed", fault.error_type)
