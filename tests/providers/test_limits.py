"""What `extra=` says, alike for every provider: of the limit of an answer that a budget pays for, and in a summary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.servers import Server, answer

from nitinol import Agent, Budget, Prices, run
from nitinol.errors import InvalidRequest
from nitinol.http import HttpPool
from nitinol.messages import Message, Text
from nitinol.provider import ModelRequest
from nitinol_providers import Anthropic, Gemini, OpenAI, OpenAICompatible

CASES: list[tuple[Callable[..., Any], Callable[[int], dict[str, Any]]]] = [
    (Anthropic, lambda limit: {"max_tokens": limit}),
    (Gemini, lambda limit: {"generationConfig": {"maxOutputTokens": limit}}),
    (OpenAI, lambda limit: {"max_output_tokens": limit}),
    (Gemini, lambda limit: {"generation_config": {"max_output_tokens": limit}}),
    (OpenAICompatible, lambda limit: {"max_tokens": limit}),
    (OpenAICompatible, lambda limit: {"max_completion_tokens": limit}),
]


def limit_sent(make: Callable[..., Any], **options: Any) -> list[int]:
    """All that the body of a request says of the most tokens."""
    with Server(answer(400)) as server:
        model = make("m", api_key="k", base_url=server.url)
        run("go", Agent(name="a", model=model, prices=Prices(input="3", output="15"), **options))
        body = server.requests[0].json
    found = {**body, **body.get("generationConfig", {})}
    return [value for name, value in found.items() if name.lower().startswith("max")]


@pytest.mark.parametrize(("make", "extra"), CASES)
def test_a_budget_lowers_a_limit_of_extra_too(make: Callable[..., Any], extra: Callable[[int], Any]) -> None:
    """Else one answer could cost more than all that is left."""
    (limit,) = limit_sent(make, extra=extra(60_000), budget=Budget(cents=5))
    assert 256 <= limit <= 3334


@pytest.mark.parametrize(("make", "extra"), CASES)
def test_of_two_limits_the_lower_one_holds(make: Callable[..., Any], extra: Callable[[int], Any]) -> None:
    assert limit_sent(make, extra=extra(500)) == [500]
    assert limit_sent(make, extra=extra(500), max_output_tokens=900) == [500]
    assert limit_sent(make, extra=extra(900), max_output_tokens=500) == [500]


SCHEMA = {"type": "object"}
OF_ANSWERS: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (
        Anthropic,
        {
            "tool_choice": {"type": "any"},
            "thinking": {"type": "enabled", "budget_tokens": 9000},
            "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
        },
        {"top_k": 5, "metadata": {"user_id": "u"}, "service_tier": "auto"},
    ),
    (
        Gemini,
        {
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
            "generationConfig": {"responseMimeType": "text/plain", "responseLogprobs": True, "logprobs": 2},
            "cachedContent": "cachedContents/1",
        },
        {"labels": {"team": "a"}},
    ),
    (
        OpenAI,
        {
            "tool_choice": "required",
            "text": {"verbosity": "low"},
            "conversation": "conv_1",
            "previous_response_id": "resp_1",
            "prompt": {"id": "pmpt_1"},
        },
        {"service_tier": "flex", "reasoning": {"effort": "low"}},
    ),
    (
        OpenAICompatible,
        {
            "tool_choice": "required",
            "response_format": {"type": "text"},
            "guided_json": SCHEMA,
            "guided_regex": ".",
            "structured_outputs": {"json": SCHEMA},
            "grammar": "root ::= .",
            "json_schema": SCHEMA,
            "modalities": ["text", "audio"],
            "audio": {"voice": "a", "format": "wav"},
            "n": 2,
            "min_tokens": 50_000,
            "plugins": [{"id": "web"}],
            "web_search_options": {"search_context_size": "low"},
            "prediction": {"type": "content", "content": "a"},
        },
        {"seed": 7, "reasoning_effort": "low", "provider": {"order": ["a"]}},
    ),
]


def sent(make: Callable[..., Any], extra: Any, purpose: Any) -> dict[str, Any]:
    """The body of a request."""

    async def ask() -> None:
        pool = HttpPool()
        request = ModelRequest(messages=(Message(role="user", parts=(Text("go"),)),), extra=extra, purpose=purpose)
        model = make("m", api_key="k", base_url=server.url)
        with pytest.raises(InvalidRequest):
            async for _ in model.stream(request, pool.session()):
                pass
        await pool.aclose()

    with Server(answer(400)) as server:
        asyncio.run(ask())
        found: dict[str, Any] = server.requests[0].json
    return found


@pytest.mark.parametrize(("make", "of_answers", "of_all"), OF_ANSWERS)
def test_a_summary_goes_without_what_extra_says_of_answers(
    make: Callable[..., Any], of_answers: dict[str, Any], of_all: dict[str, Any]
) -> None:
    """It has no tools, so that a tool that must be called is refused; all else is sent with it too."""
    extra = {**of_answers, **of_all}
    for_answer, for_summary = sent(make, extra, "answer"), sent(make, extra, "compact")
    assert of_answers.items() <= for_answer.items()
    assert not [name for name in of_answers if for_summary.get(name)]
    assert of_all.items() <= for_summary.items()


def test_gemini_takes_its_options_in_either_spelling() -> None:
    """Python's are snake_case; both together are refused."""
    config: dict[Any, Any] = {"response_mime_type": "text/plain", "response_schema": SCHEMA, "top_k": 3, 7: 7}
    extra: dict[str, Any] = {
        "generation_config": config,
        "cached_content": "cachedContents/1",
        "tool_config": {},
        "safety_settings": [],
    }
    assert sent(Gemini, extra, "answer")["generationConfig"] == {
        "responseMimeType": "text/plain",
        "responseSchema": SCHEMA,
        "topK": 3,
        "7": 7,
    }
    for_summary = sent(Gemini, extra, "compact")
    assert for_summary.pop("contents")
    assert for_summary == {"generationConfig": {"topK": 3, "7": 7}, "safetySettings": []}
