"""The HTTP layer: the SSE parser, and one attempt's way through either transport."""

from __future__ import annotations

import asyncio
import base64
import codecs
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given
from hypothesis import strategies as st
from tests.logs_of import SOON
from tests.proxies import Proxy
from tests.servers import Connection, Script, Server, answer, cut, hang, head, stream

from nitinol import errors
from nitinol.errors import ConfigurationError, MalformedResponse, ProviderError
from nitinol.http import Http, HttpPool, Transport
from nitinol.http_errors import error_message, status_error
from nitinol.sse import SseParser


class Authority:
    """Signs certificates for servers of tests; whoever trusts its `file` or `directory` trusts them."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.file, self.directory = str(directory / "authority.pem"), str(directory)
        self._authority.cert_pem.write_to_path(self.file)

    def hash(self) -> None:
        """Have OpenSSL find it in its directory: there it looks for a hash of the subject."""
        if not shutil.which("openssl"):
            pytest.skip("there is no openssl to hash the name of a certificate")
        asked = ["openssl", "x509", "-hash", "-noout", "-in", self.file]
        name = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        with suppress(FileExistsError):
            Path(self.directory, f"{name}.0").symlink_to(self.file)

    def server(self, name: str) -> ssl.SSLContext:
        """What a server of this name needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(name).configure_cert(context)  # pyright: ignore[reportUnknownMemberType] # it takes a pyOpenSSL context too
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody knows."""
    return Authority(tmp_path_factory.mktemp("authority"))


TWO = (b"data: one\n\n", b"data: two\n\n")


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Every promise of `Http` holds on both transports."""
    chosen: Transport = request.param
    return chosen


def parse(*chunks: bytes) -> list[bytes]:
    parser = SseParser()
    found = [data for chunk in chunks for data in parser.feed(chunk)]
    return found + parser.close()


def by_httpx_sse(stream: bytes) -> list[bytes]:
    """What httpx-sse makes of it, without its events that have no data, which the standard does not dispatch."""
    lines, events = SSELineDecoder(), SSEDecoder()
    text = codecs.decode(stream, "utf-8")
    found = [events.decode(line) for line in [*lines.decode(text), *lines.flush()]] if text else []
    return [event.data.encode() for event in found if event is not None]


def read(transport: Transport, script: Script, **options: Any) -> list[bytes]:
    """The events of one request to a server with this script; if it hangs, until it has seen the client go."""
    with Server(script) as server:
        try:
            return fetch(transport, server.url, **options)
        finally:
            if isinstance(script, hang) and server.requests:
                assert script.closed.wait(5), "the connection stayed open"


def fetch(
    transport: Transport, url: str, *, stall: float = 10.0, timeout: float | None = None, **options: Any
) -> list[bytes]:
    async def work(http: Http) -> list[bytes]:
        return [data async for data in http.sse("POST", url, **options)]

    found: list[bytes] = run(transport, lambda pool: work(pool.session(stall=stall, timeout=timeout)))
    return found


def run(transport: Transport, work: Callable[[HttpPool], Any]) -> Any:
    async def main() -> Any:
        pool = HttpPool(transport=transport)
        try:
            return await work(pool)
        finally:
            await pool.aclose()
            await _let_go()

    return asyncio.run(main())


async def _let_go() -> None:
    """Wait until every socket of this loop is closed: TLS says goodbye to the other side first, after all else has ended."""
    loop: Any = asyncio.get_running_loop()
    until = loop.time() + SOON
    while len(loop._selector.get_map()) > 1 and loop.time() < until:  # one is the loop's own
        await asyncio.sleep(0)


