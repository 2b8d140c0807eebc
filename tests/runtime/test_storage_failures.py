"""A store that fails: agents are suspended or refused with a clear error, and go on when it is mended."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, log_of

from nitinol import Agent, Hooks, Message, ModelRequest, Runtime, tool
from nitinol.env import Env, Loop
from nitinol.errors import StorageFailed
from nitinol.events import EventBase
from nitinol.hooks import HookContext
from nitinol.inputs import Look, Send
from nitinol.journal import MemoryJournal
from nitinol.journal.base import Committed
from nitinol.journal.schema import LocalDisk
from nitinol.journal.sqlite import SqliteJournal
from nitinol.messages import Text
from nitinol.result import RunResult
from nitinol.state import AgentState, BrokenLog
from nitinol.testing import Answer, ScriptedProvider, call, gate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


def scout() -> Agent[str]:
    def hi(request: ModelRequest) -> Answer:
        return "hi"

    return Agent(name="scout", model=ScriptedProvider(hi))


class Connection(sqlite3.Connection):
    """Fails as its disk says."""

    disk: FailingDisk

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if self.disk.fault is not None:
            self.disk.fault(super(), sql)
        return super().execute(sql, *values)


class FailingDisk(LocalDisk):
    """A disk whose writer meets a fault, while there is one."""

    fault: Callable[[Any, str], object] | None = None

    def connect(self, path: Path, *, read_only: bool = False) -> sqlite3.Connection:
        if read_only:
            return super().connect(path, read_only=True)
        connection = sqlite3.connect(
            path, timeout=0.01, isolation_level=None, check_same_thread=False, factory=Connection
        )
        connection.disk = self
        return connection

    def runtime(self, path: Path) -> Runtime:
        def journal(env: Env, core: Loop) -> SqliteJournal:
            return SqliteJournal(path, env, core, disk=self)

        return Runtime(journal, drain=0.0)


@contextmanager
def io_error(disk: FailingDisk, path: Path) -> Generator[None]:
    """The disk does not take the commit."""

    def fail(connection: Any, sql: str) -> None:
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error

    disk.fault = fail
    yield
    disk.fault = None


@contextmanager
def read_only(disk: FailingDisk, path: Path) -> Generator[None]:
    """The file may not be written any more."""

    def forbid(connection: Any, sql: str) -> None:
        connection.execute("PRAGMA query_only = ON")

    disk.fault = forbid
    yield
    disk.fault = None


@contextmanager
def busy(disk: FailingDisk, path: Path) -> Generator[None]:
    """Another program holds the file's lock."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


