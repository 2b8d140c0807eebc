"""The shell tool (parity: T9)."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from nitinol.errors import ToolError
from nitinol.tool_spec import ToolContext, ToolResult
from nitinol_tools import bash
from nitinol_tools.output import MAX_OUTPUT, CappedOutput
from nitinol_tools.shell import shell_tool


@pytest.fixture
def ctx(tmp_path: Path) -> ToolContext:
    return ToolContext(working_directory=tmp_path)


def sh(ctx: ToolContext, command: str, timeout: float = 30.0) -> ToolResult:
    result = asyncio.run(bash(ctx, command, timeout=timeout))
    assert isinstance(result, ToolResult)
    return result


def wait_until_dead(pid: int) -> None:
    """SIGKILL is sent when a call returns; the kernel needs a moment to carry it out."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], 20)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


async def cancel_when_told(ctx: ToolContext, command: str, *, times: int = 1) -> str:
    """Cancel a command as soon as it has written a word to the FIFO `said`, and give that word."""
    said = ctx.working_directory / "said"
    os.mkfifo(said)
    task = asyncio.create_task(bash(ctx, command))
    word = await asyncio.to_thread(said.read_text)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    return word


def test_the_answer_is_the_exit_code_and_the_output(ctx: ToolContext) -> None:
    """For the model as text, for programs as data. parity: T9"""
    result = sh(ctx, "echo hello; exit 3")
    assert result.text == "exit code 3\nhello"
    assert result.data == {"exit_code": 3, "truncated": False, "timed_out": False}
    assert sh(ctx, "true").text == "exit code 0\n(no output)"


def test_a_command_that_fails_is_no_failed_call(ctx: ToolContext) -> None:
    """grep's 1 is an answer; a signal is 128 and its number. parity: T9"""
    assert not sh(ctx, "false").error
    assert "command not found" in sh(ctx, "no-such-program").text
    assert sh(ctx, "kill -9 $$").data["exit_code"] == 128 + signal.SIGKILL


def test_output_and_errors_come_merged_in_order(ctx: ToolContext) -> None:
    """As on a terminal. parity: T9"""
    assert sh(ctx, "echo 1; echo 2 >&2; echo 3; echo 4 >&2").text == "exit code 0\n1\n2\n3\n4"


def test_output_is_kept_to_its_first_and_last_part(ctx: ToolContext) -> None:
    """30,000 characters, with a note of how many are missing. parity: T9"""
    result = sh(ctx, "echo first; yes | head -c 100000; echo last")
    assert result.text.startswith("exit code 0\nfirst\ny\n")
    assert result.text.endswith("y\nlast")
    assert "[70,011 of 100,011 characters left out]" in result.text
    assert len(result.text) < MAX_OUTPUT + 100
    assert result.data["truncated"]
    assert not sh(ctx, "yes | head -c 30000").data["truncated"]


