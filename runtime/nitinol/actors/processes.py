"""Worker processes, seen from the runtime: started by a template, lent to one call at a time, killed with their groups.

Why not a library: `loky` and `concurrent.futures` cannot kill one call; `pebble` can, but each of its pools brings threads
of its own, forks a process that has threads or spawns an interpreter for each worker, kills a process and not its group,
and knows no progress and no cancel. `multiprocessing`'s fork server is one for the whole program, wants a main guard, and
leaves its processes when it is killed. So: sockets of our own, and `cloudpickle` for what is hard. A fresh interpreter
takes a third of a second to import this library, which a pool whose calls all hang would pay for each of them; a fork of
a template takes milliseconds.
"""

from __future__ import annotations

import itertools
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from nitinol.actors.process_child import COMMAND, HEAD, NO_FORK, NOTE, READY, Progress, Reply, Request, framed
from nitinol.env import Env, Loop
from nitinol.errors import ToolError
from nitinol.sending import pickled, pickled_function
from nitinol.tool_spec import Tool, ToolContext, ToolResult

IDLE = 60.0
"""Seconds after which a process that had nothing to do is ended."""
KILL_WAIT = 1.0
"""Seconds that a killed process has to be seen dead; only one that hangs in the kernel needs longer than a few ms."""
START = 30.0
"""Seconds that what forks them has to start."""
_MAIN = "from nitinol.actors.process_child import main; main()"


class ProcessLost(Exception):
    """The process of a call ended before the call did. The text says how."""


class RaisedThere(Exception):
    """A tool raised in its process.

    Args:
        type_name: The exception's class.
        text: What it said.
        told: The traceback, as text.
    """

    def __init__(self, type_name: str, text: str, told: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.told = told


class Process:
    """One worker process. Its call's thread talks with it; `kill` and `cancel` may come from any."""

    def __init__(self, template: _Template, number: int, channel: socket.socket, notes: int) -> None:
        self._template, self._number = template, number
        self._channel, self._notes = channel, notes
        self._pid: int | None = None
        self._code: int | None = None
        self._refused: str | None = None
        self._ended = self._closed = False
        self._lock = threading.Lock()
        self._received = bytearray()
        self._waiting = select.poll()
        self._waiting.register(channel, select.POLLIN)
        self._waiting.register(notes, select.POLLIN)

    @property
    def reusable(self) -> bool:
        """Whether it can take another call: it lives, and says nothing that nobody asked."""
        return self._pid is not None and not self._ended and not self._received and not self._waiting.poll(0)

    def send(self, request: Request) -> None:
        """Give it a call.

        Raises:
            ProcessLost: It has ended.
        """
        try:
            self._channel.sendall(framed(pickle.dumps(request)))
        except OSError:
            raise self._lost() from None

    def cancel(self, number: int) -> None:
        """Tell the tool that its call is cancelled. Never blocks."""
        with self._lock, suppress(OSError):
            if not self._closed:
                self._channel.send(framed(pickle.dumps(number)), socket.MSG_DONTWAIT)

    def receive(self) -> Reply | Progress:
        """Wait for what it says.

        Raises:
            ProcessLost: It has ended.
        """
        while True:
            message = self._next()
            if message is not None:
                return message
            ready = {descriptor for descriptor, _ in self._waiting.poll()}
            if self._notes in ready and not self._read_note():
                # What it said before it ended counts.
                while self._read(socket.MSG_DONTWAIT):
                    pass
                message = self._next()
                if message is not None:
                    return message
                raise self._lost()
            if self._channel.fileno() in ready and not self._read():
                raise self._lost()

    def kill(self) -> None:
        """SIGKILL, to all of its group. Never blocks, and harmless afterwards."""
        with self._lock:
            if self._closed:
                return
            if self._pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
            # One that is not yet known reads the end of this, and kills itself; and whoever waits for it is woken.
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)

    def end(self, wait: float = 0.0) -> None:
        """Kill it, see it dead for at most `wait` seconds, and let go of it."""
        self._see_dead(wait)
        with self._lock:
            self._closed = True
            self._template.command(b"R", self._number)
            self._channel.close()
            os.close(self._notes)

    def _next(self) -> Reply | Progress | None:
        received = self._received
        if len(received) < HEAD.size:
            return None
        (length,) = HEAD.unpack_from(received)
        if len(received) < HEAD.size + length:
            return None
        message: Reply | Progress = pickle.loads(bytes(received[HEAD.size : HEAD.size + length]))
        del received[: HEAD.size + length]
        return message

    def _read(self, flags: int = 0) -> bool:
        try:
            part = self._channel.recv(1 << 20, flags)
        except OSError:
            return False
        self._received += part
        return bool(part)

    def _read_note(self) -> bool:
        """Read what the template says of it; False if it has ended."""
        note = os.read(self._notes, NOTE.size)
        if len(note) < NOTE.size:
            self._ended = self._template.lost = True
            return False
        (value,) = NOTE.unpack(note)
        if value == NO_FORK:
            (number,) = NOTE.unpack(os.read(self._notes, NOTE.size))
            self._refused = os.strerror(number)
            self._ended = True
        elif self._pid is None:
            with self._lock:
                self._pid = value
        else:
            self._code, self._ended = value, True
        return not self._ended

    def _see_dead(self, wait: float) -> None:
        until = time.monotonic() + wait
        self.kill()
        notes = select.poll()
        notes.register(self._notes, select.POLLIN)
        while not self._ended and (left := until - time.monotonic()) > 0:
            if notes.poll(left * 1000):
                self._read_note()
                self.kill()  # it may be known only now

    def _lost(self) -> ProcessLost:
        self._see_dead(KILL_WAIT)
        if self._refused is not None:
            return ProcessLost(f"its process could not be started: {self._refused}")
        return ProcessLost(f"its process {self._how()}")

    def _how(self) -> str:
        code = self._code
        if code is None:
            return "was lost, with the one that had started it" if self._ended else "was lost"
        if code >= 0:
            return f"exited with status {code}"
        name = signal.Signals(-code).name if -code in signal.valid_signals() else "signal"
        hint = "; by the system perhaps, for want of memory" if -code == signal.SIGKILL else ""
        return f"was killed by {name} ({-code}{hint})"


