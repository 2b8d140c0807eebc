"""Tools and hooks in a live agent: whatever they do, the run goes on, and every other agent too."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, types_of, wait_for

from nitinol import Agent, Block, Halt, HookContext, Hooks, Runtime, Tool, ToolContext, ToolError, ToolResult, tool
from nitinol.errors import AuthenticationFailed, ConnectionFailed
from nitinol.events import Event
from nitinol.messages import Message, Text, ToolCall
from nitinol.provider import ModelRequest, ModelResponse
from nitinol.result import RunResult, ToolCallRecord
from nitinol.retry import Retry
from nitinol.testing import Call, ScriptedProvider, call, fail, gate, say


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


def agent(*tools: Tool, calls: list[Call] | None = None, **options: Any) -> Agent[str]:
    """An agent that calls each tool once, then ends."""
    script = ScriptedProvider(_once(calls if calls is not None else [call(tool.name) for tool in tools]))
    return Agent(name="worker", model=script, tools=tools, **options)


def _once(calls: list[Call]) -> Callable[[ModelRequest], Any]:
    return lambda request: "end" if request.messages[-1].role == "tool" else calls


def records(rt: Runtime, *tools: Tool, calls: list[Call] | None = None, **options: Any) -> tuple[ToolCallRecord, ...]:
    """What came of calling these tools."""
    ref = rt.start(agent(*tools, calls=calls, **options))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.text) == ("completed", "end"), result
    assert_valid(ref)
    return result.tool_calls


# ---- what tools do


@tool
def exits() -> None:
    """Exit."""
    sys.exit(3)


@tool
def interrupts() -> None:
    """Interrupt."""
    raise KeyboardInterrupt


@tool
def eats_memory() -> None:
    """Eat."""
    raise MemoryError


@tool
def closes() -> None:
    """Close."""
    raise GeneratorExit


@tool
def stops() -> None:
    """Stop."""
    raise StopIteration


class Unprintable(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise ZeroDivisionError


@tool
def unprintable() -> None:
    """Fail."""
    raise Unprintable


@tool
def half_a_character() -> None:
    """Fail."""
    raise ValueError("\ud800")


@tool
async def exits_async() -> None:
    """Exit."""
    sys.exit(3)


@tool
async def interrupts_async() -> None:
    """Interrupt."""
    raise KeyboardInterrupt


@tool
async def cancels_itself() -> None:
    """Cancel."""
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (exits, "SystemExit: 3"),
        (interrupts, "KeyboardInterrupt: "),
        (eats_memory, "MemoryError: "),
        (closes, "GeneratorExit: "),
        (stops, "StopIteration: "),
        (unprintable, "Unprintable: (its text raised ZeroDivisionError)"),
        (half_a_character, "ValueError: ?"),
        (exits_async, "SystemExit: 3"),
        (interrupts_async, "KeyboardInterrupt: "),
        (cancels_itself, "CancelledError: "),
    ],
    ids=lambda value: value.name if isinstance(value, Tool) else "",
)
def test_whatever_a_tool_raises_is_an_answer(rt: Runtime, bad: Tool, text: str) -> None:
    """Its text goes to the model with the call's own id; its sibling and the other agents do not notice. parity: T3"""

    @tool
    def fine() -> str:
        """Fine."""
        return "fine"

    other = rt.start(agent(fine))
    broken, whole = records(rt, bad, fine, calls=[call(bad.name, call_id="a"), call("fine", call_id="b")])
    assert (broken.call_id, broken.outcome, broken.text, broken.error) == ("a", "error", text, text)
    assert (whole.call_id, whole.outcome, whole.text) == ("b", "ok", "fine")
    assert other.ask("go", timeout=SOON).status == "completed"
    assert other.status().incarnation == 1


def test_a_worker_survives_what_its_tools_raise() -> None:
    """One worker, every evil in a row, then work. Shows 6"""

    @tool
    def fine() -> str:
        """Fine."""
        return threading.current_thread().name

    with Runtime(workers=1, drain=0.0) as rt:
        evils = [exits, interrupts, eats_memory, closes, unprintable]
        found = records(rt, *evils, fine)
        assert [record.outcome for record in found] == ["error"] * len(evils) + ["ok"]


