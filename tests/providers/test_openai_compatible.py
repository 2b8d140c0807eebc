"""Chat completions: what is sent, what is understood, and what every server gets wrong in its own way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as CatalogUsage
from genai_prices import calc_price
from tests.replay import Replay
from tests.servers import Server, answer, cut, stream

from nitinol import errors
from nitinol.http import Http, HttpPool
from nitinol.messages import Audio, Document, Image, Message, Part, Text, Thinking, ToolAnswer, ToolCall, to_message
from nitinol.prices import PriceList
from nitinol.provider import Delta, ModelRequest, ModelResponse, Provider, StreamPart, UsageSoFar, resolve
from nitinol.tool_spec import tool
from nitinol.usage import Usage
from nitinol_providers import OpenAICompatible
from nitinol_providers.overflow import classify
from nitinol_providers.vendors import VENDORS

RECORDINGS = Path(__file__).parent / "recordings"
ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=3)


def provider(name: str = "llamacpp", model: str = "m", **options: Any) -> OpenAICompatible:
    options.setdefault("api_key", "sk-secret")
    return OpenAICompatible(model, name=name, **options)


def ask(http: Http, request: ModelRequest = ASK, name: str = "llamacpp") -> list[StreamPart]:
    async def main() -> list[StreamPart]:
        return [part async for part in provider(name).stream(request, http)]

    return asyncio.run(main())


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "model": "served", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def called(index: int | None, id: str | None = None, name: str | None = None, arguments: Any = "") -> dict[str, Any]:
    call: dict[str, Any] = {"id": id, "function": {"name": name, "arguments": arguments}}
    return delta(tool_calls=[call if index is None else {**call, "index": index}])


def respond(*chunks: Any, request: ModelRequest = ASK, name: str = "llamacpp") -> ModelResponse:
    last = ask(Replay(sse(*chunks)), request, name)[-1]
    assert isinstance(last, ModelResponse)
    return last


def calls(*chunks: Any, request: ModelRequest = ASK) -> list[tuple[str, str, Any]]:
    found = respond(*chunks, delta("tool_calls"), request=request).message.tool_calls
    return [(call.call_id, call.name, call.arguments if call.malformed is None else call.malformed) for call in found]


def sent(request: ModelRequest, name: str = "openai-compatible") -> dict[str, Any]:
    http = Replay(sse(delta("stop", content="x")))
    ask(http, request, name)
    body: dict[str, Any] = json.loads(json.dumps(http.sent, default=dict))
    return body


def conversation(*messages: Message, name: str = "openai-compatible", **options: Any) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = sent(ModelRequest(messages=messages, **options), name)["messages"]
    return made


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def tools(*answers: ToolAnswer) -> Message:
    return Message(role="tool", parts=answers)


def assistant(*parts: Part, provider: str = "llamacpp") -> Message:
    return Message(role="assistant", parts=parts, provider=provider, model="m")


class TestRecordings:
    """What real servers sent. parity: P7, P10"""

    @pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.sse")), ids=lambda path: path.stem)
    def test_a_recording_split_anywhere_says_the_same(self, path: Path) -> None:
        recorded = path.read_bytes()
        whole = ask(Replay(recorded))
        assert isinstance(whole[-1], ModelResponse)
        assert ask(Replay(*(recorded[at : at + 1] for at in range(len(recorded))))) == whole
        for at in range(0, len(recorded), 97):
            assert ask(Replay(recorded[:at], recorded[at:])) == whole
        assert ask(Replay(recorded.replace(b"\n", b"\r\n"))) == whole

    def read(self, name: str) -> ModelResponse:
        last = ask(Replay((RECORDINGS / name).read_bytes()))[-1]
        assert isinstance(last, ModelResponse)
        return last

    def test_thinking_text_and_two_calls(self) -> None:
        response = self.read("thinking_text_and_two_tool_calls.sse")
        assert response.message.parts == (
            Thinking(text="The user wants the weather; I should call the tool."),
            Text("Let me check."),
            ToolCall(call_id="call_abc", name="get_weather", arguments={"city": "Paris", "units": "metric"}),
            ToolCall(call_id="call_def", name="get_time", arguments={"tz": "Europe/Paris"}),
        )
        assert response.usage == Usage(input_tokens=100, output_tokens=40)
        assert (response.stop_reason, response.raw_model) == ("tool_use", "gpt-5.4")
        assert response.response_id == "chatcmpl-DgLaYGHK2rvWGBIg"
        assert (response.message.provider, response.message.model) == ("llamacpp", "m")

    def test_line_separators_of_unicode_are_text(self) -> None:
        text = self.read("unicode_line_separators.sse").message.text
        assert text == 'naïve 😀 line\u2028sep para\u2029sep nel\u0085x 中文 "q" \\ back\nnew'

    def test_an_id_and_a_name_in_every_delta_are_set_once(self) -> None:
        (call,) = self.read("id_and_name_in_every_delta.sse").message.tool_calls
        assert (call.name, call.arguments) == ("get_weather", {"city": "Paris"})
        assert call.call_id == "call__0_get_weather_cmpl-c066be4f-a018-476e-83a5-38c6a483ef18"

    def test_usage_comes_in_a_chunk_without_choices(self) -> None:
        assert self.read("llamacpp_tool_call.sse").usage == Usage(
            input_tokens=243, cache_read_tokens=34, output_tokens=31
        )

    def test_an_answer_that_is_not_streamed_is_understood(self) -> None:
        whole = (RECORDINGS / "whole_answer_with_tool_call.json").read_bytes()
        with Server(answer(200, whole)) as server:
            response = over_http(server.url)[-1]
        assert isinstance(response, ModelResponse)
        assert response.message.tool_calls[0].arguments == {"city": "Paris"}
        assert response.stop_reason == "tool_use"


class TestCalls:
    """parity: P7, P8"""

    def test_calls_are_put_together_by_index(self) -> None:
        found = calls(
            called(0, "a", "f", '{"x"'),
            called(1, "b", "g", '{"y"'),
            called(0, None, None, ": 1}"),
            called(1, arguments=":2}"),
        )
        assert found == [("a", "f", {"x": 1}), ("b", "g", {"y": 2})]

    def test_calls_without_an_index_are_told_apart(self) -> None:
        found = calls(called(None, "a", "f", "{}"), called(None, "b", "g", '{"y":'), called(None, arguments="2}"))
        assert found == [("a", "f", {}), ("b", "g", {"y": 2})]

    def test_calls_that_all_have_the_index_0_are_told_apart(self) -> None:
        """Ollama, Gemini's compatible endpoint."""
        assert calls(called(0, "a", "f", "{}"), called(0, "b", "f", "{}")) == [("a", "f", {}), ("b", "f", {})]

    def test_a_new_id_in_every_delta_is_no_new_call(self) -> None:
        """vLLM has done so."""
        assert calls(called(0, "a", "f", "{"), called(0, "b", None, "}")) == [("a", "f", {})]

    @pytest.mark.parametrize("nothing", ["", None, "  ", "null", "{}"])
    def test_a_call_may_have_no_arguments(self, nothing: str | None) -> None:
        assert calls(called(0, "a", "f", nothing)) == [("a", "f", {})]

    @pytest.mark.parametrize("raw", ["{", "[1]", '"x"', '{"x": NaN}', '{"x": "\\ud83d"}', "not json"])
    def test_arguments_that_are_no_json_object_are_kept_as_they_are(self, raw: str) -> None:
        """The call is answered with an error that the model can mend."""
        assert calls(called(0, "a", "f", raw)) == [("a", "f", raw)]

    def test_arguments_may_come_as_an_object(self) -> None:
        assert calls(called(0, "a", "f", {"x": "ü"})) == [("a", "f", {"x": "ü"})]

    def test_a_missing_id_is_made_up_without_chance(self) -> None:
        chunks = [called(0, None, "f"), called(1, "", "g")]
        assert calls(*chunks) == calls(*chunks) == [("call_RUN_3_0", "f", {}), ("call_RUN_3_1", "g", {})]

    def test_no_two_calls_of_a_conversation_have_one_id(self) -> None:
        """Neither two of one answer, nor one of now and one of before."""
        before = assistant(ToolCall(call_id="a", name="f"), ToolCall(call_id="call_RUN_3_1", name="f"))
        request = ASK.replace(messages=(*ASK.messages, before))
        found = calls(
            called(0, "a", "f"), called(1, None, "f"), called(2, "b", "f"), called(3, "b", "f"), request=request
        )
        assert [id for id, _, _ in found] == ["call_RUN_3_0", "call_RUN_3_1_x", "b", "call_RUN_3_3"]

    def test_a_call_without_a_name_is_malformed(self) -> None:
        with pytest.raises(errors.MalformedResponse, match="name"):
            calls(called(0, "a", None, "{}"))

    def test_deltas_say_which_call(self) -> None:
        parts = ask(
            Replay(sse(delta(content="x"), called(0, "a", "f", "{}"), called(1, "b", "f", "{}"), delta("stop")))
        )
        assert parts[:-1] == [Delta("text", "x"), Delta("tool_args", "{}", 0), Delta("tool_args", "{}", 1)]


