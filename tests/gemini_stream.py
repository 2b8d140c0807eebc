"""Streams of Gemini's API, recorded and made, and an `Http` that plays them without a network."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from nitinol.http import Http, HttpPool
from nitinol.http_errors import Classify
from nitinol.provider import ModelRequest, Provider, StreamPart
from nitinol.sse import SseParser

RECORDINGS = {
    path.stem: path.read_bytes() for path in (Path(__file__).parent / "providers/recordings/gemini").glob("*.sse")
}
"""In Google's documented shape. Made by hand, for its API cannot be reached from a test; but `aimock` is a server's."""


def sse(*chunks: Any) -> bytes:
    """These responses, as Google sends them."""
    return b"".join(b"data: %b\r\n\r\n" % jsonlib.dumps(chunk).encode() for chunk in chunks)


class Replay(Http):
    """Answers with these chunks, and keeps what it was sent."""

    def __init__(self, *chunks: bytes) -> None:
        super().__init__(HttpPool(), stall=1.0)
        self.chunks = chunks
        self.sent: Any = None
        self.headers: Mapping[str, str] = {}
        self.url = ""

    async def sse(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        classify: Classify | None = None,
        until: bytes | None = None,
    ) -> AsyncGenerator[bytes, None]:
        self.sent, self.headers, self.url = json, headers or {}, url
        parser = SseParser()
        for chunk in self.chunks:
            for data in parser.feed(chunk):
                if data == until:
                    return
                yield data
        for data in parser.close():
            yield data


def asked(provider: Provider, request: ModelRequest, http: Http) -> list[StreamPart]:
    """Everything that the provider yields."""

    async def main() -> list[StreamPart]:
        return [part async for part in provider.stream(request, http)]

    return asyncio.run(main())