class Heard(logging.Handler):
    """Whether the journal said that it cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "the journal cannot write" in record.getMessage():
            self.failed.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    logging.getLogger("nitinol").addHandler(heard)
    yield heard
    logging.getLogger("nitinol").removeHandler(heard)


@pytest.mark.parametrize("fault", [io_error, read_only, busy])
def test_a_failing_store_suspends_all_and_loses_nothing(path: Path, heard: Heard, fault: Any) -> None:
    """Nothing is acknowledged meanwhile, no crash is counted, and all go on by themselves once it is mended. rule 9"""
    disk = FailingDisk()
    with disk.runtime(path) as rt, ThreadPoolExecutor(4) as pool:
        refs = [rt.start(scout(), key=str(number)) for number in range(4)]
        for ref in refs:
            ref.ask("before", timeout=SOON)
        with fault(disk, path):
            asked = [pool.submit(ref.send, "meanwhile", run_id=f"run-{ref.key}") for ref in refs]
            assert heard.failed.wait(SOON)
            assert not any(future.done() for future in asked)
            assert [len(ref.history()) for ref in refs] == [2] * 4
        assert [future.result(SOON).result(SOON).text for future in asked] == ["hi"] * 4
        for ref in refs:
            log = log_of(ref)
            assert not any(event.type == "agent.crashed" for event in log)
            assert [event.recoveries for event in log if event.type == "run.resumed"] in ([], [0])
            assert_valid(ref)
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        assert [len(rt.get(str(number)).history()) for number in range(4)] == [4] * 4


class Unreadable(MemoryJournal):
    """Its log cannot be read twice, once a run has ended."""

    left = 2

    def read(self, key: str, after_seq: int = 0, limit: int | None = None) -> Sequence[EventBase]:
        events = super().read(key, after_seq, limit)
        if self.left and any(event.type == "run.finished" for event in events):
            self.left -= 1
            raise StorageFailed("a simulated failure")
        return events


class Noting(Hooks):
    """Notes which runs have ended."""

    def __init__(self) -> None:
        self.ended: SimpleQueue[str] = SimpleQueue()

    def after_run(self, ctx: HookContext, result: RunResult[Any]) -> None:
        self.ended.put(result.text)


def test_a_log_that_cannot_be_read_for_a_hook_is_no_crash() -> None:
    """`after_run` waits until the result can be read; the agent is not restarted. rule 9, seed 467 of the simulator"""
    journal, noting = Unreadable(), Noting()
    with Runtime(lambda env, core: journal, drain=0.0) as rt:
        ref = rt.start(scout().replace(hooks=[noting]))
        ref.send("hello")
        assert noting.ended.get(timeout=SOON) == "hi"
        assert not any(event.type == "agent.crashed" for event in log_of(ref))


class Refusing(MemoryJournal):
    """Its store fails at the first commit with an event of a type."""

    def __init__(self, type: str) -> None:
        super().__init__()
        self._type: str | None = type

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        if any(event.type == self._type for event in events):
            self._type = None
            committed(StorageFailed("a simulated failure"))
        else:
            super().append(key, epoch, events, state, committed)


def test_a_tool_whose_start_was_not_committed_starts_again() -> None:
    """The store failed at its `tool.started`: its slot is given back, and the next incarnation asks for one anew. Seed 33."""

    @tool
    def work() -> str:
        return "done"

    script = ScriptedProvider([call("work"), "end"])
    with Runtime(lambda env, core: Refusing("tool.started"), drain=0.0, workers=1) as rt:
        ref = rt.start(Agent(name="scout", model=script, tools=[work]))
        assert ref.ask("hello", timeout=SOON).text == "end"


class Holding(MemoryJournal):
    """Holds the first `run.queued` back until the test says how its commit went."""

    held: Callable[[Exception | None], object] | None = None

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        commit = partial(super().append, key, epoch, events, state, committed)
        if self.held is None and any(event.type == "run.queued" for event in events):
            self.held = lambda error: commit() if error is None else committed(error)
        else:
            commit()


@pytest.mark.parametrize("error", [None, StorageFailed("a simulated failure")])
def test_what_rests_on_an_uncommitted_decision_is_not_acknowledged(error: Exception | None) -> None:
    """A run that is sent twice is accepted twice by one commit, and by none before it. rule 1, seed 789 of the simulator"""
    journal = Holding()
    with Runtime(lambda env, core: journal, drain=0.0) as rt:
        ref = rt.start(scout())
        core, cell = rt._system.core, ref._cell  # pyright: ignore[reportPrivateUsage]
        prompt = Message(role="user", parts=(Text("hello"),))
        cell.submit(Look()).result(SOON)
        sends = [cell.submit(Send(run_id="once", prompt=prompt)) for _ in range(2)]
        handled = threading.Event()
        core.call(core.call, handled.set)
        assert handled.wait(SOON)
        assert journal.held is not None
        assert not any(send.done() for send in sends)
        core.call(journal.held, error)
        for send in sends:
            send.result(SOON)
        assert rt.handle("once").result(SOON).text == "hi"
        assert [event.type for event in log_of(ref)].count("run.queued") == 1


def test_a_timer_that_is_no_time_silences_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and the timers are looked at again, within a minute."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(scout(), key="k").ask("hello", timeout=SOON)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO timers (key, due) VALUES ('k', 'soon')")
    connection.close()
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        system, rung = rt._system, threading.Event()  # pyright: ignore[reportPrivateUsage]
        system.core.call(rung.set)  # behind the first look, which the start has asked for
        assert rung.wait(SOON)
        assert "the timers cannot be read" in caplog.text
        assert system.alarm is not None


def test_a_broken_page_costs_its_agent_and_no_other(path: Path) -> None:
    """It is refused, with the way out, until the file is mended; then it goes on with all it had."""
    with Runtime(path, drain=0.0) as rt:
        for key in ("broken", "whole"):
            for _ in range(20):
                rt.start(scout(), key=key).ask("x" * 400, timeout=SOON)
    sound = path.with_name("sound.db")
    shutil.copy(path, sound)
    with sqlite3.connect(path) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        try:
            select = "SELECT pageno FROM dbstat WHERE name = 'events' AND pagetype = 'leaf' ORDER BY pageno LIMIT 4"
            pages = [page for (page,) in connection.execute(select)]
        except sqlite3.OperationalError:  # a SQLite without dbstat: the first pages are of the first agent's log
            root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()[0]
            pages = [root + 30, root + 31]
    connection.close()
    with path.open("r+b") as file:
        for page in pages[1:3]:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        with pytest.raises(
            BrokenLog, match=r"agent 'broken': its log cannot be read: .*malformed; restore it from a backup"
        ):
            rt.start(scout(), key="broken").ask("hi", timeout=SOON)
        assert rt.get("broken").status().state == "parked"
        assert rt.get("whole").ask("hi", timeout=SOON).text == "hi"
        reader = rt.subscribe(after=0)
        with pytest.raises(StorageFailed, match=r"agents\.db' cannot be read: .*malformed; restore it from a backup"):
            reader.get(SOON)
    shutil.copy(sound, path)
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        assert len(rt.get("broken").history()) == 40
        assert rt.get("broken").ask("hi", timeout=SOON).text == "hi"


def test_an_input_whose_commit_was_told_as_failed_is_delivered_once(path: Path) -> None:
    """The disk took it, and said that it did not: it is not accepted a second time. rule 2"""
    disk, held = FailingDisk(), gate("late")

    def fail(connection: Any, sql: str) -> None:
        if sql == "COMMIT":
            disk.fault = None
            connection.execute("COMMIT")
            raise sqlite3.OperationalError("disk I/O error")

    def script(request: ModelRequest) -> Answer:
        return held if request.turn == 1 else "done"

    with disk.runtime(path) as rt:
        ref = rt.start(Agent(name="scout", model=ScriptedProvider(script)), key="k")
        handle = ref.send("go")
        assert held.reached()
        disk.fault = fail
        handle.follow_up("only once")
        held.release()
        handle.result(SOON)
        assert [message.text for message in ref.history() if message.role == "user"] == ["go", "only once"]
        assert_valid(ref)
