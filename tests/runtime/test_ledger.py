"""The ledger by itself: who is served, and what an agent that is gone leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from nitinol import events as ev
from nitinol.actors.ledger import Ledger
from nitinol.budget import Account, Amount, Budget, Grant, Period
from nitinol.env import Env
from nitinol.inputs import Warn
from nitinol.journal.base import Head
from nitinol.journal.memory import MemoryJournal
from nitinol.prices import Prices
from nitinol.state import AgentState
from nitinol.usage import Usage

PRICES = Prices(input="0", output="1000")


def nobody(key: str, warn: Warn) -> None:
    """Hears no warning."""


def none() -> tuple[Account, ...]:
    return ()


def started(key: str, tokens: int) -> ev.ModelStarted:
    return ev.ModelStarted(
        id="", seq=1, ts=1, agent="a", key=key, incarnation=1, provider="p", model="m",
        reserved=Decimal(tokens) / 1000, reserved_tokens=tokens, max_output_tokens=tokens, capped=None,
    )  # fmt: skip


def test_a_request_that_cannot_be_decided_fails_alone() -> None:
    """Not the one whose row of the bill makes room, nor those who wait behind it."""

    async def main() -> None:
        ledger = Ledger(Env(), Budget(tokens=1000), nobody)

        asked = list[int]()

        def broken() -> Any:
            asked.append(1)
            if len(asked) > 1:
                raise ArithmeticError("no")
            return ()

        await ledger.reserve("first", none, 0, 800, PRICES)
        waiting = [
            asyncio.ensure_future(ledger.reserve(key, accounts, 0, 800, PRICES))
            for key, accounts in (("broken", broken), ("last", none))
        ]
        await asyncio.sleep(0)
        ledger.release("first")
        with pytest.raises(ArithmeticError):
            await waiting[0]
        assert isinstance(await waiting[1], Grant)

    asyncio.run(main())


def test_an_attempt_that_began_after_its_agent_died_counts_as_spent() -> None:
    """Its task let go of what it had reserved before the news of its commit came."""

    async def main() -> None:
        ledger = Ledger(Env(), Budget(tokens=1000), nobody)
        await ledger.reserve("gone", none, 0, 400, PRICES)
        ledger.release("gone")
        ledger.note([started("gone", 400)])
        granted = await ledger.reserve("other", none, 0, 800, PRICES)
        assert isinstance(granted, Grant)
        assert (granted.max_output_tokens, granted.capped) == (600, "store")

    asyncio.run(main())


def test_who_holds_less_makes_room_for_those_who_wait() -> None:
    """An attempt is over, and its row of the bill comes later."""

    async def main() -> None:
        ledger = Ledger(Env(), Budget(tokens=1000), nobody)
        await ledger.reserve("first", none, 0, 800, PRICES)
        waiting = asyncio.ensure_future(ledger.reserve("second", none, 0, 800, PRICES))
        await asyncio.sleep(0)
        ledger.lower("first", Decimal("0.1"), 100)
        granted = await waiting
        assert isinstance(granted, Grant)
        assert granted.amount == Amount(Decimal("0.8"), 800)

    asyncio.run(main())


DAY = 86_400 * 10**9
NEW_YEAR = 20_454 * DAY
"""The first moment of 2026, in nanoseconds since 1970."""


class Clock(Env):
    """Shows what it is set to."""

    at = NEW_YEAR

    def now(self) -> int:
        return self.at


def billed(key: str, tokens: int, ts: int = NEW_YEAR) -> ev.UsageUpdated:
    usage, cost = Usage(output_tokens=tokens), Decimal(tokens) / 1000
    return ev.UsageUpdated(
        id="", seq=1, ts=ts, agent="a", key=key, incarnation=1, provider="p", model="m", usage=usage, cost=cost,
        estimated=False, price_source=None, run_usage=usage, run_cost=cost, agent_usage=usage, agent_cost=cost,
    )  # fmt: skip


async def granted(ledger: Ledger, key: str, tokens: int = 1000) -> int:
    """The longest answer it may have; 0 if it is refused."""
    decided = await ledger.reserve(key, none, 0, tokens, PRICES)
    return (decided.max_output_tokens or 0) if isinstance(decided, Grant) else 0


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    """First come, first served."""

    async def main() -> None:
        ledger = Ledger(Env(), Budget(tokens=1000), nobody)
        await granted(ledger, "first", 500)
        large = asyncio.ensure_future(granted(ledger, "large", 900))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(granted(ledger, "small", 300))
        await asyncio.sleep(0)
        assert not small.done()
        ledger.release("first")
        assert await large == 900
        ledger.release("large")
        assert await small == 300

    asyncio.run(main())


def test_who_is_cancelled_at_the_head_of_the_line_lets_the_next_one_through() -> None:
    """Nobody else is about to settle anything."""

    async def main() -> None:
        ledger = Ledger(Env(), Budget(tokens=1000), nobody)
        await granted(ledger, "first", 500)
        large = asyncio.ensure_future(granted(ledger, "large", 900))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(granted(ledger, "small", 300))
        await asyncio.sleep(0)
        large.cancel()
        assert await small == 300

    asyncio.run(main())


def test_who_is_cancelled_in_the_moment_of_the_grant_holds_nothing() -> None:
    """Else it would be held for ever."""

    async def main() -> None:
        ledger = Ledger(Env(), Budget(tokens=1000), nobody)
        await granted(ledger, "first", 800)
        second = asyncio.ensure_future(granted(ledger, "second", 800))
        await asyncio.sleep(0)
        ledger.release("first")
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await granted(ledger, "third", 1000) == 1000

    asyncio.run(main())


@pytest.mark.parametrize(("per", "free_after"), [("day", 1), ("month", 31)])
def test_a_budget_renews_at_midnight_and_not_before(per: Period, free_after: int) -> None:
    """By the time of each row of the bill, however late it is heard of."""

    async def main() -> None:
        clock = Clock()
        ledger = Ledger(clock, Budget(tokens=1000, per=per), nobody)
        await granted(ledger, "a", 900)
        ledger.note([billed("a", 900)])
        clock.at = NEW_YEAR + free_after * DAY - 1
        assert await granted(ledger, "b") == 0
        clock.at += 1
        ledger.note([billed("late", 600, NEW_YEAR)])
        assert await granted(ledger, "b") == 1000

    asyncio.run(main())


class Left(MemoryJournal):
    """A store in which an attempt was in flight at a kill."""

    def heads(self, *, active: bool = False, reserved: bool = False) -> list[Head]:
        head = Head(key="killed", agent="a", seq=1, state="running", run_id="r", open_runs=1, active=True, due=None)
        return [replace(head, reserved=Amount(Decimal("0.4"), 400))]


def test_what_was_in_flight_at_a_kill_counts_until_it_is_billed_or_forgotten() -> None:
    """Its agent may not come back soon."""

    async def main() -> None:
        ways: list[tuple[Callable[[Ledger], object], int]] = [
            (lambda ledger: None, 600),
            (lambda ledger: ledger.note([billed("killed", 100)]), 900),
            (lambda ledger: ledger.forget("killed"), 1000),
        ]
        for settle, left in ways:
            ledger = Ledger(Env(), Budget(tokens=1000), nobody)
            ledger.load(Left())
            settle(ledger)
            assert await granted(ledger, "other") == left

    asyncio.run(main())


def test_a_key_spends_in_the_day_of_each_row() -> None:
    """As the fold of its log has it."""
    state = AgentState("k", "a", budget=Budget(tokens=1000, per="day")).apply(billed("k", 900))
    assert [account.spent.tokens for account in state.accounts(NEW_YEAR + DAY - 1)] == [900]
    assert [account.spent.tokens for account in state.accounts(NEW_YEAR + DAY)] == [0]
