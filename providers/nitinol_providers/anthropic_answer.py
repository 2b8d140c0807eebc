"""An answer of the Messages API, put together from its events, however loosely a server keeps to the protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic_core import from_json

from nitinol import errors
from nitinol.errors import ContextOverflow, MalformedResponse, ProviderError
from nitinol.messages import Message, Native, Part, StopReason, Text, Thinking, ToolCall
from nitinol.provider import Delta, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.usage import Usage
from nitinol_providers.answers import (
    BROKEN,
    as_object,
    as_text,
    chunk_error,
    count,
    parse_event,
    read_arguments,
    stop_of,
    tells,
)
from nitinol_providers.anthropic_output import Output
from nitinol_providers.anthropic_request import PROVIDER

_STOP: Mapping[str, StopReason] = {
    "end_turn": "end_turn",
    "stop_sequence": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "pause_turn": "pause",
    "refusal": "refusal",
}
_FULL = "model_context_window_exceeded"
_ERRORS: Mapping[str, type[ProviderError]] = {
    "billing_error": errors.InvalidRequest,
    "request_too_large": ContextOverflow,
}
"""Those that `chunk_error` does not know."""
_LONGEST_WORDS = 2000


@dataclass(slots=True)
class _Block:
    """One block of content, as it grows."""

    data: dict[str, Any]
    """As it stood in its first event."""
    kind: str
    index: int
    """Its number in the answer."""
    call: int
    """How many calls are before it."""
    pieces: list[str] = field(default_factory=list[str])
    """Of its text, its thinking, or its input's JSON."""

    @property
    def written(self) -> str:
        return "".join(self.pieces)


