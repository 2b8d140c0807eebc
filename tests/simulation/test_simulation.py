"""The simulator proves what it says: clean seeds, seeds that repeat to the bit, and planted bugs that it finds.

make simulate SEEDS=2000        # more of the first
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation.planted import BUGS, simulate_with

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
