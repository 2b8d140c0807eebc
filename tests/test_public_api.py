"""The front door: what a user imports, and what importing it does."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import io
import logging
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pytest
import structlog

import nitinol
from nitinol import Agent, AgentOptions, Runtime, errors, events, testing
from nitinol.logs import HIDDEN, describe, get_logger, redact

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "runtime" / "nitinol"


def modules() -> list[ModuleType]:
    """Every module of the runtime."""
    names = [info.name for info in pkgutil.walk_packages(nitinol.__path__, "nitinol.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def test_all_is_sorted_and_every_name_is_there_and_documented() -> None:
    """`__all__` is what there is; each class and function says what it is for."""
    assert nitinol.__all__ == sorted(nitinol.__all__)
    assert len(set(nitinol.__all__)) == len(nitinol.__all__)
    for name in nitinol.__all__:
        thing = getattr(nitinol, name)
        assert inspect.getdoc(thing), name


def test_what_the_design_imports_from_the_front_door_is_there() -> None:
    """The import line of the design's section 4, as far as it is built."""
    promised = "Agent Approval Block Budget Halt Hooks Image Prices Retry Runtime ToolContext ToolError ToolResult arun errors events run stream tool"
    assert set(promised.split()) <= set(nitinol.__all__)
    wanted = "ScriptedProvider assert_tool_called assert_tool_not_called call crash fail override_model say"
    assert all(inspect.getdoc(getattr(testing, name)) for name in wanted.split())


def test_public_methods_are_documented() -> None:
    """Of every class of the front door."""
    bare: list[str] = []
    for name in nitinol.__all__:
        thing = getattr(nitinol, name)
        if not inspect.isclass(thing):
            continue
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and callable(value) and not inspect.getdoc(value):
                bare.append(f"{name}.{attribute}")
    assert bare == []


def test_no_public_name_is_a_submodules_name() -> None:
    """`nitinol.x` is one thing, never sometimes a function and sometimes a module."""
    for module in [nitinol, *modules()]:
        if not hasattr(module, "__path__"):
            continue
        submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            value = getattr(module, name)
            if name in submodules:
                assert inspect.ismodule(value), f"{module.__name__}.{name} is a {type(value).__name__}, and a module"


def test_agent_options_are_the_options_of_agent() -> None:
    """All but `model` and `output`, which the overloads of `run` spell out; with the same types."""
    options = {field.name for field in dataclasses.fields(Agent)} - {"model", "output"}
    assert set(AgentOptions.__annotations__) == options
    assert AgentOptions.__required_keys__ == frozenset()
    of_agent, of_options = get_type_hints(Agent), get_type_hints(AgentOptions)
    assert {name: of_agent[name] for name in options} == of_options


def test_the_runtime_imports_neither_providers_nor_tools() -> None:
    """Not a single line of it, not even inside of a function. Only the CLI and the demo, which are programs, may load them by name."""
    for path in RUNTIME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = [name for name in names if name.split(".")[0] in ("nitinol_providers", "nitinol_tools")]
            assert not foreign or path.name in ("demo.py", "cli.py"), f"{path}: {foreign}"


def test_importing_nitinol_loads_no_heavy_library() -> None:
    """httpx, aiohttp, rich and prices are loaded where they are used."""
    program = "import sys, nitinol; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "httpx",
        "httpx_aiohttp",
        "aiohttp",
        "rich",
        "genai_prices",
        "nitinol_providers",
        "nitinol_tools",
        "httpcore",
        "anyio",
    }
    assert loaded & heavy == set()


