"""The runtime: live agents by key, their queues, and the ends of waits and of runtimes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, types_of, wait_for

from nitinol import Agent, Approval, Runtime, arun, run, tool
from nitinol.errors import (
    AgentBusy,
    AgentStopped,
    AlreadyResolved,
    ConfigurationError,
    KeyTaken,
    NotFound,
    RuntimeDown,
    RuntimeStopped,
    UnknownModel,
    WouldDeadlock,
)
from nitinol.hooks import HookContext, Hooks
from nitinol.messages import Text
from nitinol.provider import ModelRequest
from nitinol.result import RunResult
from nitinol.testing import ScriptedProvider, Wait, call, gate, say


def echo() -> ScriptedProvider:
    """Says how many messages it was sent, and the last."""
    return ScriptedProvider(lambda request: f"{len(request.messages)}: {request.messages[-1].text}")


def scout(**options: Any) -> Agent[str]:
    """An agent that echoes."""
    made: Any = {"name": "scout", "model": echo(), **options}
    agent: Agent[str] = Agent(**made)
    return agent


def held() -> tuple[Wait, ScriptedProvider]:
    """A provider whose first answer waits; the later ones come at once."""
    first = gate("first")
    answers = iter([first])
    # A cancelled run leaves its prompt, and messages of a user in a row are one to a model: the last part is the news.
    return first, ScriptedProvider(lambda request: next(answers, f"later: {_news(request)}"))


def _news(request: ModelRequest) -> str:
    last = request.messages[-1].parts[-1]
    return last.text if isinstance(last, Text) else ""


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


# ---- conversations


def test_the_history_goes_on_across_calls(rt: Runtime) -> None:
    """An agent remembers; its usage adds up over its life. parity: A1"""
    ref = rt.start(scout(), key="scout/1")
    first, second = ref.ask("one", timeout=SOON), ref.ask("two", timeout=SOON)
    assert (first.text, second.text) == ("1: one", "3: two")
    status = ref.status()
    assert status.usage.total_tokens == first.usage.total_tokens + second.usage.total_tokens
    assert (status.message_count, status.state, status.run_id, status.pending_count) == (4, "idle", None, 0)
    assert (status.key, status.agent, status.incarnation) == ("scout/1", "scout", 1)
    assert 0 < status.started_at <= status.last_event_at
    assert [message.text for message in ref.history()] == ["one", "1: one", "two", "3: two"]
    assert ref.messages() == ref.history()
    assert_valid(ref)


def test_the_same_key_is_the_same_agent(rt: Runtime) -> None:
    """`start` gets or starts; `get`, `agents` and `handle` find. parity: A1"""
    agent = scout()
    ref = rt.start(agent, key="scout/1")
    ref.ask("one", timeout=SOON)
    assert rt.start(agent, key="scout/1").ask("two", timeout=SOON).text == "3: two"
    assert rt.get("scout/1").history() == ref.history()
    other = rt.start(agent)
    assert other.key.startswith("scout/")
    assert other.key != ref.key
    assert [found.key for found in rt.agents("scout/1*")] == ["scout/1"]
    assert {found.key for found in rt.agents()} == {ref.key, other.key}
    with pytest.raises(NotFound, match="nobody"):
        rt.get("nobody")
    with pytest.raises(NotFound, match="no-run"):
        rt.handle("no-run")


def test_a_key_belongs_to_one_name(rt: Runtime) -> None:
    """A live key under another agent's name is `KeyTaken`."""
    rt.start(scout(), key="k")
    with pytest.raises(KeyTaken, match="scout"):
        rt.start(scout(name="other"), key="k")


def test_a_runtime_knows_definitions_by_name() -> None:
    """`agents=`; an unknown name, and two of one name, are errors."""
    with Runtime(agents=[scout()]) as rt:
        assert rt.start("scout").ask("hi", timeout=SOON).text == "1: hi"
        with pytest.raises(ConfigurationError, match="known: scout"):
            rt.start("ghost")
    with pytest.raises(ConfigurationError, match="two agents"):
        Runtime(agents=[scout(), scout()])
    with pytest.raises(ConfigurationError, match="takes a list of definitions"):
        Runtime(agents=scout())  # type: ignore[arg-type] # what a caller without a type checker writes


def test_wrong_options_are_refused() -> None:
    """Nothing is started."""
    for workers in (0, True):
        with pytest.raises(ConfigurationError, match="workers"):
            Runtime(workers=workers)
    with pytest.raises(ConfigurationError, match="the stores are"):
        Runtime("postgresql://localhost/agents")
    with Runtime() as rt:
        with pytest.raises(UnknownModel, match="nobody"):
            rt.start(scout(model="nobody:at-all"))
        assert rt.agents() == []


