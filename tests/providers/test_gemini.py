"""Gemini: what is sent, what is understood, and what Google's own SDK says of both."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.gemini_stream import RECORDINGS, asked, sse
from tests.replay import Replay
from tests.servers import Script, Server, answer, cut, stream

from nitinol import errors
from nitinol.http import HttpPool
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
from nitinol.provider import Delta, ModelRequest, ModelResponse, Provider, StreamPart, UsageSoFar, resolve
from nitinol.sse import SseParser
from nitinol.tool_spec import tool
from nitinol.usage import Usage
from nitinol_providers import Gemini, OpenAICompatible
from nitinol_providers.gemini_answer import GeminiAnswer, retry_delay
from nitinol_providers.gemini_request import UNSIGNED

ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=3)
MODEL = "gemini-3-pro-preview"
BEFORE = "gemini-2.5-flash"
SIGNATURE = base64.b64encode(b"a signature").decode()


def gemini(model: str = MODEL, **options: Any) -> Gemini:
    options.setdefault("api_key", "AIza-secret")
    return Gemini(model, **options)


def chunk(*parts: Any, finish: str | None = None, usage: Any = None, **fields: Any) -> dict[str, Any]:
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": finish, "index": 0, **fields}
    return {"candidates": [candidate], "usageMetadata": usage}


def called(name: str | None = None, args: Any = None, signature: str | None = None, **fields: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"functionCall": {"name": name, "args": args, **fields}}
    return {**part, "thoughtSignature": signature} if signature else part


def respond(*chunks: Any, request: ModelRequest = ASK, model: str = MODEL) -> ModelResponse:
    last = asked(gemini(model), request, Replay(sse(*chunks)))[-1]
    assert isinstance(last, ModelResponse)
    return last


def recorded(name: str) -> ModelResponse:
    last = asked(gemini(), ASK, Replay(RECORDINGS[name]))[-1]
    assert isinstance(last, ModelResponse)
    return last


def sent(request: ModelRequest, model: str = MODEL) -> dict[str, Any]:
    http = Replay(sse(chunk({"text": "x"}, finish="STOP")))
    asked(gemini(model), request, http)
    made: dict[str, Any] = json.loads(json.dumps(http.sent, default=dict))
    return made


def conversation(*messages: Message, model: str = MODEL) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = sent(ModelRequest(messages=messages), model)["contents"]
    return made


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def tools(*answers: ToolAnswer) -> Message:
    return Message(role="tool", parts=answers)


def assistant(*parts: Part, provider: str = "gemini", model: str = MODEL) -> Message:
    return Message(role="assistant", parts=parts, provider=provider, model=model)


HELLO = user(Text("Hello"))


@tool
def get_weather(city: str, days: int = 1) -> str:
    """Say what the weather will be.

    Args:
        city: Its name.
        days: How many.
    """
    return f"{city}: rain for {days} days"


class TestRecordings:
    """parity: P4, P7, P10"""

    @pytest.mark.parametrize("name", sorted(RECORDINGS))
    def test_a_recording_split_anywhere_says_the_same(self, name: str) -> None:
        data = RECORDINGS[name]
        whole = asked(gemini(), ASK, Replay(data))
        assert isinstance(whole[-1], ModelResponse)
        assert asked(gemini(), ASK, Replay(*(data[at : at + 1] for at in range(len(data))))) == whole
        for at in range(0, len(data), 97):
            assert asked(gemini(), ASK, Replay(data[:at], data[at:])) == whole
        assert asked(gemini(), ASK, Replay(data.replace(b"\r\n", b"\n"))) == whole

    @pytest.mark.parametrize("name", sorted(RECORDINGS))
    def test_a_recording_cut_at_any_byte_is_whole_or_a_typed_error(self, name: str) -> None:
        """Never half an answer."""
        data = RECORDINGS[name]
        whole = read(data)
        for at in range(len(data)):
            try:
                response = read(data[:at])
            except errors.MalformedResponse:
                continue
            assert response == whole, f"cut at byte {at} of {len(data)}"
            assert at >= len(data.rstrip())

    def test_thinking_is_told_apart_and_the_last_signature_kept(self) -> None:
        response = recorded("thinking_and_text")
        thinking, text, signature = response.message.parts
        assert thinking == Thinking(text="**Considering**\n\nThe user greets me.")
        assert text == Text("Hello there.")
        assert isinstance(signature, Native)
        assert set(signature.data) == {"text", "thoughtSignature"}
        assert response.usage == Usage(input_tokens=2048, cache_read_tokens=1536, output_tokens=47, reasoning_tokens=44)
        assert (response.stop_reason, response.raw_model) == ("end_turn", MODEL)
        assert response.response_id == "w5gQafq2Jb2I1PIP4_Dd0Qo"
        assert (response.message.provider, response.message.model) == ("gemini", MODEL)

    def test_line_separators_of_unicode_are_text(self) -> None:
        assert recorded("text").message.text == "Actors talk \u2013 naïve 😀\u2028中文\x85 by messages.\n"

    def test_a_signed_call(self) -> None:
        response = recorded("call")
        _, call = response.message.parts
        assert isinstance(call, ToolCall)
        assert (call.call_id, call.name) == ("fc_4fz7Qm", "get_weather")
        assert call.arguments["where"] == {"lat": 48.85, "tags": ["a", "b"]}
        assert call.signature
        assert response.stop_reason == "tool_use"

    def test_parallel_calls_of_one_name_have_ids_of_their_own(self) -> None:
        """Before Gemini 3 there are no ids; only the first call is signed."""
        first, second, third = recorded("parallel_calls").message.tool_calls
        assert [call.arguments for call in (first, second, third)] == [{"city": "Paris"}, {"city": "Oslo"}, {}]
        assert [call.call_id for call in (first, second, third)] == ["call_RUN_3_0", "call_RUN_3_1", "call_RUN_3_2"]
        assert first.signature
        assert (second.signature, third.signature) == (None, None)

    def test_a_call_that_comes_in_pieces_is_put_together(self) -> None:
        parts = asked(gemini(), ASK, Replay(RECORDINGS["call_in_pieces"]))
        response = parts[-1]
        assert isinstance(response, ModelResponse)
        write, now = response.message.tool_calls
        arguments = {
            "path": "a.txt",
            "text": 'Hello "world"',
            "tags": [{"name": "x"}, {"a b": 2.5}],
            "force": True,
            "mode": None,
        }
        assert (write.call_id, write.name, write.arguments) == ("fc_w1", "write", arguments)
        assert write.signature
        assert (now.name, now.arguments) == ("now", {})
        deltas = [part for part in parts if isinstance(part, Delta)]
        assert [(delta.kind, json.loads(delta.text), delta.index) for delta in deltas] == [
            ("tool_args", arguments, 0),
            ("tool_args", {}, 1),
        ]

    def test_a_stopped_answer_and_a_refused_prompt_are_told_apart(self) -> None:
        """parity: P6"""
        stopped, refused = recorded("safety"), recorded("blocked_prompt")
        assert (stopped.stop_reason, stopped.message.text) == ("content_filter", "First you take")
        assert (refused.stop_reason, refused.message.text) == ("refusal", "")
        told = [
            part.data for part in (stopped.message.parts[-1], refused.message.parts[-1]) if isinstance(part, Native)
        ]
        assert told[0]["finishMessage"] == "The answer was stopped."
        assert told[1]["promptFeedback"]["blockReason"] == "PROHIBITED_CONTENT"
        assert refused.usage == Usage(input_tokens=14)

    def test_tokens_may_run_out_while_it_thinks(self) -> None:
        response = recorded("max_tokens")
        assert response.stop_reason == "max_tokens"
        assert response.usage == Usage(input_tokens=11, output_tokens=97, reasoning_tokens=97)

    def test_code_that_google_ran_is_kept_as_it_came(self) -> None:
        """What it read of it is input."""
        response = recorded("code_execution")
        _, code, result, _ = response.message.parts
        assert isinstance(code, Native)
        assert isinstance(result, Native)
        assert code.text == "```python\nprint(sum(range(10)))\n\n```"
        assert result.data == {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "45\n"}}
        assert result.text == "The code ended with OUTCOME_OK:\n45"
        assert response.message.text == "I compute it. It is 45."
        assert response.usage == Usage(input_tokens=108, output_tokens=67, reasoning_tokens=41)

    def test_what_an_answer_is_grounded_on_is_kept_and_its_searches_are_counted(self) -> None:
        response = recorded("grounding")
        about = response.message.parts[-1]
        assert isinstance(about, Native)
        assert set(about.data) == {"groundingMetadata", "urlContextMetadata", "citationMetadata"}
        assert about.text == "Sources:\n- example.org: https://example.org/a\n- example.net: https://example.net/b"
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.server_tool_calls) == (1224, 2)

    def test_a_search_beside_a_call_of_ours(self) -> None:
        response = recorded("search_beside_a_call")
        search, found, call = response.message.parts
        assert isinstance(search, Native)
        assert isinstance(found, Native)
        assert search.text == 'Called GOOGLE_SEARCH_WEB: {"queries": ["northernmost city"]}'
        assert isinstance(call, ToolCall)
        assert response.usage is not None
        assert (response.stop_reason, response.usage.server_tool_calls) == ("tool_use", 1)

    def test_an_image_is_an_image(self) -> None:
        text, image, signature = recorded("image").message.parts
        assert text == Text("Here:")
        assert isinstance(image, Image)
        assert (image.media_type, (image.data or b"")[:4]) == ("image/png", b"\x89PNG")
        assert isinstance(signature, Native)

    def test_a_third_party_server_is_understood(self) -> None:
        """It says FUNCTION_CALL where Google says STOP."""
        response = recorded("aimock")
        assert [call.call_id for call in response.message.tool_calls] == ["call_abc", "call_def"]
        assert response.stop_reason == "tool_use"


def read(data: bytes) -> ModelResponse:
    """The answer in these bytes, as the stream ends with them."""
    made = GeminiAnswer(MODEL, ASK)
    parser = SseParser()
    for event in [*parser.feed(data), *parser.close()]:
        made.read(event)
    return made.response()


class TestAnswers:
    """parity: P3, P5, P6, P7, P8"""

    @pytest.mark.parametrize(
        ("finish", "reason"),
        [
            ("STOP", "end_turn"),
            ("FUNCTION_CALL", "end_turn"),  # without a call there is nothing to do
            ("MAX_TOKENS", "max_tokens"),
            ("SAFETY", "content_filter"),
            ("RECITATION", "content_filter"),
            ("LANGUAGE", "content_filter"),
            ("BLOCKLIST", "content_filter"),
            ("PROHIBITED_CONTENT", "content_filter"),
            ("SPII", "content_filter"),
            ("IMAGE_SAFETY", "content_filter"),
            ("IMAGE_PROHIBITED_CONTENT", "content_filter"),
            ("IMAGE_RECITATION", "content_filter"),
            ("MODEL_ARMOR", "content_filter"),
            ("ESCALATION", "content_filter"),
            ("TOO_MANY_TOOL_CALLS", "pause"),
            ("CONTINUATION", "pause"),
            ("OTHER", "other"),
            ("IMAGE_OTHER", "other"),
            ("NO_IMAGE", "other"),
            ("FINISH_REASON_UNSPECIFIED", "other"),
            ("SOMETHING_NEW", "other"),
        ],
    )
    def test_stop_reasons_stay_distinct(self, finish: str, reason: str) -> None:
        assert respond(chunk({"text": "x"}, finish=finish)).stop_reason == reason

    @pytest.mark.parametrize(
        ("finish", "kind"),
        [
            ("MALFORMED_FUNCTION_CALL", errors.MalformedResponse),
            ("UNEXPECTED_TOOL_CALL", errors.MalformedResponse),
            ("MALFORMED_RESPONSE", errors.MalformedResponse),
            ("MISSING_THOUGHT_SIGNATURE", errors.InvalidRequest),
            ("PUP_LIMITED_DISABLED", errors.AuthenticationFailed),
        ],
    )
    def test_an_answer_that_failed_is_a_typed_error(self, finish: str, kind: type[errors.ProviderError]) -> None:
        """Only what another attempt may mend is tried again; what was used is told before."""
        told: list[StreamPart] = []
        failed = sse(chunk(finish=finish, usage={"promptTokenCount": 5}, finishMessage="print(f(x))"))

        async def main() -> None:
            async for part in gemini().stream(ASK, Replay(failed)):
                told.append(part)

        with pytest.raises(errors.ProviderError, match=f"{finish}: print") as caught:
            asyncio.run(main())
        assert type(caught.value) is kind
        assert told == [UsageSoFar(Usage(input_tokens=5))]

    def test_a_cut_answer_with_calls_is_still_cut(self) -> None:
        response = respond(chunk(called("f", willContinue=True), finish="MAX_TOKENS"))
        assert response.stop_reason == "max_tokens"
        assert response.message.tool_calls[0].malformed == "{"

    def test_an_empty_answer_has_no_parts(self) -> None:
        assert respond(chunk({"text": ""}, {}, finish="STOP")).message.parts == ()
        assert respond({"candidates": [{"finishReason": "STOP"}]}).message.parts == ()

    def test_a_second_candidate_is_left_out(self) -> None:
        other = {"index": 1, "content": {"parts": [{"text": "no"}]}, "finishReason": "SAFETY"}
        mine = {"index": 0, "content": {"parts": [{"text": "yes"}]}, "finishReason": "STOP"}
        response = respond({"candidates": [mine, other]})
        assert (response.message.text, response.stop_reason) == ("yes", "end_turn")

    def test_deltas_say_which_part_and_which_call(self) -> None:
        parts = asked(
            gemini(),
            ASK,
            Replay(
                sse(
                    chunk({"text": "hm", "thought": True}),
                    chunk({"text": "a"}),
                    chunk({"text": "b"}, called("f", {"x": 1}), called("g"), finish="STOP"),
                )
            ),
        )
        assert parts[:-1] == [
            Delta("thinking", "hm", 0),
            Delta("text", "a", 1),
            Delta("text", "b", 1),
            Delta("tool_args", '{"x": 1}', 0),
            Delta("tool_args", "{}", 1),
        ]

    @pytest.mark.parametrize("args", ["x", [1], 7, True])
    def test_arguments_that_are_no_object_are_kept_as_they_are(self, args: Any) -> None:
        """The call is answered with an error that the model can mend."""
        (call,) = respond(chunk(called("f", args), finish="STOP")).message.tool_calls
        assert call.malformed == json.dumps(args)

    def test_a_call_without_a_name_is_malformed(self) -> None:
        with pytest.raises(errors.MalformedResponse, match="name"):
            respond(chunk(called(args={}), finish="STOP"))

    def test_no_two_calls_of_a_conversation_have_one_id(self) -> None:
        before = assistant(ToolCall(call_id="a", name="f"), ToolCall(call_id="call_RUN_3_1", name="f"))
        request = ASK.replace(messages=(*ASK.messages, before))
        made = respond(
            chunk(*(called("f", id=id) for id in ("a", None, "b", "b")), finish="STOP"), request=request
        ).message.tool_calls
        assert [call.call_id for call in made] == ["call_RUN_3_0", "call_RUN_3_1_x", "b", "call_RUN_3_3"]

    @pytest.mark.parametrize(
        "piece",
        [
            {"stringValue": "x"},
            {"jsonPath": "x", "stringValue": "x"},
            {"jsonPath": "$", "stringValue": "x"},
            {"jsonPath": "$.a[1]", "stringValue": "x"},
            {"jsonPath": "$[0]", "stringValue": "x"},
            {"jsonPath": "$..a", "stringValue": "x"},
            {"jsonPath": "$.known.a", "stringValue": "x"},
            {"jsonPath": "$.known[0]", "stringValue": "x"},
            {"jsonPath": "$" + ".a" * 5_000, "stringValue": "x"},
        ],
    )
    def test_a_piece_that_leads_nowhere_is_malformed(self, piece: Any) -> None:
        with pytest.raises(errors.MalformedResponse, match="no response of Gemini"):
            respond(chunk(called("f", {"known": "text"}, partialArgs=[piece]), finish="STOP"))

    def test_any_piece_of_a_call_may_be_the_signed_one(self) -> None:
        pieces = called("f", willContinue=True), called(partialArgs=[], signature=SIGNATURE)
        (call,) = respond(chunk(pieces[0]), chunk(pieces[1], finish="STOP")).message.tool_calls
        assert (call.arguments, call.signature) == ({}, SIGNATURE)

    def test_an_unknown_part_is_kept_as_it_came(self) -> None:
        part = {"somethingNew": {"a": 1}, "thoughtSignature": SIGNATURE}
        message = respond(chunk({"text": "x"}, part, finish="STOP")).message
        assert message.parts[-1] == Native(data=part)
        assert conversation(HELLO, message, HELLO)[1]["parts"][-1] == part

    @pytest.mark.parametrize(
        ("raw", "usage"),
        [
            ({"promptTokenCount": 5, "candidatesTokenCount": 2}, Usage(input_tokens=5, output_tokens=2)),
            ({"promptTokenCount": 5, "totalTokenCount": 9}, Usage(input_tokens=5, output_tokens=4)),
            (
                {
                    "promptTokenCount": 100,
                    "cachedContentTokenCount": 60,
                    "candidatesTokenCount": 7,
                    "thoughtsTokenCount": 11,
                    "toolUsePromptTokenCount": 30,
                    "totalTokenCount": 148,
                },
                Usage(input_tokens=130, cache_read_tokens=60, output_tokens=18, reasoning_tokens=11),
            ),
            ({"promptTokenCount": 5, "cachedContentTokenCount": 9}, Usage(input_tokens=5, cache_read_tokens=5)),
        ],
    )
    def test_usage_is_in_our_vocabulary(self, raw: dict[str, Any], usage: Usage) -> None:
        parts = asked(gemini(), ASK, Replay(sse(chunk({"text": "x"}, finish="STOP", usage=raw))))
        assert parts[-2] == UsageSoFar(usage)
        assert isinstance(parts[-1], ModelResponse)
        assert parts[-1].usage == usage

    def test_usage_that_tells_nothing_is_unknown_and_not_zero(self) -> None:
        raw = {"promptTokenCount": -1, "candidatesTokenCount": "many"}
        assert respond(chunk({"text": "x"}, finish="STOP", usage=raw)).usage is None

    def test_fields_of_a_part_may_be_null(self) -> None:
        part = {"text": "x", "functionCall": None, "inlineData": None, "thought": None}
        assert respond(chunk(part, finish="STOP")).message.parts == (Text("x"),)

    def test_usage_grows_and_is_told_as_it_grows(self) -> None:
        parts = asked(
            gemini(),
            ASK,
            Replay(
                sse(
                    chunk({"text": "a"}, usage={"promptTokenCount": 5, "thoughtsTokenCount": 3}),
                    chunk({"text": "b"}),
                    chunk({"text": "c"}, usage={"promptTokenCount": 5, "candidatesTokenCount": 2}, finish="STOP"),
                )
            ),
        )
        assert [part.usage.output_tokens for part in parts if isinstance(part, UsageSoFar)] == [3, 5]

    def test_usage_that_is_missing_is_unknown(self) -> None:
        assert respond(chunk({"text": "x"}, finish="STOP")).usage is None

    def test_a_list_of_responses_is_one_answer(self) -> None:
        """What a server sends that does not know `alt=sse`."""
        whole = [chunk({"text": "a"}), chunk({"text": "b"}, finish="STOP")]
        with Server(answer(200, whole)) as server:
            response = over_http(server.url)[-1]
        assert isinstance(response, ModelResponse)
        assert response.message.text == "ab"


class TestFailures:
    """parity: P9, R1"""

    @pytest.mark.parametrize("data", [b"", b"data: [DONE]\n\n", sse(chunk({"text": "x"})), b": comment\n\n"])
    def test_a_stream_without_its_end_is_an_error(self, data: bytes) -> None:
        """Google's SDK takes it for an answer."""
        with pytest.raises(errors.MalformedResponse, match="without its end"):
            asked(gemini(), ASK, Replay(data))

    @pytest.mark.parametrize(
        "data",
        [
            b"not json",
            b"7",
            b'"x"',
            b"[7]",
            b'{"candidates": 7}',
            b'{"candidates": [7]}',
            b'{"candidates": [{"content": "x"}]}',
            b'{"candidates": [{"content": {"parts": [{"text": 7}]}}]}',
            b'{"candidates": [{"content": {"parts": [{"functionCall": 7}]}}]}',
            b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"x": 1e999}}}]}}]}',
            b'{"candidates": [{"content": {"parts": [{"inlineData": {"data": "?"}}]}}]}',
            b'{"candidates": [{"finishReason": 7}]}',
            b'{"usageMetadata": 7}',
        ],
    )
    def test_a_chunk_that_is_none_is_malformed(self, data: bytes) -> None:
        with pytest.raises(errors.MalformedResponse, match="no response of Gemini"):
            asked(gemini(), ASK, Replay(b"data: " + data + b"\n\n"))

    @pytest.mark.parametrize(
        ("code", "status", "message", "kind"),
        [
            (400, "INVALID_ARGUMENT", "Invalid value at 'contents'", errors.InvalidRequest),
            (
                400,
                "INVALID_ARGUMENT",
                "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576).",
                errors.ContextOverflow,
            ),
            (
                400,
                "INVALID_ARGUMENT",
                "Request payload size exceeds the limit: 20971520 bytes.",
                errors.ContextOverflow,
            ),
            (400, "FAILED_PRECONDITION", "User location is not supported for the API use.", errors.InvalidRequest),
            (401, "UNAUTHENTICATED", "Request had invalid credentials.", errors.AuthenticationFailed),
            (403, "PERMISSION_DENIED", "Your API key was reported as leaked.", errors.AuthenticationFailed),
            (404, "NOT_FOUND", "models/x is not found", errors.InvalidRequest),
            (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", errors.RateLimited),
            (500, "INTERNAL", "An internal error has occurred.", errors.ServerError),
            (503, "UNAVAILABLE", "The model is overloaded.", errors.Overloaded),
            (504, "DEADLINE_EXCEEDED", "The request timed out.", errors.ServerError),
        ],
    )
    @pytest.mark.parametrize("listed", [False, True])
    def test_an_error_has_its_type_before_and_within_a_stream(
        self, code: int, status: str, message: str, kind: type[errors.ProviderError], listed: bool
    ) -> None:
        error: Any = {"error": {"code": code, "message": message, "status": status}}
        error = [error] if listed else error
        for script in (answer(code, error), stream(sse(chunk({"text": "x"})), sse(error))):
            with Server(script) as server, pytest.raises(errors.ProviderError) as caught:
                over_http(server.url)
            assert type(caught.value) is kind
            assert caught.value.status_code == code
            assert message in str(caught.value)

    def test_a_key_that_is_not_valid_is_told_by_a_400(self) -> None:
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
        error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": [info]}
        with Server(answer(400, {"error": error})) as server, pytest.raises(errors.AuthenticationFailed):
            over_http(server.url)

    def test_it_waits_as_long_as_google_asks(self) -> None:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.074824224s"}
        quota: Any = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []}
        error = {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [quota, info]}
        scripts: list[tuple[Script, float]] = [
            (answer(429, {"error": error}), 34.074824224),
            (answer(429, [{"error": error}], retry_after="2"), 2.0),  # a header is for every client
            (stream(sse({"error": error})), 34.074824224),
        ]
        for script, delay in scripts:
            with Server(script) as server, pytest.raises(errors.RateLimited) as caught:
                over_http(server.url)
            assert caught.value.retry_after == delay
        assert retry_delay("no delay") is None
        assert retry_delay('{"retryDelay": "x"}') is None

    @pytest.mark.parametrize("error", ["who knows", {"message": "who knows"}, {"code": "x", "message": "who knows"}])
    def test_an_error_of_no_known_kind_is_the_servers(self, error: Any) -> None:
        with pytest.raises(errors.ServerError, match="who knows"):
            respond({"error": error})

    def test_the_key_is_in_no_error(self) -> None:
        error = {"error": {"code": 400, "message": "the key AIza-secret is odd", "status": "INVALID_ARGUMENT"}}
        for script in (answer(400, error), stream(sse(error)), stream(sse({"candidates": "AIza-secret"}))):
            with Server(script) as server, pytest.raises(errors.ProviderError) as caught:
                over_http(server.url)
            assert "AIza-secret" not in f"{caught.value!r}"

    def test_a_connection_that_is_cut_is_a_typed_error_after_what_came(self) -> None:
        seen: list[StreamPart] = []
        script = cut(sse(chunk({"text": "x"}, usage={"promptTokenCount": 4})))
        with Server(script) as server, pytest.raises(errors.ConnectionFailed):
            over_http(server.url, seen.append)
        assert seen == [Delta("text", "x"), UsageSoFar(Usage(input_tokens=4))]


