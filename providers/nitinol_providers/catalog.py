"""Windows, limits and prices of vendors' models: genai-prices, imported on the first question, and `supplement` above it.

Prices are genai-prices' own, and so is the choice among its entries; but a name that only begins as an entry's does is
unknown, unless the rest is a date or a version: `claude-sonnet-4-60` is no `claude-sonnet-4-6`.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Any

from nitinol.prices import Prices
from nitinol.provider import KnownModel, ModelInfo
from nitinol.usage import Usage
from nitinol_providers import supplement
from nitinol_providers.vendors import VENDORS

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import MatchLogic, ModelPrice, TieredPrices
    from genai_prices.types import ModelInfo as Entry

VENDOR_IDS: Mapping[str, str] = {
    "anthropic": "anthropic",
    "gemini": "google",
    "openai": "openai",
    "xai": "x-ai",
    **{vendor.name: vendor.catalog for vendor in VENDORS.values() if vendor.catalog},
}
"""Our vendors' ids in genai-prices."""

_KEYS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "reasoning": "output_reasoning_mtok",
}
_CALLS = ("web_searches_kcount", "social_searches_kcount", "storage_searches_kcount", "code_executions_kcount")
# Of a picture or a sound in the input we do not know how many tokens it had, and charge it as text. What an answer is
# made of decides much more; a model that answers with pictures or sounds has no known price.
_AS_TEXT = re.compile(r"(input|cache)_(text|audio|image|video)(_read|_write|_write_1h|_write_5m)?_mtok")
_VERSION = re.compile(r"(?:[-@:.]?(?:latest|preview|exp|beta|\d{3,8}|\d{2}-\d{2,4}|\d{4}-\d{2}-\d{2})(?=[-@:.]|$))*")
_TUNED = re.compile(r"^(ft:[^:]+):.*")  # what follows a fine-tuned model's base is the owner's
_COMPACT_DATE = re.compile(r"-(20\d{2})(\d{2})(\d{2})$")
_AHEAD = timedelta(days=1)
"""Prices that begin before then may be those that a request of now is billed by."""


def model_info(model: str, *, vendor: str | None = None, url: str | None = None) -> ModelInfo:
    """What the catalogue knows of a model: its context window, the limit of its answers, and its prices.

    Args:
        model: The name sent to the vendor, whatever its case: dated (`claude-sonnet-4-6-20260101`), an alias
            (`mistral-large-latest`), or with Google's `models/` before it.
        vendor: The vendor's id in genai-prices, such as `"groq"`.
        url: Where `vendor` is None, the address of the API, by which the vendor is found.

    Returns:
        Nothing known (all None) for an unknown model or vendor: a price is never guessed, and never 0.
    """
    global _current
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    if snapshot is not _current:  # `genai_prices.UpdatePrices` has brought a newer one, if the user runs it
        _look_up.cache_clear()
        _current = snapshot
    if vendor is None:
        try:
            vendor = snapshot.find_provider(None, None, url).id
        except LookupError:
            return ModelInfo()
    return _look_up(model, vendor)


def known_models(name: str | None = None) -> Iterator[KnownModel]:
    """Every model whose prices are known, vendor by vendor. The entry point of `nitinol models`.

    Args:
        name: Instead, what each vendor serves under this name.
    """
    from genai_prices.data_snapshot import get_snapshot

    providers = {provider.id: provider for provider in get_snapshot().providers}
    for ours, vendor in sorted(VENDOR_IDS.items()):
        names = [name] if name is not None else [entry.id for entry in providers[vendor].models]
        for model in dict.fromkeys([*names, *(() if name else supplement.PRICES.get(vendor, ()))]):
            info = model_info(model, vendor=vendor)
            # Google's list has what other vendors' models cost in its cloud, which `gemini:` does not reach.
            if info.prices is not None and not (vendor == "google" and model.startswith("claude")):
                yield KnownModel(provider=ours, model=model, info=info)


