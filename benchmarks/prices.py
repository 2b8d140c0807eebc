"""Time of one cost and of one bound by our sum, beside genai-prices' own sum of the same usage; medians of rounds by turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import measure
from genai_prices import Usage as CatalogUsage
from genai_prices import calc_price

from nitinol import Prices, Usage
from nitinol_providers.catalog import model_info

COUNTS = {
    "input_tokens": 120_000,
    "cache_read_tokens": 100_000,
    "cache_write_tokens": 10_000,
    "cache_write_1h_tokens": 500,
    "output_tokens": 2_000,
}
MODELS = {
    "flat": ("anthropic", "claude-opus-5-5"),
    "tiers": ("openai", "gpt-6-sol"),
    "tiers and dates": ("openai", "gpt-5.6-sol"),
    "hours and dates": ("deepseek", "deepseek-v4-pro"),
}


def microseconds(work: Callable[[], object], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times * 1e6


def main(rounds: int, times: int) -> None:
    measure.title(f"prices: one cost of a usage with cache reads and writes, median of {rounds} rounds by turns")
    usage = Usage(**COUNTS)
    given = Prices(input="3", output="15", cache_read="0.3", cache_write="3.75")
    judge = CatalogUsage(**COUNTS)
    cases: dict[str, Callable[[], object]] = {
        "genai-prices": lambda: calc_price(judge, "claude-opus-5-5", provider_id="anthropic"),
        "Prices(…)": lambda: given.cost(usage),
    }
    for title, (vendor, model) in MODELS.items():
        prices = model_info(model, vendor=vendor).prices
        assert prices is not None
        cases[f"{model}, {title}"] = lambda prices=prices: prices.cost(usage)
        cases[f"{model}, at_most"] = lambda prices=prices: prices.at_most(120_000, 2_000)
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, work in cases.items():
            found[name].append(microseconds(work, times // 100 if name == "genai-prices" else times))
    base = measure.median(found["genai-prices"])
    rows = [(name, f"{measure.median(took):.2f}", f"{base / measure.median(took):.0f}") for name, took in found.items()]
    measure.table(["cost", "µs", "times as fast"], rows)


if __name__ == "__main__":
    quick = measure.options(__doc__).parse_args().quick
    main(3 if quick else 9, 2_000 if quick else 50_000)
