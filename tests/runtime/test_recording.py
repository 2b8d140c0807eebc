"""Recordings: taken once, played byte for byte, and without a key."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.said import Turn, Vendor
from tests.logs_of import SOON, log_of
from tests.protocols import PROTOCOLS, Protocol
from tests.servers import Connection, Script, Server, answer, cut, hang, head, stream

from nitinol import Agent, Runtime, arun, errors, run, tool
from nitinol.errors import ConfigurationError, NotRecorded
from nitinol.hiding import KEY, Hidden
from nitinol.http import HttpPool, Transport
from nitinol.recording import _difference  # pyright: ignore[reportPrivateUsage]
from nitinol.retry import Retry
from nitinol.testing import Recording, ScriptedProvider, override_model, record
from nitinol_providers import OpenAICompatible

PLANTED = "sk-planted-4711-Zz/x+y="
"""A key with all that JSON, addresses and base64 write otherwise."""


BEGUN = '{"request": {"method": "POST", "url": "http://a/"}}'
WHOLE = f"""{{"recording": 1, "keys": []}}
{BEGUN}
{{"answer": {{"status": 200, "headers": {{}}}}}}
{{"end": "whole"}}"""


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """Recordings know nothing of transports."""
    chosen: Transport = request.param
    monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", chosen)
    return chosen


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a recording may be."""
    monkeypatch.delenv("NITINOL_RECORD", raising=False)
    return tmp_path / "recordings" / "one.jsonl"


def chunks_of(url: str, *, body: Any = None, headers: dict[str, str] | None = None) -> list[bytes]:
    """The chunks of one answer, as the seam gives them."""
    from nitinol.http import Request

    async def main() -> list[bytes]:
        pool = HttpPool()
        try:
            got = await pool.send(Request("POST", url, headers or {}, json.dumps(body).encode()))
            return [chunk async for chunk in got.chunks()]
        finally:
            await pool.aclose()

    return asyncio.run(main())


def events_of(url: str, *, body: Any = None, headers: dict[str, str] | None = None, **options: Any) -> list[bytes]:
    """The events of one request."""

    async def main() -> list[bytes]:
        pool = HttpPool()
        try:
            async with aclosing(
                pool.session(stall=5.0).sse("POST", url, headers=headers or {}, json=body, **options)
            ) as events:
                return [data async for data in events]
        finally:
            await pool.aclose()

    return asyncio.run(main())


