"""Make the tables of a store, or bring those of an older version up to date; rebuild what is derived from the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from nitinol.errors import NitinolError
from nitinol.events import EventBase, UsageUpdated
from nitinol.journal.base import Head, head_of
from nitinol.journal.bill import sum_of
from nitinol.journal.reader import SELECT_EVENT, to_events
from nitinol.journal.rows import Row, save_due, save_row, save_spent
from nitinol.journal.schema import SCHEMA, TABLES, found_schema
from nitinol.state import AgentState


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make what is not there. On the writer's connection, before anything is written.

    Raises:
        NewerSchema: A newer version wrote the store.
    """
    found = found_schema(connection, path)
    if found == SCHEMA:
        return
    connection.execute("BEGIN IMMEDIATE")
    epochs: dict[str, tuple[int, int]] = {}
    if found is not None:
        old = (
            f"SELECT key, epoch, base_seq FROM heads{' WHERE active' if found > 1 else ''}"  # the rest reserve nothing
        )
        epochs = {key: (epoch, base) for key, epoch, base in connection.execute(old)}
    if found == 1:
        connection.execute("DROP TABLE heads")
        connection.execute("ALTER TABLE events ADD COLUMN blobs TEXT")
    elif found == 2:
        connection.execute("ALTER TABLE heads ADD COLUMN reserved TEXT")
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    for key, (epoch, base_seq) in epochs.items():
        write_head(connection, key, epoch, base_seq)
    if found == 1:
        write_bill(connection)
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('schema', ?)", (str(SCHEMA),))
    connection.execute("COMMIT")


def log_of(connection: sqlite3.Connection, key: str, base_seq: int) -> list[EventBase]:
    """The events of a key behind what was forgotten."""
    return to_events(
        connection, connection.execute(f"{SELECT_EVENT} WHERE key = ? AND seq > ? ORDER BY seq", (key, base_seq))
    )


def rebuild_head(connection: sqlite3.Connection, key: str, base_seq: int) -> Head | None:
    """The head of a key by its log alone. A log that cannot be folded is opened by hand, or never."""
    events = log_of(connection, key, base_seq)
    if not events:
        return None
    try:
        return head_of(AgentState(key, events[-1].agent, seq=base_seq).fold(events))
    except NitinolError:
        last = events[-1]
        return Head(
            key=key, agent=last.agent, seq=last.seq, state="idle", run_id=None, open_runs=0, active=False, due=None
        )


def write_head(connection: sqlite3.Connection, key: str, epoch: int, base_seq: int) -> None:
    """Write the head and the timer of a key anew."""
    head = rebuild_head(connection, key, base_seq)
    save_row(connection, key, Row(epoch, base_seq, head))
    save_due(connection, key, None if head is None else head.due)


def bill_of(connection: sqlite3.Connection) -> Iterator[UsageUpdated]:
    """Every row of the bill, of forgotten agents too."""
    rows = connection.execute(f"{SELECT_EVENT} WHERE type = 'usage.updated' ORDER BY position")
    return (cast("UsageUpdated", event) for event in to_events(connection, rows))


def write_bill(connection: sqlite3.Connection) -> None:
    """Write the sums of the bill anew."""
    for at, spent in sum_of(bill_of(connection)).items():
        save_spent(connection, at, spent)
