"""An answer of chat completions, put together from its chunks, however loosely a server keeps to the protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, cast

from pydantic_core import from_json

from nitinol import errors
from nitinol.errors import MalformedResponse, ProviderError
from nitinol.http_errors import error_message, error_type
from nitinol.messages import Message, Part, StopReason, Text, Thinking, ToolCall
from nitinol.provider import Delta, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.usage import Usage
from nitinol_providers.overflow import classify

_STOP: Mapping[str, StopReason] = {
    "stop": "end_turn",
    "eos": "end_turn",  # Together
    "end_turn": "end_turn",
    "stop_sequence": "end_turn",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "tool_use": "tool_use",
    "length": "max_tokens",
    "max_tokens": "max_tokens",
    "model_length": "max_tokens",  # Mistral
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "refusal",
}
_FAILED: Mapping[str, type[ProviderError]] = {
    "error": errors.ServerError,  # OpenRouter, Mistral
    "insufficient_system_resource": errors.Overloaded,  # DeepSeek
}
_CODES: Mapping[str, type[ProviderError]] = {
    "server_error": errors.ServerError,
    "vector_store_timeout": errors.ServerError,
    "rate_limit_exceeded": errors.RateLimited,
    "rate_limit_error": errors.RateLimited,
    "insufficient_quota": errors.RateLimited,
    "overloaded": errors.Overloaded,
    "overloaded_error": errors.Overloaded,
    "unavailable_error": errors.Overloaded,
    "authentication_error": errors.AuthenticationFailed,
    "invalid_api_key": errors.AuthenticationFailed,
    "permission_error": errors.AuthenticationFailed,
    "invalid_request_error": errors.InvalidRequest,
    "not_found_error": errors.InvalidRequest,
    "invalid_prompt": errors.ContentRefused,  # OpenAI: flagged by its policy
    "bio_policy": errors.ContentRefused,
    "misalignment_policy_violation": errors.ContentRefused,
    "data_residency_mismatch": errors.InvalidRequest,
    "unsupported_image_media_type": errors.InvalidRequest,
    "empty_image_file": errors.InvalidRequest,
    "failed_to_download_image": errors.InvalidRequest,
}
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_LARGE = re.compile(rb"\d[eE]\+?\d{3}")


@dataclass(slots=True)
class _Call:
    id: str | None
    name: str
    pieces: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class _Words:
    """A run of one kind of words: text or thinking."""

    kind: str
    pieces: list[str] = field(default_factory=list[str])


class ChatAnswer:
    """Reads the chunks of one answer, or the answer whole. Keep one for each attempt."""

    ended = False
    """No event of this protocol says that it is the last."""

    def __init__(self, provider: str, model: str, request: ModelRequest) -> None:
        self._provider = provider
        self._model = model
        self._request = request
        self._words: list[_Words] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, int] = {}
        self._details: dict[Any, dict[str, Any]] = {}
        self._usage: Usage | None = None
        self._finish: str | None = None
        self._refused = False
        self._id: str | None = None
        self._raw_model: str | None = None

    def read(self, data: bytes) -> list[StreamPart]:
        """Take the data of one event; give what it adds.

        Raises:
            ProviderError: It is an error, or no chunk at all.
        """
        if not data:
            return []
        try:
            chunk = parse_event(data)
            if chunk.get("error"):
                raise chunk_error(chunk["error"])
            made: list[StreamPart] = []
            for choice in chunk.get("choices") or ():
                if not choice.get("index"):  # we never ask for a second choice; a server may give one
                    self._read_choice(choice, made)
            if self._id is None:
                self._id = str(chunk.get("id") or "") or None
                self._raw_model = str(chunk.get("model") or "") or None
            raw = chunk.get("usage") or _object(chunk.get("x_groq")).get("usage")
            if raw and (usage := read_usage(raw)) is not None and usage != self._usage:
                self._usage = usage
                made.append(UsageSoFar(usage))
            return made
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            shown = data[:200].decode("utf-8", "replace")
            raise MalformedResponse(f"a chunk is no chat completion ({error}): {shown}") from None

    def response(self) -> ModelResponse:
        """The whole answer, once the stream has ended.

        Raises:
            MalformedResponse: No chunk said why the answer ended, so it is not whole.
            ProviderError: The last chunk says that the vendor failed.
        """
        if self._finish is None:
            raise MalformedResponse("the stream ended without its end: no chunk had a finish_reason")
        if failed := _FAILED.get(self._finish):
            raise failed(f"the provider ended its answer with finish_reason {self._finish!r}")
        parts: list[Part] = []
        for words in self._words:
            text = "".join(words.pieces)
            parts.append(Text(text) if words.kind == "text" else Thinking(text=text))
        self._sign(parts)
        stop = self._stop_reason()
        found = ((call.id, call.name, "".join(call.pieces), None) for call in self._calls)
        parts.extend(make_calls(self._request, found, cut=stop == "max_tokens"))
        return ModelResponse(
            message=Message(role="assistant", parts=tuple(parts), provider=self._provider, model=self._model),
            usage=self._usage,
            stop_reason=stop,
            raw_model=self._raw_model,
            response_id=self._id,
        )

    def _read_choice(self, choice: Any, made: list[StreamPart]) -> None:
        delta = choice.get("delta") or choice.get("message")
        if delta:
            if thought := as_text(delta.get("reasoning_content") or delta.get("reasoning")):
                self._say("thinking", thought, made)
            if content := delta.get("content"):
                if isinstance(content, str):
                    self._say("text", content, made)
                else:
                    self._read_list(content, made)
            if refusal := as_text(delta.get("refusal")):
                self._refused = True
                self._say("text", refusal, made)
            if details := delta.get("reasoning_details"):
                self._read_details(details)
            for call in delta.get("tool_calls") or ():
                self._read_call(call, made)
        if finish := as_text(choice.get("finish_reason")):
            self._finish = finish

    def _say(self, kind: Any, text: str, made: list[StreamPart]) -> None:
        if not self._words or self._words[-1].kind != kind:
            self._words.append(_Words(kind))
        self._words[-1].pieces.append(text)
        made.append(Delta(kind, text, len(self._words) - 1))

    def _read_list(self, content: Any, made: list[StreamPart]) -> None:
        """Mistral's content: a list of text and thinking, which is a list of text in turn."""
        for item in content:
            if item.get("type") == "thinking":
                thought = item.get("thinking") or ""
                text = thought if isinstance(thought, str) else "".join(piece.get("text") or "" for piece in thought)
                if text:
                    self._say("thinking", text, made)
            elif text := as_text(item.get("text")):
                self._say("text", text, made)

    def _read_details(self, details: Any) -> None:
        """OpenRouter's record of the thinking, which must go back as it came: its pieces, put together by index."""
        for detail in details:
            kept = self._details.setdefault((detail.get("index"), detail.get("type")), {})
            for name, value in detail.items():
                if name in ("text", "summary", "data") and kept.get(name) and value:
                    kept[name] += value
                elif value is not None or name not in kept:
                    kept[name] = value

    def _read_call(self, delta: Any, made: list[StreamPart]) -> None:
        function = _object(delta.get("function"))
        id = delta.get("id")
        id = str(id) if isinstance(id, int) else as_text(id)  # some servers only count
        number = self._number(delta.get("index"), id or None, as_text(function.get("name")))
        arguments = function.get("arguments")
        if arguments:
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            self._calls[number].pieces.append(text)
            made.append(Delta("tool_args", text, number))

    def _number(self, index: int | None, id: str | None, name: str) -> int:
        """Which call a delta belongs to.

        By its index; but servers leave it out, or give every call the index 0 and an id of its own. Id and name are set
        once: some servers repeat both in each delta, and some make up a new id for each.
        """
        number = self._by_index.get(index) if index is not None else self._known(id, name)
        if number is not None:
            call = self._calls[number]
            if not (id and name and call.id and id != call.id):
                call.id = call.id or id
                call.name = call.name or name
                return number
        self._calls.append(_Call(id, name))
        number = len(self._calls) - 1
        if index is not None:
            self._by_index[index] = number
        return number

    def _known(self, id: str | None, name: str) -> int | None:
        found = next((number for number, call in enumerate(self._calls) if id and call.id == id), None)
        if found is None and not name and self._calls:
            return len(self._calls) - 1
        return found

    def _sign(self, parts: list[Part]) -> None:
        if not self._details:
            return
        signature = json.dumps(list(self._details.values()), ensure_ascii=False, separators=(",", ":"))
        for place, part in enumerate(parts):
            if isinstance(part, Thinking):
                parts[place] = Thinking(text=part.text, signature=signature)
                return
        parts.insert(0, Thinking(text="", signature=signature, redacted=True))

    def _stop_reason(self) -> StopReason:
        if self._refused:
            return "refusal"
        reason = _STOP.get(str(self._finish), "other")
        if reason == "end_turn" and self._calls:
            return "tool_use"
        if reason == "tool_use" and not self._calls:
            return "end_turn"
        return reason


