"""The handle of a run: what its caller holds."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic

import pydantic

from nitinol import events as ev
from nitinol.actors.actor import in_handler
from nitinol.actors.bus import PAGE, Subscription
from nitinol.actors.cell import Cell
from nitinol.actors.system import System
from nitinol.actors.worker_pool import Job, current_job
from nitinol.agent import parse_output
from nitinol.env import wait_for, wake
from nitinol.errors import AgentParked, AgentStopped, ConfigurationError, NotFound, WouldDeadlock
from nitinol.inputs import (
    Add,
    Cancel,
    Input,
    Resolve,
)
from nitinol.messages import InputMode, Message, Prompt, StopReason, ToolCall, check_name, to_message
from nitinol.result import OutT, RunResult, ToolCallRecord


class RunHandle(Generic[OutT]):
    """A run, from its acceptance on. Any number may exist of one run; dropping them all changes nothing.

    Iterate it (`for`, `async for`) for its events from `run.queued` to `run.finished`, as often as you like; `await` it
    for its result. Every method may be called from any thread; those that wait have a coroutine twin with an `a` in
    front.
    """

    def __init__(self, system: System, cell: Cell, run_id: str, output: type[OutT] | None = None) -> None:
        self.run_id = run_id
        self.key = cell.key
        self._system = system
        self._cell = cell
        self._output = output

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id!r} of {self.key!r}>"

    # -- the result

    def done(self) -> bool:
        """Whether the run has ended. Never waits."""
        self._system.check_process()
        return has_ended(self._system, self.key, self.run_id)

    def result(self, timeout: float | None = None) -> RunResult[OutT]:
        """What the run came to; waits for its end, at most `timeout` seconds. The run goes on if the wait ends.

        Raises:
            TimeoutError: It has not ended in time.
            AgentParked: Its agent crashed too often; `ref.resume()` and ask again.
            AgentStopped, RuntimeStopped: It will not go on here.
            WouldDeadlock: Called on one of the runtime's own loops, or in an actor's handler.
        """
        with Waiting(self._system, "result", "await handle"):
            return self._result(timeout)

    def _result(self, timeout: float | None, since: float | None = None) -> RunResult[OutT]:
        monotonic = self._system.env.monotonic
        until = None if timeout is None else (monotonic() if since is None else since) + timeout
        while True:
            signal = threading.Event()
            forget = self._system.bus.when_finished(self.run_id, signal.set)
            try:
                if self.done():
                    return result_of(self._system, self.key, self.run_id, self._output)
                self._check_alive()
                left = None if until is None else until - monotonic()
                if not wait_for(signal, left):
                    raise self._late(timeout)
            finally:
                forget()

    def _late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"run {self.run_id!r} of {self.key!r} has not ended within {timeout} seconds")

    async def aresult(self, timeout: float | None = None) -> RunResult[OutT]:
        """As `result`; the same as `await handle`."""
        try:
            async with asyncio.timeout(timeout):
                return await self._aresult()
        except TimeoutError:
            raise self._late(timeout) from None

    async def _aresult(self) -> RunResult[OutT]:
        loop = asyncio.get_running_loop()
        while True:
            ended: asyncio.Future[None] = loop.create_future()
            forget = self._system.bus.when_finished(self.run_id, partial(wake, loop, ended))
            try:
                if self.done():
                    return result_of(self._system, self.key, self.run_id, self._output)
                self._check_alive()
                await ended
            finally:
                forget()

    def __await__(self) -> Generator[Any, None, RunResult[OutT]]:
        return self.aresult().__await__()

    def _check_alive(self) -> None:
        life = self._cell.life
        if self._system.failure is not None and (self._system.bus.stopped is not None or life == "stopped"):
            raise self._system.failure
        if life == "parked":
            raise AgentParked(
                f"agent {self.key!r} is parked with run {self.run_id!r} open: {self._cell.committed.parked_because};"
                " ref.resume() goes on with it"
            )
        if life == "stopped":
            raise AgentStopped(
                f"agent {self.key!r} was stopped with run {self.run_id!r} open; rt.start goes on with it"
            )

    # -- events

    def events(self) -> Subscription:
        """A subscription to the run's events, from its first. It does not end by itself; iteration of the handle does."""
        self._system.check_process()
        found = self._system.journal.find_run(self.run_id)
        if found is None:
            raise NotFound(f"run {self.run_id!r} is not known any more")
        first = self._system.journal.read(found[0], found[1] - 1, 1)[0]
        return Subscription(self._system.bus, run_id=self.run_id, after=first.position - 1, check=self._check_going_on)

    def _check_going_on(self) -> None:
        """Whoever follows the run is told, as whoever waits for it, that it will not go on for now."""
        if not self.done():
            self._check_alive()

    def __iter__(self) -> Iterator[ev.Event]:
        with Waiting(self._system, "iteration", "async for"), self.events() as subscription:
            for event in subscription:
                yield event
                if event.type == "run.finished":
                    return

    async def __aiter__(self) -> AsyncIterator[ev.Event]:
        async with self.events() as subscription:
            async for event in subscription:
                yield event
                if event.type == "run.finished":
                    return

    def text(self) -> Iterator[str]:
        """The answer's words as they come; `"\\n"` where an attempt was discarded.

        Whoever comes late, or was too slow for some pieces, is given the rest of an answer when it is committed.
        """
        return self._text(None)

    def _text(self, timeout: float | None) -> Iterator[str]:
        monotonic = self._system.env.monotonic
        until = None if timeout is None else monotonic() + timeout
        words = _Words()
        with Waiting(self._system, "text", "handle.atext()"), self.events() as subscription:
            while True:
                left = None if until is None else until - monotonic()
                if left is not None and left <= 0:
                    raise self._late(timeout)
                try:
                    event = subscription.get(left)
                except TimeoutError:
                    raise self._late(timeout) from None
                piece = words.of(event)
                if piece:
                    yield piece
                if event.type == "run.finished":
                    return

    async def atext(self) -> AsyncGenerator[str]:
        """As `text`."""
        words = _Words()
        async for event in self:
            piece = words.of(event)
            if piece:
                yield piece

    # -- control

    def steer(self, prompt: Prompt) -> str:
        """Say something more to the run: delivered before its next model request. Returns the input's id.

        If the run ends without another request, nobody reads it: `input.dropped` tells so. `follow_up` makes the run go on.

        Raises:
            AlreadyResolved: The run has ended.
        """
        return self._add("steer", prompt)

    async def asteer(self, prompt: Prompt) -> str:
        """As `steer`."""
        return await self._aadd("steer", prompt)

    def follow_up(self, prompt: Prompt) -> str:
        """Go on with this when the run would have ended. Returns the input's id.

        Raises:
            AlreadyResolved: The run has ended.
        """
        return self._add("follow_up", prompt)

    async def afollow_up(self, prompt: Prompt) -> str:
        """As `follow_up`."""
        return await self._aadd("follow_up", prompt)

    def approve(self, call_id: str, arguments: Mapping[str, Any] | None = None, *, by: str = "user") -> None:
        """Let a call go on that waits for approval, perhaps with other arguments.

        Raises:
            AlreadyResolved: It was decided before.
        """
        resolve = Resolve(run_id=self.run_id, call_id=call_id, decision="approve", arguments=arguments, by=by)
        self._do(resolve, "approve")

    async def aapprove(self, call_id: str, arguments: Mapping[str, Any] | None = None, *, by: str = "user") -> None:
        """As `approve`."""
        await self._ado(Resolve(run_id=self.run_id, call_id=call_id, decision="approve", arguments=arguments, by=by))

    def deny(self, call_id: str, reason: str | None = None, *, by: str = "user") -> None:
        """Refuse a call that waits for approval; the model reads the reason.

        Raises:
            AlreadyResolved: It was decided before.
        """
        self._do(Resolve(run_id=self.run_id, call_id=call_id, decision="deny", by=by, reason=reason), "deny")

    async def adeny(self, call_id: str, reason: str | None = None, *, by: str = "user") -> None:
        """As `deny`."""
        await self._ado(Resolve(run_id=self.run_id, call_id=call_id, decision="deny", by=by, reason=reason))

    def cancel(self, *, by: str = "user") -> None:
        """Cancel the run, queued or in progress: nothing new starts; what runs has 2 seconds. Returns once accepted.

        Raises:
            AlreadyResolved: The run has ended.
        """
        self._do(Cancel(run_id=self.run_id, by=by), "cancel")

    async def acancel(self, *, by: str = "user") -> None:
        """As `cancel`."""
        await self._ado(Cancel(run_id=self.run_id, by=by))

    def _add(self, mode: InputMode, prompt: Prompt) -> str:
        add = self._input(mode, prompt)
        self._do(add, mode)
        return add.input_id

    async def _aadd(self, mode: InputMode, prompt: Prompt) -> str:
        add = self._input(mode, prompt)
        await self._ado(add)
        return add.input_id

    def _input(self, mode: InputMode, prompt: Prompt) -> Add:
        return Add(run_id=self.run_id, input_id=self._system.env.new_id(), mode=mode, prompt=to_message(prompt))

    def _do(self, input: Input, name: str) -> Sequence[ev.Event]:
        _check(input)
        return wait(self._system, self._cell, input, name, f"await handle.a{name}(…)")

    async def _ado(self, input: Input) -> Sequence[ev.Event]:
        _check(input)
        return await asyncio.wrap_future(self._cell.submit(input))

    # -- `with`: leaving early cancels

    def __enter__(self) -> RunHandle[OutT]:
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()

    async def __aenter__(self) -> RunHandle[OutT]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._abandon()

    def _abandon(self) -> None:
        if not self._system.is_parents and not self.done():
            self._cell.submit(Cancel(run_id=self.run_id, by="caller"))