def test_a_tool_error_is_read_by_the_model(rt: Runtime) -> None:
    """`ToolError`: its text as it is, without the exception's name. parity: T3"""

    @tool
    def picky(ctx: ToolContext) -> None:
        """Refuse."""
        raise ToolError("give an https address")

    (record,) = records(rt, picky)
    assert (record.outcome, record.text) == ("error", "give an https address")


def test_an_unknown_tool_and_wrong_arguments_are_errors_the_model_can_mend(rt: Runtime) -> None:
    """The texts name the tools there are, and what does not fit; the original call ids. parity: T3, P8"""

    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    unknown, wrong, broken, right = records(
        rt,
        add,
        calls=[
            call("subtract", call_id="1", a=1),
            call("add", call_id="2", a="x"),
            call("add", call_id="3", malformed='{"a": 1,'),
            call("add", call_id="4", a=1, b=2),
        ],
    )
    assert (unknown.call_id, unknown.outcome) == ("1", "error")
    assert "'subtract'" in unknown.text
    assert "add" in unknown.text
    assert (wrong.call_id, wrong.outcome) == ("2", "error")
    assert "a: " in wrong.text
    assert "b: " in wrong.text
    assert (broken.call_id, broken.outcome) == ("3", "error")
    assert "JSON" in broken.text
    assert (right.call_id, right.outcome, right.data) == ("4", "ok", 3)


@pytest.mark.parametrize(
    ("value", "outcome", "text"),
    [
        (b"caf\xe9", "ok", "caf�"),
        ("\ud800x", "ok", "?x"),
        (object(), "error", "object"),
        (ToolResult("seen", data=object()), "error", "object"),
        (ToolResult("no", error=True), "error", "no"),
        (ToolResult("two", data={"n": 2}), "ok", "two"),
        ({"n": float("nan")}, "ok", '{"n": null}'),
        (None, "ok", "done"),
    ],
    ids=["bytes", "surrogate", "object", "object in data", "error", "data", "nan", "none"],
)
def test_whatever_a_tool_returns_is_an_answer(rt: Runtime, value: Any, outcome: str, text: str) -> None:
    """Fit for the journal and the wire, or an error that says why not. parity: T2"""

    @tool
    def gives() -> Any:
        """Give."""
        return value

    (record,) = records(rt, gives)
    assert record.outcome == outcome
    assert text in record.text
    record.text.encode()


def test_ten_megabytes_are_cut_in_the_middle(rt: Runtime) -> None:
    """The model is sent both ends and told how much is missing. Shows 6"""

    @tool
    def floods() -> str:
        """Flood."""
        return "a" * 5_000_000 + "b" * 5_000_000

    (record,) = records(rt, floods)
    assert record.outcome == "ok"
    assert len(record.text) < 250_000
    assert "9,800,000 characters left out" in record.text
    assert (record.text[0], record.text[-1]) == ("a", "b")


# ---- hanging


def test_a_hanging_tool_is_answered_at_its_timeout(rt: Runtime) -> None:
    """Thread and coroutine: `timeout` with the original id, the sibling keeps its result; late ones are told. parity: T4"""
    release = threading.Event()

    @tool(timeout=0.05)
    def hangs() -> str:
        """Hang."""
        release.wait(SOON)
        return "late"

    @tool(timeout=0.05)
    async def hangs_async() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return "never"

    @tool
    def fine() -> str:
        """Fine."""
        return "fine"

    with rt.subscribe("tool.late_result") as late:
        found = records(rt, hangs, hangs_async, fine)
        assert [record.outcome for record in found] == ["timeout", "timeout", "ok"]
        assert "0.05 seconds" in found[0].text
        assert found[0].duration >= 0.05
        release.set()
        events = [late.get(SOON), late.get(SOON)]
    assert {event.call_id for event in events} == {found[0].call_id, found[1].call_id}


