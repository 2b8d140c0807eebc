"""Actors of users in the world: those who start, crash, watch, stop and ask them, and the books of what became of it.

The books know what was asked for, when each start began, which incarnation is up, who watches it and who waits; they ask
the code under test for none of that. A `Part` is a child as people know it, a `Group` a supervisor, a `Player` an incarnation.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Protocol, TypeVar, cast

from nitinol import ChildSpec, SupervisorSpec, errors
from nitinol.actors.actor import Down, LoopActor
from nitinol.actors.child_spec import Restart, Spec, Strategy
from nitinol.child_ref import ChildRef, SupervisorRef
from nitinol.runtime import Runtime

T = TypeVar("T")

SLACK = 30.0
"""Seconds that a loop may stand still at most, before whatever was due on it."""
RECOVERY = 240.0
"""Seconds after which all is up again that is to be up, once nobody disturbs it."""
START = 2.0
"""Seconds that a start may take."""

STRATEGIES: tuple[Strategy, ...] = ("one_for_one", "one_for_all", "rest_for_one", "dynamic")
RESTARTS: tuple[Restart, ...] = ("permanent", "permanent", "transient", "temporary")


class Planned(Exception):
    """Makes an actor crash."""


class Stage(Protocol):
    """A life, as the troupe sees it."""

    crashed: bool
    dead: bool
    last: bool

    @property
    def down(self) -> bool:
        """Its root supervisor has failed."""
        ...

    @property
    def runtime(self) -> Runtime: ...

    def promise_run(self, random: Random) -> None:
        """Have a run sent."""
        ...


@dataclass(eq=False, slots=True)
class Group:
    """A supervisor."""

    id: str
    strategy: Strategy
    parent: Group | None
    ref: Any = None
    members: list[Part | Group] = field(default_factory=list["Part | Group"])
    """In order of their start."""
    shaken: bool = False
    """It crashed by itself, at some time: then its children are stopped all at once."""

    @property
    def is_group(self) -> bool:
        return self.strategy in ("one_for_all", "rest_for_one")

    def parts(self) -> Iterator[Part]:
        """All below it."""
        for member in self.members:
            if isinstance(member, Part):
                yield member
            else:
                yield from member.parts()


@dataclass(eq=False, slots=True)
class Part:
    """A child that is an actor."""

    id: str
    restart: Restart
    parent: Group
    first: bool
    """It was there from its supervisor's start on."""
    ref: Any = None
    players: list[Player] = field(default_factory=list["Player"])
    starts: int = 0
    begun_at: float = -1e9
    coming: bool = False
    """A start of it is under way."""
    fates: list[str] = field(default_factory=list[str])
    """Of its next starts."""
    stopped_by_hand: bool = False
    by_hand: bool = False
    """Somebody stopped or resumed it since its last start: it goes its own way."""
    gone: bool = False
    """It was taken out of the tree."""

    @property
    def live(self) -> Player | None:
        """The incarnation that its supervisor has accepted, and that is not down."""
        return next((player for player in self.players if player.is_live), None)

    @property
    def shaken(self) -> bool:
        group: Group | None = self.parent
        while group is not None:
            if group.shaken:
                return True
            group = group.parent
        return False


@dataclass(eq=False, slots=True)
class Watch:
    """Somebody is to be told once that an incarnation is down."""

    player: Player
    told: list[Down] = field(default_factory=list[Down])


