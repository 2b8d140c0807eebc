"""A server of chat completions on loopback, as strict about conversations as the vendors: `python -m tests.strict_server BOOK SEED`.

`faults` says what is wrong with a request; it takes the strictest vendor's side in each rule. The server refuses such a
request, and answers any other by a choice that depends on the seed and the conversation alone: words, calls of the tools
that were declared, or a deliberate fault, as real servers have them. After a few rounds of tools it answers in words, so
every run ends. It prints its address and lives until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import string
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tests import servers

# ---- the checker


def faults(body: object) -> list[str]:
    """What a vendor would refuse in the body of a request; empty where nothing."""
    if not isinstance(body, dict):
        return ["the body is no JSON object"]
    request = cast("dict[str, Any]", body)
    return [*_options(request), *_tools(request), *_conversation(request)]


_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_OPTIONS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "messages": (list,),
    "stream": (bool,),
    "stream_options": (dict,),
    "tools": (list,),
    "tool_choice": (str, dict),
    "parallel_tool_calls": (bool,),
    "max_tokens": (int,),
    "max_completion_tokens": (int,),
    "temperature": (int, float),
    "top_p": (int, float),
    "stop": (str, list),
    "seed": (int,),
    "reasoning_effort": (str,),
    "response_format": (dict,),
    "metadata": (dict,),
    "user": (str,),
}
_FIELDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "system": (frozenset(("role", "content")), frozenset(("name",))),
    "user": (frozenset(("role", "content")), frozenset(("name",))),
    "assistant": (frozenset(("role",)), frozenset(("content", "tool_calls", "name", "refusal"))),
    "tool": (frozenset(("role", "content", "tool_call_id")), frozenset()),
}
"""Of each role, the fields that a message must have, and those that it may."""
_PARTS: Mapping[str, type] = {"text": str, "image_url": dict, "input_audio": dict, "file": dict}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_ID_LENGTH = 40


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _options(request: Mapping[str, Any]) -> Iterator[str]:
    for name, value in request.items():
        if name not in _OPTIONS:
            yield f"unknown parameter {name!r}"
        elif not _is(value, _OPTIONS[name]):
            yield f"{name}={value!r} has the wrong type"
    if not request.get("model"):
        yield "there is no model"
    limits = [request[name] for name in ("max_tokens", "max_completion_tokens") if name in request]
    if len(limits) > 1:
        yield "max_tokens and max_completion_tokens exclude each other"
    yield from (f"a limit of {limit!r} tokens is not positive" for limit in limits if _is(limit, (int,)) and limit < 1)
    for name, most in (("temperature", 2), ("top_p", 1)):
        if _is(request.get(name), (int, float)) and not 0 <= request[name] <= most:
            yield f"{name}={request[name]!r} is not between 0 and {most}"
    if "stream_options" in request:
        if request.get("stream") is not True:
            yield "stream_options without stream"
        if _object(request["stream_options"]).keys() - {"include_usage"}:
            yield f"stream_options={request['stream_options']!r} has an unknown key"
        elif not isinstance(_object(request["stream_options"]).get("include_usage", False), bool):
            yield "stream_options.include_usage is no boolean"
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in request and "tools" not in request:
            yield f"{name} without tools"


def _tools(request: Mapping[str, Any]) -> Iterator[str]:
    if "tools" in request and not request["tools"]:
        yield "tools is empty"
    seen: set[str] = set()
    for at, tool in enumerate(_list(request.get("tools"))):
        function = _object(_object(tool).get("function"))
        name = function.get("name")
        if _object(tool).get("type") != "function" or set(_object(tool)) != {"type", "function"}:
            yield f"tools[{at}] is no function"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            yield f"tools[{at}]: name {name!r} is not 1 to 64 letters, digits, _ or -"
        elif name in seen:
            yield f"tools[{at}]: the name {name!r} is taken"
        seen.add(str(name))
        if function.keys() - {"name", "description", "parameters", "strict"}:
            yield f"tools[{at}]: unknown key in {sorted(function)}"
        if _object(function.get("parameters", {"type": "object"})).get("type") != "object":
            yield f"tools[{at}]: parameters is no schema of an object"


def _conversation(request: Mapping[str, Any]) -> Iterator[str]:
    """Roles and their order, and that each call is answered exactly once, directly after it."""
    messages = _list(request.get("messages"))
    if not messages:
        yield "there are no messages"
    schemas = schemas_of(request)
    waiting: list[str] = []
    before: str | None = None
    for at, message in enumerate(messages):
        where, fields = f"messages[{at}]", _object(message)
        role = fields.get("role")
        if not isinstance(role, str) or role not in _FIELDS:
            yield f"{where}: role {role!r} is none of {sorted(_FIELDS)}"
            continue
        needed, allowed = _FIELDS[role]
        if missing := needed - fields.keys():
            yield f"{where}: a {role} message without {sorted(missing)}"
        if unknown := fields.keys() - needed - allowed:
            yield f"{where}: a {role} message with {sorted(unknown)}"
        if waiting and role != "tool":
            yield f"{where}: the calls {waiting} before it are not answered"
            waiting = []
        if role == "system" and at:
            yield f"{where}: the system speaks first, and once"
        if role == before and role in ("user", "assistant"):
            yield f"{where}: two {role} messages in a row"
        if role in ("assistant", "tool") and before in (None, "system"):
            yield f"{where}: the first message after the system's is not a user's"
        if role == "tool":
            answered = fields.get("tool_call_id")
            if answered in waiting:
                waiting.remove(answered)
            else:
                yield f"{where}: {answered!r} is no call before it that waits for an answer"
        if role == "assistant" and "tool_calls" in fields:
            yield from _calls(where, fields["tool_calls"], schemas)
            waiting = [str(_object(call).get("id")) for call in _list(fields["tool_calls"])]
        yield from _content(where, role, fields)
        before = role
    if waiting:
        yield f"the calls {waiting} are not answered"
    if messages and before not in ("user", "tool"):
        yield f"the conversation ends with {before}"


def _content(where: str, role: str, fields: Mapping[str, Any]) -> Iterator[str]:
    content = fields.get("content")
    if content is None and role == "assistant":
        if not fields.get("tool_calls"):
            yield f"{where}: an empty assistant message"
    elif _is(content, (list,)) and role == "user":
        for part in _list(content):
            kind = str(_object(part).get("type"))
            if kind not in _PARTS or not isinstance(part.get(kind), _PARTS[kind]) or not part[kind]:
                yield f"{where}: {part!r} is no part of a message"
        if not content:
            yield f"{where}: empty content"
    elif not isinstance(content, str):
        yield f"{where}: content {content!r} of a {role} message has the wrong type"
    elif not content:
        yield f"{where}: empty content"


def _calls(where: str, calls: object, schemas: Mapping[str, Any]) -> Iterator[str]:
    if not _list(calls):
        yield f"{where}: tool_calls is no list, or empty"
    seen: set[str] = set()
    for call in _list(calls):
        fields = _object(call)
        function, call_id = _object(fields.get("function")), fields.get("id")
        if set(fields) != {"id", "type", "function"} or fields.get("type") != "function":
            yield f"{where}: {call!r} is no call of a function"
        if not isinstance(call_id, str) or not 0 < len(call_id) <= _ID_LENGTH:
            yield f"{where}: the id {call_id!r} is not 1 to {_ID_LENGTH} characters"
        elif call_id in seen:
            yield f"{where}: two calls have the id {call_id!r}"
        seen.add(str(call_id))
        name, written = str(function.get("name")), function.get("arguments")
        if set(function) != {"name", "arguments"}:
            yield f"{where}: call {call_id!r} has not name and arguments, and nothing else"
        if name not in schemas:
            yield f"{where}: call {call_id!r} names the tool {name!r}, which is not declared"
            continue
        try:
            arguments = json.loads(cast("str", written))
        except (TypeError, ValueError):
            yield f"{where}: call {call_id!r} is truncated: {written!r} is no JSON"
            continue
        yield from (f"{where}: call {call_id!r}: {misfit}" for misfit in _misfits(schemas[name], arguments, name))


def _misfits(schema: Mapping[str, Any], value: Any, at: str) -> Iterator[str]:
    """Where a value does not fit a JSON schema, of which the common words are known."""
    kind = schema.get("type")
    if isinstance(kind, str) and not _is(value, _TYPES[kind]):
        yield f"{at} is no {kind}: {value!r}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is none of {schema['enum']!r}: {value!r}"
    if "anyOf" in schema and all(list(_misfits(one, value, at)) for one in schema["anyOf"]):
        yield f"{at} fits none of its kinds: {value!r}"
    if _is(value, (dict,)):
        given, known = _object(value), _object(schema.get("properties"))
        yield from (f"{at}.{name} is missing" for name in _list(schema.get("required")) if name not in given)
        for name, item in given.items():
            if name in known:
                yield from _misfits(known[name], item, f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{at}.{name} is unknown"
    for number, item in enumerate(_list(value)):
        yield from _misfits(_object(schema.get("items")), item, f"{at}[{number}]")


def schemas_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The declared tools: name to the schema of its arguments."""
    functions = [_object(_object(tool).get("function")) for tool in _list(request.get("tools"))]
    return {str(function.get("name")): _object(function.get("parameters")) for function in functions}


