"""An answer of `streamGenerateContent`, put together from its chunks: each is a whole response with more parts."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nitinol import errors
from nitinol.errors import MalformedResponse, ProviderError
from nitinol.http_errors import error_message, error_type
from nitinol.messages import Audio, Document, Image, Message, Native, Part, StopReason, Text, Thinking
from nitinol.provider import Delta, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.usage import Usage
from nitinol_providers import overflow
from nitinol_providers.answers import BROKEN, as_object, count, make_calls, parse_event, stop_of, tells
from nitinol_providers.gemini_request import ABOUT, NAME

STOP: Mapping[str, StopReason] = {
    "STOP": "end_turn",
    "FUNCTION_CALL": "end_turn",  # aimock
    "MAX_TOKENS": "max_tokens",
    # A filter of Google's stopped the model; when it will not even read the prompt, that is a refusal.
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "ESCALATION": "content_filter",
    # Google's own loop of tools, or its limit of one answer, ended before the model did; asked again, it goes on.
    "TOO_MANY_TOOL_CALLS": "pause",
    "CONTINUATION": "pause",
}
FAILED: Mapping[str, type[ProviderError]] = {
    # Nothing of such a call is told that could be answered; the next attempt mostly writes a sound one.
    "MALFORMED_FUNCTION_CALL": MalformedResponse,
    "UNEXPECTED_TOOL_CALL": MalformedResponse,
    "MALFORMED_RESPONSE": MalformedResponse,
    "MISSING_THOUGHT_SIGNATURE": errors.InvalidRequest,
    "PUP_LIMITED_DISABLED": errors.AuthenticationFailed,  # the account is limited, whatever it asks
}
_STATUS: Mapping[str, type[ProviderError]] = {
    "RESOURCE_EXHAUSTED": errors.RateLimited,
    "UNAVAILABLE": errors.Overloaded,
    "UNAUTHENTICATED": errors.AuthenticationFailed,
    "PERMISSION_DENIED": errors.AuthenticationFailed,
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "FAILED_PRECONDITION": errors.InvalidRequest,
    "OUT_OF_RANGE": errors.InvalidRequest,
    "NOT_FOUND": errors.InvalidRequest,
    "UNIMPLEMENTED": errors.InvalidRequest,
}
_RETRY = re.compile(r'"retryDelay"\s*:\s*"(\d+(?:\.\d+)?)s"')
_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d+)\]|\['([^']*)'\]|\["([^"]*)"\]""")
_WORDS = frozenset(("text", "thought", "thoughtSignature"))


@dataclass(slots=True)
class _Words:
    """A run of text or of thinking; a signature ends it."""

    kind: str
    pieces: list[str]
    signature: str | None = None


@dataclass(slots=True)
class _Call:
    number: int
    name: str
    id: str | None
    signature: str | None
    arguments: Any = field(default_factory=dict[str, Any])
    """An object, unless the model wrote something else."""
    growing: str | None = None
    """The path of the string whose next piece is still to come."""


