"""Edges of the journal that were once wrong: names and times that no store holds, agents that are gone, marks, forks."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, let_sleep, log_of, wait_for

from nitinol import Agent, Approval, Delta, ModelRequest, Prices, Runtime, tool
from nitinol.actors.agent_actor import Crash
from nitinol.errors import ConfigurationError
from nitinol.http import Http
from nitinol.journal.audit import audit
from nitinol.journal.blobs import LARGE
from nitinol.journal.read_only import ReadOnlyJournal
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


def hi(request: ModelRequest) -> Answer:
    return "hi"


SCOUT = Agent(name="scout", model=ScriptedProvider(hi))


@pytest.mark.parametrize("name", ["", 5, b"x", 1.5, ("a",), "a\ud800", "\ud800"])
def test_names_that_no_store_holds_are_refused(path: Path, name: Any) -> None:
    """Before anything is written: a log would hold them for ever, and could not be read again."""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(SCOUT, key="k")
        with pytest.raises(ConfigurationError, match=r"run_id=.* must be a str of Unicode characters"):
            ref.send("hi", run_id=name)
        with pytest.raises(ConfigurationError, match=r"key=.* must be a str of Unicode characters"):
            rt.start(SCOUT, key=name)
        handle = ref.send("hi")
        handle.result(SOON)
        with pytest.raises(ConfigurationError, match=r"by=.* must be a str"):
            handle.cancel(by=name)
        assert ref.status().incarnation == 1
        assert_valid(ref)


@pytest.mark.parametrize("seconds", [1e10, 1e300, math.inf])
def test_a_time_that_no_store_holds_is_far_away(path: Path, seconds: float) -> None:
    """An approval without end stops neither its agent nor the store."""

    @tool(approval=Approval(timeout=seconds))
    def launch() -> str:
        """Launch it."""
        return "launched"

    def script(request: ModelRequest) -> Answer:
        return "done" if request.messages[-1].role == "tool" else call("launch", call_id="c")

    agent = Agent(name="patient", model=ScriptedProvider(script), tools=[launch])
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        handle = rt.start(agent, key="k").send("go")
        wait_for(pauses, "run.paused")
        let_sleep(rt)
        assert rt.start(SCOUT, key="other").ask("hi", timeout=SOON).text == "hi"
        handle.approve("c")
        assert handle.result(SOON).text == "done"


def test_words_that_look_like_a_mark_stay_words(path: Path) -> None:
    """Whatever a user writes beside a large part is not taken for its place."""
    large = "A" * (LARGE + 1)
    mark = "\x00blob:" + hashlib.sha256(large.encode()).hexdigest()
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(SCOUT, key="k")
        ref.ask([large, mark], timeout=SOON)
        let_sleep(rt)
        assert [getattr(part, "text", "") for part in ref.history()[0].parts] == [large, mark]
        ref.ask(mark, timeout=SOON)
        let_sleep(rt)
        assert ref.history()[2].text == mark
    assert audit(path).faults == []


def test_forgetting_keeps_the_large_parts_of_others(path: Path) -> None:
    """One that two agents have stays; one that only the forgotten had goes."""
    shared, own = "S" * (LARGE + 1), "O" * (LARGE + 1)
    with Runtime(path, drain=0.0) as rt:
        rt.start(SCOUT, key="gone").ask([shared, own], timeout=SOON)
        rt.start(SCOUT, key="stays").ask(shared, timeout=SOON)
        rt.forget("gone")
        let_sleep(rt)
        assert rt.get("stays").history()[0].text == shared
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM blobs").fetchone() == (1,)
    connection.close()
    assert audit(path).faults == []


def test_what_was_forgotten_is_in_no_file(path: Path) -> None:
    """Nor in the log that SQLite writes ahead."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(SCOUT, key="k").ask("TOPSECRETWORD", timeout=SOON)
        rt.forget("k")
        assert rt.start(SCOUT, key="other").ask("hi", timeout=SOON).text == "hi"
        for file in path.parent.iterdir():
            assert b"TOPSECRETWORD" not in file.read_bytes(), file


