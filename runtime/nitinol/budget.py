"""Budgets: how much may be spent."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from nitinol.prices import Money, to_money


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
        if tokens is not None and tokens < 0:
            raise ValueError(f"Budget(tokens={tokens!r}) must be zero or more")
        money = to_money(usd, "usd") if usd is not None else None
        if cents is not None:
            money = to_money(cents, "cents") / 100
        object.__setattr__(self, "usd", money)
        object.__setattr__(self, "tokens", tokens)
