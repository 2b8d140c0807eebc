"""OpenAI's Responses: items, each with an id of its kind; reasoning is encrypted, and never parted from what it led to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tests.fakes.said import Bill, Heard, Turn, called, event, halves, mapping, sequence

if TYPE_CHECKING:
    from tests.servers import Request

_PREFIX = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}
_PARTS = {"user": ("input_text", "input_image", "input_file"), "assistant": ("output_text", "refusal")}


class Responses:
    """A `Fake` of the Responses API, for those who store nothing there."""

    def __init__(self) -> None:
        self._sent: dict[str, Mapping[str, Any]] = {}
        """The reasoning items that it has made, by what they hold encrypted."""
        self._led: dict[str, str] = {}
        """What was led to, by its id: what the reasoning before it holds encrypted."""
        self._ids = 0

    def read(self, request: Request) -> tuple[list[str], list[Heard]]:
        body = mapping(request.json)
        faults = [*self._faults(request, body)]
        return faults, [] if faults else [*_heard(body)]

    def write(self, turn: Turn, bill: Bill) -> list[bytes]:
        made: list[dict[str, Any]] = []
        items: list[dict[str, Any]] = []

        def tell(kind: str, **fields: Any) -> None:
            made.append({"type": f"response.{kind}", "sequence_number": len(made), **fields})

        def begin(item: dict[str, Any]) -> dict[str, Any]:
            tell("output_item.added", output_index=len(items), item=item)
            return {"item_id": item["id"], "output_index": len(items)}

        def end(item: dict[str, Any]) -> None:
            tell("output_item.done", output_index=len(items), item=item)
            items.append(item)

        response: dict[str, Any] = {
            "id": self._id("resp_"),
            "object": "response",
            "created_at": 1795402469,
            "model": "fake",
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        tell("created", response=response)
        tell("in_progress", response=response)
        encrypted = ""
        if turn.thinking:
            encrypted = self._id("gAAAA")
            item: dict[str, Any] = {"id": self._id("rs_"), "type": "reasoning", "summary": [], "encrypted_content": ""}
            where = {**begin(item), "summary_index": 0}
            tell("reasoning_summary_part.added", **where, part={"type": "summary_text", "text": ""})
            for piece in halves(turn.thinking):
                tell("reasoning_summary_text.delta", **where, delta=piece)
            summary = {"type": "summary_text", "text": turn.thinking}
            tell("reasoning_summary_text.done", **where, text=turn.thinking)
            tell("reasoning_summary_part.done", **where, part=summary)
            end({**item, "summary": [summary], "encrypted_content": encrypted})
            self._sent[encrypted] = items[-1]
        if turn.text:
            item = {"id": self._id("msg_"), "type": "message", "status": "in_progress", "role": "assistant"}
            where = {**begin({**item, "content": []}), "content_index": 0}
            part: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
            tell("content_part.added", **where, part=part)
            for piece in halves(turn.text):
                tell("output_text.delta", **where, delta=piece, logprobs=[])
            tell("output_text.done", **where, text=turn.text, logprobs=[])
            tell("content_part.done", **where, part={**part, "text": turn.text})
            end({**item, "status": "completed", "content": [{**part, "text": turn.text}]})
            self._led[item["id"]] = encrypted
        for name, arguments in turn.calls:
            written = json.dumps(arguments, ensure_ascii=False)
            item = {"id": self._id("fc_"), "type": "function_call", "call_id": self._id("call_"), "name": name}
            where = begin({**item, "status": "in_progress", "arguments": ""})
            for piece in halves(written):
                tell("function_call_arguments.delta", **where, delta=piece)
            tell("function_call_arguments.done", **where, arguments=written)
            end({**item, "status": "completed", "arguments": written})
            self._led[item["id"]] = encrypted
        usage = {
            "input_tokens": bill.input,
            "input_tokens_details": {"cached_tokens": bill.cached},
            "output_tokens": bill.output,
            "output_tokens_details": {"reasoning_tokens": bill.reasoning},
            "total_tokens": bill.input + bill.output,
        }
        tell("completed", response={**response, "status": "completed", "output": items, "usage": usage})
        return [event(data) for data in made]

    def error(self, status: int, message: str) -> object:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}

    def _id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}68fake{self._ids:06}"

    def _faults(self, request: Request, body: Mapping[str, Any]) -> Iterator[str]:
        if not request.headers.get("authorization", "").startswith("Bearer "):
            yield "there is no key"
        if body.get("store") is not False:
            yield "store is not false"
        if "reasoning.encrypted_content" not in sequence(body.get("include")):
            yield "include lacks reasoning.encrypted_content"
        names = [mapping(tool).get("name") for tool in sequence(body.get("tools"))]
        yield from (f"two tools are named {name!r}" for name, many in Counter(names).items() if many > 1)
        if isinstance(body.get("max_output_tokens"), int) and body["max_output_tokens"] < 16:
            yield f"max_output_tokens={body['max_output_tokens']} is below 16"
        items = [mapping(item) for item in sequence(body.get("input"))]
        if not items:
            yield "input is no list of items"
        ids = Counter(str(item["id"]) for item in items if item.get("id"))
        yield from (f"two items have the id {id!r}" for id, many in ids.items() if many > 1)
        for at, item in enumerate(items):
            yield from (f"input[{at}]: {wrong}" for wrong in self._item(item, items[:at], items[at + 1 :]))

    def _item(
        self, item: Mapping[str, Any], before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
    ) -> Iterator[str]:
        kind = str(item.get("type", "message"))
        id, prefix = item.get("id"), _PREFIX.get(kind, "")
        if id is not None and not str(id).startswith(prefix):
            yield f"the id {id!r} of a {kind} does not begin with {prefix!r}"
        if id in self._led and self._led[str(id)] and not _is_led(before, self._led[str(id)]):
            yield f"{id!r} stands without the reasoning that led to it"
        call_id = item.get("call_id")
        match kind:
            case "message":
                yield from _message(item)
            case "reasoning":
                sent = self._sent.get(str(item.get("encrypted_content")))
                if sent is None:
                    yield f"reasoning that was not made here: {item!r}"
                elif (id, item.get("summary")) != (sent["id"], sent["summary"]):
                    yield f"reasoning {id!r} is not as it was made"
                if not after or _role(after[0]) != "assistant":
                    yield f"reasoning {id!r} stands without what it led to"
            case "function_call":
                if not isinstance(call_id, str) or not 0 < len(call_id) <= 64:
                    yield f"call_id {call_id!r} is not 1 to 64 characters"
                if any(other.get("call_id") == call_id for other in before):
                    yield f"call_id {call_id!r} is taken"
                if [o.get("type") for o in after if o.get("call_id") == call_id] != ["function_call_output"]:
                    yield f"call {call_id!r} is not answered once"
                waiting = next((other.get("type") for other in after if _role(other) == "user"), None)
                if waiting != "function_call_output":
                    yield f"the user speaks before call {call_id!r} is answered"
                try:
                    json.loads(item["arguments"])
                except (KeyError, TypeError, ValueError):
                    yield f"the arguments of call {call_id!r} are no JSON"
            case "function_call_output":
                if not any((o.get("type"), o.get("call_id")) == ("function_call", call_id) for o in before):
                    yield f"an output for {call_id!r}, which was not called"
                if not item.get("output"):
                    yield f"an empty output for {call_id!r}"
            case _:
                yield f"an item of type {kind!r}"


def _is_led(before: Sequence[Mapping[str, Any]], encrypted: str) -> bool:
    """Whether this reasoning is the last, and nobody else has spoken since."""
    for item in reversed(before):
        if item.get("type") == "reasoning":
            return str(item.get("encrypted_content")) == encrypted
        if _role(item) == "user":
            return False
    return False


def _role(item: Mapping[str, Any]) -> str:
    """Whose item it is: the model's, or the caller's."""
    if item.get("type", "message") == "message":
        return "assistant" if item.get("role") == "assistant" else "user"
    return "assistant" if item.get("type") in _PREFIX else "user"


def _message(item: Mapping[str, Any]) -> Iterator[str]:
    role, content = str(item.get("role")), item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        yield f"a message of {role!r}"
    if not content:
        yield f"an empty message of {role}"
    for part in sequence(content):
        kind = mapping(part).get("type")
        if kind not in _PARTS.get(role, _PARTS["user"]):
            yield f"a part of type {kind!r} from {role}"
        if kind in ("input_text", "output_text") and not part.get("text"):
            yield f"an empty {kind}"


def _heard(body: Mapping[str, Any]) -> Iterator[Heard]:
    for item in sequence(body.get("input")):
        match item.get("type", "message"):
            case "message":
                content = item.get("content")
                parts = [content] if isinstance(content, str) else [part.get("text", "") for part in sequence(content)]
                if item.get("role") in ("user", "assistant"):
                    yield item["role"], "".join(parts)
            case "function_call":
                yield called(item.get("name"), json.loads(item.get("arguments") or "null"))
            case "function_call_output":
                output = item.get("output", "")
                yield "result", output if isinstance(output, str) else "".join(p.get("text", "") for p in output)
            case _:
                pass
