"""One agent as lines of JSON: out of one store, into another.

The first line is a header, each other line an event of its log, as `to_json` has it. Ids, seq, times and costs stay what
they were; only positions are a store's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from nitinol import events as ev
from nitinol.errors import BadExport, NitinolError
from nitinol.journal.base import verify
from nitinol.messages import is_unicode
from nitinol.state import AgentState

FORMAT = "nitinol.agent"
VERSION = 1

Export = Iterable[str] | Mapping[str, Any]
"""Lines of an export, or what `ref.snapshot()` gives."""


@dataclass(frozen=True, slots=True)
class AgentLog:
    """The log of an agent, sound in itself."""

    key: str
    events: Sequence[ev.EventBase]
    state: AgentState
    """What it folds to."""

    @property
    def run_ids(self) -> list[str]:
        """Of the runs that were queued."""
        return [event.run_id for event in self.events if event.type == "run.queued" and event.run_id is not None]


def export_lines(key: str, log: Sequence[ev.EventBase]) -> Iterator[str]:
    """A log, of one event at least, as lines without their ends.

    Raises:
        BadExport: A newer version wrote a part of it.
    """
    for event in log:
        if isinstance(event, ev.Custom):
            raise BadExport(
                f"agent {key!r}: event {event.seq} is a {event.name!r}, which this version cannot read; upgrade nitinol"
            )
    head = {
        "format": FORMAT, "v": VERSION, "key": key, "agent": log[-1].agent, "base_seq": log[0].seq - 1, "seq": log[-1].seq,
    }  # fmt: skip
    return (_line(data) for data in (head, *(event.to_dict() for event in log)))


def read_export(export: Export) -> AgentLog:
    """The log of an export, once everything about it was found right.

    Raises:
        BadExport: It is no export, damaged, cut off, or of a newer version; the text names the line.
    """
    head, body = _of_snapshot(cast("Mapping[str, Any]", export)) if isinstance(export, Mapping) else _of_lines(export)
    key, agent, base, end = head["key"], head["agent"], head["base_seq"], head["seq"]
    log: list[ev.EventBase] = []
    for at, data in body:
        event = _event(data, at)
        expected = base + len(log) + 1
        if (event.key, event.agent) != (key, agent):
            raise BadExport(f"{at}: an event of agent {event.agent!r} at {event.key!r}, not of {agent!r} at {key!r}")
        if event.seq != expected or event.id not in ("", f"{key}#{expected}"):
            raise BadExport(f"{at}: event {event.seq} ({event.id!r}) where {expected} should be")
        log.append(event)
    if not log or log[-1].seq != end:
        last = log[-1].seq if log else base
        raise BadExport(f"the export of {key!r} is cut off: it ends with event {last}, and should with {end}")
    if wrong := verify(log):
        raise BadExport(f"the export of {key!r} is no sound log: {wrong[0]}")
    return AgentLog(key, log, _fold(key, log))


def renamed(log: AgentLog, key: str, run_ids: Mapping[str, str]) -> AgentLog:
    """The same log under another key, with other ids for some of its runs, wherever they stand."""

    def rename(event: ev.EventBase) -> ev.EventBase:
        changes: dict[str, Any] = {"key": key, "id": f"{key}#{event.seq}"}
        for name in ("run_id", "parent_run_id", "root_run_id"):
            changes[name] = run_ids.get(getattr(event, name), getattr(event, name))
        if isinstance(event, ev.ToolRequested):
            rest = event.idempotency_key.removeprefix(f"{event.run_id}/")
            if rest != event.idempotency_key:
                changes["idempotency_key"] = f"{changes['run_id']}/{rest}"
        return replace(event, **changes)

    log_there = [rename(event) for event in log.events]
    return AgentLog(key, log_there, _fold(key, log_there))


def _fold(key: str, log: Sequence[ev.EventBase]) -> AgentState:
    try:
        return AgentState(key, log[-1].agent, seq=log[0].seq - 1).fold(log)
    except Exception as error:  # a fold may trip over anything that an event says
        why = str(error) if isinstance(error, NitinolError) else repr(error)
        raise BadExport(f"the export of {key!r} is no sound log: {why}") from error


_Body = Iterator[tuple[str, object]]
"""Where each event stands, and its data."""


def _of_snapshot(snapshot: Mapping[str, Any]) -> tuple[Mapping[str, Any], _Body]:
    found: list[Any] = snapshot["events"] if isinstance(snapshot.get("events"), list) else []
    if not found:
        raise BadExport("this is no snapshot of an agent: it has no events")
    first, last = (
        cast("dict[str, Any]", item).get("seq") if isinstance(item, dict) else None for item in (found[0], found[-1])
    )
    base = first - 1 if isinstance(first, int) else None
    head = _head({**snapshot, "format": FORMAT, "base_seq": base, "seq": last})
    return head, ((f"events[{number}]", data) for number, data in enumerate(found))


def _of_lines(lines: Iterable[str]) -> tuple[Mapping[str, Any], _Body]:
    numbered = ((f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    parsed = ((at, _parse(at, line)) for at, line in numbered)
    _, head = next(parsed, ("", None))
    return _head(head), parsed


def _parse(at: str, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise BadExport(f"{at} is no JSON: {error}") from error


def _head(data: object) -> Mapping[str, Any]:
    head = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    if head.get("format") != FORMAT:
        raise BadExport(
            f"this is no export of an agent: its first line has no format {FORMAT!r}; make one with `nitinol export`"
        )
    version = head.get("v")
    if version != VERSION:
        raise BadExport(
            f"the export has version {version!r}, and this version of nitinol reads {VERSION}; upgrade nitinol"
        )
    for name in ("key", "agent", "base_seq", "seq"):
        value: Any = head.get(name)
        text = name in ("key", "agent")
        if not (isinstance(value, str) if text else type(value) is int and value >= 0):
            raise BadExport(f"the export's header is damaged: {name} is {value!r}")
    return head


def _event(data: object, at: str) -> ev.EventBase:
    values = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    cls = ev.TYPES.get(str(values.get("type")))
    if cls is None or not cls.durable:
        what = f"event of type {values.get('type')!r}"
        raise BadExport(f"{at}: a log has no {what}; if a newer version wrote it, upgrade nitinol")
    strange = sorted(values.keys() - {"v", "type", "durable"} - {field.name for field in fields(cls)})
    if strange or values.get("v") != cls.v:
        what = f"has {', '.join(strange)}" if strange else f"is of version {values.get('v')!r}"
        raise BadExport(f"{at}: its {cls.type!r} {what}, which this version does not know; upgrade nitinol")
    try:
        event = ev.from_dict(values)
        ev.to_iso(event.ts)  # a time that is none would only be noticed by the bill
        names = [str(getattr(event, name, "")) for name in _NAMES]
    except Exception as error:  # pydantic's, or of a time: whatever is wrong with the data
        raise BadExport(f"{at} is damaged: {' '.join(str(error).split())[:300]}") from error
    if not is_unicode(*names):
        raise BadExport(f"{at} is damaged: a name in it is no Unicode")
    return event


_NAMES = (*ev.ENVELOPE, "provider", "model")
"""Fields that a store has in columns of their own."""


def _line(data: Mapping[str, Any]) -> str:
    line = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Escaped where it would not survive an encoding, or be two lines for some.
    plain = is_unicode(line) and len(line.splitlines()) == 1
    return line if plain else json.dumps(data, separators=(",", ":"))
