"""A journal in a SQLite file: what it has acknowledged outlives the process.

One thread writes. It takes whatever waits, and commits it in one transaction (group commit), each decision in a
savepoint of its own, so that what is wrong with one fails that one alone. WAL with `synchronous=FULL`: a commit that
was acknowledged survives a power cut. Readers share a few connections of their own and never wait for the writer.

One process owns the file, by a lock that the operating system drops when it dies.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from nitinol.env import Env, Loop
from nitinol.errors import NewerSchema, NitinolError, StorageFailed, StoreInUse
from nitinol.events import EventBase, pack, stamp, unpack
from nitinol.journal.base import Committed, Conflict, Head, Opening
from nitinol.logs import get_logger
from nitinol.state import BrokenLog

SCHEMA = 1
BATCH = 512
"""Decisions in one transaction at most."""
OPENINGS = 16
"""Logs that one transaction reads at most: ten thousand agents that come back must not keep one decision waiting."""
NAMING = 1.0
"""Seconds to find out who owns a store; an owner writes its name right after it took the lock."""

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
    forgotten: Committed


_Item = _Append | _Open | _Forget
Outcome = Callable[[], None]


class SqliteJournal:
    """See the module. `open`, `append` and `forget` on the core loop; the rest from any thread.

    Args:
        path: The file; it is made where it does not exist.
        core: Where the callbacks come.

    Raises:
        StoreInUse: Another process owns the file, or this one by another journal.
        NewerSchema: A newer version wrote it.
        StorageFailed: It is no SQLite file, or cannot be opened.
    """

    durable = True

    def __init__(self, path: Path, env: Env, core: Loop) -> None:
        self.path = path = path.resolve()  # a link to a store is that store
        self._core = core
        self._queue: deque[_Item] = deque()
        self._openings: dict[str, list[_Item]] = {}
        """Keys whose opening waits, with what came for them since: the order of calls holds for each key."""
        self._wake = threading.Event()
        self._closing = False
        self._heads: dict[str, _Head] = {}
        self._idle_readers: deque[sqlite3.Connection] = deque()
        self._lock_file = _own(path)
        self._writer: sqlite3.Connection | None = None
        try:
            self._prepare(self._connect())
        except BaseException as error:
            self._let_go()
            if isinstance(error, sqlite3.Error):
                raise StorageFailed(f"store {str(path)!r} cannot be opened: {error}; {_way_out(error)}") from error
            raise
        self._thread = env.start_thread("nitinol-journal", self._write)

    # -- on the core loop

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        self._put(_Open(key, opened))

    def append(self, key: str, epoch: int, events: Sequence[EventBase], committed: Committed) -> None:
        self._put(_Append(key, epoch, events, committed))

    def forget(self, key: str, forgotten: Committed) -> None:
        self._put(_Forget(key, forgotten))

    # -- from any thread

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        rows = self._select(
            "SELECT position, type, body FROM events WHERE key = ? AND seq > max(?, "
            "coalesce((SELECT base_seq FROM heads WHERE key = ?), 0)) ORDER BY seq LIMIT ?",
            (key, after_seq, key, -1 if limit is None else limit),
        )
        return [_event(*row) for row in rows]

    def scan(self, after: int, limit: int) -> Sequence[EventBase]:
        select = "SELECT position, type, body FROM events WHERE position > ? ORDER BY position LIMIT ?"
        return [_event(*row) for row in self._select(select, (after, limit))]

    def find_run(self, run_id: str) -> tuple[str, int] | None:
        rows = self._select("SELECT key, seq FROM runs WHERE run_id = ?", (run_id,))
        return (rows[0][0], rows[0][1]) if rows else None

    @property
    def position(self) -> int:
        rows = self._select(
            "SELECT seq FROM sqlite_sequence WHERE name = 'events'"
        )  # max() falls with what is forgotten
        return rows[0][0] if rows else 0

    def head(self, key: str) -> Head | None:
        rows = self._select(f"SELECT {_HEAD} FROM heads WHERE key = ? AND seq > base_seq", (key,))
        return _to_head(*rows[0]) if rows else None

    def heads(self, *, interrupted: bool = False) -> Sequence[Head]:
        where = "open_runs > 0 AND parked = 0" if interrupted else "seq > base_seq"
        return [_to_head(*row) for row in self._select(f"SELECT {_HEAD} FROM heads WHERE {where} ORDER BY key")]

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _select(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._reader() as reader:
                return reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StorageFailed(f"store {str(self.path)!r} cannot be read: {error}; {_way_out(error)}") from error
        except UnicodeEncodeError:  # a name that no store holds
            return []

    @contextmanager
    def _reader(self) -> Generator[sqlite3.Connection, None, None]:
        """A connection for one query; as many exist as ever read at the same time. Also after `close`."""
        try:
            connection = self._idle_readers.pop()
        except IndexError:
            connection = sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True, check_same_thread=False)
            connection.execute("PRAGMA query_only = ON")
        try:
            yield connection
        finally:
            self._idle_readers.append(connection)
            if self._closing:
                self._close_readers()

    def _close_readers(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle_readers.pop().close()

    # -- the writer's thread

    def _put(self, item: _Item) -> None:
        self._queue.append(item)
        if not self._wake.is_set():
            self._wake.set()

    def _write(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue or self._openings:
                for outcome in self._commit(self._next_batch()):
                    self._core.call(outcome)
            if self._closing and not (self._queue or self._openings):
                break
        self._let_go()

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

    def _let_go(self) -> None:
        """Close what is open, the lock last: from then on the store may be another's."""
        self._close_readers()
        if self._writer is not None:
            self._writer.close()
        os.close(self._lock_file)

    def _commit(self, batch: Sequence[_Item]) -> list[Outcome]:
        """Carry out a batch in one transaction; what to tell whom once it is committed."""
        try:
            connection = self._writer or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._carry_out(connection, item) for item in batch]
            connection.execute("COMMIT")
        except Exception as error:
            get_logger().error("the journal cannot write", path=str(self.path), error=repr(error))
            # Nothing of the batch is committed, nor is anything that these say. What failed is not used again.
            self._heads.clear()
            if self._writer is not None:
                with suppress(sqlite3.Error):
                    self._writer.close()
                self._writer = None
            failure = StorageFailed(f"store {str(self.path)!r} cannot be written: {error}; {_way_out(error)}")
            return [_failed(item, failure) for item in batch]
        return outcomes

    def _carry_out(self, connection: sqlite3.Connection, item: _Item) -> Outcome:
        connection.execute("SAVEPOINT item")
        try:
            if isinstance(item, _Open):
                outcome: Outcome = partial(item.opened, self._take_over(connection, item.key))
            elif isinstance(item, _Append):
                self._append(connection, item)
                outcome = partial(item.committed, None)
            else:
                self._forget(connection, item.key)
                outcome = partial(item.forgotten, None)
        except (sqlite3.OperationalError, sqlite3.InternalError):
            raise  # the store fails, not the item; it may have rolled back everything
        except Exception as error:
            connection.execute("ROLLBACK TO item")
            self._heads.pop(item.key, None)
            known = isinstance(error, NitinolError)
            outcome = _failed(item, error if known else Conflict(f"agent {item.key!r} cannot be written: {error}"))
        connection.execute("RELEASE item")
        return outcome

    def _take_over(self, connection: sqlite3.Connection, key: str) -> Opening:
        head = self._head(connection, key)
        head.epoch += 1
        self._save(connection, key, head)
        select = "SELECT position, type, body FROM events WHERE key = ? AND seq > ? ORDER BY seq"
        events = [_event(*row) for row in connection.execute(select, (key, head.base_seq))]
        if (events[-1].seq if events else head.base_seq) != head.seq:
            raise BrokenLog(f"agent {key!r}: its log should end with event {head.seq}, which cannot be read")
        return Opening(head.epoch, events, head.base_seq)

    def _append(self, connection: sqlite3.Connection, item: _Append) -> None:
        head, events = self._head(connection, item.key), item.events
        if head.epoch != item.epoch or events[0].seq != head.seq + 1:
            raise Conflict(f"agent {item.key!r}: a stale incarnation (epoch {item.epoch}) wrote seq {events[0].seq}")
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
        self._save(connection, item.key, head)

    def _forget(self, connection: sqlite3.Connection, key: str) -> None:
        head = self._head(connection, key)
        head.base_seq, head.open_runs, head.parked = head.seq, 0, False
        head.epoch += 1  # nothing that an old incarnation still writes comes after it
        connection.execute("DELETE FROM events WHERE key = ? AND type <> 'usage.updated'", (key,))
        connection.execute("DELETE FROM runs WHERE key = ?", (key,))
        self._save(connection, key, head)

    def _head(self, connection: sqlite3.Connection, key: str) -> _Head:
        head = self._heads.get(key)
        if head is None:
            select = "SELECT agent, seq, epoch, open_runs, parked, base_seq FROM heads WHERE key = ?"
            row = connection.execute(select, (key,)).fetchone()
            head = self._heads[key] = _Head() if row is None else _Head(*row)
        return head

    def _save(self, connection: sqlite3.Connection, key: str, head: _Head) -> None:
        connection.execute(
            "INSERT INTO heads (key, agent, seq, epoch, open_runs, parked, base_seq) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET agent = excluded.agent, seq = excluded.seq, epoch = excluded.epoch, "
            "open_runs = excluded.open_runs, parked = excluded.parked, base_seq = excluded.base_seq",
            (key, head.agent, head.seq, head.epoch, head.open_runs, head.parked, head.base_seq),
        )

    def _connect(self) -> sqlite3.Connection:
        connection = self._writer = sqlite3.connect(
            self.path, timeout=5.0, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is not None:
            found = int(connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()[0])
            if found > SCHEMA:
                raise NewerSchema(
                    f"store {str(self.path)!r} has schema {found}; this version knows {SCHEMA}: upgrade nitinol"
                )
        connection.executescript(f"BEGIN; {_TABLES} INSERT OR IGNORE INTO meta VALUES ('schema', '{SCHEMA}'); COMMIT;")


_HEAD = "key, agent, seq, open_runs, parked"


def _to_head(key: str, agent: str, seq: int, open_runs: int, parked: int) -> Head:
    return Head(key=key, agent=agent, seq=seq, open_runs=open_runs, parked=bool(parked))


def _event(position: int, type: str, body: bytes) -> EventBase:
    event = unpack(type, body)
    stamp(event, position)
    return event


def _failed(item: _Item, error: Exception) -> Outcome:
    if isinstance(item, _Open):
        return partial(item.opened, error)
    return partial(item.committed if isinstance(item, _Append) else item.forgotten, error)


def _way_out(error: Exception) -> str:
    """What a person can do about it."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    return _WAYS_OUT.get(code, "look at its disk and its permissions")


_WAYS_OUT = {
    sqlite3.SQLITE_NOTADB: "give the path of a store, or of a file that does not exist yet",
    sqlite3.SQLITE_CORRUPT: "restore it from a backup, or mend it with sqlite3's .recover",
    sqlite3.SQLITE_FULL: "make room on its disk",
    sqlite3.SQLITE_IOERR: "see that its disk works and has room",
    sqlite3.SQLITE_BUSY: "close the program that holds it locked",
    sqlite3.SQLITE_READONLY: "give this process the right to write it, and its directory",
    sqlite3.SQLITE_CANTOPEN: "give the path of a file in a directory that this process may write",
}


def _own(path: Path) -> int:
    """Take the operating system's lock on the store, which dies with the process; the lock file says whose it is."""
    lock_path = path.with_name(path.name + "-lock")
    try:
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        way_out = (
            "make its directory first"
            if isinstance(error, FileNotFoundError)
            else "see that its directory can be written"
        )
        raise StorageFailed(f"store {str(path)!r} cannot be opened: {error.strerror}; {way_out}") from error
    until = time.monotonic() + NAMING
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            owner = os.pread(handle, 32, 0).decode().strip()
        # The name may be that of the owner before: the new one is about to write its own.
        known = owner.isdigit() and _lives(int(owner))
        if known or time.monotonic() >= until:
            os.close(handle)
            name = f"process {owner}" if known else "a process that does not say its name"
            raise StoreInUse(f"store {str(path)!r} is owned by {name}; stop it, or open another store")
        time.sleep(0.001)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
