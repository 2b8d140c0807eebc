"""Tools: from a typed function to a schema, from a model's arguments to a call, from a value to a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitinol.errors import ConfigurationError, ToolError
from nitinol.messages import Audio, Document, Image
from nitinol.tool_spec import Approval, Tool, ToolContext, ToolResult, to_result, tool

CTX = ToolContext()


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


@dataclass
class Box:
    label: str
    corner: Point


class Colour(Enum):
    RED = "red"


@tool
def fetch(ctx: ToolContext, url: str, limit: int = 5) -> list[str]:
    """Fetch a page.

    And say what is on it.

    Args:
        url: Address of the page,
            with its scheme.
        limit (int): How many.

    Returns:
        url: not an argument.
    """
    return [url] * limit


def test_the_schema_comes_from_hints_and_docstring() -> None:
    """Name, description, types, defaults, and what `Args:` say; the context is not the model's. parity: T1"""
    assert fetch.name == "fetch"
    assert fetch.description == "Fetch a page.\n\nAnd say what is on it."
    assert fetch.parameters == {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "Address of the page, with its scheme."},
            "limit": {"type": "integer", "default": 5, "description": "How many."},
        },
        "required": ["url"],
        "additionalProperties": False,
    }
    assert not fetch.is_async


def test_a_function_without_parameters_or_docstring_is_a_tool() -> None:
    """Its schema is still an object. parity: T1"""

    @tool
    async def ping() -> None: ...

    assert ping.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert ping.description == ""
    assert ping.is_async
    assert ping.bind({}, CTX) == {}


def test_the_context_may_stand_anywhere_under_any_name() -> None:
    """It is known by its annotation, `Annotated` or not. parity: T1"""

    def one(a: int, context: ToolContext) -> None: ...
    def two(where: Annotated[ToolContext, "the call"], a: int) -> None: ...

    assert tool(one).bind({"a": 1}, CTX) == {"a": 1, "context": CTX}
    assert tool(two).bind({"a": 1}, CTX) == {"a": 1, "where": CTX}
    assert list(tool(two).parameters["properties"]) == ["a"]


def test_rich_hints_make_rich_schemas() -> None:
    """Literal, Optional, Annotated, nested models and dataclasses. parity: T1"""

    @tool
    def draw(
        colour: Literal["red", "blue"],
        at: Point,
        box: Box | None = None,
        width: Annotated[int, pydantic.Field(ge=1, le=9, description="In pixels.")] = 1,
        tags: list[str] = pydantic.Field(default_factory=list, description="Any."),  # noqa: B008
    ) -> None: ...

    properties = draw.parameters["properties"]
    assert properties["colour"] == {"enum": ["red", "blue"], "type": "string"}
    assert properties["width"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "default": 1,
        "description": "In pixels.",
    }
    assert properties["tags"]["description"] == "Any."
    assert draw.parameters["required"] == ["colour", "at"]
    bound = draw.bind({"colour": "red", "at": {"x": "3"}, "box": {"label": "b", "corner": {"x": 1}}}, CTX)
    assert bound["at"] == Point(x=3)
    assert bound["box"] == Box(label="b", corner=Point(x=1))
    assert bound["tags"] == []
    with pytest.raises(ToolError, match=r"at\.x: .*; box\.label: .*; width: .*"):
        draw.bind({"colour": "red", "at": {"x": "?"}, "box": {"corner": {"x": 1}}, "width": 10}, CTX)


def test_any_argument_name_will_do() -> None:
    """Also pydantic's own, and such as begin with an underscore. parity: T1"""

    def odd(json: str, copy: int, model_config: int, _private: int = 1, title: str = "t") -> None:
        """Odd.

        Args:
            json: Some.
        """

    odd_tool = tool(odd)
    assert list(odd_tool.parameters["properties"]) == ["json", "copy", "model_config", "_private", "title"]
    assert odd_tool.parameters["properties"]["json"] == {"type": "string", "description": "Some."}
    given_arguments = {"json": "x", "copy": 2, "model_config": 3}
    assert odd_tool.bind(given_arguments, CTX) == {**given_arguments, "_private": 1, "title": "t"}


