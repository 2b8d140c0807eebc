"""Hooks: a user's own code at the fixed points of a run."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, get_args

from nitinol.messages import Message, ToolCall
from nitinol.provider import ModelRequest, ModelResponse
from nitinol.result import RunResult
from nitinol.tool_spec import ToolResult

HookPoint = Literal[
    "agent_start", "before_model", "after_model", "before_tool", "after_tool", "on_error", "on_compaction", "after_run",
    "agent_stop",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """From `before_tool`: answer this call with an error; the run goes on. Anywhere else it is a mistake."""

    reason: str


@dataclass(frozen=True, slots=True)
class Halt:
    """From any hook: end the run as `halted`."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HookContext:
    """What a hook is told."""

    agent: str
    key: str
    run_id: str | None
    turn: int
    status: Literal["running", "idle"]
    """`running` in a run, `idle` in `agent_start` and `agent_stop`."""
    deps: Any
    messages: tuple[Message, ...]
    """The conversation, as committed."""


class Hooks:
    """Override what you need, as `def` or `async def`.

    A `def` runs on a worker thread, an `async def` on the user loop, never where agents live. Several hooks run in the
    order of `Agent(hooks=[…])`; each sees what the one before it changed; the first `Halt` wins. Results are committed
    before they take effect, so recovery runs no hook twice for the same committed step; a hook runs at least once.
    One that raises, or takes longer than `timeout` seconds, fails the run; in `on_compaction`, `after_run` and
    `agent_stop` that is only logged.
    """

    timeout: ClassVar[float] = 30.0
    """Seconds one hook may take."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a misspelt hook: a guard that is never called guards nothing.

        Raises:
            TypeError: A method's name is nearly that of a hook.
        """
        super().__init_subclass__(**kwargs)
        points = get_args(HookPoint)
        for name in vars(cls):
            near = get_close_matches(name, points, 1, 0.85)
            if near and name not in points:
                raise TypeError(f"{cls.__name__}.{name} is no hook; did you mean {near[0]}?")

    def agent_start(self, ctx: HookContext) -> Halt | Awaitable[Halt | None] | None:
        """An agent comes up, or comes back. `Halt` refuses it: its runs end `halted`."""

    def before_model(
        self, ctx: HookContext, request: ModelRequest
    ) -> ModelRequest | Halt | Awaitable[ModelRequest | Halt | None] | None:
        """Before each request. Return a changed request, or `None` to leave it.

        One whose `purpose` is `"compact"` holds the older messages as text, and asks for a summary of them.
        """

    def after_model(
        self, ctx: HookContext, response: ModelResponse
    ) -> ModelResponse | Halt | Awaitable[ModelResponse | Halt | None] | None:
        """After each whole answer; a summary is none. Return a changed one, or `None` to leave it."""

    def before_tool(
        self, ctx: HookContext, call: ToolCall
    ) -> ToolCall | Block | Halt | Awaitable[ToolCall | Block | Halt | None] | None:
        """Before each tool call. Return a call with changed arguments, or `None` to leave it."""

    def after_tool(
        self, ctx: HookContext, call: ToolCall, result: ToolResult
    ) -> ToolResult | Halt | Awaitable[ToolResult | Halt | None] | None:
        """After each tool that ran. Return a changed result, or `None` to leave it."""

    def on_error(self, ctx: HookContext, error: str) -> Halt | Awaitable[Halt | None] | None:
        """After each failed attempt at a model."""

    def on_compaction(self, ctx: HookContext, messages: tuple[Message, ...]) -> Halt | Awaitable[Halt | None] | None:
        """Before the view becomes shorter: `messages` go from it, or the tool results in them do. History keeps them.

        It cannot change what goes; its failure never stops the compaction.
        """

    def after_run(self, ctx: HookContext, result: RunResult[Any]) -> Awaitable[None] | None:
        """After `run.finished` was committed."""

    def agent_stop(self, ctx: HookContext, reason: str) -> Awaitable[None] | None:
        """The agent is stopped; its failure does not prevent the stop."""


def implementers(hooks: tuple[Hooks, ...], point: HookPoint) -> tuple[Hooks, ...]:
    """The hooks that override this point; empty means the runtime need not go there."""
    return tuple(hook for hook in hooks if getattr(type(hook), point) is not getattr(Hooks, point))