def _object(value: object) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return cast("Sequence[Any]", value) if isinstance(value, list) else ()


def tokens_of(request: Mapping[str, Any]) -> int:
    """How long a request is, in tokens that are pieces of words, as a tokenizer of no vendor has them."""
    told = json.dumps([request.get("messages"), request.get("tools")], ensure_ascii=False)
    return sum(1 for _ in _TOKEN.finditer(told))


_TOKEN = re.compile(r" ?[^\W\d_]{1,5}|\d{1,3}|[^\w\s]{1,2}|\s+|_")


# ---- what it answers

Fault = Literal["rate limited", "unavailable", "cut", "error in stream"]
FAULTS: Sequence[Fault] = ("rate limited", "unavailable", "cut", "error in stream")
ROUNDS = 3
"""Rounds of tools after a user's message; then it answers in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a valid request is given."""

    text: str | None
    calls: Sequence[Mapping[str, Any]]
    """As in a message: id, type, function."""
    usage: Mapping[str, int]
    fault: Fault | None
    """How it goes wrong, on purpose."""


def choose(request: Mapping[str, Any], chance: random.Random) -> Answer:
    """An answer to a valid request. Every string that it gives to a tool is unique."""
    fault = chance.choice(FAULTS) if chance.random() < 0.1 else None
    rounds = 0
    for message in request["messages"]:
        rounds = 0 if message["role"] == "user" else rounds + (message["role"] == "assistant")
    schemas = schemas_of(request)
    many = 0 if rounds >= ROUNDS or not schemas else chance.choice((0, 0, 1, 1, 1, 2, 3, 4))
    names = chance.sample(sorted(schemas), min(many, len(schemas)))  # several calls are of different tools first
    names += chance.choices(sorted(schemas), k=many - len(names)) if schemas else []
    counts = chance.random() < 0.2  # as simple servers do, whose ids are the same in each answer
    ids = [f"call_{index}" if counts else f"call_{_word(chance, 24)}" for index in range(len(names))]
    calls = [call_of(id, name, schemas[name], chance) for id, name in zip(ids, names, strict=True)]
    speaks = not calls or chance.random() < 0.3
    text = " ".join(_word(chance, 6) for _ in range(chance.randint(1, 10))) if speaks else None
    return Answer(text=text, calls=calls, usage=usage_of(request, text, calls), fault=fault)


