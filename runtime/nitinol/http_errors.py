"""What a failed request means: a status, a body or a transport's exception as one typed error, without a key in it."""

from __future__ import annotations

import base64
import json as jsonlib
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import cast
from urllib.parse import unquote, unquote_plus, urlsplit

from nitinol import errors
from nitinol.errors import MalformedResponse, ProviderError

Classify = Callable[[int, str], type[ProviderError] | None]
"""A vendor's own reading of a status and its body's text; None leaves it to `error_type`."""

_SECRET = re.compile("auth|key|token|secret|password|cookie|credential|signature", re.IGNORECASE)
_SCHEMES = frozenset(("bearer", "basic", "token", "digest", "negotiate", "apikey"))
_REQUEST_IDS = ("x-request-id", "request-id", "x-requestid", "x-amzn-requestid", "x-generation-id", "cf-ray")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LONGEST_PLACE = 200
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def error_type(status: int) -> type[ProviderError]:
    """The error that an HTTP status means, where no vendor's table says more."""
    if status in (401, 403):
        return errors.AuthenticationFailed
    if status == 429:
        return errors.RateLimited
    if status in (503, 529):
        return errors.Overloaded
    if status == 408 or status >= 500:
        return errors.ServerError
    if status >= 300:
        return errors.InvalidRequest
    return MalformedResponse


def error_message(body: object) -> str:
    """What an error body says: bytes, text or parsed JSON in any vendor's shape; at most 500 characters of other text."""
    if isinstance(body, bytes):
        text = body.decode("utf-8", "replace").strip()
        try:
            return error_message(jsonlib.loads(text)) if text[:1] in ("{", "[") else text[:500]
        except (ValueError, RecursionError):
            return text[:500]
    if isinstance(body, list):
        items = cast("list[object]", body)
        return error_message(items[0]) if items else ""
    if isinstance(body, dict):
        fields = cast("dict[str, object]", body)
        for key in ("error", "message", "detail", "msg"):
            if fields.get(key):
                return error_message(fields[key])
        return jsonlib.dumps(fields)[:500]
    return str(body)[:500]


def keys_in(headers: Mapping[str, str], url: str = "") -> list[str]:
    """The keys that these headers carry, by the headers' names; and those of an address: its user's, and of its query."""
    found: list[str] = []
    for name, value in headers.items():
        if "cookie" in name.lower():
            found += [pair.partition("=")[2] or pair for pair in value.replace(" ", "").split(";")]
        elif _SECRET.search(name):
            words = value.split()
            found += words[1:] if len(words) > 1 and words[0].lower() in _SCHEMES else words
    with suppress(ValueError):  # it is no address
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        password = user.partition(":")[2] or user
        found += [password, unquote(password), base64.b64encode(unquote(user).encode()).decode()]
        for name, _, value in (pair.partition("=") for pair in parts.query.split("&")):
            found += [value, unquote_plus(value)] if _SECRET.search(name) or name == "sig" else ()
    return [key for key in found if len(key) >= 4]  # shorter ones are placeholders, such as "-"


def redact(text: str, headers: Mapping[str, str], url: str = "") -> str:
    """The text without the keys that were sent in these headers and this address, nor one that its end has cut."""
    for key in sorted(keys_in(headers, url), key=len, reverse=True):
        text = text.replace(key, "[key]")
        left = next((size for size in range(len(key) - 1, 7, -1) if text.endswith(key[:size])), 0)
        text = f"{text[:-left]}[key]" if left else text
    return text


def without_secrets(url: str) -> str:
    """An address as it may be told, be it one or not: without its user, its query and its fragment."""
    parts = re.match(r"((?:[a-z][a-z0-9+.-]*:)?//)?(.*@)?([^?#]*)", url, re.DOTALL | re.IGNORECASE)
    scheme, user, rest = parts.groups("") if parts else ("", "", "")
    return scheme if "?" in user or "#" in user else scheme + rest  # of a query with an @ the rest would be its end


def _place(location: str) -> str:
    """Where a redirect points to: scheme, host, port, and a path that is short and holds no address."""
    with suppress(ValueError):
        parts = urlsplit(location)
        host = parts.netloc.rpartition("@")[2]
        origin = parts._replace(netloc=host, path="", query="", fragment="").geturl()
        path = parts.path.partition(";")[0]
        told = origin if "@" in path or len(origin + path) > _LONGEST_PLACE else origin + path
        is_place = parts.port != 0 and bool(host or told.startswith("/"))  # a port that is none raises
        if is_place and told.isprintable() and len(told) <= _LONGEST_PLACE:
            return told
    return "another address"


def is_read(name: str) -> bool:
    """Whether anything here is decided by this header of an answer, in lower case."""
    return name in ("content-type", "retry-after", "retry-after-ms", *_REQUEST_IDS) or name.startswith("x-ratelimit-")


def status_error(status: int, headers: Mapping[str, str], body: bytes, classify: Classify | None) -> ProviderError:
    """The error of an answer whose status is one. `headers` are the answer's, in any case that `in` and `[]` take."""
    if 300 <= status < 400 and "location" in headers:  # to follow it would take the key to whoever answers there
        where = _place(headers["location"])
        return error_type(status)(
            f"HTTP {status}: the server points to {where}, which is not followed; check base_url="
        )
    cls = (classify(status, body.decode("utf-8", "replace")) if classify else None) or error_type(status)
    return cls(f"HTTP {status}: {error_message(body) or cls.summary}", retry_after=_retry_after(headers, status))


def complete(
    error: ProviderError, sent: Mapping[str, str], url: str, status: int | None, headers: Mapping[str, str]
) -> ProviderError:
    """The same error without the keys that were sent, and with what the answer's headers tell of it."""
    error.args = (redact(str(error), sent, url),)
    error.status_code = error.status_code or status
    told = error.request_id or next((headers[name] for name in _REQUEST_IDS if headers.get(name)), None)
    error.request_id = None if told is None else redact(told, sent, url)
    return error


def _retry_after(headers: Mapping[str, str], status: int) -> float | None:
    """Seconds to wait, as the server asks, or None."""
    with suppress(ValueError, OverflowError):
        if "retry-after-ms" in headers:
            return _seconds(float(headers["retry-after-ms"]) / 1000)
        if "retry-after" in headers:
            value = headers["retry-after"]
            if value.strip()[:1].isalpha():
                return _seconds(parsedate_to_datetime(value).timestamp() - time.time())
            return _seconds(float(value))
        if status == 429:
            return _reset(headers)
    return None


def _reset(headers: Mapping[str, str]) -> float | None:
    """From the rate-limit headers: when what is used up is filled again."""
    waits: list[float] = []
    for name, value in headers.items():
        kind = name.removeprefix("x-ratelimit-reset")
        if kind == name or headers.get(f"x-ratelimit-remaining{kind}", "0") != "0":
            continue
        if parts := _DURATION.findall(value):  # "6m0s", "7.66s"
            waits.append(sum(float(number) * _UNITS[unit] for number, unit in parts))
        else:
            number = float(value)  # seconds, or a time in seconds or milliseconds since 1970
            moment = number / 1000 if number > 1e11 else number
            waits.append(moment - time.time() if moment > 1e8 else moment)
    return _seconds(max(waits)) if waits else None


def _seconds(value: float) -> float | None:
    return max(value, 0.0) if math.isfinite(value) else None
