"""A journal in a SQLite file: what it has acknowledged outlives the process.

One thread writes. It takes whatever waits, and commits it in one transaction (group commit), each decision in a
savepoint of its own, so that one stale incarnation fails alone. WAL with `synchronous=FULL`: a commit that was
acknowledged survives a power cut. Reading goes through a connection per thread and never waits for the writer.

One process owns the file, by a lock that the operating system drops when it dies.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nitinol.env import Env, Loop
from nitinol.errors import NewerSchema, StorageFailed, StoreInUse
from nitinol.events import EventBase, pack, stamp, unpack
from nitinol.journal.base import Committed, Conflict, Head, Opening
from nitinol.logs import get_logger

SCHEMA = 1
BATCH = 512
"""Decisions in one transaction at most."""

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL,
    UNIQUE (key, seq)
);
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, key TEXT NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (
    key TEXT PRIMARY KEY, agent TEXT NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, open_runs INTEGER NOT NULL,
    parked INTEGER NOT NULL, base_seq INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS heads_open ON heads (key) WHERE open_runs > 0;
"""


@dataclass(slots=True)
class _Head:
    agent: str = ""
    seq: int = 0
    epoch: int = 0
    open_runs: int = 0
    parked: bool = False
    base_seq: int = 0


@dataclass(frozen=True, slots=True)
class _Append:
    key: str
    epoch: int
    events: Sequence[EventBase]
    committed: Committed


@dataclass(frozen=True, slots=True)
class _Open:
    key: str
    opened: Callable[[Opening | Exception], None]


@dataclass(frozen=True, slots=True)
class _Forget:
    key: str


_Item = _Append | _Open | _Forget


