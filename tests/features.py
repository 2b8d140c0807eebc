"""What each vendor's provider does: `python -m tests.features` prints the table, each cell of which is tried.

A cell is `yes` if the probe of its feature passes: a request is written and looked at, or an answer of the vendor's kind is
read. Any other has its reason in `WHY`; a test holds that no reason is missing, and none is out of date.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.fakes.said import Bill, Turn
from tests.protocols import KEY, PROTOCOLS, Protocol
from tests.replay import Replay

from nitinol.errors import ProviderError
from nitinol.messages import Audio, Document, Image, Media, Message, Text, Thinking, ToolAnswer, to_message
from nitinol.provider import ModelRequest, ModelResponse, Provider
from nitinol.tool_spec import tool
from nitinol.usage import Usage
from nitinol_providers import Anthropic, Gemini, OpenAI, OpenAICompatible

BILL = Bill(input=100, output=9, reasoning=2, cached=50)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
WAV = b"RIFF" + bytes(range(64))
PDF = b"%PDF-1.7\n" + bytes(range(64))
SCHEMA = {"type": "object", "properties": {"verdict": {"type": "string"}}, "required": ["verdict"]}


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return word


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """One vendor by its prefix, and a model of its own."""

    name: str
    protocol: Protocol
    provider: Provider
    server_tool: Mapping[str, Any]
    """A tool that the vendor runs itself."""

    def __str__(self) -> str:
        return self.name


_BY_NAME = {protocol.name: protocol for protocol in PROTOCOLS}
_MODELS = {
    "openai-compatible": "gpt-4.1",
    "ollama": "llama3.2",
    "openrouter": "anthropic/claude-sonnet-4.5",
    "deepseek": "deepseek-chat",
    "mistral": "mistral-large-latest",
    "groq": "openai/gpt-oss-120b",
    "together": "openai/gpt-oss-120b",
    "vllm": "openai/gpt-oss-120b",
    "llamacpp": "local",
}
_SEARCH = {"type": "web_search"}
VENDORS = (
    Vendor(
        name="anthropic",
        protocol=_BY_NAME["messages"],
        provider=Anthropic("claude-sonnet-4-5", api_key=KEY),
        server_tool={"type": "web_search_20250305", "name": "web_search"},
    ),
    Vendor(
        name="openai",
        protocol=_BY_NAME["responses"],
        provider=OpenAI("gpt-5.4", api_key=KEY),
        server_tool=_SEARCH,
    ),
    Vendor(
        name="xai",
        protocol=_BY_NAME["responses"],
        provider=OpenAI("grok-4.5", name="xai", api_key=KEY),
        server_tool=_SEARCH,
    ),
    Vendor(
        name="gemini",
        protocol=_BY_NAME["gemini"],
        provider=Gemini("gemini-3.1-pro-preview", api_key=KEY),
        server_tool={"googleSearch": {}},
    ),
    *(
        Vendor(
            name=name,
            protocol=_BY_NAME["chat"],
            provider=OpenAICompatible(model, name=name, api_key=KEY),
            server_tool=_SEARCH,
        )
        for name, model in _MODELS.items()
    ),
)
ASK = ModelRequest(messages=(to_message("Hello"),), tools=(look_up,), key="k", run_id="RUN", turn=1)
THINKS = Turn(thinking="A thought.", text="Words.", calls=[("look_up", {"word": "a"}), ("look_up", {"word": "b"})])


def read(vendor: Vendor, turn: Turn, *, instead: Mapping[bytes, bytes] | None = None) -> ModelResponse:
    """An answer of this vendor's kind, as it is understood."""
    data = b"".join(vendor.protocol.fake().write(turn, BILL))
    for old, new in (instead or {}).items():
        assert old in data, old
        data = data.replace(old, new)

    async def main() -> ModelResponse:
        parts = [part async for part in vendor.provider.stream(ASK, Replay(data))]
        response = parts[-1]
        assert isinstance(response, ModelResponse)
        return response

    return asyncio.run(main())


def body(vendor: Vendor, *messages: Message, **options: Any) -> dict[str, Any]:
    """The body of a request."""
    http = Replay(b"")
    request = ASK.replace(messages=messages or ASK.messages, **options)

    async def main() -> None:
        with suppress(ProviderError):  # there is no answer
            async for _ in vendor.provider.stream(request, http):
                pass

    asyncio.run(main())
    sent: dict[str, Any] = json.loads(json.dumps(http.sent, default=dict))
    return sent


def _text(vendor: Vendor) -> bool:
    response = read(vendor, Turn(text="Words."))
    return (response.message.text, response.stop_reason) == ("Words.", "end_turn")


