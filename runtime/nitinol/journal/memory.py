"""A journal in memory: as long-lived as the process."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from nitinol.events import EventBase, UsageUpdated, stamp
from nitinol.journal.base import Committed, Conflict, Head, Opening, taken
from nitinol.journal.bill import NOTHING, By, Spent, scopes_of
from nitinol.state import AgentState


class MemoryJournal:
    """Commits at once. One thread appends; reading from other threads needs no lock, as lists only grow."""

    durable = False

    def __init__(self) -> None:
        self._streams: dict[str, list[EventBase]] = {}
        self._epochs: dict[str, int] = {}
        self._runs: dict[str, tuple[str, int]] = {}
        self._log: list[EventBase] = []
        self._forgotten: dict[str, int] = {}
        """Keys to the position up to which their events are dead; a key may live again."""
        self._dead = 0
        self._position = 0
        self._spent: dict[tuple[By, str], Spent] = {}

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        epoch = self._epochs[key] = self._epochs.get(key, 0) + 1
        events = tuple(self._streams.get(key, ()))
        opened(Opening(epoch, events, events[0].seq - 1 if events else 0))

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        stream = self._streams.setdefault(key, [])
        if self._epochs.get(key) != epoch or events[0].seq != (stream[-1].seq if stream else 0) + 1:
            committed(Conflict(f"agent {key!r}: a stale incarnation (epoch {epoch}) wrote seq {events[0].seq}"))
            return
        self._commit(key, stream, events)
        committed(None)

    def restore(self, key: str, events: Sequence[EventBase], state: AgentState, restored: Committed) -> None:
        if self._streams.get(key):
            restored(taken(key))
            return
        if known := [event.run_id for event in events if event.type == "run.queued" and event.run_id in self._runs]:
            restored(Conflict(f"agent {key!r} cannot be restored: run {known[0]!r} is another agent's here"))
            return
        self._epochs[key] = self._epochs.get(key, 0) + 1
        self._commit(key, self._streams.setdefault(key, []), events)
        restored(None)

    def _commit(self, key: str, stream: list[EventBase], events: Sequence[EventBase]) -> None:
        position = self._position
        for event in events:
            position += 1
            stamp(event, position)
            if isinstance(event, UsageUpdated):
                for at in scopes_of(event):
                    self._spent[at] = self._spent.get(at, NOTHING).plus(event)
            if event.type == "run.queued" and event.run_id is not None:
                self._runs[event.run_id] = (key, event.seq)
        stream.extend(events)
        self._log.extend(events)
        self._position = position

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        stream = self._streams.get(key)
        if not stream:
            return ()
        start = max(after_seq + 1 - stream[0].seq, 0)
        return stream[start:] if limit is None else stream[start : start + limit]

    def scan(self, after: int, limit: int) -> Sequence[EventBase]:
        log = self._log
        start = bisect_right(log, after, key=lambda event: event.position)
        return log[start : start + limit]

    def find_run(self, run_id: str) -> tuple[str, int] | None:
        return self._runs.get(run_id)

    def head(self, key: str) -> Head | None:
        return None

    def heads(self, *, active: bool = False, reserved: bool = False) -> Sequence[Head]:
        return []

    def spent(self, by: By) -> Mapping[str, Spent]:
        return {name: spent for (scope, name), spent in self._spent.copy().items() if scope == by}

    def waiting(self) -> Sequence[tuple[str, str]]:
        return []

    def timers(self, after: int = 0, until: int | None = None) -> Sequence[tuple[int, str]]:
        return []

    @property
    def position(self) -> int:
        return self._position

    def forget(self, key: str, forgotten: Committed) -> None:
        stream = self._streams.pop(key, [])
        self._epochs.pop(key, None)
        self._spent.pop(("key", key), None)
        for event in stream:
            if event.type == "run.queued" and event.run_id is not None:
                self._runs.pop(event.run_id, None)
        self._forgotten[key] = self._position
        self._dead += len(stream)
        if self._dead * 2 > len(self._log):  # so that forgetting costs, in sum, one copy of what was forgotten
            self._log = [event for event in self._log if event.position > self._forgotten.get(event.key, 0)]
            self._forgotten, self._dead = {}, 0
        forgotten(None)

    def close(self) -> None:
        """Nothing to do."""
