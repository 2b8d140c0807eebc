"""Gemini before judges: Google's own SDK reads every body that we write and every stream that we read; then fuzz."""

from __future__ import annotations

import base64
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from genai_prices import extract_usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.gemini_stream import RECORDINGS, asked, sse
from tests.replay import Replay
from tests.servers import Server, stream

from nitinol import errors
from nitinol.messages import (
    Audio,
    Document,
    Image,
    Message,
    Native,
    Text,
    Thinking,
    ToolAnswer,
    ToolCall,
    fault,
    to_message,
)
from nitinol.provider import ModelRequest, ModelResponse, StreamPart
from nitinol.repair import view
from nitinol.sse import SseParser
from nitinol.tool_spec import tool
from nitinol.usage import Usage
from nitinol_providers import Gemini
from nitinol_providers.gemini_answer import FAILED, STOP, GeminiAnswer
from nitinol_providers.gemini_request import UNSIGNED, body, is_before_3

pytestmark = pytest.mark.slow

genai: Any = pytest.importorskip("google.genai")
types: Any = pytest.importorskip("google.genai.types")

MODELS = ("gemini-3-pro-preview", "gemini-2.5-flash", "gemini-flash-latest")
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=1)

many = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

BODY: Mapping[str, TypeAdapter[Any]] = {
    key: TypeAdapter(kind)
    for key, kind in {
        "contents": list[types.Content],
        "systemInstruction": types.Content,
        "tools": list[types.Tool],
        "toolConfig": types.ToolConfig,
        "generationConfig": types.GenerationConfig,
        "safetySettings": list[types.SafetySetting],
        "cachedContent": str,
    }.items()
}
KINDS = (
    *("text", "inlineData", "fileData", "functionCall", "functionResponse"),
    *("executableCode", "codeExecutionResult", "toolCall", "toolResponse"),
)


@tool
def get_weather(city: str, days: int = 1, near: list[dict[str, float]] | None = None) -> str:
    """Say what the weather will be."""
    return f"{city} {days} {near}"


@tool
def now() -> str:
    """Say what time it is."""
    return "noon"


# ---- what users, models, tools and hooks may have put into a conversation

Made = dict[str, Any]


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def maybe(**fields: Any) -> Made:
    """Only those that are given."""
    return {key: value for key, value in fields.items() if value is not None}


