"""Anthropic's Messages: signed thinking, which goes back as it came; strict alternation; answers directly after calls."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tests.fakes.said import Bill, Heard, Turn, called, event, halves, mapping, sequence

if TYPE_CHECKING:
    from tests.servers import Request

_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_NEEDED: Mapping[str, frozenset[str]] = {
    "text": frozenset(("text",)),
    "image": frozenset(("source",)),
    "document": frozenset(("source",)),
    "thinking": frozenset(("thinking", "signature")),
    "redacted_thinking": frozenset(("data",)),
    "tool_use": frozenset(("id", "name", "input")),
    "tool_result": frozenset(("tool_use_id",)),
}
_ALLOWED: Mapping[str, frozenset[str]] = {
    "text": frozenset(("citations",)),
    "document": frozenset(("title", "context", "citations")),
    "tool_use": frozenset(("caller",)),
    "tool_result": frozenset(("content", "is_error")),
}
_USERS = ("text", "image", "document", "tool_result")
_MODELS = ("text", "thinking", "redacted_thinking", "tool_use")


class Messages:
    """A `Fake` of the Messages API."""

    def __init__(self) -> None:
        self._signed: dict[str, str] = {}
        self._ids = 0

    def read(self, request: Request) -> tuple[list[str], list[Heard]]:
        body = mapping(request.json)
        faults = [*self._faults(request, body)]
        return faults, [] if faults else [*_heard(body)]

    def write(self, turn: Turn, bill: Bill) -> list[bytes]:
        usage = {
            "input_tokens": bill.input - bill.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": bill.cached,
            "output_tokens": 1,
        }
        message: dict[str, Any] = {
            "id": self._id("msg"),
            "type": "message",
            "role": "assistant",
            "model": "fake",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        made: list[dict[str, Any]] = [{"type": "message_start", "message": message}, {"type": "ping"}]
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if turn.thinking:
            signature = self._id("EqRk")
            self._signed[signature] = turn.thinking
            pieces = [{"type": "thinking_delta", "thinking": piece} for piece in halves(turn.thinking)]
            start = {"type": "thinking", "thinking": "", "signature": ""}
            blocks.append((start, [*pieces, {"type": "signature_delta", "signature": signature}]))
        if turn.text:
            pieces = [{"type": "text_delta", "text": piece} for piece in halves(turn.text)]
            blocks.append(({"type": "text", "text": ""}, pieces))
        for name, arguments in turn.calls:
            written = ("", *halves(json.dumps(arguments, ensure_ascii=False)))
            pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in written]
            blocks.append(({"type": "tool_use", "id": self._id("toolu"), "name": name, "input": {}}, pieces))
        for index, (block, deltas) in enumerate(blocks):
            made.append({"type": "content_block_start", "index": index, "content_block": block})
            made += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            made.append({"type": "content_block_stop", "index": index})
        ended = {"stop_reason": "tool_use" if turn.calls else "end_turn", "stop_sequence": None}
        told = {"output_tokens": bill.output, "output_tokens_details": {"thinking_tokens": bill.reasoning}}
        made.append({"type": "message_delta", "delta": ended, "usage": told})
        return [event(data) for data in [*made, {"type": "message_stop"}]]

    def error(self, status: int, message: str) -> object:
        kind = {400: "invalid_request_error", 529: "overloaded_error"}.get(status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}

    def _id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}_01Fake{self._ids:06}"

    def _faults(self, request: Request, body: Mapping[str, Any]) -> Iterator[str]:
        for header in ("x-api-key", "anthropic-version"):
            if not request.headers.get(header):
                yield f"there is no header {header}"
        most = body.get("max_tokens")
        if not isinstance(most, int) or most < 1:
            yield f"max_tokens={most!r} is no number of tokens"
        thinking = mapping(body.get("thinking"))
        tokens = thinking.get("budget_tokens", 1024)
        if thinking.get("type") == "enabled" and not 1024 <= tokens < (most or 0):
            yield f"thinking.budget_tokens={tokens!r} is not between 1024 and max_tokens"
        names = [mapping(tool).get("name") for tool in sequence(body.get("tools"))]
        yield from (f"tool name {name!r}" for name in names if not isinstance(name, str) or not _NAME.fullmatch(name))
        yield from (f"two tools are named {name!r}" for name, many in Counter(names).items() if many > 1)
        if len(re.findall(rb'"cache_control"', request.body)) > 4:
            yield "more than 4 blocks have cache_control"
        yield from self._conversation([mapping(message) for message in sequence(body.get("messages"))])
        yield from _open_turn(sequence(body.get("messages")), thinking.get("type") == "enabled")

    def _conversation(self, messages: list[Mapping[str, Any]]) -> Iterator[str]:
        if not messages or messages[0].get("role") != "user":
            yield "the first message is not a user's"
        if messages and messages[-1].get("role") != "user":
            yield "the last message is not a user's"
        seen: Counter[str] = Counter()
        waiting: list[str] = []
        before = None
        for at, message in enumerate(messages):
            where, role = f"messages[{at}]", message.get("role")
            if role == before:
                yield f"{where}: two messages of {role} in a row"
            before = role
            blocks = _blocks(message)
            if not blocks:
                yield f"{where}: no content"
            for block in blocks:
                yield from (f"{where}: {wrong}" for wrong in self._block(block, role))
            answered = [block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"]
            if sorted(map(str, answered)) != sorted(waiting):
                yield f"{where}: the calls {waiting} before it are answered by {answered}"
            if any(block.get("type") != "tool_result" for block in blocks[: len(answered)]):
                yield f"{where}: something stands before the answers to calls"
            waiting = [str(block.get("id")) for block in blocks if block.get("type") == "tool_use"]
            seen.update(waiting)
        yield from (f"two calls have the id {id!r}" for id, many in seen.items() if many > 1)

    def _block(self, block: Mapping[str, Any], role: object) -> Iterator[str]:
        kind = str(block.get("type"))
        if kind not in (_USERS if role == "user" else _MODELS):
            yield f"a block of type {kind!r} from {role}"
            return
        keys = block.keys() - {"type", "cache_control"}
        if missing := _NEEDED[kind] - keys:
            yield f"a {kind} block without {sorted(missing)}"
        if unknown := keys - _NEEDED[kind] - _ALLOWED.get(kind, frozenset()):
            yield f"a {kind} block with {sorted(unknown)}"
        if kind == "text" and not str(block.get("text")).strip():
            yield f"a text block without text: {block!r}"
        if kind == "thinking" and self._signed.get(str(block.get("signature"))) != block.get("thinking"):
            yield f"a thinking block that is not as it was signed: {block!r}"
        if kind == "redacted_thinking":
            yield f"a redacted_thinking block that was never sent: {block!r}"
        if kind in ("thinking", "redacted_thinking") and "cache_control" in block:
            yield f"a {kind} block with cache_control"
        if kind == "tool_use" and not isinstance(block.get("input"), dict):
            yield f"the input of a tool_use block is no object: {block!r}"
        if kind == "tool_use" and not _ID.fullmatch(str(block.get("id"))):
            yield f"the id {block.get('id')!r} is not of letters, digits, _ and -"


def _open_turn(messages: list[Any] | Any, thinks: bool) -> Iterator[str]:
    """A model with a budget to think, which has called tools since the user last spoke, began with a thought."""
    begun: list[Mapping[str, Any]] = []
    for message in messages:
        blocks = _blocks(mapping(message))
        if message.get("role") == "assistant":
            begun.append(blocks[0] if blocks else {})
        elif any(block.get("type") != "tool_result" for block in blocks):
            begun = []
    if thinks and begun and begun[-1].get("type") not in ("thinking", "redacted_thinking"):
        yield f"thinking is on, and the open turn begins with {begun[-1].get('type')!r}, not with thinking"


def _blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else [mapping(b) for b in sequence(content)]


def _heard(body: Mapping[str, Any]) -> Iterator[Heard]:
    for message in sequence(body.get("messages")):
        for block in _blocks(mapping(message)):
            match block.get("type"):
                case "text":
                    yield "assistant" if message["role"] == "assistant" else "user", block["text"]
                case "tool_use":
                    yield called(block["name"], block["input"])
                case "tool_result":
                    content = block.get("content", "")
                    words = content if isinstance(content, str) else "".join(b.get("text", "") for b in content)
                    yield "result", words
                case _:
                    pass
