"""One seed: a world in which a runtime lives several lives on one disk, and what must be true of it in the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

from tests.simulation.checks import check
from tests.simulation.disk import Fault, Platter, SimDisk
from tests.simulation.loop import Clockwork, SimEnv, SimLoop, Stuck
from tests.simulation.outside import GONE, Outside, Sent, a_conversation, some_agents
from tests.simulation.troupe import Troupe

from nitinol import Agent, Runtime, errors
from nitinol import events as ev
from nitinol.actors.agent_actor import Crash
from nitinol.actors.cell import Cell
from nitinol.agent_ref import AgentRef
from nitinol.env import Loop
from nitinol.errors import NitinolError, StorageFailed
from nitinol.handle import RunHandle
from nitinol.journal.base import CRASH_POINTS, Journal
from nitinol.journal.sqlite import SqliteJournal
from nitinol.messages import Message
from nitinol.state import AgentState

STORE = Path("/agents.db")
KEYS = ("clerk/1", "scout/1", "clerk/2", "clerk/3", "scout/2", "clerk/4", "clerk/5", "scout/3")
LIFETIME = 90.0
"""Virtual seconds that a life lasts, if nothing ends it."""
HEALING = 6 * 3600.0
"""Virtual seconds within which every run has ended, once nothing is in the way."""

FAULTS: tuple[Fault, ...] = ("full", "write", "sync", "read")

REFUSALS = (
    errors.AgentBusy, errors.AgentDown, errors.AgentParked, errors.AgentStopped, errors.AlreadyResolved, errors.NotFound,
    errors.RuntimeStopped, errors.StorageFailed,
)  # fmt: skip

_MOODS = {
    "parked": "storm", "resumed": "storm", "agent.stopped": "stop", "reset": "reset", "configured": "set_model",
    "input": "steer", "cancelling": "cancel", "crashed": "crash", "restarted": "crash", "repaired": "remember",
}  # fmt: skip
"""A part of a crash point's name, and what people do to get there."""
_RARE = ("budget", "fallback", "retrying", "discarded", "failed")

OpenJournal = Callable[[Path, SimEnv, Loop, SimDisk], Journal]
"""Opens the journal of a life; a planted bug opens another."""


class Planned(Exception):
    """Makes an actor crash."""