class TestAnswers:
    """parity: P3, P6, P9"""

    @pytest.mark.parametrize(
        ("finish", "reason"),
        [
            ("stop", "end_turn"),
            ("eos", "end_turn"),
            ("length", "max_tokens"),
            ("model_length", "max_tokens"),
            ("content_filter", "content_filter"),
            ("tool_calls", "end_turn"),  # without a call there is nothing to do
            ("something_new", "other"),
        ],
    )
    def test_stop_reasons_stay_distinct(self, finish: str, reason: str) -> None:
        assert respond(delta(content="x"), delta(finish)).stop_reason == reason

    def test_a_stop_with_calls_is_tool_use(self) -> None:
        assert respond(called(0, "a", "f"), delta("stop")).stop_reason == "tool_use"

    def test_a_cut_answer_with_calls_is_still_cut(self) -> None:
        assert respond(called(0, "a", "f", '{"x'), delta("length")).stop_reason == "max_tokens"

    def test_a_refusal_is_text_and_a_reason(self) -> None:
        response = respond(delta(refusal="I can"), delta(refusal="not"), delta("stop"))
        assert (response.stop_reason, response.message.text) == ("refusal", "I cannot")

    @pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
    def test_thinking_is_a_kind_of_its_own(self, field: str) -> None:
        parts = ask(Replay(sse(delta(**{field: "hm"}), delta(content="yes"), delta("stop"))))
        assert parts[:2] == [Delta("thinking", "hm", 0), Delta("text", "yes", 1)]

    def test_mistrals_lists_are_thinking_and_text(self) -> None:
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
        response = respond(delta(content=[thought]), delta(content=[{"type": "text", "text": "yes"}]), delta("stop"))
        assert response.message.parts == (Thinking(text="hm"), Text("yes"))

    def test_an_empty_answer_has_no_parts(self) -> None:
        assert respond(delta(content=""), delta("stop", content=None)).message.parts == ()

    def test_usage_that_is_missing_is_unknown(self) -> None:
        assert respond(delta("stop", content="x")).usage is None

    @pytest.mark.parametrize(
        "raw",
        [
            {"prompt_tokens": None, "completion_tokens": None},
            {"prompt_tokens": "10", "completion_tokens": -1, "total_tokens": True},
            {"cost": "1E+9999999"},
            {"cost_in_usd_ticks": "123"},
            {"cost_in_usd_ticks": -3},
        ],
    )
    def test_usage_that_tells_nothing_is_unknown_and_not_zero(self, raw: dict[str, Any]) -> None:
        assert respond(delta("stop", content="x"), {"choices": [], "usage": raw}).usage is None

    def test_a_number_that_is_none_in_json_is_no_argument(self) -> None:
        """It would go back as a word that no server reads, in each request that follows."""
        assert calls(called(0, "a", "f", '{"x": 1e999}')) == [("a", "f", '{"x": 1e999}')]
        assert calls(called(0, "a", "f", '{"x": 1e200}')) == [("a", "f", {"x": 1e200})]
        with pytest.raises(errors.MalformedResponse):
            ask(Replay(sse(delta(reasoning_details=[{"x": 1}])).replace(b'"x": 1', b'"x": 1e999')))

    def test_a_call_that_is_cut_before_its_first_argument_does_not_run_without(self) -> None:
        (call,) = respond(called(0, "a", "wipe"), delta("length")).message.tool_calls
        assert call.malformed == ""
        whole, cut = respond(called(0, "a", "look"), called(1, "b", "wipe"), delta("length")).message.tool_calls
        assert (whole.malformed, cut.malformed) == (None, "")
        (call,) = respond(called(0, "a", "look"), delta("tool_calls")).message.tool_calls
        assert call.malformed is None

    @pytest.mark.parametrize(
        ("raw", "usage"),
        [
            ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(input_tokens=5, output_tokens=2)),
            (
                {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None},
                Usage(input_tokens=5, output_tokens=2),
            ),
            (
                {
                    "prompt_tokens": 9,
                    "completion_tokens": 2,
                    "prompt_cache_hit_tokens": 4,
                    "prompt_cache_miss_tokens": 5,
                },
                Usage(input_tokens=9, cache_read_tokens=4, output_tokens=2),
            ),
            (
                {
                    "prompt_tokens": 9,
                    "completion_tokens": 7,
                    "total_tokens": 16,
                    "completion_tokens_details": {"reasoning_tokens": 5},
                    "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
                },
                Usage(input_tokens=9, cache_read_tokens=3, cache_write_tokens=2, output_tokens=7, reasoning_tokens=5),
            ),
            (  # xAI: reasoning is beside the completion
                {
                    "prompt_tokens": 9,
                    "completion_tokens": 2,
                    "total_tokens": 16,
                    "completion_tokens_details": {"reasoning_tokens": 5},
                },
                Usage(input_tokens=9, output_tokens=7, reasoning_tokens=5),
            ),
            (
                {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.1},
                Usage(input_tokens=1, output_tokens=1, reported_cost=Decimal("0.1")),
            ),
            (  # the user's own key: the vendor's bill comes on top
                {
                    "prompt_tokens": 1,
                    "completion_tokens": 1,
                    "cost": 0.01,
                    "is_byok": True,
                    "cost_details": {"upstream_inference_cost": 0.2},
                },
                Usage(input_tokens=1, output_tokens=1, reported_cost=Decimal("0.21")),
            ),
            (
                {"prompt_tokens": 1, "completion_tokens": 1, "cost": 0, "is_byok": True},
                Usage(input_tokens=1, output_tokens=1),
            ),
        ],
    )
    def test_usage_of_every_vendor_is_one_vocabulary(self, raw: dict[str, Any], usage: Usage) -> None:
        """parity: P5"""
        parts = ask(Replay(sse(delta("stop", content="x"), {"choices": [], "usage": raw})))
        assert parts[-2] == UsageSoFar(usage)
        assert isinstance(parts[-1], ModelResponse)
        assert parts[-1].usage == usage

    def test_groqs_usage_is_found(self) -> None:
        last = {**delta("stop"), "x_groq": {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}}
        assert respond(delta(content="x"), last).usage == Usage(input_tokens=5, output_tokens=2)

    def test_half_an_emoji_does_not_lose_the_answer(self) -> None:
        """Servers that cut a token in two send half of a surrogate pair."""
        halves = (
            b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\ndata: {"choices":[{"delta":{"content":"b"}}]}\n\n'
        )
        last = ask(Replay(halves + sse(delta("stop"))))[-1]
        assert isinstance(last, ModelResponse)
        assert last.message.text == "a\ufffdb"


