"""`make chaos` in small, and that its checker can fail: books that were tampered with do not pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.chaos import plan, run
from tests.chaos_books import Books, Report, check

pytestmark = pytest.mark.slow

KILLS = 8


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """What a small run leaves behind; the seed is printed where a test fails."""
    seed = time.time_ns() % 2**32
    kills = KILLS
    while True:
        print(f"python -m tests.chaos --kills {kills} --seed {seed}")
        books = asyncio.run(run(kills, seed, tmp_path_factory.mktemp("chaos")))
        if kills > 3 * KILLS or has_everything(books):
            return books
        kills *= 2  # a slow machine: too little came to pass for the promises to mean anything


def has_everything(books: Books) -> bool:
    """Whether there was something to lose of each kind."""
    types = {event.type for log in books.logs.values() for event in log}
    return (
        types >= {"input.delivered", "input.dropped", "tool.finished", "run.finished"}
        and {line["kind"] for line in books.told} >= {"send", "end", "steer", "cancel", "approve"}
        and {line["replay"] for line in books.ran} == {"never", "safe"}
        and any(line.get("fault") is None for line in books.served)
    )


def test_no_kill_breaks_a_promise(books: Books) -> None:
    """Nothing accepted is lost, nothing is done twice, all is paid for, and every run ends. rules 1, 2, 6, 7, 8, 11"""
    report = check(books)
    print(report)
    assert report.wrong == []
    assert has_everything(books)


def first(lines: Any, **wanted: Any) -> dict[str, Any]:
    return next(dict(line) for line in lines if all(line.get(key) == value for key, value in wanted.items()))


def without(books: Books, type: str) -> Books:
    """As if no event of a type had ever been committed."""
    logs = {key: [event for event in log if event.type != type] for key, log in books.logs.items()}
    return replace(books, logs=logs)


def with_seq(books: Books, *seqs: int) -> Books:
    return replace(books, rows=[*books.rows, *(("another", seq) for seq in seqs)])


def told(books: Books, **line: Any) -> Books:
    return replace(books, told=[*books.told, {"life": 0, **line}])


def run_again(books: Books, **changes: Any) -> Books:
    return replace(books, ran=[*books.ran, {**first(books.ran, replay="never"), **changes}])


def served(books: Books, **changes: Any) -> Books:
    line = first(books.served, fault=None)
    return replace(books, served=[*books.served, {**line, **changes}])


TAMPERED: Sequence[tuple[str, Callable[[Books], Books]]] = [
    ("inputs lost", lambda books: told(books, kind="send", run="lost", words="hello")),
    ("inputs lost", lambda books: told(books, kind="steer", run="r", input="lost", words="hello")),
    ("inputs lost", lambda books: told(books, kind="cancel", run="lost", by="me")),
    ("inputs lost", lambda books: told(books, kind="approve", run="r", call="lost", by="me")),
    (
        "results told that the journal does not have",
        lambda books: told(books, kind="end", run="lost", status="completed", cost="0"),
    ),
    ("inputs not delivered or dropped once", lambda books: without(books, "message.appended")),
    ("runs without exactly one end", lambda books: without(books, "run.finished")),
    ("faults that verify finds", lambda books: without(books, "run.finished")),
    ("duplicate seq", lambda books: with_seq(books, 1, 1)),
    ("gaps in seq, or seq out of order", lambda books: with_seq(books, 1, 3)),
    ("heads unlike their logs", lambda books: replace(books, rows=books.rows[:-1])),
    ("requests refused as invalid", lambda books: served(books, faults=["two user messages in a row"])),
    ("attempts sent twice", lambda books: served(books)),
    ("cost intents lost (requests without model.started)", lambda books: served(books, user="lost/1/1")),
    ("cost intents lost (requests without model.started)", lambda books: without(books, "model.started")),
    ("attempts without exactly one row in the bill", lambda books: without(books, "usage.updated")),
    ("bills that do not add up", lambda books: without(books, "usage.updated")),
    ("bill rows unlike the server's", lambda books: replace(books, served=[])),
    ('replay="never" executed twice', lambda books: run_again(books)),
    ('replay="never" executed twice', lambda books: run_again(books, key="another")),
    ("executions under another idempotency key", lambda books: run_again(books, key="another")),
    ("executions without tool.started", lambda books: run_again(books, turn=99)),
    ("executions that nobody asked for or allowed", lambda books: run_again(books, token="nobody's")),
    ("executions that nobody asked for or allowed", lambda books: run_again(books, call="x", tool="launch")),
    ("results of tools that did not run", lambda books: replace(books, ran=[])),
    ("lines of errors and warnings", lambda books: replace(books, errors=["Traceback"])),
]


@pytest.mark.parametrize(("row", "tamper"), TAMPERED)
def test_the_checker_can_fail(books: Books, row: str, tamper: Callable[[Books], Books]) -> None:
    """Each promise is broken by books that say so, and only then."""
    assert row not in check(books).broken
    report = check(tamper(books))
    assert row in report.broken
    assert f"{row}:" in "\n".join(report.wrong)
    assert "<-- BROKEN" in str(report)


def test_a_seed_is_a_plan() -> None:
    """The same seed kills at the same moments, and all kinds of moments are in it."""
    assert plan(50, 7) == plan(50, 7)
    assert plan(50, 7) != plan(50, 8)
    assert {kill.after for kill in plan(50, 7)} == {"spawn", "opening", "busy"}


def test_a_report_without_faults_is_no_failure() -> None:
    """A promise that was kept reads 0, and nothing is marked."""
    report = Report()
    report.promise("inputs lost", [])
    assert (str(report), report.wrong) == ("inputs lost  0", [])
