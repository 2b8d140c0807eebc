"""One-shot runs: a prompt, and the options of `Agent` or an `Agent`. They share a runtime of the process's own."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from typing_extensions import Unpack

from nitinol.agent import Agent, AgentOptions
from nitinol.errors import ConfigurationError
from nitinol.handle import RunHandle
from nitinol.messages import Message, Prompt
from nitinol.provider import Provider
from nitinol.result import OutT, RunResult
from nitinol.runtime import Runtime

OnText = Callable[[str], object]
T = TypeVar("T")


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
        The result, whatever its status.
    """
    handle = _begin(prompt, agent, messages, options)
    try:
        if on_text is not None:
            _read_aloud(handle, on_text, timeout)
        return handle.result(timeout)
    except BaseException:
        handle._abandon()  # pyright: ignore[reportPrivateUsage] # this call owns the run
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
    send = _send(prompt, agent, messages, options)
    handle = await send.ref.asend(prompt, messages=messages)
    _forget_with(handle, send.runtime)
    try:
        if on_text is not None:
            async for piece in handle.atext():
                on_text(piece)
        return await handle.aresult(timeout)
    except BaseException:
        handle._abandon()  # pyright: ignore[reportPrivateUsage] # this call owns the run
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
    return _begin(prompt, agent, messages, options)


class _Send:
    __slots__ = ("ref", "runtime")

    def __init__(self, runtime: Runtime, agent: Agent[Any]) -> None:
        self.runtime = runtime
        self.ref = runtime.start(agent)


def _send(
    prompt: Prompt | None, agent: Agent[Any] | None, messages: Sequence[Message], options: dict[str, Any]
) -> _Send:
    if prompt is None and not messages:
        raise ValueError("there is nothing to run: give a prompt, or messages=")
    if agent is None:
        if "model" not in options:
            raise TypeError("run() takes an Agent, or model= and other options of Agent")
        options.setdefault("name", "run")
        agent = Agent(**options)
    elif options:
        raise TypeError(f"{', '.join(options)} cannot stand beside an Agent; use agent.replace(…)")
    elif not isinstance(agent, Agent):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"the second argument is an Agent, not {agent!r}; a model is given as model=")
    return _Send(default_runtime(), agent)


def _begin(
    prompt: Prompt | None, agent: Agent[Any] | None, messages: Sequence[Message], options: dict[str, Any]
) -> RunHandle[Any]:
    send = _send(prompt, agent, messages, options)
    handle = send.ref.send(prompt, messages=messages)
    _forget_with(handle, send.runtime)
    return handle


def _read_aloud(handle: RunHandle[Any], on_text: OnText, timeout: float | None) -> None:
    if timeout is None:
        for piece in handle.text():
            on_text(piece)
        return
    timer = threading.Timer(timeout, handle._abandon)  # pyright: ignore[reportPrivateUsage]
    timer.daemon = True
    timer.start()
    try:
        for piece in handle.text():
            on_text(piece)
    finally:
        timer.cancel()


def _forget_with(handle: RunHandle[Any], runtime: Runtime) -> None:
    weakref.finalize(handle, _forget, runtime, handle.key, handle.run_id).atexit = False


def _forget(runtime: Runtime, key: str, run_id: str) -> None:
    runtime._system.forget(key, run_id)  # pyright: ignore[reportPrivateUsage] # a one-shot's own key, which nobody else knows


def default_runtime() -> Runtime:
    """The process's own runtime, started on first use; a fork starts another."""
    global _runtime
    with _lock:
        if _runtime is None or _runtime[0] != os.getpid() or _runtime[1]._system.failure is not None:  # pyright: ignore[reportPrivateUsage]
            _runtime = (os.getpid(), Runtime(drain=0.0, shutdown=5.0))
        return _runtime[1]


_runtime: tuple[int, Runtime] | None = None
_lock = threading.Lock()
