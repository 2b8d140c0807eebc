"""A provider's stream that stalls, in a live agent: a timeout, told, charged, and tried again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of
from tests.servers import Server, hang, head, stream

from nitinol import Agent, Runtime
from nitinol.http import Http
from nitinol.messages import Message, Text
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart
from nitinol.retry import Retry


class Vendor:
    """A provider behind a server."""

    name, model = "vendor", "vendor-1"

    def __init__(self, url: str) -> None:
        self.url = url

    def info(self) -> ModelInfo:
        return ModelInfo()

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        text = ""
        async for data in http.sse("POST", self.url, json={}):
            text += data.decode()
            yield Delta("text", data.decode())
        yield ModelResponse(message=Message(role="assistant", parts=(Text(text),)), usage=None, stop_reason="end_turn")


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize(
    "pieces",
    [(), (head(connection="close"),), (head(connection="close"), b"data: some\n\n")],
    ids=["before the headers", "after the headers", "in mid-stream"],
)
def test_a_stalled_stream_is_a_timeout_and_is_tried_again(
    pieces: tuple[bytes, ...], transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Retry.stall`: the connection is closed, what was shown is discarded, the next attempt answers. parity: R3"""
    monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", transport)
    stalls = hang(pieces)
    with Server(stalls, stream(b"data: whole\n\n")) as server, Runtime(drain=0.0) as rt:
        agent: Any = Agent(name="a", model=Vendor(server.url), retry=Retry(stall=0.8, base=0.0))
        ref = rt.start(agent)
        result = ref.ask("go", timeout=SOON)
        assert stalls.closed.wait(SOON)
        assert (result.status, result.text) == ("completed", "whole")
        log = log_of(ref)
        (failed,) = (event for event in log if event.type == "model.failed")
        assert (failed.error_type, failed.retryable) == ("ProviderTimeout", True)
        assert "no byte for 0.8 seconds" in failed.error
        discarded = [event.characters for event in log if event.type == "model.discarded"]
        assert discarded == ([len("some")] if len(pieces) > 1 else [])
        assert [event.attempt for event in log if event.type == "usage.updated"] == [1, 2]
        assert_valid(ref)


def test_a_stream_that_only_stalls_fails_the_run() -> None:
    """After the attempts of `Retry`, as a timeout, with what it may have cost."""
    with Server(hang((head(connection="close"),))) as server, Runtime(drain=0.0) as rt:
        agent: Any = Agent(name="a", model=Vendor(server.url), retry=Retry(attempts=2, stall=1.0, base=0.0))
        result = rt.start(agent).ask("go", timeout=SOON)
        assert (result.status, result.error_type) == ("failed", "ProviderTimeout")
        assert len(server.requests) == 2
        assert result.usage.input_tokens > 0
