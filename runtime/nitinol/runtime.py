"""The runtime: where live agents are, and how a program speaks to them."""

from __future__ import annotations

import asyncio
import atexit
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, Self, get_args, overload

from nitinol import events as ev
from nitinol.actors.bus import Overflow, Subscription, matching_types
from nitinol.actors.child_spec import ChildSpec, SupervisorSpec
from nitinol.actors.children import SupervisorChild
from nitinol.actors.supervisor import Child
from nitinol.actors.system import Outline, System
from nitinol.agent import Agent, check_budget
from nitinol.agent_ref import ELSEWHERE, WORDS, AgentRef, calls_that_wait, fold_of
from nitinol.budget import Budget
from nitinol.child_ref import ChildRef, SupervisorRef, add, ref_to, to_child
from nitinol.env import Env
from nitinol.errors import ConfigurationError, NotFound, RuntimeDown, RuntimeStopped, WouldDeadlock
from nitinol.handle import RunHandle, Waiting, result_of
from nitinol.journal import Store, open_journal, open_read_only
from nitinol.journal.base import head_of, taken
from nitinol.journal.bill import By, Spent
from nitinol.journal.transfer import AgentLog, Export, export_lines, read_export, renamed
from nitinol.logs import get_logger
from nitinol.messages import ToolCall, check_name
from nitinol.result import OutT, RunResult
from nitinol.usage import is_count

