"""Every way in which a program may leave ends in time, with the documented status, and leaves nothing behind.

Each is a real process (`leaver.py`) that leaves under load: tools that hang for ever, open approvals, an agent in backoff,
agents in mid-run, a store. `NITINOL_EXITS=100` leaves 100 times, each with a load of its own, and prints how long it took.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests import servers
from tests.logs_of import SOON
from tests.runtime.test_cli import chunk, end, endless, start

from nitinol import Runtime
from nitinol.env import DaemonExecutor, Env, Loop
from nitinol.errors import StoreInUse
from nitinol.journal.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="what is left is read from /proc")]

HERE = Path(__file__).parent
ENV = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parents[1])]),
    # Python 3.12 and later warn of every fork beside threads, which is what is tried here.
    "PYTHONWARNINGS": "error,ignore:This process:DeprecationWarning",
}
DEADLINE = 2.0 + 1.0
"""Seconds: `shutdown=` of the program, and what a stop may take beyond it."""
BUSY = 4.0
"""Seconds more for a machine that does other things, and for the interpreter's own end."""

LIVES_ON = [
    "stop", "with", "interrupted_drain", "twice", "second_hurries", "tool", "async_tool", "hook", "subscriber",
    "during_start", "blocked_loop", "two", "async_with", "stop_in_task", "fork", "fork_many", "multiprocessing",
    "fork_in_tool",
]  # fmt: skip
"""After these the program goes on, and looks at what is left."""
ENDS: dict[str, int] = {
    "with_error": 1,
    "with_interrupt": -signal.SIGINT,
    "with_exit": 7,
    "with_sigterm": 143,
    "async_with_interrupt": -signal.SIGINT,
    "sigterm": -signal.SIGTERM,
    "end": 0,
    "end_memory": 0,
    "sys_exit": 7,
    "error": 1,
    "interrupt": -signal.SIGINT,
}
"""The status of those with which the program ends. Python dies of the signal after Ctrl-C; a shell calls that 130."""
SAYS = {
    "interrupted_drain": ["interrupted"], "tool": ["stopped within"], "two": ["in use"], "fork": ["child done"],
    "multiprocessing": ["child done"],
}  # fmt: skip
SUSPENDS = set(LIVES_ON) | set(ENDS) - {"sigterm"}
"""Those that tell the store that they leave; a signal nobody handles does not."""
RUNS = int(os.environ.get("NITINOL_EXITS", "0"))


def leaves(way: str, store: Path, seed: int = 0) -> float:
    """Run the program; how many seconds its leaving took."""
    live = ["live"] if way in LIVES_ON else []
    command = [sys.executable, str(HERE / "leaver.py"), way, str(store), str(seed), *live]
    process = subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    alarm = threading.Timer(60.0, process.kill)
    alarm.start()
    try:
        began = ended = 0.0
        for line in process.stdout:
            said.append(line.strip())
            if said[-1] == "leaving":
                began = time.monotonic()
            elif not ended and said[-1].startswith(("took", "clean", "left")):
                ended = time.monotonic()
        errors = process.stderr.read()
        process.wait()
        took = (ended or time.monotonic()) - began
    finally:
        alarm.cancel()
        process.stdout.close()
        process.stderr.close()
    told = f"{way}, seed {seed}: {said} {errors}"
    assert "leaving" in said, told
    assert process.returncode == ENDS.get(way, 0), told
    if live:
        assert said[-1] == "clean", told
    for line in SAYS.get(way, ()):
        assert line in said, told
    if process.returncode in (1, -signal.SIGINT):
        assert errors.rstrip().endswith(("RuntimeError: planned", "KeyboardInterrupt")), told
    else:
        assert errors == "", told
    assert took < DEADLINE + BUSY, told
    check_store(store, told, suspended=way in SUSPENDS)
    return took


def check_store(store: Path, told: str, *, suspended: bool) -> None:
    """It is sound, nobody's, and says how its owner left."""
    assert audit(store).faults == [], told
    with Runtime(store, read_only=True) as rt:
        states = {ref.key: ref.status().state for ref in rt.agents() if ref.key.startswith(("sit/", "launch/"))}
    assert states, told
    if suspended:
        assert set(states.values()) == {"stopped"}, (states, told)
    Runtime(store).stop()


@pytest.mark.parametrize("way", [*LIVES_ON, *ENDS])
def test_every_way_to_leave(way: str, tmp_path: Path) -> None:
    """In time, with its status, and with no thread, file or process left; the store is sound, and says so."""
    leaves(way, tmp_path / "agents.db")


