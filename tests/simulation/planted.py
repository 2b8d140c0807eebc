"""Bugs, put in at the seams: a simulator that does not find them proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.simulation.disk import SimDisk
from tests.simulation.world import OpenJournal, Report, simulate

from nitinol.actors.actor import Answer, Down, LoopActor
from nitinol.actors.cell import Cell
from nitinol.actors.children import ActorChild
from nitinol.actors.gate import Line
from nitinol.actors.patience import Patience
from nitinol.actors.supervisor import Child, Supervisor
from nitinol.env import Env, Loop
from nitinol.events import EventBase, stamp
from nitinol.journal.base import Committed
from nitinol.journal.schema import Disk
from nitinol.journal.sqlite import SqliteJournal
from nitinol.messages import Message
from nitinol.state import AgentState


class _DropsOne(SqliteJournal):
    """Acknowledges one commit that it does not make."""

    left = 25

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        self.left -= 1
        if self.left:
            super().append(key, epoch, events, state, committed)
        else:
            for number, event in enumerate(events, start=1):
                stamp(event, self.position + number)
            self._core.call(committed, None)


class _SwapsTwo(SqliteJournal):
    """Writes two events of a commit in the wrong order."""

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        first, *rest = events
        swapped = [first, *rest[-1:], *rest[1:-1], *rest[:1]] if len(rest) > 3 else events
        super().append(key, epoch, swapped, state, committed)


@contextmanager
def drop_one_commit() -> Generator[OpenJournal, None, None]:
    """A commit is acknowledged, and not made."""
    yield _DropsOne


@contextmanager
def swap_two_events() -> Generator[OpenJournal, None, None]:
    """Two events of a commit change places."""
    yield _SwapsTwo


@contextmanager
def acknowledge_before_sync() -> Generator[OpenJournal, None, None]:
    """A commit is acknowledged once it is in the page cache. Only a power cut tells."""

    def open_journal(path: Path, env: Env, core: Loop, disk: Disk) -> SqliteJournal:
        assert isinstance(disk, SimDisk)
        disk.synchronous = "NORMAL"  # what SQLite takes to be enough for most
        return SqliteJournal(path, env, core, disk)

    yield open_journal


@contextmanager
def skip_the_repair() -> Generator[OpenJournal, None, None]:
    """A model is sent the transcript as it is."""

    def view_of(cell: Cell, state: AgentState) -> tuple[tuple[Message, ...], int, int]:
        return tuple(state.shown), 0, 0

    with _replaced(Cell, "view_of", view_of):
        yield SqliteJournal


class _Hasty(SqliteJournal):
    """Lets a request be sent, and a tool begin, as soon as that is decided."""

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        if any(event.type in ("model.started", "tool.started") for event in events):
            request: Any = cast("partial[None]", committed).args[2]
            request.answer(events)
        super().append(key, epoch, events, state, committed)


@contextmanager
def start_before_the_commit() -> Generator[OpenJournal, None, None]:
    """An effect starts before its commit."""
    yield _Hasty


@contextmanager
def tell_a_down_twice() -> Generator[OpenJournal, None, None]:
    """Who watches an actor is told of its end, and told again."""
    tell_down = LoopActor._tell_down  # pyright: ignore[reportPrivateUsage]

    def twice(actor: LoopActor, down: Down) -> None:
        watchers = [told for told, _ in actor._watchers or ()]  # pyright: ignore[reportPrivateUsage]
        tell_down(actor, down)
        for told in watchers[1:2]:
            told(down)

    with _replaced(LoopActor, "_tell_down", twice):
        yield SqliteJournal


@contextmanager
def forget_a_watcher() -> Generator[OpenJournal, None, None]:
    """Of those who watch an actor, the last of several is not told."""
    tell_down = LoopActor._tell_down  # pyright: ignore[reportPrivateUsage]

    def all_but_one(actor: LoopActor, down: Down) -> None:
        watchers = actor._watchers or ()  # pyright: ignore[reportPrivateUsage]
        actor._watchers = [*watchers[:2]]  # pyright: ignore[reportPrivateUsage]
        tell_down(actor, down)

    with _replaced(LoopActor, "_tell_down", all_but_one):
        yield SqliteJournal


@contextmanager
def start_a_group_in_the_wrong_order() -> Generator[OpenJournal, None, None]:
    """The children of a supervisor are started from the last to the first."""
    start_next = Supervisor._start_next  # pyright: ignore[reportPrivateUsage]

    def backwards(supervisor: Supervisor) -> bool:
        children = supervisor.children
        supervisor.children = [*children[: supervisor._low], *children[: supervisor._low - 1 : -1]]  # pyright: ignore[reportPrivateUsage]
        if not supervisor._low:  # pyright: ignore[reportPrivateUsage]
            supervisor.children = children[::-1]
        try:
            return start_next(supervisor)
        finally:
            supervisor.children = children

    with _replaced(Supervisor, "_start_next", backwards):
        yield SqliteJournal


@contextmanager
def stop_a_group_in_the_wrong_order() -> Generator[OpenJournal, None, None]:
    """The children of a supervisor are stopped in the order in which they were started."""

    def forwards(supervisor: Supervisor) -> bool:
        concerned = supervisor.children[supervisor._low :]  # pyright: ignore[reportPrivateUsage]
        for child in concerned:
            if child.state in ("starting", "up"):
                supervisor._end(child)  # pyright: ignore[reportPrivateUsage]
            if child.state == "stopping":
                return False
        return True

    with _replaced(Supervisor, "_stop_next", forwards):
        yield SqliteJournal


@contextmanager
def spare_the_group() -> Generator[OpenJournal, None, None]:
    """With one for all, only those behind a child that crashed are restarted with it."""
    crashed = Supervisor._crashed  # pyright: ignore[reportPrivateUsage]

    def rest_for_one(supervisor: Supervisor, child: Child, down: Down) -> None:
        strategy = supervisor._strategy  # pyright: ignore[reportPrivateUsage]
        supervisor._strategy = "rest_for_one" if strategy == "one_for_all" else strategy  # pyright: ignore[reportPrivateUsage]
        try:
            crashed(supervisor, child, down)
        finally:
            supervisor._strategy = strategy  # pyright: ignore[reportPrivateUsage]

    with _replaced(Supervisor, "_crashed", rest_for_one):
        yield SqliteJournal


@contextmanager
def restart_nobody_twice() -> Generator[OpenJournal, None, None]:
    """A child that was restarted once is left down when it crashes again."""

    def crash(patience: Patience, now: float, chance: float) -> float | None:
        seconds = before(patience, now, chance)
        return seconds if seconds is None or patience.restarts < 1 else 1e9

    before = Patience.crash
    with _replaced(Patience, "crash", crash):
        yield SqliteJournal


@contextmanager
def let_the_late_live() -> Generator[OpenJournal, None, None]:
    """An incarnation that came up when its start had been given up is left to itself."""

    def started(child: ActorChild, by: Supervisor, number: int, actor: Any) -> None:
        if number == child.number and child.state == "starting":
            before(child, by, number, actor)

    before = ActorChild._started  # pyright: ignore[reportPrivateUsage]
    with _replaced(ActorChild, "_started", started):
        yield SqliteJournal


@contextmanager
def forget_agents_in_backoff() -> Generator[OpenJournal, None, None]:
    """When the agents' supervisor fails, those that waited for their restart wait for ever."""

    def start_over(cell: Cell) -> None:
        if cell.life != "backoff":
            before(cell)

    before = Cell.start_over
    with _replaced(Cell, "start_over", start_over):
        yield SqliteJournal


