"""The Responses API before its vendor's own SDK: what we send is what its types let one send, what we read is what it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.conversations import model_requests
from tests.replay import Replay
from tests.responses_stream import USAGE, Json, call, code, events, message, reasoning, refusal, search, sse, stream
from tests.servers import Server
from tests.servers import stream as served
from tests.typed_dicts import misfits

from nitinol.errors import ProviderError
from nitinol.messages import Message, Native, Text, Thinking, ToolCall, to_message
from nitinol.provider import Delta, ModelRequest, ModelResponse
from nitinol_providers.openai import OpenAI
from nitinol_providers.responses_answer import ResponsesAnswer
from nitinol_providers.responses_request import OPENAI, XAI, body

pytestmark = pytest.mark.slow

openai = pytest.importorskip("openai", reason="the judge is not installed")
RECORDINGS = Path(__file__).parent / "recordings" / "responses"
ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=3)
MODEL = "gpt-5.4"
FAST = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

CITE: Json = {
    "type": "url_citation",
    "start_index": 0,
    "end_index": 9,
    "title": "Python",
    "url": "https://docs.python.org/3/",
}
"""A page that a search found."""
ITEMS = st.lists(
    st.one_of(
        st.builds(
            message,
            st.text(max_size=40),
            st.text(max_size=10),
            phase=st.sampled_from((None, "commentary", "final_answer")),
            annotations=st.sampled_from(((), (CITE,))),
        ),
        st.builds(refusal, st.text(min_size=1, max_size=20)),
        st.builds(reasoning, encrypted=st.sampled_from((None, "gAAAAone"))),
        st.builds(reasoning, st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=9)),
        st.builds(
            call,
            st.just("look_up"),
            st.sampled_from(('{"word": "é"}', "{}", "", "{", "[1]", '{"a": "b')),
            caller=st.just({"type": "direct"}),
        ),
        st.builds(
            call, st.just("note"), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2).map(json.dumps)
        ),
        st.builds(search, st.text(max_size=9)),
        st.builds(code, st.text(max_size=30), st.text(max_size=9)),
    ),
    max_size=5,
)
ENDS: st.SearchStrategy[tuple[str, Json]] = st.sampled_from(
    (
        ("completed", dict[str, Any]()),
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}),
        ("incomplete", {"incomplete_details": {"reason": "content_filter"}}),
    )
)


def numbered(items: list[Json]) -> list[Json]:
    """Each with an id of its own."""
    made = [{**item, "id": f"{item['id'][:-1]}{number}"} for number, item in enumerate(items)]
    return [{**item, "call_id": f"call_{item['id']}"} if "call_id" in item else item for item in made]


@st.composite
def given_answers(draw: st.DrawFn, name: str = "openai") -> Message:
    """What the provider itself has answered, in any of its models' ways."""
    output = numbered(draw(ITEMS.filter(bool)))
    answer = ResponsesAnswer(name, draw(st.sampled_from((MODEL, "gpt-5.5"))), ASK)
    for event in events(output):
        answer.read(json.dumps(event).encode())
    said = answer.response().message
    return said if said.parts else Message(role="assistant", parts=(Text("."),), provider=name, model=MODEL)


