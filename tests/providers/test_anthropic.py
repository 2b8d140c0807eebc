"""Messages: what is sent, what is understood, and what the vendor's own SDK says of both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.messages_api import (
    ASK,
    BROKEN,
    PNG,
    RECORDINGS,
    STREAMS,
    WHOLE,
    ask,
    assistant,
    attempt,
    begun,
    block,
    called,
    conversation,
    ended,
    look,
    provider,
    read,
    recorded,
    respond,
    said,
    sent,
    sse,
    tools,
    user,
)
from tests.replay import Replay
from tests.servers import Server, answer, cut, hang, head, stream

from nitinol import errors
from nitinol.http import HttpPool
from nitinol.messages import (
    Audio,
    Document,
    Image,
    Native,
    Part,
    Text,
    Thinking,
    ToolAnswer,
    ToolCall,
    to_message,
)
from nitinol.provider import Delta, ModelRequest, ModelResponse, Provider, StreamPart, UsageSoFar, resolve
from nitinol.tool_spec import Tool
from nitinol.usage import Usage
from nitinol_providers import Anthropic, supplement


class TestRecordings:
    """What the vendor documents, and what other servers sent. parity: P7, P10"""

    @pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
    def test_a_recording_split_anywhere_says_the_same(self, path: Path) -> None:
        data = path.read_bytes()
        whole = ask(Replay(data))
        assert isinstance(whole[-1], ModelResponse)
        assert ask(Replay(*(data[at : at + 1] for at in range(len(data))))) == whole
        assert ask(Replay(data.replace(b"\n", b"\r\n"))) == whole

    @pytest.mark.slow
    @pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
    def test_a_recording_cut_at_every_byte_is_whole_or_a_typed_error(self, path: Path) -> None:
        """And what was told of its usage is told at once, so that a cut stream is billed by it. parity: P6"""
        data = path.read_bytes()
        whole, fault = attempt(data)
        assert (type(fault) if fault else None) is BROKEN.get(path.stem)
        first_usage = data.index(b"\n\n") + 1  # the event that tells it has come
        complete = 0
        for at in range(len(data)):
            seen, fault = attempt(data[:at])
            assert seen == whole[: len(seen)]
            complete += fault is None
            if fault is None:
                assert seen == whole
            assert at < first_usage or isinstance(seen[0], UsageSoFar)
        # Without the last line ends it is whole all the same.
        assert complete == (0 if path.stem in BROKEN else 2)

    def test_text_in_any_script(self) -> None:
        response = recorded("text")
        assert response.message.parts == (Text('Naïve \u2013 中文 😀\n\u2028 "quoted" \\ back.'),)
        assert (response.message.provider, response.message.model) == ("anthropic", "claude-sonnet-5-5")
        assert (response.raw_model, response.response_id) == ("claude-sonnet-5-5", "msg_01TextAAAAAAAAAAAAAAAAAAA")
        assert response.usage == Usage(input_tokens=12, output_tokens=17)

    def test_thinking_text_and_calls_in_parallel(self) -> None:
        """parity: P3, P7"""
        response = recorded("thinking_text_and_three_calls")
        assert response.message.parts == (
            Thinking(
                text="The user wants the weather in two cities and the time.",
                signature="EqQBCgIYAhIkYjY3ZWFiMTYtOTk0OC00YmE5",
            ),
            Text("Let me look."),
            ToolCall(
                call_id="toolu_01AaAaAaAaAaAaAaAaAaAaAa",
                name="get_weather",
                arguments={"city": "Paris", "units": "metric"},
            ),
            ToolCall(
                call_id="toolu_01BbBbBbBbBbBbBbBbBbBbBb", name="get_weather", arguments={"city": "Zürich \U0001f600"}
            ),
            ToolCall(call_id="toolu_01CcCcCcCcCcCcCcCcCcCcCc", name="get_time"),
        )
        assert response.stop_reason == "tool_use"
        assert response.usage == Usage(input_tokens=431, output_tokens=187, reasoning_tokens=61)

    def test_hidden_thinking_keeps_its_data(self) -> None:
        hidden, open_, _ = recorded("redacted_thinking").message.parts
        assert isinstance(hidden, Thinking)
        assert (hidden.text, hidden.redacted, str(hidden.signature)[:8]) == ("", True, "EmwKAhgB")
        assert open_ == Thinking(text="Then.", signature="EuYBCkQYAiJAgCs1le6")

    def test_the_cache_is_within_the_input(self) -> None:
        """parity: P5. The vendor tells it beside; a model that is not the vendor's too."""
        assert recorded("cache_written_for_an_hour_and_read").usage == Usage(
            input_tokens=21 + 3000 + 188086,
            cache_read_tokens=188086,
            cache_write_tokens=3000,
            cache_write_1h_tokens=2000,
            output_tokens=393,
        )
        assert recorded("llamacpp_text").usage == Usage(input_tokens=304, cache_read_tokens=273, output_tokens=14)

    def test_a_search_goes_back_as_it_came(self) -> None:
        """parity: P4"""
        response = recorded("web_search")
        (called, found, cited) = (part for part in response.message.parts if isinstance(part, Native))
        assert called.data["input"] == {"query": "claude shannon birth date"}
        assert called.text == '[web_search: {"query": "claude shannon birth date"}]'
        assert found.text.startswith("[web_search: Claude Shannon - Wikipedia https://en.wikipedia.org/wiki/")
        assert cited.data["citations"][0]["encrypted_index"] == "Eo8BCioIAhgBIiQyYjQ0OWJmZi1l"
        assert response.message.text == "I'll search.Claude Shannon was born on April 30, 1916."
        assert response.usage == Usage(
            input_tokens=6039 + 2679, cache_read_tokens=2679, output_tokens=931, server_tool_calls=1
        )
        (_, back, _) = conversation(user(Text("When?")), response.message, user(Text("And where?")))
        kinds = ["text", "server_tool_use", "web_search_tool_result", "text", "text"]
        assert [block["type"] for block in back["content"]] == kinds
        assert back["content"][2] == found.data
        assert back["content"][3] == cited.data

    def test_results_of_servers_tools_have_words(self) -> None:
        parts = recorded("failed_search_and_code_execution").message.parts
        words = [part.text for part in parts if isinstance(part, Native)]
        assert words[1] == "[web_search: max_uses_exceeded]"
        assert words[3] == "[bash_code_execution: 6.5\n]"

    def test_code_that_calls_a_tool_goes_on_where_it_runs(self) -> None:
        """parity: T5. The call goes back with its caller, to the container that waits for its result."""
        response = recorded("code_that_calls_a_tool")
        (call,) = response.message.tool_calls
        assert response.stop_reason == "tool_use"
        request = ASK.replace(
            messages=(to_message("Sum."), response.message, tools(ToolAnswer(call_id=call.call_id, name="q", text="1")))
        )
        body = sent(request)
        assert body["container"] == "container_01XyZ"
        assert [block["type"] for block in body["messages"][1]["content"]] == ["text", "server_tool_use", "tool_use"]
        assert body["messages"][1]["content"][2]["caller"] == {
            "type": "code_execution_20260120",
            "tool_id": "srvtoolu_01CodeCodeCodeCodeCodeCo",
        }
        later = sent(request.replace(messages=(*request.messages, to_message("Stop that."))))
        assert "container" not in later
        assert "server_tool_use" not in json.dumps(later)
        assert "caller" not in json.dumps(later)

    def test_a_pause_goes_on_with_the_models_own_words(self) -> None:
        response = recorded("pause")
        assert response.stop_reason == "pause"
        paused = conversation(user(Text("Look.")), response.message)
        assert [message["role"] for message in paused] == ["user", "assistant"]
        assert paused[1]["content"][-1]["type"] == "server_tool_use"
        after = recorded("after_the_pause").message
        whole = conversation(user(Text("Look.")), response.message, after, user(Text("And?")))
        assert [message["role"] for message in whole] == ["user", "assistant", "user"]
        kinds = ["text", "server_tool_use", "web_search_tool_result", "text"]
        assert [block["type"] for block in whole[1]["content"]] == kinds

    def test_a_pause_that_was_left_is_words(self) -> None:
        """The vendor refuses a call of its tools that nothing has answered."""
        (_, left, _) = conversation(user(Text("Look.")), recorded("pause").message, user(Text("Never mind.")))
        assert left["content"] == [
            {"type": "text", "text": "I look."},
            {"type": "text", "text": '[web_search: {"query": "actors"}]'},
        ]

    def test_an_answer_whose_call_is_gone_is_words(self) -> None:
        """Compaction may have cut between them."""
        (_, kept, _) = conversation(user(Text("Look.")), recorded("after_the_pause").message, user(Text("And?")))
        assert kept["content"][0] == {"type": "text", "text": "[web_search: Actors https://example.org/actors]"}

    def test_blocks_that_nobody_knows_yet_go_back_as_they_came(self) -> None:
        compacted, called, answered, dream, text = recorded("blocks_to_come").message.parts
        assert isinstance(compacted, Native)
        assert compacted.data == {"type": "compaction", "content": "So far: nothing.", "encrypted_content": "Enc"}
        assert isinstance(called, Native)
        assert called.data["input"] == {"x": [1, 2]}
        assert isinstance(answered, Native)
        assert answered.text == "[mcp: [1, 2]]"
        assert isinstance(dream, Native)
        assert dream.data == {"type": "dream", "depth": 4}
        assert text == Text("Well.")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("refusal", "refusal"), ("stop_sequence", "end_turn"), ("cut_by_length_in_a_call", "max_tokens")],
    )
    def test_stop_reasons_stay_distinct(self, name: str, reason: str) -> None:
        """parity: P6"""
        assert recorded(name).stop_reason == reason

    def test_a_call_that_was_cut_is_never_made(self) -> None:
        """parity: P8. Neither in its arguments, nor before them, where none would look like all."""
        (call,) = recorded("cut_by_length_in_a_call").message.tool_calls
        assert call.malformed == '{"path": "a.txt", "text": "On'
        (call,) = recorded("cut_by_length_before_the_arguments").message.tool_calls
        assert call.malformed == ""

    def test_an_error_in_mid_stream_is_typed_and_its_usage_known(self) -> None:
        seen: list[StreamPart] = []
        with pytest.raises(errors.Overloaded, match="Overloaded") as caught:
            read(Replay((RECORDINGS / "overloaded_in_mid_stream.sse").read_bytes()), seen)
        assert caught.value.request_id == "req_011CMidStream"
        usage = Usage(input_tokens=2500, cache_read_tokens=500, output_tokens=1)
        assert seen == [UsageSoFar(usage), Delta("text", "Half of", 0)]

    def test_a_full_window_is_an_overflow(self) -> None:
        """The runtime can make room for it and ask again; a longer limit would not help."""
        with pytest.raises(errors.ContextOverflow, match="before its end"):
            recorded("window_full")

    def test_an_answer_that_is_not_streamed_is_understood(self) -> None:
        with Server(answer(200, (RECORDINGS / "whole_answer.json").read_bytes())) as server:
            response = over_http(server.url)[-1]
        assert isinstance(response, ModelResponse)
        assert (response.message.text, response.stop_reason) == ("The capital of France is Paris.", "end_turn")
        assert response.usage == Usage(input_tokens=42, cache_read_tokens=41, output_tokens=8)

    def test_a_model_of_llamacpp_calls_a_tool(self) -> None:
        """Its `tool_use` begins without an input, and its last usage has only the output."""
        response = recorded("llamacpp_tool_call")
        (call,) = response.message.tool_calls
        assert (call.name, call.arguments) == ("get_weather", {"city": "Paris"})
        assert response.usage == Usage(input_tokens=243, cache_read_tokens=242, output_tokens=31)


