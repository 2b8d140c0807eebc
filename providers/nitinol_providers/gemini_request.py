"""A request in the words of Gemini's `generateContent`: contents of a user and a model, each a list of parts."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from nitinol.messages import Audio, Document, Image, Media, Message, Native, Text, Thinking, ToolAnswer, ToolCall
from nitinol.provider import ModelRequest
from nitinol.provider import Thinking as ThinkingOption
from nitinol_providers.requests import arguments_of, effort, given, lower, note, schema_words, thinking_tokens

NAME = "gemini"
UNSIGNED = "skip_thought_signature_validator"
"""What stands for the signature of a call that this model did not sign; Google documents it for such transcripts.

Gemini 3 and later refuse a turn whose first call has no signature. https://ai.google.dev/gemini-api/docs/thought-signatures
"""
ABOUT = frozenset(
    [
        "citationMetadata",
        "finishMessage",
        "finishReason",
        "groundingMetadata",
        "promptFeedback",
        "safetyRatings",
        "urlContextMetadata",
    ]
)
"""What is told of an answer, beside its parts; it has no place in a request."""

_BEFORE_3 = re.compile(r"(?:models/)?(?:gemini-(?:1|2|exp|pro-vision)\b|gemma|learnlm)")
_OF_ANSWERS = re.compile("tools|tool_?[cC]onfig|cached_?[cC]ontent")
"""What an answer may call, and a cache, which has its own system prompt: one beside it is refused."""
_SHAPE = re.compile("response.*|speechConfig|imageConfig|logprobs|candidateCount")
"""What an answer must be, in its `generationConfig`."""
_ALIKE = {"image/jpg": "image/jpeg", "audio/x-wav": "audio/wav", "audio/wave": "audio/wav", "audio/x-m4a": "audio/m4a"}
_IN_ANSWERS = frozenset(("application/pdf", "image/png", "image/jpeg", "image/webp"))
_SOUND = "aac aiff flac m4a mp3 mp4 mpeg mpga ogg opus pcm wav webm x-aac"
_TAKEN = _IN_ANSWERS | {"image/heic", "image/heif", *(f"audio/{kind}" for kind in _SOUND.split())}
_GO_ON: Mapping[str, Any] = {"role": "user", "parts": [{"text": "Go on."}]}
_UNKNOWN = "application/octet-stream"


def body(model: str, request: ModelRequest) -> dict[str, Any]:
    """The whole body. What stands in `request.extra` is merged into it, object by object, and wins; tools add up.

    Of two limits of the answer the lower one holds.
    """
    extra = _camel(given(request, _OF_ANSWERS))
    told = extra.get("generationConfig")
    if isinstance(told, Mapping):
        told = _camel(cast("Mapping[str, Any]", told))
        is_summary = request.purpose == "compact"
        extra["generationConfig"] = {k: v for k, v in told.items() if not (is_summary and _SHAPE.fullmatch(k))}
    tools: list[Any] = (
        [{"functionDeclarations": [_declaration(tool) for tool in request.tools]}] if request.tools else []
    )
    more = extra.pop("tools", ())
    tools += more if isinstance(more, (list, tuple)) else [more]
    system = request.instructions or ""
    config: dict[str, Any] = {}
    if request.max_output_tokens is not None:
        config["maxOutputTokens"] = request.max_output_tokens
    if request.temperature is not None:
        config["temperature"] = request.temperature
    if request.thinking is not None:
        config["thinkingConfig"] = _thinking(model, request.thinking)
    if request.output_schema is not None and tools and is_before_3(model):
        # These refuse a schema beside tools: the model is told in words, and the run checks what it says.
        system = f"{system}\n\n{schema_words(request.output_schema)}".strip()
    elif request.output_schema is not None:
        config |= {"responseMimeType": "application/json", "responseJsonSchema": request.output_schema}
    made: dict[str, Any] = {"contents": contents(model, request.messages)}
    if system:
        made["systemInstruction"] = {"parts": [{"text": system}]}
    if tools:
        made["tools"] = tools
    if len(tools) > 1 and request.tools and not is_before_3(model):
        made["toolConfig"] = {"includeServerSideToolInvocations": True}  # without it, ours and theirs do not mix
    if config:
        made["generationConfig"] = config
    merged = _merged(made, extra)
    settings = merged.get("generationConfig")
    if isinstance(settings, Mapping) and "maxOutputTokens" in settings:
        limit = lower(request.max_output_tokens, settings["maxOutputTokens"])
        merged["generationConfig"] = {**cast("Mapping[str, Any]", settings), "maxOutputTokens": limit}
    return merged


def contents(model: str, messages: Iterable[Message]) -> list[Mapping[str, Any]]:
    """The conversation; what one side says in a row is one content, and none is empty."""
    made: list[dict[str, Any]] = []
    for message in messages:
        role = "model" if message.role == "assistant" else "user"
        parts = _answer(model, message) if role == "model" else _said(model, message)
        if made and made[-1]["role"] == role:
            made[-1]["parts"] += parts
        elif parts:
            made.append({"role": role, "parts": parts})
    if not is_before_3(model):
        for content in made:
            _sign(content["parts"])
    # A user begins, and a user ends, also where the model has only paused.
    first, last = ([_GO_ON] if made and made[at]["role"] == "model" else [] for at in (0, -1))
    return [*first, *made, *last]


def is_before_3(model: str) -> bool:
    """Whether it takes a thinking budget, needs no signatures, and has tools or a schema, but not both."""
    return _BEFORE_3.match(model) is not None


def _declaration(tool: Any) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}


def _answer(model: str, message: Message) -> list[dict[str, Any]]:
    """The parts of an assistant's message. What a model signed goes back to that model alone."""
    own = message.provider == NAME
    signed = own and message.model == model
    made: list[dict[str, Any]] = []
    for part in message.parts:
        match part:
            case Text() if part.text:
                made.append({"text": part.text})
            case Thinking() if signed and part.signature:
                made.append({"text": part.text, "thought": True, "thoughtSignature": part.signature})
            case ToolCall():
                call = {"id": part.call_id, "name": _name(part.name), "args": arguments_of(part)}
                signature = {"thoughtSignature": part.signature} if signed and part.signature else {}
                made.append({"functionCall": call, **signature})
            case Image() | Audio() | Document():
                made.append((_medium(part) if own else None) or {"text": note(part)})
            case Native() if not own or ("thoughtSignature" in part.data and not signed):
                if part.text:
                    made.append({"text": part.text})
            case Native() if set(part.data) == {"thoughtSignature"}:
                _close(made, part.data)
            case Native() if part.data and not part.data.keys() <= ABOUT:
                made.append(dict(part.data))
            case _:
                pass
    return made


