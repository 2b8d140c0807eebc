"""Large parts of events are kept beside the log, once each, by their hash: the log stays quick to read and to copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, cast

LARGE = 64 * 1024
"""Bytes of a string from which on it is kept apart."""
_MARK = "\x00blob:"


def part(body: bytes) -> tuple[bytes, dict[str, bytes]]:
    """An event's body without its large strings, and these by their hash."""
    if len(body) <= LARGE:
        return body, {}
    large: dict[str, bytes] = {}

    def replace(text: str) -> str:
        marked = text.startswith(_MARK)  # as only a mark may be
        data = text.encode() if marked or len(text) * 4 > LARGE else b""
        if len(data) <= LARGE and not marked:
            return text
        name = hashlib.sha256(data).hexdigest()
        large[name] = data
        return _MARK + name

    whole = _walk(json.loads(body), replace)
    return (json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode(), large) if large else (body, large)


def join(body: bytes, names: Iterable[str], fetch: Callable[[str], bytes]) -> bytes:
    """The inverse of `part`."""
    marks = {_MARK + name: name for name in names}

    def replace(text: str) -> str:
        return fetch(marks[text]).decode() if text in marks else text

    return json.dumps(_walk(json.loads(body), replace), ensure_ascii=False, separators=(",", ":")).encode()


def _walk(value: Any, replace: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, dict):
        return {name: _walk(item, replace) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_walk(item, replace) for item in value]  # pyright: ignore[reportUnknownVariableType] # any JSON
    return value
