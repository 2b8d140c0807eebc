"""Everything at once: 8 threads and 2 event loops, 5,000 calls, 200 agents; with crashes, too. Shows 7."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.logs_of import assert_valid

from nitinol import Agent, AgentRef, RunHandle, Runtime, tool
from nitinol.errors import AlreadyResolved, ConnectionFailed
from nitinol.events import EventBase
from nitinol.journal.base import verify
from nitinol.provider import ModelRequest
from nitinol.retry import Retry
from nitinol.testing import ScriptedProvider, call, crash, say

pytestmark = pytest.mark.slow

AGENTS, CALLS, THREADS, LOOPS = 200, 5000, 8, 2
ENOUGH = 30.0
"""Seconds within which every handle ends, also on a busy machine with one core."""


@tool
def work(number: int) -> str:
    """Work on a thread."""
    return f"{number}"


@tool(replay="safe")
async def think(number: int) -> str:
    """Work on the user loop."""
    await asyncio.sleep(0)
    return f"{number}"


def answer(request: ModelRequest) -> Any:
    """Two calls, now and then a broken stream, then an end: decided by the run's id, so that it is the same again."""
    kind = hash(request.run_id) % 4
    if request.messages[-1].role == "tool" or kind == 0:
        return "end"
    if kind == 1 and request.attempt == 1:
        return say("half", cut=True)
    return [say("on it", chunks=3), call("work", number=request.turn), call("think", number=2)]


class Crowd:
    """Agents, and callers that do to them what chance says."""

    def __init__(self, rt: Runtime, seed: int) -> None:
        agent = Agent(
            name="crowd",
            model=ScriptedProvider(answer),
            tools=[work, think],
            retry=Retry(base=0.0, attempts=10),
            max_pending=CALLS,
        )
        self.rt, self.seed = rt, seed
        self.refs: list[AgentRef[str]] = [rt.start(agent, key=f"crowd/{number}") for number in range(AGENTS)]
        self.handles: list[RunHandle[str]] = []
        self.done: Counter[str] = Counter()

    def run(self, crashes: int = 0) -> None:
        """All callers at once, to the end."""
        share = CALLS // (THREADS + LOOPS)
        with ThreadPoolExecutor(THREADS + LOOPS + 1) as pool:
            callers = [pool.submit(self._thread, random.Random(self.seed + number), share) for number in range(THREADS)]
            for number in range(LOOPS):
                chance = random.Random(self.seed + THREADS + number)
                callers.append(pool.submit(asyncio.run, self._loop(chance, share)))
            callers.append(pool.submit(self._crash, random.Random(self.seed - 1), crashes))
            for caller in callers:
                caller.result(ENOUGH)

    def verify(self) -> None:
        """Every handle ended, every log is whole, and each run has one end."""
        statuses = Counter(handle.result(ENOUGH).status for handle in self.handles)
        assert set(statuses) <= {"completed", "cancelled", "sealed"}, statuses
        assert sum(self.done.values()) == CALLS, self.done
        for ref in self.refs:
            for run_id in _queued(ref):
                self.rt.handle(run_id).result(ENOUGH)
            log = raw_log(ref)
            assert verify(log) == [], (self.seed, log)
            finished = Counter(event.run_id for event in log if event.type == "run.finished")
            assert finished == Counter(_queued(ref))
            assert ref.status().state == "idle"

    def _thread(self, chance: random.Random, count: int) -> None:
        mine: list[RunHandle[str]] = []
        for _ in range(count):
            ref = chance.choice(self.refs)
            what = chance.choice(["send", "send", "ask", "cancel", "steer", "follow_up"])
            self.done[what] += 1
            try:
                if what == "ask":
                    assert ref.ask("ask", timeout=ENOUGH).status in ("completed", "sealed")
                elif what == "send" or not mine:
                    mine.append(ref.send("send"))
                elif what == "cancel":
                    chance.choice(mine).cancel()
                elif what == "steer":
                    chance.choice(mine).steer("steer")
                else:
                    chance.choice(mine).follow_up("follow up")
            except AlreadyResolved:  # the run was faster
                continue
        self.handles += mine

    async def _loop(self, chance: random.Random, count: int) -> None:
        mine: list[RunHandle[str]] = []

        async def one(what: str) -> None:
            ref = chance.choice(self.refs)
            self.done[what] += 1
            try:
                if what == "ask":
                    assert (await ref.aask("ask", timeout=ENOUGH)).status in ("completed", "sealed")
                elif what == "send" or not mine:
                    mine.append(await ref.asend("send"))
                elif what == "cancel":
                    await chance.choice(mine).acancel()
                elif what == "steer":
                    await chance.choice(mine).asteer("steer")
                else:
                    await chance.choice(mine).afollow_up("follow up")
            except AlreadyResolved:
                return

        kinds = ["send", "send", "ask", "cancel", "steer", "follow_up"]
        for _ in range(count // 20):
            await asyncio.gather(*(one(chance.choice(kinds)) for _ in range(20)))
        self.handles += mine

    def _crash(self, chance: random.Random, count: int) -> None:
        victims = chance.sample(self.refs, k=count)  # each once: nobody is parked
        for victim in victims:
            crash(victim, timeout=ENOUGH)


def raw_log(ref: AgentRef[str]) -> Sequence[EventBase]:
    """As `log_of`, without the way through JSON: there are a hundred thousand events."""
    return ref._system.journal.read(ref.key)  # pyright: ignore[reportPrivateUsage]


def _queued(ref: AgentRef[str]) -> list[str]:
    return [event.run_id or "" for event in raw_log(ref) if event.type == "run.queued"]


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0, workers=8) as runtime:
        yield runtime


@pytest.fixture(params=[0.005, 1e-5], ids=["", "switching"])
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads take turns as usual, or as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_five_thousand_calls_from_threads_and_loops_all_end(rt: Runtime) -> None:
    """Sends, asks, cancels, steers and follow-ups: every handle ends, nothing hangs, every log verifies. Shows 7"""
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    crowd = Crowd(rt, seed)
    crowd.run()
    crowd.verify()


@pytest.mark.usefixtures("switching")
def test_five_thousand_calls_survive_random_crashes(rt: Runtime) -> None:
    """As above, while 150 of the 200 agents die once. Shows 7, parity: A5"""
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    crowd = Crowd(rt, seed)
    crowd.run(crashes=150)
    crowd.verify()
    crashed = sum(event.type == "agent.crashed" for ref in crowd.refs for event in raw_log(ref))
    assert crashed == 150


def test_a_provider_that_always_breaks_still_ends_every_run(rt: Runtime) -> None:
    """Fifty agents whose streams are cut each time: each run ends `failed`, with every attempt in the bill."""

    def broken(request: ModelRequest) -> Any:
        raise ConnectionFailed("cut")

    agent = Agent(name="broken", model=ScriptedProvider(broken), retry=Retry(attempts=3, base=0.0))
    refs = [rt.start(agent) for _ in range(50)]
    handles = [ref.send("go") for ref in refs for _ in range(3)]
    assert {handle.result(ENOUGH).status for handle in handles} == {"failed"}
    for ref in refs:
        assert_valid(ref)
        assert sum(event.type == "usage.updated" for event in raw_log(ref)) == 9