def test_send_returns_a_handle_and_the_result_comes_by_handle_and_event(rt: Runtime) -> None:
    """`send` returns once accepted; the same id everywhere. parity: A2"""
    first, script = held()
    ref = rt.start(scout(model=script), key="k")
    with rt.subscribe("run.finished", key="k") as ends:
        handle = ref.send("hi", run_id="mine")
        assert handle.run_id == "mine"
        assert types_of(ref)[1] == "run.queued"
        assert first.reached()
        assert ref.current is not None
        assert ref.current.run_id == "mine"
        assert (ref.status().state, ref.status().run_id, ref.status().turn) == ("running", "mine", 1)
        first.release()
        assert ends.get(SOON).run_id == "mine"
    assert rt.handle("mine").result(SOON).text == "first"
    assert ref.current is None


def test_the_same_run_id_is_the_same_run(rt: Runtime) -> None:
    """Sent again while queued, in progress, or finished: one run, one answer. parity: A2, rule 2"""
    first, script = held()
    ref = rt.start(scout(model=script), key="k")
    open_run = ref.send("one", run_id="a")
    queued = ref.send("two", run_id="b")
    assert ref.send("one", run_id="a").run_id == open_run.run_id
    assert ref.send("two", run_id="b").run_id == queued.run_id
    first.release()
    assert queued.result(SOON).text == "later: two"
    assert ref.send("one", run_id="a").result(SOON).text == "first"
    assert ref.ask("two", run_id="b", timeout=SOON).text == "later: two"
    assert len(script.requests) == 2
    with pytest.raises(ConfigurationError, match="'k' already"):
        rt.start(scout(), key="other").send("one", run_id="a")
    assert_valid(ref)


def test_one_run_id_sent_from_many_threads_is_one_run(rt: Runtime) -> None:
    """Idempotence holds under a race."""
    script = echo()
    ref = rt.start(scout(model=script))
    with ThreadPoolExecutor(8) as pool:
        asks = [pool.submit(ref.ask, "hi", run_id="once", timeout=SOON) for _ in range(40)]
        assert {ask.result().text for ask in asks} == {"1: hi"}
    assert len(script.requests) == 1


# ---- queues


def test_runs_wait_in_order(rt: Runtime) -> None:
    """A busy agent queues what is sent, and takes it in order. parity: A3"""
    first, script = held()
    ref = rt.start(scout(model=script))
    handles = [ref.send(f"{number}") for number in range(5)]
    assert first.reached()
    assert ref.status().pending_count == 4
    first.release()
    assert [handle.result(SOON).text for handle in handles] == ["first", *(f"later: {n}" for n in range(1, 5))]
    ends = [event.run_id for event in log_of(ref) if event.type == "run.finished"]
    assert ends == [handle.run_id for handle in handles]


def test_a_full_queue_refuses(rt: Runtime) -> None:
    """`max_pending` runs may wait; one more is `AgentBusy`, and leaves no trace. parity: A3"""
    first, script = held()
    ref = rt.start(scout(model=script, max_pending=1))
    ref.send("open")
    waiting = ref.send("waiting")
    with pytest.raises(AgentBusy, match="max_pending=1"):
        ref.send("too much", run_id="refused")
    with pytest.raises(AgentBusy, match="max_pending=1"):
        ref.ask("too much")
    with pytest.raises(NotFound, match="refused"):
        rt.handle("refused")
    first.release()
    waiting.result(SOON)
    assert ref.ask("now", timeout=SOON).status == "completed"
    assert_valid(ref)


def test_a_busy_agent_that_rejects_says_so(rt: Runtime) -> None:
    """`busy="reject"`. parity: A3"""
    first, script = held()
    ref = rt.start(scout(model=script, busy="reject"))
    handle = ref.send("open")
    with pytest.raises(AgentBusy, match="reject"):
        ref.send("no")
    first.release()
    handle.result(SOON)
    assert ref.ask("yes", timeout=SOON).text == "later: yes"


def test_reset_and_set_model_need_an_idle_agent(rt: Runtime) -> None:
    """`AgentBusy` while a run is open; afterwards they work. parity: A1, A3"""
    first, script = held()
    ref = rt.start(scout(model=script))
    handle = ref.send("one")
    with pytest.raises(AgentBusy, match="reset"):
        ref.reset()
    with pytest.raises(AgentBusy, match="set_model"):
        ref.set_model(echo())
    first.release()
    handle.result(SOON)
    ref.set_model(echo())
    assert ref.ask("two", timeout=SOON).text == "3: two"
    spent = ref.status().usage
    ref.reset()
    assert ref.history() == ()
    assert ref.status().usage == spent
    assert ref.ask("three", timeout=SOON).text == "1: three"
    assert_valid(ref)


