"""The contract of a journal: append-only, keyed by (key, seq), with an epoch that says who may write.

What stands beside the log is derived from it, row by row, in the same transaction: a `Head` for each key, so that
finding interrupted agents, due timers and states never reads ten thousand logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, get_args

from nitinol.budget import Amount
from nitinol.errors import KeyTaken, NitinolError
from nitinol.events import TYPES, EventBase
from nitinol.journal.bill import By, Spent
from nitinol.machine import Effect, next_due, only_waits
from nitinol.state import Activity, AgentState
from nitinol.usage import NO_USAGE, Usage

CRASH_POINTS: tuple[str, ...] = tuple(
    f"{when} {what}"
    for what in (
        *(name for name, event_class in TYPES.items() if event_class.durable),
        *(effect.__name__ for effect in get_args(Effect) if effect.__name__ not in ("Wait", "AskApproval")),
        "commit",
    )
    for when in ("before", "after")
)
"""Where a process may be made to die, for tests: see `testing.crash_at`.

`before run.queued`: such an event is decided, and not committed. `after run.queued`: it is committed, and nothing of
what that releases has happened: no publish, no answer, no effect. `before CallModel`: the effect is about to start.
`after CallModel`: its outcome has come, and nothing was decided on it. `before commit`, `after commit`: in the journal's
writer, around the transaction's COMMIT.
"""


class Conflict(NitinolError):
    """An append under an old epoch, with a gap in its seq, or that no store can hold; it fails alone."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What `Journal.open` gives."""

    epoch: int
    """Only appends under it are accepted from now on."""
    events: Sequence[EventBase]
    """The durable events of the key behind `state`, in order."""
    base_seq: int = 0
    """The seq before the first of them that was not forgotten."""
    state: AgentState | None = None
    """The fold over those before, without a definition, where the journal has kept one; nobody else has this value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a journal knows of a key without reading its log: the state, in one row."""

    key: str
    agent: str
    seq: int
    state: Activity
    run_id: str | None
    """Of the run in progress."""
    open_runs: int
    """Runs that were queued and have not finished."""
    active: bool
    """An incarnation would have something to do at once: there are open runs, and not all of them wait for people."""
    due: int | None
    """Nanoseconds since 1970 when a deadline or an approval expires, whether anybody has opened the key or not."""
    usage: Usage = NO_USAGE
    cost: Decimal | None = Decimal(0)
    messages: int = 0
    started_at: int = 0
    last_event_at: int = 0
    reserved: Amount | None = None
    """For the attempt in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a log tells of an agent's lives."""

    incarnation: int = 0
    restarts: int = 0
    """Of its whole log, whoever owned the store."""
    last_reason: str | None = None
    """Why it crashed, or was parked, last."""
    since: int = 0
    """The seq of the first event that counts."""


def head_of(state: AgentState) -> Head:
    """A state in one row."""
    open_runs = len(state.open_run_ids)
    return Head(
        key=state.key,
        agent=state.agent,
        seq=state.seq,
        state=state.activity,
        run_id=state.run.run_id if state.run is not None else None,
        open_runs=open_runs,
        active=bool(open_runs) and not state.parked and not only_waits(state),
        due=next_due(state),
        usage=state.usage,
        cost=state.cost,
        messages=state.message_count,
        started_at=state.started_at,
        last_event_at=state.last_event_at,
        reserved=state.reserved,
    )


Committed = Callable[[Exception | None], None]
"""Told once, on the core loop, when an append is committed (`None`), or failed."""


