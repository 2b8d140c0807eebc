"""A system that only looks on: it follows a store, whoever owns it, and changes nothing.

The log is the truth for both: the owner publishes what it has committed, a follower what it finds committed. So bus,
subscriptions, handles and references are the same here as there. Its cells have no actor; what they say is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields
from typing import Any, ClassVar, NoReturn, cast

from nitinol import events as ev
from nitinol.actors.actor import Reason
from nitinol.actors.agent_actor import Events, Services
from nitinol.actors.bus import PAGE
from nitinol.actors.cell import Cell, Life
from nitinol.actors.system import Outline, Part, System
from nitinol.agent import Agent
from nitinol.budget import Budget
from nitinol.env import Env, Timer
from nitinol.errors import KeyTaken, ReadOnly
from nitinol.inputs import Input
from nitinol.journal.base import Past
from nitinol.journal.read_only import ReadOnlyJournal
from nitinol.logs import get_logger
from nitinol.state import AgentState, BrokenLog

POLL = 0.05
"""Seconds between two looks at the end of the log."""
RETRY = 1.0
"""Seconds until the next look at a store that could not be read."""


class Mirror(Cell):
    """An agent that lives elsewhere, or nowhere: its key, its definition if it is known, and what its log says.

    From any thread. Whoever asks for its state reads what was committed since the last look.
    """

    __slots__ = ("_base", "_ended", "_lock", "_state", "_store")

    def __init__(self, services: Services, store: ReadOnlyJournal, key: str, definition: Agent[Any]) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._base = 0
        self._state = AgentState(key, definition.name)
        super().__init__(services, key, definition)

    @property
    def committed(self) -> AgentState:
        """The fold of what is committed now.

        Raises:
            StorageFailed: The store cannot be read.
        """
        with self._lock:
            while True:
                base, seq = self._store.extent(self.key)
                if base != self._base or seq < self._state.seq:  # it was forgotten
                    self._base, self._state = base, AgentState(self.key, self.definition.name, seq=base)
                if self._state.seq == seq:
                    return self._state
                events = self._store.read(self.key, self._state.seq)
                if self._store.extent(self.key)[0] == base:  # else it was forgotten between the looks
                    self._state = self._fold_on(events, seq)

    @committed.setter
    def committed(self, state: AgentState) -> None:
        self._state = state

    def _fold_on(self, events: Sequence[ev.EventBase], until: int) -> AgentState:
        draft = self._state.copy()
        try:
            for event in events:
                draft.absorb(event)
            if draft.seq < until:
                raise BrokenLog(f"agent {self.key!r}: its log should end with event {until}, which cannot be read")
        except Exception as error:  # as its owner would, which parks it
            draft.seq, draft.parked, draft.parked_because = max(until, draft.seq), True, str(error)
        return draft

    @property
    def life(self) -> Life:
        """Stopped with its runtime; else parked or up. A stopped agent, or one without an owner, may yet go on."""
        return "stopped" if self._ended else "parked" if self.committed.parked else "up"

    @life.setter
    def life(self, life: Life) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] # the log tells it, too
        self._ended = life == "stopped"

    def submit(self, input: Input, then: Callable[[], object] | None = None) -> Future[Events]:
        """Refused."""
        return _refused(self._store.refusal(f"agent {self.key!r} takes nothing"))

    def resume(self) -> Future[Events]:
        """Refused."""
        return _refused(self._store.refusal(f"agent {self.key!r} cannot be resumed"))

    def stopped(self, reason: Reason = "shutdown") -> None:
        """The runtime stops; the bus wakes who waits."""
        self._ended = True

    def tell_waiters(self) -> None:
        """Let those who wait for its runs look again."""
        self._wake_waiters()


class Follower(System):
    """A system beside the owner of a store. Polls the log on the core loop, on which nothing else runs.

    Args:
        definitions: By name, of agents whose typed output is to be read; the others' are not needed.
        result_of: As `System`.
    """

    def __init__(
        self,
        env: Env,
        open_store: Callable[[], ReadOnlyJournal],
        definitions: Mapping[str, Agent[Any]],
        result_of: Callable[[str, str], Any],
    ) -> None:
        store = self._store = open_store()
        self._cursor = 0
        self._timer: Timer | None = None
        self._failing = False
        self._strangers: dict[str, Agent[Any]] = {}
        """Stand-ins for the definitions that are not known here."""
        super().__init__(env, lambda env, core: store, definitions, 1, None, result_of)

    # -- from any thread

    def begin(self) -> None:
        """Follow the log from its end."""
        self._cursor = self.bus.position
        self.core.call(self._follow)

    def cell(self, agent: Agent[Any], key: str) -> Cell:
        """The agent of a key of the store, seen with this definition.

        Raises:
            KeyTaken: The key lives under another agent's name.
            ReadOnly: It does not live.
        """
        cell = self.stored(key)
        if cell is None:
            raise self._store.refusal(f"agent {key!r} cannot be started")
        if cell.definition.name != agent.name:
            raise KeyTaken(f"key {key!r} lives as an agent {cell.definition.name!r}; it cannot be a {agent.name!r} too")
        cell.definition = agent
        return cell

    def limit(self, cell: Cell, budget: Budget) -> NoReturn:
        """Refused."""
        raise self._store.refusal(f"agent {cell.key!r} cannot be given a budget")

    def stored(self, key: str) -> Cell | None:
        """The agent of a key, if the store knows it."""
        self.check()
        head = self._store.head(key)
        if head is None:  # also one that was forgotten since
            with self._lock:
                self.cells.pop(key, None)
            return None
        return self._mirror(key, head.agent)

    def everyone(self) -> dict[str, Cell]:
        """All agents of the store."""
        return {head.key: self._mirror(head.key, head.agent) for head in self._store.heads()}

    def outline(self) -> list[Outline]:
        """What all agents of the store do, by their heads, and what became of their earlier incarnations."""
        heads, pasts, none = self._store.heads(), self._store.pasts(), Past()
        found = [(head, pasts.get(head.key, none)) for head in heads]
        return [
            Outline(head.key, "up", head.state, max(past.incarnation - 1, 0), past.last_reason) for head, past in found
        ]

    def parts(self) -> list[Part]:
        """There are no more."""
        return [("journal", "worker", "read only"), ("follower", "worker", "running"), ("bus", "worker", "running")]

    def check_models(self, agent: Agent[Any]) -> None:
        """Nobody calls a model here: neither provider nor key is needed."""

    def announce(self, event: ev.Event) -> NoReturn:
        """Refused."""
        raise self._store.refusal("nothing can be published")

    def restore(self, key: str, events: Sequence[ev.EventBase], state: AgentState) -> NoReturn:
        """Refused."""
        raise self._store.refusal(f"agent {key!r} cannot be imported")

    def forget(self, key: str, after_run: str | None = None, *, owes: bool = False) -> Future[None]:
        """Refused."""
        return _refused(self._store.refusal(f"agent {key!r} cannot be forgotten"))

    def _mirror(self, key: str, name: str) -> Cell:
        with self._lock:
            cell = self.cells.get(key)
            if cell is None or cell.definition.name != name:
                definition = self.definitions.get(name) or self._strangers.get(name)
                if definition is None:
                    definition = self._strangers[name] = Agent(name=name, model="unknown:unknown")
                cell = self.cells[key] = Mirror(self.services, self._store, key, definition)
            return cell

    # -- on the core loop

    def _follow(self) -> None:
        if self.bus.stopped is not None:
            return
        delay = POLL
        try:
            page = self._store.scan(self._cursor, PAGE)
            if page:
                self._cursor = page[-1].position
                self._tell(page)
            if len(page) == PAGE:
                delay = 0.0
            self._failing = False
        except Exception as error:
            delay = RETRY
            if not self._failing:
                self._failing = True
                get_logger().error("the store cannot be followed", path=str(self._store.path), error=repr(error))
        self._timer = self.core.call_later(delay, self._follow)

    def _tell(self, page: Sequence[ev.EventBase]) -> None:
        self.bus.publish([_of_log(event) for event in page])
        for key in {event.key for event in page if event.type == "agent.parked"}:
            cell = self.cells.get(key)
            if isinstance(cell, Mirror):
                cell.tell_waiters()

    async def stop_agents(self, seconds: float) -> None:
        """None lives here."""

    async def _wind_down(self, drain: float, until: float) -> None:
        """There is nothing to wait for, and nothing to end."""
        if self._timer is not None:
            self._timer.cancel()


class _Unknown(ev.Custom):
    """An event of the log that this version does not know: for readers a `Custom`, for the bus a durable one."""

    __slots__ = ()
    durable: ClassVar[bool] = True


def _of_log(event: ev.EventBase) -> ev.Event:
    if isinstance(event, ev.Custom):
        return _Unknown(**{field.name: getattr(event, field.name) for field in fields(event)})
    return cast("ev.Event", event)


def _refused(error: ReadOnly) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
