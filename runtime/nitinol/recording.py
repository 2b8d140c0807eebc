"""Recordings of what providers said: taken once from the network, without secrets, and played again byte for byte.

A file of JSON, line by line; the lines of an exchange stand together, in the order of their requests:

    {"recording": 1, "keys": ["GROQ_API_KEY"]}
    {"request": {"method": "POST", "url": "https://…/chat/completions", "body": {…}}}
    {"answer": {"status": 200, "headers": {"content-type": "text/event-stream"}}}
    {"chunk": "data: {…}\\n\\n"}
    {"end": "whole"}

`keys` names the variables whose values were sent as keys. Of a request there are no headers, of an answer those that the
runtime reads. A chunk that is no text by itself, as a character lies across its end, is `{"base64": "…"}`. An exchange ends
`whole`, `cut` with the transport's `error`, or `left`: its reader went before the end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from nitinol import http
from nitinol.errors import ConfigurationError, ConnectionFailed, NotRecorded
from nitinol.hiding import KEY, Hidden, secrets_of, telling_variables
from nitinol.http import Answer, Request, Send
from nitinol.http_errors import is_read
from nitinol.logs import describe

VERSION = 1
VARIABLE = "NITINOL_RECORD"
_OURS = re.compile(r"(?<![0-9A-Z])[0-9A-HJKMNP-TV-Z]{26}(?![0-9A-Z])|nitinol-[0-9a-f]{40}")
"""Ids of runs and keys, and their digests: each run has others, and providers may send them."""


@dataclass(slots=True)
class Exchange:
    """A request and what came of it."""

    method: str
    url: str
    body: Any
    """Parsed JSON; `None` = there was none."""
    status: int | None = None
    """`None` = no answer came."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    chunks: list[bytes] = field(default_factory=list[bytes])
    end: Literal["whole", "cut", "left"] = "left"
    error: str | None = None
    secrets: set[str] = field(default_factory=set[str])
    """What must not be kept of it. Never written."""
    asked: dict[str, Any] | None = None
    """What a request is compared with, once that was needed. Never written."""


