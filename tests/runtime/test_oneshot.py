"""One-shots: `run`, `arun` and `stream`, from a prompt to a result."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pydantic
import pytest
from tests.logs_of import SOON

from nitinol import Agent, Approval, RunHandle, RunResult, arun, run, stream, tool
from nitinol.errors import AuthenticationFailed, ConfigurationError, ConnectionFailed, RunFailed
from nitinol.hooks import Halt, HookContext, Hooks
from nitinol.http import Http
from nitinol.messages import Message, Text
from nitinol.oneshot import default_runtime
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart
from nitinol.retry import Retry
from nitinol.testing import (
    ScriptedProvider,
    assert_tool_called,
    assert_tool_not_called,
    call,
    fail,
    gate,
    override_model,
    say,
)

NO_WAIT = Retry(base=0.0)


class Report(pydantic.BaseModel):
    """A typed answer."""

    city: str
    degrees: int


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def calculator() -> ScriptedProvider:
    """Adds with a tool, then says the sum."""
    return ScriptedProvider([[say("Let me add."), call("add", a=1, b=2)], say("It is 3.", chunks=4)])


def test_a_prompt_is_answered_in_one_turn() -> None:
    """The answer, its messages, usage and ids are in the result; the instructions reach the model. parity: L1, L6"""
    script = ScriptedProvider(["Hello!"])
    result = run("Hi", model=script, instructions="Be kind.")
    assert (result.status, result.text, result.output, result.turns) == ("completed", "Hello!", "Hello!", 1)
    assert [message.role for message in result.messages] == ["user", "assistant"]
    assert result.usage.total_tokens > 0
    assert result.key.startswith("run/")
    assert result.error is None
    assert result.duration >= 0
    assert result.raise_for_status() is result
    assert script.requests[0].instructions == "Be kind."
    assert script.requests[0].run_id == result.run_id
    script.assert_exhausted()


def test_an_unpriced_answer_has_an_unknown_cost() -> None:
    """Unknown is `None`, never 0. parity: L6"""
    assert run("Hi", model=ScriptedProvider(["Hello!"])).cost is None


def test_the_loop_goes_on_until_the_model_stops_asking() -> None:
    """Tools run and their answers go back to the model. parity: L2"""
    script = calculator()
    result = run("1 + 2?", model=script, tools=[add])
    assert (result.text, result.turns) == ("It is 3.", 2)
    assert_tool_called(result, "add", a=1, b=2)
    assert_tool_not_called(result, "add", a=2)
    assert [message.role for message in script.requests[1].messages] == ["user", "assistant", "tool"]
    record = result.tool_calls[0]
    assert (record.outcome, record.text, record.data, record.error) == ("ok", "3", 3, None)


def test_a_history_is_continued() -> None:
    """`messages=` comes before the prompt, and stays in the result's messages. parity: L1"""
    first = run("My name is Kim.", model=ScriptedProvider(["Hello Kim."]))
    script = ScriptedProvider(["Kim."])
    second = run("What is my name?", model=script, messages=first.messages)
    assert [message.text for message in script.requests[0].messages] == [
        "My name is Kim.",
        "Hello Kim.",
        "What is my name?",
    ]
    assert second.messages[:2] == first.messages
    assert second.messages[-1].text == "Kim."


def test_a_history_is_continued_without_a_new_prompt() -> None:
    """`None` as the prompt goes on from the messages alone. parity: L1"""
    script = ScriptedProvider(["42"])
    result = run(None, model=script, messages=[Message(role="user", parts=(Text("6 * 7?"),))])
    assert result.text == "42"
    assert [message.text for message in script.requests[0].messages] == ["6 * 7?"]


def test_nothing_to_run_is_a_value_error() -> None:
    """Neither a prompt nor messages, or an empty prompt; and no agent is left behind."""
    agents = len(default_runtime().agents())
    with pytest.raises(ValueError, match="messages="):
        run(None, model=ScriptedProvider([]))
    with pytest.raises(ValueError, match="empty"):
        run("  ", model=ScriptedProvider([]))
    assert _soon(lambda: len(default_runtime().agents()) <= agents)


