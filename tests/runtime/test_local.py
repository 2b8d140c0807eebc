"""The local model: a real one. What needs it is skipped where it is not installed, but never in CI."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nitinol import events, local
from nitinol.cli import main

pytestmark = pytest.mark.slow

QUESTION = "What is the total in report.txt?"

needs_model = pytest.mark.skipif(
    not local.is_installed() and not os.environ.get("CI"),
    reason=f"the local model is not installed; run: {local.INSTALL_COMMAND}",
)
linux_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process by its id: Linux only")


@pytest.fixture(scope="module")
def model() -> Iterator[local.LocalModel]:
    """One server for the tests of this file."""
    with local.LocalModel() as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file to read."""
    (tmp_path / "report.txt").write_text("Report of March\nApples: 120\nPears: 80\nTotal: 200\n")
    return tmp_path


def post(base_url: str, **body: Any) -> dict[str, Any]:
    """Ask the server without anything of ours between."""
    request = urllib.request.Request(
        f"{base_url}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def wait_for_end(pid: int, timeout: float) -> bool:
    """Whether a process that is no child of ours has ended in time; waits for its end, and no longer."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout)[0])
    finally:
        os.close(handle)


@needs_model
def test_an_agent_reads_a_file_on_the_real_model(
    model: local.LocalModel, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`nitinol run`, unscripted: it calls the tool, reads the answer, and says something."""
    monkeypatch.setenv(local.BASE_URL_VARIABLE, model.base_url)
    assert main(["run", QUESTION, "--model", local.MODEL, "--tool", "read", "--working-directory", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert '→ read(path="report.txt"' in shown
    assert "← read ok" in shown
    assert re.search(r"completed: \d+ turns, \d tool calls?, [\d,]+ tokens in, \d+ out, cost unknown", shown)


@needs_model
def test_its_events_are_told_as_json(
    model: local.LocalModel, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with `--json`: real deltas, real usage, and no price."""
    monkeypatch.setenv(local.BASE_URL_VARIABLE, model.base_url)
    options = ["--tool", "read", "--working-directory", str(folder), "--json"]
    assert main(["run", QUESTION, "--model", local.MODEL, *options]) == 0
    told = [events.from_json(line) for line in capsys.readouterr().out.splitlines()]
    called = [event for event in told if event.type == "tool.requested"]
    assert called[0].arguments["path"] == "report.txt"
    assert next(event.outcome for event in told if event.type == "tool.finished") == "ok"
    finished = told[-1]
    assert finished.type == "run.finished"
    assert finished.status == "completed"
    assert finished.cost is None
    assert finished.usage.input_tokens > 100
    spoken = "".join(event.text for event in told if event.type == "model.delta" and event.kind == "text")
    assert spoken.endswith(finished.text)
    assert finished.text


@needs_model
def test_the_demo_works_on_the_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Three agents, one crash, three ends."""
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "[clerk] ✗ crashed" in shown
    assert "[clerk]   it remembers: user, assistant, tool" in shown
    assert shown.count("] completed in") == 3


@needs_model
def test_a_runaway_answer_is_bounded(model: local.LocalModel) -> None:
    """So small a model may never stop; the server stops it where the request sets no limit."""
    forever = [{"role": "user", "content": "Count: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"}]
    answer = post(model.base_url, messages=forever, ignore_eos=True)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 512


@needs_model
@linux_only
def test_it_leaves_nothing_behind() -> None:
    """The end of the block is the end of the server."""
    with local.LocalModel() as server:
        assert server.base_url.startswith("http://127.0.0.1:")
        pid = server.pid
        assert pid is not None
    assert server.pid is None
    assert wait_for_end(pid, 0.0)


@needs_model
@linux_only
def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    """Not even after `kill -9`, when nobody can clean up."""
    code = "from nitinol.local import LocalModel\nwith LocalModel() as m: print(m.pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert wait_for_end(pid, 10.0)


@needs_model
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_is_served_in_the_foreground_until_it_is_interrupted(number: signal.Signals, status: int) -> None:
    """`nitinol local serve` says where it answers, and ends with Ctrl-C or SIGTERM."""
    command = [sys.executable, "-m", "nitinol.cli", "local", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        found = re.match(rf"export {local.BASE_URL_VARIABLE}=(http://127\.0\.0\.1:\d+/v1) ", server.stdout.readline())
        assert found
        answer = post(found[1], messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
        assert answer["choices"][0]["message"]["content"]
        server.send_signal(number)
        assert server.wait(10) == status
        assert server.stderr.read() == ""


@needs_model
def test_a_port_that_is_taken_is_an_error(model: local.LocalModel, capfd: pytest.CaptureFixture[str]) -> None:
    """In one line, as every mistake; and it says the way out."""
    port = model.base_url.split(":")[2].partition("/")[0]
    assert main(["local", "serve", "--port", port]) == 1
    shown = capfd.readouterr().err
    assert shown.startswith(f"nitinol: the local model did not start on port {port}")
    for word in ("may be taken", "--port", local.BASE_URL_VARIABLE, "base_url="):
        assert word in shown


def test_without_it_the_demo_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exact command, on stderr, with status 1."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as if it were not installed
    assert not local.is_installed()
    for command in (["demo"], ["local", "serve"]):
        assert main(command) == 1
        assert capsys.readouterr().err == "nitinol: the local model is not installed; run: nitinol local install\n"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"PIP_NO_INDEX": "1"}, "pip found no wheel of xllamacpp=="),
        ({"PIP_TARGET": "/dev/null/no"}, "pip could not install xllamacpp=="),
    ],
)
def test_an_installation_that_fails_says_why(
    variables: dict[str, str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a line, with status 1: no wheel for the machine, or pip's own words."""
    settings = {"PIP_TARGET": str(tmp_path), "PIP_IGNORE_INSTALLED": "1", "PIP_NO_CACHE_DIR": "1", **variables}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(["local", "install"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("pip install xllamacpp==")
    assert re.fullmatch(rf"nitinol: {complaint}.*\n", shown.err)
    assert list(tmp_path.iterdir()) == []
