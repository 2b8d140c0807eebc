"""Messages before judges that we did not write: the vendor's own SDK, and its rules; and events changed at will."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pydantic
import pytest
from genai_prices import extract_usage
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import strict_anthropic
from tests.messages_api import (
    ASK,
    PNG,
    STREAMS,
    WHOLE,
    ask,
    attempt,
    begun,
    block,
    ended,
    look,
    recorded,
    respond,
    sent,
    sse,
    user,
)
from tests.replay import Replay
from tests.strict_anthropic import sign
from tests.typed_dicts import misfits

from nitinol import repair
from nitinol.messages import (
    Audio,
    Document,
    Image,
    Message,
    Native,
    Part,
    Text,
    Thinking,
    ToolAnswer,
    ToolCall,
    to_message,
)
from nitinol.provider import ModelRequest, ModelResponse, UsageSoFar
from nitinol_providers.anthropic_answer import read_usage
from nitinol_providers.anthropic_models import abilities
from nitinol_providers.anthropic_request import BETAS

pytestmark = pytest.mark.slow

# ---- the vendor's own SDK as a judge


def _sdk_answer(data: bytes) -> Any:
    """The message that the official client puts together from the same bytes."""
    anthropic = pytest.importorskip("anthropic")
    httpx2 = pytest.importorskip("httpx2")

    def respond(request: Any) -> Any:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=data)

    client = anthropic.Anthropic(
        api_key="k", http_client=anthropic.DefaultHttpxClient(transport=httpx2.MockTransport(respond)), max_retries=0
    )
    with client, client.messages.stream(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}]) as events:
        return events.get_final_message().to_dict(mode="json", warnings=False)


def _as_wire(message: Message) -> list[dict[str, Any]]:
    """Our message as the SDK's, from the parts alone."""
    made: list[dict[str, Any]] = []
    for part in message.parts:
        match part:
            case Native() if part.data.get("type") == "container":
                pass
            case Native() if part.data.get("type") == "text":
                made[-1] = dict(part.data)
            case Native():
                made.append(dict(part.data))
            case Text():
                made.append({"type": "text", "text": part.text})
            case Thinking() if part.redacted:
                made.append({"type": "redacted_thinking", "data": part.signature})
            case Thinking():
                made.append({"type": "thinking", "thinking": part.text, "signature": part.signature or ""})
            case ToolCall():
                caller = {"caller": json.loads(part.signature)} if part.signature else {}
                made.append(
                    {"type": "tool_use", "id": part.call_id, "name": part.name, "input": part.arguments, **caller}
                )
            case _:
                raise AssertionError(part)
    return made


def _plain(value: Any) -> Any:
    """Without what is null or empty, which SDKs and servers leave out or put in as they like."""
    if isinstance(value, dict):
        fields = {key: _plain(item) for key, item in cast("dict[str, Any]", value).items()}
        return {key: item for key, item in fields.items() if item not in (None, [], {}, {"type": "direct"})}
    return [_plain(item) for item in cast("list[object]", value)] if isinstance(value, list) else value


def _agrees(ours: ModelResponse, theirs: Mapping[str, Any]) -> None:
    blocks = [block for block in theirs["content"] if block.get("text") != "" or block["type"] != "text"]
    assert _plain(_as_wire(ours.message)) == _plain(blocks)
    told: dict[str, Any] = theirs["usage"]
    read, wrote = told.get("cache_read_input_tokens") or 0, told.get("cache_creation_input_tokens") or 0
    assert ours.usage is not None
    assert ours.usage.input_tokens == told["input_tokens"] + read + wrote
    assert (ours.usage.cache_read_tokens, ours.usage.cache_write_tokens) == (read, wrote)
    assert ours.usage.cache_write_1h_tokens == _field(told, "cache_creation", "ephemeral_1h_input_tokens")
    assert ours.usage.output_tokens == told["output_tokens"]
    assert ours.usage.server_tool_calls == _field(told, "server_tool_use", "web_search_requests")
    reasons = {"pause_turn": "pause", "stop_sequence": "end_turn"}
    assert ours.stop_reason == reasons.get(theirs["stop_reason"], theirs["stop_reason"])
    assert (ours.raw_model, ours.response_id) == (theirs["model"], theirs["id"])


def _field(told: Mapping[str, Any], name: str, key: str) -> int:
    fields: Mapping[str, int] = told.get(name) or {}
    return fields.get(key, 0)


