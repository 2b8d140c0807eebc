"""The SQLite journal: commits, beside a bare `sqlite3` loop of the same rows, and recovery of a store full of agents.

Commits: 64 agents, each with its next decision once the last one is committed, `synchronous=FULL`. The bare loops write
the same rows in one thread: each decision in a transaction of its own, and 64 in one. Recovery: every agent has a
conversation of 20 messages and a run that was interrupted.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import Any

import measure

AGENTS = 64


def _events(key: str, count: int) -> list[list[Any]]:
    """Decisions of three events, as an answer makes: the model's end, its bill, its message."""
    from nitinol import events as ev
    from nitinol.messages import Message, Text
    from nitinol.usage import Usage

    usage = Usage(input_tokens=1000, output_tokens=100)
    message = Message(role="assistant", parts=(Text("words of an answer " * 20),), provider="p", model="m")
    bill: dict[str, Any] = {"provider": "p", "model": "m", "usage": usage, "cost": None, "estimated": False, "price_source": None}
    bill |= {"run_usage": usage, "run_cost": None, "agent_usage": usage, "agent_cost": None}
    decisions: list[list[Any]] = []
    for number in range(count):
        at = [{"id": f"{key}#{seq}", "seq": seq, "key": key, "agent": "a", "ts": time.time_ns()} for seq in range(number * 3 + 1, number * 3 + 4)]
        decisions.append(
            [
                ev.ModelFinished(**at[0], stop_reason="end_turn", response_id="r", duration=1.0),  # type: ignore[arg-type]
                ev.UsageUpdated(**at[1], **bill),
                ev.MessageAppended(**at[2], message=message),  # type: ignore[arg-type]
            ]
        )
    return decisions


def journal_commits(path: Path, each: int) -> tuple[float, float]:
    """Seconds and CPU seconds for `AGENTS` agents that commit `each` decisions."""
    from nitinol.env import Env
    from nitinol.journal.sqlite import SqliteJournal
    from nitinol.state import AgentState

    core = Env().start_loop("bench-core")
    journal = SqliteJournal(path, Env(), core)
    ended = threading.Semaphore(0)
    work = {f"agent/{number}": _events(f"agent/{number}", each) for number in range(AGENTS)}

    def go_on(key: str, epoch: int, left: list[Any], error: Exception | None) -> None:
        assert error is None, error
        if left:
            state = AgentState(key, "a", seq=left[0][-1].seq)
            journal.append(key, epoch, left[0], state, lambda error: go_on(key, epoch, left[1:], error))
        else:
            ended.release()

    def begin() -> None:
        for key, decisions in work.items():
            journal.open(key, lambda opening, key=key, left=decisions: go_on(key, opening.epoch, left, None))  # type: ignore[misc]

    spent, began = measure.cpu(), time.perf_counter()
    core.call(begin)
    for _ in work:
        ended.acquire()
    wall, spent = time.perf_counter() - began, measure.cpu() - spent
    core.close(5.0)
    journal.close()
    return wall, spent


def bare_commits(path: Path, each: int, together: int) -> tuple[float, float]:
    """The same rows by `sqlite3` alone, `together` decisions in a transaction."""
    from nitinol.events import pack

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE events (position INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, seq INTEGER, epoch INTEGER, "
        "type TEXT, body BLOB, UNIQUE (key, seq))"
    )
    rows = [
        [(event.key, event.seq, 1, event.type, pack(event)) for event in decision]
        for decisions in zip(*(_events(f"agent/{number}", each) for number in range(AGENTS)), strict=True)
        for decision in decisions
    ]
    spent, began = measure.cpu(), time.perf_counter()
    for at in range(0, len(rows), together):
        connection.execute("BEGIN IMMEDIATE")
        for decision in rows[at : at + together]:
            connection.executemany("INSERT INTO events (key, seq, epoch, type, body) VALUES (?, ?, ?, ?, ?)", decision)
        connection.execute("COMMIT")
    wall, spent = time.perf_counter() - began, measure.cpu() - spent
    connection.close()
    return wall, spent