def usage_of(request: Mapping[str, Any], text: str | None, calls: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """What it bills."""
    prompt = tokens_of(request)
    completion = 1 + (len(text or "") + len(json.dumps(calls))) // 4
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def call_of(id: str, name: str, schema: Mapping[str, Any], chance: random.Random) -> Mapping[str, Any]:
    """A call of a tool, with arguments that fit."""
    made = {key: _value(_object(kind), chance) for key, kind in _object(schema.get("properties")).items()}
    function = {"name": name, "arguments": json.dumps(made)}
    return {"id": id, "type": "function", "function": function}


def _value(schema: Mapping[str, Any], chance: random.Random) -> Any:
    match schema.get("type"):
        case "string":
            return _word(chance, 16)
        case "boolean":
            return chance.random() < 0.5
        case "integer" | "number":
            return chance.randint(1, 100)
        case kind:
            raise NotImplementedError(f"the strict server makes no arguments of type {kind!r} yet")


def _word(chance: random.Random, length: int) -> str:
    return "".join(chance.choices(string.ascii_letters + string.digits, k=length))


def _chunks(answer: Answer, id: str, chance: random.Random) -> list[bytes]:
    """The answer as server-sent events; the terminal one is the last."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if answer.text is None else ""}]
    deltas += [{"content": piece} for piece in re.findall(r"\S+\s*", answer.text or "")]
    for index, call in enumerate(answer.calls):
        written = call["function"]["arguments"]
        half = chance.randint(0, len(written))
        deltas.append({"tool_calls": [{**call, "index": index, "function": {**call["function"], "arguments": ""}}]})
        for piece in (written[:half], written[half:]):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if answer.calls else "stop"})
    shared = {"id": id, "object": "chat.completion.chunk", "created": 1795402469, "model": "strict"}
    events: list[dict[str, Any]] = [{**shared, "choices": [choice], "usage": None} for choice in choices]
    events.append({**shared, "choices": [], "usage": answer.usage})
    return [*(b"data: %b\n\n" % json.dumps(event).encode() for event in events), b"data: [DONE]\n\n"]


def _error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


_BROKEN = b"data: %b\n\n" % json.dumps(_error("The server had an error", "server_error")).encode()

# ---- the server


class StrictModel:
    """The script of a `tests.servers.Server`: checks, chooses, answers, and keeps the books.

    A line of the book for each request, before it is answered: its number, `user`, what was wrong with it, and what it is
    given; and one when the answer has been sent, `whole` or not.

    Args:
        book: Where its lines go.
        seed: Of its choices.
        window: Tokens that a request and the answer it asks for may have; a longer one is refused as vendors do.
        overflows: Numbers of requests that are refused as too long, and are not.
    """

    def __init__(self, book: Path, seed: int, *, window: int | None = None, overflows: Collection[int] = ()) -> None:
        self._book = book.open("a", buffering=1)
        self._seed = seed
        self._window, self._overflows = window, overflows
        self._number = 0
        self._asked: Counter[str] = Counter()

    def close(self) -> None:
        """Close the book."""
        self._book.close()

    def choose(self, request: Mapping[str, Any], chance: random.Random) -> Answer:
        """What a valid request is answered."""
        return choose(request, chance)

    async def __call__(self, connection: servers.Connection) -> bool:
        self._number = number = self._number + 1
        try:
            received = connection.request.json
        except ValueError:
            received = None
        body = _object(received)
        wrong = [*_outside(connection.request), *faults(received)]
        line = {"request": number, "user": body.get("user"), "faults": wrong}
        if wrong:
            self._write(line)
            refused = servers.answer(400, _error("; ".join(wrong), "invalid_request_error"))
            return bool(await refused(connection))
        asked = tokens_of(body)
        longest = asked + int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)
        planted = number in self._overflows
        if self._window is not None and (planted or longest > self._window):
            self._write({**line, "too_long": asked, "planted": planted})
            what = (
                f"This model's maximum context length is {self._window} tokens. However, you requested {longest} tokens"
            )
            refused = servers.answer(400, _error(what, "invalid_request_error", "context_length_exceeded"))
            return bool(await refused(connection))
        # The same conversation asked again may have another answer, or a fault would be for ever.
        conversation = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        self._asked[conversation] += 1
        chance = random.Random(f"{self._seed}/{conversation}/{self._asked[conversation]}")
        answer = self.choose(body, chance)
        given = {"text": answer.text, "calls": answer.calls, "usage": answer.usage, "fault": answer.fault}
        self._write({**line, **given})
        whole = False
        try:
            whole = await self._answer(connection, answer, f"chatcmpl-{number}", chance)
        finally:
            self._write({"answered": number, "whole": whole})
        return answer.fault != "cut"

    async def _answer(self, connection: servers.Connection, answer: Answer, id: str, chance: random.Random) -> bool:
        if answer.fault == "rate limited":
            limited = _error("Rate limit reached", "requests", "rate_limit_exceeded")
            wait = {"retry_after": "1"} if chance.random() < 0.2 else {"retry_after_ms": "20"}
            await servers.answer(429, limited, **wait)(connection)
            return False
        if answer.fault == "unavailable":
            await servers.answer(503, _error("Overloaded", "server_error"))(connection)
            return False
        pieces = _chunks(answer, id, chance)
        if answer.fault is not None:
            pieces = pieces[: chance.randint(1, len(pieces) - 2)]
        if answer.fault == "error in stream":
            pieces.append(_BROKEN)
        await connection.send(servers.head(200, transfer_encoding="chunked"))
        for piece in pieces:
            await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(chance.uniform(0.0, 0.004))
        if answer.fault == "cut":
            connection.reset()
            return False
        await connection.send(b"0\r\n\r\n")
        return answer.fault is None

    def _write(self, line: Mapping[str, Any]) -> None:
        self._book.write(json.dumps(line) + "\n")


def _outside(request: servers.Request) -> Iterator[str]:
    """What is wrong around the body."""
    if (request.method, request.path) != ("POST", "/v1/chat/completions"):
        yield f"{request.method} {request.path} is unknown"
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        yield f"content-type {request.headers.get('content-type')!r} is not JSON"
    if not re.fullmatch(r"Bearer \S+", request.headers.get("authorization", "")):
        yield "there is no key"


def main() -> None:
    model = StrictModel(Path(sys.argv[1]), int(sys.argv[2]))
    with servers.Server(model, keep=False) as server:
        print(f"{server.url}/v1", flush=True)
        sys.stdin.read()
    model.close()


if __name__ == "__main__":
    main()
