"""Is a store what its log says? Everything beside the log is made from it once more, and compared.

It reads one key at a time, in one transaction: it sees one moment, also beside an owner that works, and ten thousand
logs never lie in memory.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

from nitinol import events as ev
from nitinol.errors import NitinolError, StorageFailed
from nitinol.journal import blobs, snapshots
from nitinol.journal.base import Head, head_of, verify
from nitinol.journal.bill import Spent, scopes_of
from nitinol.journal.read_only import ReadOnlyJournal
from nitinol.journal.rows import SELECT_ROW, Row, to_row, to_spent
from nitinol.journal.schema import Disk, LocalDisk, storage_failed
from nitinol.state import FOLD, AgentState
from nitinol.usage import NO_USAGE, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is not as it should be."""

    key: str | None
    """Whose log; `None` where it concerns the whole store."""
    text: str
    """What; it begins with the event, where it concerns one: `seq 7 (run.finished): …`."""


@dataclass(slots=True, kw_only=True)
class Audit:
    """What a store holds, and what is wrong with it."""

    agents: int = 0
    events: int = 0
    runs: int = 0
    """Of agents that were not forgotten."""
    spent: Spent = field(default_factory=Spent)
    """By the rows of the bill, those of forgotten agents included."""
    faults: list[Fault] = field(default_factory=list[Fault])

    def fault(self, key: str | None, text: str) -> None:
        """Note one."""
        self.faults.append(Fault(key=key, text=text))


def audit(path: Path, disk: Disk | None = None) -> Audit:
    """Check a store from end to end. From any thread; beside its owner, too, whom it does not hold up.

    SQLite's own check; each log by `verify`, by its fold and by the sums of its bill; and, rebuilt from the logs and
    compared: heads, snapshots, timers, scopes, runs, large parts and their hashes.

    Raises:
        StorageFailed: There is no store, or it cannot be opened. What is found wrong inside is in `faults`.
    """
    ReadOnlyJournal(path, disk).close()  # which says what is no store
    found = Audit()
    with closing((disk or LocalDisk()).connect(path.resolve(), read_only=True)) as connection:
        try:
            _Auditor(connection, found).run()
        except sqlite3.Error as error:
            found.fault(None, f"it could not be read to the end: {storage_failed(path.resolve(), 'read', error)}")
    return found


@dataclass(frozen=True, slots=True)
class _Stored:
    """A row of `events`."""

    position: int
    seq: int
    epoch: int
    event: ev.EventBase


