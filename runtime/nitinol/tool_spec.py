"""Tools: a typed function, its schema, and what it is told when it is called."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_type_hints, overload

import pydantic
import pydantic_core
from pydantic.fields import FieldInfo

from nitinol.errors import ConfigurationError, ToolError
from nitinol.messages import Audio, Document, Image, Media
from nitinol.usage import quarters

Isolation = Literal["thread", "process"]
Replay = Literal["never", "safe"]

MAX_TEXT = 200_000
"""Characters of one answer that a model is sent; the middle of a longer one is left out."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back: text for the model, data for programs.

    Args:
        text: What the model reads.
        data: Anything JSON-able; in `tool.finished` and `result.tool_calls`, never shown to the model.
        media: Pictures, sound, documents for the model.
        error: The model is told that the call failed.
    """

    text: str
    data: Any = None
    media: tuple[Media, ...] = ()
    error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A call of this tool waits for a person.

    Args:
        timeout: Seconds to wait; `None` waits for ever.
        default: What happens at the timeout.
    """

    timeout: float | None = None
    default: Literal["deny", "approve"] = "deny"

    def __post_init__(self) -> None:
        wrong = self.timeout is not None and (not isinstance(self.timeout, (int, float)) or not self.timeout > 0)  # pyright: ignore[reportUnnecessaryIsInstance]
        if wrong:
            raise ConfigurationError(
                f"Approval(timeout={self.timeout!r}) must be more than 0 seconds, or None: for ever"
            )


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """What a tool is told about its call. A tool asks for it with a first parameter annotated `ToolContext`."""

    agent: str = "agent"
    key: str = "agent"
    run_id: str = "run"
    turn: int = 1
    call_id: str = "call"
    idempotency_key: str = "key"
    """The same for every execution of this call: give it to services that take one."""
    deps: Any = None
    """The agent's `deps=`; never stored."""
    working_directory: Path = field(default_factory=Path.cwd)
    allowed_paths: tuple[Path, ...] | None = None
    """The tool's files must lie inside one of these; `None` = in the working directory."""
    deadline: float | None = None
    """Seconds since 1970, UTC, when the call is given up; `None` = never."""
    is_cancelled: Callable[[], bool] = field(default=lambda: False, repr=False)
    report: Callable[[Any], object] = field(default=lambda data: None, repr=False)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more. A sync tool that takes long should look now and then."""
        return self.is_cancelled()

    def progress(self, data: Any) -> None:
        """Tell subscribers how far the call is: a `tool.progress` event. From any thread."""
        self.report(data)


class Tool:
    """A tool: a name, a description, a JSON schema, and a function. Made by `@tool`.

    Calling it calls the function. It is immutable; `replace` gives a copy with other options.
    """

    __slots__ = (
        "_model",
        "approval",
        "callers",
        "context_name",
        "description",
        "digest",
        "function",
        "is_async",
        "isolation",
        "name",
        "parameters",
        "replay",
        "serial",
        "size",
        "timeout",
    )

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object."""
    function: Callable[..., Any]
    timeout: float
    isolation: Isolation
    replay: Replay
    serial: bool
    approval: Approval | None
    callers: tuple[str, ...]
    is_async: bool
    size: int
    """Characters of its definition in a request, for token estimates."""
    digest: str
    """A hash of name, description, schema and options: a changed tool asks its approvals anew."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        isolation: Isolation = "thread",
        replay: Replay = "never",
        serial: bool = False,
        approval: bool | Approval = False,
        callers: tuple[str, ...] = (),
    ) -> None:
        """Read the function's hints and docstring, and check the options.

        Args:
            function: What runs: `def` on a worker thread, `async def` on the user loop.
            name: What the model calls it; the function's name by default.
            description: What the model reads; the docstring's text before `Args:` by default.
            parameters: A JSON schema instead of the one made from hints; arguments are then passed unchecked.
            timeout: Seconds from the moment the call gets its slot.
            isolation: Where a `def` runs: on a thread of this process, which Python cannot stop, or in a worker process,
                which is killed with its process group when the call's time is over or it is cancelled. Functions,
                arguments and `deps=` are sent as pickles (closures, lambdas and what `__main__` defines too), so what
                they change there changes nothing here; the process serves many calls, one at a time.
            replay: Whether a call whose outcome a crash has hidden may run again.
            serial: The call runs alone among the calls of its turn.
            approval: The call waits for a person.
            callers: Who may call it, where the provider knows callers (its own code execution, for instance).

        Raises:
            ConfigurationError: An option has a value it cannot have.
            TypeError: It is no function, or no schema can be made of its parameters.
        """
        for option, value, allowed in (
            ("isolation", isolation, ("thread", "process")),
            ("replay", replay, ("never", "safe")),
        ):
            if value not in allowed:
                raise ConfigurationError(f"tool option {option}={value!r} must be one of {allowed}")
        if not timeout > 0:
            raise ConfigurationError(f"tool option timeout={timeout!r} must be more than 0 seconds")
        if not callable(function):
            raise TypeError(f"@tool takes a function, not {function!r}")
        called = name or str(getattr(function, "__name__", ""))
        if not _NAME.match(called):
            raise ConfigurationError(f"tool name {called!r} must be 1 to 64 letters, digits, _ or -; give name=")
        is_async = inspect.iscoroutinefunction(_routine(function))
        if isolation == "process" and is_async:
            raise ConfigurationError(
                f'tool {called!r}: isolation="process" is for def; an async def runs as a coroutine, leave it out'
            )
        if isolation == "process" and not hasattr(os, "fork"):
            raise ConfigurationError(f'tool {called!r}: isolation="process" needs a system that can fork')
        summary, described = _read_docstring(inspect.getdoc(function) or "")
        hints = _hints(called, function)
        self.context_name = next((key for key, hint in hints.items() if _is_context(hint)), None)
        self._model = None if parameters is not None else _argument_model(called, function, hints, described)
        schema = parameters if self._model is None else _schema(called, self._model)
        values: dict[str, Any] = {
            "function": function,
            "name": called,
            "description": description if description is not None else summary,
            "parameters": schema,
            "timeout": float(timeout),
            "isolation": isolation,
            "replay": replay,
            "serial": serial,
            "approval": Approval() if approval is True else approval or None,
            "callers": tuple(callers),
            "is_async": is_async,
        }
        for key, value in values.items():
            setattr(self, key, value)
        self.size = quarters(called) + quarters(self.description) + quarters(json.dumps(schema, default=str))
        identity = {key: repr(value) for key, value in values.items() if key not in ("function", "parameters")}
        written = json.dumps([identity, schema], sort_keys=True, default=str)
        self.digest = hashlib.sha256(written.encode()).hexdigest()[:16]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name!r}>"

    def replace(self, **options: Any) -> Tool:
        """A copy with other options.

        Raises:
            TypeError: There is no such option.
        """
        _check_options(options)
        return Tool(options.pop("function", self.function), **{**self._options(), **options})

    def __reduce__(self) -> Any:
        # The argument model is made of the function, and no pickle's business.
        return _make, (self.function, self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters if self._model is None else None,
            "timeout": self.timeout,
            "isolation": self.isolation,
            "replay": self.replay,
            "serial": self.serial,
            "approval": self.approval or False,
            "callers": self.callers,
        }

    def misfit(self, arguments: Mapping[str, Any]) -> str | None:
        """Why these arguments do not fit the schema; `None` where they do."""
        try:
            self.bind(arguments, ToolContext())
        except ToolError as error:
            return str(error)
        return None

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """Check a model's arguments and add the context: the keyword arguments of the function.

        Raises:
            ToolError: They do not fit the schema; the text says which and why.
        """
        if self._model is None:
            bound = dict(arguments)
        else:
            try:
                checked = self._model.model_validate(dict(arguments))
            except pydantic.ValidationError as error:
                raise ToolError(_explain(self.name, error)) from None
            # All, also those not given: where the default is a pydantic `Field(...)`, only the model knows its value.
            bound = {key.removeprefix(_FIELD): getattr(checked, key) for key in self._model.model_fields}
        if self.context_name is not None:
            bound[self.context_name] = context
        return bound


def _check_options(given: Mapping[str, Any]) -> None:
    known = list(inspect.signature(Tool).parameters)
    for option in given:
        if option not in known:
            near = get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]}=? " if near else ""
            raise TypeError(f"a tool has no option {option}=; {hint}Its options: {', '.join(known[1:])}")


def _make(function: Callable[..., Any], options: dict[str, Any]) -> Tool:
    return Tool(function, **options)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    timeout: float = 120.0,
    isolation: Isolation = "thread",
    replay: Replay = "never",
    serial: bool = False,
    approval: bool | Approval = False,
    callers: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function: bare, or with the options of `Tool`.

    The schema comes from the type hints, the descriptions from the docstring (`Args:`).

    Raises:
        TypeError: A parameter has no hint, or is `*args`, `**kwargs` or positional-only; or there is no such option.
    """
    _check_options(options)
    if function is not None:
        return Tool(function, **options)

    def make(function: Callable[..., Any]) -> Tool:
        return Tool(function, **options)

    return make


