"""Runs a user's hooks: functions on worker threads, coroutines on the user loop, never where agents live."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from nitinol.actors.worker_pool import Ending, Job, WorkerPool
from nitinol.agent import Agent
from nitinol.errors import NitinolError
from nitinol.hooks import Block, Halt, HookContext, HookPoint, implementers
from nitinol.logs import describe
from nitinol.state import AgentState


class HookFailed(NitinolError):
    """A hook raised, took too long, or returned what its point does not know."""


class HookRunner:
    """On the core loop. Has workers of its own, so that hooks go on while all tools hang."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool

    async def call(self, function: Callable[..., Any], *args: Any, timeout: float, group: str) -> Any:
        """Call a user's function where it belongs.

        Raises:
            HookFailed: It raised, or took longer than `timeout` seconds.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = getattr(function, "__qualname__", repr(function))

        def done(ending: Ending, value: Any, _duration: float) -> None:
            if future.done():
                return
            if ending == "returned":
                future.set_result(value)
            elif ending == "raised":
                future.set_exception(HookFailed(f"{name} raised {type(value).__name__}: {describe(value)}"))
            else:
                why = f"took longer than {timeout:g} s" if ending == "timeout" else f"did not run: {value or ending}"
                future.set_exception(HookFailed(f"{name} {why}"))

        is_async = inspect.iscoroutinefunction(function)
        if not isinstance(timeout, (int, float)) or not timeout > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HookFailed(f"{name}: timeout={timeout!r} must be more than 0 seconds")
        job = Job(group=group, run=lambda: function(*args), is_async=is_async, timeout=timeout, done=done)
        self.pool.submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            self.pool.cancel(job)
            raise

    async def run(self, point: HookPoint, agent: Agent[Any], state: AgentState, *args: Any) -> Any:
        """Run a point's hooks in order. The last argument goes through them: each may change it.

        Returns:
            The last argument, as the hooks left it; or the first `Halt` or `Block`.
        """
        value = args[-1] if args else None
        for hook in implementers(tuple(agent.hooks), point):
            context = hook_context(agent, state)
            given = (*args[:-1], value) if args else ()
            answer = await self.call(getattr(hook, point), context, *given, timeout=hook.timeout, group=state.key)
            if answer is None:
                continue
            if isinstance(answer, Halt) or (isinstance(answer, Block) and point == "before_tool"):
                return answer
            if isinstance(answer, Block) or not args or not isinstance(answer, type(value)):
                wanted = f"{type(value).__name__}, Halt or None" if args else "Halt or None"
                raise HookFailed(f"{type(hook).__name__}.{point} returned {answer!r}; it may return {wanted}")
            value = answer
        return value


def hook_context(agent: Agent[Any], state: AgentState) -> HookContext:
    """What a hook is told."""
    run = state.run
    return HookContext(
        agent=state.agent,
        key=state.key,
        run_id=run.run_id if run else None,
        turn=run.turn if run else 0,
        status="running" if run else "idle",
        deps=agent.deps,
        messages=tuple(state.transcript),
    )