class _Auditor:
    def __init__(self, connection: sqlite3.Connection, found: Audit) -> None:
        self._connection = connection
        self._found = found
        self._spent: dict[tuple[str, str], Spent] = {}

    def run(self) -> None:
        with self._one_moment():
            for (text,) in self._select("PRAGMA quick_check"):
                if text != "ok":
                    self._found.fault(None, f"SQLite: {text}")
            for (key,) in self._select("SELECT key FROM events UNION SELECT key FROM heads ORDER BY key"):
                self._guarded(self._check_key, key)
            self._check_rest()
            self._check_scopes()
            for name, body in self._select("SELECT hash, body FROM blobs"):
                self._guarded(self._check_blob, name, body)
            self._check_uses()

    def _guarded(self, check: Callable[..., None], subject: Any, *rest: Any) -> None:
        """A check that trips over something nobody thought of is a finding, too: a column may hold any type."""
        try:
            check(subject, *rest)
        except sqlite3.Error:
            raise
        except Exception as error:
            self._found.fault(str(subject), f"it could not be checked to the end: {_brief(error)}")

    @contextmanager
    def _one_moment(self) -> Generator[None]:
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("ROLLBACK")

    def _select(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        return iter(self._connection.execute(query, values))

    # -- one key

    def _check_key(self, key: str) -> None:
        row = self._row(key)
        stored = list(self._log(key))
        base = row.base_seq if row is not None else _base_of(stored)
        log = [item.event for item in stored if item.seq > base]
        self._found.agents += bool(log)
        self._found.events += len(stored)
        self._check_order(key, stored, base)
        for text in verify(log):
            self._found.fault(key, text)
        self._check_bill(key, log)
        if row is None:
            self._found.fault(key, "heads: it has no row")
        elif stored and row.epoch < stored[-1].epoch:
            self._found.fault(key, f"heads: epoch is {row.epoch}; its last event was written under {stored[-1].epoch}")
        self._check_fold(key, log, base, row)
        self._check_runs(key, log)
        for item in stored:
            if isinstance(item.event, ev.UsageUpdated):
                self._charge(key, item.event)

    def _row(self, key: str) -> Row | None:
        try:
            for columns in self._select(f"{SELECT_ROW} WHERE key = ?", key):
                return to_row(*columns)
        except Exception as error:  # a column that is no money, or no JSON
            self._found.fault(key, f"heads: its row cannot be read: {_brief(error)}")
            for epoch, base_seq in self._select("SELECT epoch, base_seq FROM heads WHERE key = ?", key):
                return Row(epoch, base_seq)
        return None

    def _log(self, key: str) -> Iterator[_Stored]:
        query = "SELECT position, seq, epoch, type, body, blobs FROM events WHERE key = ? ORDER BY seq"
        for position, seq, epoch, type, body, names in self._select(query, key):
            at = f"seq {seq} ({type})"
            parts = () if names is None else tuple(names.split(" "))
            try:
                event = ev.unpack(type, blobs.join(body, parts, self._fetch) if parts else body)
            except Exception as error:  # a part is missing, or no text
                self._found.fault(key, f"{at}: {_brief(error)}")
                event = ev.unpack(type, body)
            ev.stamp(event, position)
            self._check_columns(key, at, seq, event)
            used = {name for (name,) in self._select("SELECT hash FROM blob_uses WHERE position = ?", position)}
            if used != set(parts):
                self._found.fault(key, f"{at}: blob_uses: {sorted(used)} where its event has {sorted(parts)}")
            yield _Stored(position, seq, epoch, event)

    def _fetch(self, name: str) -> bytes:
        for (body,) in self._select("SELECT body FROM blobs WHERE hash = ?", name):
            return bytes(body)
        raise NitinolError(f"blobs: its part {name!r} is missing")

    def _check_columns(self, key: str, at: str, seq: int, event: ev.EventBase) -> None:
        if isinstance(event, ev.Custom):
            self._found.fault(key, f"{at}: it cannot be read: it is damaged, or a newer version wrote it")
        if (event.key, event.seq) != (key, seq):
            self._found.fault(key, f"{at}: its body is that of event {event.seq} of {event.key!r}")

    def _check_order(self, key: str, stored: Sequence[_Stored], base: int) -> None:
        before = epoch = 0
        for item in stored:
            at = f"seq {item.seq} ({item.event.type})"
            if item.seq > base >= before and item.seq != base + 1:  # the gaps behind are `verify`'s
                self._found.fault(key, f"{at}: the first event should be seq {base + 1}")
            if item.seq <= base and item.event.type != "usage.updated":
                self._found.fault(key, f"{at}: what is up to {base} was forgotten, and it is still there")
            if item.epoch < epoch:
                self._found.fault(key, f"{at}: written under epoch {item.epoch}, after one of epoch {epoch}")
            before, epoch = item.seq, item.epoch

    def _check_bill(self, key: str, log: Sequence[ev.EventBase]) -> None:
        """Each row of the bill says what the agent has come to by then."""
        total: tuple[Usage, Decimal | None] = (NO_USAGE, Decimal(0))
        for event in log:
            if isinstance(event, ev.UsageUpdated):
                usage, cost = total
                total = (usage + event.usage, None if cost is None or event.cost is None else cost + event.cost)
                if total != (event.agent_usage, event.agent_cost):
                    told = f"{event.agent_usage.total_tokens} tokens, {event.agent_cost}"
                    self._found.fault(
                        key, f"seq {event.seq} (usage.updated): it says {told} so far; its rows come to"
                        f" {total[0].total_tokens} tokens, {total[1]}"
                    )  # fmt: skip
                    total = (event.agent_usage, event.agent_cost)

    def _check_fold(self, key: str, log: Sequence[ev.EventBase], base: int, row: Row | None) -> None:
        state = AgentState(key, log[-1].agent if log else "", seq=base)
        kept, body = next(
            self._select("SELECT seq, body FROM snapshots WHERE key = ? AND fold = ?", key, FOLD), (0, None)
        )
        if body is not None and not base < kept <= base + len(log):
            self._found.fault(key, f"snapshots: there is one of seq {kept}, where its log has no event")
        for event in log:
            try:
                state.absorb(event)
            except Exception as error:  # a fold may trip over anything that an event says
                self._found.fault(key, f"seq {event.seq} ({event.type}): the log does not fold: {_brief(error)}")
                return
            if body is not None and event.seq == kept:
                self._check_snapshot(key, state)
        head = head_of(state) if log else None
        if row is not None:
            self._check_head(key, row, head)
        self._check_timer(key, head)

    def _check_snapshot(self, key: str, state: AgentState) -> None:
        """Against the fold at its seq."""
        try:
            kept = snapshots.load(self._connection, key)
        except StorageFailed as error:  # a part of a message is missing, which is told of its event
            kept = None
            self._found.fault(key, f"snapshots: {_brief(error)}")
        if kept is None:
            self._found.fault(key, f"snapshots: that of seq {state.seq} cannot be read")
            return
        for item in fields(AgentState):
            there, here = getattr(kept, item.name), getattr(state, item.name)
            if item.compare and there != here:
                told = (
                    f"is {there!r}; by its log it is {here!r}"
                    if item.name != "transcript"
                    else "is not that of its log"
                )
                self._found.fault(key, f"snapshots: at seq {state.seq} {item.name} {told}")

    def _check_head(self, key: str, row: Row, head: Head | None) -> None:
        if row.head is None or head is None:
            if row.head is not head:
                seq = (row.base_seq if item is None else item.seq for item in (row.head, head))
                self._found.fault(key, "heads: its last event is {}; by its log it is {}".format(*seq))
            return
        for item in fields(Head):
            there, here = getattr(row.head, item.name), getattr(head, item.name)
            if there != here and item.name != "due":  # which is a row of `timers`
                self._found.fault(key, f"heads: {item.name} is {there!r}; by its log it is {here!r}")

    def _check_timer(self, key: str, head: Head | None) -> None:
        due = None if head is None else head.due
        found = next((row[0] for row in self._select("SELECT due FROM timers WHERE key = ?", key)), None)
        if found != due:
            self._found.fault(key, f"timers: due is {found!r}; by its log it is {due!r}")

    def _check_runs(self, key: str, log: Sequence[ev.EventBase]) -> None:
        runs = {event.run_id: event.seq for event in log if event.type == "run.queued"}
        self._found.runs += len(runs)
        found = dict(self._select("SELECT run_id, seq FROM runs WHERE key = ?", key))
        for run_id in runs.keys() | found.keys():
            there, here = found.get(run_id), runs.get(run_id)
            if there != here:
                self._found.fault(key, f"runs: {run_id!r} is at seq {there}; by its log it is at {here}")

    def _charge(self, key: str, row: ev.UsageUpdated) -> None:
        self._found.spent = self._found.spent.plus(row)
        try:
            for at in scopes_of(row):
                self._spent[at] = self._spent.get(at, Spent()).plus(row)
        except (ValueError, OverflowError, OSError) as error:
            self._found.fault(key, f"seq {row.seq} (usage.updated): its time is none: {_brief(error)}")

    # -- the whole store

    def _check_rest(self) -> None:
        """What is left of keys that have neither a log nor a head."""
        nobody = "key NOT IN (SELECT key FROM events) AND key NOT IN (SELECT key FROM heads)"
        for (key,) in self._select(f"SELECT key FROM timers WHERE {nobody}"):
            self._found.fault(key, "timers: it has a row, and neither log nor head")
        for (key,) in self._select(f"SELECT key FROM snapshots WHERE {nobody}"):
            self._found.fault(key, "snapshots: there is one, and neither log nor head")
        for key, run_id in self._select(f"SELECT key, run_id FROM runs WHERE {nobody}"):
            self._found.fault(key, f"runs: {run_id!r} is one of its runs, and it has neither log nor head")
        last = next((row[0] for row in self._select("SELECT seq FROM sqlite_sequence WHERE name = 'events'")), 0)
        for (position,) in self._select("SELECT max(position) FROM events WHERE position > ?", last):
            if position is not None:
                self._found.fault(None, f"positions go on from {last}, and there is an event at {position}")

    def _check_scopes(self) -> None:
        there = self._scopes()
        for scope, name in sorted(self._spent.keys() | there.keys()):
            stored, summed = there.get((scope, name)), self._spent.get((scope, name))
            if stored != summed:
                self._found.fault(
                    name if scope == "key" else None,
                    f"scopes: {scope} {name!r} has {_sum(stored)}; by the bill it is {_sum(summed)}",
                )

    def _scopes(self) -> Mapping[tuple[str, str], Spent]:
        scopes: dict[tuple[str, str], Spent] = {}
        for scope, name, *spent in self._select("SELECT scope, name, usage, cost, unpriced FROM scopes"):
            try:
                scopes[scope, name] = to_spent(*spent)
            except Exception as error:  # a column that is no money, or no JSON
                self._found.fault(None, f"scopes: the row of {scope} {name!r} cannot be read: {_brief(error)}")
        return scopes

    def _check_blob(self, name: str, body: bytes) -> None:
        users = list(self._users_of(name))
        if not users:
            self._found.fault(None, f"blobs: no event uses {name!r}")
        for key, seq in users if hashlib.sha256(body).hexdigest() != name else ():
            self._found.fault(key, f"seq {seq}: blobs: the part {name!r} has another hash: it was changed")

    def _check_uses(self) -> None:
        lost = "position NOT IN (SELECT position FROM events)"
        for name, position in self._select(f"SELECT hash, position FROM blob_uses WHERE {lost}"):
            self._found.fault(None, f"blob_uses: {name!r} is used at position {position}, where there is no event")

    def _users_of(self, name: str) -> Iterator[tuple[str, int]]:
        yield from self._select(
            "SELECT key, seq FROM blob_uses JOIN events USING (position) WHERE hash = ? ORDER BY key, seq", name
        )  # fmt: skip


def _base_of(stored: Sequence[_Stored]) -> int:
    """Where the log of a key begins whose head is lost: behind the bill that is left of what was forgotten."""
    base = stored[0].seq - 1 if stored else 0
    for before, item in pairwise(stored):
        if item.seq != before.seq + 1 and before.event.type == "usage.updated":
            base = item.seq - 1
    return base


def _brief(error: Exception) -> str:
    text = str(error) if isinstance(error, NitinolError) else repr(error)
    return " ".join(text.split())[:300]


def _sum(spent: Spent | None) -> str:
    return (
        "no row" if spent is None else f"{spent.usage.total_tokens} tokens, ${spent.priced}, {spent.unpriced} unpriced"
    )
