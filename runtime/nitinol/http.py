"""HTTP for providers: one pool of connections, server-sent events, and a typed error for every failure.

The only module that imports httpx, and only when the first request is made. The data goes one way: `HttpPool` owns the
clients, `Http` is one attempt's view of the pool, `Http.sse` sends one request, `SseParser` cuts its bytes into events.
Between the two last is the one seam, `HttpPool.send`: whoever has put itself there (`tap`) sees each request, and answers it or
lets it pass.
"""

from __future__ import annotations

import asyncio
import base64
import json as jsonlib
import math
import os
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from nitinol import errors
from nitinol.errors import ConfigurationError, MalformedResponse, ProviderError, ProviderTimeout
from nitinol.http_errors import Classify, complete, error_message, status_error
from nitinol.sse import MAX_BYTES, SseParser

if TYPE_CHECKING:
    import httpx

Transport = Literal["aiohttp", "httpx"]

# A connection that waits to be used again may be closed under the next request, and idle ones cost httpx's own pool dear
# (500 streams: 11.7 ms of CPU each against 5.6). Only a TLS handshake is worth that: plain http uses each once.
_KEPT = 20
_MOST = 100_000
_LINGER = 0.25  # seconds in which a body must end after its last event, for the connection to be used again
_ERROR_BYTES = 2**16
_TLS_SETTING = re.compile(r" ssl:(?:\w+|<[^>]*>)(?= \[)")


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. Header names are as the provider wrote them."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None


class Answer(Protocol):
    """The head of an answer, and the way to its body."""

    status_code: int
    headers: Mapping[str, str]
    """By names in lower case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, without its transfer and content encodings. Once."""
        ...

    async def aclose(self) -> None:
        """Close the connection, if its body was not read to the end."""
        ...


Send: TypeAlias = Callable[[Request], Awaitable[Answer]]
Tap: TypeAlias = Callable[[Request, Send], Awaitable[Answer]]
"""Stands between `Http` and the network: it is given each request, and what would send it. On any runtime's I/O loop."""


@contextmanager
def tap(by: Tap) -> Generator[None, None, None]:
    """Put somebody between all pools of the process and their networks; who comes last comes first. For `recording`."""
    _taps.append(by)
    try:
        yield
    finally:
        _taps.remove(by)


