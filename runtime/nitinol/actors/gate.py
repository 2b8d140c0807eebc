"""The gate before a model: when its provider says that requests come too fast, all agents slow down, not each alone.

A gate is open until a request is refused (`RateLimited`, or `Overloaded` with a `Retry-After`). Then it pauses for as long
as the provider asks, and lets requests out one by one, first come, first served: at half the rate that was taken before,
a little faster with each request that is taken (additive increase), and at half the rate again when one is refused
(multiplicative decrease). When nobody was refused for a while, and nobody waits, it is open again.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from nitinol.env import Env, Loop, Timer
from nitinol.errors import Overloaded, RateLimited
from nitinol.provider import Provider
from nitinol.retry import PATIENCE

WINDOW = 10.0
"""Seconds over which the rate of an open gate is measured."""
PAUSE = 1.0
"""Seconds of the first pause, where the provider does not say how long."""
FLOOR = 1 / 60
"""Requests a second that are let out at least, once a pause is over."""
STEP = 0.05
"""What a request that is taken adds to the rate: this part of what the last cut has made of it."""
GUESSED, KNOWN = 0.2, 0.01
"""But at least so many requests a second: after the first pause, when its rate is only measured, and after a cut."""
WELL = 60.0
"""Seconds without a refusal after which a gate is open again, if nobody waits."""
HOPELESS = 6
"""Cuts in a row, with no request taken in between, after which a gate stands open until one is taken: it helps nobody, and
each run goes on, or fails, by its own `Retry`."""
KEPT = 1000
"""Gates that are kept; beyond, those that are open are forgotten, which costs them no more than their measure."""
_MOMENT = 1e-6


class Gate:
    """When the next request may leave. Pure: it is told the time, in seconds on a clock that never goes back."""

    __slots__ = (
        "_cut_at", "_cuts", "_last", "_refused", "_sent", "_since", "_sole", "_step", "_until",
        "is_open", "rate",
    )  # fmt: skip

    def __init__(self) -> None:
        self.is_open = True
        self.rate = 0.0
        """Requests a second, of a closed gate; 0 until its first pause is over."""
        self._step = GUESSED
        self._until = -math.inf  # the end of the pause
        self._last = -math.inf  # when a request left
        self._since, self._sent, self._refused = -math.inf, 0, 0  # what an open gate, and its first pause, have seen
        self._cut_at, self._cuts = -math.inf, 0  # cuts in a row
        self._sole: str | None = None  # the agent, while all that was refused since the gate closed is one agent's

    def is_scout(self, agent: str) -> bool:
        """Whether this agent need not wait: it alone was refused, has its own `Retry`, and tries the way for the others."""
        return agent == self._sole

    def wait(self, now: float) -> float:
        """Seconds until one may leave; 0 = now."""
        if self.is_open:
            return 0.0
        if not self.rate:
            if now < self._until - _MOMENT:
                return self._until - now
            taken = max(self._sent - self._refused, 1)
            self._slow_to(taken / max(self._until - self._since, PAUSE) / 2, GUESSED)
        left = max(self._until, self._last + 1 / self.rate) - now
        return left if left > _MOMENT else 0.0

    def leave(self, now: float, waiting: int = 0) -> None:
        """One leaves; so many wait behind it."""
        self._last = now
        if not self.is_open and not waiting and now - self._cut_at >= WELL and now >= self._until:
            self._open()
        if self.is_open:
            if now - self._since > WINDOW:
                self._since, self._sent, self._refused = now, 0, 0
            self._sent += 1

    def accept(self, left_at: float) -> None:
        """The request that left then was taken."""
        if left_at > self._cut_at:
            self._cuts = 0
            if self.rate:
                self.rate += self._step

    def refuse(self, left_at: float, now: float, retry_after: float | None, agent: str) -> None:
        """The request of this agent that left then was refused; `retry_after`: seconds that the provider asks for, if it does."""
        if self.is_open and self._cuts >= HOPELESS:
            return
        asked = min(retry_after, PATIENCE) if retry_after is not None and retry_after > 0 else 0.0
        if self.is_open:
            self.is_open, self.rate, self._sole = False, 0.0, agent
            self._refused += 1
        else:
            if agent != self._sole:
                self._sole = None
            if left_at <= self._cut_at:  # it says nothing of what that cut has done
                self._until = max(self._until, now + asked)
                self._refused += 1
                return
            if self.rate:
                self._slow_to(self.rate / 2, KNOWN)
        self._cut_at = now
        self._cuts += 1
        self._until = max(self._until, now + (asked or (1 / self.rate if self.rate else PAUSE)))
        self._last = -math.inf  # it was not let in, so the next one need not keep a distance from it
        if self._cuts >= HOPELESS:
            self._open()

    def _slow_to(self, rate: float, least_step: float) -> None:
        self.rate = max(rate, FLOOR)
        self._step = max(self.rate * STEP, least_step)

    def _open(self) -> None:
        self.is_open, self.rate, self._sole, self._since = True, 0.0, None, -math.inf


class Pass:
    """One request's leave. Its outcome is told to the gate; one that never comes harms nobody."""

    __slots__ = ("_accepted", "_agent", "_left_at", "_line")

    def __init__(self, line: Line, agent: str, left_at: float) -> None:
        self._line, self._agent, self._left_at = line, agent, left_at
        self._accepted = False

    def accept(self) -> None:
        """The provider answers. Any number of times."""
        if not self._accepted:
            self._accepted = True
            self._line.accept(self._left_at)

    def fail(self, error: Exception) -> None:
        """The attempt has failed; only a refusal for the rate concerns others."""
        if isinstance(error, RateLimited) or (isinstance(error, Overloaded) and error.retry_after):
            self._line.refuse(self._left_at, error.retry_after, self._agent)


