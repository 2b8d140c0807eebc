"""What runs in other processes: the template, which forks, and the workers that it forks, which run process tools.

```
runtime ── commands, with file descriptors ──▶ template ── fork ──▶ worker     a process group each
   ▲  ▲                                            │                  │
   │  └── its number, then how it ended ───────────┘                  │
   └── requests and cancels there, progress and results back ─────────┘
```

The template is a fresh interpreter that has imported this library and nothing of the user's, and has one thread, so that
its forks are safe and take milliseconds. Standard output and error are those of the runtime's process; what is said
between processes goes through sockets of its own. If the runtime's process dies, however that happens, so do all of
these, with their groups: each reads the end of its socket; the template also sees that its parent is another; and on
Linux a worker dies with the template.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import queue
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import pydantic_core

from nitinol.errors import ToolError
from nitinol.logs import describe
from nitinol.tool_spec import ToolContext, ToolResult, to_answer

COMMAND = struct.Struct("!cq")
"""To the template: `F`ork, with the worker's socket and the pipe that tells of it, or `R`elease, and the worker's number."""
READY = b"+"
"""From the template, once: it can fork."""
NOTE = struct.Struct("!i")
"""From the template: the process id, and later the exit code, negative for a signal. Or `NO_FORK` and the error number."""
NO_FORK = -(1 << 30)
HEAD = struct.Struct("!Q")
"""Before each message between the runtime and a worker: its length."""
LOOK = 1.0
"""Seconds between two looks at who the parent is."""
_DIE_WITH_PARENT = 1
"""Linux: `PR_SET_PDEATHSIG`."""

inside = False
"""Whether this process runs process tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call, for a worker."""

    number: int
    tool: str
    function: bytes
    arguments: bytes
    """Pickled apart, so that what cannot be read there has a name."""
    deps: bytes | None
    context_name: str | None
    context: dict[str, Any]
    directory: str | None
    path: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a tool tells while it runs, as plain data."""

    number: int
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a call ended."""

    number: int
    result: ToolResult | None = None
    refusal: str | None = None
    """The text of a `ToolError`, which the model reads as it is."""
    raised: tuple[str, str, str] | None = None
    """Anything else that it raised: the type's name, the text, the traceback."""


def framed(message: bytes) -> bytes:
    """A message as it goes over a socket."""
    return HEAD.pack(len(message)) + message


# ---- the template


class _Worker:
    """A worker, as the template knows it."""

    def __init__(self, pid: int, notes: int) -> None:
        self.pid, self.notes = pid, notes
        self.ended = self.released = False

    def look(self) -> None:
        """Tell of its end. It stays a zombie until it is released: nobody else gets its number, nor its group's."""
        code = None if self.ended else _exit_code(self.pid)
        if code is not None:
            self.ended = True
            with suppress(OSError):
                os.write(self.notes, NOTE.pack(code))

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.notes)


