"""An answer of the Responses API, put together from its events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nitinol.errors import MalformedResponse, ProviderError
from nitinol.messages import DeltaKind, Message, Native, Part, StopReason, Text, Thinking
from nitinol.provider import Delta, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.usage import Usage
from nitinol_providers.answers import (
    BROKEN,
    as_text,
    chunk_error,
    count,
    make_calls,
    parse_event,
    reported_cost,
    tells,
)

_DELTAS: Mapping[str, tuple[DeltaKind, str]] = {
    "response.output_text.delta": ("text", "content_index"),
    "response.refusal.delta": ("text", "content_index"),
    "response.reasoning_summary_text.delta": ("thinking", "summary_index"),
    "response.reasoning_text.delta": ("thinking", "content_index"),
    "response.function_call_arguments.delta": ("tool_args", ""),
}
_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
_INCOMPLETE: Mapping[str, StopReason] = {"max_output_tokens": "max_tokens", "content_filter": "content_filter"}
_BILLED = frozenset(
    ("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "x_search_call")
)
"""Items that are billed by the call."""
_WORDY = ("name", "query", "queries", "action", "code", "arguments", "input", "result", "outputs", "output", "error")
"""Fields of an item that say what it is about, to those who cannot read it."""
_LONGEST = 2000


@dataclass(slots=True)
class _Item:
    """An item as it grows: what was told of it, and the pieces of its words by where they belong."""

    raw: Mapping[str, Any]
    pieces: dict[tuple[str, int], list[str]] = field(default_factory=dict[tuple[str, int], list[str]])
    index: int = 0


class ResponsesAnswer:
    """Reads the events of one answer, or the answer whole. Keep one for each attempt."""

    def __init__(self, provider: str, model: str, request: ModelRequest) -> None:
        self._provider = provider
        self._model = model
        self._request = request
        self._items: dict[Any, _Item] = {}
        self._told: set[Any] = set()  # the places and ids of the items whose words have come
        self._runs = self._calls = 0
        self._usage: Usage | None = None
        self._id: str | None = None
        self._raw_model: str | None = None
        self._outcome: ModelResponse | ProviderError | None = None

    @property
    def ended(self) -> bool:
        """Whether the last event has come."""
        return self._outcome is not None

    def read(self, data: bytes) -> list[StreamPart]:
        """Take the data of one event; give what it adds.

        Raises:
            ProviderError: It is an error, or no event at all.
        """
        if not data or data == b"[DONE]" or self.ended:
            return []
        try:
            event = parse_event(data)
            kind: str = event.get("type") or ""
            made: list[StreamPart] = []
            if kind == "error" or (not kind and event.get("error")):
                raise chunk_error(event.get("error") or event)
            if not kind and event.get("object") == "response":
                kind, event = f"response.{event.get('status')}", {"response": event}
                if kind not in _ENDS:
                    raise ValueError(f"its status is {kind[9:]!r}")
            before = self._usage
            response: Mapping[str, Any] = event.get("response") or {}
            self._read_response(response)
            if kind in _ENDS:
                self._end(kind, response, made)
            elif kind in ("response.output_item.added", "response.output_item.done"):
                self._read_item(event, kind.endswith("done"), made)
            elif kind in _DELTAS and event.get("delta"):
                self._read_delta(event, *_DELTAS[kind], made)
            if self._usage is not None and self._usage != before:
                made.append(UsageSoFar(self._usage))
            return made
        except BROKEN as error:
            shown = data[:200].decode("utf-8", "replace")
            raise MalformedResponse(f"an event is none of the Responses API ({error}): {shown}") from None

    def response(self) -> ModelResponse:
        """The whole answer, once the stream has ended.

        Raises:
            MalformedResponse: No event said that the answer has ended, so it is not whole.
            ProviderError: The last event says that the vendor failed.
        """
        if self._outcome is None:
            raise MalformedResponse("the stream ended without its end: no response.completed, incomplete or failed")
        if isinstance(self._outcome, ProviderError):
            raise self._outcome
        return self._outcome

    def _read_response(self, response: Mapping[str, Any]) -> None:
        if self._id is None and response.get("id"):
            self._id = as_text(response["id"])
        if response.get("model"):
            self._raw_model = as_text(response["model"])
        if raw := response.get("usage"):
            items = response.get("output") or [item.raw for item in self._items.values()]
            self._usage = read_usage(raw, items) or self._usage

    def _read_item(self, event: Mapping[str, Any], done: bool, made: list[StreamPart]) -> None:
        raw = _checked_object(event["item"])
        as_text(raw["type"])
        key = self._key(event, raw.get("id"))
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = _Item(raw)
            if raw["type"] == "function_call":
                item.index, self._calls = self._calls, self._calls + 1
        if done:
            item.raw = raw
            if not item.pieces:
                self._show(item, made)
            item.pieces = {}  # the item itself says it all
            self._told.update((key, raw.get("id")))

    def _read_delta(self, event: Mapping[str, Any], kind: DeltaKind, place: str, made: list[StreamPart]) -> None:
        where = self._key(event, event.get("item_id"))
        item = self._items.get(where)
        if item is None:
            raise ValueError("no item of this place or id was added")
        self._told.update((where, event.get("item_id")))
        key = (event["type"], event.get(place) or 0)
        text = as_text(event["delta"])
        if key not in item.pieces:
            if kind == "thinking" and item.pieces:
                made.append(Delta(kind, "\n\n", item.index))
            elif kind != "tool_args":
                item.index, self._runs = self._runs, self._runs + 1
            item.pieces[key] = []
        item.pieces[key].append(text)
        made.append(Delta(kind, text, item.index))

    def _key(self, event: Mapping[str, Any], id: Any) -> Any:
        """Which item an event is about: by its place, which is sure; servers that leave it out have a sure id."""
        place = event.get("output_index")
        key = id if place is None else place
        if not isinstance(key, (int, str)):
            raise ValueError("it says neither output_index nor item_id")
        return key

    def _show(self, item: _Item, made: list[StreamPart]) -> None:
        """The words of an item that came whole."""
        raw = item.raw
        if raw["type"] == "function_call":
            if arguments := raw.get("arguments"):
                made.append(Delta("tool_args", as_text(arguments), item.index))
            return
        thought = _thought(raw) if raw["type"] == "reasoning" else ""
        words = [text for _, text in _contents(raw)] if raw["type"] == "message" else [thought]
        for text in filter(None, words):
            made.append(Delta("thinking" if thought else "text", text, self._runs))
            self._runs += 1

    def _end(self, kind: str, response: Mapping[str, Any], made: list[StreamPart]) -> None:
        if kind in ("response.failed", "response.cancelled"):
            reason = response.get("error") or {"message": f"the provider ended its answer with {kind}"}
            self._outcome = chunk_error(reason)
            return
        output = [_checked_object(raw) for raw in response.get("output") or ()]
        for place, raw in enumerate(output):
            as_text(raw["type"])
            if place not in self._told and (raw.get("id") is None or raw["id"] not in self._told):
                self._show(_Item(raw, index=self._calls), made)
                self._calls += raw["type"] == "function_call"
        if not output:
            output = [_grown(item) for item in self._items.values()]
        reason = str(_checked_object(response.get("incomplete_details") or {}).get("reason"))
        end = _INCOMPLETE.get(reason, "other") if kind == "response.incomplete" else None
        parts, refused = self._parts(output, cut=end == "max_tokens" and _is_call(output[-1:]))
        calls = any(part.type == "tool_call" for part in parts)
        stop: StopReason = "refusal" if refused else "tool_use" if calls else "end_turn"
        self._outcome = ModelResponse(
            message=Message(role="assistant", parts=tuple(parts), provider=self._provider, model=self._model),
            usage=self._usage,
            stop_reason=end or stop,
            raw_model=self._raw_model,
            response_id=self._id,
        )

    def _parts(self, output: list[Mapping[str, Any]], *, cut: bool) -> tuple[list[Part], bool]:
        """The parts of the message, and whether the model refused. `cut`: the answer ended at its limit, within a call."""
        stored = bool(self._request.extra.get("store"))
        thinks = [raw for raw in output if raw["type"] == "reasoning" and (raw.get("encrypted_content") or stored)]
        # Thinking that goes back must be followed by what followed it, under its id; nothing else needs an id.
        keep = bool(thinks)
        parts: list[Part] = []
        refused = False
        found = [raw for raw in output if raw["type"] == "function_call"]
        calls = iter(
            make_calls(
                self._request,
                (
                    (
                        as_text(raw.get("call_id")),
                        as_text(raw["name"]),
                        as_text(raw.get("arguments")),
                        _rest(raw, keep),
                    )
                    for raw in found
                ),
                cut=cut,
            )
        )
        for raw in output:
            if raw["type"] == "message":
                contents = [(shape, text) for shape, text in _contents(raw) if text]
                refused = refused or any(shape["type"] == "refusal" for shape, _ in contents)
                shapes = [shape for shape, _ in contents]
                if shapes and (keep or raw.get("phase") or any(shape.get("annotations") for shape in shapes)):
                    parts.append(Native(data=_checked({**_told(raw), "content": shapes})))
                parts.extend(Text(text) for _, text in contents)
            elif raw["type"] == "reasoning":
                thought = _thought(raw)
                signature = _written(_told(raw)) if raw in thinks or raw.get("content") else None
                if thought or signature:
                    parts.append(Thinking(text=thought, signature=signature, redacted=not thought))
            elif raw["type"] == "function_call":
                parts.append(next(calls))
            else:
                parts.append(Native(data=_checked(raw), text=_wording(raw)))
        return parts, refused


def read_usage(raw: Mapping[str, Any], output: Iterable[Mapping[str, Any]] = ()) -> Usage | None:
    """A `usage` object, and of the answer's items the calls of the vendor's own tools; None where it tells nothing."""
    cost = reported_cost(raw)
    if cost is None and not tells(raw, "input_tokens", "output_tokens", "total_tokens"):
        return None
    came, went = (
        _checked_object(raw.get("input_tokens_details") or {}),
        _checked_object(raw.get("output_tokens_details") or {}),
    )
    sent, total = count(raw.get("input_tokens")), count(raw.get("total_tokens"))
    return Usage(
        input_tokens=sent,
        cache_read_tokens=count(came.get("cached_tokens")),
        cache_write_tokens=count(came.get("cache_write_tokens")),
        output_tokens=max(count(raw.get("output_tokens")), total - sent),
        reasoning_tokens=count(went.get("reasoning_tokens")),
        server_tool_calls=max(sum(map(_is_billed, output)), count(raw.get("num_server_side_tools_used"))),
        reported_cost=cost,
    )


def _is_call(items: Iterable[Mapping[str, Any]]) -> bool:
    return any(item["type"] == "function_call" for item in items)


def _is_billed(item: Mapping[str, Any]) -> bool:
    """Whether an item is a call with a fee. Of a search, opening and reading what it found has none."""
    action: Mapping[str, Any] = item.get("action") or {}
    return item.get("type") in _BILLED and (
        item["type"] != "web_search_call" or action.get("type", "search") == "search"
    )


def _contents(raw: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Of a message: each piece without its words, and the words."""
    made: list[tuple[dict[str, Any], str]] = []
    for content in raw.get("content") or ():
        shape = dict(_checked_object(content))
        text = as_text(shape.pop("refusal" if as_text(shape["type"]) == "refusal" else "text", None))
        made.append((shape, text))
    return made