def test_set_model_takes_effect_before_anything_else_is_accepted(rt: Runtime) -> None:
    """A message that is sent at the same moment finds the old model or the new one, never a mixture."""
    old, new = (
        ScriptedProvider(lambda request: "old", model="old"),
        ScriptedProvider(lambda request: "new", model="new"),
    )
    for _ in range(20):
        ref = rt.start(scout(model=old))
        with ThreadPoolExecutor(2) as pool:
            asked = pool.submit(ref.ask, "hi", timeout=SOON)
            try:
                ref.set_model(new)
            except AgentBusy:
                assert asked.result().text == "old"
            result = asked.result()
        assert (result.status, result.text in ("old", "new")) == ("completed", True), result.error


def test_set_model_refuses_what_does_not_exist(rt: Runtime) -> None:
    """The agent keeps its model."""
    ref = rt.start(scout())
    with pytest.raises(UnknownModel, match="nobody"):
        ref.set_model("nobody:at-all")
    assert ref.ask("hi", timeout=SOON).text == "1: hi"


# ---- steering


def test_a_steer_is_delivered_before_the_next_request(rt: Runtime) -> None:
    """After the calls of the turn are answered, in the transcript of the next request. rule 11"""
    first = gate(call("noop"))
    script = ScriptedProvider([first, "done"])

    @tool
    def noop() -> str:
        """Nothing."""
        return "ok"

    handle = rt.start(scout(model=script, tools=[noop])).send("go")
    assert first.reached()
    handle.steer("be brief")
    first.release()
    assert handle.result(SOON).text == "done"
    assert [message.role for message in script.requests[1].messages] == ["user", "assistant", "tool", "user"]
    assert script.requests[1].messages[-1].text == "be brief"


def test_a_follow_up_goes_on_where_the_run_would_have_ended(rt: Runtime) -> None:
    """One run, two answers; what was not delivered is dropped and told. rule 11"""
    first, script = held()
    ref = rt.start(scout(model=script))
    handle = ref.send("go")
    assert first.reached()
    handle.follow_up("then this")
    first.release()
    result = handle.result(SOON)
    assert (result.text, result.turns) == ("later: then this", 2)
    with pytest.raises(AlreadyResolved):
        handle.steer("too late")
    with pytest.raises(AlreadyResolved):
        handle.follow_up("too late")

    second, script = held()
    ref = rt.start(scout(model=script))
    handle = ref.send("go")
    assert second.reached()
    handle.steer("never read")
    handle.cancel()
    handle.result(SOON)
    assert "input.dropped" in types_of(ref)
    assert_valid(ref)


# ---- cancelling


def test_a_running_run_is_cancelled_and_the_next_one_runs(rt: Runtime) -> None:
    """At once where nothing is in flight but the model. parity: A4, rule 8"""
    first, script = held()
    ref = rt.start(scout(model=script))
    handle, following = ref.send("one"), ref.send("two")
    assert first.reached()
    handle.cancel()
    assert handle.result(SOON).status == "cancelled"
    assert handle.result().duration < 1.0
    assert following.result(SOON).text == "later: two"
    with pytest.raises(AlreadyResolved):
        handle.cancel()
    assert_valid(ref)


def test_a_queued_run_is_cancelled_where_it_stands(rt: Runtime) -> None:
    """It never starts; the open one does not notice. parity: A4"""
    first, script = held()
    ref = rt.start(scout(model=script))
    open_run, waiting = ref.send("one"), ref.send("two")
    waiting.cancel()
    result = waiting.result(SOON)
    assert (result.status, result.turns, result.duration, result.messages) == ("cancelled", 0, 0.0, ())
    assert not open_run.done()
    first.release()
    assert open_run.result(SOON).status == "completed"
    assert len(script.requests) == 1
    assert_valid(ref)


def test_cancelling_at_every_moment_ends_the_run_at_once(rt: Runtime) -> None:
    """A cancel may overtake any step of a run; it never needs the grace where tools can be stopped. parity: A4"""
    script = ScriptedProvider(lambda request: [say("working"), call("wait")])

    @tool
    async def wait() -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    moments = ("run.queued", "turn.started", "model.started", "model.delta", "tool.requested", "tool.started")
    agent = scout(model=script, tools=[wait])
    for moment in moments * 10:
        ref = rt.start(agent)
        with rt.subscribe(moment, key=ref.key) as moments_seen:
            handle = ref.send("go")
            moments_seen.get(SOON)
            handle.cancel()
        result = handle.result(SOON)
        assert (result.status, result.duration < 1.0) == ("cancelled", True), (moment, log_of(ref))
        assert_valid(ref)


