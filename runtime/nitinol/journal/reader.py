"""Reading a store: from any thread, by a few connections of its own, never waiting for the writer."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nitinol.env import disown_in_child
from nitinol.errors import RuntimeStopped, StorageFailed
from nitinol.events import EventBase, stamp, unpack
from nitinol.journal import blobs
from nitinol.journal.base import Head
from nitinol.journal.bill import By, Spent
from nitinol.journal.rows import SELECT_HEAD, to_head, to_spent
from nitinol.journal.schema import Disk, in_sqlite, storage_failed
from nitinol.state import BrokenLog

SELECT_EVENT = "SELECT position, type, body, blobs FROM events"
"""Gives what `to_events` takes."""


class StoreReader:
    """The reading half of a journal in a SQLite file."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._is_parents = False
        disown_in_child(self)

    def disown(self) -> None:
        """In the child of a fork: read nothing more."""
        self._is_parents = True
        self._idle.clear()

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        """Committed events of a key behind a seq, in order."""
        with self._connection() as connection:
            rows = connection.execute(
                f"{SELECT_EVENT} WHERE key = ? AND seq > max(?, "
                "coalesce((SELECT base_seq FROM heads WHERE key = ?), 0)) ORDER BY seq LIMIT ?",
                (key, after_seq, key, -1 if limit is None else limit),
            )
            return to_events(connection, rows)
        return []

    def scan(self, after: int, limit: int) -> Sequence[EventBase]:
        """Committed events of all keys behind a position, in order of position."""
        with self._connection() as connection:
            rows = connection.execute(f"{SELECT_EVENT} WHERE position > ? ORDER BY position LIMIT ?", (after, limit))
            return to_events(connection, rows)
        return []

    def find_run(self, run_id: str) -> tuple[str, int] | None:
        """The key and the seq of the `run.queued` of a run."""
        rows = self._select("SELECT key, seq FROM runs WHERE run_id = ?", (run_id,))
        return (rows[0][0], rows[0][1]) if rows else None

    @property
    def position(self) -> int:
        """Of the last committed event; 0 where there is none."""
        # max(position) would fall with what is forgotten
        rows = self._select("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return rows[0][0] if rows else 0

    def head(self, key: str) -> Head | None:
        """What is known of a key, if anything was ever written under it."""
        rows = self._select(f"{SELECT_HEAD} WHERE key = ? AND seq > base_seq", (key,))
        return self._to_head(rows[0]) if rows else None

    def heads(self, *, active: bool = False, reserved: bool = False) -> Sequence[Head]:
        """All keys, or those with something to do at once, or with an attempt in flight; in order."""
        where = "active" if active else "reserved IS NOT NULL" if reserved else "seq > base_seq"
        return [self._to_head(row) for row in self._select(f"{SELECT_HEAD} WHERE {where} ORDER BY key")]

    def waiting(self) -> Sequence[tuple[str, str]]:
        """Keys whose open runs wait for nothing but people, and the names of their agents."""
        return self._select(
            "SELECT key, agent FROM heads WHERE open_runs AND NOT active AND state <> 'parked' ORDER BY key"
        )

    def _to_head(self, row: tuple[Any, ...]) -> Head:
        try:
            return to_head(*row)
        except BrokenLog as error:
            way_out = f"`nitinol verify {self.path} --rebuild` makes it anew, while nobody owns the store"
            raise StorageFailed(
                f"store {str(self.path)!r}: the row of agent {row[0]!r} in heads is damaged; {way_out}"
            ) from error

    def timers(self, after: int = 0, until: int | None = None) -> Sequence[tuple[int, str]]:
        """When which key is due, in order of time: all behind `after` and by `until`, or just the first behind `after`."""
        if until is None:
            return self._select("SELECT due, key FROM timers WHERE due > ? ORDER BY due LIMIT 1", (after,))
        return self._select("SELECT due, key FROM timers WHERE due > ? AND due <= ? ORDER BY due", (after, until))

    def spent(self, by: By) -> Mapping[str, Spent]:
        """The bill, of forgotten agents too: name to sum, in order of names."""
        rows = self._select("SELECT name, usage, cost, unpriced FROM scopes WHERE scope = ? ORDER BY name", (by,))
        return {name: to_spent(*spent) for name, *spent in rows}

    def close_readers(self) -> None:
        """Close what is idle now, and the rest after use. A later read opens, and closes, a connection of its own."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _select(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()
        return []

    @contextmanager
    def _connection(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection for one query; as many exist as ever read at the same time. Also after `close_readers`."""
        if self._is_parents:
            raise RuntimeStopped(
                f"store {str(self.path)!r} was opened before a fork, by another process; open your own"
            )
        try:
            with in_sqlite:
                try:
                    connection = self._idle.pop()
                except IndexError:
                    connection = self._disk.connect(self.path, read_only=True)
                try:
                    yield connection
                finally:
                    self._idle.append(connection)
                    if self._closed:
                        self.close_readers()
        except sqlite3.Error as error:
            raise storage_failed(self.path, "read", error) from error
        except UnicodeEncodeError:  # a name that no store holds: nothing is found
            return


def to_events(connection: sqlite3.Connection, rows: Iterable[tuple[int, str, bytes, str | None]]) -> list[EventBase]:
    """What `SELECT_EVENT` gives as events, with their large parts."""

    def fetch(name: str) -> bytes:
        found = connection.execute("SELECT body FROM blobs WHERE hash = ?", (name,)).fetchone()
        if found is None:
            raise StorageFailed(f"the store has lost a part of an event, blob {name!r}; restore it from a backup")
        return bytes(found[0])

    events: list[EventBase] = []
    for position, type, body, names in rows:
        event = unpack(type, body if names is None else blobs.join(body, names.split(" "), fetch))
        stamp(event, position)
        events.append(event)
    return events
