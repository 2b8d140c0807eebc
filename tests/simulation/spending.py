"""Many agents, one budget, and a vendor with a bill of its own: what is spent in the end, by whoever dies meanwhile.

python -m tests.simulation.spending --seeds 1000           # reserved before it is sent, as the ledger does
python -m tests.simulation.spending --seeds 1000 --naive   # checked as a turn begins, and nothing reserved
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.simulation.disk import Platter, SimDisk
from tests.simulation.loop import Clockwork, SimEnv

from nitinol import Agent, Budget, Runtime, errors, tool
from nitinol import events as ev
from nitinol.actors.agent_actor import Crash
from nitinol.actors.ledger import Ledger
from nitinol.budget import Account, Amount, Grant, Refusal, decide
from nitinol.errors import NitinolError
from nitinol.http import Http
from nitinol.journal.audit import audit
from nitinol.journal.reader import StoreReader
from nitinol.journal.sqlite import SqliteJournal
from nitinol.messages import Message, Part, Text, ToolCall
from nitinol.prices import PriceList, Prices
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.retry import Retry
from nitinol.usage import Usage

STORE = Path("/agents.db")
AGENTS = 32
BUDGET = Decimal(2)
PRICES = Prices(input="3", output="15", cache_read="0.3", cache_write="3.75", source="simulated")
LONGEST = 600
"""Output tokens of an answer."""
PIECE = 100
"""Output tokens of one delta."""


class Planned(Exception):
    """Makes an actor crash."""


@dataclass(slots=True)
class Books:
    """The vendor's."""

    billed: Decimal = Decimal(0)
    requests: int = 0

    def bill(self, usage: Usage) -> None:
        cost = PRICES.cost(usage)
        assert cost is not None
        self.billed += cost


@dataclass(frozen=True, slots=True)
class Spent:
    """What became of a seed."""

    seed: int
    billed: Decimal
    """By the vendor's books."""
    recorded: Decimal
    """By the log."""
    error: Decimal
    """By the log: what attempts came to beyond what was reserved for them."""
    worst: Decimal
    """The largest such error of one attempt."""
    requests: int
    lives: int
    wrong: tuple[str, ...]

    @property
    def unused(self) -> Decimal:
        return max(BUDGET - self.recorded, Decimal(0)) / BUDGET