EXIT = 1.0
"""Seconds that runtimes which nobody has stopped have to suspend their runs in, when the interpreter ends."""
LATE = 1.0
"""Seconds that a stop may take beyond `shutdown`."""
UNKNOWN = "whose definition is not known here; give it as agents=, or rt.start it"
"""An agent that only the store knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """One part of the supervision tree."""

    id: str
    kind: Literal["supervisor", "worker"]
    state: str
    """Of an agent, as in its status; of any other, `running`, or where it is between two lives."""
    children: tuple[TreeNode, ...] = ()
    """In order of their start."""
    restarts: int = 0
    """Incarnations after the first: of an agent, of its whole life; of any other, since the runtime started."""
    last_reason: str | None = None
    """Why the last incarnation ended, if one did."""
    inbox_depth: int = 0
    """Messages, and requests of users, that wait for it."""

    def __str__(self) -> str:
        return "\n".join(self._lines(""))

    def _lines(self, indent: str) -> Iterator[str]:
        told = [self.state]
        if self.restarts:
            told.append(f"{self.restarts} restart{'s' * (self.restarts != 1)}")
        if self.last_reason:
            told.append(f"the last: {self.last_reason!r}")
        if self.inbox_depth:
            told.append(f"{self.inbox_depth} waiting")
        yield f"{indent}{self.id}: {', '.join(told)}"
        for child in self.children:
            yield from child._lines(indent + "  ")


class Runtime:
    """The supervision tree, a journal and an event bus. Use it with `with` or `async with`.

    Leaving the block lets open runs finish for `drain` seconds, then stops everything. Runs that are still open are
    suspended, and go on when the store is opened again; without a store they end `cancelled`.

    Args:
        store: Where the journal is kept: a path, `sqlite:///path`, `None` for in memory, as long-lived as the process, or
            a function of `(env, core)` that opens a `Journal` of your own.
        agents: Definitions that the runtime knows by name; runs of theirs that were interrupted go on at once.
        read_only: Look on, beside the owner of a store or where none lives: subscriptions follow what it commits (not its
            deltas), and all that tells of agents and runs answers from the store, which `get`, `agents`, `status` and
            `tree` then read. `get` and `agents` give every agent of the store; definitions are needed only for typed
            output, here or by `start`, which gives an agent of the store, and starts none; where one is not known,
            `ref.agent` has its name alone. Whatever would change something raises `ReadOnly`.
        budget: What all agents of the store may spend together; what the store's bill says already counts.
        workers: Threads for tools that are plain functions, shared fairly by all agents.
        drain: Seconds that open runs get on a clean stop.
        shutdown: Seconds within which a stop ends, come what may.
        idle: Seconds after which an agent with nothing to do, or one that waits for an approval, leaves memory, if there
            is a store; its next input wakes it, or its timer. `None` = never.

    Raises:
        ConfigurationError: An option is wrong.
        StorageFailed: The store cannot be opened: `StoreInUse` where another process owns it; for `read_only`, there is none.
    """

    def __init__(
        self,
        store: Store = None,
        *,
        agents: Sequence[Agent[Any]] = (),
        read_only: bool = False,
        budget: Budget | None = None,
        workers: int = 32,
        drain: float = 10.0,
        shutdown: float = 30.0,
        idle: float | None = 600.0,
        env: Env | None = None,
    ) -> None:
        check_budget(budget)
        if budget is not None and read_only:
            raise ConfigurationError("budget= with read_only=True limits nothing: who only looks on spends nothing")
        if not is_count(workers, 1):
            raise ConfigurationError(f"workers={workers!r} must be a whole number, 1 or more")
        for name, value in (("drain", drain), ("shutdown", shutdown)):
            if not isinstance(value, (int, float)) or not value >= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"{name}={value!r} must be seconds, zero or more")
        if idle is not None and (not isinstance(idle, (int, float)) or not 0 < idle < math.inf):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"idle={idle!r} must be seconds, more than zero, or None: agents never sleep")
        self._drain, self._shutdown = drain, shutdown
        self._definitions: dict[str, Agent[Any]] = {}
        if isinstance(agents, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"agents= takes a list of definitions; write agents=[…] around {agents.name!r}")
        for agent in agents:
            if self._definitions.setdefault(agent.name, agent) is not agent:
                raise ConfigurationError(f"two agents are called {agent.name!r}")
        results: list[System] = []
        result_of = partial(_result_of_first, results)
        if read_only:
            from nitinol.actors.follower import Follower  # which brings sqlite3

            open_store = partial(open_read_only, store)
            self._system: System = Follower(env or Env(), open_store, self._definitions, result_of)
        else:
            self._system = System(
                env or Env(), partial(open_journal, store), self._definitions, workers, idle, result_of, budget
            )
        results.append(self._system)
        try:
            self._system.begin()
        except BaseException:
            self._system.close_loops(1.0)
            raise
        self._stopped: Future[None] | None = None
        """From the first word of a stop on; done when all has ended."""
        self._stopping = threading.Lock()
        _open.add(self)

    # -- agents

    def start(
        self, agent: Agent[OutT] | str, *, key: str | None = None, budget: Budget | None = None
    ) -> AgentRef[OutT]:
        """Get or start the agent of a key. Never waits: it comes up on its own, and what is sent to it waits for it.

        Args:
            agent: The definition, or the name of one that was given as `agents=`.
            key: Its stable name; `None` makes a fresh one, `name/ulid`.
            budget: What the key may spend, for life or `per` day or month; what it has spent already counts. A larger one
                tops it up, `None` leaves it as it is.

        Raises:
            KeyTaken: The key lives under another agent's name.
            ConfigurationError: Its model is unknown, or a key for it is missing.
            RuntimeStopped: The runtime has stopped.
        """
        definition = self._definition(agent)
        check_budget(budget)
        if key is not None:
            check_name("key", key)
        self._system.check_models(definition)
        cell = self._system.cell(
            definition, key if key is not None else f"{definition.name}/{self._system.env.new_id()}"
        )
        if budget is not None:
            self._system.limit(cell, budget)
        return AgentRef(self._system, cell, definition.output)

    def get(self, key: str) -> AgentRef[Any]:
        """The live agent of a key. Never waits.

        Raises:
            NotFound: No agent lives there; or the store has one, and its definition was not given as `agents=`.
        """
        self._system.check()
        cell = self._system.stored(key)
        if cell is None:
            head = self._system.journal.head(key)
            if head is None:
                raise NotFound(f"no agent lives at {key!r}; rt.start(agent, key={key!r}) starts one")
            raise NotFound(f"{key!r} is an agent {head.agent!r} in the store, {UNKNOWN}")
        return AgentRef(self._system, cell, cell.definition.output)

    def agents(self, pattern: str = "*") -> list[AgentRef[Any]]:
        """The live agents whose key matches a shell pattern, in order of their keys. Never waits.

        Those that this process has not opened yet, idle or waiting for an approval since before it began, are not among
        them: `get` opens one, `pending_approvals` finds those that wait, and `Runtime(store, read_only=True).agents()` has
        every agent of the store.
        """
        self._system.check()
        cells = sorted(self._system.everyone().items())
        return [
            AgentRef(self._system, cell, cell.definition.output) for key, cell in cells if fnmatchcase(key, pattern)
        ]

    def handle(self, run_id: str) -> RunHandle[Any]:
        """The handle of a run that was accepted. Never waits.

        Raises:
            NotFound: No run has this id.
        """
        self._system.check()
        found = self._system.journal.find_run(run_id)
        if found is None:
            raise NotFound(f"no run {run_id!r} is known here")
        cell = self._system.stored(found[0])
        if cell is None:
            raise NotFound(f"run {run_id!r} is one of {found[0]!r}, {UNKNOWN}")
        return RunHandle(self._system, cell, run_id, cell.definition.output)

    def pending_approvals(self, pattern: str = "*") -> dict[str, tuple[ToolCall, ...]]:
        """The tool calls that wait for a person, of all agents, live or only in the store. Wakes nobody.

        Reads the logs of those that wait and have not been opened yet, as they are since before a restart.
        `rt.get(key).current.approve(call_id)` lets one go on. A parked agent takes no decision, and is not among them.

        Args:
            pattern: Only of agents whose key matches this shell pattern.

        Returns:
            Key to calls, in order of keys.

        Raises:
            StorageFailed: The store cannot be read.
        """
        with Waiting(self._system, "pending_approvals", "await rt.apending_approvals(…)", instead=None):
            return self._pending_approvals(pattern)

    async def apending_approvals(self, pattern: str = "*") -> dict[str, tuple[ToolCall, ...]]:
        """As `pending_approvals`. The store is read on another thread."""
        return await asyncio.to_thread(self._pending_approvals, pattern)

    def _pending_approvals(self, pattern: str) -> dict[str, tuple[ToolCall, ...]]:
        system = self._system
        system.check()
        journal, cells = system.journal, system.cells.copy()
        waits = [
            head.key for head in journal.heads() if head.run_id is not None and head.state in ("paused", "stopped")
        ]
        found: dict[str, tuple[ToolCall, ...]] = {}
        for key in waits if journal.durable else sorted(cells):
            if fnmatchcase(key, pattern):
                cell = cells.get(key)
                live = None if cell is None else AgentRef(system, cell, None)
                calls = calls_that_wait(fold_of(journal, key)) if live is None else live.pending_approvals()
                if calls:
                    found[key] = calls
        return found

    def forget(self, key: str) -> None:
        """Drop an agent and its log, live or only in the store. Its bill stays in the store.

        Raises:
            NotFound: No agent lives there.
        """
        live = self._known(key)
        with Waiting(self._system, "forget", "await rt.aforget(…)", instead=ELSEWHERE):
            if live is not None:
                live.stop()
            self._system.forget(key, owes=self._owes(key)).result()

    async def aforget(self, key: str) -> None:
        """As `forget`."""
        live = self._known(key)
        if live is not None:
            await live.astop()
        await asyncio.wrap_future(self._system.forget(key, owes=self._owes(key)))

    # -- the bill

    def spend(self, by: By = "agent") -> Mapping[str, Spent]:
        """What was spent in this store, of forgotten agents too. Reads the store; no log is read for it.

        Args:
            by: `"agent"`, `"key"`, `"model"` (as `provider:model`) or `"day"` (UTC, as `2026-11-25`).

        Returns:
            Name to sum, in order of names. Without a store, what this runtime has spent; there, a forgotten key is in no sum
            by key.

        Raises:
            StorageFailed: The store cannot be read.
        """
        if by not in get_args(By):
            raise ValueError(f"spend(by={by!r}) must be one of {', '.join(get_args(By))}")
        self._system.check_process()
        return dict(sorted(self._system.journal.spent(by).items()))

    # -- moving agents

    def export_agent(self, key: str) -> Iterator[str]:
        """An agent, live or only in the store, as lines of JSON: a header, then each event of its log.

        They hold all that is committed at the time of the call, which reads it; the lines are made as they are taken.

        Raises:
            NotFound: No agent has a log there.
            BadExport: A newer version wrote a part of its log.
        """
        self._system.check()
        log = self._system.journal.read(key)
        if not log:
            raise NotFound(f"no agent has a log at {key!r}; rt.agents() and `nitinol agents` tell which do")
        return export_lines(key, log)

    def import_agent(self, export: Export, *, key: str | None = None) -> str:
        """Begin a key with an exported log; returns once it is committed, all of it or nothing.

        Ids, seq, times and costs stay as they were, and the bill counts here from now on, on the days it was made.
        Subscribers see the events as any other. A run that was open goes on if its definition was given as `agents=`,
        else with `start`. One exported while it goes on elsewhere would go on twice: stop it there first.

        Args:
            export: Lines as `export_agent` gives them, or a snapshot, as `ref.snapshot()` does.
            key: Another key than the exported one. Runs whose ids are taken in this store then get new ones, so that an
                agent may be copied beside itself.

        Returns:
            The key.

        Raises:
            BadExport: It is no sound export of an agent.
            KeyTaken: The key has a log here, or had one that was forgotten.
            ConfigurationError: A run of it is known here, and the key stays the same.
        """
        with Waiting(self._system, "import_agent", "await rt.aimport_agent(…)", instead=None):
            log = self._to_import(export, key)
            self._system.restore(log.key, log.events, log.state).result()
        return self._imported(log)

    async def aimport_agent(self, export: Export, *, key: str | None = None) -> str:
        """As `import_agent`. The lines are read on another thread."""
        log = await asyncio.to_thread(self._to_import, export, key)
        await asyncio.wrap_future(self._system.restore(log.key, log.events, log.state))
        return self._imported(log)

    def _to_import(self, export: Export, key: str | None) -> AgentLog:
        self._system.check()
        log = read_export(export)
        if key is not None:
            check_name("key", key)
        journal = self._system.journal
        known = {run_id: found[0] for run_id in log.run_ids if (found := journal.find_run(run_id)) is not None}
        if key is not None and key != log.key:
            return renamed(log, key, {run_id: self._system.env.new_id() for run_id in known})
        for run_id, there in known.items():
            if there == log.key:
                raise taken(log.key)
            raise ConfigurationError(
                f"run {run_id!r} of {log.key!r} is one of {there!r} here already; import it with another key= as a copy"
            )
        return log

    def _imported(self, log: AgentLog) -> str:
        definition = self._definitions.get(log.state.agent)
        # A journal in memory has no heads by which `get` would find it later.
        if definition is not None and (head_of(log.state).active or not self._system.journal.durable):
            self._system.cell(definition, log.key)
        return log.key

    # -- events

    def subscribe(
        self,
        *patterns: str,
        agent: str | None = None,
        key: str | None = None,
        run_id: str | None = None,
        after: int | None = None,
        maxsize: int = 1000,
        overflow: Overflow = "coalesce",
    ) -> Subscription:
        """Follow the event stream. Never waits.

        Args:
            patterns: Event types as shell patterns, such as `"tool.*"`; none = all.
            agent: Only agents of this name.
            key: Only keys that match this shell pattern.
            run_id: Only this run.
            after: A cursor: the position of the last event you have seen; 0 = from the beginning; `None` = from now on.
            maxsize: Events that may wait for you. Past it durable events are read from the journal, and ephemeral ones
                are treated as `overflow` says.
            overflow: `"coalesce"` merges deltas and drops other ephemeral events, `"drop"` drops both (`bus.gap` tells
                how many), `"close"` ends the subscription.

        Raises:
            ValueError: A pattern matches no event type, or the cursor is past the end of the log, so of another store. One of
                another store that is not past the end cannot be told from one of this.
        """
        self._system.check()
        if maxsize < 1:
            raise ConfigurationError(f"maxsize={maxsize!r} must be 1 or more")
        if after is not None and not 0 <= after <= self._system.journal.position:
            raise ValueError(
                f"after={after!r} is no position of this store, whose last is {self._system.journal.position}: a cursor is"
                " good for the store it came from; 0 is the beginning"
            )
        if overflow not in ("coalesce", "drop", "close"):
            raise ConfigurationError(f"overflow={overflow!r} must be 'coalesce', 'drop' or 'close'")
        return Subscription(
            self._system.bus,
            matching_types(patterns),
            agent=agent,
            key=key,
            run_id=run_id,
            after=after,
            maxsize=maxsize,
            overflow=overflow,
        )

    def publish(self, name: str, payload: Mapping[str, Any] | None = None) -> None:
        """Publish an ephemeral event of your own, as `custom`. From any thread; never waits."""
        self._system.announce(ev.Custom(ts=self._system.env.now(), name=name, payload=dict(payload or {})))

    # -- actors of your own

    @overload
    def supervise(self, spec: ChildSpec) -> ChildRef: ...

    @overload
    def supervise(self, spec: SupervisorSpec) -> SupervisorRef: ...

    def supervise(self, spec: ChildSpec | SupervisorSpec) -> ChildRef | SupervisorRef:
        """Start an actor of your own, or a supervisor with actors, and restart it when it crashes; returns once it is up.

        They are stopped before the agents when the runtime stops, in reverse order.

        Args:
            spec: What to start, and how; its `id` is unique in the runtime.

        Raises:
            StartFailed: It did not come up. Then it is as if it had never been asked for.
            ConfigurationError: Another child has this id; or it is a plain Pykka actor, which cannot be supervised.
            RuntimeStopped: The runtime has stopped.
        """
        child = self._to_supervise(spec)
        self._wait_for(partial(add, self._system.users, child), "supervise")
        return ref_to(self._system.users, child, self._wait_for)

    @overload
    async def asupervise(self, spec: ChildSpec) -> ChildRef: ...

    @overload
    async def asupervise(self, spec: SupervisorSpec) -> SupervisorRef: ...

    async def asupervise(self, spec: ChildSpec | SupervisorSpec) -> ChildRef | SupervisorRef:
        """As `supervise`."""
        child = self._to_supervise(spec)
        await asyncio.wrap_future(add(self._system.users, child))
        return ref_to(self._system.users, child, self._wait_for)

    def child(self, id: str) -> ChildRef | SupervisorRef:
        """What `supervise` has started under this id. Never waits.

        Raises:
            NotFound: There is none.
        """
        self._system.check()
        users: ChildRef | SupervisorRef = SupervisorRef(self._system.users, self._system.users, self._wait_for).child(
            id
        )
        return users

    def _to_supervise(self, spec: ChildSpec | SupervisorSpec) -> Child:
        self._system.check()
        return to_child(self._system.users, spec)

    def _wait_for(self, do: Callable[[], Future[Any]], name: str, timeout: float | None = None) -> Any:
        with Waiting(self._system, name, f"await ….a{name}(…)", instead=ELSEWHERE if name == "stop" else None):
            return do().result(timeout)

    # -- the tree

    def tree(self) -> TreeNode:
        """The supervision tree, as it is now. Never waits."""
        system = self._system
        system.check_process()
        failure = system.failure
        state = "running" if failure is None else "down" if isinstance(failure, RuntimeDown) else "stopped"
        parts = [TreeNode(id=id, kind=kind, state=state) for id, kind, state in system.parts()]
        agents = TreeNode(
            id="agents",
            kind="supervisor",
            state=_word_of(system.agents),
            restarts=max(system.agents.number - 1, 0),
            last_reason=system.agents.reason,
            children=tuple(map(_agent_node, system.outline())),
        )
        users = _node_of(system.users)
        children = (*parts, agents, users) if users.children or users.restarts else (*parts, agents)
        return TreeNode(id="runtime", kind="supervisor", state=state, children=children)

    # -- the end

    def stop(self, *, drain: float | None = None) -> None:
        """Stop everything: see the class. From any thread, also a tool's, and as often as you like.

        A call during another's stop waits for the same end; `drain=0` lets it wait for no run any longer, and so does
        Ctrl-C here. In the child of a fork it does nothing: there is nothing of the parent's to stop.

        Args:
            drain: Seconds that open runs get; the runtime's own by default.

        Raises:
            WouldDeadlock: Called on one of the runtime's own loops.
        """
        if self._is_over():
            return
        if self._system.is_own_thread():
            raise WouldDeadlock("a runtime cannot be stopped on one of its own loops; use await rt.astop()")
        with Waiting(self._system, "stop", "await rt.astop()", instead=ELSEWHERE):
            try:
                self._await_stop(self._begin_stop(drain))
            except (KeyboardInterrupt, SystemExit):  # of a signal's handler
                self._await_stop(self._begin_stop(0))
                raise

    async def astop(self, *, drain: float | None = None) -> None:
        """As `stop`. A cancelled task still waits for the end, and for no run any longer; cancelled again, it leaves."""
        if self._is_over():
            return
        try:
            await self._aawait_stop(self._begin_stop(drain))
        except asyncio.CancelledError:
            await self._aawait_stop(self._begin_stop(0))
            raise

    def _is_over(self) -> bool:
        return self._system.is_parents or (self._stopped is not None and self._stopped.done())

    def _begin_stop(self, drain: float | None) -> Future[None]:
        with self._stopping:
            stopped = self._stopped
            is_first = stopped is None
            if stopped is None:
                stopped = self._stopped = Future()
        if is_first:
            # On a thread: whoever waits may be interrupted, and its end must not be that of the stop.
            stop = partial(self._stop, stopped, self._drain if drain is None else drain)
            self._system.env.start_thread("stop", stop)
        elif drain == 0:
            self._system.hurry()
        return stopped

    def _stop(self, stopped: Future[None], drain: float) -> None:
        until = self._system.env.monotonic() + self._shutdown
        try:
            self._system.stop(drain, self._shutdown * 0.8).result(self._shutdown)
        except TimeoutError:
            self._system.bus.stop(RuntimeStopped())
        finally:
            self._system.close_loops(max(until - self._system.env.monotonic(), LATE / 2))
            _open.discard(self)
            stopped.set_result(None)

    def _await_stop(self, stopped: Future[None]) -> None:
        try:
            stopped.result(self._shutdown + LATE)
        except TimeoutError:
            self._tell_late()

    async def _aawait_stop(self, stopped: Future[None]) -> None:
        try:
            async with asyncio.timeout(self._shutdown + LATE):
                await asyncio.shield(asyncio.wrap_future(stopped))
        except TimeoutError:
            self._tell_late()

    def _tell_late(self) -> None:
        get_logger().error("the runtime did not stop in time; its journal still writes", shutdown=self._shutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(drain=0.0 if kind is not None else None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.astop(drain=0.0 if kind is not None else None)

    def _known(self, key: str) -> AgentRef[Any] | None:
        """The agent of a key, if it is live; `None` if only the store knows it."""
        self._system.check()
        cell = self._system.cells.get(key)
        if cell is None and self._system.journal.head(key) is None:
            raise NotFound(f"no agent lives at {key!r}")
        return None if cell is None else AgentRef(self._system, cell, cell.definition.output)

    def _owes(self, key: str) -> bool:
        head = self._system.journal.head(key)
        return head is not None and head.reserved is not None

    def _definition(self, agent: Agent[OutT] | str) -> Agent[OutT]:
        if not isinstance(agent, str):
            if not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"{agent!r} is neither an Agent nor the name of one")
            return agent
        known = self._definitions.get(agent)
        if known is None:
            names = ", ".join(sorted(self._definitions)) or "none"
            raise ConfigurationError(f"no definition {agent!r} was given as agents=; known: {names}")
        return known


def _result_of_first(systems: Sequence[System], key: str, run_id: str) -> RunResult[Any]:
    system = systems[0]  # which is made with this function
    cell = system.cells.get(key)
    return result_of(system, key, run_id, None if cell is None else cell.definition.output)


def _agent_node(agent: Outline) -> TreeNode:
    return TreeNode(
        id=agent.key,
        kind="worker",
        state=WORDS.get(agent.life, agent.activity),
        restarts=agent.restarts,
        last_reason=agent.last_reason,
        inbox_depth=agent.inbox_depth,
    )


def _node_of(child: Child) -> TreeNode:
    children = tuple(map(_node_of, list(child.children))) if isinstance(child, SupervisorChild) else ()
    return TreeNode(
        id=child.id,
        kind="supervisor" if isinstance(child, SupervisorChild) else "worker",
        state=_word_of(child),
        children=children,
        restarts=max(child.number - 1, 0),
        last_reason=child.reason,
        inbox_depth=child.inbox_depth,
    )


def _word_of(child: Child) -> str:
    state = child.now
    return "running" if state == "up" else state


@atexit.register
def _close_abandoned() -> None:
    """The interpreter ends, and nobody stopped these: what is open is suspended, and nobody is waited for for long."""
    left = [rt for rt in _open if not rt._system.is_parents]  # pyright: ignore[reportPrivateUsage]
    systems = [rt._system for rt in left]  # pyright: ignore[reportPrivateUsage]
    for system in systems:
        system.hurry()  # a stop that is under way
    wait_for_all([rt._stopped or rt._system.stop(0.0, EXIT) for rt in left], EXIT)  # pyright: ignore[reportPrivateUsage]
    for system in systems:
        system.close_loops(EXIT)


_open: set[Runtime] = set()
