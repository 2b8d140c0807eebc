"""One command in a process group of its own, run on an asyncio loop and killed with all it started.

No asyncio subprocess: its child watchers differ between Python versions and loops, some want the main thread, and
`wait` may hang while a grandchild holds the pipe. Here one thread per command waits for its exit, and the loop reads
its output. POSIX only.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

TERM_GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL when a command is cancelled."""
OUTPUT_GRACE = 0.2
"""Seconds that a command's background processes may still write after it has exited."""
_CHUNK = 64 * 1024
_DRAINED_CHUNKS = 16


async def run_process(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], write: Callable[[bytes], None]
) -> tuple[int, bool]:
    """Run a program; its standard input is empty, its output and errors come merged, in order.

    When this returns or raises, the process group is dead: what the program left in the background too, unless that
    has made a session of its own. Cancelling sends SIGTERM to the group, then SIGKILL.

    Args:
        arguments: The program and its arguments.
        cwd: Where it starts.
        env: Its whole environment.
        write: Called on the loop's thread with each piece of output.

    Returns:
        The exit code (128 + the signal's number where a signal ended it), and whether background processes still
        held the output when the program had exited.

    Raises:
        OSError: The program cannot be started.
        ValueError: An argument holds a NUL character or is not UTF-8.
    """
    with closing(_OutputReader(write)) as output:
        with output.inlet as inlet:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=inlet,
                stderr=inlet,
                cwd=cwd,
                env=env,
                start_new_session=True,
            )
        exit_watch = _ExitWatch(process)
        try:
            await exit_watch.exited.wait()
            await _within(OUTPUT_GRACE, output.ended)
            output.drain()
            lingered = not output.ended.is_set()
        except asyncio.CancelledError:
            _signal_group(process, signal.SIGTERM)
            await _within(TERM_GRACE, exit_watch.exited)
            raise
        finally:
            _signal_group(process, signal.SIGKILL)
            exit_watch.release()
            output.drain()
        code = process.wait()
        return code if code >= 0 else 128 - code, lingered


class _ExitWatch:
    """A thread that waits for a process, and reaps it only when told to.

    Until then the process is a zombie, so its id, which is its group's too, cannot go to another process in between,
    and a signal to the group cannot hit a stranger.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.exited = asyncio.Event()
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._released = threading.Event()
        try:
            threading.Thread(target=self._watch, name=f"nitinol-process-{process.pid}", daemon=True).start()
        except RuntimeError:  # no thread to be had
            _signal_group(process, signal.SIGKILL)
            process.wait()
            raise

    def release(self) -> None:
        """Let the thread reap the process and end."""
        self._released.set()

    def _watch(self) -> None:
        if hasattr(os, "waitid"):
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:  # macOS before Python 3.13
            self._process.wait()
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self.exited.set)
        self._released.wait()
        self._process.wait()


class _OutputReader:
    """A pipe that is read on the running loop, piece by piece as it comes, so that nothing piles up."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.ended = asyncio.Event()
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._pipe, inlet = os.pipe()
        self.inlet = os.fdopen(inlet, "wb")
        os.set_blocking(self._pipe, False)
        self._loop.add_reader(self._pipe, self._read)

    def drain(self) -> None:
        """Take what is in the pipe now, or as much as fits into it a few times if someone goes on writing."""
        for _ in range(_DRAINED_CHUNKS):
            if self.ended.is_set() or not self._read():
                return

    def close(self) -> None:
        """Stop reading; whoever still writes gets a broken pipe."""
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)

    def _read(self) -> bool:
        try:
            chunk = os.read(self._pipe, _CHUNK)
        except BlockingIOError:
            return False
        if chunk:
            self._write(chunk)
        else:
            self._loop.remove_reader(self._pipe)
            self.ended.set()
        return True


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for the event, so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