def _calls(vendor: Vendor) -> bool:
    response = read(vendor, THINKS)
    return [dict(call.arguments) for call in response.message.tool_calls] == [{"word": "a"}, {"word": "b"}]


def _thinking(vendor: Vendor) -> bool:
    return [part.text for part in read(vendor, THINKS).message.parts if isinstance(part, Thinking)][:1] == [
        "A thought."
    ]


def _own_thinking(vendor: Vendor) -> bool:
    """Its own thinking goes back to it: by its words, or by what it has signed; but not as words of the answer."""
    said = read(vendor, THINKS).message
    answers = tuple(ToolAnswer(call_id=call.call_id, name=call.name, text="x") for call in said.tool_calls)
    sent = body(vendor, *ASK.messages, said, Message(role="tool", parts=answers))
    without = tuple(part for part in said.parts if part.type in ("text", "tool_call"))
    unsigned = tuple(
        type(part)(call_id=part.call_id, name=part.name, arguments=part.arguments) if part.type == "tool_call" else part
        for part in without
    )
    bare = Message(role="assistant", parts=unsigned, provider=said.provider, model=said.model)
    return sent != body(vendor, *ASK.messages, bare, Message(role="tool", parts=answers))


def _shown(medium: Media, data: bytes | None = None) -> Callable[[Vendor], bool]:
    wanted = base64.b64encode(data).decode() if data is not None else str(medium.url)

    def probe(vendor: Vendor) -> bool:
        sent = body(vendor, Message(role="user", parts=(Text("Look:"), medium)))
        return wanted in json.dumps(sent) and "not shown" not in json.dumps(sent)

    return probe


def _in_result(vendor: Vendor) -> bool:
    said = read(vendor, THINKS).message
    picture = Image(data=PNG, media_type="image/png")
    answers = tuple(
        ToolAnswer(call_id=call.call_id, name=call.name, text="x", media=(picture,)) for call in said.tool_calls
    )
    return base64.b64encode(PNG).decode() in json.dumps(
        body(vendor, *ASK.messages, said, Message(role="tool", parts=answers))
    )


def _schema(vendor: Vendor) -> bool:
    """By a field of the API, or a tool of its own; not by a plea in the prompt."""
    sent = body(vendor, output_schema=SCHEMA)
    for prompt in ("system", "instructions", "systemInstruction"):
        sent.pop(prompt, None)
    sent["messages"] = [message for message in sent.get("messages", ()) if message["role"] != "system"]
    return "verdict" in json.dumps(sent)


def _asked(**options: Any) -> Callable[[Vendor], bool]:
    return lambda vendor: body(vendor, **options) != body(vendor)


def _server_tools(vendor: Vendor) -> bool:
    sent = json.dumps(body(vendor, extra={"tools": [vendor.server_tool]}))
    return json.dumps(vendor.server_tool)[1:-1] in sent and "look_up" in sent


def _usage(**wanted: int) -> Callable[[Vendor], bool]:
    def probe(vendor: Vendor) -> bool:
        usage = read(vendor, THINKS).usage or Usage()
        return all(getattr(usage, name) == value for name, value in wanted.items())

    return probe


def _stops(reason: str, **instead: Mapping[bytes, bytes]) -> Callable[[Vendor], bool]:
    def probe(vendor: Vendor) -> bool:
        return read(vendor, Turn(text="Words."), instead=instead[vendor.protocol.name]).stop_reason == reason

    return probe


def _incomplete(reason: bytes) -> Mapping[bytes, bytes]:
    return {
        b'"type":"response.completed"': b'"type":"response.incomplete"',
        b'"status":"completed","error":null,"incomplete_details":null': b'"status":"incomplete","error":null,'
        b'"incomplete_details":{"reason":"%b"}' % reason,
    }