class HttpPool:
    """Owns the clients and their connections. Made anywhere; used and closed on the runtime's I/O loop only.

    There is a client for each scheme and host, so that one vendor's connections slow no other's; they share one TLS context.

    Args:
        transport: What carries httpx's requests. None takes `NITINOL_HTTP_TRANSPORT`, else aiohttp where `httpx-aiohttp`
            is installed. Both keep every promise made here, by the same tests; aiohttp is the default as a whole run takes
            between half and two thirds of the CPU on it (`make bench ARGS=cpu_per_run`).
        connections: Most at a time; further requests wait, first come, first served, and that counts as no stall. None =
            as many as the system lets the process have open files, less what others need.

    Proxies come from the usual variables: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in lower case.
    Certificates are those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, else certifi's. Both are read when a host is first spoken to.

    Raises:
        ConfigurationError: There is no such transport.
    """

    def __init__(self, *, transport: Transport | None = None, connections: int | None = None) -> None:
        chosen = transport or os.environ.get("NITINOL_HTTP_TRANSPORT") or None
        if chosen not in (None, "aiohttp", "httpx"):
            raise ConfigurationError(f"HTTP transport {chosen!r} must be 'aiohttp' or 'httpx' (NITINOL_HTTP_TRANSPORT)")
        self.transport = chosen or ("aiohttp" if find_spec("httpx_aiohttp") else "httpx")
        self.free = asyncio.Semaphore(connections or _most_connections())
        """Connections that may still be opened."""
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._context: ssl.SSLContext | None = None
        self._lock = asyncio.Lock()

    def session(self, *, stall: float = 60.0, timeout: float | None = None) -> Http:
        """One attempt's view of the pool.

        Args:
            stall: Seconds without a byte after which the attempt fails.
            timeout: Seconds from now after which it fails, whatever comes; None = never.
        """
        return Http(self, stall=stall, timeout=timeout)

    async def send(self, request: Request) -> Answer:
        """Send a request; the head of its answer has come."""
        return await (_taps[-1](request, self._send) if _taps else self._send(request))

    async def client(self, url: str) -> httpx.AsyncClient:
        """The client for this address; the first call imports httpx, on a thread."""
        origin = "/".join(url.split("/", 3)[:3])
        if origin not in self._clients:
            async with self._lock:
                if origin not in self._clients:
                    # Imports and certificates take 0.1-0.4 s; actors live on this loop.
                    self._clients[origin] = await asyncio.to_thread(self._make_client, origin)
        return self._clients[origin]

    async def aclose(self) -> None:
        """Close every connection; streams that are open fail."""
        async with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
            for client in clients:
                await client.aclose()

    async def _send(self, request: Request) -> Answer:
        client = await self.client(request.url)
        made = client.build_request(request.method, request.url, headers=request.headers, content=request.body)
        return _Live(await client.send(made, stream=True))

    def _make_client(self, origin: str) -> httpx.AsyncClient:
        import httpx

        secure, address = _is_secure(origin), _proxy(origin)
        # One without certificates trusts nobody.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if secure or (address and _is_secure(address)):
            # 23 ms, so one for all, and none where no TLS is spoken
            context = self._context = self._context or _certificates()
        proxy = None
        if address:
            address, credentials = _without_user(address, {})
            if self.transport == "httpx":  # aiohttp makes a `proxy-authorization` of it, wherever one belongs
                credentials = {f"proxy-{name}": value for name, value in credentials.items()}
            ours = context if _is_secure(address) else None
            proxy = httpx.Proxy(address, ssl_context=ours, headers=dict(credentials))
        return httpx.AsyncClient(
            transport=_aiohttp_transport(context, secure, proxy)
            if self.transport == "aiohttp"
            else httpx.AsyncHTTPTransport(
                verify=context,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT if secure else 0),
                proxy=proxy,
            ),
            timeout=None,  # `_Watch` does it, alike for both transports
            trust_env=False,
            headers={
                "user-agent": "nitinol",
                "accept": "text/event-stream, application/json",
                "accept-encoding": "identity",
            },
        )


class _Live:
    """An answer from the network."""

    __slots__ = ("_response", "headers", "status_code")

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status_code = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> AsyncIterator[bytes]:
        response = self._response
        return response.aiter_bytes() if "content-encoding" in response.headers else response.aiter_raw()

    async def aclose(self) -> None:
        await self._response.aclose()


