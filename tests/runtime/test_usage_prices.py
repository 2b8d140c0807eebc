"""Usage and prices: tokens of all vendors in one vocabulary, and what they cost, or that nobody knows."""

from __future__ import annotations

import ast
import pickle
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nitinol
from nitinol import events
from nitinol.agent import Agent
from nitinol.events import UsageUpdated
from nitinol.prices import PriceList, Prices, to_money
from nitinol.usage import NO_USAGE, Usage

COUNTS = [field.name for field in fields(Usage) if field.name != "reported_cost"]
counts = st.integers(0, 10**9)
dollars = st.decimals(min_value=0, max_value=100, places=6)
usages = st.builds(Usage, **dict.fromkeys(COUNTS, counts), reported_cost=st.one_of(st.none(), dollars))
rates = st.decimals(min_value=0, max_value=1_000, places=4)
price_lists = st.builds(
    Prices,
    input=rates,
    output=rates,
    request=rates,
    **dict.fromkeys(["cache_read", "cache_write", "cache_write_1h", "reasoning"], st.one_of(st.none(), rates)),
)


@given(usages, usages, usages)
def test_usages_add_up_field_by_field(a: Usage, b: Usage, c: Usage) -> None:
    """In any order; nothing added is the same."""
    assert a + NO_USAGE == a
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    total = sum((a, b, c), NO_USAGE)
    for name in COUNTS:
        assert getattr(total, name) == sum(getattr(usage, name) for usage in (a, b, c))
    assert total.total_tokens == total.input_tokens + total.output_tokens
    told = [usage.reported_cost for usage in (a, b, c) if usage.reported_cost is not None]
    assert total.reported_cost == (sum(told, Decimal(0)) if told else None)
    assert total.fault() is None


def test_a_reported_cost_that_nobody_reports_is_none() -> None:
    """Not zero; one that is reported counts."""
    assert (NO_USAGE + NO_USAGE).reported_cost is None
    assert (NO_USAGE + Usage(reported_cost=Decimal("0.1"))).reported_cost == Decimal("0.1")
    assert (NO_USAGE + Usage(reported_cost=Decimal(0))).reported_cost == 0


def test_only_usages_are_added_to_a_usage() -> None:
    """A plain number is no usage."""
    with pytest.raises(TypeError):
        NO_USAGE + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        sum([NO_USAGE])  # type: ignore[list-item]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 1.0, "1", None, True])
def test_a_count_that_is_no_count_is_a_fault_that_names_it(name: str, value: Any) -> None:
    """Of a usage that somebody outside made: it must not enter the bill."""
    assert replace(NO_USAGE, **{name: value}).fault() == f"{name} is {value!r}"


@pytest.mark.parametrize("value", [0.1, 1, "1", Decimal(-1), Decimal("NaN"), Decimal("Infinity")])
def test_a_reported_cost_that_is_no_amount_is_a_fault(value: Any) -> None:
    """A float most of all."""
    assert replace(NO_USAGE, reported_cost=value).fault() == f"reported_cost is {value!r}"
    assert Usage(reported_cost=Decimal("0.1")).fault() is None


def test_cached_tokens_are_within_the_input_and_have_their_own_prices() -> None:
    """Per million. parity: P5"""
    prices = Prices(input="3", output="15", cache_read="0.3", cache_write="3.75")
    usage = Usage(input_tokens=1_000_000, cache_read_tokens=500_000, cache_write_tokens=100_000, output_tokens=10_000)
    assert prices.cost(usage) == Decimal("1.2") + Decimal("0.15") + Decimal("0.375") + Decimal("0.15")
    assert Prices(input=1, output=2).cost(Usage(input_tokens=1, cache_read_tokens=1)) == Decimal("0.000001")


def test_a_write_for_an_hour_has_its_price_or_that_of_a_short_one() -> None:
    """Never a factor that nobody gave. parity: P5"""
    usage = Usage(input_tokens=1_000_000, cache_write_tokens=1_000_000, cache_write_1h_tokens=400_000)
    short = Prices(input="3", output="15", cache_write="3.75")
    assert short.cost(usage) == Decimal("3.75")
    assert Prices(input="3", output="15").cost(usage) == 3
    hour = Prices(input="3", output="15", cache_write="3.75", cache_write_1h="6")
    assert hour.cost(usage) == Decimal("2.25") + Decimal("2.4")
    assert hour.at_most(1_000_000, 0) == 6