def test_unknown_options_are_type_errors() -> None:
    """A misspelt option is refused before anything starts; so are options beside an agent."""
    options: dict[str, Any] = {"max_turn": 3}
    with pytest.raises(TypeError, match="max_turn"):
        run("Hi", model=ScriptedProvider([]), **options)
    with pytest.raises(TypeError, match="max_turn"):
        stream("Hi", model=ScriptedProvider([]), **options)
    beside: Any = Agent(name="a", model=ScriptedProvider([]))
    both: Any = {"max_turns": 3}
    with pytest.raises(TypeError, match="replace"):
        run("Hi", agent=beside, **both)
    missing: dict[str, Any] = {}
    with pytest.raises(TypeError, match="model="):
        run("Hi", **missing)
    misspelt: dict[str, Any] = {"modle": "openai:gpt-5.4"}
    with pytest.raises(TypeError, match="not modle= alone"):
        run("Hi", **misspelt)
    model: Any = "openai:gpt-5.4"
    with pytest.raises(ConfigurationError, match="model="):
        run("Hi", model)


def test_on_text_hears_each_piece_in_the_callers_thread() -> None:
    """Chunks as they come, through a tool loop; together they are what was said. parity: L5"""
    pieces: list[str] = []
    threads: set[int] = set()

    def hear(piece: str) -> None:
        pieces.append(piece)
        threads.add(threading.get_ident())

    result = run("1 + 2?", model=calculator(), tools=[add], on_text=hear)
    assert "".join(pieces) == "Let me add.It is 3."
    assert threads == {threading.get_ident()}
    assert result.text == "It is 3."


def test_a_streamed_run_gives_the_same_result() -> None:
    """The same run, streamed and not, differs in its ids and times alone. parity: L5"""
    plain = run("1 + 2?", model=calculator(), tools=[add])
    handle = stream("1 + 2?", model=calculator(), tools=[add])
    text = "".join(handle.text())
    streamed = handle.result(SOON)
    assert text == "Let me add.It is 3."
    assert (streamed.messages, streamed.status, streamed.usage) == (plain.messages, plain.status, plain.usage)
    assert [record.text for record in streamed.tool_calls] == [record.text for record in plain.tool_calls]


def test_the_words_of_a_run_are_whole_however_late_they_are_read() -> None:
    """Reading after the end, and reading twice, gives the whole text: what was missed comes from the journal."""
    handle = stream("Hi", model=ScriptedProvider([say("one two three", chunks=3)]))
    assert handle.result(SOON).text == "one two three"
    assert "".join(handle.text()) == "one two three"
    assert "".join(handle.text()) == "one two three"


def test_a_discarded_attempt_is_a_line_break_in_the_text() -> None:
    """A stream that breaks is retried; readers are told to drop what they have. parity: R5"""
    shown = asyncio.Event()

    class Broken:
        """Shows a word, and breaks once it was read; then it answers."""

        name, model = "broken", "broken-1"

        def info(self) -> ModelInfo:
            return ModelInfo()

        async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
            if request.attempt == 1:
                yield Delta("text", "wro")
                await shown.wait()
                raise ConnectionFailed("cut")
            yield Delta("text", "right")
            message = Message(role="assistant", parts=(Text("right"),))
            yield ModelResponse(message=message, usage=None, stop_reason="end_turn")

    handle = stream("Hi", Agent(name="a", model=Broken(), retry=NO_WAIT))
    words = handle.text()
    assert next(words) == "wro"
    default_runtime()._system.core.call(shown.set)  # pyright: ignore[reportPrivateUsage] # the loop of providers
    assert list(words) == ["\n", "right"]
    assert handle.result(SOON).text == "right"