JUDGED = [path for path in WHOLE if path.stem not in ("cut_by_length_in_a_call", "blocks_to_come")]
"""Of a cut call the SDK makes up what is missing; of blocks to come it loses what they are told."""

_words = st.text(st.characters(codec="utf-8"), max_size=12)
_filled = _words.filter(str.strip)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=6,
)
_objects = st.dictionaries(_words, _json, max_size=3)


@st.composite
def _pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The events of an answer, as the vendor's API may send them."""
    count = st.integers(0, 2**30)
    events = [begun(input_tokens=draw(count), output_tokens=1, cache_read_input_tokens=draw(st.none() | count))]
    events[0]["message"]["usage"]["cache_creation_input_tokens"] = draw(st.none() | count)
    calls = False
    for index in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(("text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "found")))
        if kind == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in draw(_pieces(draw(_words)))]
            events += block(index, {"type": "text", "text": ""}, *deltas)
        elif kind == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in draw(_pieces(draw(_words)))]
            deltas.append({"type": "signature_delta", "signature": draw(_filled)})
            events += block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas)
        elif kind == "redacted_thinking":
            events += block(index, {"type": kind, "data": draw(_filled)})
        elif kind == "found":
            failed = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
            events += block(
                index, {"type": "web_search_tool_result", "tool_use_id": f"srvtoolu_{index}", "content": failed}
            )
        else:
            calls = calls or kind == "tool_use"
            name = draw(_filled if kind == "tool_use" else st.sampled_from(("web_search", "code_execution")))
            data: dict[str, Any] = {"type": kind, "id": f"toolu_{index}", "name": name, "input": {}}
            written = json.dumps(draw(_objects), ensure_ascii=draw(st.booleans()))
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in draw(_pieces(written))]
            events += block(index, data, *(deltas if draw(st.booleans()) else ()))
        if draw(st.booleans()):
            events.append({"type": "ping"})
    reason = "tool_use" if calls else draw(st.sampled_from(("end_turn", "refusal", "pause_turn", "stop_sequence")))
    return [*events, *ended(reason, output_tokens=draw(count), input_tokens=draw(st.none() | count))]


class TestTheSdkReadsTheSame:
    @pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
    def test_of_a_recording(self, path: Path) -> None:
        _agrees(recorded(path.stem), _sdk_answer(path.read_bytes()))

    @settings(max_examples=200, deadline=None)
    @given(streams())
    def test_of_any_stream(self, events: list[dict[str, Any]]) -> None:
        _agrees(respond(*events), _sdk_answer(sse(*events)))


_count = st.integers(0, 2**30)


class TestTheCatalogueCountsTheSame:
    @settings(max_examples=200, deadline=None)
    @given(_count, st.none() | _count, _count, _count, _count, _count)
    def test_of_any_usage(
        self, fresh: int, read: int | None, short: int, hour: int, output: int, searches: int
    ) -> None:
        """parity: P5. genai-prices reads a usage by itself, for its bills."""
        raw: dict[str, Any] = {
            "input_tokens": fresh,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": short + hour,
            "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour},
            "output_tokens": output,
            "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 3},
        }
        ours = read_usage(raw)
        assert ours is not None
        told = {key: value for key, value in raw.items() if value is not None}
        theirs = extract_usage({"model": "claude-sonnet-5-5", "usage": told}, provider_id="anthropic").usage
        for name in (
            "input_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
            "cache_write_1h_tokens",
            "output_tokens",
        ):
            assert getattr(ours, name) == (getattr(theirs, name) or 0)
        assert ours.server_tool_calls == (theirs.web_searches or 0)


# ---- requests of every kind, before the vendor's own types and the rules that no type tells

_ids = st.sampled_from(("a", "b", "call_1", "call:1", "é", "x" * 80)) | _filled
_media = st.one_of(
    st.builds(Image, data=st.just(PNG), media_type=st.sampled_from(("image/png", "image/bmp", "text/plain"))),
    st.builds(Image, url=st.sampled_from(("https://x.test/a", "data:,"))),
    st.builds(Audio, data=st.just(b"x"), media_type=st.just("audio/wav")),
    st.builds(
        Document,
        data=st.sampled_from((b"%PDF-1", b"words", b"")),
        media_type=st.sampled_from(("application/pdf", "text/plain", "application/zip")),
        name=st.none() | _filled,
    ).filter(lambda part: part.data or part.media_type != "application/pdf"),
    st.builds(Document, url=st.just("https://x.test/a.pdf"), media_type=st.just("application/pdf")),
)
_search = {"type": "server_tool_use", "name": "web_search", "input": {"query": "x"}}
_tools = (look, look.replace(name="look_again", callers=("direct",)))
_schemas: tuple[dict[str, Any], ...] = (
    {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"],
    },
    {"type": "array", "items": {"type": "integer"}},
    {"type": "object", "additionalProperties": {"type": "integer"}},
)