words = st.text(max_size=12)
signatures = st.binary(min_size=1, max_size=9).map(encoded)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(words, values, max_size=3)
kinds = st.sampled_from(
    [
        *("image/png", "image/gif", "image/jpg", "audio/x-wav", "audio/ogg", "application/pdf", "text/plain"),
        *("application/json", "application/zip", "video/mp4", "application/octet-stream"),
    ]
)
media = st.one_of(
    *(
        st.builds(made, data=st.binary(max_size=6), media_type=kinds, name=st.none() | st.just("a file"))
        | st.builds(made, url=st.just("https://example.org/x"), media_type=kinds)
        for made in (Image, Audio, Document)
    )
)
call_ids = st.sampled_from(["a", "b", "c", "call_RUN_1_0", "toolu_01", "x" * 70])
names = st.sampled_from(["get_weather", "now", "get weather", "7", ""])
native_data: st.SearchStrategy[Made] = st.sampled_from(
    [
        {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
        {"toolCall": {"toolType": "GOOGLE_SEARCH_WEB", "args": {"queries": ["x"]}, "id": "s1"}},
        {"toolResponse": {"toolType": "GOOGLE_SEARCH_WEB", "response": {"a": 1}, "id": "s1"}},
    ]
)


told_data: st.SearchStrategy[Made] = st.sampled_from(
    [{"groundingMetadata": {"webSearchQueries": ["x"]}}, {"finishReason": "SAFETY"}]
)


@st.composite
def natives(draw: st.DrawFn) -> Native:
    signed: Made = {"thoughtSignature": draw(signatures)}
    own = draw(native_data)
    data = draw(st.sampled_from([own, own | signed, signed, {"text": ""} | signed]) | told_data)
    return Native(data=data, text=draw(words))


calls = st.builds(
    ToolCall,
    call_id=call_ids,
    name=names,
    arguments=arguments,
    malformed=st.none() | st.just('{"x'),
    signature=st.none() | signatures,
)
thoughts = st.builds(Thinking, text=words, signature=st.none() | signatures)
writers: st.SearchStrategy[tuple[str | None, str | None]] = st.sampled_from(
    [("gemini", MODELS[0]), ("gemini", MODELS[1]), ("anthropic", "c"), ("openai", "o"), (None, None)]
)


@st.composite
def said(draw: st.DrawFn) -> Message:
    return Message(role="user", parts=tuple(draw(st.lists(words.map(Text) | media, max_size=3))))


@st.composite
def answered(draw: st.DrawFn) -> Message:
    given = draw(st.lists(words.map(Text) | thoughts | calls | natives() | media, max_size=4))
    ids = [part.call_id if isinstance(part, ToolCall) else "" for part in given]
    parts = [part for at, part in enumerate(given) if not ids[at] or ids[at] not in ids[:at]]
    provider, model = draw(writers)
    return Message(role="assistant", parts=tuple(parts), provider=provider, model=model)


@st.composite
def found(draw: st.DrawFn) -> Message:
    shown = st.lists(media, max_size=2).map(tuple)
    made = st.builds(ToolAnswer, call_id=call_ids, name=st.just(""), text=words, error=st.booleans(), media=shown)
    return Message(role="tool", parts=tuple(draw(st.lists(made, max_size=3))))


def named(messages: Sequence[Message]) -> tuple[Message, ...]:
    """As the runtime sends it: repaired, and each answer by the name of its call."""
    made: list[Message] = []
    for message in view(messages)[0]:
        if message.role == "tool":
            asked_for = {call.call_id: call.name for call in made[-1].tool_calls}
            answers = [part for part in message.parts if isinstance(part, ToolAnswer)]
            message = Message(
                role="tool",
                parts=tuple(
                    ToolAnswer(call_id=a.call_id, name=asked_for[a.call_id], text=a.text, error=a.error, media=a.media)
                    for a in answers
                ),
            )
        made.append(message)
    return tuple(made)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    first = to_message(draw(words).strip() or "Hi")
    return named([first, *draw(st.lists(said() | answered() | found(), max_size=7))])


SCHEMA: Made = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
requests = st.builds(
    ModelRequest,
    messages=conversations(),
    instructions=st.none() | words,
    tools=st.sampled_from([(), (get_weather,), (get_weather, now)]),
    output_schema=st.none() | st.just(SCHEMA),
    max_output_tokens=st.none() | st.integers(1, 65536),
    temperature=st.none() | st.floats(0, 2),
    thinking=st.none() | st.sampled_from([0, 1024, 20_000, "low", "medium", "high"]),
    extra=st.sampled_from(
        [
            {},
            {"tools": [{"googleSearch": {}}, {"codeExecution": {}}]},
            {"tools": [{"urlContext": {}}], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
            {"generationConfig": {"topK": 3, "stopSequences": ["x"]}, "cachedContent": "cachedContents/1"},
            {"safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]},
        ]
    ),
)


class TestRequests:
    """parity: P2, P3, P4. Every body that we can produce."""

    @many
    @given(requests, st.sampled_from(MODELS))
    def test_the_sdks_own_types_take_it(self, request_: ModelRequest, model: str) -> None:
        """They forbid what they do not know, and write it again as we do."""
        for key, value in written(model, request_).items():
            made = BODY[key].validate_json(json.dumps(value))
            assert plain(BODY[key].dump_python(made, mode="json", by_alias=True, exclude_unset=True)) == plain(value)

    @many
    @given(requests, st.sampled_from(MODELS))
    def test_it_means_a_conversation(self, request_: ModelRequest, model: str) -> None:
        """What the API checks, and no type: turns, pairs, signatures."""
        made = written(model, request_)["contents"]
        assert [content["role"] for content in made] == [("user", "model")[at % 2] for at in range(len(made))]
        assert len(made) % 2 == 1
        waiting: list[Any] = []
        for content in made:
            for part in content["parts"]:
                assert sum(kind in part for kind in KINDS) == 1
                assert part.get("text") != "" or "thoughtSignature" in part
            mine = [part for part in content["parts"] if "functionCall" in part]
            replies = [part["functionResponse"] for part in content["parts"] if "functionResponse" in part]
            assert [(reply["id"], reply["name"]) for reply in replies] == waiting
            waiting = [(part["functionCall"]["id"], part["functionCall"]["name"]) for part in mine]
            assert not mine or is_before_3(model) or "thoughtSignature" in mine[0]
        assert not waiting
        shown = {part.get("thoughtSignature") for content in made for part in content["parts"]} - {None, UNSIGNED}
        assert shown <= {
            signature
            for message in request_.messages
            if (message.provider, message.model) == ("gemini", model)
            for part in message.parts
            if (signature := signed(part)) is not None
        }

    def test_the_sdk_sends_the_same_bytes(self) -> None:
        """From its types, through its client, over a socket."""
        image = Image(data=b"\xff\xfe\xfd", media_type="image/png")
        request = ModelRequest(
            messages=(
                Message(role="user", parts=(Text("Look"), image, Document(url="https://example.org/a.pdf"))),
                Message(
                    role="assistant",
                    parts=(
                        Text("So:"),
                        ToolCall(call_id="a", name="get_weather", arguments={"city": "Ålesund"}, signature="c2ln"),
                        ToolCall(call_id="b", name="now"),
                    ),
                    provider="gemini",
                    model=MODELS[0],
                ),
                Message(
                    role="tool",
                    parts=(
                        ToolAnswer(call_id="a", name="get_weather", text="rain", media=(image,)),
                        ToolAnswer(call_id="b", name="now", text="no clock", error=True),
                    ),
                ),
            ),
            instructions="Be brief.",
            tools=(get_weather, now),
            output_schema={"type": "object"},
            max_output_tokens=9,
            temperature=0.5,
            thinking="low",
            extra={"tools": [{"googleSearch": {}}]},
        )
        ours = written(MODELS[0], request)
        read = {key: BODY[key].validate_json(json.dumps(value)) for key, value in ours.items()}
        config = read["generationConfig"]
        with Server(stream(RECORDINGS["text"])) as server:
            client = genai.Client(
                api_key="AIza-secret", http_options=types.HttpOptions(base_url=server.url, api_version="v1beta")
            )
            list(
                client.models.generate_content_stream(
                    model=MODELS[0],
                    contents=read["contents"],
                    config=types.GenerateContentConfig(
                        system_instruction=read["systemInstruction"],
                        tools=read["tools"],
                        tool_config=read["toolConfig"],
                        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
                        **{key: getattr(config, key) for key in config.model_fields_set},
                    ),
                )
            )
            client.close()
            http = Replay(RECORDINGS["text"])
            asked(Gemini(MODELS[0], api_key="AIza-secret", base_url=server.url), request, http)
        theirs = server.requests[0]
        assert listed(camel(plain(theirs.json))) == listed(plain(ours))
        assert http.url == server.url + theirs.path
        assert http.headers["x-goog-api-key"] == theirs.headers["x-goog-api-key"]


def written(model: str, request: ModelRequest) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(body(model, request), default=dict))
    return made


def signed(part: Any) -> str | None:
    if isinstance(part, Native):
        return part.data.get("thoughtSignature")
    return getattr(part, "signature", None)


def plain(value: Any) -> Any:
    """Base64 in one alphabet."""
    text = json.dumps(value)
    return json.loads(re.sub(r'(?<="data": "|ature": ")[^"]*', lambda found: found[0].translate(_ALPHABET), text))


_ALPHABET = str.maketrans("-_", "+/")


def camel(value: Any) -> Any:
    """The SDK's own keys, some of which it leaves in Python's spelling; the API takes both."""
    text = json.dumps(value)
    return json.loads(re.sub(r'"[a-z_]+": ', lambda key: re.sub("_(.)", lambda found: found[1].upper(), key[0]), text))


def listed(sent: dict[str, Any]) -> dict[str, Any]:
    """Tools in one order; the SDK puts Google's first."""
    return {**sent, "tools": sorted(sent["tools"], key=str)}


# ---- what the API may say

counts = st.integers(0, 10_000)


@st.composite
def text_parts(draw: st.DrawFn) -> Made:
    thought = draw(st.none() | st.just(True))
    return maybe(text=draw(words), thought=thought, thoughtSignature=draw(st.none() | signatures))


@st.composite
def call_parts(draw: st.DrawFn) -> Made:
    id = draw(st.none() | st.sampled_from(["a", "b", "c"]))
    call = maybe(name=draw(st.sampled_from(["get_weather", "now"])), args=draw(st.none() | arguments), id=id)
    return maybe(functionCall=call, thoughtSignature=draw(st.none() | signatures))


@st.composite
def picture_parts(draw: st.DrawFn) -> Made:
    return {"inlineData": {"mimeType": "image/png", "data": draw(signatures)}}


parts = text_parts() | text_parts() | call_parts() | native_data | picture_parts()
finishes = st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "TOO_MANY_TOOL_CALLS", "OTHER", "LANGUAGE"])


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chunks as the API sends them: parts, and the counts of all tokens so far."""
    prompt, cached, tools = draw(counts), draw(st.integers(0, 50)), draw(st.none() | counts)
    wrote = thought = 0
    made: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 5))):
        wrote, thought = wrote + draw(counts), thought + draw(counts)
        usage = {
            "promptTokenCount": prompt + cached,
            "cachedContentTokenCount": cached,
            "candidatesTokenCount": wrote,
            "thoughtsTokenCount": thought,
            "totalTokenCount": prompt + cached + wrote + thought + (tools or 0),
        }
        if tools is not None:
            usage["toolUsePromptTokenCount"] = tools
        candidate: dict[str, Any] = {
            "content": {"role": "model", "parts": draw(st.lists(parts, max_size=3))},
            "index": 0,
        }
        made.append({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m-1", "responseId": "r-1"})
    made[-1]["candidates"][0]["finishReason"] = draw(finishes)
    return made


STOPS: Mapping[Any, str] = {
    types.FinishReason.STOP: "end_turn",
    types.FinishReason.MAX_TOKENS: "max_tokens",
    types.FinishReason.SAFETY: "content_filter",
    types.FinishReason.RECITATION: "content_filter",
    types.FinishReason.LANGUAGE: "content_filter",
    types.FinishReason.TOO_MANY_TOOL_CALLS: "pause",
    types.FinishReason.OTHER: "other",
    "FUNCTION_CALL": "end_turn",
}


class TestStreams:
    """parity: P3, P5, P6, P7. The same message, usage and stop reason, through our parser and through the SDK's."""

    @pytest.mark.parametrize("name", sorted(RECORDINGS))
    def test_a_recording_through_the_official_client(self, name: str) -> None:
        with warnings.catch_warnings(), Server(stream(RECORDINGS[name])) as server:
            warnings.simplefilter("ignore")  # of finish reasons that it does not know
            client = genai.Client(api_key="AIza-secret", http_options=types.HttpOptions(base_url=server.url))
            theirs = list(client.models.generate_content_stream(model=MODELS[0], contents="Hello"))
            client.close()
        agree(response(RECORDINGS[name]), theirs, in_pieces=name == "call_in_pieces")

    @pytest.mark.parametrize("name", sorted(RECORDINGS.keys() - {"aimock"}))  # it does not name a model
    def test_genai_prices_reads_the_same_usage(self, name: str) -> None:
        """parity: P5. A judge of its own: cached, thought and found tokens."""
        last = [json.loads(event) for event in SseParser().feed(RECORDINGS[name])][-1]
        theirs = extract_usage(last, provider_id="google", api_flavor="default").usage
        ours = response(RECORDINGS[name]).usage
        assert ours is not None
        read = (theirs.input_tokens, theirs.output_tokens, theirs.cache_read_tokens, theirs.output_reasoning_tokens)
        kept = (ours.input_tokens, ours.output_tokens, ours.cache_read_tokens, ours.reasoning_tokens)
        assert [count or 0 for count in read] == [*kept]

    @many
    @given(streams())
    def test_a_generated_stream_through_its_types(self, chunks: list[dict[str, Any]]) -> None:
        theirs = [types.GenerateContentResponse.model_validate_json(json.dumps(chunk)) for chunk in chunks]
        agree(response(sse(*chunks)), theirs)

    def test_every_reason_to_finish_is_known(self) -> None:
        """A new one in the SDK is one to decide about."""
        decided = {*STOP, *FAILED, "OTHER", "NO_IMAGE", "IMAGE_OTHER", "FINISH_REASON_UNSPECIFIED"}
        assert {reason.value for reason in types.FinishReason} <= decided


