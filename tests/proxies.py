"""A forward proxy on loopback, for tests: plain HTTP by absolute address, and tunnels by CONNECT."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from urllib.parse import urlsplit

from tests.servers import Server, answer


class Proxy(Server):
    """Forwards what it is asked to, and keeps the books. Use it in `with`.

    Args:
        authorization: What it wants to be told in `proxy-authorization`; None = nothing.
        tls: Speak TLS with its clients.

    Attributes:
        asked: Each request line that it was sent, such as `CONNECT localhost:443`.
        authorizations: What stood in `proxy-authorization`, of each.
    """

    def __init__(self, authorization: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(answer(), tls=tls)
        self._wanted = authorization
        self.asked: list[str] = []
        self.authorizations: list[str | None] = []

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, version = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.asked.append(f"{method} {target}")
        self.authorizations.append(headers.get("proxy-authorization"))
        if self._wanted is not None and headers.get("proxy-authorization") != self._wanted:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            return False
        parts = urlsplit(target if "://" in target else f"//{target}")
        # Names stand for this machine: a proxy finds hosts for itself, and nobody else may.
        there, away = await asyncio.open_connection("127.0.0.1", parts.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            kept = [line for line in lines if not line.lower().startswith("proxy-")]
            path = parts._replace(scheme="", netloc="").geturl() or "/"
            away.write("\r\n".join([f"{method} {path} {version}", *kept, "", ""]).encode("latin-1"))
        try:
            await asyncio.gather(_pump(reader, away), _pump(there, writer))
        finally:
            away.transport.abort()
        return False


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