@st.composite
def _answers(draw: st.DrawFn, number: int) -> list[Message]:
    """An assistant's message of any vendor, and the answers to its calls."""
    vendor = draw(st.sampled_from(("anthropic", "openai", "gemini", "llamacpp")))
    parts: list[Part] = []
    if draw(st.booleans()):
        text = draw(_words)
        parts.append(Thinking(text=text, signature=sign(text) if vendor == "anthropic" else draw(st.none() | _words)))
    if draw(st.booleans()):
        parts.append(Thinking(text="", signature=sign(""), redacted=True))
    parts += draw(st.lists(st.builds(Text, _words) | _media, max_size=2))
    if draw(st.booleans()):
        id = f"srvtoolu_{number}"
        failed = {"type": "web_search_tool_result_error", "error_code": "unavailable"}
        parts.append(Native(data={**_search, "id": id}, text="[searched]"))
        if draw(st.booleans()):
            found = {"type": "web_search_tool_result", "tool_use_id": id, "content": failed}
            parts.append(Native(data=found, text=draw(_words)))
    ids = draw(st.lists(_ids, max_size=3, unique=True))
    for id in ids:
        malformed = draw(st.none() | _words)
        call = ToolCall(call_id=id, name=draw(_filled), arguments=draw(_objects), malformed=malformed)
        parts.append(call)
    results: list[Part] = [
        ToolAnswer(
            call_id=id,
            name="f",
            text=draw(_words),
            error=draw(st.booleans()),
            media=tuple(draw(st.lists(_media, max_size=1))),
        )
        for id in ids
    ]
    answer = Message(role="assistant", parts=tuple(parts), provider=vendor, model="m")
    return [answer, Message(role="tool", parts=tuple(results))] if results else [answer]


@st.composite
def requests(draw: st.DrawFn) -> ModelRequest:
    """Anything that the runtime may send: a conversation of any vendors, repaired as it repairs it."""
    messages: list[Message] = []
    for number in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            messages.append(user(*draw(st.lists(st.builds(Text, _words) | _media, min_size=1, max_size=3))))
        messages += draw(_answers(number))
    messages += [to_message("Go on.")] if draw(st.booleans()) else []
    seen, _, _ = repair.view(messages)
    extra: dict[str, Any] = {}
    if draw(st.booleans()):
        extra["tools"] = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]
    if draw(st.booleans()):
        extra["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    return ModelRequest(
        messages=seen,
        instructions=draw(st.none() | _words),
        tools=draw(st.sampled_from(((), _tools[:1], _tools))),
        output_schema=draw(st.none() | st.sampled_from(_schemas)),
        max_output_tokens=draw(st.none() | st.integers(1, 9000)),
        temperature=draw(st.none() | st.floats(0, 2)),
        thinking=draw(st.none() | st.integers(1, 40_000) | st.sampled_from(("low", "medium", "high"))),
        cache=draw(st.booleans()),
        extra=extra,
    )


class Author(pydantic.BaseModel):
    """Who wrote it."""

    name: str = pydantic.Field(min_length=1)
    mail: str | None = None


class Report(pydantic.BaseModel):
    """A report."""

    title: str = pydantic.Field(description="In a few words.", max_length=80)
    authors: list[Author] = pydantic.Field(min_length=1)
    score: float = pydantic.Field(0.5, ge=0, le=1)
    kind: Literal["long", "short"] = "long"
    at: datetime
    done: bool


class Choice(pydantic.BaseModel):
    """One or the other."""

    one: Report | Author


MODELS = ("claude-fable-5-2", "claude-opus-4-7", "claude-sonnet-4-6", "claude-haiku-4-5", "claude-3-haiku", "local")


