"""Chat completions before OpenAI's own SDK: what we send is what its types let one send, what we read is what it reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.conversations import ARGUMENTS, SAID, WORDS, model_requests
from tests.replay import Replay
from tests.typed_dicts import misfits

from nitinol.errors import ProviderError
from nitinol.messages import Message, Text, ToolCall, to_message
from nitinol.provider import Delta, ModelRequest, ModelResponse
from nitinol_providers import OpenAICompatible
from nitinol_providers.chat_request import body
from nitinol_providers.vendors import VENDORS

pytestmark = pytest.mark.slow

openai = pytest.importorskip("openai", reason="the judge is not installed")
state = pytest.importorskip("openai.lib.streaming.chat")
RECORDINGS = Path(__file__).parent / "recordings"
ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=3)
FAST = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
DIALECT = {"thinking", "reasoning", "usage", "chat_template_kwargs", "thinking_budget_tokens"}
"""What only some vendor knows, of a body."""
KEPT = {"reasoning_content", "reasoning", "reasoning_details"}
"""And of a message."""
Json = dict[str, Any]


@pytest.mark.parametrize("name", VENDORS)
class TestRequests:
    @FAST
    @given(model_requests())
    def test_every_request_is_one_that_the_sdk_lets_one_send(self, name: str, request: ModelRequest) -> None:
        params = openai.types.chat.completion_create_params.CompletionCreateParamsStreaming
        sent = json.loads(json.dumps(body(VENDORS[name], "m", request), default=dict))
        if name != "openai-compatible":
            sent = {key: value for key, value in sent.items() if key not in DIALECT}
            sent["messages"] = [
                {key: value for key, value in said.items() if key not in KEPT} for said in sent["messages"]
            ]
        assert misfits(sent, params) == []

    @FAST
    @given(model_requests())
    def test_every_conversation_keeps_the_rules_that_no_type_says(self, name: str, request: ModelRequest) -> None:
        asked: list[str] = []
        for said in body(VENDORS[name], "m", request)["messages"]:
            if asked:
                assert (said["role"], said["tool_call_id"]) == ("tool", asked.pop(0))
            else:
                assert said["role"] != "tool"
            assert said["content"] or said.get("tool_calls")
            if isinstance(said["content"], list):
                assert all(item.get("text", "x") for item in said["content"])
            calls = said.get("tool_calls", ())
            asked += [made["id"] for made in calls]
            assert len(asked) == len(set(asked))
            assert all(0 < len(made["id"]) <= 40 for made in calls)
            assert all(isinstance(json.loads(made["function"]["arguments"]), dict) for made in calls)
            names = [made["function"]["name"] for made in calls]
            assert all(called.isascii() and called.replace("_", "").replace("-", "").isalnum() for called in names)
        assert not asked


def chunk(finish: str | None = None, **delta: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1795402469, "model": "m", "choices": [choice]}


def called(index: int, arguments: str, **fields: Any) -> Json:
    name = {"name": fields.pop("name")} if "name" in fields else {}
    return chunk(tool_calls=[{"index": index, **fields, "function": {**name, "arguments": arguments}}])


@st.composite
def answers(draw: st.DrawFn) -> list[Json]:
    """The chunks of an answer in the documented shape."""
    made = [chunk(role="assistant", content="")]
    made += [chunk(content=text) for text in draw(st.lists(SAID, max_size=4))]
    if draw(st.integers(0, 4)) == 0:
        made += [chunk(refusal=text) for text in draw(st.lists(SAID, min_size=1, max_size=3))]
    told = draw(st.lists(ARGUMENTS.map(json.dumps) | st.sampled_from(("", "{", "[1]")), max_size=3))
    for number, written in enumerate(told):
        made.append(called(number, "", id=f"call_{number}", type="function", name="look_up"))
        cut = draw(st.integers(0, len(written)))
        made += [called(number, piece) for piece in (written[:cut], written[cut:])]
    finish = draw(st.sampled_from(("stop", "length", "content_filter", "tool_calls" if told else "stop")))
    made.append(chunk(finish))
    if draw(st.booleans()):
        details = {"cached_tokens": draw(st.integers(0, 50)), "cache_write_tokens": draw(st.integers(0, 50))}
        spoken, thought = draw(st.integers(0, 99)), draw(st.integers(0, 9))
        usage: Json = {
            "prompt_tokens": 100,
            "prompt_tokens_details": details,
            "completion_tokens": spoken,
            "completion_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": 100 + spoken,
        }
        made.append({**chunk(), "choices": [], "usage": usage})
    return made


def written(chunks: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(made).encode() for made in chunks) + b"data: [DONE]\n\n"


def read(data: bytes) -> ModelResponse:
    """Through the whole provider."""

    async def main() -> list[Any]:
        made = OpenAICompatible("m", base_url="http://box/v1", api_key="sk-secret")
        return [part async for part in made.stream(ASK, Replay(data))]

    last = asyncio.run(main())[-1]
    assert isinstance(last, ModelResponse)
    return last


def agrees(ours: ModelResponse, chunks: Sequence[Json], *, strict: bool) -> None:
    """Whether we have read what the SDK puts together from the same chunks."""
    putting = state.ChatCompletionStreamState()
    kind: Any = openai.types.chat.ChatCompletionChunk
    for made in chunks:
        putting.handle_chunk(kind.model_validate(made) if strict else kind.construct(**made))
    theirs = putting.current_completion_snapshot
    (choice,) = theirs.choices
    assert ours.message.text == (choice.message.content or "") + (choice.message.refusal or "")
    calls: Any = choice.message.tool_calls or []
    assert len(ours.message.tool_calls) == len(calls)
    for found, judged in zip(ours.message.tool_calls, calls, strict=True):
        assert (found.call_id, found.name) == (judged.id, judged.function.name)
        if found.malformed is None:
            assert found.arguments == (json.loads(judged.function.arguments) if judged.function.arguments else {})
        else:
            assert found.malformed == judged.function.arguments
    if theirs.usage is None:
        assert ours.usage is None
    else:
        assert ours.usage is not None
        came, went = theirs.usage.prompt_tokens_details, theirs.usage.completion_tokens_details
        assert ours.usage.input_tokens == theirs.usage.prompt_tokens
        assert ours.usage.output_tokens == theirs.usage.completion_tokens
        assert ours.usage.cache_read_tokens == (getattr(came, "cached_tokens", 0) or 0)
        assert ours.usage.cache_write_tokens == (getattr(came, "cache_write_tokens", 0) or 0)
        assert ours.usage.reasoning_tokens == (getattr(went, "reasoning_tokens", 0) or 0)
    reasons = {"length": "max_tokens", "content_filter": "content_filter"}
    refused = "refusal" if choice.message.refusal else None
    assert ours.stop_reason == (refused or reasons.get(choice.finish_reason) or ("tool_use" if calls else "end_turn"))
    assert (ours.response_id, ours.raw_model) == (theirs.id, theirs.model)


class TestStreams:
    @FAST
    @given(answers())
    def test_every_stream_gives_what_the_sdks_types_hold(self, chunks: list[Json]) -> None:
        agrees(read(written(chunks)), chunks, strict=True)

    @pytest.mark.parametrize("name", ["llamacpp_text", "llamacpp_tool_call", "thinking_text_and_two_tool_calls"])
    def test_recordings_are_read_the_same(self, name: str) -> None:
        data = (RECORDINGS / f"{name}.sse").read_bytes()
        lines = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: {")]
        agrees(read(data), [json.loads(line) for line in lines], strict=True)

    @FAST
    @given(answers())
    def test_the_deltas_are_the_answer(self, chunks: list[Json]) -> None:
        async def main() -> list[Any]:
            made = OpenAICompatible("m", base_url="http://box/v1", api_key="sk-secret")
            return [part async for part in made.stream(ASK, Replay(written(chunks)))]

        parts = asyncio.run(main())
        said = parts[-1].message
        assert "".join(part.text for part in parts[:-1] if isinstance(part, Delta) and part.kind == "text") == said.text
        assert all(isinstance(part, (Text, ToolCall)) for part in said.parts)


CHANGED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(("type", "text", "id")), inner, max_size=3)
    ),
)


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """Every place in a value: how to get there."""
    yield ()
    inside: Any = value
    pairs: Any = inside.items() if isinstance(value, dict) else enumerate(inside) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from ((key, *rest) for rest in places(item))


@st.composite
def mutated_streams(draw: st.DrawFn) -> bytes:
    made: list[Any] = draw(answers())
    extra = [
        chunk(reasoning_content="hm"),
        chunk(reasoning_details=[{"type": "reasoning.text", "text": "h", "index": 0}]),
        chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
        {"error": {"code": 500, "message": "boom"}},
        {**chunk("stop"), "x_groq": {"usage": {"prompt_tokens": 1, "cost": 0.1}}},
    ]
    made[1:1] = draw(st.lists(st.sampled_from(extra), max_size=2))
    made = json.loads(json.dumps(made))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(made))))
        if not path:
            continue
        parent = made
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = draw(CHANGED)
    return written(made)


class TestFuzz:
    @settings(FAST, max_examples=300)
    @given(mutated_streams())
    def test_a_stream_that_is_wrong_gives_an_answer_or_a_typed_error(self, data: bytes) -> None:
        """And an answer can be kept, and told again."""
        try:
            response = read(data)
        except ProviderError:
            return
        json.dumps(TypeAdapter(Message).dump_python(response.message, mode="json"), allow_nan=False)
        assert response.usage is None or response.usage.fault() is None
        assert all(value is None or isinstance(value, str) for value in (response.response_id, response.raw_model))  # pyright: ignore[reportUnnecessaryIsInstance]
        for vendor in VENDORS.values():
            body(vendor, "m", ASK.replace(messages=(*ASK.messages, response.message)))
