"""The tables of a store, what a failure of SQLite means to a person, and where its file lies."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nitinol.env import disown_in_child
from nitinol.errors import NewerSchema, StorageFailed, StoreInUse
from nitinol.journal.owner import own

SCHEMA = 3
FORK = 5.0
"""Seconds that a fork waits for other threads to leave SQLite; a commit may have to wait for a disk."""

# No feature newer than SQLite 3.37. `heads`, `snapshots`, `timers` and `scopes` say nothing that `events` does not: `verify` rebuilds them.
TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL, blobs TEXT,
    UNIQUE (key, seq)
);
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, key TEXT NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (
    key TEXT PRIMARY KEY, epoch INTEGER NOT NULL, base_seq INTEGER NOT NULL, seq INTEGER NOT NULL, agent TEXT NOT NULL,
    state TEXT NOT NULL, run_id TEXT, open_runs INTEGER NOT NULL, active INTEGER NOT NULL, usage TEXT NOT NULL, cost TEXT,
    messages INTEGER NOT NULL, started_at INTEGER NOT NULL, last_event_at INTEGER NOT NULL, reserved TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS heads_active ON heads (key) WHERE active;
CREATE INDEX IF NOT EXISTS heads_reserved ON heads (key) WHERE reserved IS NOT NULL;
CREATE TABLE IF NOT EXISTS snapshots (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, fold INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS timers (key TEXT PRIMARY KEY, due INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS timers_due ON timers (due);
CREATE TABLE IF NOT EXISTS scopes (
    scope TEXT NOT NULL, name TEXT NOT NULL, usage TEXT NOT NULL, cost TEXT NOT NULL, unpriced INTEGER NOT NULL,
    PRIMARY KEY (scope, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blobs (hash TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blob_uses (hash TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (hash, position)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS blob_uses_position ON blob_uses (position);
"""


class Disk(Protocol):
    """Where the file of a store lies. A simulator gives another than the operating system's."""

    def own(self, path: Path) -> Callable[[], None]:
        """Become the owner of a store; returns how to let go of it. Raises `StoreInUse`."""
        ...

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        """A connection, for any thread, one at a time."""
        ...


class LocalDisk:
    """A file of the operating system's."""

    def own(self, path: Path) -> Callable[[], None]:
        return own(path)

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        in_sqlite.check(path)
        if read_only:
            # Not `mode=rw`: the last one to leave a WAL behind would write it back into the file.
            connection = sqlite3.connect(
                f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False, factory=_Connection
            )
            connection.execute("PRAGMA query_only = ON")
        else:
            connection = sqlite3.connect(
                path, timeout=5.0, isolation_level=None, check_same_thread=False, factory=_Connection
            )
        in_sqlite.opened(path, connection)
        return connection


class _Connection(sqlite3.Connection):
    """One that may be referred to weakly."""


class _Connections:
    """The connections of this process, which the child of a fork must neither use nor close.

    SQLite keeps one book of the locks of a process. The child has a copy of its parent's, which says that it holds what
    it does not: to close a connection there, or to open the same file, may damage the file. And it has mutexes of its own,
    which nobody releases in the child if another thread held one: so a fork waits until no thread is in SQLite.

    As a context: around all that a thread does with a connection. Not within itself.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakKeyDictionary[sqlite3.Connection, Path] = weakref.WeakKeyDictionary()
        self._parents: set[Path] = set()
        self._changed = threading.Condition(threading.Lock())
        self._busy = 0
        """Threads that are in SQLite."""
        self._forks = 0
        """Threads that are about to fork."""
        disown_in_child(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._hold_still, after_in_parent=self._go_on)

    def __enter__(self) -> None:
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._busy += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._busy -= 1
            if self._forks:
                self._changed.notify_all()

    def _hold_still(self) -> None:
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: not self._busy, FORK)

    def _go_on(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def opened(self, path: Path, connection: sqlite3.Connection) -> None:
        self._open[connection] = path

    def check(self, path: Path) -> None:
        """Raise `StoreInUse` for a file that was open when this process was forked."""
        if path in self._parents:
            raise StoreInUse(
                f"store {str(path)!r} was open in the process that this one was forked from, and SQLite forbids a child to"
                " open it again; fork before you open it, or start the process anew (multiprocessing's 'spawn')"
            )

    def disown(self) -> None:
        self._changed, self._busy, self._forks = threading.Condition(threading.Lock()), 0, 0
        for connection, path in list(self._open.items()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # nothing ever closes it, not even the end
            self._parents.add(path)
        self._open.clear()


in_sqlite = _Connections()


def found_schema(connection: sqlite3.Connection, path: Path) -> int | None:
    """The version of a store; `None` where the file is new.

    Raises:
        NewerSchema: This version of the library does not know it.
    """
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is None:
        return None
    row = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if row is None:
        return None
    if int(row[0]) > SCHEMA:
        raise NewerSchema(f"store {str(path)!r} has schema {row[0]}; this version knows {SCHEMA}: upgrade nitinol")
    return int(row[0])


def storage_failed(path: Path, what: str, error: Exception) -> StorageFailed:
    """The error of a store that cannot be `opened`, `read` or `written`, with what a person can do about it."""
    return StorageFailed(f"store {str(path)!r} cannot be {what}: {error}; {way_out(error)}")


def is_damaged(error: BaseException) -> bool:
    """Whether the file itself is wrong, and not its disk or its use: another look would find the same."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def way_out(error: BaseException) -> str:
    """What a person can do about an error of SQLite's."""
    code = _code(error)
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