def said(text: str, *, call: tuple[str, str] | None = None) -> Script:
    """An answer of chat completions, a delta for each word; or a tool call."""
    deltas: list[dict[str, Any]] = [{"content": word + " "} for word in text.split()]
    if call is not None:
        function = {"name": call[0], "arguments": call[1]}
        deltas.append({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if call else "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    return stream(*(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks), b"data: [DONE]\n\n")


def model(url: str, key: str = PLANTED) -> OpenAICompatible:
    return OpenAICompatible("m", base_url=f"{url}/v1", api_key=key)


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class TestBytes:
    def test_the_same_bytes_come_in_the_same_chunks(self, transport: Transport, file: Path) -> None:
        """Also where a character, or an event, lies across two."""
        euro = "€".encode()
        pieces = [b"data: a" + euro[:1], euro[1:], b"b\n", b"\ndata: \xff\xfe\r\n\r\n"]

        async def slowly(connection: Connection) -> None:
            await connection.send(head(connection="close"))
            for piece in pieces:
                await connection.send(piece)
                await asyncio.sleep(0.05)

        with Server(slowly) as server:
            with record(file) as taken:
                live = chunks_of(server.url)
            assert b"".join(live) == b"".join(pieces)
            assert len(live) > 1, "the server was not slow enough"
            assert (taken.is_new, len(taken)) == (True, 1)
        with record(file) as played:
            assert chunks_of(server.url) == live
        assert (played.is_new, len(server.requests)) == (False, 1)

    def test_the_file_is_lines_of_json_that_a_person_can_read(self, transport: Transport, file: Path) -> None:
        script = stream(b"data: one\n\n", x_request_id="req-1", set_cookie="s=1", date="today")
        with Server(script) as server, record(file):
            assert events_of(server.url + "/v1?a=b", body={"ü": 1}) == [b"one"]
        assert [json.loads(line) for line in file.read_text().splitlines()] == [
            {"recording": 1, "keys": []},
            {"request": {"method": "POST", "url": f"{server.url}/v1?a=b", "body": {"ü": 1}}},
            {"answer": {"status": 200, "headers": {"content-type": "text/event-stream", "x-request-id": "req-1"}}},
            {"chunk": "data: one\n\n"},
            {"end": "whole"},
        ]
        assert [path.name for path in file.parent.iterdir()] == [file.name]

    def test_errors_are_recorded_with_what_they_say(self, transport: Transport, file: Path) -> None:
        """Status, body and `Retry-After`; then, for the same request, the answer."""
        slow = answer(429, {"error": {"message": "slow down"}}, retry_after="7", x_request_id="req-1")

        def check(url: str) -> None:
            with pytest.raises(errors.RateLimited, match="slow down") as caught:
                events_of(url, body={})
            assert (caught.value.retry_after, caught.value.request_id) == (7.0, "req-1")
            assert events_of(url, body={}) == [b"one"]

        with Server(slow, stream(b"data: one\n\n")) as server, record(file):
            check(server.url)
        with record(file) as played:
            check(server.url)
            played.assert_exhausted()

    def test_a_cut_stream_is_cut_again(self, transport: Transport, file: Path) -> None:
        def check(url: str) -> None:
            with pytest.raises(errors.ConnectionFailed):
                events_of(url)

        with Server(cut(b"data: one\n\n", b"data: tw")) as server, record(file):
            check(server.url)
        assert json.loads(file.read_text().splitlines()[-1])["end"] == "cut"
        with record(file):
            check(server.url)
            with pytest.raises(NotRecorded, match="its 1 requests were all made before"):
                check(server.url)

    def test_a_connection_that_fails_fails_again(self, transport: Transport, file: Path) -> None:
        with Server(stream()) as gone:
            pass
        for _ in range(2):
            with record(file), pytest.raises(errors.ConnectionFailed):
                events_of(gone.url)

    def test_a_reader_that_left_leaves_there_again(self, transport: Transport, file: Path) -> None:
        """The server goes on after the last event; what was not read is not missed."""
        with Server(hang([head(connection="close"), b"data: one\n\ndata: [DONE]\n\n"])) as server, record(file):
            assert events_of(server.url, until=b"[DONE]") == [b"one"]
        assert json.loads(file.read_text().splitlines()[-1]) == {"end": "left"}
        with record(file):
            assert events_of(server.url, until=b"[DONE]") == [b"one"]
        with record(file), pytest.raises(errors.ConnectionFailed, match="nothing more was read"):
            events_of(server.url)


class TestRuns:
    """Through agents, as users do."""

    @pytest.mark.parametrize("how", ["run", "arun", "runtime"])
    def test_a_run_of_several_requests_is_played_without_network_or_key(
        self, transport: Transport, file: Path, how: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One 429, a tool call, an answer: the second time nobody is there, no key is set, and no retry is waited for."""
        agent = Agent(name="a", model="openai-compatible:m", tools=[add], retry=Retry(base=0.01))

        def check() -> list[str]:
            match how:
                case "run":
                    result = run("1 + 2?", agent)
                case "arun":
                    result = asyncio.run(arun("1 + 2?", agent))
                case _:
                    with Runtime() as rt:
                        ref = rt.start(agent)
                        result = ref.ask("1 + 2?", timeout=SOON)
                        types = [event.type for event in log_of(ref)]
                    assert types.count("model.retrying") == 1
            assert (result.status, result.text) == ("completed", "It is 3 "), result.error
            assert [call.data for call in result.tool_calls] == [3]
            assert result.usage.total_tokens == 20
            return [message.role for message in result.messages]

        server = Server(
            answer(429, {"error": "slowly"}, retry_after="1"),
            said("", call=("add", '{"a": 1, "b": 2}')),
            said("It is 3"),
        )
        with server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
            with record(file) as taken:
                first = check()
            assert len(taken) == 3
        assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {PLANTED}"}
        monkeypatch.delenv("OPENAI_API_KEY")
        with record(file) as played:
            assert check() == first
            played.assert_exhausted()
            assert os.environ["OPENAI_API_KEY"] == KEY
        assert "OPENAI_API_KEY" not in os.environ
        assert len(server.requests) == 3
        assert '"keys": ["OPENAI_API_KEY"]' in file.read_text()

    def test_a_long_retry_after_is_not_waited_for(self, file: Path) -> None:
        """Nor by others, at the gate."""
        lines: list[dict[str, Any]] = [{"recording": 1, "keys": []}]
        url = "http://model.invalid/v1/chat/completions"
        with Server(said("done")) as server, record(file):
            assert run("go", model=model(server.url)).text == "done "
        body = json.loads(file.read_text().splitlines()[1])["request"]["body"]
        whole = [json.loads(line) for line in file.read_text().splitlines()[2:]]
        for outcome in ([{"answer": {"status": 429, "headers": {"retry-after": "3000"}}}, {"end": "whole"}], whole):
            lines += [{"request": {"method": "POST", "url": url, "body": body}}, *outcome]
        file.write_text("\n".join(map(json.dumps, lines)))
        with record(file):
            result = run("go", model=model("http://model.invalid"), timeout=SOON)
        assert result.text == "done "

    def test_many_at_once_each_get_their_own(self, transport: Transport, file: Path) -> None:
        async def echo(connection: Connection) -> bool | None:
            prompt = connection.request.json["messages"][-1]["content"]
            return await said(f"You said {prompt}")(connection)

        def check(url: str) -> None:
            agent = Agent(name="a", model=model(url))
            with Runtime() as rt:
                handles = [rt.start(agent).send(f"number {number}") for number in range(20)]
                texts = [handle.result(SOON).text for handle in handles]
            assert texts == [f"You said number {number} " for number in range(20)]

        with Server(echo) as server, record(file):
            check(server.url)
        with record(file) as played:
            check(server.url)
            played.assert_exhausted()

    def test_ids_of_runs_make_no_difference(self, file: Path) -> None:
        """A model that gives no ids gets ours, with the run's in them; the next request of each run is another one."""
        call = {"index": 0, "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
        chunk = {
            "choices": [{"index": 0, "delta": {"tool_calls": [call, {**call, "index": 1}]}, "finish_reason": "stop"}]
        }
        nameless = stream(b"data: " + json.dumps(chunk).encode() + b"\n\n", b"data: [DONE]\n\n")
        runs: list[str] = []
        with Server(nameless, said("It is 3")) as server:
            for _ in range(2):
                with record(file) as recording:
                    result = run("1 + 2?", model=model(server.url), tools=[add])
                    recording.assert_exhausted()
                assert result.text == "It is 3 ", result.error
                runs.append(result.run_id)
        sent = server.requests[1].json["messages"]
        assert runs[0] in sent[-1]["tool_call_id"]
        assert sent[-1]["tool_call_id"] != sent[-2]["tool_call_id"]
        assert runs[0] != runs[1]
        assert len(server.requests) == 2

    @pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
    def test_an_agent_with_a_fresh_key_is_played_in_every_protocol(self, protocol: Protocol, file: Path) -> None:
        """What a request tells of the agent's key, as for the vendor's cache, is no part of what it asks."""
        vendor = Vendor(protocol.fake(), lambda _request, heard: Turn(text=f"You said {heard[-1][1]}"))
        with Server(vendor) as server:
            agent = Agent(name="a", model=protocol.make(protocol.model, server.url))
            with record(file):
                assert run("Hello", agent).text == "You said Hello"
            assert len(server.requests) == 1
        with record(file) as played:
            assert run("Hello", agent).text == "You said Hello"
            played.assert_exhausted()

    def test_a_request_that_is_not_in_it_fails_its_run_and_says_why(self, file: Path) -> None:
        """At once, without a retry and without a cost; no network is touched."""
        with Server(said("Hello")) as server, record(file):
            run("Say hello.", model=model(server.url), instructions="Be brief.")
        with record(file) as played:
            result = run("Say goodbye.", model=model(server.url), instructions="Be brief.")
            with pytest.raises(AssertionError, match="1 of 1 requests were not made"):
                played.assert_exhausted()
        assert (result.status, result.error_type) == ("failed", "NotRecorded")
        assert result.error is not None
        assert "request 1 of 1 is most like it" in result.error
        assert "body.messages[1].content: recorded 'Say hello.', sent 'Say goodbye.'" in result.error
        assert "delete the file, or set NITINOL_RECORD=again" in result.error
        assert str(file) in result.error
        assert result.usage.input_tokens == 0
        assert len(server.requests) == 1

    def test_a_scripted_model_makes_no_request(self, file: Path) -> None:
        """Then there is nothing to keep."""
        with record(file), override_model(ScriptedProvider(["hello"])):
            assert run("go", model="ollama:none").text == "hello"
        assert not file.exists()


class TestSecrets:
    """A planted key is nowhere in the file."""

    def test_wherever_a_key_is_it_is_not_kept(
        self, transport: Transport, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In headers, in the address, in the body, and echoed: whole, across chunks, and as JSON writes it."""
        monkeypatch.setenv("SOME_VENDOR_TOKEN", "tok-of-a-variable-1")
        echo = json.dumps({"error": f"wrong key {PLANTED}, or user-pass-1"}).encode()
        half = len(echo) // 2

        async def serve(connection: Connection) -> None:
            await connection.send(head(connection="close", x_request_id=f"req-{PLANTED}"))
            for piece in (b"data: " + echo[:half], echo[half:] + b"\n\n", b"data: tok-of-a-var", b"iable-1\n\n"):
                await connection.send(piece)
                await asyncio.sleep(0.05)

        body = {
            "api_key": "in-a-field-1",
            "deep": [{"password": "hunter-22"}, f"my key is {PLANTED}"],
            "prompt": "tok-of-a-variable-1 and sk-proj-0123456789abcdef0123456789",
            "named": "by-the-user-1",
        }
        headers = {"X-Authorization": f"Bearer {PLANTED}", "X-Goog-Api-Key": "in-a-header-1"}
        with Server(serve) as server:
            url = server.url.replace("//", "//kim:user-pass-1@") + "/v1?key=in-the-query-1&a=b"
            with record(file, secrets=["by-the-user-1"]):
                live = events_of(url, body=body, headers={"x-other-token": "another-1", **headers})
        assert PLANTED in live[0].decode()
        assert server.requests[0].path == "/v1?key=in-the-query-1&a=b"
        text = file.read_text()
        for secret in (
            PLANTED, json.dumps(PLANTED)[1:-1], "planted", "in-a-field-1", "hunter-22", "tok-of-a-variable-1",
            "0123456789abcdef", "by-the-user-1", "in-a-header-1", "in-the-query-1", "another-1", "user-pass-1",
            base64.b64encode(b"kim:user-pass-1").decode(), "iable-1",
        ):  # fmt: skip
            assert secret not in text, secret
        assert f'"wrong key {KEY}, or {KEY}"' in "".join(
            json.loads(line).get("chunk", "") for line in text.splitlines()
        )
        with record(file):
            again = events_of(url.replace("in-the-query-1", "x-1"), body={**body, "api_key": "other"}, headers=headers)
        assert [KEY in each.decode() for each in again] == [True, True]

    @pytest.mark.parametrize(
        ("model", "key", "base_url"),
        [
            ("anthropic:m", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
            ("openai:m", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
            ("gemini:m", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"),
            ("groq:m", "GROQ_API_KEY", "GROQ_BASE_URL"),
        ],
    )
    def test_no_vendors_key_is_kept_or_asked_for(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, model: str, key: str, base_url: str
    ) -> None:
        """Whichever header it goes in."""
        with Server(answer(400, {"error": {"message": f"no model for {PLANTED}"}})) as server:
            monkeypatch.setenv(base_url, server.url)
            monkeypatch.setenv(key, PLANTED)
            with record(file):
                live = run("go", model=model)
        monkeypatch.delenv(key)
        with record(file) as played:
            again = run("go", model=model)
            played.assert_exhausted()
        assert live.error_type == again.error_type == "InvalidRequest"
        assert again.error == live.error == "HTTP 400: no model for [key]"
        assert PLANTED in repr(server.requests[0].headers)
        assert "planted" not in file.read_text()

    def test_what_the_user_names_is_hidden_though_it_is_a_common_word(self, file: Path) -> None:
        """And what is too short to be looked for is refused, not kept."""
        with Server(said("it is hunter")) as server, record(file, secrets=["hunter"]):
            assert run("say hunter", Agent(name="a", model=model(server.url))).text == "it is hunter "
        assert "hunter" not in file.read_text()
        for wrong in (["pin"], [""], "hunter-22"):
            with pytest.raises(ConfigurationError, match="4 characters"), record(file, secrets=wrong):
                pass

    def test_a_variable_of_another_environment_is_in_nobodys_way(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A word of the prompt is the value of a variable where it is played, or was where it was recorded."""
        monkeypatch.setenv("HERE_KEY", "in-the-morning")
        with Server(said("ok")) as server, record(file):
            run("we meet in-the-morning, at the fountain", Agent(name="a", model=model(server.url)))
        monkeypatch.delenv("HERE_KEY")
        monkeypatch.setenv("THERE_KEY", "fountain")
        with record(file):
            result = run("we meet in-the-morning, at the fountain", Agent(name="a", model=model(server.url)))
        assert result.status == "completed", result.error

    @given(st.lists(st.text("ab", max_size=2), min_size=1, max_size=4), st.text("ab", max_size=8))
    def test_a_key_is_like_any_other(self, pieces: list[str], sent: str) -> None:
        """Of one character or more."""
        recorded = KEY.join(pieces)
        like = recorded == sent or re.fullmatch(".+".join(map(re.escape, pieces)), sent) is not None
        assert (_difference(recorded, sent) is None) == like

    def test_a_difference_among_many_keys_is_soon_found(self) -> None:
        """Programs are full of `[key]`; no time grows with the power of their number."""
        recorded = "x = d[key] + e[key]\n" * 1000
        sent = recorded.replace(KEY, "[name]") + "more"
        assert _difference(recorded, sent) is not None

    @given(st.lists(st.binary(max_size=6), max_size=8), st.data())
    def test_hiding_changes_nothing_but_the_key(self, chunks: list[bytes], data: st.DataObject) -> None:
        """However it is cut; the chunks keep their borders."""
        secret = b"12345678"
        whole = b"".join(chunks)
        at = data.draw(st.integers(0, len(whole)))
        places = sorted(data.draw(st.lists(st.integers(0, len(whole) + 8), max_size=6)))
        planted = whole[:at] + secret + whole[at:]
        pieces = [planted[a:b] for a, b in zip([0, *places], [*places, len(planted)], strict=True)]
        hidden = Hidden([secret.decode()]).in_chunks(pieces)
        assert b"".join(hidden) == planted.replace(secret, KEY.encode())
        untouched = [piece for piece in pieces if piece and not _touches(planted, secret, pieces, piece)]
        left = iter(hidden)  # what is left of a touched one may look like any other
        assert all(piece in left for piece in untouched)

    def test_without_a_key_every_chunk_is_as_it_was(self) -> None:
        chunks = [b"", b"a", b"\xff", b"sk-learn is a library"]
        assert Hidden(["secret-1", "none"]).in_chunks([*chunks, b"none"]) == [*chunks, b"none"]


def _touches(planted: bytes, secret: bytes, pieces: list[bytes], piece: bytes) -> bool:
    start = sum(len(each) for each in pieces[: pieces.index(piece)])
    at = planted.index(secret)
    return start < at + len(secret) and start + len(piece) > at


class TestFile:
    def test_it_is_taken_anew_on_request(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with Server(stream(b"data: one\n\n"), stream(b"data: two\n\n"), stream(b"data: three\n\n")) as server:
            with record(file):
                events_of(server.url)
            with record(file, again=True) as taken:
                assert events_of(server.url) == [b"two"]
            assert taken.is_new
            with record(file):
                assert events_of(server.url) == [b"two"]
            monkeypatch.setenv("NITINOL_RECORD", "again")
            with record(file):
                assert events_of(server.url) == [b"three"]

    def test_where_no_network_may_be_touched_a_missing_file_is_an_error(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NITINOL_RECORD", "never")
        with pytest.raises(ConfigurationError, match=r"no recording .*one\.jsonl.*NITINOL_RECORD=never"), record(file):
            pass
        monkeypatch.setenv("NITINOL_RECORD", "sometimes")
        with pytest.raises(ConfigurationError, match="NITINOL_RECORD='sometimes'"), record(file):
            pass

    def test_a_block_that_raises_keeps_nothing(self, file: Path) -> None:
        """Half a recording would be played for ever."""

        def ask_and_raise(url: str) -> None:
            with record(file):
                events_of(url)
                raise ZeroDivisionError

        with Server(stream(b"data: one\n\n")) as server, pytest.raises(ZeroDivisionError):
            ask_and_raise(server.url)
        assert len(server.requests) == 1
        assert not file.exists()

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "it is empty"),
            ("{", "line 1"),
            ('{"other": 1}', "line 1.*'other' cannot stand there"),
            ('{"recording": 2, "keys": []}', "is of version 2.*update nitinol"),
            ('{"recording": 1, "keys": []}\n{"chunk": "x"}', "line 2"),
            ('{"recording": 1, "keys": []}\n{"request": {}}', "line 2"),
            ('{"recording": 1, "keys": []}\n[]', "line 2"),
            (f"{WHOLE}\n{BEGUN}", "line 5.*ends in the middle"),
            (f"{WHOLE}\n{BEGUN}\n{BEGUN}", "line 6.*'request' cannot stand there"),
            (f'{WHOLE}\n{{"chunk": "x"}}', "line 5.*'chunk' cannot stand there"),
        ],
    )
    def test_a_file_that_is_none_is_refused_by_line(self, file: Path, text: str, why: str) -> None:
        file.parent.mkdir()
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=f"(?s)one\\.jsonl.*{why}"), record(file):
            pass

    def test_one_within_another_is_the_one_that_counts(self, file: Path) -> None:
        with (
            Server(stream(b"data: one\n\n")) as server,
            record(file) as outer,
            record(file.with_name("two.jsonl")) as inner,
        ):
            events_of(server.url)
        assert (len(outer), len(inner)) == (0, 1)

    def test_a_run_that_goes_on_after_the_block_is_kept_as_far_as_it_came(self, file: Path) -> None:
        begun = hang([head(connection="close"), b'data: {"choices": [{"delta": {"content": "so far"}}]}\n\n'])
        with Server(begun) as server, Runtime(drain=0.0) as rt:
            with record(file):
                handle = rt.start(Agent(name="a", model=model(server.url))).send("go")
                pieces = handle.text()
                assert next(pieces) == "so far"
            handle.cancel()
            handle.result(SOON)
        assert json.loads(file.read_text().splitlines()[-1]) == {"end": "left"}


def test_what_it_says_of_itself(file: Path) -> None:
    """Its path, and which of the two it is."""
    assert repr(Recording(file, is_new=True)) == f"<Recording {str(file)!r}, taken, 0 requests>"
