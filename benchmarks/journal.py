"""The SQLite journal: commits, beside a bare `sqlite3` loop of the same rows, and recovery of a store full of agents.

Commits: 64 agents, each with its next decision once the last one is committed, `synchronous=FULL`. The bare loops write
the same rows in one thread: each decision in a transaction of its own, and 64 in one. Recovery: every agent has a
conversation of 20 messages and a run that was interrupted.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import fields
from itertools import groupby
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
    bill: dict[str, Any] = {
        "provider": "p",
        "model": "m",
        "usage": usage,
        "cost": None,
        "estimated": False,
        "price_source": None,
    }
    bill |= {"run_usage": usage, "run_cost": None, "agent_usage": usage, "agent_cost": None}
    decisions: list[list[Any]] = []
    for number in range(count):
        at = [
            {"id": f"{key}#{seq}", "seq": seq, "key": key, "agent": "a", "ts": time.time_ns()}
            for seq in range(number * 3 + 1, number * 3 + 4)
        ]
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


def make_store(path: Path, count: int, interrupted: bool = True, words: str = "an answer of some words") -> None:
    """`count` agents with 20 messages, and a run that was accepted and did not start: copies of a real one's log."""
    from nitinol import Agent, Runtime
    from nitinol import events as ev
    from nitinol.env import Env
    from nitinol.journal.sqlite import SqliteJournal
    from nitinol.state import AgentState
    from nitinol.testing import ScriptedProvider, say

    with Runtime(drain=0.0) as rt:
        ref = rt.start(Agent(name="bench", model=ScriptedProvider(lambda _: say(words))), key="k")
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
        if interrupted:
            open_run: dict[str, Any] = {"run_id": f"open-{number}", "prompt": prompt, "pending_count": 0}
            copies.append(ev.RunQueued(seq=len(log) + 1, key=key, agent="bench", **open_run))
        core.call(journal.open, key, lambda opening: None)
        state = AgentState(key, "bench")
        for _, decided in groupby(copies, lambda event: event.ts):  # in the commits that it was made by
            decision = list(decided)
            state = state.fold(decision)
            told = last.set_result if number == count - 1 and decision[-1] is copies[-1] else lambda error: None
            core.call(journal.append, key, 1, decision, state, told)
    assert last.result(600) is None
    core.close(5.0)
    journal.close()


def recovery(path: Path, count: int, held: bool) -> dict[str, float]:
    """Seconds until the store is open, all agents are known, the first is up or has answered, all; CPU seconds of these.

    Up: its log has been read, and that it is up, and its run goes on, has been committed. An agent whose model is `held`
    goes no further.
    """
    from quiet_model import QuietModel

    from nitinol import Agent, Runtime

    agent = Agent(name="bench", model=QuietModel(held=held))
    spent, began = measure.cpu(), time.perf_counter()
    found: dict[str, float] = {}

    def lap(name: str) -> None:
        found[name], found[f"{name} cpu"] = time.perf_counter() - began, measure.cpu() - spent

    rt = Runtime(path, agents=[agent], drain=0.0)
    stalls = measure.Stalls(rt._system.core)
    lap("open")
    with rt.subscribe("turn.started" if held else "run.finished", after=rt._system.bus.position, maxsize=count) as ends:
        heads = rt._system.journal.heads()
        lap("heads")
        while len(refs := rt.agents()) < count:
            time.sleep(0.001)
        states = {ref.status().state for ref in refs}
        lap("status")
        ends.get(600)
        lap("first")
        for _ in range(count - 1):
            ends.get(600)
    lap("all")
    found["all stall"], found["all gc"] = stalls.take()
    rt.stop()
    lap("stop")
    found["stop stall"], found["stop gc"] = stalls.take()
    assert len(heads) == count, len(heads)
    assert states <= {"starting", "running", "idle"}, states
    return found


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
        rows = []
        for held, names in (
            (True, ("open", "heads", "status", "first", "all", "stop")),
            (False, ("first", "all", "stop")),
        ):
            copy = here / f"copy-{held}.db"
            shutil.copy(store, copy)
            found = measure.child("journal.py", "--recover", str(copy), str(count), *(["--held"] if held else []))
            found |= {"stop": found["stop"] - found["all"], "stop cpu": found["stop cpu"] - found["all cpu"]}
            for name in names:
                seconds, spent = found[name], found[f"{name} cpu"]
                stalls = [
                    f"{found[f'{name} {what}'] * 1000:.0f}" for what in ("stall", "gc") if f"{name} stall" in found
                ]
                what = WORDS.get(name, name).format("up" if held else "has answered")
                rows.append(
                    [what, f"{seconds:.2f}", f"{spent:.2f}", f"{spent / count * 1e6:,.0f}", *(stalls or ("", ""))]
                )
        head = ["since the start of the runtime", "s", "CPU s", "CPU us/agent", "longest stall ms", "longest gc ms"]
        measure.table(head, rows)
        print(f"  the store has {store.stat().st_size / 1e6:,.0f} MB")


WORDS = {
    "open": "the store is open",
    "heads": "every key, state and bill is known",
    "status": "status() of all",
    "first": "the first agent {}",
    "all": "every agent {}",
    "stop": "and stopped again (itself)",
}


if __name__ == "__main__":
    parser = measure.options(__doc__)
    parser.add_argument("--recover", nargs=2, metavar=("STORE", "COUNT"), help="one recovery, once")
    parser.add_argument("--held", action="store_true", help="of agents whose model does not answer")
    given = parser.parse_args()
    if given.recover:
        print(json.dumps(recovery(Path(given.recover[0]), int(given.recover[1]), given.held)))
    else:
        main(given.quick)
