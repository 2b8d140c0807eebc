"""Supervision in OTP's words, on a clock of the test's own: who is stopped and started when a child ends, and in which order.

`TABLE` is what supervision.md says. Below it: intensity and storms, what the asked are told, late messages, nesting, and
5,000 random steps through a whole tree.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
from tests.manual import ManualEnv, ManualLoop, ManualTimer

from nitinol.actors.actor import Down
from nitinol.actors.child_spec import Restart, Strategy, SupervisorSpec
from nitinol.actors.children import LATE, Place, SupervisorChild
from nitinol.actors.supervisor import Add, Child, ChildDown, End, StopChild, Supervisor, Up, Wake
from nitinol.errors import ConfigurationError, StartFailed, SupervisorFailed

START_TIMEOUT, SHUTDOWN = 10.0, 5.0
INTENSITY, PERIOD = 5, 60.0

HEAD = "| what happens to b |"
DOCUMENT = Path(__file__).parents[2] / "supervision.md"
TABLE = HEAD + DOCUMENT.read_text("utf-8").partition(HEAD)[2].partition("\n\n")[0]
"""As it is told to people. `!`: was asked in vain, and given up. `gone`: not in the tree any more. a and c are permanent."""

Begins = Literal["up", "fail", "hang"]
Ends = Literal["down", "hang"]


class Scripted(Child):
    """A child that does what its script says and writes down what its supervisor asks of it."""

    def __init__(
        self,
        id: str,
        log: list[str],
        restart: Restart = "permanent",
        *,
        begins: Sequence[Begins] = (),
        ends: Sequence[Ends] = (),
        intensity: int = INTENSITY,
    ) -> None:
        super().__init__(id, restart, SHUTDOWN, intensity, PERIOD)
        self.log = log
        self.begins: list[str] = list(begins)
        self.ends: list[str] = list(ends)
        self.seconds = START_TIMEOUT
        self.lives: int | None = None
        """The incarnation that lives, or comes up."""
        self.by: Supervisor | None = None
        self.gone: Callable[[], object] | None = None
        """Of a release that hangs."""
        self.rests = False
        """Whether it was told that no incarnation comes by itself."""

    @property
    def start_seconds(self) -> float:
        return self.seconds

    def begin(self, by: Supervisor) -> float | None:
        assert self.lives is None, f"two incarnations of {self.id} live"
        self.lives, self.by, self.rests = self.number, by, False
        self.log.append(f"start {self.id}")
        match self.begins.pop(0) if self.begins else "up":
            case "up":
                self.come_up()
            case "fail":
                self.go_down("crash")
            case _:
                pass
        return self.seconds

    def end(self, by: Supervisor, seconds: float) -> None:
        self.log.append(f"stop {self.id}")
        if (self.ends.pop(0) if self.ends else "down") == "down":
            self.go_down("shutdown")

    def give_up(self) -> None:
        self.lives = None
        self.log.append(f"kill {self.id}")

    def release(self, gone: Callable[[], object]) -> None:
        self.log.append(f"release {self.id}")
        if self.ends and self.ends.pop(0) == "hang":
            self.gone = gone
            return
        self.lives = None
        gone()

    def park(self, reason: str) -> None:
        self.log.append(f"park {self.id}")

    def at_rest(self) -> None:
        self.rests = True

    def come_up(self) -> None:
        """Tell the supervisor that it is up."""
        assert self.by is not None
        self.by.post(Up(self, self.number))

    def go_down(self, reason: Literal["normal", "shutdown", "crash"], number: int | None = None) -> None:
        """Be down, and tell the supervisor."""
        assert self.by is not None
        self.lives = None
        error = RuntimeError(f"{self.id} crashed") if reason == "crash" else None
        number = self.number if number is None else number
        self.by.post(ChildDown(self, number, Down(id=self.id, reason=reason, error=error)))


class Told:
    """What is called once."""

    def __init__(self) -> None:
        self.heard: list[Exception | None] = []

    def __call__(self, error: Exception | None = None) -> None:
        self.heard.append(error)

    @property
    def error(self) -> Exception | None:
        """What it was told; it was told once."""
        (error,) = self.heard
        return error


class Bench:
    """A supervisor of three children, with nothing real around it."""

    def __init__(
        self,
        strategy: Strategy = "one_for_one",
        restart: Restart = "permanent",
        *,
        first: Begins = "up",
        storm: int = 100,
    ) -> None:
        self.env = ManualEnv()
        self.loop = ManualLoop(self.env)
        self.log: list[str] = []
        self.a, self.c = Scripted("a", self.log), Scripted("c", self.log)
        self.b = Scripted("b", self.log, restart, begins=[first])
        self.children: list[Child] = [self.a, self.b, self.c]
        self.downs: list[Down] = []
        self.ready = Told()
        self.supervisor = Supervisor(
            self.env, self.loop, "three", self.children, strategy, storm=lambda: storm, ready=self.ready
        )
        self.supervisor.watch(self.downs.append)

    def start(self) -> Bench:
        """Start it, and forget how."""
        self.launch()
        assert [child.state for child in self.children] == ["up"] * 3
        self.log.clear()
        return self

    def launch(self) -> None:
        """Start it."""
        self.supervisor.launch()
        self.loop.run()

    def tell(self, *messages: Any) -> None:
        """Send the supervisor messages, and let it handle them."""
        for message in messages:
            self.supervisor.post(message)
        self.loop.run()

    def crash(self, child: Scripted) -> None:
        """The child crashes now."""
        child.go_down("crash")
        self.loop.run()

    def stop(self, child: Scripted) -> Told:
        """Stop a child from outside."""
        told = Told()
        self.tell(StopChild(child, told))
        return told

    def add(self, child: Scripted) -> Told:
        """Add a child, as `supervise` does."""
        told = child.started = Told()
        self.tell(Add(child))
        return told

    def end(self, seconds: float = 30.0) -> None:
        """Stop the supervisor, within so many seconds."""
        self.tell(End(self.env.clock + seconds))

    @property
    def started(self) -> str:
        """Who was started, in order."""
        return " ".join(entry.removeprefix("start ") for entry in self.log if entry.startswith("start "))

    @property
    def stopped(self) -> str:
        """Who was stopped, in order; with a `!`, if in vain."""
        words: list[str] = []
        for verb, id in map(str.split, self.log):
            if verb == "stop":
                words.append(id)
            elif verb == "kill" and id in words:
                words[words.index(id)] += "!"
            elif verb == "kill":
                words.append(f"{id}!")
        return " ".join(words)

    @property
    def states(self) -> str:
        """Of a, b and c."""
        return " ".join("gone" if each not in self.children else each.state for each in (self.a, self.b, self.c))


# -- the table


def rows() -> Iterator[Any]:
    """Each row of the table, for each strategy and restart it speaks of."""
    for line in TABLE.strip().splitlines()[2:]:
        what, strategies, restarts, *expected = [cell.strip() for cell in line.strip("|").split("|")]
        for strategy, restart in product(named(strategies, Strategy), named(restarts, Restart)):
            yield pytest.param(what, strategy, restart, *expected, id=f"{what}-{strategy}-{restart}".replace(" ", "_"))


def named(cell: str, words: Any) -> Sequence[str]:
    """What a cell names, of all that there are."""
    known = get_args(words)
    found = known if cell == "any" else tuple(word.strip() for word in cell.split(","))
    assert set(found) <= set(known)
    return found


def happen(what: str, strategy: Strategy, restart: Restart) -> Bench:
    """A supervisor to which this has happened, and a minute has passed."""
    if "first start" in what and "added" not in what:
        bench = Bench(strategy, restart, first="fail" if "fails" in what else "hang")
        bench.launch()
        bench.loop.advance(PERIOD)
        return bench
    bench = Bench(strategy, restart).start()
    if "hang" in what:
        bench.b.ends = ["hang"]
    match what:
        case "ends by itself":
            bench.b.go_down("normal")
        case "crashes":
            bench.crash(bench.b)
        case "is stopped from outside" | "is stopped from outside and hangs":
            bench.stop(bench.b)
        case "is added, and fails at its first start" | "is added, and hangs at its first start":
            bench.children.remove(bench.b)
            bench.b = Scripted("b", bench.log, restart, begins=["fail" if "fails" in what else "hang"])
            bench.add(bench.b)
        case "crashes, and its restart fails" | "crashes, and its restart hangs":
            bench.b.begins, bench.b.ends = ["fail" if "fails" in what else "hang"], []
            bench.crash(bench.b)
        case "a crashes" | "a crashes, and b's stop hangs":
            bench.crash(bench.a)
        case "c crashes":
            bench.crash(bench.c)
        case "had ended by itself when a crashes" | "had been stopped when a crashes":
            if "stopped" in what:
                bench.stop(bench.b)
            else:
                bench.b.go_down("normal")
            bench.loop.run()
            bench.log.clear()
            bench.crash(bench.a)
        case "crashes once more than its intensity":
            for _ in range(INTENSITY + 1):
                bench.crash(bench.b)
                bench.loop.advance(5.0)
        case "the supervisor is stopped" | "the supervisor is stopped, and b hangs":
            bench.end()
        case _:
            raise AssertionError(f"nothing is known of {what!r}")
    bench.loop.advance(PERIOD)
    return bench


@pytest.mark.parametrize(("what", "strategy", "restart", "stopped", "started", "states"), list(rows()))
def test_the_table(what: str, strategy: Strategy, restart: Restart, stopped: str, started: str, states: str) -> None:
    """Who is stopped in which order, who is started in which order, and where all are in the end."""
    bench = happen(what, strategy, restart)
    assert bench.stopped == stopped
    assert bench.started == started
    expected, _, fails = states.partition(", ")
    assert bench.states == expected
    resting = [id for id, state in zip("abc", expected.split(), strict=True) if state not in ("up", "down")]
    assert [each.id for each in (bench.a, bench.b, bench.c) if each.rests] == resting
    if fails:
        assert [type(down.error) for down in bench.downs] == [StartFailed]
        assert bench.ready.heard == []
    else:
        assert [down.reason for down in bench.downs] == (["shutdown"] if "supervisor" in what else [])


def test_the_table_is_whole() -> None:
    """Each strategy with each restart meets each ending of OTP's."""
    endings = (
        "ends by itself",
        "crashes",
        "is stopped from outside",
        "first start",
        "restart fails",
        "restart hangs",
        "hangs",
    )
    cells = [param.values for param in rows()]
    for strategy, restart, ending in product(get_args(Strategy), get_args(Restart), endings):
        if restart == "temporary" and ending.startswith("restart"):
            continue  # it has none
        assert any((strategy, restart) == cell[1:3] and ending in str(cell[0]) for cell in cells)


