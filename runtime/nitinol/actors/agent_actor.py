"""One agent: the cell, which stays, and the actor, which may die and come back.

The cell is what a key means as long as its runtime lives. It holds the committed state, the requests that were not yet
accepted, and the outcomes that came while no incarnation lived. The actor holds the working state and what is in flight.
Both live on the core loop; what other threads may call stands first in `Cell`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from nitinol import events as ev
from nitinol.actors.actor import INBOX, Down, Inbox, LoopActor, Reason, call_each
from nitinol.actors.agent_supervisor import Crashed as AgentCrashed
from nitinol.actors.bus import EventBus
from nitinol.actors.gateway import ModelGateway
from nitinol.actors.hook_runner import HookFailed, HookRunner
from nitinol.actors.ledger import Ledger
from nitinol.actors.port import Stopper
from nitinol.actors.supervisor import Wake
from nitinol.actors.tool_runner import ToolRunner
from nitinol.agent import Agent
from nitinol.budget import Budget
from nitinol.env import Env, Loop, Timer, resolve
from nitinol.errors import (
    AgentDown,
    AgentParked,
    AgentStopped,
    AlreadyResolved,
    ConfigurationError,
    InboxFull,
    KeyTaken,
    NitinolError,
    NotFound,
    RuntimeStopped,
    StorageFailed,
)
from nitinol.hooks import Halt
from nitinol.inputs import (
    Add,
    Answered,
    Cancel,
    Configure,
    Crashed,
    Done,
    Failed,
    Input,
    Look,
    Opened,
    Park,
    Prepared,
    Resolve,
    Send,
    Stop,
    Tick,
)
from nitinol.journal.base import Journal, Opening
from nitinol.logs import describe, get_logger
from nitinol.machine import (
    AskApproval,
    CallModel,
    Effect,
    PrepareTool,
    RunTool,
    Wait,
    effects,
    only_waits,
    step,
)
from nitinol.messages import Compacted, Message
from nitinol.repair import View
from nitinol.result import RunResult
from nitinol.state import AgentState, Log

Life = Literal["opening", "up", "asleep", "backoff", "parked", "stopped"]
Events = Sequence[ev.Event]

FIRST = Opened()
STORE_RETRY = 1.0
"""Seconds between attempts to read a store that failed."""
BY_RUNTIME = "the runtime stopped"
"""Why an agent is stopped with all others."""
TRIES = 2
"""Incarnations that may die over one request; then it is refused."""


@dataclass(slots=True, eq=False)
class Request:
    """An input that somebody waits for: answered with its events once they are committed, or with why not."""

    input: Input
    answer: Callable[[Events | BaseException], None]
    then: Callable[[], object] | None = None
    """Done on the core loop when the input is committed, before anything else can see it."""
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Crash:
    """Makes the actor raise: for tests of recovery."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class _Started:
    """The `agent_start` hooks have run; `refusal` if one of them halted."""

    refusal: str | None


@dataclass(frozen=True, slots=True)
class Services:
    """What agents share."""

    env: Env
    core: Loop
    journal: Journal
    bus: EventBus
    gateway: ModelGateway
    ledger: Ledger
    tools: ToolRunner
    hooks: HookRunner
    supervise: Callable[[object], object]
    """Tells the agents' supervisor, whichever lives. From any thread."""
    result_of: Callable[[str, str], RunResult[Any]]
    """Builds the result of a finished run, for `after_run` hooks."""


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
            case "parked" if isinstance(request.input, Stop):
                self._write(request.input, self.stopped, request.answer)
                return
            case "parked" if isinstance(request.input, Cancel):
                self._write(request.input, self._wake_waiters, request.answer)
                return
            case "parked":
                request.answer(
                    AgentParked(
                        f"agent {self.key!r} is parked: {self.committed.parked_because}; ref.resume() tries again"
                    )
                )
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
        """Decide an input while no incarnation lives, and commit it. A store that fails is waited for."""
        journal = self.services.journal

        def opened(opening: Opening | Exception) -> None:
            if isinstance(opening, StorageFailed) or self.life == "stopped":
                again()
                return
            try:
                self._read(opening)
                events, state = step(self.committed, input, self.services.env.now())
            except AlreadyResolved as refusal:
                done(refusal)
                return
            except Exception as error:
                self._give_up(error)
                done(error)
                return
            if events:
                _reach(self.services.env, "before", events)
                journal.append(self.key, self.epoch, events, state, partial(committed, events, state))
            else:
                committed(events, state, None)

        def committed(events: Events, state: AgentState, error: Exception | None) -> None:
            if error is not None:  # the store failed, or another decision of the cell came between
                again()
                return
            _reach(self.services.env, "after", events)
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

    def _wake_waiters(self) -> None:
        self.services.bus.wake(self.committed.open_run_ids)