class Shows(ScriptedProvider):
    """Shows a word, and hangs."""

    def __init__(self) -> None:
        super().__init__([])

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[Any]:
        yield Delta("text", "half a word")
        await asyncio.Event().wait()


def test_the_words_of_one_who_is_gone_are_shown_to_nobody(path: Path) -> None:
    """Who joins late is given the text so far of attempts in progress, and of no others."""
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(Agent(name="slow", model=Shows()), key="k")
        with rt.subscribe("model.delta", key="k") as deltas:
            ref.send("go")
            wait_for(deltas, "model.delta")
        rt.forget("k")
        with rt.subscribe("model.delta", "custom") as late:
            rt.publish("marker")
            assert late.get(SOON).type == "custom"


def test_an_agent_that_is_being_parked_can_be_forgotten(path: Path) -> None:
    """Whatever its supervisor does at that moment, nothing of it is written into the key's next life."""
    with Runtime(path, drain=0.0) as rt:
        for number in range(20):
            ref = rt.start(SCOUT, key=f"k{number}")
            ref.ask("hi", timeout=SOON)
            for _ in range(5):
                crash(ref)
                ref.resume()
                ref.ask("hi", timeout=SOON)
            cell = ref._cell  # pyright: ignore[reportPrivateUsage]
            rt._system.core.call(cell.tell, Crash(RuntimeError("the sixth")))  # pyright: ignore[reportPrivateUsage]
            rt.forget(ref.key)
            again = rt.start(SCOUT, key=ref.key)
            assert again.ask("new", timeout=SOON).text == "hi"
            types = [event.type for event in log_of(again)]
            assert types[0] == "agent.started"
            assert not {"agent.crashed", "agent.parked"} & set(types)