def _thought(raw: Mapping[str, Any]) -> str:
    """Of a reasoning item: its summary, or else the thinking itself."""
    pieces = raw.get("summary") or raw.get("content") or ()
    return "\n\n".join(as_text(_checked_object(piece).get("text")) for piece in pieces)


def _rest(raw: Mapping[str, Any], keep_id: bool) -> str | None:
    """What else belongs to a call when it goes back."""
    ours = ("type", "call_id", "name", "arguments", "status", *(() if keep_id else ("id",)))
    rest = {name: value for name, value in _told(raw).items() if name not in ours}
    return _written(rest) if rest else None


def _grown(item: _Item) -> Mapping[str, Any]:
    """An item that never was done, from its pieces."""
    texts = ["".join(pieces) for _, pieces in sorted(item.pieces.items())]
    kind = item.raw["type"]
    if not texts:
        return item.raw
    if kind == "function_call":
        return {**item.raw, "arguments": "".join(texts)}
    if kind == "reasoning":
        return {**item.raw, "summary": [{"type": "summary_text", "text": text} for text in texts]}
    refused = any(name == "response.refusal.delta" for name, _ in item.pieces)
    shape, key = ("refusal", "refusal") if refused else ("output_text", "text")
    return {**item.raw, "content": [{"type": shape, key: text} for text in texts]}


def _wording(raw: Mapping[str, Any]) -> str:
    """What an item says to those who cannot read it."""
    names = () if raw["type"] == "image_generation_call" else _WORDY  # a picture is no words
    values = [raw[name] for name in names if raw.get(name)]
    told = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return f"[{': '.join((raw['type'], *told))[:_LONGEST]}]"


def _told(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if value is not None}


def _written(raw: Mapping[str, Any]) -> str:
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _checked(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    _written(raw)  # a store takes no infinity
    return raw


def _checked_object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no object")
    return cast("dict[str, Any]", value)