# -- a group's restart


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_group_stops_at_once_and_starts_after_the_delay(strategy: Strategy) -> None:
    """Others go down with the crash, one after the other; nobody starts before all are down and the delay is over."""
    bench = Bench(strategy).start()
    bench.c.ends = ["hang"]
    bench.crash(bench.a)
    assert bench.log == ["stop c"]
    bench.loop.advance(SHUTDOWN - 0.1)
    assert bench.log == ["stop c"]
    bench.loop.advance(0.2)  # c is given up; the delay of 0.1 s is long over
    assert bench.log == ["stop c", "kill c", "stop b", "start a", "start b", "start c"]


def test_a_group_waits_for_the_delay_of_its_last_crash() -> None:
    """A child that crashes while its group waits makes the wait longer, never shorter."""
    bench = Bench("rest_for_one").start()
    for _ in range(3):
        bench.crash(bench.c)
        bench.loop.advance(1.0)
    bench.log.clear()
    bench.crash(bench.c)  # 0.8 s
    bench.crash(bench.a)  # 0.1 s, and c goes with it
    bench.loop.advance(0.75)
    assert bench.log == ["stop b"]
    bench.loop.advance(0.1)
    assert bench.started == "a b c"


def test_each_start_of_a_group_is_awaited() -> None:
    """A child starts once the one before it is up."""
    bench = Bench("one_for_all").start()
    bench.a.begins = ["hang"]
    bench.crash(bench.c)
    bench.loop.advance(5.0)
    assert bench.started == "a"
    bench.a.come_up()
    bench.loop.run()
    assert bench.started == "a b c"