# ---- waiting


def test_ask_cancels_its_run_when_it_stops_waiting(rt: Runtime) -> None:
    """`ask(timeout=)`: `TimeoutError`, and the run ends `cancelled`."""
    first, script = held()
    ref = rt.start(scout(model=script))
    with rt.subscribe("run.finished", key=ref.key) as ends:
        with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
            ref.ask("one", timeout=0.05)
        end = ends.get(SOON)
    assert end.type == "run.finished"
    assert end.status == "cancelled"
    assert ref.ask("two", timeout=SOON).text == "later: two"
    first.release()


def test_the_end_of_a_results_wait_leaves_the_run(rt: Runtime) -> None:
    """`result(timeout=)`: `TimeoutError`, and the run goes on, for other waiters too."""
    first, script = held()
    handle = rt.start(scout(model=script)).send("one")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(handle.result, SOON)
        with pytest.raises(TimeoutError, match="not ended"):
            handle.result(0.01)
        first.release()
        assert other.result().text == "first"


def test_a_cancelled_aask_cancels_its_run(rt: Runtime) -> None:
    """By a cancelled task, and by a timeout."""
    first, script = held()
    ref = rt.start(scout(model=script))

    async def main() -> None:
        task = asyncio.create_task(ref.aask("one"))
        await asyncio.to_thread(first.reached)
        run = ref.current
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run is not None
        assert (await run).status == "cancelled"

    asyncio.run(main())
    _, script = held()
    ref = rt.start(scout(model=script))

    async def late() -> None:
        with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
            await ref.aask("one", timeout=0.05)
        assert (await ref.aask("two", timeout=SOON)).text == "later: two"

    asyncio.run(late())


def test_every_waiting_call_has_a_coroutine_twin(rt: Runtime) -> None:
    """The same from asyncio, in loops that come and go. parity: A1, A2, A4"""
    ref = rt.start(scout())

    async def main() -> None:
        handle = await ref.asend("one")
        assert (await handle).text.endswith("one")
        assert (await ref.aask("two", timeout=SOON)).text.endswith("two")
        assert len(await ref.ahistory()) == len(await ref.amessages()) == 4
        assert (await ref.asnapshot())["key"] == ref.key
        await ref.aset_model(echo())
        await ref.areset()
        assert ref.history() == ()
        await ref.aresume()
        with pytest.raises(AlreadyResolved):
            await handle.acancel()
        with pytest.raises(AlreadyResolved):
            await handle.asteer("no")
        with pytest.raises(AlreadyResolved):
            await handle.afollow_up("no")

    for _ in range(3):
        asyncio.run(main())
    assert_valid(ref)


def test_two_loops_and_threads_share_an_agent(rt: Runtime) -> None:
    """Handles and refs belong to no loop."""
    ref = rt.start(scout(max_pending=100))

    async def many() -> list[RunResult[str]]:
        return await asyncio.gather(*(ref.aask(f"{number}", timeout=SOON) for number in range(10)))

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(asyncio.run, many()) for _ in range(2)]
        threads = [pool.submit(ref.ask, "thread", timeout=SOON) for _ in range(2)]
        assert all(result.status == "completed" for loop in loops for result in loop.result())
        assert all(thread.result().status == "completed" for thread in threads)
    assert_valid(ref)


def _blocking(ref: Any, rt: Runtime) -> dict[str, tuple[Callable[[], object], str]]:
    return {
        "ask": (lambda: ref.ask("x", timeout=SOON), "aask"),
        "send": (lambda: ref.send("x"), "asend"),
        "result": (lambda: ref.send("x").result(), "await"),
        "run": (lambda: run("x", model=echo()), "arun"),
        "reset": (lambda: ref.reset(), "areset"),
        "set_model": (lambda: ref.set_model(echo()), "aset_model"),
        "stop": (lambda: ref.stop(), "astop"),
    }


@pytest.mark.parametrize("name", ["ask", "send", "run", "reset", "set_model", "stop"])
def test_a_waiting_call_under_a_running_loop_warns_and_names_its_twin(rt: Runtime, name: str) -> None:
    """One warning, at the caller's own line."""
    ref = rt.start(scout())
    function, twin = _blocking(ref, rt)[name]

    async def main() -> None:
        function()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert name in str(caught[0].message)
    assert twin in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_refused_wait_has_done_nothing(rt: Runtime) -> None:
    """Where the warning is an error, or the loop is ours, nothing was sent before the refusal."""
    ref = rt.start(scout())

    async def main() -> None:
        with pytest.raises(RuntimeWarning, match="asend"):
            ref.send("x", run_id="never")

    asyncio.run(main())
    with pytest.raises(NotFound):
        rt.handle("never")