def test_a_raising_on_text_cancels_the_run() -> None:
    """Whoever owns a run and gives up on it cancels it; their exception comes out."""
    script = ScriptedProvider([[say("working"), call("wait")]])
    started, cancelled = threading.Event(), threading.Event()
    keys: list[str] = []

    @tool
    async def wait() -> None:
        """Wait for ever."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def refuse(piece: str) -> None:
        assert started.wait(SOON)
        keys.append(script.requests[0].key)
        raise ZeroDivisionError(piece)

    with pytest.raises(ZeroDivisionError, match="working"):
        run("Hi", model=script, tools=[wait], on_text=refuse)
    assert cancelled.wait(SOON)


@pytest.mark.parametrize("on_text", [None, str.strip])
def test_a_timeout_cancels_the_run(on_text: Any) -> None:
    """`TimeoutError`, with and without `on_text`, and the model's request is cut."""
    script = ScriptedProvider([gate("late")])
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        run("Hi", model=script, timeout=0.05, on_text=on_text)
    assert _forgotten(script.requests[0].key)


@pytest.mark.parametrize("on_text", [None, str.strip])
def test_a_timeout_cancels_an_awaited_run(on_text: Any) -> None:
    """As `run`, for coroutines."""
    script = ScriptedProvider([gate("late")])
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        asyncio.run(arun("Hi", model=script, timeout=0.05, on_text=on_text))
    assert _forgotten(script.requests[0].key)


def test_a_timeout_of_on_texts_own_is_not_the_runs() -> None:
    """A `TimeoutError` that `on_text` raises comes out as it is."""

    def hear(piece: str) -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        run("Hi", model=ScriptedProvider(["Hello"]), on_text=hear, timeout=SOON)
    with pytest.raises(TimeoutError, match="mine"):
        asyncio.run(arun("Hi", model=ScriptedProvider(["Hello"]), on_text=hear, timeout=SOON))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_cancels_the_run_and_comes_out(error: type[BaseException]) -> None:
    """Ctrl-C, as it reaches a caller: the run is cancelled, the exception goes on."""
    script = ScriptedProvider([[say("working"), call("wait")], "never"])

    @tool
    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    def interrupt(piece: str) -> None:
        raise error

    with pytest.raises(error):
        run("Hi", model=script, tools=[wait], on_text=interrupt)
    assert _forgotten(script.requests[0].key)