def main() -> None:
    """Be the template. Arguments: the descriptor of the socket, and the parent's process id."""
    commands, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    import_module("cloudpickle")  # which every call needs, and no fork has to load again
    gc.freeze()
    woken, wake = os.pipe()
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, _wake)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    waiting = select.poll()
    waiting.register(commands, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    workers: dict[int, _Worker] = {}
    with suppress(EOFError, OSError):
        commands.sendall(READY)
        while os.getppid() == parent:
            ready = {descriptor for descriptor, _ in waiting.poll(LOOK * 1000)}
            if woken in ready:
                with suppress(BlockingIOError):
                    os.read(woken, 4096)
                for worker in workers.values():
                    worker.look()
            if commands.fileno() in ready:
                _obey(commands, workers, [woken, wake])
            for number in [number for number, worker in workers.items() if worker.ended and worker.released]:
                workers.pop(number).reap()
    _end(workers)


def _wake(number: int, frame: Any) -> None:
    """So that the system tells of a child's end, by the descriptor that is set for it."""


def _obey(commands: socket.socket, workers: dict[int, _Worker], own: list[int]) -> None:
    command, descriptors, _, _ = socket.recv_fds(commands, COMMAND.size, 2)
    if len(command) < COMMAND.size:
        raise EOFError
    verb, number = COMMAND.unpack(command)
    if verb == b"R":
        worker = workers.get(number)
        if worker is not None:
            worker.released = True
            worker.look()
        return
    channel, notes = descriptors
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.write(notes, NOTE.pack(NO_FORK) + NOTE.pack(error.errno or 0))
        os.close(notes)
        os.close(channel)
        return
    if not pid:
        for descriptor in (*own, notes, *(worker.notes for worker in workers.values())):
            os.close(descriptor)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        commands.close()
        work(socket.socket(fileno=channel), parent)
    with suppress(ProcessLookupError, PermissionError):  # the worker does it too: whoever comes first
        os.setpgid(pid, pid)
    os.close(channel)
    workers[number] = _Worker(pid, notes)
    with suppress(OSError):
        os.write(notes, NOTE.pack(pid))


def _end(workers: dict[int, _Worker]) -> None:
    for worker in workers.values():
        worker.kill()
    until = time.monotonic() + LOOK
    while workers and time.monotonic() < until:
        for number in list(workers):
            if _exit_code(workers[number].pid) is not None:
                workers.pop(number).reap()
        time.sleep(0.001)  # one that hangs in the kernel must not keep the rest


def _exit_code(pid: int) -> int | None:
    """How a child ended, if it has; it is not reaped, where the system can do that."""
    try:
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return None
            return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        done, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None
    except ChildProcessError:
        return 0


# ---- a worker


class _Calls:
    """Requests as they come, and which call may know that it is cancelled. The reader's thread, and the main one."""

    def __init__(self, channel: socket.socket, look: float | None) -> None:
        self.channel, self.look = channel, look
        self.requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self.cancelled: set[int] = set()
        self.current = 0
        self._parent = os.getppid()
        self._sending = threading.Lock()

    def read(self) -> None:
        """Read until the runtime has gone; then end, with the whole group."""
        try:
            while True:
                (length,) = HEAD.unpack(self._receive(HEAD.size))
                message = pickle.loads(self._receive(length))
                if isinstance(message, Request):
                    self.requests.put(message)
                else:
                    self.cancelled.add(message)
        finally:
            os.killpg(0, signal.SIGKILL)

    def send(self, message: Reply | Progress) -> None:
        """Say something to the runtime. From any thread."""
        frame = framed(pickle.dumps(message))
        with self._sending:
            self.channel.sendall(frame)

    def report(self, number: int, data: Any) -> None:
        """Tell of progress. From any thread of the tool."""
        plain = pydantic_core.to_jsonable_python(data, fallback=repr, inf_nan_mode="null")
        if self.current == number:
            self.send(Progress(number=number, data=plain))

    def _receive(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            while self.look is not None and not select.select([self.channel], [], [], self.look)[0]:
                if os.getppid() != self._parent:
                    raise EOFError
            part = self.channel.recv(min(length, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def work(channel: socket.socket, parent: int) -> NoReturn:
    """Be a worker, in a process that was just forked: run calls, one at a time, until it is killed."""
    global inside
    inside = True
    try:
        os.setpgid(0, 0)
        calls = _Calls(channel, None if _dies_with(parent) else LOOK)
        threading.Thread(target=calls.read, name="nitinol-process", daemon=True).start()
        while True:
            request = calls.requests.get()
            calls.current = request.number
            reply = _call(request, calls)
            calls.current = 0
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            calls.send(reply)
    finally:
        os.killpg(0, signal.SIGKILL)


def _dies_with(parent: int) -> bool:
    """Have the system kill this process when the template dies; False where it cannot."""
    try:
        died: bool = ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0) == 0
    except (AttributeError, OSError):
        return False
    if os.getppid() != parent:  # it has died meanwhile
        os._exit(1)
    return died


def _call(request: Request, calls: _Calls) -> Reply:
    number = request.number
    try:
        function, bound = _unpacked(request, calls)
        result = to_answer(function(**bound))
        reply = Reply(number=number, result=result)
        pickle.dumps(reply)
        return reply
    except ToolError as error:
        return Reply(number=number, refusal=describe(error))
    except BaseException as error:  # SystemExit too: a call's end, never the worker's
        told = "".join(traceback.format_exception(error))
        return Reply(number=number, raised=(type(error).__name__, describe(error), told))


def _unpacked(request: Request, calls: _Calls) -> tuple[Any, dict[str, Any]]:
    """The function and its arguments, in surroundings as the runtime's process has them now."""
    sys.path[:] = request.path
    if dict(os.environ) != request.environment:
        os.environ.clear()
        os.environ.update(request.environment)
    if request.directory is not None:
        with suppress(OSError):
            os.chdir(request.directory)
    name = request.tool
    function = _read(request.function, f"the function of {name!r}")
    bound = _read(request.arguments, f"the arguments of {name!r}")
    if request.context_name is not None:
        deps = None if request.deps is None else _read(request.deps, "the agent's deps=")
        bound[request.context_name] = ToolContext(
            **request.context,
            deps=deps,
            is_cancelled=lambda: request.number in calls.cancelled,
            report=partial(calls.report, request.number),
        )
    return function, bound


def _read(data: bytes, what: str) -> Any:
    try:
        return pickle.loads(data)
    except BaseException as error:  # it imports what is the user's
        way_out = (
            "what it uses must be importable there; cloudpickle.register_pickle_by_value(module) sends a module along"
        )
        raise ToolError(
            f"{what} cannot be read in a process: {type(error).__name__}: {describe(error)}; {way_out}"
        ) from None
