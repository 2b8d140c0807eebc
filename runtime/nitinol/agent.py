"""The definition of an agent: what a user writes, immutable and shared by any number of live agents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, get_origin

import pydantic

from nitinol.budget import Budget
from nitinol.compaction import Compaction
from nitinol.errors import ConfigurationError
from nitinol.hooks import HookContext, HookPoint, Hooks, implementers
from nitinol.prices import PriceList
from nitinol.provider import Provider, Thinking
from nitinol.result import OutT
from nitinol.retry import Retry
from nitinol.sending import check_sendable
from nitinol.tool_spec import Tool
from nitinol.usage import is_count

Instructions = str | Callable[[HookContext], str]
Busy = Literal["queue", "reject"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Agent(Generic[OutT]):
    """The definition of an agent. An unknown option is a `TypeError`, a wrong value a `ConfigurationError`."""

    name: str
    """What kind of agent this is; the first part of its default keys. Letters, digits, `_`, `-` and `.`."""
    model: str | Provider
    """`"provider:model"`, or a provider."""
    fallbacks: Sequence[str | Provider] = ()
    """Models to go on with when one fails for good, in order."""
    instructions: Instructions | None = None
    """The system prompt, or a function that makes it before each request (on a worker thread)."""
    tools: Sequence[Tool] = ()
    output: type[OutT] | None = None
    """The type of the answer; `None` = text."""
    max_turns: int = 25
    """Model calls of one run; at the limit it ends `max_turns`."""
    max_tool_calls: int | None = None
    """Tool calls of one run; a turn that would pass the limit ends the run `max_tool_calls`. `None` = no limit."""
    deadline: float | None = None
    """Seconds a run may take from `run.started`, pauses not counted. `None` = no limit."""
    budget: Budget | None = None
    """What one run may cost."""
    on_unpriced: Literal["block", "warn"] = "block"
    """Under a money budget, a model of unknown price is refused, or used with a warning in the log."""
    compaction: Compaction | None = field(default_factory=Compaction)
    """How a conversation that grows too long is shortened. `None` = never: then a request that is too long fails."""
    retry: Retry = field(default_factory=Retry)
    hooks: Sequence[Hooks] = ()
    busy: Busy = "queue"
    """A message to a busy agent waits in its queue, or is an `AgentBusy`."""
    max_pending: int = 16
    """Runs that may wait; one more is an `AgentBusy`."""
    max_output_tokens: int | None = None
    temperature: float | None = None
    thinking: Thinking | None = None
    """Tokens to think with, or how hard."""
    cache: bool = True
    """Whether the provider may cache the prompt."""
    extra: Mapping[str, Any] | None = None
    """The vendor's own options, sent as they are."""
    deps: Any = field(default=None, repr=False)
    """Any object for `ctx.deps`; never stored."""
    working_directory: str | Path = "."
    """Where the tools' relative paths begin."""
    allowed_paths: Sequence[str | Path] | None = None
    """Where the tools' files must lie; `None` = in the working directory."""
    context_window: int | None = None
    """Tokens; above what the provider knows. `None`, and it knows nothing = 200,000."""
    prices: PriceList | None = None
    """Above what the provider knows."""

    def __post_init__(self) -> None:
        for name in ("fallbacks", "tools", "hooks", "allowed_paths"):
            value = getattr(self, name)
            if name == "allowed_paths" and value is None:
                continue
            if isinstance(value, (str, Path, Tool, Hooks)) or not isinstance(value, Sequence):
                raise ConfigurationError(f"{name}={value!r} must be a list")  # a str would be a list of letters
            object.__setattr__(self, name, tuple(value))  # pyright: ignore[reportUnknownArgumentType] # getattr knows no types
        for name, kinds, wanted in _KINDS:
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and name != "cache"):
                raise ConfigurationError(f"{name}={value!r} must be {wanted}")
        _check_name(self.name)
        _check_tools(self.tools)
        for hook in self.hooks:
            if not isinstance(hook, Hooks):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"hooks= takes instances of Hooks, not {hook!r}")
        for name, least in (
            ("max_turns", 1),
            ("max_pending", 0),
            ("max_tool_calls", 0),
            ("max_output_tokens", 1),
            ("context_window", 1),
        ):
            value = getattr(self, name)
            if value is not None and not is_count(value, least):
                raise ConfigurationError(f"{name}={value!r} must be a whole number, {least} or more")
        if self.instructions is not None and not isinstance(self.instructions, str) and not callable(self.instructions):  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigurationError(f"instructions={self.instructions!r} must be a str, or a function of HookContext")
        if isinstance(self.thinking, str) and self.thinking not in ("low", "medium", "high"):  # pyright: ignore[reportUnnecessaryContains]
            raise ConfigurationError(f"thinking={self.thinking!r} must be tokens, or 'low', 'medium' or 'high'")
        if self.prices is not None and not callable(getattr(self.prices, "at_most", None)):
            raise ConfigurationError(f"prices={self.prices!r} must be Prices(…), or have cost and at_most")
        check_budget(self.budget, renews=False)
        _check_output(self.output)
        if self.deadline is not None and not 0 < self.deadline <= YEAR:
            raise ConfigurationError(f"deadline={self.deadline!r} must be more than 0 seconds, and at most a year")
        for name, allowed in (("busy", ("queue", "reject")), ("on_unpriced", ("block", "warn"))):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name}={getattr(self, name)!r} must be one of {allowed}")

    def replace(self, **changes: Any) -> Agent[OutT]:
        """A copy with other options."""
        return replace(self, **changes)

    def changes_to(self, other: Agent[Any]) -> dict[str, str]:
        """What is different in another definition: option to its new value, as text; `changed` where that may be private."""
        changes: dict[str, str] = {}
        for item in fields(self):
            old, new = getattr(self, item.name), getattr(other, item.name)
            if old is new or old == new:
                continue
            private = item.name in ("deps", "extra", "hooks", "instructions")
            changes[item.name] = "changed" if private else model_name(new) if item.name == "model" else repr(new)
        return changes

    @property
    def models(self) -> tuple[str | Provider, ...]:
        """The model, then the fallbacks."""
        return (self.model, *self.fallbacks)

    def tool(self, name: str) -> Tool | None:
        """The tool of this name."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def has_hook(self, point: HookPoint) -> bool:
        """Whether a hook overrides this point."""
        return bool(implementers(tuple(self.hooks), point))

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """JSON schema of `output=`."""
        return None if self.output is None or self.output is str else pydantic.TypeAdapter(self.output).json_schema()

    @cached_property
    def digest(self) -> str:
        """A hash of everything that changes what the agent does; `deps`, hooks' and functions' code apart."""
        skipped = {"deps", "hooks", "tools", "instructions"}
        shown: dict[str, Any] = {
            item.name: repr(getattr(self, item.name)) for item in fields(self) if item.name not in skipped
        }
        shown["model"], shown["fallbacks"] = model_name(self.model), [model_name(model) for model in self.fallbacks]
        shown["tools"] = [tool.digest for tool in self.tools]
        shown["instructions"] = (
            self.instructions if isinstance(self.instructions, str) else "function" if self.instructions else None
        )
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]


def model_name(model: str | Provider) -> str:
    """A model as `provider:model`."""
    return model if isinstance(model, str) else f"{model.name}:{model.model}"


class AgentOptions(TypedDict, total=False):
    """The options of `Agent` for `run`, `arun` and `stream`; a test keeps the two alike."""

    name: str
    fallbacks: Sequence[str | Provider]
    instructions: Instructions | None
    tools: Sequence[Tool]
    max_turns: int
    max_tool_calls: int | None
    deadline: float | None
    budget: Budget | None
    on_unpriced: Literal["block", "warn"]
    compaction: Compaction | None
    retry: Retry
    hooks: Sequence[Hooks]
    busy: Busy
    max_pending: int
    max_output_tokens: int | None
    temperature: float | None
    thinking: Thinking | None
    cache: bool
    extra: Mapping[str, Any] | None
    deps: Any
    working_directory: str | Path
    allowed_paths: Sequence[str | Path] | None
    context_window: int | None
    prices: PriceList | None


YEAR = 366 * 86_400.0
_NONE = type(None)
_KINDS: Sequence[tuple[str, tuple[type[Any], ...], str]] = (
    ("budget", (Budget, _NONE), "a Budget(…)"),
    ("compaction", (Compaction, _NONE), "a Compaction(…), or None"),
    ("retry", (Retry,), "a Retry(…)"),
    ("deadline", (int, float, _NONE), "seconds, or None"),
    ("temperature", (int, float, _NONE), "a number, or None"),
    ("thinking", (int, str, _NONE), "tokens, or 'low', 'medium' or 'high'"),
    ("cache", (bool,), "True or False"),
    ("extra", (Mapping, _NONE), "a dict, or None"),
    ("working_directory", (str, Path), "a path"),
)


def parse_output(output: type[Any] | None, text: str) -> Any:
    """A typed answer from a model's words: JSON, also within a code fence. `None` and `str` leave the words as they are.

    Raises:
        pydantic.ValidationError: It does not fit.
    """
    if output is None or output is str:
        return text
    fenced = _FENCE.fullmatch(text.strip())
    return pydantic.TypeAdapter[Any](output).validate_json(fenced[1] if fenced else text)


_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)


def _check_output(output: Any) -> None:
    if output is None:
        return
    if isinstance(output, str) or not (isinstance(output, type) or get_origin(output) is not None):
        raise ConfigurationError(f"output={output!r} must be a type, such as a pydantic model")
    try:
        pydantic.TypeAdapter(output)
    except Exception as error:
        raise ConfigurationError(f"output={output!r} has no JSON schema: {str(error).splitlines()[0]}") from None


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or not all(c.isalnum() or c in "_-." for c in name):
        raise ConfigurationError(f"agent name {name!r} must be letters, digits, '_', '-' or '.'")


def _check_tools(tools: Sequence[object]) -> None:
    seen: set[str] = set()
    for tool in tools:
        if not isinstance(tool, Tool):
            hint = "; put @tool above the function" if callable(tool) else ""
            raise ConfigurationError(f"tools= takes tools, not {tool!r}{hint}")
        if tool.name in seen:
            raise ConfigurationError(f"two tools are called {tool.name!r}; tool.replace(name=…) renames one")
        check_sendable(tool)
        seen.add(tool.name)


def check_budget(budget: object, *, renews: bool = True) -> None:
    """Raise `ConfigurationError` unless it is a budget, or `None`; a run's does not renew."""
    if budget is None:
        return
    if not isinstance(budget, Budget):
        raise ConfigurationError(f"budget={budget!r} must be a Budget(…)")
    if budget.per is not None and not renews:
        raise ConfigurationError(
            f"a run's budget does not renew: Budget(per={budget.per!r}) is for rt.start(budget=) or Runtime(budget=)"
        )