def make_calls(
    request: ModelRequest, found: Iterable[tuple[str | None, str, str, str | None]], *, cut: bool = False
) -> list[ToolCall]:
    """Calls of id, name, arguments as they were written, and signature; each gets an id that no other of the conversation has.

    Args:
        cut: Whether the answer ended at its limit, within the last of them. If that one has no arguments yet, it may need
            some, so it must not run without.

    Raises:
        MalformedResponse: One has no name.
    """
    taken = {call.call_id for message in request.messages for call in message.tool_calls}
    made: list[ToolCall] = []
    raw = ""
    for number, (id, name, raw, signature) in enumerate(found):
        if not name:
            raise MalformedResponse("a tool call has no name")
        again = 0
        while not id or id in taken:
            # No chance in it: the same answer must give the same ids.
            id = "_".join(filter(None, ("call", request.run_id, str(request.turn), str(number), "x" * again)))
            again += 1
        taken.add(id)
        arguments = read_arguments(raw)
        malformed = raw if arguments is None else None
        made.append(
            ToolCall(call_id=id, name=name, arguments=arguments or {}, malformed=malformed, signature=signature)
        )
    if cut and made and not made[-1].arguments and not raw.strip():
        made[-1] = replace(made[-1], malformed="")
    return made


def chunk_error(error: Any) -> ProviderError:
    """An error that came inside an answer of status 200, by its code."""
    fields = _object(cast("Any", error)) if isinstance(error, dict) else _object(None)
    code, kind = str(fields.get("code")), str(fields.get("type"))
    status = next((int(text) for text in (code, str(fields.get("status"))) if text.isdecimal()), 0)
    known = _CODES.get(code) or _CODES.get(kind)
    if known is None and code.startswith(("image_", "invalid_")):  # OpenAI: a dozen ways to send no picture
        known = errors.InvalidRequest
    by_status = error_type(status) if 400 <= status < 600 else None
    cls = classify(status, str(cast("object", error))) or by_status or known or errors.ServerError
    return cls(error_message(cast("object", error)), status_code=status or None)