def response(data: bytes) -> ModelResponse:
    last = asked(Gemini(MODELS[0], api_key="AIza-secret"), ASK, Replay(data))[-1]
    assert isinstance(last, ModelResponse)
    return last


def agree(ours: ModelResponse, theirs: Sequence[Any], in_pieces: bool = False) -> None:
    candidates = [chunk.candidates[0] for chunk in theirs if chunk.candidates]
    came = [part for candidate in candidates if candidate.content for part in candidate.content.parts or ()]
    message = ours.message
    assert message.text == "".join(part.text for part in came if part.text and not part.thought)
    thoughts = "".join(part.text for part in message.parts if isinstance(part, Thinking))
    assert thoughts == "".join(part.text for part in came if part.text and part.thought)
    asked_for = [part.function_call for part in came if part.function_call and part.function_call.name]
    assert [call.name for call in message.tool_calls] == [call.name for call in asked_for]
    if not in_pieces:  # the SDK leaves them in pieces
        assert [call.arguments for call in message.tool_calls] == [call.args or {} for call in asked_for]
    taken: set[str] = set()
    for call, told in zip(message.tool_calls, asked_for, strict=True):
        assert call.call_id == told.id or not told.id or told.id in taken
        assert call.call_id not in taken
        taken.add(call.call_id)
    kept = [signature for part in message.parts if (signature := signed(part)) is not None]
    assert [base64.b64decode(signature) for signature in kept] == [
        part.thought_signature for part in came if part.thought_signature
    ]
    theirs_only = [
        part.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for part in came
        if part.executable_code or part.code_execution_result or part.tool_call or part.tool_response
    ]
    ours_only = [
        dict(part.data) for part in message.parts if isinstance(part, Native) and set(part.data) & set(KINDS[5:])
    ]
    assert plain(ours_only) == plain(theirs_only)
    pictures = [part.data for part in message.parts if isinstance(part, Image)]
    assert pictures == [part.inline_data.data for part in came if part.inline_data]
    last = [chunk.usage_metadata for chunk in theirs if chunk.usage_metadata][-1]
    assert ours.usage is not None
    assert ours.usage == Usage(
        input_tokens=(last.prompt_token_count or 0) + (last.tool_use_prompt_token_count or 0),
        cache_read_tokens=last.cached_content_token_count or 0,
        output_tokens=(last.candidates_token_count or 0) + (last.thoughts_token_count or 0),
        reasoning_tokens=last.thoughts_token_count or 0,
        server_tool_calls=ours.usage.server_tool_calls,
    )
    blocked = any(chunk.prompt_feedback and chunk.prompt_feedback.block_reason for chunk in theirs)
    stop = "refusal" if blocked else STOPS[candidates[-1].finish_reason]
    assert ours.stop_reason == ("tool_use" if stop == "end_turn" and asked_for else stop)
    assert ours.raw_model == theirs[0].model_version
    assert ours.response_id == theirs[0].response_id


