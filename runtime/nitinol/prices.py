"""Prices: what a usage costs, in `Decimal` US dollars, or `None` where nobody knows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Protocol, runtime_checkable

from nitinol.logs import get_logger
from nitinol.usage import Usage

Money = str | int | Decimal
"""An amount a user writes. Floats are refused: 0.1 is not a tenth."""

_MILLION = Decimal(1_000_000)
MAGNITUDE = 100
"""The largest power of ten of an amount, and the smallest: what is beyond could not be reckoned with."""


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
    if amount and abs(amount.adjusted()) > MAGNITUDE:
        raise ValueError(f"{name}={value!r} is no amount of money")
    return amount


@runtime_checkable
class PriceList(Protocol):
    """What the runtime asks of prices. Providers may add tiers, hour-long cache writes and tool fees."""

    @property
    def source(self) -> str:
        """Where the prices come from, with a date; it stands in every `usage.updated`."""
        ...

    def cost(self, usage: Usage) -> Decimal | None:
        """What this usage of one attempt costs; `None` where a part of it has no known price."""
        ...

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """The dearest that this many tokens can cost, or fewer: no usage within them costs more, but for server tools."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class Prices:
    """Flat prices in US dollars: of a million tokens, of a call, of a request.

    Args:
        input: For input that is neither read from nor written to a cache.
        output: For output.
        cache_read: For input read from a cache; `None` means as `input`.
        cache_write: For input written to a cache; `None` means as `input`.
        cache_write_1h: For input written to a cache for an hour; `None` means as `cache_write`.
        reasoning: For output that is thinking; `None` means as `output`.
        server_tool_call: For one call of the provider's own tools, which no number of tokens pays for; `None` means that
            nobody knows, and then a usage with such calls has no known cost.
        request: For each request, whatever it says.
        source: Where they come from.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal
    reasoning: Decimal
    server_tool_call: Decimal | None
    request: Decimal
    source: str

    def __init__(
        self,
        *,
        input: Money,
        output: Money,
        cache_read: Money | None = None,
        cache_write: Money | None = None,
        cache_write_1h: Money | None = None,
        reasoning: Money | None = None,
        server_tool_call: Money | None = None,
        request: Money = 0,
        source: str = "given",
    ) -> None:
        fresh, answer = to_money(input, "input"), to_money(output, "output")
        write = fresh if cache_write is None else to_money(cache_write, "cache_write")
        for name, value in {
            "input": fresh,
            "output": answer,
            "cache_read": fresh if cache_read is None else to_money(cache_read, "cache_read"),
            "cache_write": write,
            "cache_write_1h": write if cache_write_1h is None else to_money(cache_write_1h, "cache_write_1h"),
            "reasoning": answer if reasoning is None else to_money(reasoning, "reasoning"),
            "server_tool_call": None if server_tool_call is None else to_money(server_tool_call, "server_tool_call"),
            "request": to_money(request, "request"),
            "source": source,
        }.items():
            object.__setattr__(self, name, value)

    def cost(self, usage: Usage) -> Decimal | None:
        """The cost; `None` if the provider's own tools were called, and the fee of a call is not known."""
        calls, read, hour = usage.server_tool_calls, usage.cache_read_tokens, usage.cache_write_1h_tokens
        if calls and self.server_tool_call is None:
            return None
        write = max(usage.cache_write_tokens, hour)
        total = max(usage.input_tokens - read - write, 0) * self.input + usage.output_tokens * self.output
        if read:
            total += read * self.cache_read
        if write:
            total += (write - hour) * self.cache_write + hour * self.cache_write_1h
        if self.reasoning != self.output:
            total += min(usage.reasoning_tokens, usage.output_tokens) * (self.reasoning - self.output)
        total = total / _MILLION + self.request
        return total + calls * self.server_tool_call if calls and self.server_tool_call is not None else total

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Every token at the dearest price there is for it; no call of the provider's own tools."""
        read = max(self.input, self.cache_read, self.cache_write, self.cache_write_1h)
        return (input_tokens * read + output_tokens * max(self.output, self.reasoning)) / _MILLION + self.request


@dataclass(frozen=True, slots=True)
class Sound:
    """A price list of anybody's, as the runtime asks it: `None` where it raises, or gives what is no amount."""

    prices: PriceList

    @property
    def source(self) -> str:
        """As the list says; its class, where it does not."""
        with suppress(Exception):
            return str(self.prices.source)
        return type(self.prices).__name__

    def cost(self, usage: Usage) -> Decimal | None:
        """As the list says; `None` and an error in the log where that is no amount."""
        return self._amount("cost", usage)

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """As the list says; `None` and an error in the log where that is no amount."""
        return self._amount("at_most", input_tokens, output_tokens)

    def _amount(self, name: str, *of: object) -> Decimal | None:
        try:
            amount: object = getattr(self.prices, name)(*of)
        except Exception as error:
            get_logger().error("prices raised", prices=type(self.prices).__name__, method=name, exc_info=error)
            return None
        if amount is None or (isinstance(amount, Decimal) and amount.is_finite() and amount >= 0):
            return amount
        get_logger().error("prices gave no amount", prices=type(self.prices).__name__, method=name, amount=repr(amount))
        return None