class _Template:
    """The process that forks. From any thread."""

    def __init__(self) -> None:
        self.lost = False
        """Its end was seen, before the system tells of it perhaps."""
        self.ready = False
        self._waiting = threading.Lock()
        self._lock = threading.Lock()
        self._commands, there = socket.socketpair()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _MAIN, str(there.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        except BaseException:
            self._commands.close()
            raise
        finally:
            there.close()

    @property
    def alive(self) -> bool:
        return not self.lost and self._popen.poll() is None

    def wait(self) -> None:
        """Wait until it is ready to fork, or has ended."""
        with self._waiting:  # one reads what all wait for
            if not self.ready:
                waiting = select.poll()
                waiting.register(self._commands, select.POLLIN)
                self.ready = bool(waiting.poll(START * 1000)) and self._commands.recv(1) == READY

    def fork(self, number: int) -> Process:
        """Have it fork a worker. Does not wait for it."""
        channel, there = socket.socketpair()
        notes, told = os.pipe()
        try:
            self.command(b"F", number, there.fileno(), told)
        finally:
            there.close()
            os.close(told)
        return Process(self, number, channel, notes)

    def command(self, verb: bytes, number: int, *descriptors: int) -> None:
        with self._lock, suppress(OSError):  # a worker that nobody forks is lost at once
            socket.send_fds(self._commands, [COMMAND.pack(verb, number)], descriptors)

    def stop(self) -> None:
        with self._lock:
            self._commands.close()

    def join(self, timeout: float) -> None:
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


class Processes:
    """The worker processes of a runtime: those that wait for a call, and where others come from. From any thread.

    Args:
        core: Where the timer lives that ends those which have nothing to do.
    """

    def __init__(self, env: Env, core: Loop) -> None:
        self._env, self._core = env, core
        self._lock = threading.Lock()
        self._template: _Template | None = None
        self._former: list[_Template] = []
        self._idle: list[tuple[float, Process]] = []
        self._numbers = itertools.count(1)
        self._sweeping = self._stopped = False

    @property
    def ready(self) -> bool:
        """Whether a process can be had within milliseconds."""
        template = self._template
        return template is not None and template.ready and template.alive

    def warm_up(self) -> None:
        """Start what starts processes, and wait until it can. Blocks, for a third of a second."""
        with suppress(OSError):  # the first call will say what is wrong
            with self._lock:
                if self._stopped:
                    return
                template = self._warm()
            template.wait()

    def take(self) -> Process:
        """A process for a call: one that waits, or a new one. Takes a few ms, once the template runs.

        Raises:
            ProcessLost: The runtime has stopped, or no process can be started.
        """
        while True:
            with self._lock:
                if self._stopped:
                    raise ProcessLost("the runtime is stopping")
                if not self._idle:
                    try:
                        return self._warm().fork(next(self._numbers))
                    except OSError as error:
                        raise ProcessLost(f"its process could not be started: {error}") from None
                _, process = self._idle.pop()
            if process.reusable:
                return process
            process.end()

    def give_back(self, process: Process) -> None:
        """A call has ended, and its process may serve another."""
        with self._lock:
            keep = not self._stopped and process.reusable
            if keep:
                self._idle.append((self._env.monotonic(), process))
                if not self._sweeping:
                    self._sweeping = self._core.call(self._later, IDLE)
        if not keep:
            process.end()

    def stop(self) -> None:
        """End all. Those that run a call are ended by it, and by the template."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
        for _, process in idle:
            process.end()
        if self._template is not None:
            self._template.stop()

    def join(self, timeout: float) -> None:
        """After `stop`: wait until all processes have ended. Blocks."""
        for template in [*self._former, *([self._template] if self._template is not None else [])]:
            template.join(timeout)
        self._former.clear()
        self._template = None

    def _warm(self) -> _Template:
        template = self._template
        if template is not None and not template.alive:
            template.stop()
            self._former.append(template)
            template = None
        if template is None:
            template = self._template = _Template()
        return template

    def _later(self, delay: float) -> None:
        self._core.call_later(delay, self._sweep)

    def _sweep(self) -> None:
        """End those that had nothing to do for long. On the core loop."""
        now = self._env.monotonic()
        with self._lock:
            surplus = [process for since, process in self._idle if now - since >= IDLE]
            self._idle = [(since, process) for since, process in self._idle if now - since < IDLE]
            self._sweeping = bool(self._idle)
            if self._sweeping:
                self._later(IDLE - (now - self._idle[0][0]))
        for process in surplus:
            process.end()


class ProcessCall:
    """A call of a process tool. `run` blocks a worker's thread; `cancel` and `kill` come from the core loop, and never do."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._number = next(_calls)
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._began = self._cancelled = self._killed = False

    def run(self, tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Run it to its end.

        Raises:
            ToolError: The arguments do not fit, something cannot be sent, or the tool raised it.
            RaisedThere: The tool raised something else.
            ProcessLost: Its process ended first, killed or by itself.
        """
        request = self._request(tool, arguments, context)
        process = self._processes.take()
        with self._lock:
            self._process = process
            killed = self._killed
        healthy = False
        try:
            if killed:
                raise ProcessLost("its process was killed before it began")
            process.send(request)
            with self._lock:
                self._began = True
                if self._cancelled:
                    process.cancel(self._number)
            reply = self._reply(process, context)
            healthy = True
        finally:
            with self._lock:
                self._process = None
            if healthy:  # it is looked at once more before it is kept: it may be killed by now
                self._processes.give_back(process)
            else:
                process.end(KILL_WAIT)
        if reply.refusal is not None:
            raise ToolError(reply.refusal)
        if reply.result is None:
            raise RaisedThere(*(reply.raised or ("Error", "", "")))
        return reply.result

    def cancel(self) -> None:
        """Set the tool's `ctx.cancelled`."""
        with self._lock:
            self._cancelled = True
            if self._began and self._process is not None:
                self._process.cancel(self._number)

    def kill(self) -> None:
        """Kill its process, with all its group; `run` ends within milliseconds."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()

    def _reply(self, process: Process, context: ToolContext) -> Reply:
        while True:
            message = process.receive()
            if message.number != self._number:
                continue  # of an earlier call's thread
            if isinstance(message, Reply):
                return message
            context.report(message.data)

    def _request(self, tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> Request:
        bound = tool.bind(arguments, context)
        deps = None
        if tool.context_name is not None:
            bound.pop(tool.context_name, None)
            way_out = 'give what can be pickled (an address instead of a connection), or use isolation="thread"'
            deps = pickled(context.deps, f"the deps= of agent {context.agent!r}", way_out)
        told = {item.name: getattr(context, item.name) for item in fields(context) if item.name not in _OURS}
        try:
            directory: str | None = os.getcwd()
        except OSError:  # it was removed
            directory = None
        return Request(
            number=self._number,
            tool=tool.name,
            function=pickled_function(tool),
            arguments=pickled(bound, f"the arguments of {tool.name!r}", 'use isolation="thread"'),
            deps=deps,
            context_name=tool.context_name,
            context=told,
            directory=directory,
            path=list(sys.path),
            environment=dict(os.environ),
        )


_calls = itertools.count(1)
_OURS = ("deps", "is_cancelled", "report")
