"""Keys and headers, alike for every provider: whose header wins, and that nothing tells a key."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.servers import Connection, Server, answer, stream

from nitinol import errors
from nitinol.http import HttpPool, Transport
from nitinol.http_errors import redact
from nitinol.messages import to_message
from nitinol.provider import ModelRequest, Provider
from nitinol_providers import Anthropic, Gemini, OpenAI, OpenAICompatible

ASK = ModelRequest(messages=(to_message("Hello"),))
MAKERS: list[Callable[..., Any]] = [Anthropic, Gemini, OpenAI, OpenAICompatible]
HEADER = {Anthropic: "X-Api-Key", Gemini: "X-Goog-Api-Key", OpenAI: "Authorization", OpenAICompatible: "Authorization"}
VARIABLES = {
    Anthropic: "ANTHROPIC_API_KEY",
    Gemini: "GEMINI_API_KEY",
    OpenAI: "OPENAI_API_KEY",
    OpenAICompatible: "OPENAI_API_KEY",
}


def fail(made: Provider, transport: Transport = "httpx") -> errors.ProviderError:
    async def main() -> None:
        pool = HttpPool(transport=transport)
        try:
            async for _ in made.stream(ASK, pool.session(stall=5.0)):
                pass
        finally:
            await pool.aclose()

    with pytest.raises(errors.ProviderError) as caught:
        asyncio.run(main())
    return caught.value


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_header_of_the_callers_is_sent_alone_however_it_is_written(
    make: Callable[..., Any], transport: Transport
) -> None:
    name = HEADER[make]  # type: ignore[index] # a class is one
    given = {name: "Bearer mine", "Content-Type": "application/json; charset=utf-8"}
    with Server(answer(400)) as server:
        fail(make("m", api_key="sk-theirs", base_url=server.url, headers=given), transport)
        (request,) = server.requests
    assert request.headers[name.lower()] == "Bearer mine"
    assert request.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("make", MAKERS)
def test_a_header_with_a_key_is_a_key(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES.values(), "GOOGLE_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(errors.MissingKey):
        make("m")
    make("m", headers={HEADER[make]: "Bearer mine"})  # type: ignore[index] # a class is one


async def _echo_status(connection: Connection) -> bool | None:
    told = f"{connection.request.path} {json.dumps(connection.request.headers)}"
    return await answer(400, {"error": {"message": told}})(connection)


async def _echo_in_stream(connection: Connection) -> bool | None:
    told = f"{connection.request.path} {json.dumps(connection.request.headers)}"
    event = {"type": "error", "error": {"type": "x", "message": told}}
    return await stream(b"data: %b\n\n" % json.dumps(event).encode())(connection)


@pytest.mark.parametrize("echo", [_echo_status, _echo_in_stream])
@pytest.mark.parametrize("make", MAKERS)
def test_a_server_that_says_all_it_was_sent_gives_no_key_away(make: Callable[..., Any], echo: Any) -> None:
    headers = {"Cookie": "session=cookie-1111; z=cookie-2222", "X-Secrets": "header-3333 header-4444"}
    with Server(echo) as server:
        url = server.url.replace("//", "//kim:user-5555@") + "/v1?api-key=query-6666"
        error = fail(make("m", api_key="sk-7777-7777", base_url=url, headers=headers))
    said = str(error)
    assert "[key]" in said
    for secret in ("1111", "2222", "3333", "4444", "5555", "6666", "7777", "a2ltOnVzZXItNTU1NQ"):
        assert secret not in said


@pytest.mark.parametrize(
    "url",
    [
        "ftp://kim:secret@box/v1",
        "http://kim:secret@box:99999",
        "http://kim:a/secret@box",
        "http://kim:secret?b@box",
        "kim:secret//b@box",
        "kim:secret@box",
        "b?k=secret",
        "ftp://box/?k=a@secret",
        "ftp://box/#k=secret",
        "http://kim:secret@box/a\nb",
    ],
)
@pytest.mark.parametrize("make", MAKERS)
def test_a_bad_address_is_refused_without_its_password(make: Callable[..., Any], url: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="no http address") as caught:
        make("m", api_key="sk", base_url=url)
    assert "secret" not in str(caught.value)


def test_a_key_that_the_end_of_a_message_has_cut_is_hidden_too() -> None:
    headers = {"authorization": "Bearer sk-0123456789abcdef"}
    assert redact("wrong key sk-0123456789", headers) == "wrong key [key]"
    assert redact("Bearer of sk-", headers) == "Bearer of sk-"


def test_a_key_that_another_begins_with_leaves_nothing_of_it() -> None:
    assert redact("sk-0123-4567", {"x-key": "sk-0123", "authorization": "Bearer sk-0123-4567"}) == "[key]"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": 7}, "model= must be a str, not int"),
        ({"model": " "}, "the model's name is empty"),
        ({"api_key": ["sk-secret"]}, "api_key= must be a str, not list"),
        ({"base_url": 8080}, "base_url= must be a str, not int"),
        ({"headers": ["x-team: a"]}, "headers= must be a dict, not list"),
        ({"headers": {"authorization": b"Bearer sk-secret"}}, "'authorization' has a bytes"),
        ({"headers": {"authorization": "Bearer sk-sécret"}}, "headers= 'authorization' has a character that no header"),
        ({"headers": {"x-team": "a\r\nsecret: b"}}, "headers= 'x-team' has a character that no header can hold"),
        ({"headers": {"authorization: secret": "a"}}, "headers= has a name that is none"),
        ({"headers": {"": "secret"}}, "headers= has a name that is none"),
        ({"headers": {"sécret": "a"}}, "headers= has a name that is none"),
        ({"api_key": "sk-sécret"}, "api_key= has a character that no header can hold"),
        ({"api_key": "sk\nsecret"}, "api_key= has a character that no header can hold"),
        ({"api_key": "sk-secret\x00"}, "api_key= has a character that no header can hold"),
    ],
)
@pytest.mark.parametrize("make", MAKERS)
def test_an_option_that_cannot_be_sent_is_named(make: Callable[..., Any], options: dict[str, Any], says: str) -> None:
    """And is not shown, for it may be a key."""
    with pytest.raises(errors.ConfigurationError) as caught:
        make(**{"model": "m", "api_key": "k", **options})
    assert says in str(caught.value)
    assert not re.search("s[eé]cret", str(caught.value))


@pytest.mark.parametrize("option", ["organization", "project"])
def test_what_else_goes_into_a_header_is_checked_too(option: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=f"openai: {option}= has a character"):
        OpenAI("m", api_key="k", **{option: "a\nb"})  # type: ignore[arg-type] # a str, whichever


@pytest.mark.parametrize("make", MAKERS)
def test_a_variable_that_cannot_be_sent_is_named(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv(VARIABLES[make], "sk-sécret")  # type: ignore[index] # a class is one
    with pytest.raises(errors.ConfigurationError) as caught:
        make("m")
    assert f"{VARIABLES[make]} has a character that no header can hold" in str(caught.value)  # type: ignore[index]
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize("make", MAKERS)
def test_space_around_a_key_is_no_part_of_it(make: Callable[..., Any], transport: Transport) -> None:
    """As a file's last line has it."""
    with Server(answer(400)) as server:
        fail(make("m", api_key=" sk-1234\n", base_url=server.url, headers={"x-team": " a\n"}), transport)
        (request,) = server.requests
    assert request.headers[HEADER[make].lower()].endswith("sk-1234")  # type: ignore[index] # a class is one
    assert request.headers["x-team"] == "a"
