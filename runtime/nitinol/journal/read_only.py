"""A store beside its owner: what reads works, what writes is refused, and the file stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nitinol import events as ev
from nitinol.errors import ReadOnly, StorageFailed
from nitinol.journal.base import Committed, Opening, Past
from nitinol.journal.reader import SELECT_EVENT, StoreReader, to_events
from nitinol.journal.schema import SCHEMA, Disk, LocalDisk, found_schema
from nitinol.state import AgentState

_LIVES = "type IN ('agent.started', 'agent.crashed', 'agent.restarted', 'agent.parked')"


class ReadOnlyJournal(StoreReader):
    """A journal that only reads: see `Journal`. It takes no lock, and needs no owner to live.

    Raises:
        StorageFailed: There is no such file, it is no store, or an older version's; `NewerSchema` for a newer one's.
    """

    durable = True

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        super().__init__(path.resolve(), disk or LocalDisk())
        self._pasts: dict[str, Past] = {}
        self._seen = 0
        """The position up to which `_pasts` has read."""
        if disk is None and not self.path.is_file():
            what = "is no file" if self.path.exists() else "does not exist"
            raise StorageFailed(f"store {str(self.path)!r} {what}; give the path that its owner has")
        try:
            with self._connection() as connection:
                self._check(found_schema(connection, self.path))
        except BaseException:
            self.close()
            raise

    def extent(self, key: str) -> tuple[int, int]:
        """The seq before the first event of a key that was not forgotten, and that of its last; (0, 0) of an unknown one."""
        rows = self._select("SELECT base_seq, seq FROM heads WHERE key = ?", (key,))
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    def pasts(self) -> Mapping[str, Past]:
        """The pasts of all agents, by key. One look through the store, for the events of these types alone; later calls read on."""
        until = self.position
        with self._connection() as connection:
            select = f"{SELECT_EVENT} WHERE position > ? AND {_LIVES} ORDER BY position"
            events = to_events(connection, connection.execute(select, (self._seen,)))
            pasts = _fold_on(self._pasts, events)
            rows = connection.execute("SELECT key, base_seq FROM heads WHERE base_seq > 0")
            for key, base_seq in rows.fetchall():
                if key in pasts and pasts[key].since <= base_seq:  # what was forgotten does not count
                    select = f"{SELECT_EVENT} WHERE key = ? AND seq > ? AND {_LIVES} ORDER BY seq"
                    again = _fold_on({}, to_events(connection, connection.execute(select, (key, base_seq))))
                    pasts[key] = again.get(key, Past())
            self._pasts, self._seen = pasts, max(until, events[-1].position if events else 0)
        return self._pasts

    def refusal(self, what: str) -> ReadOnly:
        """The error of a change; `what` is refused."""
        return ReadOnly(f"{what}: store {str(self.path)!r} is open with read_only=True here; ask its owner")

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        """Refused."""
        opened(self.refusal(f"agent {key!r} cannot be opened"))

    def append(
        self, key: str, epoch: int, events: Sequence[ev.EventBase], state: AgentState, committed: Committed
    ) -> None:
        """Refused."""
        committed(self.refusal(f"agent {key!r} cannot be written"))

    def forget(self, key: str, forgotten: Committed) -> None:
        """Refused."""
        forgotten(self.refusal(f"agent {key!r} cannot be forgotten"))

    def restore(self, key: str, events: Sequence[ev.EventBase], state: AgentState, restored: Committed) -> None:
        """Refused."""
        restored(self.refusal(f"agent {key!r} cannot be restored"))

    def close(self) -> None:
        """Let go of the file. What is read later opens it once more."""
        self.close_readers()

    def _check(self, found: int | None) -> None:
        if found is None:
            raise StorageFailed(f"{str(self.path)!r} is no store of agents: it has no journal; give the path of one")
        if found < SCHEMA:
            raise StorageFailed(
                f"store {str(self.path)!r} has schema {found}, and this version reads {SCHEMA}: an owner brings it up to"
                f" date; open it once with Runtime({str(self.path)!r})"
            )


def _fold_on(pasts: Mapping[str, Past], events: Iterable[ev.EventBase]) -> dict[str, Past]:
    known = dict(pasts)
    for event in events:
        past = replace(known.get(event.key) or Past(since=event.seq), incarnation=event.incarnation)
        match event:
            case ev.AgentCrashed():
                past = replace(past, last_reason=f"{event.error_type}: {event.error}")
            case ev.AgentParked():
                past = replace(past, last_reason=event.reason)
            case ev.AgentRestarted():
                past = replace(past, restarts=past.restarts + 1)
            case _:
                pass
        known[event.key] = past
    return known