class Http:
    """One attempt's way to the network: stall, deadline and errors are taken care of."""

    def __init__(self, pool: HttpPool, *, stall: float = 60.0, timeout: float | None = None) -> None:
        self._pool = pool
        self._stall = stall
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout

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
        """Send a request; yield the data of each event of its answer as it comes.

        An answer that is JSON instead of a stream, from a server that knows no streaming, is yielded whole, as one item.
        Close the generator (`contextlib.aclosing`) to end it early: the connection is closed at once.

        Args:
            json: The body; None = no body.
            classify: Asked first for the error's type when the status is an error.
            until: The data after which nothing follows, such as `b"[DONE]"`; it is not yielded.

        Raises:
            ProviderError: Whatever fails, as the type that says whether to retry. No message holds a header's key.
            ConfigurationError: The variables name a proxy or certificates that cannot be used.
        """
        headers, given = headers or {}, url
        watch = _Watch(self._stall, self._deadline)
        answer: Answer | None = None
        free: asyncio.Semaphore | None = None
        try:
            url, headers = _without_user(url, headers)
            body = None if json is None else _encode(json)
            typed = body is None or _has(headers, "content-type")
            sent = headers if typed else {"content-type": "application/json", **headers}
            watch.resume(stalls=False)
            await self._pool.free.acquire()
            free = self._pool.free
            watch.resume()
            answer = await self._pool.send(Request(method, url, sent, body))
            if not 200 <= answer.status_code < 300:
                body = await _read(answer, _ERROR_BYTES, watch)
                refusal = status_error(answer.status_code, answer.headers, body, classify)
                if answer.status_code in (404, 405):  # a wrong model, or a wrong base URL
                    refusal.args = (f"{refusal} ({method} {_shown(url)})",)
                raise refusal
            kind = answer.headers.get("content-type", "").lower()
            if "json" in kind:
                whole = await _read(answer, MAX_BYTES + 1, watch)
                watch.pause()
                if len(whole) > MAX_BYTES:
                    raise MalformedResponse(f"the answer is longer than {MAX_BYTES} bytes")
                yield whole
                return
            if "html" in kind:
                text = error_message(await _read(answer, _ERROR_BYTES, watch))
                raise MalformedResponse(f"{method} {_shown(url)} answered with a page, not a stream: {text}")
            parser = SseParser()
            chunks = answer.chunks()
            async for chunk in chunks:
                watch.pause()
                for data in parser.feed(chunk):
                    if data == until:
                        if _is_secure(url):
                            await drain(chunks)
                        return
                    yield data
                watch.resume()
            watch.pause()
            for data in parser.close():
                if data != until:
                    yield data
        except asyncio.CancelledError:
            if not watch.is_to_blame():
                raise
            error = ProviderTimeout(f"{method} {_shown(url)}: {watch.reason}")
            raise complete(error, headers, given, *_told(answer)) from None
        except ConfigurationError:
            raise
        except ProviderError as error:
            raise complete(error, headers, given, *_told(answer)) from None
        except Exception as error:
            raise complete(_network_error(error, f"{method} {_shown(url)}"), headers, given, *_told(answer)) from None
        finally:
            watch.close()
            try:
                if answer is not None:
                    with suppress(Exception):  # the outcome is known; a connection that cannot be closed is gone
                        await answer.aclose()
            finally:
                if free is not None:
                    free.release()


async def drain(events: AsyncIterator[bytes]) -> None:
    """Read what is left of a stream after its last event, but only for a moment: its connection can be used again.

    For a provider that knows the end of its stream only when it has read it, so that `until=` cannot tell.
    """
    with suppress(Exception):
        async with asyncio.timeout(_LINGER):
            async for _ in events:
                pass


class _Watch:
    """Cancels the task that waits for the network when it has waited too long.

    One timer for a whole stream: a byte costs it two assignments. While the reader is elsewhere (paused), time does not
    count as a stall, and nothing is cancelled.
    """

    __slots__ = ("_cancelling", "_deadline", "_since", "_stall", "_task", "_timer", "reason")

    def __init__(self, stall: float, deadline: float) -> None:
        self.reason = ""
        self._stall = stall
        self._deadline = deadline
        self._since: float | None = None
        self._cancelling = 0
        self._task = asyncio.current_task()
        delay = max(0.0, min(stall, deadline - time.monotonic()))
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def resume(self, *, stalls: bool = True) -> None:
        """The task waits for the network from here on; or for its turn, which is no stall."""
        now = time.monotonic()
        self._since = now if stalls else math.inf
        self._task = asyncio.current_task()
        if now >= self._deadline:
            raise ProviderTimeout("the deadline has passed")

    def pause(self) -> None:
        """Something came."""
        self._since = None

    def close(self) -> None:
        self._since = None
        self._timer.cancel()

    def is_to_blame(self) -> bool:
        """Whether the cancellation that the task has just met is ours; then it is undone."""
        return bool(self.reason) and self._task is not None and self._task.uncancel() <= self._cancelling

    def _look(self) -> None:
        now = time.monotonic()
        stalled = (now if self._since is None else self._since) + self._stall
        due = min(stalled, self._deadline)
        if self._since is not None and now >= due and self._task is not None:
            self.reason = f"no byte for {self._stall:g} seconds" if due == stalled else "the deadline has passed"
            self._cancelling = self._task.cancelling()
            self._task.cancel()
        elif now < due:
            self._timer = asyncio.get_running_loop().call_later(min(due - now, self._stall), self._look)


