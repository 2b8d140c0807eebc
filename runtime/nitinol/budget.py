"""Budgets: how much may be spent."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from nitinol.prices import Money, PriceList, to_money
from nitinol.usage import Usage


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """A limit on what a run may cost, in money or in tokens.

    Args:
        usd: US dollars, as `"0.50"`; never a float.
        cents: US cents, instead of `usd`.
        tokens: Input and output tokens together.
    """

    usd: Decimal | None
    tokens: int | None

    def __init__(self, *, usd: Money | None = None, cents: Money | None = None, tokens: int | None = None) -> None:
        if usd is not None and cents is not None:
            raise ValueError("Budget takes usd= or cents=, not both")
        if usd is None and cents is None and tokens is None:
            raise ValueError("Budget() limits nothing; give usd=, cents= or tokens=")
        if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"Budget(tokens={tokens!r}) must be a whole number, zero or more")
        money = to_money(usd, "usd") if usd is not None else None
        if cents is not None:
            money = to_money(cents, "cents") / 100
        object.__setattr__(self, "usd", money)
        object.__setattr__(self, "tokens", tokens)

    @property
    def limit(self) -> str:
        """As words, for events and errors."""
        return " and ".join(
            [f"${self.usd}"] * (self.usd is not None) + [f"{self.tokens} tokens"] * (self.tokens is not None)
        )


FLOOR = 256
"""Under this many output tokens a request is not worth sending."""
PLENTY = 1 << 20
"""More output tokens than any model gives: who can pay for these needs no cap."""


def spendable(
    budget: Budget,
    usage: Usage,
    cost: Decimal | None,
    input_tokens: int,
    max_output_tokens: int | None,
    prices: PriceList | None,
) -> int | str | None:
    """How many output tokens the next request may have.

    Returns:
        The cap, at most `max_output_tokens` (`None` = no cap is needed); or, as a `str`, what the request would need
        where the budget does not hold it.
    """
    caps = [] if max_output_tokens is None else [max_output_tokens]
    least = min([FLOOR, *caps])
    if budget.tokens is not None:
        left = budget.tokens - usage.total_tokens - input_tokens
        if left < least:
            return f"{input_tokens + least} tokens"
        caps.append(left)
    if budget.usd is not None and prices is not None:
        room = budget.usd - (cost or Decimal(0))
        floor = prices.at_most(input_tokens, least)
        if floor is not None:
            if floor > room:
                return f"${floor}"
            affordable = _affordable(prices, input_tokens, room, least, max_output_tokens or PLENTY)
            if affordable < PLENTY:
                caps.append(affordable)
    return min(caps) if caps else None


def _affordable(prices: PriceList, input_tokens: int, room: Decimal, least: int, most: int) -> int:
    """The most output tokens that `room` pays for, by bisection: prices may have tiers."""
    while least < most:
        middle = (least + most + 1) // 2
        price = prices.at_most(input_tokens, middle)
        if price is not None and price <= room:
            least = middle
        else:
            most = middle - 1
    return least