class MessagesAnswer:
    """Reads the events of one answer, or the answer whole. Keep one for each attempt."""

    def __init__(self, model: str, request: ModelRequest, output: Output | None = None) -> None:
        self._model = model
        self._request = request
        self._output = output
        self._blocks: list[_Block] = []
        self._at: dict[Any, _Block] = {}
        self._told: dict[str, Any] = {}
        self._usage: Usage | None = None
        self._stop: str | None = None
        self._container: Mapping[str, Any] | None = None
        self._id: str | None = None
        self._raw_model: str | None = None
        self.ended = False
        """Whether the event has come after which nothing follows."""

    def read(self, data: bytes) -> list[StreamPart]:
        """Take the data of one event; give what it adds.

        Raises:
            ProviderError: It is an error, or no event at all.
        """
        if not data or data == b"[DONE]":
            return []
        try:
            return list(self._read(parse_event(data)))
        except BROKEN as error:
            shown = data[:200].decode("utf-8", "replace")
            raise MalformedResponse(f"an event is none of the Messages API ({error}): {shown}") from None

    def response(self) -> ModelResponse:
        """The whole answer, once the stream has ended.

        Raises:
            MalformedResponse: No event said that this is the end, so it is not whole.
            ContextOverflow: The answer was cut, since the model's window is full: no other limit would do better.
        """
        if not self.ended:
            raise MalformedResponse("the stream ended without its end: there was no message_stop")
        if self._stop == _FULL:
            raise ContextOverflow("the answer has filled the model's context window before its end")
        try:
            parts = tuple(self._parts())
        except BROKEN as error:
            raise MalformedResponse(f"a block of the answer is none of the Messages API ({error})") from None
        message = Message(role="assistant", parts=parts, provider=PROVIDER, model=self._model)
        return ModelResponse(
            message=message,
            usage=self._usage,
            stop_reason=stop_of(_STOP.get(self._stop or "", "other"), calls=bool(message.tool_calls)),
            raw_model=self._raw_model,
            response_id=self._id,
        )

    def _read(self, event: Any) -> Iterator[StreamPart]:
        if event.get("error"):
            raise _error(event)
        match event["type"]:
            case "message_start":
                yield from self._begin(event["message"])
            case "content_block_start":
                yield from self._start(event["index"], event["content_block"])
            case "content_block_delta":
                yield from self._grow(self._at[event["index"]], event["delta"])
            case "content_block_stop":
                yield from self._close(self._at[event["index"]])
            case "message_delta":
                yield from self._change(event["delta"] or {}, event.get("usage"))
            case "message_stop":
                self.ended = True
            case "message":  # of a server that does not stream
                yield from self._begin(event)
                for index, block in enumerate(event["content"]):
                    yield from self._start(index, block)
                    yield from self._close(self._at[index])
                yield from self._change(event, None)
                self.ended = True
            case _:
                pass  # ping, and whatever comes to be

    def _begin(self, message: Any) -> Iterator[StreamPart]:
        self._id = as_text(message.get("id")) or None
        self._raw_model = as_text(message.get("model")) or None
        self._keep_container(message)
        yield from self._charge(message.get("usage"))

    def _change(self, delta: Any, usage: Any) -> Iterator[StreamPart]:
        self._stop = as_text(delta.get("stop_reason")) or self._stop
        self._keep_container(delta)
        yield from self._charge(usage)

    def _keep_container(self, told: Any) -> None:
        if container := told.get("container"):
            self._container = {"type": "container", **container, "id": as_text(container["id"])}

    def _charge(self, usage: Any) -> Iterator[StreamPart]:
        """Counts are totals so far: what is told again replaces what was, and what is not told stays."""
        self._told |= {key: value for key, value in as_object(usage).items() if value is not None}
        if (read := read_usage(self._told)) is not None and read != self._usage:
            self._usage = read
            yield UsageSoFar(read)

    def _start(self, index: Any, data: Any) -> Iterator[StreamPart]:
        kind = as_text(data["type"])
        calls = sum(block.kind == "tool_use" for block in self._blocks)
        block = _Block(dict(data), kind, len(self._blocks), calls)
        self._blocks.append(block)
        self._at[index] = block
        if kind in ("text", "thinking"):
            yield from self._say(block, data.get(kind))

    def _grow(self, block: _Block, delta: Any) -> Iterator[StreamPart]:
        match delta["type"]:
            case "text_delta":
                yield from self._say(block, delta["text"])
            case "thinking_delta":
                yield from self._say(block, delta["thinking"])
            case "input_json_delta":
                piece = as_text(delta["partial_json"])
                block.pieces.append(piece)
                if piece and block.kind == "tool_use" and not self._is_answer(block):
                    yield Delta("tool_args", piece, block.call)
            case "citations_delta":
                block.data["citations"] = [*(block.data.get("citations") or ()), delta["citation"]]
            case _:  # the signature, and what a block of a kind to come is told
                block.data |= {key: value for key, value in delta.items() if key != "type"}

    def _say(self, block: _Block, text: Any) -> Iterator[StreamPart]:
        if as_text(text):
            block.pieces.append(text)
            yield Delta("thinking" if block.kind == "thinking" else "text", text, block.index)

    def _close(self, block: _Block) -> Iterator[StreamPart]:
        """The arguments of the tool that stands for an answer are its words; to be read, they must be whole."""
        if self._is_answer(block) and (words := self._answer(block)):
            yield Delta("text", words, block.index)

    def _is_answer(self, block: _Block) -> bool:
        name = self._output.tool_name if self._output is not None else None
        return name is not None and block.kind == "tool_use" and block.data.get("name") == name

    def _answer(self, block: _Block) -> str:
        arguments = _arguments(block)
        return block.written if arguments is None else cast("Output", self._output).text(arguments)

    def _parts(self) -> Iterator[Part]:
        answers = [block for block in self._blocks if self._is_answer(block)]
        if answers and (words := self._answer(answers[0])):
            yield Text(words)
        for block in self._blocks:
            if block.kind == "text":
                if not answers:  # words about an answer are none of it, which must be JSON alone
                    yield from _words(block)
            elif block.kind == "thinking":
                yield Thinking(text=block.written, signature=as_text(block.data.get("signature")) or None)
            elif block.kind == "redacted_thinking":
                yield Thinking(text="", signature=as_text(block.data["data"]), redacted=True)
            elif block.kind == "tool_use":
                if not self._is_answer(block):
                    yield self._call(block)
            else:
                data = {**block.data, "input": _partial(block.written)} if block.pieces else block.data
                yield Native(data=data, text=_wording(data))
        if self._container is not None:
            yield Native(data=self._container)

    def _call(self, block: _Block) -> ToolCall:
        name, call_id = as_text(block.data["name"]), as_text(block.data.get("id"))
        if not name:
            raise ValueError("a tool call has no name")
        # No chance in it: the same answer must give the same ids.
        call_id = call_id or f"call_{self._request.run_id}_{self._request.turn}_{block.call}"
        caller = block.data.get("caller")
        signature = json.dumps(caller) if caller and caller["type"] != "direct" else None
        arguments = _arguments(block)
        if self._stop == "max_tokens" and block is self._blocks[-1] and not block.written and not arguments:
            arguments = None  # cut before its first argument; it may need some
        if arguments is None:
            return ToolCall(call_id=call_id, name=name, malformed=block.written, signature=signature)
        return ToolCall(call_id=call_id, name=name, arguments=arguments, signature=signature)


