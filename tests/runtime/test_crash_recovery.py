"""Crashes: an agent that dies at any moment comes back with its conversation, its running work and its bill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, types_of, wait_for

from nitinol import Agent, AgentRef, Approval, Hooks, RunHandle, Runtime, ToolContext, events, tool
from nitinol.actors.agent_actor import Crash
from nitinol.actors.bus import Subscription
from nitinol.errors import AgentDown, AgentParked, ConnectionFailed, NotFound
from nitinol.hooks import HookContext
from nitinol.http import Http
from nitinol.messages import Message, Text
from nitinol.provider import Delta, ModelRequest, ModelResponse, StreamPart
from nitinol.retry import Retry
from nitinol.testing import ScriptedProvider, call, crash, fail, gate, say

NO_WAIT = Retry(base=0.0)


@pytest.fixture(params=["memory", "sqlite"])
def rt(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end, on either kind of journal: one commits at once, one later."""
    with Runtime(tmp_path / "agents.db" if request.param == "sqlite" else None, drain=0.0) as runtime:
        yield runtime


def scout(model: ScriptedProvider, **options: Any) -> Agent[str]:
    """An agent that retries at once."""
    return Agent(name="scout", model=model, retry=NO_WAIT, **options)


def script_of(answers: Iterator[Any]) -> ScriptedProvider:
    """These answers, then `"answer"` for ever."""
    return ScriptedProvider(lambda request: next(answers, "answer"))


def crash_and_return(ref: AgentRef[Any], rt: Runtime, error: BaseException | None = None) -> None:
    """Crash it, cut its backoff short, and wait until it is back."""
    with rt.subscribe("agent.started", key=ref.key) as started:
        crash(ref, error)
        ref.resume()
        wait_for(started, "agent.started")


def outcomes(ref: AgentRef[Any]) -> list[tuple[str, str]]:
    """Outcome and text of every call in the log."""
    return [(event.outcome, event.text) for event in log_of(ref) if event.type == "tool.finished"]


def test_a_crash_before_the_model_answers(rt: Runtime) -> None:
    """The attempt is given up, billed and made again; the prompt is in the conversation once. parity: A5"""
    lost = gate("never shown")
    answers = iter([lost, "answer"])
    ref = rt.start(scout(script_of(answers)))
    handle = ref.send("hi")
    assert lost.reached()
    crash_and_return(ref, rt)
    result = handle.result(SOON)
    assert (result.status, result.text, result.turns) == ("completed", "answer", 1)
    assert [message.text for message in ref.history()] == ["hi", "answer"]
    assert ref.status().incarnation == 2
    failed = next(event for event in log_of(ref) if event.type == "model.failed")
    assert failed.error_type == "Cancelled"  # the gateway closed the stream, and settled it
    assert_valid(ref)


def test_a_crash_in_mid_stream(rt: Runtime) -> None:
    """Readers are told to drop what they have; only the committed attempt enters the transcript."""
    slow = Slow()
    ref = rt.start(scout(slow))
    with rt.subscribe("model.delta", key=ref.key) as deltas:
        handle = ref.send("hi")
        with ThreadPoolExecutor(1) as pool:
            words = pool.submit(lambda: list(handle.text()))
            wait_for(deltas, "model.delta")
            crash_and_return(ref, rt)
            assert words.result(SOON)[-1] == "whole"
    assert [message.text for message in ref.history()] == ["hi", "whole"]
    assert "model.discarded" in types_of(ref)
    assert_valid(ref)


class Slow(ScriptedProvider):
    """Its first answer shows a word and hangs."""

    def __init__(self) -> None:
        super().__init__([])

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        self.requests.append(request)
        if len(self.requests) == 1:
            yield Delta("text", "half")
            await asyncio.Event().wait()
        yield Delta("text", "whole")
        message = Message(role="assistant", parts=(Text("whole"),))
        yield ModelResponse(message=message, usage=None, stop_reason="end_turn")