class TestFailures:
    """parity: P9, R1"""

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            ({"code": 429, "message": "slow down"}, errors.RateLimited),
            ({"code": "429", "message": "slow down"}, errors.RateLimited),
            ({"code": 502, "message": "upstream"}, errors.ServerError),
            ({"code": 529, "message": "busy"}, errors.Overloaded),
            ({"code": 401, "message": "no"}, errors.AuthenticationFailed),
            ({"code": "rate_limit_exceeded", "message": "slow down"}, errors.RateLimited),
            ({"type": "overloaded_error", "message": "busy"}, errors.Overloaded),
            ({"type": "invalid_request_error", "message": "bad"}, errors.InvalidRequest),
            ({"code": "context_length_exceeded", "message": "too long"}, errors.ContextOverflow),
            ({"code": 500, "type": "exceed_context_size_error", "message": "x"}, errors.ContextOverflow),
            ({"message": "who knows"}, errors.ServerError),
            ("who knows", errors.ServerError),
        ],
    )
    def test_an_error_in_mid_stream_has_its_type(self, error: Any, kind: type[errors.ProviderError]) -> None:
        with pytest.raises(errors.ProviderError) as caught:
            respond(delta(content="x"), {"error": error, **delta("error")})
        assert type(caught.value) is kind
        assert str(caught.value) == (error if isinstance(error, str) else error["message"])

    def test_an_error_in_mid_stream_hides_the_key(self) -> None:
        with pytest.raises(errors.ServerError, match=r"key \[key\] failed"):
            respond({"error": {"message": "key sk-secret failed"}})

    @pytest.mark.parametrize("stream", [b"", b"data: [DONE]\n\n", sse(delta(content="x")), b": comment\n\n"])
    def test_a_stream_without_its_end_is_an_error(self, stream: bytes) -> None:
        """The official SDKs take it for an answer."""
        with pytest.raises(errors.MalformedResponse, match="without its end"):
            ask(Replay(stream))

    def test_a_finish_reason_is_an_end_without_done(self) -> None:
        whole = sse(delta("stop", content="x")).removesuffix(b"data: [DONE]\n\n")
        assert isinstance(ask(Replay(whole))[-1], ModelResponse)

    @pytest.mark.parametrize(
        "chunk", [b"not json", b"[]", b'"x"', b'{"choices": 7}', b'{"choices": [7]}', b'{"choices": [{"delta": "x"}]}']
    )
    def test_a_chunk_that_is_none_is_malformed(self, chunk: bytes) -> None:
        with pytest.raises(errors.MalformedResponse):
            ask(Replay(b"data: " + chunk + b"\n\n"))

    def test_a_vendor_that_gives_up_is_a_typed_error(self) -> None:
        with pytest.raises(errors.Overloaded):
            respond(delta("insufficient_system_resource"))

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, errors.ContextOverflow),
            (
                400,
                {"error": {"code": 400, "type": "exceed_context_size_error", "message": "x"}},
                errors.ContextOverflow,
            ),
            (400, {"message": "This model's maximum context length is 8192 tokens"}, errors.ContextOverflow),
            (400, {"error": {"code": "content_filter", "message": "x"}}, errors.ContentRefused),
            (429, {"error": {"message": "reduce the length of the messages"}}, errors.RateLimited),
            (400, {"error": {"message": "no such tool"}}, errors.InvalidRequest),
            (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, errors.Overloaded),
        ],
    )
    def test_an_error_body_is_read_by_the_vendors_table(self, status: int, body: Any, kind: type[Exception]) -> None:
        with Server(answer(status, body)) as server, pytest.raises(errors.ProviderError) as caught:
            over_http(server.url)
        assert type(caught.value) is kind

    def test_a_cut_connection_is_retryable_and_its_usage_known(self) -> None:
        usage: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        pieces = sse(delta(content="x"), usage).removesuffix(b"data: [DONE]\n\n")
        seen: list[StreamPart] = []
        with Server(cut(pieces)) as server, pytest.raises(errors.ConnectionFailed):
            over_http(server.url, seen.append)
        assert seen == [Delta("text", "x"), UsageSoFar(Usage(input_tokens=5, output_tokens=2))]

    def test_the_table_leaves_rate_limits_and_keys_alone(self) -> None:
        assert classify(429, "prompt is too long") is None
        assert classify(401, "prompt is too long") is None
        assert classify(413, "Prompt is too long") is errors.ContextOverflow