def test_a_waiting_call_on_our_own_loops_raises_at_once(rt: Runtime) -> None:
    """An async tool that blocks would stop every other one: `WouldDeadlock`, and nothing was sent."""
    other = Runtime(drain=0.0)
    agents = {"own": rt.start(scout()), "another runtime's": other.start(scout())}

    @tool
    async def block(whose: str) -> str:
        """Block."""
        ref = agents[whose]
        wrong: list[str] = []
        calls: list[Callable[[], object]] = [lambda: ref.ask("x"), lambda: ref.send("x"), ref.reset, ref.stop, rt.stop]
        calls.append(lambda: run("x", model=echo()))
        for function in calls:
            try:
                function()
            except WouldDeadlock:
                continue
            wrong.append(repr(function))
        return f"wrong: {wrong}"

    asks = [call("block", whose="own"), call("block", whose="another runtime's")]
    result = rt.start(scout(model=ScriptedProvider([asks, "done"]), tools=[block])).ask("go", timeout=SOON)
    assert [record.text for record in result.tool_calls] == ["wrong: []", "wrong: []"]
    assert all(ref.history() == () for ref in agents.values())
    other.stop()


def test_an_async_tool_may_await_another_run(rt: Runtime) -> None:
    """`arun` and `aask` on the user loop."""
    helper = rt.start(scout())

    @tool
    async def delegate() -> str:
        """Ask others."""
        one = await helper.aask("one", timeout=SOON)
        return one.text + " " + (await arun("two", model=echo())).text

    result = rt.start(scout(model=ScriptedProvider([call("delegate"), "done"]), tools=[delegate])).ask(
        "go", timeout=SOON
    )
    assert result.tool_calls[0].text == "1: one 1: two"


def test_run_inside_of_tools_works_also_when_all_workers_do_it() -> None:
    """Waiting for a child run lends the slot out, as often as it is nested."""

    @tool
    def leaf() -> str:
        """The end."""
        return "leaf"

    with Runtime(workers=1, drain=0.0) as rt:
        child = scout(name="child", model=ScriptedProvider(_tool_then_text("leaf")), tools=[leaf])

        @tool
        def delegate() -> str:
            """Ask a child of the same runtime, which needs a worker too."""
            return rt.start(child).ask("go", timeout=SOON).text

        middle = scout(name="middle", model=ScriptedProvider(_tool_then_text("delegate")), tools=[delegate])

        @tool
        def descend() -> str:
            """Ask twice."""
            inner = run("go", middle.replace(tools=[delegate]))
            return f"{rt.start(middle).ask('go', timeout=SOON).text} {inner.text}"

        top = scout(name="top", model=ScriptedProvider(_tool_then_text("descend")), tools=[descend])
        handles = [rt.start(top).send("go") for _ in range(8)]
        for handle in handles:
            result = handle.result(SOON)
            assert result.tool_calls[0].text == "done done", result
        assert rt._system.pool._threads.slots == 1  # pyright: ignore[reportPrivateUsage] # every slot came back


def _tool_then_text(name: str) -> Callable[[Any], Any]:
    return lambda request: "done" if request.messages[-1].role == "tool" else call(name)


# ---- stopping


def test_a_stopped_agent_starts_again_with_its_conversation(rt: Runtime) -> None:
    """`stop`, then `start` of the same key; at once, as often as you like. parity: A1"""
    agent = scout()
    ref = rt.start(agent, key="k")
    for count in range(10):
        assert ref.ask("hi", timeout=SOON).text == f"{1 + 2 * count}: hi"
        ref.stop()
        assert ref.status().state == "stopped"
        with pytest.raises(AgentStopped, match=r"rt\.start"):
            ref.send("no")
        ref = rt.start(agent, key="k")
    assert ref.ask("hi", timeout=SOON).text == "21: hi"
    ref.stop()
    ref.stop()
    assert_valid(ref)


def test_stopping_an_agent_ends_its_runs(rt: Runtime) -> None:
    """In memory nothing outlives the process: the open run and the queued ones end `cancelled`, also where a tool hangs."""
    release, started = threading.Event(), threading.Event()

    @tool
    def hang() -> str:
        """Hang."""
        started.set()
        release.wait(SOON)
        return "late"

    ref = rt.start(scout(model=ScriptedProvider([call("hang")]), tools=[hang]))
    handles = [ref.send("one"), ref.send("two")]
    assert started.wait(SOON)
    ref.stop()
    assert [handle.result().status for handle in handles] == ["cancelled", "cancelled"]
    release.set()
    assert_valid(ref)


