"""A disk in memory under a real SQLite: it forgets what was not synced when the power fails, tears, fills up and fails.

A `Platter` is what lies on the disk, and survives lives. A `SimDisk` is a life's way to it: once its life is over, what
is still written through it goes nowhere. SQLite sees it as a VFS, by `apsw`; the journal sees `sqlite3`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Literal, cast

import apsw

from nitinol.errors import StoreInUse

SECTOR = 512

Fault = Literal["full", "write", "sync", "read"]


@dataclass(slots=True, eq=False)
class Inode:
    """A file: what is read from it, and what of that a power cut leaves."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list[tuple[int, "bytes | None"]])
    """Since the last sync: data and where it was written; `None`: cut there."""

    def change(self, offset: int, data: bytes | None) -> None:
        """Write, or cut."""
        _change(self.content, offset, data)
        self.pending.append((offset, data))

    def sync(self) -> None:
        """From now on it is safe."""
        for offset, data in self.pending:
            _change(self.durable, offset, data)
        self.pending.clear()

    def lose_power(self, random: Random) -> None:
        """Some of what was not synced is there, some is not, and some of it half."""
        kept = random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for offset, data in self.pending:
            if random.random() < kept:
                _change(self.durable, offset, data)
            elif data is not None and random.random() < 0.3:
                for at in range(0, len(data), SECTOR):
                    if random.random() < 0.5:
                        _change(self.durable, offset + at, data[at : at + SECTOR])
        self.pending.clear()
        self.content = bytearray(self.durable)


class Platter:
    """Files by name, as they are seen, and as they will be after a power cut."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}

    def lose_power(self, random: Random) -> None:
        """A name that was made or removed without a sync is there or not."""
        for name in list({**self.durable, **self.names}):
            seen, safe = self.names.get(name), self.durable.get(name)
            left = seen if seen is safe or random.random() < 0.5 else safe
            if left is None:
                self.names.pop(name, None)
            else:
                self.names[name] = left
                left.lose_power(random)
        self.durable = dict(self.names)


class SimDisk:
    """The `Disk` of a life.

    Args:
        platter: What lies on it.
        checkpoint: Pages after which SQLite moves the log into the file.
        synchronous: Overrides what the journal asks for; for a planted bug.
    """

    def __init__(self, platter: Platter, checkpoint: int = 1000, synchronous: str | None = None) -> None:
        self.platter = platter
        self.checkpoint, self.synchronous = checkpoint, synchronous
        self.dead = False
        """Its life is over: nothing that is written arrives."""
        self.fault: Fault | None = None
        self.faults = 0
        """How often something failed."""
        self.operations_left: int | None = None
        """Writes and syncs until `dying` is called, in the middle of whatever goes on."""
        self.dying: Callable[[], object] = self.die
        self.failing_in: int | None = None
        """Operations until `failing` is called, which begins a fault in the middle of something."""
        self.failing: Callable[[], object] = self.die
        self._owned = False
        self._number = next(_numbers)
        self._connection: Any = None
        """An `apsw.Connection`, whose types pyright knows only in part."""
        self._pages = self._users = 0

    # -- Disk

    def own(self, path: Path) -> Callable[[], None]:
        if self._owned:
            raise StoreInUse(f"store {str(path)!r} is owned by this process")
        self._owned = True
        return partial(setattr, self, "_owned", False)

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        self._users += 1
        return cast("sqlite3.Connection", _Connection(self, path.name))

    def leave(self) -> None:
        """One of those who share the connection is done with it: the last one closes it.

        A writer that gives up while readers are there leaves SQLite's index of its log alive, as it does with
        connections of their own: what it could not commit is undone, although it may be in the file.
        """
        self._users -= 1
        if not self._users:
            self.close()
        elif self._connection is not None and self._connection.in_transaction:
            with suppress(apsw.Error):
                self._connection.execute("ROLLBACK")

    # -- the rest is for the life, and for SQLite

    def connection(self, name: str) -> Any:
        """The one connection that all share: one thread, and no transaction outlives a call."""
        if self._connection is None:
            _disks[self._number] = self
            connection: Any = apsw.Connection(f"/{self._number}/{name}", vfs=_vfs().name)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.wal_autocheckpoint(0)  # see `settle`
            connection.set_wal_hook(self._count_pages)
            self._connection = connection
        return self._connection

    def settle(self) -> None:
        """As SQLite does by itself after a commit, but so that a failure of it stays its own: `apsw` would raise it."""
        if self._connection is not None and self._pages >= self.checkpoint:
            self._pages = 0
            with suppress(apsw.Error):
                self._connection.wal_checkpoint()

    def _count_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._pages = pages
        return int(apsw.SQLITE_OK)

    def close(self) -> None:
        """Close the connection, whatever that does to the files."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(apsw.Error):  # SQLite's own way is to close in any case
                connection.close(True)

    def die(self) -> None:
        """The life is over."""
        self.dead = True

    def bury(self) -> None:
        """Nobody uses it any more."""
        self.close()
        _disks.pop(self._number, None)

    def check(self, *faults: Fault) -> None:
        """Fail, if it fails at that; die, if it is to die at this operation."""
        if self.operations_left is not None and faults != ("read",):
            self.operations_left -= 1
            if not self.operations_left:
                self.dying()
        if self.failing_in is not None:
            self.failing_in -= 1
            if not self.failing_in:
                self.failing()
        if self.fault in faults and not self.dead:
            self.faults += 1
            full = self.fault == "full"
            raise (apsw.FullError if full else apsw.IOError)(
                f"the simulated disk {'is' if full else 'cannot'} {self.fault}"
            )


