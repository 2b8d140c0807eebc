"""What each generation of Claude takes, read off a model's name; no server is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_VERSION = re.compile(r"[-.@](\d{1,2})(?=[-.@]|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a model takes. The defaults are those of another vendor's model behind the same API."""

    max_output_tokens: int | None = None
    """The most that `max_tokens` may be; None = unknown."""
    thinking: Literal["budget", "both", "adaptive"] = "budget"
    """How it is told how much to think: by a number of tokens, by an effort, or by either."""
    temperature: bool = True
    """Whether it takes one, in the version of the API that has it."""
    json_schema: bool = False
    """Whether its answer can be held to a schema, without a tool."""


def abilities(model: str) -> Abilities:
    """Of a Claude, by its generation; one without a number in its name is taken for a new one."""
    name = model.lower()
    if "claude" not in name:
        return Abilities()
    version = _version(name)
    return Abilities(
        max_output_tokens=_most(name, version),
        thinking="budget" if version < (4, 6) else "both" if version < (4, 7) else "adaptive",
        temperature=version < (4, 7),
        json_schema=version >= (4, 5),
    )


def _version(name: str) -> tuple[int, int]:
    numbers = [int(number) for number in _VERSION.findall(name.partition("claude")[2])] or [99]
    return numbers[0], (*numbers, 0)[1]


def _most(name: str, version: tuple[int, int]) -> int:
    if version < (3, 5):
        return 4096
    if version < (3, 7):
        return 8192
    if "opus" in name and (4, 0) <= version < (4, 5):
        return 32_000
    return 64_000 if version < (4, 6) or ("sonnet" in name and version < (4, 7)) else 128_000
