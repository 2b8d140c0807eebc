"""A clean stop suspends what is open, and the next runtime goes on; cursors outlive the process, too."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of, types_of

from nitinol import Agent, ModelRequest, Runtime, tool
from nitinol.env import Env
from nitinol.errors import NotFound, RuntimeStopped
from nitinol.journal.sqlite import SqliteJournal
from nitinol.testing import Answer, ScriptedProvider, call, gate, say


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


def scout(script: Any, **options: Any) -> Agent[str]:
    return Agent(name="scout", model=ScriptedProvider(script), **options)


def greet(request: ModelRequest) -> Answer:
    """The same for everybody."""
    return say("hi", chunks=3)


class Clock(Env):
    """A clock that the test sets forward between two runtimes."""

    ahead = 0

    def now(self) -> int:
        return super().now() + self.ahead


def test_an_open_run_is_suspended_and_goes_on(path: Path) -> None:
    """No `run.finished`; waiters are told; the next runtime resumes it by itself and counts no recovery. rule 7"""
    held = gate("never")
    with ThreadPoolExecutor(1) as pool:
        with Runtime(path, drain=0.0) as rt:
            ref = rt.start(scout([held]), key="k")
            handle = ref.send("hi")
            queued = ref.send("second")
            waiting = pool.submit(handle.result)
            assert held.reached()
        with pytest.raises(RuntimeStopped):
            waiting.result(SOON)
    with pytest.raises(RuntimeStopped):
        handle.result(SOON)
    with Runtime(path, agents=[scout(["one", "two"])], drain=0.0) as rt:
        assert rt.handle(handle.run_id).result(SOON).text == "one"
        assert rt.handle(queued.run_id).result(SOON).text == "two"
        ref = rt.get("k")
        log = log_of(ref)
        assert [event.recoveries for event in log if event.type == "run.resumed"] == [0]
        assert [message.text for message in ref.history()] == ["hi", "one", "second", "two"]
        assert_valid(ref)


def test_however_often_it_is_suspended(path: Path) -> None:
    """A run that is at work in five clean stops is not sealed. rule 7"""
    with Runtime(path, drain=0.0) as rt:
        held = gate("never")
        run_id = rt.start(scout([held]), key="k").send("hi").run_id
        assert held.reached()
    for _ in range(4):
        held = gate("never")
        with Runtime(path, agents=[scout([held])], drain=0.0):
            assert held.reached()
    with Runtime(path, agents=[scout(["end"])], drain=0.0) as rt:
        assert rt.handle(run_id).result(SOON).status == "completed"
        assert_valid(rt.get("k"))


def test_draining_lets_short_runs_finish(path: Path) -> None:
    """Leaving `with` waits for what ends within `drain` seconds."""
    held = gate("end")
    with ThreadPoolExecutor(1) as pool:
        with Runtime(path, drain=SOON) as rt:
            ref = rt.start(scout([held]), key="k")
            handle = ref.send("hi")
            assert held.reached()
            released = pool.submit(held.release)
        released.result(SOON)
    assert handle.result(SOON).text == "end"


def test_a_tool_that_runs_at_a_clean_stop(path: Path) -> None:
    """Its end is not the stop's to tell: a safe one runs again, another is uncertain. rule 6"""
    started = threading.Barrier(3, timeout=SOON)
    ran: list[str] = []

    def tools(waits: bool) -> list[Any]:
        @tool(replay="safe")
        async def look() -> str:
            """Look."""
            return await work("look", waits)

        @tool
        async def pay() -> str:
            """Pay."""
            return await work("pay", waits)

        return [look, pay]

    async def work(name: str, waits: bool) -> str:
        import asyncio

        ran.append(name)
        if waits:
            await asyncio.to_thread(started.wait)
            await asyncio.Event().wait()
        return f"{name} done"

    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout([[call("look"), call("pay")]], tools=tools(True)), key="k")
        run_id = ref.send("hi").run_id
        started.wait()
    with Runtime(path, agents=[scout(["end"], tools=tools(False))], drain=0.0) as rt:
        result = rt.handle(run_id).result(SOON)
        assert [(record.name, record.outcome) for record in result.tool_calls] == [("look", "ok"), ("pay", "uncertain")]
        assert sorted(ran) == ["look", "look", "pay"]
        assert_valid(rt.get("k"))


@pytest.mark.parametrize("waits", [0.0, 50.0])
def test_the_deadline_does_not_count_while_no_process_runs(path: Path, waits: float) -> None:
    """An hour between two processes is not the run's; what it takes afterwards is. rule 10"""
    held = gate("never")
    with Runtime(path, drain=0.0) as rt:
        run_id = rt.start(scout([held], deadline=30.0), key="k").send("hi").run_id
        assert held.reached()
    clock = Clock()
    clock.ahead = 3_600_000_000_000
    answer = gate(call("nothing"))
    with Runtime(path, agents=[scout([answer, "end"], deadline=30.0)], drain=0.0, env=clock) as rt:
        assert answer.reached()
        clock.ahead += int(waits * 1e9)
        answer.release()
        expected = "deadline_exceeded" if waits else "completed"
        assert rt.handle(run_id).result(SOON).status == expected
        assert_valid(rt.get("k"))