def test_on_shutdown_hooks_run_on_stop() -> None:
    """`agent_stop` runs when an agent stops and when its runtime does; its failure does not prevent the stop. parity: A7"""
    told: list[tuple[str, str]] = []

    class Tell(Hooks):
        async def agent_stop(self, ctx: HookContext, reason: str) -> None:
            told.append((ctx.key, reason))
            raise ZeroDivisionError

    class TellToo(Hooks):
        def agent_stop(self, ctx: HookContext, reason: str) -> None:
            told.append((ctx.key, reason))

    agent = scout(hooks=[TellToo()])
    with Runtime() as rt:
        rt.start(agent, key="first").ask("hi", timeout=SOON)
        rt.start(scout(name="bad", hooks=[Tell()]), key="bad").ask("hi", timeout=SOON)
        rt.start(agent, key="second").ask("hi", timeout=SOON)
        rt.get("first").stop()
        assert told == [("first", "ref.stop")]
        rt.get("bad").stop()
        assert rt.get("bad").status().state == "stopped"
    assert [key for key, _ in told] == ["first", "bad", "second"]


def test_a_runtime_lets_open_runs_finish() -> None:
    """`drain` seconds, also for what is queued."""
    first, script = held()
    with Runtime(drain=SOON) as rt:
        ref = rt.start(scout(model=script))
        handles = [ref.send("one"), ref.send("two")]
        assert first.reached()
        threading.Timer(0.05, first.release).start()
    assert [handle.result().status for handle in handles] == ["completed", "completed"]


def test_what_does_not_finish_in_time_ends_cancelled() -> None:
    """Running, queued, waiting for approval, in a tool: every run has one end."""
    started = threading.Event()

    @tool
    async def wait() -> None:
        """Wait for ever."""
        started.set()
        await asyncio.Event().wait()

    @tool(approval=Approval())
    def careful() -> None:
        """Needs a person."""

    with Runtime(drain=0.0) as rt:
        model = rt.start(scout(model=ScriptedProvider([gate("late")])))
        tools = rt.start(scout(model=ScriptedProvider([call("wait")]), tools=[wait]))
        paused = rt.start(scout(model=ScriptedProvider(lambda request: call("careful")), tools=[careful]))
        with rt.subscribe("run.paused", key=paused.key) as pauses:
            handles = [ref.send(f"{number}") for ref in (model, tools, paused) for number in range(3)]
            pauses.get(SOON)
        assert started.wait(SOON)
    assert [handle.result().status for handle in handles] == ["cancelled"] * 9
    for ref in (model, tools, paused):
        assert_valid(ref)
    assert types_of(paused).count("run.started") == 1


def test_waiters_of_a_stopping_runtime_are_told() -> None:
    """Results, iteration and subscriptions end; nobody hangs."""
    first, script = held()
    rt = Runtime(drain=0.0)
    ref = rt.start(scout(model=script))
    handle = ref.send("one")
    subscription = rt.subscribe()
    with ThreadPoolExecutor(4) as pool:
        waiters: list[Future[Any]] = [
            pool.submit(handle.result),
            pool.submit(lambda: [event.type for event in handle]),
            pool.submit(lambda: [event.type for event in subscription]),
        ]
        assert first.reached()
        rt.stop()
        result, events, stream = (waiter.result(SOON) for waiter in waiters)
    assert result.status == "cancelled"
    assert events[-1] == "run.finished"
    assert stream[-1] == "agent.stopped"


def test_a_stopped_runtime_refuses_everything() -> None:
    """`RuntimeStopped`, at once; what is known stays known. A second stop does nothing."""
    rt = Runtime(drain=0.0)
    ref = rt.start(scout(), key="k")
    handle = ref.send("hi")
    handle.result(SOON)
    rt.stop()
    rt.stop()
    calls: list[Callable[[], object]] = [
        lambda: rt.start(scout()),
        lambda: rt.get("k"),
        lambda: rt.agents(),
        lambda: rt.handle(handle.run_id),
        lambda: rt.subscribe(),
        lambda: rt.publish("x"),
        lambda: ref.send("x"),
        lambda: ref.ask("x"),
        lambda: ref.reset(),
        lambda: ref.set_model(echo()),
        lambda: ref.stop(),
        lambda: ref.resume(),
        lambda: handle.cancel(),
        lambda: handle.steer("x"),
        lambda: handle.approve("x"),
    ]
    for function in calls:
        with pytest.raises(RuntimeStopped):
            function()

    async def twins() -> None:
        coroutines: list[Coroutine[Any, Any, object]] = [ref.asend("x"), ref.aask("x"), ref.areset(), handle.acancel()]
        for coroutine in coroutines:
            with pytest.raises(RuntimeStopped):
                await coroutine
        await rt.astop()

    asyncio.run(twins())
    assert handle.result().text == "1: hi"
    assert ref.history()[-1].text == "1: hi"
    assert ref.status().state == "stopped"
    assert rt.tree().state == "stopped"


