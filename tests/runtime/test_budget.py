"""Budgets: what may still be spent."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitinol.budget import (
    FLOOR,
    NOTHING,
    UNSAID,
    Account,
    Amount,
    Budget,
    Grant,
    Refusal,
    Spending,
    decide,
    periods,
)
from nitinol.prices import Prices

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
        ({"usd": "1E+1000000"}, ValueError),
        ({"cents": "1E-1000000"}, ValueError),
        ({"tokens": -1}, ValueError),
        ({"euros": 1}, TypeError),
        ({"usd": 1, "per": "week"}, ValueError),
    ],
)
def test_what_is_no_amount_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    """A float is not money; nothing is no limit."""
    with pytest.raises(error):
        Budget(**options)


def ask(
    budget: Budget, spent: Amount = NOTHING, input_tokens: int = 100, most: int | None = None,
    prices: Prices | None = PRICES, reserved: Amount = NOTHING,
) -> Grant | Refusal | None:  # fmt: skip
    return decide([Account("store", budget, spent, reserved)], input_tokens, most, prices)


def cap(*arguments: Any, **options: Any) -> int | None:
    grant = ask(*arguments, **options)
    assert isinstance(grant, Grant)
    return grant.max_output_tokens


def test_without_a_budget_nothing_is_limited() -> None:
    """What is reserved is told all the same."""
    grant = decide([], 100, None, PRICES)
    assert grant == Grant(Amount(dearest(100, 0), 100))
    assert decide([], 100, 50, PRICES) == Grant(Amount(dearest(100, 50), 150), 50)


def test_under_a_budget_every_answer_has_a_limit() -> None:
    """The user's, or the model's; where nobody says one, `UNSAID`."""
    assert cap(Budget(usd=20)) == UNSAID
    assert cap(Budget(usd=20), most=5000) == 5000
    assert cap(Budget(usd=1), most=5000, prices=None) == 5000, "unpriced: as the agent says"


def test_under_the_floor_nothing_is_sent() -> None:
    """256 tokens, or what the agent allows, if that is less; the answer says what it would need."""
    just = Budget(tokens=100 + FLOOR)
    assert cap(just) == FLOOR
    assert ask(just, input_tokens=101) == Refusal("store", just.limit, "$0, 0 tokens", f"{101 + FLOOR} tokens")
    assert cap(Budget(tokens=110), most=10) == 10
    refusal = ask(Budget(usd="0.002"))
    assert isinstance(refusal, Refusal)
    assert refusal.needed == "$0.00266"


def test_what_others_have_reserved_is_waited_for_and_lowers_nothing() -> None:
    """Only against what is spent is a limit lowered, or a request refused."""
    budget = Budget(tokens=1000)
    assert ask(budget, most=600, reserved=Amount(tokens=301)) is None
    assert cap(budget, most=600, reserved=Amount(tokens=300)) == 600
    assert cap(budget, Amount(tokens=301), most=600) == 599
    assert isinstance(ask(budget, Amount(tokens=700), most=600, reserved=Amount(tokens=300)), Refusal)


@given(
    limit=st.decimals(min_value=0, max_value=1, places=6),
    spent=st.decimals(min_value=0, max_value=1, places=6),
    input_tokens=st.integers(0, 50_000),
    most=st.integers(1, 200_000),
)
def test_the_worst_case_never_passes_what_is_left_and_is_as_large_as_it_may(
    limit: Decimal, spent: Decimal, input_tokens: int, most: int
) -> None:
    """Section 8: the cap is lowered only against money spent, and no more than needed."""
    grant = ask(Budget(usd=limit), Amount(spent), input_tokens, most)
    left = limit - spent
    if isinstance(grant, Refusal):
        assert dearest(input_tokens, min(FLOOR, most)) > left
    else:
        assert grant is not None
        allowed = grant.max_output_tokens or 0
        assert 0 < allowed <= most
        assert dearest(input_tokens, allowed) == grant.amount.usd <= left
        assert allowed == most or dearest(input_tokens, allowed + 1) > left
        assert (grant.capped == "store") == (allowed < most)


@given(limit=st.integers(0, 5000), used=st.integers(0, 3000), input_tokens=st.integers(0, 3000))
def test_tokens_in_and_out_never_pass_the_limit(limit: int, used: int, input_tokens: int) -> None:
    """What was used, what goes in, and what may come out."""
    grant = ask(Budget(tokens=limit), Amount(tokens=used), input_tokens, prices=None)
    if isinstance(grant, Refusal):
        assert used + input_tokens + FLOOR > limit
    else:
        assert grant is not None
        assert grant.max_output_tokens == min(limit - used - input_tokens, UNSAID)


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000)), min_size=1, max_size=4),
    st.integers(0, 500),
    st.integers(1, 2000),
)
def test_all_accounts_agree_or_nothing_is_granted(
    accounts: list[tuple[int, int, int]], input_tokens: int, most: int
) -> None:
    """A grant fits into each; a refusal is one account's alone; else somebody else has reserved what is missing."""
    made = [
        Account(str(number), Budget(tokens=limit), Amount(tokens=spent), Amount(tokens=reserved))
        for number, (limit, spent, reserved) in enumerate(accounts)
    ]
    decided = decide(made, input_tokens, most, None)
    least = input_tokens + min(FLOOR, most)
    if isinstance(decided, Grant):
        assert all(decided.amount.tokens + spent + reserved <= limit for limit, spent, reserved in accounts)
        assert decided.scopes == tuple(account.scope for account in made)
    elif isinstance(decided, Refusal):
        limit, spent, _ = accounts[int(decided.scope)]
        assert spent + least > limit
    else:
        assert all(spent + least <= limit for limit, spent, _ in accounts)
        assert any(reserved for _, _, reserved in accounts)


DAY = 86_400 * 10**9


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 80)), max_size=20))
def test_spending_counts_in_its_day_and_its_month(spends: list[tuple[int, int]]) -> None:
    """By a plain sum over all that was spent, at any time from then on."""
    spending, made, now = Spending(), list[tuple[int, int]](), 1_790_000_000 * 10**9
    for tokens, days in spends:
        now += days * DAY // 10
        made.append((now, tokens))
        spending = spending.plus(Amount(tokens=tokens), now)
        for later in (now, now + DAY // 2, now + 20 * DAY):
            day, month = periods(later)
            assert spending.of(None, later).tokens == sum(tokens for _, tokens in made)
            assert spending.of("day", later).tokens == sum(t for at, t in made if periods(at)[0] == day)
            assert spending.of("month", later).tokens == sum(t for at, t in made if periods(at)[1] == month)