def test_a_transient_that_ends_while_its_group_starts_is_not_started_again() -> None:
    """It has done what it was for, in this round: the group's start goes on without it."""
    bench = Bench("rest_for_one", "transient").start()
    bench.c.begins = ["hang"]
    bench.crash(bench.a)
    bench.loop.advance(1.0)
    assert bench.started == "a b c"
    bench.b.go_down("normal")
    bench.loop.run()
    bench.c.come_up()
    bench.loop.run()
    assert (bench.started, bench.states) == ("a b c", "up ended up")


def test_another_crash_in_a_groups_start_widens_it() -> None:
    """rest for one: b's group is being started when a crashes; then all go down and come back, in order."""
    bench = Bench("rest_for_one").start()
    bench.c.begins = ["hang"]
    bench.crash(bench.b)
    bench.loop.advance(1.0)
    assert bench.log == ["stop c", "start b", "start c"]
    bench.crash(bench.a)
    bench.loop.advance(1.0)
    assert bench.log[3:] == ["stop c", "stop b", "start a", "start b", "start c"]
    assert bench.states == "up up up"


def test_another_crash_in_a_groups_stop_does_not_narrow_it() -> None:
    """rest for one: a's group is going down when b crashes, which has not been asked yet; all come back."""
    bench = Bench("rest_for_one").start()
    bench.c.ends = ["hang"]
    bench.crash(bench.a)
    bench.crash(bench.b)
    bench.loop.advance(PERIOD)
    assert (bench.stopped, bench.started, bench.states) == ("c!", "a b c", "up up up")


# -- how often


@pytest.mark.parametrize("strategy", ["one_for_one", "dynamic"])
def test_over_its_intensity_a_child_is_parked_alone(strategy: Strategy) -> None:
    """Its siblings are not touched, and crash and restart as before."""
    bench = Bench(strategy).start()
    for _ in range(INTENSITY + 1):
        bench.crash(bench.b)
        bench.loop.advance(4.0)
    assert bench.log == ["start b"] * INTENSITY + ["park b"]
    assert bench.b.reason is not None
    assert bench.b.reason.startswith("6 crashes in 60 s, the last: RuntimeError: b crashed")
    bench.crash(bench.c)
    bench.loop.advance(1.0)
    assert (bench.states, bench.downs) == ("up parked up", [])


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_over_the_intensity_of_a_child_its_group_fails(strategy: Strategy) -> None:
    """The supervisor stops all that are left and fails, with the reason: its own supervisor decides."""
    bench = Bench(strategy).start()
    for _ in range(INTENSITY):
        bench.crash(bench.b)
        bench.loop.advance(4.0)
    bench.log.clear()
    bench.crash(bench.b)
    assert bench.log == ["stop c", "stop a"]
    (down,) = bench.downs
    assert (down.reason, type(down.error)) == ("crash", SupervisorFailed)
    assert "supervisor 'three' gives up: child 'b' had 6 crashes in 60 s" in str(down.error)
    assert isinstance(down.error and down.error.__cause__, RuntimeError)
    bench.loop.advance(PERIOD)
    assert (bench.states, bench.started) == ("down down down", "")


def test_failed_and_hung_restarts_count_as_crashes() -> None:
    """A child whose start never succeeds again is parked like one that crashes."""
    bench = Bench().start()
    bench.b.begins = ["fail", "hang", "fail", "hang", "fail"]
    bench.crash(bench.b)
    bench.loop.advance(PERIOD)
    assert bench.states == "up parked up"
    assert bench.started == "b b b b b"


@pytest.mark.parametrize(("crashes", "fails"), [(4, False), (5, True)])
def test_one_repeated_crash_more_than_the_storm_budget_fails_the_supervisor(crashes: int, fails: bool) -> None:
    """First crashes of a period are free; second and later ones count, over all children."""
    bench = Bench(storm=2).start()
    for child in (bench.a, bench.b, bench.c, bench.a, bench.b, bench.c)[: crashes + 1]:
        bench.crash(child)
        bench.loop.advance(1.0)
    assert bool(bench.downs) == fails
    if fails:
        assert "more than 2 repeated crashes of its children within 60 s" in str(bench.downs[0].error)
        assert bench.states == "down down down"


def test_old_crashes_leave_the_storm_budget() -> None:
    """It is a window that moves."""
    bench = Bench(storm=2).start()
    for _ in range(10):
        bench.crash(bench.a)
        bench.loop.advance(1.0)
        bench.crash(bench.a)
        bench.loop.advance(PERIOD)
    assert bench.downs == []


def test_a_start_that_takes_long_is_no_healthy_life() -> None:
    """healthy 60 s: counted from when it is up. Hung starts of more than a minute do not begin the backoff anew."""
    bench = Bench().start()
    bench.b.begins, bench.b.seconds = ["hang"] * 4, 2 * PERIOD
    bench.crash(bench.b)
    for number in range(2, 6):
        bench.loop.advance(2 * PERIOD + 2.0)
        assert bench.b.patience.delay == pytest.approx(0.1 * 2.0 ** (number - 1))


# -- who asked is told


def test_an_added_child_starts_last_and_its_asker_is_told_once() -> None:
    """Once it is up; not again when it is restarted."""
    bench = Bench("rest_for_one").start()
    d = Scripted("d", bench.log, begins=["hang"])
    told = bench.add(d)
    assert (bench.started, told.heard) == ("d", [])
    d.come_up()
    bench.loop.run()
    assert told.error is None
    bench.crash(d)
    bench.loop.advance(1.0)
    assert (bench.started, d.state, told.heard) == ("d d", "up", [None])


def test_added_children_of_a_group_start_one_after_the_other() -> None:
    """The second waits for the first."""
    bench = Bench("one_for_all").start()
    d, e = Scripted("d", bench.log, begins=["hang"]), Scripted("e", bench.log)
    bench.add(d)
    told = bench.add(e)
    assert bench.started == "d"
    d.come_up()
    bench.loop.run()
    assert (bench.started, told.error) == ("d e", None)


@pytest.mark.parametrize("strategy", ["one_for_one", "dynamic"])
def test_added_children_wait_for_nobody(strategy: Strategy) -> None:
    """One that hangs keeps no other from its start."""
    bench = Bench(strategy).start()
    bench.add(Scripted("d", bench.log, begins=["hang"]))
    assert bench.add(Scripted("e", bench.log)).error is None