@lru_cache(maxsize=4096)
def _look_up(model: str, vendor: str) -> ModelInfo:
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    name = model.lower().removeprefix("models/") if vendor == "google" else model.lower()
    served = supplement.SERVES.get(vendor, {}).get(name, name)
    entry = _entry(snapshot, served, vendor)
    names = (name, served, entry.id.lower() if entry is not None else served)
    return ModelInfo(
        context_window=_first(supplement.CONTEXT_WINDOWS, vendor, names)
        or (entry.context_window if entry is not None else None),
        max_output_tokens=_first(supplement.MAX_OUTPUT_TOKENS, vendor, names),
        prices=_prices(snapshot, vendor, name, entry) or _first(supplement.PRICES, vendor, names),
    )


def _first(table: Mapping[str, Mapping[str, Any]], vendor: str, names: tuple[str, ...]) -> Any:
    rows = table.get(vendor, {})
    return next((rows[name] for name in names if name in rows), None)


def _entry(snapshot: DataSnapshot, name: str, vendor: str) -> Entry | None:
    try:
        _, entry = snapshot.find_provider_model(name, None, vendor, None)
    except LookupError:
        return None
    base = _TUNED.sub(r"\1", name)
    names = (base, _COMPACT_DATE.sub(r"-\1-\2-\3", base))
    return entry if any(name == entry.id.lower() or _is_version(entry.match, name) for name in names) else None


def _is_version(match: MatchLogic, name: str) -> bool:
    """Whether a rule means just this name, or names it but for a date or a version at its end."""
    from genai_prices import types

    match match:
        case types.ClauseOr(or_=clauses):
            return any(_is_version(clause, name) for clause in clauses)
        case types.ClauseAnd(and_=clauses):
            return all(clause.is_match(name) for clause in clauses) and any(
                _is_version(clause, name) for clause in clauses if not isinstance(clause, types.ClauseRegex)
            )
        case types.ClauseStartsWith(starts_with=text) | types.ClauseContains(contains=text):
            before, found, after = name.partition(text.lower())
            return bool(found and (not before or before[-1] in "/.") and _VERSION.fullmatch(after))
        case types.ClauseEndsWith(ends_with=text):
            before = name.removesuffix(text.lower())
            return before != name and (not before or before[-1] in "/.")
        case _:
            return match.is_match(name)


def _prices(snapshot: DataSnapshot, vendor: str, name: str, entry: Entry | None) -> CatalogPrices | Prices | None:
    if entry is None:
        return None
    source = _source(snapshot)
    if vendor == "openrouter" and name.endswith(":free"):  # the suffix means so, and the entry has no prices
        return Prices(input=0, output=0, source=source)
    fee = supplement.SERVER_TOOL_FEES.get(vendor)
    periods = _periods(entry, fee, source if fee is None else f"{source}; fees of {supplement.DATE}")
    # Google bills the older models' searches by the request that needed any.
    return CatalogPrices(entry.id, periods, once=name.startswith("gemini-2.")) if periods else None


def _source(snapshot: DataSnapshot) -> str:
    if snapshot.from_auto_update:
        return f"genai-prices ({snapshot.timestamp:%Y-%m-%d})"
    return _bundled()


@lru_cache(maxsize=1)
def _bundled() -> str:
    package = distribution("genai-prices")
    if date := supplement.RELEASED.get(package.version):
        return f"genai-prices {package.version} ({date})"
    # A later version than our table knows: it is at most as old as its files here are.
    modified = datetime.fromtimestamp(os.path.getmtime(str(package.locate_file("genai_prices/data.py"))), UTC)
    return f"genai-prices {package.version} (installed {modified:%Y-%m-%d})"


# -- prices


@dataclass(frozen=True, slots=True)
class Period:
    """The prices of one period of time, by the length of the request."""

    constraint: Any
    """When they hold, as genai-prices says it; None = whenever nothing later in the list does."""
    starts: tuple[int, ...]
    """The lengths beyond which another of `prices` holds for all of a request, ascending."""
    prices: tuple[Prices, ...]
    """One more than `starts`."""

    def of(self, length: int) -> Prices:
        return self.prices[bisect_left(self.starts, length)] if self.starts else self.prices[0]

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal:
        # A request may turn out shorter, and a shorter one need not be cheaper.
        reached = self.prices[: bisect_left(self.starts, input_tokens) + 1]
        return max(prices.at_most(input_tokens, output_tokens) for prices in reached)