class TestCalls:
    """parity: P7, P8"""

    def calls(self, *events: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
        found = respond(begun(), *events, *ended("tool_use")).message.tool_calls
        return [
            (call.call_id, call.name, call.arguments if call.malformed is None else call.malformed) for call in found
        ]

    @pytest.mark.parametrize("pieces", [(), ("",), ("", "{}"), ("null",)])
    def test_a_call_may_have_no_arguments(self, pieces: tuple[str, ...]) -> None:
        assert self.calls(*called(0, "a", "f", *pieces, input={})) == [("a", "f", {})]

    def test_arguments_may_come_whole_in_the_first_event(self) -> None:
        assert self.calls(*called(0, "a", "f", input={"x": 1})) == [("a", "f", {"x": 1})]

    @pytest.mark.parametrize("raw", ["{", "[1]", '"x"', '{"x": NaN}', "not json"])
    def test_arguments_that_are_no_json_object_are_kept_as_they_are(self, raw: str) -> None:
        assert self.calls(*called(0, "a", "f", raw)) == [("a", "f", raw)]

    def test_a_missing_id_is_made_up_without_chance(self) -> None:
        events = [*called(0, None, "f"), *called(1, "", "g")]
        assert self.calls(*events) == self.calls(*events) == [("call_RUN_3_0", "f", {}), ("call_RUN_3_1", "g", {})]

    def test_a_call_without_a_name_is_malformed(self) -> None:
        with pytest.raises(errors.MalformedResponse, match="name"):
            self.calls(*called(0, "a", None))

    def test_deltas_say_which_call_and_which_block(self) -> None:
        text = block(0, {"type": "text", "text": "x"}, {"type": "text_delta", "text": "y"})
        parts = ask(
            Replay(sse(begun(), *text, *called(1, "a", "f", "{", "}"), *called(2, "b", "f", "{}"), *ended("tool_use")))
        )
        assert parts[:-1] == [
            Delta("text", "x", 0),
            Delta("text", "y", 0),
            Delta("tool_args", "{", 0),
            Delta("tool_args", "}", 0),
            Delta("tool_args", "{}", 1),
        ]

    def test_a_stop_with_calls_is_tool_use_and_one_without_is_none(self) -> None:
        assert respond(begun(), *called(0, "a", "f"), *ended("end_turn")).stop_reason == "tool_use"
        assert respond(begun(), *ended("tool_use")).stop_reason == "end_turn"
        assert respond(begun(), *ended("something_new")).stop_reason == "other"
        assert respond(begun(), *ended(None)).stop_reason == "other"


class TestFailures:
    """parity: P9, R1"""

    @pytest.mark.parametrize(
        ("kind", "cls"),
        [
            ("invalid_request_error", errors.InvalidRequest),
            ("authentication_error", errors.AuthenticationFailed),
            ("permission_error", errors.AuthenticationFailed),
            ("billing_error", errors.InvalidRequest),
            ("not_found_error", errors.InvalidRequest),
            ("request_too_large", errors.ContextOverflow),
            ("rate_limit_error", errors.RateLimited),
            ("timeout_error", errors.ServerError),
            ("api_error", errors.ServerError),
            ("overloaded_error", errors.Overloaded),
            ("error_to_come", errors.ServerError),
        ],
    )
    def test_an_error_in_mid_stream_has_its_type(self, kind: str, cls: type[errors.ProviderError]) -> None:
        with pytest.raises(errors.ProviderError, match="why") as caught:
            respond(begun(), {"type": "error", "error": {"type": kind, "message": "why"}})
        assert type(caught.value) is cls

    def test_an_error_in_another_envelope_is_understood(self) -> None:
        """llama.cpp's, which is OpenAI's."""
        with pytest.raises(errors.ContextOverflow):
            respond(begun(), {"type": "", "error": {"code": 500, "type": "exceed_context_size_error", "message": "x"}})

    def test_an_error_in_mid_stream_hides_the_key(self) -> None:
        with pytest.raises(errors.ServerError, match=r"key \[key\] failed"):
            respond({"type": "error", "error": {"type": "api_error", "message": "key sk-secret failed"}})

    @pytest.mark.parametrize("stream", [b"", b": comment\n\n", sse({"type": "ping"}), sse(begun(), ended()[0])])
    def test_a_stream_without_its_end_is_an_error(self, stream: bytes) -> None:
        """The official SDK takes it for an answer."""
        with pytest.raises(errors.MalformedResponse, match="without its end"):
            ask(Replay(stream))

    @pytest.mark.parametrize(
        "event",
        [
            b"not json",
            b"[]",
            b'"x"',
            b"{}",
            b'{"type": "message_start"}',
            b'{"type": "content_block_delta", "index": 5, "delta": {}}',
            b'{"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": 7}}',
            b'{"type": "message_delta", "delta": {"stop_reason": 3}}',
            b'{"type": "message_delta", "delta": 3}',
        ],
    )
    def test_an_event_that_is_none_is_malformed(self, event: bytes) -> None:
        with pytest.raises(errors.MalformedResponse):
            ask(Replay(b"data: " + event + b"\n\n"))

    @pytest.mark.parametrize(
        ("status", "body", "cls"),
        [
            (400, {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}, errors.ContextOverflow),
            (
                400,
                {"type": "invalid_request_error", "message": "input length and `max_tokens` exceed context limit: 9"},
                errors.ContextOverflow,
            ),
            (
                400,
                {"code": 400, "type": "exceed_context_size_error", "message": "x"},
                errors.ContextOverflow,
            ),
            (413, {"type": "request_too_large", "message": "Request exceeds the maximum size"}, errors.ContextOverflow),
            (400, {"type": "invalid_request_error", "message": "no"}, errors.InvalidRequest),
            (401, {"type": "authentication_error", "message": "invalid x-api-key"}, errors.AuthenticationFailed),
            (403, {"type": "permission_error", "message": "no"}, errors.AuthenticationFailed),
            (404, {"type": "not_found_error", "message": "model: m"}, errors.InvalidRequest),
            (429, {"type": "rate_limit_error", "message": "prompt is too long"}, errors.RateLimited),
            (500, {"type": "api_error", "message": "oops"}, errors.ServerError),
            (529, {"type": "overloaded_error", "message": "Overloaded"}, errors.Overloaded),
        ],
    )
    def test_an_error_body_is_typed(self, status: int, body: Any, cls: type[Exception]) -> None:
        refusal = answer(status, {"type": "error", "error": body}, request_id="req_7", retry_after="2")
        with Server(refusal) as server, pytest.raises(errors.ProviderError) as caught:
            over_http(server.url)
        assert type(caught.value) is cls
        assert (caught.value.status_code, caught.value.request_id, caught.value.retry_after) == (status, "req_7", 2)
        assert body["message"] in str(caught.value)

    def test_cache_writes_are_the_sum_of_their_kinds_where_that_is_not_told(self) -> None:
        kinds = {"ephemeral_1h_input_tokens": 3, "ephemeral_5m_input_tokens": 4}
        usage = respond(begun(input_tokens=1, output_tokens=1, cache_creation=kinds), *ended()).usage
        assert usage == Usage(input_tokens=8, cache_write_tokens=7, cache_write_1h_tokens=3, output_tokens=1)

    def test_usage_that_tells_nothing_is_unknown_and_not_zero(self) -> None:
        usage: dict[str, Any] = {"input_tokens": "5", "output_tokens": None}
        assert respond(begun(**usage), *block(0, {"type": "text", "text": "x"}), *ended(**usage)).usage is None

    def test_a_cut_connection_is_retryable_and_its_usage_known(self) -> None:
        data = (RECORDINGS / "text.sse").read_bytes()
        seen: list[StreamPart] = []
        with Server(cut(data[: len(data) // 2])) as server, pytest.raises(errors.ConnectionFailed):
            over_http(server.url, seen.append)
        assert seen[0] == UsageSoFar(Usage(input_tokens=12, output_tokens=1))

    def test_a_server_that_stays_after_the_end_keeps_nobody_waiting(self) -> None:
        """Its connection is closed, and no stall is told of an answer that is whole."""
        silent = hang((head(), (RECORDINGS / "text.sse").read_bytes()))
        with Server(silent) as server:
            assert isinstance(over_http(server.url)[-1], ModelResponse)
            assert silent.closed.wait(10)

    def test_what_comes_after_the_end_is_nobodys_business(self) -> None:
        """Nor that the connection is then cut."""
        with Server(cut((RECORDINGS / "text.sse").read_bytes(), b"data: {\n\n")) as server:
            assert isinstance(over_http(server.url)[-1], ModelResponse)


class TestRequests:
    """parity: P2"""

    def test_the_body_is_a_streamed_message(self) -> None:
        request = ASK.replace(
            instructions="Be brief.", tools=(look,), max_output_tokens=9, extra={"stop_sequences": ["x"], "top_k": 1}
        )
        assert sent(request.replace(cache=False)) == {
            "model": "claude-sonnet-5-5",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
            "stream": True,
            "system": [{"type": "text", "text": "Be brief."}],
            "tools": [{"name": "look", "description": "Look out.", "input_schema": look.parameters}],
            "stop_sequences": ["x"],
            "top_k": 1,
        }

    @pytest.mark.parametrize(
        ("model", "tokens"),
        [
            ("claude-3-haiku-20240307", 4096),
            ("claude-3-5-sonnet-20241022", 8192),
            ("claude-3-7-sonnet-latest", 64_000),
            ("claude-opus-4-20250514", 32_000),
            ("claude-opus-4-1", 32_000),
            ("claude-sonnet-4-0", 64_000),
            ("claude-haiku-4-5-20251001", 64_000),
            ("claude-sonnet-4-6", 64_000),
            ("claude-opus-4-6", 128_000),
            ("claude-fable-5-2", 128_000),
            ("claude-mythos-preview", 128_000),
            ("local", 4096),
        ],
    )
    def test_there_is_always_a_limit(self, model: str, tokens: int) -> None:
        """The API wants one."""
        assert sent(model=model)["max_tokens"] == tokens

    @pytest.mark.parametrize(
        ("model", "thinking", "limit", "fields"),
        [
            ("claude-haiku-4-5", 5000, None, {"thinking": {"type": "enabled", "budget_tokens": 5000}}),
            ("claude-haiku-4-5", "high", None, {"thinking": {"type": "enabled", "budget_tokens": 24576}}),
            ("claude-haiku-4-5", 10, None, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
            ("claude-haiku-4-5", 9000, 8000, {"thinking": {"type": "enabled", "budget_tokens": 6000}}),
            ("claude-haiku-4-5", 9000, 1000, {"thinking": None}),
            ("local", 2000, None, {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 6096}),
            ("claude-sonnet-4-6", 5000, None, {"thinking": {"type": "enabled", "budget_tokens": 5000}}),
            (
                "claude-sonnet-4-6",
                "low",
                None,
                {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "low"}},
            ),
            (
                "claude-opus-5-5",
                5000,
                100,
                {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "medium"}},
            ),
            ("claude-opus-5-5", None, None, {"thinking": None, "output_config": None}),
        ],
    )
    def test_thinking_is_asked_for_in_the_models_words(
        self, model: str, thinking: Any, limit: int | None, fields: dict[str, Any]
    ) -> None:
        """parity: P3. A budget leaves room for the answer."""
        body = sent(ASK.replace(thinking=thinking, max_output_tokens=limit), model)
        assert {key: body.get(key) for key in fields} == fields

    def test_thinking_waits_for_the_next_turn_if_another_model_began_this_one(self) -> None:
        """With a budget, the vendor refuses calls that began without a thought."""
        foreign = assistant(ToolCall(call_id="a", name="f"), provider="openai")
        own = assistant(Thinking(text="hm", signature="s"), ToolCall(call_id="a", name="f"))
        second = assistant(ToolCall(call_id="b", name="f"))
        results = [tools(ToolAnswer(call_id=id, name="f", text="x")) for id in "ab"]
        for first, thinks in ((foreign, False), (own, True)):
            messages = (to_message("go"), first, results[0], second, results[1])
            body = sent(ASK.replace(messages=messages, thinking=5000), "claude-haiku-4-5")
            assert ("thinking" in body) is thinks
            later = ASK.replace(messages=(*messages, assistant(Text("x")), to_message("so?")), thinking=5000)
            assert "thinking" in sent(later, "claude-haiku-4-5")

    def test_a_temperature_is_for_those_that_take_one(self) -> None:
        """It makes the request one of the API's last version that has it."""
        warm = ASK.replace(temperature=1.7)
        assert sent(warm, "claude-haiku-4-5")["temperature"] == 1.0
        assert said(warm, "claude-haiku-4-5")["anthropic-version"] == "2023-06-01"
        assert "temperature" not in sent(warm.replace(thinking=2000), "claude-haiku-4-5")
        assert "temperature" not in sent(warm)
        assert said(warm)["anthropic-version"] == "2026-10-21"
        assert said(ASK.replace(extra={"top_p": 0.5}))["anthropic-version"] == "2023-06-01"

    def test_media_are_sent_in_the_vendors_form(self) -> None:
        (message,) = conversation(
            user(
                Text("Look:"),
                Image(data=b"img", media_type="image/jpg"),
                Image(data=PNG),
                Image(url="https://x.test/a.png"),
                Document(data=b"%PDF-1", name="a.pdf"),
                Document(url="https://x.test/a.pdf", media_type="application/pdf"),
                Document(data=b"words", media_type="text/markdown", name="a.md"),
            )
        )
        assert message["content"] == [
            {"type": "text", "text": "Look:"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "aW1n"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
            {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0x"},
                "title": "a.pdf",
            },
            {"type": "document", "source": {"type": "url", "url": "https://x.test/a.pdf"}},
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "words"},
                "title": "a.md",
            },
        ]

    @pytest.mark.parametrize(
        "part",
        [
            Audio(data=b"snd", media_type="audio/mpeg"),
            Image(data=b"BM", media_type="image/bmp"),
            Image(url="gs://bucket/a.png"),
            Document(data=b"PK", media_type="application/zip"),
            Document(url="https://x.test/a.docx", media_type="application/msword"),
            Document(data=b" ", media_type="text/plain"),
        ],
    )
    def test_what_the_vendor_does_not_take_becomes_a_note(self, part: Part) -> None:
        """Never dropped in silence; and nothing but words may be an assistant's."""
        for message in (user(Text("Look:"), part), assistant(Text("Look:"), part)):
            found = next(made for made in conversation(message) if made["role"] == message.role)
            assert found["content"][1]["text"].startswith(f"[{part.type}")
            assert "not shown" in found["content"][1]["text"]

    def test_a_tools_answers_stand_first_and_hold_media_and_errors(self) -> None:
        made = conversation(
            user(Text("go")),
            assistant(
                ToolCall(call_id="a", name="f"), ToolCall(call_id="b", name="f"), ToolCall(call_id="c", name="f")
            ),
            tools(
                ToolAnswer(call_id="a", name="f", text="boom", error=True),
                ToolAnswer(
                    call_id="b", name="f", text="", media=(Image(data=PNG), Audio(data=b"x", media_type="audio/wav"))
                ),
                ToolAnswer(call_id="c", name="f", text=" "),
            ),
            user(Text("and?")),
        )
        assert [message["role"] for message in made] == ["user", "assistant", "user"]
        first, second, third, words = made[2]["content"]
        assert first == {"type": "tool_result", "tool_use_id": "a", "content": "boom", "is_error": True}
        assert [block["type"] for block in second["content"]] == ["text", "image"]
        assert second["content"][0]["text"].startswith("[audio (audio/wav, 1 bytes)")
        assert third == {"type": "tool_result", "tool_use_id": "c", "content": "(no output)"}
        assert words == {"type": "text", "text": "and?"}

    def test_ids_fit_the_vendor_and_are_never_used_twice(self) -> None:
        """Ids of other vendors have any characters, and may repeat across turns."""
        turn = [
            assistant(ToolCall(call_id="call:1", name="a.b c"), ToolCall(call_id="x" * 99, name=""), provider="gemini"),
            tools(
                ToolAnswer(call_id="call:1", name="a.b c", text="1"),
                ToolAnswer(call_id="x" * 99, name="", text="2"),
            ),
        ]
        made = conversation(user(Text("go")), *turn, *turn)
        ids = [block["id"] for message in made for block in message["content"] if block["type"] == "tool_use"]
        answered = [b["tool_use_id"] for message in made for b in message["content"] if b["type"] == "tool_result"]
        assert ids == answered
        assert len(set(ids)) == 4
        assert all(len(id) <= 64 and id.replace("_", "").isalnum() for id in ids)
        assert [block["name"] for block in made[1]["content"]] == ["a_b_c", "_"]

    def test_malformed_arguments_go_back_as_json(self) -> None:
        """parity: P8"""
        made = conversation(user(Text("go")), assistant(ToolCall(call_id="a", name="f", malformed='{"x')))
        assert made[1]["content"][0]["input"] == {"malformed_json": '{"x'}

    def test_what_another_vendors_model_signed_behind_the_same_api_stays_there(self) -> None:
        """The vendor refuses a conversation with a signature that is not its own."""
        thought, seen = Thinking(text="hm", signature="s"), Native(data={"type": "seen", "x": 1}, text="[seen]")
        other = replace(assistant(thought, seen, Text("b")), model="kimi-k2")
        thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
        kept = [thinking, {"type": "seen", "x": 1}, {"type": "text", "text": "b"}]
        strange = [{"type": "text", "text": "[seen]"}, {"type": "text", "text": "b"}]
        for model, content in (("claude-opus-4-5", strange), ("local", strange), ("kimi-k2", kept)):
            request = ModelRequest(messages=(user(Text("a")), other, user(Text("c"))), cache=False)
            assert sent(request, model)["messages"][1]["content"] == content

    @pytest.mark.parametrize(("thinking", "told"), [("disabled", 0.5), ("enabled", None)])
    def test_a_temperature_goes_with_thinking_that_is_turned_off(self, thinking: str, told: float | None) -> None:
        extra = {"thinking": {"type": thinking, "budget_tokens": 2000}}
        assert sent(replace(ASK, temperature=0.5, extra=extra), "claude-sonnet-4-5").get("temperature") == told

    def test_only_thinking_of_its_own_goes_back(self) -> None:
        """parity: P3. A message that was nothing else is left out; words without words are never sent."""
        signed = Thinking(text="hm", signature="s")
        made = conversation(
            user(Text("a"), Text(" \n")),
            assistant(
                signed, Thinking(text="", signature="d", redacted=True), Thinking(text="?"), Text("b"), Text(" ")
            ),
            user(Text("c")),
            assistant(signed, provider="openai"),
            user(Text("d")),
        )
        assert made == [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "d"},
                    {"type": "text", "text": "b"},
                ],
            },
            {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        ]

    def test_another_vendors_natives_are_their_words(self) -> None:
        found = Native(data={"type": "web_search_call", "id": "ws"}, text="[searched]")
        made = conversation(
            user(Text("a")), assistant(found, Native(data={"x": 1}), provider="openai"), user(Text("b"))
        )
        assert made[1]["content"] == [{"type": "text", "text": "[searched]"}]

    def test_the_user_speaks_first_and_last(self) -> None:
        """New models refuse to go on with words that are said to be their own."""
        made = conversation(assistant(Text("I ")))
        assert [message["role"] for message in made] == ["user", "assistant", "user"]

    def test_allowed_callers_reach_the_vendor(self) -> None:
        """parity: T5"""
        (made,) = sent(ASK.replace(tools=(look.replace(callers=("code_execution_20260120",)),)))["tools"]
        assert made["allowed_callers"] == ["code_execution_20260120"]

    def test_the_cache_is_told_where_the_prompt_may_end(self) -> None:
        """parity: P5"""
        answered = (assistant(ToolCall(call_id="a", name="f")), tools(ToolAnswer(call_id="a", name="f", text="x")))
        request = ModelRequest(messages=(*ASK.messages, *answered), instructions="Be brief.", tools=(look, look))
        body = sent(request)
        mark = {"type": "ephemeral"}
        assert [tool.get("cache_control") for tool in body["tools"]] == [None, mark]
        assert body["system"][-1]["cache_control"] == mark
        assert [message["content"][-1].get("cache_control") for message in body["messages"]] == [mark, None, mark]
        assert "cache_control" not in json.dumps(sent(request.replace(cache=False)))

    def test_breakpoints_of_the_callers_own_count(self) -> None:
        hour = {"type": "ephemeral", "ttl": "1h"}
        request = ASK.replace(
            instructions="x", tools=(look,), messages=(to_message("a"), assistant(Text("b")), user(Text("c")))
        )
        body = sent(request.replace(extra={"cache_control": hour}))
        assert json.dumps(body).count('"cache_control"') == 4
        assert json.dumps(body).count('"1h"') == 4
        searches = {"type": "web_search_20250305", "name": "web_search", "cache_control": hour}
        body = sent(
            request.replace(
                extra={"tools": [searches], "system": [{"type": "text", "text": "y", "cache_control": hour}]}
            )
        )
        assert json.dumps(body).count('"cache_control"') == 4
        assert body["tools"][1] == searches

    def test_the_vendors_own_tools_and_their_betas_join_ours(self) -> None:
        """parity: P4"""
        own = {"type": "mcp_toolset", "mcp_server_name": "x"}
        request = ASK.replace(
            tools=(look,), thinking="low", extra={"tools": [own], "betas": ["b-1", "a-1"], "output_config": {"x": 1}}
        )
        body = sent(request)
        assert [tool["name"] if "name" in tool else tool["type"] for tool in body["tools"]] == ["look", "mcp_toolset"]
        assert body["output_config"] == {"effort": "low", "x": 1}
        assert "betas" not in body
        header = said(request, headers={"Anthropic-Beta": "a-1, c-1", "X-Title": "t"})
        assert header["anthropic-beta"] == "mcp-client-2025-11-20,b-1,a-1,c-1"
        assert header["x-title"] == "t"
        assert "anthropic-beta" not in said()