class TestRequests:
    """parity: P2, P3, P4"""

    def test_everything_has_its_place(self) -> None:
        request = ASK.replace(instructions="Be brief.", tools=(get_weather,), max_output_tokens=9, temperature=0.0)
        assert sent(request) == {
            "contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "tools": [
                {
                    "functionDeclarations": [
                        {
                            "name": "get_weather",
                            "description": get_weather.description,
                            "parametersJsonSchema": json.loads(json.dumps(get_weather.parameters)),
                        }
                    ]
                }
            ],
            "generationConfig": {"maxOutputTokens": 9, "temperature": 0.0},
        }

    def test_nothing_is_sent_that_nobody_asked_for(self) -> None:
        assert set(sent(ASK)) == {"contents"}

    def test_extra_is_merged_and_wins_and_its_tools_are_added(self) -> None:
        extra: dict[str, Any] = {
            "tools": [{"googleSearch": {}}, {"codeExecution": {}}],
            "generationConfig": {"topK": 3, "temperature": 1.0, "thinkingConfig": {"includeThoughts": False}},
            "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        }
        made = sent(ASK.replace(tools=(get_weather,), temperature=0.0, thinking="high", extra=extra))
        assert [next(iter(tool)) for tool in made["tools"]] == ["functionDeclarations", "googleSearch", "codeExecution"]
        assert made["generationConfig"] == {
            "temperature": 1.0,
            "topK": 3,
            "thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": False},
        }
        assert made["safetySettings"] == extra["safetySettings"]
        assert extra["generationConfig"] == {
            "topK": 3, "temperature": 1.0, "thinkingConfig": {"includeThoughts": False}
        }  # fmt: skip

    def test_its_tools_beside_ours_are_allowed_to_mix(self) -> None:
        """Gemini 3 refuses the two together otherwise; those before it, always."""
        ours = ASK.replace(tools=(get_weather,))
        both = ours.replace(extra={"tools": {"googleSearch": {}}})
        assert sent(both)["toolConfig"] == {"includeServerSideToolInvocations": True}
        off: dict[str, Any] = {"tools": {"googleSearch": {}}, "toolConfig": {"includeServerSideToolInvocations": False}}
        assert sent(ours.replace(extra=off))["toolConfig"] == {"includeServerSideToolInvocations": False}
        assert "toolConfig" not in sent(ours)
        assert "toolConfig" not in sent(both, BEFORE)
        assert "toolConfig" not in sent(ASK.replace(extra={"tools": [{"googleSearch": {}}, {"codeExecution": {}}]}))

    @pytest.mark.parametrize(
        ("model", "thinking", "config"),
        [
            (BEFORE, 1000, {"thinkingBudget": 1000, "includeThoughts": True}),
            (BEFORE, 0, {"thinkingBudget": 0, "includeThoughts": False}),
            (BEFORE, "low", {"thinkingBudget": 2048, "includeThoughts": True}),
            ("models/gemini-2.5-pro", "high", {"thinkingBudget": 24576, "includeThoughts": True}),
            (MODEL, "low", {"thinkingLevel": "LOW", "includeThoughts": True}),
            (MODEL, "medium", {"thinkingLevel": "HIGH", "includeThoughts": True}),
            ("gemini-3.1-pro-preview", "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
            ("gemini-3-flash-preview", 4096, {"thinkingLevel": "LOW", "includeThoughts": True}),
            ("gemini-3-flash-preview", 10_000, {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
            ("gemini-flash-latest", 30_000, {"thinkingLevel": "HIGH", "includeThoughts": True}),
            ("gemini-flash-latest", 0, {"thinkingLevel": "MINIMAL"}),
            (MODEL, 0, {"thinkingLevel": "LOW", "includeThoughts": True}),
        ],
    )
    def test_thinking_is_a_budget_or_a_level(self, model: str, thinking: Any, config: dict[str, Any]) -> None:
        assert sent(ASK.replace(thinking=thinking), model)["generationConfig"] == {"thinkingConfig": config}

    def test_a_schema_is_asked_for_or_told_in_words(self) -> None:
        """Before Gemini 3, a schema beside tools is refused."""
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        request = ASK.replace(output_schema=schema, instructions="Be brief.")
        asked_for = {"responseMimeType": "application/json", "responseJsonSchema": schema}
        assert sent(request)["generationConfig"] == asked_for
        assert sent(request, BEFORE)["generationConfig"] == asked_for
        assert sent(request.replace(tools=(get_weather,)))["generationConfig"] == asked_for
        search: dict[str, Any] = {"tools": [{"googleSearch": {}}]}
        for beside in (request.replace(tools=(get_weather,)), request.replace(extra=search)):
            made = sent(beside, BEFORE)
            assert "generationConfig" not in made
            (words,) = made["systemInstruction"]["parts"]
            assert words["text"].startswith("Be brief.\n\n")
            assert json.dumps(schema) in words["text"]

    def test_media_are_sent_as_they_are(self) -> None:
        ((first),) = conversation(
            user(
                Text("Look:"),
                Image(data=b"img", media_type="image/jpg"),
                Image(url="https://x.test/a.png", media_type="image/png"),
                Document(url="https://generativelanguage.googleapis.com/v1beta/files/abc"),
                Audio(data=b"snd", media_type="audio/x-wav"),
                Document(data=b"pdf", media_type="application/pdf", name="a.pdf"),
                Document(data=b"mov", media_type="video/mp4"),
                Document(data=b"words", media_type="text/plain; charset=utf-8", name="a.txt"),
            )
        )
        assert first["parts"] == [
            {"text": "Look:"},
            {"inlineData": {"mimeType": "image/jpeg", "data": "aW1n"}},
            {"fileData": {"fileUri": "https://x.test/a.png", "mimeType": "image/png"}},
            {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/abc"}},
            {"inlineData": {"mimeType": "audio/wav", "data": "c25k"}},
            {"inlineData": {"mimeType": "application/pdf", "data": "cGRm"}},
            {"inlineData": {"mimeType": "video/mp4", "data": "bW92"}},
            {"text": "Document 'a.txt':\nwords"},
        ]

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            (Image(data=b"GIF89a", media_type="image/gif", name="a.gif"), "[image 'a.gif' (image/gif, 6 bytes)"),
            (Document(data=b"zip", media_type="application/zip"), "[document (application/zip, 3 bytes)"),
            (Image(data=b"", media_type="image/png"), "[image (image/png, 0 bytes)"),
            (Document(data=b"", media_type="text/plain"), "[document (text/plain, 0 bytes)"),
        ],
    )
    def test_what_it_does_not_take_becomes_a_note(self, part: Part, words: str) -> None:
        """Never dropped in silence."""
        assert conversation(user(part))[0]["parts"][0]["text"].startswith(words)
        behind = conversation(HELLO, assistant(part, provider="openai"), HELLO)[1]["parts"]
        assert behind[0]["text"].startswith(words)

    def test_a_tool_loop_is_paired_by_name_and_id(self) -> None:
        made = conversation(
            HELLO,
            assistant(
                Thinking(text="hm"),
                Text("Well."),
                ToolCall(call_id="a", name="f", arguments={"x": "ü"}, signature=SIGNATURE),
                ToolCall(call_id="b", name="f"),
            ),
            tools(
                ToolAnswer(call_id="a", name="f", text="boom", error=True), ToolAnswer(call_id="b", name="f", text="")
            ),
            user(Text("And?")),
        )
        assert made[1:] == [
            {
                "role": "model",
                "parts": [
                    {"text": "Well."},
                    {"functionCall": {"id": "a", "name": "f", "args": {"x": "ü"}}, "thoughtSignature": SIGNATURE},
                    {"functionCall": {"id": "b", "name": "f", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "a", "name": "f", "response": {"error": "boom"}}},
                    {"functionResponse": {"id": "b", "name": "f", "response": {"output": ""}}},
                    {"text": "And?"},
                ],
            },
        ]

    def test_malformed_arguments_go_back_as_an_object(self) -> None:
        """parity: P8. The whole conversation is refused otherwise."""
        call = ToolCall(call_id="a", name="f", malformed='{"x')
        made = conversation(HELLO, assistant(call), tools(ToolAnswer(call_id="a", name="f", text="no")))
        assert made[1]["parts"][0]["functionCall"]["args"] == {"malformed_json": '{"x'}

    def test_a_name_that_it_refuses_is_made_sound_in_both_places(self) -> None:
        """A model may call what it likes, and another provider lets it."""
        for name, sound in (("get weather!", "get_weather_"), ("7", "_7"), ("", "_"), ("x" * 99, "x" * 64)):
            call, reply = ToolCall(call_id="a", name=name), ToolAnswer(call_id="a", name=name, text="no such tool")
            made = conversation(HELLO, assistant(call, provider="openai"), tools(reply))
            assert made[1]["parts"][0]["functionCall"]["name"] == sound
            assert made[2]["parts"][0]["functionResponse"]["name"] == sound

    def test_a_tools_picture_stands_in_its_answer_or_behind_all(self) -> None:
        image = Image(data=b"img", media_type="image/png")
        sound = Audio(data=b"snd", media_type="audio/ogg")
        pack = Document(data=b"zip", media_type="application/zip")
        messages = (
            HELLO,
            assistant(ToolCall(call_id="a", name="f"), ToolCall(call_id="b", name="g")),
            tools(
                ToolAnswer(call_id="a", name="f", text="done", media=(image, sound, pack)),
                ToolAnswer(call_id="b", name="g", text="x"),
            ),
        )
        shown, heard = (
            {"inlineData": {"mimeType": m, "data": d}} for m, d in (("image/png", "aW1n"), ("audio/ogg", "c25k"))
        )
        first, second, *behind = conversation(*messages)[2]["parts"]
        assert first["functionResponse"]["parts"] == [shown]
        output = first["functionResponse"]["response"]["output"]
        assert output.startswith("done\n[audio below]\n[document (application/zip, 3 bytes)")
        assert second["functionResponse"]["name"] == "g"
        assert behind == [{"text": "From the tool 'f', call a:"}, heard]
        first, second, *behind = conversation(*messages, model=BEFORE)[2]["parts"]
        assert "parts" not in first["functionResponse"]
        assert [part for part in behind if "text" not in part] == [shown, heard]

    def test_words_of_one_side_in_a_row_are_one_content(self) -> None:
        made = conversation(
            HELLO, user(Text("you")), assistant(Text("a")), assistant(Text("")), assistant(Text("b")), HELLO
        )
        assert [(content["role"], len(content["parts"])) for content in made] == [
            ("user", 2),
            ("model", 2),
            ("user", 1),
        ]

    def test_it_begins_and_ends_with_the_user(self) -> None:
        """A paused answer is asked to go on."""
        made = conversation(assistant(Text("a")), HELLO, assistant(Text("b")))
        assert [content["role"] for content in made] == ["user", "model", "user", "model", "user"]

    def test_a_message_of_foreign_thinking_alone_is_left_out(self) -> None:
        made = conversation(HELLO, assistant(Thinking(text="hm", signature="s"), provider="anthropic"), HELLO)
        assert made == [{"role": "user", "parts": [{"text": "Hello"}, {"text": "Hello"}]}]


class TestSignatures:
    """parity: P3. A signature goes back to the model that made it, in its place, and to nobody else."""

    @pytest.mark.parametrize("name", sorted(RECORDINGS.keys() - {"aimock", "call_in_pieces"}))  # unsigned; no whole
    def test_an_answer_goes_back_as_it_came(self, name: str) -> None:
        """But for thoughts without a signature, which nobody reads, and for what is only told of an answer."""
        came: list[dict[str, Any]] = []
        for event in SseParser().feed(RECORDINGS[name]):
            for candidate in json.loads(event).get("candidates", ()):
                for part in candidate.get("content", {}).get("parts", ()):
                    last = came[-1] if came else {}
                    if part.get("thought") or part == {"text": ""}:
                        continue
                    if set(part) == set(last) == {"text"}:
                        last["text"] += part["text"]
                    else:
                        came.append(dict(part))
        message = recorded(name).message
        ids = [call.call_id for call in message.tool_calls]
        for part in came:
            if "functionCall" in part:
                part["functionCall"] = {**part["functionCall"], "id": ids.pop(0)}
        answered = tools(*(ToolAnswer(call_id=c.call_id, name=c.name, text="x") for c in message.tool_calls))
        made = conversation(HELLO, message, *([answered] if answered.parts else []), HELLO)
        assert [part for content in made if content["role"] == "model" for part in content["parts"]] == came

    @pytest.mark.parametrize("name", sorted(RECORDINGS))
    @pytest.mark.parametrize(("provider", "model"), [("anthropic", MODEL), ("gemini", "gemini-3-flash-preview")])
    def test_no_other_model_gets_it(self, name: str, provider: str, model: str) -> None:
        message = recorded(name).message
        other = Message(role="assistant", parts=message.parts, provider=provider, model=model)
        answered = tools(*(ToolAnswer(call_id=c.call_id, name=c.name, text="x") for c in message.tool_calls))
        made = conversation(HELLO, other, *([answered] if answered.parts else []), HELLO)
        signatures = {part.get("thoughtSignature") for content in made for part in content["parts"]} - {None}
        assert signatures == ({UNSIGNED} if message.tool_calls else set())

    @pytest.mark.parametrize("name", sorted(RECORDINGS))
    def test_another_provider_gets_words(self, name: str) -> None:
        message = recorded(name).message
        http = Replay(b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n')
        other = OpenAICompatible("m", name="llamacpp")
        asked(other, ModelRequest(messages=(HELLO, message, HELLO)), http)
        body = json.dumps(http.sent)
        assert "thoughtSignature" not in body
        for text in ("print(sum(range(10)))", "The code ended with", "example.net"):
            assert (json.dumps(text)[1:-1] in body) == any(
                text in part.text for part in message.parts if isinstance(part, Native)
            )

    def test_only_the_first_of_unsigned_calls_gets_the_word_that_stands_for_one(self) -> None:
        """Gemini 3 and later refuse a turn whose first call has none; those before it take what comes."""
        foreign = assistant(
            Text("So:"),
            ToolCall(call_id="a", name="f", signature="theirs"),
            ToolCall(call_id="b", name="f"),
            provider="x",
        )
        answers = tools(ToolAnswer(call_id="a", name="f", text="1"), ToolAnswer(call_id="b", name="f", text="2"))
        for model, expected in (
            (MODEL, [UNSIGNED, None]),
            ("gemini-pro-latest", [UNSIGNED, None]),
            (BEFORE, [None, None]),
        ):
            calls = conversation(HELLO, foreign, answers, model=model)[1]["parts"][1:]
            assert [call.get("thoughtSignature") for call in calls] == expected

    def test_a_signed_thought_goes_back_as_one(self) -> None:
        message = respond(
            chunk({"text": "a", "thought": True}),
            chunk({"text": "b", "thought": True, "thoughtSignature": SIGNATURE}),
            chunk({"text": "", "thought": True, "thoughtSignature": SIGNATURE}),
            chunk({"text": "c", "thought": True}),
            chunk({"text": "d"}, finish="STOP"),
        ).message
        assert message.parts[0] == Thinking(text="a")
        assert message.parts[2] == Thinking(text="", signature=SIGNATURE, redacted=True)
        assert conversation(HELLO, message, HELLO)[1]["parts"] == [
            {"text": "b", "thought": True, "thoughtSignature": SIGNATURE},
            {"text": "", "thought": True, "thoughtSignature": SIGNATURE},
            {"text": "d"},
        ]

    def test_a_signature_whose_words_are_gone_stands_alone(self) -> None:
        lone = Native(data={"thoughtSignature": SIGNATURE})
        assert conversation(HELLO, assistant(lone), HELLO)[1]["parts"] == [{"text": "", "thoughtSignature": SIGNATURE}]


class TestConstruction:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
            monkeypatch.delenv(variable, raising=False)

    def test_a_model_string_finds_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """parity: P1"""
        monkeypatch.setenv("GEMINI_API_KEY", "AIza-secret")
        made = resolve("gemini:gemini-2.5-pro")
        assert isinstance(made, Provider)
        assert (made.name, made.model) == ("gemini", "gemini-2.5-pro")
        assert "AIza-secret" not in repr(made)

    def test_a_missing_key_is_named(self) -> None:
        with pytest.raises(errors.MissingKey, match=r"GEMINI_API_KEY.*api_key="):
            Gemini("gemini-2.5-pro")

    def test_the_variables_are_those_of_googles_sdk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`GOOGLE_API_KEY` comes first."""
        monkeypatch.setenv("GEMINI_API_KEY", "AIza-1")
        assert header(Gemini("m")) == "AIza-1"
        monkeypatch.setenv("GOOGLE_API_KEY", " AIza-2\n")
        assert header(Gemini("m")) == "AIza-2"
        assert header(Gemini("m", api_key="AIza-3")) == "AIza-3"
        monkeypatch.setenv("GOOGLE_API_KEY", " ")
        assert header(Gemini("m")) == "AIza-1"
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://box:9/")
        assert Gemini("m").base_url == "http://box:9"
        assert Gemini("m", base_url="http://other").base_url == "http://other"

    def test_a_server_of_ones_own_needs_no_key(self) -> None:
        assert header(Gemini("m", base_url="http://box:9")) is None
        assert header(Gemini("m", headers={"Authorization": "Bearer ya29"})) is None
        with pytest.raises(errors.MissingKey):
            Gemini("m", headers={"x-title": "t"})

    @pytest.mark.parametrize("url", ["", "box:9", "ftp://box", "http://", "http://box:x"])
    def test_a_bad_address_is_refused(self, url: str) -> None:
        with pytest.raises(errors.ConfigurationError, match="base_url="):
            Gemini("m", api_key="k", base_url=url)

    def test_an_empty_model_is_refused(self) -> None:
        with pytest.raises(errors.ConfigurationError, match="empty"):
            Gemini(" ", api_key="k")

    def test_an_address_may_have_a_query_behind_its_slash(self) -> None:
        http = Replay(sse(chunk({"text": "x"}, finish="STOP")))
        asked(gemini(base_url="http://box/?a=1"), ASK, http)
        assert http.url == f"http://box/v1beta/models/{MODEL}:streamGenerateContent?a=1&alt=sse"

    def test_an_unknown_option_is_refused_by_name(self) -> None:
        with pytest.raises(TypeError, match="vertexai"):
            Gemini("m", api_key="k", vertexai=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    @pytest.mark.parametrize(
        ("model", "base", "url"),
        [
            ("gemini-2.5-pro", "http://box/", "http://box/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse"),
            ("models/m", "http://box/a?q=1", "http://box/a/v1beta/models/m:streamGenerateContent?q=1&alt=sse"),
            ("tunedModels/m", "http://box", "http://box/v1beta/tunedModels/m:streamGenerateContent?alt=sse"),
            (
                "m?key=1#",
                "http://u:pass@box",
                "http://u:pass@box/v1beta/models/m%3Fkey%3D1%23:streamGenerateContent?alt=sse",
            ),
        ],
    )
    def test_the_address_names_the_model_and_never_the_key(self, model: str, base: str, url: str) -> None:
        http = Replay(sse(chunk({"text": "x"}, finish="STOP")))
        made = gemini(model, base_url=base, headers={"x-title": "t"})
        asked(made, ASK, http)
        assert http.url == url
        assert http.headers == {"x-goog-api-key": "AIza-secret", "x-title": "t"}
        assert "pass" not in repr(made)

    def test_prices_are_googles(self) -> None:
        for model in (BEFORE, f"models/{BEFORE}"):
            info = gemini(model).info()
            assert info.prices is not None
            assert info.context_window
            assert info.prices.cost(Usage(input_tokens=1000, output_tokens=1000))
        assert gemini("no-such-model").info().prices is None


def header(made: Gemini) -> str | None:
    http = Replay(sse(chunk({"text": "x"}, finish="STOP")))
    asked(made, ASK, http)
    return http.headers.get("x-goog-api-key")


def over_http(url: str, seen: Callable[[StreamPart], object] = lambda part: None) -> list[StreamPart]:
    """One real request to a loopback server."""

    async def main() -> list[StreamPart]:
        pool = HttpPool()
        made: list[StreamPart] = []
        try:
            async for part in gemini(base_url=url).stream(ASK, pool.session(stall=5.0)):
                made.append(part)
                seen(part)
        finally:
            await pool.aclose()
        return made

    return asyncio.run(main())


def test_a_request_over_the_wire_is_answered() -> None:
    """From the constructor to the socket and back."""
    with Server(stream(RECORDINGS["text"])) as server:
        parts = over_http(server.url)
    assert parts[0] == Delta("text", "Actors")
    assert isinstance(parts[-1], ModelResponse)
    (request,) = server.requests
    assert request.path == f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
    assert request.headers["x-goog-api-key"] == "AIza-secret"
    assert request.json == {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
