"""Budgets: what may still be spent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitinol.budget import FLOOR, PLENTY, Budget, spendable
from nitinol.prices import Prices
from nitinol.usage import NO_USAGE, Usage

PRICES = Prices(input="1", output="10")


def dearest(input_tokens: int, output_tokens: int) -> Decimal:
    price = PRICES.at_most(input_tokens, output_tokens)
    assert price is not None
    return price


def test_money_is_exact_and_given_in_dollars_or_cents() -> None:
    """As text, whole numbers or Decimals. parity: L4"""
    assert Budget(usd="0.50") == Budget(cents=50) == Budget(usd=Decimal("0.5"))
    assert Budget(cents="0.1").usd == Decimal("0.001")
    assert Budget(usd=2, tokens=100).limit == "$2 and 100 tokens"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, ValueError),
        ({"usd": 1, "cents": 1}, ValueError),
        ({"usd": 0.5}, TypeError),
        ({"usd": True}, TypeError),
        ({"cents": -1}, ValueError),
        ({"usd": "much"}, ValueError),
        ({"usd": "NaN"}, ValueError),
        ({"tokens": -1}, ValueError),
        ({"euros": 1}, TypeError),
    ],
)
def test_what_is_no_amount_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """A float is not money; nothing is no limit."""
    with pytest.raises(error):
        Budget(**options)


def test_without_need_there_is_no_cap() -> None:
    """Where the budget pays for more than any model gives, and the agent sets no limit."""
    assert spendable(Budget(usd=20), NO_USAGE, Decimal(0), 100, None, PRICES) is None
    assert spendable(Budget(usd=20), NO_USAGE, Decimal(0), 100, 5000, PRICES) == 5000
    assert spendable(Budget(usd=1), NO_USAGE, Decimal(0), 100, 5000, None) == 5000, "unpriced: as the agent says"


def test_under_the_floor_nothing_is_sent() -> None:
    """256 tokens, or what the agent allows, if that is less; the answer says what it would need."""
    just = Budget(tokens=100 + FLOOR)
    assert spendable(just, NO_USAGE, Decimal(0), 100, None, PRICES) == FLOOR
    assert spendable(just, NO_USAGE, Decimal(0), 101, None, PRICES) == f"{101 + FLOOR} tokens"
    assert spendable(Budget(tokens=110), NO_USAGE, Decimal(0), 100, 10, PRICES) == 10
    assert spendable(Budget(usd="0.002"), NO_USAGE, Decimal(0), 100, None, PRICES) == "$0.00266"


@given(
    limit=st.decimals(min_value=0, max_value=1, places=6),
    spent=st.decimals(min_value=0, max_value=1, places=6),
    input_tokens=st.integers(0, 50_000),
    most=st.one_of(st.none(), st.integers(1, 200_000)),
)
def test_the_worst_case_never_passes_what_is_left_and_is_as_large_as_it_may(
    limit: Decimal, spent: Decimal, input_tokens: int, most: int | None
) -> None:
    """Section 8: the cap is lowered only against money spent, and no more than needed."""
    cap = spendable(Budget(usd=limit), NO_USAGE, spent, input_tokens, most, PRICES)
    left = limit - spent
    if isinstance(cap, str):
        assert dearest(input_tokens, min(FLOOR, most or FLOOR)) > left
    elif cap is None:
        assert most is None
        assert dearest(input_tokens, PLENTY) <= left
    else:
        assert cap <= (most or PLENTY)
        assert dearest(input_tokens, cap) <= left
        assert cap == most or dearest(input_tokens, cap + 1) > left


@given(limit=st.integers(0, 5000), used=st.integers(0, 3000), input_tokens=st.integers(0, 3000))
def test_tokens_in_and_out_never_pass_the_limit(limit: int, used: int, input_tokens: int) -> None:
    """What was used, what goes in, and what may come out."""
    cap = spendable(Budget(tokens=limit), Usage(output_tokens=used), Decimal(0), input_tokens, None, None)
    if isinstance(cap, str):
        assert used + input_tokens + FLOOR > limit
    else:
        assert cap == limit - used - input_tokens