def failure(transport: Transport, script: Script, **options: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        read(transport, script, **options)
    return caught.value


class TestParser:
    """parity: P10"""

    @pytest.mark.parametrize(
        ("stream", "events"),
        [
            (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
            (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
            (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
            (b"data: a\n\r\ndata: b\r\n\n", [b"a", b"b"]),
            (b"data:a\n\n", [b"a"]),
            (b"data:  a\n\n", [b" a"]),
            (b"data: a\ndata: b\ndata\ndata:c\n\n", [b"a\nb\n\nc"]),
            (b": hello\n\ndata: a\n\n:\n\n", [b"a"]),
            (b"event: x\nid: 7\nretry: 9\ndata: a\n\nevent: y\n\n", [b"a"]),
            (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
            (b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
            (b"data:\n\n", [b""]),
            (b"database: no\nxdata: no\n\n", []),
            ("data: na\u2028\u0085ïve 😀\n\n".encode(), ["na\u2028\u0085ïve 😀".encode()]),
            (b"data: [DONE]", [b"[DONE]"]),
            (b"data: a\n\ndata: b\n", [b"a", b"b"]),
            (b"", []),
        ],
    )
    def test_an_event_is_the_same_however_it_is_cut(self, stream: bytes, events: list[bytes]) -> None:
        """Any bytes, split at any byte, give the same data."""
        assert parse(stream) == events
        assert parse(*(stream[at : at + 1] for at in range(len(stream)))) == events
        for at in range(len(stream)):
            assert parse(stream[:at], b"", stream[at:]) == events

    @given(
        st.lists(st.sampled_from([b"data: x", b"data:y", b"data", b": c", b"event: e", b"z", b"\n", b"\r", b"\r\n"])),
        st.lists(st.integers(0, 200)),
    )
    def test_any_mix_of_lines_is_read_as_httpx_sse_reads_it(self, pieces: list[bytes], cuts: list[int]) -> None:
        """Both follow the standard; ours also gives an event that the end of the stream ends."""
        stream = b"".join(pieces)
        places = sorted(min(at, len(stream)) for at in cuts)
        chunks = [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]
        whole = stream + b"\n\n"
        assert [data for data in parse(whole) if data] == [data for data in by_httpx_sse(whole) if data]
        assert parse(*chunks) == parse(whole)

    def test_a_mebibyte_is_read_in_time_proportional_to_it(self) -> None:
        """No quadratic scan: 16 times the bytes, in tiny chunks, do not take 100 times as long."""

        def seconds(size: int) -> float:
            event = b"data: " + b"x" * size + b"\n\n"
            chunks = [event[at : at + 64] for at in range(0, len(event), 64)]
            start = time.process_time()
            assert parse(*chunks) == [b"x" * size]
            return time.process_time() - start

        small = max(min(seconds(2**16) for _ in range(3)), 1e-4)
        assert seconds(2**20) < 100 * small

    def test_an_endless_event_is_refused(self) -> None:
        """A server cannot fill the memory."""
        parser = SseParser(limit=1000)
        parser.feed(b"data: " + b"x" * 900)
        with pytest.raises(MalformedResponse, match="1000 bytes"):
            parser.feed(b"x" * 900)


class TestStream:
    def test_events_come_as_they_are_sent(self, transport: Transport) -> None:
        assert read(transport, stream(*TWO), json={"ü": 1}) == [b"one", b"two"]

    def test_the_request_is_compact_json_with_the_callers_headers(self, transport: Transport) -> None:
        with Server(stream(*TWO)) as server:
            fetch(
                transport, server.url + "/v1/x?y=1", json={"a": "ü", "b": [1]}, headers={"authorization": "Bearer key"}
            )
        (request,) = server.requests
        assert request.body == '{"a":"ü","b":[1]}'.encode()
        assert (request.method, request.path) == ("POST", "/v1/x?y=1")
        assert request.headers["authorization"] == "Bearer key"
        assert request.headers["content-type"] == "application/json"

    def test_a_lone_surrogate_does_not_stop_a_request(self, transport: Transport) -> None:
        """Text from a file that is no UTF-8 would otherwise fail the run for good."""
        with Server(stream(*TWO)) as server:
            fetch(transport, server.url, json={"a": "x\udc80y"})
        assert server.requests[0].json == {"a": "x?y"}

    def test_what_is_no_json_is_the_callers_mistake(self, transport: Transport) -> None:
        assert isinstance(failure(transport, stream(*TWO), json={"a": object()}), errors.InvalidRequest)

    def test_a_whole_json_answer_is_one_item(self, transport: Transport) -> None:
        """Some servers know no streaming."""
        assert read(transport, answer(200, {"a": 1}), json={}) == [b'{"a": 1}']

    def test_a_page_is_no_answer(self, transport: Transport) -> None:
        """A proxy's login page, with status 200."""
        error = failure(transport, answer(200, b"<h1>Log in</h1>", "text/html"))
        assert isinstance(error, MalformedResponse)
        assert "Log in" in str(error)

    def test_the_last_data_ends_the_stream_though_the_server_lingers(self, transport: Transport) -> None:
        script = hang([head(connection="close"), b"data: one\n\n", b"data: [DONE]\n\n"])
        assert read(transport, script, until=b"[DONE]") == [b"one"]
        assert script.closed.wait(5)

    def test_closing_the_generator_closes_the_connection(self, transport: Transport) -> None:
        script = hang([head(connection="close"), b"data: one\n\n"])

        async def work(pool: HttpPool) -> None:
            async with aclosing(pool.session().sse("POST", server.url)) as events:
                assert await anext(events) == b"one"
            assert await asyncio.to_thread(script.closed.wait, 5), "the connection stayed open"

        with Server(script) as server:
            run(transport, work)

    def test_cancelling_the_reader_closes_the_connection(self, transport: Transport) -> None:
        """Also while the headers are awaited; and it is a cancellation, not a timeout."""
        for pieces in ([], [head(connection="close")]):
            script, asked = hang(pieces), threading.Event()

            async def serve(connection: Connection, script: hang = script, asked: threading.Event = asked) -> None:
                asked.set()
                await script(connection)

            async def work(pool: HttpPool, url: str, script: hang = script, asked: threading.Event = asked) -> None:
                task = asyncio.ensure_future(collect(pool.session().sse("POST", url)))
                await asyncio.to_thread(asked.wait, 5)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(script.closed.wait, 5), "the connection stayed open"

            with Server(serve) as server:
                run(transport, partial(work, url=server.url))

    def test_five_hundred_streams_at_once_lose_nothing(self, transport: Transport) -> None:
        """encode/httpcore#1110 must not reach us."""
        waiting = 0

        async def serve(connection: Connection) -> bool:
            nonlocal waiting
            waiting += 1
            while waiting < 500:  # answers only when all are connected
                await asyncio.sleep(0.01)
            return bool(await stream(*TWO)(connection))

        async def work(pool: HttpPool) -> list[list[bytes]]:
            return await asyncio.gather(*(collect(pool.session().sse("POST", server.url)) for _ in range(500)))

        with Server(serve) as server:
            assert run(transport, work) == [[b"one", b"two"]] * 500

    def test_two_attempts_need_no_connection_of_before(self, transport: Transport) -> None:
        """Over plain http no connection is used twice: one that the server has just closed would fail the request."""

        async def work(pool: HttpPool) -> None:
            for _ in range(3):
                assert await collect(pool.session().sse("POST", server.url)) == [b"one", b"two"]

        with Server(stream(*TWO)) as server:
            run(transport, work)
        assert server.connections == 3


class TestErrors:
    """parity: P9, R1"""

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, errors.InvalidRequest),
            (401, errors.AuthenticationFailed),
            (403, errors.AuthenticationFailed),
            (404, errors.InvalidRequest),
            (408, errors.ServerError),
            (413, errors.InvalidRequest),
            (422, errors.InvalidRequest),
            (429, errors.RateLimited),
            (500, errors.ServerError),
            (502, errors.ServerError),
            (503, errors.Overloaded),
            (504, errors.ServerError),
            (529, errors.Overloaded),
        ],
    )
    def test_a_status_is_a_type(self, transport: Transport, status: int, kind: type[ProviderError]) -> None:
        error = failure(transport, answer(status, {"error": {"message": "why"}}, x_request_id="req-7"))
        assert type(error) is kind
        assert str(error).startswith(f"HTTP {status}: why")
        assert (error.status_code, error.request_id) == (status, "req-7")

    def test_a_redirect_is_not_followed(self, transport: Transport) -> None:
        """It would take the key elsewhere; nor is it tried again. Where it points to is shown without its secrets."""
        error = failure(transport, answer(302, location="https://me:word@example.org/v1?key=word"))
        assert type(error) is errors.InvalidRequest
        assert (
            str(error)
            == "HTTP 302: the server points to https://example.org/v1, which is not followed; check base_url="
        )

    @pytest.mark.parametrize(
        ("location", "place"),
        [
            ("https://example.org:8443/v1?state=a@SECRET", "https://example.org:8443/v1"),
            ("https://example.org/#access_token=SECRET", "https://example.org/"),
            ("//SECRET@example.org/v1;id=SECRET", "//example.org/v1"),
            ("/v1/?k=SECRET", "/v1/"),
            ("https://example.org/a,https://me:SECRET@example.org", "https://example.org"),
            ("https://example.org/" + "SECRET" * 99, "https://example.org"),
            ("https://" + "SECRET" * 99, "another address"),
            ("https://me:SECRET", "another address"),
            ("https://[SECRET", "another address"),
            ("me:SECRET@example.org", "another address"),
            ("SECRET", "another address"),
        ],
    )
    def test_of_where_a_redirect_points_to_only_the_place_is_shown(self, location: str, place: str) -> None:
        error = status_error(307, {"location": location}, b"", None)
        assert str(error) == f"HTTP 307: the server points to {place}, which is not followed; check base_url="

    @pytest.mark.parametrize(("status", "body"), [(300, {"error": "choose a model"}), (304, None)])
    def test_a_status_that_points_nowhere_says_what_its_body_says(
        self, transport: Transport, status: int, body: Any
    ) -> None:
        error = failure(transport, answer(status, *([body] if body else [])))
        assert type(error) is errors.InvalidRequest
        assert str(error) == f"HTTP {status}: {body['error'] if body else errors.InvalidRequest.summary}"

    @pytest.mark.parametrize("status", [404, 405])
    def test_where_nothing_is_the_address_is_named(self, transport: Transport, status: int) -> None:
        """Most often a base URL has a `/v1` too many, or too few; it is shown without user and query."""

        async def work(pool: HttpPool) -> None:
            url = f"{server.url.replace('//', '//user:word@')}/v1/v1/messages?key=word"
            with pytest.raises(errors.InvalidRequest) as caught:
                await collect(pool.session().sse("POST", url))
            assert str(caught.value) == f"HTTP {status}: File Not Found (POST {server.url}/v1/v1/messages)"

        with Server(answer(status, {"error": {"message": "File Not Found"}})) as server:
            run(transport, work)

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ({"error": {"message": "m", "code": 400}}, "m"),
            ({"error": "e"}, "e"),
            ({"message": "m"}, "m"),
            ({"detail": [{"msg": "field required"}]}, "field required"),
            ([{"error": {"message": "in a list"}}], "in a list"),
            ({"code": 7}, '{"code": 7}'),
            (b"<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"),
            (b"{broken", "{broken"),
            (b"x" * 2000, "x" * 500),
            (b"\xff\xfe", "\ufffd\ufffd"),
        ],
    )
    def test_the_text_of_an_error_is_found_in_any_shape(self, body: Any, text: str) -> None:
        assert error_message(body) == text

    def test_a_body_that_is_no_json_is_the_message(self, transport: Transport) -> None:
        assert str(failure(transport, answer(502, b"bad gateway", "text/html"))) == "HTTP 502: bad gateway"

    def test_an_empty_error_body_still_says_something(self, transport: Transport) -> None:
        assert str(failure(transport, answer(529))) == "HTTP 529: the provider is overloaded"

    def test_a_vendors_table_comes_first(self, transport: Transport) -> None:
        def classify(status: int, text: str) -> type[ProviderError] | None:
            return errors.ContextOverflow if status == 400 and "too long" in text else None

        assert isinstance(
            failure(transport, answer(400, {"error": "too long"}), classify=classify), errors.ContextOverflow
        )
        assert isinstance(failure(transport, answer(400, {"error": "no"}), classify=classify), errors.InvalidRequest)

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry_after": "7"}, 7.0),
            ({"retry_after": "0.5"}, 0.5),
            ({"retry_after": "-3"}, 0.0),
            ({"retry_after": "soon"}, None),
            ({"retry_after": "nan"}, None),
            ({"retry_after": "7", "retry_after_ms": "250"}, 0.25),
            ({"x_ratelimit_reset_requests": "1m0.5s", "x_ratelimit_remaining_requests": "0"}, 60.5),
            ({"x_ratelimit_reset_requests": "6m", "x_ratelimit_remaining_requests": "9"}, None),
            ({"x_ratelimit_reset_tokens": "120ms"}, 0.12),
            ({}, None),
        ],
    )
    def test_a_rate_limit_says_when_to_come_back(self, headers: dict[str, str], seconds: float | None) -> None:
        assert failure("httpx", answer(429, **headers)).retry_after == seconds

    def test_a_date_says_when_to_come_back(self) -> None:
        wait = failure("httpx", answer(503, retry_after=formatdate(time.time() + 30, usegmt=True))).retry_after
        assert wait is not None
        assert 25 < wait <= 30

    def test_a_time_in_milliseconds_says_when_to_come_back(self) -> None:
        """OpenRouter's X-RateLimit-Reset."""
        wait = failure("httpx", answer(429, x_ratelimit_reset=str(int((time.time() + 30) * 1000)))).retry_after
        assert wait is not None
        assert 25 < wait <= 30

    @pytest.mark.parametrize("headers", [{"Authorization": "Bearer sk-secret"}, {"x-api-key": "sk-secret"}])
    def test_no_message_holds_the_key(self, transport: Transport, headers: dict[str, str]) -> None:
        """Even where the server echoes it."""
        error = failure(transport, answer(401, {"error": "wrong key sk-secret (Bearer sk-secret)"}), headers=headers)
        assert "sk-secret" not in str(error)
        assert "wrong key [key] (" in str(error)

    def test_a_key_that_is_no_header_is_not_shown(self, transport: Transport) -> None:
        error = failure(transport, stream(*TWO), headers={"authorization": "Bearer sk-secret\nx"})
        assert "sk-secret" not in repr(error)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_a_refused_connection_is_retryable(self, transport: Transport, scheme: str) -> None:
        with Server(stream()) as server:
            url = server.url.replace("http://", f"{scheme}://user:pass@")
        with pytest.raises(errors.ConnectionFailed) as caught:
            fetch(transport, url + "?key=secret")
        assert caught.value.retryable
        assert "secret" not in str(caught.value)
        assert "user:pass" not in str(caught.value)
        assert " ssl:" not in str(caught.value)  # a setting of the transport's

    def test_a_user_in_the_address_is_sent_as_a_header(self, transport: Transport) -> None:
        """And stands in no message."""
        with Server(stream(*TWO)) as server:
            fetch(transport, server.url.replace("//", "//us%40er:pass@"))
        assert server.requests[0].headers["authorization"] == "Basic dXNAZXI6cGFzcw=="

    def test_an_address_that_is_none_is_the_callers_mistake(self, transport: Transport) -> None:
        for url in ("ftp://127.0.0.1/", "http://", "http://user:pass@[::1/", "nonsense"):
            with pytest.raises(errors.InvalidRequest):
                fetch(transport, url)

    def test_a_cut_stream_is_retryable(self, transport: Transport) -> None:
        seen: list[bytes] = []

        async def work(pool: HttpPool) -> None:
            async for data in pool.session().sse("POST", server.url):
                seen.append(data)

        with Server(cut(*TWO, x_request_id="req-9")) as server, pytest.raises(errors.ConnectionFailed) as caught:
            run(transport, work)
        assert seen == [b"one", b"two"]
        assert caught.value.request_id == "req-9"

    def test_a_reset_before_the_headers_is_retryable(self, transport: Transport) -> None:
        async def script(connection: Connection) -> None:
            connection.reset()

        assert type(failure(transport, script)) is errors.ConnectionFailed

    def test_what_is_no_http_is_retryable(self, transport: Transport) -> None:
        async def script(connection: Connection) -> None:
            await connection.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

        assert failure(transport, script).retryable


