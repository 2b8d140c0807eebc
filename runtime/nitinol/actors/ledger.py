"""The ledger: what the store's budget has left, and who waits for it.

It is derived, like all that stands beside the log: what is spent is the sum of the bill, what is reserved belongs to the
attempts in flight, and an attempt that nobody flies any more counts as spent until its row of the bill is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from nitinol import budget as budgets
from nitinol import events as ev
from nitinol.budget import NOTHING, Account, Amount, Budget, Grant, Refusal, periods
from nitinol.env import Env
from nitinol.inputs import Warn
from nitinol.journal.base import Journal
from nitinol.prices import PriceList

STORE = "store"
"""The scope of `Runtime(budget=)`."""


@dataclass(slots=True, eq=False)
class _Request:
    key: str
    accounts: Callable[[], Sequence[Account]]
    input_tokens: int
    max_output_tokens: int | None
    prices: PriceList | None
    answer: asyncio.Future[Grant | Refusal] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Book:
    """Amounts by key, and their sum: every request asks for it."""

    def __init__(self) -> None:
        self._amounts: dict[str, Amount] = {}
        self._sum = NOTHING

    def __contains__(self, key: str) -> bool:
        return key in self._amounts

    def put(self, key: str, amount: Amount) -> None:
        """In place of what was there."""
        self.take(key)
        self._amounts[key] = amount
        self._sum += amount

    def take(self, key: str) -> Amount | None:
        """What was there, if anything; it is no more."""
        amount = self._amounts.pop(key, None)
        if amount is not None:
            self._sum -= amount
        return amount

    def of_others(self, key: str) -> Amount:
        """All but this key's."""
        return self._sum - self._amounts.get(key, NOTHING)


class Ledger:
    """Grants requests what they may cost, in all their scopes at once, first come, first served. On the core loop."""

    def __init__(self, env: Env, budget: Budget | None, warn: Callable[[str, Warn], object]) -> None:
        self.budget = budget
        self._env, self._warn = env, warn
        self._spent: dict[str, Amount] = {}
        """By day or month; for a budget that does not renew, under `""`."""
        self._held = _Book()
        """By key: an agent has one attempt in flight."""
        self._orphans = _Book()
        """By key: of attempts that nobody flies any more, and whose row of the bill is not known yet."""
        self._waiting: deque[_Request] = deque()

    def load(self, journal: Journal) -> None:
        """Learn what was spent before, and what was left open. Once, before anything is asked; from any thread.

        Raises:
            StorageFailed: The store cannot be read.
        """
        if self.budget is None:
            return
        for day, spent in journal.spent("day").items():
            self._add(self._period(day, day[:7]), Amount(spent.priced, spent.usage.total_tokens))
        for head in journal.heads(reserved=True):
            if head.reserved is not None:
                self._orphans.put(head.key, head.reserved)

    async def reserve(
        self,
        key: str,
        accounts: Callable[[], Sequence[Account]],
        input_tokens: int,
        max_output_tokens: int | None,
        prices: PriceList | None,
    ) -> Grant | Refusal:
        """Reserve what a request may cost; wait while only what others have reserved is in the way.

        Args:
            key: Of the agent. What it holds is released by the row of the bill, or by `release`.
            accounts: The agent's own scopes, looked at when it is the request's turn.
            input_tokens: At most.
            max_output_tokens: Of the answer; `None` = unknown.
            prices: Of the model; `None` = unknown, and money limits nothing.
        """
        request = _Request(key, accounts, input_tokens, max_output_tokens, prices)
        if not self._waiting:
            decided = self._decide(request)
            if decided is not None:
                return decided
        self._waiting.append(request)
        try:
            return await request.answer
        except asyncio.CancelledError:
            if request in self._waiting:
                self._waiting.remove(request)
                self._serve()
            else:  # it was granted in the same moment
                self.release(key)
            raise

    def release(self, key: str) -> None:
        """What the agent has reserved was not sent."""
        if self._held.take(key) is not None:
            self._serve()

    def lower(self, key: str, usd: Decimal | None, tokens: int) -> None:
        """What the agent's attempt has come to is known, and its row of the bill will say so: the rest is free again."""
        held = self._held.take(key)
        if held is not None:
            self._held.put(key, Amount(held.usd if usd is None else usd, tokens))
            self._serve()

    def orphan(self, key: str) -> None:
        """Nobody flies the agent's attempt any more, or will tell what it came to: it counts as spent, for now."""
        held = self._held.take(key)
        if held is not None:
            self._orphans.put(key, held)
            self._serve()

    def forget(self, key: str) -> None:
        """The agent is forgotten, and its bill is final."""
        self._orphans.take(key)
        self.release(key)

    def note(self, events: Sequence[ev.EventBase]) -> None:
        """Learn from committed events."""
        if self.budget is None:
            return
        for event in events:
            if isinstance(event, ev.UsageUpdated):
                self._settle(event, self.budget)
            elif event.type == "agent.parked":
                self.orphan(event.key)
            elif isinstance(event, ev.ModelStarted) and event.key not in self._held:
                # Nobody flies it: its agent died as this was committed, or it comes from another store.
                self._orphans.put(event.key, Amount(event.reserved or NOTHING.usd, event.reserved_tokens))

    @property
    def limits_money(self) -> bool:
        """Whether a model without a price is a question."""
        return self.budget is not None and self.budget.usd is not None

    def _settle(self, row: ev.UsageUpdated, budget: Budget) -> None:
        period = self._period(*periods(row.ts))
        before = self._spent.get(period, NOTHING)
        self._add(period, Amount(row.cost or NOTHING.usd, row.usage.total_tokens))
        self._held.take(row.key)
        self._orphans.take(row.key)
        now, spent = self._period(*periods(self._env.now())), self._spent[period]
        fraction = budget.passed(before, spent) if period == now else None
        if fraction is not None:
            self._warn(row.key, Warn(scope=STORE, limit=budget.limit, spent=str(spent), fraction=fraction))
        self._serve()

    def _period(self, day: str, month: str) -> str:
        per = self.budget.per if self.budget is not None else None
        return day if per == "day" else month if per == "month" else ""

    def _add(self, period: str, amount: Amount) -> None:
        self._spent[period] = self._spent.get(period, NOTHING) + amount

    def _decide(self, request: _Request) -> Grant | Refusal | None:
        accounts = [*request.accounts()]
        if self.budget is not None:
            spent = self._spent.get(self._period(*periods(self._env.now())), NOTHING)
            spent += self._orphans.of_others(request.key)
            accounts.append(Account(STORE, self.budget, spent, self._held.of_others(request.key)))
        decided = budgets.decide(accounts, request.input_tokens, request.max_output_tokens, request.prices)
        if isinstance(decided, Grant) and self.budget is not None:
            self._held.put(request.key, decided.amount)
        return decided

    def _serve(self) -> None:
        """Answer those who wait, in their order, as far as there is room."""
        while self._waiting:
            request = self._waiting[0]
            if not request.answer.done():
                try:
                    decided = self._decide(request)
                except Exception as error:  # the request's own failure, and not of who has settled
                    request.answer.set_exception(error)
                else:
                    if decided is None:
                        return
                    request.answer.set_result(decided)
            self._waiting.popleft()
