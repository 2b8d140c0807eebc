"""A request in the words of the Responses API: every part of every message as an input item, or as a note."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nitinol.messages import Audio, Document, Image, Media, Message, Native, Part, Text, Thinking, ToolAnswer, ToolCall
from nitinol.provider import ModelRequest
from nitinol.tool_spec import Tool
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
)
from nitinol_providers.strict_schema import rooted, strict

ENCRYPTED = "reasoning.encrypted_content"
_LONGEST_ID = 64
_OF_ANSWERS = re.compile(
    "tools|tool_choice|parallel_tool_calls|max_tool_calls|text|prompt|conversation|previous_response_id"
)
"""What an answer may call, what it must be, and what it goes on with: the vendor's own prompt and conversation."""
_CALLERS = ("direct", "programmatic")
_OFFICE = (
    "application/pdf",
    "application/msword",
    "application/rtf",
    "application/vnd.ms-",
    "application/vnd.oasis.opendocument.",
    "application/vnd.openxmlformats-officedocument.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One vendor's Responses API. The defaults are OpenAI's own."""

    name: str
    base_url: str = ""
    url_variable: str | None = None
    key_variable: str | None = None
    catalog: str | None = None
    """Its id in genai-prices; None = nothing is known of its prices."""
    images: frozenset[str] = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp"))
    files_in_answers: bool = True
    """Whether a tool's answer may hold a document; pictures it may always hold."""
    summary: bool = True
    """Whether summaries of the thinking must be asked for."""
    callers: bool = True
    thinks: re.Pattern[str]
    """The models that are known to think: they refuse a temperature."""
    thinks_not: re.Pattern[str]
    """Those that are known not to: they refuse every word about thinking."""
    no_effort: re.Pattern[str] | None = None
    """Those that think as much as they like."""


OPENAI = Dialect(
    name="openai",
    base_url="https://api.openai.com/v1",
    url_variable="OPENAI_BASE_URL",
    key_variable="OPENAI_API_KEY",
    catalog="openai",
    thinks=re.compile(r"(ft:)?(o\d|gpt-([5-9]|\d\d)|codex|computer-use)"),
    thinks_not=re.compile(r"(ft:)?(gpt-3|gpt-4|chatgpt-4o|gpt-5-chat)"),
)
XAI = Dialect(
    name="xai",
    base_url="https://api.x.ai/v1",
    key_variable="XAI_API_KEY",
    catalog="x-ai",
    images=frozenset(("image/png", "image/jpeg")),
    files_in_answers=False,
    summary=False,
    callers=False,
    thinks=re.compile(r"(?!)"),  # they think, and take a temperature all the same
    thinks_not=re.compile(r"grok-2|grok-3(?!-mini)|.*non-reasoning"),
    no_effort=re.compile(r"grok-(4($|-)|4\.1|4\.20(?!-multi)|code)"),
)
DIALECTS = {dialect.name: dialect for dialect in (OPENAI, XAI)}


def body(dialect: Dialect, model: str, request: ModelRequest) -> dict[str, Any]:
    """The whole body. Of `request.extra`, tools and includes are added to ours, objects merged, and the rest wins.

    Of two limits of the answer the lower one holds.
    """
    thinks_not = dialect.thinks_not.match(model)
    made: dict[str, Any] = {
        "model": model,
        "input": _Conversation(dialect, model, request).items(),
        "stream": True,
        "store": False,
    }
    instructions = request.instructions or ""
    if request.output_schema is not None:
        schema = rooted(request.output_schema)
        if schema.get("type") == "object":
            made["text"] = {"format": _format(schema)}
        else:
            instructions = f"{instructions}\n\n{schema_words(schema)}".strip()
    if instructions:
        made["instructions"] = instructions
    if not thinks_not:
        made["include"] = [ENCRYPTED]
    if request.tools:
        made["tools"] = [_tool(dialect, tool) for tool in request.tools]
    if request.max_output_tokens is not None:
        made["max_output_tokens"] = request.max_output_tokens
    if request.temperature is not None and (thinks_not or not dialect.thinks.match(model)):
        made["temperature"] = request.temperature
    mute = thinks_not or (dialect.no_effort is not None and dialect.no_effort.match(model))
    if request.thinking is not None and not mute:
        made["reasoning"] = {"effort": effort(request.thinking)}
        if dialect.summary:
            made["reasoning"]["summary"] = "auto"
    if request.cache and request.key:
        # A hash: a key may be long, and may name a person.
        made["prompt_cache_key"] = f"nitinol-{hashlib.sha256(request.key.encode('utf-8', 'replace')).hexdigest()[:40]}"
    for name, value in given(request, _OF_ANSWERS).items():
        made[name] = _merged(name, made.get(name), value)
    return made


def _merged(name: str, ours: Any, given: Any) -> Any:
    if name == "max_output_tokens":
        return lower(ours, given)
    if name in ("tools", "include") and ours and isinstance(given, (list, tuple)):
        return [*ours, *(item for item in cast("list[Any]", given) if item not in ours)]
    if isinstance(ours, dict) and isinstance(given, Mapping):
        return {**cast("dict[str, Any]", ours), **cast("Mapping[str, Any]", given)}
    return given


def _tool(dialect: Dialect, tool: Tool) -> dict[str, Any]:
    parameters = rooted(tool.parameters)
    held = strict(parameters, narrow=False)
    made: dict[str, Any] = {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": parameters if held is None else held,
        "strict": held is not None,  # left out, it means true
    }
    if dialect.callers and (callers := [caller for caller in tool.callers if caller in _CALLERS]):
        made["allowed_callers"] = callers
    return made


def _format(schema: Mapping[str, Any]) -> dict[str, Any]:
    held = strict(schema, narrow=True)
    sent = schema if held is None else held
    return {"type": "json_schema", "name": "output", "schema": sent, "strict": held is not None}


class _Conversation:
    """Writes the items of one request."""

    def __init__(self, dialect: Dialect, model: str, request: ModelRequest) -> None:
        self._dialect = dialect
        self._model = model
        self._request = request
        self._stored = bool(request.extra.get("store"))
        self._ids: set[str] = set()
        self._calls: dict[str, str] = {}
        """The id of the last call of each id, as it was sent."""
        self._callers: dict[str, Any] = {}
        self._count = 0

    def items(self) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        for message in self._request.messages:
            if message.role == "user":
                made.append({"role": "user", "content": self._content(message.parts)})
            elif message.role == "assistant":
                made.extend(self._assistant(message))
            else:
                made.extend(self._answers(message))
        return made

    def _assistant(self, message: Message) -> list[dict[str, Any]]:
        ours = message.provider == self._dialect.name
        own = ours and message.model == self._model
        made: list[dict[str, Any]] = []
        parts = list(message.parts)
        words: list[Part] = []
        phase: str | None = None

        def say() -> None:
            nonlocal phase
            if text := _joined(words):
                made.append(self._spoken(text, phase))
                phase = None
            words.clear()

        while parts:
            part = parts.pop(0)
            if isinstance(part, Thinking):
                if own and (item := self._reasoning(part)):
                    say()
                    made.append(item)
            elif isinstance(part, Native) and ours and part.data.get("type") == "message":
                say()
                item = self._message(part.data, parts) if own else None
                if item is None:
                    phase = part.data.get("phase")
                else:
                    made.append(item)
                    del parts[: len(item["content"])]
            elif isinstance(part, Native) and own and self._is_new(part.data.get("id")):
                say()
                made.append(_given(part.data))
            elif isinstance(part, ToolCall):
                say()
                made.append(self._call(part, own))
            else:
                words.append(part)
        say()
        while made and made[-1].get("type") == "reasoning":
            made.pop()  # the API refuses one that nothing follows
        return made

    def _reasoning(self, part: Thinking) -> dict[str, Any] | None:
        """As it came, if the API can take it back: what is not stored must hold its own thinking."""
        item = _signed(part.signature)
        if not item or not (item.get("encrypted_content") or item.get("content") or self._stored):
            return None
        return item if self._is_new(item.get("id")) else None

    def _spoken(self, text: str, phase: str | None) -> dict[str, Any]:
        """Words as a message of the model, written out in full: llama.cpp takes no shorter form."""
        self._count += 1
        made: dict[str, Any] = {
            "type": "message",
            "id": f"msg_nitinol_{self._count}",
            "status": "completed",
            "role": "assistant",
        }
        made["content"] = [{"type": "output_text", "text": text, "annotations": []}]
        return {**made, "phase": phase} if phase else made

    def _message(self, data: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, Any] | None:
        """A message as it came, with the words that follow; None if they are not the ones it came with."""
        shapes: Sequence[Mapping[str, Any]] = data.get("content") or ()
        texts = [part.text for part in parts[: len(shapes)] if isinstance(part, Text)]
        if not shapes or len(texts) != len(shapes) or not self._is_new(data.get("id")):
            return None
        words = ("refusal" if shape.get("type") == "refusal" else "text" for shape in shapes)
        content = [{**shape, key: text} for shape, key, text in zip(shapes, words, texts, strict=True)]
        return {**data, "content": content}

    def _call(self, call: ToolCall, own: bool) -> dict[str, Any]:
        rest = _signed(call.signature) if own else {}
        if not self._is_new(rest.get("id")):
            rest.pop("id", None)
        call_id = self._calls[call.call_id] = self._call_id(call.call_id)
        if "caller" in rest:
            self._callers[call_id] = rest["caller"]
        made = {"type": "function_call", "call_id": call_id, "name": known_name(call.name)}
        return {**made, "arguments": arguments_text(call), **rest}

    def _call_id(self, call_id: str) -> str:
        """The id as the API takes it: short, and nobody else's, though ids may repeat from turn to turn."""
        made = short_id(call_id, _LONGEST_ID)
        while not self._is_new(f"call {made}"):
            made = short_id(f"{made}_x", _LONGEST_ID)
        return made

    def _answers(self, message: Message) -> Iterable[dict[str, Any]]:
        later: list[Part] = []
        for part in message.parts:
            if not isinstance(part, ToolAnswer):
                continue
            call_id, text = self._calls.get(part.call_id, part.call_id), answer_text(part)
            shown: list[dict[str, Any]] = []
            for medium in part.media:
                made = self._medium(medium)
                if made["type"] == "input_file" and not self._dialect.files_in_answers:
                    later += [Text(f"From the tool {part.name!r}, call {call_id}:"), medium]
                    made = _words(f"[{medium.type} in the next message]")
                shown.append(made)
            content = ([_words(text)] if text else []) + shown
            output = content if any(item["type"] != "input_text" for item in content) else _lines(content)
            item = {"type": "function_call_output", "call_id": call_id, "output": output or "(no output)"}
            if call_id in self._callers:
                item["caller"] = self._callers[call_id]
            yield item
        if later:
            yield {"role": "user", "content": self._content(later)}

    def _content(self, parts: Iterable[Part]) -> str | list[dict[str, Any]]:
        """Words alone as one string, which every server takes; with media, as a list."""
        made: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, Text):
                made.append(_words(part.text))
            elif isinstance(part, (Image, Audio, Document)):
                made.append(self._medium(part))
        return made if any(item["type"] != "input_text" for item in made) else _lines(made)

    def _medium(self, part: Media) -> dict[str, Any]:
        """In the API's form, or as a note where it takes no such thing."""
        data = "" if part.data is None else f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
        if isinstance(part, Image) and (part.data is None or part.media_type in self._dialect.images):
            return {"type": "input_image", "image_url": data or part.url, "detail": "auto"}
        if isinstance(part, Document):
            if part.url is not None:
                return {"type": "input_file", "file_url": part.url}
            if (text := document_text(part)) is not None:
                return _words(text)
            if part.media_type.startswith(_OFFICE):
                name = part.name or f"document{mimetypes.guess_extension(part.media_type) or ''}"
                return {"type": "input_file", "filename": name, "file_data": data}
        return _words(note(part))

    def _is_new(self, id: Any) -> bool:
        """Whether an item may go back under its id: the API refuses one twice. None is no id."""
        if not isinstance(id, str):
            return id is None
        new = id not in self._ids
        self._ids.add(id)
        return new


def _joined(parts: Iterable[Part]) -> str:
    """What an assistant said, in words: its text as it stands, what only others understand on lines of its own."""
    made, open = "", True
    for part in parts:
        if isinstance(part, Text):
            made += part.text if open or not part.text else f"\n{part.text}"
            open = True
        elif text := note(part) if isinstance(part, (Image, Audio, Document)) else getattr(part, "text", ""):
            made += f"\n{text}" if made else text
            open = False
    return made


def _given(data: Mapping[str, Any]) -> dict[str, Any]:
    """An item of an answer as an item of a request, which has no `created_by`."""
    return {name: value for name, value in data.items() if value is not None and name != "created_by"}


def _signed(signature: str | None) -> dict[str, Any]:
    """What a signature of ours holds; nothing if somebody else wrote it."""
    try:
        item: object = json.loads(signature or "{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", item) if isinstance(item, dict) else {}


def _words(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}


def _lines(content: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(item["text"] for item in content)
