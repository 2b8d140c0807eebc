"""The Responses API: what is sent, what is understood, what goes back as it came, and what only another can read."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from tests.replay import Replay
from tests.responses_stream import USAGE, Json, call, code, events, message, reasoning, refusal, search, sse, stream
from tests.servers import Server, answer, cut
from tests.servers import stream as served

from nitinol import Agent, errors
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
from nitinol_providers import OpenAI
from nitinol_providers.openai import xai
from nitinol_providers.responses_answer import ResponsesAnswer
from nitinol_providers.strict_schema import rooted, strict

RECORDINGS = Path(__file__).parent / "recordings" / "responses"
ASK = ModelRequest(messages=(to_message("Hello"),), run_id="RUN", turn=3)
MODEL = "gpt-5.4"


def provider(model: str = MODEL, name: str = "openai", **options: Any) -> OpenAI:
    options.setdefault("api_key", "sk-secret")
    return OpenAI(model, name=name, **options)


def ask(data: bytes, request: ModelRequest = ASK, **options: Any) -> list[StreamPart]:
    async def main() -> list[StreamPart]:
        return [part async for part in provider(**options).stream(request, Replay(data))]

    return asyncio.run(main())


def last(data: bytes, request: ModelRequest = ASK, **options: Any) -> ModelResponse:
    found = ask(data, request, **options)[-1]
    assert isinstance(found, ModelResponse)
    return found


def respond(*output: Json, request: ModelRequest = ASK, name: str = "openai", **fields: Any) -> ModelResponse:
    return last(stream(output, **fields), request, name=name)


def sent(request: ModelRequest = ASK, model: str = MODEL, name: str = "openai") -> Json:
    http = Replay(stream([]))

    async def main() -> None:
        async for _ in provider(model, name).stream(request, http):
            pass

    asyncio.run(main())
    body: Json = json.loads(json.dumps(http.sent, default=dict))
    return body


def items(*messages: Message, model: str = MODEL, name: str = "openai", **options: Any) -> list[Json]:
    made: list[Json] = sent(ModelRequest(messages=messages, **options), model, name)["input"]
    return made


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def tools(*answers: ToolAnswer) -> Message:
    return Message(role="tool", parts=answers)


def said(text: str, number: int = 1, **fields: Any) -> Json:
    """Words of the model that no item of its own holds."""
    content: list[Json] = [{"type": "output_text", "text": text, "annotations": []}]
    made: Json = {"type": "message", "id": f"msg_nitinol_{number}", "status": "completed", "role": "assistant"}
    return {**made, "content": content, **fields}


def assistant(*parts: Part, provider: str = "anthropic", model: str = "m") -> Message:
    return Message(role="assistant", parts=parts, provider=provider, model=model)


class TestRecordings:
    """What real servers sent. parity: P7, P10"""

    @pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.sse")), ids=lambda path: path.stem)
    def test_a_recording_split_anywhere_says_the_same(self, path: Path) -> None:
        recorded = path.read_bytes()
        whole = ask(recorded)

        async def main(*chunks: bytes) -> list[StreamPart]:
            return [part async for part in provider().stream(ASK, Replay(*chunks))]

        assert asyncio.run(main(*(recorded[at : at + 1] for at in range(len(recorded))))) == whole
        for at in range(0, len(recorded), 97):
            assert asyncio.run(main(recorded[:at], recorded[at:])) == whole

    def test_thinking_text_and_two_calls(self) -> None:
        response = last((RECORDINGS / "thinking_text_and_two_tool_calls.sse").read_bytes())
        assert response.message.parts == (
            Thinking(text="The user wants the weather; I should call the tool."),
            Text("Let me check."),
            ToolCall(call_id="call_abc", name="get_weather", arguments={"city": "Paris", "units": "metric"}),
            ToolCall(call_id="call_def", name="get_time", arguments={"tz": "Europe/Paris"}),
        )
        assert response.usage == Usage(input_tokens=100, output_tokens=40)
        assert (response.stop_reason, response.raw_model) == ("tool_use", "gpt-5.4")

    def test_events_without_places_and_numbers_are_understood(self) -> None:
        """llama.cpp"""
        parts = ask((RECORDINGS / "llamacpp_tool_call.sse").read_bytes())
        assert parts[0] == Delta("tool_args", "{", 0)
        assert isinstance(parts[-1], ModelResponse)
        assert parts[-1].message.tool_calls[0].arguments == {"city": "Paris"}
        assert parts[-1].usage == Usage(input_tokens=243, cache_read_tokens=242, output_tokens=31)

    def test_an_answer_that_is_not_streamed_is_understood(self) -> None:
        whole = (RECORDINGS / "llamacpp_whole_answer.json").read_bytes()
        with Server(answer(200, whole)) as server:
            parts = over_http(server.url)
        assert parts[0] == Delta("text", "The weather in Paris is light rain, 14 degrees.")
        assert isinstance(parts[-1], ModelResponse)
        assert parts[-1].message.text == "The weather in Paris is light rain, 14 degrees."
        assert parts[-1].stop_reason == "end_turn"


UNENDED = sse(list(events([message("x")]))[:-1])
WHOLE = {
    "everything": stream(
        [
            reasoning("Hm 🗼.", id="rs_1"),
            message("Let me look.", phase="commentary"),
            search("python"),
            call("look_up", '{"word":"é"}'),
            call("note", "{}", call_id="call_2", id="fc_2"),
        ]
    ),
    "refusal": stream([refusal("No.")]),
    "cut": stream([message("Once")], end="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    "llamacpp": (RECORDINGS / "llamacpp_text.sse").read_bytes(),
}


def read(data: bytes) -> ModelResponse:
    """As `last`, without a loop: ten times as fast."""
    parser, made = SseParser(), ResponsesAnswer("openai", MODEL, ASK)
    for event in (*parser.feed(data), *parser.close()):
        made.read(event)
    return made.response()


class TestCuts:
    @pytest.mark.parametrize("name", WHOLE)
    def test_a_stream_cut_after_any_byte_is_whole_or_a_typed_error(self, name: str) -> None:
        data = WHOLE[name]
        whole, answered = last(data), 0
        for at in range(len(data)):
            try:
                assert read(data[:at]) == whole
            except errors.MalformedResponse:
                continue
            answered += 1
        assert answered < 3  # only the blank line after the last event may be missing

    def test_a_whole_answer_cut_after_any_byte_is_a_typed_error(self) -> None:
        data = (RECORDINGS / "llamacpp_whole_answer.json").read_bytes()
        for at in range(1, len(data)):
            with pytest.raises(errors.MalformedResponse):
                ResponsesAnswer("openai", MODEL, ASK).read(data[:at])

    def test_a_cut_connection_is_retryable(self) -> None:
        seen: list[StreamPart] = []
        pieces = stream([message("Once upon")], size=4)[:-400]
        with Server(cut(pieces)) as server, pytest.raises(errors.ConnectionFailed):
            over_http(server.url, seen)
        assert [part.text for part in seen if isinstance(part, Delta)] == ["Once", " upo", "n"]


class TestAnswers:
    """parity: P3, P5, P6, P8, P9"""

    def test_each_kind_of_item_is_a_part(self) -> None:
        response = respond(reasoning("A", "B", encrypted=None), message("x", "y"), call("f", '{"a":1}'), search("q"))
        assert response.message.parts == (
            Thinking(text="A\n\nB"),
            Text("x"),
            Text("y"),
            ToolCall(call_id="call_1", name="f", arguments={"a": 1}),
            Native(data=search("q"), text='[web_search_call: {"type": "search", "query": "q", "queries": ["q"]}]'),
        )
        assert (response.message.provider, response.message.model) == ("openai", MODEL)

    def test_the_deltas_of_each_kind_are_told_apart(self) -> None:
        parts = ask(stream([reasoning("A", "B"), message("x"), call("f", '{"a":1}'), call("g", "{}", id="fc_2")]))
        assert parts[:-2] == [
            Delta("thinking", "A", 0),
            Delta("thinking", "\n\n", 0),
            Delta("thinking", "B", 0),
            Delta("text", "x", 1),
            Delta("tool_args", '{"a":1}', 0),
            Delta("tool_args", "{}", 1),
        ]

    def test_thinking_as_it_is_and_not_in_summary_is_thinking(self) -> None:
        """Open weights, xAI."""
        item: Json = {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        }
        made: list[Json] = [
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
            {"type": "response.reasoning_text.delta", "output_index": 0, "item_id": "rs_1", "delta": "hm"},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": {"output": [item, message("x")]}},
        ]
        parts = ask(sse(made))
        assert parts[0] == Delta("thinking", "hm", 0)
        assert isinstance(parts[-1], ModelResponse)
        assert parts[-1].message.parts[0].type == "thinking"
        assert items(user(Text("a")), parts[-1].message)[1] == item

    @pytest.mark.parametrize("raw", ["{", "[1]", '"x"', '{"x": NaN}'])
    def test_arguments_that_are_no_json_object_are_kept_as_they_are(self, raw: str) -> None:
        """parity: P8. The call is answered with an error that the model can mend."""
        (found,) = respond(call("f", raw)).message.tool_calls
        assert found.malformed == raw

    def test_no_two_calls_of_a_conversation_have_one_id(self) -> None:
        request = ASK.replace(messages=(*ASK.messages, assistant(ToolCall(call_id="call_1", name="f"))))
        found = respond(call("f"), call("f", call_id="", id="fc_2"), request=request).message.tool_calls
        assert [made.call_id for made in found] == ["call_RUN_3_0", "call_RUN_3_1"]

    @pytest.mark.parametrize(
        ("output", "fields", "reason"),
        [
            ([message("x")], {}, "end_turn"),
            ([call("f")], {}, "tool_use"),
            ([message("x"), search("q")], {}, "end_turn"),
            ([refusal("No.")], {}, "refusal"),
            (
                [message("x")],
                {"end": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
                "max_tokens",
            ),
            (
                [call("f", "{")],
                {"end": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
                "max_tokens",
            ),
            ([], {"end": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
            ([], {"end": "incomplete", "incomplete_details": {"reason": "something_new"}}, "other"),
            ([], {"end": "incomplete", "incomplete_details": None}, "other"),
        ],
    )
    def test_stop_reasons_stay_distinct(self, output: list[Json], fields: Json, reason: str) -> None:
        assert respond(*output, **fields).stop_reason == reason

    def test_a_refusal_is_text_and_a_reason(self) -> None:
        assert respond(refusal("I cannot.")).message.text == "I cannot."

    @pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
    def test_a_call_that_is_cut_before_its_first_argument_does_not_run_without(self, reason: str) -> None:
        """A refused answer runs no call at all."""
        cut = call("wipe", "")
        (made,) = respond(cut, end="incomplete", incomplete_details={"reason": reason}).message.tool_calls
        assert made.malformed == ("" if reason == "max_output_tokens" else None)
        whole, _ = respond(
            cut, message("x"), cut, end="incomplete", incomplete_details={"reason": reason}
        ).message.tool_calls
        assert whole.malformed is None

    def test_usage_that_tells_nothing_is_unknown_and_not_zero(self) -> None:
        nothing = {"input_tokens": None, "input_tokens_details": None, "output_tokens": "5", "total_tokens": None}
        assert last(stream([message("x")], usage=nothing)).usage is None

    @pytest.mark.parametrize(
        ("raw", "usage"),
        [
            (None, None),
            ({"input_tokens": 5, "output_tokens": 2}, Usage(input_tokens=5, output_tokens=2)),
            (
                USAGE,
                Usage(
                    input_tokens=1200,
                    cache_read_tokens=1024,
                    cache_write_tokens=100,
                    output_tokens=90,
                    reasoning_tokens=64,
                ),
            ),
            (  # xAI tells what it billed
                {"input_tokens": 5, "output_tokens": 2, "total_tokens": 9, "cost_in_usd_ticks": 37756000},
                Usage(input_tokens=5, output_tokens=4, reported_cost=Decimal("0.0037756")),
            ),
            (
                {"input_tokens": 5, "output_tokens": 2, "num_server_side_tools_used": 3},
                Usage(input_tokens=5, output_tokens=2, server_tool_calls=3),
            ),
        ],
    )
    def test_usage_of_both_vendors_is_one_vocabulary(self, raw: Json | None, usage: Usage | None) -> None:
        """parity: P5"""
        parts = ask(stream([message("x")], usage=raw))
        assert isinstance(parts[-1], ModelResponse)
        assert parts[-1].usage == usage
        assert usage is None or parts[-2] == UsageSoFar(usage)

    def test_calls_of_the_vendors_tools_are_counted(self) -> None:
        """Each has its fee."""
        opened = {**search("a", id="ws_3"), "action": {"type": "open_page", "url": "https://x.test"}}  # which is free
        usage = respond(search("a"), search("b", id="ws_2"), opened, code("1", "1"), message("x")).usage
        assert usage is not None
        assert usage.server_tool_calls == 3

    def test_a_picture_that_the_vendor_made_is_no_words(self) -> None:
        item = {"id": "ig_1", "type": "image_generation_call", "status": "completed", "result": "aGk=" * 1000}
        (part,) = respond(item).message.parts
        assert part == Native(data=item, text="[image_generation_call]")


class TestFailures:
    """parity: P9, R1"""

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            ("server_error", errors.ServerError),
            ("rate_limit_exceeded", errors.RateLimited),
            ("invalid_prompt", errors.ContentRefused),
            ("bio_policy", errors.ContentRefused),
            ("image_content_policy_violation", errors.ContentRefused),
            ("context_length_exceeded", errors.ContextOverflow),
            ("invalid_base64_image", errors.InvalidRequest),
            ("image_too_large", errors.InvalidRequest),
            ("vector_store_timeout", errors.ServerError),
            ("something_new", errors.ServerError),
        ],
    )
    def test_a_failure_has_its_type(self, code: str, kind: type[errors.ProviderError]) -> None:
        told = {"code": code, "message": "boom"}
        made = [
            stream([message("x")], end="failed", error=told),
            sse([{"type": "error", "sequence_number": 3, "param": None, **told}]),
            sse([{"type": "error", "error": {"type": "x", **told}}]),
        ]
        for data in made:
            with pytest.raises(errors.ProviderError, match="boom") as caught:
                ask(data)
            assert type(caught.value) is kind

    def test_a_failure_is_billed_by_what_it_tells(self) -> None:
        seen: list[StreamPart] = []
        failed = stream([], end="failed", error={"code": "server_error", "message": "boom"})
        with Server(served(failed)) as server, pytest.raises(errors.ServerError):
            over_http(server.url, seen)
        assert [part.usage.input_tokens for part in seen if isinstance(part, UsageSoFar)] == [1200]

    def test_an_error_in_mid_stream_hides_the_key(self) -> None:
        with pytest.raises(errors.ServerError, match=r"key \[key\] failed"):
            ask(sse([{"type": "error", "message": "key sk-secret failed"}]))

    @pytest.mark.parametrize("data", [b"", b": comment\n\n", b"data: [DONE]\n\n", UNENDED])
    def test_a_stream_without_its_end_is_an_error(self, data: bytes) -> None:
        """The official SDK takes it for an answer."""
        with pytest.raises(errors.MalformedResponse, match="without its end"):
            ask(data)

    @pytest.mark.parametrize("status", ["in_progress", "queued", "new"])
    def test_a_whole_answer_that_is_not_done_is_an_error(self, status: str) -> None:
        with pytest.raises(errors.MalformedResponse, match=status):
            ResponsesAnswer("openai", MODEL, ASK).read(json.dumps({"object": "response", "status": status}).encode())

    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (400, {"error": {"code": "context_length_exceeded", "message": "x"}}, errors.ContextOverflow),
            (
                400,
                {"error": {"message": "Unsupported parameter", "type": "invalid_request_error"}},
                errors.InvalidRequest,
            ),
            (401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}, errors.AuthenticationFailed),
            (429, {"error": {"message": "slow down"}}, errors.RateLimited),
            (400, {"code": "400", "error": "Argument not supported: x"}, errors.InvalidRequest),  # xAI
            (503, b"<html>busy</html>", errors.Overloaded),
        ],
    )
    def test_an_error_body_has_its_type(self, status: int, body: Any, kind: type[Exception]) -> None:
        with Server(answer(status, body)) as server, pytest.raises(errors.ProviderError) as caught:
            over_http(server.url)
        assert type(caught.value) is kind


class TestRequests:
    """parity: P2, P3"""

    def test_the_body_is_a_streamed_response_that_nobody_stores(self) -> None:
        @tool
        def look(city: str) -> str:
            """Look out."""
            return city

        request = ASK.replace(instructions="Be brief.", tools=(look,), max_output_tokens=99, thinking="low", key="a/1")
        body = sent(request)
        assert body.pop("prompt_cache_key").startswith("nitinol-")
        assert body == {
            "model": MODEL,
            "input": [{"role": "user", "content": "Hello"}],
            "instructions": "Be brief.",
            "stream": True,
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "low", "summary": "auto"},
            "max_output_tokens": 99,
            "tools": [
                {
                    "type": "function",
                    "name": "look",
                    "description": "Look out.",
                    "parameters": look.parameters,
                    "strict": True,
                }
            ],
        }

    def test_a_cache_key_is_the_agents_and_tells_nothing(self) -> None:
        key = "scout/" + "user@example.org" * 9
        (one, two) = (sent(ASK.replace(key=key, run_id=run))["prompt_cache_key"] for run in "ab")
        assert one == two != sent(ASK.replace(key="scout/other"))["prompt_cache_key"]
        assert len(one) <= 64
        assert "user" not in one
        assert "prompt_cache_key" not in sent(ASK.replace(key=key, cache=False))

    def test_extra_wins_and_the_vendors_tools_join_ours(self) -> None:
        @tool
        def look(city: str) -> str:
            """Look out."""
            return city

        search = {"type": "web_search"}
        extra = {
            "tools": [search],
            "include": ["web_search_call.action.sources", "reasoning.encrypted_content"],
            "reasoning": {"summary": "detailed"},
            "store": True,
            "service_tier": "flex",
        }
        body = sent(ASK.replace(tools=(look,), thinking="high", extra=extra))
        assert [tool["type"] for tool in body["tools"]] == ["function", "web_search"]
        assert body["include"] == ["reasoning.encrypted_content", "web_search_call.action.sources"]
        assert body["reasoning"] == {"effort": "high", "summary": "detailed"}
        assert (body["store"], body["service_tier"]) == (True, "flex")
        assert sent(ASK.replace(extra={"tools": [search]}))["tools"] == [search]

    @pytest.mark.parametrize(
        ("model", "name", "taken"),
        [
            ("gpt-5.4", "openai", {"reasoning", "include"}),
            ("o4-mini", "openai", {"reasoning", "include"}),
            ("gpt-4.1", "openai", {"temperature"}),
            ("ft:gpt-4o-mini:acme", "openai", {"temperature"}),
            ("gpt-5-chat-latest", "openai", {"temperature"}),
            ("local", "openai", {"reasoning", "include", "temperature"}),
            ("grok-4.3", "xai", {"reasoning", "include", "temperature"}),
            ("grok-3-mini", "xai", {"reasoning", "include", "temperature"}),
            ("grok-4-fast-reasoning", "xai", {"include", "temperature"}),
            ("grok-4.20-reasoning", "xai", {"include", "temperature"}),
            ("grok-4.20-non-reasoning", "xai", {"temperature"}),
            ("grok-3", "xai", {"temperature"}),
        ],
    )
    def test_what_a_model_is_known_to_refuse_is_left_out(self, model: str, name: str, taken: set[str]) -> None:
        """So that a fallback does not fail on an option of the first model."""
        body = sent(ASK.replace(temperature=0.5, thinking=9000), model, name)
        assert body.keys() & {"temperature", "reasoning", "include"} == taken
        assert body.get("reasoning", {"effort": "medium"})["effort"] == "medium"
        forced = sent(ASK.replace(extra={"temperature": 0.5}), model, name)
        assert forced["temperature"] == 0.5

    def test_a_tool_says_who_may_call_it(self) -> None:
        """parity: T5"""

        @tool(callers=("programmatic", "code_execution_20250825"))
        def look(city: str) -> str:
            """Look out."""
            return city

        assert sent(ASK.replace(tools=(look,)))["tools"][0]["allowed_callers"] == ["programmatic"]
        assert "allowed_callers" not in sent(ASK.replace(tools=(look,)), "grok-4.3", "xai")["tools"][0]

    def test_media_are_sent_in_the_apis_form(self) -> None:
        (made,) = items(
            user(
                Text("Look:"),
                Image(data=b"img", media_type="image/png"),
                Image(url="https://x.test/a.png"),
                Document(data=b"pdf", media_type="application/pdf", name="a.pdf"),
                Document(data=b"pdf", media_type="application/pdf"),
                Document(url="https://x.test/a.pdf"),
                Document(data=b"words", media_type="text/plain", name="a.txt"),
            )
        )
        assert made["content"] == [
            {"type": "input_text", "text": "Look:"},
            {"type": "input_image", "image_url": "data:image/png;base64,aW1n", "detail": "auto"},
            {"type": "input_image", "image_url": "https://x.test/a.png", "detail": "auto"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,cGRm"},
            {"type": "input_file", "filename": "document.pdf", "file_data": "data:application/pdf;base64,cGRm"},
            {"type": "input_file", "file_url": "https://x.test/a.pdf"},
            {"type": "input_text", "text": "Document 'a.txt':\nwords"},
        ]

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            (Audio(data=b"snd", media_type="audio/wav"), "[audio (audio/wav, 3 bytes)"),
            (Image(data=b"img", media_type="image/tiff", name="a"), "[image 'a' (image/tiff, 3 bytes)"),
            (Document(data=b"zip", media_type="application/zip"), "[document (application/zip, 3 bytes)"),
        ],
    )
    def test_what_the_api_does_not_take_becomes_a_note(self, part: Part, words: str) -> None:
        """Never dropped in silence."""
        (made,) = items(user(Text("Look:"), part))
        assert made["content"].startswith("Look:\n" + words)

    def test_a_tool_loop_is_paired_by_id(self) -> None:
        made = items(
            user(Text("go")),
            assistant(Thinking(text="hm"), Text("Well."), ToolCall(call_id="a", name="f", arguments={"x": "ü"})),
            tools(ToolAnswer(call_id="a", name="f", text="boom", error=True)),
        )
        assert made[1:] == [
            said("Well."),
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": "ü"}'},
            {"type": "function_call_output", "call_id": "a", "output": "Error: boom"},
        ]

    def test_a_tools_media_are_in_its_answer(self) -> None:
        image, pdf = Image(data=b"i", media_type="image/png"), Document(url="https://x.test/a.pdf")
        answers = tools(
            ToolAnswer(call_id="a", name="f", text="done", media=(image, pdf)),
            ToolAnswer(call_id="b", name="f", text="", media=(Audio(data=b"s", media_type="audio/wav"),)),
            ToolAnswer(call_id="c", name="f", text=""),
        )
        one, two, three = items(answers)
        assert [part["type"] for part in one["output"]] == ["input_text", "input_image", "input_file"]
        assert two["output"].startswith("[audio ")
        assert three["output"] == "(no output)"

    def test_xai_takes_a_tools_document_only_from_the_user(self) -> None:
        answers = tools(
            ToolAnswer(call_id="a", name="f", text="done", media=(Document(url="https://x.test/a.pdf"),)),
            ToolAnswer(call_id="b", name="f", text="x"),
        )
        one, two, three = items(answers, model="grok-4.3", name="xai")
        assert one["output"] == "done\n[document in the next message]"
        assert two["output"] == "x"
        assert (three["role"], three["content"][1]["type"]) == ("user", "input_file")

    def test_malformed_arguments_go_back_as_json(self) -> None:
        """parity: P8. The API refuses the whole conversation otherwise."""
        (made,) = items(assistant(ToolCall(call_id="a", name="f", malformed='{"x')))
        assert json.loads(made["arguments"]) == {"malformed_json": '{"x'}

    def test_ids_and_names_that_the_api_refuses_are_rewritten(self) -> None:
        long = "x" * 65
        made = items(
            assistant(ToolCall(call_id=long, name="functions.f"), ToolCall(call_id="y" * 64, name="é" * 80)),
            tools(
                ToolAnswer(call_id=long, name="functions.f", text="1"),
                ToolAnswer(call_id="y" * 64, name="é", text="2"),
            ),
        )
        assert made[0]["call_id"] == made[2]["call_id"] != long
        assert made[1]["call_id"] == made[3]["call_id"] == "y" * 64
        assert [item["name"] for item in made[:2]] == ["functions_f", "_" * 64]


class TestSchemas:
    class Report(BaseModel):
        """A report."""

        title: str
        pages: int | None = None

    def test_a_schema_is_strict_where_that_says_the_same(self) -> None:
        schema = Agent(name="a", model="openai:m", output=self.Report).output_schema
        assert schema is not None
        body = sent(ASK.replace(output_schema=schema))
        made = body["text"]["format"]
        assert (made["type"], made["name"], made["strict"]) == ("json_schema", "output", True)
        assert made["schema"]["required"] == ["title", "pages"]
        assert made["schema"]["additionalProperties"] is False

    def test_a_schema_that_strict_mode_cannot_say_is_sent_as_it_is(self) -> None:
        schema = {"type": "object", "additionalProperties": {"type": "integer"}}
        made = sent(ASK.replace(output_schema=schema))["text"]["format"]
        assert (made["schema"], made["strict"]) == (schema, False)

    def test_a_schema_that_is_no_object_is_a_word_to_the_model(self) -> None:
        """The API takes objects only."""
        body = sent(ASK.replace(instructions="Be brief.", output_schema={"type": "array", "items": {"type": "string"}}))
        assert "text" not in body
        assert body["instructions"].startswith("Be brief.\n\nYour final answer is JSON alone")

    def test_a_tools_optional_argument_is_never_made_up(self) -> None:
        @tool
        def look(city: str, days: int = 3) -> str:
            """Look out."""
            return city * days

        made = sent(ASK.replace(tools=(look,)))["tools"][0]
        assert (made["strict"], made["parameters"]) == (False, json.loads(json.dumps(look.parameters, default=dict)))

    def test_what_strict_mode_takes_is_known(self) -> None:
        class Leaf(BaseModel):
            kind: Literal["leaf"]
            size: float

        class Tree(BaseModel):
            kind: Literal["tree"]
            left: Leaf | Tree
            names: list[str]

        held = strict(rooted(Tree.model_json_schema()), narrow=False)
        assert held is not None
        assert held["$defs"]["Leaf"]["additionalProperties"] is False
        for refused in (
            {"type": "string", "pattern": "a+"},
            {"type": "string", "format": "uri"},
            {"type": "array"},
            {"type": "object"},
            {"allOf": [{"type": "string"}]},
            {},
            True,
        ):
            assert strict({"type": "object", "properties": {"a": refused}, "required": ["a"]}, narrow=True) is None

    def test_nothing_stands_beside_a_reference(self) -> None:
        schema = {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/A", "description": "the a", "default": None}},
            "$defs": {"A": {"type": "string"}},
        }
        held = strict(schema, narrow=True)
        assert held is not None
        assert held["properties"]["a"] == {"anyOf": [{"$ref": "#/$defs/A"}], "description": "the a"}


class TestReplay:
    """parity: P3, P4. A model's own items go back as they came; anyone else's as words, or not at all."""

    def again(self, response: ModelResponse, model: str = MODEL, name: str = "openai") -> list[Json]:
        answers = [ToolAnswer(call_id=made.call_id, name=made.name, text="x") for made in response.message.tool_calls]
        return items(
            user(Text("a")), response.message, *([tools(*answers)] if answers else []), model=model, name=name
        )[1:]

    def test_items_go_back_as_they_came(self) -> None:
        output = [
            reasoning("Hm."),
            message("Let me look.", phase="commentary"),
            search("q"),
            call("f", '{"a": 1}', namespace="crm"),
            call("g", "{}", call_id="call_2", id="fc_2", caller={"type": "program", "caller_id": "call_9"}),
        ]
        made = self.again(respond(*output))
        for item in output:
            item.pop("status" if item["type"] == "function_call" else "", None)
        assert made[:5] == output
        assert [item["call_id"] for item in made[5:]] == ["call_1", "call_2"]
        assert [item.get("caller") for item in made[5:]] == [None, {"type": "program", "caller_id": "call_9"}]

    def test_citations_and_every_piece_of_a_message_go_back(self) -> None:
        cite = {"type": "url_citation", "start_index": 0, "end_index": 1, "title": "t", "url": "https://x.test"}
        output = message("One. ", "Two.", annotations=[cite])
        assert self.again(respond(output)) == [output]

    def test_a_message_without_anything_to_keep_is_its_words(self) -> None:
        response = respond(message("Hi"))
        assert response.message.parts == (Text("Hi"),)
        assert self.again(response) == [said("Hi")]

    def test_words_that_a_hook_has_changed_go_back_changed(self) -> None:
        response = respond(reasoning(), message("secret", phase="final_answer"))
        parts = tuple(Text("***") if isinstance(part, Text) else part for part in response.message.parts)
        changed = response.replace(message=Message(role="assistant", parts=parts, provider="openai", model=MODEL))
        assert self.again(changed)[1]["content"][0]["text"] == "***"
        more = Message(role="assistant", parts=(*parts, Text("More.")), provider="openai", model=MODEL)
        assert self.again(changed.replace(message=more))[2] == said("More.")
        gone = tuple(part for part in parts if not isinstance(part, Text))
        none = Message(role="assistant", parts=gone, provider="openai", model=MODEL)
        assert self.again(changed.replace(message=none)) == []

    def test_another_model_of_the_vendor_gets_words_and_phases_alone(self) -> None:
        """What is encrypted for one model is noise to another."""
        response = respond(reasoning("Hm."), search("q"), message("Yes.", phase="final_answer"), call("f"))
        made = self.again(response, "gpt-5.5")
        assert made[:3] == [
            said('[web_search_call: {"type": "search", "query": "q", "queries": ["q"]}]'),
            said("Yes.", 2, phase="final_answer"),
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
        ]

    def test_another_vendor_gets_words_alone(self) -> None:
        response = respond(reasoning("Hm."), search("q"), message("Yes.", phase="final_answer"), call("f"))
        made = self.again(response, "grok-4.3", "xai")
        assert made[0] == said('[web_search_call: {"type": "search", "query": "q", "queries": ["q"]}]\nYes.')
        assert "id" not in made[1]

    def test_what_others_signed_is_never_sent(self) -> None:
        foreign = assistant(
            Thinking(text="hm", signature="EqQBCkYIBxgC"),
            Native(data={"type": "server_tool_use", "id": "srvtoolu_1"}, text="searched"),
            Text("Yes."),
            ToolCall(call_id="toolu_1", name="f", signature="CiQB"),
        )
        assert items(user(Text("a")), foreign)[1:] == [
            said("searched\nYes."),
            {"type": "function_call", "call_id": "toolu_1", "name": "f", "arguments": "{}"},
        ]

    def test_thinking_that_nothing_follows_stays_here(self) -> None:
        """The API refuses it."""
        cut_short = respond(reasoning(), end="incomplete", incomplete_details={"reason": "max_output_tokens"})
        assert cut_short.message.parts[0].type == "thinking"
        assert self.again(cut_short) == []

    def test_thinking_that_is_neither_encrypted_nor_stored_stays_here(self) -> None:
        """The API looks it up in vain."""
        response = respond(reasoning("Hm.", encrypted=None), message("Yes."))
        assert self.again(response) == [said("Yes.")]
        stored = ASK.replace(extra={"store": True})
        response = respond(reasoning("Hm.", encrypted=None), message("Yes."), request=stored)
        made = items(user(Text("a")), response.message, extra={"store": True})[1:]
        assert [item["id"] for item in made] == ["rs_1", "msg_1"]

    def test_no_item_and_no_call_goes_back_twice(self) -> None:
        """A caller may give a history twice; the API refuses an id that it has seen."""
        once = respond(reasoning(), message("Yes."), call("f")).message
        answered = tools(ToolAnswer(call_id="call_1", name="f", text="x"))
        made = items(user(Text("a")), once, answered, once, answered, once, answered)
        assert [item["id"] for item in made if "id" in item][:4] == ["rs_1", "msg_1", "fc_1", "msg_nitinol_1"]
        calls = ["call_1", "call_1_x", "call_1_x_x"]
        assert [item["call_id"] for item in made if item.get("type") == "function_call"] == calls
        assert [item["call_id"] for item in made if item.get("type") == "function_call_output"] == calls

    def test_who_made_an_item_is_no_business_of_a_request(self) -> None:
        output = {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAAA", "created_by": "server"}
        made = self.again(respond(output, message("x")))
        assert made[0] == {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAAA"}


class TestConstruction:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("API_KEY", "BASE_URL", "ORG_ID", "PROJECT_ID"):
            monkeypatch.delenv(f"OPENAI_{name}", raising=False)
        monkeypatch.delenv("XAI_API_KEY", raising=False)

    @pytest.mark.parametrize(("name", "url"), [("openai", "https://api.openai.com/v1"), ("xai", "https://api.x.ai/v1")])
    def test_a_model_string_finds_both_vendors(self, name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """parity: P1"""
        monkeypatch.setenv(f"{name.upper()}_API_KEY", "sk-secret")
        made = resolve(f"{name}:ft:some:model")
        assert isinstance(made, Provider)
        assert isinstance(made, OpenAI)
        assert (made.name, made.model, made.base_url) == (name, "ft:some:model", url)
        assert "sk-secret" not in repr(made)

    @pytest.mark.parametrize("name", ["openai", "xai"])
    def test_a_missing_key_is_named(self, name: str) -> None:
        with pytest.raises(errors.MissingKey, match=rf"{name.upper()}_API_KEY.*api_key="):
            OpenAI("m", name=name)

    def test_a_server_of_ones_own_needs_no_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert OpenAI("m", base_url="http://box:9/v1/").base_url == "http://box:9/v1"
        assert OpenAI("m", name="acme", base_url="http://box:9/v1").name == "acme"
        with pytest.raises(errors.ConfigurationError, match="base_url="):
            OpenAI("m", name="acme")
        monkeypatch.setenv("OPENAI_BASE_URL", "http://box:7/v1")
        assert OpenAI("m").base_url == "http://box:7/v1"
        with pytest.raises(errors.MissingKey):
            OpenAI("m", name="xai")

    @pytest.mark.parametrize("url", ["", "box:9/v1", "ftp://box", "http://", "http://box:x"])
    def test_a_bad_address_is_refused(self, url: str) -> None:
        with pytest.raises(errors.ConfigurationError, match="base_url="):
            OpenAI("m", base_url=url, api_key="sk-secret")

    def test_an_empty_model_is_refused(self) -> None:
        with pytest.raises(errors.ConfigurationError, match="empty"):
            OpenAI(" ")

    def test_the_key_the_project_and_the_callers_headers_are_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_ORG_ID", " org-1\n")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
        http = Replay(stream([]))
        made = OpenAI(
            "m", api_key="sk-secret", base_url="http://user:pass@box/v1?q=1", headers={"x": "y"}, project="p2"
        )

        async def main() -> None:
            async for _ in made.stream(ASK, http):
                pass

        asyncio.run(main())
        assert http.url == "http://user:pass@box/v1/responses?q=1"
        assert http.headers == {
            "authorization": "Bearer sk-secret",
            "openai-organization": "org-1",
            "openai-project": "p2",
            "x": "y",
        }
        assert "pass" not in repr(made)

    def test_xai_hears_nothing_of_the_openai_project(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
        with Server(served(stream([message("Hi")]))) as server:
            over_http(server.url, made=xai("m", api_key="k", base_url=server.url))
        assert "openai-organization" not in server.requests[0].headers

    @pytest.mark.parametrize(("name", "model"), [("openai", "gpt-5"), ("xai", "grok-4")])
    def test_windows_and_prices_are_the_vendors(self, name: str, model: str) -> None:
        info = provider(model, name).info()
        assert info.prices is not None
        assert info.context_window
        assert provider("no-such-model", name).info().prices is None
        assert provider(model, "acme", base_url="http://box/v1").info().prices is None


def over_http(url: str, seen: list[StreamPart] | None = None, made: OpenAI | None = None) -> list[StreamPart]:
    """One real request to a loopback server."""
    parts: list[StreamPart] = [] if seen is None else seen
    asked = made or provider(base_url=f"{url}/v1")

    async def main() -> None:
        pool = HttpPool()
        try:
            async for part in asked.stream(ASK, pool.session(stall=5.0)):
                parts.append(part)
        finally:
            await pool.aclose()

    asyncio.run(main())
    return parts


def test_a_request_over_the_wire_is_answered() -> None:
    """From the constructor to the socket and back."""
    with Server(served(stream([message("Hi")]))) as server:
        parts = over_http(server.url)
    assert parts[0] == Delta("text", "Hi", 0)
    assert isinstance(parts[-1], ModelResponse)
    assert server.requests[0].path == "/v1/responses"
    assert server.requests[0].headers["authorization"] == "Bearer sk-secret"
    assert server.requests[0].json["stream"] is True