def test_an_added_child_goes_through_a_groups_restart() -> None:
    """Its asker waits on, and is told when it is up at last."""
    bench = Bench("one_for_all").start()
    d = Scripted("d", bench.log, begins=["hang"])
    told = bench.add(d)
    bench.crash(bench.a)
    assert (bench.stopped, told.heard) == ("d c b", [])
    bench.loop.advance(1.0)
    assert (bench.started, told.error) == ("d a b c d", None)


def test_an_add_during_a_recovery_waits_for_its_turn() -> None:
    """Also while the group waits for its delay: it is started last."""
    bench = Bench("rest_for_one").start()
    bench.crash(bench.a)
    told = bench.add(Scripted("d", bench.log))
    assert bench.started == ""
    bench.loop.advance(1.0)
    assert (bench.started, told.error) == ("a b c d", None)


def test_an_add_during_a_shutdown_is_refused() -> None:
    """And so is one whose turn has not come."""
    bench = Bench("rest_for_one").start()
    bench.c.ends = ["hang"]
    bench.crash(bench.a)
    waits = bench.add(Scripted("d", bench.log))
    bench.end()
    late = bench.add(Scripted("e", bench.log))
    bench.loop.advance(30.0)
    for told in (waits, late):
        assert isinstance(told.error, StartFailed)
    assert (bench.started, [child.id for child in bench.children]) == ("", ["a", "b", "c"])


def test_a_shutdown_tells_who_waits_for_a_start() -> None:
    """A child that comes up while its supervisor stops was never there."""
    bench = Bench().start()
    told = bench.add(Scripted("d", bench.log, begins=["hang"]))
    bench.end()
    assert isinstance(told.error, StartFailed)
    assert bench.stopped == "d c b a"


@pytest.mark.parametrize("state", ["up", "starting", "backoff", "parked"])
def test_an_id_is_unique(state: str) -> None:
    """A second child of the same id is refused, whatever the first one does; nothing else changes."""
    bench = Bench().start()
    if state != "up":
        bench.crash(bench.b)
    if state == "starting":
        bench.b.begins = ["hang"]
        bench.loop.advance(1.0)
    if state == "parked":
        for _ in range(INTENSITY):
            bench.loop.advance(4.0)
            bench.crash(bench.b)
    assert bench.b.state == state
    told = bench.add(Scripted("b", bench.log))
    assert isinstance(told.error, ConfigurationError)
    assert f"has a child 'b' already, which is {state}" in str(told.error)
    assert bench.children == [bench.a, bench.b, bench.c]


def test_a_stopped_id_may_be_used_again() -> None:
    """The stopped one leaves the tree; nothing that is said of it does anything any more."""
    bench = Bench().start()
    bench.stop(bench.b)
    other = Scripted("b", bench.log)
    assert bench.add(other).error is None
    bench.log.clear()
    bench.tell(Wake(bench.b, by_hand=True))
    assert bench.stop(bench.b).heard == [None]
    assert (bench.log, [child for child in bench.children if child.id == "b"]) == ([], [other])


# -- stopped from outside


def test_a_stop_in_a_first_start() -> None:
    """Both are told: it is down, and it was never there."""
    bench = Bench().start()
    d = Scripted("d", bench.log, begins=["hang"])
    added = bench.add(d)
    assert bench.stop(d).heard == [None]
    assert isinstance(added.error, StartFailed)
    assert d not in bench.children


def test_a_stop_before_a_first_start() -> None:
    """While its group is being restarted, and its turn has not come."""
    bench = Bench("one_for_all").start()
    bench.crash(bench.a)
    d = Scripted("d", bench.log)
    added = bench.add(d)
    assert bench.stop(d).heard == [None]
    assert isinstance(added.error, StartFailed)
    bench.loop.advance(1.0)
    assert bench.started == "a b c"


def test_a_stop_in_a_restart() -> None:
    """It stays in the tree, stopped, and comes back only by hand."""
    bench = Bench().start()
    bench.b.begins = ["hang"]
    bench.crash(bench.b)
    bench.loop.advance(1.0)
    assert bench.stop(bench.b).heard == [None]
    bench.loop.advance(PERIOD)
    assert (bench.states, bench.started) == ("up stopped up", "b")
    bench.tell(Wake(bench.b, by_hand=False))
    assert bench.states == "up stopped up"
    bench.tell(Wake(bench.b, by_hand=True))
    assert bench.states == "up up up"


@pytest.mark.parametrize(("strategy", "started"), [("one_for_one", ""), ("rest_for_one", "c"), ("one_for_all", "a c")])
def test_a_stop_in_a_backoff(strategy: Strategy, started: str) -> None:
    """It is not restarted; who went down with it comes back."""
    bench = Bench(strategy).start()
    bench.crash(bench.b)
    assert bench.stop(bench.b).heard == [None]
    bench.loop.advance(PERIOD)
    assert (bench.states, bench.started) == ("up stopped up", started)
    assert bench.loop.pending() == 0


def test_a_stop_while_its_group_goes_down() -> None:
    """It is asked once; it stays down when the others come back."""
    bench = Bench("one_for_all").start()
    bench.b.ends = ["hang"]
    bench.crash(bench.a)
    told = bench.stop(bench.b)
    bench.loop.advance(PERIOD)
    assert (bench.stopped, bench.states, told.heard) == ("c b!", "up stopped up", [None])


def test_two_stops_are_one() -> None:
    """Both are told."""
    bench = Bench().start()
    bench.b.ends = ["hang"]
    both = [bench.stop(bench.b), bench.stop(bench.b)]
    bench.loop.advance(SHUTDOWN)
    assert [told.heard for told in both] == [[None], [None]]
    assert bench.stopped == "b!"