class GeminiAnswer:
    """Reads the chunks of one answer, streamed or in a list. Keep one for each attempt."""

    ended = False
    """No event of this protocol says that it is the last."""

    def __init__(self, model: str, request: ModelRequest) -> None:
        self._model = model
        self._request = request
        self._parts: list[Part | _Words | _Call] = []
        self._calls: list[_Call] = []
        self._open: _Call | None = None
        self._about: dict[str, Any] = {}
        self._blocked = False
        self._counts: dict[str, Any] = {}
        self._usage: Usage | None = None
        self._finish: str | None = None
        self._id: str | None = None
        self._raw_model: str | None = None

    def read(self, data: bytes) -> list[StreamPart]:
        """Take the data of one event; give what it adds.

        Raises:
            ProviderError: It is an error, or no response at all.
        """
        if not data.strip():
            return []
        made: list[StreamPart] = []
        try:
            chunk = parse_event(data)
            responses: list[Any] = cast("Any", chunk) if isinstance(chunk, list) else [chunk]
            for response in responses:
                self._read_response(response, made)
        except BROKEN as error:
            shown = data[:200].decode("utf-8", "replace")
            raise MalformedResponse(f"a chunk is no response of Gemini ({error}): {shown}") from None
        return made

    def response(self) -> ModelResponse:
        """The whole answer, once the stream has ended.

        Raises:
            MalformedResponse: No chunk said why the answer ended, so it is not whole; or the model wrote no sound call.
            ProviderError: The last chunk says that the answer failed.
        """
        if self._finish is None and not self._blocked:
            raise MalformedResponse("the stream ended without its end: no chunk had a finishReason")
        if failed := FAILED.get(self._finish or ""):
            told = self._about.get("finishMessage")
            raise failed(f"Gemini ended its answer with {self._finish}" + (f": {str(told)[:500]}" if told else ""))
        stop: StopReason = "refusal" if self._blocked else STOP.get(self._finish or "", "other")
        stop = stop_of(stop, calls=bool(self._calls))
        try:
            parts = self._message(stop)
        except BROKEN as error:
            raise MalformedResponse(f"the answer is none of Gemini's ({error})") from None
        return ModelResponse(
            message=Message(role="assistant", parts=parts, provider=NAME, model=self._model),
            usage=self._usage,
            stop_reason=stop,
            raw_model=self._raw_model,
            response_id=self._id,
        )

    def _read_response(self, response: Any, made: list[StreamPart]) -> None:
        if response.get("error"):
            raise stream_error(response["error"])
        self._id = self._id or _text(response.get("responseId"))
        self._raw_model = self._raw_model or _text(response.get("modelVersion"))
        if as_object(response.get("promptFeedback")).get("blockReason"):
            self._blocked = True
            self._about["promptFeedback"] = response["promptFeedback"]
        for candidate in response.get("candidates") or ():
            if not candidate.get("index"):  # we never ask for a second one
                self._read_candidate(candidate, made)
        counts = as_object(response.get("usageMetadata"))
        self._counts |= {key: value for key, value in counts.items() if value is not None}
        told = tells(self._counts, "promptTokenCount", "candidatesTokenCount", "totalTokenCount")
        if told and (usage := self._read_usage()) != self._usage:
            self._usage = usage
            made.append(UsageSoFar(usage))

    def _read_candidate(self, candidate: Any, made: list[StreamPart]) -> None:
        for part in as_object(candidate.get("content")).get("parts") or ():
            self._read_part(part, made)
        for key in ABOUT & candidate.keys():
            told = candidate[key]
            self._about[key] = {**self._about.get(key, {}), **told} if isinstance(told, dict) else told
        self._finish = _text(candidate.get("finishReason")) or self._finish

    def _read_part(self, part: Any, made: list[StreamPart]) -> None:
        part = {key: value for key, value in part.items() if value is not None}  # a proxy may write each field there is
        signature = _text(part.get("thoughtSignature"))
        if "functionCall" in part:
            self._read_call(part["functionCall"], signature, made)
        elif part.keys() <= _WORDS:
            self._say("thinking" if part.get("thought") else "text", _text(part.get("text")) or "", signature, made)
        elif part.keys() <= {"inlineData", "thoughtSignature"}:
            self._parts.append(_media(part["inlineData"]))
            if signature:
                self._parts.append(Native(data={"thoughtSignature": signature}))
        else:
            _json(part)  # a number that is none would break the journal
            self._parts.append(Native(data=part, text=_in_words(part)))

    def _say(self, kind: Any, text: str, signature: str | None, made: list[StreamPart]) -> None:
        if not text and signature and kind == "text":  # how a stream signs what it has already said
            self._parts.append(Native(data={"text": "", "thoughtSignature": signature}))
        elif text or signature:
            last = self._parts[-1] if self._parts else None
            if isinstance(last, _Words) and last.kind == kind and not (last.signature or signature):
                last.pieces.append(text)
            else:
                self._parts.append(_Words(kind, [text], signature))
            if text:
                made.append(Delta(kind, text, len(self._parts) - 1))
            if signature and kind == "text":
                self._parts.append(Native(data={"thoughtSignature": signature}))

    def _read_call(self, function: Any, signature: str | None, made: list[StreamPart]) -> None:
        """A call comes whole, or its arguments come piece by piece: then only the first part bears its name."""
        name, id = _text(function.get("name")), _text(function.get("id"))
        call = self._open
        if call is None or (name and (name, id or call.id) != (call.name, call.id)):
            if not name:
                raise ValueError("a function call has no name")
            call = _Call(len(self._calls), name, id or None, signature)
            self._calls.append(call)
            self._parts.append(call)
        call.signature = call.signature or signature
        if (arguments := function.get("args")) is not None:
            call.arguments = {**call.arguments, **arguments} if isinstance(arguments, dict) else arguments
        for piece in function.get("partialArgs") or ():
            _grow(call, piece)
        self._open = call if function.get("willContinue") else None
        if self._open is None:
            made.append(Delta("tool_args", _json(call.arguments), call.number))

    def _message(self, stop: StopReason) -> tuple[Part, ...]:
        made: list[Part] = []
        calls = iter(make_calls(self._request, ((c.id, c.name, self._written(c), c.signature) for c in self._calls)))
        for part in self._parts:
            if isinstance(part, _Call):
                made.append(next(calls))
            elif isinstance(part, _Words):
                text = "".join(part.pieces)
                thought = Thinking(text=text, signature=part.signature, redacted=not text)
                made.append(Text(text) if part.kind == "text" else thought)
            else:
                made.append(part)
        about = {key: value for key, value in self._about.items() if value and _json(value)}
        # Ratings and the like come with every answer; they matter where one was stopped.
        if stop not in ("refusal", "content_filter"):
            about = {key: about[key] for key in about if key.endswith("Metadata")}
        if about:
            made.append(Native(data=about, text=_sources(about)))
        return tuple(made)

    def _written(self, call: _Call) -> str:
        text = _json(call.arguments)
        return text.rstrip("}") if call is self._open else text  # the answer ended within it

    def _read_usage(self) -> Usage:
        """From the counts so far: each chunk repeats them all, grown, or leaves out what it does not know yet."""
        prompt, found, wrote, thought, total = (
            count(self._counts.get(f"{kind}TokenCount"))
            for kind in ("prompt", "toolUsePrompt", "candidates", "thoughts", "total")
        )
        return Usage(
            input_tokens=prompt + found,  # what Google's own tools found was read as well, and is billed
            cache_read_tokens=min(count(self._counts.get("cachedContentTokenCount")), prompt),
            output_tokens=max(wrote + thought, total - prompt - found),
            reasoning_tokens=thought,
            server_tool_calls=self._searches(),
        )

    def _searches(self) -> int:
        """Searches of the web or of maps, which are billed each; code and addresses are billed by tokens."""
        grounding = as_object(self._about.get("groundingMetadata"))
        queries = len({*(grounding.get("webSearchQueries") or ()), *(grounding.get("imageSearchQueries") or ())})
        maps = any("maps" in chunk for chunk in grounding.get("groundingChunks") or ())
        called = sum(
            str(part.data["toolCall"].get("toolType")).startswith("GOOGLE_")
            for part in self._parts
            if isinstance(part, Native) and isinstance(part.data.get("toolCall"), dict)
        )
        return max(queries + maps, called)