class Player(LoopActor):
    """An incarnation: it says what it is asked, and ends as it is told to."""

    inbox_limit = 6

    def __init__(self, troupe: Troupe, part: Part, fate: str) -> None:
        super().__init__()
        self.troupe, self.part, self.fate = troupe, part, fate
        self.number = len(part.players) + 1
        self.came_at: float | None = None
        self.accepted = False
        self.ended_at: float | None = None
        self.how: str | None = None
        self.last: dict[str, int] = {}
        part.players.append(self)

    @property
    def is_live(self) -> bool:
        return self.accepted and self.came_at is not None and not self.actor_stopped.is_set()

    def watch(self, told: Callable[[Down], object], up: Callable[[], object] | None = None) -> None:
        if up is not None:
            self.accepted = True
            self.troupe.accepted(self)
        super().watch(told, up)

    def abandon(self) -> None:
        if not self.actor_stopped.is_set():
            self.troupe.ended(self, "given up")
        super().abandon()

    def on_start(self) -> None:
        self.troupe.came_up(self)
        if self.fate == "raise in on_start":
            raise Planned("does not come up")

    def on_receive(self, message: Any) -> Any:
        troupe = self.troupe
        troupe.handles(self, message)
        match message:
            case Down(id=id):
                troupe.told_others[id, self.part.id] += 1
                if troupe.told_others[id, self.part.id] > troupe.to_be_told[id, self.part.id]:
                    troupe.fail(f"{self.part.id} is told too often that {id} is down")
            case ("say", words, until):
                if troupe.now() >= until:
                    troupe.fail(f"{self.part.id} carries out what was asked until {until:.6f}")
                return words
            case ("say nothing", given_up):
                if given_up:
                    troupe.fail(f"{self.part.id} carries out an ask that was given up")
            case ("crash", error):
                raise error
            case ("quit",):
                self.stop()
            case ("run", random):
                troupe.stage.promise_run(random)
            case ("hear", who, number):
                if number <= self.last.get(who, -1):
                    troupe.fail(f"{self.part.id} hears {number} of {who!r} after {self.last[who]}")
                self.last[who] = number
            case _:
                troupe.fail(f"{self.part.id} was told {message!r}, which nobody said")
        return None

    def on_stop(self) -> None:
        self.troupe.ended(self, "stop")

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.troupe.ended(self, "crash")


