"""For tests of users: a provider that follows a script, recordings of real ones, and asserts on results.

script = ScriptedProvider([[say("Let me add."), call("add", a=1, b=2)], say("3")])
result = run("1 + 2?", calculator.replace(model=script))
assert_tool_called(result, "add", a=1)
script.assert_exhausted()

with record("tests/recordings/sum.jsonl"):  # taken once from the network, without keys; played from then on
    result = run("1 + 2?", calculator)
"""

from __future__ import annotations

import asyncio
import difflib
import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast

from nitinol import provider as providers
from nitinol.actors.agent_actor import Crash
from nitinol.actors.bus import Subscription
from nitinol.actors.cell import Cell
from nitinol.actors.supervisor import Wake
from nitinol.agent_ref import AgentRef
from nitinol.env import Env
from nitinol.errors import AgentDown, ConnectionFailed, ProviderError, ScriptExhausted, ScriptFailed
from nitinol.http import Http
from nitinol.journal.base import CRASH_POINTS
from nitinol.messages import Message, Part, StopReason, Text, Thinking, ToolCall
from nitinol.prices import PriceList
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart
from nitinol.recording import Recording as Recording
from nitinol.recording import record as record
from nitinol.result import RunResult
from nitinol.usage import Usage


@dataclass(frozen=True, slots=True)
class Say:
    """Words of a scripted answer."""

    text: str
    chunks: int = 1
    cut: bool = False
    thinking: str | None = None
    stop_reason: StopReason | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of a scripted answer."""

    name: str
    arguments: Mapping[str, Any]
    call_id: str | None = None
    malformed: str | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """An attempt that fails before its first byte."""

    error: Exception


@dataclass(slots=True, eq=False)
class Wait:
    """An answer that is held back until the test lets it go: `gate.release()`."""

    answer: Answer
    _released: threading.Event = field(default_factory=threading.Event)
    _reached: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let the answer come."""
        self._released.set()

    def reached(self, timeout: float = 10.0) -> bool:
        """Wait until a request stands before the gate."""
        return self._reached.wait(timeout)

    async def passed(self) -> None:
        self._reached.set()
        while not self._released.is_set():
            await asyncio.sleep(0.001)


@dataclass(frozen=True, slots=True)
class Delay:
    """An answer that comes after some seconds."""

    answer: Answer
    seconds: float


Answer: TypeAlias = "str | Say | Call | Fail | Wait | Delay | Sequence[Say | Call]"
Script: TypeAlias = "Sequence[Answer] | Callable[[ModelRequest], Answer]"


def say(
    text: str, *, chunks: int = 1, cut: bool = False, thinking: str | None = None, stop_reason: StopReason | None = None
) -> Say:
    """The model says this.

    Args:
        chunks: Deltas that the text comes in.
        cut: The stream breaks after the text: the attempt fails with `ConnectionFailed`.
        thinking: What it thinks first.
        stop_reason: Instead of `end_turn` or `tool_use`.
    """
    return Say(text, chunks, cut, thinking, stop_reason)


def call(name: str, /, *, call_id: str | None = None, malformed: str | None = None, **arguments: Any) -> Call:
    """The model calls a tool with these arguments; `malformed`: it writes this instead of JSON."""
    return Call(name, arguments, call_id, malformed)


def fail(error: Exception) -> Fail:
    """The attempt fails with this error, before its first byte."""
    return Fail(error)


def gate(answer: Answer) -> Wait:
    """An answer that is held back until `release()`; `reached()` waits until it is asked for."""
    return Wait(answer)


def after(seconds: float, answer: Answer) -> Delay:
    """An answer that comes after some seconds."""
    return Delay(answer, seconds)