def classify(status: int, text: str) -> type[ProviderError] | None:
    """What the body of an error says beyond its status. Fits `Http.sse(classify=)`."""
    if status == 400 and "API_KEY_INVALID" in text:
        return errors.AuthenticationFailed
    return overflow.classify(status, text)


def retry_delay(text: str) -> float | None:
    """Seconds to wait, from the `RetryInfo` in the details of an error."""
    found = _RETRY.search(text)
    return float(found[1]) if found else None


def stream_error(error: Any) -> ProviderError:
    """An error that came inside an answer of status 200, by its status or its code."""
    fields: dict[str, Any] = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    code, text = fields.get("code"), _json(error)
    number = code if isinstance(code, int) and 400 <= code < 600 else 0
    known = _STATUS.get(str(fields.get("status"))) or (error_type(number) if number else errors.ServerError)
    return (classify(number, text) or known)(
        error_message(cast("object", error)), status_code=number or None, retry_after=retry_delay(text)
    )


def _grow(call: _Call, piece: Any) -> None:
    """Put one value, or a piece of a string, where its path says: `$.places[0].name`."""
    path = _text(piece.get("jsonPath")) or ""
    steps = [int(step[1]) if step[1] else step[0] or step[2] or step[3] for step in _STEP.findall(path)]
    if not path.startswith("$") or not steps or _STEP.sub("", path) != "$":
        raise ValueError(f"{path!r} is no path of an argument")
    values = [piece[key] for key in ("stringValue", "numberValue", "boolValue") if piece.get(key) is not None]
    value: Any = values[0] if values else None
    call.arguments = _put(call.arguments, steps, value, call.growing == path)
    call.growing = path if isinstance(value, str) and piece.get("willContinue") else None


def _put(at: Any, steps: list[Any], value: Any, growing: bool) -> Any:
    """What `at` becomes when the value stands where the steps lead; keys of objects, or places in lists."""
    if not steps:
        return at + value if growing and isinstance(value, str) else value
    step, *rest = steps
    if at is not None and _is_object(at) == isinstance(step, int):
        raise ValueError(f"{step!r} leads nowhere in an argument")
    if not isinstance(step, int):
        return {**as_object(at), step: _put(as_object(at).get(step), rest, value, growing)}
    items: list[Any] = [] if at is None else at.copy()
    if step > len(items):
        raise ValueError(f"[{step}] leaves out an item of an argument")
    items[step : step + 1] = [_put(items[step] if step < len(items) else None, rest, value, growing)]
    return items


def _media(data: Any) -> Any:
    kind = _text(data.get("mimeType")) or "application/octet-stream"
    media: Any = {"image": Image, "audio": Audio}.get(kind.partition("/")[0], Document)
    return media(
        data=base64.b64decode(data["data"], validate=True), media_type=kind, name=_text(data.get("displayName"))
    )


def _in_words(part: Mapping[str, Any]) -> str:
    """What a part of Google's own tools says, for other providers."""
    if code := part.get("executableCode"):
        return f"```{str(code.get('language') or '').lower()}\n{code.get('code') or ''}\n```"
    if result := part.get("codeExecutionResult"):
        return f"The code ended with {result.get('outcome')}:\n{result.get('output') or ''}".strip()
    if call := part.get("toolCall"):
        return f"Called {call.get('toolType')}: {_json(call.get('args'))}"
    if answer := part.get("toolResponse"):
        return f"{answer.get('toolType')} answered: {_json(answer.get('response'))[:2000]}"
    return ""


def _sources(about: Mapping[str, Any]) -> str:
    """What an answer is grounded on, in words."""
    chunks = as_object(about.get("groundingMetadata")).get("groundingChunks") or ()
    found = [source for chunk in chunks for source in chunk.values() if source.get("uri")]
    lines = [f"- {source.get('title') or 'untitled'}: {source['uri']}" for source in found]
    return "\n".join(["Sources:", *lines]) if lines else ""


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no string")
    return value


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