def test_the_timeout_counts_from_the_slot() -> None:
    """A call that waited for a worker longer than its timeout still has all of it."""

    @tool(timeout=0.5)
    def slow() -> str:
        """Slow."""
        threading.Event().wait(0.1)
        return "done"

    with Runtime(workers=1, drain=0.0) as rt:
        assert [record.outcome for record in records(rt, slow, calls=[call("slow")] * 6)] == ["ok"] * 6


def test_a_coroutine_that_refuses_to_die_is_given_up(rt: Runtime) -> None:
    """At its timeout it is answered `timeout`, whatever it does with the cancel."""
    stubborn = asyncio.Event()

    @tool(timeout=0.05)
    async def refuses() -> str:
        """Refuse."""
        while not stubborn.is_set():
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    with rt.subscribe("tool.late_result") as late:
        (record,) = records(rt, refuses)
        assert record.outcome == "timeout"
        rt._system.user.call(stubborn.set)  # pyright: ignore[reportPrivateUsage] # the loop of async tools
        late.get(SOON)


def test_hung_workers_are_replaced_until_there_are_too_many() -> None:
    """The pool bears 4 times its size of given-up threads; then thread calls are an error at once, async ones run."""
    release = threading.Event()

    @tool(timeout=0.02)
    def hangs() -> None:
        """Hang."""
        release.wait(SOON * 3)

    @tool
    def fine() -> str:
        """Fine."""
        return "fine"

    @tool
    async def fine_async() -> str:
        """Fine."""
        return "fine"

    with Runtime(workers=1, drain=0.0) as rt:
        for _ in range(5):
            assert records(rt, hangs)[0].outcome == "timeout"
        refused, ran = records(rt, fine, fine_async)
        assert (refused.outcome, refused.duration) == ("error", 0.0)
        assert "5 tools hang" in refused.text
        assert ran.outcome == "ok"
        with rt.subscribe("tool.late_result") as late:
            release.set()
            wait_for(late, "tool.late_result", count=5)
        assert records(rt, fine)[0].outcome == "ok"


# ---- together


def test_calls_of_one_turn_run_at_the_same_time(rt: Runtime) -> None:
    """Two threads and two coroutines meet; results keep call order, not the order of their ends. parity: L2"""
    meet, turn = threading.Barrier(2), [threading.Event(), threading.Event()]
    meet_async = asyncio.Barrier(2)

    @tool
    def meets(number: int) -> str:
        """Meet."""
        meet.wait(SOON)
        if number == 0:  # the first one ends last
            assert turn[0].wait(SOON)
        turn[0].set()
        return f"{number}"

    @tool
    async def meets_async(number: int) -> str:
        """Meet."""
        async with asyncio.timeout(SOON):
            await meet_async.wait()
        return f"{number}"

    found = records(
        rt,
        meets,
        meets_async,
        calls=[
            call("meets", number=0),
            call("meets_async", number=1),
            call("meets", number=2),
            call("meets_async", number=3),
        ],
    )
    assert [record.text for record in found] == ["0", "1", "2", "3"]


def test_a_serial_tool_runs_alone(rt: Runtime) -> None:
    """It waits for the calls before it, and those behind it wait for it."""
    running: set[str] = set()
    seen: list[tuple[str, frozenset[str]]] = []
    lock = threading.Lock()

    def note(name: str) -> str:
        with lock:
            running.add(name)
            seen.append((name, frozenset(running)))
        threading.Event().wait(0.01)
        with lock:
            running.discard(name)
        return name

    @tool
    def together(name: str) -> str:
        """With others."""
        return note(name)

    @tool(serial=True)
    def alone(name: str) -> str:
        """Alone."""
        return note(name)

    calls = [
        call(kind, name=name)
        for kind, name in (("together", "a"), ("together", "b"), ("alone", "c"), ("together", "d"), ("alone", "e"))
    ]
    assert [record.text for record in records(rt, together, alone, calls=calls)] == ["a", "b", "c", "d", "e"]
    at = dict(seen)
    assert [at["c"], at["e"]] == [frozenset("c"), frozenset("e")]
    assert [name for name, _ in seen][2:] == ["c", "d", "e"]