def to_result(value: Any) -> ToolResult:
    """What a tool returned, as text for the model and data for programs, both fit for the journal.

    Characters that UTF-8 cannot hold (of file names, for instance) become `?`; NaN and infinity become null.

    Raises:
        ToolError: It is no JSON, no pydantic model, no dataclass and no media, or a `ToolResult` that holds such.
    """
    if isinstance(value, ToolResult):
        return _checked(value)
    if value is None:
        return ToolResult("done")
    if isinstance(value, str):
        return ToolResult(_printable(value))
    if isinstance(value, bytes):
        return ToolResult(value.decode("utf-8", "replace"))
    if isinstance(value, (Image, Audio, Document)):
        return ToolResult(f"[{value.type}]", media=(value,))
    items = cast("list[Any]", value) if isinstance(value, (list, tuple)) else []
    words = [item for item in items if isinstance(item, str)]
    media = tuple(item for item in items if isinstance(item, (Image, Audio, Document)))
    if media and len(words) + len(media) == len(items):
        return ToolResult(_printable("\n".join(words)), media=media)
    text = _to_json(value, f"the tool returned {type(cast('object', value)).__name__}")
    return ToolResult(text, data=json.loads(text))


def to_answer(value: Any) -> ToolResult:
    """As `to_result`, with a text that is not too long for a model.

    Raises:
        ToolError: As `to_result`.
    """
    result = to_result(value)
    return replace(result, text=clip(result.text))


