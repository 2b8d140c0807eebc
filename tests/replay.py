"""Recorded answers without a network: an `Http` that gives recorded bytes, in any chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from nitinol.http import Http, HttpPool
from nitinol.http_errors import Classify
from nitinol.sse import SseParser


class Replay(Http):
    """Answers with these bytes, and keeps what it was sent."""

    def __init__(self, *chunks: bytes, is_json: bool = False) -> None:
        super().__init__(HttpPool(), stall=1.0)
        self.chunks = chunks
        self._is_json = is_json
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
        if self._is_json:
            yield b"".join(self.chunks)
            return
        parser = SseParser()
        for chunk in self.chunks:
            for data in parser.feed(chunk):
                if data == until:
                    return
                yield data
        for data in parser.close():
            if data != until:
                yield data
