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


TOOL_CHOICES: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (Anthropic, {"tool_choice": {"type": "any"}, "thinking": {"type": "enabled", "budget_tokens": 9000}}, {"top_k": 5}),
    (
        Gemini,
        {
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
            "generationConfig": {"responseMimeType": "text/plain"},
        },
        {"labels": {"team": "a"}},
    ),
    (OpenAI, {"tool_choice": "required", "text": {"verbosity": "low"}}, {"service_tier": "flex"}),
    (OpenAICompatible, {"tool_choice": "required", "response_format": {"type": "text"}}, {"seed": 7}),
]


@pytest.mark.parametrize(("make", "of_answers", "of_all"), TOOL_CHOICES)
def test_a_summary_goes_without_what_extra_says_of_answers(
    make: Callable[..., Any], of_answers: dict[str, Any], of_all: dict[str, Any]
) -> None:
    """It has no tools, so that a tool that must be called is refused; all else is sent with it too."""

    def sent(purpose: Any) -> dict[str, Any]:
        async def ask() -> None:
            pool = HttpPool()
            request = ModelRequest(
                messages=(Message(role="user", parts=(Text("go"),)),), extra={**of_answers, **of_all}, purpose=purpose
            )
            model = make("m", api_key="k", base_url=server.url)
            with pytest.raises(InvalidRequest):
                async for _ in model.stream(request, pool.session()):
                    pass
            await pool.aclose()

        with Server(answer(400)) as server:
            asyncio.run(ask())
            found: dict[str, Any] = server.requests[0].json
        return found

    for_answer, for_summary = sent("answer"), sent("compact")
    assert of_answers.items() <= for_answer.items()
    assert not [name for name in of_answers if for_summary.get(name)]
    assert of_all.items() <= for_summary.items()