@dataclass(slots=True)
class Numbers:
    """What many seeds come to."""

    lives: int = 0
    steps: int = 0
    crashes: Counter[str] = field(default_factory=Counter[str])
    """By crash point, and by the other ends of lives."""
    reached: Counter[str] = field(default_factory=Counter[str])
    power_cuts: int = 0
    faults: int = 0
    requests: int = 0
    limited: int = 0
    """Of these, how many came too soon for a provider that limits their rate."""
    executions: int = 0
    events: int = 0
    cancelled: Counter[str] = field(default_factory=Counter[str])
    """Cancels that were asked for at a crash point."""
    troupe: Counter[str] = field(default_factory=Counter[str])
    """What became of users' actors, and of watches."""
    virtual: float = 0.0

    def add(self, other: Numbers) -> None:
        """Sum up."""
        self.crashes.update(other.crashes)
        self.reached.update(other.reached)
        self.cancelled.update(other.cancelled)
        self.troupe.update(other.troupe)
        counted = ("lives", "steps", "power_cuts", "faults", "requests", "limited", "executions", "events", "virtual")
        for name in counted:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a seed."""

    seed: int
    wrong: list[str]
    hash: int
    numbers: Numbers


class World:
    """What outlives its lives: the disk, the outside, the clock."""

    def __init__(
        self, seed: int, *, open_journal: OpenJournal = SqliteJournal, tell: Callable[[str], object] | None = None
    ) -> None:
        self.seed, self.open_journal = seed, open_journal
        self.random = Random(f"world {seed}")
        self.platter = Platter()
        self.elapsed = 0
        every = Random(f"limit {seed}").choice((None, None, 1.0, 20.0))
        self.outside = Outside(Random(f"outside {seed}"), self.trace, every=every)
        self.make_agents = some_agents(self.random)
        self.keys = KEYS[: self.random.choice((1, 3, 3, 4, 8))]
        self.numbers = Numbers()
        self.hash = 0
        self.life: Life | None = None
        self.committed: dict[str, AgentState] = {}
        """What the cells of the last life held when it was asked to stop."""
        self._tell = tell

    def run(self) -> Report:
        """Live all lives, then look."""
        keeper = _Records(self)
        logger = logging.getLogger("nitinol")
        before = logger.propagate
        logger.addHandler(keeper)
        logger.propagate = False
        try:
            for number in range(1, self.random.choice((2, 3, 3, 4)) + 1):
                Life(self, number).run()
            Life(self, self.numbers.lives + 1, last=True).run()
            self.life = None
            if not self.outside.wrong:
                try:
                    check(self)
                except NitinolError as error:
                    self.outside.fail(f"the store that is left cannot be read: {error}")
        finally:
            logger.removeHandler(keeper)
            logger.propagate = before
        numbers = self.numbers
        numbers.requests = len(self.outside.requests)
        numbers.limited = self.outside.limited
        numbers.executions = sum(len(done) for done in self.outside.executions.values())
        numbers.virtual = self.elapsed / 1e9
        return Report(self.seed, self.outside.wrong, self.hash, numbers)

    def trace(self, what: str) -> None:
        """Something that can be seen from outside happened: the same seed must give the same sequence of these."""
        elapsed = self.elapsed if self.life is None else self.life.clockwork.elapsed
        line = f"{elapsed / 1e9:12.6f} {what}"
        self.hash = zlib.crc32(line.encode(), self.hash)
        if self._tell is not None:
            self._tell(line)


class Life:
    """One process, from its start to its end, in one way or another."""

    def __init__(self, world: World, number: int, last: bool = False) -> None:
        self.world, self.number, self.last = world, number, last
        self.outside = world.outside
        self.random = random = Random(f"life {number} of {world.seed}")
        self.dead = False
        self.fault_seen = self.crashed = self.healed = False
        world.life = self
        world.numbers.lives += 1
        self.clockwork = Clockwork(Random(f"schedule of life {number} of {world.seed}"), world.elapsed)
        self.clockwork.failed = self._escaped
        self.env = SimEnv(
            self.clockwork,
            f"env of life {number} of {world.seed}",
            int(random.choice((0, 0, 1, -1)) * random.random() * 5e9),
        )
        self.env.crash_point = self.reach
        self.troupe = Troupe(self, self.env.monotonic, world.trace, self._troupe_fails)
        self.env.starting = self.troupe.starting
        self.disk = SimDisk(world.platter, random.choice((1000, 1000, 40, 8)))
        self.disk.dying = lambda: self.die("in a write")
        self.agents: list[Agent[Any]] = world.make_agents(
            self, 0.1 if last else random.choice((0.0, 0.15, 0.4)), random
        )
        self.agent_watches: list[Any] = []
        """Who was promised to be told of an agent's end: the future, the cell, since when, its incarnation."""
        self.people: SimLoop = self.clockwork.loop("people")
        self.rt: Runtime | None = None
        self.cut = random.random() < 0.5
        """Whether the power goes, or only the process."""
        self._plan(random)
        self.meddler = Random(f"meddler of life {number} of {world.seed}")
        self.meddling = 0.0 if last else self.meddler.choice((0.0, 0.0, 0.02, 0.1))
        """How likely it is, at each crash point, that somebody disturbs an agent in just this moment."""

    def _plan(self, random: Random) -> None:
        self.point: str | None = None
        self.mood: str | None = None
        """What people like to do in this life, so that it gets to its point."""
        self.passes = 0
        self.moment = LIFETIME
        self.clean = True
        if self.last:
            return
        end = random.choices(("point", "moment", "write", "clean"), (55, 12, 15, 18))[0]
        self.clean = end == "clean"
        if end == "point":
            self.point = random.choice(CRASH_POINTS)
            self.mood = next((mood for part, mood in _MOODS.items() if part in self.point), None)
            rare = self.mood or any(word in self.point for word in _RARE)
            self.passes = 0 if rare else int(random.random() ** 2 * 6)
        elif end == "moment":
            self.moment = random.random() ** 3 * LIFETIME
        elif end == "write":
            self.disk.operations_left = int(random.random() ** 2 * 900) + 1
        else:
            self.moment = random.random() * LIFETIME

    # -- its end

    def reach(self, point: str) -> None:
        """The code under test gets to a crash point."""
        if self.dead:
            return
        self.world.numbers.reached[point] += 1
        if self.meddling and not self.healed and self.meddler.random() < self.meddling:
            self._meddle(point)
        if point == self.point:
            self.passes -= 1
            if self.passes < 0:
                self.die(point)

    def _meddle(self, point: str) -> None:
        """Somebody cancels a run, or makes an agent crash or stop, when the code under test gets to a point."""
        cells = [cell for cell in self.runtime._system.cells.values() if cell.committed.run] if self.rt else []  # pyright: ignore[reportPrivateUsage]
        if not cells:
            return
        cell = self.meddler.choice(cells)
        run = cell.committed.run
        what = self.meddler.choices(("cancel", "crash", "stop"), (6, 3, 1))[0]
        if run is None:
            return
        match what:
            case "cancel":
                self.world.numbers.cancelled[point] += 1
                self._person(partial(self._cancel, cell.key, run.run_id))
            case "crash":
                self.crashed = True
                self.runtime._system.core.call(_crash, cell, Crash(Planned(f"at {point}")))  # pyright: ignore[reportPrivateUsage]
            case _:
                self._person(partial(self._stop_agent, cell.key))

    async def _cancel(self, key: str, run_id: str) -> None:
        with suppress(*REFUSALS):
            await self.runtime.handle(run_id).acancel()
            if key != GONE:
                self._promise(lambda: self.outside.cancelled.append(run_id))

    async def _stop_agent(self, key: str) -> None:
        with suppress(*REFUSALS):
            await self.runtime.get(key).astop()

    def die(self, how: str) -> None:
        """It is over, now: whatever the code under test still does in this moment, nobody hears of it."""
        if self.dead:
            return
        self.world.trace(f"life {self.number} ends {how}{', and the power fails' if self.cut else ''}")
        self.world.numbers.crashes[how] += 1
        self.dead = self.clockwork.dead = True
        self.disk.die()

    def _troupe_fails(self, what: str) -> None:
        if not self.dead:
            self.outside.fail(what)

    def _escaped(self, message: str, error: BaseException | None) -> None:
        if not self.dead and not isinstance(error, asyncio.CancelledError):
            self.outside.fail(f"{message}: {type(error).__name__}: {error}")

    # -- its course

    def run(self) -> None:
        """From start to end."""
        world, random = self.world, self.random
        world.trace(f"life {self.number} begins{', the last' if self.last else ''}")
        try:
            self._live()
        except Stuck:
            if self.last:
                self.outside.fail("everything stands still, and nothing will ever move it")
        self.die("at the end")  # unless it is dead already
        world.elapsed = self.clockwork.elapsed + int(random.random() * 5e9)
        world.numbers.steps += self.clockwork.steps
        world.numbers.faults += self.disk.faults
        world.numbers.troupe.update(self.troupe.counts)
        self.clockwork.bury()
        if self.rt is not None:
            with suppress(NitinolError):
                self.rt.stop()
        self.disk.bury()
        if self.cut or self.last:
            world.numbers.power_cuts += 1
            world.platter.lose_power(random)

    def _live(self) -> None:
        random = self.random
        if not self.last and random.random() < 0.2:
            self.disk.failing_in = int(random.random() ** 2 * 600) + 1
            self.disk.failing = partial(self._begin_fault, random.choice(FAULTS), random.random() ** 3 * 20)
        elif not self.last and random.random() < 0.25:
            begins = random.choice((0.0, 1.0, 1.0, 1.0)) * random.random() ** 2 * 30
            for _ in range(random.choice((1, 1, 3))):
                fault = random.choice(FAULTS)
                if random.random() < 0.1:
                    self._set_fault(fault)
                else:
                    self.people.call_later(begins, self._set_fault, fault)
                begins += random.random() ** 2 * 40
                self.people.call_later(begins, self._set_fault, None)
        try:
            self.rt = Runtime(
                lambda env, core: self.world.open_journal(STORE, self.env, core, self.disk),
                agents=self.agents[: 1 if not self.last and random.random() < 0.1 else None],
                env=self.env,
                workers=random.choice((2, 32)),
                idle=random.choice((None, 0.5, 5.0)),
            )
        except Exception as error:
            if not self.dead and not (isinstance(error, StorageFailed) and self.fault_seen):
                self.outside.fail(f"life {self.number} cannot begin: {error!r}")
            return
        self.monitor = self._person(self._monitor)
        self._person(self._inspector)
        if self.last:
            if random.random() < 0.5:
                self._person(partial(self._director, 0))
                self.clockwork.run(lambda: False, seconds=random.random() * LIFETIME)
            self._heal()
        else:
            for number in range(random.choice((1, 2, 3))):
                self._person(partial(self._user, number))
            self._person(self._approver)
            for number in range(random.choice((0, 1, 2))):
                self._person(partial(self._director, number))
            self.clockwork.run(lambda: self.down, seconds=self.moment)
            if self.down:
                self._fall()
            elif not self.dead and random.random() < (0.6 if self.fault_seen or self.crashed else 0.1):
                self._heal()
        if not self.dead and self.clean:
            self._stop_in_order()
        elif not self.dead:
            self.die("at a moment")

    def _heal(self) -> None:
        """Nothing is in the way any more: then every run ends, without another life."""
        self.disk.fault, self.healed = None, True
        settled = [self._person(self._settle), self._person(self.troupe.settle)]
        healed = self.clockwork.run(lambda: all(each.done() for each in settled) or self.down, seconds=HEALING)
        if self.down and self.last:
            self.outside.fail("the root supervisor has failed, and nobody has shaken it")
        if not healed and not self.dead and not self.down:
            self.outside.fail(f"life {self.number}: not all runs have ended {HEALING:g} s after everything was healed")

    def _fall(self) -> None:
        """The root supervisor has failed: all that was supervised goes down, and everybody is told."""
        self.world.numbers.crashes["of the root"] += 1
        self.clockwork.run(lambda: False, seconds=60.0)
        if not self.dead:
            self._check_over()

    def _begin_fault(self, fault: Fault, seconds: float) -> None:
        """The disk fails at this very write, and for a while."""
        self._set_fault(fault)
        self.people.call_later(seconds, self._set_fault, None)

    def _set_fault(self, fault: Fault | None) -> None:
        if self.healed:
            return
        self.world.trace(f"the disk {'is well' if fault is None else f'fails: {fault}'}")
        self.disk.fault = fault
        self.fault_seen = True

    def _stop_in_order(self) -> None:
        """As `Runtime.stop`, which waits as only a thread can."""
        assert self.rt is not None
        self.world.trace(f"life {self.number} is asked to stop")
        system = self.rt._system  # pyright: ignore[reportPrivateUsage]
        if self.last:
            self.world.committed = {key: cell.committed for key, cell in system.cells.items()}
        stopping = system.stop(self.random.choice((0.0, 2.0, 10.0)), 24.0)
        if self.clockwork.run(stopping.done, seconds=60.0):
            stopping.result()
            self.rt.stop()
            self.clockwork.run(lambda: False, seconds=40.0)
            if not self.dead:
                self._check_over()
            if not self.clockwork.run(self.monitor.done, seconds=60.0) and not self.dead:
                self.outside.fail("a subscriber was not told that the runtime has stopped")
        elif not self.dead:
            self.outside.fail(f"life {self.number} did not stop within 60 s")
        self.die("clean")

    def _check_over(self) -> None:
        """After a stop in good order nobody is left, and everybody was told."""
        self.troupe.check_over()
        self._check_agent_watches()
        for told, cell, *_ in self.agent_watches:
            if not told.done():
                self.outside.fail(f"who watches {cell.key} was never told of its end")
        for key, cell in self.runtime._system.cells.items():  # pyright: ignore[reportPrivateUsage]
            if cell.actor is not None and not cell.actor.actor_stopped.is_set():
                self.outside.fail(f"agent {key} outlives its runtime")

    def _person(self, person: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Future[None]:
        """Let somebody act."""

        async def act() -> None:
            try:
                await person()
            except errors.RuntimeStopped:
                return

        future: asyncio.Future[None] = self.people.create_future()

        def ended(_: object) -> None:
            if not future.done():
                future.set_result(None)

        def begin() -> None:
            self.people.spawn(act()).add_done_callback(ended)

        self.people.call(begin)
        return future

    # -- people

    @property
    def down(self) -> bool:
        """Whether the root supervisor has failed: then nobody can ask for anything any more."""
        return self.rt is not None and isinstance(self.rt._system.failure, errors.RuntimeDown)  # pyright: ignore[reportPrivateUsage]

    @property
    def runtime(self) -> Runtime:
        """The runtime, which is there as soon as people are."""
        assert self.rt is not None
        return self.rt

    async def _monitor(self) -> None:
        """Follows everything, over all lives, by its cursor."""
        outside, random = self.outside, self.random
        while not self.dead:
            try:
                subscription = self.runtime.subscribe(
                    after=outside.cursor,
                    maxsize=random.choice((1, 5, 1000)),
                    overflow=random.choice(("coalesce", "drop")),
                )
            except ValueError as error:
                outside.fail(f"the cursor of a subscriber is refused: {error}")
                return
            except StorageFailed:
                await asyncio.sleep(1.0)
                continue
            async with subscription:
                for _ in range(100_000 if self.last else random.choice((20, 200, 100_000))):
                    try:
                        event = await subscription.aget()
                    except StorageFailed:
                        await asyncio.sleep(0.5)
                        continue
                    except errors.SubscriptionClosed:
                        return
                    if self.dead:
                        return
                    outside.see(event)
                    if random.random() < 0.02:
                        await asyncio.sleep(random.random() ** 4 * 5)

    async def _approver(self) -> None:
        """Decides on calls that wait, mostly."""
        random, outside = self.random, self.outside
        while True:
            await asyncio.sleep(1.0 + random.random() * 8)
            for ref in self.runtime.agents():
                run = ref.current
                for call in ref.pending_approvals():
                    if run is None or random.random() < 0.3:
                        continue
                    with suppress(*REFUSALS):
                        draw, decision = random.random(), "approve"
                        if draw < 0.6:
                            arguments = {"text": outside.say("instead")} if draw < 0.1 else None
                            await run.aapprove(call.call_id, arguments)
                        else:
                            decision = "deny"
                            await run.adeny(call.call_id, "no")
                        if ref.key != GONE:
                            self._promise(partial(outside.resolved.append, (run.run_id, call.call_id, decision)))

    def _promise(self, note: Callable[[], object]) -> None:
        """Somebody was told something."""
        if not self.dead:
            note()

    async def _user(self, number: int) -> None:
        random = Random(f"user {number} of life {self.number} of {self.world.seed}")
        handles: list[RunHandle[Any]] = []
        for _ in range(random.randint(2, 7)):
            await asyncio.sleep(random.random() ** 3 * 12)
            try:
                await self._act(random, handles)
            except errors.RuntimeStopped:
                return
            except REFUSALS as refusal:
                self.world.trace(f"refused: {type(refusal).__name__}")
                if isinstance(refusal, StorageFailed) and not self.fault_seen and not self.dead:
                    self.outside.fail(f"the disk is well, and somebody is told: {refusal}")
                if isinstance(refusal, (errors.AgentDown, errors.AgentParked)) and not self.crashed and not self.dead:
                    self.outside.fail(f"nothing has crashed, and somebody is told: {refusal}")

    async def _director(self, number: int) -> None:
        """Has actors of its own, and disturbs them."""
        await self.troupe.direct(Random(f"director {number} of life {self.number} of {self.world.seed}"))

    async def _inspector(self) -> None:
        while not self.dead:
            await asyncio.sleep(5.0)
            self.troupe.inspect()
            self._check_agent_watches()

    def promise_run(self, random: Random) -> None:
        """An actor of a user's sends a message to an agent."""

        async def send() -> None:
            with suppress(*REFUSALS):
                ref = self._ref(random.choice(self.world.keys))
                await self._send(ref, f"run-{self.world.seed}-{len(self.outside.sent)}")

        self._person(send)

    def _ref(self, key: str) -> AgentRef[Any]:
        name = key.partition("/")[0]
        return self.runtime.start(next(agent for agent in self.agents if agent.name == name), key=key)

    async def _act(self, random: Random, handles: list[RunHandle[Any]]) -> None:
        outside = self.outside
        ref = self._ref(random.choice(self.world.keys))
        what = random.choices([*_ACTS], [*_ACTS.values()])[0]
        if self.mood is not None and handles and random.random() < 0.4:
            what = self.mood
        handle = random.choice(handles) if handles else None
        if handle is None and outside.sent and random.random() < 0.3:
            handle = self.runtime.handle(random.choice([*outside.sent]))  # of another life, perhaps
        match what:
            case "again":
                lost = [sent for sent in outside.sent.values() if sent.state == "sent"]
                if lost:
                    again = random.choice(lost)
                    handles.append(await self._send(self._ref(again.key), again.run_id))
            case "steer" if handle is not None:
                words = outside.say("steer")
                input_id = await handle.asteer(words)
                self._promise(lambda: outside.inputs.update({input_id: (handle.run_id, "steer", words)}))
            case "follow_up" if handle is not None:
                words = outside.say("follow up")
                input_id = await handle.afollow_up(words)
                self._promise(lambda: outside.inputs.update({input_id: (handle.run_id, "follow_up", words)}))
            case "cancel" if handle is not None:
                await handle.acancel()
                self._promise(lambda: outside.cancelled.append(handle.run_id))
            case "wait" if handle is not None:
                await self._wait_for(handle, random.random() * 30)
            case "follow" if handle is not None:
                await self._follow(handle)
            case "reset":
                await ref.areset()
                self._promise(lambda: outside.counted.update([(ref.key, "conversation.reset")]))
            case "set_model":
                await ref.aset_model(random.choice(self.agents).model)
                self._promise(lambda: outside.counted.update([(ref.key, "agent.configured")]))
            case "ask":
                with suppress(TimeoutError):
                    await ref.aask(outside.say("question"), timeout=random.random() * 20)
            case "give_up":
                with suppress(TimeoutError):
                    async with asyncio.timeout(random.random() ** 4 * 0.1):
                        await ref.asend(outside.say("nobody waits for"))
            case "forget":
                gone = self._ref(GONE)
                await gone.asend(outside.say("soon forgotten"))
                await asyncio.sleep(random.random() ** 2 * 4)
                if random.random() < 0.7:
                    await self.runtime.aforget(GONE)
            case "watch":
                await self._watch(ref.key, random)
            case "remember":
                handles.append(
                    await self._send(ref, f"run-{self.world.seed}-{len(outside.sent)}", a_conversation(outside))
                )
            case "crash" | "storm":
                self.crashed = True
                if what == "storm" and (run := ref.current) is not None:
                    self._person(partial(self._wait_out, run))
                shaken = random.randrange(16) if what == "storm" else -1
                for number in range(1 if what == "crash" else 8):
                    if number == shaken:
                        self.troupe.shake_agents()
                    error = random.choice(
                        (Planned("as planned"), Planned("as planned"), SystemExit(1), KeyboardInterrupt())
                    )
                    self.runtime._system.core.call(_crash, ref._cell, Crash(error))  # pyright: ignore[reportPrivateUsage]
                    await asyncio.sleep(random.random())
                if what == "storm" and random.random() < 0.3:
                    await ref.aresume()
            case "stop":
                await self.troupe.within(300.0, f"the stop of {ref.key}", ref.astop())  # a disk may be full for long
            case "watch agent":
                self._watch_agent(ref, random)
            case "resume":
                parked = [ref for ref in self.runtime.agents() if ref.status().state == "parked"]
                ref = random.choice([*parked, *parked, ref])
                await ref.aresume()
            case "look":
                await ref.ahistory()
                ref.status()
                self.runtime.tree()
            case _:
                handles.append(await self._send(ref, f"run-{self.world.seed}-{len(outside.sent)}"))

    async def _send(self, ref: AgentRef[Any], run_id: str, messages: Sequence[Message] = ()) -> RunHandle[Any]:
        outside = self.outside
        sent = outside.sent.setdefault(run_id, Sent(ref.key, run_id, outside.accepted.get(ref.key)))
        try:
            handle = await ref.asend(outside.say("prompt"), run_id=run_id, messages=messages)
        except (errors.AgentBusy, errors.AgentDown):
            self._promise(lambda: setattr(sent, "state", "refused"))
            raise
        if not self.dead:
            sent.state = "accepted"
            outside.accepted[ref.key] = run_id
            self.world.trace(f"accepted {run_id}")
        return handle

    async def _wait_for(self, handle: RunHandle[Any], seconds: float) -> None:
        """The result of a run, or that its agent is parked."""
        try:
            result = await self.troupe.within(seconds, f"waiting for {handle!r}", handle.aresult(seconds))
            self._promise(lambda: self.outside.results.update({result.run_id: (result.status, result.text)}))
        except TimeoutError:
            cell = self.runtime._system.cells.get(handle.key)  # pyright: ignore[reportPrivateUsage]
            if cell is None or cell.life != "parked" or cell.committed.parked_because is None or self.dead:
                return
            if self.env.now() - cell.committed.last_event_at > 10e9:
                self.outside.fail(f"{handle!r} is of an agent that is parked, and who waits for it is not told")

    async def _wait_out(self, handle: RunHandle[Any]) -> None:
        with suppress(*REFUSALS):
            await self._wait_for(handle, 25.0)

    def _watch_agent(self, ref: AgentRef[Any], random: Random) -> None:
        """Somebody is to be told that the incarnation of an agent is down."""
        told = ref.watch()
        self.agent_watches.append([told, ref._cell, self.env.monotonic(), None])  # pyright: ignore[reportPrivateUsage]
        if random.random() < 0.2:
            ref.watch().cancel()

    def _check_agent_watches(self) -> None:
        for watch in list(self.agent_watches):
            told, cell, since, incarnation = watch
            if told.done():
                self.agent_watches.remove(watch)
                self.troupe.counts["agent downs"] += 1
                if told.result().id != cell.key:
                    self.outside.fail(f"who watches {cell.key} was told of {told.result()}")
            elif incarnation is None and self.env.monotonic() - since > 5.0 and cell.life == "up":
                watch[3] = cell.committed.incarnation
            elif incarnation is not None and cell.committed.incarnation > incarnation and cell.life == "up":
                self.outside.fail(f"who watches {cell.key} {incarnation} was not told of its end")
                self.agent_watches.remove(watch)

    async def _follow(self, handle: RunHandle[Any]) -> None:
        """Every event of a run, from its first to its last."""
        seqs: list[int] = []
        events: list[ev.Event] = []
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(30),
                aclosing(cast("AsyncGenerator[ev.Event, None]", handle.__aiter__())) as stream,
            ):
                async for event in stream:
                    if event.durable:
                        seqs.append(event.seq)
                        events.append(event)
        if self.dead:
            return
        if events and events[0].type != "run.queued":
            self.outside.fail(f"{handle!r} begins with {events[0].type}")
        if seqs != sorted(set(seqs)):
            self.outside.fail(f"{handle!r} gave its events as {seqs}")

    async def _watch(self, key: str, random: Random) -> None:
        """All of a key, for a while: not one durable event is missing in between."""
        seqs: list[int] = []
        after = random.choice((0, None))
        subscription = self.runtime.subscribe(after=after, key=key, maxsize=random.choice((1, 3, 1000)))
        with suppress(TimeoutError, errors.SubscriptionClosed):
            async with asyncio.timeout(random.random() * 30), subscription:
                while True:
                    event = await subscription.aget()
                    if event.durable and event.key == key:
                        seqs.append(event.seq)
        first = 1 if after == 0 else seqs[0] if seqs else 0
        if not self.dead and seqs != list(range(first, first + len(seqs))):
            self.outside.fail(f"who watched {key} after {after} was shown {seqs}")

    async def _settle(self) -> None:
        """Everything is well: wake what sleeps, say yes to everything, and wait for all runs to end."""
        runtime = self.runtime
        while True:
            heads = runtime._system.journal.heads()  # pyright: ignore[reportPrivateUsage]
            for head in heads:
                ref = self._ref(head.key)
                with suppress(*REFUSALS):
                    if ref.status().state == "parked":
                        await ref.aresume()
                    run = ref.current
                    for call in ref.pending_approvals():
                        if run is not None:  # else its log has not been read yet
                            await run.aapprove(call.call_id)
            waits = any(ref.status().state == "restarting" for ref in runtime.agents())
            if not waits and not any(head.open_runs for head in heads) and heads == runtime._system.journal.heads():  # pyright: ignore[reportPrivateUsage]
                return
            await asyncio.sleep(5.0)


