"""Gemini: signatures on the parts themselves, no ids, and as many answers as calls, in the same order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tests.fakes.said import Bill, Heard, Turn, called, event, halves, mapping, sequence

if TYPE_CHECKING:
    from tests.servers import Request

UNSIGNED = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")
"""What the vendor documents to stand for the signature of a call that another model made."""
_KINDS = ("text", "functionCall", "functionResponse", "inlineData", "fileData")


class Gemini:
    """A `Fake` of streamGenerateContent."""

    def __init__(self) -> None:
        self._signed: dict[str, Any] = {}

    def read(self, request: Request) -> tuple[list[str], list[Heard]]:
        body = mapping(request.json)
        faults = [*self._faults(request, body)]
        return faults, [] if faults else [*_heard(body)]

    def write(self, turn: Turn, bill: Bill) -> list[bytes]:
        parts: list[dict[str, Any]] = [{"text": piece, "thought": True} for piece in halves(turn.thinking) if piece]
        parts += [{"text": piece} for piece in halves(turn.text) if piece]
        calls: list[dict[str, Any]] = [{"functionCall": {"name": name, "args": args}} for name, args in turn.calls]
        if turn.thinking:
            # Of parallel calls only the first is signed; words are, by a part without any that follows them.
            signed = calls[0] if calls else {"text": ""}
            signed["thoughtSignature"] = self._sign(signed)
            calls = calls or [signed]
        parts += calls
        made: list[dict[str, Any]] = [{"content": {"role": "model", "parts": [part]}, "index": 0} for part in parts]
        made[-1]["finishReason"] = "STOP"
        told: list[bytes] = []
        for at, candidate in enumerate(made, start=1):
            spoken = bill.output - bill.reasoning if at == len(made) else 0
            usage = {
                "promptTokenCount": bill.input,
                "cachedContentTokenCount": bill.cached,
                "thoughtsTokenCount": bill.reasoning,
                "candidatesTokenCount": spoken,
                "totalTokenCount": bill.input + bill.reasoning + spoken,
            }
            whole = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "fake", "responseId": "r-1"}
            told.append(event(whole).replace(b"\n", b"\r\n"))
        return told

    def error(self, status: int, message: str) -> object:
        return {"error": {"code": status, "message": message, "status": "INVALID_ARGUMENT"}}

    def _sign(self, part: Mapping[str, Any]) -> str:
        signature = f"CiQBfake{len(self._signed):08}"
        self._signed[signature] = json.loads(json.dumps(part))
        return signature

    def _faults(self, request: Request, body: Mapping[str, Any]) -> Iterator[str]:
        if not request.headers.get("x-goog-api-key"):
            yield "there is no key"
        if "alt=sse" not in request.path:
            yield "alt=sse is missing"
        declared = [f for tool in sequence(body.get("tools")) for f in sequence(tool.get("functionDeclarations"))]
        names = Counter(mapping(function).get("name") for function in declared)
        yield from (f"two functions are named {name!r}" for name, many in names.items() if many > 1)
        contents = [mapping(content) for content in sequence(body.get("contents"))]
        if not contents or contents[0].get("role") != "user":
            yield "the first content is not a user's"
        if contents and contents[-1].get("role") != "user":
            yield "the last content is not a user's"
        spoke = [at for at, content in enumerate(contents) if content.get("role") == "user" and _speaks(content)]
        waiting: list[Any] = []
        before = None
        for at, content in enumerate(contents):
            where, role, parts = f"contents[{at}]", content.get("role"), sequence(content.get("parts"))
            if role not in ("user", "model"):
                yield f"{where}: role {role!r}"
            if role == before:
                yield f"{where}: two contents of {role} in a row"
            before = role
            if not parts:
                yield f"{where}: no parts"
            for part in parts:
                yield from (f"{where}: {wrong}" for wrong in self._part(mapping(part), role))
            answered = [part["functionResponse"].get("name") for part in parts if "functionResponse" in part]
            if answered != waiting:
                yield f"{where}: the calls {waiting} before it are answered by {answered}"
            calls = [part for part in parts if "functionCall" in part]
            waiting = [call["functionCall"].get("name") for call in calls]
            if calls and at > (spoke or [0])[-1] and not calls[0].get("thoughtSignature"):
                yield f"{where}: the function call {waiting[0]!r} of the open turn has no thoughtSignature"

    def _part(self, part: Mapping[str, Any], role: object) -> Iterator[str]:
        kinds = [kind for kind in _KINDS if kind in part]
        signature = part.get("thoughtSignature")
        if len(kinds) != 1:
            yield f"a part is one of {_KINDS}: {part!r}"
            return
        if "functionCall" in part and role != "model":
            yield f"a function call of {role}"
        if "functionResponse" in part and not isinstance(part["functionResponse"].get("response"), dict):
            yield f"a function response is no object: {part!r}"
        if part.get("text") == "" and signature is None:
            yield "an empty text"
        if part.get("thought"):
            yield f"a thought goes back as one: {part!r}"
        if signature is None or ("functionCall" in part and signature in UNSIGNED):
            return
        if signature not in self._signed:
            yield f"a signature that was not made here: {part!r}"
        elif "functionCall" in part and _call(part) != _call(self._signed[signature]):
            yield f"a signature of another part: {part!r}"


def _call(part: Mapping[str, Any]) -> tuple[object, object]:
    call = mapping(part.get("functionCall"))
    return call.get("name"), call.get("args")


def _speaks(content: Mapping[str, Any]) -> bool:
    return any("functionResponse" not in part for part in sequence(content.get("parts")))


def _heard(body: Mapping[str, Any]) -> Iterator[Heard]:
    for content in sequence(body.get("contents")):
        for part in sequence(content.get("parts")):
            if part.get("text") and not part.get("thought"):
                yield "assistant" if content.get("role") == "model" else "user", part["text"]
            elif "functionCall" in part:
                yield called(*_call(part))
            elif "functionResponse" in part:
                yield "result", json.dumps(part["functionResponse"].get("response"), ensure_ascii=False)
