"""Prices: what a usage costs, in `Decimal` US dollars, or `None` where nobody knows."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Protocol, runtime_checkable

from nitinol.usage import Usage

Money = str | int | Decimal
"""An amount a user writes. Floats are refused: 0.1 is not a tenth."""

_MILLION = Decimal(1_000_000)


def to_money(value: Money, name: str) -> Decimal:
    """Read an amount of dollars.

    Raises:
        TypeError: It is a float.
        ValueError: It is not a number, or negative.
    """
    if isinstance(value, float) or not isinstance(value, (str, int, Decimal)) or isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance] # users write what they like
        raise TypeError(
            f"{name}={value!r}: money is a str, an int or a Decimal, never a float; write {name}={str(value)!r}"
        )
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise ValueError(f"{name}={value!r} is not an amount") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{name}={value!r} must be zero or more")
    return amount


@runtime_checkable
class PriceList(Protocol):
    """What the runtime asks of prices. Providers may add tiers, hour-long cache writes and tool fees."""

    @property
    def source(self) -> str:
        """Where the prices come from, with a date; it stands in every `usage.updated`."""
        ...

    def cost(self, usage: Usage) -> Decimal | None:
        """What this usage costs; `None` where a part of it has no known price."""
        ...

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """The dearest that this many tokens can cost."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class Prices:
    """Flat prices in US dollars per million tokens.

    Args:
        input: For input that is neither read from nor written to a cache.
        output: For all output, reasoning included.
        cache_read: For input read from a cache; `None` means as `input`.
        cache_write: For input written to a cache; `None` means as `input`.
        source: Where they come from.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    source: str

    def __init__(
        self,
        *,
        input: Money,
        output: Money,
        cache_read: Money | None = None,
        cache_write: Money | None = None,
        source: str = "given",
    ) -> None:
        base = to_money(input, "input")
        for name, value in {
            "input": base,
            "output": to_money(output, "output"),
            "cache_read": base if cache_read is None else to_money(cache_read, "cache_read"),
            "cache_write": base if cache_write is None else to_money(cache_write, "cache_write"),
            "source": source,
        }.items():
            object.__setattr__(self, name, value)

    def cost(self, usage: Usage) -> Decimal | None:
        """The cost; `None` if server tools were called, whose fees are not in these prices."""
        if usage.server_tool_calls:
            return None
        fresh = max(usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens, 0)
        return (
            fresh * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        ) / _MILLION

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """Every input token at the dearest input price."""
        dearest = max(self.input, self.cache_read, self.cache_write)
        return (input_tokens * dearest + output_tokens * self.output) / _MILLION