class Journal(Protocol):
    """A store of events.

    Contract: `open`, `append`, `restore` and `forget` are called on the core loop and never block it; those of one key
    are carried out in the order of the calls, and call back on the core loop. The rest may be called from any thread, and
    raises `StorageFailed` where the store cannot be read.
    """

    durable: bool
    """Whether it outlives the process: then a clean stop suspends runs instead of ending them."""

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        """Take over a key: everything appended before is in the answer, nothing of an older epoch comes after it."""
        ...

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        """Commit the events of one decision, and what `state`, their fold, says in one row; all or none.

        Each event gets its `position`.
        """
        ...

    def restore(self, key: str, events: Sequence[EventBase], state: AgentState, restored: Committed) -> None:
        """Begin a key with a whole log from elsewhere, which goes on from the seq it has; all of it or none.

        On the core loop, as `append`. `KeyTaken` where the key has, or had, a log of its own.
        """
        ...

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        """Committed events of a key behind a seq, in order."""
        ...

    def scan(self, after: int, limit: int) -> Sequence[EventBase]:
        """Committed events of all keys behind a position, in order of position."""
        ...

    def find_run(self, run_id: str) -> tuple[str, int] | None:
        """The key and the seq of the `run.queued` of a run."""
        ...

    def head(self, key: str) -> Head | None:
        """What is known of a key, if anything was ever written under it."""
        ...

    def heads(self, *, active: bool = False, reserved: bool = False) -> Sequence[Head]:
        """All keys, or those with something to do at once, or with an attempt in flight; in order."""
        ...

    def spent(self, by: By) -> Mapping[str, Spent]:
        """The bill, of forgotten agents too: name to sum."""
        ...

    def waiting(self) -> Sequence[tuple[str, str]]:
        """Keys whose open runs wait for nothing but people, and the names of their agents."""
        ...

    def timers(self, after: int = 0, until: int | None = None) -> Sequence[tuple[int, str]]:
        """When which key is due, in order of time: all behind `after` and by `until`, or just the first behind `after`."""
        ...

    @property
    def position(self) -> int:
        """Of the last committed event; 0 where there is none."""
        ...

    def forget(self, key: str, forgotten: Committed) -> None:
        """Drop what is known of a key but its bill. On the core loop, as `append`; seq and epoch go on if it is durable."""
        ...

    def close(self) -> None:
        """Finish what was appended and let go of the store."""
        ...


def taken(key: str) -> KeyTaken:
    """The refusal of a restore."""
    return KeyTaken(
        f"key {key!r} has a log here already, or its bill is left of one that was forgotten; give another key"
    )


def verify(events: Sequence[EventBase]) -> list[str]:
    """What is wrong with the log of one key; empty where nothing is.

    The invariants: seq without a gap; positions rise; exactly one `run.finished` at most for each `run.queued`, and
    after it; each tool call answered once; no more than one attempt open at a time; one bill row for each attempt sent.
    """
    wrong: list[str] = []
    queued: set[str] = set()
    finished: set[str] = set()
    calls: dict[tuple[str, int, str], str] = {}
    attempt: tuple[str, int, int] | None = None
    unpaid: dict[tuple[str, int, int], str] = {}
    position = 0
    expected = events[0].seq if events else 1
    for event in events:
        at = f"seq {event.seq} ({event.type})"
        run_id = event.run_id or ""
        if event.seq != expected:
            wrong.append(f"{at}: expected seq {expected}")
        expected = event.seq + 1
        if event.position and event.position <= position:
            wrong.append(f"{at}: position {event.position} does not rise")
        position = event.position
        if event.run_id is not None and event.type != "run.queued" and run_id not in queued:
            wrong.append(f"{at}: run {run_id!r} was never queued")
        if run_id in finished:
            wrong.append(f"{at}: run {run_id!r} has ended")
        match event.type:
            case "run.queued":
                if run_id in queued:
                    wrong.append(f"{at}: run {run_id!r} was queued before")
                queued.add(run_id)
            case "run.finished":
                finished.add(run_id)
                if attempt is not None and attempt[0] == run_id:
                    wrong.append(f"{at}: attempt {attempt} is open")
                open_calls = [call for call, stage in calls.items() if call[0] == run_id and stage == "requested"]
                wrong.extend(f"{at}: call {call[2]!r} of turn {call[1]} is not answered" for call in open_calls)
            case "model.started":
                if attempt is not None:
                    wrong.append(f"{at}: attempt {attempt} is still open")
                attempt = (run_id, event.turn, event.attempt)
                unpaid[attempt] = at
            case "model.finished" | "model.failed":
                attempt = None
            case "usage.updated":
                paid = (run_id, event.turn, event.attempt)
                if paid not in unpaid:
                    wrong.append(f"{at}: no attempt {paid} is owed, or it was paid before")
                unpaid.pop(paid, None)
            case "tool.requested":
                calls[run_id, event.turn, event.call_id or ""] = "requested"
            case "tool.started":
                if calls.get((run_id, event.turn, event.call_id or "")) != "requested":
                    wrong.append(f"{at}: call {event.call_id!r} is not waiting")
            case "tool.finished":
                call = (run_id, event.turn, event.call_id or "")
                if calls.get(call) == "finished":
                    wrong.append(f"{at}: call {event.call_id!r} was answered before")
                calls[call] = "finished"
            case _:
                pass
    wrong.extend(f"{at}: attempt {sent} has no row in the bill" for sent, at in unpaid.items() if sent != attempt)
    return wrong
