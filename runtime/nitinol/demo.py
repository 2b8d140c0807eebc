"""The demo: agents in parallel on a real model; one crashes in the middle of its run, and comes back.

What the agents say is what the model answered. The local model is a very small one: mostly right, sometimes not, and
the table says which. That each run ends, and the crashed one with its conversation, is not left to the model.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nitinol import Agent, Runtime, local
from nitinol.errors import ConfigurationError
from nitinol.events import Event
from nitinol.result import RunResult
from nitinol.terminal import describe, in_line, printable, show_cost
from nitinol.testing import crash
from nitinol.tool_spec import Tool

TOOLS = ("read", "bash")
"""The installed tools that the agents use."""
DEADLINE = 90.0
"""Seconds that one agent may take."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one agent has to do."""

    agent: str
    tool: str
    prompt: str
    expected: str
    """Words of a right answer."""


TASKS = (
    Task("clerk", "read", "What is the total in report.txt?", "200"),
    Task("guide", "read", "When does the train in train.txt leave?", "14:35"),
    Task("scout", "bash", "Run the command cat weather.txt.", "light rain"),
)

FILES = {
    "report.txt": "Report of March\nApples: 120\nPears: 80\nTotal: 200\n",
    "train.txt": "The train to Oslo leaves at 14:35 from platform 7.\n",
    "weather.txt": "Tomorrow: light rain, 14 degrees, wind from the west.\n",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one agent."""

    task: Task
    result: RunResult
    seen: Counter[str]
    """Its events, by type."""

    @property
    def is_right(self) -> bool:
        return self.task.expected in self.result.text.lower()

    @property
    def came_back(self) -> bool:
        """It crashed in the middle of its run, and went on with it."""
        return bool(self.seen["agent.crashed"] and self.seen["agent.restarted"] and self.seen["run.resumed"])


def show(tools: Sequence[Tool], *, model: str | None = None, agents: int = 3, console: Console | None = None) -> bool:
    """Run the demo: half a minute on two quiet cores, and never more than `DEADLINE` and a little.

    Args:
        tools: Those of `TOOLS`.
        model: A model string; `None` starts the local model.
        agents: How many work in parallel.
        console: Where it is shown: in columns on a terminal, else line by line.

    Returns:
        Whether every run completed, and the crashed agent came back in the middle of its own.

    Raises:
        ConfigurationError: The model or the number of agents is wrong.
        LocalModelUnavailable: The local model is not installed.
    """
    if agents < 1:
        raise ConfigurationError(f"--agents {agents} must be 1 or more")
    console = console or Console(highlight=False)
    with contextlib.ExitStack() as stack:
        chosen = model or stack.enter_context(_local_model(console))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nitinol-demo-")))
        for name, text in FILES.items():
            (folder / name).write_text(text)
        crew = _hire(agents, {tool.name: tool for tool in tools}, chosen, folder)
        names = [agent.name for agent, _ in crew]
        view = stack.enter_context(_Columns(console, names) if console.is_interactive else _Lines(console))
        outcomes = _watch(crew, view)
    console.print(_table(outcomes))
    if any(outcome.seen["estimated"] for outcome in outcomes):
        console.print("≈ with the attempt that the crash cut off, at what it may have cost at most", style="dim")
    back = [outcome.result.key for outcome in outcomes if outcome.came_back]
    console.print(f"Crashed in mid-run and came back with its conversation: {', '.join(back) or 'none'}.")
    return bool(back) and all(outcome.result.status == "completed" for outcome in outcomes)


class View(Protocol):
    """Shows agents side by side."""

    def text(self, agent: str, text: str) -> None:
        """A piece of an answer."""
        ...

    def line(self, agent: str, text: str, style: str) -> None:
        """Something that happened."""
        ...


@contextlib.contextmanager
def _local_model(console: Console) -> Generator[str]:
    console.print("Starting SmolLM2-135M on this machine …", style="dim")
    before = os.environ.get(local.BASE_URL_VARIABLE)
    with local.LocalModel() as server:
        os.environ[local.BASE_URL_VARIABLE] = server.base_url
        try:
            yield local.MODEL
        finally:
            del os.environ[local.BASE_URL_VARIABLE]
            if before is not None:
                os.environ[local.BASE_URL_VARIABLE] = before


def _hire(number: int, tools: Mapping[str, Tool], model: str, folder: Path) -> list[tuple[Agent, Task]]:
    crew: list[tuple[Agent, Task]] = []
    for index in range(number):
        round, task = index // len(TASKS), TASKS[index % len(TASKS)]
        agent = Agent(
            name=f"{task.agent}-{round + 1}" if round else task.agent,
            model=model,
            tools=[tools[task.tool]],
            max_turns=4,
            max_output_tokens=200,
            deadline=DEADLINE,
            working_directory=folder,
        )
        crew.append((agent, task))
    return crew


def _watch(crew: Sequence[tuple[Agent, Task]], view: View) -> list[Outcome]:
    """Let all work at once, show what happens, and crash the first agent in the middle of its run."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    victim, doomed = crew[0][0].name, True
    with Runtime(drain=0.0) as rt, rt.subscribe() as events:
        refs = {agent.name: rt.start(agent, key=agent.name) for agent, _ in crew}
        handles = {agent.name: refs[agent.name].send(task.prompt) for agent, task in crew}
        working = set(handles)
        for event in events:
            seen[event.key][event.type] += 1
            if event.type == "usage.updated" and event.estimated:
                seen[event.key]["estimated"] += 1
            _show(event, view)
            if doomed and event.key == victim and _is_midway(event):
                doomed = False
                crash(refs[victim])
            elif event.type == "run.resumed":
                kept = refs[event.key].history()[: seen[event.key]["message.appended"]]
                view.line(event.key, f"  it remembers: {', '.join(message.role for message in kept)}", "bold green")
            elif event.type in ("run.finished", "agent.parked"):
                working.discard(event.key)
                if not working:
                    break
        return [Outcome(task, handles[agent.name].result(timeout=5.0), seen[agent.name]) for agent, task in crew]


def _is_midway(event: Event) -> bool:
    """A tool has answered, or the model answers without one."""
    return event.type == "tool.finished" or (event.type == "model.delta" and event.kind == "text")


def _show(event: Event, view: View) -> None:
    if event.type == "run.queued" and event.prompt is not None:
        view.line(event.key, f"? {in_line(event.prompt.text)}", "bold")
    elif event.type == "model.delta" and event.kind == "text":
        view.text(event.key, printable(event.text))
    elif event.type == "run.finished":
        why = f": {in_line(event.error)}" if event.error else ""
        view.line(event.key, f"{event.status} in {event.duration:.1f} s{why}", "dim")
    elif (told := describe(event)) is not None:
        view.line(event.key, *told)


class _Lines:
    """Line by line, each with its agent's name: for pipes and files."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun: dict[str, str] = defaultdict(str)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None: ...

    def text(self, agent: str, text: str) -> None:
        *whole, self._begun[agent] = (self._begun[agent] + text).split("\n")
        for line in whole:
            self._print(agent, line)

    def line(self, agent: str, text: str, style: str) -> None:
        begun, self._begun[agent] = self._begun[agent], ""
        if begun:
            self._print(agent, begun)
        self._print(agent, text, style)

    def _print(self, agent: str, text: str, style: str = "") -> None:
        self._console.print(Text(f"[{agent}] "), Text(text, style), sep="", soft_wrap=True)


class _Columns:
    """Side by side, in place: for a terminal."""

    def __init__(self, console: Console, agents: Sequence[str]) -> None:
        self._texts = {agent: Text() for agent in agents}
        self._width = max(24, console.width // min(len(agents), 4))
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=12, vertical_overflow="visible"
        )

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def text(self, agent: str, text: str) -> None:
        self._texts[agent].append(text)

    def line(self, agent: str, text: str, style: str) -> None:
        shown = self._texts[agent]
        if shown and not shown.plain.endswith("\n"):
            shown.append("\n")
        shown.append(f"{text}\n", style)

    def _render(self) -> Columns:
        shown = {agent: text.copy() for agent, text in self._texts.items()}
        for text in shown.values():
            text.rstrip()
        return Columns([Panel(text, title=agent, width=self._width) for agent, text in shown.items()], padding=(0, 0))


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for heading in ("agent", "ended", "answer", "turns", "tools", "in", "out", "cost", "time", "restarts"):
        table.add_column(heading, justify="left" if heading in ("agent", "ended", "answer") else "right")
    for outcome in outcomes:
        result = outcome.result
        about = "≈" if outcome.seen["estimated"] else ""
        table.add_row(
            result.key,
            result.status,
            "right" if outcome.is_right else "wrong",
            str(result.turns),
            str(len(result.tool_calls)),
            f"{about}{result.usage.input_tokens:,}",
            f"{about}{result.usage.output_tokens:,}",
            show_cost(result.cost),
            f"{result.duration:.1f} s",
            str(outcome.seen["agent.restarted"]),
        )
    return table