@contextmanager
def leave_the_waiters_of_the_parked() -> Generator[OpenJournal, None, None]:
    """Who waits for a run of an agent is not told that it was parked."""

    def nobody(cell: Cell) -> None:
        """Wakes nobody."""

    with _replaced(Cell, "_wake_waiters", nobody):
        yield SqliteJournal


@contextmanager
def carry_out_what_expired() -> Generator[OpenJournal, None, None]:
    """An ask is carried out although nobody waits for it any more."""
    with _replaced(Answer, "expired", False):
        yield SqliteJournal


@contextmanager
def lose_what_a_supervisor_was_told() -> Generator[OpenJournal, None, None]:
    """What waits in the inbox of a supervisor that crashes is lost."""

    def lose(supervisor: Supervisor, message: Any) -> None:
        """Gives it to nobody."""

    with _replaced(Supervisor, "on_unhandled", lose):
        yield SqliteJournal


@contextmanager
def leave_them_standing() -> Generator[OpenJournal, None, None]:
    """Who waits for a provider that limits the rate is never let out."""

    def nobody(line: Line) -> None:
        """Lets nobody out."""

    with _replaced(Line, "_let_out", nobody):
        yield SqliteJournal


BUGS: dict[str, Callable[[], AbstractContextManager[OpenJournal]]] = {
    function.__name__: function
    for function in (
        drop_one_commit, swap_two_events, acknowledge_before_sync, skip_the_repair, start_before_the_commit,
        tell_a_down_twice, forget_a_watcher, start_a_group_in_the_wrong_order, stop_a_group_in_the_wrong_order,
        spare_the_group, restart_nobody_twice, let_the_late_live, forget_agents_in_backoff,
        leave_the_waiters_of_the_parked, carry_out_what_expired, lose_what_a_supervisor_was_told,
        leave_them_standing,
    )
}  # fmt: skip


def simulate_with(seed: int, bug: str | None = None, tell: Callable[[str], object] | None = None) -> Report:
    """One seed, with a bug or without."""
    with BUGS[bug]() if bug is not None else nullcontext(SqliteJournal) as open_journal:
        return simulate(seed, open_journal=open_journal, tell=tell)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Generator[None, None, None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