def test_wrong_missing_and_unknown_arguments_are_errors_that_name_them() -> None:
    """The model reads them, and may try again. parity: T3"""
    for arguments, why in (
        ({"url": "u", "limit": "many"}, "limit: Input should be a valid integer"),
        ({}, "url: Field required"),
        ({"url": "u", "depth": 1}, "depth: Extra inputs are not permitted"),
    ):
        with pytest.raises(ToolError, match=f"arguments of 'fetch' do not fit its schema: {why}"):
            fetch.bind(arguments, CTX)


def test_defaults_are_not_shared_between_calls() -> None:
    """A list that one call changes is not the next call's. parity: T1"""

    def collect(items: list[int] = []) -> None: ...  # noqa: B006

    collector = tool(collect)
    collector.bind({}, CTX)["items"].append(1)
    assert collector.bind({}, CTX) == {"items": []}


def test_a_tool_is_called_like_its_function() -> None:
    """With Python's own arguments, unchecked. parity: T1"""
    assert fetch(CTX, "u", limit=2) == ["u", "u"]
    assert repr(fetch) == "<Tool 'fetch'>"


def test_options_are_given_in_brackets() -> None:
    """`approval=True` is an `Approval` with its defaults. parity: T1, T5"""

    @tool(name="get", description="Gets.", timeout=5, replay="safe", serial=True, approval=True, callers=("code",))
    def function(a: int) -> None:
        """Not this."""

    assert (function.name, function.description, function.timeout) == ("get", "Gets.", 5.0)
    assert (function.replay, function.serial, function.callers) == ("safe", True, ("code",))
    assert function.approval == Approval(timeout=None, default="deny")
    assert (fetch.timeout, fetch.isolation, fetch.replay, fetch.serial, fetch.approval, fetch.callers) == (
        120.0, "thread", "never", False, None, (),
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"isolation": "fork"}, {"replay": "always"}, {"timeout": 0}, {"timeout": float("nan")}, {"name": "no spaces"},
     {"name": "x" * 65}],
)  # fmt: skip
def test_an_option_with_an_impossible_value_is_a_configuration_error(options: dict[str, Any]) -> None:
    """When the tool is defined. parity: T1"""
    with pytest.raises(ConfigurationError):
        fetch.replace(**options)


def test_an_unknown_option_is_a_type_error() -> None:
    """In the decorator and in `replace`. parity: T1"""
    decorate: Callable[..., Any] = tool
    with pytest.raises(TypeError, match="retries"):
        decorate(retries=3)(fetch.function)
    with pytest.raises(TypeError, match="retries"):
        fetch.replace(retries=3)


def test_a_function_that_makes_no_schema_is_a_type_error() -> None:
    """No hint, `*args`, a hint that is no data, one that cannot be found, no function at all. parity: T1"""

    def unhinted(a) -> None: ...  # type: ignore[no-untyped-def]  # pyright: ignore
    def variadic(*a: int) -> None: ...
    def keywords(**a: int) -> None: ...
    def positional(a: int, /) -> None: ...
    def callback(a: Callable[[], None]) -> None: ...
    def opaque(a: Tool) -> None: ...
    def optional(ctx: ToolContext | None) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore

    functions: list[Callable[..., Any]] = [
        unhinted, variadic, keywords, positional, callback, opaque, optional, unknown,
    ]  # pyright: ignore  # fmt: skip
    for function in functions:
        with pytest.raises(TypeError, match=f"tool '{function.__name__}'"):
            tool(function)
    with pytest.raises(TypeError, match="takes a function"):
        Tool("fetch")  # type: ignore[arg-type]  # pyright: ignore