@pytest.mark.parametrize("state", ["parked", "ended", "stopped"])
def test_resume(state: str) -> None:
    """Who has no incarnation gets one at once, with a clean record; its siblings do not notice."""
    bench = Bench("dynamic", "transient").start()
    bench.env.chance = 0.0
    if state == "parked":
        for _ in range(INTENSITY + 1):
            bench.crash(bench.b)
            bench.loop.advance(4.0)
    elif state == "ended":
        bench.b.go_down("normal")
        bench.loop.run()
    else:
        bench.stop(bench.b)
    assert bench.b.state == state
    bench.log.clear()
    bench.tell(Wake(bench.b, by_hand=True))
    bench.tell(Wake(bench.b, by_hand=True))
    assert (bench.log, bench.states) == (["start b"], "up up up")
    for _ in range(INTENSITY):
        bench.crash(bench.b)
        bench.loop.advance(4.0)
    assert bench.states == "up up up"


@pytest.mark.parametrize("woken", ["b", "c"])
def test_a_wake_cuts_a_groups_delay_short(woken: str) -> None:
    """Of whichever child that waits."""
    bench = Bench("rest_for_one").start()
    bench.crash(bench.b)
    bench.tell(Wake(getattr(bench, woken), by_hand=False))
    assert (bench.started, bench.states, bench.loop.pending()) == ("b c", "up up up", 0)


# -- late


def test_a_deadline_is_of_one_start_or_stop() -> None:
    """A start's deadline that came in the moment in which the child was up does not end it; nor does it shorten its stop."""
    for then in ("up", "stopping"):
        bench = Bench().start()
        bench.b.begins, bench.b.ends = ["hang"], ["hang"]
        bench.crash(bench.b)
        bench.loop.advance(1.0)
        assert bench.b.state == "starting"
        bench.b.come_up()  # waits in the inbox; and behind it:
        if then == "stopping":
            bench.supervisor.post(StopChild(bench.b, Told()))
        bench.env.clock = bench.b.until
        timer = bench.b.timer
        assert isinstance(timer, ManualTimer)
        timer.function(*timer.args)
        bench.loop.run()
        assert (bench.b.state, bench.stopped) == (then, "" if then == "up" else "b")


def test_what_is_heard_late_changes_nothing() -> None:
    """An older incarnation's word, and one of a child that is not waited for."""
    bench = Bench().start()
    bench.crash(bench.b)
    bench.loop.advance(1.0)
    assert bench.b.number == 2
    for state, late in [
        ("up", ChildDown(bench.b, 1, Down(id="b", reason="crash"))),
        ("up", Up(bench.b, 1)),
        ("up", Up(bench.b, 2)),
    ]:
        bench.tell(late)
        assert bench.b.state == state
    bench.stop(bench.b)
    for late in (Up(bench.b, 2), ChildDown(bench.b, 2, Down(id="b", reason="crash"))):
        bench.tell(late)
        bench.loop.advance(1.0)
        assert bench.states == "up stopped up"
    assert (bench.started, bench.downs) == ("b", [])


def test_up_does_not_undo_a_stop() -> None:
    """A child that comes up while it is being stopped is being stopped."""
    bench = Bench().start()
    bench.b.begins, bench.b.ends = ["hang"], ["hang"]
    bench.crash(bench.b)
    bench.loop.advance(1.0)
    told = bench.stop(bench.b)
    bench.b.come_up()
    bench.loop.run()
    assert (bench.b.state, told.heard) == ("stopping", [])
    bench.loop.advance(SHUTDOWN)
    assert (bench.b.state, told.heard) == ("stopped", [None])


# -- the end


def test_dynamic_children_stop_in_parallel_under_one_deadline() -> None:
    """All are asked at once, and what is left when the time is over is given up at once."""
    bench = Bench("dynamic").start()
    for child in (bench.a, bench.b, bench.c):
        child.ends = ["hang"]
    bench.end(2.0)
    assert bench.log == ["stop c", "stop b", "stop a"]
    bench.loop.advance(1.9)
    assert bench.downs == []
    bench.loop.advance(0.2)
    assert bench.stopped == "c! b! a!"
    assert [down.reason for down in bench.downs] == ["shutdown"]
    assert [child.last.reason for child in bench.children if child.last] == ["killed"] * 3


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_others_stop_one_after_the_other_under_one_deadline(strategy: Strategy) -> None:
    """Each has its own time, and all together no more than the supervisor; who is left has a moment still."""
    bench = Bench(strategy).start()
    for child in (bench.a, bench.b, bench.c):
        child.ends = ["hang"]
    bench.end(SHUTDOWN + 2.0)
    bench.loop.advance(SHUTDOWN)
    assert bench.stopped == "c! b"
    bench.loop.advance(1.8)
    assert bench.stopped == "c! b"
    bench.loop.advance(0.15)
    assert bench.stopped == "c! b! a"  # which has a moment, whatever the others took
    bench.loop.advance(0.1)
    assert bench.stopped == "c! b! a!"
    assert [down.reason for down in bench.downs] == ["shutdown"]


def test_a_stop_in_progress_is_bound_by_the_end() -> None:
    """A child that is being stopped for another reason has no more time than all."""
    bench = Bench().start()
    bench.b.ends = ["hang", "hang"]
    told = bench.stop(bench.b)
    bench.end(1.0)
    bench.loop.advance(1.0)
    assert ([down.reason for down in bench.downs], told.heard) == (["shutdown"], [None])


def test_a_second_end_gives_no_more_time() -> None:
    """The earlier of two deadlines holds."""
    bench = Bench().start()
    for child in (bench.a, bench.b, bench.c):
        child.ends = ["hang", "hang"]
    bench.end(2.0)
    bench.end(30.0)
    bench.loop.advance(2.0)
    assert [down.reason for down in bench.downs] == ["shutdown"]


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_an_end_in_a_recovery(strategy: Strategy) -> None:
    """Nobody is started any more, whether the supervisor waits for a delay, or a start."""
    for wait in (0.0, 1.0):
        bench = Bench(strategy).start()
        bench.b.begins = ["hang"]
        bench.crash(bench.b)
        bench.loop.advance(wait)
        bench.log.clear()
        bench.end()
        bench.loop.advance(PERIOD)
        assert (bench.started, bench.states, bench.loop.pending()) == ("", "down down down", 0)
        assert [down.reason for down in bench.downs] == ["shutdown"]


# -- supervisors under supervisors