class TestTime:
    """parity: R3"""

    @pytest.mark.parametrize("pieces", [[], [head(connection="close")], [head(connection="close"), *TWO]])
    def test_a_stall_is_a_timeout_and_closes_the_connection(self, transport: Transport, pieces: list[bytes]) -> None:
        """Before the headers, after them, and in mid-stream."""
        script = hang(pieces)
        error = failure(transport, script, stall=0.4)
        assert type(error) is errors.ProviderTimeout
        assert "no byte for 0.4 seconds" in str(error)
        assert script.closed.is_set()

    @pytest.mark.parametrize(
        "pieces",
        [
            [head(connection="close"), b"data: on"],
            [head(connection="close"), *TWO, b": a comment\n"],
            [head(200, "application/json", connection="close"), b'{"half": '],
            [head(503, "application/json", content_length="100"), b'{"half": '],
            [b"HTTP/1.1 200 OK\r\ncontent-type: text/ev"],
        ],
        ids=["event", "comment", "json", "error", "headers"],
    )
    def test_a_stall_in_the_middle_of_anything_is_a_timeout(self, transport: Transport, pieces: list[bytes]) -> None:
        """Half an event, a whole answer, the body of an error, half of the headers."""
        script = hang(pieces)
        error = failure(transport, script, stall=0.4)
        assert type(error) is errors.ProviderTimeout
        assert error.retryable
        assert "no byte for 0.4 seconds" in str(error)
        assert script.closed.is_set()

    def test_a_handshake_that_stalls_is_a_timeout(self) -> None:
        """A server that takes the connection and says nothing of TLS.

        Of the stock transport this holds too, but httpcore leaves the socket to the garbage collector, which warns of it.
        """
        with Server(hang()) as server, pytest.raises(errors.ProviderTimeout, match=r"no byte for 0\.3 seconds"):
            fetch("aiohttp", server.url.replace("http:", "https:"), stall=0.3)

    def test_each_byte_begins_the_stall_anew(self, transport: Transport) -> None:
        """Not the whole answer must come within it, nor a whole event."""

        async def script(connection: Connection) -> None:
            await connection.send(head(connection="close"))
            for byte in b"data: slow\n\n":
                await asyncio.sleep(0.06)
                await connection.send(bytes([byte]))

        assert read(transport, script, stall=0.5) == [b"slow"]

    def test_bytes_of_any_kind_are_no_stall(self, transport: Transport) -> None:
        """A comment keeps the stream alive."""

        async def script(connection: Connection) -> None:
            await connection.send(head(connection="close"))
            for _ in range(6):
                await asyncio.sleep(0.1)
                await connection.send(b": still here\n\n")
            await connection.send(*TWO)

        assert read(transport, script, stall=0.4) == [b"one", b"two"]

    def test_the_deadline_ends_a_stream_that_flows(self, transport: Transport) -> None:
        async def script(connection: Connection) -> None:
            await connection.send(head(connection="close"))
            while True:
                await connection.send(b"data: more\n\n")
                await asyncio.sleep(0.01)

        error = failure(transport, script, timeout=0.2)
        assert type(error) is errors.ProviderTimeout
        assert "deadline" in str(error)

    @pytest.mark.parametrize(
        ("begin", "stall"),
        [(head(connection="close"), 1.0), (b"HTTP/1.1 200 OK\r\nx-slow: ", 5.0)],
        ids=["body", "head"],
    )
    def test_the_deadline_ends_what_trickles(self, transport: Transport, begin: bytes, stall: float) -> None:
        """A byte now and then, none late enough for a stall, and no event that ever ends."""
        gone = threading.Event()

        async def script(connection: Connection) -> None:
            await connection.send(begin)
            closed = asyncio.ensure_future(connection.closed())
            while not (await asyncio.wait([closed], timeout=0.5))[0]:
                with suppress(ConnectionError):
                    await connection.send(b"x")
            gone.set()

        with Server(script) as server:
            began = time.monotonic()
            with pytest.raises(errors.ProviderTimeout, match="deadline"):
                fetch(transport, server.url, stall=stall, timeout=1.8)
            assert time.monotonic() - began >= 1.7
            assert gone.wait(5), "the connection stayed open"

    def test_a_reader_that_takes_its_time_is_no_stall(self, transport: Transport) -> None:
        """Only waiting for the network counts."""

        async def work(pool: HttpPool) -> list[bytes]:
            seen: list[bytes] = []
            async for data in pool.session(stall=0.4).sse("POST", server.url):
                await asyncio.sleep(0.6)
                seen.append(data)
            return seen

        with Server(stream(*TWO)) as server:
            assert run(transport, work) == [b"one", b"two"]

    def test_a_deadline_that_has_passed_sends_nothing(self, transport: Transport) -> None:
        with Server(stream(*TWO)) as server, pytest.raises(errors.ProviderTimeout):
            fetch(transport, server.url, timeout=0.0)
        assert server.requests == []

    def test_a_timeout_leaves_no_cancellation_behind(self, transport: Transport) -> None:
        """The task goes on, and may be cancelled by others as before."""

        async def work(pool: HttpPool) -> int:
            with pytest.raises(errors.ProviderTimeout):
                await collect(pool.session(stall=0.05).sse("POST", server.url))
            task = asyncio.current_task()
            assert task is not None
            return task.cancelling()

        with Server(hang()) as server:
            assert run(transport, work) == 0


