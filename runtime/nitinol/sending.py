"""What goes from here to the process of a `@tool(isolation="process")`: pickles, by cloudpickle.

Cloudpickle sends closures, lambdas and whatever `__main__` defines by value, so that no main guard is needed; the rest
goes by reference, and is imported there. The function of a module's `@tool` goes by reference too, by way of its `Tool`.
"""

from __future__ import annotations

import io
import sys
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any, cast

from nitinol.errors import ConfigurationError, ToolError
from nitinol.tool_spec import Tool


def pickled(value: Any, what: str, way_out: str) -> bytes:
    """A value as bytes that `pickle.loads` reads in another process.

    Args:
        value: What is sent.
        what: Its name, for the error.
        way_out: What to do where it cannot be sent, for the error.

    Raises:
        ToolError: It cannot be sent; the text names it and says what to do.
    """
    buffer = io.BytesIO()
    try:
        _pickler()(buffer).dump(value)
    except Exception as error:  # pickling runs the code of whatever is pickled
        raise ToolError(f"{what} cannot be sent to a process: {type(error).__name__}: {error}; {way_out}") from None
    return buffer.getvalue()


def pickled_function(tool: Tool) -> bytes:
    """The function of a process tool.

    Raises:
        ToolError: It holds what cannot be sent.
    """
    way_out = 'make what it needs inside the function, or use isolation="thread"'
    return pickled(tool.function, f"the function of {tool.name!r}", way_out)


def check_sendable(tool: Tool) -> None:
    """Raise `ConfigurationError` if a tool is to run in a process and cannot be sent there."""
    if tool.isolation == "process":
        try:
            pickled_function(tool)
        except ToolError as error:
            raise ConfigurationError(str(error)) from None


@cache
def _pickler() -> Any:
    cloudpickle: Any = import_module("cloudpickle")  # not before it is needed; and it has no types
    base: Any = cloudpickle.Pickler

    class Pickler(base):  # type: ignore[misc] # whatever that is
        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is FunctionType:
                home = obj.__module__ or "__main__"
                by_value = any(
                    f"{home}.".startswith(f"{name}.") for name in cloudpickle.list_registry_pickle_by_value()
                )
                if home != "__main__" and not by_value and _is_of_tool(obj, home):
                    return function_of, (home, obj.__qualname__)
            return base.reducer_override(self, obj)

    return cast("Any", Pickler)


def _is_of_tool(function: FunctionType, home: str) -> bool:
    """Whether what a module holds under the function's name is a tool of this function: by value its globals went along."""
    found: Any = sys.modules.get(home)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return isinstance(found, Tool) and found.function is function


def function_of(home: str, qualname: str) -> Any:
    """In the process: the function of a module's tool."""
    __import__(home)
    found: Any = sys.modules[home]
    for name in qualname.split("."):
        found = getattr(found, name)
    return found.function
