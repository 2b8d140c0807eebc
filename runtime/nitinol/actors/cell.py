"""The cell: what an agent's key means as long as its runtime lives.

It holds the committed state, the requests that were not yet accepted, and the outcomes that came while no incarnation
lived. It lives on the core loop; other threads may call what stands first, and read `committed`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from nitinol.actors.actor import INBOX, Down, Inbox, Reason, call_each
from nitinol.actors.agent_actor import STORE_RETRY, AgentActor, Events, Request, Services, reach
from nitinol.actors.agent_supervisor import Crashed as AgentCrashed
from nitinol.actors.supervisor import Wake
from nitinol.agent import Agent
from nitinol.budget import Budget
from nitinol.env import Timer, resolve
from nitinol.errors import (
    AgentDown,
    AgentParked,
    AgentStopped,
    AlreadyResolved,
    InboxFull,
    KeyTaken,
    RuntimeStopped,
    StorageFailed,
)
from nitinol.events import Event
from nitinol.inputs import (
    Answered,
    Cancel,
    Configure,
    Crashed,
    Done,
    Failed,
    Input,
    Opened,
    Park,
    Resolve,
    Send,
    Stop,
)
from nitinol.journal.base import Opening
from nitinol.logs import describe, get_logger
from nitinol.machine import step
from nitinol.messages import Compacted, Message
from nitinol.repair import View
from nitinol.state import AgentState, Log

Life = Literal["opening", "up", "asleep", "backoff", "parked", "stopped"]

FIRST = Opened()
TRIES = 2
"""Incarnations that may die over one request; then it is refused."""


class Cell:
    """The stable side of an agent."""

    __slots__ = (
        "actor", "backlog", "committed", "deferred", "definition", "epoch", "failure", "given", "key", "last", "life", "limit",
        "reopening", "requests", "services", "view", "viewed", "watchers", "writes",
    )  # fmt: skip

    def __init__(self, services: Services, key: str, definition: Agent[Any]) -> None:
        self.services = services
        self.key = key
        self.definition = self.given = definition
        self.committed = AgentState(key=key, agent=definition.name, definition=definition)
        self.actor: AgentActor | None = None
        self.life: Life = "opening"
        self.epoch = 0
        """Under which its incarnation writes; 0 until its log has been read."""
        self.requests: deque[Request] | None = None
        self.backlog: deque[Input] | None = None
        self.failure: Exception | None = None
        """Why its log cannot be read; then it is parked."""
        self.reopening: Timer | None = None
        self.writes = 0
        """Decisions of the cell itself that are not committed yet; no incarnation starts before they are."""
        self.deferred: Opened | None = None
        self.view: View | None = None
        """Of `viewed`, the transcript of the last request and what was left out of it."""
        self.viewed: tuple[Log[Message], Compacted] | None = None
        self.limit: Budget | None = None
        """The budget of the key that was last given here."""
        self.last: str | None = None
        """Why its last incarnation here ended."""
        self.watchers: list[Callable[[Down], object]] | None = None

    # -- from any thread

    @property
    def inbox_depth(self) -> int:
        """What waits for it: requests of users, and other messages of its actor."""
        actor = self.actor
        waiting = len(self.requests or ())
        return waiting if actor is None else max(waiting, len(cast("Inbox", actor.actor_inbox)))

    def submit(self, input: Input, then: Callable[[], object] | None = None) -> Future[Events]:
        """A user's input. The future holds its committed events, or the error that refused it."""
        future: Future[Events] = Future()

        def answer(outcome: Events | BaseException) -> None:
            if isinstance(outcome, BaseException):
                resolve(future, error=outcome)
            else:
                resolve(future, outcome)

        if not self.services.core.call(self.accept, Request(input, answer, then)):
            answer(self.services.bus.stopped or RuntimeStopped())
        return future

    def resume(self) -> Future[Events]:
        """Try again now, if it is parked or in backoff. The future ends once inputs are accepted again."""
        future: Future[Events] = Future()

        def resume() -> None:
            by_hand = self.life == "parked"
            if self.failure is not None:
                self.life = "opening"
                self.open()
            elif by_hand:
                self.life = "backoff"
            if self.life == "backoff":
                self.services.supervise(Wake(self, by_hand))
            resolve(future, ())

        if not self.services.core.call(resume):
            future = Future()  # the call may be carried out after all
            future.set_exception(self.services.bus.stopped or RuntimeStopped())
        return future

    def watch(self, told: Callable[[Down], object]) -> None:
        """Have `told` called once when its incarnation is down, at once if none lives. It comes on the core loop."""

        def watch() -> None:
            if self.life == "stopped":
                told(Down(id=self.key, reason="normal" if self.last == "normal" else "shutdown"))
            elif self.life in ("backoff", "parked"):
                told(Down(id=self.key, reason="crash", text=self.last or self.committed.parked_because or ""))
            else:
                self.watchers = [*(self.watchers or ()), told]

        if not self.services.core.call(watch):
            told(Down(id=self.key, reason="shutdown"))

    def redefine(self, definition: Agent[Any]) -> None:
        """Live by another definition from the next run on. A model that `set_model` chose stays, unless this names another."""
        changes = self.given.changes_to(definition)
        self.given = definition
        if not changes:
            return
        chosen = self.definition.model
        self.definition = definition if "model" in changes else definition.replace(model=chosen)
        self.submit(Configure(changes=changes, definition=self.definition))

    def begin_again(self, definition: Agent[Any]) -> None:
        """Start one that was stopped, by this definition."""
        self.definition = self.given = definition
        self.committed = replace(self.committed, definition=definition, next_definition=None)
        self.life = "opening"
        self.services.core.call(self.open)

    def restart(self, restarts: int, delay: float, by_hand: bool) -> None:
        """For the supervisor: start a new incarnation."""
        opened = Opened(restarts=restarts, delay=delay, by_hand=by_hand)
        self.services.core.call(lambda: self._launch(opened) if self.life == "backoff" else None)

    def park(self, restarts: int, reason: str) -> None:
        """For the supervisor: give up until somebody resumes."""
        self.services.core.call(self._park, restarts, reason)

    # -- Port, on the core loop

    def tell(self, input: Input) -> None:
        if self.actor is not None:
            self.actor.post(input)
        else:
            if self.backlog is None:
                self.backlog = deque()
            self.backlog.append(input)

    def view_of(self, state: AgentState) -> tuple[tuple[Message, ...], int, int]:
        if self.view is None or self.viewed is None or not _continues(state, *self.viewed):
            self.view = View()
        self.viewed = state.transcript, state.compacted
        return self.view.of(state.shown)

    def ask(self, input: Input) -> asyncio.Future[Events]:
        future: asyncio.Future[Events] = asyncio.get_running_loop().create_future()

        def answer(outcome: Events | BaseException) -> None:
            if not future.done():
                future.set_result(() if isinstance(outcome, BaseException) else outcome)

        if self.actor is None:
            answer(())
        else:
            self.actor.post(Request(input, answer))
        return future

    # -- on the core loop

    def open(self, how: Opened = FIRST) -> None:
        """Take over the key and start an incarnation: the first of this process, or after a failure of the store."""
        if self.reopening is not None:
            self.reopening.cancel()
            self.reopening = None
        if self.life == "opening":
            self.services.journal.open(self.key, partial(self._opened, how))

    def sleep(self) -> bool:
        """Leave memory, if nothing is in flight and nobody waits for anything but people; whether it sleeps now.

        What stays is the cell, and the state without its conversation. The next input wakes it, or its timer.
        """
        actor = self.actor
        if self.life != "up" or self.requests or self.writes or actor is None or not actor.rests():
            return False
        self.actor, self.life = None, "asleep"
        actor.vanish()
        self.committed = self.committed.asleep()
        self.view = self.viewed = None
        return True

    def wake(self) -> None:
        """Come back, if it sleeps."""
        if self.life == "asleep":
            self.life = "opening"
            self.open(Opened(woken=True))

    def _fold(self, opening: Opening) -> AgentState:
        # What is not of the log outlives an incarnation: a run goes on by the definition that it goes by.
        live, last = self.committed.definition, self.committed.next_definition
        start = opening.state or AgentState(self.key, self.definition.name, seq=opening.base_seq)
        return replace(start, definition=live, next_definition=last).fold(opening.events)

    def suspend(self, actor: AgentActor) -> None:
        """The store failed: what was not committed never was. Fold again once it can be read; no crash is counted."""
        if self.actor is not actor:
            return
        self.actor, self.life = None, "opening"
        self._tell_down("shutdown", "the store failed")
        self._open_later(Opened(suspended=True))

    def start_over(self) -> None:
        """All agents begin again, as their supervisor does: from the log, and counted as no crash of theirs."""
        if self.life == "up" and self.actor is not None:
            self.actor.discard()
            self.open(Opened(suspended=True))
        elif self.life == "backoff":
            self._launch(Opened(restarts=self.committed.incarnation))

    def _tell_down(self, reason: Reason, why: str, error: BaseException | None = None) -> None:
        # The error itself is not kept: the frames of its traceback would stay with it.
        self.last = why
        watchers, self.watchers = self.watchers, None
        if watchers:
            down = Down(id=self.key, reason=reason, error=error, text=why)
            call_each([partial(told, down) for told in watchers])

    def _open_later(self, how: Opened) -> None:
        if self.reopening is None:
            self.reopening = self.services.core.call_later(STORE_RETRY, self.open, how)

    def _opened(self, how: Opened, opening: Opening | Exception) -> None:
        if self.life != "opening":
            return
        if isinstance(opening, StorageFailed):
            self._open_later(how)
            return
        try:
            self._read(opening)
        except Exception as error:
            self._give_up(error)
            return
        self._launch(how)

    def _read(self, opening: Opening | Exception) -> None:
        if isinstance(opening, Exception):
            raise opening
        last = opening.events[-1] if opening.events else opening.state
        if last is not None and last.agent != self.definition.name:
            name = last.agent
            raise KeyTaken(
                f"key {self.key!r} is an agent {name!r} in the store; it cannot be a {self.definition.name!r} too"
            )
        self.committed = self._fold(opening)
        self.epoch, self.failure = opening.epoch, None

    def _launch(self, opened: Opened) -> None:
        if self.actor is not None or self.life == "stopped":
            return
        if self.writes:
            self.deferred = opened
            return
        if self.services.gateway.when_landed(self.key, partial(self._launch, opened)):
            return  # what the attempt of the last incarnation came to is told first
        self.life = "up"
        self.actor = AgentActor(self, self.committed)
        self.actor.launch()
        run = self.committed.run
        flying = self.services.tools.in_flight(self.key)
        reported = False
        for input in self.backlog or ():  # what has ended since the crash is told right after
            if isinstance(input, Done):
                flying[input.run_id, input.turn, input.call_id] = input.execution
            elif isinstance(input, (Answered, Failed)) and run is not None and run.attempt_open:
                at = (input.run_id, input.turn, input.attempt)
                reported = reported or at == (run.run_id, run.turn, run.attempt)
        adopted = frozenset(
            (call_id, number)
            for (run_id, turn, call_id), number in flying.items()
            if run is not None and (run_id, turn) == (run.run_id, run.turn)
        )
        self.actor.post(replace(opened, adopted=adopted, reported=reported))
        backlog, self.backlog = self.backlog or (), None
        for input in backlog:
            self.actor.post(input)
        for request in self.requests or ():
            self._hand_over(request, self.actor)

    def accept(self, request: Request) -> None:
        """As `submit`, here and now."""
        stopped = self.services.bus.stopped
        if stopped is not None:
            request.answer(stopped)
            return
        match self.life:
            case "parked" if self.failure is not None:
                request.answer(self.failure)
                return
            case "parked" if isinstance(request.input, (Stop, Cancel)):
                if not self.services.gateway.when_landed(self.key, partial(self.accept, request)):
                    then = self.stopped if isinstance(request.input, Stop) else self._wake_waiters
                    self._write(request.input, then, request.answer)
                return
            case "parked":
                why = self.committed.parked_because or self.last
                request.answer(AgentParked(f"agent {self.key!r} is parked: {why}; ref.resume() tries again"))
                return
            case "stopped":
                request.answer(self.gone())
                return
            case _:
                pass
        if self.requests is None:
            self.requests = deque()
        if len(self.requests) >= INBOX and not isinstance(request.input, (Cancel, Resolve, Stop)):
            request.answer(
                InboxFull(f"agent {self.key!r} has {INBOX} inputs waiting and takes no more for now; try again")
            )
            return
        self.requests.append(request)
        if self.actor is not None:
            self._hand_over(request, self.actor)
        elif self.life == "asleep":
            self.wake()
        elif self.life == "backoff" and isinstance(request.input, (Cancel, Resolve, Stop)):
            self.services.supervise(Wake(self, by_hand=False))

    def _hand_over(self, request: Request, actor: AgentActor) -> None:
        """Cancels, decisions and stops overtake what else users have sent; a cancel not the run that it is of."""
        input = request.input
        overtakes = isinstance(input, (Resolve, Stop)) or (
            isinstance(input, Cancel)
            and not any(
                isinstance(other.input, Send) and other.input.run_id == input.run_id for other in self.requests or ()
            )
        )
        (actor.post if overtakes else actor.post_last)(request)

    def settled(self, request: Request, outcome: Events | BaseException) -> None:
        """A request is answered: from here only the journal knows of it."""
        if self.requests is not None and request in self.requests:
            self.requests.remove(request)
            if not self.requests:
                self.requests = None
        request.answer(outcome)

    def down(self, actor: AgentActor, error: BaseException | None) -> None:
        """The incarnation is gone: orderly, or crashed with `error`."""
        if self.actor is not actor:
            return
        self.actor = None
        actor.let_go()
        if error is None or self.life == "stopped":
            return
        self.life = "backoff"
        crashed = Crashed(error_type=type(error).__name__, error=describe(error)[:2000])
        self._tell_down("crash", f"{crashed.error_type}: {crashed.error}", error)
        get_logger().warning(
            "agent crashed", agent=self.committed.agent, key=self.key, error_type=crashed.error_type, exc_info=error
        )

        def then() -> None:
            for request in list(self.requests or ()):  # what the dead one had decided is committed by now, or never
                if request.tries >= TRIES:
                    why = f"agent {self.key!r} died {request.tries} times over this: {crashed.error_type}: {crashed.error}"
                    self.settled(request, AgentDown(why))
            self.services.supervise(AgentCrashed(self, self.last or ""))

        # The cell writes, under a new epoch: nothing of the dead incarnation can come after it.
        self._write(crashed, then)

    def _park(self, restarts: int, reason: str) -> None:
        if self.life != "backoff":  # it was stopped meanwhile, or is up again with all others
            return
        self.life = "parked"
        parked = AgentParked(f"agent {self.key!r} is parked: {reason}; ref.resume() tries again")
        waiting, self.requests = self.requests or (), None
        taken = [request for request in waiting if isinstance(request.input, (Stop, Cancel))]  # by a parked agent too
        for request in waiting:
            if request not in taken:
                request.answer(parked)

        def then() -> None:
            self._wake_waiters()
            for request in taken:
                self.accept(request)

        self._write(Park(restarts=restarts, reason=reason), then)

    def stopped(self, reason: Reason = "shutdown") -> None:
        """The agent was stopped on purpose, and its last hook has run."""
        self.life = "stopped"
        self.services.ledger.orphan(self.key)
        if self.actor is not None:
            self.actor.halt()
        self.backlog = None
        self._tell_down(reason, reason)
        self.refuse(self.gone())
        self._wake_waiters()

    def gone(self) -> AgentStopped:
        """What is said to those who are too late."""
        return AgentStopped(f"agent {self.key!r} was stopped; rt.start(agent, key={self.key!r}) starts it again")

    def refuse(self, error: Exception) -> None:
        """Answer all who wait to be accepted; those who wanted it stopped have what they want."""
        for request in list(self.requests or ()):
            self.settled(request, () if isinstance(request.input, Stop) else error)

    def _give_up(self, error: Exception) -> None:
        self.life, self.failure = "parked", error
        self.services.ledger.orphan(self.key)
        self._tell_down("crash", f"{type(error).__name__}: {describe(error)}", error)
        get_logger().error("agent cannot be opened", key=self.key, error=repr(error))
        for request in list(self.requests or ()):
            self.settled(request, error)

    def _write(
        self, input: Input, then: Callable[[], object], answer: Callable[[Events | BaseException], None] | None = None
    ) -> None:
        """Decide an input while no incarnation lives, and commit it. A store that fails is waited for.

        What a stop or a cancel finds in the backlog goes before it: what an attempt came to is known, and is its bill.
        """
        journal = self.services.journal

        def opened(opening: Opening | Exception) -> None:
            if isinstance(opening, StorageFailed) or self.life == "stopped":
                again()
                return
            try:
                self._read(opening)
                events, state = self._decided(input)
            except AlreadyResolved as refusal:
                done(refusal)
                return
            except Exception as error:
                self._give_up(error)
                done(error)
                return
            if events:
                reach(self.services.env, "before", events)
                journal.append(self.key, self.epoch, events, state, partial(committed, events, state))
            else:
                committed(events, state, None)

        def committed(events: Events, state: AgentState, error: Exception | None) -> None:
            if error is not None:  # the store failed, or another decision of the cell came between
                again()
                return
            reach(self.services.env, "after", events)
            self.committed = state
            self.services.ledger.note(events)
            self.services.bus.publish(events)
            then()
            done(events)

        def again() -> None:
            if self.life == "stopped":  # perhaps forgotten: what it would write now is not of its key's next life
                done(AgentStopped(f"agent {self.key!r} was stopped"))
            else:
                self.services.core.call_later(STORE_RETRY, open_again)

        def open_again() -> None:
            if self.life == "stopped":
                again()
            else:
                journal.open(self.key, opened)

        def done(outcome: Events | BaseException) -> None:
            self.writes -= 1
            if answer is not None:
                answer(outcome)
            if not self.writes and self.deferred is not None:
                deferred, self.deferred = self.deferred, None
                self._launch(deferred)

        self.writes += 1
        journal.open(self.key, opened)

    def _decided(self, input: Input) -> tuple[Events, AgentState]:
        events, state, now = list[Event](), self.committed, self.services.env.now()
        reports = [report for report in self.backlog or () if isinstance(report, (Answered, Failed))]
        for each in (*reports, input) if isinstance(input, (Stop, Cancel)) else (input,):
            more, state = step(state, each, now)
            events += more
        return events, state

    def _wake_waiters(self) -> None:
        self.services.bus.wake(self.committed.open_run_ids)


def _continues(state: AgentState, transcript: Log[Message], compacted: Compacted) -> bool:
    return state.compacted == compacted and state.transcript.continues(transcript)
