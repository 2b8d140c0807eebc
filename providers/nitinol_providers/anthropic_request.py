"""A request in the words of the Messages API: every part of every message, in the vendor's form or as a note."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from nitinol.messages import Audio, Document, Image, Media, Message, Native, Part, Text, Thinking, ToolAnswer, ToolCall
from nitinol.provider import ModelRequest
from nitinol.tool_spec import Tool
from nitinol_providers.anthropic_models import abilities
from nitinol_providers.anthropic_output import Output
from nitinol_providers.requests import arguments_of, effort, given, known_name, lower, note, thinking_tokens

PROVIDER = "anthropic"
MAX_TOKENS = 4096
"""Tokens of an answer, where neither the request nor the model sets a limit: the API wants one."""
VERSION, VERSION_WITH_SAMPLING = "2026-10-21", "2023-06-01"
"""The version of the API; and the last that takes a temperature."""

_OF_ANSWERS = re.compile(
    "tools|tool_choice|container|mcp_servers|output_config|output_format|thinking|context_management"
)
"""What an answer may call, what it must be, and how it thinks: `context_management` may clear thinking, which must then be on."""
_LEAST_BUDGET = 1024
_BREAKPOINTS = 4
_PICTURES = {
    "image/png": b"\x89PNG",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}
BETAS = {
    "computer_20250124": "computer-use-2025-01-24",
    "computer_20251124": "computer-use-2025-11-24",
    "code_execution_20250522": "code-execution-2025-05-22",
    "advisor_20260301": "advisor-tool-2026-03-01",
    "mcp_toolset": "mcp-client-2025-11-20",
    "mcp_servers": "mcp-client-2025-11-20",
    "context_management": "context-management-2025-06-27",
}
"""What must be asked for by a header, too: types of tools, and fields of the body."""
_ID = re.compile(r"[a-zA-Z0-9_-]{1,56}")
"""The API takes these characters; and 64 of them, so that a number may follow."""
_GO_ON = {"type": "text", "text": "Continue."}


def body(model: str, request: ModelRequest, output: Output | None) -> dict[str, Any]:
    """The whole body. What stands in `request.extra` wins, but its tools and its output config join ours.

    Of two limits of the answer the lower one holds.
    """
    request = request.replace(messages=_known(model, request.messages))
    extra = {key: value for key, value in given(request, _OF_ANSWERS).items() if key not in ("betas", "max_tokens")}
    made: dict[str, Any] = {"model": model, "messages": messages(request), "stream": True}
    if request.instructions and request.instructions.strip():
        made["system"] = [{"type": "text", "text": request.instructions}]
    if request.tools:
        made["tools"] = [_tool(tool) for tool in request.tools]
    made.update(_length_and_thinking(model, request, made["messages"]))
    thinks: Mapping[str, Any] = {**made, **extra}.get("thinking") or {}
    thinks = {} if thinks.get("type") == "disabled" else thinks
    if output is not None:
        _hold(made, output, forced="budget_tokens" not in thinks, alone=not extra.get("tools"))
    if request.temperature is not None and abilities(model).temperature and not thinks:
        made["temperature"] = min(request.temperature, 1.0)
    if container := _container(request.messages):
        made["container"] = container
    if request.cache:
        _mark(made, extra)
    if made.get("tools") and extra.get("tools"):
        extra["tools"] = [*made["tools"], *extra["tools"]]
    if made.get("output_config") and extra.get("output_config"):
        extra["output_config"] = {**made["output_config"], **extra["output_config"]}
    return {**made, **extra}


def _known(model: str, messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages; what another vendor's model behind the same API has said is as strange as any other vendor's.

    A Claude reads the signatures of every Claude, and of nobody else.
    """

    def knows(message: Message) -> bool:
        return message.model == model or all("claude" in name.lower() for name in (model, message.model or ""))

    return tuple(
        message if message.provider != PROVIDER or knows(message) else replace(message, provider=None)
        for message in messages
    )


