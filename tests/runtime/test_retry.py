"""Retry: how long to wait, what is tried again, and who is asked next."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.logs_of import SOON, log_of, types_of
from tests.servers import Connection, Script, Server, answer, cut, hang, head, stream

from nitinol import Agent, Runtime
from nitinol.retry import Retry
from nitinol_providers import OpenAICompatible

jitters = st.floats(0, 1, exclude_max=True)


@given(failures=st.integers(1, 10_000), jitter=jitters, base=st.floats(0, 100), cap=st.floats(0, 1000))
def test_a_delay_is_a_random_part_of_a_ceiling_that_doubles(
    failures: int, jitter: float, base: float, cap: float
) -> None:
    """Exponential with full jitter, never above the cap, never an overflow. parity: R2"""
    delay = Retry(base=base, cap=cap).delay(failures, None, jitter)
    assert 0 <= delay <= min(cap, base * 2.0 ** min(failures - 1, 60))


def test_the_ceiling_doubles_with_each_failure() -> None:
    """1, 2, 4, … up to the cap. parity: R2"""
    retry = Retry(base=1.0, cap=5.0)
    assert [retry.delay(failures, None, 0.5) for failures in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 2.5, 2.5]


@given(retry_after=st.floats(0, 3_600), failures=st.integers(1, 20), jitter=jitters)
def test_retry_after_is_obeyed_where_it_is_longer(retry_after: float, failures: int, jitter: float) -> None:
    """Also beyond the cap: the provider knows. parity: R2"""
    retry = Retry()
    assert retry.delay(failures, retry_after, jitter) == max(retry_after, retry.delay(failures, None, jitter))


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"attempts": True}, {"base": -1.0}, {"cap": -1.0}, {"stall": -0.1}]
)
def test_what_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    """By name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Retry(**options)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


# ---- live agents behind a real server

RETRIED = (408, 429, 500, 502, 503, 504, 529)
FINAL = (400, 401, 403, 404, 422)
WORDS = b'data: {"choices": [{"index": 0, "delta": {"content": "done"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def agent(*urls: str, **options: Any) -> Agent[str]:
    """An agent with a model at each address, the first one first."""
    first, *others = (OpenAICompatible(f"m{n}", base_url=url, api_key="key") for n, url in enumerate(urls))
    wanted: dict[str, Any] = {"base": 0.0, **options.pop("retry", {})}
    retry = Retry(**wanted)
    return Agent(name="a", model=first, fallbacks=others, retry=retry, **options)


def refuse(status: int) -> Script:
    return answer(status, {"error": {"message": "no"}})


async def close_at_once(connection: Connection) -> None:
    """The vendor takes the request, and hangs up."""


@pytest.mark.parametrize("status", RETRIED)
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    """parity: R1"""
    with Server(refuse(status), stream(WORDS)) as server, Runtime() as rt:
        result = rt.start(agent(server.url)).ask("go", timeout=SOON)
    assert (result.status, result.text, len(server.requests)) == ("completed", "done", 2)


@pytest.mark.parametrize("status", FINAL)
def test_a_status_that_will_not_pass_is_final(status: int) -> None:
    """parity: R1"""
    with Server(refuse(status), stream(WORDS)) as server, Runtime() as rt:
        result = rt.start(agent(server.url)).ask("go", timeout=SOON)
    assert (result.status, len(server.requests)) == ("failed", 1)
    assert result.error is not None
    assert result.error.startswith(f"HTTP {status}: no")


@pytest.mark.parametrize(
    "trouble", [close_at_once, cut(), cut(WORDS[:40]), hang(), hang([head(connection="close")])],
    ids=["closed", "cut", "cut in an event", "silent", "silent after the head"],
)  # fmt: skip
def test_a_connection_that_breaks_or_stalls_is_tried_again(trouble: Script) -> None:
    """parity: R1"""
    with Server(trouble, stream(WORDS)) as server, Runtime() as rt:
        result = rt.start(agent(server.url, retry={"stall": 0.5})).ask("go", timeout=SOON)
    assert (result.status, result.text, len(server.requests)) == ("completed", "done", 2)


def test_a_refused_connection_is_tried_as_often_as_wanted_and_costs_nothing() -> None:
    """parity: R1, R2"""
    with Server(stream(WORDS)) as gone:
        pass
    with Runtime() as rt:
        for attempts in (1, 3):
            ref = rt.start(agent(gone.url, retry={"attempts": attempts}))
            result = ref.ask("go", timeout=SOON)
            assert (result.status, result.error_type) == ("failed", "ConnectionFailed")
            assert result.usage.total_tokens == 0
            assert types_of(ref).count("model.failed") == attempts


