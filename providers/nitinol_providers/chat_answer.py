"""An answer of chat completions, put together from its chunks, however loosely a server keeps to the protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nitinol import errors
from nitinol.errors import MalformedResponse, ProviderError
from nitinol.messages import Message, Part, StopReason, Text, Thinking
from nitinol.provider import Delta, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.usage import Usage
from nitinol_providers.answers import (
    BROKEN,
    as_object,
    as_text,
    chunk_error,
    count,
    make_calls,
    parse_event,
    reported_cost,
    stop_of,
    tells,
)

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
            raw = chunk.get("usage") or as_object(chunk.get("x_groq")).get("usage")
            if raw and (usage := read_usage(raw)) is not None and usage != self._usage:
                self._usage = usage
                made.append(UsageSoFar(usage))
            return made
        except BROKEN as error:
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
        function = as_object(delta.get("function"))
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
        return stop_of(_STOP.get(str(self._finish), "other"), calls=bool(self._calls))


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
        server_tool_calls=count(as_object(raw.get("server_tool_use")).get("web_search_requests")),
        reported_cost=cost,
    )


def _detail(raw: Mapping[str, Any], name: str, *keys: str) -> tuple[int, ...]:
    details = as_object(raw.get(name))
    return tuple(count(details.get(key)) for key in keys)