class Recording:
    """What `record` gives: a recording that is taken, or one that is played."""

    def __init__(self, path: Path, exchanges: Sequence[Exchange] = (), *, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new
        """Whether it is taken now, from the network."""
        self._exchanges = list(exchanges)
        self._left = list(exchanges)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many requests are in it."""
        return len(self._exchanges)

    def __repr__(self) -> str:
        return f"<Recording {str(self.path)!r}, {'taken' if self.is_new else 'played'}, {len(self)} requests>"

    def assert_exhausted(self) -> None:
        """Of a recording that is played: every request of it was made again."""
        if not self.is_new:
            assert not self._left, f"{len(self._left)} of {len(self)} requests were not made; {_told(self._left[0])}"

    # -- taken

    async def _take(self, request: Request, send: Send) -> Answer:
        body = _parsed(request.body)
        exchange = Exchange(request.method, request.url, body, secrets=secrets_of(request.url, request.headers, body))
        self._exchanges.append(exchange)
        try:
            answer = await send(request)
        except asyncio.CancelledError:
            self._exchanges.remove(exchange)  # nothing came of it; if it is made again, that is what is played
            raise
        except Exception as error:
            exchange.end, exchange.error = "cut", describe(error) or type(error).__name__
            raise
        exchange.status = answer.status_code
        exchange.headers = {name: value for name, value in answer.headers.items() if is_read(name)}
        return _Taken(answer, exchange)

    def _write(self, secrets: Iterable[str]) -> None:
        telling = telling_variables()
        sent = set[str]().union(*(exchange.secrets for exchange in self._exchanges))
        keys = sorted(name for name, value in telling.items() if value in sent)
        hidden = Hidden({*secrets, *sent, *telling.values()})
        lines: list[dict[str, Any]] = [{"recording": VERSION, "keys": keys}]
        for exchange in self._exchanges:
            lines += _lines(exchange, hidden)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            beside.write_bytes(text.encode("utf-8", "replace"))
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)

    # -- played

    async def _play(self, request: Request, send: Send) -> Answer:
        body = _parsed(request.body)
        hidden = Hidden({*secrets_of(request.url, request.headers, body), *telling_variables().values()})
        sent = _settled(_kept(Exchange(request.method, request.url, body), hidden))
        with self._lock:
            found = next((each for each in self._left if _difference(_asked(each), sent) is None), None)
            if found is None:
                raise NotRecorded(self._missing(sent))
            self._left.remove(found)
        if found.status is None:
            raise ConnectionFailed(f"as recorded: {found.error or 'no answer came'}")
        return _Played(found)

    def _missing(self, sent: dict[str, Any]) -> str:
        again = f"record it again: delete the file, or set {VARIABLE}=again"
        asked = f"{sent['method']} {sent['url']} is not in the recording {str(self.path)!r}"
        if not self._left:
            return f"{asked}: its {len(self)} requests were all made before; {again}"
        text = json.dumps(sent, sort_keys=True)
        nearest = max(self._left, key=lambda each: _common(json.dumps(_asked(each), sort_keys=True), text))
        number = next(number for number, each in enumerate(self._exchanges, start=1) if each is nearest)
        return f"{asked}: request {number} of {len(self)} is most like it, and differs in {_difference(_asked(nearest), sent)}; {again}"


@contextmanager
def record(
    path: str | os.PathLike[str], *, again: bool = False, secrets: Sequence[str] = ()
) -> Generator[Recording, None, None]:
    """Take a recording of all requests to providers, of whatever runtime; if the file is there, play it instead.

    What is played needs no network and no key, has the same bytes in the same chunks, and waits for no retry. Any number of
    requests may be under way at once: each is answered by the first exchange, of those that were not yet played, with
    the same method, address and body, whatever ids of runs are in it. One that is not in the recording fails its run with `NotRecorded`, which names the
    first difference.

    No key is kept: neither those in headers, of which none are written, nor where they appear again in addresses, bodies and
    answers; nor the values of variables such as `…_KEY`, `…_TOKEN` and `…_SECRET`, of fields such as `api_key` and `password`, nor
    what looks like a vendor's key. What a model spells in pieces is not found. Look through a file before you share it.

    Args:
        path: The file. It is written at the end of the block, whole, unless the block raises or made no request.
        again: Take it anew, though it is there. `NITINOL_RECORD=again` does so for all; with `NITINOL_RECORD=never`, for
            where no network may be touched, a file that is missing is an error.
        secrets: Further words that must not be kept.

    Raises:
        ConfigurationError: The file is no recording, or of a newer version; or it is missing, and may not be taken.
    """
    wanted = os.environ.get(VARIABLE) or None
    if wanted not in (None, "again", "never"):
        raise ConfigurationError(f"{VARIABLE}={wanted!r} must be 'again' or 'never', or not set")
    file = Path(path)
    there = file.exists()
    if wanted == "never" and (again or not there):
        raise ConfigurationError(
            f"there is no recording {str(file)!r} to play, and {VARIABLE}=never lets none be taken"
        )
    if there and not again and wanted != "again":
        keys, exchanges = _read(file)
        played = Recording(file, exchanges, is_new=False)
        with _placeholders(keys), http.tap(played._play):  # pyright: ignore[reportPrivateUsage]
            _playing.append(played)
            try:
                yield played
            finally:
                _playing.remove(played)
        return
    taken = Recording(file, is_new=True)
    with http.tap(taken._take):  # pyright: ignore[reportPrivateUsage]
        yield taken
    if len(taken):
        taken._write(secrets)  # pyright: ignore[reportPrivateUsage]


def is_playing() -> bool:
    """Whether a recording stands for the network: then nobody waits for it."""
    return bool(_playing)


class _Taken:
    """An answer from the network, and its copy."""

    def __init__(self, answer: Answer, exchange: Exchange) -> None:
        self.status_code, self.headers = answer.status_code, answer.headers
        self._answer, self._exchange = answer, exchange

    async def chunks(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            async for chunk in self._answer.chunks():
                exchange.chunks.append(chunk)
                yield chunk
            exchange.end = "whole"
        except Exception as error:
            exchange.end, exchange.error = "cut", describe(error) or type(error).__name__
            raise

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Played:
    """An answer out of a recording."""

    def __init__(self, exchange: Exchange) -> None:
        self.status_code: int = exchange.status or 0
        self.headers: Mapping[str, str] = exchange.headers
        self._exchange = exchange

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._exchange.chunks:
            await asyncio.sleep(0)  # as from a network: others have their turn
            yield chunk
        if self._exchange.end != "whole":
            raise ConnectionFailed(f"as recorded: {self._exchange.error or 'nothing more was read'}")

    async def aclose(self) -> None:
        """Nothing is open."""


# ---- the file


def _lines(exchange: Exchange, hidden: Hidden) -> Generator[dict[str, Any], None, None]:
    yield {"request": _kept(exchange, hidden)}
    if exchange.status is not None:
        headers = {name: hidden.in_text(value) for name, value in exchange.headers.items()}
        yield {"answer": {"status": exchange.status, "headers": headers}}
    for chunk in hidden.in_chunks(exchange.chunks):
        try:
            yield {"chunk": chunk.decode()}
        except UnicodeDecodeError:
            yield {"chunk": {"base64": base64.b64encode(chunk).decode()}}
    error = {} if exchange.error is None else {"error": hidden.in_text(exchange.error)}
    yield {"end": exchange.end, **error}


def _kept(exchange: Exchange, hidden: Hidden) -> dict[str, Any]:
    body = {} if exchange.body is None else {"body": hidden.in_json(exchange.body)}
    return {"method": exchange.method, "url": hidden.in_url(exchange.url), **body}


def _asked(exchange: Exchange) -> dict[str, Any]:
    if exchange.asked is None:
        body = {} if exchange.body is None else {"body": exchange.body}
        exchange.asked = _settled({"method": exchange.method, "url": exchange.url, **body})
    return cast("dict[str, Any]", exchange.asked)


def _read(path: Path) -> tuple[list[str], list[Exchange]]:
    keys: list[str] = []
    exchanges: list[Exchange] = []
    number = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                read: dict[str, Any] = json.loads(line)
                kind, value = next(iter(read.items()))
                match kind:
                    case "recording" if number == 1:
                        if value != VERSION:
                            raise ConfigurationError(
                                f"recording {str(path)!r} is of version {value!r}, and this is version {VERSION}: update nitinol, or record it again"
                            )
                        keys = [str(name) for name in read["keys"]]
                    case "request" if number > 1:
                        exchanges.append(Exchange(value["method"], value["url"], value.get("body")))
                    case "answer":
                        exchanges[-1].status = int(value["status"])
                        exchanges[-1].headers = {name: str(text) for name, text in value["headers"].items()}
                    case "chunk":
                        is_text = isinstance(value, str)
                        chunk = value.encode() if is_text else base64.b64decode(value["base64"], validate=True)
                        exchanges[-1].chunks.append(chunk)
                    case "end" if value in ("whole", "cut", "left"):
                        exchanges[-1].end, exchanges[-1].error = value, read.get("error")
                    case _:
                        raise ValueError(f"{kind!r} cannot stand there")
    except ConfigurationError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, OSError) as error:
        raise ConfigurationError(f"{str(path)!r} is no recording: line {number}: {error!r}") from None
    if not keys and not exchanges:
        raise ConfigurationError(f"{str(path)!r} is no recording: it is empty")
    return keys, exchanges


def _parsed(body: bytes | None) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


@contextmanager
def _placeholders(names: Iterable[str]) -> Generator[None, None, None]:
    """Something in the place of keys that this environment does not have, so that providers do not ask for them."""
    missing = [name for name in names if not os.environ.get(name)]
    before = {name: os.environ.get(name) for name in missing}
    os.environ.update(dict.fromkeys(missing, KEY))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# ---- differences

_PASSING = ("prompt_cache_key",)
"""Fields of a body that ask for nothing: where a cache may be, by the agent's key, which is a fresh one if none was given."""


def _settled(value: Any, known: dict[str, str] | None = None) -> Any:
    """The same with our own ids numbered, in the order in which they come."""
    ids = {} if known is None else known
    if isinstance(value, dict):
        return {name: _settled(item, ids) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_settled(item, ids) for item in cast("list[Any]", value)]  # type: ignore[redundant-cast] # not for pyright
    if isinstance(value, str):
        return _OURS.sub(lambda found: ids.setdefault(found[0], f"<id {len(ids) + 1}>"), value)
    return value


def _difference(recorded: Any, sent: Any, where: str = "") -> str | None:
    """Where the two differ first, in words; `None` = nowhere. A key is like any other."""
    if type(recorded) is not type(sent):
        return f"{where}: recorded {_short(recorded)}, sent {_short(sent)}"
    if isinstance(recorded, str):
        if recorded == sent or re.fullmatch("(.+)".join(map(re.escape, recorded.split(KEY))), sent, re.DOTALL):
            return None
        start = max(_common(recorded, sent) - 20, 0)
        return f"{where}: recorded {_short(recorded[start:])}, sent {_short(sent[start:])}"
    if isinstance(recorded, dict):
        mine, theirs = cast("dict[str, Any]", recorded), cast("dict[str, Any]", sent)
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            if where == "body" and name in _PASSING:
                continue
            at = f"{where}.{name}" if where else name
            if name not in theirs:
                return f"{at}: recorded {_short(mine[name])}, not sent"
            if name not in mine:
                return f"{at}: not recorded, sent {_short(theirs[name])}"
            if (found := _difference(mine[name], theirs[name], at)) is not None:
                return found
        return None
    if isinstance(recorded, list):
        ours, others = cast("list[Any]", recorded), cast("list[Any]", sent)  # type: ignore[redundant-cast] # not for pyright
        for number, (one, other) in enumerate(zip(ours, others, strict=False)):
            if (found := _difference(one, other, f"{where}[{number}]")) is not None:
                return found
        return None if len(ours) == len(others) else f"{where}: recorded {len(ours)} items, sent {len(others)}"
    return None if recorded == sent else f"{where}: recorded {_short(recorded)}, sent {_short(sent)}"


def _common(one: str, other: str) -> int:
    """How many characters they have in common at their beginning."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _told(exchange: Exchange) -> str:
    return f"the first: {exchange.method} {exchange.url}"


_playing: list[Recording] = []
