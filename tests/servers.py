"""A scripted HTTP server on loopback, for tests: any bytes, in any chunks, cut, stalled, or never sent."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """What a client sent. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Connection:
    """What a script may do with one request."""

    def __init__(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Write pieces, one packet for each."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def closed(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(ConnectionError):
            await self._reader.read()

    def reset(self) -> None:
        """Cut the connection without a goodbye."""
        self._writer.transport.abort()


Script = Callable[[Connection], Awaitable[bool | None]]
"""Answers one request; True keeps the connection open for the next."""


def head(status: int = 200, content_type: str = "text/event-stream", **headers: str) -> bytes:
    """A status line and headers; `retry_after="1"` is the header `retry-after`."""
    lines = [f"HTTP/1.1 {status} Scripted", f"content-type: {content_type}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def stream(*pieces: bytes, content_type: str = "text/event-stream", **headers: str) -> Script:
    """Send the pieces as a chunked body, whole and well ended; the connection can be used again."""

    async def script(connection: Connection) -> bool:
        await connection.send(head(200, content_type, transfer_encoding="chunked", **headers))
        await connection.send(*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece))
        await connection.send(b"0\r\n\r\n")
        return True

    return script


def answer(status: int = 200, body: Any = b"", content_type: str = "application/json", **headers: str) -> Script:
    """Send one body of known length: bytes as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def script(connection: Connection) -> bool:
        await connection.send(head(status, content_type, content_length=str(len(data)), **headers), data)
        return True

    return script


def cut(*pieces: bytes, **headers: str) -> Script:
    """Promise a chunked body, send the pieces, and cut the connection."""

    async def script(connection: Connection) -> None:
        await connection.send(head(200, "text/event-stream", transfer_encoding="chunked", **headers))
        await connection.send(*(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces))

    return script


@dataclass
class hang:
    """Send the pieces, then nothing more; `closed` is set when the client has gone."""

    pieces: Iterable[bytes] = ()
    closed: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, connection: Connection) -> None:
        await connection.send(*self.pieces)
        await connection.closed()
        self.closed.set()


class Server:
    """Answers each request with the next script, and with the last one from then on. Use it in `with`.

    Args:
        scripts: One for each request.
        keep: Whether `requests` is kept; a server of many thousands would fill its memory.
        tls: Speak TLS, with this context's certificate.

    Attributes:
        url: Its address, without a slash at the end.
        requests: What it was sent, in order.
        connections: How many were opened.
    """

    def __init__(self, *scripts: Script, keep: bool = True, tls: ssl.SSLContext | None = None) -> None:
        self._scripts = list(scripts)
        self._keep = keep
        self._tls = tls
        self.requests: list[Request] = []
        self.connections = 0
        self.url = ""

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="test-server", daemon=True)
        self._thread.start()
        assert ready.wait(10), "the test server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _main(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None] | None] = set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=4096, ssl=self._tls)
        self.url = f"http{'s' * bool(self._tls)}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await self._stop.wait()
        server.close()
        for _ in range(5):  # whose connection has just been accepted gets a task to cancel
            await asyncio.sleep(0)
        tasks = [task for task in self._tasks if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(task := asyncio.current_task())
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            if self._tls:  # to say goodbye in TLS takes two; nothing may be left of it when the loop ends
                with suppress(Exception):
                    async with asyncio.timeout(1.0):
                        await writer.wait_closed()
                writer.transport.abort()
            self._tasks.discard(task)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, path, headers, body)
        if self._keep:
            self.requests.append(request)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        goes_on = await script(Connection(request, reader, writer))
        return bool(goes_on) and headers.get("connection") != "close"
