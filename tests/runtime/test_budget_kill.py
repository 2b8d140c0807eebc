"""`kill -9` while 32 agents spend one budget: the ledgers equal the log, nothing is reserved for ever, and it holds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from tests.runtime.spender import BUDGET

from nitinol import events as ev
from nitinol.cli import main
from nitinol.journal.audit import audit
from nitinol.journal.read_only import ReadOnlyJournal

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parents[1])])}


def start(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "spender.py"), str(path / "agents.db"), str(path / "books")]
    return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill_after(path: Path, requests: int) -> None:
    """In the middle of it, by what the vendor has heard."""
    with start(path) as process:
        assert process.stdout is not None
        for _ in range(requests):
            if not process.stdout.readline():
                break
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize("seed", range(3))
def test_a_budget_outlives_kill_9(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three kills, then to the end. Between them the store is sound, and what was in flight is known to be reserved."""
    choice, open_at_death = random.Random(f"kill {seed}"), 0
    for _ in range(3):
        kill_after(tmp_path, choice.randint(33, 60))
        assert main(["verify", str(tmp_path / "agents.db")]) == 0
        journal = ReadOnlyJournal(tmp_path / "agents.db")
        open_at_death += len(journal.heads(reserved=True))
        journal.close()
    with start(tmp_path) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert open_at_death

    assert main(["verify", str(tmp_path / "agents.db")]) == 0
    assert "no fault" in capsys.readouterr().out
    journal = ReadOnlyJournal(tmp_path / "agents.db")
    log, left = journal.scan(0, 1_000_000), journal.heads(reserved=True)
    journal.close()
    assert left == []
    rows = [event for event in log if isinstance(event, ev.UsageUpdated)]
    recorded = sum((row.cost or Decimal(0) for row in rows), Decimal(0))
    billed = sum((Decimal(line) for line in (tmp_path / "books").read_text().split()), Decimal(0))
    assert audit(tmp_path / "agents.db").spent.priced == recorded
    assert BUDGET.usd is not None
    assert billed <= recorded <= BUDGET.usd
    assert recorded > BUDGET.usd * Decimal("0.9")
    orphans = [event for event in log if isinstance(event, ev.ModelFailed) and event.error_type == "Interrupted"]
    assert len(orphans) == open_at_death, "each that was in flight has its row, as an estimate"