FOR_A_RUN = "use ref.send(…), and be told of the run's end by a tool, a subscription, or another thread"
"""What an actor's handler does instead of waiting for a run."""


class Waiting:
    """Around a call that blocks: refuses it where it would deadlock, warns under asyncio, lends a worker's slot.

    Args:
        system: Whose loops must not block.
        name: Of the call.
        twin: What to call instead on a loop.
        warns: Whether it warns under asyncio.
        instead: Where it waits for what may wait for an actor: what to do instead in an actor's handler. `None`: it may wait there.
    """

    def __init__(
        self, system: System, name: str, twin: str, *, warns: bool = True, instead: str | None = FOR_A_RUN
    ) -> None:
        self._system, self._name, self._twin, self._warns, self._instead = system, name, twin, warns, instead
        self._job: Job | None = None

    def __enter__(self) -> None:
        if self._system.is_own_thread():
            raise WouldDeadlock(f"{self._name}() would block a loop of the runtime; use {self._twin}")
        if self._instead is not None and in_handler():
            raise WouldDeadlock(
                f"{self._name}() in an actor's handler would wait for others, which may wait for this one; {self._instead}"
            )
        if self._warns and _under_asyncio():
            message = f"{self._name}() blocks the running event loop; use {self._twin}"
            warnings.warn(message, RuntimeWarning, stacklevel=_frames_to_caller())
        self._job = current_job()
        if self._job is not None:
            self._job.lend()

    def __exit__(self, *_: object) -> None:
        if self._job is not None:
            self._job.take_back()


