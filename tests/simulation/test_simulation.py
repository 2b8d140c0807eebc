"""The simulator proves what it says: clean seeds, seeds that repeat to the bit, and planted bugs that it finds.

make simulate SEEDS=2000        # more of the first
"""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from random import Random

import pytest
from tests.simulation.disk import Platter, SimDisk
from tests.simulation.loop import Clockwork, SimEnv
from tests.simulation.planted import BUGS, simulate_with
from tests.simulation.world import STORE

from nitinol.journal.schema import SCHEMA
from nitinol.journal.sqlite import SqliteJournal

pytestmark = pytest.mark.slow

SEEDS = 60
ENOUGH = 200
"""Seeds within which a planted bug must be found."""


@pytest.mark.timeout(300)
def test_seeds_are_clean() -> None:
    """Nothing accepted is lost, and nothing happens twice, whatever crashes, fails or loses power."""
    found = {seed: report.wrong for seed in range(SEEDS) if (report := simulate_with(seed)).wrong}
    assert not found, f"replay it: python -m tests.simulation --seed {next(iter(found))} -v"


def test_a_seed_repeats_exactly() -> None:
    """In one process, and in another that hashes strings in another order."""
    first = [simulate_with(seed).hash for seed in range(5)]
    assert [simulate_with(seed).hash for seed in range(5)] == first
    program = (
        "from tests.simulation.planted import simulate_with; print([simulate_with(seed).hash for seed in range(5)])"
    )
    for hashes in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert other.stdout.strip() == str(first)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """By a seed that is clean without it."""
    found = next((seed for seed in range(ENOUGH) if simulate_with(seed, bug).wrong), None)
    assert found is not None
    print(f"{bug} is found by seed {found}")
    assert not simulate_with(found).wrong


def test_a_store_outlives_a_power_cut_however_its_first_life_ended() -> None:
    """Killed at any write while the file is made, opened again, closed: then it is there. Seed 2138 once lost it."""
    for operations in range(1, 40):
        platter = Platter()
        first = _open(platter, operations)
        assert first.dead or operations > 20
        assert not _open(platter).dead
        for chance in range(20):
            after = deepcopy(platter)
            after.lose_power(Random(chance))
            disk = SimDisk(after)
            found = disk.connect(STORE).execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
            disk.bury()
            assert found == (str(SCHEMA),)


def _open(platter: Platter, operations: int | None = None) -> SimDisk:
    """Open a journal, and close it, if it does not die before."""
    clockwork = Clockwork(Random(1))
    env, disk = SimEnv(clockwork, "test"), SimDisk(platter)
    disk.operations_left = operations
    journal = SqliteJournal(STORE, env, env.start_loop("core"), disk)
    if not disk.dead:
        journal.close()
    disk.bury()
    return disk
