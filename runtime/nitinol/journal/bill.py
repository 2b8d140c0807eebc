"""The bill: sums of its rows, by agent, key, model and day."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from nitinol import events as ev
from nitinol.budget import periods
from nitinol.usage import NO_USAGE, Usage

By = Literal["agent", "key", "model", "day"]


@dataclass(frozen=True, slots=True)
class Spent:
    """A sum of rows of the bill, one for each attempt at a model."""

    usage: Usage = NO_USAGE
    priced: Decimal = Decimal(0)
    """US dollars, of the rows that have a price."""
    unpriced: int = 0
    """Rows whose cost is not known."""

    @property
    def cost(self) -> Decimal | None:
        """US dollars; `None` = unknown, as a row has no price."""
        return None if self.unpriced else self.priced

    def plus(self, row: ev.UsageUpdated) -> Spent:
        """With one more row."""
        cost = Decimal(0) if row.cost is None else row.cost
        return Spent(self.usage + row.usage, self.priced + cost, self.unpriced + (row.cost is None))

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.usage + other.usage, self.priced + other.priced, self.unpriced + other.unpriced)


NOTHING = Spent()


def scopes_of(row: ev.UsageUpdated) -> tuple[tuple[By, str], ...]:
    """Where a row of the bill counts: (scope, name)."""
    return (
        ("agent", row.agent),
        ("day", periods(row.ts)[0]),
        ("key", row.key),
        ("model", f"{row.provider}:{row.model}"),
    )


def sum_of(bill: Iterable[ev.UsageUpdated]) -> dict[tuple[By, str], Spent]:
    """What rows of the bill come to in each scope they count in: (scope, name) to the sum."""
    sums: dict[tuple[By, str], Spent] = {}
    shared: dict[tuple[tuple[By, str], ...], Spent] = {}
    for row in bill:
        agent, day, key, model = scopes_of(row)
        sums[key] = sums.get(key, NOTHING).plus(row)
        shared[agent, day, model] = shared.get((agent, day, model), NOTHING).plus(row)
    for scopes, spent in shared.items():
        for at in scopes:
            sums[at] = sums.get(at, NOTHING) + spent
    return sums