class TestRequests:
    @FAST
    @given(model_requests(given_answers()))
    def test_every_request_is_one_that_the_sdk_lets_one_send(self, request: ModelRequest) -> None:
        params = openai.types.responses.response_create_params.ResponseCreateParamsStreaming
        sent = json.loads(json.dumps(body(OPENAI, MODEL, request), default=dict))
        assert misfits(sent, params) == []

    @FAST
    @given(model_requests(given_answers("xai")))
    def test_so_is_what_xai_is_sent(self, request: ModelRequest) -> None:
        """It takes what OpenAI takes; its own SDK speaks another protocol."""
        params = openai.types.responses.response_create_params.ResponseCreateParamsStreaming
        sent = json.loads(json.dumps(body(XAI, MODEL, request), default=dict))
        assert misfits(sent, params) == []

    @FAST
    @given(model_requests(given_answers()))
    def test_every_conversation_keeps_the_rules_that_no_type_says(self, request: ModelRequest) -> None:
        items = body(OPENAI, MODEL, request)["input"]
        ids = [item["id"] for item in items if "id" in item]
        assert len(ids) == len(set(ids))
        for place, item in enumerate(items):
            kind = item.get("type")
            after = items[place + 1] if place + 1 < len(items) else {"role": "user"}
            if kind == "reasoning":
                assert item["encrypted_content"]
                assert after.get("role") != "user"
                assert after.get("type") != "function_call_output"
            elif kind in ("function_call", "function_call_output"):
                assert 0 < len(item["call_id"]) <= 64
            elif kind is None:
                assert item["content"]
        called = [item["call_id"] for item in items if item.get("type") == "function_call"]
        answered = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
        assert called == answered
        assert len(called) == len(set(called))

    def test_server_tools_and_everything_else_in_extra_are_among_them(self) -> None:
        extra = {"tools": [{"type": "web_search"}], "include": ["web_search_call.action.sources"], "top_p": 0.5}
        params = openai.types.responses.response_create_params.ResponseCreateParamsStreaming
        assert misfits(body(OPENAI, MODEL, ASK.replace(extra=extra)), params) == []

    def test_the_judge_can_say_no(self) -> None:
        params = openai.types.responses.response_create_params.ResponseCreateParamsStreaming
        sent = body(OPENAI, MODEL, ASK)
        assert misfits({**sent, "inputs": []}, params)
        assert misfits({**sent, "input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, params)


MADE = {
    "text": stream([message("The capital is Paris — la Ville Lumière 🗼.\n\nElse?")]),
    "phases": stream([reasoning("**Weighing**\n\nHm.", "**Deciding**"), message("Two.", phase="final_answer")]),
    "a_call": stream([reasoning(), message("Let me look.", phase="commentary"), call("look_up", '{"word":"Malmö"}')]),
    "calls": stream(numbered([call("look_up", '{"word":"é"}'), call("note", '{"text":"a","tags":[]}'), call("now")])),
    "malformed": stream([call("look_up", '{"word":')]),
    "refusal": stream([refusal("I cannot help with that.")]),
    "cut": stream(
        [{**message("Once"), "status": "incomplete"}],
        end="incomplete",
        incomplete_details={"reason": "max_output_tokens"},
    ),
    "filtered": stream([message("Mix")], end="incomplete", incomplete_details={"reason": "content_filter"}),
    "search": stream([reasoning(), search("newest python"), message("3.14", annotations=[CITE])]),
    "code": stream([code("print(2**64)", "18446744073709551616\n"), message("That is 2^64.")]),
    "silence": stream([]),
}
"""Answers in the documented shape."""


def recorded() -> Iterator[Any]:
    for path in sorted(RECORDINGS.glob("*.sse")):
        yield pytest.param(path.read_bytes(), id=path.stem)
    for name, data in MADE.items():
        yield pytest.param(data, id=name)


def read(data: bytes) -> ModelResponse:
    """Through the whole provider."""

    async def main() -> list[Any]:
        return [part async for part in OpenAI(MODEL, api_key="sk-secret").stream(ASK, Replay(data))]

    last = asyncio.run(main())[-1]
    assert isinstance(last, ModelResponse)
    return last


def agrees(ours: ModelResponse, theirs: Any) -> None:
    """Whether we have read what the SDK has read: its `Response`."""
    parts = list(ours.message.parts)
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[tuple[str, str]] = []
    others = 0
    for item in theirs.output:
        if item.type == "message":
            texts += [part.text if part.type == "output_text" else part.refusal for part in item.content]
        elif item.type == "reasoning":
            thoughts.append("\n\n".join(part.text for part in item.summary))
        elif item.type == "function_call":
            calls.append((item.name, item.arguments))
        else:
            others += 1
    assert [part.text for part in parts if isinstance(part, Text)] == [text for text in texts if text]
    assert [part.text for part in parts if isinstance(part, Thinking) and part.text] == list(filter(None, thoughts))
    found = [part for part in parts if isinstance(part, ToolCall)]
    assert [part.name for part in found] == [name for name, _ in calls]
    for part, (_, written) in zip(found, calls, strict=True):
        if part.malformed is None:
            assert part.arguments == (json.loads(written) if written else {})
        else:
            assert part.malformed == written
    assert sum(isinstance(part, Native) and part.data["type"] != "message" for part in parts) == others
    if theirs.usage is None:
        assert ours.usage is None
    else:
        told, usage = theirs.usage, ours.usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (told.input_tokens, told.output_tokens)
        assert usage.cache_read_tokens == (getattr(told.input_tokens_details, "cached_tokens", 0) or 0)
        assert usage.cache_write_tokens == (getattr(told.input_tokens_details, "cache_write_tokens", 0) or 0)
        assert usage.reasoning_tokens == getattr(getattr(told, "output_tokens_details", None), "reasoning_tokens", 0)
    assert ours.response_id == theirs.id
    assert ours.raw_model == theirs.model
    refused = any(part.type == "refusal" for item in theirs.output if item.type == "message" for part in item.content)
    reasons = {"max_output_tokens": "max_tokens", "content_filter": "content_filter"}
    if theirs.status == "incomplete":
        assert ours.stop_reason == reasons[theirs.incomplete_details.reason]
    else:
        assert ours.stop_reason == ("refusal" if refused else "tool_use" if calls else "end_turn")


class TestStreams:
    @pytest.mark.parametrize("data", list(recorded()))
    def test_the_official_client_reads_the_same(self, data: bytes) -> None:
        """The same bytes over the same wire."""
        ours = read(data)
        with Server(served(data)) as server, openai.OpenAI(api_key="sk-x", base_url=server.url) as client:
            last = list(client.responses.create(model=MODEL, input="Hello", stream=True))[-1]
        agrees(ours, last.response)

    @FAST
    @given(ITEMS.map(numbered), ENDS, st.integers(1, 9))
    def test_every_stream_gives_what_the_sdks_types_hold(
        self, output: list[Json], end: tuple[str, Json], size: int
    ) -> None:
        kinds = {kind.model_fields["type"].annotation.__args__[0]: kind for kind in stream_types()}
        made = list(events(output, end=end[0], size=size, **end[1]))
        checked = [kinds[event["type"]].model_validate(event) for event in made]
        agrees(read(sse(made)), checked[-1].response)

    @FAST
    @given(ITEMS.map(numbered), st.integers(1, 9))
    def test_the_deltas_are_the_answer(self, output: list[Json], size: int) -> None:
        answer = ResponsesAnswer("openai", MODEL, ASK)
        parts = [part for event in events(output, size=size) for part in answer.read(json.dumps(event).encode())]
        deltas = [part for part in parts if isinstance(part, Delta)]
        said = answer.response().message
        assert "".join(delta.text for delta in deltas if delta.kind == "text") == said.text
        thoughts = "".join(part.text for part in said.parts if isinstance(part, Thinking))
        assert "".join(delta.text for delta in deltas if delta.kind == "thinking") == thoughts
        for number, item in enumerate(item for item in output if item["type"] == "function_call"):
            pieces = [delta.text for delta in deltas if delta.kind == "tool_args" and delta.index == number]
            assert "".join(pieces) == item["arguments"]

    @FAST
    @given(ITEMS.map(numbered))
    def test_what_is_told_only_at_the_end_or_only_before_it_is_the_same(self, output: list[Json]) -> None:
        """Some servers leave out the items, and some the deltas."""
        made = list(events(output))
        whole = read(sse(made))
        assert read(sse([made[0], made[-1]])) == whole
        short: Json = {**made[-1], "response": {**made[-1]["response"], "output": list[Json]()}}
        assert read(sse([*made[:-1], short])) == whole
        assert read(sse([event for event in made if not event["type"].endswith("delta")])) == whole

    @FAST
    @given(ITEMS.map(numbered))
    def test_a_place_or_an_id_is_enough(self, output: list[Json]) -> None:
        made = list(events(output))
        whole = read(sse(made))
        for gone in ("output_index", "item_id", "sequence_number"):
            assert (
                read(sse([{name: value for name, value in event.items() if name != gone} for event in made])) == whole
            )


def stream_types() -> list[Any]:
    """The SDK's class of every event."""
    return list(get_args(get_args(openai.types.responses.ResponseStreamEvent)[0]))


CHANGED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("type", "id", "text", "x")), inner, max_size=3)
    ),
)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """The value with one thing in it changed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        fields = cast("Json", value)
        key = draw(st.sampled_from(sorted(fields)))
        if not draw(st.integers(0, 4)):
            return {name: item for name, item in fields.items() if name != key}
        return {**fields, key: mutated(draw, fields[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        items = cast("Sequence[Any]", value)
        place = draw(st.integers(0, len(items) - 1))
        return [*items[:place], mutated(draw, items[place]), *items[place + 1 :]]
    return draw(CHANGED)


@st.composite
def mutated_streams(draw: st.DrawFn) -> bytes:
    made: list[Any] = list(events(numbered(draw(ITEMS)), usage=draw(st.sampled_from((None, USAGE)))))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(made) - 1))
        match draw(st.integers(0, 3)):
            case 0:
                del made[place]
            case 1:
                made.insert(place, draw(st.sampled_from(made)))
            case _:
                made[place] = mutated(draw, made[place])
        if not made:
            break
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in made)


class TestFuzz:
    @settings(FAST, max_examples=300)
    @given(mutated_streams())
    def test_a_stream_that_is_wrong_gives_an_answer_or_a_typed_error(self, data: bytes) -> None:
        """And an answer can be kept, and told again."""
        try:
            response = read(data)
        except ProviderError:
            return
        json.dumps(to_json(response.message), allow_nan=False)
        body(OPENAI, MODEL, ASK.replace(messages=(*ASK.messages, response.message)))

    @settings(FAST, max_examples=100)
    @given(st.binary(max_size=60))
    def test_bytes_of_any_kind_give_a_typed_error(self, data: bytes) -> None:
        with pytest.raises(ProviderError):
            read(b"data: " + data + b"\n\n")


def to_json(message: Message) -> Any:
    """As a store would keep it."""
    return TypeAdapter(Message).dump_python(message, mode="json")
