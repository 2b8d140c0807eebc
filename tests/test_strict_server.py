"""The strict server's own rules: a valid conversation passes, and each thing that a vendor refuses is refused."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import servers
from tests.strict_server import FAULTS, ROUNDS, StrictModel, choose, faults

from nitinol import Agent, run, tool
from nitinol.retry import Retry
from nitinol_providers import OpenAICompatible

Body = dict[str, Any]


def called(call_id: str, name: str = "look", **arguments: Any) -> Body:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def declared(name: str, **properties: str) -> Body:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": [*properties],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}


def answered(call_id: str) -> Body:
    return {"role": "tool", "tool_call_id": call_id, "content": "seen"}


VALID: Body = {
    "model": "strict",
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 100,
    "temperature": 0.5,
    "user": "somebody",
    "tools": [declared("look", what="string", often="integer"), declared("pay")],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [called("a", what="x", often=1), called("b", "pay")]},
        answered("b"),
        answered("a"),
        {"role": "assistant", "content": "and", "tool_calls": [called("a", "pay")]},
        answered("a"),
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": [{"type": "text", "text": "again"}]},
    ],
}


def test_a_valid_request_passes() -> None:
    """Parallel calls, answers in any order, ids that repeat in another turn, words and parts."""
    assert faults(VALID) == []
    assert faults({"model": "m", "messages": [{"role": "user", "content": "hi"}]}) == []


def put(*path: Any) -> Callable[[Body], None]:
    """Set what stands at a path to its last element."""

    def change(body: Any) -> None:
        *way, last, value = path
        for step in way:
            body = body[step]
        body[last] = value

    return change


def remove(*path: Any) -> Callable[[Body], None]:
    """Delete what stands at a path."""

    def change(body: Any) -> None:
        *way, last = path
        for step in way:
            body = body[step]
        del body[last]

    return change


def insert(at: int, message: Body) -> Callable[[Body], None]:
    """One more message."""

    def change(body: Any) -> None:
        body["messages"].insert(at, message)

    return change


CALL = ("messages", 2, "tool_calls", 0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (put("nonsense", 1), "unknown parameter 'nonsense'"),
        (put("stream", "yes"), "stream='yes' has the wrong type"),
        (put("user", 1), "user=1 has the wrong type"),
        (put("model", ""), "there is no model"),
        (put("max_tokens", 0), "a limit of 0 tokens is not positive"),
        (put("max_tokens", True), "max_tokens=True has the wrong type"),
        (put("max_completion_tokens", 9), "exclude each other"),
        (put("temperature", 3), "temperature=3 is not between 0 and 2"),
        (put("stream", False), "stream_options without stream"),
        (put("stream_options", {"usage": True}), "has an unknown key"),
        (put("stream_options", {"include_usage": 1}), "include_usage is no boolean"),
        (remove("tools"), "names the tool 'look', which is not declared"),
        (put("tools", []), "tools is empty"),
        (put("tools", 0, "type", "tool"), "tools[0] is no function"),
        (put("tools", 0, "function", "name", "no space"), "name 'no space' is not"),
        (put("tools", 1, "function", "name", "look"), "the name 'look' is taken"),
        (put("tools", 0, "function", "replay", "safe"), "tools[0]: unknown key"),
        (put("tools", 0, "function", "parameters", {"type": "string"}), "parameters is no schema of an object"),
        (put("messages", []), "there are no messages"),
        (put("messages", 0, "role", "robot"), "role 'robot' is none of"),
        (insert(2, {"role": "system", "content": "More."}), "the system speaks first, and once"),
        (insert(1, {"role": "user", "content": "more"}), "two user messages in a row"),
        (insert(7, {"role": "assistant", "content": "more"}), "two assistant messages in a row"),
        (remove("messages", 1), "the first message after the system's is not a user's"),
        (remove("messages", 8), "the conversation ends with assistant"),
        (remove("messages", 4), "the calls ['a'] before it are not answered"),
        (insert(3, {"role": "user", "content": "wait"}), "the calls ['a', 'b'] before it are not answered"),
        (insert(5, answered("a")), "'a' is no call before it that waits for an answer"),
        (insert(8, answered("z")), "'z' is no call before it that waits for an answer"),
        (insert(9, {"role": "assistant", "tool_calls": [called("c", "pay")]}), "the calls ['c'] are not answered"),
        (put("messages", 7, "content", None), "an empty assistant message"),
        (put("messages", 7, "content", ""), "empty content"),
        (put("messages", 1, "content", ""), "empty content"),
        (put("messages", 1, "content", 1), "content 1 of a user message has the wrong type"),
        (put("messages", 3, "content", ["seen"]), "of a tool message has the wrong type"),
        (put("messages", 8, "content", []), "empty content"),
        (put("messages", 8, "content", [{"type": "text"}]), "is no part of a message"),
        (put("messages", 1, "reasoning", "hm"), "a user message with ['reasoning']"),
        (remove("messages", 3, "tool_call_id"), "a tool message without ['tool_call_id']"),
        (put("messages", 2, "tool_calls", []), "tool_calls is no list, or empty"),
        (put(*CALL, "id", "b"), "two calls have the id 'b'"),
        (put(*CALL, "id", "x" * 41), "is not 1 to 40 characters"),
        (put(*CALL, "id", None), "the id None is not 1 to 40 characters"),
        (put(*CALL, "index", 0), "is no call of a function"),
        (put(*CALL, "function", "strict", True), "has not name and arguments, and nothing else"),
        (put(*CALL, "function", "name", "fly"), "names the tool 'fly', which is not declared"),
        (put(*CALL, "function", "arguments", '{"what": "x", "of'), "is truncated"),
        (put(*CALL, "function", "arguments", {"what": "x"}), "is truncated"),
        (put(*CALL, "function", "arguments", "[]"), "look is no object"),
        (put(*CALL, "function", "arguments", '{"what": "x"}'), "look.often is missing"),
        (put(*CALL, "function", "arguments", '{"what": "x", "often": "1"}'), "look.often is no integer"),
        (put(*CALL, "function", "arguments", '{"what": "x", "often": 1, "y": 1}'), "look.y is unknown"),
    ],
)
def test_each_rule_refuses(change: Callable[[Body], None], fault: str) -> None:
    """One thing wrong is enough, and is named."""
    body = copy.deepcopy(VALID)
    change(body)
    assert any(fault in found for found in faults(body)), faults(body)


NONSENSE: list[Any] = [None, [], "text", {}, {"messages": [None, {"role": []}], "tools": [1, {}]}]


@pytest.mark.parametrize("body", NONSENSE)
def test_nonsense_is_refused_and_not_raised(body: object) -> None:
    """Whatever comes, the checker answers."""
    assert faults(body)


def test_its_answers_are_chosen_by_seed_and_end() -> None:
    """The same chance gives the same; after enough rounds there are words; all that it can say is said."""
    assert choose(VALID, random.Random(1)) == choose(VALID, random.Random(1))
    answers = [choose(VALID, random.Random(seed)) for seed in range(500)]
    assert {answer.fault for answer in answers} == {None, *FAULTS}
    assert {len(answer.calls) for answer in answers} == {0, 1, 2, 3, 4}
    tired = copy.deepcopy(VALID)
    tired["messages"].extend([{"role": "assistant", "tool_calls": [called("c", "pay")]}, answered("c")] * ROUNDS)
    assert all(answer.text and not answer.calls for answer in (choose(tired, random.Random(n)) for n in range(50)))


@tool
def look(what: str, often: int) -> str:
    """Look."""
    return f"{what} {often}"


def test_a_run_through_it(tmp_path: Path) -> None:
    """A real agent's requests are valid, its run ends, and the book knows what was asked and given."""
    model = StrictModel(tmp_path / "book", seed=5)
    with servers.Server(model) as server:
        provider = OpenAICompatible("strict", base_url=f"{server.url}/v1", api_key="key")
        agent = Agent(name="a", model=provider, tools=[look], retry=Retry(base=0.001))
        results = [run(f"go {number}", agent) for number in range(5)]
    model.close()
    assert {result.status for result in results} == {"completed"}
    lines = [json.loads(line) for line in (tmp_path / "book").read_text().splitlines()]
    asked = [line for line in lines if "request" in line]
    assert len(asked) == len(server.requests)
    assert all(line["faults"] == [] for line in asked)
    assert {line["answered"] for line in lines if "answered" in line} == {line["request"] for line in asked}


def test_a_refusal_is_an_error_of_the_vendors_kind(tmp_path: Path) -> None:
    """The runtime reads it as an invalid request, and does not try again."""
    model = StrictModel(tmp_path / "book", seed=5)
    with servers.Server(model) as server:
        provider = OpenAICompatible("strict", base_url=f"{server.url}/v1", api_key="key")
        result = run("go", Agent(name="a", model=provider, extra={"nonsense": 1}))
    model.close()
    assert result.status == "failed"
    assert "unknown parameter 'nonsense'" in str(result.error)
    assert len(server.requests) == 1
