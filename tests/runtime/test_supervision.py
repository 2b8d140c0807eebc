"""Supervision in OTP's words, on a clock of the test's own: who is stopped and started when a child ends, and in which order.

`TABLE` is what supervision.md says. Below it: intensity and storms, what the asked are told, late messages, nesting, and
5,000 random steps through a whole tree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Literal, get_args

import pytest
from tests.manual import ManualEnv, ManualLoop

from nitinol.actors.actor import Down
from nitinol.actors.child_spec import Restart, Strategy, SupervisorSpec
from nitinol.actors.children import LATE, Place, SupervisorChild
from nitinol.actors.supervisor import LIVE, Add, Child, ChildDown, End, StopChild, Supervisor, Up, Wake
from nitinol.errors import ConfigurationError, StartFailed, SupervisorFailed

START_TIMEOUT, SHUTDOWN = 10.0, 5.0
INTENSITY, PERIOD = 5, 60.0

TABLE = """
| what happens to b                             | strategy                            | b's restart          | stopped | started | a b c                           |
|-----------------------------------------------|-------------------------------------|----------------------|---------|---------|---------------------------------|
| ends by itself                                | one_for_one, dynamic                | permanent            |         | b       | up up up                        |
| ends by itself                                | one_for_all                         | permanent            | c a     | a b c   | up up up                        |
| ends by itself                                | rest_for_one                        | permanent            | c       | b c     | up up up                        |
| ends by itself                                | any                                 | transient            |         |         | up ended up                     |
| ends by itself                                | any                                 | temporary            |         |         | up gone up                      |
| crashes                                       | one_for_one, dynamic                | permanent, transient |         | b       | up up up                        |
| crashes                                       | one_for_all                         | permanent, transient | c a     | a b c   | up up up                        |
| crashes                                       | rest_for_one                        | permanent, transient | c       | b c     | up up up                        |
| crashes                                       | any                                 | temporary            |         |         | up gone up                      |
| is stopped from outside                       | any                                 | permanent, transient | b       |         | up stopped up                   |
| is stopped from outside                       | any                                 | temporary            | b       |         | up gone up                      |
| is stopped from outside and hangs             | any                                 | permanent, transient | b!      |         | up stopped up                   |
| is stopped from outside and hangs             | any                                 | temporary            | b!      |         | up gone up                      |
| fails at its first start                      | one_for_one, one_for_all, rest_for_one | any               | a       | a b     | down down down, supervisor fails |
| fails at its first start                      | dynamic                             | any                  | c a     | a b c   | down down down, supervisor fails |
| hangs at its first start                      | one_for_one, one_for_all, rest_for_one | any               | b! a    | a b     | down down down, supervisor fails |
| hangs at its first start                      | dynamic                             | any                  | b! c a  | a b c   | down down down, supervisor fails |
| is added, and fails at its first start        | any                                 | any                  |         | b       | up gone up                      |
| is added, and hangs at its first start        | any                                 | any                  | b!      | b       | up gone up                      |
| crashes, and its restart fails                | one_for_one, dynamic                | permanent, transient |         | b b     | up up up                        |
| crashes, and its restart fails                | one_for_all                         | permanent, transient | c a a   | a b a b c | up up up                      |
| crashes, and its restart fails                | rest_for_one                        | permanent, transient | c       | b b c   | up up up                        |
| crashes, and its restart hangs                | one_for_one, dynamic                | permanent, transient | b!      | b b     | up up up                        |
| crashes, and its restart hangs                | one_for_all                         | permanent, transient | c a b! a | a b a b c | up up up                     |
| crashes, and its restart hangs                | rest_for_one                        | permanent, transient | c b!    | b b c   | up up up                        |
| a crashes                                     | one_for_one, dynamic                | any                  |         | a       | up up up                        |
| a crashes                                     | one_for_all, rest_for_one           | permanent, transient | c b     | a b c   | up up up                        |
| a crashes                                     | one_for_all, rest_for_one           | temporary            | c b     | a c     | up gone up                      |
| a crashes, and b's stop hangs                 | one_for_all, rest_for_one           | permanent, transient | c b!    | a b c   | up up up                        |
| a crashes, and b's stop hangs                 | one_for_all, rest_for_one           | temporary            | c b!    | a c     | up gone up                      |
| c crashes                                     | one_for_one, dynamic, rest_for_one  | any                  |         | c       | up up up                        |
| c crashes                                     | one_for_all                         | permanent, transient | b a     | a b c   | up up up                        |
| c crashes                                     | one_for_all                         | temporary            | b a     | a c     | up gone up                      |
| had ended by itself when a crashes            | one_for_all, rest_for_one           | transient            | c       | a b c   | up up up                        |
| had ended by itself when a crashes            | one_for_one, dynamic                | transient            |         | a       | up ended up                     |
| had been stopped when a crashes               | one_for_all, rest_for_one           | permanent, transient | c       | a c     | up stopped up                   |
| had been stopped when a crashes               | one_for_one, dynamic                | permanent, transient |         | a       | up stopped up                   |
| crashes once more than its intensity          | one_for_one, dynamic                | permanent, transient |         | b b b b b | up parked up                  |
| the supervisor is stopped                     | any                                 | permanent, transient | c b a   |         | down down down                  |
| the supervisor is stopped                     | any                                 | temporary            | c b a   |         | down gone down                  |
| the supervisor is stopped, and b hangs        | one_for_one, one_for_all, rest_for_one | permanent, transient | c b! a |       | down down down                  |
| the supervisor is stopped, and b hangs        | dynamic                             | permanent, transient | c b! a  |         | down down down                  |
| the supervisor is stopped, and b hangs        | any                                 | temporary            | c b! a  |         | down gone down                  |
"""
"""`!`: was asked in vain, and given up. `gone`: not in the tree any more. a and c are permanent."""

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
        self.begins, self.ends = list(begins), list(ends)
        self.lives: int | None = None
        """The incarnation that lives, or comes up."""
        self.by: Supervisor | None = None

    @property
    def start_seconds(self) -> float:
        return START_TIMEOUT

    def begin(self, by: Supervisor) -> float | None:
        assert self.lives is None, f"two incarnations of {self.id} live"
        self.lives, self.by = self.number, by
        self.log.append(f"start {self.id}")
        match self.begins.pop(0) if self.begins else "up":
            case "up":
                self.come_up()
            case "fail":
                self.go_down("crash")
            case _:
                pass
        return START_TIMEOUT

    def end(self, by: Supervisor, seconds: float) -> None:
        self.log.append(f"stop {self.id}")
        if (self.ends.pop(0) if self.ends else "down") == "down":
            self.go_down("shutdown")

    def give_up(self) -> None:
        self.lives = None
        self.log.append(f"kill {self.id}")

    def release(self, gone: Callable[[], object]) -> None:
        self.lives = None
        self.log.append(f"release {self.id}")
        gone()

    def park(self, reason: str) -> None:
        self.log.append(f"park {self.id}")

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
