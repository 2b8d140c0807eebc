"""All benches, or those that are named: `python benchmarks/run.py [--quick] [name …]`, or `make bench ARGS="--quick events"`.

Each runs in a process of its own and prints a table. They compare rows of one run with each other, on whatever else the
machine does; none fails for being slow.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import measure

BENCHES = (
    "cpu_per_run",
    "idle_memory",
    "status_latency",
    "concurrent_runs",
    "events",
    "restarts",
    "hung_tools",
    "journal",
    "long_life",
    "sleeping",
    "prices",
    "sse",
    "gate",
    "import_time",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHES]
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    failed: list[str] = []
    for name in given.names or BENCHES:
        arguments = ["--quick"] if given.quick else []
        if name == "sse":
            arguments = ["10"] if given.quick else ["50"]
            measure.title("sse: the parser of server-sent events")
        began = time.perf_counter()
        done = subprocess.run([sys.executable, str(measure.HERE / f"{name}.py"), *arguments], check=False)
        if done.returncode:
            failed.append(name)
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
    if failed:
        print(f"these benches failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