FEATURES: Mapping[str, Callable[[Vendor], bool]] = {
    "text, streamed": _text,
    "parallel tool calls": _calls,
    "thinking is read": _thinking,
    "its own thinking goes back": _own_thinking,
    "thinking=": _asked(thinking="high"),
    "temperature=": _asked(temperature=0.5),
    "max_output_tokens=": _asked(max_output_tokens=500),
    "output=, by the API": _schema,
    "extra tools beside ours": _server_tools,
    "images": _shown(Image(data=PNG, media_type="image/png"), PNG),
    "images by address": _shown(Image(url="https://example.org/a.png", media_type="image/png")),
    "images in tool results": _in_result,
    "audio": _shown(Audio(data=WAV, media_type="audio/wav"), WAV),
    "PDF": _shown(Document(data=PDF, media_type="application/pdf", name="a.pdf"), PDF),
    "cache=": _asked(cache=False),
    "usage: cached tokens": _usage(input_tokens=100, cache_read_tokens=50),
    "usage: reasoning tokens": _usage(output_tokens=9, reasoning_tokens=2),
    "stop: cut at the limit": _stops(
        "max_tokens",
        chat={b'"finish_reason":"stop"': b'"finish_reason":"length"'},
        responses=_incomplete(b"max_output_tokens"),
        messages={b'"end_turn"': b'"max_tokens"'},
        gemini={b'"STOP"': b'"MAX_TOKENS"'},
    ),
    "stop: refused or filtered": lambda vendor: any(
        _stops(
            reason,
            chat={b'"finish_reason":"stop"': b'"finish_reason":"content_filter"'},
            responses=_incomplete(b"content_filter"),
            messages={b'"end_turn"': b'"refusal"'},
            gemini={b'"STOP"': b'"SAFETY"'},
        )(vendor)
        for reason in ("content_filter", "refusal")
    ),
    "window and price known": lambda vendor: (
        None
        not in (
            vendor.provider.info().context_window,
            vendor.provider.info().prices,
        )
    ),
}
"""By name, in the order of the table: whether a vendor's provider does it."""

_ANSWERED = "dropped: the vendor does not ask for it back"
_PROMPT = "told in the prompt, and checked by the run: the vendor refuses a schema beside tools or a stream"
_TEXT = "a note in its place: the vendor's API takes text alone"
_UNLISTED = "a note in its place: not listed among what this vendor takes (`vendors.py`)"
_NO_AUDIO = "a note in its place: the vendor's API takes no sound"
_ITSELF = "the vendor caches by itself, or not at all"
_OWN = "a server of your own: say `prices=` and `context_window=`"
_REASONS: Mapping[str, Mapping[str, str]] = {
    "its own thinking goes back": dict.fromkeys(
        ("openai-compatible", "ollama", "mistral", "groq", "together", "vllm", "llamacpp"), _ANSWERED
    ),
    "temperature=": {"openai": "left out: the vendor's models that think refuse it; gpt-4.1 is sent it"},
    "output=, by the API": dict.fromkeys(("deepseek", "groq"), _PROMPT),
    "images": {"deepseek": _TEXT},
    "images by address": {"ollama": "a note in its place: it takes pictures as bytes alone", "deepseek": _TEXT},
    "images in tool results": {
        "deepseek": _TEXT,
        "mistral": "a note in its place: no picture stands in a tool's message there, and no user's may follow it",
    },
    "audio": {
        **dict.fromkeys(("anthropic", "openai", "xai"), _NO_AUDIO),
        **dict.fromkeys(("ollama", "mistral", "groq", "together"), _UNLISTED),
        "deepseek": _TEXT,
    },
    "PDF": {
        **dict.fromkeys(("ollama", "mistral", "groq", "together", "vllm", "llamacpp"), _UNLISTED),
        "deepseek": _TEXT,
    },
    "cache=": {
        **dict.fromkeys(
            ("gemini", "openai-compatible", "ollama", "deepseek", "mistral", "groq", "together", "vllm", "llamacpp"),
            _ITSELF,
        ),
        "openrouter": "not asked for: models that cache only where they are asked to do not",
    },
    "window and price known": dict.fromkeys(("ollama", "vllm", "llamacpp"), _OWN),
}
WHY: Mapping[tuple[str, str], str] = {
    (feature, vendor): why for feature, reasons in _REASONS.items() for vendor, why in reasons.items()
}
"""Of each feature and vendor that has it not: why."""


def found() -> dict[tuple[str, str], bool]:
    """Each feature of each vendor, tried."""
    return {(feature, vendor.name): probe(vendor) for feature, probe in FEATURES.items() for vendor in VENDORS}


def main() -> int:
    """Print the table, and under it the reasons."""
    tried = found()
    reasons = list(dict.fromkeys(WHY.get(cell, "no reason is known") for cell, passed in tried.items() if not passed))
    names = [vendor.name for vendor in VENDORS]
    print("| |", *(f"{name} |" for name in names))
    print("|---|" + "---|" * len(names))
    for feature in FEATURES:
        cells = [(feature, name) for name in names]
        shown = [
            "yes" if tried[cell] else str(reasons.index(WHY.get(cell, "no reason is known")) + 1) for cell in cells
        ]
        print(f"| {feature} |", *(f"{word} |" for word in shown))
    print()
    for number, reason in enumerate(reasons, start=1):
        print(f"{number}. {reason}")
    return any(not passed and cell not in WHY for cell, passed in tried.items())


if __name__ == "__main__":
    sys.exit(main())
