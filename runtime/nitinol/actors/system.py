"""The system: one core loop, one user loop, one supervisor's loop, and everything that lives on them.

core        agents, bus, gateway and its HTTP connections, the pool's book-keeping
user        coroutines of users: async tools and hooks
supervisor  all supervisors: the root, the one of agents, and those of users
threads     tool workers, hook workers and actors of users, each with its own
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

from nitinol import events as ev
from nitinol import provider as providers
from nitinol.actors.actor import Down
from nitinol.actors.agent_actor import BY_RUNTIME, Request, Services
from nitinol.actors.agent_supervisor import AgentSupervisor, Gone
from nitinol.actors.bus import EventBus
from nitinol.actors.cell import Cell, Life
from nitinol.actors.child_spec import SupervisorSpec
from nitinol.actors.children import LATE, Place, SupervisorChild
from nitinol.actors.gateway import ModelGateway
from nitinol.actors.hook_runner import HookRunner
from nitinol.actors.ledger import Ledger
from nitinol.actors.processes import Processes
from nitinol.actors.supervisor import End, Supervisor, release
from nitinol.actors.tool_runner import ToolRunner
from nitinol.actors.worker_pool import Ending, Job, WorkerPool
from nitinol.agent import Agent
from nitinol.budget import Budget
from nitinol.env import Env, Loop, Timer, disown_in_child, on_a_loop, resolve
from nitinol.errors import KeyTaken, RuntimeDown, RuntimeStopped
from nitinol.inputs import (
    Cancel,
    Limit,
    Stop,
    Warn,
)
from nitinol.journal.base import Journal, Opening, taken
from nitinol.logs import get_logger
from nitinol.machine import GRACE, next_due, only_waits, step
from nitinol.state import Activity, AgentState, BrokenLog
from nitinol.watchdog import Blocking

T = TypeVar("T")

HOOK_WORKERS = 8
SWEEPS = 4
"""Looks at who is idle, within the time after which an agent sleeps."""
AT_ONCE = 100
"""Agents that are seen to before the loop looks at others."""
BUSY = 0.01
"""Seconds between two sweeps at least."""
MANY = 500
"""Agents that fell asleep, whose memory is worth giving back."""
BLOCKED = 3.0
"""Seconds that the coroutines of users have to end in."""
ALARM = 60.0
"""Seconds between two looks at the timers at most."""

Part = tuple[str, Literal["supervisor", "worker"], str]
"""Of the supervision tree: id, kind and state."""


@dataclass(frozen=True, slots=True)
class Outline:
    """An agent in the supervision tree."""

    key: str
    life: Life
    activity: Activity
    restarts: int = 0
    last_reason: str | None = None
    inbox_depth: int = 0


class System:
    """Starts everything, knows every cell, and stops everything in reverse order."""

    def __init__(
        self,
        env: Env,
        open_journal: Callable[[Env, Loop], Journal],
        definitions: Mapping[str, Agent[Any]],
        workers: int,
        idle: float | None,
        result_of: Callable[[str, str], Any],
        budget: Budget | None = None,
    ) -> None:
        self.env = env
        self.definitions = definitions
        """By name: those of agents that are started because the store knows them."""
        self.workers = workers
        self.idle = idle
        self.slept = 0
        """Agents that fell asleep since their memory was given back."""
        self.alarm: tuple[int, Timer] | None = None
        """When the next agent that sleeps, or was not opened yet, is due."""
        with ExitStack() as undo:  # what was begun, if the rest cannot be: no file to be had, or no thread
            self.core = env.start_loop("nitinol-core")
            undo.callback(self.core.close, 1.0)
            journal = self.journal = open_journal(env, self.core)
            undo.callback(journal.close)
            self.user = env.start_loop("nitinol-user")
            undo.callback(self.user.close, 1.0)
            self.supervising = env.start_loop("nitinol-supervisor")
            undo.pop_all()
        self.bus = EventBus(env, journal)
        self.bus.position = journal.position
        self.hook_pool = WorkerPool(env, self.core, self.user, HOOK_WORKERS)
        self.hooks = HookRunner(self.hook_pool)
        self.pool = WorkerPool(env, self.core, self.user, workers, self._saturated)
        self.processes = Processes(env, self.core)
        self.tools = ToolRunner(env, self.core, self.pool, self.processes, self.hooks, self.publish)
        self.ledger = Ledger(env, budget, self._warn)
        self.gateway = ModelGateway(env, self.core, self.bus, self.hooks, self.ledger)
        place = Place(env, self.supervising, self.user, self.check_process)
        self.agents = _Agents(self, place)
        self.users = SupervisorChild(SupervisorSpec("users", storm=sys.maxsize), place)
        """What `rt.supervise` adds."""
        self.services = Services(
            env=env,
            core=self.core,
            journal=journal,
            bus=self.bus,
            gateway=self.gateway,
            ledger=self.ledger,
            tools=self.tools,
            hooks=self.hooks,
            supervise=self.agents.post,
            result_of=result_of,
        )
        self.cells: dict[str, Cell] = {}
        self.warm = False
        """What starts processes has been started, as an agent has tools for them."""
        self.failure: Exception | None = None
        """Why nothing can be asked of it any more."""
        self._draining: asyncio.Task[None] | None = None
        self._hurried = False
        self.process = env.process_id()
        self.is_parents = False
        """This process was forked from the one that it lives in."""
        self._lock = threading.Lock()
        disown_in_child(self)
        self._end_watch = env.watch(_warn_of_blocking, self._tell_blocking)
        # Journal, bus, gateway and pool come before: they are no actors, and live and die with the runtime.
        self.root = Supervisor(env, self.supervising, "runtime", [self.agents, self.users], "rest_for_one")
        self.root.watch(self._root_down)
        self.root.launch()

    # -- from any thread

    def cell(self, agent: Agent[Any], key: str) -> Cell:
        """Get or start the agent of a key.

        Raises:
            KeyTaken: The key lives under another agent's name.
            RuntimeStopped: The system has stopped.
        """
        with self._lock:
            self.check()
            cell = self.cells.get(key)
            if cell is None:
                cell = self.cells[key] = Cell(self.services, key, agent)
                self.core.call(cell.open)
                if not self.warm and any(tool.isolation == "process" for tool in agent.tools):
                    self.warm = True
                    self.core.call(self.tools.warm_up)
            elif cell.definition.name != agent.name:
                raise KeyTaken(
                    f"key {key!r} lives as an agent {cell.definition.name!r}; it cannot be a {agent.name!r} too"
                )
            elif cell.life == "stopped":
                cell.begin_again(agent)
            elif cell.given is not agent:
                cell.redefine(agent)
            return cell

    def limit(self, cell: Cell, budget: Budget) -> None:
        """Give a key a budget, unless it has that one. Soon; before what is submitted later."""
        if cell.limit != budget:
            cell.limit = budget
            cell.submit(Limit(budget=budget)).add_done_callback(partial(_see_refusal, cell))

    def begin(self) -> None:
        """Go on with what was interrupted, and see to those who wait, now and from now on. Once; no log is read for it."""
        self.ledger.load(self.journal)
        if not self.journal.durable:
            return
        for head in self.journal.heads(active=True):
            if head.agent in self.definitions:
                self.cell(self.definitions[head.agent], head.key)
            else:
                _warn_of_missing("an interrupted run waits for its agent", head.key, head.agent)
        for key, name in self.journal.waiting():
            if name not in self.definitions:
                _warn_of_missing("a run waits for approval, and its agent is not known", key, name)
        self.core.call(self._ring)
        if self.idle is not None:
            self.core.call(self._sweep, self.idle)

    def stored(self, key: str) -> Cell | None:
        """The agent of a key; one that only the store knows is started, if its definition was given."""
        cell = self.cells.get(key)
        if cell is None:
            head = self.journal.head(key)
            if head is not None and head.agent in self.definitions:
                cell = self.cell(self.definitions[head.agent], key)
        return cell

    def everyone(self) -> dict[str, Cell]:
        """All live agents, by key."""
        return self.cells.copy()

    def outline(self) -> list[Outline]:
        """What all live agents do, in order of their keys."""
        return [_outline(cell) for _, cell in sorted(self.everyone().items())]

    def parts(self) -> list[Part]:
        """What agents stand on."""
        names = ("journal", "bus", "gateway")
        return [*((name, "worker", "running") for name in names), ("pool", "supervisor", f"{self.workers} workers")]

    def restore(self, key: str, events: Sequence[ev.EventBase], state: AgentState) -> Future[None]:
        """Begin a key with a log from elsewhere. The future ends once it is committed and published.

        Raises:
            KeyTaken: An agent lives there. The future's, where the journal says so.
        """
        restored: Future[None] = Future()
        with self._lock:
            self.check()
            if key in self.cells:
                raise taken(key)
            told = partial(self._restored, restored, events, state)
            return self._call(restored, self.journal.restore, key, events, state, told)

    def check_models(self, agent: Agent[Any]) -> None:
        """Raise `ConfigurationError` unless an agent's models can be called."""
        if providers.overridden() is None:
            for model in agent.models:
                providers.resolve(model)

    def announce(self, event: ev.Event) -> None:
        """Publish an ephemeral event. From any thread."""
        self.check()
        self.core.call(self.publish, event)

    def check(self) -> None:
        """Raise if the system has stopped or failed."""
        if self.failure is not None:
            raise self.failure

    def check_process(self) -> None:
        """Raise in the child of a fork, whose copies tell of what was, and would for ever."""
        if self.is_parents:
            self.check()

    def disown(self) -> None:
        """In the child of a fork: be stopped, and leave everything to the parent."""
        self.is_parents = True
        self.failure = RuntimeStopped(
            f"this runtime belongs to process {self.process}, from which this one was forked; open your own after a fork"
        )
        self._lock = threading.Lock()
        self.bus.disown(self.failure)

    def publish(self, event: ev.Event) -> None:
        """Publish an ephemeral event. On the core loop."""
        self.bus.publish([event])

    def on_core(self, coroutine: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run a coroutine on the core loop; its outcome is the future's."""
        future: Future[T] = Future()

        async def main() -> None:
            try:
                resolve(future, await coroutine())
            except BaseException as error:
                resolve(future, error=error)

        return self._call(future, lambda: self.core.spawn(main()))

    def _call(self, future: Future[T], function: Callable[..., object], *args: Any) -> Future[T]:
        """Have a function called on the core loop, which gives the future its outcome; the future fails if the loop has ended."""
        if not self.core.call(function, *args):
            future.set_exception(RuntimeStopped())
        return future

    def is_own_thread(self) -> bool:
        """Whether the caller is one of the system's loops, or another runtime's, which must never block."""
        return on_a_loop() or self.core.is_current() or self.user.is_current() or self.supervising.is_current()

    def forget(self, key: str, after_run: str | None = None, *, owes: bool = False) -> Future[None]:
        """Drop an agent and its log, once that run has ended. Soon; from any thread, and from a finalizer.

        Args:
            owes: The store says that an attempt of it is open.
        """
        forgotten: Future[None] = Future()
        return self._call(forgotten, self._forget, forgotten, key, after_run, owes)

    def stop(self, drain: float, deadline: float) -> Future[None]:
        """Stop everything: new work is refused, runs get `drain` seconds, all ends within about `deadline` seconds."""
        with self._lock:
            already, self.failure = self.failure, self.failure or RuntimeStopped()
        if isinstance(already, RuntimeStopped) and not isinstance(already, RuntimeDown):
            done: Future[None] = Future()
            done.set_result(None)
            return done
        return self.on_core(partial(self._stop, drain, deadline))

    def hurry(self) -> None:
        """Let a stop wait for no run any longer. From any thread."""
        self.core.call(self._hurry)

    def close_loops(self, timeout: float) -> bool:
        """End the loops. Not from one of them. Whether they ended in time."""
        until = self.env.monotonic() + timeout
        ended = True
        for loop in (self.user, self.core, self.supervising):
            # A user's coroutine that blocks its loop for ever is given up, as a thread would be.
            left = min(until - self.env.monotonic(), BLOCKED if loop is self.user else timeout)
            ended &= loop.close(max(left, 0.1))
        self.processes.join(max(until - self.env.monotonic(), 0.1))
        self.journal.close()
        self._end_watch(max(until - self.env.monotonic(), 0.1))
        return ended

    # -- on the core loop

    def _sweep(self, idle: float) -> None:
        self.let_sleep(idle)
        self.core.call_later(max(idle / SWEEPS, BUSY), self._sweep, idle)

    def let_sleep(self, idle: float) -> None:
        """Let those sleep that had nothing to do for `idle` seconds; of thousands, a few at a time."""
        self._let_sleep(self.env.now() - int(idle * 1e9), deque(self.cells.values()))

    def _let_sleep(self, before: int, cells: deque[Cell]) -> None:
        for _ in range(min(len(cells), AT_ONCE)):
            cell = cells.popleft()
            if cell.life == "up" and cell.committed.last_event_at <= before and cell.sleep():
                self.slept += 1
                due = next_due(cell.committed)
                if due is not None:
                    self._set_alarm(due)
        if cells:
            self.core.call(self._let_sleep, before, cells)
        elif self.slept >= MANY:
            self.slept = 0
            trim = Job(group="", run=self.env.give_back_memory, is_async=False, timeout=60.0, done=_given_back)
            self.hook_pool.submit(trim)

    def _ring(self) -> None:
        """Wake who is due, and see when the next one will be."""
        self.alarm = None
        if self.failure is not None:  # it stops, or has
            return
        now = self.env.now()
        try:
            for _, key in self.journal.timers(until=now):
                cell = self.stored(key)
                if cell is not None:
                    cell.wake()
            for due, _ in self.journal.timers(after=now):
                self._set_alarm(due)
        except Exception as error:  # whatever it is: who is due later must be woken all the same
            get_logger().error("the timers cannot be read", error=repr(error))
            self._set_alarm(now + int(ALARM * 1e9))

    def _set_alarm(self, due: int) -> None:
        if self.alarm is not None:
            if self.alarm[0] <= due:
                return
            self.alarm[1].cancel()
        # Not for longer than a minute: the clock that people set may jump, and the one that timers go by does not.
        delay = min(max((due - self.env.now()) / 1e9, 0.0), ALARM)
        self.alarm = (due, self.core.call_later(delay, self._ring))

    async def _stop(self, drain: float, deadline: float) -> None:
        until = self.env.monotonic() + deadline
        if self.bus.stopped is None:  # else it is down: nobody takes a word any more, and nothing is waited for
            await self._wind_down(drain, until)
        await self._end_root(until)
        self.pool.stop()
        self.hook_pool.stop()
        self.processes.stop()
        failure = self.failure or RuntimeStopped()
        try:
            await self.gateway.close()
        finally:
            await self._end_cells(failure)
            self.bus.stop(failure)

    def _hurry(self) -> None:
        self._hurried = True
        if self._draining is not None:
            self._draining.cancel()

    async def _end_cells(self, failure: Exception) -> None:
        """No agent lives on, and whoever still waits for one is told."""
        for number, cell in enumerate(list(self.cells.values()), 1):
            cell.refuse(failure)
            cell.stopped()
            if not number % AT_ONCE:
                await asyncio.sleep(0)

    async def _wind_down(self, drain: float, until: float) -> None:
        """Let runs end, or end them; then stop the agents in good order."""
        if drain > 0 and not self._hurried:
            self._draining = self.core.spawn(self._until_idle(min(drain, until - self.env.monotonic())))
            await asyncio.wait([self._draining])
        if not self.journal.durable:
            for cell in self.cells.values():
                for run_id in cell.committed.open_run_ids:
                    cell.submit(Cancel(run_id=run_id, by="stop"))
            await self._until_idle(min(GRACE + 1.0, max(until - self.env.monotonic(), 0.5)))

    async def _end_root(self, until: float) -> None:
        """Stop what is supervised, in reverse order: actors of users, then agents."""
        ended = asyncio.Event()
        self.root.watch(lambda _: self.core.call(ended.set))
        self.root.post(End(until))
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), max(until - self.env.monotonic(), 0.5))

    async def stop_agents(self, seconds: float) -> None:
        """Stop all agents in good order: at once, under one deadline."""
        until = self.env.monotonic() + seconds
        cells = [
            cell for cell in self.cells.values() if cell.life != "asleep" or cell.definition.has_hook("agent_stop")
        ]
        left, all_stopped = len(cells), asyncio.Event()

        def answer(_outcome: object) -> None:  # one that cannot be stopped in good order is stopped all the same
            nonlocal left
            left -= 1
            if not left:
                all_stopped.set()

        for number, cell in enumerate(cells, 1):
            cell.accept(Request(Stop(reason=BY_RUNTIME), answer))
            if not number % AT_ONCE:
                await asyncio.sleep(0)
        if cells:
            with suppress(TimeoutError):
                await asyncio.wait_for(all_stopped.wait(), max(until - self.env.monotonic(), 0.0))

    def start_over(self) -> None:
        """Let all agents begin again from their logs: their supervisor has failed, and is a new one."""
        for cell in list(self.cells.values()):
            cell.start_over()

    async def _until_idle(self, timeout: float) -> None:
        """Wait until no run is open, at most `timeout` seconds."""
        until = self.env.monotonic() + timeout
        while (left := until - self.env.monotonic()) > 0:
            busy = next(
                (
                    cell.committed.run
                    for cell in self.cells.values()
                    if cell.committed.run is not None
                    and cell.life in ("up", "opening", "backoff")
                    and not (self.journal.durable and only_waits(cell.committed))  # for people, who may take days
                ),
                None,
            )
            if busy is None:
                return
            ended = asyncio.Event()
            forget = self.bus.when_finished(busy.run_id, partial(self.core.call, ended.set))
            try:
                await asyncio.wait_for(ended.wait(), left)
            except TimeoutError:
                return
            finally:
                forget()

    def _forget(self, forgotten: Future[None], key: str, after_run: str | None = None, owes: bool = False) -> None:
        cell = self.cells.get(key)
        if after_run is not None and cell is not None and cell.committed.run is not None:
            self.bus.when_finished(after_run, partial(self.core.call, self._forget, forgotten, key))
            return
        if cell is None and owes:
            self.journal.open(key, partial(self._forget_opened, forgotten, key))
            return
        with (
            self._lock
        ):  # whoever starts the key meanwhile begins with another cell, or has begun with this one, and is told
            cell = self.cells.pop(key, None)
            if cell is not None:
                cell.stopped()
        if cell is not None:
            self.agents.post(Gone(key))
        if cell is None or not self._settle(cell.committed, cell.epoch):
            self.ledger.forget(key)
        self.journal.forget(key, partial(resolve, forgotten, None))

    def _forget_opened(self, forgotten: Future[None], key: str, opening: Opening | Exception) -> None:
        """The log of one that lives only in the store. Whoever has started the key meanwhile has settled what it owes."""
        if isinstance(opening, Opening) and key not in self.cells:
            with suppress(BrokenLog):  # it can be forgotten all the same
                name = opening.events[-1].agent if opening.events else ""
                state = opening.state or AgentState(key, name, seq=opening.base_seq)
                if self._settle(state.fold(opening.events), opening.epoch):
                    self.journal.forget(key, partial(resolve, forgotten, None))
                    return
        self._forget(forgotten, key)

    def _settle(self, state: AgentState, epoch: int) -> bool:
        """Charge one that is forgotten for the attempt that nobody will report on any more, if one is open."""
        if state.reserved is None:
            return False
        events, then = step(state, Stop(reason="forgotten", forgotten=True), self.env.now())

        def committed(error: Exception | None) -> None:
            if error is None:
                self.ledger.note(events)
                self.bus.publish(events)
            self.ledger.forget(state.key)

        self.journal.append(state.key, epoch, events, then, committed)
        return True

    def _restored(
        self, restored: Future[None], events: Sequence[ev.EventBase], state: AgentState, error: Exception | None
    ) -> None:
        if error is None:
            self.ledger.note(events)
            self.bus.publish(cast("Sequence[ev.Event]", events))
            due = next_due(state)
            if due is not None:
                self._set_alarm(due)
        resolve(restored, error=error)

    def _warn(self, key: str, warn: Warn) -> None:
        cell = self.cells.get(key)
        if cell is not None:
            cell.tell(warn)

    def _saturated(self, queued: int, workers: int) -> None:
        self.publish(ev.PoolSaturated(ts=self.env.now(), queued=queued, workers=workers))

    def _tell_blocking(self, blocking: Blocking) -> None:
        # By way of the core loop; if that is the one that is blocked, as soon as it goes on.
        self.core.call(self._blocked, blocking)

    def _blocked(self, blocking: Blocking) -> None:
        now = self.env.now()
        self.publish(ev.LoopBlocked(ts=now, seconds=blocking.seconds, stack=blocking.stack, loop=blocking.loop))

    def _root_down(self, down: Down) -> None:
        """On the supervisors' loop."""

        def gone() -> None:
            for child in self.root.children:
                child.at_rest()

        release(self.root.children, gone)
        if down.error is not None:
            get_logger().error("the root supervisor failed", error=down.why, exc_info=down.error)
            failure = self.failure = RuntimeDown(f"the root supervisor failed: {down.why}; open a new runtime")
            self.bus.stop(failure)
            self.core.call(lambda: self.core.spawn(self._end_cells(failure)))