def wait(
    system: System, cell: Cell, input: Input, name: str, twin: str, then: Callable[[], object] | None = None
) -> Sequence[ev.Event]:
    """Submit an input and wait for its commit in the calling thread; nothing is submitted where that may not wait."""
    with Waiting(system, name, twin, instead=None):  # for one commit
        return cell.submit(input, then).result()


def has_ended(system: System, key: str, run_id: str) -> bool:
    """Whether the `run.finished` of a run has been committed. Reads its log only where nobody knows its agent's state.

    Raises:
        NotFound: It was never accepted here, or was forgotten.
    """
    cell = system.cells.get(key)
    state = None if cell is None else cell.committed
    if state is not None and state.has_open(run_id):
        return False
    found = system.journal.find_run(run_id)
    if found is None:
        raise NotFound(f"run {run_id!r} is not known")
    if state is not None and state.seq >= found[1]:
        return True  # it was accepted before that state, in which it is not open
    return any(event.type == "run.finished" for event in _events_of(system, run_id, found))


def _events_of(system: System, run_id: str, found: tuple[str, int]) -> Iterator[ev.EventBase]:
    """The events of a run that `find_run` has found, from its acceptance to its end; what came later is not read."""
    key, seq = found
    while page := system.journal.read(key, seq - 1, PAGE):
        for event in page:
            if event.run_id == run_id:
                yield event
                if event.type == "run.finished":
                    return
        seq = page[-1].seq + 1


