"""A journal in a SQLite file: what it has acknowledged outlives the process.

One loop writes. It takes whatever waits, and commits it in one transaction (group commit), each decision in a
savepoint of its own, so that what is wrong with one fails that one alone. WAL with `synchronous=FULL`: a commit that
was acknowledged survives a power cut.

One process owns the file, by a lock that the operating system drops when it dies.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from nitinol.env import Env, Loop
from nitinol.errors import NitinolError, StorageFailed
from nitinol.events import EventBase, UsageUpdated, pack, stamp
from nitinol.journal import blobs, snapshots
from nitinol.journal.base import Committed, Conflict, Opening, head_of, taken
from nitinol.journal.migrate import prepare
from nitinol.journal.reader import SELECT_EVENT, StoreReader, to_events
from nitinol.journal.rows import Row, Rows
from nitinol.journal.schema import Disk, LocalDisk, in_sqlite, is_damaged, storage_failed, way_out
from nitinol.logs import get_logger
from nitinol.state import AgentState, BrokenLog

BATCH = 512
"""Decisions in one transaction at most."""
OPENINGS = 64
"""Logs that one transaction reads at most: ten thousand agents that come back must not keep one decision waiting."""
CLOSING = 30.0
"""Seconds to finish what was appended before a close."""


@dataclass(frozen=True, slots=True)
class _Append:
    key: str
    epoch: int
    events: Sequence[EventBase]
    state: AgentState
    told: Committed


@dataclass(frozen=True, slots=True)
class _Open:
    key: str
    told: Callable[[Opening | Exception], None]


@dataclass(frozen=True, slots=True)
class _Restore:
    key: str
    events: Sequence[EventBase]
    state: AgentState
    told: Committed


@dataclass(frozen=True, slots=True)
class _Forget:
    key: str
    told: Committed


_Item = _Append | _Open | _Restore | _Forget
Outcome = Callable[[], None]


class SqliteJournal(StoreReader):
    """See the module. `open`, `append`, `restore` and `forget` on the core loop; the rest from any thread.

    Args:
        path: The file; it is made where it does not exist.
        core: Where the callbacks come.
        disk: Where the file lies.

    Raises:
        StoreInUse: Another process owns the file, or this one by another journal.
        NewerSchema: A newer version wrote it.
        StorageFailed: It is no SQLite file, or cannot be opened.
    """

    durable = True

    def __init__(self, path: Path, env: Env, core: Loop, disk: Disk | None = None) -> None:
        super().__init__(path.resolve(), disk or LocalDisk())  # a link to a store is that store
        self._env, self._core = env, core
        self._queue: deque[_Item] = deque()
        self._openings: dict[str, list[_Item]] = {}
        """Keys whose opening waits, with what came for them since: the order of calls holds for each key."""
        self._scheduled = False
        self._rows = Rows()
        self._writer: sqlite3.Connection | None = None
        self._let_go_of_file = self._disk.own(self.path)
        try:
            with in_sqlite:
                connection = self._connect()
                prepare(connection, self.path)
                snapshots.get_ready(connection)
        except BaseException as error:
            self._let_go()
            if isinstance(error, sqlite3.Error):
                raise storage_failed(self.path, "opened", error) from error
            raise
        self._loop = env.start_loop("nitinol-journal")

    # -- on the core loop

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        """Take over a key: see `Journal`."""
        self._put(_Open(key, opened))

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        """Commit a decision: see `Journal`."""
        self._put(_Append(key, epoch, events, state, committed))

    def forget(self, key: str, forgotten: Committed) -> None:
        """Drop a key but its bill: see `Journal`."""
        self._put(_Forget(key, forgotten))

    def restore(self, key: str, events: Sequence[EventBase], state: AgentState, restored: Committed) -> None:
        """Begin a key with a log: see `Journal`."""
        self._put(_Restore(key, events, state, restored))

    def close(self) -> None:
        """Finish what was appended and let go of the store. From any thread; waits."""
        self._loop.call(self._end)
        self._loop.close(CLOSING)

    def _put(self, item: _Item) -> None:
        self._queue.append(item)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call(self._write)

    # -- on the journal's own loop

    def _write(self) -> None:
        # The flag falls before the queue is read: what arrives after the last look is written by another call.
        self._scheduled = False
        for outcome in self._commit(self._next_batch()):
            self._core.call(outcome)
        if (self._queue or self._openings) and not self._scheduled:
            self._scheduled = True
            self._loop.call(self._write)

    def _end(self) -> None:
        while self._queue or self._openings:
            self._write()
        self._let_go()

    def _let_go(self) -> None:
        """Close what is open, the lock last: from then on the store may be another's."""
        with in_sqlite:
            self.close_readers()
            if self._writer is not None:
                self._writer.close()
        self._let_go_of_file()

    def _next_batch(self) -> list[_Item]:
        """Decisions first; but what follows an opening waits with it."""
        batch: list[_Item] = []
        while self._queue and len(batch) < BATCH:
            item = self._queue.popleft()
            behind = self._openings.get(item.key)
            if behind is not None:
                behind.append(item)
            elif isinstance(item, _Open):
                self._openings[item.key] = [item]
            else:
                batch.append(item)
        for key in list(islice(self._openings, OPENINGS)):
            batch += self._openings.pop(key)
        return batch

    def _commit(self, batch: Sequence[_Item]) -> list[Outcome]:
        """Carry out a batch in one transaction; what to tell whom once it is committed."""
        try:
            with in_sqlite:
                results = self._transact(batch)
        except Exception as error:
            get_logger().error("the journal cannot write", path=str(self.path), error=repr(error))
            # Nothing of the batch is committed, nor is anything that these say. What failed is not used again.
            self._rows.clear()
            if self._writer is not None:
                with suppress(sqlite3.Error):
                    self._writer.close()
                self._writer = None
            failure = storage_failed(self.path, "written", error)
            return [partial(item.told, failure) for item in batch]
        # Logs are read when the epoch is committed, and not by the writer: what is wrong with one must fail no transaction.
        outcomes = [self._opening(key, row) if isinstance(row, Row) else row for key, row in results]
        return [partial(cast("Any", item.told), outcome) for item, outcome in zip(batch, outcomes, strict=True)]

    def _transact(self, batch: Sequence[_Item]) -> list[tuple[str, Row | Exception | None]]:
        """One transaction; each item's key, and what came of it."""
        reach = self._env.crash_point
        connection = self._writer or self._connect()
        connection.execute("BEGIN IMMEDIATE")
        results = [(item.key, self._carry_out(connection, item)) for item in batch]
        self._rows.write(connection)
        if reach is not None:
            reach("before commit")
        connection.execute("COMMIT")
        if reach is not None:
            reach("after commit")
        if any(isinstance(item, _Forget) for item in batch):
            self._empty_wal(connection)
        return results

    def _carry_out(self, connection: sqlite3.Connection, item: _Item) -> Row | Exception | None:
        """What came of it: the row of a key that was taken over, `None`, or why it was refused."""
        connection.execute("SAVEPOINT item")
        result: Row | Exception | None = None
        try:
            match item:
                case _Open():
                    result = self._take_over(connection, item.key)
                case _Append():
                    self._append(connection, item)
                case _Restore():
                    self._restore(connection, item)
                case _Forget():
                    self._forget(connection, item.key)
        except (sqlite3.OperationalError, sqlite3.InternalError):
            raise  # the store fails, not the item; it may have rolled back everything
        except Exception as error:
            connection.execute("ROLLBACK TO item")
            known = isinstance(error, NitinolError)
            result = error if known else Conflict(f"agent {item.key!r} cannot be written: {error}")
        connection.execute("RELEASE item")
        return result

    def _opening(self, key: str, row: Row) -> Opening | Exception:
        try:
            with self._connection() as reader:
                state = snapshots.load(reader, key) if row.kept else None
                if state is not None and state.seq > row.seq:  # of what was appended since
                    state = None
                behind = row.base_seq if state is None else state.seq
                select = f"{SELECT_EVENT} WHERE key = ? AND seq > ? AND seq <= ? ORDER BY seq"
                events = to_events(reader, reader.execute(select, (key, behind, row.seq)))
                if (events[-1].seq if events else behind) == row.seq:
                    return Opening(row.epoch, events, row.base_seq, state)
            return BrokenLog(f"agent {key!r}: its log should end with event {row.seq}, which cannot be read")
        except StorageFailed as error:
            if error.__cause__ is not None and is_damaged(error.__cause__):
                return BrokenLog(
                    f"agent {key!r}: its log cannot be read: {error.__cause__}; {way_out(error.__cause__)}"
                )
            return error
        except Exception as error:
            return error

    # Each changes a row only after everything that may fail: what is rolled back must not be remembered.

    def _take_over(self, connection: sqlite3.Connection, key: str) -> Row:
        row = self._rows.get(connection, key)
        row = replace(row, epoch=row.epoch + 1)
        self._rows.put(key, row)
        return row

    def _append(self, connection: sqlite3.Connection, item: _Append) -> None:
        row, events = self._rows.get(connection, item.key), item.events
        if row.epoch != item.epoch or events[0].seq != row.seq + 1:
            raise Conflict(f"agent {item.key!r}: a stale incarnation (epoch {item.epoch}) wrote seq {events[0].seq}")
        self._insert(connection, row, item)

    def _restore(self, connection: sqlite3.Connection, item: _Restore) -> None:
        row = self._rows.get(connection, item.key)
        if row.seq:
            raise taken(item.key)
        self._insert(connection, Row(row.epoch + 1, item.events[0].seq - 1), item)

    def _insert(self, connection: sqlite3.Connection, row: Row, item: _Append | _Restore) -> None:
        """Write events, and what stands beside them, to a key whose row is `row` until now."""
        events = item.events
        for event in events:
            body, large = blobs.part(pack(event))
            names = " ".join(large) if large else None
            position = connection.execute(
                "INSERT INTO events (key, seq, epoch, type, body, blobs) VALUES (?, ?, ?, ?, ?, ?)",
                (item.key, event.seq, row.epoch, event.type, body, names),
            ).lastrowid
            stamp(event, position or 0)
            for name, data in large.items():
                connection.execute("INSERT OR IGNORE INTO blobs (hash, body) VALUES (?, ?)", (name, data))
                connection.execute("INSERT INTO blob_uses (hash, position) VALUES (?, ?)", (name, position))
            if event.type == "run.queued":
                at = (event.run_id, item.key, event.seq)
                connection.execute("INSERT INTO runs (run_id, key, seq) VALUES (?, ?, ?)", at)
        row = replace(row, head=head_of(item.state))
        if snapshots.is_due(row.seq - max(row.kept, row.base_seq), row.kept_size):
            row = replace(row, kept=row.seq, kept_size=snapshots.save(connection, item.state))
        for event in events:
            if isinstance(event, UsageUpdated):
                self._rows.charge(event)
        self._rows.put(item.key, row)

    def _forget(self, connection: sqlite3.Connection, key: str) -> None:
        row = self._rows.get(connection, key)
        kept = "key = ? AND type <> 'usage.updated'"
        uses = f"blob_uses WHERE position IN (SELECT position FROM events WHERE {kept})"
        used = connection.execute(f"SELECT DISTINCT hash FROM {uses}", (key,)).fetchall()
        connection.execute(f"DELETE FROM {uses}", (key,))
        unused = "DELETE FROM blobs WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM blob_uses WHERE blob_uses.hash = blobs.hash)"
        for name in used:
            connection.execute(unused, name)
        connection.execute(f"DELETE FROM events WHERE {kept}", (key,))
        connection.execute("DELETE FROM runs WHERE key = ?", (key,))
        connection.execute("DELETE FROM snapshots WHERE key = ?", (key,))
        # The epoch rises: nothing that an old incarnation still writes comes after it.
        self._rows.put(key, replace(row, epoch=row.epoch + 1, base_seq=row.seq, head=None, kept=0, kept_size=0))

    def _empty_wal(self, connection: sqlite3.Connection) -> None:
        """What was forgotten leaves the WAL too, unless a reader needs it just now: then with a later checkpoint."""
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA busy_timeout = 100")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("PRAGMA busy_timeout = 5000")

    def _connect(self) -> sqlite3.Connection:
        connection = self._writer = self._disk.connect(self.path)
        # FULL, and more until there is a WAL: a power cut must not bring back the journal of the file's first commit, which
        # would roll it back to nothing, and the WAL with it.
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in free pages
        return connection