class Troupe:
    """All actors of users of a life.

    Args:
        stage: The life.
        now: Seconds.
        trace: Told what can be seen from outside.
        fail: Told what is wrong.
    """

    def __init__(
        self, stage: Stage, now: Callable[[], float], trace: Callable[[str], object], fail: Callable[[str], object]
    ) -> None:
        self.stage, self.now, self.trace, self.fail = stage, now, trace, fail
        self.users = Group("users", "one_for_one", None)
        self.parts: dict[str, Part] = {}
        self.groups: list[Group] = []
        self.watches: list[Watch] = []
        self.told: list[Watch] = []
        """Those of them that were told."""
        self.due: dict[object, tuple[float, str]] = {}
        """Who waits for something, until when it must have ended."""
        self.to_be_told: Counter[tuple[str, str]] = Counter()
        """How often an actor was to be told of the end of another: their ids."""
        self.told_others: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[str] = Counter()
        self.quiet = False
        """Nobody disturbs anyone any more."""
        self._directors = self.shakes = 0
        self._names = 0

    # -- told by the code under test

    def starting(self, name: str) -> float:
        """A start begins, on the supervisors' loop; how many seconds it takes beside the usual."""
        part = self.parts[name.removeprefix("start-")]
        self.trace(f"{part.id} is started")
        self._check_start(part)
        part.starts += 1
        part.begun_at, part.by_hand = self.now(), False
        self.counts["starts"] += 1
        part.coming = True
        if part.fates[:1] != ["hang"]:
            return 0.0
        part.fates.pop(0)
        self.stage.crashed = True
        return START + 3.0

    def start(self, part: Part) -> Any:
        """What the start of a spec does, on a thread of its own."""
        fate = part.fates.pop(0) if part.fates and part.fates[0] != "hang" else "come up"
        self.stage.crashed |= fate != "come up"
        part.coming &= fate not in ("raise", "nothing")
        if fate == "raise":
            raise Planned("cannot start")
        return None if fate == "nothing" else Player.start(self, part, fate)

    def came_up(self, player: Player) -> None:
        """An incarnation's `on_start`."""
        player.came_at = self.now()
        self.trace(f"{player.part.id} {player.number} comes up")
        player.part.coming &= not player.accepted
        if player.actor_stopped.is_set():
            self.fail(f"{player.part.id} comes up, and was given up before")

    def accepted(self, player: Player) -> None:
        """Its supervisor takes an incarnation for the one that lives."""
        player.part.coming &= player.came_at is None
        others = [other for other in player.part.players if other is not player and other.is_live]
        if others:
            self.fail(f"{player.part.id} lives twice")

    def handles(self, player: Player, message: Any) -> None:
        """An incarnation gets a message."""
        self.counts["messages"] += 1
        if player.ended_at is not None or player.actor_stopped.is_set():
            self.fail(f"{player.part.id} is down, and gets {message!r}")
        if not player.accepted:
            self.fail(f"{player.part.id} was never its supervisor's, and gets {message!r}")
        newer = [other for other in player.part.players if other.accepted and other.number > player.number]
        if newer:
            self.fail(f"{player.part.id} {player.number} gets {message!r}, and {newer[0].number} lives")

    def ended(self, player: Player, how: str) -> None:
        """An incarnation's `on_stop` or `on_failure`."""
        part = player.part
        self.trace(f"{part.id} {player.number} ends: {how}")
        self.counts[how] += 1
        if player.ended_at is not None:
            self.fail(f"{part.id} {player.number} ends twice")
        player.ended_at, player.how, part.coming = self.now(), how, False
        by_supervisor = how == "stop" and player._reason == "shutdown"  # pyright: ignore[reportPrivateUsage]
        if by_supervisor and player.accepted and not (part.by_hand or part.stopped_by_hand or part.shaken):
            self._check_stop(part)

    def _check_stop(self, part: Part) -> None:
        """In reverse order of the start."""
        if part.parent.strategy != "dynamic":
            for later in self._live_after(part.parent, part):
                self.fail(f"{part.id} is stopped before {later.id}, which came after it")

    def _check_start(self, part: Part) -> None:
        if part.live is not None:
            self.fail(f"{part.id} is started, and lives")
        if part.restart == "temporary" and part.starts:
            self.fail(f"{part.id} is temporary, and is started again")
        group = part.parent
        if not group.is_group or part.by_hand:
            return
        for later in self._live_after(group, part):
            self.fail(f"{part.id} is started, and {later.id}, which goes with it, still lives")
        before = group.members[: group.members.index(part)]
        ended = next((player.ended_at for player in reversed(part.players) if player.accepted), None)
        for member in before:
            for other in [member] if isinstance(member, Part) else member.parts():
                live = other.live
                if ended is not None and live is not None and group.strategy == "one_for_all":
                    if live.came_at is not None and live.came_at < ended:
                        self.fail(f"{part.id} is started again, and {other.id} was not")
                elif isinstance(member, Part) and self._must_be_up(other):
                    self.fail(f"{part.id} is started, and {other.id} before it is not up yet")

    def _must_be_up(self, part: Part) -> bool:
        """Whether a start is under way that those behind it have to wait for."""
        by_hand = part.by_hand or part.stopped_by_hand or not part.first or part.restart == "temporary"
        return part.coming and not by_hand and self.now() - part.begun_at < START

    def _live_after(self, group: Group, member: Part | Group) -> list[Part]:
        if member not in group.members:
            return []
        later = group.members[group.members.index(member) + 1 :]
        parts = [part for each in later for part in ([each] if isinstance(each, Part) else each.parts())]
        return [part for part in parts if part.live is not None]

    # -- people

    async def direct(self, random: Random) -> None:
        """Somebody has actors started, and does what people do with them."""
        self._directors += 1
        try:
            await self._direct(random)
        finally:
            self._directors -= 1

    async def _direct(self, random: Random) -> None:
        await self._begin(random)
        numbers: Counter[str] = Counter()
        for _ in range(random.randint(4, 30)):
            await asyncio.sleep(random.random() ** 3 * 5)
            if self.quiet:
                return
            try:
                await self._act(random, numbers)
            except (
                errors.AgentDown,
                errors.InboxFull,
                errors.StartFailed,
                errors.ConfigurationError,
                errors.NotFound,
                Planned,
            ) as refusal:
                self.trace(f"refused: {type(refusal).__name__}")
                self.counts[f"refused: {type(refusal).__name__}"] += 1

    async def _begin(self, random: Random) -> None:
        for _ in range(random.choice((1, 2, 3))):
            with suppress(errors.StartFailed, errors.ConfigurationError):
                await self._add(self.users, random)

    async def _act(self, random: Random, numbers: Counter[str]) -> None:
        what = random.choices([*_ACTS], [*_ACTS.values()])[0]
        parts = [part for part in self.parts.values() if part.ref is not None and not part.gone]
        groups = [group for group in self.groups if group.ref is not None]
        part = random.choice(parts) if parts else None
        group = random.choice(groups) if groups else None
        self.counts[what] += 1
        if what == "shake the agents":
            self.shake_agents()
            return
        if what == "shake the root":
            self._shake_root()
            return
        if what == "add" or part is None:
            await self._add(random.choice([self.users, *groups]), random)
            return
        ref: ChildRef = part.ref
        match what:
            case "tell":
                for _ in range(random.choice((1, 3, 12))):
                    numbers[part.id] += 1
                    ref.tell(("hear", id(numbers), numbers[part.id]))
            case "ask":
                await self._ask(part, random)
            case "ask many":
                asks = [asyncio.ensure_future(self._ask(part, random)) for _ in range(random.choice((2, 9)))]
                for outcome in await asyncio.gather(*asks, return_exceptions=True):
                    if isinstance(outcome, BaseException) and not isinstance(outcome, _FATES):
                        raise outcome
            case "ask in vain":
                await self._ask_in_vain(ref, random)
            case "crash":
                self._crash(part, random)
            case "crash by an ask":
                self.stage.crashed = True
                with suppress(TimeoutError):
                    await self.within(
                        9.0, f"an ask that crashes {part.id}", ref.aask(("crash", Planned("asked")), timeout=9.0)
                    )
            case "crash again":
                for _ in range(0 if self.quiet else 8):
                    with suppress(errors.AgentDown, errors.InboxFull):
                        self._crash(part, random)
                    await asyncio.sleep(random.random())
            case "bad starts":
                part.fates += random.choices(
                    ("raise", "raise in on_start", "hang", "nothing"), k=random.choice((1, 1, 3, 8))
                )
                self._crash(part, random)
            case "give up":
                with suppress(TimeoutError):
                    async with asyncio.timeout(random.random() ** 4 * 0.1):
                        part.stopped_by_hand = part.by_hand = True
                        await ref.astop()
            case "quit":
                ref.tell(("quit",))
            case "watch":
                self._watch(part, random.choice(parts), random)
            case "stop":
                await self._stop(part)
            case "resume":
                part.stopped_by_hand, part.by_hand = False, True
                ref.resume()
            case "replace":
                part.gone = True  # for everyone else
                await self._stop(part)
                await self._add(part.parent, random, part)
            case "run":
                ref.tell(("run", Random(random.random())))
            case "shake":
                group = group if group is not None and random.random() < 0.8 else self.users
                if random.random() < 0.5:
                    self._shake(group)
                    return
                members = [member for member in group.members if isinstance(member, Part) and member in parts]
                busy = self._stop(random.choice(members)) if members else self._add(group, random)
                task = asyncio.ensure_future(busy)  # it is in the supervisor's inbox when that crashes
                await asyncio.sleep(0)
                self._shake(group)
                await task
            case "resume a group" if group is not None:
                group.ref.resume()
            case _:
                self.stage.runtime.tree()
                repr(ref)

    def _crash(self, part: Part, random: Random) -> None:
        self.stage.crashed = True
        error = random.choice((Planned("told"), Planned("told"), SystemExit(2), KeyboardInterrupt()))
        part.ref.tell(("crash", error))

    async def _ask(self, part: Part, random: Random) -> None:
        seconds, words = random.random() ** 3 * 5, f"words {random.random()}"
        with suppress(TimeoutError):
            asked = part.ref.aask(("say", words, self.now() + seconds), timeout=seconds)
            answer = await self.within(seconds, f"an ask of {part.id}", asked)
            if answer != words:
                self.fail(f"{part.id} was asked {words!r}, and answered {answer!r}")
            self.counts["answers"] += 1

    async def _ask_in_vain(self, ref: ChildRef, random: Random) -> None:
        seconds, given_up = random.random() ** 4 * 0.1, list[bool]()
        try:
            async with asyncio.timeout(seconds):
                await ref.aask(("say nothing", given_up), timeout=9.0)
        except TimeoutError:
            given_up.append(True)

    def _watch(self, part: Part, other: Part, random: Random) -> None:
        player = part.live
        watch = Watch(player) if player is not None else None
        to = random.choice((None, other.ref))
        if to is not None:
            self.to_be_told[part.id, other.id] += 1
        told: Future[Down] = part.ref.watch(to)
        if watch is not None:
            self.watches.append(watch)
            told.add_done_callback(lambda told: watch.told.append(told.result()))
            more = Watch(watch.player)
            self.watches.append(more)
            watch.player.watch(more.told.append)
        if random.random() < 0.2:
            part.ref.watch().cancel()

    async def _stop(self, part: Part) -> None:
        part.stopped_by_hand = part.by_hand = True
        await self.within(90.0, f"the stop of {part.id}", part.ref.astop())

    def shake_agents(self) -> None:
        """The agents' supervisor crashes."""
        self._shake(None)

    def _shake(self, group: Group | None) -> None:
        """A supervisor is told what it does not know, and crashes. `None`: that of agents, and that of users goes with it."""
        self.stage.crashed = True
        if group is None or group is self.users:
            self.shakes += 1
            if self.stage.last and self.shakes > 4:  # or the root has enough of it
                return
        system = self.stage.runtime._system  # pyright: ignore[reportPrivateUsage]
        child = system.agents if group is None else system.users if group is self.users else group.ref._child
        self.trace(f"the supervisor {'agents' if group is None else group.id} is told nonsense")
        if group is not None:
            group.shaken = True
        supervisor = child.supervisor
        if supervisor is not None:
            supervisor.post("nonsense")

    def _shake_root(self) -> None:
        if not self.stage.last:
            self.stage.crashed = True
            self.trace("the root supervisor is told nonsense")
            self.users.shaken = True
            self.stage.runtime._system.root.post("nonsense")  # pyright: ignore[reportPrivateUsage]

    async def _add(self, to: Group, random: Random, instead: Part | None = None) -> None:
        spec, made = self._spec(to, random, 0 if to is self.users else 1, instead)
        if instead is not None and instead in to.members:
            to.members.remove(instead)
        to.members.append(made)
        asupervise = cast("Any", self.stage.runtime if to is self.users else to.ref).asupervise
        try:
            ref = await self.within(150.0, f"the start of {made.id} under {to.id}", asupervise(spec))
        except (errors.StartFailed, errors.ConfigurationError):
            self._forget(made)
            raise
        self._bind(made, ref)

    def _bind(self, made: Part | Group, ref: Any) -> None:
        made.ref = ref
        for member in made.members if isinstance(made, Group) else ():
            with suppress(errors.NotFound):  # a temporary one that has ended
                self._bind(member, cast("SupervisorRef", ref).child(member.id))
        if isinstance(made, Group):
            self.groups.append(made)

    def _forget(self, made: Part | Group) -> None:
        if isinstance(made, Group):
            for part in made.parts():
                part.gone = True
        else:
            made.gone = True

    def _spec(self, to: Group, random: Random, depth: int, instead: Part | None = None) -> tuple[Spec, Part | Group]:
        self._names += 1
        if instead is None and random.random() < (0.6, 0.2, 0.0)[depth]:
            group = Group(f"group {self._names}", random.choice(STRATEGIES), to)
            below = [self._spec(group, random, depth + 1) for _ in range(random.choice((0, 1, 2, 3, 4)))]
            group.members += [made for _, made in below]
            for made in group.members:
                if isinstance(made, Part):
                    made.first = True
            spec: Spec = SupervisorSpec(
                group.id,
                [spec for spec, _ in below],
                strategy=group.strategy,
                restart=random.choice(RESTARTS[:3]),
                shutdown=random.choice((3.0, 30.0)),
                intensity=random.choice((1, 5)),
                period=random.choice((10.0, 60.0)),
                storm=random.choice((0, 2, 100)),
            )
            return spec, group
        part = Part(instead.id if instead is not None else f"part {self._names}", random.choice(RESTARTS), to, False)
        self.parts[part.id] = part
        if random.random() < 0.1:
            part.fates += random.choices(("raise", "raise in on_start", "hang", "nothing"))
        spec = ChildSpec(
            part.id,
            partial(self.start, part),
            restart=part.restart,
            shutdown=random.choice((0.0, 0.5, 5.0)),
            start_timeout=START,
            intensity=random.choice((0, 1, 5)),
            period=random.choice((10.0, 60.0)),
        )
        return spec, part

    # -- what must hold

    async def within(self, seconds: float, what: str, done: Awaitable[T]) -> T:
        """Wait for something that must have ended after so many seconds."""
        mark = object()
        self.due[mark] = (self.now() + seconds + SLACK, what)
        try:
            return await done
        finally:
            self.due.pop(mark, None)

    def inspect(self) -> None:
        """Hold against each other what should be by now, and what is."""
        now = self.now()
        for mark, (until, what) in list(self.due.items()):
            if now > until:
                self.fail(f"{what} has not ended")
                del self.due[mark]
        for part in self.parts.values():
            for player in part.players:
                stopped = player.actor_stopped.is_set()
                if stopped and player.ended_at is None:
                    self.fail(f"{part.id} {player.number} is down, and nobody has ended it")
                late = player.came_at is not None and now - player.came_at > SLACK
                if late and not stopped and not player.accepted:
                    self.fail(f"{part.id} {player.number} is nobody's, and lives on")
        for watch in list(self.watches):
            self._check_watch(watch, now)

        for watch in self.told:
            if len(watch.told) > 1:
                self.fail(f"who watches {watch.player.part.id} {watch.player.number} was told {len(watch.told)} times")

    def _check_watch(self, watch: Watch, now: float) -> None:
        player, told = watch.player, watch.told
        who = f"{player.part.id} {player.number}"
        if len(told) > 1:
            self.fail(f"who watches {who} was told {len(told)} times: {told}")
            self.watches.remove(watch)
        elif player.ended_at is not None and not told and now - player.ended_at > SLACK:
            self.fail(f"who watches {who} was not told of its end")
            self.watches.remove(watch)
        elif told:
            self.watches.remove(watch)
            self.told.append(watch)
            reasons = {"crash": ("crash",), "stop": ("normal", "shutdown"), "given up": ("killed",), None: ()}
            if told[0].reason not in reasons[player.how]:
                self.fail(f"who watches {who}, which ended by {player.how}, was told: {told[0]}")
            if told[0].id != player.part.id:
                self.fail(f"who watches {who} was told of {told[0].id!r}")

    async def settle(self) -> None:
        """Nobody disturbs anyone any more: then all is up or parked, and what is resumed is up."""
        self.quiet = True
        while self._directors and not self.stage.down:
            await asyncio.sleep(1.0)
        for part in self.parts.values():
            part.fates.clear()
        until = self.now() + RECOVERY
        while self.now() < until and [*self._astray()]:
            await asyncio.sleep(5.0)
        if self.stage.down:
            return
        for what in self._astray():
            self.fail(f"long after the last crash, {what}")
        until = self.now() + RECOVERY
        while self.now() < until and ([*self._astray()] or [*self._not_up()]):
            members: list[Part | Group] = [*self.groups, *self._bound()]
            for member in members:
                if member.ref.state == "parked":
                    member.ref.resume()
                    self.counts["resumed"] += 1
            await asyncio.sleep(5.0)
        for what in [*self._astray(), *self._not_up()]:
            self.fail(f"long after all were resumed, {what}")
        for part in self._bound():
            if part.ref.state == "up":
                words = f"are you there, {part.id}?"
                try:
                    if await part.ref.aask(("say", words, self.now() + 60.0), timeout=60.0) != words:
                        self.fail(f"{part.id} answers what it was not asked")
                except (errors.AgentDown, TimeoutError) as error:
                    self.fail(f"{part.id} is up, and is not there: {error!r}")

    def _bound(self) -> list[Part]:
        return [part for part in self.parts.values() if part.ref is not None and not part.gone]

    def _astray(self) -> Iterator[str]:
        """Whoever should be up, or parked, and is not."""
        for group in self.groups:
            if group.ref.state not in ("up", "parked", "ended") and self._parents_up(group):
                yield f"{group.id} is {group.ref.state}"
        for part in self._bound():
            state = part.ref.state
            sound = {"up", "parked"} if part.restart == "permanent" else {"up", "parked", "ended"}
            if part.stopped_by_hand:
                sound |= {"stopped"}
            if self._parents_up(part) and state not in sound:
                yield f"{part.id}, {part.restart} under {part.parent.id}, is {state}"
            if state == "up" and part.live is None:
                yield f"{part.id} is said to be up, and does not live"

    def _not_up(self) -> Iterator[str]:
        for group in self.groups:
            if group.ref.state != "up" and self._parents_up(group):
                yield f"{group.id} is {group.ref.state}"
        for part in self._bound():
            if part.ref.state == "parked":
                yield f"{part.id} is parked"

    def _parents_up(self, member: Part | Group) -> bool:
        parent = member.parent
        while parent is not None and parent.parent is not None:
            if parent.ref is None or parent.ref.state != "up":
                return False
            parent = parent.parent
        return True

    def check_over(self) -> None:
        """The runtime has stopped in good order: nobody lives, nobody waits, and everybody was told."""
        self.inspect()
        for part in self.parts.values():
            for player in part.players:
                if not player.actor_stopped.is_set():
                    self.fail(f"{part.id} {player.number} outlives its runtime")
        for _, what in self.due.values():
            self.fail(f"{what} has not ended, and the runtime has")
        for watch in self.watches:
            self.fail(f"who watches {watch.player.part.id} {watch.player.number} was never told of its end")


_FATES = (errors.AgentDown, errors.InboxFull, Planned, TimeoutError)
"""What an ask may end with."""

_ACTS = {
    "tell": 10, "ask": 12, "ask many": 4, "ask in vain": 4, "crash": 10, "crash by an ask": 4, "crash again": 3, "bad starts": 5, "give up": 3,
    "quit": 3, "watch": 10, "stop": 4, "resume": 5, "add": 5, "replace": 2, "run": 4, "shake": 3, "shake the agents": 1, "shake the root": 0.2,
    "resume a group": 2, "look": 2,
}  # fmt: skip
"""What people do with actors, and how much they like it."""
