"""Chat completions: no signatures; ids that only few others would take, and the same in each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests import servers, strict_server
from tests.fakes.said import Bill, Heard, Turn, called, event, halves, mapping, sequence


class Chat:
    """A `Fake` of chat completions."""

    def read(self, request: servers.Request) -> tuple[list[str], list[Heard]]:
        faults = strict_server.faults(request.json)
        return faults, [] if faults else [*_heard(mapping(request.json))]

    def write(self, turn: Turn, bill: Bill) -> list[bytes]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
        deltas += [{"reasoning_content": piece} for piece in halves(turn.thinking) if piece]
        deltas += [{"content": piece} for piece in halves(turn.text) if piece]
        for index, (name, arguments) in enumerate(turn.calls):
            first, second = halves(json.dumps(arguments, ensure_ascii=False))
            function = {"name": name, "arguments": ""}
            deltas.append({"tool_calls": [{"index": index, "id": f"functions.{name}:{index}", "function": function}]})
            for piece in (first, second):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if turn.calls else "stop"})
        shared = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1795402469, "model": "fake"}
        usage = {
            "prompt_tokens": bill.input,
            "completion_tokens": bill.output,
            "total_tokens": bill.input + bill.output,
            "prompt_tokens_details": {"cached_tokens": bill.cached},
            "completion_tokens_details": {"reasoning_tokens": bill.reasoning},
        }
        chunks = [event({**shared, "choices": [choice]}) for choice in choices]
        return [*chunks, event({**shared, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]

    def error(self, status: int, message: str) -> object:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _heard(body: Any) -> Iterator[Heard]:
    for message in sequence(body.get("messages")):
        role, content = message.get("role"), message.get("content")
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in sequence(content))
        if role in ("user", "assistant") and text:
            yield role, text
        elif role == "tool":
            yield "result", text
        for call in sequence(message.get("tool_calls")):
            yield called(call["function"]["name"], json.loads(call["function"]["arguments"]))