def _close(made: list[dict[str, Any]], signature: Mapping[str, Any]) -> None:
    """Put a signature where it stood: on the part before it, or where that is gone, on an empty one."""
    if made and made[-1].keys() <= {"text", "inlineData"}:
        made[-1] |= signature
    else:
        made.append({"text": "", **signature})


def _sign(parts: list[dict[str, Any]]) -> None:
    first = next((part for part in parts if "functionCall" in part), None)
    if first is not None:
        first.setdefault("thoughtSignature", UNSIGNED)


def _said(model: str, message: Message) -> list[dict[str, Any]]:
    """The parts of a user's or a tool's message; a tool's media stand in its answer, or behind all answers."""
    made: list[dict[str, Any]] = []
    behind: list[dict[str, Any]] = []
    for part in message.parts:
        match part:
            case Text() if part.text:
                made.append({"text": part.text})
            case Image() | Audio() | Document():
                made.append(_medium(part) or {"text": note(part)})
            case ToolAnswer():
                made.append({"functionResponse": _response(model, part, behind)})
            case _:
                pass
    return made + behind


def _response(model: str, answer: ToolAnswer, behind: list[dict[str, Any]]) -> dict[str, Any]:
    text = answer.text
    inside: list[dict[str, Any]] = []
    for medium in answer.media:
        shown = _medium(medium)
        if shown is None:
            text = f"{text}\n{note(medium)}".strip()
        elif "inlineData" in shown and shown["inlineData"]["mimeType"] in _IN_ANSWERS and not is_before_3(model):
            inside.append(shown)
        else:
            text = f"{text}\n[{medium.type} below]".strip()
            behind += [{"text": f"From the tool {answer.name!r}, call {answer.call_id}:"}, shown]
    made: dict[str, Any] = {"id": answer.call_id, "name": _name(answer.name)}
    made["response"] = {"error" if answer.error else "output": text}
    return {**made, "parts": inside} if inside else made


def _medium(part: Media) -> dict[str, Any] | None:
    """In Gemini's form, or None where it takes no such thing."""
    kind = part.media_type.partition(";")[0].strip().lower()
    kind = _ALIKE.get(kind, kind)
    if part.url is not None:
        return {"fileData": {"fileUri": part.url} if kind == _UNKNOWN else {"fileUri": part.url, "mimeType": kind}}
    data = part.data or b""
    if data and isinstance(part, Document) and kind.startswith(("text/", "application/json")):
        title = f"Document {part.name!r}:\n" if part.name else ""
        return {"text": title + data.decode("utf-8", "replace")}
    if not data or (kind not in _TAKEN and not kind.startswith("video/")):
        return None
    return {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}}


def _thinking(model: str, wanted: ThinkingOption) -> dict[str, Any]:
    """A budget of tokens, or for Gemini 3 and later, a level; each is made of the other where it must."""
    if is_before_3(model):
        tokens = thinking_tokens(wanted)
        return {"thinkingBudget": tokens, "includeThoughts": tokens != 0}
    if wanted == 0 and "flash" in model:
        return {"thinkingLevel": "MINIMAL"}  # only these can all but do without
    level = effort(wanted)
    if level == "medium" and "gemini-3-pro" in model:
        level = "high"  # it has no level between
    return {"thinkingLevel": level.upper(), "includeThoughts": True}


def _name(name: str) -> str:
    """A tool's name as Gemini takes it: others let a model call what they like."""
    sound = re.sub(r"[^A-Za-z0-9_.:-]", "_", name)
    return (sound if re.match("[A-Za-z_]", sound) else f"_{sound}")[:64]


def _camel(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names that ours have: the API takes `generation_config` too, but not beside `generationConfig`."""
    return {re.sub("_([a-z])", lambda found: found[1].upper(), str(name)): value for name, value in options.items()}


def _merged(made: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(made)
    for key, value in extra.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(cast("Any", before), cast("Any", value)) if both else value
    return merged