def test_callable_objects_and_bound_methods_are_tools_too() -> None:
    """An object needs a name. parity: T1"""

    class Service:
        async def __call__(self, a: int) -> int:
            return a

        def look(self, a: int) -> int:
            """Look."""
            return a

    assert tool(Service().look).bind({"a": 1}, CTX) == {"a": 1}
    assert Tool(Service(), name="service").is_async
    with pytest.raises(ConfigurationError, match="give name="):
        tool(Service())


def test_a_schema_can_be_given_instead_of_hints() -> None:
    """For tools whose schema comes from elsewhere; their arguments pass unchecked, the context as ever. parity: T1"""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}

    def call(ctx: ToolContext, **arguments: Any) -> Any:
        return arguments

    given_tool = tool(name="remote", parameters=schema)(call)
    assert given_tool.parameters == schema
    assert given_tool.bind({"a": "not checked"}, CTX) == {"a": "not checked", "ctx": CTX}
    assert given_tool.replace(timeout=1).bind({"b": 1}, CTX) == {"b": 1, "ctx": CTX}


def test_replace_gives_a_copy_with_other_options() -> None:
    """The tool itself stays as it is, and what is not named is kept. parity: T1"""
    described = fetch.replace(description="Gets.", approval=Approval(timeout=5), callers=("code",))
    copy = described.replace(timeout=60, approval=False)
    assert (copy.description, copy.timeout, copy.approval, copy.callers) == ("Gets.", 60.0, None, ("code",))
    assert copy.parameters == fetch.parameters
    assert copy(CTX, "u", 1) == ["u"]
    assert fetch.timeout == 120.0
    assert described.approval == Approval(timeout=5)


def test_the_digest_changes_with_what_a_person_would_approve() -> None:
    """Name, description, schema, options; equal tools have equal digests. parity: T1"""

    def other(ctx: ToolContext, url: str, limit: int = 6) -> None: ...

    assert fetch.replace().digest == fetch.digest
    changed = [
        fetch.replace(name="get"),
        fetch.replace(description="Gets."),
        fetch.replace(timeout=1),
        fetch.replace(approval=True),
        fetch.replace(serial=True),
        tool(other).replace(name="fetch", description=fetch.description),
    ]
    assert len({fetch.digest, *(one.digest for one in changed)}) == 7


def test_a_context_tells_whether_anyone_waits_and_takes_progress() -> None:
    """Its defaults let a program call a tool without a runtime. parity: T1"""
    told: list[Any] = []
    assert not CTX.cancelled
    ToolContext(is_cancelled=lambda: True, report=told.append).progress({"read": 1})
    assert told == [{"read": 1}]
    assert ToolContext(is_cancelled=lambda: True).cancelled


@dataclass
class Found:
    path: Path
    on: date
    sizes: set[int] = field(default_factory=lambda: {1})
    parent: Point = field(default_factory=lambda: Point(x=1))


def test_text_is_given_to_the_model_as_it_is() -> None:
    """A str, bytes as UTF-8, and nothing as a word, since no answer may be empty. parity: T2"""
    assert to_result("x") == ToolResult("x")
    assert to_result(b"\xc3\xa9\xff") == ToolResult("é\ufffd")
    assert to_result(None) == ToolResult("done")


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (5, 5),
        (True, True),
        ([], []),
        (["a", 1, None], ["a", 1, None]),
        (("a", "b"), ["a", "b"]),
        ({"a": {1: [2.5]}}, {"a": {"1": [2.5]}}),
        (Point(x=1), {"x": 1, "y": 0}),
        ([Point(x=1)], [{"x": 1, "y": 0}]),
        (
            Found(path=Path("/a"), on=date(2026, 1, 2)),
            {"path": "/a", "on": "2026-01-02", "sizes": [1], "parent": {"x": 1, "y": 0}},
        ),
        ({"colour": Colour.RED, "price": Decimal("1.50")}, {"colour": "red", "price": "1.50"}),
        ([float("nan"), float("inf")], [None, None]),
    ],
)
def test_data_is_json_for_the_model_and_for_programs(value: Any, data: Any) -> None:
    """Of pydantic models, dataclasses, and what they hold. parity: T2"""
    result = to_result(value)
    assert result.data == data
    assert json.loads(result.text) == data
    assert not result.error