class SqliteJournal:
    """See the module. `open` and `append` on the core loop; the rest from any thread.

    Args:
        path: The file; it is made where it does not exist.
        core: Where the callbacks come.

    Raises:
        StoreInUse: Another process owns the file.
        NewerSchema: A newer version wrote it.
        StorageFailed: It is no SQLite file, or cannot be opened.
    """

    durable = True

    def __init__(self, path: Path, env: Env, core: Loop) -> None:
        self.path = path
        self._core = core
        self._lock_file = _own(path)
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._queue: deque[_Item] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._heads: dict[str, _Head] = {}
        try:
            self._writer = self._connect()
            self._prepare()
        except sqlite3.Error as error:
            os.close(self._lock_file)
            raise StorageFailed(f"store {str(path)!r} cannot be opened: {error}") from error
        except BaseException:
            os.close(self._lock_file)
            raise
        self._thread = env.start_thread("nitinol-journal", self._write)

    # -- on the core loop

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        self._put(_Open(key, opened))

    def append(self, key: str, epoch: int, events: Sequence[EventBase], committed: Committed) -> None:
        self._put(_Append(key, epoch, events, committed))

    # -- from any thread

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        rows = self._reader().execute(
            "SELECT position, type, body FROM events WHERE key = ?1 AND seq > max(?2, "
            "coalesce((SELECT base_seq FROM heads WHERE key = ?1), 0)) ORDER BY seq LIMIT ?3",
            (key, after_seq, -1 if limit is None else limit),
        )
        return [_event(*row) for row in rows.fetchall()]

    def scan(self, after: int, limit: int) -> Sequence[EventBase]:
        rows = self._reader().execute(
            "SELECT position, type, body FROM events WHERE position > ? ORDER BY position LIMIT ?", (after, limit)
        )
        return [_event(*row) for row in rows.fetchall()]

    def find_run(self, run_id: str) -> tuple[str, int] | None:
        row = self._reader().execute("SELECT key, seq FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else (row[0], row[1])

    @property
    def position(self) -> int:
        row = self._reader().execute("SELECT max(position) FROM events").fetchone()
        return row[0] or 0

    def head(self, key: str) -> Head | None:
        row = self._reader().execute(f"SELECT {_HEAD} FROM heads WHERE key = ?", (key,)).fetchone()
        return None if row is None else _to_head(*row)

    def heads(self, *, interrupted: bool = False) -> Sequence[Head]:
        where = "WHERE open_runs > 0 AND parked = 0" if interrupted else ""
        rows = self._reader().execute(f"SELECT {_HEAD} FROM heads {where} ORDER BY key")
        return [_to_head(*row) for row in rows.fetchall()]

    def forget(self, key: str) -> None:
        self._put(_Forget(key))

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for reader in self._readers:
            reader.close()
        self._readers.clear()

    # -- the writer's thread

    def _put(self, item: _Item) -> None:
        self._queue.append(item)
        if not self._wake.is_set():
            self._wake.set()

    def _write(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH))]
                outcomes = self._commit(batch)
                self._core.call(_tell, outcomes)
            if self._closing and not self._queue:
                break
        self._writer.close()
        os.close(self._lock_file)

    def _commit(self, batch: Sequence[_Item]) -> list[Callable[[], None]]:
        """Carry out a batch in one transaction; what to tell whom once it is committed."""
        connection = self._writer
        outcomes: list[Callable[[], None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for item in batch:
                if isinstance(item, _Open):
                    outcomes.append(self._take_over(item))
                elif isinstance(item, _Append):
                    outcomes.append(self._append(item))
                else:
                    self._forget(item.key)
            connection.execute("COMMIT")
        except Exception as error:
            get_logger().error("the journal cannot write", path=str(self.path), error=repr(error))
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._heads.clear()  # what they say was not committed
            failure = StorageFailed(f"store {str(self.path)!r} cannot be written: {error}")
            return [_failed(item, failure) for item in batch]
        return outcomes

    def _take_over(self, item: _Open) -> Callable[[], None]:
        head = self._head(item.key)
        head.epoch += 1
        self._save(item.key, head)
        rows = self._writer.execute(
            "SELECT position, type, body FROM events WHERE key = ? AND seq > ? ORDER BY seq", (item.key, head.base_seq)
        ).fetchall()
        opening = Opening(head.epoch, [_event(*row) for row in rows], head.base_seq)
        return lambda: item.opened(opening)

    def _append(self, item: _Append) -> Callable[[], None]:
        head = self._head(item.key)
        events = item.events
        if head.epoch != item.epoch or events[0].seq != head.seq + 1:
            conflict = Conflict(f"agent {item.key!r}: a stale incarnation (epoch {item.epoch}) wrote seq {events[0].seq}")
            return lambda: item.committed(conflict)
        connection = self._writer
        connection.execute("SAVEPOINT decision")
        try:
            self._insert(item, head)
        except sqlite3.IntegrityError as error:
            connection.execute("ROLLBACK TO decision")
            del self._heads[item.key]
            conflict = Conflict(f"agent {item.key!r}: seq {events[0].seq} cannot be written: {error}")
            return lambda: item.committed(conflict)
        finally:
            connection.execute("RELEASE decision")
        return lambda: item.committed(None)

    def _insert(self, item: _Append, head: _Head) -> None:
        connection, events = self._writer, item.events
        for event in events:
            position = connection.execute(
                "INSERT INTO events (key, seq, epoch, type, body) VALUES (?, ?, ?, ?, ?)",
                (item.key, event.seq, item.epoch, event.type, pack(event)),
            ).lastrowid
            stamp(event, position or 0)
            match event.type:
                case "run.queued":
                    row = (event.run_id, item.key, event.seq)
                    connection.execute("INSERT INTO runs (run_id, key, seq) VALUES (?, ?, ?)", row)
                    head.open_runs += 1
                case "run.finished":
                    head.open_runs -= 1
                case "agent.parked":
                    head.parked = True
                case "agent.started":
                    head.parked = False
                case _:
                    pass
        head.agent, head.seq = events[-1].agent, events[-1].seq
        self._save(item.key, head)

    def _forget(self, key: str) -> None:
        head = self._head(key)
        head.base_seq, head.open_runs, head.parked = head.seq, 0, False
        self._writer.execute("DELETE FROM events WHERE key = ? AND type <> 'usage.updated'", (key,))
        self._writer.execute("DELETE FROM runs WHERE key = ?", (key,))
        self._save(key, head)

    def _head(self, key: str) -> _Head:
        head = self._heads.get(key)
        if head is None:
            row = self._writer.execute("SELECT agent, seq, epoch, open_runs, parked, base_seq FROM heads WHERE key = ?", (key,)).fetchone()
            head = self._heads[key] = _Head() if row is None else _Head(*row)
        return head

    def _save(self, key: str, head: _Head) -> None:
        self._writer.execute(
            "INSERT INTO heads (key, agent, seq, epoch, open_runs, parked, base_seq) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET agent = excluded.agent, seq = excluded.seq, epoch = excluded.epoch, "
            "open_runs = excluded.open_runs, parked = excluded.parked, base_seq = excluded.base_seq",
            (key, head.agent, head.seq, head.epoch, head.open_runs, head.parked, head.base_seq),
        )

    # -- connections

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=5.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self) -> None:
        self._writer.executescript(_TABLES)
        self._writer.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
        found = int(self._writer.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()[0])
        if found > SCHEMA:
            raise NewerSchema(f"store {str(self.path)!r} has schema {found}; this version knows {SCHEMA}: upgrade nitinol")

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._readers.append(connection)
        return connection


_HEAD = "key, agent, seq, open_runs, parked"


def _to_head(key: str, agent: str, seq: int, open_runs: int, parked: int) -> Head:
    return Head(key=key, agent=agent, seq=seq, open_runs=open_runs, parked=bool(parked))


def _event(position: int, type: str, body: bytes) -> EventBase:
    event = unpack(type, body)
    stamp(event, position)
    return event


def _tell(outcomes: Sequence[Callable[[], None]]) -> None:
    for outcome in outcomes:
        outcome()


def _failed(item: _Item, error: Exception) -> Callable[[], None]:
    if isinstance(item, _Open):
        return lambda: item.opened(error)
    if isinstance(item, _Append):
        return lambda: item.committed(error)
    return lambda: None


def _own(path: Path) -> int:
    """Take the operating system's lock on the store, which dies with the process."""
    lock_path = path.with_name(path.name + "-lock")
    try:
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageFailed(f"store {str(path)!r} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 32).decode().strip() or "unknown"
        os.close(handle)
        raise StoreInUse(f"store {str(path)!r} is owned by process {owner}; stop it, or open another store") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


