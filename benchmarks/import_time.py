"""Time of `import nitinol` beside the libraries it stands on, each in fresh processes, by turns; the median of 10."""

from __future__ import annotations

import os
import subprocess
import sys

import measure

CASES = {
    "nitinol": "import nitinol",
    "nitinol, with its providers and tools": "import nitinol, nitinol_providers, nitinol_tools",
    "pykka, httpx, structlog, pydantic": "import pykka, httpx, structlog, pydantic",
    "pykka": "import pykka",
    "httpx": "import httpx",
    "structlog": "import structlog",
    "pydantic (BaseModel)": "from pydantic import BaseModel",
}


def milliseconds(statement: str) -> float:
    code = f"import time; began = time.perf_counter(); {statement}; print((time.perf_counter() - began) * 1000)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=os.path.expanduser("~")
    )
    return float(done.stdout)


def main(rounds: int) -> None:
    measure.title(f"import_time: fresh processes, median of {rounds}")
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(rounds + 1):
        for name, statement in CASES.items():
            took = milliseconds(statement)
            if turn:  # the first turn writes what byte code there is to write
                found[name].append(took)
    base = measure.median(found["nitinol"])
    measure.table(
        ["import", "ms", "fastest", "ratio"],
        [
            [name, f"{measure.median(took):.0f}", f"{min(took):.0f}", f"{measure.median(took) / base:.2f}"]
            for name, took in found.items()
        ],
    )


if __name__ == "__main__":
    given = measure.options(__doc__).parse_args()
    main(3 if given.quick else 10)
