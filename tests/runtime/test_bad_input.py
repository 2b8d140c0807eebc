"""What strangers give: providers, servers, users' messages, exceptions. It costs the one who gave it, and nobody else."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of

from nitinol import Agent, Budget, HookContext, Hooks, Message, Prices, Retry, Runtime, Text, ToolCall, Usage, run, tool
from nitinol.errors import ConfigurationError, RateLimited, WouldDeadlock
from nitinol.http import Http
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.retry import PATIENCE
from nitinol.terminal import describe
from nitinol.testing import ScriptedProvider, call, fail, gate, override_model, say


@pytest.fixture
def rt() -> Iterator[Runtime]:
    with Runtime(drain=0.0, shutdown=10.0) as rt:
        yield rt


class Stranger:
    """A third party's provider that yields what it is given."""

    name, model = "stranger", "one"

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def info(self) -> ModelInfo:
        return ModelInfo(prices=Prices(input="1", output="1"))

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        for part in self.parts:
            yield part


def answer(*parts: Any, usage: Any = None, stop_reason: Any = "end_turn", **fields: Any) -> ModelResponse:
    message = Message(role="assistant", parts=parts, **fields)
    return ModelResponse(message=message, usage=usage, stop_reason=stop_reason)


UNSOUND: dict[str, tuple[Any, ...]] = {
    "no message": (ModelResponse(message=None, usage=None, stop_reason="end_turn"),),  # type: ignore[arg-type] # pyright: ignore
    "parts that are none": (answer("hello"),),
    "text that is none": (answer(Text(5)),),  # type: ignore[arg-type] # pyright: ignore
    "arguments that are none": (answer(ToolCall(call_id="c", name="n", arguments=None)),),  # type: ignore[arg-type] # pyright: ignore
    "a name that is none": (answer(ToolCall(call_id="c", name=5)),),  # type: ignore[arg-type] # pyright: ignore
    "an unknown stop reason": (answer(Text("x"), stop_reason="stop"),),
    "a usage that is none": (answer(Text("x"), usage={"input_tokens": 1}),),
    "a negative usage": (answer(Text("x"), usage=Usage(input_tokens=-(10**9))),),
    "a cost that is no number": (answer(Text("x"), usage=Usage(reported_cost=Decimal("NaN"))),),
    "a usage on the way that is none": (UsageSoFar("x"), answer(Text("x"))),  # type: ignore[arg-type] # pyright: ignore
    "a delta that is no text": (Delta("text", 5), answer(Text("x"))),  # type: ignore[arg-type] # pyright: ignore
}


