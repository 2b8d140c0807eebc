"""Windows and prices of vendors' models, from genai-prices, which is imported on the first question (0.2 s)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

from nitinol.provider import ModelInfo
from nitinol.usage import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo as Entry
    from genai_prices.types import ModelPrice, TieredPrices

_MILLION = Decimal(1_000_000)
_OTHERS = ("requests_kcount", "input_mchars", "output_mchars", "output_reasoning_mtok")


@cache
def model_info(model: str, *, vendor: str | None = None, url: str | None = None) -> ModelInfo:
    """What the catalogue knows of a model: its context window and prices.

    Args:
        model: The name sent to the vendor.
        vendor: The vendor's id in genai-prices, such as `"groq"`.
        url: Where `vendor` is None, the address of the API, by which the vendor is found.

    Returns:
        Nothing known (all None) for an unknown model or vendor: a price is never guessed, and never 0.
    """
    from genai_prices import __version__
    from genai_prices.data_snapshot import get_snapshot

    if vendor is None and url is None:
        return ModelInfo()
    try:
        _, entry = get_snapshot().find_provider_model(model, None, vendor, url)
    except LookupError:
        return ModelInfo()
    prices = CatalogPrices(f"genai-prices {__version__}", entry)
    return ModelInfo(context_window=entry.context_window, prices=prices if prices.known else None)


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per million tokens, for a request of a certain length at a certain time."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal

    def cost(self, usage: Usage) -> Decimal:
        fresh = max(usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens, 0)
        return (
            fresh * self.input
            + usage.cache_read_tokens * self.cache_read
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * self.cache_write
            + usage.cache_write_1h_tokens * self.cache_write_1h
            + usage.output_tokens * self.output
        ) / _MILLION


class CatalogPrices:
    """The prices of one model: a `PriceList` with tiers by the length of the request, and off-peak hours.

    The sum is our own, twenty times as fast as `genai_prices.calc_price`; a test holds the two together.
    """

    def __init__(self, source: str, entry: Entry) -> None:
        self.source = source
        self._entry = entry
        self._fixed = not isinstance(entry.prices, list)

    def __repr__(self) -> str:
        return f"CatalogPrices({self._entry.id!r}, source={self.source!r})"

    @property
    def known(self) -> bool:
        """Whether both input and output are priced by the token, and by nothing else that an answer is billed by."""
        return all(
            vars(price).get("input_mtok") is not None
            and vars(price).get("output_mtok") is not None
            and all(vars(price).get(key) is None for key in _OTHERS)
            for price in self._all()
        )

    def cost(self, usage: Usage) -> Decimal | None:
        """The cost at this hour; None if server tools were called, whose fees depend on the tool."""
        if usage.server_tool_calls:
            return None
        entry = self._entry
        price = next(self._all()) if self._fixed else entry.get_prices(datetime.now(UTC))
        return _rates(price, usage.input_tokens).cost(usage)

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """Every input token at the dearest input price, at the dearest hour."""
        most = Decimal(0)
        for price in self._all():
            rates = _rates(price, input_tokens)
            dearest = max(rates.input, rates.cache_read, rates.cache_write, rates.cache_write_1h)
            most = max(most, (input_tokens * dearest + output_tokens * rates.output) / _MILLION)
        return most

    def _all(self) -> Iterator[ModelPrice]:
        prices = self._entry.prices
        if isinstance(prices, list):
            yield from (conditional.prices for conditional in prices)
        else:
            yield prices


def _rates(price: ModelPrice, length: int) -> Rates:
    """The rates of a request with `length` tokens of input, which decides the tier of all of it."""

    def rate(key: str, default: Decimal) -> Decimal:
        value: Decimal | TieredPrices | None = vars(price).get(key)
        if value is None or isinstance(value, Decimal):
            return default if value is None else value
        reached = [tier.price for tier in value.tiers if length > tier.start]
        return reached[-1] if reached else value.base

    base = rate("input_mtok", Decimal(0))
    write = rate("cache_write_mtok", base)
    return Rates(
        input=base,
        output=rate("output_mtok", Decimal(0)),
        cache_read=rate("cache_read_mtok", base),
        cache_write=write,
        cache_write_1h=rate("cache_write_1h_mtok", write),
    )