def test_calls_that_race_with_the_stop_are_all_answered() -> None:
    """From eight threads, while the runtime stops: each call returns or raises `RuntimeStopped` or `AgentStopped`."""
    for _ in range(5):
        rt = Runtime(drain=0.0)
        refs = [rt.start(scout(max_pending=10_000), key=f"k{number}") for number in range(4)]
        go, strange = threading.Event(), list[BaseException]()

        def hammer(go: threading.Event = go, refs: Any = refs, strange: list[BaseException] = strange) -> None:
            go.wait(SOON)
            for number in range(200):
                ref = refs[number % 4]
                try:
                    ref.send("x").result(SOON)
                except (RuntimeStopped, AgentStopped):
                    return
                except BaseException as error:
                    strange.append(error)
                    return

        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        go.set()
        rt.stop()
        for thread in threads:
            thread.join(SOON)
        assert not any(thread.is_alive() for thread in threads)
        assert strange == []
        for ref in refs:
            assert_valid(ref)


def test_two_runtimes_live_in_one_process() -> None:
    """Each with its own agents and events; the end of one is not the other's."""
    with Runtime(drain=0.0) as one, Runtime(drain=0.0) as other:
        first, second = one.start(scout(), key="k"), other.start(scout(), key="k")
        assert first.ask("a", timeout=SOON).text == "1: a"
        assert second.ask("b", timeout=SOON).text == "1: b"
        one.stop()
        assert second.ask("c", timeout=SOON).text == "3: c"


def test_a_runtime_works_in_an_async_with() -> None:
    """Started and stopped without blocking the loop."""

    async def main() -> str:
        async with Runtime(drain=0.0) as rt:
            return (await rt.start(scout()).aask("hi", timeout=SOON)).text

    assert asyncio.run(main()) == "1: hi"


def test_a_stop_leaves_no_thread_behind() -> None:
    """Loops and workers end with their runtime."""

    @tool
    def work() -> str:
        """Work."""
        return "done"

    before = set(threading.enumerate())
    with Runtime(drain=0.0) as rt:
        script = ScriptedProvider([[call("work"), call("work")], "done"])
        assert rt.start(scout(model=script, tools=[work])).ask("go", timeout=SOON).status == "completed"
    for thread in set(threading.enumerate()) - before:
        thread.join(SOON)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("ending", ["pass", "rt.stop()", "raise SystemExit(0)"])