@pytest.mark.parametrize("parts", UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_answer_is_a_failed_attempt_and_no_crash(rt: Runtime, parts: tuple[Any, ...]) -> None:
    """A provider's error is not a crash: the run ends `failed`, named, and the agent lives."""
    ref = rt.start(Agent(name="a", model=Stranger(*parts), retry=Retry(attempts=1), budget=Budget(usd="0.5")))
    result = ref.ask("go", timeout=SOON)
    assert (result.status, result.error_type) == ("failed", "MalformedResponse")
    assert ref.status().incarnation == 1
    assert_valid(ref)


def test_a_retry_after_of_ages_is_cut(rt: Runtime) -> None:
    """No server can park an agent by a header."""
    assert Retry().delay(1, 1e300, 0.0) == PATIENCE
    assert Retry().delay(1, float("inf"), 0.0) == PATIENCE
    ref = rt.start(Agent(name="a", model=ScriptedProvider([fail(RateLimited(retry_after=1e300)), "late"])))
    handle = ref.send("go")
    with rt.subscribe("model.retrying", after=0) as retrying:
        assert retrying.get(SOON).type == "model.retrying"
    handle.cancel()
    assert handle.result(SOON).status == "cancelled"
    assert ref.status().incarnation == 1


def test_a_run_id_belongs_to_one_agent_whoever_comes_first(rt: Runtime) -> None:
    """Two agents race for one id: one gets the run, the other a refusal, nobody another's answer."""
    agents = {name: Agent(name=name, model=ScriptedProvider([f"from {name}"] * 20)) for name in "AB"}
    for number in range(20):
        barrier = threading.Barrier(2)
        told: dict[str, str] = {}

        def ask(
            name: str, number: int = number, barrier: threading.Barrier = barrier, told: dict[str, str] = told
        ) -> None:
            ref = rt.start(agents[name], key=f"{name}/{number}")
            barrier.wait()
            try:
                told[name] = ref.ask("x", run_id=f"r{number}", timeout=SOON).text
            except ConfigurationError:
                told[name] = "refused"

        threads = [threading.Thread(target=ask, args=(name,)) for name in agents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert sorted(told.values()) in (["from A", "refused"], ["from B", "refused"])


def test_a_message_that_is_none_is_refused_before_it_is_accepted(rt: Runtime) -> None:
    """One caller's bad input poisons no shared key."""
    held = gate(say("fine"))
    ref = rt.start(Agent(name="a", model=ScriptedProvider([held, "and you"])), key="shared")
    first = ref.send("innocent")
    assert held.reached()
    with pytest.raises(TypeError, match="is no Message"):
        ref.send("x", messages=["oops"])  # type: ignore[list-item] # pyright: ignore
    with pytest.raises(TypeError, match="not a tuple"):
        ref.send(Message(role="user", parts=None))  # type: ignore[arg-type] # pyright: ignore
    second = ref.send("innocent too")
    held.release()
    assert [first.result(SOON).text, second.result(SOON).text] == ["fine", "and you"]


def test_arguments_of_an_approval_are_checked(rt: Runtime) -> None:
    """Approving what is no dict, or does not fit, is the approver's mistake: the call still waits."""

    @tool(approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    ref = rt.start(Agent(name="a", model=ScriptedProvider([call("pay", call_id="c", amount=1), "done"]), tools=[pay]))
    handle = ref.send("pay")
    with rt.subscribe("approval.requested", after=0) as asked:
        asked.get(SOON)
    assert [waiting.call_id for waiting in ref.pending_approvals()] == ["c"]
    for wrong in (5, {"amount": "zzz"}):
        with pytest.raises(ConfigurationError, match="still waits"):
            handle.approve("c", wrong)  # type: ignore[arg-type] # pyright: ignore
    handle.approve("c", {"amount": 2})
    assert handle.result(SOON).tool_calls[0].text == "paid 2"


def test_an_exception_whose_text_exits_is_one_calls_error(rt: Runtime) -> None:
    """Not even `__str__` of a user's exception hangs a run."""

    class Vicious(Exception):
        def __str__(self) -> str:
            raise SystemExit

    @tool
    def boom() -> str:
        """Raise."""
        raise Vicious

    ref = rt.start(Agent(name="a", model=ScriptedProvider([call("boom"), "on"]), tools=[boom]))
    result = ref.ask("go", timeout=SOON)
    assert (result.text, result.tool_calls[0].outcome) == ("on", "error")


def test_a_thousand_calls_in_one_answer_keep_nobody_waiting(rt: Runtime) -> None:
    """The first 128 run; the others are answered with an error that says so."""

    @tool
    def nop() -> str:
        """Do nothing."""
        return "ok"

    script = ScriptedProvider([[call("nop") for _ in range(1000)], "done"])
    result = rt.start(Agent(name="a", model=script, tools=[nop])).ask("go", timeout=SOON)
    outcomes = [record.outcome for record in result.tool_calls]
    assert (outcomes.count("ok"), outcomes.count("error")) == (128, 872)


def test_a_provider_that_never_waits_is_ended_by_the_deadline(rt: Runtime) -> None:
    """Others have their turn all the while."""

    class Endless(Stranger):
        async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
            while True:
                yield Delta("thinking", "x")

    endless = rt.start(Agent(name="endless", model=Endless(), deadline=0.5)).send("go")
    assert rt.start(Agent(name="other", model=ScriptedProvider(["here"]))).ask("hi", timeout=SOON).text == "here"
    assert endless.result(SOON).status == "deadline_exceeded"


def test_what_a_tool_or_a_hook_changes_in_place_stays_its_own(rt: Runtime) -> None:
    """The log is what was said, not what somebody made of it afterwards."""

    class Sly(Hooks):
        def before_tool(self, ctx: HookContext, call: ToolCall) -> None:
            call.arguments["data"]["hook"] = 1

    @tool
    def take(data: dict[str, Any]) -> str:
        """Take."""
        data["tool"] = 1
        return "taken"

    script = ScriptedProvider([call("take", data={"a": 1}), "done"])
    ref = rt.start(Agent(name="a", model=script, tools=[take], hooks=[Sly()]))
    ref.ask("go", timeout=SOON)
    (requested,) = [event for event in log_of(ref) if event.type == "tool.requested"]
    assert requested.arguments == {"data": {"a": 1}}
    assert ref.history()[1].tool_calls[0].arguments == {"data": {"a": 1}}


def test_an_iteration_that_the_collector_ends_blocks_nobody(rt: Runtime) -> None:
    """The collector may end an abandoned iteration in the middle of a publish, in the very thread that holds the lock."""

    class Box:
        me: Any
        events: Any

    ref = rt.start(Agent(name="a", model=ScriptedProvider(lambda request: say("word " * 50, chunks=50))))
    others = [rt.subscribe() for _ in range(10)]
    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        for _ in range(40):
            handle = ref.send("x")
            for _ in range(5):
                box = Box()
                box.events = iter(handle)
                next(box.events)
                box.me = box
                del box
            assert handle.result(SOON).status == "completed"
    finally:
        gc.set_threshold(*before)
        for other in others:
            other.close()


def test_blocking_iteration_in_a_coroutine_of_the_runtime_is_refused(rt: Runtime) -> None:
    """An async tool that would block the user loop gets `WouldDeadlock`, not a standstill."""

    @tool
    async def watch() -> str:
        """Wait the wrong way."""
        with rt.subscribe("pool.saturated") as never:
            try:
                next(never)
            except WouldDeadlock:
                return "refused"
        return "?"

    ref = rt.start(Agent(name="a", model=ScriptedProvider([call("watch"), "on"]), tools=[watch]))
    assert ref.ask("go", timeout=SOON).tool_calls[0].text == "refused"


def test_a_key_that_was_forgotten_starts_anew_at_once(rt: Runtime) -> None:
    """`forget` returns when it is done."""
    agent = Agent(name="a", model=ScriptedProvider(lambda request: f"{len(request.messages)} messages"))
    for _ in range(20):
        assert rt.start(agent, key="k").ask("1", timeout=SOON).text == "1 messages"
        rt.forget("k")


def test_a_cursor_of_another_store_is_refused(rt: Runtime) -> None:
    """Silence would look like peace."""
    with pytest.raises(ValueError, match="no position of this store"):
        rt.subscribe(after=500)


def test_a_misspelt_hook_is_refused() -> None:
    """A guard that is never called guards nothing."""
    with pytest.raises(TypeError, match="did you mean before_tool"):
        type("Guard", (Hooks,), {"befor_tool": Hooks.before_tool})


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_paths": "/srv"},
        {"budget": 0.5},
        {"retry": 3},
        {"deadline": float("inf")},
        {"deadline": "3"},
        {"max_turns": True},
        {"output": "Report"},
        {"thinking": "lots"},
        {"instructions": 3},
        {"prices": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any]) -> None:
    """Before anything starts."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Agent(name="a", model=ScriptedProvider([]), **options)


def test_a_tools_name_commands_no_terminal() -> None:
    """What a model writes is shown, not obeyed."""
    with override_model(ScriptedProvider([call("read\x1b[31m\nfake"), "end"])):
        result = run("x", model="any:one")
    assert result.tool_calls[0].outcome == "error"
    with Runtime(drain=0.0) as rt:
        ref = rt.start(Agent(name="a", model=ScriptedProvider([call("read\x1b[31m\u202e\nfake"), "end"])))
        ref.ask("x", timeout=SOON)
        lines = [told[0] for event in log_of(ref) if (told := describe(event)) is not None]
    assert lines
    assert not any(character in line for line in lines for character in "\x1b\n\u202e")
