"""`kill -9` at every point: what was accepted goes on, ends, and is paid for; what may not be repeated is not.

The victim is a real process (`victim.py`), which kills itself at a named point and is then started again to finish.
`test_chaos.py` kills one from outside, whenever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.runtime.test_machine_schedules import faults

from nitinol import events
from nitinol.env import Env
from nitinol.events import Event
from nitinol.journal.base import verify
from nitinol.journal.sqlite import SqliteJournal
from nitinol.repair import view
from nitinol.state import AgentState

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parents[1])])}


class Victim:
    """The program, its store, and the books that it keeps beside it."""

    def __init__(self, path: Path, point: str) -> None:
        self.store, self.point, self.side = path / "agents.db", point, path

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "victim.py"), str(self.store), self.point, str(self.side), *more]
        return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def dies(self, *more: str) -> None:
        """Run it to its point."""
        process = self.start(*more)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors

    def finishes(self) -> dict[str, str]:
        """Start it again; the runs, and how they ended."""
        process = self.start("go-on")
        said, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        return dict(line.split(" ") for line in said.splitlines())

    def book(self, name: str) -> list[str]:
        file = self.side / name
        return file.read_text().splitlines() if file.exists() else []

    def logs(self) -> dict[str, list[Event]]:
        """Every agent's log, after checking what holds of all: invariants, conversation, bill, and nothing lost."""
        core = Env().start_loop("test-core")
        journal = SqliteJournal(self.store, Env(), core)
        try:
            logs = {
                head.key: [events.from_json(event.to_json()) for event in journal.read(head.key)]
                for head in journal.heads()
            }
            assert journal.heads(active=True) == []
        finally:
            core.close(10.0)
            journal.close()
        accepted = self.book("accepted")
        ended: list[str | None] = []
        for key, log in logs.items():
            assert verify(log) == [], log
            state = AgentState(key, "victim").fold(log)
            assert faults(view(state.transcript)[0]) == []
            assert state.cost is not None
            bill = [event for event in log if event.type == "usage.updated"]
            assert len(bill) == sum(event.type == "model.started" for event in log)
            assert state.cost == sum(event.cost or 0 for event in bill)
            ended.extend(event.run_id for event in log if event.type == "run.finished")
            ran = Counter(line for line in self.book("ran") if not line.startswith("look"))
            assert all(count == 1 for count in ran.values()), ran
        assert set(accepted) <= set(ended)
        assert len(set(ended)) == len(ended)
        return logs


def of(log: list[Event], *types: str) -> list[Event]:
    return [event for event in log if event.type in types]


def outcomes(log: list[Event]) -> list[tuple[str, str]]:
    return [(event.name, event.outcome) for event in log if event.type == "tool.finished"]


@pytest.mark.parametrize(
    ("point", "recoveries", "expected"),
    [
        ("accepted", None, []),
        ("model started", 1, []),
        ("mid-stream", 1, []),
        ("requested", 0, [("look", "ok"), ("pay", "ok")]),
        ("safe tool", 1, [("look", "ok")]),
        ("never tool", 1, [("pay", "uncertain")]),
        ("parallel", 1, [("pay", "ok"), ("linger", "uncertain")]),
        ("approval", 0, [("launch", "ok")]),
        ("backoff", 0, []),
    ],
)
def test_a_run_survives_kill_9(
    tmp_path: Path, point: str, recoveries: int | None, expected: list[tuple[str, str]]
) -> None:
    """It ends as if nothing had been, but for what nobody can know. rules 2, 6, 7; parity: A5"""
    victim = Victim(tmp_path, point)
    victim.dies()
    assert victim.finishes() == {"run-1": "completed"}
    log = victim.logs()["k"]
    assert sorted(outcomes(log)) == sorted(expected)
    if recoveries is not None:  # how far it came after `send` returned is chance
        assert [event.recoveries for event in log if event.type == "run.resumed" and event.reason == "recovered"] == [
            recoveries
        ]
    if point == "safe tool":
        first, second = victim.book("ran")
        assert first == second, "the idempotency key is minted once"


def test_inputs_that_wait_survive_kill_9(tmp_path: Path) -> None:
    """A steer, a follow-up and a queued run are delivered once each, in order. rules 2 and 11"""
    victim = Victim(tmp_path, "waiting inputs")
    victim.dies()
    assert victim.finishes() == {"run-1": "completed", "run-2": "completed"}
    log = victim.logs()["k"]
    users = [event.message.text for event in log if event.type == "message.appended" and event.message.role == "user"]
    assert Counter(users) == Counter(["go", "steer", "follow", "second"])
    assert users[0] == "go"
    assert users[-1] == "second"
    delivered = [event.input_id for event in log if event.type == "input.delivered"]
    assert sorted(delivered) == sorted(victim.book("inputs"))


def test_a_cancel_survives_kill_9(tmp_path: Path) -> None:
    """What was told is kept: the run ends cancelled, and the call whose end nobody saw is uncertain. rule 8"""
    victim = Victim(tmp_path, "cancelling")
    victim.dies()
    assert victim.finishes() == {"run-1": "cancelled"}
    log = victim.logs()["k"]
    assert [name for name, _ in outcomes(log)] == ["linger"]
    assert outcomes(log)[0][1] in ("uncertain", "cancelled")
    assert len(of(log, "model.started")) == 1


def test_a_run_that_kills_its_process_is_sealed(tmp_path: Path) -> None:
    """Twice it is tried again; after the third death at work it is given up, and its agent lives on. rule 7"""
    victim = Victim(tmp_path, "three times")
    victim.dies()
    victim.dies("go-on")
    victim.dies("go-on")
    assert victim.finishes() == {"run-1": "sealed"}
    log = victim.logs()["k"]
    assert [event.recoveries for event in log if event.type == "run.resumed"] == [1, 2, 3]
    assert len(of(log, "model.started")) == 3
