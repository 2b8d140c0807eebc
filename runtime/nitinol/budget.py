"""Budgets: how much may be spent, and how much of that the next request may take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, get_args

from nitinol.prices import Money, PriceList, to_money
from nitinol.usage import is_count

Period = Literal["day", "month"]

FLOOR = 256
"""Under this many output tokens a request is not worth sending."""
UNSAID = 8_192
"""Output tokens that an answer may have under a budget where neither the user nor the provider says how many."""
FRACTIONS = (0.5, 0.8, 0.95)
"""Of a limit: what is spent beyond each is warned of once."""
MARGIN = Decimal("1.25")
"""What a request's input is reserved at, over the estimate of its tokens."""
_DAY = 86_400 * 10**9
"""Nanoseconds."""


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """A limit on what may be spent, in money, in tokens, or in both.

    Args:
        usd: US dollars, as `"0.50"`; never a float.
        cents: US cents, instead of `usd`.
        tokens: Input and output tokens together.
        per: For a key or a store: the limit is of each UTC day or calendar month. `None` = for life.
    """

    usd: Decimal | None
    tokens: int | None
    per: Period | None

    def __init__(
        self,
        *,
        usd: Money | None = None,
        cents: Money | None = None,
        tokens: int | None = None,
        per: Period | None = None,
    ) -> None:
        if usd is not None and cents is not None:
            raise ValueError("Budget takes usd= or cents=, not both")
        if usd is None and cents is None and tokens is None:
            raise ValueError("Budget() limits nothing; give usd=, cents= or tokens=")
        if tokens is not None and not is_count(tokens):
            raise ValueError(f"Budget(tokens={tokens!r}) must be a whole number, zero or more")
        if per is not None and per not in get_args(Period):  # pyright: ignore[reportUnnecessaryContains]
            raise ValueError(f"Budget(per={per!r}) must be 'day', 'month' or None")
        money = to_money(usd, "usd") if usd is not None else None
        if cents is not None:
            money = to_money(cents, "cents") / 100
        object.__setattr__(self, "usd", money)
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "per", per)

    @property
    def limit(self) -> str:
        """As words, for events and errors."""
        limits = [f"${self.usd}"] * (self.usd is not None) + [f"{self.tokens} tokens"] * (self.tokens is not None)
        return " and ".join(limits) + (f" per {self.per}" if self.per else "")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data."""
        usd = None if self.usd is None else str(self.usd)
        return {
            name: value
            for name, value in (("usd", usd), ("tokens", self.tokens), ("per", self.per))
            if value is not None
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Budget | None:
        """The inverse of `to_json`; `None` gives `None`."""
        return None if data is None else cls(**data)

    def fraction(self, spent: Amount) -> float:
        """How much of it is spent: the larger part, of money or tokens."""
        parts = [0.0]
        if self.usd is not None:
            parts.append(float(spent.usd / self.usd) if self.usd else float(spent.usd > 0))
        if self.tokens is not None:
            parts.append(spent.tokens / self.tokens if self.tokens else float(spent.tokens > 0))
        return max(parts)

    def passed(self, before: Amount, after: Amount) -> float | None:
        """The highest of `FRACTIONS` that was passed by spending from one to the other."""
        low, high = self.fraction(before), self.fraction(after)
        return max((fraction for fraction in FRACTIONS if low < fraction <= high), default=None)


@dataclass(frozen=True, slots=True)
class Amount:
    """Money and tokens together: what is spent, reserved or needed."""

    usd: Decimal = Decimal(0)
    """Of what has a price."""
    tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.usd + other.usd, self.tokens + other.tokens)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.usd - other.usd, self.tokens - other.tokens)

    def __str__(self) -> str:
        return f"${self.usd}, {self.tokens} tokens"


NOTHING = Amount()


def periods(ts: int) -> tuple[str, str]:
    """The UTC day and the month of a time in nanoseconds since 1970: `2026-11-25` and `2026-11`."""
    return _periods(ts // _DAY)


@lru_cache(8)
def _periods(day: int) -> tuple[str, str]:
    date = f"{datetime.fromtimestamp(day * _DAY / 1e9, UTC):%Y-%m-%d}"
    return date, date[:7]


@dataclass(frozen=True, slots=True)
class Spending:
    """What was spent in a life, and in the day and month of the last of it."""

    total: Amount = NOTHING
    day: str = ""
    in_day: Amount = NOTHING
    in_month: Amount = NOTHING

    def plus(self, amount: Amount, ts: int) -> Spending:
        """With more, spent at a time in nanoseconds since 1970."""
        day, month = periods(ts)
        return Spending(
            self.total + amount,
            day,
            self.in_day + amount if day == self.day else amount,
            self.in_month + amount if month == self.day[:7] else amount,
        )

    def of(self, period: Period | None, now: int) -> Amount:
        """What counts now against a limit of this period."""
        day, month = periods(now)
        if period is None:
            return self.total
        if period == "day":
            return self.in_day if day == self.day else NOTHING
        return self.in_month if month == self.day[:7] else NOTHING


UNSPENT = Spending()


@dataclass(frozen=True, slots=True)
class Account:
    """One scope of a request, at a moment."""

    scope: str
    """`run:…`, `key:…` or `store`."""
    budget: Budget
    spent: Amount
    """Settled."""
    reserved: Amount = NOTHING
    """By others, in flight."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A request may be sent."""

    amount: Amount
    """Its worst case, which is reserved."""
    max_output_tokens: int | None = None
    """That its answer may have; `None` = no limit is known, and no budget needs one."""
    capped: str | None = None
    """The scope whose budget has lowered it."""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request may not be sent, whatever those in flight come to."""

    scope: str
    limit: str
    spent: str
    needed: str


def bound(estimated_tokens: int) -> int:
    """How many input tokens a request of this estimate is reserved at."""
    return int(estimated_tokens * MARGIN) + 1


def decide(
    accounts: Sequence[Account], input_tokens: int, max_output_tokens: int | None, prices: PriceList | None
) -> Grant | Refusal | None:
    """Whether a request may be sent, by all its accounts together.

    Args:
        accounts: Every scope that has a budget.
        input_tokens: Of the request, at most.
        max_output_tokens: Of the answer, as the user or the model has it; `None` = unknown, and `UNSAID` under a budget.
        prices: Of the model; without them money limits nothing.

    Returns:
        `None`: there is room, but others have reserved it; ask again when one of them is settled. A limit is lowered, and
        a request refused, only for what is spent.
    """
    if not accounts:
        return Grant(_amount(prices, input_tokens, max_output_tokens or 0), max_output_tokens)
    allowed = UNSAID if max_output_tokens is None else max_output_tokens
    least, capped = min(FLOOR, allowed), None
    for account in accounts:
        room = _limit(account.budget) - account.spent
        affordable = _affordable(account.budget, room, input_tokens, least, allowed, prices)
        if affordable is None:
            needed = _amount(prices, input_tokens, least)
            return Refusal(account.scope, account.budget.limit, str(account.spent), _needed(account.budget, needed))
        if affordable < allowed:
            allowed, capped = affordable, account.scope
    amount = _amount(prices, input_tokens, allowed)
    for account in accounts:
        left = _limit(account.budget) - account.spent - account.reserved
        limited = account.budget.usd is not None and prices is not None and amount.usd > left.usd
        if limited or (account.budget.tokens is not None and amount.tokens > left.tokens):
            return None
    return Grant(amount, allowed, capped, tuple(account.scope for account in accounts))


def _amount(prices: PriceList | None, input_tokens: int, output_tokens: int) -> Amount:
    return Amount(_price(prices, input_tokens, output_tokens), input_tokens + output_tokens)


def _limit(budget: Budget) -> Amount:
    return Amount(budget.usd or Decimal(0), budget.tokens or 0)


def _price(prices: PriceList | None, input_tokens: int, output_tokens: int) -> Decimal:
    price = prices.at_most(input_tokens, output_tokens) if prices is not None else None
    return Decimal(0) if price is None else price


def _needed(budget: Budget, amount: Amount) -> str:
    parts = [f"${amount.usd}"] * (budget.usd is not None) + [f"{amount.tokens} tokens"] * (budget.tokens is not None)
    return " and ".join(parts)


def _affordable(
    budget: Budget, room: Amount, input_tokens: int, least: int, most: int, prices: PriceList | None
) -> int | None:
    """The most output tokens that the room pays for, `most` at most; `None` where it is under `least`."""
    if budget.tokens is not None:
        most = min(most, room.tokens - input_tokens)
        if most < least:
            return None
    if budget.usd is None or prices is None:
        return most
    if _price(prices, input_tokens, least) > room.usd:
        return None
    if _price(prices, input_tokens, most) <= room.usd:
        return most
    while least < most:  # by bisection: prices may have tiers
        middle = (least + most + 1) // 2
        if _price(prices, input_tokens, middle) <= room.usd:
            least = middle
        else:
            most = middle - 1
    return least
