"""HTTP for providers: one pool of connections, server-sent events, and a typed error for every failure.

The only module that imports httpx. (Under construction.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

Transport = Literal["aiohttp", "httpx"]


class HttpPool:
    """Owns the clients. Made and used on the runtime's I/O loop only."""

    def __init__(self, *, transport: Transport | None = None) -> None: ...

    def session(self, *, stall: float = 60.0, timeout: float | None = None) -> Http:
        """One attempt's view of the pool."""
        ...

    async def aclose(self) -> None: ...


class Http:
    """One attempt's way to the network: stall, deadline and errors are taken care of."""

    async def sse(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, json: Any = None
    ) -> AsyncIterator[bytes]:
        yield b""