def test_a_sync_tool_outlives_the_crash(rt: Runtime) -> None:
    """It is adopted: it runs once, and its result counts. rules 5 and 6"""
    ran: list[str] = []
    started, release = threading.Event(), threading.Event()

    @tool
    def work(ctx: ToolContext) -> str:
        """Work."""
        ran.append(ctx.idempotency_key)
        started.set()
        assert release.wait(SOON)
        return f"done, {'cancelled' if ctx.cancelled else 'wanted'}"

    ref = rt.start(scout(ScriptedProvider([call("work"), "end"]), tools=[work]))
    handle = ref.send("go")
    assert started.wait(SOON)
    crash_and_return(ref, rt)
    release.set()
    result = handle.result(SOON)
    assert (result.text, len(ran)) == ("end", 1)
    assert outcomes(ref) == [("ok", "done, wanted")]
    assert_valid(ref)


def test_an_async_tool_outlives_the_crash(rt: Runtime) -> None:
    """As a thread's. rules 5 and 6"""
    ran: list[str] = []
    started, release = threading.Event(), asyncio.Event()

    @tool
    async def work(ctx: ToolContext) -> str:
        """Work."""
        ran.append(ctx.call_id)
        started.set()
        await release.wait()
        return "done"

    ref = rt.start(scout(ScriptedProvider([call("work"), "end"]), tools=[work]))
    handle = ref.send("go")
    assert started.wait(SOON)
    crash_and_return(ref, rt)
    crash_and_return(ref, rt)
    rt._system.user.call(release.set)  # pyright: ignore[reportPrivateUsage] # the loop of async tools
    assert handle.result(SOON).text == "end"
    assert len(ran) == 1
    assert outcomes(ref) == [("ok", "done")]
    assert_valid(ref)


def test_a_result_that_comes_while_nobody_lives_is_kept(rt: Runtime) -> None:
    """The tool ends between two incarnations: its result waits for the next one. rule 5"""
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    @tool
    def work() -> str:
        """Work."""
        started.set()
        assert release.wait(SOON)
        return "done"

    ref = rt.start(scout(ScriptedProvider([call("work"), "end"]), tools=[work]))
    handle = ref.send("go")
    assert started.wait(SOON)
    pool = rt._system.pool  # pyright: ignore[reportPrivateUsage]
    core = rt._system.core  # pyright: ignore[reportPrivateUsage]
    # On the core loop, in one go: the agent dies, and is not back before the tool's result is there.
    with rt.subscribe("agent.crashed", key=ref.key) as crashed:
        crash(ref)
        crashed.get(SOON)
    release.set()

    def idle() -> None:
        if pool._idle:  # pyright: ignore[reportPrivateUsage]
            ended.set()
        else:
            core.call(idle)

    core.call(idle)
    assert ended.wait(SOON)
    ref.resume()
    assert handle.result(SOON).text == "end"
    assert outcomes(ref) == [("ok", "done")]
    assert_valid(ref)


def test_a_call_that_waits_for_a_slot_runs_once_after_the_crash() -> None:
    """It had not started: so it runs, whatever its `replay`. rule 6"""
    ran: list[str] = []
    started, release = threading.Event(), threading.Event()

    @tool
    def block() -> str:
        """Hold the only worker."""
        started.set()
        assert release.wait(SOON)
        return "free"

    @tool
    def work() -> str:
        """Work."""
        ran.append("once")
        return "done"

    with Runtime(workers=1, drain=0.0) as rt:
        blocker = rt.start(scout(ScriptedProvider([call("block"), "end"]), tools=[block])).send("go")
        assert started.wait(SOON)
        ref = rt.start(scout(ScriptedProvider([call("work"), "end"]), tools=[work]))
        with rt.subscribe("tool.requested", key=ref.key) as requested:
            handle = ref.send("go")
            requested.get(SOON)
        crash_and_return(ref, rt)
        crash_and_return(ref, rt)
        release.set()
        assert handle.result(SOON).text == "end"
        assert blocker.result(SOON).text == "end"
        assert ran == ["once"]
        assert_valid(ref)


