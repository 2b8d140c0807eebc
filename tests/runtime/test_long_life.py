"""Long lives and many agents: what a turn costs does not grow with what came before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.logs_of import SOON, let_sleep, wait_for
from tests.runtime.test_sqlite_journal import scout

from nitinol import Agent, ModelRequest, Runtime, tool
from nitinol.actors.bus import PAGE
from nitinol.env import Env, Loop
from nitinol.events import EventBase
from nitinol.journal import Journal, MemoryJournal
from nitinol.testing import Answer, ScriptedProvider, call


class Counting(MemoryJournal):
    """Counts the events that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        events = super().read(key, after_seq, limit)
        self.counted += len(events)
        return events


@tool(replay="safe")
def step(number: int) -> str:
    """Take a step."""
    return f"step {number}"


def stepping(request: ModelRequest) -> Answer:
    return call("step", number=request.turn) if request.turn <= 60 else "done"


def test_waiting_for_a_run_reads_its_log_once() -> None:
    """Whether a run has ended, its agent's state says; only its result is read."""
    journal = Counting()

    def store(env: Env, core: Loop) -> Journal:
        return journal

    agent = Agent(name="walker", model=ScriptedProvider(stepping), tools=[step], max_turns=100)
    with Runtime(store) as rt:
        ref = rt.start(agent, key="k")
        handle = ref.send("walk")
        assert not handle.done() or ref.status().state == "idle"
        result = handle.result(SOON)
        assert len(result.tool_calls) == 60
        length = len(MemoryJournal.read(journal, "k"))
        assert journal.counted <= length + PAGE
        before = journal.counted
        assert handle.done()
        assert journal.counted == before


def test_the_result_of_an_early_run_does_not_read_what_came_later() -> None:
    """A handle that was kept for years reads its own run, and a page at most beyond it."""
    journal = Counting()

    def store(env: Env, core: Loop) -> Journal:
        return journal

    with Runtime(store) as rt:
        ref = rt.start(scout(), key="k")
        early = ref.send("first")
        early.result(SOON)
        for _ in range(2 * PAGE // 10):
            ref.ask("more", timeout=SOON)
        before = journal.counted
        assert early.result(SOON).text == "hi"
        assert journal.counted - before <= PAGE


def test_hundreds_sleep_and_stop_a_few_at_a_time(tmp_path: Path) -> None:
    """All do, in good order; the store says so."""
    with Runtime(tmp_path / "agents.db", drain=0.0, idle=None) as rt:
        with rt.subscribe("agent.started") as up:
            refs = [rt.start(scout(), key=f"k{number:03}") for number in range(250)]
            wait_for(up, "agent.started", count=250)
        cells = rt._system.cells.values()  # pyright: ignore[reportPrivateUsage]
        for _ in range(250):
            let_sleep(rt)
            if all(cell.life == "asleep" for cell in cells):
                break
        else:
            raise AssertionError([cell.key for cell in cells if cell.life != "asleep"])
        assert refs[7].ask("hi", timeout=SOON).text == "hi"
        for ref in refs[100:]:
            ref.send("hi")
    with Runtime(tmp_path / "agents.db", drain=0.0, agents=[scout()]) as rt:
        for key in ("k007", "k100", "k249"):
            assert rt.get(key).history()[0].text == "hi"
        heads = rt._system.journal.heads()  # pyright: ignore[reportPrivateUsage]
        assert len(heads) == 250