class _Connection:
    """As much of a `sqlite3.Connection` as the journal uses."""

    def __init__(self, disk: SimDisk, name: str) -> None:
        self._disk, self._name = disk, name

    def execute(self, query: str, values: Sequence[Any] = ()) -> _Rows:
        disk = self._disk
        if disk.synchronous is not None and query.startswith("PRAGMA synchronous"):
            query = f"PRAGMA synchronous = {disk.synchronous}"
        try:
            connection = disk.connection(self._name)
            rows = connection.execute(query, values).fetchall()
            if query == "COMMIT":
                disk.settle()
        except apsw.Error as error:
            raise _translated(error) from None
        return _Rows(rows, connection.last_insert_rowid())

    def close(self) -> None:
        self._disk.leave()


class _Rows:
    """As much of a `sqlite3.Cursor`: all rows, at once."""

    def __init__(self, rows: list[Any], lastrowid: int) -> None:
        self.lastrowid = lastrowid
        self._rows = iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)


def _translated(error: apsw.Error) -> sqlite3.Error:
    kind = next((kind for theirs, kind in _KINDS.items() if isinstance(error, theirs)), sqlite3.OperationalError)
    translated = kind(str(error))
    translated.sqlite_errorcode = _CODES.get(type(error), 1)
    return translated


_KINDS: dict[type[apsw.Error], type[sqlite3.Error]] = {
    apsw.ConstraintError: sqlite3.IntegrityError,
    apsw.MismatchError: sqlite3.IntegrityError,
    apsw.CorruptError: sqlite3.DatabaseError,
    apsw.NotADBError: sqlite3.DatabaseError,
    apsw.TooBigError: sqlite3.DataError,
    apsw.InternalError: sqlite3.InternalError,
    apsw.MisuseError: sqlite3.InterfaceError,
}
_CODES = {type(apsw.exception_for(code)): code for code in range(1, 27)}


class _Handle:
    """A file that SQLite has open."""

    def __init__(self, disk: SimDisk, name: str, inode: Inode, fresh: bool) -> None:
        self._disk, self._name, self._inode = disk, name, inode
        self._fresh = fresh
        """Its first sync is one of the directory too, as SQLite does for its logs."""

    def xRead(self, amount: int, offset: int) -> bytes:
        self._disk.check("read")
        return bytes(self._inode.content[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        disk = self._disk
        grows = offset + len(data) > len(self._inode.content)
        disk.check("write", *(("full",) if grows else ()))  # what is there can be written over
        if not disk.dead:
            self._inode.change(offset, bytes(data))

    def xTruncate(self, size: int) -> None:
        self._disk.check("write")
        if not self._disk.dead:
            self._inode.change(size, None)

    def xSync(self, flags: int) -> None:
        self._disk.check("sync")
        platter = self._disk.platter
        if not self._disk.dead:
            self._inode.sync()
            if self._fresh:
                platter.durable = dict(platter.names)
                self._fresh = False
            elif platter.names.get(self._name) is self._inode:
                platter.durable[self._name] = self._inode

    def xFileSize(self) -> int:
        return len(self._inode.content)

    def xLock(self, level: int) -> None:
        """There is one connection."""

    def xUnlock(self, level: int) -> None:
        """There is one connection."""

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, ptr: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return SECTOR

    def xDeviceCharacteristics(self) -> int:
        return int(apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE)

    def xClose(self) -> None:
        """Nothing to do."""


class _Vfs(apsw.VFS):
    """SQLite's way to the disks: a name is `/number of the disk/name of the file`."""

    name = "nitinol-simulation"

    def __init__(self) -> None:
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        disk, file = _find(name if isinstance(name, str) else name.filename())
        inode = disk.platter.names.get(file)
        logs = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        fresh = inode is None and bool(flags[0] & logs)
        if inode is None:
            disk.check("write", "full")
            inode = Inode()
            if not disk.dead:
                disk.platter.names[file] = inode
        flags[1] = flags[0]
        return _Handle(disk, file, inode, fresh)

    def xAccess(self, pathname: str, flags: int) -> bool:
        disk, file = _find(pathname)
        return file in disk.platter.names

    def xDelete(self, filename: str, syncdir: bool) -> None:
        disk, file = _find(filename)
        disk.check("write")
        if not disk.dead:
            disk.platter.names.pop(file, None)
            if syncdir:
                disk.platter.durable.pop(file, None)

    def xFullPathname(self, name: str) -> str:
        return name


_numbers = count(1)
_disks: dict[int, SimDisk] = {}
_registered: list[_Vfs] = []


def _vfs() -> _Vfs:
    if not _registered:
        _registered.append(_Vfs())
    return _registered[0]


def _find(path: str) -> tuple[SimDisk, str]:
    _, number, name = path.split("/", 2)
    return _disks[int(number)], name


def _change(image: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del image[offset:]
        return
    if len(image) < offset:
        image.extend(bytes(offset - len(image)))
    image[offset : offset + len(data)] = data