def test_one_attempt_means_no_retry() -> None:
    """parity: R2"""
    with Server(refuse(500), stream(WORDS)) as server, Runtime() as rt:
        result = rt.start(agent(server.url, retry={"attempts": 1})).ask("go", timeout=SOON)
    assert (result.status, result.error_type, len(server.requests)) == ("failed", "ServerError", 1)


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_no_request_outlives_the_deadline_of_its_run(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that trickle keep no stream beyond it; and the connection is closed. parity: R3"""
    monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", transport)
    gone = threading.Event()

    async def trickle(connection: Connection) -> None:
        await connection.send(head(connection="close"), b"data: ")
        closed = asyncio.ensure_future(connection.closed())
        while not (await asyncio.wait([closed], timeout=0.4))[0]:
            with suppress(ConnectionError):
                await connection.send(b"x")
        gone.set()

    with Server(trickle) as server, Runtime() as rt:
        result = rt.start(agent(server.url, retry={"stall": 0.8}, deadline=2.0)).ask("go", timeout=SOON)
        assert gone.wait(SOON), "the connection stayed open"
    assert (result.status, len(server.requests)) == ("deadline_exceeded", 1)
    assert 1.9 < result.duration < SOON


def test_no_retry_is_waited_for_beyond_the_deadline() -> None:
    """A `Retry-After` of an hour ends a run of ten seconds at once: it could not be met. parity: R2, R3"""
    with Server(answer(429, {}, retry_after="3600"), stream(WORDS)) as server, Runtime() as rt:
        result = rt.start(agent(server.url, deadline=10.0)).ask("go", timeout=SOON)
    assert (result.status, result.error_type, len(server.requests)) == ("failed", "RateLimited", 1)


def test_the_next_model_is_asked_when_the_first_one_fails() -> None:
    """With attempts of its own; a final error falls back at once. parity: R4"""
    with Server(refuse(500)) as first, Server(refuse(401)) as second, Server(stream(WORDS)) as third, Runtime() as rt:
        ref = rt.start(agent(first.url, second.url, third.url, retry={"attempts": 2}))
        result = ref.ask("go", timeout=SOON)
        fallbacks = [event.to_model for event in log_of(ref) if event.type == "model.fallback"]
    assert (result.status, result.text) == ("completed", "done")
    assert [len(server.requests) for server in (first, second, third)] == [2, 1, 1]
    assert fallbacks == ["openai-compatible:m1", "openai-compatible:m2"]


def test_when_all_models_fail_the_last_error_is_the_runs() -> None:
    """parity: R4"""
    with Server(refuse(500)) as first, Server(refuse(404)) as second, Runtime() as rt:
        result = rt.start(agent(first.url, second.url, retry={"attempts": 1})).ask("go", timeout=SOON)
    assert (result.status, result.error_type) == ("failed", "InvalidRequest")
    assert result.error is not None
    assert result.error.startswith("HTTP 404: no (")


def test_a_fallback_keeps_to_the_deadline_of_the_run() -> None:
    """One deadline for all models of a run, not one for each. parity: R3, R4"""
    with Server(refuse(500)) as first, Server(hang()) as second, Runtime() as rt:
        ref = rt.start(agent(first.url, second.url, retry={"attempts": 1}, deadline=1.0))
        result = ref.ask("go", timeout=SOON)
    assert result.status == "deadline_exceeded"
    assert [len(server.requests) for server in (first, second)] == [1, 1]


def test_who_was_shown_a_part_is_told_to_drop_it() -> None:
    """The stream breaks after its first words, and the next model says it all. parity: R4, R5"""
    part = b'data: {"choices": [{"index": 0, "delta": {"content": "par"}}]}\n\n'
    with Server(cut(part)) as first, Server(stream(WORDS)) as second, Runtime() as rt:
        ref = rt.start(agent(first.url, second.url, retry={"attempts": 1}))
        handle = ref.send("go")
        shown = list(handle.text())
        result = handle.result(SOON)
        log = log_of(ref)
    assert "".join(shown) == "par\ndone"
    assert result.text == "done"
    assert [event.characters for event in log if event.type == "model.discarded"] == [3]
    assert [event.attempt for event in log if event.type == "usage.updated"] == [1, 2]
    assert [message.text for message in result.messages] == ["go", "done"]
