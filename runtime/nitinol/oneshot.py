"""One-shot runs: a prompt, and the options of `Agent` or an `Agent`. They share a runtime of the process's own."""

# pyright: reportPrivateUsage=false
# Reason: a one-shot owns its agent and its run, and goes past the checks that are made for strangers.

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, overload

from typing_extensions import Unpack

from nitinol.actors import process_child
from nitinol.agent import Agent, AgentOptions
from nitinol.env import in_child
from nitinol.errors import ConfigurationError
from nitinol.handle import RunHandle, Waiting
from nitinol.messages import Message, Prompt
from nitinol.provider import Provider
from nitinol.result import OutT, RunResult
from nitinol.runtime import Runtime
from nitinol.tool_spec import Approval

OnText = Callable[[str], object]
T = TypeVar("T")
MOMENT = 0.01
"""Seconds after which a call is denied that nobody can approve."""


@overload
def run(
    prompt: Prompt | None,
    agent: Agent[OutT],
    *,
    messages: Sequence[Message] = ...,
    on_text: OnText | None = ...,
    timeout: float | None = ...,
) -> RunResult[OutT]: ...
@overload
def run(
    prompt: Prompt | None,
    *,
    model: str | Provider,
    output: type[T],
    messages: Sequence[Message] = ...,
    on_text: OnText | None = ...,
    timeout: float | None = ...,
    **options: Unpack[AgentOptions],
) -> RunResult[T]: ...
@overload
def run(
    prompt: Prompt | None,
    *,
    model: str | Provider,
    messages: Sequence[Message] = ...,
    on_text: OnText | None = ...,
    timeout: float | None = ...,
    **options: Unpack[AgentOptions],
) -> RunResult[str]: ...
def run(
    prompt: Prompt | None,
    agent: Agent[Any] | None = None,
    *,
    messages: Sequence[Message] = (),
    on_text: OnText | None = None,
    timeout: float | None = None,
    **options: Any,
) -> RunResult[Any]:
    """Run a prompt to its end, in the calling thread's time.

    Args:
        prompt: What the user says; `None` only with `messages=`.
        agent: A definition; or give its options: `model=` and any other of `Agent`.
        messages: A conversation to go on with, such as another result's `messages`.
        on_text: Called in this thread with each piece of the answer as it comes; `"\\n"` where an attempt was discarded.
        timeout: Seconds to wait; then the run is cancelled and `TimeoutError` raised.

    Returns:
        The result, whatever its status. A call that waits for an approval without end is denied: nobody could give it here,
        as with the handle of `stream`.
    """
    shot = _OneShot(prompt, agent, messages, options, is_ours=True)
    began = shot.system.env.monotonic()
    with Waiting(shot.system, "run", "await arun(…)"):
        try:
            handle = shot.begin()
            if on_text is not None:
                for piece in handle._text(timeout):
                    on_text(piece)
            return handle._result(timeout, began)
        except BaseException:
            shot.cancel()  # this call owns the run
            raise


@overload
async def arun(
    prompt: Prompt | None,
    agent: Agent[OutT],
    *,
    messages: Sequence[Message] = ...,
    on_text: OnText | None = ...,
    timeout: float | None = ...,
) -> RunResult[OutT]: ...
@overload
async def arun(
    prompt: Prompt | None,
    *,
    model: str | Provider,
    output: type[T],
    messages: Sequence[Message] = ...,
    on_text: OnText | None = ...,
    timeout: float | None = ...,
    **options: Unpack[AgentOptions],
) -> RunResult[T]: ...
@overload
async def arun(
    prompt: Prompt | None,
    *,
    model: str | Provider,
    messages: Sequence[Message] = ...,
    on_text: OnText | None = ...,
    timeout: float | None = ...,
    **options: Unpack[AgentOptions],
) -> RunResult[str]: ...
async def arun(
    prompt: Prompt | None,
    agent: Agent[Any] | None = None,
    *,
    messages: Sequence[Message] = (),
    on_text: OnText | None = None,
    timeout: float | None = None,
    **options: Any,
) -> RunResult[Any]:
    """As `run`, for coroutines of any loop. A cancelled task cancels the run."""
    shot = _OneShot(prompt, agent, messages, options, is_ours=True)
    scope = asyncio.timeout(timeout)
    try:
        async with scope:
            handle = await shot.abegin()
            if on_text is not None:
                async with aclosing(handle.atext()) as pieces:
                    async for piece in pieces:
                        on_text(piece)
            return await handle
    except BaseException as error:
        shot.cancel()  # this call owns the run
        if isinstance(error, TimeoutError) and scope.expired():
            raise TimeoutError(f"run {shot.send.run_id!r} has not ended within {timeout} seconds") from None
        raise


