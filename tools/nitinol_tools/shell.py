"""The shell tool: `bash`, and `shell_tool` to make one with another executor, environment or timeout."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import Field

from nitinol.errors import ToolError
from nitinol.tool_spec import Tool, ToolContext, ToolResult, tool
from nitinol_tools.output import CappedOutput
from nitinol_tools.process import TERM_GRACE, run_process

MAX_TIMEOUT = 600.0
"""Seconds that a model may ask for: the timeout of the tool itself."""
_ANSWER_TIME = TERM_GRACE + 0.5
"""Seconds before the call's deadline at which a command is stopped, so that there is time to kill it and to answer."""
_INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")


class Executor(Protocol):
    """Runs a command somewhere: in a container, over SSH, in a sandbox.

    Contract: called on the runtime's user loop, so it must not block. It raises `ToolError` where it cannot run the
    command, and `TimeoutError` where it gave up itself. When its time is over it is cancelled; it then ends the
    command before it lets the cancellation through.
    """

    async def __call__(self, command: str, cwd: Path, env: Mapping[str, str], timeout: float, /) -> tuple[int, str]:
        """Run a command.

        Args:
            command: A shell command.
            cwd: The agent's working directory.
            env: The environment that the tool would give to a local shell.
            timeout: Seconds.

        Returns:
            The exit code, and standard output and error merged; the tool cuts it to length.
        """
        ...


def shell_tool(
    *,
    name: str = "bash",
    executor: Executor | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> Tool:
    """Make a shell tool.

    **It is no sandbox.** A local command can read, write and reach whatever this process's user can, wherever the
    agent's `allowed_paths` end. What is restricted: it starts in the working directory, without profile and rc
    files, with empty standard input, and with a clean environment in which none of this process's API keys are. To
    confine it, give an `executor` that runs it in a container, or let a person approve it (`bash.replace(approval=True)`).

    A command runs in a process group of its own, which is killed when the command ends, is timed out or cancelled, with
    what it left in the background (SIGTERM, half a second later SIGKILL). Its output is kept to the first and last
    15,000 characters, in flat memory. A command that fails is no failed call: the model reads its exit code. One that
    takes too long is.

    Args:
        name: What the model calls it.
        executor: Runs the commands; `None` = bash on this machine, or sh where there is none.
        env: Variables added to the clean environment (`PATH`, `HOME`, `LANG` and the like, and `TERM=dumb`).
        timeout: Seconds that a command has if the model asks for no other time. However long it asks, a command is
            stopped before the call's own deadline: `bash.replace(timeout=60)` is the hard limit, 600 by default.
    """
    default_timeout, added = timeout, dict(env or {})

    async def run(
        ctx: ToolContext, command: str, timeout: Annotated[float, Field(gt=0)] = default_timeout
    ) -> ToolResult:
        """Run a shell command in the working directory; get its exit code and its output, errors included.

        It has no input and no terminal. What it leaves running in the background is ended when it returns.

        Args:
            command: The command, as you would type it into bash.
            timeout: Seconds after which it is killed.
        """
        seconds = _allowed_seconds(ctx, timeout)
        output = CappedOutput()
        try:
            async with asyncio.timeout(seconds):
                code = await _execute(executor, command, ctx.working_directory, _environment(added), seconds, output)
        except TimeoutError:
            return _timed_out(seconds, output)
        text = output.text().rstrip("\n")
        return ToolResult(f"exit code {code}\n{text or '(no output)'}", data=_data(code, output, timed_out=False))

    return tool(name=name, timeout=MAX_TIMEOUT)(run)


async def _execute(
    executor: Executor | None, command: str, cwd: Path, env: Mapping[str, str], seconds: float, output: CappedOutput
) -> int:
    if executor is not None:
        code, text = await executor(command, cwd, env, seconds)
        output.write_text(text)
        return code
    if not cwd.is_dir():
        raise ToolError(f"the working directory {str(cwd)!r} does not exist")
    try:
        code, lingered = await run_process([*_shell(), command], cwd=cwd, env=env, write=output.write)
    except (OSError, ValueError) as error:
        raise ToolError(f"the command cannot be started: {error}") from None
    if lingered:
        output.write_text("\n[what it left running in the background was ended]")
    return code


def _shell() -> list[str]:
    bash_path = shutil.which("bash")
    return [bash_path, "--noprofile", "--norc", "-c"] if bash_path else ["sh", "-c"]


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    """An allow-list, since a list of what is secret would never be complete."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"PATH": os.defpath, "TERM": "dumb", **inherited, **added}


def _allowed_seconds(ctx: ToolContext, asked: float) -> float:
    if not asked > 0:
        raise ToolError(f"timeout must be more than 0 seconds, not {asked}")
    if ctx.deadline is None:
        return asked
    left = ctx.deadline - time.time() - _ANSWER_TIME
    if left <= 0:
        raise ToolError("there is no time left for a command before the deadline of this call")
    return min(asked, left)


def _timed_out(seconds: float, output: CappedOutput) -> ToolResult:
    text = output.text().rstrip("\n")
    return ToolResult(
        f"timed out: the command was killed after {round(seconds, 1):g} seconds, with all that it had started. "
        "Give a larger timeout, or a command that does less or does not wait for input.\n"
        + (f"Its output until then:\n{text}" if text else "It had no output."),
        data=_data(None, output, timed_out=True),
        error=True,
    )


def _data(code: int | None, output: CappedOutput, *, timed_out: bool) -> dict[str, int | bool | None]:
    return {"exit_code": code, "truncated": output.truncated, "timed_out": timed_out}


bash = shell_tool()