class TestEveryRequestIsTaken:
    @settings(max_examples=300, deadline=None)
    @given(requests(), st.sampled_from(MODELS))
    def test_by_the_vendors_own_types(self, request: ModelRequest, model: str) -> None:
        """But for the temperature, which the types of the API's last version do not have."""
        kinds = pytest.importorskip("anthropic.types.message_create_params")
        body = sent(request, model)
        if abilities(model).temperature:
            body.pop("temperature", None)
        assert misfits(body, kinds.MessageCreateParamsStreaming) == []

    @settings(max_examples=300, deadline=None)
    @given(requests(), st.sampled_from(MODELS))
    def test_by_the_rules_of_the_vendor(self, request: ModelRequest, model: str) -> None:
        """Order, pairs, ids, signatures, empty words, breakpoints, budgets."""
        http = Replay(sse(begun(), *ended()))
        ask(http, request, model)
        assert strict_anthropic.faults(http.sent, http.headers["anthropic-version"]) == []

    def test_and_the_judges_refuse_what_is_wrong(self) -> None:
        """A judge that takes everything says nothing."""
        kinds = pytest.importorskip("anthropic.types.message_create_params").MessageCreateParamsStreaming
        body = sent()
        assert misfits({**body, "temperature": 1}, kinds)
        assert misfits({**body, "messages": [{"role": "user", "content": [{"type": "text"}]}]}, kinds)
        assert misfits({key: body[key] for key in body if key != "max_tokens"}, kinds)
        thought = {"type": "thinking", "thinking": "hm", "signature": "wrong"}
        call: dict[str, Any] = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        for messages in (
            [],
            [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
            [{"role": "user", "content": [{"type": "text", "text": " "}]}],
            [*body["messages"], *body["messages"]],
            [*body["messages"], {"role": "assistant", "content": [call]}, *body["messages"]],
            [*body["messages"], {"role": "assistant", "content": [thought]}, *body["messages"]],
            [*body["messages"], {"role": "assistant", "content": [{**_search, "id": "s"}]}, *body["messages"]],
        ):
            assert strict_anthropic.faults({**body, "messages": messages})

    @pytest.mark.parametrize("kind", [Report, Choice, list[Report], Literal["a", "b"], int | None])
    def test_schemas_are_told_as_the_vendor_tells_them(self, kind: Any) -> None:
        """But for the words about what the format cannot say."""
        transform = pytest.importorskip("anthropic").transform_schema
        schema = pydantic.TypeAdapter(kind).json_schema()
        ours = sent(ASK.replace(output_schema=schema))["output_config"]["format"]["schema"]
        assert _bare(ours) == _bare(transform(schema))

    def test_betas_are_ones_that_the_vendor_knows(self) -> None:
        known = pytest.importorskip("anthropic.types").AnthropicBetaParam
        assert set(BETAS.values()) <= set(get_args(get_args(known)[1]))


class TestFuzz:
    @settings(max_examples=500, deadline=None)
    @given(st.data())
    def test_events_that_are_changed_at_will_are_read_or_a_typed_error(self, data: st.DataObject) -> None:
        events: list[Any] = [json.loads(json.dumps(event)) for event in data.draw(streams())]
        for _ in range(data.draw(st.integers(1, 4))):
            spots = list(_spots(events))
            holder, key = data.draw(st.sampled_from(spots))
            change = data.draw(st.sampled_from(("replace", "remove", "repeat")))
            if change == "replace":
                holder[key] = data.draw(_json | st.just(float("nan")) | st.just(10**400) | st.just("\ud83d"))
            elif change == "remove":
                del holder[key]
            elif isinstance(holder, list):
                holder[key:key] = [holder[key]]
        raw = b"".join(b"data: %b\n\n" % json.dumps(event).encode("utf-8", "replace") for event in events)
        seen, fault = attempt(raw)
        told = [part.usage for part in seen if isinstance(part, UsageSoFar)]
        assert all(usage.fault() is None for usage in told)
        if fault is None:
            assert isinstance(seen[-1], ModelResponse)
            back = sent(ASK.replace(messages=(*ASK.messages, seen[-1].message)))
            json.dumps(back, allow_nan=False)  # what is read can be sent again

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(STREAMS), st.data())
    def test_bytes_that_are_changed_at_will_are_read_or_a_typed_error(self, path: Path, data: st.DataObject) -> None:
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 5))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        seen, fault = attempt(bytes(raw))
        assert fault is not None or isinstance(seen[-1], ModelResponse)


def _bare(schema: Any) -> Any:
    """A schema without descriptions, and without a type that its values tell as well."""
    if isinstance(schema, list):
        return [_bare(item) for item in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = {key: _bare(item) for key, item in cast("dict[str, object]", schema).items()}
    fields.pop("description", None)
    if "enum" in fields or "const" in fields:
        fields.pop("type", None)
    return fields


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value, as what holds it and where."""
    items: Any = cast("dict[str, Any]", value).items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _spots(item)
