"""Usage and prices: tokens of all vendors in one vocabulary, and what they cost, or that nobody knows."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitinol.agent import Agent
from nitinol.prices import PriceList, Prices, to_money
from nitinol.usage import NO_USAGE, Usage

counts = st.integers(0, 10**9)
usages = st.builds(
    Usage,
    **{field.name: counts for field in fields(Usage) if field.name != "reported_cost"},
    reported_cost=st.one_of(st.none(), st.decimals(min_value=0, max_value=100, places=6)),
)


@given(usages, usages, usages)
def test_usages_add_up_field_by_field(a: Usage, b: Usage, c: Usage) -> None:
    """In any order; nothing added is the same."""
    assert a + NO_USAGE == a
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    total = a + b + c
    for field in fields(Usage):
        if field.name != "reported_cost":
            assert getattr(total, field.name) == sum(getattr(usage, field.name) for usage in (a, b, c))
    assert total.total_tokens == total.input_tokens + total.output_tokens


def test_a_reported_cost_that_nobody_reports_is_none() -> None:
    """Not zero; one that is reported counts."""
    assert (NO_USAGE + NO_USAGE).reported_cost is None
    assert (NO_USAGE + Usage(reported_cost=Decimal("0.1"))).reported_cost == Decimal("0.1")


def test_cached_tokens_are_within_the_input_and_have_their_own_prices() -> None:
    """Per million. parity: P5"""
    prices = Prices(input="3", output="15", cache_read="0.3", cache_write="3.75")
    usage = Usage(input_tokens=1_000_000, cache_read_tokens=500_000, cache_write_tokens=100_000, output_tokens=10_000)
    assert prices.cost(usage) == Decimal("1.2") + Decimal("0.15") + Decimal("0.375") + Decimal("0.15")
    assert Prices(input=1, output=2).cost(Usage(input_tokens=1, cache_read_tokens=1)) == Decimal("0.000001")


def test_server_tools_have_fees_that_flat_prices_do_not_know() -> None:
    """Unknown, not free."""
    assert Prices(input=1, output=2).cost(Usage(server_tool_calls=1)) is None


@given(
    usage=st.builds(Usage, input_tokens=counts, output_tokens=counts),
    shares=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    rates=st.tuples(*[st.decimals(min_value=0, max_value=100, places=2)] * 4),
)
def test_at_most_is_never_less_than_the_cost(
    usage: Usage, shares: tuple[int, int], rates: tuple[Decimal, Decimal, Decimal, Decimal]
) -> None:
    """Whatever part of the input is read from a cache or written to it."""
    prices = Prices(input=rates[0], output=rates[1], cache_read=rates[2], cache_write=rates[3])
    split = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.input_tokens * shares[0] // 100,
        cache_write_tokens=usage.input_tokens * shares[1] // 100,
    )
    cost, dearest = prices.cost(split), prices.at_most(usage.input_tokens, usage.output_tokens)
    assert cost is not None
    assert dearest is not None
    assert cost <= dearest


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0.1, TypeError),
        (True, TypeError),
        (None, TypeError),
        ("a lot", ValueError),
        ("-1", ValueError),
        ("inf", ValueError),
    ],
)
def test_what_is_no_money_is_refused_by_name(value: Any, error: type[Exception]) -> None:
    """A float most of all: 0.1 is not a tenth."""
    with pytest.raises(error, match="input="):
        to_money(value, "input")
    with pytest.raises(error, match="input="):
        Prices(input=value, output=1)


def test_flat_prices_are_a_price_list() -> None:
    """For both type checkers and at run time: `Agent(prices=Prices(…))`."""
    prices: PriceList = Prices(input="3", output="15", source="the contract of 2026")
    assert isinstance(prices, PriceList)
    assert Agent(name="a", model="test:one", prices=prices).prices is prices
    assert prices.source == "the contract of 2026"
