"""What the checkers say of `tests/typing/api.py`, and of a file with the mistakes that users make."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

API = Path(__file__).parent / "typing" / "api.py"

BAD = """\
from dataclasses import dataclass

from nitinol import Agent, Budget, Runtime, events, run


@dataclass
class Report:
    title: str


scout = Agent(name="scout", model="ollama:m", output=Report)
Agent(name="a", model="ollama:m", max_turn=3)  # wrong
run("Hello", model="ollama:m", max_turn=3)  # wrong
Runtime(worker=3)  # wrong
Budget(usd=0.5)  # wrong
number: int = run("Hello", scout).output  # wrong
text: str = Runtime().start(scout).ask("Hello").output  # wrong
title: str = Runtime().start(scout).ask("Hello").output.title


def shown(event: events.Event) -> str:
    if event.type == "model.delta":
        return event.txt  # wrong
    match event:
        case events.RunFinished():
            return event.cost  # wrong
        case _:
            return event.key
"""
WRONG = {number for number, line in enumerate(BAD.splitlines(), 1) if line.endswith("# wrong")}

Checker = Callable[[Path, Path], set[int]]


def mypy(path: Path, tmp_path: Path) -> set[int]:
    """The lines in which mypy finds an error."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n")
    done = _run("mypy", f"--config-file={config}", f"--cache-dir={tmp_path / 'cache'}", str(path))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}


def pyright(path: Path, tmp_path: Path) -> set[int]:
    """The lines in which pyright finds an error."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    config = tmp_path / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "strict", "include": [str(path)]}))
    done = _run("pyright", f"--project={config}", f"--pythonpath={sys.executable}", "--outputjson")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        pytest.skip(f"pyright does not run here: {(done.stderr or done.stdout)[-300:]}")
    assert found["summary"]["filesAnalyzed"] == 1
    lines = [item["range"]["start"]["line"] for item in found["generalDiagnostics"] if item["severity"] == "error"]
    return {line + 1 for line in lines}


@pytest.fixture(params=[mypy, pyright], ids=["mypy", "pyright"])
def checker(request: pytest.FixtureRequest) -> Checker:
    found: Checker = request.param
    return found


@pytest.mark.timeout(300)
def test_the_public_api_is_inferred_as_promised(checker: Checker, tmp_path: Path) -> None:
    """Outputs are typed, events narrow, and every ignore in the file is needed."""
    copy = tmp_path / "api.py"
    shutil.copy(API, copy)
    assert checker(copy, tmp_path) == set()


@pytest.mark.timeout(300)
def test_each_mistake_of_a_user_is_found_in_its_line_and_nothing_else(checker: Checker, tmp_path: Path) -> None:
    """A misspelt option, a wrong type of an output, a field that an event does not have."""
    bad = tmp_path / "bad.py"
    bad.write_text(BAD)
    assert checker(bad, tmp_path) == WRONG


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