@pytest.mark.skipif(not RUNS, reason="NITINOL_EXITS=100 asks for it")
@pytest.mark.timeout(0)
def test_a_hundred_times(tmp_path: Path) -> None:
    """Every way, over and over, each time with another load."""
    seed = int(os.environ.get("NITINOL_EXITS_SEED", "0")) or random.randrange(1_000_000)
    ways = [*LIVES_ON, *ENDS]
    took: dict[str, float] = {}
    for number in range(RUNS):
        way = ways[number % len(ways)]
        took[f"{way} {seed + number}"] = leaves(way, tmp_path / f"{number}.db", seed + number)
    slowest = sorted(took.items(), key=lambda item: item[1])[-5:]
    print(f"{RUNS} exits; the slowest, in seconds: {slowest}")


# ---- the command line


def asks_for(name: str, **arguments: Any) -> bytes:
    """A model's answer that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return chunk(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": function}])


def ends(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What it has written to output and errors; if it does not end in time, it is killed and the test fails."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"it has not ended: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_the_command_and_what_its_tools_have_started(
    number: signal.Signals, times: int, tmp_path: Path
) -> None:
    """128 and its number, by the first signal or the second; the command that a tool runs is dead."""
    os.mkfifo(tmp_path / "pid")
    command = f"trap '' TERM INT; echo $$ > {tmp_path / 'pid'}; read < {tmp_path / 'pid'}"
    call = servers.stream(asks_for("bash", command=command), *end("tool_calls"))
    with servers.Server(call, endless()) as server:
        process = start(server, "Wait.", "--tool", "bash", "--working-directory", str(tmp_path))
        assert process.stdout is not None
        asked = process.stdout.readline()
        if "→ bash" not in asked:
            process.kill()
            pytest.fail(f"{asked}{process.communicate()}")
        command_alive = os.pidfd_open(int((tmp_path / "pid").read_text()))  # once it runs
        for _ in range(times):
            process.send_signal(number)
        ends(process, DEADLINE + BUSY + 5.0)
    assert process.returncode == 128 + number
    try:
        assert select.select([command_alive], [], [], SOON)[0], "it lives on"
    finally:
        os.close(command_alive)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_that_follows(number: signal.Signals, tmp_path: Path) -> None:
    """Without a traceback."""
    Runtime(tmp_path / "agents.db").stop()
    command = [sys.executable, "-m", "nitinol.cli", "log", str(tmp_path / "agents.db"), "--follow", "--json"]
    process = subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    leaves("with", tmp_path / "other.db")  # long enough for it to follow, or to be about to
    process.send_signal(number)
    out, errors = ends(process, SOON)
    assert (process.returncode, out, errors) == (128 + number, "", "")


# ---- in this process


def test_a_runtime_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    """Not its threads, and not the lock of its store: the next one opens it."""

    class Full(Env):
        def start_loop(self, name: str) -> Loop:
            if name == "nitinol-supervisor":
                raise RuntimeError("can't start new thread")
            return super().start_loop(name)

    before = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="can't start"):
        Runtime(tmp_path / "agents.db", env=Full())
    assert set(threading.enumerate()) == before
    Runtime(tmp_path / "agents.db").stop()


def test_one_process_has_a_store_once(tmp_path: Path) -> None:
    """The second is refused, and the first goes on; others are free."""
    with Runtime(tmp_path / "one.db") as rt, Runtime(tmp_path / "two.db"):
        with pytest.raises(StoreInUse, match=f"process {os.getpid()};"):
            Runtime(tmp_path / "one.db")
        rt.publish("still there")


def test_an_executor_of_daemons_is_an_executor() -> None:
    """It runs what it is given, also after a failure, gives its threads back, and takes nothing once it is shut down."""
    executor = DaemonExecutor("test-executor")
    go, both = threading.Event(), threading.Barrier(3, timeout=SOON)

    def meet() -> str:
        both.wait()
        go.wait(SOON)
        return threading.current_thread().name

    waiting = [executor.submit(meet) for _ in range(2)]
    both.wait()
    go.set()
    assert all(future.result(SOON).startswith("test-executor-") for future in waiting)
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 / 0).result(SOON)
    assert [future.result(SOON) for future in [executor.submit(int, str(number)) for number in range(500)]] == [
        *range(500)
    ]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("test-executor-")]
    assert threads
    assert all(thread.daemon for thread in threads)
    executor.shutdown()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(int)