class Tree:
    """A root, and supervisors under it, whose children are scripted."""

    def __init__(self, *, intensity: int = INTENSITY, shutdown: float = 30.0) -> None:
        self.env = ManualEnv()
        self.loop = ManualLoop(self.env)
        self.log: list[str] = []
        self.place = Place(self.env, self.loop, self.loop)
        self.outer = self.supervisor("outer", "one_for_one", intensity, shutdown)
        self.inner = self.supervisor("inner", "one_for_all", intensity, shutdown)
        self.x, self.y = Scripted("x", self.log), Scripted("y", self.log)
        self.inner.children += [self.x, self.y]
        self.outer.children.append(self.inner)
        self.downs: list[Down] = []
        self.root = Supervisor(self.env, self.loop, "root", [self.outer], "one_for_one")
        self.root.watch(self.downs.append)
        self.root.launch()
        self.loop.run()
        assert self.states == ["up", "up", "up", "up"]
        self.log.clear()

    def supervisor(self, id: str, strategy: Strategy, intensity: int, shutdown: float) -> SupervisorChild:
        """One without children."""
        spec = SupervisorSpec(id, strategy=strategy, intensity=intensity, shutdown=shutdown)
        return SupervisorChild(spec, self.place)

    @property
    def states(self) -> list[str]:
        """Of all, from the top."""
        return [child.state for child in (self.outer, self.inner, self.x, self.y)]

    def crash(self, child: Scripted, times: int) -> None:
        """It crashes, each time when it is back."""
        for _ in range(times):
            child.go_down("crash")
            self.loop.advance(2.0)

    def ask(self, parent: SupervisorChild, message: Any) -> None:
        """Send a supervisor a message, whether it lives or not."""
        parent.post(message)
        self.loop.run()


def test_a_failed_supervisor_is_restarted_with_all_its_children() -> None:
    """x crashes too often: inner stops y and fails; outer restarts inner, which starts x and y in order."""
    tree = Tree()
    tree.crash(tree.x, INTENSITY)
    tree.log.clear()
    tree.x.go_down("crash")
    tree.loop.run()
    assert (tree.log, tree.inner.state) == (["stop y"], "backoff")
    assert tree.inner.reason is not None
    assert "SupervisorFailed: supervisor 'inner' gives up: child 'x'" in tree.inner.reason
    tree.loop.advance(1.0)
    assert tree.log == ["stop y", "start x", "start y"]
    assert (tree.states, tree.inner.number, tree.x.number) == (["up"] * 4, 2, INTENSITY + 2)


def test_a_supervisor_that_fails_too_often_is_parked() -> None:
    """child, supervisor, its supervisor: outer is one for one, and bears it; nobody is left behind."""
    tree = Tree(intensity=1)
    tree.env.chance = 0.0  # no delay keeps it from crashing again
    for _ in range(2):  # as often in inner's second life as in its first: with it, its children begin anew
        assert tree.states == ["up"] * 4
        tree.crash(tree.x, 6)
    assert tree.states == ["up", "parked", "down", "down"]
    assert [tree.x.lives, tree.y.lives, tree.downs] == [None, None, []]
    tree.ask(tree.outer, Wake(tree.inner, by_hand=True))
    assert tree.states == ["up"] * 4


def test_a_dead_supervisors_children_do_not_outlive_it() -> None:
    """It crashes by itself, which no supervisor should: its children are stopped, and then it is restarted with them."""
    tree = Tree()
    tree.ask(tree.inner, "nonsense")
    assert tree.log == ["release y", "release x"]
    assert tree.states == ["up", "backoff", "down", "down"]
    tree.loop.advance(1.0)
    assert (tree.states, tree.x.number, tree.log[2:]) == (["up"] * 4, 2, ["start x", "start y"])


def test_a_start_that_fails_under_a_restarted_supervisor_is_a_crash() -> None:
    """Only at the first start of all does it fail the supervisor."""
    tree = Tree()
    tree.x.begins = ["fail"]
    tree.ask(tree.inner, "nonsense")
    tree.loop.advance(2.0)
    assert (tree.states, tree.inner.number, tree.x.number) == (["up"] * 4, 2, 3)


def test_a_stop_holds_though_the_supervisor_dies_over_it() -> None:
    """Who wanted it is told, and it does not come back with the others; of a supervisor, nobody waits for it."""
    tree = Tree()
    tree.y.ends = ["hang"]
    stop_y, stop_inner, added = Told(), Told(), Told()
    tree.ask(tree.inner, StopChild(tree.y, stop_y))
    tree.ask(tree.inner, "nonsense")
    tree.loop.advance(1.0)
    assert (stop_y.heard, tree.states) == ([None], ["up", "up", "up", "stopped"])
    tree.x.ends = ["hang"]
    tree.ask(tree.outer, StopChild(tree.inner, stop_inner))
    tree.ask(tree.outer, "nonsense")
    tree.loop.advance(PERIOD)
    assert (stop_inner.heard, tree.states) == ([None], ["up", "stopped", "down", "stopped"])
    child = Scripted("z", tree.log)
    child.started = added
    tree.ask(tree.inner, Add(child))
    assert isinstance(added.error, StartFailed)


def test_a_temporary_child_has_no_second_life_under_a_new_supervisor() -> None:
    """Whether its supervisor stopped it or left it behind."""
    tree = Tree()
    tree.inner.children.insert(0, temporary := Scripted("t", tree.log, "temporary"))
    temporary.number, temporary.state = 1, "up"
    tree.ask(tree.inner, "nonsense")
    tree.loop.advance(1.0)
    assert (tree.states, tree.inner.children) == (["up"] * 4, [tree.x, tree.y])


def test_what_was_asked_of_a_dying_supervisor_is_done_by_the_next() -> None:
    """Messages behind its end, and those that come while there is none."""
    tree = Tree()
    tree.x.begins = ["hang"]
    added, stopped, later = Told(), Told(), Told()
    child = Scripted("z", tree.log)
    child.started = added
    tree.inner.post("nonsense")
    tree.inner.post(Add(child))
    tree.loop.run()
    tree.ask(tree.inner, StopChild(tree.y, stopped))
    assert added.heard == stopped.heard == []
    tree.loop.advance(1.0)
    tree.x.come_up()
    tree.loop.run()
    assert (added.error, stopped.error) == (None, None)
    assert [each.state for each in tree.inner.children] == ["up", "stopped", "up"]
    tree.y.stopped = ()
    tree.ask(tree.inner, StopChild(tree.x, later))
    assert later.error is None


