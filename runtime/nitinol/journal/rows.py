"""What stands beside the log, derived from it: heads, timers and scopes. Written in the transaction of the events."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from sys import intern
from typing import Any, get_args

from pydantic import TypeAdapter

from nitinol import events as ev
from nitinol.budget import Amount
from nitinol.journal.base import Head
from nitinol.journal.bill import NOTHING, Spent, scopes_of, sum_of
from nitinol.state import FOLD, Activity, BrokenLog
from nitinol.usage import NO_USAGE, Usage

KNOWN = 4_000
"""Rows that the writer remembers; those beyond are read again."""

_HEAD = "key, agent, seq, state, run_id, open_runs, active, usage, cost, messages, started_at, last_event_at, reserved"
SELECT_HEAD = f"SELECT {_HEAD}, due FROM heads LEFT JOIN timers USING (key)"
"""Gives what `to_head` takes."""
_KEPT = f"FROM snapshots WHERE key = heads.key AND fold = {FOLD}"
SELECT_ROW = (
    f"SELECT epoch, base_seq, coalesce((SELECT seq {_KEPT}), 0), coalesce((SELECT length(body) {_KEPT}), 0), {_HEAD}, due"
    " FROM heads LEFT JOIN timers USING (key)"
)
"""Gives what `to_row` takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """A key, as the writer knows it."""

    epoch: int = 0
    base_seq: int = 0
    """Events up to it were forgotten."""
    head: Head | None = None
    """`None` before its first event."""
    kept: int = 0
    """The seq of its snapshot."""
    kept_size: int = 0
    """Bytes of it."""

    @property
    def seq(self) -> int:
        return self.base_seq if self.head is None else self.head.seq


_STATES = frozenset(get_args(Activity))


class Rows:
    """The rows of a store, in the writer's thread: read when they are needed, written once for each transaction."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._due: dict[str, int | None] = {}
        """The timers as they are in the store."""
        self._spent: dict[tuple[str, str], Spent] = {}
        # In order: what is written, and so where a disk fails, must not hang on the hashes of strings.
        self._changed: dict[str, None] = {}
        self._bill: list[ev.UsageUpdated] = []
        """What this transaction charges."""

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
        self._changed[key] = None

    def charge(self, row: ev.UsageUpdated) -> None:
        """Count a row of the bill in its scopes."""
        for _, name in scopes_of(row):
            name.encode()  # what no store holds fails here, with its decision alone
        self._bill.append(row)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what has changed, before the transaction is committed."""
        for key in self._changed:
            row = self._rows[key]
            save_row(connection, key, row)
            due = None if row.head is None else row.head.due
            if due != self._due[key]:
                save_due(connection, key, due)
                self._due[key] = due
        for at, sum in sum_of(self._bill).items() if self._bill else ():
            spent = self._spent[at] = self._spent_before(connection, at) + sum
            save_spent(connection, at, spent)
        self._changed.clear()
        self._bill.clear()
        if len(self._rows) + len(self._spent) > KNOWN:
            self.clear()

    def _spent_before(self, connection: sqlite3.Connection, at: tuple[str, str]) -> Spent:
        known = self._spent.get(at)
        if known is None:
            select = "SELECT usage, cost, unpriced FROM scopes WHERE scope = ? AND name = ?"
            found = connection.execute(select, at).fetchone()
            known = NOTHING if found is None else to_spent(*found)
        return known

    def clear(self) -> None:
        """Know nothing: the transaction failed."""
        for known in (self._rows, self._due, self._spent, self._changed, self._bill):
            known.clear()


def save_row(connection: sqlite3.Connection, key: str, row: Row) -> None:
    """Write a key's head."""
    head = row.head
    if head is None:
        head = Head(key=key, agent="", seq=row.base_seq, state="idle", run_id=None, open_runs=0, active=False, due=None)
    cost = None if head.cost is None else str(head.cost)
    connection.execute(
        f"INSERT OR REPLACE INTO heads (epoch, base_seq, {_HEAD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.epoch, row.base_seq, key, head.agent, head.seq, head.state, head.run_id, head.open_runs, head.active,
            _usage().dump_json(head.usage, exclude_defaults=True).decode(), cost, head.messages, head.started_at,
            head.last_event_at, None if head.reserved is None else f"{head.reserved.usd} {head.reserved.tokens}",
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
        (*at, usage, str(spent.priced), spent.unpriced),
    )


def to_row(epoch: int, base_seq: int, kept: int, kept_size: int, *head: Any) -> Row:
    """What `SELECT_ROW` gives as a `Row`."""
    known = to_head(*head)
    return Row(epoch, base_seq, known if known.seq > base_seq else None, kept, kept_size)


def to_head(
    key: str, agent: str, seq: int, state: Any, run_id: str | None, open_runs: int, active: int, usage: str,
    cost: str | None, messages: int, started_at: int, last_event_at: int, reserved: str | None, due: int | None,
) -> Head:  # fmt: skip
    """What `SELECT_HEAD` gives as a `Head`.

    Raises:
        BrokenLog: A column is not what the writer put there.
    """
    try:
        if state not in _STATES or not all(
            isinstance(number, int)  # pyright: ignore[reportUnnecessaryIsInstance] # a column may hold anything
            for number in (seq, open_runs, active, messages, started_at, last_event_at, due or 0)
        ):
            raise ValueError(f"no head has state {state!r}, or numbers that are none")
        return Head(
            key=key, agent=intern(agent), seq=seq, state=state, run_id=run_id, open_runs=open_runs, active=bool(active),
            due=due, usage=NO_USAGE if usage == "{}" else _usage().validate_json(usage),
            cost=None if cost is None else Decimal(cost), messages=messages, started_at=started_at,
            last_event_at=last_event_at, reserved=None if reserved is None else _to_amount(reserved),
        )  # fmt: skip
    except (ArithmeticError, TypeError, ValueError) as error:
        raise BrokenLog(
            f"what the store keeps of agent {key!r} beside its log is damaged; `nitinol verify STORE --rebuild` makes it anew"
        ) from error


def _to_amount(text: str) -> Amount:
    usd, tokens = text.split(" ")
    return Amount(Decimal(usd), int(tokens))


def to_spent(usage: str, cost: str, unpriced: int) -> Spent:
    """The columns of a row of `scopes`."""
    return Spent(_usage().validate_json(usage), Decimal(cost), unpriced)


@cache
def _usage() -> TypeAdapter[Usage]:
    return TypeAdapter(Usage)
