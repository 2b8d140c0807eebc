"""Snapshots: a fold as it was at some seq, without its conversation, which stands in the log as it is.

They keep the opening of a long log short: its messages and its last few events are read, and nothing else is folded.
A snapshot is small, and a key has one, so a log of any length costs the same for each event. It says nothing that the
log does not: one of another version of the fold, or that cannot be read, is passed over, and the whole log folded.
"""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from functools import cache
from sys import intern
from typing import Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from nitinol.events import MessageAppended, to_bytes
from nitinol.journal.reader import SELECT_EVENT, to_events
from nitinol.messages import Message
from nitinol.state import FOLD, AgentState, Log

EVERY = 16
"""Events between two snapshots of a key at least."""
SHARE = 256
"""Bytes of a snapshot for each event since the last one at most: a state of megabytes is not written every few events."""

_NOT_KEPT = ("key", "definition", "next_definition", "transcript")


class _Said(TypedDict):
    """As much of a `message.appended` as the fold reads of an old one."""

    seq: int
    message: Message


def is_due(events: int, size: int) -> bool:
    """Whether so many events since the last snapshot, which had so many bytes, are worth another."""
    return events >= max(EVERY, size // SHARE)


def save(connection: sqlite3.Connection, state: AgentState) -> int:
    """Replace the snapshot of a key; returns its bytes."""
    body = to_bytes(_kept(), {name: getattr(state, name) for name in _names()})
    connection.execute(
        "INSERT OR REPLACE INTO snapshots (key, seq, fold, body) VALUES (?, ?, ?, ?)",
        (state.key, state.seq, FOLD, body),
    )
    return len(body)


def get_ready(connection: sqlite3.Connection) -> None:
    """Make what reads snapshots, if there is one to read: it takes too long for the loop that will read it."""
    if connection.execute("SELECT 1 FROM snapshots LIMIT 1").fetchone() is not None:
        _kept()
        _said()


def load(connection: sqlite3.Connection, key: str) -> AgentState | None:
    """The last snapshot of a key with its conversation, if this version can read both."""
    found = connection.execute("SELECT seq, body FROM snapshots WHERE key = ? AND fold = ?", (key, FOLD)).fetchone()
    if found is None:
        return None
    seq, body = found
    try:
        state = AgentState(key=key, **_kept().validate_json(body))
        messages = _messages(connection, key, seq, state.message_count)
    except (ValidationError, sqlite3.DataError):
        return None
    if state.seq != seq or messages is None:
        return None
    state.agent = intern(state.agent)
    state.transcript = Log(messages)
    return state


def _messages(connection: sqlite3.Connection, key: str, until: int, count: int) -> list[Message] | None:
    """The last `count` messages up to a seq, in order; `None` if they are not there."""
    if not count:
        return []
    which = "FROM events WHERE key = ? AND seq <= ? AND type = 'message.appended' ORDER BY seq DESC LIMIT ?"
    # In one row and one call: a conversation is read ten thousand times when ten thousand agents come back.
    bodies, blobs = connection.execute(
        "SELECT CAST('[' || group_concat(body) || ']' AS BLOB), count(blobs)"
        f" FROM (SELECT CAST(body AS TEXT) AS body, blobs {which})",
        (key, until, count),
    ).fetchone()
    if blobs:
        rows = connection.execute(f"{SELECT_EVENT} {which.removeprefix('FROM events ')}", (key, until, count))
        whole = [cast("MessageAppended", event) for event in to_events(connection, rows)]
        found = [(event.seq, event.message) for event in whole if event.durable]
    else:
        found = [(said["seq"], said["message"]) for said in _said().validate_json(bodies or b"[]")]
    found.reverse()
    seqs = [seq for seq, _ in found]
    return [message for _, message in found] if len(found) == count and seqs == sorted(seqs) else None


@cache
def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(AgentState) if field.name not in _NOT_KEPT)


@cache
def _kept() -> TypeAdapter[dict[str, Any]]:
    hints = get_type_hints(AgentState)
    of_fields = cast("Any", TypedDict)  # not written out: a field of the state must not be forgotten here
    return TypeAdapter(of_fields("Kept", {name: hints[name] for name in _names()}))


@cache
def _said() -> TypeAdapter[list[_Said]]:
    return TypeAdapter(list[_Said])