class Line:
    """Those who wait at one gate, first come, first served. On the core loop only."""

    def __init__(self, env: Env, core: Loop, log: Any, owner: Provider) -> None:
        self.gate = Gate()
        self.owner = owner
        """A provider that goes through here; kept alive with the line, as its `id` may be what the line is known by."""
        self.waiting: OrderedDict[asyncio.Future[float], None] = OrderedDict()
        self._env, self._core, self._log = env, core, log
        self._timer: Timer | None = None

    async def enter(self, agent: str) -> Pass:
        """Wait for one's turn. A task that is cancelled leaves the line."""
        now = self._env.monotonic()
        gate = self.gate
        if gate.is_open or gate.is_scout(agent) or not (self.waiting or gate.wait(now)):
            self._leave(now)
            return Pass(self, agent, now)
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.waiting[turn] = None
        if self._timer is None:
            self._let_out()
        try:
            return Pass(self, agent, await turn)
        finally:
            self.waiting.pop(turn, None)

    def accept(self, left_at: float) -> None:
        """A request was taken."""
        self.gate.accept(left_at)
        if self.waiting:
            self._let_out()  # perhaps it is somebody's turn sooner

    def refuse(self, left_at: float, retry_after: float | None, agent: str) -> None:
        """A request was refused."""
        gate, now = self.gate, self._env.monotonic()
        was_open = gate.is_open
        gate.refuse(left_at, now, retry_after, agent)
        self._tell(was_open)
        if self.waiting:
            self._let_out()

    def _let_out(self) -> None:
        """Let out whose turn it is, and come again for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, gate = self._env.monotonic(), self.gate
        while self.waiting:
            delay = gate.wait(now)
            if delay:
                self._timer = self._core.call_later(delay, self._let_out)
                return
            turn, _ = self.waiting.popitem(last=False)
            if not turn.done():
                self._leave(now)
                turn.set_result(now)

    def _leave(self, now: float) -> None:
        was_open = self.gate.is_open
        self.gate.leave(now, len(self.waiting))
        self._tell(was_open)

    def _tell(self, was_open: bool) -> None:
        gate = self.gate
        if gate.is_open != was_open:
            what = (
                "all requests leave at once again" if gate.is_open else "requests wait in line, as the rate is limited"
            )
            self._log.info(what, provider=self.owner.name, model=self.owner.model)


class Gates:
    """The gates of a runtime. On the core loop only."""

    def __init__(self, env: Env, core: Loop, log: Any) -> None:
        self._env, self._core, self._log = env, core, log
        self._lines: dict[Hashable, Line] = {}

    async def enter(self, model: str | Provider, provider: Provider, agent: str) -> Pass:
        """Wait until a request to this provider, which `model` stands for, may leave.

        Args:
            agent: Whose request it is, by its key.
        """
        return await self.line(model, provider).enter(agent)

    def line(self, model: str | Provider, provider: Provider) -> Line:
        """The line of this provider, account and model.

        A provider that does not tell its `account` shares with those of the same model string, whose key is from the same
        variable; one that was given as an object shares with itself.
        """
        account = getattr(provider, "account", None)
        known_by: Hashable = (
            (provider.name, provider.model, account)
            if account is not None
            else model if isinstance(model, str) else id(provider)
        )  # fmt: skip
        line = self._lines.get(known_by)
        if line is None:
            if len(self._lines) >= KEPT:
                self._lines = {by: line for by, line in self._lines.items() if not line.gate.is_open or line.waiting}
            line = self._lines[known_by] = Line(self._env, self._core, self._log, provider)
        return line