@pytest.mark.parametrize("rest", ["stopped", "parked", "stopped above", "gone"])
def test_nobody_waits_for_a_supervisor_that_does_not_come(rest: str) -> None:
    """Who asks one that is stopped, parked, or down for good, or one below it, is told at once; a stop holds for its next life."""
    tree = Tree(intensity=0)
    early = [Told(), Told()]
    before = Scripted("early", tree.log)
    before.started = early[0]
    if rest == "stopped":
        tree.ask(tree.outer, StopChild(tree.inner, Told()))
    elif rest == "parked":
        tree.inner.post("nonsense")
        tree.inner.post(Add(before))
        tree.ask(tree.inner, StopChild(tree.x, early[1]))
    elif rest == "stopped above":
        tree.root.post(StopChild(tree.outer, Told()))
        tree.loop.run()
    else:
        tree.ask(tree.outer, StopChild(tree.inner, Told()))
        other = tree.supervisor("inner", "one_for_one", INTENSITY, 30.0)
        tree.ask(tree.outer, Add(other))
    added, stopped = Told(), Told()
    child = Scripted("z", tree.log)
    child.started = added
    tree.ask(tree.inner, Add(child))
    tree.ask(tree.inner, StopChild(tree.y, stopped))
    assert isinstance(added.error, StartFailed)
    assert "its supervisor 'inner'" in str(added.error)
    assert (stopped.heard, tree.y.state) == ([None], "stopped")
    if rest == "parked":
        assert (type(early[0].error), early[1].heard) == (StartFailed, [None])
    assert {each.id for each in tree.inner.children} == {"x", "y"}


def test_a_nested_end_shares_the_deadline() -> None:
    """The inner supervisor has a little less than the outer, so that it can tell of its end: nobody is killed who told it."""
    tree = Tree()
    tree.x.ends, tree.y.ends = ["hang"], ["hang"]
    tree.root.post(End(tree.env.clock + 4.0))
    tree.loop.run()
    assert tree.log == ["stop y"]
    tree.loop.advance(4.0)
    assert tree.log == ["stop y", "kill y", "stop x", "kill x"]
    assert [down.reason for down in tree.downs] == ["shutdown"]
    assert [each.last.reason for each in (tree.outer, tree.inner) if each.last] == ["shutdown", "shutdown"]


def test_a_supervisor_that_does_not_stop_is_given_up_with_all_below_it() -> None:
    """Its children are given up, and their ids, stops and asks are sound afterwards."""
    tree = Tree(shutdown=0.0)
    tree.x.ends, tree.y.ends = ["hang"], ["hang"]
    stop_y, stop_inner = Told(), Told()
    tree.ask(tree.inner, StopChild(tree.y, stop_y))
    tree.inner.end = lambda by, seconds: None  # type: ignore[method-assign] # it hangs
    tree.ask(tree.outer, StopChild(tree.inner, stop_inner))
    tree.loop.advance(0.0)
    assert (stop_y.heard, stop_inner.heard) == ([None], [None])
    assert tree.inner.last is not None
    assert tree.inner.last.reason == "killed"
    assert tree.states == ["up", "stopped", "down", "stopped"]
    assert [tree.x.lives, tree.y.lives] == [None, None]
    tree.ask(tree.outer, Wake(tree.inner, by_hand=True))
    assert (tree.states, tree.x.number) == (["up", "up", "up", "stopped"], 2)


def test_a_supervisors_start_has_the_time_of_all_its_children() -> None:
    """Also of those below its own supervisors."""
    tree = Tree()
    assert tree.inner.start_seconds == 2 * START_TIMEOUT + 30.0 + LATE
    assert tree.outer.start_seconds == tree.inner.start_seconds + 30.0 + LATE


def test_a_child_that_goes_down_late_changes_nothing() -> None:
    """Its supervisor is dead, and the next one above has given all up meanwhile, and started them again."""
    tree = Tree()
    tree.y.ends = ["hang"]
    tree.ask(tree.inner, "nonsense")
    tree.ask(tree.outer, StopChild(tree.inner, Told()))
    tree.loop.advance(30.0)
    assert (tree.inner.state, tree.y.state) == ("stopped", "down")
    tree.ask(tree.outer, Wake(tree.inner, by_hand=True))
    assert tree.y.gone is not None
    tree.y.gone()
    tree.loop.run()
    assert (tree.states, tree.y.number) == (["up"] * 4, 2)


# -- 5,000 random steps


