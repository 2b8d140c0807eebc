"""One incarnation of an agent, which may die and come back. On the core loop.

It holds the working state and what is in flight; what stays is its cell's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

from nitinol import events as ev
from nitinol.actors.actor import Inbox, LoopActor, Reason
from nitinol.actors.bus import EventBus
from nitinol.actors.gateway import ModelGateway
from nitinol.actors.hook_runner import HookFailed, HookRunner
from nitinol.actors.ledger import Ledger
from nitinol.actors.port import Port, Stopper
from nitinol.actors.tool_runner import ToolRunner
from nitinol.agent import Agent
from nitinol.env import Env, Loop, Timer
from nitinol.errors import (
    AgentStopped,
    AlreadyResolved,
    ConfigurationError,
    NitinolError,
    NotFound,
    StorageFailed,
)
from nitinol.hooks import Halt
from nitinol.inputs import (
    Add,
    Answered,
    Cancel,
    Done,
    Failed,
    Input,
    Look,
    Opened,
    Prepared,
    Send,
    Stop,
    Tick,
)
from nitinol.journal.base import Journal
from nitinol.logs import get_logger
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
from nitinol.result import RunResult
from nitinol.state import AgentState

Events = Sequence[ev.Event]

STORE_RETRY = 1.0
"""Seconds between attempts to read a store that failed."""
BY_RUNTIME = "the runtime stopped"
"""Why an agent is stopped with all others."""


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


class Home(Port, Protocol):
    """What an incarnation knows of its cell: more than the gateway and the pool do."""

    services: Services
    definition: Agent[Any]
    epoch: int
    requests: deque[Request] | None
    backlog: deque[Input] | None

    @property
    def actor(self) -> AgentActor | None:
        """The incarnation that lives."""
        ...

    def settled(self, request: Request, outcome: Events | BaseException) -> None:
        """A request is answered."""
        ...

    def down(self, actor: AgentActor, error: BaseException | None) -> None:
        """The incarnation is gone: orderly, or crashed with `error`."""
        ...

    def suspend(self, actor: AgentActor) -> None:
        """The store failed: begin again once it can be read."""
        ...

    def stopped(self, reason: Reason = "shutdown") -> None:
        """The agent was stopped on purpose, and its last hook has run."""
        ...

    def gone(self) -> AgentStopped:
        """What is said to those who are too late."""
        ...


class AgentActor(LoopActor):
    """One incarnation: decides on inputs, commits what it decided, and keeps in flight what the state wants."""

    _remembers = False  # who watches an agent watches its cell

    def __init__(self, cell: Home, state: AgentState) -> None:
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
        reach(self.services.env, "before", events)
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
                reach(self.services.env, "after", events)
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


def reach(env: Env, when: Literal["before", "after"], events: Events) -> None:
    """Pass the crash points of a commit."""
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


def _order(effect: Effect) -> int:
    return cast("int", getattr(effect, "index", 0))


def _nothing() -> None:
    """An effect that is only waited for."""
