"""What the benches share: cores, CPU time, memory, tables. Every bench is a script of its own, started by `run.py`."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options every bench has."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    return parser


def cores() -> list[int]:
    """The cores this process may use; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(place: int) -> None:
    """Keep this process on one of its cores, counted from 0; does nothing where there is only one, or no way to ask."""
    mine = cores()
    if len(mine) > 1:
        os.sched_setaffinity(0, {mine[place % len(mine)]})


def cpu() -> float:
    """CPU seconds of this process so far, user and system, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss() -> int:
    """Bytes of memory in use now; the highest so far where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def child(script: str, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a bench's inner part in a fresh process; it prints one line of JSON at its end."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


class Stalls:
    """How long a loop keeps what is due waiting: the longest lag of a timer of a millisecond, while it is on.

    Args:
        loop: A `nitinol.env.Loop`.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._last: float | None = None
        self._collecting = 0.0
        self.longest = 0.0
        """Seconds."""
        self.longest_collection = 0.0
        """Seconds of the longest garbage collection, which stops every thread."""
        gc.callbacks.append(self._collected)
        loop.call(self._tick)

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.longest = max(self.longest, now - self._last - 0.001)
        self._last = now
        self._loop.call_later(0.001, self._tick)

    def take(self) -> tuple[float, float]:
        """The longest lag and the longest garbage collection until now; from now on, the next."""
        found = self.longest, self.longest_collection
        self.longest = self.longest_collection = 0.0
        return found

    def _collected(self, phase: str, _info: object) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._collecting = now
        else:
            self.longest_collection = max(self.longest_collection, now - self._collecting)


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value that this fraction of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * fraction))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def title(text: str) -> None:
    """Say what is measured, and on what."""
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"\n== {text} (Python {version}, {os.cpu_count()} cores)", flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join([row[0].ljust(len(first)), *others]), flush=True)
