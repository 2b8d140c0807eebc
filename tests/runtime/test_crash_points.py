"""`kill -9` at each named crash point: what is expected to be lost, and what was seen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.runtime.test_machine_schedules import faults

from nitinol import events
from nitinol.env import Env
from nitinol.events import Event
from nitinol.journal.base import CRASH_POINTS, head_of, verify
from nitinol.journal.sqlite import SqliteJournal
from nitinol.repair import view
from nitinol.state import AgentState
from nitinol.testing import crash_at

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parents[1])])}
NOBODY: set[str] = set()
"""Points that no code gets to yet."""


@dataclass
class Seen:
    """What a death at a point cost."""

    died: bool = False
    lost: list[str] = field(default_factory=list[str])
    """Attempts whose answer nobody saw: billed by their reservation, and made again."""
    uncertain: list[str] = field(default_factory=list[str])
    """Calls of which nobody knows whether they took effect."""
    wrong: list[str] = field(default_factory=list[str])
    """What may never be."""

    @property
    def cost(self) -> str:
        return (
            ", ".join([*(f"attempt of {run}" for run in self.lost), *(f"{call} uncertain" for call in self.uncertain)])
            or "-"
        )


def die_at(point: str, path: Path) -> Seen:
    """One life to the point, and another to the end."""
    path.mkdir()
    store, seen = path / "agents.db", Seen()
    command = [sys.executable, str(HERE / "crasher.py"), str(store), str(path)]
    first = subprocess.run([*command, point], env=ENV, capture_output=True, text=True, timeout=100, check=False)
    seen.died = first.returncode == -9
    if not seen.died and first.returncode:
        seen.wrong.append(first.stderr[-500:])
    second = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=100, check=False)
    if second.stdout != "through\n":
        seen.wrong.append(f"it did not get through: {second.stderr[-500:]}")
    _look(store, path, seen)
    return seen


def book(path: Path, name: str) -> list[str]:
    return (path / name).read_text().splitlines() if (path / name).exists() else []


def _look(store: Path, path: Path, seen: Seen) -> None:
    core = Env().start_loop("test-core")
    journal = SqliteJournal(store, Env(), core)
    try:
        heads = journal.heads()
        logs: dict[str, list[Event]] = {
            head.key: [events.from_json(event.to_json()) for event in journal.read(head.key)] for head in heads
        }
    finally:
        core.close(10.0)
        journal.close()
    said: set[str | None] = set()
    started: Counter[str] = Counter()
    for head in heads:
        log = logs[head.key]
        state = AgentState(head.key, head.agent).fold(log)
        seen.wrong += verify(log) + faults(view(state.transcript)[0])
        if head != head_of(state):
            seen.wrong.append(f"the head says {head}, the log {head_of(state)}")
        for event in log:
            match event.type:
                case "run.finished":
                    said.add(event.run_id)
                case "input.queued":
                    said.add(event.input_id)
                case "model.started":
                    started[f"{event.run_id}/{event.turn}/{event.attempt}"] += 1
                case "model.failed" if event.error_type == "Interrupted":
                    seen.lost.append(event.run_id or "")
                case "tool.finished" if event.outcome == "uncertain":
                    seen.uncertain.append(event.name)
                case _:
                    pass
    seen.wrong += [f"accepted, and lost: {name}" for name in book(path, "accepted") if name not in said]
    seen.wrong += [f"asked without an intent: {name}" for name in book(path, "asked") if name not in started]
    ran = Counter(line for line in book(path, "ran") if not line.startswith("look"))
    seen.wrong += [f"ran {count} times: {name}" for name, count in ran.items() if count > 1]


EXPECTED = {
    # the answer had come, or was on its way, and was not committed
    **dict.fromkeys(
        (
            "after model.started", "before model.finished", "before usage.updated", "after CallModel", "before run.finished",
            "before tool.requested",
        ),
        "attempt of plain",
    ),
    **dict.fromkeys(
        ("before model.failed", "before model.discarded", "before model.retrying", "before model.fallback"), "attempt of retry"
    ),
    **dict.fromkeys(("before run.paused", "before approval.requested"), "attempt of approval"),
    "after context.repaired": "attempt of repaired",
    "before context.compacted": "attempt of long",
    **dict.fromkeys(
        ("after budget.reserved", "before budget.settled", "before budget.warning"), "attempt of thrifty"
    ),
    # the model was at work while something else happened
    **dict.fromkeys(("before input.queued", "after input.queued"), "attempt of inputs"),
    "before input.dropped": "attempt of dropped",
    **dict.fromkeys(("before run.cancelling", "after run.cancelling"), "attempt of cancelled"),
    # the tool may have run, and its end was not committed
    **dict.fromkeys(("after tool.started", "before tool.finished", "after RunTool", "before turn.finished"), "pay uncertain"),
}  # fmt: skip
"""What a death at a point costs, at the first time that the program gets there; elsewhere: nothing."""


@pytest.mark.timeout(600)
def test_kill_9_at_each_crash_point(tmp_path: Path) -> None:
    """Nothing accepted is lost, nothing runs twice that may not, no request is unbilled; what is lost is what must be."""
    reachable = [point for point in CRASH_POINTS if point not in NOBODY]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = [tmp_path / point for point in reachable]
        seen = dict(zip(reachable, pool.map(die_at, reachable, paths), strict=True))
    print(f"\n{'point':<28} {'expected':<34} {'seen':<34} lost inputs, doubles, faults")
    for point, what in seen.items():
        print(f"{point:<28} {EXPECTED.get(point, '-'):<34} {what.cost:<34} {len(what.wrong)}")
    assert {point: what.wrong for point, what in seen.items() if what.wrong} == {}
    assert [point for point, what in seen.items() if not what.died] == []
    assert {point: what.cost for point, what in seen.items()} == {
        point: EXPECTED.get(point, "-") for point in reachable
    }


def test_a_point_that_does_not_exist_is_refused() -> None:
    """With those that are spelt like it."""
    with pytest.raises(ValueError, match=r"'after tool.startd'; like it: \['after tool.started'"):
        crash_at("after tool.startd")