def test_agents_take_turns_at_the_workers() -> None:
    """A hundred calls of one agent do not hold up the one of another."""
    order: list[str] = []
    hold, holding = threading.Event(), threading.Event()

    @tool
    def work(ctx: ToolContext) -> str:
        """Work."""
        order.append(ctx.key)
        if len(order) == 1:
            holding.set()
            hold.wait(SOON)
        return "done"

    with Runtime(workers=1, drain=0.0) as rt:
        greedy = rt.start(agent(work, calls=[call("work")] * 100), key="greedy").send("go")
        assert holding.wait(SOON)
        with rt.subscribe("tool.requested", key="modest") as requested:
            modest = rt.start(agent(work), key="modest").send("go")
            requested.get(SOON)
        hold.set()
        modest.result(SOON)
        greedy.result(SOON)
    assert order.index("modest") <= 2


# ---- the context


def test_a_tool_is_told_about_its_call(rt: Runtime, tmp_path: Path) -> None:
    """Every field of the context; the key of idempotency is the call's own."""
    seen: list[ToolContext] = []

    @tool(timeout=30)
    def look(ctx: ToolContext) -> None:
        """Look."""
        seen.append(ctx)

    deps = object()
    ref = rt.start(
        agent(look, deps=deps, working_directory=tmp_path, allowed_paths=["in", "/tmp"], deadline=20.0), key="k"
    )
    result = ref.ask("go", timeout=SOON)
    (ctx,), (record,) = seen, result.tool_calls
    assert (ctx.agent, ctx.key, ctx.run_id, ctx.turn, ctx.call_id) == ("worker", "k", result.run_id, 1, record.call_id)
    assert ctx.deps is deps
    assert ctx.working_directory == tmp_path
    assert ctx.allowed_paths == (tmp_path / "in", Path("/tmp"))
    assert ctx.deadline is not None
    assert not ctx.cancelled
    requested = next(event for event in log_of(ref) if event.type == "tool.requested")
    assert ctx.idempotency_key == requested.idempotency_key
    started = next(event for event in log_of(ref) if event.type == "run.started")
    assert abs(ctx.deadline - (started.ts / 1e9 + 20.0)) < 1e-3


def test_progress_is_an_event(rt: Runtime) -> None:
    """From a thread and from a coroutine, between the call's start and end, as plain data. parity: E1"""

    @tool
    def counts(ctx: ToolContext) -> str:
        """Count."""
        for number in range(3):
            ctx.progress({"read": number})
        ctx.progress(Path("/x"))
        ctx.progress(object)
        return "counted"

    @tool
    async def tells(ctx: ToolContext) -> str:
        """Tell."""
        ctx.progress("half")
        return "told"

    with rt.subscribe("tool.started", "tool.progress", "tool.finished") as seen:
        records(rt, counts, tells)
        events: list[Event] = []
        while sum(event.type == "tool.finished" for event in events) < 2:
            events.append(seen.get(SOON))
    for call_id in {event.call_id for event in events}:
        of_call = [event.type for event in events if event.call_id == call_id]
        assert (of_call[0], of_call[-1]) == ("tool.started", "tool.finished")
    data = [event.data for event in events if event.type == "tool.progress"]
    assert {"read": 2} in data
    assert "half" in data
    assert "/x" in data
    for event in events:
        event.to_json()


# ---- cancel


