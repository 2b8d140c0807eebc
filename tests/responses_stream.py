"""What OpenAI streams for an answer: the events of each of its items, as they are documented, with all their fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = dict[str, Any]

USAGE: Json = {
    "input_tokens": 1200,
    "input_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 100},
    "output_tokens": 90,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 1290,
}


def stream(
    output: Sequence[Json],
    *,
    end: str = "completed",
    usage: Json | None = USAGE,
    size: int = 7,
    **fields: Any,
) -> bytes:
    """An answer with these items, word by word.

    Args:
        end: `completed`, `incomplete` or `failed`.
        size: Characters of one delta.
        fields: Of the last response, such as `error` and `incomplete_details`.
    """
    return sse(list(events(output, end=end, usage=usage, size=size, **fields)))


def sse(made: Sequence[Mapping[str, Any]]) -> bytes:
    """Events as bytes."""
    return b"".join(
        b"event: %b\ndata: %b\n\n"
        % (str(event["type"]).encode(), json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode())
        for event in made
    )


def events(
    output: Sequence[Json], *, end: str = "completed", usage: Json | None = USAGE, size: int = 7, **fields: Any
) -> Iterator[Json]:
    """As `stream`, event by event."""
    number = -1

    def event(kind: str, **told: Any) -> Json:
        nonlocal number
        number += 1
        return {"type": kind, "sequence_number": number, **told}

    response: Json = {
        "id": "resp_68af4030baa48193b0b43b4c2a176a1a",
        "object": "response",
        "created_at": 1795402469,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": "gpt-5.4-2026-03-05",
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": "nitinol-8254c329a92850f6d539",
        "reasoning": {"effort": "low", "summary": "detailed"},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }
    yield event("response.created", response=response)
    yield event("response.in_progress", response=response)
    for place, item in enumerate(output):
        for kind, told in _item(item, size):
            yield event(kind, output_index=place, **told)
    last = {**response, "status": end, "output": list(output), "usage": usage, **fields}
    yield event(f"response.{end}", response=last)


def _item(item: Json, size: int) -> Iterator[tuple[str, Json]]:
    where = {"item_id": item["id"]}
    match item["type"]:
        case "message":
            yield "response.output_item.added", {"item": {**item, "status": "in_progress", "content": []}}
            for place, part in enumerate(item["content"]):
                yield from _content(part, {**where, "content_index": place}, size)
        case "reasoning":
            begun: Json = {**item, "summary": [], "encrypted_content": "gAAAAunfinished"}
            yield "response.output_item.added", {"item": begun}
            for place, part in enumerate(item["summary"]):
                here = {**where, "summary_index": place}
                yield "response.reasoning_summary_part.added", {**here, "part": {"type": "summary_text", "text": ""}}
                for piece in pieces(part["text"], size):
                    told = {**here, "delta": piece, "obfuscation": "x7Zq"}
                    yield "response.reasoning_summary_text.delta", told
                yield "response.reasoning_summary_text.done", {**here, "text": part["text"]}
                yield "response.reasoning_summary_part.done", {**here, "part": part}
        case "function_call":
            yield "response.output_item.added", {"item": {**item, "status": "in_progress", "arguments": ""}}
            for piece in pieces(item["arguments"], size):
                told = {**where, "delta": piece, "obfuscation": "k2"}
                yield "response.function_call_arguments.delta", told
            done = {**where, "name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", done
        case "web_search_call":
            yield "response.output_item.added", {"item": {**item, "status": "in_progress"}}
            yield "response.web_search_call.in_progress", where
            yield "response.web_search_call.searching", where
            yield "response.web_search_call.completed", where
        case "code_interpreter_call":
            yield "response.output_item.added", {"item": {**item, "status": "in_progress", "code": "", "outputs": None}}
            yield "response.code_interpreter_call.in_progress", where
            for piece in pieces(item["code"], size):
                yield "response.code_interpreter_call_code.delta", {**where, "delta": piece}
            yield "response.code_interpreter_call_code.done", {**where, "code": item["code"]}
            yield "response.code_interpreter_call.completed", where
        case _:
            yield "response.output_item.added", {"item": item}
    yield "response.output_item.done", {"item": item}


def _content(part: Json, here: Json, size: int) -> Iterator[tuple[str, Json]]:
    if part["type"] == "refusal":
        yield "response.content_part.added", {**here, "part": {"type": "refusal", "refusal": ""}}
        for piece in pieces(part["refusal"], size):
            yield "response.refusal.delta", {**here, "delta": piece}
        yield "response.refusal.done", {**here, "refusal": part["refusal"]}
    else:
        yield "response.content_part.added", {**here, "part": {**part, "text": "", "annotations": []}}
        for piece in pieces(part["text"], size):
            yield "response.output_text.delta", {**here, "delta": piece, "logprobs": [], "obfuscation": "aB3"}
        for number, annotation in enumerate(part["annotations"]):
            told = {**here, "annotation_index": number, "annotation": annotation}
            yield "response.output_text.annotation.added", told
        yield "response.output_text.done", {**here, "text": part["text"], "logprobs": []}
    yield "response.content_part.done", {**here, "part": part}


def pieces(text: str, size: int) -> list[str]:
    """A text cut up."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def message(*texts: str, id: str = "msg_1", phase: str | None = None, annotations: Sequence[Json] = ()) -> Json:
    """A message of the model."""
    content = [
        {"type": "output_text", "annotations": list(annotations), "logprobs": [], "text": text} for text in texts
    ]
    made: Json = {"id": id, "type": "message", "status": "completed", "content": content, "role": "assistant"}
    return {**made, "phase": phase} if phase else made


def refusal(text: str, *, id: str = "msg_1") -> Json:
    """A message that says no."""
    return {**message(id=id), "content": [{"type": "refusal", "refusal": text}]}


def reasoning(*summary: str, encrypted: str | None = "gAAAAwhole", id: str = "rs_1") -> Json:
    """An item of thinking."""
    made: Json = {"id": id, "type": "reasoning", "summary": [{"type": "summary_text", "text": s} for s in summary]}
    return made if encrypted is None else {**made, "encrypted_content": encrypted}


def call(name: str, arguments: str = "{}", *, call_id: str = "call_1", id: str = "fc_1", **fields: Any) -> Json:
    """A call of one of our tools."""
    made: Json = {"id": id, "type": "function_call", "status": "completed", "arguments": arguments}
    return {**made, "call_id": call_id, "name": name, **fields}


def search(query: str, *, id: str = "ws_1") -> Json:
    """A call of the vendor's own search."""
    action = {"type": "search", "query": query, "queries": [query]}
    return {"id": id, "type": "web_search_call", "status": "completed", "action": action}


def code(text: str, logs: str, *, id: str = "ci_1") -> Json:
    """A call of the vendor's own Python."""
    made: Json = {"id": id, "type": "code_interpreter_call", "status": "completed", "container_id": "cntr_1"}
    return {**made, "code": text, "outputs": [{"type": "logs", "logs": logs}]}
