"""Messages as an `Http` of tests plays them: events, recordings, and what was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.replay import Replay

from nitinol import errors
from nitinol.http import Http
from nitinol.messages import Message, Part, ToolAnswer, to_message
from nitinol.provider import ModelRequest, ModelResponse, StreamPart
from nitinol.tool_spec import tool
from nitinol_providers import Anthropic

RECORDINGS = Path(__file__).parent / "providers" / "recordings" / "anthropic"
ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=3)
PNG = b"\x89PNG\r\n\x1a\n"


def provider(model: str = "claude-sonnet-5-5", **options: Any) -> Anthropic:
    return Anthropic(model, api_key="sk-secret", **options)


def ask(http: Http, request: ModelRequest = ASK, model: str = "claude-sonnet-5-5", **options: Any) -> list[StreamPart]:
    seen: list[StreamPart] = []
    read(http, seen, request, model, **options)
    return seen


def read(
    http: Http, seen: list[StreamPart], request: ModelRequest = ASK, model: str = "claude-sonnet-5-5", **options: Any
) -> None:
    async def main() -> None:
        async for part in provider(model, **options).stream(request, http):
            seen.append(part)

    asyncio.run(main())


def attempt(data: bytes) -> tuple[list[StreamPart], errors.ProviderError | None]:
    """What is read of these bytes, and how it fails; any other exception is the test's failure."""
    seen: list[StreamPart] = []
    try:
        read(Replay(data), seen)
    except errors.ProviderError as error:
        return seen, error
    return seen, None


def sse(*events: Mapping[str, Any]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), json.dumps(event).encode()) for event in events
    )


def begun(**usage: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "served", "content": []}
    return {"type": "message_start", "message": {**message, "usage": usage}}


def block(index: int, data: Mapping[str, Any], *deltas: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": data},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def called(index: int, id: str | None, name: str | None, *pieces: str, **fields: Any) -> list[dict[str, Any]]:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in pieces)
    return block(index, {"type": "tool_use", "id": id, "name": name, **fields}, *deltas)


def ended(reason: str | None = "end_turn", **usage: Any) -> list[dict[str, Any]]:
    change = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    return [change, {"type": "message_stop"}]


def respond(*events: Mapping[str, Any], request: ModelRequest = ASK, **options: Any) -> ModelResponse:
    last = ask(Replay(sse(*events)), request, **options)[-1]
    assert isinstance(last, ModelResponse)
    return last


def recorded(name: str, **options: Any) -> ModelResponse:
    last = ask(Replay((RECORDINGS / f"{name}.sse").read_bytes()), **options)[-1]
    assert isinstance(last, ModelResponse)
    return last


def sent(request: ModelRequest = ASK, model: str = "claude-sonnet-5-5", **options: Any) -> dict[str, Any]:
    http = Replay(sse(begun(), *ended()))
    ask(http, request, model, **options)
    body: dict[str, Any] = json.loads(json.dumps(http.sent, default=dict))
    return body


def said(request: ModelRequest = ASK, model: str = "claude-sonnet-5-5", **options: Any) -> Mapping[str, str]:
    http = Replay(sse(begun(), *ended()))
    ask(http, request, model, **options)
    return http.headers


def conversation(*messages: Message, **options: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = sent(ModelRequest(messages=messages, cache=False, **options))["messages"]
    return made


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def tools(*answers: ToolAnswer) -> Message:
    return Message(role="tool", parts=answers)


def assistant(*parts: Part, provider: str = "anthropic") -> Message:
    return Message(role="assistant", parts=parts, provider=provider, model="claude-opus-4-5")


@tool
def look(city: str) -> str:
    """Look out."""
    return city


STREAMS = sorted(RECORDINGS.glob("*.sse"))
BROKEN = {"overloaded_in_mid_stream": errors.Overloaded, "window_full": errors.ContextOverflow}
WHOLE = [path for path in STREAMS if path.stem not in BROKEN]
