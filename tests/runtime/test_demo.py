"""The demo, on a scripted model; `test_local` runs it on the real one."""

from __future__ import annotations

import io
from importlib.metadata import entry_points

import pytest
from rich.console import Console

from nitinol import Tool, demo
from nitinol.cli import load_tools, main
from nitinol.errors import ConfigurationError, InvalidRequest
from nitinol.messages import ToolAnswer
from nitinol.provider import ModelRequest
from nitinol.testing import Answer, ScriptedProvider, after, call, fail, override_model, say

ARGUMENTS = {
    "What is the total in report.txt?": {"path": "report.txt"},
    "When does the train in train.txt leave?": {"path": "train.txt"},
    "Run the command cat weather.txt.": {"command": "cat weather.txt"},
}


class Model(ScriptedProvider):
    """Calls the one tool it has, then repeats what it read; the first answer is late, so that a crash comes first."""

    def __init__(self, answer: str = "It says: {}", failing: str = "") -> None:
        super().__init__(self._reply)
        self._says, self._failing = answer, failing
        self._was_late = False

    def _reply(self, request: ModelRequest) -> Answer:
        if request.tools[0].name == self._failing:
            return fail(InvalidRequest("no"))
        last = request.messages[-1]
        if last.role == "user":
            return call(request.tools[0].name, **ARGUMENTS[last.text])
        read = "".join(part.text for part in last.parts if isinstance(part, ToolAnswer))
        answer = say(self._says.format(read), chunks=3)
        if request.key == "clerk" and not self._was_late:
            self._was_late = True
            return after(2.0, answer)
        return answer


def play(model: ScriptedProvider, *, agents: int = 3) -> tuple[bool, str]:
    """The demo in a pipe."""
    console = Console(file=io.StringIO(), width=100)
    with override_model(model):
        passed = demo.show(load_tools(demo.TOOLS), model="any:model", agents=agents, console=console)
    assert isinstance(console.file, io.StringIO)
    return passed, console.file.getvalue()


def test_three_agents_work_and_the_crashed_one_comes_back() -> None:
    """It remembers its question, its call and the answer to it, and finishes with the right answer."""
    passed, shown = play(Model())
    assert passed
    lines = shown.splitlines()
    clerk = [line.removeprefix("[clerk] ") for line in lines if line.startswith("[clerk]")]
    assert clerk[0] == "? What is the total in report.txt?"
    assert clerk[1] == '→ read(path="report.txt")'
    crashed = next(index for index, line in enumerate(clerk) if line.startswith("✗ crashed"))
    assert clerk[crashed + 1].startswith("↻ restarted after ")
    assert clerk[crashed + 2] == "↻ the run goes on"
    assert clerk[crashed + 3] == "  it remembers: user, assistant, tool"
    assert any("Total: 200" in line for line in clerk[crashed:])
    assert sum("completed in" in line for line in lines) == 3
    table = {cells[0]: cells for line in lines if (cells := line.split()) and cells[0] in ("clerk", "guide", "scout")}
    assert {name: (cells[1], cells[2], cells[-1]) for name, cells in table.items()} == {
        "clerk": ("completed", "right", "1"),
        "guide": ("completed", "right", "0"),
        "scout": ("completed", "right", "0"),
    }
    assert lines[-1] == "Crashed in mid-run and came back with its conversation: clerk."
    assert "\x1b" not in shown


def test_on_a_terminal_they_stand_side_by_side() -> None:
    """A column for each, drawn in place."""
    console = Console(file=io.StringIO(), width=100, force_terminal=True, force_interactive=True)
    with override_model(Model()):
        assert demo.show(load_tools(demo.TOOLS), model="any:model", console=console)
    assert isinstance(console.file, io.StringIO)
    heads = [line for line in console.file.getvalue().splitlines() if "clerk ─" in line and "─ guide ─" in line]
    assert heads


@pytest.mark.parametrize("agents", [1, 7])
def test_any_number_of_agents_can_take_part(agents: int) -> None:
    """The tasks go round; each agent has a name of its own."""
    passed, shown = play(Model(), agents=agents)
    assert passed
    assert shown.count("completed in") == agents
    assert ("[clerk-3]" in shown) == (agents == 7)


def test_a_run_that_fails_is_told_and_fails_the_demo() -> None:
    """A wrong answer is the model's; a run that does not complete is ours."""
    passed, shown = play(Model(failing="bash"))
    assert not passed
    assert "[scout] failed" in shown


def test_a_wrong_answer_is_called_wrong() -> None:
    """And is nothing that fails the demo."""
    passed, shown = play(Model(answer="No idea."))
    assert passed
    assert shown.count(" wrong ") == 3


def test_less_than_one_agent_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """With a line that says so."""
    with pytest.raises(ConfigurationError, match="--agents 0 must be 1 or more"):
        demo.show([], model="any:model", agents=0)
    assert main(["demo", "--model", "any:model", "--agents", "0"]) == 1
    assert capsys.readouterr().err == "nitinol: --agents 0 must be 1 or more\n"


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere on the command line."""
    assert main(["demo", "--model", "nope:x"]) == 1
    assert "no provider 'nope'" in capsys.readouterr().err


def test_its_tools_are_those_that_the_package_brings() -> None:
    """Found as a third party's would be: the runtime imports none."""
    names = {point.name for point in entry_points(group="nitinol.tools")}
    assert set(demo.TOOLS) <= names
    assert all(isinstance(tool, Tool) for tool in load_tools(demo.TOOLS))
