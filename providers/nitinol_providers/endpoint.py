"""Where a provider's requests go, with whose key, and how an answer is read there."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from nitinol.errors import ConfigurationError, MissingKey, ProviderError
from nitinol.http import Http, drain
from nitinol.http_errors import Classify, redact, without_secrets
from nitinol.provider import ModelResponse, StreamPart, account_of

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TEXT = re.compile(r"[\t -~]*")


class Answer(Protocol):
    """What puts one answer together."""

    @property
    def ended(self) -> bool:
        """Whether the last event has come, where an event says so; False where the stream itself does."""
        ...

    def read(self, data: bytes) -> Iterable[StreamPart]:
        """Take the data of one event; give what it adds."""
        ...

    def response(self) -> ModelResponse:
        """The whole answer, once the stream has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address and one key."""

    base_url: str
    """As the user gives it."""
    url: str
    """Where requests go."""
    headers: Mapping[str, str]
    """Of every request, in lower case; they hold the key."""

    @property
    def shown(self) -> str:
        """The base URL without what may be secret in it."""
        parts = urlsplit(self.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()

    @property
    def account(self) -> str:
        """See `Provider`."""
        return account_of(self.base_url, *self.headers.values())

    async def ask(
        self,
        http: Http,
        answer: Answer,
        body: Any,
        *,
        classify: Classify,
        headers: Mapping[str, str] | None = None,
        until: bytes | None = None,
    ) -> AsyncGenerator[StreamPart, None]:
        """Send a request, and yield what its answer adds; see `Provider.stream`.

        Args:
            headers: Instead of its own.
            until: See `Http.sse`.
        """
        sent = self.headers if headers is None else headers
        events = http.sse("POST", self.url, headers=sent, json=body, classify=classify, until=until)
        try:
            async with aclosing(events):
                async for data in events:
                    for part in answer.read(data):
                        yield part
                    if answer.ended:
                        await drain(events)
                        break
            response = answer.response()
        except ProviderError as error:
            error.args = (redact(str(error), self.headers, self.base_url),)
            raise
        yield response


def endpoint(base_url: str, path: str, headers: Mapping[str, str], *, query: str = "") -> Endpoint:
    """Of a checked base URL, and what follows it."""
    parts = urlsplit(base_url)
    query = "&".join(filter(None, [parts.query, query]))
    return Endpoint(base_url, parts._replace(path=parts.path.rstrip("/") + path, query=query).geturl(), headers)


def check_options(provider: str, example: str, model: object, headers: object, **texts: object) -> None:
    """Raise `ConfigurationError` where a provider's option is not what it must be. What was given is not shown: it may be a key."""
    for option, value in {"model": model, **texts}.items():
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{provider}: {option}= must be a str, not {type(value).__name__}")
        if option not in ("model", "name", "base_url"):
            check_sendable(f"{provider}: {option}=", value or "")
    if not isinstance(model, str) or not model.strip():
        raise ConfigurationError(f"{provider}: the model's name is empty; write for instance {example!r}")
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigurationError(f"{provider}: headers= must be a dict, not {type(headers).__name__}")
    for header, value in cast("Mapping[object, object]", headers or {}).items():
        if not isinstance(header, str) or not isinstance(value, str):
            raise ConfigurationError(
                f"{provider}: headers= must hold a str for each name; {header!r} has a {type(value).__name__}"
            )
        if not _TOKEN.fullmatch(header):
            raise ConfigurationError(
                f"{provider}: headers= has a name that is none: one is made of ASCII letters, digits and '-'"
            )
        check_sendable(f"{provider}: headers= {header!r}", value)


def check_sendable(what: str, value: str) -> None:
    """Raise `ConfigurationError` where no header can hold this value, which is not shown. Space around it is no matter."""
    if not _TEXT.fullmatch(value.strip()):
        raise ConfigurationError(f"{what} has a character that no header can hold: a line break, or one beyond ASCII")


def variable(*names: str) -> str:
    """What the first of these environment variables that says something says; "" = none does."""
    for name in names:
        if value := os.environ.get(name, "").strip():
            check_sendable(name, value)
            return value
    return ""


def lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    """A caller's headers, under names that stand in the place of ours."""
    return {name.lower(): value.strip() for name, value in (headers or {}).items()}


def checked_url(url: str, name: str) -> str:
    """A base URL without a slash at its end; `ConfigurationError` if it is no http address."""
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and url.strip().isprintable()
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"{name}: base_url={without_secrets(url)!r} is no http address; write for instance 'http://127.0.0.1:8000/v1'"
        )
    return url.strip().rstrip("/")


def authorization(api_key: str | None, key_variable: str | None, required: bool, name: str) -> dict[str, str]:
    """The header with the key, given or from its variable; `MissingKey` if there is none and one is required."""
    key = (api_key if api_key is not None else variable(key_variable or "")).strip()
    if not key and required:
        raise MissingKey(f"{name} needs a key: set {key_variable}, or give api_key=")
    return {"authorization": f"Bearer {key}"} if key else {}