def _aiohttp_transport(context: ssl.SSLContext, secure: bool, proxy: httpx.Proxy | None) -> httpx.AsyncBaseTransport:
    from aiohttp import ClientSession, DummyCookieJar, TCPConnector
    from httpx_aiohttp import AiohttpTransport

    def session() -> ClientSession:
        connector = TCPConnector(limit=0, ssl=context, force_close=not secure)
        return ClientSession(connector=connector, cookie_jar=DummyCookieJar())

    return AiohttpTransport(verify=context, proxy=proxy, client=session)


def _proxy(origin: str) -> str | None:
    """The proxy that the environment, or the system's settings, want for this address."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(origin)
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or proxy_bypass(parts.netloc):
        return None
    address = found if "://" in found else f"http://{found}"
    scheme = address.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        raise ConfigurationError(
            f"the proxy for {parts.scheme} is {_shown(address)!r}; it must be an http or https address: set"
            f" {parts.scheme.upper()}_PROXY or ALL_PROXY, or name {parts.hostname!r} in NO_PROXY"
        )
    return address


def _certificates() -> ssl.SSLContext:
    import certifi

    file, directory = os.environ.get("SSL_CERT_FILE") or None, os.environ.get("SSL_CERT_DIR") or None
    try:
        return ssl.create_default_context(cafile=file if file or directory else certifi.where(), capath=directory)
    except OSError as error:
        raise ConfigurationError(f"SSL_CERT_FILE={file!r} holds no certificates: {error}") from None


def _most_connections() -> int:
    """What the limit of open files allows, less a share for stores, pipes and others."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return _MOST
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if files == resource.RLIM_INFINITY else max(min(files - min(256, files // 2), _MOST), 1)


def _encode(json: Any) -> bytes:
    try:
        # A lone surrogate, from a file that is no UTF-8 for instance, must not fail the run for good.
        return jsonlib.dumps(json, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.InvalidRequest(f"the request cannot be written as JSON: {error}") from None


def _told(answer: Answer | None) -> tuple[int | None, Mapping[str, str]]:
    return (None, {}) if answer is None else (answer.status_code, answer.headers)


async def _read(answer: Answer, limit: int, watch: _Watch) -> bytes:
    body = b""
    async for chunk in answer.chunks():
        watch.resume()
        body += chunk
        if len(body) >= limit:
            break
    return body[:limit]


def _is_secure(url: str) -> bool:
    return url[:6].lower() == "https:"


def _without_user(url: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """The user of an address as a header, which is what it means: aiohttp refuses it beside other headers."""
    if "@" not in url:
        return url, headers
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, headers
    basic = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    signed = headers if _has(headers, "authorization") else {"authorization": basic, **headers}
    return parts._replace(netloc=host).geturl(), signed


def _has(headers: Mapping[str, str], name: str) -> bool:
    return name in map(str.lower, headers)


def _network_error(error: Exception, what: str) -> ProviderError:
    """A transport's exception as ours. The transports do not agree on their own types: all that is left is the network."""
    import httpx

    cls: type[ProviderError] = errors.ConnectionFailed
    if isinstance(error, httpx.DecodingError):
        cls = MalformedResponse
    elif isinstance(
        error, (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, ValueError, TypeError)
    ):
        cls = errors.InvalidRequest
    # aiohttp tells of its TLS settings, also where no TLS is spoken
    text = f"{what}: {_TLS_SETTING.sub('', str(error)) or type(error).__name__}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += "; SSL_CERT_FILE or SSL_CERT_DIR names an authority of your own"
    return cls(text)


def _shown(url: str) -> str:
    """An address without what may be secret: its query and its user."""
    return re.sub("//[^/]*@", "//", url.partition("?")[0])


_taps: list[Tap] = []
