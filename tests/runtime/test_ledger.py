"""The ledger by itself: who is served, and what an agent that is gone leaves behind."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from nitinol import events as ev
from nitinol.actors.ledger import Ledger
from nitinol.budget import Account, Amount, Budget, Grant
from nitinol.env import Env
from nitinol.inputs import Warn
from nitinol.prices import Prices

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
