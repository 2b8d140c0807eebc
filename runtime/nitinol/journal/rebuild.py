"""Write anew what stands beside the log of a store, from the log."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from nitinol.journal.migrate import log_of, write_bill, write_head
from nitinol.journal.read_only import ReadOnlyJournal
from nitinol.journal.schema import Disk, LocalDisk, storage_failed


def rebuild(path: Path, disk: Disk | None = None) -> None:
    """Make heads, timers, scopes, runs and the uses of large parts by the log alone; all of them, or none.

    From any thread; it owns the store meanwhile. The log itself stays as it is, with the faults it may have.

    Raises:
        StoreInUse: Somebody owns the store; stop it first.
        StorageFailed: There is no store, or its log cannot be read.
    """
    path = path.resolve()
    ReadOnlyJournal(path, disk).close()  # which says what is no store
    disk = disk or LocalDisk()
    let_go = disk.own(path)
    try:
        with closing(disk.connect(path)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            _rebuild(connection)
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise storage_failed(path, "rebuilt", error) from error
    finally:
        let_go()


def _rebuild(connection: sqlite3.Connection) -> None:
    # Epochs only rise, and what was forgotten is said by nothing else: both are kept where they are known.
    known = {key: (epoch, base) for key, epoch, base in connection.execute("SELECT key, epoch, base_seq FROM heads")}
    for key, epoch, first in connection.execute("SELECT key, max(epoch), min(seq) FROM events GROUP BY key"):
        before = known.setdefault(key, (epoch, first - 1))
        known[key] = (max(epoch, before[0]), before[1])
    for table in ("heads", "snapshots", "timers", "scopes", "runs", "blob_uses"):  # snapshots come as agents write
        connection.execute(f"DELETE FROM {table}")
    for key, (epoch, base) in known.items():
        write_head(connection, key, epoch, base)
        runs = [(event.run_id, key, event.seq) for event in log_of(connection, key, base) if event.type == "run.queued"]
        connection.executemany("INSERT OR IGNORE INTO runs (run_id, key, seq) VALUES (?, ?, ?)", runs)
    write_bill(connection)
    for position, names in connection.execute("SELECT position, blobs FROM events WHERE blobs IS NOT NULL").fetchall():
        uses = [(name, position) for name in names.split(" ")]
        connection.executemany("INSERT INTO blob_uses (hash, position) VALUES (?, ?)", uses)
    connection.execute("DELETE FROM blobs WHERE hash NOT IN (SELECT hash FROM blob_uses)")