def headers(body: Mapping[str, Any], extra: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """What is sent beside the body: the caller's own headers win, and its betas join those that the body needs."""
    tools: Iterable[Mapping[str, Any]] = body.get("tools") or ()
    asked = [*body, *(str(tool.get("type")) for tool in tools)]
    betas = [BETAS[name] for name in asked if name in BETAS]
    betas += [*extra.get("betas", ()), *given.get("anthropic-beta", "").split(",")]
    named = dict.fromkeys(beta.strip() for beta in betas if beta.strip())
    sampling = any(name in body for name in ("temperature", "top_p", "top_k"))
    made = {"anthropic-version": VERSION_WITH_SAMPLING if sampling else VERSION, **given}
    return {**made, "anthropic-beta": ",".join(named)} if named else made


def messages(request: ModelRequest) -> list[dict[str, Any]]:
    """The conversation, users and assistants in turn: the user first, and last unless the model has paused."""
    ids, natives = _Ids(), _Natives(request.messages)
    made: list[dict[str, Any]] = []
    for message in request.messages:
        role = "assistant" if message.role == "assistant" else "user"
        if message.role == "assistant":
            blocks = list(_assistant(message, ids, natives))
        else:
            blocks = list(_user(message.parts, ids))
        if not blocks:
            continue  # thinking that is not ours, for instance
        if made and made[-1]["role"] == role:
            made[-1]["content"].extend(blocks)
        else:
            made.append({"role": role, "content": blocks})
    if not made or made[0]["role"] == "assistant":
        made.insert(0, {"role": "user", "content": [dict(_GO_ON)]})
    if made[-1]["role"] == "assistant" and made[-1]["content"][-1]["type"] in ("text", "thinking", "redacted_thinking"):
        made.append({"role": "user", "content": [dict(_GO_ON)]})  # new models refuse to go on with their own words
    return made


def _length_and_thinking(
    model: str, request: ModelRequest, sent: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    able, wanted = abilities(model), request.thinking
    length = lower(request.max_output_tokens, request.extra.get("max_tokens"))
    length = length or request.max_output_tokens or able.max_output_tokens
    if wanted is None:
        yield "max_tokens", length or MAX_TOKENS
    elif able.thinking == "adaptive" or (able.thinking == "both" and isinstance(wanted, str)):
        yield "max_tokens", length or MAX_TOKENS
        yield "thinking", {"type": "adaptive", "display": "summarized"}
        yield "output_config", {"effort": effort(wanted)}
    else:
        budget = max(thinking_tokens(wanted), _LEAST_BUDGET)
        length = length or MAX_TOKENS + budget
        if budget >= length:
            budget = length * 3 // 4  # the answer needs some of it
        yield "max_tokens", length
        if budget >= _LEAST_BUDGET and _may_think(sent):
            yield "thinking", {"type": "enabled", "budget_tokens": budget}


def _may_think(sent: Sequence[Mapping[str, Any]]) -> bool:
    """Not with a budget amid calls, or a pause, that began without thinking, as another model's do: the API refuses it."""
    first: Mapping[str, Any] | None = None
    for message in reversed(sent):
        if message["role"] == "assistant":
            first = message["content"][0]
        elif not any(block["type"] == "tool_result" for block in message["content"]):
            break
    return first is None or first["type"] in ("thinking", "redacted_thinking")


def _hold(made: dict[str, Any], output: Output, *, forced: bool, alone: bool) -> None:
    """Hold the model to the schema of its answer. With a budget to think, no tool can be forced."""
    if output.tool is None:
        made["output_config"] = {**made.get("output_config", {}), "format": output.format}
        return
    made["tools"] = [*made.get("tools", ()), output.tool]
    if forced and alone and len(made["tools"]) == 1:
        made["tool_choice"] = {"type": "tool", "name": output.tool_name}
    else:
        made["tool_choice"] = {"type": "any" if forced else "auto"}


def _tool(tool: Tool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": tool.name, "input_schema": {"type": "object", **tool.parameters}}
    if tool.description:
        made["description"] = tool.description
    if tool.callers:
        made["allowed_callers"] = list(tool.callers)
    return made


class _Ids:
    """The id of each call, as this vendor takes it: of few characters, and no two alike in a conversation."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._now: dict[str, str] = {}

    def of_call(self, call_id: str) -> str:
        made = base = call_id if _ID.fullmatch(call_id) else _short(call_id)
        number = 1
        while made in self._used:
            number += 1
            made = f"{base}_{number}"
        self._used.add(made)
        self._now[call_id] = made
        return made

    def of_answer(self, call_id: str) -> str:
        return self._now.get(call_id) or self.of_call(call_id)


def _short(call_id: str) -> str:
    return f"toolu_{hashlib.sha256(call_id.encode('utf-8', 'replace')).hexdigest()[:24]}"


class _Natives:
    """Which calls of the vendor's own tools may go back: those that were answered, or still may be.

    One that was never answered, or an answer whose call is gone, would have the whole conversation refused.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._called: set[str] = set()
        self._kept: set[str] = set()
        for message in messages:
            for part in message.parts if message.provider == PROVIDER else ():
                if isinstance(part, Native) and _is_call(part.data):
                    self._called.add(str(part.data["id"]))
                elif isinstance(part, Native) and "tool_use_id" in part.data:
                    self._kept.add(str(part.data["tool_use_id"]))
        self._kept.update(_open(messages))
        self._kept &= self._called

    def holds(self, data: Mapping[str, Any]) -> bool:
        call_id = data["id"] if _is_call(data) else data.get("tool_use_id")
        return call_id is None or str(call_id) in self._kept

    def keeps(self, call_id: object) -> bool:
        return str(call_id) in self._kept


def _open(messages: Sequence[Message]) -> Iterator[str]:
    """Calls of the vendor's tools that the last answer waits for: it has paused, or runs code that has called ours."""
    last = next((at for at, message in reversed(list(enumerate(messages))) if message.role == "assistant"), None)
    if last is None or messages[last].provider != PROVIDER or any(m.role == "user" for m in messages[last:]):
        return
    parts = [
        part for part in messages[last].parts if not isinstance(part, Native) or part.data.get("type") != "container"
    ]
    if last + 1 < len(messages) or (parts and isinstance(parts[-1], Native)):
        for part in parts:
            if isinstance(part, Native) and _is_call(part.data):
                yield str(part.data["id"])
            elif isinstance(part, ToolCall) and (caller := _caller(part)):
                yield str(caller.get("tool_id"))


def _caller(call: ToolCall) -> dict[str, Any] | None:
    """The vendor's own code that has made this call, as it was told."""
    try:
        caller: Any = json.loads(call.signature or "null")
    except ValueError:
        return None
    return cast("dict[str, Any]", caller) if isinstance(caller, dict) else None


def _is_call(data: Mapping[str, Any]) -> bool:
    return str(data.get("type")).endswith("tool_use") and "id" in data


def _assistant(message: Message, ids: _Ids, natives: _Natives) -> Iterator[dict[str, Any]]:
    own = message.provider == PROVIDER
    parts = message.parts
    for at, part in enumerate(parts):
        if isinstance(part, Text):
            cited = parts[at + 1] if own and at + 1 < len(parts) else None
            if isinstance(cited, Native) and cited.data.get("type") == "text" and cited.data.get("text") == part.text:
                yield dict(cited.data)
            elif part.text.strip():
                yield {"type": "text", "text": part.text}
        elif isinstance(part, Thinking):
            if own and part.signature is not None:
                if part.redacted:
                    yield {"type": "redacted_thinking", "data": part.signature}
                else:
                    yield {"type": "thinking", "thinking": part.text, "signature": part.signature}
        elif isinstance(part, ToolCall):
            yield _call(part, ids, natives if own else None)
        elif isinstance(part, Native):
            if own and part.data.get("type") in ("text", "container"):
                continue
            if own and natives.holds(part.data):
                yield dict(part.data)
            elif part.text.strip():
                yield {"type": "text", "text": part.text}
        elif isinstance(part, (Image, Audio, Document)):
            yield {"type": "text", "text": note(part)}


def _call(call: ToolCall, ids: _Ids, natives: _Natives | None) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "tool_use",
        "id": ids.of_call(call.call_id),
        "name": known_name(call.name),
        "input": dict(arguments_of(call)),
    }
    if natives is not None and (caller := _caller(call)) and natives.keeps(caller.get("tool_id")):
        made["caller"] = caller
    return made


def _user(parts: Iterable[Part], ids: _Ids) -> Iterator[dict[str, Any]]:
    for part in parts:
        if isinstance(part, Text):
            if part.text.strip():
                yield {"type": "text", "text": part.text}
        elif isinstance(part, (Image, Audio, Document)):
            yield _medium(part) or {"type": "text", "text": note(part)}
        elif isinstance(part, ToolAnswer):
            yield _answer(part, ids)


def _answer(answer: ToolAnswer, ids: _Ids) -> dict[str, Any]:
    shown = [block for medium in answer.media if (block := _medium(medium)) is not None]
    notes = [note(medium) for medium in answer.media if _medium(medium) is None]
    text = "\n".join(filter(str.strip, [answer.text, *notes]))
    content: Any = text or "(no output)"
    if shown:
        content = [*([{"type": "text", "text": text}] if text else ()), *shown]
    made = {"type": "tool_result", "tool_use_id": ids.of_answer(answer.call_id), "content": content}
    return {**made, "is_error": True} if answer.error else made


def _medium(part: Media) -> dict[str, Any] | None:
    """In the vendor's form, or None where it takes no such thing."""
    if isinstance(part, Audio):
        return None
    source = _address(part) if part.data is None else _image(part) if isinstance(part, Image) else _document(part)
    if source is None:
        return None
    made = {"type": part.type, "source": source}
    return {**made, "title": part.name} if isinstance(part, Document) and part.name else made


def _address(part: Image | Document) -> dict[str, Any] | None:
    unfit = isinstance(part, Document) and part.media_type not in ("application/pdf", "application/octet-stream")
    if unfit or not str(part.url).startswith(("https://", "http://")):
        return None
    return {"type": "url", "url": part.url}


def _image(part: Image) -> dict[str, Any] | None:
    data = part.data or b""
    given = "image/jpeg" if part.media_type == "image/jpg" else part.media_type
    if given not in _PICTURES:  # what nobody has named may still be one of them
        given = next((kind for kind, start in _PICTURES.items() if data.startswith(start)), "")
    return {"type": "base64", "media_type": given, "data": base64.b64encode(data).decode()} if given else None


def _document(part: Document) -> dict[str, Any] | None:
    data = part.data or b""
    if part.media_type == "application/pdf" or data.startswith(b"%PDF-"):
        return {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(data).decode()}
    if part.media_type.startswith(("text/", "application/json")) and data.strip():
        return {"type": "text", "media_type": "text/plain", "data": data.decode("utf-8", "replace")}
    return None


def _container(messages: Sequence[Message]) -> str | None:
    """Where the vendor runs the code that has called our tools, or has paused: it goes on nowhere else."""
    for message in reversed(messages):
        if message.role == "user":
            return None
        if message.role == "assistant" and message.provider == PROVIDER:
            for part in message.parts:
                if isinstance(part, Native) and part.data.get("type") == "container":
                    return str(part.data["id"])
    return None


def _mark(made: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Say up to where the prompt may be kept: after the tools, the system prompt and the last two users' messages.

    The message before the last is where the last request has written the cache, so it is read from there.
    """
    mark = extra.get("cache_control") or {"type": "ephemeral"}
    left = _BREAKPOINTS - json.dumps(extra, default=str).count('"cache_control":')
    users = [message["content"] for message in made["messages"] if message["role"] == "user"]
    own = [made[key] for key in ("system", "tools") if made.get(key) and not (key == "system" and key in extra)]
    places = [*users[-1:], *own, *users[-2:-1]]
    for blocks in places[: max(left, 0)]:
        blocks[-1] = {**blocks[-1], "cache_control": mark}