def test_thinking_and_requests_may_have_prices_of_their_own() -> None:
    """Thinking is within the output."""
    prices = Prices(input=0, output="8", reasoning="3", request="0.005")
    assert prices.cost(Usage(output_tokens=1_000_000, reasoning_tokens=600_000)) == Decimal("5.005")
    assert prices.at_most(0, 1_000_000) == Decimal("8.005")


def test_server_tools_have_fees_that_flat_prices_know_only_if_told() -> None:
    """Unknown, not free. parity: P4"""
    assert Prices(input=1, output=2).cost(Usage(server_tool_calls=1)) is None
    assert Prices(input=1, output=2, server_tool_call="0.01").cost(Usage(server_tool_calls=3)) == Decimal("0.03")
    assert Prices(input=1, output=2, server_tool_call=0).cost(Usage(server_tool_calls=3)) == 0


@given(
    prices=price_lists,
    sent=counts,
    answered=counts,
    parts=st.tuples(*[st.integers(0, 100)] * 4),
    more=st.tuples(counts, counts),
)
def test_at_most_is_never_less_than_the_cost(
    prices: Prices, sent: int, answered: int, parts: tuple[int, int, int, int], more: tuple[int, int]
) -> None:
    """Whatever part of the input is read from a cache or written to it, of the output thought, and of both not used."""
    read, written, hour, thought = parts
    usage = Usage(
        input_tokens=sent,
        cache_read_tokens=sent * read // 100,
        cache_write_tokens=sent * (100 - read) // 100 * written // 100,
        cache_write_1h_tokens=sent * (100 - read) // 100 * written // 100 * hour // 100,
        output_tokens=answered,
        reasoning_tokens=answered * thought // 100,
    )
    cost = prices.cost(usage)
    assert cost is not None
    assert 0 <= cost <= prices.at_most(sent + more[0], answered + more[1])


@given(price_lists, usages)
def test_even_an_unsound_usage_costs_no_less_than_nothing(prices: Prices, usage: Usage) -> None:
    """Whose parts are more than the whole: a vendor may tell anything, and no bill shrinks by it."""
    cost = prices.cost(replace(usage, server_tool_calls=0))
    assert cost is not None
    assert cost >= 0


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
    for name in ("cache_read", "cache_write", "cache_write_1h", "reasoning", "server_tool_call", "request"):
        if value is not None:
            with pytest.raises(error, match=f"{name}="):
                Prices(input=1, output=1, **{name: value})


def test_flat_prices_are_a_price_list() -> None:
    """For both type checkers and at run time: `Agent(prices=Prices(…))`; equal ones are equal, also from elsewhere."""
    prices: PriceList = Prices(input="3", output="15", source="the contract of 2026")
    assert isinstance(prices, PriceList)
    assert Agent(name="a", model="test:one", prices=prices).prices is prices
    assert prices.source == "the contract of 2026"
    assert pickle.loads(pickle.dumps(prices)) == prices == Prices(input=3, output=15, source="the contract of 2026")


@given(
    usage=usages,
    cost=st.one_of(st.none(), st.decimals(min_value=0, max_value=10**12, allow_nan=False, allow_infinity=False)),
)
def test_money_comes_back_from_json_to_the_last_digit(usage: Usage, cost: Decimal | None) -> None:
    """As text, with its zeros and its exponent: what is billed is what is read."""
    event = UsageUpdated(
        provider="p",
        model="m",
        usage=usage,
        cost=cost,
        estimated=False,
        price_source="given",
        run_usage=usage,
        run_cost=cost,
        agent_usage=usage + usage,
        agent_cost=None,
    )
    again = events.from_json(event.to_json())
    assert isinstance(again, UsageUpdated)
    assert repr(again.usage) == repr(usage)
    assert repr(again.cost) == repr(cost)
    assert again.agent_usage == usage + usage
    assert again.agent_cost is None


def test_no_float_stands_where_money_is_counted() -> None:
    """Neither as a number nor as a conversion."""
    folder = Path(nitinol.__file__).parent
    for name in ("usage", "prices"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text())):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), (name, ast.dump(node))
            called = node.func if isinstance(node, ast.Call) else None
            assert not (isinstance(called, ast.Name) and called.id == "float"), (name, ast.dump(node))