def test_a_cancel_stops_a_running_coroutine(rt: Runtime) -> None:
    """Really cancelled, its `finally` runs, the call is `cancelled`, at once. rule 8"""
    started, cleaned = threading.Event(), threading.Event()

    @tool
    async def waits() -> None:
        """Wait."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    ref = rt.start(agent(waits))
    handle = ref.send("go")
    assert started.wait(SOON)
    handle.cancel()
    result = handle.result(SOON)
    assert cleaned.wait(SOON)
    assert (result.status, result.tool_calls[0].outcome) == ("cancelled", "cancelled")
    assert result.duration < 1.0
    assert_valid(ref)


def test_a_cancel_is_seen_by_a_function(rt: Runtime) -> None:
    """`ctx.cancelled` turns true; what comes back in the grace still counts. rule 8"""
    started = threading.Event()

    @tool
    def looks(ctx: ToolContext) -> str:
        """Look now and then."""
        started.set()
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        return "stopped in order"

    ref = rt.start(agent(looks))
    handle = ref.send("go")
    assert started.wait(SOON)
    handle.cancel()
    result = handle.result(SOON)
    record = result.tool_calls[0]
    assert (result.status, record.outcome, record.text) == ("cancelled", "ok", "stopped in order")
    assert_valid(ref)


def test_after_the_grace_a_call_that_did_not_end_is_uncertain(rt: Runtime) -> None:
    """Two seconds: a function that hangs, and a coroutine that refuses to die, may have taken effect. rule 8"""
    started = [threading.Event(), threading.Event()]
    release = threading.Event()
    stubborn = asyncio.Event()

    @tool
    def hangs() -> str:
        """Hang."""
        started[0].set()
        release.wait(SOON)
        return "late"

    @tool
    async def refuses() -> str:
        """Refuse."""
        started[1].set()
        while not stubborn.is_set():
            try:
                await stubborn.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    @tool(serial=True)
    def never_starts() -> str:
        """Never."""
        return "no"

    ref = rt.start(agent(hangs, refuses, never_starts))
    with rt.subscribe("tool.late_result", key=ref.key) as late:
        handle = ref.send("go")
        assert all(event.wait(SOON) for event in started)
        handle.cancel()
        result = handle.result(SOON)
        assert result.status == "cancelled"
        assert [record.outcome for record in result.tool_calls] == ["uncertain", "uncertain", "cancelled"]
        assert 1.9 < result.duration < 4.0
        release.set()
        rt._system.user.call(stubborn.set)  # pyright: ignore[reportPrivateUsage] # the loop of async tools
        wait_for(late, "tool.late_result", count=2)
    assert_valid(ref)


# ---- hooks


class Recorder(Hooks):
    """Notes each point it is called at."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def _note(self, point: str) -> None:
        self.seen.append(f"{self.name}.{point}")

    def agent_start(self, ctx: HookContext) -> None:
        self._note("agent_start")

    def before_model(self, ctx: HookContext, request: ModelRequest) -> None:
        self._note("before_model")

    def after_model(self, ctx: HookContext, response: ModelResponse) -> None:
        self._note("after_model")

    def before_tool(self, ctx: HookContext, call: ToolCall) -> None:
        self._note("before_tool")

    def after_tool(self, ctx: HookContext, call: ToolCall, result: ToolResult) -> None:
        self._note("after_tool")

    def on_error(self, ctx: HookContext, error: str) -> None:
        self._note("on_error")

    def after_run(self, ctx: HookContext, result: RunResult[Any]) -> None:
        self._note("after_run")

    def agent_stop(self, ctx: HookContext, reason: str) -> None:
        self._note("agent_stop")


class AsyncRecorder(Recorder):
    """The same, in coroutines."""

    async def agent_start(self, ctx: HookContext) -> None:  # type: ignore[override]
        self._note("agent_start")

    async def before_model(self, ctx: HookContext, request: ModelRequest) -> None:  # type: ignore[override]
        self._note("before_model")

    async def after_model(self, ctx: HookContext, response: ModelResponse) -> None:  # type: ignore[override]
        self._note("after_model")

    async def before_tool(self, ctx: HookContext, call: ToolCall) -> None:  # type: ignore[override]
        self._note("before_tool")

    async def after_tool(self, ctx: HookContext, call: ToolCall, result: ToolResult) -> None:  # type: ignore[override]
        self._note("after_tool")

    async def on_error(self, ctx: HookContext, error: str) -> None:  # type: ignore[override]
        self._note("on_error")

    async def after_run(self, ctx: HookContext, result: RunResult[Any]) -> None:  # type: ignore[override]
        self._note("after_run")

    async def agent_stop(self, ctx: HookContext, reason: str) -> None:  # type: ignore[override]
        self._note("agent_stop")


