"""`kill -9` at random: `python -m tests.chaos --kills N --seed S`, or `make chaos N=… SEED=…`.

A real process runs twenty agents (`chaos_victim`) on a SQLite file against a strict model server of its own process
(`strict_server`). It is killed and started again N times; one last life lets everything end. Then the books of the users,
the tools and the server are held against the journal (`chaos_books`). Exits with 1 if a promise was not kept.

The seed decides the plan: when each life is killed, what the users do in it, how the server answers a conversation. When
things happen is up to the machine, so a seed makes a failure likely again, and not certain.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.chaos_books import Books, check, read

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
SOON = 60.0
"""Seconds within which a process says its next word, also on a busy machine."""

Moment = Literal["spawn", "opening", "busy"]


@dataclass(frozen=True, slots=True)
class Kill:
    """When a life ends: so many seconds after it got so far."""

    after: Moment
    delay: float


def plan(kills: int, seed: int) -> list[Kill]:
    """Mostly at work; but also while the interpreter starts, and while the store is opened and runs recover."""
    chance = random.Random(seed)
    longest: dict[Moment, float] = {"spawn": 0.3, "opening": 0.2, "busy": 0.9}
    moments = chance.choices(list(longest), weights=(1, 2, 7), k=kills)
    return [Kill(moment, chance.uniform(0.0, longest[moment])) for moment in moments]


class DiedByItself(Exception):
    """A life ended, or said no word for long, before it was killed."""


async def run(kills: int, seed: int, folder: Path, progress: Callable[[str], object] = lambda line: None) -> Books:
    """Carry out a plan in an empty folder.

    Raises:
        DiedByItself: The victim ended, or stood still, before it was killed; with what it said on its standard error.
    """
    server = await _start("tests.strict_server", str(folder / "served"), str(seed))
    times: list[int] = []
    began = time.monotonic()
    try:
        url = await _word(server)
        for life, kill in enumerate(plan(kills, seed)):
            times.append(await _live(folder, url, seed, life, kill))
            if not (life + 1) % 10:
                progress(f"{life + 1} of {kills} kills, {time.monotonic() - began:.0f} s")
        progress("the last life lets everything end")
        await _live(folder, url, seed, kills, None)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        await server.wait()
    return read(folder, times)


async def _live(folder: Path, url: str, seed: int, life: int, kill: Kill | None) -> int:
    """One life, up to its kill or to its own end; when that was."""
    with (folder / "errors").open("a") as errors:
        arguments = [str(folder / "agents.db"), str(folder), url, str(seed), str(life)]
        victim = await _start("tests.chaos_victim", *arguments, *([] if kill else ["last"]), stderr=errors.fileno())
    until, words = kill.after if kill else "done", ["spawn"]
    try:
        while words[-1] not in (until, ""):
            words.append(await _word(victim, SOON if kill else 10 * SOON))
        if kill is not None and words[-1]:
            await asyncio.sleep(kill.delay)
    except TimeoutError:
        words.append("silence")
    finally:
        at = time.time_ns()
        if victim.returncode is None and (kill is not None or words[-1] != "done"):
            victim.kill()
        code = await victim.wait()
    if words[-1] != until or code != (-signal.SIGKILL if kill else 0):
        said = (folder / "errors").read_text()[-4000:]
        raise DiedByItself(f"life {life} ended with {code} after {words}; it said:\n{said}")
    return at


async def _start(module: str, *arguments: str, stderr: int | None = None) -> Process:
    """A process that ends when its standard input does, so none outlives this one."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdin=PIPE, stdout=PIPE, stderr=stderr, env=ENV, cwd=ROOT
    )


async def _word(process: Process, timeout: float = SOON) -> str:
    """The next line that a process says; nothing where it has ended."""
    assert process.stdout is not None
    async with asyncio.timeout(timeout):
        return (await process.stdout.readline()).decode().strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kill real agents, and check the books.")
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="which plan; by default another each time")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="nitinol-chaos-"))
    began = time.monotonic()
    try:
        books = asyncio.run(run(options.kills, seed, folder, lambda line: print(line, file=sys.stderr)))
    except DiedByItself as error:
        print(f"NOT as promised, with --seed {seed}; the books are in {folder}: {error}")
        return 1
    report = check(books)
    print(report)
    print(f"{'':-<40}\n{time.monotonic() - began:.0f} seconds, seed {seed}")
    if report.wrong:
        print(f"\nNOT as promised; the books are in {folder}:", *report.wrong[:50], sep="\n")
        return 1
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
