"""A request in the words of chat completions: every part of every message, in the vendor's form or as a note."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any

from nitinol.messages import Audio, Document, Image, Media, Message, Native, Part, Text, Thinking, ToolAnswer, ToolCall
from nitinol.provider import ModelRequest
from nitinol.provider import Thinking as ThinkingOption
from nitinol_providers.requests import (
    answer_text,
    arguments_text,
    document_text,
    effort,
    given,
    known_name,
    lower,
    note,
    schema_words,
    short_id,
    thinking_tokens,
)
from nitinol_providers.vendors import Vendor

_SOUND = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
_LONGEST_ID = 40
"""OpenAI's limit; another server's ids, and ours, may be longer."""
_OF_ANSWERS = re.compile(
    "tools|tool_choice|parallel_tool_calls|functions|function_call|plugins|web_search_options"
    "|response_format|structured_outputs|guided_.*|grammar|json_schema|modalities|audio|prediction|n|min_tokens"
)
"""What an answer may call, and what it must be, in any server's words."""


def body(vendor: Vendor, model: str, request: ModelRequest) -> dict[str, Any]:
    """The whole body; what stands in `request.extra` wins, but its tools join ours, and of two limits the lower one holds."""
    made: dict[str, Any] = {"model": model, "messages": messages(vendor, request), "stream": True}
    if vendor.stream_options:
        made["stream_options"] = {"include_usage": True}
    if vendor.name == "openrouter":
        made["usage"] = {"include": True}
    if request.tools:
        made["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
            for tool in request.tools
        ]
    if request.temperature is not None:
        made["temperature"] = request.temperature
    if request.thinking is not None:
        made.update(_thinking(vendor, request.thinking))
    if request.output_schema is not None and vendor.output == "json_schema":
        schema = {"name": "output", "schema": request.output_schema}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    extra = given(request, _OF_ANSWERS)
    limits = [name for name in ("max_tokens", "max_completion_tokens") if extra.get(name) is not None]
    for name in limits:
        extra[name] = lower(request.max_output_tokens, extra[name])
    if request.max_output_tokens is not None and not limits:
        made[vendor.max_tokens] = request.max_output_tokens
    if "tools" in made and "tools" in extra:
        extra["tools"] = [*made["tools"], *extra["tools"]]
    return {**made, **extra}


def messages(vendor: Vendor, request: ModelRequest) -> list[dict[str, Any]]:
    """The conversation, the system prompt first."""
    system = request.instructions or ""
    if request.output_schema is not None and vendor.output == "prompt":
        system = f"{system}\n\n{schema_words(request.output_schema)}".strip()
    made: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for message in request.messages:
        if message.role == "user":
            if not vendor.user_after_tool and made and made[-1]["role"] == "tool":
                made.append({"role": "assistant", "content": "OK."})
            made.append({"role": "user", "content": _content(vendor, message.parts)})
        elif message.role == "assistant":
            made.extend(_assistant(vendor, message))
        else:
            made.extend(_tool(vendor, message))
    return made


def _assistant(vendor: Vendor, message: Message) -> Iterable[dict[str, Any]]:
    notes = [note(part) for part in message.parts if isinstance(part, (Image, Audio, Document))]
    natives = [part.text for part in message.parts if isinstance(part, Native)]
    text = "\n".join(filter(None, [*natives, message.text, *notes]))
    calls = [_call(vendor, call) for call in message.tool_calls]
    if not text and not calls:
        return  # thinking alone: some refuse a message without content
    made: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        made["tool_calls"] = calls
    if vendor.replay and message.provider == vendor.name:
        thoughts = [part for part in message.parts if isinstance(part, Thinking)]
        words = "".join(thought.text for thought in thoughts)
        if details := [json.loads(thought.signature) for thought in thoughts if thought.signature]:
            made["reasoning_details"] = [detail for several in details for detail in several]
        elif words:
            made[vendor.replay] = words
    if vendor.replay == "reasoning_content" and calls:
        made.setdefault(vendor.replay, "")  # DeepSeek refuses a tool call without it, whoever made it
    yield made


def _call(vendor: Vendor, call: ToolCall) -> dict[str, Any]:
    return {
        "id": _id(vendor, call.call_id),
        "type": "function",
        "function": {"name": known_name(call.name), "arguments": arguments_text(call)},
    }


def _tool(vendor: Vendor, message: Message) -> Iterable[dict[str, Any]]:
    shown: list[Part] = []
    for part in message.parts:
        if not isinstance(part, ToolAnswer):
            continue
        text = answer_text(part)
        for medium in part.media:
            if vendor.user_after_tool and _medium(vendor, medium) is not None:
                shown += [Text(f"From the tool {part.name!r}, call {_id(vendor, part.call_id)}:"), medium]
                text = f"{text}\n[{medium.type} in the next message]".strip()
            else:
                text = f"{text}\n{note(medium)}".strip()
        yield {"role": "tool", "tool_call_id": _id(vendor, part.call_id), "content": text or "(no output)"}
    if shown:
        yield {"role": "user", "content": _content(vendor, shown)}


def _content(vendor: Vendor, parts: Iterable[Part]) -> str | list[dict[str, Any]]:
    """Words alone as one string, which every server takes; with media, as a list."""
    made: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, Text):
            made.append({"type": "text", "text": part.text})
        elif isinstance(part, (Image, Audio, Document)):
            made.append(_medium(vendor, part) or {"type": "text", "text": note(part)})
    if all(item["type"] == "text" for item in made):
        return "\n".join(item["text"] for item in made)
    return made


def _medium(vendor: Vendor, part: Media) -> dict[str, Any] | None:
    """In the vendor's form, or None where it takes no such thing."""
    data = None if part.data is None else base64.b64encode(part.data).decode()
    url = part.url if data is None else f"data:{part.media_type};base64,{data}"
    if isinstance(part, Image):
        takes = "image" in vendor.media if data is not None else "image_url" in vendor.media
        return {"type": "image_url", "image_url": {"url": url}} if takes else None
    if isinstance(part, Audio):
        sound = _SOUND.get(part.media_type)
        takes = "audio" in vendor.media and data is not None and sound is not None
        return {"type": "input_audio", "input_audio": {"data": data, "format": sound}} if takes else None
    if (text := document_text(part)) is not None:
        return {"type": "text", "text": text}
    if "document" in vendor.media and (data is not None or vendor.name == "openrouter"):
        return {"type": "file", "file": {"filename": part.name or "document.pdf", "file_data": url}}
    return None


def _thinking(vendor: Vendor, wanted: ThinkingOption) -> dict[str, Any]:
    """The vendor's word for how much to think. A number of tokens becomes a level, or a level tokens, where it must."""
    level = effort(wanted)
    if vendor.thinking == "reasoning":
        return {"reasoning": {"effort": wanted} if isinstance(wanted, str) else {"max_tokens": wanted}}
    if vendor.thinking == "thinking":
        return {"thinking": {"type": "enabled"}, "reasoning_effort": level}
    if vendor.thinking == "budget":
        return {
            "chat_template_kwargs": {"enable_thinking": True},
            "thinking_budget_tokens": thinking_tokens(wanted),
        }
    return {"reasoning_effort": "high" if vendor.thinking == "high_only" else level}


def _id(vendor: Vendor, call_id: str) -> str:
    """The id as this vendor takes it; the same for a call and its answer."""
    if vendor.short_ids:
        fits = len(call_id) == 9 and call_id.isascii() and call_id.isalnum()
        return call_id if fits else short_id(call_id, 0)
    return short_id(call_id, _LONGEST_ID)