@tool
def work(number: int = 1) -> str:
    """Work."""
    return f"{number}"


def test_every_hook_point_is_called_in_order(rt: Runtime) -> None:
    """Functions and coroutines, in the order of `hooks=`. parity: H1"""
    seen: list[str] = []
    script = ScriptedProvider([fail(ConnectionFailed()), call("work"), "end"])
    hooks = [Recorder("sync", seen), AsyncRecorder("async", seen)]
    ref = rt.start(Agent(name="a", model=script, tools=[work], hooks=hooks, retry=Retry(base=0.0)))
    assert ref.ask("go", timeout=SOON).text == "end"
    ref.stop()
    points = ["agent_start", "before_model", "on_error", "before_model", "after_model", "before_tool", "after_tool"]
    points += ["before_model", "after_model", "after_run", "agent_stop"]
    assert [entry for entry in seen if entry.startswith("sync")] == [f"sync.{point}" for point in points]
    assert [entry for entry in seen if entry.startswith("async")] == [f"async.{point}" for point in points]
    assert seen[:2] == ["sync.agent_start", "async.agent_start"]


def test_hooks_change_what_passes_through_them(rt: Runtime) -> None:
    """Request, response, arguments and result; each hook sees what the one before it made. parity: H1"""

    class Change(Hooks):
        def __init__(self, mark: str) -> None:
            self.mark = mark

        def before_model(self, ctx: HookContext, request: ModelRequest) -> ModelRequest:
            return request.replace(instructions=(request.instructions or "") + self.mark)

        async def after_model(self, ctx: HookContext, response: ModelResponse) -> ModelResponse:
            parts = tuple(
                Text(part.text + self.mark) if isinstance(part, Text) else part for part in response.message.parts
            )
            return response.replace(message=Message(role="assistant", parts=parts))

        def before_tool(self, ctx: HookContext, call: ToolCall) -> ToolCall:
            return call.replace(arguments={"number": call.arguments["number"] * 10}, call_id="other")

        async def after_tool(self, ctx: HookContext, call: ToolCall, result: ToolResult) -> ToolResult:
            return ToolResult(result.text + self.mark)

    script = ScriptedProvider([call("work", call_id="mine", number=1), "end"])
    ref = rt.start(Agent(name="a", model=script, tools=[work], hooks=[Change("1"), Change("2")]))
    result = ref.ask("go", timeout=SOON)
    assert script.requests[0].instructions == "12"
    assert result.text == "end12"
    record = result.tool_calls[0]
    assert (record.call_id, record.arguments, record.text) == ("mine", {"number": 100}, "10012")
    assert_valid(ref)


def test_a_block_answers_one_call(rt: Runtime) -> None:
    """The run goes on, the sibling runs, the model reads the reason. parity: H1"""

    class Guard(Hooks):
        def before_tool(self, ctx: HookContext, call: ToolCall) -> Block | None:
            return Block("read only") if call.arguments["number"] == 1 else None

    calls = [call("work", number=1), call("work", number=2)]
    first, second = records(rt, work, calls=calls, hooks=[Guard()])
    assert (first.outcome, first.text) == ("blocked", "The call was blocked: read only")
    assert (second.outcome, second.text) == ("ok", "2")


POINTS = ["agent_start", "before_model", "after_model", "before_tool", "after_tool", "on_error"]


def hook_at(point: str, act: Callable[[], Any], *, slow: bool = False) -> Hooks:
    """Hooks that override one point."""

    def hook(self: Hooks, *args: Any) -> Any:
        return act()

    made: Any = type("At", (Hooks,), {point: hook, "timeout": 0.05 if slow else 30.0})
    hooks: Hooks = made()
    return hooks


def script_for(point: str) -> ScriptedProvider:
    """A script that passes through every point, or through `on_error`."""
    return ScriptedProvider([fail(AuthenticationFailed())] if point == "on_error" else [call("work"), "end"])


