"""What one-shots leave in the memory of their process: nothing, once their results and handles are dropped."""

# pyright: reportPrivateUsage=false
# Reason: that nothing is left is seen where it would be: in the cells and the journal of the process's own runtime.

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.logs_of import SOON

from nitinol import arun, run, stream, tool
from nitinol.oneshot import default_runtime
from nitinol.testing import ScriptedProvider, call, say

N = 30


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def calculator() -> ScriptedProvider:
    """Adds with a tool, then says the sum: a log of two turns."""
    return ScriptedProvider([[say("Let me add."), call("add", a=1, b=2)], "It is 3."])


def by_run() -> tuple[str, str]:
    """A `run`; its key and its run's id."""
    result = run("1 + 2?", model=calculator(), tools=[add])
    assert result.text == "It is 3."
    return result.key, result.run_id


def by_stream() -> tuple[str, str]:
    """A `stream`, read to its end."""
    handle = stream("1 + 2?", model=calculator(), tools=[add])
    assert any(event.type == "run.finished" for event in handle)
    result = handle.result(SOON)
    assert result.text == "It is 3."
    return result.key, result.run_id


def by_unread_stream() -> tuple[str, str]:
    """A `stream` whose handle is dropped before its run has ended."""
    handle = stream("1 + 2?", model=calculator(), tools=[add])
    return handle.key, handle.run_id


def by_arun() -> tuple[str, str]:
    """An `arun`, on a loop of its own."""

    async def main() -> tuple[str, str]:
        result = await arun("1 + 2?", model=calculator(), tools=[add])
        assert result.text == "It is 3."
        return result.key, result.run_id

    return asyncio.run(main())


WAYS = [by_run, by_stream, by_unread_stream, by_arun]


@pytest.mark.parametrize("way", WAYS)
def test_the_events_of_one_shots_leave_the_journal(way: Callable[[], tuple[str, str]]) -> None:
    """Neither a cell, nor a log, nor a run to be found by its id; and no more dead events than there are live ones."""
    shots = [way() for _ in range(N)]
    assert len(set(shots)) == N
    assert _soon(lambda: not _left(shots)), _left(shots)


def test_a_result_that_is_kept_keeps_no_events() -> None:
    """A result is a value: holding it holds neither the agent nor its log, and it stays whole."""
    results = [run("1 + 2?", model=calculator(), tools=[add]) for _ in range(N)]
    shots = [(result.key, result.run_id) for result in results]
    assert _soon(lambda: not _left(shots)), _left(shots)
    assert {(len(result.messages), result.text) for result in results} == {(4, "It is 3.")}


def test_a_handle_that_is_kept_keeps_its_own_events_alone() -> None:
    """The others' go; its own go after it."""
    handle = stream("1 + 2?", model=calculator(), tools=[add])
    kept = [(handle.key, handle.run_id)]
    assert handle.result(SOON).text == "It is 3."
    shots = [by_run() for _ in range(N)]
    assert _soon(lambda: not _left(shots)), _left(shots)
    journal = default_runtime()._system.journal
    assert "run.finished" in [event.type for event in journal.read(kept[0][0])]
    assert journal.find_run(kept[0][1]) is not None
    assert any(event.type == "run.finished" for event in handle)
    del handle
    assert _soon(lambda: not _left(kept)), _left(kept)


def test_the_journal_of_a_process_of_one_shots_is_empty() -> None:
    """In a process of its own, where nothing else lives: not one event and not one cell."""
    path = [*sys.path, str(Path(__file__).parents[2])]
    program = f"import sys; sys.path[:] = {path!r}; from tests.runtime.test_oneshot_memory import report; report()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0", "0"]), done.stdout + done.stderr


def report() -> None:
    """Make one-shots of all kinds, then print how many events and cells are left."""
    for _ in range(N):
        for way in WAYS:
            way()
    system = default_runtime()._system
    _soon(lambda: not system.cells and not system.journal.scan(0, 10**6))
    print(len(system.journal.scan(0, 10**6)), len(system.cells))


def _left(shots: list[tuple[str, str]]) -> list[str]:
    """What is left of these one-shots.

    The journal takes dead events out of its log when they are more than half of it, so beside live agents, such as
    other tests' of this process, some may stay a while.
    """
    system = default_runtime()._system
    journal, cells = system.journal, system.cells
    left = [f"cell {key}" for key, _ in shots if key in cells]
    left += [f"{len(journal.read(key))} events of {key}" for key, _ in shots if journal.read(key)]
    left += [f"run {run_id}" for _, run_id in shots if journal.find_run(run_id) is not None]
    log = journal.scan(0, 10**6)
    dead = sum(event.key not in cells for event in log)
    if dead * 2 > len(log):
        left.append(f"{dead} dead events in a log of {len(log)}")
    return left


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true: each look waits for the core loop to have done what was asked of it before."""
    runtime = default_runtime()
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        gc.collect()  # a handle may be held by a traceback in a cycle
        if condition():
            return True
        with runtime.subscribe("custom") as looked:
            runtime.publish("look")
            looked.get(SOON)
    return False