class TestRequests:
    """parity: P2"""

    def test_the_body_is_a_streamed_chat_completion(self) -> None:
        @tool
        def look(city: str) -> str:
            """Look out."""
            return city

        request = ASK.replace(
            instructions="Be brief.", tools=(look,), max_output_tokens=9, temperature=0.0, extra={"top_p": 1, "seed": 7}
        )
        assert sent(request) == {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "look", "description": "Look out.", "parameters": look.parameters},
                }
            ],
            "max_tokens": 9,
            "temperature": 0.0,
            "top_p": 1,
            "seed": 7,
        }
        assert "stream_options" not in sent(ASK, "mistral")
        assert sent(request, "groq")["max_completion_tokens"] == 9

    def test_a_schema_is_a_response_format_or_a_word_to_the_model(self) -> None:
        request = ASK.replace(output_schema={"type": "object"})
        assert sent(request)["response_format"]["json_schema"] == {"name": "output", "schema": {"type": "object"}}
        body = sent(request, "groq")
        assert "response_format" not in body
        assert '{"type": "object"}' in body["messages"][0]["content"]

    @pytest.mark.parametrize(
        ("name", "thinking", "fields"),
        [
            ("openai-compatible", "low", {"reasoning_effort": "low"}),
            ("groq", 1000, {"reasoning_effort": "low"}),
            ("ollama", 30_000, {"reasoning_effort": "high"}),
            ("openrouter", "high", {"reasoning": {"effort": "high"}}),
            ("openrouter", 9000, {"reasoning": {"max_tokens": 9000}}),
            ("deepseek", 9000, {"thinking": {"type": "enabled"}, "reasoning_effort": "medium"}),
            ("mistral", "low", {"reasoning_effort": "high"}),
            ("llamacpp", 500, {"thinking_budget_tokens": 500, "chat_template_kwargs": {"enable_thinking": True}}),
        ],
    )
    def test_thinking_is_asked_for_in_the_vendors_words(self, name: str, thinking: Any, fields: dict[str, Any]) -> None:
        """parity: P3"""
        body = sent(ASK.replace(thinking=thinking), name)
        assert {key: body.get(key) for key in fields} == fields

    def test_media_are_sent_in_the_vendors_form(self) -> None:
        (message,) = conversation(
            user(
                Text("Look:"),
                Image(data=b"img", media_type="image/png"),
                Image(url="https://x.test/a.png"),
                Audio(data=b"snd", media_type="audio/mpeg"),
                Document(data=b"pdf", media_type="application/pdf", name="a.pdf"),
                Document(data=b"words", media_type="text/plain", name="a.txt"),
            )
        )
        assert message["content"] == [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aW1n"}},
            {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
            {"type": "input_audio", "input_audio": {"data": "c25k", "format": "mp3"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,cGRm"}},
            {"type": "text", "text": "Document 'a.txt':\nwords"},
        ]

    @pytest.mark.parametrize(
        ("name", "part", "words"),
        [
            (
                "deepseek",
                Image(data=b"img", media_type="image/png", name="a.png"),
                "[image 'a.png' (image/png, 3 bytes)",
            ),
            ("ollama", Image(url="https://x.test/a.png", media_type="image/png"), "[image at https://x.test/a.png"),
            ("groq", Audio(data=b"snd", media_type="audio/mpeg"), "[audio (audio/mpeg, 3 bytes)"),
            ("openai-compatible", Audio(data=b"snd", media_type="audio/ogg"), "[audio (audio/ogg, 3 bytes)"),
            ("together", Document(data=b"pdf", media_type="application/pdf"), "[document (application/pdf, 3 bytes)"),
        ],
    )
    def test_what_a_vendor_does_not_take_becomes_a_note(self, name: str, part: Part, words: str) -> None:
        """Never dropped in silence."""
        content = conversation(user(Text("Look:"), part), name=name)[0]["content"]
        assert content.startswith("Look:\n" + words)

    def test_a_tool_loop_is_paired_by_id(self) -> None:
        made = conversation(
            user(Text("go")),
            assistant(Thinking(text="hm"), Text("Well."), ToolCall(call_id="a", name="f", arguments={"x": "ü"})),
            tools(ToolAnswer(call_id="a", name="f", text="boom", error=True)),
        )
        assert made[1:] == [
            {
                "role": "assistant",
                "content": "Well.",
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": "ü"}'}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "Error: boom"},
        ]

    def test_malformed_arguments_go_back_as_json(self) -> None:
        """parity: P8. A server refuses the whole conversation otherwise."""
        made = conversation(assistant(ToolCall(call_id="a", name="f", malformed='{"x')))
        assert json.loads(made[0]["tool_calls"][0]["function"]["arguments"]) == {"malformed_json": '{"x'}
        assert made[0]["content"] is None

    def test_a_message_of_foreign_thinking_alone_is_left_out(self) -> None:
        """Some servers refuse a message without content."""
        assert conversation(user(Text("a")), assistant(Thinking(text="hm")), user(Text("b")))[1:] == [
            {"role": "user", "content": "b"}
        ]

    def test_a_tools_picture_follows_its_answers(self) -> None:
        image = Image(data=b"img", media_type="image/png")
        made = conversation(
            tools(
                ToolAnswer(call_id="a", name="f", text="done", media=(image,)),
                ToolAnswer(call_id="b", name="g", text=""),
            )
        )
        assert [message["role"] for message in made] == ["tool", "tool", "user"]
        assert made[0]["content"] == "done\n[image in the next message]"
        assert made[1]["content"] == "(no output)"
        assert [item["type"] for item in made[2]["content"]] == ["text", "image_url"]
        assert (
            "not shown"
            in conversation(tools(ToolAnswer(call_id="a", name="f", text="done", media=(image,))), name="deepseek")[0][
                "content"
            ]
        )

    def test_mistral_gets_short_ids_and_no_user_behind_a_tool(self) -> None:
        """Its API refuses both."""
        made = conversation(
            assistant(ToolCall(call_id="call_RUN_3_0", name="f"), ToolCall(call_id="abcDEF123", name="f")),
            tools(
                ToolAnswer(call_id="call_RUN_3_0", name="f", text="x"),
                ToolAnswer(call_id="abcDEF123", name="f", text="y"),
            ),
            user(Text("And now?")),
            name="mistral",
        )
        first, second = (call["id"] for call in made[0]["tool_calls"])
        assert len(first) == 9
        assert first.isalnum()
        assert second == "abcDEF123"
        assert [message["tool_call_id"] for message in made[1:3]] == [first, second]
        assert [message["role"] for message in made[3:]] == ["assistant", "user"]

    @pytest.mark.parametrize("name", sorted(VENDORS))
    def test_an_id_that_is_too_long_is_made_short(self, name: str) -> None:
        """OpenAI refuses more than 40 characters; vLLM makes 46, and ours hold the id that a caller gave the run."""
        long, longer = "chatcmpl-tool-" + "f" * 32, f"call_{'r' * 60}_1_0"
        made = conversation(
            assistant(ToolCall(call_id=long, name="f"), ToolCall(call_id=longer, name="f")),
            tools(ToolAnswer(call_id=long, name="f", text="x"), ToolAnswer(call_id=longer, name="f", text="y")),
            name=name,
        )
        ids = [call["id"] for call in made[0]["tool_calls"]]
        assert all(0 < len(id) <= 40 for id in ids)
        assert len(set(ids)) == 2
        assert [message["tool_call_id"] for message in made[1:3]] == ids

    def test_deepseek_gets_its_own_thinking_back(self) -> None:
        """parity: P3. It refuses a tool call without; nobody else's is sent."""
        own = assistant(Thinking(text="hm"), ToolCall(call_id="a", name="f"), provider="deepseek")
        foreign = assistant(Thinking(text="hm"), ToolCall(call_id="a", name="f"), provider="anthropic")
        assert [m["reasoning_content"] for m in conversation(own, foreign, name="deepseek")] == ["hm", ""]
        assert "reasoning_content" not in conversation(own, name="groq")[0]

    def test_openrouters_thinking_goes_round_with_its_signature(self) -> None:
        """parity: P3"""
        response = respond(
            delta(reasoning="h", reasoning_details=[{"type": "reasoning.text", "text": "h", "index": 0}]),
            delta(reasoning="m", reasoning_details=[{"type": "reasoning.text", "text": "m", "index": 0}]),
            delta(reasoning_details=[{"type": "reasoning.text", "signature": "sig", "index": 0}]),
            delta("stop", content="yes"),
            name="openrouter",
        )
        (message,) = conversation(response.message, name="openrouter")
        assert message["reasoning_details"] == [
            {"type": "reasoning.text", "text": "hm", "index": 0, "signature": "sig"}
        ]
        assert "reasoning" not in message


class TestConstruction:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for vendor in VENDORS.values():
            for variable in (vendor.key_variable, vendor.url_variable):
                if variable:
                    monkeypatch.delenv(variable, raising=False)

    @pytest.mark.parametrize("name", sorted(VENDORS))
    def test_a_model_string_finds_every_vendor(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """parity: P1"""
        monkeypatch.setenv(VENDORS[name].key_variable or "", "sk-secret")
        made = resolve(f"{name}:llama3.2:3b")
        assert isinstance(made, Provider)
        assert (made.name, made.model) == (name, "llama3.2:3b")
        assert "sk-secret" not in repr(made)

    @pytest.mark.parametrize("name", ["openai-compatible", "openrouter", "deepseek", "mistral", "groq", "together"])
    def test_a_missing_key_is_named(self, name: str) -> None:
        with pytest.raises(errors.MissingKey, match=rf"{VENDORS[name].key_variable}.*api_key="):
            OpenAICompatible("m", name=name)

    def test_a_vendors_key_is_wanted_at_an_address_of_its_variable_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GROQ_BASE_URL", "http://box")
        with pytest.raises(errors.MissingKey):
            OpenAICompatible("m", name="groq")

    @pytest.mark.parametrize("name", ["ollama", "vllm", "llamacpp"])
    def test_a_local_server_needs_no_key(self, name: str) -> None:
        assert OpenAICompatible("m", name=name).base_url.startswith("http://127.0.0.1:")

    def test_a_server_of_ones_own_needs_no_key(self) -> None:
        assert OpenAICompatible("m", base_url="http://box:9/v1/").base_url == "http://box:9/v1"
        assert OpenAICompatible("m", name="acme", base_url="http://box:9/v1").name == "acme"
        with pytest.raises(errors.ConfigurationError, match="base_url="):
            OpenAICompatible("m", name="acme")

    @pytest.mark.parametrize("host", ["box:99999", "http://[::1", "kim:secret@box:x"])
    def test_a_bad_address_of_a_variable_is_named(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OLLAMA_HOST", host)
        with pytest.raises(errors.ConfigurationError, match="OLLAMA_HOST") as caught:
            OpenAICompatible("m", name="ollama")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("url", ["", "box:9/v1", "ftp://box", "http://", "http://box:x"])
    def test_a_bad_address_is_refused(self, url: str) -> None:
        with pytest.raises(errors.ConfigurationError, match="base_url="):
            OpenAICompatible("m", base_url=url)

    def test_an_empty_model_is_refused(self) -> None:
        with pytest.raises(errors.ConfigurationError, match="empty"):
            OpenAICompatible(" ", name="ollama")

    @pytest.mark.parametrize(
        ("variable", "value", "name", "url"),
        [
            ("OLLAMA_HOST", "box", "ollama", "http://box:11434/v1"),
            ("OLLAMA_HOST", "0.0.0.0:9", "ollama", "http://127.0.0.1:9/v1"),
            ("OLLAMA_HOST", ":9", "ollama", "http://127.0.0.1:9/v1"),
            ("OLLAMA_HOST", "https://box/", "ollama", "https://box:443/v1"),
            ("OPENAI_BASE_URL", "http://box/v1/", "openai-compatible", "http://box/v1"),
            ("GROQ_BASE_URL", "http://box", "groq", "http://box/openai/v1"),
            ("GROQ_BASE_URL", "http://box/?a=1", "groq", "http://box/openai/v1?a=1"),
            ("VLLM_BASE_URL", "http://box/v1", "vllm", "http://box/v1"),
        ],
    )
    def test_an_address_comes_from_the_vendors_variable(
        self, variable: str, value: str, name: str, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, value)
        key = None if name == "openai-compatible" else "sk-secret"
        assert OpenAICompatible("m", name=name, api_key=key).base_url == url

    def test_the_key_and_the_callers_headers_are_sent(self) -> None:
        http = Replay(sse(delta("stop", content="x")))
        made = provider("groq", headers={"x-title": "t"}, base_url="http://user:pass@box/v1?q=1")

        async def main() -> None:
            async for _ in made.stream(ASK, http):
                pass

        asyncio.run(main())
        assert http.url == "http://user:pass@box/v1/chat/completions?q=1"
        assert http.headers == {"authorization": "Bearer sk-secret", "x-title": "t"}
        assert "pass" not in repr(made)


class TestCatalog:
    def test_prices_agree_with_genai_prices(self) -> None:
        """The sum is our own, for speed."""
        info = provider("openrouter", "anthropic/claude-sonnet-4.5").info()
        assert isinstance(info.prices, PriceList)
        assert info.prices.source.startswith("genai-prices ")
        assert info.context_window
        for tokens in (1_000, 300_000):
            judge = CatalogUsage(input_tokens=tokens, cache_read_tokens=100, cache_write_tokens=50, output_tokens=70)
            usage = Usage(input_tokens=tokens, cache_read_tokens=100, cache_write_tokens=50, output_tokens=70)
            cost = info.prices.cost(usage)
            assert cost == calc_price(judge, "anthropic/claude-sonnet-4.5", provider_id="openrouter").total_price
            most = info.prices.at_most(tokens, 70)
            assert cost is not None
            assert most is not None
            assert most >= cost

    @pytest.mark.parametrize(("name", "model"), [("groq", "no-such-model"), ("ollama", "llama3.2"), ("vllm", "gpt-5")])
    def test_what_is_unknown_is_none_and_never_0(self, name: str, model: str) -> None:
        assert provider(name, model).info().prices is None

    def test_server_tools_have_fees_that_are_unknown(self) -> None:
        prices = provider("groq", "llama-3.3-70b-versatile").info().prices
        assert prices is not None
        assert prices.cost(Usage(input_tokens=1, server_tool_calls=1)) is None


def over_http(url: str, seen: Callable[[StreamPart], object] = lambda part: None) -> list[StreamPart]:
    """One real request to a loopback server."""

    async def main() -> list[StreamPart]:
        pool = HttpPool()
        made: list[StreamPart] = []
        try:
            async for part in provider(base_url=url).stream(ASK, pool.session(stall=5.0)):
                made.append(part)
                seen(part)
        finally:
            await pool.aclose()
        return made

    return asyncio.run(main())


def test_a_request_over_the_wire_is_answered() -> None:
    """From the constructor to the socket and back."""
    with Server(stream(sse(delta(content="Hi"), delta("stop")))) as server:
        parts = over_http(server.url + "/v1")
    assert parts[0] == Delta("text", "Hi")
    assert isinstance(parts[-1], ModelResponse)
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].headers["authorization"] == "Bearer sk-secret"
    assert server.requests[0].json["stream"] is True