# ---- fuzz

EVENTS = [json.loads(event) for data in RECORDINGS.values() for event in SseParser().feed(data)]
odd_ones: list[Any] = [
    *({}, [], "", 0, -1, 1e308, "STOP", {"parts": [{}]}, {"name": "f"}, {"name": "f", "willContinue": True}),
    *([{"jsonPath": "$.a", "stringValue": "x", "willContinue": True}], [{"jsonPath": "$.a[0].b"}]),
    {"blockReason": "X"},
]
odd: st.SearchStrategy[Any] = values | st.sampled_from(odd_ones)


def keys(value: object) -> list[Any]:
    if isinstance(value, dict):
        return [*cast("dict[str, Any]", value)]
    return [*range(len(cast("Sequence[Any]", value)))] if isinstance(value, list) else []


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    return [path, *(place for key in keys(value) for place in places(value[key], (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


@st.composite
def mutated(draw: st.DrawFn) -> list[Any]:
    made: list[Any] = []
    for event in draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=4)):
        for _ in range(draw(st.integers(0, 2))):
            event = changed(event, draw(st.sampled_from(places(event))), draw(odd))
        made.append(event)
    return made


class TestFuzz:
    """Whatever comes: an answer that is sound, or a typed error."""

    @many
    @given(mutated())
    def test_mutated_events(self, events: list[Any]) -> None:
        survives(sse(*events))

    @many
    @given(st.sampled_from(sorted(RECORDINGS)), st.data())
    def test_mutated_bytes(self, name: str, data: st.DataObject) -> None:
        recorded = RECORDINGS[name]
        at = data.draw(st.integers(0, len(recorded)))
        rest = data.draw(st.integers(at, len(recorded)))
        survives(recorded[:at] + data.draw(st.binary(max_size=4)) + recorded[rest:])


def survives(data: bytes) -> None:
    made = GeminiAnswer(MODELS[0], ASK)
    told: list[StreamPart] = []
    parser = SseParser()
    try:
        for event in [*parser.feed(data), *parser.close()]:
            told += made.read(event)
        whole = made.response()
    except errors.ProviderError:
        return
    assert fault(whole.message, "assistant") is None
    assert whole.usage is None or whole.usage.fault() is None
    for part in whole.message.parts:
        json.dumps(dict(part.data) if isinstance(part, Native) else {}, allow_nan=False)
    replies = [ToolAnswer(call_id=call.call_id, name=call.name, text="x") for call in whole.message.tool_calls]
    ids = [call.call_id for call in whole.message.tool_calls]
    assert len(set(ids)) == len(ids)
    messages = named([*ASK.messages, whole.message, Message(role="tool", parts=tuple(replies))])
    json.dumps(body(MODELS[0], ModelRequest(messages=messages)), allow_nan=False, default=dict)