def test_importing_nitinol_starts_nothing() -> None:
    """No thread, no runtime, no output; signal handlers stay the program's own."""
    program = """
import signal, threading
before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
import nitinol
from nitinol.oneshot import default_runtime
rt = None
assert threading.active_count() == 1
with nitinol.Runtime():
    pass
assert {number: signal.getsignal(number) for number in before} == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_error_is_in_the_tree_and_documented() -> None:
    """One base class; the tree in the docstring names each of them."""
    for name, thing in vars(errors).items():
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            assert issubclass(thing, errors.NitinolError), name
            assert inspect.getdoc(thing), name
            assert name in str(errors.__doc__), name


def test_every_event_has_a_name_of_its_own_and_a_docstring() -> None:
    """The closed union, by type."""
    for name, event in events.TYPES.items():
        assert event.type == name
        assert inspect.getdoc(event)


# ---- logs


def test_logs_are_silent_by_default() -> None:
    """Crashes, failing tools, hooks and providers, escapes on a loop: a program that configures nothing sees nothing."""
    program = """
from nitinol import Agent, Hooks, Runtime, tool
from nitinol.errors import AgentDown
from nitinol.testing import ScriptedProvider, call, crash

class Bad(Hooks):
    def after_run(self, ctx, result):
        raise ValueError("secret")

@tool
def fails():
    "Fail."
    raise ValueError("secret")

def answer(request):
    if request.messages[-1].role == "tool":
        raise ZeroDivisionError
    return call("fails")

rt = Runtime(drain=0.0)
ref = rt.start(Agent(name="a", model=ScriptedProvider(answer), tools=[fails], hooks=[Bad()]))
handle = ref.send("hi")
crash(ref)
ref.resume()
handle.cancel()
handle.result(10)
try:
    while True:
        crash(ref)
except AgentDown:
    pass
def boom():
    raise SystemExit(1)
rt._system.core.call(boom)
rt.stop()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_program_that_configures_logging_sees_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """By the standard logger `nitinol`, with agent and key bound."""
    with Runtime(drain=0.0) as rt:
        ref = rt.start(Agent(name="a", model=testing.ScriptedProvider(["ok"])), key="the-key")
        testing.crash(ref)
    crashes = [record for record in caplog.records if record.name == "nitinol" and "crashed" in record.getMessage()]
    assert crashes
    assert "the-key" in crashes[0].getMessage()


def test_pykkas_records_go_through_the_librarys_logger() -> None:
    """As those of `nitinol.pykka`, once."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("nitinol").addHandler(handler)
    try:
        logging.getLogger("pykka").warning("an actor says")
    finally:
        logging.getLogger("nitinol").removeHandler(handler)
    assert stream.getvalue() == "an actor says\n"
    assert logging.getLogger("pykka").propagate is False
    handlers = logging.getLogger("pykka").handlers
    assert len([handler for handler in handlers if type(handler).__name__ == "_ThroughNitinol"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "API_KEY",
        "openai_api_key",
        "x-api-key",
        "Authorization",
        "password",
        "client_secret",
        "arguments",
        "cookie",
    ],
)
def test_secrets_are_redacted(name: str) -> None:
    """By the name of the field, however deep; tool arguments too."""
    record: dict[str, Any] = {"event": "x", name: "sk-123", "deep": {"headers": [{name: "sk-123"}]}}
    hidden = redact(None, "info", record)
    assert "sk-123" not in repr(hidden)
    assert hidden[name] == HIDDEN
    assert hidden["event"] == "x"


def test_what_is_no_secret_is_shown() -> None:
    """Counts of tokens are not tokens."""
    record: dict[str, Any] = {"event": "x", "input_tokens": 3, "key": "scout/1", "exc_info": (None, None, None)}
    assert redact(None, "info", dict(record)) == record


def test_a_logged_secret_never_reaches_a_handler() -> None:
    """The whole way through structlog."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("nitinol").addHandler(handler)
    try:
        get_logger(key="k").warning("sent", api_key="sk-123", arguments={"path": "/etc"}, url="http://x")
    finally:
        logging.getLogger("nitinol").removeHandler(handler)
    text = stream.getvalue()
    assert "sk-123" not in text
    assert "/etc" not in text
    assert "http://x" in text
    assert structlog.is_configured() is False


def test_an_exception_is_described_whatever_its_text_does() -> None:
    """For the journal: printable, and never another exception."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert describe(ValueError("why")) == "why"
    assert describe(ValueError("\ud800")) == "?"
    assert "ZeroDivisionError" in describe(Broken())
