"""Streams of Gemini's API, recorded and made."""

from __future__ import annotations

import asyncio
import json as jsonlib
from pathlib import Path
from typing import Any

from nitinol.http import Http
from nitinol.provider import ModelRequest, Provider, StreamPart

RECORDINGS = {
    path.stem: path.read_bytes() for path in (Path(__file__).parent / "providers/recordings/gemini").glob("*.sse")
}
"""In Google's documented shape. Made by hand, for its API cannot be reached from a test; but `aimock` is a server's."""


def sse(*chunks: Any) -> bytes:
    """These responses, as Google sends them."""
    return b"".join(b"data: %b\r\n\r\n" % jsonlib.dumps(chunk).encode() for chunk in chunks)


def asked(provider: Provider, request: ModelRequest, http: Http) -> list[StreamPart]:
    """Everything that the provider yields."""

    async def main() -> list[StreamPart]:
        return [part async for part in provider.stream(request, http)]

    return asyncio.run(main())