@pytest.mark.parametrize("point", POINTS)
def test_a_halt_ends_the_run_at_any_point(rt: Runtime, point: str) -> None:
    """As `halted`, with its reason and a valid log; the first halt wins; the agent lives on. parity: H1, L7"""
    hooks = [hook_at(point, lambda: Halt("first")), hook_at(point, lambda: Halt("second"))]
    ref = rt.start(Agent(name="a", model=script_for(point), tools=[work], hooks=hooks))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.error) == ("halted", "first")
    assert ref.status().incarnation == 1
    assert_valid(ref)


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_that_raises_fails_the_run(rt: Runtime, point: str) -> None:
    """With a valid log, and no other model or retry tried; the agent lives on. parity: H1"""

    def boom() -> None:
        raise ZeroDivisionError("boom")

    spare = ScriptedProvider(["spare"])
    hooks = [hook_at(point, boom)]
    ref = rt.start(Agent(name="a", model=script_for(point), fallbacks=[spare], tools=[work], hooks=hooks))
    result = ref.ask("go", timeout=SOON)
    assert result.status == ("halted" if point == "agent_start" else "failed")
    assert "boom" in str(result.error)
    assert spare.requests == []
    assert ref.status().incarnation == 1
    assert_valid(ref)


@pytest.mark.parametrize("point", [point for point in POINTS if point != "before_tool"])
def test_a_block_anywhere_else_is_a_mistake(rt: Runtime, point: str) -> None:
    """The run fails, and the error names the hook. parity: H1"""
    hooks = [hook_at(point, lambda: Block("no"))]
    ref = rt.start(Agent(name="a", model=script_for(point), tools=[work], hooks=hooks))
    result = ref.ask("go", timeout=SOON)
    assert result.status in ("failed", "halted")
    assert point in str(result.error)
    assert_valid(ref)


@pytest.mark.parametrize("point", POINTS)
def test_a_slow_hook_fails_the_run(rt: Runtime, point: str) -> None:
    """At its own timeout. parity: H1"""
    release = threading.Event()
    hooks = [hook_at(point, lambda: release.wait(SOON) and None, slow=True)]
    ref = rt.start(Agent(name="a", model=script_for(point), tools=[work], hooks=hooks))
    result = ref.ask("go", timeout=SOON)
    release.set()
    assert result.status in ("failed", "halted")
    assert "longer than 0.05 s" in str(result.error)
    assert_valid(ref)


@pytest.mark.parametrize("point", ["after_run", "agent_stop"])
def test_the_failure_of_a_last_hook_is_only_logged(rt: Runtime, point: str, caplog: pytest.LogCaptureFixture) -> None:
    """The result stands. parity: H1, A7"""

    def boom() -> None:
        raise ZeroDivisionError("boom")

    ref = rt.start(Agent(name="a", model=script_for(point), tools=[work], hooks=[hook_at(point, boom)]))
    assert ref.ask("go", timeout=SOON).status == "completed"
    ref.stop()
    assert ref.status().state == "stopped"
    with rt.subscribe("custom") as looked:
        rt.publish("look")
        looked.get(SOON)


def test_a_hook_that_makes_nonsense_of_a_result_fails_the_run(rt: Runtime) -> None:
    """What it returns must be fit for the journal; the call is answered with what the tool gave."""
    hooks = [hook_at("after_tool", lambda: ToolResult("x", data=object()))]
    ref = rt.start(Agent(name="a", model=script_for("after_tool"), tools=[work], hooks=hooks))
    result = ref.ask("go", timeout=SOON)
    assert result.status == "failed"
    assert result.tool_calls[0].text == "1"
    assert_valid(ref)


def test_a_halt_while_other_calls_run_waits_for_them(rt: Runtime) -> None:
    """Their results count: nothing in flight is lost by a hook's word."""
    release = threading.Event()

    class Guard(Hooks):
        def after_tool(self, ctx: HookContext, call: ToolCall, result: ToolResult) -> Halt | None:
            return Halt("enough") if call.name == "work" else None

    @tool
    def slow(ctx: ToolContext) -> str:
        """Slow."""
        while not ctx.cancelled:
            release.wait(0.001)
        return "slow"

    ref = rt.start(agent(work, slow, hooks=[Guard()]))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.error) == ("halted", "enough")
    assert [record.text for record in result.tool_calls] == ["1", "slow"]
    assert_valid(ref)