class TestOutput:
    """A schema is the vendor's own format where that has words for it; else a tool that the model calls to answer."""

    SCHEMA: Mapping[str, Any] = {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"],
    }

    def test_a_schema_is_told_in_the_formats_words(self) -> None:
        body = sent(ASK.replace(output_schema=self.SCHEMA, thinking="low", tools=(look,)))
        assert body["output_config"]["effort"] == "low"
        assert body["output_config"]["format"] == {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "(minLength: 1)"},
                    "age": {"type": "integer", "description": "(minimum: 0)"},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
        }
        assert len(body["tools"]) == 1
        assert "tool_choice" not in body

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"type": "object", "properties": {"x": {}}},
            {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/T"}},
                "$defs": {"T": {"type": "array", "items": {"$ref": "#/$defs/T"}}},
            },
            {"type": "object", "properties": {"x": {"type": "array", "prefixItems": [{"type": "string"}]}}},
        ],
    )
    def test_what_the_format_cannot_say_is_a_tool(self, schema: dict[str, Any]) -> None:
        body = sent(ASK.replace(output_schema=schema))
        assert body["tools"][0]["input_schema"] == schema
        assert body["tool_choice"] == {"type": "tool", "name": "final_answer"}
        assert "output_config" not in body

    def test_a_tool_is_forced_as_far_as_others_and_thinking_allow(self) -> None:
        request = ASK.replace(output_schema=self.SCHEMA, tools=(look.replace(name="final_answer"),))
        body = sent(request, "local")
        assert [tool["name"] for tool in body["tools"]] == ["final_answer", "final_answer_"]
        assert body["tool_choice"] == {"type": "any"}
        assert sent(request.replace(thinking=2000), "local")["tool_choice"] == {"type": "auto"}

    def test_a_call_of_that_tool_is_the_answer(self) -> None:
        """And no words that stand about it, which would be no JSON."""
        request = ASK.replace(output_schema=self.SCHEMA)
        parts = ask(Replay((RECORDINGS / "output_as_a_tool.sse").read_bytes()), request, "claude-3-7-sonnet-20250219")
        response = parts[-1]
        assert isinstance(response, ModelResponse)
        assert response.message.parts == (Text('{"name": "Ada", "age": 36}'),)
        assert response.stop_reason == "end_turn"
        assert Delta("text", '{"name": "Ada", "age": 36}', 1) in parts
        assert not any(isinstance(part, Delta) and part.kind == "tool_args" for part in parts)

    def test_an_answer_that_is_no_object_is_wrapped_for_the_tool(self) -> None:
        request = ASK.replace(
            output_schema={"type": "array", "items": {"$ref": "#/$defs/N"}, "$defs": {"N": {"type": "integer"}}}
        )
        (made,) = sent(request, "local")["tools"]
        assert made["input_schema"] == {
            "type": "object",
            "properties": {"value": {"type": "array", "items": {"$ref": "#/$defs/N"}}},
            "required": ["value"],
            "$defs": {"N": {"type": "integer"}},
        }
        events = (begun(), *called(0, "a", "final_answer", '{"value": [1, 2]}'), *ended("tool_use"))
        assert respond(*events, request=request, model="local").message.text == "[1, 2]"

    def test_an_answer_that_was_cut_is_what_there_is_of_it(self) -> None:
        request = ASK.replace(output_schema=self.SCHEMA)
        events = (begun(), *called(0, "a", "final_answer", '{"name": "A'), *ended("max_tokens"))
        response = respond(*events, request=request, model="local")
        assert (response.message.text, response.stop_reason) == ('{"name": "A', "max_tokens")

    def test_other_calls_go_on_beside_it(self) -> None:
        request = ASK.replace(output_schema=self.SCHEMA, tools=(look,))
        events = [*called(0, "a", "final_answer", '{"name": "A"}'), *called(1, "b", "look", '{"city": "x"}')]
        response = respond(begun(), *events, *ended("tool_use"), request=request, model="local")
        assert [call.name for call in response.message.tool_calls] == ["look"]
        assert response.stop_reason == "tool_use"


