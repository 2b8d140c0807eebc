"""The limit of an answer, alike for every provider: what `extra=` says of it and what a budget pays for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.servers import Server, answer

from nitinol import Agent, Budget, Prices, run
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