class TestPool:
    def test_the_variable_chooses_the_transport(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NITINOL_HTTP_TRANSPORT", raising=False)
        assert HttpPool().transport == "aiohttp"
        monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", "httpx")
        assert HttpPool().transport == "httpx"
        assert HttpPool(transport="aiohttp").transport == "aiohttp"
        monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", "carrier-pigeon")
        with pytest.raises(ConfigurationError, match="carrier-pigeon"):
            HttpPool()

    def test_there_is_one_client_for_each_host(self, transport: Transport) -> None:
        """Whatever the path; a host is a scheme, a name and a port."""

        async def work(pool: HttpPool) -> list[Any]:
            urls = ["http://a.invalid/v1", "http://a.invalid/v2?x", "http://a.invalid:81/v1", "https://a.invalid/v1"]
            return [await pool.client(url) for url in urls]

        one, same, port, scheme = run(transport, work)
        assert one is same
        assert len({id(each) for each in (one, port, scheme)}) == 3

    def test_importing_nitinol_imports_no_http_library(self) -> None:
        """They take 0.3 s; a definition needs none."""
        code = "import sys, nitinol.http; sys.exit('httpx' in sys.modules or 'aiohttp' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestLimits:
    def test_no_more_connections_than_allowed_and_who_waits_does_not_stall(self, transport: Transport) -> None:
        """Those who wait for a connection come in turn; only the network's silence is a stall."""
        at_once = most = 0

        async def serve(connection: Connection) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await connection.send(head(connection="close"), TWO[0])
            await asyncio.sleep(0.15)
            await connection.send(TWO[1])
            at_once -= 1

        async def main() -> list[list[bytes]]:
            pool = HttpPool(transport=transport, connections=3)
            try:
                return await asyncio.gather(
                    *(collect(pool.session(stall=0.5).sse("POST", server.url)) for _ in range(18))
                )
            finally:
                await pool.aclose()

        with Server(serve) as server:
            assert asyncio.run(main()) == [[b"one", b"two"]] * 18
        assert most == 3

    def test_the_deadline_counts_while_a_connection_is_waited_for(self, transport: Transport) -> None:
        """parity: R3"""

        async def main() -> None:
            pool = HttpPool(transport=transport, connections=1)
            try:
                async with aclosing(pool.session().sse("POST", server.url)) as first:
                    assert await anext(first) == b"one"
                    with pytest.raises(errors.ProviderTimeout, match="deadline"):
                        await collect(pool.session(timeout=0.2).sse("POST", server.url))
                script.closed.wait(5)
                with pytest.raises(errors.ProviderTimeout, match="no byte"):  # the connection is free again
                    await collect(pool.session(stall=0.2).sse("POST", server.url))
            finally:
                await pool.aclose()

        script = hang([head(connection="close"), TWO[0]])
        with Server(script) as server:
            asyncio.run(main())
        assert len(server.requests) == 2

    def test_each_way_to_end_gives_the_connection_back(self, transport: Transport) -> None:
        async def main(url: str) -> None:
            pool = HttpPool(transport=transport, connections=1)
            try:
                for address in (url, "nonsense", url, url):
                    with suppress(ProviderError):
                        await collect(pool.session().sse("POST", address))
                task = asyncio.ensure_future(collect(pool.session().sse("POST", url)))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert not pool.free.locked()
            finally:
                await pool.aclose()

        with Server(answer(500), cut(*TWO), stream(*TWO)) as server:
            asyncio.run(main(server.url))

    def test_by_default_the_limit_of_open_files_is_kept(self) -> None:
        """A process with few files waits; without the limit its requests would fail."""
        code = """if True:
            import asyncio, resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
            from nitinol.http import HttpPool

            async def one(pool):
                return [data async for data in pool.session().sse("POST", URL)]

            async def main():
                pool = HttpPool()
                found = await asyncio.gather(*(one(pool) for _ in range(200)))
                await pool.aclose()
                assert found == [[b"one", b"two"]] * 200, found

            asyncio.run(main())
        """

        async def serve(connection: Connection) -> None:
            await connection.send(head(connection="close"), TWO[0])
            await asyncio.sleep(0.02)
            await connection.send(TWO[1])

        with Server(serve) as server:
            done = subprocess.run(
                [sys.executable, "-c", f"URL = {server.url!r}\n{code}"], capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stderr


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxies and no certificates."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


class TestProxy:
    """Through a real forward proxy."""

    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_plain_http_is_forwarded(self, transport: Transport, no_proxies: pytest.MonkeyPatch, variable: str) -> None:
        with Server(stream(*TWO)) as server, Proxy() as proxy:
            no_proxies.setenv(variable, proxy.url)
            url = server.url.replace("127.0.0.1", "model.invalid") + "/v1/x?y=1"
            assert fetch(transport, url, json={"a": 1}) == [b"one", b"two"]
        assert proxy.asked == [f"POST {url}"]
        assert (server.requests[0].path, server.requests[0].json) == ("/v1/x?y=1", {"a": 1})
        assert server.requests[0].headers["host"] == url.split("/")[2]

    @pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
    def test_tls_goes_through_a_tunnel(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority, variable: str
    ) -> None:
        """The certificate is the far server's, by the name that was asked for."""
        with Server(stream(*TWO), tls=authority.server("model.invalid")) as server, Proxy() as proxy:
            no_proxies.setenv(variable, proxy.url)
            no_proxies.setenv("SSL_CERT_FILE", authority.file)
            url = server.url.replace("127.0.0.1", "model.invalid")
            assert fetch(transport, url, headers={"x-api-key": "secret"}) == [b"one", b"two"]
        assert proxy.asked == [f"CONNECT {url.split('/')[2]}"]
        assert server.requests[0].headers["x-api-key"] == "secret"

    def test_a_proxy_may_speak_tls_itself(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority
    ) -> None:
        with Server(stream(*TWO)) as server, Proxy(tls=authority.server("127.0.0.1")) as proxy:
            no_proxies.setenv("HTTP_PROXY", proxy.url)
            no_proxies.setenv("SSL_CERT_FILE", authority.file)
            assert fetch(transport, server.url.replace("127.0.0.1", "model.invalid")) == [b"one", b"two"]
        assert len(proxy.asked) == 1

    @pytest.mark.parametrize("secure", [False, True])
    def test_the_proxys_password_is_sent_to_it_alone(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority, secure: bool
    ) -> None:
        wanted = "Basic " + base64.b64encode(b"kim:pass word").decode()
        tls = authority.server("model.invalid") if secure else None
        with Server(stream(*TWO), tls=tls) as server, Proxy(wanted) as proxy:
            no_proxies.setenv("SSL_CERT_FILE", authority.file)
            no_proxies.setenv("ALL_PROXY", proxy.url.replace("//", "//kim:pass%20word@"))
            assert fetch(transport, server.url.replace("127.0.0.1", "model.invalid")) == [b"one", b"two"]
        assert proxy.authorizations == [wanted]
        assert "proxy-authorization" not in server.requests[0].headers

    @pytest.mark.parametrize("secure", [False, True])
    def test_a_refused_password_is_told_without_it(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority, secure: bool
    ) -> None:
        tls = authority.server("model.invalid") if secure else None
        with Server(stream(*TWO), tls=tls) as server, Proxy("Basic other") as proxy:
            no_proxies.setenv("ALL_PROXY", proxy.url.replace("//", "//kim:secret@"))
            with pytest.raises(ProviderError, match="407") as caught:
                fetch(transport, server.url.replace("127.0.0.1", "model.invalid"))
        assert "secret" not in repr(caught.value)
        assert server.requests == []

    @pytest.mark.parametrize("exception", ["127.0.0.1", "*", "other.example, 127.0.0.1"])
    def test_no_proxy_names_who_is_spoken_to_directly(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, exception: str
    ) -> None:
        with Server(stream(*TWO)) as server, Proxy() as proxy:
            no_proxies.setenv("HTTP_PROXY", proxy.url)
            no_proxies.setenv("NO_PROXY", exception)
            assert fetch(transport, server.url) == [b"one", b"two"]
        assert proxy.asked == []

    def test_a_proxy_that_is_not_there_is_a_failed_connection(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch
    ) -> None:
        with Server(stream(*TWO)) as gone:
            pass
        no_proxies.setenv("HTTP_PROXY", gone.url)
        with pytest.raises(errors.ConnectionFailed):
            fetch(transport, "http://model.invalid/")

    def test_a_proxy_of_another_kind_is_refused_by_name(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch
    ) -> None:
        no_proxies.setenv("ALL_PROXY", "socks5://kim:secret@127.0.0.1:1080")
        with pytest.raises(ConfigurationError, match=r"socks5://127\.0\.0\.1:1080.*http or https.*NO_PROXY") as caught:
            fetch(transport, "https://model.invalid/")
        assert "secret" not in str(caught.value)


class TestCertificates:
    """A real TLS server, whose certificate is signed by an authority made here."""

    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
    def test_an_authority_of_ones_own_is_trusted(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority, variable: str
    ) -> None:
        if variable == "SSL_CERT_DIR":
            authority.hash()
        no_proxies.setenv(variable, authority.file if variable == "SSL_CERT_FILE" else authority.directory)
        with Server(stream(*TWO), tls=authority.server("127.0.0.1")) as server:
            assert fetch(transport, server.url) == [b"one", b"two"]

    def test_a_connection_is_used_again(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority
    ) -> None:
        """A handshake is dear: also one whose stream ended with its last event, not with its body."""

        async def work(pool: HttpPool) -> None:
            for _ in range(3):
                assert await collect(pool.session().sse("POST", server.url, until=b"two")) == [b"one"]

        no_proxies.setenv("SSL_CERT_FILE", authority.file)
        with Server(stream(*TWO), tls=authority.server("127.0.0.1")) as server:
            run(transport, work)
        assert (len(server.requests), server.connections) == (3, 1)

    def test_an_unknown_authority_is_not_and_the_error_names_the_way_out(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority
    ) -> None:
        with (
            Server(stream(*TWO), tls=authority.server("127.0.0.1")) as server,
            pytest.raises(errors.ConnectionFailed, match="SSL_CERT_FILE"),
        ):
            fetch(transport, server.url)
        assert server.requests == []

    def test_another_servers_certificate_is_refused(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, authority: Authority
    ) -> None:
        no_proxies.setenv("SSL_CERT_FILE", authority.file)
        with (
            Server(stream(*TWO), tls=authority.server("other.example")) as server,
            pytest.raises(errors.ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            fetch(transport, server.url)
        assert server.requests == []

    def test_a_file_that_holds_none_is_refused_by_name(
        self, transport: Transport, no_proxies: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        empty = tmp_path / "empty.pem"
        empty.write_text("nothing")
        for path in (empty, tmp_path / "missing.pem"):
            no_proxies.setenv("SSL_CERT_FILE", str(path))
            with pytest.raises(ConfigurationError, match=rf"SSL_CERT_FILE='{path}'"):
                fetch(transport, "https://127.0.0.1:1/")


async def collect(events: AsyncGenerator[bytes, None]) -> list[bytes]:
    return [data async for data in events]
