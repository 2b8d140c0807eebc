"""What type checkers know of the public API. Checked by mypy and pyright, never run.

A line that must be refused carries a `type: ignore` with its code; both checkers call an ignore that nothing needs an
error, so each of them is a test as well. `tests/test_typing.py` shows the two at work on a bad file.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, assert_type

from nitinol import (
    Agent,
    AgentRef,
    AgentStatus,
    Block,
    Budget,
    Delta,
    Hooks,
    Message,
    ModelInfo,
    ModelRequest,
    ModelResponse,
    Prices,
    Provider,
    RunHandle,
    RunResult,
    Runtime,
    Tool,
    ToolCallRecord,
    ToolContext,
    Usage,
    arun,
    events,
    run,
    stream,
    tool,
)
from nitinol.hooks import HookContext
from nitinol.http import Http
from nitinol.messages import ToolCall
from nitinol.provider import StreamPart
from nitinol.testing import ScriptedProvider, say


@dataclass
class Report:
    title: str
    score: int


@tool
def bare(url: str) -> list[str]:
    """Fetch a page."""
    return [url]


@tool(timeout=120, isolation="thread", replay="never", serial=False, approval=False)
def with_options(ctx: ToolContext, url: str, limit: int = 5) -> list[str]:
    """Fetch a page."""
    ctx.progress({"read": limit})
    return [url]


@tool(isolation="process")
def in_a_process(ctx: ToolContext, number: int) -> int:
    """Compute."""
    return number


@tool
async def coroutine(city: str) -> str:
    """Ask for the weather."""
    return city


class Guard(Hooks):
    async def before_tool(self, ctx: HookContext, call: ToolCall) -> ToolCall | Block | None:
        return Block("read only") if call.name == "write" else None


# An agent is generic in its answer: str unless `output=` says otherwise.
plain = Agent(name="plain", model="ollama:llama3.2:3b", tools=[bare, with_options, coroutine], hooks=[Guard()])
scout = Agent(name="scout", model=ScriptedProvider([say("{}")]), output=Report, budget=Budget(usd="0.50"))

assert_type(plain, Agent[str])
assert_type(scout, Agent[Report])
assert_type(scout.replace(model="openai-compatible:gpt-5.4"), Agent[Report])
assert_type(bare, Tool)


def one_shots() -> None:
    assert_type(run("Hello", model="ollama:m"), RunResult[str])
    assert_type(run("Hello", model="ollama:m").output, str)
    assert_type(run("Hello", model="ollama:m", output=Report), RunResult[Report])
    assert_type(run("Hello", model="ollama:m", output=Report, tools=[bare]).output, Report)
    assert_type(run("Hello", model="ollama:m", output=list[int]).output, list[int])
    assert_type(run("Hello", plain).output, str)
    assert_type(run("Hello", scout).output, Report)
    assert_type(run("Hello", scout).text, str)
    assert_type(run("Hello", scout).raise_for_status().output, Report)
    assert_type(stream("Hello", scout), RunHandle[Report])
    assert_type(stream("Hello", model="ollama:m", output=Report).result(timeout=60).output, Report)
    assert_type(stream("Hello", model="ollama:m"), RunHandle[str])


async def one_shots_of_coroutines() -> None:
    assert_type(await arun("Hello", model="ollama:m"), RunResult[str])
    assert_type(await arun("Hello", model="ollama:m", output=Report), RunResult[Report])
    assert_type((await arun("Hello", scout)).output, Report)
    assert_type(await stream("Hello", scout), RunResult[Report])


def results() -> None:
    result = run("Hello", scout)
    assert_type(
        result.status,
        Literal[
            "completed",
            "max_turns",
            "max_tool_calls",
            "budget_exceeded",
            "deadline_exceeded",
            "loop_detected",
            "halted",
            "cancelled",
            "failed",
            "sealed",
        ],
    )
    assert_type(result.cost, Decimal | None)
    assert_type(result.usage, Usage)
    assert_type(result.messages, tuple[Message, ...])
    assert_type(result.tool_calls, tuple[ToolCallRecord, ...])


def references() -> None:
    with Runtime(agents=[plain, scout]) as rt:
        ref = rt.start(scout, key="scout/user-42")
        assert_type(ref, AgentRef[Report])
        assert_type(ref.ask("Hello", timeout=60), RunResult[Report])
        assert_type(ref.ask("Hello").output, Report)
        assert_type(ref.send("Hello"), RunHandle[Report])
        assert_type(ref.send("Hello").result().output, Report)
        assert_type(ref.current, RunHandle[Report] | None)
        assert_type(ref.status(), AgentStatus)
        assert_type(rt.start(plain).ask("Hello").output, str)
        assert_type(rt.get("scout/user-42"), AgentRef[Any])
        assert_type(rt.export_agent("scout/user-42"), Iterator[str])
        assert_type(rt.import_agent(rt.export_agent("scout/user-42"), key="copy"), str)
        assert_type(rt.import_agent(ref.snapshot()), str)


async def references_of_coroutines() -> None:
    async with Runtime() as rt:
        ref = rt.start(scout)
        assert_type(await ref.aask("Hello"), RunResult[Report])
        handle = await ref.asend("Hello")
        assert_type(handle, RunHandle[Report])
        assert_type((await handle).output, Report)
        async for event in handle:
            assert_type(event, events.Event)
        async for event in rt.subscribe("run.*"):
            assert_type(event, events.Event)


def narrows_by_type(event: events.Event) -> str:
    if event.type == "model.delta":
        assert_type(event, events.ModelDelta)
        assert_type(event.kind, Literal["text", "thinking", "tool_args"])
        return event.text
    if event.type == "tool.finished":
        assert_type(event, events.ToolFinished)
        return event.error or event.name
    if event.type == "usage.updated":
        assert_type(event.run_cost, Decimal | None)
    if event.type == "run.finished" or event.type == "run.queued":
        assert_type(event, events.RunFinished | events.RunQueued)
        return event.key
    return str(event.text)  # type: ignore[union-attr] # most events have none


def narrows_by_match(event: events.Event) -> str:
    match event:
        case events.ModelDelta(kind="text", text=text):
            return assert_type(text, str)
        case events.ToolFinished(outcome="ok", data=data):
            return str(data)
        case events.RunFinished():
            return assert_type(event.text, str)
        case events.Custom(name=name, payload=payload):
            assert_type(payload, dict[str, Any])
            return name
        case _:
            return event.type


def narrows_by_match_on_type(event: events.Event) -> str:
    match event.type:
        case "model.delta":
            return event.text
        case "run.finished":
            assert_type(event, events.RunFinished)
            return event.text
        case _:
            return event.key


class Echo:
    """A provider of one's own is nothing but a class of this shape."""

    name = "echo"
    model = "echo-1"

    def info(self) -> ModelInfo:
        return ModelInfo(context_window=8_000, max_output_tokens=None, prices=Prices(input="0", output="0"))

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        async for data in http.sse("POST", "https://example.org", headers={}, json={}):
            yield Delta("text", data.decode())
        yield ModelResponse(message=request.messages[-1], usage=None, stop_reason="end_turn")


