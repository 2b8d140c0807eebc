"""The strict fakes: what a vendor would refuse is refused, each rule by a body that breaks it alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from tests.fakes.said import Bill, Fake, Turn, Vendor
from tests.protocols import PROTOCOLS, Protocol
from tests.replay import Replay
from tests.servers import Request, Server

from nitinol.errors import ProviderError
from nitinol.http import HttpPool
from nitinol.messages import Message, ToolAnswer, to_message
from nitinol.provider import ModelRequest, ModelResponse
from nitinol.tool_spec import tool

CALLS = Turn(thinking="Hm.", text="Look.", calls=[("look_up", {"word": "é"}), ("look_up", {"word": "b"})])
BILL = Bill(input=100, output=9, reasoning=2, cached=50)
HEADERS = {"authorization": "Bearer k", "x-api-key": "k", "anthropic-version": "2023-06-01", "x-goog-api-key": "k"}
Tamper = Callable[[Any], object]


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return word


def conversation(protocol: Protocol, fake: Fake) -> Any:
    """The body of the request that follows an answer with calls of this fake's own."""
    provider = protocol.make(protocol.model, "http://127.0.0.1:9")
    asked = ModelRequest(messages=(to_message("Hello"),), tools=(look_up,), thinking=2048, run_id="RUN", turn=1)

    async def answered(request: ModelRequest, http: Replay) -> Message:
        parts = [part async for part in provider.stream(request, http)]
        response = parts[-1]
        assert isinstance(response, ModelResponse)
        return response.message

    said = asyncio.run(answered(asked, Replay(*fake.write(CALLS, BILL))))
    results = [ToolAnswer(call_id=call.call_id, name=call.name, text="means 42") for call in said.tool_calls]
    http = Replay(b"")
    with suppress(ProviderError):  # there is no answer
        asyncio.run(
            answered(asked.replace(messages=(*asked.messages, said, Message(role="tool", parts=tuple(results)))), http)
        )
    return json.loads(json.dumps(http.sent, default=dict))


def faults(fake: Fake, body: Any) -> str:
    """What the fake says is wrong."""
    return "; ".join(fake.read(Request("POST", "/?alt=sse", HEADERS, json.dumps(body).encode()))[0])


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_a_sound_request_is_heard(protocol: Protocol) -> None:
    """Word for word, in one vocabulary."""
    fake = protocol.fake()
    body = conversation(protocol, fake)
    wrong, heard = fake.read(Request("POST", "/?alt=sse", HEADERS, json.dumps(body).encode()))
    assert wrong == []
    assert [who for who, _ in heard] == ["user", "assistant", "call", "call", "result", "result"]
    assert heard[2] == ("call", 'look_up{"word": "é"}')
    assert "means 42" in heard[-1][1]