class TestConstruction:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"):
            monkeypatch.delenv(variable, raising=False)

    def test_a_model_string_finds_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """parity: P1"""
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
        made = resolve("anthropic:claude-sonnet-4-6")
        assert isinstance(made, Provider)
        assert isinstance(made, Anthropic)
        assert (made.name, made.model) == ("anthropic", "claude-sonnet-4-6")
        assert repr(made) == "Anthropic('claude-sonnet-4-6', base_url='https://api.anthropic.com')"

    def test_a_missing_key_is_named(self) -> None:
        with pytest.raises(errors.MissingKey, match=r"ANTHROPIC_API_KEY.*api_key="):
            Anthropic("m")
        with pytest.raises(errors.MissingKey):
            Anthropic("m", api_key="")

    def test_a_server_of_ones_own_needs_no_key(self) -> None:
        assert Anthropic("m", base_url="http://box:9/").base_url == "http://box:9"

    @pytest.mark.parametrize("url", ["", "box:9", "ftp://box", "http://"])
    def test_a_bad_address_is_refused(self, url: str) -> None:
        with pytest.raises(errors.ConfigurationError, match="base_url="):
            Anthropic("m", base_url=url, api_key="k")

    def test_an_empty_model_is_refused(self) -> None:
        with pytest.raises(errors.ConfigurationError, match="empty"):
            Anthropic(" ", api_key="k")

    @pytest.mark.parametrize(
        ("environment", "options", "sent"),
        [
            ({"ANTHROPIC_API_KEY": "one"}, {}, {"x-api-key": "one"}),
            ({"ANTHROPIC_AUTH_TOKEN": "two"}, {}, {"authorization": "Bearer two"}),
            ({"ANTHROPIC_API_KEY": "one", "ANTHROPIC_AUTH_TOKEN": "two"}, {}, {"x-api-key": "one"}),
            ({"ANTHROPIC_AUTH_TOKEN": "two"}, {"api_key": "three"}, {"x-api-key": "three"}),
            ({}, {"headers": {"Authorization": "Bearer four"}}, {"authorization": "Bearer four"}),
        ],
    )
    def test_keys_are_found_as_the_sdk_finds_them(
        self,
        environment: dict[str, str],
        options: dict[str, Any],
        sent: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        http = Replay(sse(begun(), *ended()))

        async def main() -> None:
            async for _ in Anthropic("m", **options).stream(ASK, http):
                pass

        asyncio.run(main())
        assert {name: http.headers[name] for name in http.headers if name in ("x-api-key", "authorization")} == sent
        assert http.url == "https://api.anthropic.com/v1/messages"

    def test_an_address_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://user:pass@box/anthropic/?q=1")
        made = Anthropic("m")
        assert made.base_url == "http://user:pass@box/anthropic/?q=1"
        assert "pass" not in repr(made)
        http = Replay(sse(begun(), *ended()))

        async def main() -> None:
            async for _ in made.stream(ASK, http):
                pass

        asyncio.run(main())
        assert http.url == "http://user:pass@box/anthropic/v1/messages?q=1"

    @pytest.mark.parametrize("model", sorted(supplement.MAX_OUTPUT_TOKENS["anthropic"]))
    def test_a_generations_limit_is_that_of_the_catalogue(self, model: str) -> None:
        """A request that no runtime has looked at is limited by the generation alone."""
        assert sent(model=model)["max_tokens"] == supplement.MAX_OUTPUT_TOKENS["anthropic"][model]

    def test_what_is_known_of_a_model(self) -> None:
        info = provider("claude-sonnet-4-5-20250929").info()
        assert (info.context_window, info.max_output_tokens) == (200_000, 64_000)
        assert info.prices is not None
        assert provider("claude-fable-9").info().max_output_tokens == 128_000
        unknown = provider("local").info()
        assert (unknown.context_window, unknown.max_output_tokens, unknown.prices) == (None, None, None)


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
    with Server(stream((RECORDINGS / "text.sse").read_bytes())) as server:
        parts = over_http(server.url)
    assert isinstance(parts[-1], ModelResponse)
    assert server.requests[0].path == "/v1/messages"
    assert server.requests[0].headers["x-api-key"] == "sk-secret"
    assert server.requests[0].headers["anthropic-version"] == "2026-10-21"
    assert server.requests[0].json["stream"] is True


def test_tools_are_offered_as_they_are() -> None:
    """A schema of the user's own need not say that it is an object's."""
    bare = Tool(lambda: None, name="bare", parameters={"properties": {}})
    assert sent(ASK.replace(tools=(bare,), cache=False))["tools"] == [
        {"name": "bare", "input_schema": {"type": "object", "properties": {}}}
    ]