def test_a_cursor_outlives_the_process(path: Path) -> None:
    """`after=` of the first runtime goes on in the next ones, without a gap or a double."""
    seen: list[tuple[str, int]] = []
    cursor = 0
    for life in range(5):
        with Runtime(path, drain=0.0) as rt, rt.subscribe(after=cursor) as events:
            refs = [rt.start(scout(greet), key=f"k{number}") for number in range(3)]
            for ref in refs:
                ref.ask("hi", timeout=SOON)
            for _ in range(10 + 5 * life):  # it leaves in the middle
                event = events.get(SOON)
                cursor = event.position
                if event.durable:
                    seen.append((event.key, event.seq))
    with Runtime(path, drain=0.0) as rt:
        end = rt._system.journal.position  # pyright: ignore[reportPrivateUsage]
        with rt.subscribe(after=cursor) as events:
            while cursor < end:
                event = events.get(SOON)
                cursor = event.position
                seen.append((event.key, event.seq))
        for number in range(3):
            ref = rt.start(scout(["never"]), key=f"k{number}")
            mine = [seq for key, seq in seen if key == ref.key]
            committed = [log["seq"] for log in ref.snapshot()["events"] if log["incarnation"] <= 5]
            assert mine[: len(committed)] == committed


def test_a_live_subscriber_of_a_second_process_starts_where_the_first_ended(path: Path) -> None:
    """Ephemeral events carry the position of the stream from the first one on, not 0."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(scout(["hi"]), key="k").ask("hi", timeout=SOON)
        end = len(types_of(rt.get("k")))
    with Runtime(path, drain=0.0) as rt, rt.subscribe("custom") as live:
        rt.publish("first")
        assert live.get(SOON).position > end


@tool(approval=True)
def launch(where: str) -> str:
    """Launch it."""
    return f"landed on {where}"


def flight(request: ModelRequest) -> Answer:
    """Asks for the launch, then tells of it."""
    return "done" if request.messages[-1].role == "tool" else call("launch", call_id="c", where="the moon")


PILOT = Agent(name="pilot", model=ScriptedProvider(flight), tools=[launch], deadline=60.0)


@pytest.fixture
def waiting(path: Path) -> str:
    """Runs of two agents that wait for an approval since the last process, one with another behind it; the first's id."""
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        run_id = rt.start(PILOT, key="pilot/1").send("go").run_id
        rt.start(PILOT, key="pilot/2").send("go")
        for _ in range(2):
            pauses.get(SOON)
        rt.get("pilot/1").send("and again")
        rt.start(scout(["hi"]), key="scout/1").ask("hi", timeout=SOON)
    return run_id


@pytest.mark.parametrize("start", [False, True])
def test_the_run_of_one_that_is_being_opened_is_known(
    path: Path, waiting: str, start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its log takes to read: the store's head tells, and the run can be approved at once."""
    opens: list[Any] = []
    open_now = SqliteJournal.open

    def open_later(*args: Any) -> None:
        opens.append(args)

    monkeypatch.setattr(SqliteJournal, "open", open_later)
    with Runtime(path, agents=[PILOT], drain=0.0) as rt:
        ref = rt.start(PILOT, key="pilot/1") if start else rt.get("pilot/1")
        status = ref.status()
        assert (status.state, status.run_id, status.pending_count, status.message_count) == ("starting", waiting, 1, 2)
        assert status.usage.output_tokens
        assert status.last_event_at
        assert [pending.call_id for pending in ref.pending_approvals()] == ["c"]
        assert rt.pending_approvals("*/1").keys() == {"pilot/1"}
        assert ref.current is not None
        monkeypatch.undo()
        with ThreadPoolExecutor(1) as pool:
            approved = pool.submit(ref.current.approve, "c", by="kim")
            for args in opens:
                rt._system.core.call(open_now, *args)  # pyright: ignore[reportPrivateUsage] # the loop that opens
            approved.result(SOON)
        assert rt.handle(waiting).result(SOON).text == "done"


def test_a_key_of_another_agent_has_no_run_for_this_one(path: Path, waiting: str) -> None:
    """It is about to be parked."""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(["hi"]), key="pilot/1")
        assert (ref.current, ref.status().agent, ref.status().run_id) == (None, "scout", None)


def test_all_that_wait_for_a_person_are_found_after_a_restart(path: Path, waiting: str) -> None:
    """Without opening one; beside the owner, too, and without definitions."""
    with Runtime(path, agents=[PILOT], drain=0.0) as rt:
        for found in (rt.pending_approvals(), asyncio.run(rt.apending_approvals())):
            assert {key: [each.arguments for each in calls] for key, calls in found.items()} == {
                "pilot/1": [{"where": "the moon"}],
                "pilot/2": [{"where": "the moon"}],
            }
        assert list(rt.pending_approvals("*/2")) == ["pilot/2"]
        assert rt.agents() == [], "nobody was opened"
        with Runtime(path, read_only=True) as beside:
            assert beside.pending_approvals() == rt.pending_approvals()
        for key, calls in rt.pending_approvals("*/2").items():
            handle = rt.get(key).current
            assert handle is not None
            handle.approve(calls[0].call_id)
            assert handle.result(SOON).text == "done"
        assert list(rt.pending_approvals()) == ["pilot/1"]
    with Runtime(path, drain=0.0) as rt:
        assert list(rt.pending_approvals()) == ["pilot/1"], "no definition is needed to look"
        with pytest.raises(
            NotFound, match="an agent 'pilot' in the store, whose definition is not known here; give it"
        ):
            rt.get("pilot/1")
        with pytest.raises(NotFound, match="no agent lives at 'pilot/3'"):
            rt.get("pilot/3")
    assert waiting


def test_what_waits_in_memory_is_found() -> None:
    """Live agents alone."""
    with Runtime() as rt, rt.subscribe("run.paused") as pauses:
        rt.start(PILOT, key="pilot/1").send("go")
        rt.start(scout(["hi"]), key="scout/1")
        pauses.get(SOON)
        assert [(key, calls[0].name) for key, calls in rt.pending_approvals().items()] == [("pilot/1", "launch")]