def test_parallel_calls_survive_together(rt: Runtime) -> None:
    """One had ended, one runs, one waits its turn: each is answered once, in call order."""
    ran: list[int] = []
    started, release = threading.Event(), threading.Event()

    @tool
    def quick() -> str:
        """Quick."""
        ran.append(1)
        return "quick"

    @tool
    def slow() -> str:
        """Slow."""
        ran.append(2)
        started.set()
        assert release.wait(SOON)
        return "slow"

    @tool(serial=True)
    def alone() -> str:
        """Alone."""
        ran.append(3)
        return "alone"

    script = ScriptedProvider([[call("quick"), call("slow"), call("alone")], "end"])
    ref = rt.start(scout(script, tools=[quick, slow, alone]))
    with rt.subscribe("tool.finished", key=ref.key) as ends:
        handle = ref.send("go")
        ends.get(SOON)
        assert started.wait(SOON)
        crash_and_return(ref, rt)
        release.set()
        result = handle.result(SOON)
    assert [record.text for record in result.tool_calls] == ["quick", "slow", "alone"]
    assert sorted(ran[:2]) == [1, 2]  # in parallel
    assert ran[2:] == [3]
    assert_valid(ref)


def test_a_crash_while_waiting_for_approval(rt: Runtime) -> None:
    """The question stays open, and a word that comes meanwhile wakes the agent."""

    @tool(approval=Approval())
    def pay() -> str:
        """Pay."""
        return "paid"

    ref = rt.start(scout(ScriptedProvider([call("pay", call_id="a"), "end"]), tools=[pay]))
    with rt.subscribe("run.paused", key=ref.key) as paused:
        handle = ref.send("go")
        paused.get(SOON)
    crash(ref)
    handle.approve("a", by="kim")  # wakes it
    result = handle.result(SOON)
    assert (result.text, result.tool_calls[0].text) == ("end", "paid")
    assert types_of(ref).count("approval.requested") == 1
    assert_valid(ref)


def test_what_is_queued_survives(rt: Runtime) -> None:
    """Runs, a steer and a follow-up that were accepted are delivered, each once, in order. rule 2"""
    first = gate("first")
    answers = iter([first, "again"])
    ref = rt.start(scout(script_of(answers)))
    handles = [ref.send(f"{number}") for number in range(3)]
    assert first.reached()
    handles[0].steer("steer")
    handles[0].follow_up("follow")
    crash_and_return(ref, rt)
    assert [handle.result(SOON).status for handle in handles] == ["completed"] * 3
    texts = [part.text for message in ref.history() for part in message.parts if part.type == "text"]
    asked = [text for text in texts if text in ("0", "1", "2", "steer", "follow")]
    assert asked == ["0", "steer", "follow", "1", "2"] or asked == ["0", "follow", "steer", "1", "2"]
    assert_valid(ref)


def test_what_is_sent_to_a_dead_agent_is_accepted_when_it_is_back(rt: Runtime) -> None:
    """A send in the backoff waits for the restart; so does an ask, and its timeout counts. rule 2"""
    ref = rt.start(scout(ScriptedProvider(lambda request: "ok")))
    for _ in range(3):
        crash(ref)
        assert ref.send("hi").result(SOON).text == "ok"
    assert_valid(ref)


def test_a_cancel_wakes_an_agent_in_backoff(rt: Runtime) -> None:
    """Control does not wait for the delay, however long it is."""
    first = gate("never")
    ref = rt.start(scout(ScriptedProvider(lambda request: first)))
    handle = ref.send("hi")
    assert first.reached()
    crash(ref)
    handle.cancel()
    assert handle.result(SOON).status == "cancelled"
    assert_valid(ref)


def test_a_crash_in_a_retry_wait(rt: Runtime) -> None:
    """The attempt had failed before: it is not made again because of the crash, the next one is."""
    script = ScriptedProvider([fail(ConnectionFailed(retry_after=0.2)), "answer"])
    ref = rt.start(scout(script))
    with rt.subscribe("model.retrying", key=ref.key) as retries:
        handle = ref.send("hi")
        retries.get(SOON)
    crash_and_return(ref, rt)
    assert handle.result(SOON).text == "answer"
    script.assert_exhausted()
    assert [event.attempt for event in log_of(ref) if event.type == "model.started"] == [1, 2]
    assert_valid(ref)


