"""What every protocol's request is written with: options that vendors share, and words in the place of what one does not take."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from nitinol.messages import Document, Media, ToolAnswer, ToolCall
from nitinol.provider import ModelRequest
from nitinol.provider import Thinking as ThinkingOption

_TOKENS = {"low": 2048, "medium": 8192, "high": 24576}
_NO_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def given(request: ModelRequest, of_answers: re.Pattern[str]) -> dict[str, Any]:
    """The caller's `extra`. A summary goes without what is of answers alone: it is text, short, and calls nothing.

    What would be sent with it all the same, vendors refuse, and the conversation would be cut instead.
    """
    return {k: v for k, v in request.extra.items() if request.purpose == "answer" or not of_answers.fullmatch(str(k))}


def lower(limit: int | None, given: Any) -> Any:
    """The limit of an answer, where `extra` gives one too: ours may be all that a budget still pays for."""
    return min(limit, given) if limit is not None and isinstance(given, (int, float)) else given


def effort(wanted: ThinkingOption) -> str:
    """A level of thinking; a number of tokens becomes one."""
    return wanted if isinstance(wanted, str) else "low" if wanted <= 4096 else "medium" if wanted <= 16384 else "high"


def thinking_tokens(wanted: ThinkingOption) -> int:
    """A number of tokens to think; a level becomes one."""
    return _TOKENS[wanted] if isinstance(wanted, str) else wanted


def schema_words(schema: Mapping[str, Any]) -> str:
    """A word to the model about its answer, where the API takes no such schema."""
    written = json.dumps(schema, ensure_ascii=False, default=dict)
    return f"Your final answer is JSON alone, and follows this JSON schema: {written}"


def known_name(name: str) -> str:
    """A tool's name as the APIs take it in a history, where a model may have made one up."""
    return _NO_NAME.sub("_", name)[:64] or "_"


def arguments_of(call: ToolCall) -> Mapping[str, Any]:
    """A call's arguments, also where they were no JSON: the server refuses the whole conversation otherwise."""
    return call.arguments if call.malformed is None else {"malformed_json": call.malformed}


def arguments_text(call: ToolCall) -> str:
    """The same as JSON."""
    return json.dumps(arguments_of(call), ensure_ascii=False, default=dict)


def answer_text(part: ToolAnswer) -> str:
    """What a tool answered, for an API that has no other mark of an error."""
    return f"Error: {part.text}" if part.error and not part.text.lower().startswith("error") else part.text


def document_text(part: Document) -> str | None:
    """What a document says, where it is nothing but text."""
    if part.data is None or not part.media_type.startswith(("text/", "application/json")):
        return None
    title = f"Document {part.name!r}:\n" if part.name else ""
    return title + (part.data.decode("utf-8", "replace") or "(empty)")  # no API takes empty words


def note(part: Media) -> str:
    """What stands in the place of something the model cannot be shown."""
    size = "" if part.data is None else f", {len(part.data)} bytes"
    where = f" at {part.url}" if part.url is not None else ""
    name = f" {part.name!r}" if part.name else ""
    return f"[{part.type}{name}{where} ({part.media_type}{size}): not shown, this model does not take it]"


def short_id(call_id: str, longest: int) -> str:
    """The id itself, or nine letters and digits in its place if it is longer than this."""
    if len(call_id) <= longest:
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "replace")).digest()[:8], "big")
    return "".join(_LETTERS[number // 62**place % 62] for place in range(9))