def test_the_interpreter_ends_with_work_under_way(ending: str) -> None:
    """Whether a runtime was stopped or not, whatever its agents do: the process ends, in silence."""
    program = f"""
import threading
from nitinol import Agent, Runtime, run, tool
from nitinol.testing import ScriptedProvider, call, gate

started = threading.Event()

@tool
def hang():
    "Hang."
    started.set()
    threading.Event().wait()

run("hi", model=ScriptedProvider(["hello"]))
rt = Runtime(drain=0.0, shutdown=3.0)
rt.start(Agent(name="a", model=ScriptedProvider([gate("never")]))).send("hi")
rt.start(Agent(name="b", model=ScriptedProvider([call("hang")]), tools=[hang])).send("hi")
assert started.wait(10)
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- the rest of the surface


def test_a_snapshot_is_plain_json_and_holds_the_whole_log(rt: Runtime) -> None:
    """Serialisable, with a stable id. parity: A6"""
    import json

    ref = rt.start(scout(), key="k")
    ref.ask("hi", timeout=SOON)
    snapshot = json.loads(json.dumps(ref.snapshot()))
    assert (snapshot["key"], snapshot["agent"]) == ("k", "scout")
    assert [event["seq"] for event in snapshot["events"]] == list(range(1, len(snapshot["events"]) + 1))


def test_a_forgotten_agent_leaves_nothing(rt: Runtime) -> None:
    """Neither the key nor its runs are known; the key is free for any name."""
    ref = rt.start(scout(), key="k")
    handle = ref.send("hi")
    handle.result(SOON)
    rt.forget("k")
    with rt.subscribe("custom") as looked:  # forgetting is done on the core loop, soon
        rt.publish("look")
        looked.get(SOON)
    with pytest.raises(NotFound):
        rt.get("k")
    with pytest.raises(NotFound):
        rt.handle(handle.run_id)
    assert rt.start(scout(name="other"), key="k").ask("hi", timeout=SOON).text == "1: hi"


def test_the_tree_shows_every_agent(rt: Runtime) -> None:
    """Parts of the runtime in the order they start, and the agents with their state."""
    rt.start(scout(), key="k").ask("hi", timeout=SOON)
    tree = rt.tree()
    assert [node.id for node in tree.children] == ["journal", "bus", "gateway", "pool", "agents"]
    assert [(node.id, node.state) for node in tree.children[-1].children] == [("k", "idle")]
    assert tree.state == "running"


def test_status_answers_while_everything_is_busy() -> None:
    """In the middle of a turn, with every worker hanging: status, steer and cancel work. parity: A1"""
    release, started = threading.Event(), threading.Event()

    @tool
    def hang() -> str:
        """Hang."""
        started.set()
        release.wait(SOON)
        return "late"

    with Runtime(workers=1, drain=0.0) as rt:
        ref = rt.start(scout(model=ScriptedProvider([call("hang"), "done"]), tools=[hang]))
        handle = ref.send("go")
        assert started.wait(SOON)
        assert (ref.status().state, ref.status().turn) == ("running", 1)
        handle.steer("hurry")
        handle.cancel()
        assert ref.status().state == "cancelling"
        release.set()
        assert handle.result(SOON).status == "cancelled"
        assert_valid(ref)


def test_an_approval_pauses_a_run_until_a_person_decides(rt: Runtime) -> None:
    """Approve, with other arguments perhaps, or deny; the first word counts."""
    ran: list[int] = []

    @tool(approval=Approval())
    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return f"paid {amount}"

    asks = [call("pay", call_id="a", amount=1), call("pay", call_id="b", amount=2), call("pay", call_id="c", amount=3)]
    ref = rt.start(scout(model=ScriptedProvider([asks, "done"]), tools=[pay]))
    with rt.subscribe("approval.requested", key=ref.key) as requests:
        handle = ref.send("go")
        wait_for(requests, "approval.requested", count=3)
    assert ref.status().state == "paused"
    handle.approve("a", by="kim")
    handle.deny("b", "too much", by="kim")
    handle.approve("c", {"amount": 30})
    for call_id in ("a", "b", "c"):
        with pytest.raises(AlreadyResolved):
            handle.deny(call_id)
    result = handle.result(SOON)
    assert [(record.outcome, record.text) for record in result.tool_calls] == [
        ("ok", "paid 1"),
        ("denied", "The call was denied by kim: too much"),
        ("ok", "paid 30"),
    ]
    assert result.tool_calls[2].arguments == {"amount": 30}
    assert sorted(ran) == [1, 30]
    assert_valid(ref)


def test_a_failed_supervisor_takes_down_the_runtime_and_not_the_process() -> None:
    """Every call raises `RuntimeDown`, waiters too; what is known stays known, and it can still be stopped."""
    first, script = held()
    rt = Runtime(drain=0.0)
    ref = rt.start(scout(model=script))
    handle = ref.send("hi")
    assert first.reached()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(handle.result)
        rt._system.root.post("nonsense")  # pyright: ignore[reportPrivateUsage] # kills it
        with pytest.raises(RuntimeDown, match="supervisor"):
            waiting.result(SOON)
    for function in (lambda: ref.send("x"), lambda: rt.start(scout()), handle.cancel, rt.agents):
        with pytest.raises(RuntimeDown, match="supervisor"):
            function()
    assert rt.tree().state == "down"
    assert ref.history()[0].text == "hi"
    rt.stop()
    with Runtime(drain=0.0) as other:
        assert other.start(scout()).ask("hi", timeout=SOON).text == "1: hi"


def test_a_changed_definition_applies_from_the_next_run(rt: Runtime) -> None:
    """`start` of a live key with the same name and other options: the open run keeps the old, the next has the new."""
    script = ScriptedProvider(lambda request: str(request.instructions))
    ref = rt.start(scout(model=script, instructions="old"), key="k")
    assert ref.ask("hi", timeout=SOON).text == "old"
    ref = rt.start(scout(model=script, instructions="new"), key="k")
    assert ref.ask("hi", timeout=SOON).text == "new"
    assert "agent.configured" in types_of(ref)