def test_a_crash_between_two_runs_keeps_the_conversation(rt: Runtime) -> None:
    """Idle agents come back as they were."""
    script = ScriptedProvider(lambda request: f"{len(request.messages)}")
    ref = rt.start(scout(script))
    assert ref.ask("one", timeout=SOON).text == "1"
    spent = ref.status().usage
    crash_and_return(ref, rt)
    assert ref.status().usage == spent
    assert ref.ask("two", timeout=SOON).text == "3"
    assert "run.resumed" not in types_of(ref)
    assert_valid(ref)


def test_a_crash_during_a_cancel_does_not_lose_the_cancel(rt: Runtime) -> None:
    """`run.cancelling` was committed first: nothing starts again. rule 8"""
    started, release = threading.Event(), threading.Event()

    @tool
    def work() -> str:
        """Work."""
        started.set()
        assert release.wait(SOON)
        return "done"

    script = ScriptedProvider([call("work")])
    ref = rt.start(scout(script, tools=[work]))
    handle = ref.send("go")
    assert started.wait(SOON)
    handle.cancel()
    crash_and_return(ref, rt)
    release.set()
    result = handle.result(SOON)
    assert result.status == "cancelled"
    assert outcomes(ref) == [("ok", "done")]
    script.assert_exhausted()
    assert_valid(ref)


def test_waiters_survive_across_incarnations(rt: Runtime) -> None:
    """`result()`, `await`, iteration and a subscription see one run, whole and in order."""
    lost = gate("never")
    ref = rt.start(scout(script_of(iter([lost]))))
    handle = ref.send("hi")
    with rt.subscribe(key=ref.key, after=0) as subscription, ThreadPoolExecutor(3) as pool:
        result = pool.submit(handle.result, SOON)
        seen = pool.submit(lambda: [event for event in handle])
        awaited = pool.submit(asyncio.run, handle.aresult(SOON))
        assert lost.reached()
        crash_and_return(ref, rt)
        assert result.result(SOON).text == awaited.result(SOON).text == "answer"
        of_run = [event.seq for event in seen.result(SOON) if event.durable]
        ids = [event.seq for event in log_of(ref) if event.run_id == handle.run_id]
        assert of_run == ids
        followed = [subscription.get(SOON) for _ in range(3)]
        assert [event.seq for event in followed if event.durable] == [1, 2, 3]


def test_siblings_do_not_notice(rt: Runtime) -> None:
    """One dies again and again; a hundred others answer, in their first incarnation."""
    script = ScriptedProvider(lambda request: "ok")
    others = [rt.start(scout(script)) for _ in range(100)]
    victim = rt.start(scout(script), key="victim")
    handles: list[RunHandle[str]] = []
    for number in range(5):
        crash(victim)
        handles += [other.send(f"{number}") for other in others[number * 20 : number * 20 + 20]]
        victim.resume()
    assert {handle.result(SOON).status for handle in handles} == {"completed"}
    assert {other.status().incarnation for other in others} == {1}
    for other in others:
        assert_valid(other)


def test_six_crashes_park_an_agent(rt: Runtime) -> None:
    """Waiters get `AgentParked`, so do senders; it stays visible, and `resume()` goes on with the run."""

    @tool(approval=Approval())
    def pay() -> str:
        """Pay."""
        return "paid"

    ref = rt.start(scout(ScriptedProvider([call("pay", call_id="a"), "end", "more"]), tools=[pay]), key="k")
    with rt.subscribe("run.paused", "agent.parked", key="k") as told, ThreadPoolExecutor(4) as pool:
        handle, queued = ref.send("go"), ref.send("then")
        wait_for(told, "run.paused")
        waiters: list[Future[Any]] = [
            pool.submit(handle.result),
            pool.submit(queued.result),
            pool.submit(lambda: [event for event in handle]),
            pool.submit(asyncio.run, _read(handle)),
        ]
        for _ in range(5):
            crash_and_return(ref, rt)
        crash(ref)
        wait_for(told, "agent.parked")
        for waiter in waiters:
            with pytest.raises(AgentParked, match="resume"):
                waiter.result(SOON)
    assert ref.status().state == "parked"
    with pytest.raises(AgentParked, match="resume"):
        ref.send("no")
    with pytest.raises(AgentParked, match="resume"):
        handle.result()
    with pytest.raises(AgentDown, match="parked"):
        crash(ref)
    assert [(node.id, node.state) for node in rt.tree().children[-1].children] == [("k", "parked")]

    ref.resume()
    handle.approve("a")
    assert handle.result(SOON).text == "end"
    assert queued.result(SOON).text == "more"
    assert types_of(ref).count("agent.resumed") == 1
    assert types_of(ref).count("agent.crashed") == 6
    assert_valid(ref)