_ACTS = {
    "send": 30, "again": 4, "steer": 8, "follow_up": 8, "cancel": 9, "wait": 8, "follow": 5, "watch": 3, "ask": 4, "give_up": 3, "forget": 2,
    "remember": 2, "reset": 3, "set_model": 3, "crash": 7, "storm": 3, "stop": 2, "resume": 4, "look": 3, "watch agent": 6,
}  # fmt: skip
"""What people do, and how much they like it."""


def _crash(cell: Cell, message: Crash) -> None:
    cell.wake()
    cell.tell(cast("Any", message))


class _Records(logging.Handler):
    """What the library logs: most of it is wrong."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        life, text = self._world.life, record.getMessage()
        if life is None or life.dead or any(known in text for known in _EXPECTED):
            return
        if life.fault_seen and any(known in text for known in _OF_A_BAD_DISK):
            return
        self._world.outside.fail(f"logged: {text[:1500]}")


_EXPECTED = (
    "event='a tool raised'",
    "event='an interrupted run waits for its agent'",
    "event='a run waits for approval, and its agent is not known'",
    "error_type='Planned'",
    "error_type='SystemExit'",
    "error_type='KeyboardInterrupt'",
    "event='an actor was given up'",
    "event='an actor was parked'",
    "event='an actor crashed'",
    "event='a supervisor was parked'",
    "event='a supervisor failed'",
    "event='the root supervisor failed'",
)
_OF_A_BAD_DISK = ("event='the journal cannot write'", "event='the timers cannot be read'")


def simulate(
    seed: int, *, open_journal: OpenJournal = SqliteJournal, tell: Callable[[str], object] | None = None
) -> Report:
    """Live through one seed. The collector rests meanwhile: it would close things at moments of its own."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return World(seed, open_journal=open_journal, tell=tell).run()
    finally:
        if collects:
            gc.enable()
