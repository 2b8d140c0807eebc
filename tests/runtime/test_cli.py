"""The command line: in process on a scripted model, and as a process against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests import servers

from nitinol import Prices, events
from nitinol.cli import main
from nitinol.testing import Answer, ScriptedProvider, call, override_model, say

READ: list[Answer] = [call("read", path="report.txt"), say("The total is 200.", chunks=4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file to read."""
    (tmp_path / "report.txt").write_text("Total: 200\n")
    return tmp_path


def run(script: Sequence[Answer], *arguments: str, prices: Prices | None = None) -> int:
    """`nitinol run` in this process, with a scripted model in the place of any."""
    with override_model(ScriptedProvider(script, prices=prices)):
        return main(["run", "What is the total?", "--model", "any:model", *arguments])


def test_it_shows_the_text_each_tool_call_and_the_bill(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, arguments, outcome and duration of the call; then turns, tokens and cost, which nobody knows here."""
    assert run(READ, "--tool", "read", "--working-directory", str(folder)) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0] == '→ read(path="report.txt")'
    assert re.fullmatch(r"← read ok, \d+\.\d\d s", lines[1])
    assert lines[2] == "The total is 200."
    assert re.fullmatch(
        r"completed: 2 turns, 1 tool call, [\d,]+ tokens in, [\d,]+ out, cost unknown, \d+\.\d s", lines[3]
    )
    assert len(lines) == 4
    assert shown.err == ""


def test_a_known_price_is_shown_in_dollars(capsys: pytest.CaptureFixture[str]) -> None:
    """However little it was."""
    assert run([say("Hello.")], prices=Prices(input="3", output="15")) == 0
    assert re.search(r"cost \$0\.0000\d\d", capsys.readouterr().out)


def test_it_is_plain_where_it_is_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No colours in a pipe, nothing a model wrote that commands a terminal, and no line folded."""
    assert run([say("red \x1b[31m " + "long " * 100)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "red �[31m " + "long " * 100 in out


def test_json_prints_every_event_as_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the end of the run, the agent's own and the ephemeral ones too; readable by `events.from_json`."""
    assert run(READ, "--tool", "read", "--working-directory", str(folder), "--json") == 0
    told = [events.from_json(line) for line in capsys.readouterr().out.splitlines()]
    assert told[-1].type == "run.finished"
    assert "".join(event.text for event in told if event.type == "model.delta") == "The total is 200."
    assert {"run.queued", "tool.requested", "tool.finished", "usage.updated"} <= {event.type for event in told}
    assert [event.seq for event in told if event.durable] == list(range(1, told[-1].seq + 1))


def test_a_run_that_does_not_complete_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and on stderr how it ended."""
    options = ["--tool", "read", "--working-directory", str(folder), "--max-turns", "1"]
    assert run(READ, *options) == 1
    shown = capsys.readouterr()
    assert "max_turns: 1 turn, 1 tool call" in shown.out
    assert shown.err.startswith("nitinol: the run ended max_turns")
    assert run(READ, *options, "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[-1])["status"] == "max_turns"
    assert shown.err.startswith("nitinol: the run ended max_turns")


def test_an_answer_that_breaks_off_is_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    """The reader is told, and reads the whole answer of the next attempt."""
    assert run([say("The tot", cut=True), say("The total is 200.")]) == 0
    out = capsys.readouterr().out
    assert "The tot\n(ConnectionFailed: " in out
    assert "(the answer broke off" in out
    assert "\nThe total is 200.\n" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "any:model", "--tool", "nope"], r"unknown tool 'nope'; known: .*bash, edit, read, write"),
        (["--model", "nope:model"], r"no provider 'nope' for model 'nope:model'; known: .*llamacpp"),
        (["--model", "llama"], r"model 'llama' must be 'provider:model'"),
        (["--model", "llamacpp:local", "--max-turns", "0"], r"max_turns=0 must be a whole number, 1 or more"),
        (["--model", "llamacpp:local", "--deadline", "-1"], r"deadline=-1.0 must be more than 0 seconds"),
        (["--model", "llamacpp:local", "--working-directory", "/none"], r"--working-directory '/none' is no directory"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, with status 1; never a traceback."""
    assert main(["run", "hi", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(rf"nitinol: {complaint}.*\n", shown.err)


def test_an_empty_prompt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything starts."""
    assert main(["run", "  ", "--model", "llamacpp:local"]) == 1
    assert capsys.readouterr().err == "nitinol: the prompt is empty\n"


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    """As argparse has it."""
    assert main(["run", "hi"]) == 2
    assert "--model" in capsys.readouterr().err
    assert main([]) == 2


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """Of what is installed."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nitinol {version('nitinol')}\n"


def test_the_version_is_told_without_loading_the_world() -> None:
    """What takes long to import is not imported before a command needs it."""
    slow = "{'httpx', 'aiohttp', 'rich.live', 'genai_prices', 'nitinol_tools'}"
    code = f"import sys, nitinol.cli; nitinol.cli.main(['--version']); print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[1] == "set()"


# -- as a process, against a server on loopback


def line(**fields: Any) -> bytes:
    """One event of a chat completions stream."""
    return (
        b"data: "
        + json.dumps({"id": "1", "object": "chat.completion.chunk", "model": "m", **fields}).encode()
        + b"\n\n"
    )


def chunk(**delta: Any) -> bytes:
    """A piece of an answer."""
    return line(choices=[{"index": 0, "delta": delta, "finish_reason": None}])


def end(reason: str, **usage: int) -> tuple[bytes, bytes, bytes]:
    """The last events of a stream: why it ended, and what was used."""
    finish = line(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
    return finish, line(choices=[], usage=usage), b"data: [DONE]\n\n"


def endless() -> servers.hang:
    """An answer that begins and never ends."""
    return servers.hang([servers.head(), chunk(role="assistant", content="Once upon a time\n")])


def start(server: servers.Server, prompt: str, *arguments: str) -> subprocess.Popen[str]:
    """`nitinol run` as a process, on this server."""
    return subprocess.Popen(
        [sys.executable, "-m", "nitinol.cli", "run", prompt, "--model", "llamacpp:m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LLAMACPP_BASE_URL": f"{server.url}/v1"},
    )


def test_a_prompt_from_standard_input_goes_the_whole_way(folder: Path) -> None:
    """Through provider, tool and back, in another process, over HTTP."""
    asks = {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "read", "arguments": '{"path": "report.txt"}'},
    }
    first = servers.stream(chunk(tool_calls=[asks]), *end("tool_calls", prompt_tokens=1000, completion_tokens=5))
    second = servers.stream(
        chunk(content="It is "), chunk(content="200."), *end("stop", prompt_tokens=1100, completion_tokens=6)
    )
    with servers.Server(first, second) as server:
        process = start(
            server, "-", "--tool", "read", "--working-directory", str(folder), "--instructions", "Be brief."
        )
        out, err = process.communicate("What is the\ntotal?", timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[2] == "It is 200."
    assert "completed: 2 turns, 1 tool call, 2,100 tokens in, 11 out, cost unknown" in out
    sent = [request.json["messages"] for request in server.requests]
    assert [message["role"] for message in sent[0]] == ["system", "user"]
    assert sent[0][1]["content"] == "What is the\ntotal?"
    assert "Total: 200" in sent[1][-1]["content"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_cancelled_and_says_so(number: signal.Signals, status: int) -> None:
    """The first Ctrl-C, or SIGTERM, cancels the run, shows its end, and closes the connection to the model."""
    hanging = endless()
    with servers.Server(hanging) as server:
        process = start(server, "Tell me a story.")
        assert process.stdout is not None
        assert process.stdout.readline() == "Once upon a time\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert hanging.closed.wait(10)
    assert process.returncode == status
    assert "cancelled: 1 turn" in out
    assert err == "nitinol: the run ended cancelled\n"


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    """As `nitinol run … | head -1`: no traceback."""
    with servers.Server(endless()) as server:
        process = start(server, "Tell me a story.", "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        assert "agent.started" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 1
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
        assert process.stdin is not None
        process.stdin.close()


def test_a_server_that_is_not_there_is_an_error() -> None:
    """Status 1; the reason is on stderr."""
    with servers.Server(servers.answer(404, {"error": {"message": "no such model"}})) as server:
        process = start(server, "hi")
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "failed: 1 turn" in out
    assert err.startswith("nitinol: the run ended failed: ")
    assert "no such model" in err