class Vendor:
    """Counts by its own measure, answers at random, fails, and bills what it has made, heard or not."""

    name = "vendor"

    def __init__(self, books: Books, random: Random, model: str, alive: Callable[[], bool]) -> None:
        self.model = model
        self._books, self._random, self._alive = books, random, alive

    def info(self) -> ModelInfo:
        return ModelInfo(max_output_tokens=LONGEST, prices=PRICES)

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        random = self._random
        await asyncio.sleep(random.random() ** 3 * 2)
        if not self._alive():
            return
        self._books.requests += 1
        draw = random.random()
        if draw < 0.06:
            raise errors.RateLimited("slowly", status_code=429, retry_after=random.random())
        if draw < 0.1:
            raise errors.ServerError("alas", status_code=500)
        words = sum(len(str(part)) for message in request.messages for part in message.parts)
        tokens = max(int(words / 4 * (0.5 + 1.5 * random.random())), 1)
        read, wrote = random.randrange(tokens // 2 + 1), random.randrange(tokens // 2 + 1)
        known = Usage(input_tokens=tokens, cache_read_tokens=read, cache_write_tokens=wrote)
        self._books.bill(known)
        yield UsageSoFar(known)
        cap = min(request.max_output_tokens or LONGEST, LONGEST)
        length = cap if random.random() < 0.2 else random.randint(1, cap)
        cut = random.random() < 0.08
        made: list[str] = []
        left = length // 2 if cut else length
        while left > 0:
            size = min(left, PIECE)
            left -= size
            if self._alive():  # what a dead life is sent was made before
                self._books.bill(Usage(output_tokens=size))
            made.append("word" * size)
            yield Delta("text", made[-1])
            await asyncio.sleep(random.random() ** 4)
        if cut:
            raise errors.ConnectionFailed("the line is dead")
        parts: list[Part] = [Text("".join(made))]
        asks = length < cap and random.random() < 0.4
        if asks:
            parts.append(ToolCall(call_id=f"c{request.turn}", name="look"))
        yield ModelResponse(
            message=Message(role="assistant", parts=tuple(parts), provider=self.name, model=self.model),
            usage=Usage(
                input_tokens=tokens, cache_read_tokens=read, cache_write_tokens=wrote, output_tokens=length
            ),
            stop_reason="max_tokens" if length == cap else "tool_use" if asks else "end_turn",
        )  # fmt: skip


class Naive(Ledger):
    """Looks, as a turn begins, at what is spent; reserves nothing, and lowers nothing. To compare with."""

    async def reserve(
        self,
        key: str,
        accounts: Callable[[], Sequence[Account]],
        input_tokens: int,
        max_output_tokens: int | None,
        prices: PriceList | None,
    ) -> Grant | Refusal:
        spent = self._spent.get("", Amount())
        if spent.usd >= BUDGET:
            return Refusal("store", f"${BUDGET}", str(spent), "anything")
        grant = decide((), input_tokens, max_output_tokens, prices)
        assert isinstance(grant, Grant)
        return grant


@tool(timeout=5.0)
async def look() -> str:
    """Looks around."""
    return "nothing new"


def spend(seed: int, naive: bool = False) -> Spent:
    """Let 32 agents spend one budget, in several lives, until nothing can be sent any more."""
    with pytest.MonkeyPatch.context() as patch:
        if naive:
            patch.setattr("nitinol.actors.system.Ledger", Naive)
        return _Spending(seed).run()


class _Spending:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(f"spending {seed}")
        self.platter, self.books = Platter(), Books()
        self.elapsed = 0
        self.wrong: list[str] = []
        self.lives = 0

    def run(self) -> Spent:
        for _ in range(self.random.choice((0, 1, 1, 2, 3))):
            self._live(self.random.random() ** 2 * 60)
        self._live(None)
        disk = SimDisk(self.platter)
        try:
            self.wrong += [f"{fault.key}: {fault.text}" for fault in audit(STORE, disk).faults]
            reader = StoreReader(STORE, disk)
            log = reader.scan(0, 1_000_000)
            self.wrong += [f"{head.key} has reserved something still" for head in reader.heads(reserved=True)]
            reader.close_readers()
        finally:
            disk.bury()
        return self._sum_up(log)

    def _sum_up(self, log: Sequence[ev.EventBase]) -> Spent:
        recorded = error = worst = Decimal(0)
        reserved: dict[tuple[str | None, int, int], Decimal] = {}
        for event in log:
            at = (event.run_id, event.turn, event.attempt)
            if isinstance(event, ev.ModelStarted):
                reserved[at] = event.reserved or Decimal(0)
            elif isinstance(event, ev.UsageUpdated):
                cost = event.cost or Decimal(0)
                recorded += cost
                over = max(cost - reserved.pop(at), Decimal(0))
                error, worst = error + over, max(worst, over)
        return Spent(
            self.seed, self.books.billed, recorded, error, worst, self.books.requests, self.lives, tuple(self.wrong)
        )

    def _live(self, seconds: float | None) -> None:
        """A life: killed after so long, or lived to its end."""
        self.lives += 1
        random = Random(f"life {self.lives} of {self.seed}")
        clockwork = Clockwork(Random(f"schedule {self.lives} of {self.seed}"), self.elapsed)
        clockwork.failed = lambda message, error: (
            None if isinstance(error, asyncio.CancelledError) else self.wrong.append(f"{message}: {error!r}")
        )
        env, disk = SimEnv(clockwork, f"env {self.lives} of {self.seed}"), SimDisk(self.platter)
        people = clockwork.loop("people")
        models = [Vendor(self.books, random, name, lambda: not clockwork.dead) for name in ("large", "small")]
        agent = Agent(
            name="spender",
            model=models[0],
            fallbacks=[models[1]],
            tools=[look],
            retry=Retry(attempts=2, base=0.2, cap=1.0),
        )
        rt = Runtime(
            lambda env_, core: SqliteJournal(STORE, env, core, disk), agents=[agent], env=env, budget=Budget(usd=BUDGET)
        )
        crowd = [self._person(people, partial(self._user, rt, agent, number, random)) for number in range(AGENTS)]
        trouble = self._person(people, partial(self._trouble, rt, random))
        clockwork.run(lambda: all(user.done() for user in crowd), seconds=seconds or 6 * 3600.0)
        if seconds is None:
            if not all(user.done() for user in crowd):
                self.wrong.append("somebody waits for ever")
            trouble.cancel()
            stopping = rt._system.stop(0.0, 20.0)  # pyright: ignore[reportPrivateUsage]
            if not clockwork.run(stopping.done, seconds=60.0):
                self.wrong.append("it does not stop")
        clockwork.dead = True
        disk.die()
        self.elapsed = clockwork.elapsed
        clockwork.bury()
        with suppress(NitinolError):
            rt.stop()
        disk.bury()

    def _person(self, loop: Any, person: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = loop.spawn(person())
        return task

    async def _user(self, rt: Runtime, agent: Agent[Any], number: int, random: Random) -> None:
        """Asks until there is no money left."""
        ref = rt.start(agent, key=f"spender/{number}")
        while True:
            await asyncio.sleep(random.random() ** 2 * 3)
            handle = await ref.asend("Go on, and tell me more. " * random.randint(1, 40))
            if random.random() < 0.1:
                await asyncio.sleep(random.random() * 2)
                with suppress(errors.AlreadyResolved):
                    await handle.acancel()
            result = await handle
            if result.status == "budget_exceeded":
                return

    async def _trouble(self, rt: Runtime, random: Random) -> None:
        """Makes agents crash."""
        while True:
            await asyncio.sleep(random.random() * 6)
            cells = list(rt._system.cells.values())  # pyright: ignore[reportPrivateUsage]
            if cells:
                rt._system.core.call(_crash, random.choice(cells))  # pyright: ignore[reportPrivateUsage]


def _crash(cell: Any) -> None:
    if cell.actor is not None:
        cell.actor.post(Crash(Planned("now")))


def main() -> int:
    """0 if no seed has spent more than it may."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.spending", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--naive", action="store_true", help="check as a turn begins, and reserve nothing")
    given = parser.parse_args()
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        seeds = range(given.start, given.start + given.seeds)
        all_spent = list(pool.imap_unordered(partial(spend, naive=given.naive), seeds, 2))
    over = [spent for spent in all_spent if spent.billed > BUDGET + spent.error]
    for spent in all_spent:
        if spent.wrong:
            print(f"seed {spent.seed}:", *spent.wrong[:5], sep="\n    ")
    print(
        f"{len(all_spent)} seeds of {AGENTS} agents on one budget of ${BUDGET}, {sum(spent.lives for spent in all_spent)} lives,"
        f" {sum(spent.requests for spent in all_spent)} requests, in {time.monotonic() - began:.0f} s"
    )
    print(
        f"billed at most ${max(spent.billed for spent in all_spent):.4f},"
        f" on average ${sum(spent.billed for spent in all_spent) / len(all_spent):.4f}; over budget and recorded error:"
        f" {len(over)} seeds"
    )
    print(
        f"recorded error of the estimates: at most ${max(spent.error for spent in all_spent):.4f} a seed,"
        f" ${max(spent.worst for spent in all_spent):.4f} an attempt"
    )
    print(
        f"left unused at the end: at most {max(spent.unused for spent in all_spent):.2%},"
        f" on average {sum(spent.unused for spent in all_spent) / len(all_spent):.2%}"
    )
    return 1 if over or any(spent.wrong for spent in all_spent) else 0


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    sys.exit(main())