def read_usage(raw: Mapping[str, Any]) -> Usage | None:
    """A `usage` object. The vendor's input tokens are those that the cache has nothing to do with; ours are all.

    None where it tells no number of tokens: then it is unknown, not zero.
    """
    if not tells(raw, "input_tokens", "output_tokens"):
        return None
    kept = as_object(raw.get("cache_creation"))
    hour, short = count(kept.get("ephemeral_1h_input_tokens")), count(kept.get("ephemeral_5m_input_tokens"))
    written = max(count(raw.get("cache_creation_input_tokens")), hour + short)
    read = count(raw.get("cache_read_input_tokens"))
    tools = as_object(raw.get("server_tool_use"))
    return Usage(
        input_tokens=count(raw.get("input_tokens")) + read + written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_1h_tokens=hour,
        output_tokens=count(raw.get("output_tokens")),
        reasoning_tokens=count(as_object(raw.get("output_tokens_details")).get("thinking_tokens")),
        # A fetch costs its tokens alone.
        server_tool_calls=sum(count(number) for name, number in tools.items() if name != "web_fetch_requests"),
    )


def _error(event: Mapping[str, Any]) -> ProviderError:
    """An error that came inside an answer of status 200, by its type."""
    error = chunk_error(event["error"])
    if isinstance(event["error"], dict):
        kind = cast("dict[str, Any]", event["error"]).get("type")
        if cls := _ERRORS.get(str(kind)):
            error = cls(str(error), status_code=error.status_code)
    error.request_id = as_text(event.get("request_id")) or None
    return error


def _words(block: _Block) -> Iterator[Part]:
    """Text; and behind it, if it cites sources, the block as it is, which takes its place on the way back."""
    text = block.written
    if text:
        yield Text(text)
        if block.data.get("citations"):
            yield Native(data={**block.data, "text": text})


def _arguments(block: _Block) -> dict[str, Any] | None:
    """A call's arguments; None where they are no JSON object. Some servers give them whole, in the first event."""
    given = block.data.get("input")
    if not block.written and isinstance(given, dict):
        return cast("dict[str, Any]", given)
    return read_arguments(block.written)


def _partial(written: str) -> dict[str, Any]:
    """The input of a call that is not ours to make: what there is of it, if it was cut."""
    try:
        made: Any = from_json(written, allow_partial=True, allow_inf_nan=False)
    except ValueError:
        return {}
    return cast("dict[str, Any]", made) if isinstance(made, dict) else {}


def _wording(data: Mapping[str, Any]) -> str:
    """A block of the vendor's own tools in words, for a model that does not know them."""
    name = str(data.get("name") or str(data["type"]).removesuffix("_tool_result"))
    if "input" in data:
        return f"[{name}: {json.dumps(data['input'], ensure_ascii=False)}]"[:_LONGEST_WORDS]
    content = data.get("content")
    said: list[str] = []
    for item in cast("list[object]", content) if isinstance(content, list) else [content]:
        if isinstance(item, dict):
            fields = cast("dict[str, Any]", item)
            said += [
                str(fields[key])
                for key in ("error_code", "title", "url", "stdout", "stderr", "text")
                if fields.get(key)
            ]
        elif isinstance(item, str):
            said.append(item)
    return f"[{name}: {' '.join(said)}]"[:_LONGEST_WORDS] if said else f"[{name}]"