def _put(value: Any, *path: Any) -> Tamper:
    """Set what is at this path of a body."""

    def tamper(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return tamper


def _drop(*path: Any) -> Tamper:
    """Remove what is at this path of a body."""

    def tamper(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return tamper


TAMPERS: dict[str, list[tuple[Tamper, str]]] = {
    "chat": [
        (_drop("messages", -1), "not answered"),
        (_put("other", "messages", -1, "tool_call_id"), "no call before it"),
        (_put("", "messages", -1, "content"), "empty content"),
        (_put("Hm.", "messages", 1, "reasoning_content"), "reasoning_content"),
    ],
    "responses": [
        (_drop("input", -1), "is not answered once"),
        (lambda body: body["input"].append(body["input"][-1]), "is not answered once"),
        (_drop("input", -3), "which was not called"),
        (_put("other", "input", 1, "encrypted_content"), "was not made here"),
        (_put([], "input", 1, "summary"), "not as it was made"),
        (lambda body: body["input"].insert(2, {"role": "user", "content": "x"}), "stands without what it led to"),
        (_drop("input", 1), "without the reasoning that led to it"),
        (_put("call_1", "input", -3, "id"), "does not begin with 'fc_'"),
        (_put("{", "input", -3, "arguments"), "are no JSON"),
        (_put("", "input", -1, "output"), "an empty output"),
        (_put("", "input", 0, "content"), "an empty message"),
        (_put("x" * 65, "input", -1, "call_id"), "which was not called"),
        (lambda body: body["input"].insert(-2, {"role": "user", "content": "x"}), "before call"),
        (_put(True, "store"), "store is not false"),
        (_put(8, "max_output_tokens"), "below 16"),
    ],
    "messages": [
        (_drop("messages", -1, "content", 0), "are answered by"),
        (lambda body: body["messages"][-1]["content"].insert(0, {"type": "text", "text": "x"}), "before the answers"),
        (lambda body: body["messages"].append({"role": "user", "content": "x"}), "two messages of user"),
        (lambda body: body["messages"].append({"role": "assistant", "content": "x"}), "last message is not a user's"),
        (_drop("messages", 0), "first message is not a user's"),
        (_put("other", "messages", 1, "content", 0, "signature"), "not as it was signed"),
        (_put("other", "messages", 1, "content", 0, "thinking"), "not as it was signed"),
        (_drop("messages", 1, "content", 0), "begins with 'text'"),
        (_put(" ", "messages", 1, "content", 1, "text"), "without text"),
        (_put("a:b", "messages", 1, "content", 2, "id"), "is not of letters"),
        (_put("[]", "messages", 1, "content", 2, "input"), "is no object"),
        (_put(1, "messages", 1, "content", 2, "index"), "['index']"),
        (_put(10**6, "thinking", "budget_tokens"), "is not between"),
        (_drop("max_tokens"), "no number of tokens"),
        (lambda body: body["tools"].append(body["tools"][0]), "two tools"),
    ],
    "gemini": [
        (_drop("contents", -1, "parts", 0), "are answered by"),
        (lambda body: body["contents"].append({"role": "user", "parts": [{"text": "x"}]}), "two contents of user"),
        (_drop("contents", -1), "last content is not a user's"),
        (_drop("contents", 0), "first content is not a user's"),
        (_put("other", "contents", 1, "parts", -2, "thoughtSignature"), "was not made here"),
        (_drop("contents", 1, "parts", -2, "thoughtSignature"), "has no thoughtSignature"),
        (_put({"word": "x"}, "contents", 1, "parts", -2, "functionCall", "args"), "of another part"),
        (lambda body: body["contents"][1]["parts"].insert(0, {"text": ""}), "an empty text"),
        (lambda body: body["contents"][1]["parts"].insert(0, {"text": "x", "thought": True}), "a thought goes back"),
        (lambda body: body["contents"][1]["parts"].append({}), "a part is one of"),
        (_put("x", "contents", -1, "parts", 0, "functionResponse", "response"), "is no object"),
        (_put("other", "contents", -1, "parts", 0, "functionResponse", "name"), "are answered by"),
    ],
}


@pytest.mark.parametrize(
    ("protocol", "number"),
    [(protocol, number) for protocol in PROTOCOLS for number in range(len(TAMPERS[protocol.name]))],
    ids=str,
)
def test_each_rule_is_enforced(protocol: Protocol, number: int) -> None:
    """A request that was sound is refused once it is tampered with, for the reason that it should be."""
    tamper, reason = TAMPERS[protocol.name][number]
    fake = protocol.fake()
    body = conversation(protocol, fake)
    tamper(body)
    assert reason in faults(fake, body)


def test_a_fake_on_the_network_refuses_with_400() -> None:
    """As the vendor does, with what is wrong in the body."""
    vendor = Vendor(PROTOCOLS[0].fake(), lambda request, heard: CALLS)
    with Server(vendor) as server:
        provider = PROTOCOLS[0].make("m", server.url)
        bad = ModelRequest(messages=(Message(role="assistant", parts=to_message("x").parts),))

        async def ask() -> None:
            pool = HttpPool()
            try:
                async for _ in provider.stream(bad, pool.session()):
                    pass
            finally:
                await pool.aclose()

        with pytest.raises(ProviderError, match="not a user's") as raised:
            asyncio.run(ask())
    assert raised.value.status_code == 400