@dataclass
class Walk:
    """A tree of scripted children, and what must hold of it at any time.

    Attributes:
        seed: Of the steps: the same one gives the same walk.
    """

    seed: int
    env: ManualEnv = field(default_factory=ManualEnv)
    tolds: list[Told] = field(default_factory=list[Told])
    wrong: list[str] = field(default_factory=list[str])
    """What must not be and was; raised in a supervisor, it would be one more crash."""
    tick: int = 0
    calm: bool = True
    """Whether no start fails and no stop hangs."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.loop = ManualLoop(self.env)
        self.place = Place(self.env, self.loop, self.loop)
        self.parents = {strategy: self.parent(strategy) for strategy in get_args(Strategy)}
        self.parents["rest_for_one"].children.insert(1, self.parents["dynamic"])  # a supervisor among children
        top: list[Child] = [parent for strategy, parent in self.parents.items() if strategy != "dynamic"]
        self.downs: list[Down] = []
        self.root = Supervisor(self.env, self.loop, "root", top, "one_for_one")
        self.root.watch(self.downs.append)
        self.root.launch()
        self.loop.run()
        self.calm = False

    def luck(self) -> float:
        """Between nothing and one; one is the best."""
        return 1.0 if self.calm else self.chance.random()

    def parent(self, strategy: Strategy) -> SupervisorChild:
        """A supervisor with some children."""
        parent = SupervisorChild(SupervisorSpec(strategy, strategy=strategy, storm=6, intensity=3), self.place)
        for restart in ("permanent", "transient", "temporary", "permanent"):
            parent.children.append(self.child(parent, restart))
        return parent

    def child(self, parent: SupervisorChild, restart: Restart) -> Walker:
        """A child with a name of its own."""
        return Walker(f"{parent.id}/{len(parent.children)}/{self.chance.random():.6f}", parent, self, restart)

    def all(self) -> list[Walker]:
        """All children that are in the tree."""
        return [each for parent in self.parents.values() for each in parent.children if isinstance(each, Walker)]

    def told(self) -> Told:
        """Something that must be called once, sooner or later."""
        self.tolds.append(told := Told())
        return told

    def step(self) -> None:
        """Do something at random."""
        children = self.all()
        child = self.chance.choice(children) if children else None
        parent = self.chance.choice(list(self.parents.values()))
        match self.chance.choices(
            ["crash", "end", "add", "stop", "wake", "move", "stop parent", "wake parent", "break parent"],
            [12, 4, 6, 5, 6, 30, 1, 3, 1],
        )[0]:
            case "crash" if child is not None and child.lives is not None:
                child.fall("crash")
            case "end" if child is not None and child.lives is not None:
                child.fall("normal")
            case "add" if len(parent.children) < 8:
                added = self.child(parent, self.chance.choice(get_args(Restart)))
                if child is not None and self.chance.random() < 0.2:
                    added.id = child.id  # perhaps one that is taken
                added.started = self.told()
                parent.post(Add(added))
            case "stop" if child is not None:
                child.parent.post(StopChild(child, self.told()))
            case "wake" if child is not None:
                child.parent.post(Wake(child, by_hand=self.chance.random() < 0.7))
            case "move":
                self.loop.advance(self.chance.choice([0.0, 0.05, 0.5, 5.0, 30.0]))
            case "stop parent":
                self.stop(parent)
            case "wake parent":
                self.wake(parent)
            case "break parent":
                parent.post("nonsense")
            case _:
                pass
        if self.chance.random() < 0.7:
            self.loop.run()

    def above(self, parent: SupervisorChild) -> Callable[[Any], object]:
        """How the supervisor of a supervisor is told something."""
        return self.parents["rest_for_one"].post if parent is self.parents["dynamic"] else self.root.post

    def stop(self, parent: SupervisorChild) -> None:
        self.above(parent)(StopChild(parent, self.told()))

    def wake(self, parent: SupervisorChild) -> None:
        self.above(parent)(Wake(parent, by_hand=True))

    def calm_down(self) -> None:
        """Nothing fails any more, all supervisors are wanted, and time passes."""
        self.calm = True
        for parent in self.parents.values():
            self.loop.advance(2 * PERIOD)
            self.wake(parent)
        self.loop.advance(5 * PERIOD)


class Walker(Scripted):
    """A child of the walk, which minds the order."""

    def __init__(self, id: str, parent: SupervisorChild, walk: Walk, restart: Restart) -> None:
        super().__init__(id, [], restart)
        self.parent, self.walk = parent, walk
        self.began = self.fell = 0
        """When: in ticks of the walk."""

    def begin(self, by: Supervisor) -> float | None:
        self.walk.tick += 1
        self.walk.wrong += self.faults()
        self.lives = None
        self.began = self.walk.tick
        self.begins = ["up" if (luck := self.walk.luck()) > 0.2 else "fail" if luck > 0.1 else "hang"]
        return super().begin(by)

    def faults(self) -> Iterator[str]:
        """What is wrong with its start, in words."""
        siblings, strategy = self.parent.children, self.parent.spec.strategy
        if self.lives is not None:
            yield f"{self.id} lives twice"
        if self not in siblings:
            yield f"{self.id} is not in the tree"
            return
        if self.restart == "temporary" and self.number > 1 and self.started is None:
            yield f"{self.id} has a second life"
        if strategy in ("one_for_one", "dynamic"):
            return
        at = siblings.index(self)
        for before in siblings[:at]:
            if before.state not in ("up", "ended", "stopped") and not before.stopped:
                yield f"{self.id} starts while {before.id}, before it, is {before.state}"
        if self.fell > self.began:  # it comes back after a crash, and with its group
            for other in siblings if strategy == "one_for_all" else siblings[at:]:
                if (
                    other is not self
                    and isinstance(other, Walker)
                    and other.lives is not None
                    and other.began < self.fell
                ):
                    yield f"{other.id} has outlived the crash of {self.id}"

    def end(self, by: Supervisor, seconds: float) -> None:
        self.ends = ["down" if self.walk.luck() > 0.1 else "hang"]
        if self.lives is None:  # its end is on its way, and is not taken for a crash
            self.fell = 0
            return
        super().end(by, seconds)

    def release(self, gone: Callable[[], object]) -> None:
        self.lives = None
        self.walk.loop.call(gone)

    def fall(self, reason: Literal["normal", "crash"]) -> None:
        """End by itself, now."""
        if reason == "crash" and self.restart != "temporary" and self.state != "stopping":
            self.walk.tick += 1
            self.fell = self.walk.tick
        self.go_down(reason)


@pytest.fixture
def silent() -> Iterator[None]:
    """Thousands of crashes are not worth a log."""
    logging.getLogger("nitinol").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("nitinol").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_random_steps(seed: int) -> None:
    """Whatever comes when: no child lives twice, order holds, all who ask are told once, peace returns, and the end comes.

    The first two are seen to in each start, by `Walker.faults`.
    """
    walk = Walk(seed)
    for _ in range(1000):
        walk.step()
    assert walk.tick > 100, "too little has happened"
    walk.calm_down()
    assert [parent.state for parent in walk.parents.values()] == ["up"] * 4
    for child in walk.all():
        allowed = {"permanent": {"up", "parked", "stopped"}, "transient": {"up", "parked", "stopped", "ended"}}
        assert child.state in allowed.get(child.restart, {"up"}), f"{child.id}, {child.restart}, is {child.state}"
        assert (child.lives == child.number) == (child.state == "up")
    assert (walk.downs, walk.wrong) == ([], [])
    walk.root.post(End(walk.env.clock + 10.0))
    walk.loop.advance(10.0)
    assert [down.reason for down in walk.downs] == ["shutdown"]
    assert [child.id for child in walk.all() if child.lives is not None] == []
    assert {len(told.heard) for told in walk.tolds} == {1}
    assert walk.loop.pending() == 0
