"""Bugs, put in at the seams: a simulator that does not find them proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.simulation.disk import SimDisk
from tests.simulation.world import OpenJournal, Report, simulate

from nitinol.actors.agent_actor import Cell
from nitinol.env import Env, Loop
from nitinol.events import EventBase, stamp
from nitinol.journal.base import Committed
from nitinol.journal.schema import Disk
from nitinol.journal.sqlite import SqliteJournal
from nitinol.messages import Message
from nitinol.state import AgentState, Log


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

    def view_of(cell: Cell, transcript: Log[Message]) -> tuple[tuple[Message, ...], int, int]:
        return tuple(transcript), 0, 0

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


BUGS: dict[str, Callable[[], AbstractContextManager[OpenJournal]]] = {
    function.__name__: function
    for function in (
        drop_one_commit, swap_two_events, acknowledge_before_sync, skip_the_repair, start_before_the_commit,
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