class ScriptedProvider:
    """A provider that follows a script: one item for each model request, in order, or a function of the request.

    Args:
        script: Items: `say`, `call`, `fail`, a plain string, or a list of `say` and `call` for one answer.
        usage: What each answer reports; by default a token for each word.
        prices: Its prices; `None` = unknown.
    """

    name = "scripted"

    def __init__(
        self,
        script: Script,
        *,
        model: str = "script",
        usage: Usage | None = None,
        prices: PriceList | None = None,
        context_window: int | None = None,
        max_output_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.requests: list[ModelRequest] = []
        """Every request so far, in order."""
        if isinstance(script, str):
            raise TypeError(
                f"a script is a list of answers, or a function; ScriptedProvider([{script!r}]) says it once"
            )
        self._script = script if callable(script) else [_checked(answer) for answer in script]
        self._next = 0
        self._usage = usage
        self._info = ModelInfo(context_window=context_window, max_output_tokens=max_output_tokens, prices=prices)

    def info(self) -> ModelInfo:
        return self._info

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        answer = self._answer(request)
        while isinstance(answer, (Wait, Delay)):
            if isinstance(answer, Wait):
                await answer.passed()
            else:
                await asyncio.sleep(answer.seconds)
            answer = answer.answer
        if isinstance(answer, Fail):
            raise answer.error
        items: Sequence[Say | Call] = (
            [say(answer)] if isinstance(answer, str) else [answer] if isinstance(answer, (Say, Call)) else answer
        )
        parts: list[Part] = []
        stop: StopReason | None = None
        for index, item in enumerate(items):
            if isinstance(item, Call):
                call_id = item.call_id or f"call_{len(self.requests)}_{index}"
                parts.append(
                    ToolCall(call_id=call_id, name=item.name, arguments=dict(item.arguments), malformed=item.malformed)
                )
                continue
            if item.thinking is not None:
                yield Delta("thinking", item.thinking, index)
                parts.append(Thinking(text=item.thinking))
            for chunk in _chunks(item.text, item.chunks):
                yield Delta("text", chunk, index)
            if item.cut:
                raise ConnectionFailed("the stream was cut, as the script says")
            parts.append(Text(item.text))
            stop = item.stop_reason or stop
        message = Message(role="assistant", parts=tuple(parts), provider=self.name, model=self.model)
        yield ModelResponse(
            message=message,
            usage=self._usage or _count(request, message),
            stop_reason=stop or ("tool_use" if message.tool_calls else "end_turn"),
        )

    def assert_exhausted(self) -> None:
        """Every item of the script was asked for."""
        if not callable(self._script):
            left = len(self._script) - self._next
            assert not left, (
                f"{left} answers of the script were never asked for, the first: {self._script[self._next]!r}"
            )

    def _answer(self, request: ModelRequest) -> Answer:
        self.requests.append(request)
        if callable(self._script):
            try:
                return _checked(self._script(request))
            except ProviderError:
                raise
            except Exception as error:
                raise ScriptFailed(f"the script's function raised {type(error).__name__}: {error}") from error
        if self._next >= len(self._script):
            raise ScriptExhausted(f"the script has {len(self._script)} answers; this is request {len(self.requests)}")
        self._next += 1
        return self._script[self._next - 1]


@contextmanager
def override_model(
    provider: ScriptedProvider | providers.Provider,
) -> Generator[ScriptedProvider | providers.Provider, None, None]:
    """Put a provider in the place of every model in the process: no real request, no key needed, no retry delay.

    Without `prices=` of its own, it is refused by no budget of money, and no such budget counts it.
    """
    providers.push_override(provider)
    try:
        yield provider
    finally:
        providers.pop_override(provider)


def crash(ref: AgentRef[Any], error: BaseException | None = None, *, timeout: float = 10.0) -> None:
    """Make a live agent's actor raise, and wait until `agent.crashed` is committed. Its supervisor then restarts it.

    Raises:
        AgentDown: It is parked or stopped: there is nothing that could crash.
    """
    cell, system = ref._cell, ref._system  # pyright: ignore[reportPrivateUsage] # for tests
    message = Crash(error or RuntimeError("crashed by nitinol.testing"))
    if cell.life not in ("parked", "stopped"):
        before = _crashes(ref)
        with Subscription(system.bus, frozenset({"agent.crashed", "agent.parked"}), key=ref.key) as told:
            system.core.call(_post, cell, message)
            if _crashes(ref) > before or told.get(timeout).type == "agent.crashed":
                return
        system.core.call(_withdraw, cell, message)
    raise AgentDown(f"agent {ref.key!r} is {cell.life}; there is nothing that could crash")


def crash_at(point: str, *, after: int = 0, die: Callable[[], object] | None = None) -> None:
    """Make this process die, as by `kill -9`, when it gets to a named point of its work for the first time.

    For tests that start a process of their own, and another to see that nothing is lost.

    Args:
        point: One of `nitinol.journal.base.CRASH_POINTS`, such as `"after tool.started"`.
        after: How often it gets there unharmed before.
        die: Called instead, in whatever thread gets there, every time from then on.

    Raises:
        ValueError: There is no such point.
    """
    if point not in CRASH_POINTS:
        like = difflib.get_close_matches(point, CRASH_POINTS, cutoff=0.0)
        raise ValueError(f"no crash point is called {point!r}; like it: {like}; all: nitinol.journal.base.CRASH_POINTS")
    kill = die or partial(os.kill, os.getpid(), signal.SIGKILL)
    left = itertools.count(after, -1)

    def reached(name: str) -> None:
        if name == point and next(left) <= 0:
            kill()

    Env.crash_point = staticmethod(reached)


def _crashes(ref: AgentRef[Any]) -> int:
    return sum(event.type == "agent.crashed" for event in ref._system.journal.read(ref.key))  # pyright: ignore[reportPrivateUsage]


def _post(cell: Cell, message: Crash) -> None:
    cell.wake()
    if cell.actor is None:  # in backoff: it dies as soon as it is back, and that is now
        cell.services.supervise(Wake(cell, by_hand=False))
    cell.tell(cast("Any", message))


def _withdraw(cell: Cell, message: Crash) -> None:
    if cell.backlog is not None:
        cell.backlog = deque(item for item in cell.backlog if item is not cast("Any", message))


def assert_tool_called(result: RunResult[Any], name: str, /, **arguments: Any) -> None:
    """The run called this tool, once at least with these arguments at least."""
    calls = [record for record in result.tool_calls if record.name == name]
    names = ", ".join(record.name for record in result.tool_calls) or "none"
    assert calls, f"tool {name!r} was not called; called: {names}"
    if not any(
        all(key in record.arguments and record.arguments[key] == value for key, value in arguments.items())
        for record in calls
    ):
        raise AssertionError(
            f"tool {name!r} was never called with {arguments!r}; its calls: {[record.arguments for record in calls]!r}"
        )


def assert_tool_not_called(result: RunResult[Any], name: str, /, **arguments: Any) -> None:
    """The run never called this tool; with arguments: never with these."""
    for made in result.tool_calls:
        matches = all(key in made.arguments and made.arguments[key] == value for key, value in arguments.items())
        assert not (made.name == name and matches), f"tool {name!r} was called with {made.arguments!r}"


def _checked(answer: object) -> Answer:
    items = cast("list[object]", answer) if isinstance(answer, (list, tuple)) else None
    if isinstance(answer, (str, Say, Call, Fail, Wait, Delay)) or (
        items and all(isinstance(i, (Say, Call)) for i in items)
    ):
        return cast("Answer", answer)
    raise TypeError(
        f"{answer!r} is no answer: say(…), call(…), fail(…), gate(…), after(…), a str, or a list of say and call"
    )


def _chunks(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // max(count, 1)))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _count(request: ModelRequest, message: Message) -> Usage:
    read = sum(
        len(part.text.split())
        for sent in request.messages
        for part in sent.parts
        if hasattr(part, "text") and isinstance(part, (Text, Thinking))
    )
    return Usage(input_tokens=read + 1, output_tokens=len(message.text.split()) + 1)