def clip(text: str) -> str:
    """A text without its middle, where it is longer than `MAX_TEXT`; what no store and wire would take is `?`."""
    text = _printable(text)
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - MAX_TEXT:,} characters left out …]\n{text[-half:]}"


def _checked(result: ToolResult) -> ToolResult:
    text, data, media = cast("tuple[Any, Any, Any]", (result.text, result.data, result.media))
    if not isinstance(text, str):
        raise ToolError(f"ToolResult(text=) takes a str, not {type(text).__name__}")
    if not isinstance(media, (tuple, list)):
        raise ToolError(f"ToolResult(media=) takes a tuple of media, not {type(media).__name__}")
    for item in cast("list[Any]", media):
        if not isinstance(item, (Image, Audio, Document)):
            raise ToolError(f"ToolResult(media=) takes Image, Audio and Document, not {type(item).__name__}")
    if data is not None:
        data = json.loads(_to_json(data, f"ToolResult(data=) holds {type(data).__name__}"))
    return replace(result, text=_printable(text), data=data, media=tuple(cast("list[Media]", media)))


def _to_json(value: Any, what: str) -> str:
    try:
        # Through Python objects, since straight to JSON a character that UTF-8 cannot hold is an error.
        plain = pydantic_core.to_jsonable_python(value, inf_nan_mode="null")
        return _printable(json.dumps(plain, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"{what}, which is neither text nor JSON: {error}") from None


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


Described: TypeAlias = dict[str, str]


_FIELD = "argument_"
"""Before each field's name in an argument model, so that no argument's name can meet one of pydantic's own."""


def _routine(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, or of a callable object its `__call__`, which has the hints."""
    return function if inspect.isroutine(function) else cast("Any", function).__call__


def _hints(name: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(_routine(function), include_extras=True)
    except NameError as error:
        raise TypeError(f"tool {name!r}: {error}; a hint must be importable where the tool is defined") from None


def _is_context(hint: Any) -> bool:
    return ToolContext in (hint, getattr(hint, "__origin__", None))


def _argument_model(
    name: str, function: Callable[..., Any], hints: Mapping[str, Any], described: Described
) -> type[pydantic.BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"tool {name!r}: parameter {parameter.name!r} must be an ordinary, named one")
        if parameter.name not in hints:
            raise TypeError(f"tool {name!r}: parameter {parameter.name!r} needs a type hint to make its schema from")
        if _is_context(hints[parameter.name]):
            continue
        default: Any = ... if parameter.default is parameter.empty else parameter.default
        if parameter.name in described and not isinstance(default, FieldInfo):
            default = pydantic.Field(default, description=described[parameter.name])
        fields[_FIELD + parameter.name] = (hints[parameter.name], default)
    config = pydantic.ConfigDict(
        extra="forbid", protected_namespaces=(), alias_generator=lambda key: key.removeprefix(_FIELD)
    )
    try:
        return pydantic.create_model(name, __config__=config, **fields)
    except pydantic.errors.PydanticUserError as error:
        raise TypeError(f"tool {name!r}: {str(error).splitlines()[0]}") from None


def _schema(name: str, model: type[pydantic.BaseModel]) -> dict[str, Any]:
    try:
        schema = model.model_json_schema()
    except pydantic.errors.PydanticUserError as error:
        raise TypeError(f"tool {name!r}: {str(error).splitlines()[0]}") from None
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for described in schema["properties"].values():
        described.pop("title", None)
    return schema


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Example|Examples|Note|Notes):\s*$")
_ARGUMENT = re.compile(r"^(\*{0,2}\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def _read_docstring(text: str) -> tuple[str, Described]:
    """A docstring's text before its first section, and what its `Args:` say of each parameter."""
    summary: list[str] = []
    described: Described = {}
    section: str | None = None
    current: str | None = None
    indent: int | None = None
    for line in text.splitlines():
        heading = _SECTION.match(line)
        if heading:
            section, current, indent = heading[1], None, None
        elif section is None:
            summary.append(line)
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            depth = len(line) - len(line.lstrip())
            indent = depth if indent is None else indent
            found = _ARGUMENT.match(line.strip()) if depth == indent else None
            if found:
                current = str(found[1]).lstrip("*")
                described[current] = found[2].strip()
            elif current is not None:
                described[current] = f"{described[current]} {line.strip()}".strip()
    return "\n".join(summary).strip(), described


def _explain(name: str, error: pydantic.ValidationError) -> str:
    lines = [
        f"{'.'.join(str(part) for part in item['loc']) or 'arguments'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False)
    ]
    return f"the arguments of {name!r} do not fit its schema: " + "; ".join(lines)


__all__ = ["Approval", "Isolation", "Replay", "Tool", "ToolContext", "ToolResult", "to_result", "tool"]