echo: Provider = Echo()
assert_type(Agent(name="echo", model=Echo()), Agent[str])


def refused() -> None:
    """Everything here is a mistake that a checker finds."""
    Agent(name="a", model="ollama:m", max_turn=3)  # type: ignore[call-arg]
    Agent(name="a", model="ollama:m", max_turns="3")  # type: ignore[arg-type]
    Agent(name="a", model="ollama:m", busy="wait")  # type: ignore[arg-type]
    Agent("a", "ollama:m")  # type: ignore[call-arg]
    Agent(model="ollama:m")  # type: ignore[call-arg]
    Agent(name="a", model="ollama:m", tools=[len])  # type: ignore[list-item]
    run("Hello", model="ollama:m", max_turn=3)  # type: ignore[call-overload]
    run("Hello", model="ollama:m", tols=[bare])  # type: ignore[call-overload]
    run("Hello", model="ollama:m", busy="wait")  # type: ignore[call-overload]
    run("Hello", scout, max_turns=3)  # type: ignore[call-overload]
    stream("Hello", model="ollama:m", on_txt=print)  # type: ignore[call-overload]
    print(run("Hello", scout).output.titel)  # type: ignore[attr-defined]
    print(run("Hello", scout).status == "complete")  # type: ignore[comparison-overlap]
    Budget(usd=0.5)  # type: ignore[arg-type]
    scout.name = "other"  # type: ignore[misc]
    Runtime(worker=3)  # type: ignore[call-arg]
