"""The simulator from the command line.

python -m tests.simulation --seeds 2000            # that many, on all cores
python -m tests.simulation --seed 4711 -v          # this one again, told step by step
python -m tests.simulation --bug drop_one_commit   # until a planted bug is found
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from functools import partial

from tests.simulation.planted import BUGS, simulate_with
from tests.simulation.world import Numbers, Report

from nitinol.journal.base import CRASH_POINTS


def main() -> int:
    """0 if every seed is clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant it")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --seed: tell everything")
    given = parser.parse_args()
    if given.seed is not None:
        reports: Iterator[Report] = iter([simulate_with(given.seed, given.bug, _tell if given.verbose else None)])
        return _sum_up(reports, 1, given.bug)
    seeds = range(given.start, given.start + given.seeds)
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        return _sum_up(pool.imap_unordered(partial(simulate_with, bug=given.bug), seeds, 5), len(seeds), given.bug)


def _tell(line: str) -> None:
    print(line)


def _sum_up(reports: Iterator[Report], seeds: int, bug: str | None) -> int:
    began, failed, total = time.monotonic(), 0, Numbers()
    done = 0
    for report in reports:
        done += 1
        total.add(report.numbers)
        if report.wrong:
            failed += 1
            planted = f" --bug {bug}" if bug else ""
            print(f"seed {report.seed} (trace {report.hash:08x}) fails:", *report.wrong, sep="\n    ")
            print(f"    replay it: python -m tests.simulation --seed {report.seed} -v{planted}", flush=True)
    seconds = time.monotonic() - began
    print(f"{done} seeds in {seconds:.1f} s ({done / seconds:.1f} a second): {failed or 'none'} failed")
    print(
        f"{total.lives} lives, {total.virtual / 86_400:.1f} days, {total.steps} steps, {total.events} events, {total.requests}"
        f" requests ({total.limited} came too soon), {total.executions} executions, {total.power_cuts} power cuts, {total.faults} disk errors"
    )
    if seeds > 1:
        print("how lives ended:", ", ".join(f"{how} {count}" for how, count in sorted(total.crashes.items())))
        never = [point for point in CRASH_POINTS if not total.crashes[point]]
        unreached = [point for point in never if not total.reached[point]]
        at = len([point for point in CRASH_POINTS if total.cancelled[point]])
        print(f"cancels at a point: {sum(total.cancelled.values())}, at {at} of {len(CRASH_POINTS)}")
        print("actors of users:", ", ".join(f"{what} {count}" for what, count in sorted(total.troupe.items())))
        print(f"crash points hit: {len(CRASH_POINTS) - len(never)} of {len(CRASH_POINTS)};", end=" ")
        print(f"not hit: {', '.join(never) or 'none'}; not even reached: {', '.join(unreached) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    logging.raiseExceptions = False
    sys.exit(main())
