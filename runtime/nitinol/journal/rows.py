"""What stands beside the log, derived from it: heads, timers and scopes. Written in the transaction of the events."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from nitinol import events as ev
from nitinol.journal.base import Head
from nitinol.usage import NO_USAGE, Usage

KNOWN = 20_000
"""Rows that the writer remembers; those beyond are read again."""

_HEAD = "key, agent, seq, state, run_id, open_runs, active, usage, cost, messages, started_at, last_event_at"
SELECT_HEAD = f"SELECT {_HEAD}, due FROM heads LEFT JOIN timers USING (key)"
"""Gives what `to_head` takes."""
SELECT_ROW = f"SELECT epoch, base_seq, {_HEAD}, due FROM heads LEFT JOIN timers USING (key)"
"""Gives what `to_row` takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """A key, as the writer knows it."""

    epoch: int = 0
    base_seq: int = 0
    """Events up to it were forgotten."""
    head: Head | None = None
    """`None` before its first event."""

    @property
    def seq(self) -> int:
        return self.base_seq if self.head is None else self.head.seq


@dataclass(frozen=True, slots=True)
class Spent:
    """A sum of rows of the bill."""

    usage: Usage = NO_USAGE
    cost: Decimal = Decimal(0)
    """US dollars, of the rows that have a price."""
    unpriced: int = 0
    """Rows whose cost is not known."""

    def plus(self, row: ev.UsageUpdated) -> Spent:
        """With one more row."""
        cost = Decimal(0) if row.cost is None else row.cost
        return Spent(self.usage + row.usage, self.cost + cost, self.unpriced + (row.cost is None))


def scopes_of(row: ev.UsageUpdated) -> tuple[tuple[str, str], ...]:
    """Where a row of the bill counts: (scope, name)."""
    day = f"{datetime.fromtimestamp(row.ts / 1e9, UTC):%Y-%m-%d}"
    return ("agent", row.agent), ("day", day), ("key", row.key), ("model", f"{row.provider}:{row.model}")


class Rows:
    """The rows of a store, in the writer's thread: read when they are needed, written once for each transaction."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._due: dict[str, int | None] = {}
        """The timers as they are in the store."""
        self._spent: dict[tuple[str, str], Spent] = {}
        self._changed: set[str] = set()
        self._charged: set[tuple[str, str]] = set()

    def get(self, connection: sqlite3.Connection, key: str) -> Row:
        """A key's row."""
        row = self._rows.get(key)
        if row is None:
            found = connection.execute(f"{SELECT_ROW} WHERE key = ?", (key,)).fetchone()
            row = Row() if found is None else to_row(*found)
            self._rows[key] = row
            self._due[key] = None if row.head is None else row.head.due
        return row

    def put(self, key: str, row: Row) -> None:
        """Change a key's row."""
        self._rows[key] = row
        self._changed.add(key)

    def charge(self, connection: sqlite3.Connection, row: ev.UsageUpdated) -> None:
        """Count a row of the bill in its scopes."""
        charged: dict[tuple[str, str], Spent] = {}
        for at in scopes_of(row):
            spent = self._spent.get(at)
            if spent is None:
                select = "SELECT usage, cost, unpriced FROM scopes WHERE scope = ? AND name = ?"
                found = connection.execute(select, at).fetchone()
                spent = Spent() if found is None else to_spent(*found)
            charged[at] = spent.plus(row)
        self._spent.update(charged)
        self._charged.update(charged)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what has changed, before the transaction is committed."""
        for key in self._changed:
            row = self._rows[key]
            save_row(connection, key, row)
            due = None if row.head is None else row.head.due
            if due != self._due[key]:
                save_due(connection, key, due)
                self._due[key] = due
        for at in self._charged:
            save_spent(connection, at, self._spent[at])
        self._changed.clear()
        self._charged.clear()
        if len(self._rows) + len(self._spent) > KNOWN:
            self.clear()

    def clear(self) -> None:
        """Know nothing: the transaction failed."""
        for known in (self._rows, self._due, self._spent, self._changed, self._charged):
            known.clear()


def save_row(connection: sqlite3.Connection, key: str, row: Row) -> None:
    """Write a key's head."""
    head = row.head
    if head is None:
        head = Head(key=key, agent="", seq=row.base_seq, state="idle", run_id=None, open_runs=0, active=False, due=None)
    cost = None if head.cost is None else str(head.cost)
    connection.execute(
        f"INSERT OR REPLACE INTO heads (epoch, base_seq, {_HEAD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.epoch, row.base_seq, key, head.agent, head.seq, head.state, head.run_id, head.open_runs, head.active,
            _usage().dump_json(head.usage, exclude_defaults=True).decode(), cost, head.messages, head.started_at,
            head.last_event_at,
        ),
    )  # fmt: skip


def save_due(connection: sqlite3.Connection, key: str, due: int | None) -> None:
    """Write a key's timer."""
    if due is None:
        connection.execute("DELETE FROM timers WHERE key = ?", (key,))
    else:
        connection.execute("INSERT OR REPLACE INTO timers (key, due) VALUES (?, ?)", (key, due))


def save_spent(connection: sqlite3.Connection, at: tuple[str, str], spent: Spent) -> None:
    """Write a scope's sum."""
    usage = _usage().dump_json(spent.usage, exclude_defaults=True).decode()
    connection.execute(
        "INSERT OR REPLACE INTO scopes (scope, name, usage, cost, unpriced) VALUES (?, ?, ?, ?, ?)",
        (*at, usage, str(spent.cost), spent.unpriced),
    )


def to_row(epoch: int, base_seq: int, *head: Any) -> Row:
    """What `SELECT_ROW` gives as a `Row`."""
    known = to_head(*head)
    return Row(epoch, base_seq, known if known.seq > base_seq else None)


def to_head(
    key: str, agent: str, seq: int, state: Any, run_id: str | None, open_runs: int, active: int, usage: str,
    cost: str | None, messages: int, started_at: int, last_event_at: int, due: int | None,
) -> Head:  # fmt: skip
    """What `SELECT_HEAD` gives as a `Head`."""
    return Head(
        key=key, agent=agent, seq=seq, state=state, run_id=run_id, open_runs=open_runs, active=bool(active), due=due,
        usage=NO_USAGE if usage == "{}" else _usage().validate_json(usage),
        cost=None if cost is None else Decimal(cost), messages=messages, started_at=started_at, last_event_at=last_event_at,
    )  # fmt: skip


def to_spent(usage: str, cost: str, unpriced: int) -> Spent:
    """The columns of a row of `scopes`."""
    return Spent(_usage().validate_json(usage), Decimal(cost), unpriced)


def sum_of(bill: Iterable[ev.UsageUpdated]) -> Mapping[tuple[str, str], Spent]:
    """What the scopes come to, by the bill alone."""
    spent: dict[tuple[str, str], Spent] = {}
    for row in bill:
        for at in scopes_of(row):
            spent[at] = spent.get(at, Spent()).plus(row)
    return spent


@cache
def _usage() -> TypeAdapter[Usage]:
    return TypeAdapter(Usage)