def test_hooks_go_on_while_every_worker_hangs() -> None:
    """They have workers of their own."""
    release, started = threading.Event(), threading.Event()

    @tool
    def hangs() -> None:
        """Hang."""
        started.set()
        release.wait(SOON)

    seen: list[str] = []
    with Runtime(workers=1, drain=0.0) as rt:
        blocked = rt.start(agent(hangs)).send("go")
        assert started.wait(SOON)
        ref = rt.start(Agent(name="a", model=ScriptedProvider(["end"]), hooks=[Recorder("r", seen)]))
        assert ref.ask("go", timeout=SOON).text == "end"
        release.set()
        blocked.result(SOON)
    assert "r.before_model" in seen


def test_a_cancel_during_any_hook_ends_the_run(rt: Runtime) -> None:
    """The hook is left to itself, the run ends `cancelled`, once."""
    for point in POINTS:
        reached, release = threading.Event(), threading.Event()

        def act(reached: threading.Event = reached, release: threading.Event = release) -> None:
            reached.set()
            release.wait(SOON)

        ref = rt.start(Agent(name="a", model=script_for(point), tools=[work], hooks=[hook_at(point, act)]))
        handle = ref.send("go")
        assert reached.wait(SOON)
        handle.cancel()
        release.set()
        assert handle.result(SOON).status == "cancelled", point
        assert_valid(ref)


def test_instructions_may_be_a_function(rt: Runtime) -> None:
    """Called on a worker thread before each request, with the conversation so far."""
    threads: list[str] = []

    def instructions(ctx: HookContext) -> str:
        threads.append(threading.current_thread().name)
        return f"{len(ctx.messages)} messages for {ctx.deps}"

    script = ScriptedProvider(["end"])
    ref = rt.start(Agent(name="a", model=script, instructions=instructions, deps="Kim"))
    ref.ask("go", timeout=SOON)
    assert script.requests[0].instructions == "1 messages for Kim"
    assert not threads[0].startswith("nitinol-core")


def test_a_provider_that_breaks_the_rules_fails_its_run_alone(rt: Runtime) -> None:
    """It raises what it must not, or yields no answer: the attempt fails, the gateway lives."""

    def breaks(request: ModelRequest) -> str:
        raise ZeroDivisionError

    script = ScriptedProvider(breaks)
    ref = rt.start(Agent(name="a", model=script, retry=Retry(attempts=1)))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.error_type) == ("failed", "ScriptFailed")
    broken = ScriptedProvider([fail(Unprintable()), fail(SystemExit()), "fine"])  # type: ignore[arg-type] # pyright: ignore
    ref = rt.start(Agent(name="a", model=broken, retry=Retry(base=0.0)))
    assert ref.ask("go", timeout=SOON).text == "fine"
    assert_valid(ref)


def test_two_calls_with_one_id_are_two_calls(rt: Runtime) -> None:
    """Some models repeat an id within a turn: each call runs, and the run ends."""
    ran: list[int] = []

    @tool
    def note(number: int) -> str:
        """Note."""
        ran.append(number)
        return f"{number}"

    ref = rt.start(agent(note, calls=[call("note", call_id="x", number=1), call("note", call_id="x", number=2)]))
    result = ref.ask("go", timeout=SOON)
    assert result.status == "completed"
    assert sorted(ran) == [1, 2]
    assert_valid(ref)


def test_the_model_may_say_and_call_at_once(rt: Runtime) -> None:
    """Text beside calls stays in the conversation; a released gate lets the rest go on. parity: P7"""
    held = gate("end")
    script = ScriptedProvider([[say("first this"), call("work")], held])
    ref = rt.start(Agent(name="a", model=script, tools=[work]))
    handle = ref.send("go")
    assert held.reached()
    assert ref.history()[1].text == "first this"
    held.release()
    assert handle.result(SOON).text == "end"
    assert types_of(ref).count("turn.finished") == 2
