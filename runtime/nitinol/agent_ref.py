"""What a caller holds of a live agent: `AgentRef`, and its status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, Generic, Literal

from nitinol import provider as providers
from nitinol.actors.actor import Down
from nitinol.actors.cell import Cell, Life
from nitinol.actors.system import System
from nitinol.actors.tool_runner import calling_run
from nitinol.agent import Agent, check_budget, model_name
from nitinol.budget import Budget
from nitinol.env import resolve
from nitinol.errors import AgentStopped, ConfigurationError, NitinolError
from nitinol.handle import RunHandle, Waiting, wait
from nitinol.inputs import Cancel, Configure, Input, Look, Reset, Send, Stop
from nitinol.journal.base import Head, Journal, head_of
from nitinol.machine import GRACE
from nitinol.messages import Message, Prompt, ToolCall, check_name, fault, to_message
from nitinol.provider import Provider
from nitinol.repair import view
from nitinol.result import OutT, RunResult
from nitinol.state import Activity, AgentState
from nitinol.usage import Usage

ELSEWHERE = "call it on another thread"
"""Where to stop an actor, if not in an actor's handler: it may be that one."""
AgentWord = Activity | Literal["starting", "restarting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """A snapshot of a live agent, as committed. One whose log has not been read yet has turn and incarnation 0."""

    key: str
    agent: str
    state: AgentWord
    incarnation: int
    run_id: str | None
    turn: int
    pending_count: int
    """Runs that wait."""
    message_count: int
    usage: Usage
    """Of its life."""
    cost: Decimal | None
    """US dollars, of its life; `None` = unknown."""
    started_at: int
    """Nanoseconds since 1970, UTC; 0 before the first event."""
    last_event_at: int


class AgentRef(Generic[OutT]):
    """A live agent, by its key. Cheap to make; valid across crashes and restarts. From any thread."""

    def __init__(self, system: System, cell: Cell, output: type[OutT] | None) -> None:
        self._system = system
        self._cell = cell
        self._output = output

    def __repr__(self) -> str:
        return f"<AgentRef {self.key!r}>"

    @property
    def key(self) -> str:
        """Its stable name."""
        return self._cell.key

    @property
    def agent(self) -> Agent[Any]:
        """Its definition."""
        return self._cell.definition

    # -- runs

    def send(
        self,
        prompt: Prompt | None,
        *,
        run_id: str | None = None,
        messages: Sequence[Message] = (),
        budget: Budget | None = None,
    ) -> RunHandle[OutT]:
        """Accept a run; returns once it is committed.

        Args:
            prompt: What the user says; `None` only with `messages=`.
            run_id: Your own id; the same one is the same run, however often it is sent.
            messages: A conversation to go on with, before the prompt.
            budget: What this run may cost, in place of the definition's.

        Raises:
            AgentBusy: The agent takes no more: `busy="reject"`, or its queue is full.
            AgentParked, AgentStopped, RuntimeStopped: It takes nothing at all.
        """
        send = self._send(prompt, run_id, messages, budget)
        try:
            wait(self._system, self._cell, send, "send", "await ref.asend(…)")
        except KeyboardInterrupt:
            self._drop(send, run_id)
            raise
        return self._handle(send.run_id)

    async def asend(
        self,
        prompt: Prompt | None,
        *,
        run_id: str | None = None,
        messages: Sequence[Message] = (),
        budget: Budget | None = None,
    ) -> RunHandle[OutT]:
        """As `send`."""
        send = self._send(prompt, run_id, messages, budget)
        try:
            await asyncio.wrap_future(self._cell.submit(send))
        except asyncio.CancelledError:
            self._drop(send, run_id)
            raise
        return self._handle(send.run_id)

    def ask(
        self,
        prompt: Prompt | None,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        messages: Sequence[Message] = (),
        budget: Budget | None = None,
    ) -> RunResult[OutT]:
        """Send and wait for the result. If you stop waiting, by timeout or exception, the run is cancelled.

        Raises:
            TimeoutError: It has not ended within `timeout` seconds.
            WouldDeadlock: Called on one of the runtime's own loops, or in an actor's handler.
        """
        send = self._send(prompt, run_id, messages, budget)
        began = self._system.env.monotonic()
        with Waiting(self._system, "ask", "await ref.aask(…)"):
            try:
                self._cell.submit(send).result(timeout)
                return self._handle(send.run_id)._result(timeout, began)  # pyright: ignore[reportPrivateUsage]
            except TimeoutError:
                self._give_up(send.run_id)
                raise TimeoutError(f"agent {self.key!r} has not answered within {timeout} seconds") from None
            except BaseException:
                self._give_up(send.run_id)
                raise

    async def aask(
        self,
        prompt: Prompt | None,
        *,
        timeout: float | None = None,
        run_id: str | None = None,
        messages: Sequence[Message] = (),
        budget: Budget | None = None,
    ) -> RunResult[OutT]:
        """As `ask`."""
        send = self._send(prompt, run_id, messages, budget)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(self._cell.submit(send))
                return await self._handle(send.run_id)
        except TimeoutError:
            self._give_up(send.run_id)
            raise TimeoutError(f"agent {self.key!r} has not answered within {timeout} seconds") from None
        except BaseException:
            self._give_up(send.run_id)
            raise

    @property
    def current(self) -> RunHandle[OutT] | None:
        """The run in progress, also one that another process has begun. Never waits."""
        run_id = self._known()[0].run_id
        return None if run_id is None else self._handle(run_id)

    # -- looking

    def watch(self) -> Future[Down]:
        """Learn that the agent's incarnation which lives now goes down: once, and at once if none lives. Never waits.

        Returns:
            A future that holds the `Down`; it is set on a loop of the runtime's, which a callback must not block.
        """
        told: Future[Down] = Future()
        self._cell.watch(partial(resolve, told))
        return told

    def status(self) -> AgentStatus:
        """What it does now, as committed. Never waits, whatever the agent does."""
        head, state = self._known()
        return AgentStatus(
            key=self.key,
            agent=head.agent,
            state=WORDS.get(self._cell.life, head.state),
            incarnation=state.incarnation,
            run_id=head.run_id,
            turn=state.run.turn if state.run else 0,
            pending_count=head.open_runs - (head.run_id is not None),
            message_count=head.messages,
            usage=head.usage,
            cost=head.cost,
            started_at=head.started_at,
            last_event_at=head.last_event_at,
        )

    def messages(self) -> tuple[Message, ...]:
        """The view: what the model is sent, after compaction. Waits only until the agent's log has been read: after its start, or asleep."""
        return view(self._look("messages").shown)[0]

    async def amessages(self) -> tuple[Message, ...]:
        """As `messages`."""
        return view((await self._alook()).shown)[0]

    def pending_approvals(self) -> tuple[ToolCall, ...]:
        """Tool calls of the run in progress that wait for a person. Never waits; wakes nobody.

        Right after its start, an agent of a store has not read its log yet: then this call reads it.
        """
        self._system.check_process()
        return calls_that_wait(fold_of(self._system.journal, self.key) if self._is_unread() else self._cell.committed)

    def history(self) -> tuple[Message, ...]:
        """The transcript: every message, as the journal has it. Waits as `messages` does."""
        return tuple(self._look("history").transcript)

    async def ahistory(self) -> tuple[Message, ...]:
        """As `history`."""
        return tuple((await self._alook()).transcript)

    def snapshot(self) -> dict[str, Any]:
        """The agent's log as plain JSON data: its key, its agent's name and its events, from which its state folds.

        Waits as `messages` does.
        """
        self._look("snapshot")
        return self._snapshot()

    async def asnapshot(self) -> dict[str, Any]:
        """As `snapshot`."""
        await self._alook()
        return self._snapshot()

    def _look(self, name: str) -> AgentState:
        """The state, once the log has been read. Who is parked or stopped has been read, or never will be."""
        while (state := self._here()) is None:
            wait(self._system, self._cell, Look(), name, f"await ref.a{name}(…)")
        return state

    async def _alook(self) -> AgentState:
        while (state := self._here()) is None:
            await asyncio.wrap_future(self._cell.submit(Look()))
        return state

    def _here(self) -> AgentState | None:
        """The state, unless its log has not been read yet, or it sleeps."""
        self._system.check_process()
        state = self._cell.committed
        return None if self._is_unread() or len(state.transcript) != state.message_count else state

    def _known(self) -> tuple[Head, AgentState]:
        """The committed state, in one row and in full; as long as its log has not been read, the row is the journal's."""
        self._system.check_process()
        found = None
        if self._is_unread():
            journal = self._system.journal
            with suppress(NitinolError):  # a store that cannot be read suspends or parks its agent, which tells why
                found = journal.head(self.key) if journal.durable else head_of(fold_of(journal, self.key))
        state = self._cell.committed  # after the look whether it is there
        if found is None or found.agent != self._cell.definition.name:  # which it cannot be
            found = head_of(state)
        return found, state

    def _is_unread(self) -> bool:
        """Whether its log has not been read yet. One that is suspended by its store has been."""
        return self._cell.epoch == 0 and self._cell.life == "opening" and self._has_past()

    def _has_past(self) -> bool:
        """Whether there may be a log from before its first start here: in memory only one that was imported."""
        journal = self._system.journal
        return journal.durable or bool(journal.read(self.key, limit=1))

    def _snapshot(self) -> dict[str, Any]:
        events = self._system.journal.read(self.key)
        return {
            "v": 1,
            "key": self.key,
            "agent": self._cell.definition.name,
            "events": [event.to_dict() for event in events],
        }

    # -- changing

    def set_model(self, model: str | Provider) -> None:
        """Go on with another model; the conversation stays.

        Raises:
            AgentBusy: A run is open.
            ConfigurationError: There is no such model.
        """
        change = self._new_model(model)
        self._change(change, "set_model", partial(self._adopt, change))

    async def aset_model(self, model: str | Provider) -> None:
        """As `set_model`."""
        change = self._new_model(model)
        await self._achange(change, partial(self._adopt, change))

    def reset(self) -> None:
        """Forget the conversation; the bill goes on.

        Raises:
            AgentBusy: A run is open.
        """
        self._change(Reset(), "reset")

    async def areset(self) -> None:
        """As `reset`."""
        await self._achange(Reset())

    def resume(self) -> None:
        """Try a parked agent again, or one in backoff at once. Returns once it takes messages again."""
        self._system.check()
        with Waiting(self._system, "resume", "await ref.aresume()", instead=None):
            self._cell.resume().result()

    async def aresume(self) -> None:
        """As `resume`."""
        self._system.check()
        await asyncio.wrap_future(self._cell.resume())

    def stop(self) -> None:
        """Stop the agent. Its open runs are suspended, or cancelled where the journal does not outlive the process."""
        self._system.check()
        with Waiting(self._system, "stop", "await ref.astop()", instead=ELSEWHERE):
            for ended in self._end_runs():
                with suppress(NitinolError, TimeoutError):
                    ended._result(GRACE + 1.0)  # pyright: ignore[reportPrivateUsage]
            with suppress(AgentStopped):
                self._cell.submit(Stop(reason="ref.stop")).result()

    async def astop(self) -> None:
        """As `stop`."""
        self._system.check()
        for ended in self._end_runs():
            with suppress(NitinolError, TimeoutError):
                await ended.aresult(GRACE + 1.0)
        with suppress(AgentStopped):
            await asyncio.wrap_future(self._cell.submit(Stop(reason="ref.stop")))

    # -- inside

    def _send(
        self, prompt: Prompt | None, run_id: str | None, messages: Sequence[Message], budget: Budget | None
    ) -> Send:
        self._system.check()
        check_budget(budget, renews=False)
        if prompt is None and not messages:
            raise ValueError("there is nothing to send: give a prompt, or messages=")
        for given in messages:
            if wrong := fault(given):
                raise TypeError(f"messages= is not sound: {wrong}")
        message = None if prompt is None else to_message(prompt)
        if run_id is not None:
            check_name("run_id", run_id)
        new_id = run_id if run_id is not None else self._system.env.new_id()
        if run_id is not None:
            found = self._system.journal.find_run(run_id)
            if found is not None and found[0] != self.key:
                raise ConfigurationError(
                    f"run_id={run_id!r} is a run of {found[0]!r} already; it cannot be one of {self.key!r} too"
                )
        caller = calling_run()
        return Send(
            run_id=new_id,
            prompt=message,
            history=tuple(messages),
            parent_run_id=None if caller is None else caller.run_id,
            root_run_id=None if caller is None else caller.root_run_id or caller.run_id,
            budget=budget,
            is_new=run_id is None,
        )

    def _handle(self, run_id: str) -> RunHandle[OutT]:
        return RunHandle(self._system, self._cell, run_id, self._output)

    def _give_up(self, run_id: str) -> None:
        self._cell.submit(Cancel(run_id=run_id, by="caller"))

    def _drop(self, send: Send, run_id: str | None) -> None:
        """Nobody gets the handle of a run whose acceptance was not waited for, unless its id is the caller's own."""
        if run_id is None:
            self._give_up(send.run_id)

    def _new_model(self, model: str | Provider) -> Configure:
        if providers.overridden() is None:
            providers.resolve(model)
        definition = self._cell.definition.replace(model=model)
        return Configure(changes={"model": model_name(model)}, definition=definition, idle=True)

    def _adopt(self, change: Configure) -> None:
        self._cell.definition = change.definition

    def _change(self, input: Input, name: str, then: Callable[[], object] | None = None) -> None:
        self._system.check()
        wait(self._system, self._cell, input, name, f"await ref.a{name}(…)", then)

    async def _achange(self, input: Input, then: Callable[[], object] | None = None) -> None:
        self._system.check()
        await asyncio.wrap_future(self._cell.submit(input, then))

    def _end_runs(self) -> list[RunHandle[OutT]]:
        """Cancel what is queued, then what is open, unless the journal keeps it for the next process."""
        if self._system.journal.durable:
            return []
        run_ids = self._cell.committed.open_run_ids
        for run_id in run_ids:
            self._cell.submit(Cancel(run_id=run_id, by="stop"))
        return [self._handle(run_id) for run_id in run_ids]


def fold_of(journal: Journal, key: str) -> AgentState:
    """What a log says of an agent, without its definition: nothing, where it cannot be read."""
    state = AgentState(key, "")
    with suppress(NitinolError):
        log = journal.read(key)
        if log:
            state = AgentState(key, log[-1].agent, seq=log[0].seq - 1).fold(log)
    return state


def calls_that_wait(state: AgentState) -> tuple[ToolCall, ...]:
    """Those of the run in progress that wait for a person."""
    return () if state.run is None else tuple(call.call for call in state.run.calls if call.stage == "approval")


WORDS: dict[Life, AgentWord] = {
    "opening": "starting",
    "backoff": "restarting",
    "parked": "parked",
    "stopped": "stopped",
}