def test_a_gigabyte_of_output_takes_flat_memory(ctx: ToolContext) -> None:
    """It is thrown away as it comes. parity: T9"""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = sh(ctx, "head -c 1000000000 /dev/zero; echo; echo done", timeout=100)
    assert result.text.endswith("\ndone")
    assert "of 1,000,000,006 characters" in result.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_output_that_is_not_utf_8_is_shown_as_far_as_it_goes(ctx: ToolContext) -> None:
    """Wrong bytes and NUL are replaced, characters split between two writes are not. parity: T9"""
    assert sh(ctx, r"printf 'a\xe9\000b \xc3'; printf '\xa9'").text == "exit code 0\na\ufffd\ufffdb é"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_capped_output_is_the_same_however_it_is_written(size: int) -> None:
    """Up to the limit all of it, beyond it the head and the tail. parity: T9"""
    data = "aé漢😀" * 5
    for limit in (3, 10, 19, 20, 21):
        output = CappedOutput(limit)
        raw = data.encode()
        for start in range(0, len(raw), size):
            output.write(raw[start : start + size])
        if limit >= len(data):
            assert output.text() == data
        else:
            head, tail = data[: limit // 2], data[-(limit - limit // 2) :]
            assert output.text() == f"{head}\n[{20 - limit} of 20 characters left out]\n{tail}"


def test_a_timeout_kills_the_command_and_tells_what_it_printed(ctx: ToolContext) -> None:
    """The call is an error, with a text that helps. parity: T9"""
    result = sh(ctx, "echo begun; sleep 60", timeout=1.0)
    assert result.error
    assert result.text.startswith("timed out: the command was killed after 1 seconds")
    assert "larger timeout" in result.text
    assert result.text.endswith("begun")
    assert result.data == {"exit_code": None, "truncated": False, "timed_out": True}
    assert sh(ctx, "sleep 60", timeout=0.1).text.endswith("It had no output.")


def test_a_timeout_kills_the_whole_process_group(ctx: ToolContext) -> None:
    """Children of children too, and such as ignore SIGTERM. parity: T9"""
    result = sh(ctx, "(trap '' TERM; sh -c 'echo $PPID > pid; sleep 60'; sleep 60) & wait", timeout=2.0)
    assert result.error
    wait_until_dead(int((ctx.working_directory / "pid").read_text()))


def test_cancelling_kills_the_whole_process_group(ctx: ToolContext) -> None:
    """Really, not only the waiting for it. parity: T9"""
    pid = asyncio.run(cancel_when_told(ctx, "sleep 60 & echo $! > said; wait"))
    wait_until_dead(int(pid))


def test_a_second_cancel_does_not_save_the_command(ctx: ToolContext) -> None:
    """It only cuts short the half second that SIGTERM is given. parity: T9"""
    command = "trap '' TERM; echo $$ > said; while true; do sleep 1; done"
    pid = asyncio.run(cancel_when_told(ctx, command, times=2))
    wait_until_dead(int(pid))


def test_a_cancelled_command_may_clean_up(ctx: ToolContext) -> None:
    """SIGTERM comes first. parity: T9"""
    asyncio.run(cancel_when_told(ctx, "trap 'echo > cleaned; exit' TERM; echo > said; sleep 60 & wait"))
    assert (ctx.working_directory / "cleaned").exists()


def test_what_is_left_in_the_background_does_not_hold_the_call(ctx: ToolContext) -> None:
    """Though it holds the output; it is ended, and the model is told. parity: T9"""
    started = time.monotonic()
    result = sh(ctx, "sleep 60 & echo $! > pid; echo done")
    assert time.monotonic() - started < 20
    assert result.text == "exit code 0\ndone\n\n[what it left running in the background was ended]"
    wait_until_dead(int((ctx.working_directory / "pid").read_text()))


def test_a_background_process_in_its_own_session_does_not_hold_the_call(ctx: ToolContext) -> None:
    """It is out of reach, as the docstring says; the call returns all the same. parity: T9"""
    result = sh(ctx, "setsid sh -c 'echo $$ > pid; exec sleep 60' & while [ ! -s pid ]; do :; done; echo done")
    assert "done" in result.text
    os.kill(int((ctx.working_directory / "pid").read_text()), signal.SIGKILL)


def test_standard_input_is_empty(ctx: ToolContext) -> None:
    """A command that asks does not wait for ever. parity: T9"""
    assert sh(ctx, 'cat; read answer; echo "[$answer]"').text == "exit code 0\n[]"


def test_a_command_starts_in_the_working_directory(ctx: ToolContext) -> None:
    """Of the agent, not of the process; one that is missing is a clear error. parity: T9, T10"""
    assert sh(ctx, "pwd -P").text == f"exit code 0\n{os.path.realpath(ctx.working_directory)}"
    with pytest.raises(ToolError, match=r"working directory .* does not exist"):
        sh(ToolContext(working_directory=ctx.working_directory / "none"), "true")


def test_the_environment_is_clean(ctx: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of this process reaches a command, nor a file that bash would source. parity: T9"""
    (ctx.working_directory / "rc").write_text("echo sourced\n")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("SOMETHING", "sk-secret")
    monkeypatch.setenv("BASH_ENV", str(ctx.working_directory / "rc"))
    monkeypatch.setenv("LANG", "C.UTF-8")
    text = sh(ctx, "env").text
    assert "sk-secret" not in text
    assert "sourced" not in text
    for variable in ("LANG=C.UTF-8", f"PATH={os.environ['PATH']}", "TERM=dumb"):
        assert variable in text


def test_variables_can_be_added(ctx: ToolContext) -> None:
    """By whoever makes the tool; they win over inherited ones. parity: T9"""
    custom = shell_tool(env={"GREETING": "hello", "HOME": "/nowhere"})
    assert asyncio.run(custom(ctx, "echo $GREETING $HOME")).text == "exit code 0\nhello /nowhere"


def test_where_there_is_no_bash_sh_is_used(ctx: ToolContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by PATH. parity: T9"""
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sh(ctx, "echo $0").text == "exit code 0\nsh"


@pytest.mark.parametrize("command", ["a\0b", "echo \ud800", "#" * 3_000_000])
def test_a_command_that_cannot_be_started_is_a_clear_error(ctx: ToolContext, command: str) -> None:
    """And leaves no descriptor open. parity: T9"""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ToolError, match="cannot be started"):
        sh(ctx, command)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_timeout_must_be_more_than_nothing(ctx: ToolContext) -> None:
    """By the schema, and for a program that calls the tool. parity: T9"""
    with pytest.raises(ToolError, match="timeout"):
        bash.bind({"command": "true", "timeout": 0}, ctx)
    with pytest.raises(ToolError, match="timeout"):
        sh(ctx, "true", timeout=0)
    assert bash.bind({"command": "true"}, ctx)["timeout"] == 120


def test_a_command_is_stopped_before_the_deadline_of_the_call(ctx: ToolContext) -> None:
    """So that the model reads what it printed, whatever time it asked for. parity: T4, T9"""
    ctx.deadline = time.time() + 2.5
    result = sh(ctx, "echo begun; sleep 60", timeout=600)
    assert time.time() < ctx.deadline + 10
    assert result.data["timed_out"]
    assert result.text.endswith("begun")
    ctx.deadline = time.time()
    with pytest.raises(ToolError, match="no time left"):
        sh(ctx, "true")


def test_it_runs_on_a_loop_that_is_not_the_main_threads(ctx: ToolContext) -> None:
    """As the runtime's user loop does, many at a time; no thread and no descriptor is left. parity: T9"""
    results: list[ToolResult] = []
    descriptors = len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        results.extend(await asyncio.gather(*(bash(ctx, f"echo {n}; exit {n}") for n in range(20))))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert [result.text for result in results] == [f"exit code {n}\n{n}" for n in range(20)]
    for thread in threading.enumerate():
        if thread.name.startswith("nitinol-process-"):
            thread.join(10)
            assert not thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_commands_run_side_by_side(ctx: ToolContext) -> None:
    """Each waits for a file that the other makes. parity: L2, T9"""

    async def meet(mine: str, other: str) -> int:
        result: ToolResult = await bash(ctx, f"touch {mine}; until [ -e {other} ]; do :; done", timeout=20)
        code: int = result.data["exit_code"]
        return code

    async def main() -> list[int]:
        return list(await asyncio.gather(meet("a", "b"), meet("b", "a")))

    assert asyncio.run(main()) == [0, 0]


def test_an_executor_of_ones_own_runs_the_commands(ctx: ToolContext) -> None:
    """It gets command, directory, environment and seconds; its output is cut as any other. parity: T9"""
    seen: list[object] = []

    async def executor(command: str, cwd: Path, env: Mapping[str, str], timeout: float) -> tuple[int, str]:
        seen.extend([command, cwd, env["EXTRA"], timeout])
        return 7, "x" * 100_000

    remote = shell_tool(name="remote", executor=executor, env={"EXTRA": "1"}, timeout=9)
    result = asyncio.run(remote(ctx, "make"))
    assert remote.name == "remote"
    assert seen == ["make", ctx.working_directory, "1", 9]
    assert result.data == {"exit_code": 7, "truncated": True, "timed_out": False}
    assert len(result.text) < MAX_OUTPUT + 100


def test_an_executor_is_cancelled_at_the_timeout(ctx: ToolContext) -> None:
    """One that gives up itself raises TimeoutError, with the same answer. parity: T9"""
    cancelled: list[bool] = []

    async def hangs(command: str, cwd: Path, env: Mapping[str, str], timeout: float) -> tuple[int, str]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)
        return 0, ""

    async def gives_up(command: str, cwd: Path, env: Mapping[str, str], timeout: float) -> tuple[int, str]:
        raise TimeoutError

    for executor in (hangs, gives_up):
        result = asyncio.run(shell_tool(executor=executor)(ctx, "make", timeout=0.1))
        assert result.error
        assert result.data["timed_out"]
    assert cancelled == [True]


def test_the_models_view_of_it() -> None:
    """A description, a command and a timeout; the call's own limit is above the timeout. parity: T1, T9"""
    assert bash.is_async
    assert bash.parameters["required"] == ["command"]
    assert set(bash.parameters["properties"]) == {"command", "timeout"}
    assert "exit code" in bash.description
    assert bash.timeout > 120
    assert bash.replace(timeout=60).timeout == 60