async def _read(handle: Any) -> list[str]:
    return [event.type async for event in handle]


def test_a_parked_agent_is_stopped_and_its_run_cancelled(rt: Runtime) -> None:
    """Parked is not locked in: control works without a live actor."""

    @tool(approval=Approval())
    def pay() -> str:
        """Pay."""
        return "paid"

    ref = rt.start(scout(ScriptedProvider([call("pay", call_id="a"), "end"]), tools=[pay]), key="k")
    with rt.subscribe("run.paused", "agent.parked", key="k") as told:
        handle = ref.send("go")
        wait_for(told, "run.paused")
        for _ in range(5):
            crash_and_return(ref, rt)
        crash(ref)
        wait_for(told, "agent.parked")
    handle.cancel()
    assert handle.result(SOON).status == "cancelled"
    ref.stop()
    assert ref.status().state == "stopped"
    assert_valid(ref)
    assert rt.start(ref.agent, key="k").ask("again", timeout=SOON).text == "end"


def test_a_run_that_kills_its_agent_again_and_again_is_sealed(rt: Runtime) -> None:
    """Three deaths at work: the run ends `sealed`, the agent lives, the next run starts. rule 7"""
    ref = rt.start(scout(ScriptedProvider(lambda request: gate("never"))))
    with rt.subscribe("model.started", key=ref.key) as starts:
        handle = ref.send("poison")
        for _ in range(3):
            wait_for(starts, "model.started")
            crash(ref)
            ref.resume()
        assert handle.result(SOON).status == "sealed"
        following = ref.send("next")
        wait_for(starts, "model.started")
        following.cancel()
        assert following.result(SOON).status == "cancelled"
    assert_valid(ref)


class Unprintable(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise ZeroDivisionError

    __repr__ = __str__


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        MemoryError(),
        StopIteration(),
        RuntimeError("\ud800 half a character"),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_raised_in_the_handler_kills_only_that_actor(rt: Runtime, error: BaseException) -> None:
    """Pykka stops every actor of the process on a `BaseException`; here it is a crash like any other."""
    script = ScriptedProvider(lambda request: "ok")
    ref, sibling = rt.start(scout(script)), rt.start(scout(script))
    assert ref.ask("one", timeout=SOON).text == "ok"
    assert sibling.ask("one", timeout=SOON).text == "ok"
    crash_and_return(ref, rt, error)
    crashed = next(event for event in log_of(ref) if event.type == "agent.crashed")
    assert crashed.error_type == type(error).__name__
    assert ref.ask("two", timeout=SOON).text == "ok"
    assert sibling.status().incarnation == 1
    assert sibling.ask("two", timeout=SOON).text == "ok"
    assert_valid(ref)


def test_messages_behind_a_crash_are_not_lost(rt: Runtime) -> None:
    """A send that stands in the mailbox behind the message that kills is accepted by the next incarnation."""
    ref = rt.start(scout(ScriptedProvider(lambda request: "ok"), max_pending=100))
    ref.ask("hi", timeout=SOON)
    cell, core = ref._cell, rt._system.core  # pyright: ignore[reportPrivateUsage]
    blocked, go = threading.Event(), threading.Event()

    def hold() -> None:
        blocked.set()
        go.wait(SOON)

    core.call(hold)
    assert blocked.wait(SOON)

    def kill() -> None:
        assert cell.actor is not None
        cell.actor.post(Crash(RuntimeError("first")))

    core.call(kill)
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(ref.ask, f"{number}", timeout=SOON) for number in range(8)]
        go.set()
        assert [result.result(SOON).status for result in results] == ["completed"] * 8
    assert_valid(ref)