@overload
def stream(prompt: Prompt | None, agent: Agent[OutT], *, messages: Sequence[Message] = ...) -> RunHandle[OutT]: ...
@overload
def stream(
    prompt: Prompt | None,
    *,
    model: str | Provider,
    output: type[T],
    messages: Sequence[Message] = ...,
    **options: Unpack[AgentOptions],
) -> RunHandle[T]: ...
@overload
def stream(
    prompt: Prompt | None, *, model: str | Provider, messages: Sequence[Message] = ..., **options: Unpack[AgentOptions]
) -> RunHandle[str]: ...
def stream(
    prompt: Prompt | None, agent: Agent[Any] | None = None, *, messages: Sequence[Message] = (), **options: Any
) -> RunHandle[Any]:
    """Start a run and return its handle at once. Its events live as long as the handle; `with` cancels what is unfinished."""
    shot = _OneShot(prompt, agent, messages, options)
    # Under asyncio too: it waits for the acceptance alone, and there is nothing else to begin an `async for` with.
    with Waiting(shot.system, "stream", "await ref.asend(…)", warns=False, instead=None):
        try:
            return shot.begin()
        except BaseException:
            shot.cancel()
            raise


class _OneShot:
    """A run of an agent of its own, which lives as long as the run's handle."""

    def __init__(
        self,
        prompt: Prompt | None,
        agent: Agent[Any] | None,
        messages: Sequence[Message],
        options: dict[str, Any],
        *,
        is_ours: bool = False,
    ) -> None:
        runtime, definition = default_runtime(), _definition(agent, options)
        self.ref = runtime.start(_without_waiting(definition) if is_ours else definition)
        self.system = self.ref._system
        self._handed = False
        try:
            self.send = self.ref._send(prompt, None, messages, None)
        except BaseException:
            self.system.forget(self.ref.key)
            raise

    def begin(self) -> RunHandle[Any]:
        """Send, and wait for the acceptance."""
        self.ref._cell.submit(self.send).result()
        return self._handle()

    async def abegin(self) -> RunHandle[Any]:
        """As `begin`."""
        await asyncio.wrap_future(self.ref._cell.submit(self.send))
        return self._handle()

    def cancel(self) -> None:
        """Cancel the run, if it has not ended."""
        self.ref._give_up(self.send.run_id)
        if not self._handed:
            self.system.forget(self.ref.key, self.send.run_id)

    def _handle(self) -> RunHandle[Any]:
        handle = self.ref._handle(self.send.run_id)
        self._handed = True
        weakref.finalize(handle, self.system.forget, handle.key, handle.run_id).atexit = False
        return handle


def _definition(agent: Agent[Any] | None, options: dict[str, Any]) -> Agent[Any]:
    if agent is None:
        if "model" not in options:
            given = f", not {', '.join(f'{name}=' for name in options)} alone" if options else ""
            raise TypeError(f"run() takes an Agent, or model= and other options of Agent{given}")
        options.setdefault("name", "run")
        return Agent(**options)
    if not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"the second argument is an Agent, not {agent!r}; a model is given as model=")
    if options:
        raise TypeError(f"{', '.join(options)} cannot stand beside an Agent; use agent.replace(…)")
    return agent


def _without_waiting(definition: Agent[Any]) -> Agent[Any]:
    """Nobody holds the handle that could approve a call: one that would wait for ever is denied, and the model is told."""
    endless = [tool for tool in definition.tools if tool.approval is not None and tool.approval.timeout is None]
    if not endless:
        return definition
    denied = Approval(timeout=MOMENT, default="deny")
    return definition.replace(
        tools=[tool.replace(approval=denied) if tool in endless else tool for tool in definition.tools]
    )


def default_runtime() -> Runtime:
    """The process's own runtime, started on first use; the child of a fork starts another.

    Raises:
        ConfigurationError: The caller is a tool in a process of its own, from where no bill and no cancel reaches its run.
    """
    global _runtime
    if process_child.inside:
        raise ConfigurationError(
            'a tool with isolation="process" has no runtime to run agents in; use isolation="thread" for it'
        )
    with _lock:
        if _runtime is None or _runtime._system.failure is not None:
            _runtime = Runtime(drain=0.0, shutdown=5.0)
        return _runtime


_runtime: Runtime | None = None
_lock = threading.Lock()


@in_child
def _begin_anew() -> None:
    """In the child of a fork: the runtime is the parent's, and so may be the thread that held the lock."""
    global _runtime, _lock
    _runtime, _lock = None, threading.Lock()