class _Agents(SupervisorChild):
    """The supervisor of agents, under the root. When it is restarted, all agents begin again from their logs."""

    def __init__(self, system: System, place: Place) -> None:
        super().__init__(SupervisorSpec("agents", strategy="dynamic"), place)
        self._system = system

    def make(self, number: int, ready: Callable[[], object]) -> Supervisor:
        system = self._system
        if number > 1:
            system.core.call(system.start_over)
        return AgentSupervisor(self.place.env, self.place.loop, lambda: len(system.cells), ready)

    def end(self, by: Supervisor, seconds: float) -> None:
        system = self._system

        async def stop() -> None:
            await system.stop_agents(seconds - min(LATE, seconds / 10))
            self.place.loop.call(super(_Agents, self).end, by, 0.0)

        if not system.core.call(lambda: system.core.spawn(stop())):
            super().end(by, 0.0)


def _outline(cell: Cell) -> Outline:
    state = cell.committed
    reason = state.parked_because or cell.last
    return Outline(cell.key, cell.life, state.activity, max(state.incarnation - 1, 0), reason, cell.inbox_depth)


def _warn_of_blocking(blocking: Blocking) -> None:
    get_logger().warning(
        "a loop is blocked", loop=blocking.loop, seconds=round(blocking.seconds, 3), stack=blocking.stack
    )


def _warn_of_missing(what: str, key: str, name: str) -> None:
    way_out = f"give the definition of {name!r} as agents=, or rt.start it"
    get_logger().warning(what, key=key, agent=name, way_out=way_out)


def _see_refusal(cell: Cell, limited: Future[Any]) -> None:
    error = limited.exception()
    if error is not None:  # parked, or stopped: the next start tries again
        cell.limit = None
        get_logger().warning("a budget was not taken", key=cell.key, error=str(error))


def _given_back(ending: Ending, value: Any, duration: float) -> None:
    """Nobody waits for it."""
