"""What a fake vendor says and hears, in one vocabulary for the four protocols; and the server that all of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

from tests import servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of a fake: what it thinks, says and calls, in this order."""

    thinking: str = ""
    text: str = ""
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()


Heard: TypeAlias = tuple[Literal["user", "assistant", "call", "result"], str]
"""A line of a conversation: who said what. A call is the tool's name and its arguments as JSON, their keys in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Tokens of one answer, as every fake counts them."""

    input: int
    output: int
    reasoning: int
    cached: int


def bill_of(request: servers.Request, turn: Turn) -> Bill:
    """A token for four bytes of what was asked, and for each word of the answer."""
    thought = len(turn.thinking.split())
    asked = len(request.body) // 4
    spoken = len(turn.text.split()) + sum(1 + len(json.dumps(arguments)) // 4 for _, arguments in turn.calls)
    return Bill(input=asked, output=1 + thought + spoken, reasoning=thought, cached=asked // 2)


class Fake(Protocol):
    """One vendor: it refuses what the vendor would, and signs what the vendor signs."""

    def read(self, request: servers.Request) -> tuple[list[str], list[Heard]]:
        """What is wrong with a request, or else the conversation that it holds."""
        ...

    def write(self, turn: Turn, bill: Bill) -> list[bytes]:
        """An answer as the vendor streams it, event by event."""
        ...

    def error(self, status: int, message: str) -> object:
        """An error as the vendor words it."""
        ...


Choose: TypeAlias = Callable[[servers.Request, Sequence[Heard]], "Turn | int"]
"""What to answer to a conversation: a turn, or the status of a refusal."""


@dataclass
class Vendor:
    """The script of a `tests.servers.Server`: refuses what is wrong with 400, and tells the rest to `choose`."""

    fake: Fake
    choose: Choose

    async def __call__(self, connection: servers.Connection) -> bool:
        faults, heard = self.fake.read(connection.request)
        said = 400 if faults else self.choose(connection.request, heard)
        if isinstance(said, int):
            error = self.fake.error(said, "; ".join(faults) or "not now")
            return bool(await servers.answer(said, error)(connection))
        pieces = self.fake.write(said, bill_of(connection.request, said))
        return bool(await servers.stream(*pieces)(connection))


def called(name: object, arguments: object) -> Heard:
    """The line of a call."""
    return "call", f"{name}{json.dumps(arguments, sort_keys=True, ensure_ascii=False)}"


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one in the place of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[Any]:
    """A JSON array, or an empty one in the place of anything else."""
    return value if isinstance(value, list) else ()  # pyright: ignore[reportUnknownVariableType] # JSON


def event(data: Mapping[str, Any]) -> bytes:
    """A server-sent event; its name is its data's type, where that has one."""
    name = b"event: %b\n" % data["type"].encode() if "type" in data else b""
    return b"%bdata: %b\n\n" % (name, json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())


def halves(text: str) -> tuple[str, str]:
    """A text in two pieces, as a stream would have it; the first may be empty."""
    return text[: len(text) // 2], text[len(text) // 2 :]