def test_media_are_media_with_or_without_words() -> None:
    """A list of both keeps the order of each. parity: T2"""
    picture, sound, paper = Image(data=b"1"), Audio(data=b"2"), Document(url="https://x")
    assert to_result(picture) == ToolResult("[image]", media=(picture,))
    assert to_result(["one", picture, "two", sound, paper]) == ToolResult("one\ntwo", media=(picture, sound, paper))
    assert to_result((paper,)) == ToolResult("", media=(paper,))


def loop() -> list[Any]:
    """A list that holds itself."""
    items: list[Any] = []
    items.append(items)
    return items


def deep() -> list[Any]:
    """A list that is nested too deeply to be written."""
    items: list[Any] = []
    for _ in range(100_000):
        items = [items]
    return items


@pytest.mark.parametrize("value", [object(), {"a": object()}, len, loop(), deep(), {"a": b"\xff"}], ids=type)
def test_what_is_neither_text_nor_json_is_a_tool_error(value: Any) -> None:
    """Returned, or as the data of a `ToolResult`: it must not reach the journal. parity: T2, T3"""
    with pytest.raises(ToolError, match=f"the tool returned {type(value).__name__}, which is neither text nor JSON"):
        to_result(value)
    with pytest.raises(ToolError, match=r"ToolResult\(data=\) holds"):
        to_result(ToolResult("fine", data=value))


def test_a_tool_result_passes_with_its_data_made_json() -> None:
    """And keeps its error and media. parity: T2"""
    picture = Image(data=b"1")
    result = to_result(
        ToolResult("text", data=Found(path=Path("a"), on=date(2026, 1, 2)), media=(picture,), error=True)
    )
    assert result.data["path"] == "a"
    assert (result.text, result.media, result.error) == ("text", (picture,), True)
    assert to_result(ToolResult("text")) == ToolResult("text")


def test_a_tool_result_with_fields_of_another_type_is_a_tool_error() -> None:
    """A text that is none, media that are none. parity: T3"""
    made: Any = ToolResult
    for wrong in (made(5), made("x", media=("y",)), made("x", media=Image(data=b"1"))):
        with pytest.raises(ToolError, match="takes"):
            to_result(wrong)


def test_characters_that_utf_8_cannot_hold_are_replaced() -> None:
    """The names of old files have them; the journal could not store them. parity: T2"""
    for value in ("a\udcff", ["a\udcff"], ["a\udcff", Image(data=b"1")], ToolResult("a\udcff", data="a\udcff")):
        result = to_result(value)
        assert "a?" in result.text
        json.dumps([result.text, result.data], ensure_ascii=False).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=JSON)
def test_any_json_like_value_becomes_a_result_that_can_be_stored(value: Any) -> None:
    """Text and data are both UTF-8 and strict JSON. parity: T2"""
    result = to_result(value)
    stored = json.dumps([result.text, result.data], ensure_ascii=False, allow_nan=False).encode()
    assert json.loads(stored) == [result.text, result.data]


def test_an_unknown_option_names_the_nearest() -> None:
    """Before the function is known, and in a copy."""
    options: dict[str, Any] = {"aproval": True}
    with pytest.raises(
        TypeError, match=r"a tool has no option aproval=; did you mean approval=\? Its options: name, .*callers"
    ):
        tool(**options)
    with pytest.raises(TypeError, match="a tool has no option aproval=; did you mean approval="):
        Tool(to_result, parameters={}).replace(**options)
    with pytest.raises(TypeError, match="a tool has no option colour=; Its options: name"):
        tool(colour="red")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