class CatalogPrices:
    """The prices of one model: a `PriceList` with tiers by the length of the request, off-peak hours and dated changes.

    The sum is our own, many times as fast as genai-prices'; a table of tests holds the two together.

    Args:
        model: Whose.
        periods: The last of those that hold now has the prices; the first, where none does.
        once: Whether the provider's own tools are billed once a request, however often they are called.
        clock: Seconds since 1970, for tests.
    """

    def __init__(
        self, model: str, periods: tuple[Period, ...], *, once: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.model = model
        self.source = periods[0].prices[0].source
        self._periods = periods
        self._once = once
        self._clock = clock
        self._current: tuple[int, Period, tuple[Period, ...]] | None = None

    def __repr__(self) -> str:
        return f"CatalogPrices({self.model!r}, source={self.source!r})"

    def at(self, clock: Callable[[], float]) -> CatalogPrices:
        """The same by another clock."""
        return CatalogPrices(self.model, self._periods, once=self._once, clock=clock)

    def cost(self, usage: Usage) -> Decimal | None:
        """The cost at this hour; None if the provider's own tools were called, and their fee is not known."""
        if self._once and usage.server_tool_calls > 1:
            usage = replace(usage, server_tool_calls=1)
        return self._now()[1].of(usage.input_tokens).cost(usage)

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """Every token at the dearest price of its kind, at the dearest hour of the next day."""
        return max(period.at_most(input_tokens, output_tokens) for period in self._now()[2])

    def _now(self) -> tuple[int, Period, tuple[Period, ...]]:
        """The second it is, the prices of now, and all that may hold until tomorrow."""
        current = self._current
        if len(self._periods) == 1:
            if current is None:
                current = self._current = (0, self._periods[0], self._periods)
            return current
        second = int(self._clock())
        if current is None or current[0] != second:
            now = datetime.fromtimestamp(second, UTC)
            holds = next((period for period in reversed(self._periods) if _holds(period, now)), self._periods[0])
            current = self._current = (second, holds, tuple(self._possible(now)))
        return current

    def _possible(self, now: datetime) -> Iterator[Period]:
        from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

        for period in reversed(self._periods):
            if isinstance(period.constraint, TimeOfDateConstraint) or _holds(period, now + _AHEAD):
                yield period
            if period.constraint is None or (
                isinstance(period.constraint, StartDateConstraint) and _holds(period, now)
            ):
                return
        yield self._periods[0]


def _holds(period: Period, at: datetime) -> bool:
    return period.constraint is None or period.constraint.active(at)


def _periods(entry: Entry, fee: str | None, source: str) -> tuple[Period, ...] | None:
    """The prices of an entry; None where input or output has none, or something we cannot count has one."""
    from genai_prices.types import ModelPrice

    dated = (
        [(None, entry.prices)]
        if isinstance(entry.prices, ModelPrice)
        else [(conditional.constraint, conditional.prices) for conditional in entry.prices]
    )
    found = [_period(constraint, price, fee, source) for constraint, price in dated]
    return tuple(period for period in found if period is not None) if found and None not in found else None


def _period(constraint: Any, price: ModelPrice, fee: str | None, source: str) -> Period | None:
    given = {key: value for key, value in vars(price).items() if value is not None}
    known = {*_KEYS.values(), *_CALLS, "requests_kcount"}
    if not {"input_mtok", "output_mtok"} <= given.keys() or any(
        key not in known and not _AS_TEXT.fullmatch(key) for key in given
    ):
        return None
    starts = sorted({tier.start for key in _KEYS.values() for tier in getattr(given.get(key), "tiers", ())})
    calls = [Decimal(given[key]) / 1000 for key in _CALLS if key in given]
    prices: list[Prices] = []
    for start in (-1, *starts):
        rates = {ours: _rate(given[key], start) for ours, key in _KEYS.items() if key in given}
        prices.append(
            Prices(
                **rates,
                server_tool_call=max(calls) if calls else fee,
                request=Decimal(given.get("requests_kcount", 0)) / 1000,
                source=source,
            )
        )
    return Period(constraint, tuple(starts), tuple(prices))


def _rate(value: Any, start: int) -> Decimal:
    """The rate of requests that are longer than this start of a tier."""
    if isinstance(value, Decimal):
        return value
    tiers: TieredPrices = value
    reached = [tier.price for tier in tiers.tiers if tier.start <= start]
    return reached[-1] if reached else tiers.base


_current: DataSnapshot | None = None