def test_agent_start_hooks_run_again_and_hold_the_work_back(rt: Runtime) -> None:
    """An incarnation does nothing before its `agent_start` hooks have run, also after a crash."""
    starts: list[str] = []

    class Start(Hooks):
        def agent_start(self, ctx: HookContext) -> None:
            starts.append(ctx.key)

    ref = rt.start(scout(ScriptedProvider(lambda request: "ok"), hooks=[Start()]))
    assert ref.ask("one", timeout=SOON).text == "ok"
    crash_and_return(ref, rt)
    assert ref.ask("two", timeout=SOON).text == "ok"
    assert starts == [ref.key, ref.key]


def test_crashes_at_every_moment_of_a_busy_run(rt: Runtime) -> None:
    """Tools, approvals, retries and text, with a crash right behind each kind of event in turn: always the same end."""

    @tool(replay="safe")
    def work(number: int) -> str:
        """Work."""
        return f"{number}"

    @tool
    async def think() -> str:
        """Think."""
        await asyncio.sleep(0)
        return "thought"

    def script() -> ScriptedProvider:
        def answer(request: Any) -> Any:
            answered = sum(message.role == "tool" for message in request.messages)
            return [say("so", chunks=2), call("work", number=answered), call("think")] if answered < 3 else "end"

        return ScriptedProvider(answer)

    moments = [
        "run.queued", "turn.started", "model.started", "model.delta", "model.finished", "message.appended",
        "tool.requested", "tool.started", "tool.finished", "turn.finished", "usage.updated",
    ]  # fmt: skip
    for moment in moments:
        ref = rt.start(scout(script(), tools=[work, think]), key=f"at/{moment}")
        with rt.subscribe(moment, key=ref.key) as at:
            handle = ref.send("go")
            at.get(SOON)
            crash_and_return(ref, rt)
        result = handle.result(SOON)
        assert (result.status, result.text) == ("completed", "end"), (moment, result)
        assert [record.name for record in result.tool_calls] == ["work", "think"] * 3, moment
        assert_valid(ref)


def test_the_log_of_a_crash_reads_well(rt: Runtime) -> None:
    """`agent.crashed`, then `agent.restarted` and `agent.started`, with the counts a monitor shows."""
    ref = rt.start(scout(ScriptedProvider(lambda request: "ok")), key="k")
    with rt.subscribe("agent.*", key="k", after=0) as seen:
        seen.get(SOON)
        crash_and_return(ref, rt, ValueError("why"))
        told = _take(seen, 3)
    assert [event.type for event in told] == ["agent.crashed", "agent.restarted", "agent.started"]
    crashed, restarted, started = told
    assert isinstance(crashed, events.AgentCrashed)
    assert (crashed.error_type, crashed.error) == ("ValueError", "why")
    assert isinstance(restarted, events.AgentRestarted)
    assert restarted.restarts == 1
    assert 0 <= restarted.delay <= 0.1
    assert isinstance(started, events.AgentStarted)
    assert (started.recovered, started.incarnation) == (True, 2)


def _take(subscription: Subscription, count: int) -> list[events.Event]:
    return [subscription.get(SOON) for _ in range(count)]


def test_a_forgotten_key_starts_with_a_clean_record(rt: Runtime) -> None:
    """Crashes of an agent that is gone do not count against the next one of its key."""
    agent = scout(ScriptedProvider(lambda request: "ok"))
    for _ in range(2):
        ref = rt.start(agent, key="k")
        for _ in range(5):
            crash_and_return(ref, rt)
        assert ref.ask("hi", timeout=SOON).text == "ok"
        rt.forget("k")
        with rt.subscribe("custom") as looked:  # forgetting is done on the core loop, soon
            rt.publish("look")
            looked.get(SOON)


def test_an_agent_that_is_forgotten_while_it_works_does_not_come_back(rt: Runtime) -> None:
    """Its run ends, its log is dropped, and nothing is written under its key any more."""
    held = gate("never")
    ref = rt.start(scout(ScriptedProvider(lambda request: held)), key="k")
    handle = ref.send("hi")
    assert held.reached()
    system = rt._system  # pyright: ignore[reportPrivateUsage]
    system.forget("k").result(SOON)
    for _ in range(20):
        with rt.subscribe("custom") as looked:
            rt.publish("look")
            looked.get(SOON)
    assert not system.journal.read("k")
    assert rt.agents() == []
    with pytest.raises(NotFound):
        handle.done()