def result_of(system: System, key: str, run_id: str, output: type[Any] | None = None) -> RunResult[Any]:
    """Fold a finished run's events into its result."""
    found = system.journal.find_run(run_id)
    if found is None:
        raise NotFound(f"run {run_id!r} is not known any more")
    messages: list[Message] = []
    calls: dict[tuple[int, str], ToolCall] = {}
    answers: dict[tuple[int, str], ev.ToolFinished] = {}
    stop_reason: StopReason | None = None
    for event in _events_of(system, run_id, found):
        match event:
            case ev.MessageAppended(message=message):
                messages.append(message)
                for call in message.tool_calls if event.attempt else ():
                    calls[event.turn, call.call_id] = call
            case ev.ToolRequested() if event.call_id is not None:
                calls[event.turn, event.call_id] = calls[event.turn, event.call_id].replace(arguments=event.arguments)
            case ev.ApprovalResolved() if event.call_id is not None and event.arguments is not None:
                calls[event.turn, event.call_id] = calls[event.turn, event.call_id].replace(arguments=event.arguments)
            case ev.ToolFinished() if event.call_id is not None:
                answers[event.turn, event.call_id] = event
            case ev.ModelFinished():
                stop_reason = event.stop_reason
            case ev.RunFinished():
                return _result(key, event, messages, calls, answers, stop_reason, output)
            case _:
                pass
    raise NotFound(f"run {run_id!r} has not ended")


def _result(
    key: str,
    end: ev.RunFinished,
    messages: Sequence[Message],
    calls: Mapping[tuple[int, str], ToolCall],
    answers: Mapping[tuple[int, str], ev.ToolFinished],
    stop_reason: StopReason | None,
    output: type[Any] | None,
) -> RunResult[Any]:
    records = tuple(
        ToolCallRecord(
            call_id=call.call_id,
            name=answer.name,
            arguments=dict(call.arguments),
            outcome=answer.outcome,
            text=answer.text,
            data=answer.data,
            error=answer.error,
            duration=answer.duration,
        )
        for at, call in calls.items()
        if (answer := answers.get(at)) is not None
    )
    parsed, error = None, end.error
    if end.status == "completed":
        try:
            parsed = parse_output(output, end.text)
        except pydantic.ValidationError:  # the run was asked for another type: an older definition's
            error = f"the answer is no {output!r}"
    return RunResult(
        status=end.status,
        text=end.text,
        run_id=end.run_id or "",
        key=key,
        messages=tuple(messages),
        tool_calls=records,
        usage=end.usage,
        cost=end.cost,
        turns=end.turns,
        duration=end.duration,
        error=error,
        error_type=end.error_type,
        stop_reason=stop_reason,
        parsed=parsed,
    )


def _check(input: Input) -> None:
    """What a log would hold for ever must be what it says."""
    if isinstance(input, (Cancel, Resolve)):
        check_name("by", input.by)
        if input.reason is not None and not isinstance(input.reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"reason={input.reason!r} must be a str")


class _Words:
    """What a reader was shown of the attempt in progress, and what it is to be shown next."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._missed = False

    def of(self, event: ev.Event) -> str:
        match event.type:
            case "model.delta" if event.kind == "text":
                self._shown.append(event.text)
                return event.text
            case "bus.gap":
                self._missed = True
            case "model.started":
                self._shown.clear()
                self._missed = False
            case "model.discarded" if self._shown:
                self._shown.clear()
                return "\n"
            case "message.appended" if event.attempt:
                shown, whole = "".join(self._shown), event.message.text
                self._shown.clear()
                if whole.startswith(shown):
                    return whole[len(shown) :]
                # Pieces are missing in the middle: it counts as discarded. Otherwise a hook has changed the answer.
                return f"\n{whole}" if self._missed else ""
            case _:
                pass
        return ""


def _frames_to_caller() -> int:
    """The `stacklevel` of a warning in `Waiting.__enter__` that points at the line which called the library."""
    level, frame = 1, sys._getframe(1)  # pyright: ignore[reportPrivateUsage] # skip_file_prefixes= needs 3.12
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith("nitinol."):
        level, frame = level + 1, frame.f_back
    return level


def _under_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return "IPython" not in sys.modules  # a notebook's loop is not hurt by waiting