def read_usage(raw: Mapping[str, Any]) -> Usage | None:
    """A `usage` object of any vendor; None where it tells no number of tokens and no cost: then it is unknown, not zero."""
    cost = reported_cost(raw)
    if cost is None and not tells(raw, "prompt_tokens", "completion_tokens", "total_tokens"):
        return None
    read, wrote = _detail(raw, "prompt_tokens_details", "cached_tokens", "cache_write_tokens")
    (reasoning,) = _detail(raw, "completion_tokens_details", "reasoning_tokens")
    prompt, total = count(raw.get("prompt_tokens")), count(raw.get("total_tokens"))
    return Usage(
        input_tokens=prompt,
        cache_read_tokens=read or count(raw.get("prompt_cache_hit_tokens")),  # DeepSeek
        cache_write_tokens=wrote,
        # xAI and Gemini leave reasoning out of the completion, but not out of the total, nor of the bill.
        output_tokens=max(count(raw.get("completion_tokens")), total - prompt),
        reasoning_tokens=reasoning,
        server_tool_calls=count(_object(raw.get("server_tool_use")).get("web_search_requests")),
        reported_cost=cost,
    )


def _detail(raw: Mapping[str, Any], name: str, *keys: str) -> tuple[int, ...]:
    details = _object(raw.get(name))
    return tuple(count(details.get(key)) for key in keys)


def _object(value: Any) -> Mapping[str, Any]:
    """A JSON object that may be null."""
    return value or {}


def tells(raw: Mapping[str, Any], *names: str) -> bool:
    """Whether one of these is a number of tokens."""
    return any(_is_count(raw.get(name)) for name in names)


def as_text(value: Any) -> str:
    """A text that may be null. Anything else is a mistake that no later place would notice in time."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value or ""


def count(value: Any) -> int:
    """A number of tokens; 0 where it is none, or none that a store would take."""
    return int(value) if _is_count(value) else 0


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**63


def reported_cost(raw: Mapping[str, Any]) -> Decimal | None:
    """OpenRouter's bill, or xAI's. With the user's own key, the vendor's bill comes on top of OpenRouter's; where that is not told, it is unknown."""
    if (ticks := raw.get("cost_in_usd_ticks")) is not None:
        return Decimal(count(ticks)) / 10**10 if _is_count(ticks) else None
    costs = [raw.get("cost")]
    if raw.get("is_byok"):
        costs.append(_object(raw.get("cost_details")).get("upstream_inference_cost"))
    try:
        total = sum((Decimal(str(cost)) for cost in costs), Decimal(0))  # by way of text: 0.1 is a tenth
    except ArithmeticError:  # it is no number, or one too large
        return None
    return total if total.is_finite() and total >= 0 else None


def parse_event(data: bytes) -> Any:
    """The JSON of one event; `ValueError` if it is none."""
    try:
        return _finite(data)
    except ValueError:
        if not _LONE.search(data):
            raise
        # A server that cuts an emoji in two sends half of it as an escape, which is no text; the rest of the chunk is.
        return _finite(_LONE.sub(rb"\\ufffd", data))


def _finite(data: bytes) -> Any:
    """JSON; `ValueError` where a number is too large for one, and would go back as a word that no server reads."""
    made: Any = from_json(data, allow_inf_nan=False)
    if _LARGE.search(data):
        json.dumps(made, allow_nan=False)
    return made


def read_arguments(raw: str) -> dict[str, Any] | None:
    """A call's arguments; None where they are no JSON object. Nothing at all means no arguments."""
    if not raw.strip():
        return {}
    try:
        arguments: Any = _finite(raw.encode())
    except ValueError:
        return None
    if arguments is None:
        return {}
    return cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else None
