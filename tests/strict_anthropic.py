"""What the Messages API refuses in a request beyond its types: what a conversation means, as strict as the vendor is.

Stateless: a thought is signed by `sign`, so that anyone can tell whether it came back as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_USERS = frozenset(("text", "image", "document", "tool_result"))
_SAMPLING = ("temperature", "top_p", "top_k")


def sign(thought: str) -> str:
    """The signature of a thought; of a hidden one, with no words, its data."""
    return "Eq" + hashlib.sha256(thought.encode("utf-8", "replace")).hexdigest()


def faults(body: Mapping[str, Any], version: str = "2026-10-21") -> list[str]:
    """What the vendor would refuse; empty where nothing."""
    return [*_options(body, version), *_tools(body), *_conversation(body), *_server_tools(body)]


def _options(body: Mapping[str, Any], version: str) -> Iterator[str]:
    most, thinking = body.get("max_tokens"), body.get("thinking", {})
    if not isinstance(most, int) or most < 1:
        yield f"max_tokens={most!r} is no number of tokens"
    elif thinking.get("type") == "enabled" and not 1024 <= thinking["budget_tokens"] < most:
        yield f"a budget of {thinking['budget_tokens']} is not between 1024 and max_tokens={most}"
    if version != "2023-06-01":
        yield from (f"{name} is no parameter of version {version}" for name in _SAMPLING if name in body)
    elif not 0 <= body.get("temperature", 0) <= 1:
        yield f"temperature={body['temperature']!r} is not between 0 and 1"
    elif thinking and "temperature" in body:
        yield "a model that thinks takes no temperature"
    if '"cache_control"' in json.dumps(body) and json.dumps(body).count('"cache_control"') > 4:
        yield "more than 4 breakpoints of the cache"
    if "system" in body and not all(block["text"].strip() for block in body["system"]):
        yield "an empty system prompt"


def _tools(body: Mapping[str, Any]) -> Iterator[str]:
    names = [tool.get("name") for tool in body.get("tools", ())]
    yield from (f"the tool {name!r} is declared twice" for name in set(names) if name and names.count(name) > 1)
    for tool in body.get("tools", ()):
        if "type" not in tool and (not _ID.fullmatch(tool["name"]) or tool["input_schema"].get("type") != "object"):
            yield f"the tool {tool['name']!r} has a bad name, or a schema that is no object's"
    choice = body.get("tool_choice", {"type": "auto"})
    if choice["type"] in ("any", "tool") and "budget_tokens" in body.get("thinking", {}):
        yield "a tool is forced while the model has a budget to think"
    if choice["type"] == "tool" and choice["name"] not in names:
        yield f"the forced tool {choice['name']!r} is not declared"


def _conversation(body: Mapping[str, Any]) -> Iterator[str]:
    messages: Sequence[Mapping[str, Any]] = body["messages"]
    if not messages or messages[0]["role"] != "user":
        yield "the first message is not the user's"
        return
    if messages[-1]["role"] != "user" and messages[-1]["content"][-1]["type"] in ("text", "thinking", "tool_use"):
        yield "the conversation must end with a user's message: this model goes on with no words of its own"
    before, waiting, used = "assistant", list[str](), set[str]()
    first: Mapping[str, Any] = {}
    for at, message in enumerate(messages):
        role, content = message["role"], cast("list[dict[str, Any]]", message["content"])
        if role == before or not content:
            yield f"messages[{at}]: two of {role} in a row, or empty"
        before = role
        yield from (f"messages[{at}]: {wrong}" for block in content for wrong in _block(block, role))
        answered = [block["tool_use_id"] for block in content if block["type"] == "tool_result"]
        if role == "user":
            if answered != waiting:
                yield f"messages[{at}]: the calls {waiting} are answered by {answered}"
            if any(block["type"] != "tool_result" for block in content[: len(answered)]):
                yield f"messages[{at}]: something stands before the answers"
            first = first if answered else {}
        else:
            first = first or content[0]
        waiting = [block["id"] for block in content if block["type"] == "tool_use"]
        if used & set(waiting) or len(set(waiting)) < len(waiting):
            yield f"messages[{at}]: the ids {waiting} are not unique"
        used.update(waiting)
    if waiting:
        yield f"the calls {waiting} are not answered"
    if first and "budget_tokens" in body.get("thinking", {}) and "thinking" not in first["type"]:
        yield f"thinking is on, and the open turn begins with {first['type']}"


def _block(block: Mapping[str, Any], role: str) -> Iterator[str]:
    kind = block["type"]
    if (kind in _USERS - {"text"}) != (role == "user") and kind != "text":
        yield f"a {kind} block of the {role}"
    if kind == "text" and (not block["text"].strip() or (role == "user" and block.get("citations"))):
        yield f"an empty text, or a citation of the user: {block!r}"
    if kind == "thinking" and block["signature"] != sign(block["thinking"]):
        yield f"a thought that is not as it was signed: {block!r}"
    if kind == "redacted_thinking" and block["data"] != sign(""):
        yield f"a hidden thought that is not as it was: {block!r}"
    if kind in ("thinking", "redacted_thinking") and "cache_control" in block:
        yield f"a breakpoint on {kind}"
    if kind == "tool_use" and not (_ID.fullmatch(block["id"]) and _ID.fullmatch(block["name"])):
        yield f"a call with a bad id or name: {block!r}"
    if kind == "tool_result" and not block["content"]:
        yield "an empty answer"
    if kind == "tool_result" and isinstance(block["content"], list):
        for inner in cast("list[dict[str, Any]]", block["content"]):
            yield from ["an answer holds a call"] if inner["type"] == "tool_use" else _block(inner, "user")
    if kind in ("image", "document") and block["source"]["type"] in ("base64", "text") and not block["source"]["data"]:
        yield f"an empty {kind}"


def _server_tools(body: Mapping[str, Any]) -> Iterator[str]:
    """Each call of a server's tool is answered, but for those of a turn that is still open; no answer without a call."""
    called: dict[str, bool] = {}
    for message in body["messages"]:
        if message["role"] == "user" and any(block["type"] != "tool_result" for block in message["content"]):
            for id, is_open in called.items():
                if is_open:
                    yield f"the server's tool call {id!r} was never answered"
        for block in message["content"]:
            if block["type"].endswith("_tool_use"):
                called[block["id"]] = True
            elif block["type"].endswith("_tool_result"):
                if block["tool_use_id"] not in called:
                    yield f"the server's answer to {block['tool_use_id']!r} has no call before it"
                called[block["tool_use_id"]] = False
            elif block.get("caller", {}).get("tool_id") not in (None, *called):
                yield f"the caller of {block['id']!r} is not before it"