class AgentActor(LoopActor):
    """One incarnation: decides on inputs, commits what it decided, and keeps in flight what the state wants."""

    _remembers = False  # who watches an agent watches its cell

    def __init__(self, cell: Cell, state: AgentState) -> None:
        services = cell.services
        super().__init__(services.core, partial(cell.down, self))
        self.cell = cell
        self.services = services
        self.epoch = cell.epoch
        self.working = state
        self.in_flight: dict[Effect, Stopper] = {}
        self.timer: Timer | None = None
        self.due: int | None = None
        self.held = False
        """Effects wait: for the `agent_start` hooks, or for ever if one refused."""
        self.refusal: str | None = None
        self.last_hook: asyncio.Task[None] | None = None
        """The `after_run` hooks that were started last; those of the next run, and `agent_stop`, come after them."""
        self.uncommitted: list[Done] = []
        """Outcomes of tools that were decided on; should the store fail, they are told again."""
        self.answers: list[tuple[int, Request, Events | BaseException]] = []
        """Answers that rest on events up to a seq which are not committed yet: they are given when those are."""

    def on_receive(self, message: Any) -> None:
        if self.services.env.crash_point is not None and type(message) in _OUTCOMES:
            self.services.env.crash_point(f"after {_OUTCOMES[type(message)].__name__}")
        match message:
            case Request():
                self._request(message)
            case Tick():
                self.due = None
                if not self._decide(message):
                    self._reconcile()
            case Crash():
                raise message.error
            case _Started():
                self._hooked(message)
            case _:
                if isinstance(message, Opened) and not message.woken and self.cell.definition.has_hook("agent_start"):
                    self.held = True
                    self.services.core.spawn(self._agent_start())
                try:
                    decided = self._decide(message)
                except AlreadyResolved:  # a hook's word on a run that has ended meanwhile; nobody waits for it
                    decided = False
                if not decided and isinstance(message, Opened):
                    self._reconcile()

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self._stop_effects(tools=False)
        self._take_back_answers()

    def on_stop(self) -> None:
        self._stop_effects(tools=True)
        self._take_back_answers()

    def on_unhandled(self, message: Any) -> None:
        # A request is still in the cell's list; an outcome waits for the next incarnation.
        if not isinstance(message, (Request, Tick, Crash, Opened, _Started)):
            backlog = self.cell.backlog = self.cell.backlog or deque()
            backlog.append(message)
        elif isinstance(message, Request):
            self._give_up(message)

    def _give_up(self, request: Request) -> None:
        """A request of a user's is in the cell's list still; who asked this incarnation alone is told that it is gone."""
        if request not in (self.cell.requests or ()):
            request.answer(())

    def _take_back_answers(self) -> None:
        while self.answers:
            self._give_up(self.answers.pop(0)[1])

    def _answer(self, request: Request, outcome: Events | BaseException) -> None:
        """Answer a request that needs no event of its own, once all that was decided before it is committed."""
        if self.working.seq == self.cell.committed.seq:
            self.cell.settled(request, outcome)
        else:
            self.answers.append((self.working.seq, request, outcome))

    def _request(self, request: Request) -> None:
        cast("Inbox", self.actor_inbox).shrink()
        request.tries += 1
        try:
            if self._is_known(request):
                self.cell.settled(request, ())
                return
            if self.working.stopped and isinstance(request.input, (Send, Add)):  # the stop has overtaken it
                raise self.cell.gone()
            decided = self._decide(request.input, request)
        except NitinolError as refusal:
            self._answer(request, refusal)
            return
        if not decided and not isinstance(request.input, Stop):
            self._answer(request, ())
        if self.refusal is not None and isinstance(request.input, Send):
            self.post(Cancel(run_id=request.input.run_id, by="agent_start", status="halted", reason=self.refusal))

    def _is_known(self, request: Request) -> bool:
        """Whether it is a run, or a steer or follow-up, that was accepted before: also by a commit that was told as failed.

        Raises:
            ConfigurationError: It is another agent's.
        """
        if isinstance(request.input, Add) and request.tries > 1:
            input_id = request.input.input_id
            log = self.services.journal.read(self.cell.key)
            return any(isinstance(event, ev.InputQueued) and event.input_id == input_id for event in log)
        if not isinstance(request.input, Send) or (request.input.is_new and request.tries == 1):
            return False
        run_id = request.input.run_id
        found = self.services.journal.find_run(run_id)
        if found is not None and found[0] != self.cell.key:
            raise ConfigurationError(
                f"run_id={run_id!r} is a run of {found[0]!r} already; it cannot be one of {self.cell.key!r} too"
            )
        return found is not None

    def _decide(self, input: Input, request: Request | None = None) -> bool:
        events, state = step(self.working, input, self.services.env.now())
        if not events:
            return False
        self.working = state
        if isinstance(input, Done):
            self.uncommitted.append(input)
        _reach(self.services.env, "before", events)
        self.services.journal.append(
            self.cell.key, self.epoch, events, state, partial(self._told, events, state, request, input)
        )
        return True

    def _told(
        self, events: Events, state: AgentState, request: Request | None, input: Input, error: Exception | None
    ) -> None:
        """How an append went. Whatever escapes is a crash, as in a handler: here nobody else would see it."""
        try:
            if error is not None and request is not None:
                self._give_up(request)
            if isinstance(error, StorageFailed):
                self.discard()
            elif error is not None:
                raise error
            else:
                _reach(self.services.env, "after", events)
                if isinstance(input, Done):
                    self.uncommitted.remove(input)
                self._committed(events, state, request)
        except BaseException as escaped:
            self._die(escaped)

    def _committed(self, events: Events, state: AgentState, request: Request | None) -> None:
        """Everything that a decision releases is released here, in order of commits: publishes, replies, effects."""
        cell = self.cell
        cell.committed = state
        self.services.ledger.note(events)
        self.services.bus.publish(events)
        if request is not None:
            if request.then is not None:
                request.then()
            if not isinstance(request.input, Stop):  # that one is answered when the agent has stopped
                cell.settled(request, events)
        while self.answers and self.answers[0][0] <= state.seq:
            _, answered, outcome = self.answers.pop(0)
            cell.settled(answered, outcome)
        for event in events:
            if event.type == "run.finished" and cell.definition.has_hook("after_run"):
                run_id, result = event.run_id or "", None
                with suppress(StorageFailed):
                    # Built here: once it is told that the run has ended, its log may be forgotten.
                    result = self.services.result_of(cell.key, run_id)
                self.last_hook = self.services.core.spawn(self._after_run(run_id, result, self.last_hook))
            elif event.type == "agent.stopped":
                self.services.core.spawn(self._agent_stop(event.reason))
        if cell.actor is self:
            self._reconcile()

    def rests(self) -> bool:
        """Whether its end would be noticed by nobody: all is committed, and at most people are waited for."""
        state = self.working
        return (
            not (self.uncommitted or self.held or self.refusal or len(cast("Inbox", self.actor_inbox)))
            and state.seq == self.cell.committed.seq
            and (only_waits(state) or (state.run is None and not state.queue))
            and all(isinstance(effect, AskApproval) for effect in self.in_flight)
            and (self.last_hook is None or self.last_hook.done())
            and not (state.stopped or state.parked)
        )

    def discard(self) -> None:
        """Forget what was decided and not committed: this incarnation ends, without a crash."""
        if self.cell.actor is self:
            self.actor_stopped.set()
            self._stop_effects(tools=False)
            self._take_back_answers()
            for done in self.uncommitted:
                self.on_unhandled(done)
            self._refuse_rest()
            self.cell.suspend(self)

    def _reconcile(self) -> None:
        """Start what should be in flight and is not; stop what is and should not be."""
        if self.held:
            return
        state = self.cell.committed
        wanted = effects(state)
        in_flight = self.in_flight
        for effect in [effect for effect in in_flight if effect not in wanted]:
            in_flight.pop(effect)()
        until: int | None = None
        fresh: list[Any] = []
        for effect in wanted:
            if isinstance(effect, Wait):
                until = effect.until if until is None else min(until, effect.until)
            elif effect not in in_flight:
                fresh.append(effect)
        if len(fresh) > 1:
            fresh.sort(key=_order)
        for effect in fresh:
            in_flight[effect] = self._start(effect, state)
        self._set_timer(until)

    def _start(self, effect: Effect, state: AgentState) -> Stopper:
        services, cell, run, agent = self.services, self.cell, state.run, state.definition
        assert run is not None
        assert agent is not None
        if services.env.crash_point is not None:
            services.env.crash_point(f"before {type(effect).__name__}")
        match effect:
            case CallModel():
                return services.gateway.start(effect, cell, agent, state)
            case PrepareTool():
                return services.tools.prepare(effect, cell, agent, run.calls[effect.index])
            case RunTool():
                return services.tools.start(effect, cell, agent, run, run.calls[effect.index])
            case _:
                return _nothing

    def _set_timer(self, until: int | None) -> None:
        if until == self.due:
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.due = until
        if until is not None:
            delay = max((until - self.services.env.now()) / 1e9, 0.0)
            self.timer = self.services.core.call_later(delay, self.post, Tick())

    def _stop_effects(self, tools: bool) -> None:
        """Tools outlive a crash: the next incarnation adopts them."""
        for effect, stop in self.in_flight.items():
            if tools or not isinstance(effect, RunTool):
                stop()
        self.in_flight.clear()
        if self.timer is not None:
            self.timer.cancel()

    # -- hooks

    async def _agent_start(self) -> None:
        try:
            answer = await self.services.hooks.run("agent_start", self.cell.definition, self.working)
        except HookFailed as error:
            self.post(_Started(str(error)))
            return
        self.post(_Started(answer.reason if isinstance(answer, Halt) else None))

    def _hooked(self, started: _Started) -> None:
        self.refusal = started.refusal
        if self.refusal is None:
            self.held = False
            self._reconcile()
            return
        for run_id in self.working.open_run_ids:
            self.post(Cancel(run_id=run_id, by="agent_start", status="halted", reason=self.refusal))

    async def _after_run(self, run_id: str, result: RunResult[Any] | None, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        while result is None:  # its log could not be read: a failure of the store, and no crash
            await asyncio.sleep(STORE_RETRY)
            try:
                result = self.services.result_of(self.cell.key, run_id)
            except StorageFailed:
                continue
            except NotFound:  # it was forgotten meanwhile
                return
        try:
            await self.services.hooks.run("after_run", self.cell.definition, self.cell.committed, result)
        except HookFailed as error:
            get_logger().warning("after_run failed", key=self.cell.key, run_id=result.run_id, error=str(error))

    async def _settle(self) -> None:
        """Have in the log what the attempt in flight has come to, before nobody is there to write it."""
        landed = asyncio.Event()
        if self.services.gateway.when_landed(self.cell.key, landed.set):
            await landed.wait()
            if self.cell.actor is self:
                await self.cell.ask(Look())

    async def _agent_stop(self, reason: str) -> None:
        if self.last_hook is not None:
            await asyncio.wait([self.last_hook])
        try:
            await self.services.hooks.run("agent_stop", self.cell.definition, self.cell.committed, reason)
        except HookFailed as error:
            get_logger().warning("agent_stop failed", key=self.cell.key, error=str(error))
        await self._settle()
        self.cell.stopped("shutdown" if reason == BY_RUNTIME else "normal")


def _reach(env: Env, when: Literal["before", "after"], events: Events) -> None:
    if env.crash_point is not None:
        for name in dict.fromkeys(event.type for event in events):
            env.crash_point(f"{when} {name}")


_OUTCOMES: dict[type[Any], type[Any]] = {
    Answered: CallModel,
    Failed: CallModel,
    Prepared: PrepareTool,
    Done: RunTool,
}
"""What an outcome is the outcome of."""


def _continues(state: AgentState, transcript: Log[Message], compacted: Compacted) -> bool:
    return state.compacted == compacted and state.transcript.continues(transcript)


def _order(effect: Effect) -> int:
    return cast("int", getattr(effect, "index", 0))


def _nothing() -> None:
    """An effect that is only waited for."""