def test_a_cancelled_task_cancels_its_run() -> None:
    """`arun` owns its run."""
    waiting = gate("late")
    script = ScriptedProvider([waiting])

    async def main() -> None:
        task = asyncio.create_task(arun("Hi", model=script))
        await asyncio.to_thread(waiting.reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert _forgotten(script.requests[0].key)


def test_a_task_cancelled_before_its_run_was_accepted_leaves_no_run_behind() -> None:
    """The run that nobody waits for any more is cancelled, although its handle was never made."""
    script = ScriptedProvider(lambda request: gate("late"))

    async def main() -> None:
        task = asyncio.create_task(arun("Hi", model=script))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    agents = len(default_runtime().agents())
    asyncio.run(main())
    assert _soon(lambda: len(default_runtime().agents()) <= agents)


def test_an_awaited_run_hears_its_text() -> None:
    """`arun(on_text=)` in the task's own loop, from any loop. parity: L5"""
    pieces: list[str] = []

    async def main() -> RunResult[str]:
        return await arun("1 + 2?", model=calculator(), tools=[add], on_text=pieces.append)

    for _ in range(2):
        assert asyncio.run(main()).text == "It is 3."
    assert "".join(pieces) == "Let me add.It is 3." * 2


def test_the_last_answer_has_the_type_that_was_asked_for() -> None:
    """`output=` gives an instance; the model is sent its schema."""
    script = ScriptedProvider(['{"city": "Oslo", "degrees": 3}'])
    result = run("Weather?", model=script, output=Report)
    assert result.output == Report(city="Oslo", degrees=3)
    schema = script.requests[0].output_schema
    assert schema is not None
    assert schema["required"] == ["city", "degrees"]


def test_an_answer_that_does_not_fit_is_asked_again() -> None:
    """A repair turn tells the model what is wrong; it counts as a turn."""
    script = ScriptedProvider(['{"city": "Oslo"}', '{"city": "Oslo", "degrees": 3}'])
    result = run("Weather?", model=script, output=Report)
    assert result.output.degrees == 3
    assert result.turns == 2
    assert "degrees" in script.requests[1].messages[-1].text


def test_output_raises_unless_completed_and_text_never_does() -> None:
    """`RunFailed` carries the result. parity: L6, L7"""
    script = ScriptedProvider(lambda request: "no JSON")
    result = run("Weather?", model=script, output=Report, max_turns=2)
    assert (result.status, result.text, result.turns) == ("max_turns", "no JSON", 2)
    with pytest.raises(RunFailed, match="max_turns") as caught:
        _ = result.output
    assert caught.value.result is result


def test_the_turn_limit_ends_the_run_with_a_result() -> None:
    """`max_turns`: the result is still returned. parity: L3"""
    script = ScriptedProvider(lambda request: call("add", a=1, b=1))
    result = run("Go on", model=script, tools=[add], max_turns=3)
    assert (result.status, result.turns, len(result.tool_calls)) == ("max_turns", 3, 3)
    assert result.messages[-1].role == "tool"


def test_every_way_to_end_has_its_own_status() -> None:
    """halted, failed, cancelled and deadline_exceeded are told apart; hooks see `running`. parity: L7"""
    seen: list[str] = []

    class Stop(Hooks):
        def before_model(self, ctx: HookContext, request: ModelRequest) -> Halt:
            seen.append(ctx.status)
            return Halt("enough")

    halted = run("Hi", model=ScriptedProvider([]), hooks=[Stop()])
    assert (halted.status, halted.error, seen) == ("halted", "enough", ["running"])

    failed = run("Hi", model=ScriptedProvider([fail(AuthenticationFailed())]))
    assert (failed.status, failed.error_type) == ("failed", "AuthenticationFailed")

    late = run("Hi", model=ScriptedProvider([gate("late")]), deadline=0.05)
    assert late.status == "deadline_exceeded"

    waiting = gate("late")
    handle = stream("Hi", model=ScriptedProvider([waiting]))
    assert waiting.reached()
    handle.cancel()
    assert handle.result(SOON).status == "cancelled"


def test_leaving_the_block_of_a_handle_cancels_what_is_unfinished() -> None:
    """`with stream(...)`, and `async with`."""
    script = ScriptedProvider(lambda request: [say("working"), call("wait")])

    @tool
    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    with stream("Hi", model=script, tools=[wait]) as handle:
        for piece in handle.text():
            assert piece == "working"
            break
    assert handle.result(SOON).status == "cancelled"

    async def main() -> RunResult[str]:
        async with stream("Hi", model=script, tools=[wait]) as handle:
            async for piece in handle.atext():
                assert piece == "working"
                break
        return await handle

    assert asyncio.run(main()).status == "cancelled"


def test_a_handle_gives_its_events_as_often_as_asked() -> None:
    """From `run.queued` to `run.finished`, in `for` and `async for`, each in order. parity: E1"""
    handle = stream("1 + 2?", model=calculator(), tools=[add])
    durable = [event.type for event in handle if event.durable]
    assert (durable[0], durable[-1]) == ("run.queued", "run.finished")

    async def read() -> list[str]:
        return [event.type async for event in handle if event.durable]

    assert asyncio.run(read()) == durable
    assert [event.type for event in handle if event.durable] == durable


def test_the_end_of_a_wait_leaves_the_run() -> None:
    """`stream` hands the run over: neither a timeout nor a cancelled `await` ends it."""
    waiting = gate("done")
    handle = stream("Hi", model=ScriptedProvider([waiting]))
    with pytest.raises(TimeoutError, match="not ended"):
        handle.result(timeout=0.01)

    async def give_up() -> None:
        with pytest.raises(TimeoutError, match="not ended"):
            await handle.aresult(timeout=0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await handle

    asyncio.run(give_up())
    assert not handle.done()
    waiting.release()
    assert handle.result(SOON).status == "completed"
    assert handle.done()


def test_a_one_shots_events_leave_memory_with_its_handle() -> None:
    """The process's own runtime keeps neither the agent nor its log."""
    script = ScriptedProvider(["Hello!"])
    handle: RunHandle[str] | None = stream("Hi", model=script)
    assert handle is not None
    key, gone = handle.key, weakref.ref(handle)
    assert handle.result(SOON).text == "Hello!"
    assert default_runtime().get(key).snapshot()["events"]
    del handle
    gc.collect()
    assert gone() is None
    assert _forgotten(key)


def test_a_thousand_one_shots_leave_nothing_behind() -> None:
    """Neither agents nor events pile up in a process that makes one-shots all day."""
    for number in range(200):
        assert run(f"{number}", model=ScriptedProvider(["ok"])).text == "ok"
    assert _soon(lambda: len(default_runtime().agents("run/*")) < 10)


def test_a_dropped_handle_does_not_stop_its_run() -> None:
    """Nobody need hold a handle: the run goes on to its end, then its events leave memory."""
    waiting, ended = gate("done"), threading.Event()
    script = ScriptedProvider([waiting])

    class Tell(Hooks):
        def after_run(self, ctx: HookContext, result: RunResult[Any]) -> None:
            if result.status == "completed":
                ended.set()

    stream("Hi", model=script, hooks=[Tell()])
    assert waiting.reached()
    gc.collect()
    waiting.release()
    assert ended.wait(SOON)
    assert _forgotten(script.requests[0].key)


def test_every_model_can_be_overridden() -> None:
    """No key, no real request, no retry delay. parity: X1"""
    script = ScriptedProvider([fail(ConnectionFailed()), fail(ConnectionFailed()), "Hello!"])
    with override_model(script):
        assert run("Hi", model="anthropic:claude-sonnet-4-6").text == "Hello!"
    script.assert_exhausted()


def test_a_call_that_would_wait_for_ever_for_an_approval_is_denied() -> None:
    """By `run` and `arun`: nobody holds a handle that approves. `stream` gives one; a timeout needs nobody."""

    @tool(approval=True)
    def pay() -> str:
        """Pay."""
        return "paid"

    def script() -> ScriptedProvider:
        return ScriptedProvider([call("pay", call_id="c"), "done"])

    denied = [
        run("Pay", model=script(), tools=[pay], timeout=SOON),
        asyncio.run(arun("Pay", Agent(name="a", model=script(), tools=[pay]), timeout=SOON)),
    ]
    for result in denied:
        (record,) = result.tool_calls
        assert (result.text, record.outcome, record.text) == ("done", "denied", "Nobody approved the call in time.")

    soon = pay.replace(approval=Approval(timeout=0.01, default="approve"))
    assert run("Pay", model=script(), tools=[soon], timeout=SOON).tool_calls[0].text == "paid"
    assert run("Pay", model=script(), tools=[pay.replace(approval=False)], timeout=SOON).tool_calls[0].text == "paid"
    with stream("Pay", model=script(), tools=[pay]) as handle:
        for event in handle:
            if event.type == "approval.requested":
                handle.approve("c")
        assert handle.result(SOON).text == "done"


def test_many_one_shots_run_at_once() -> None:
    """From threads and from one loop, each with its own answer."""
    script = ScriptedProvider(lambda request: f"echo {request.messages[0].text}")

    async def main() -> list[str]:
        results = await asyncio.gather(*(arun(f"{number}", model=script) for number in range(50)))
        return [result.text for result in results]

    assert asyncio.run(main()) == [f"echo {number}" for number in range(50)]


def _forgotten(key: str) -> bool:
    return _soon(lambda: not any(ref.key == key for ref in default_runtime().agents(key)))


def _soon(condition: Any) -> bool:
    """Whether it comes true: each look waits for the core loop to have done what was asked of it before."""
    runtime = default_runtime()
    for _ in range(2000):
        gc.collect()  # a handle may be held by a traceback in a cycle
        if condition():
            return True
        with runtime.subscribe("custom") as looked:
            runtime.publish("look")
            looked.get(SOON)
    return False