def test_a_forked_child_does_not_keep_the_store(path: Path) -> None:
    """A lock would live on in it after its parent was killed. rule 4"""
    code = (
        "import os, sys\nfrom nitinol import Runtime\nrt = Runtime(sys.argv[1])\nchild = os.fork()\n"
        "if child: print(child, flush=True)\nsys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        owner.kill()
        owner.wait(SOON)
        Runtime(path).stop()
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        owner.communicate(timeout=SOON)


def test_a_getter_never_tells_of_an_agent_without_a_past(path: Path) -> None:
    """However often it falls asleep between the looks."""
    with Runtime(path, drain=0.0, idle=None) as rt:
        ref = rt.start(SCOUT, key="k")
        ref.ask("hi", timeout=SOON)
        done = threading.Event()

        def lull() -> None:
            while not done.is_set():
                let_sleep(rt)

        lulling = threading.Thread(target=lull)
        lulling.start()
        try:
            assert all(len(ref.history()) == 2 and len(ref.messages()) == 2 for _ in range(300))
        finally:
            done.set()
            lulling.join(SOON)


def test_the_pending_approvals_of_one_that_was_just_opened_are_known(path: Path) -> None:
    """After a restart, a list of what waits for a person is whole."""

    @tool(approval=True)
    def launch() -> str:
        """Launch it."""
        return "launched"

    agent = Agent(name="launcher", model=ScriptedProvider(lambda _: call("launch", call_id="c")), tools=[launch])
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        rt.start(agent, key="k").send("go")
        wait_for(pauses, "run.paused")
    with Runtime(path, agents=[agent], drain=0.0) as rt:
        assert [pending.call_id for pending in rt.get("k").pending_approvals()] == ["c"]


OLD_HEADS = (
    "CREATE TABLE heads (key TEXT PRIMARY KEY, agent TEXT NOT NULL, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, "
    "open_runs INTEGER NOT NULL, parked INTEGER NOT NULL, base_seq INTEGER NOT NULL) WITHOUT ROWID"
)


def test_a_store_of_the_first_schema_is_brought_up_to_date(path: Path) -> None:
    """Its log is kept, and what stands beside it is made from it: heads, timers, the bill; epochs go on."""

    @tool(approval=Approval(timeout=3600))
    def launch() -> str:
        """Launch it."""
        return "launched"

    def script(request: ModelRequest) -> Answer:
        return "done" if request.messages[-1].role == "tool" else call("launch", call_id="c")

    agent = Agent(name="launcher", model=ScriptedProvider(script), tools=[launch])
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.paused") as pauses:
        rt.start(SCOUT, key="done").ask("hi", timeout=SOON)
        handle = rt.start(agent, key="waits").send("go")
        wait_for(pauses, "run.paused")
    with sqlite3.connect(path) as connection:  # as the first version wrote it
        heads = connection.execute("SELECT key, agent, seq, epoch, open_runs, 0, base_seq FROM heads").fetchall()
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name in ("heads", "timers", "scopes", "blobs", "blob_uses", "snapshots"):
                connection.execute(f"DROP TABLE {name}")
        connection.execute("ALTER TABLE events DROP COLUMN blobs")
        connection.execute(OLD_HEADS)
        connection.executemany("INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", heads)
        connection.execute("UPDATE meta SET value = '1' WHERE name = 'schema'")
    connection.close()
    Runtime(path, drain=0.0).stop()
    found = audit(path)
    assert (found.faults, found.agents) == ([], 2)
    with Runtime(path, agents=[SCOUT, agent], drain=0.0) as rt:
        rt.handle(handle.run_id).approve("c")
        assert rt.handle(handle.run_id).result(SOON).text == "done"
        assert len(rt.get("done").history()) == 2
        assert_valid(rt.get("waits"))


def test_a_store_of_the_second_schema_is_brought_up_to_date(path: Path) -> None:
    """What an attempt in flight has reserved is read from its log."""
    began = threading.Event()

    def script(request: ModelRequest) -> Answer:
        began.set()
        return gate("never")

    model = ScriptedProvider(script, prices=Prices(input="3", output="15"), max_output_tokens=500)
    agent = Agent(name="spender", model=model)
    rt = Runtime(path, agents=[agent], drain=0.0)
    rt.start(agent, key="k").send("go")
    assert began.wait(SOON)
    copy = path.with_name("copy.db")  # as a process that dies now leaves it
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(copy)) as there:
        connection.backup(there)
    rt.stop()
    with closing(sqlite3.connect(copy)) as connection:  # as the second version wrote it
        connection.execute("DROP INDEX heads_reserved")
        connection.execute("ALTER TABLE heads DROP COLUMN reserved")
        connection.execute("UPDATE meta SET value = '2' WHERE name = 'schema'")
        connection.commit()
    Runtime(copy, drain=0.0).stop()
    assert audit(copy).faults == []
    journal = ReadOnlyJournal(copy)
    (head,) = journal.heads(reserved=True)
    journal.close()
    assert head.reserved is not None
    assert head.reserved.usd > 500 * Decimal("0.000015")


@pytest.mark.parametrize("seconds", [0, -5, math.nan, "soon"])
def test_the_time_of_an_approval_is_seconds(seconds: Any) -> None:
    """Or None: for ever."""
    with pytest.raises(ConfigurationError, match="must be more than 0 seconds"):
        Approval(timeout=seconds)


def test_one_key_is_one_agent_whoever_forgets_and_starts_it(path: Path) -> None:
    """A start that races with a forgetting begins with the live cell, or with another: never with one that is gone."""
    with Runtime(path, drain=0.0) as rt:
        done, seen = threading.Event(), set[Any]()

        def start() -> None:
            while not done.is_set():
                seen.add(rt.start(SCOUT, key="k")._cell)  # pyright: ignore[reportPrivateUsage]

        starting = threading.Thread(target=start)
        starting.start()
        try:
            for _ in range(60):
                rt._system.forget("k").result(SOON)  # pyright: ignore[reportPrivateUsage]
        finally:
            done.set()
            starting.join(SOON)
        live = rt.start(SCOUT, key="k")._cell  # pyright: ignore[reportPrivateUsage]
        assert {cell.life for cell in seen if cell is not live} <= {"stopped"}
        assert rt.start(SCOUT, key="k").ask("hi", timeout=SOON).text == "hi"
