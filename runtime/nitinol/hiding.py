"""What must not be kept of a request and its answer, and how it is hidden."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlsplit

from nitinol.http_errors import keys_in

KEY = "[key]"
"""What stands in the place of a key."""
LEAST = 4
"""Characters of a word that is looked for everywhere: a shorter one stands in too many others."""
_VARIABLE = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$")
_FIELD = re.compile(
    r"^(x[-_])?(api[-_]?key|access[-_]?token|auth[-_]?token|client[-_]?secret|secret|password|authorization)$", re.I
)
_IN_QUERY = re.compile(r"key|token|secret|password|sig", re.I)
_SHAPE = rb"(?<![A-Za-z0-9])(?:sk|gsk|xai|hf|AIza)[-_]?(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{20,}"
"""How the keys of many vendors look."""


def secrets_of(url: str, headers: Mapping[str, str], body: Any) -> set[str]:
    """What a request carries where keys belong: in headers, in its address, in fields of its body (parsed JSON)."""
    found = set(keys_in(headers))
    for word in list(found):
        with suppress(binascii.Error, UnicodeDecodeError):  # of `Basic`: a user and a password
            _, colon, password = base64.b64decode(word, validate=True).decode().partition(":")
            found.update([password] if colon else ())
    found.update(value for name, value in parse_qsl(urlsplit(url).query) if _IN_QUERY.search(name))
    found.update(_in_fields(body))
    return found


def telling_variables() -> dict[str, str]:
    """The variables of the environment whose names say that their values are secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and value and value != KEY and not os.path.exists(value)
    }


class Hidden:
    """Writes `[key]` wherever one of these words stands, also as JSON and addresses write it, or what looks like a key."""

    def __init__(self, secrets: Iterable[str], *, always: Iterable[str] = ()) -> None:
        """Some secrets may be common words, and are left then; others are hidden `always`."""
        words: set[bytes] = set()
        for secret in [*filter(_is_telling, secrets), *always]:
            written = (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])
            words.update(word.encode("utf-8", "replace") for word in written)
        self._pattern = re.compile(b"|".join([*map(re.escape, sorted(words, key=len, reverse=True)), _SHAPE]))

    def in_text(self, text: str) -> str:
        """Of an error, or a header."""
        return self._pattern.sub(KEY.encode(), text.encode("utf-8", "replace")).decode()

    def in_json(self, value: Any) -> Any:
        """Of a body: fields that are called `api_key` or the like hold nothing else."""
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {
                self.in_text(name): KEY if isinstance(item, str) and _FIELD.match(name) else self.in_json(item)
                for name, item in fields.items()
            }
        if isinstance(value, list):
            return [self.in_json(item) for item in cast("list[Any]", value)]  # type: ignore[redundant-cast] # not for pyright
        return self.in_text(value) if isinstance(value, str) else value

    def in_url(self, url: str) -> str:
        """Of an address: without its user, and without the values of parameters such as `key`."""
        parts = urlsplit(url)
        pairs = (pair.partition("=") for pair in parts.query.split("&") if pair)
        query = "&".join(f"{name}{sign}{KEY if _IN_QUERY.search(name) else value}" for name, sign, value in pairs)
        return self.in_text(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query).geturl())

    def in_chunks(self, chunks: Sequence[bytes]) -> list[bytes]:
        """The same chunks; a key that lies across several is replaced in the first, and gone from the others."""
        whole = b"".join(chunks)
        spans = [match.span() for match in self._pattern.finditer(whole)]
        if not spans:
            return list(chunks)
        pieces: list[bytes] = []
        start = 0
        for chunk in chunks:
            end, at, piece = start + len(chunk), start, b""
            for begins, ends in spans:
                if begins < end and ends > start:
                    if begins >= start:
                        piece += whole[at:begins] + KEY.encode()
                    at = min(ends, end)
            pieces.append(piece + whole[at:end])
            start = end
        return [piece for piece in pieces if piece]


def _is_telling(secret: str) -> bool:
    """Whether it can be looked for everywhere, and is no common word."""
    return len(secret) >= 8 or (len(secret) >= LEAST and any(character.isdigit() for character in secret))


def _in_fields(value: Any) -> Generator[str, None, None]:
    if isinstance(value, dict):
        for name, item in cast("dict[str, Any]", value).items():
            if isinstance(item, str) and _FIELD.match(name):
                yield item
            else:
                yield from _in_fields(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):  # type: ignore[redundant-cast] # not for pyright
            yield from _in_fields(item)