def make_store(path: Path, count: int) -> None:
    """`count` agents, each with 20 messages and a run that was accepted and did not start: copies of a real one's log."""
    from nitinol import Agent, Runtime
    from nitinol import events as ev
    from nitinol.env import Env
    from nitinol.journal.sqlite import SqliteJournal
    from nitinol.state import AgentState
    from nitinol.testing import ScriptedProvider, say

    with Runtime(drain=0.0) as rt:
        ref = rt.start(Agent(name="bench", model=ScriptedProvider(lambda _: say("an answer of some words"))), key="k")
        for _ in range(10):
            ref.ask("a question of some words", timeout=60)
        log: Sequence[Any] = rt._system.journal.read("k")
    prompt = next(event.prompt for event in log if event.type == "run.queued")
    core = Env().start_loop("bench-core")
    journal = SqliteJournal(path, Env(), core)
    last: Future[Any] = Future()
    for number in range(count):
        key = f"bench/{number:05}"
        copies = []
        for event in log:
            values = {field.name: getattr(event, field.name) for field in fields(event)}
            values |= {"key": key, "id": f"{key}#{event.seq}", "run_id": event.run_id and f"{event.run_id}-{number}"}
            copies.append(type(event)(**values))
        copies.append(
            ev.RunQueued(seq=len(log) + 1, key=key, agent="bench", run_id=f"open-{number}", prompt=prompt, pending_count=0)
        )
        core.call(journal.open, key, lambda opening: None)
        core.call(journal.append, key, 1, copies, AgentState(key, "bench").fold(copies), last.set_result if number == count - 1 else lambda error: None)
    assert last.result(600) is None
    core.close(5.0)
    journal.close()


def recovery(path: Path, count: int) -> tuple[float, float, float, float]:
    """Seconds until the store is open, until the first interrupted run has ended, until all have; CPU seconds."""
    from nitinol import Agent, Runtime
    from nitinol.testing import ScriptedProvider, say

    agent = Agent(name="bench", model=ScriptedProvider(lambda _: say("an answer of some words")))
    spent, began = measure.cpu(), time.perf_counter()
    with Runtime(path, agents=[agent], drain=0.0) as rt:
        opened = time.perf_counter() - began
        with rt.subscribe("run.finished", after=rt._system.bus.position, maxsize=count) as ends:
            ends.get(600)
            first = time.perf_counter() - began
            for _ in range(count - 1):
                ends.get(600)
        every = time.perf_counter() - began
        spent = measure.cpu() - spent
    return opened, first, every, spent


def main(quick: bool) -> None:
    each, count = (20, 200) if quick else (200, 10_000)
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        measure.title(f"journal: {AGENTS} agents, {each} decisions of 3 events each, synchronous=FULL")
        rows: list[list[object]] = []
        for round in range(1 if quick else 3):
            for name, (wall, spent) in (
                ("bare sqlite3, a transaction each", bare_commits(here / f"bare-1-{round}.db", each, 1)),
                ("bare sqlite3, 64 in a transaction", bare_commits(here / f"bare-64-{round}.db", each, AGENTS)),
                ("nitinol's journal", journal_commits(here / f"journal-{round}.db", each)),
            ):
                commits = AGENTS * each
                rows.append([name, f"{commits / wall:,.0f}", f"{spent / commits * 1e6:,.0f}"])
        measure.table(["", "commits/s", "CPU us per commit"], rows)
        measure.title(f"recovery: {count:,} agents with 20 messages and an open run each")
        store = here / "agents.db"
        make_store(store, count)
        opened, first, every, spent = recovery(store, count)
        table = [[f"{store.stat().st_size / 1e6:,.0f}", f"{opened:.2f}", f"{first:.2f}", f"{every:.2f}", f"{count / every:,.0f}", f"{spent:.2f}"]]
        measure.table(["MB", "open s", "first answer s", "all answered s", "agents/s", "CPU s"], table)


if __name__ == "__main__":
    main(measure.options(__doc__).parse_args().quick)
