"""What `tests.chaos` leaves behind, held against the promises.

Four books are kept by those who saw it: the journal; `told`, what the users were told to be accepted; `ran`, what the
tools did; `served`, what the model server was asked and gave. `check` believes none of them and compares all.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from nitinol import events as ev
from nitinol.env import Env
from nitinol.journal.base import Head, verify
from nitinol.journal.sqlite import SqliteJournal

Line = Mapping[str, Any]
Attempt = tuple[str, int, int]
"""Run, turn, attempt."""
Call = tuple[str, int, str]
"""Run, turn, call id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """All that is known once the last life has ended."""

    told: Sequence[Line]
    ran: Sequence[Line]
    served: Sequence[Line]
    kills: Sequence[int]
    """When: nanoseconds since 1970."""
    rows: Sequence[tuple[str, int]]
    """Key and seq of each event, in the order of positions, past all of our own code."""
    errors: Sequence[str]
    """What the lives said on their standard error, warnings of Python's included."""
    heads: Sequence[Head]
    logs: Mapping[str, Sequence[ev.Event]]


def read(folder: Path, kills: Sequence[int]) -> Books:
    """The books in a folder, of which nobody is writing any more."""
    store = folder / "agents.db"
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT key, seq FROM events ORDER BY position").fetchall()
    env = Env()
    core = env.start_loop("chaos-core")
    journal = SqliteJournal(store, env, core)
    try:
        heads = journal.heads()
        logs = {head.key: cast("Sequence[ev.Event]", journal.read(head.key)) for head in heads}
    finally:
        core.close(10.0)
        journal.close()
    told, ran, served = (_lines(folder / name) for name in ("told", "ran", "served"))
    errors = (folder / "errors").read_text().splitlines()
    return Books(told=told, ran=ran, served=served, kills=kills, rows=rows, errors=errors, heads=heads, logs=logs)


def _lines(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Report:
    """A table, and what is wrong; each promise is a row that should read 0."""

    rows: list[tuple[str, object]] = field(default_factory=list[tuple[str, object]])
    wrong: list[str] = field(default_factory=list[str])
    broken: set[str] = field(default_factory=set[str])
    """The rows of promises that were not kept."""

    def say(self, name: str, value: object) -> None:
        """A row that promises nothing."""
        self.rows.append((name, value))

    def promise(self, name: str, faults: Iterable[str]) -> None:
        """A row that counts what should not be."""
        found = list(faults)
        self.rows.append((name, len(found)))
        self.wrong += [f"{name}: {fault}" for fault in found]
        self.broken |= {name} if found else set()

    def count(self, name: str, counts: Mapping[str, int]) -> None:
        """A row of several counts."""
        self.say(name, ", ".join(f"{key} {count}" for key, count in sorted(counts.items())) or 0)

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(
            f"{name:<{width}}  {value}{'   <-- BROKEN' if name in self.broken else ''}" for name, value in self.rows
        )


def check(books: Books) -> Report:
    """Hold the books against each other."""
    report, journal = Report(), _Journal(books.logs)
    report.say("kills", len(books.kills))
    report.say("kills with an attempt or a tool open in the log", sum(map(journal.was_at_work, books.kills)))
    _inputs(report, books, journal)
    _runs(report, books, journal)
    _log(report, books)
    _requests(report, books, journal)
    _bill(report, books, journal)
    _executions(report, books, journal)
    report.promise("lines of errors and warnings", books.errors)
    return report


class _Journal:
    """All logs, by what the other books call things."""

    def __init__(self, logs: Mapping[str, Sequence[ev.Event]]) -> None:
        self.queued: Counter[str] = Counter()
        self.began: set[str] = set()
        self.ends: defaultdict[str, list[ev.RunFinished]] = defaultdict(list)
        self.cancelling: dict[str, ev.RunCancelling] = {}
        self.inputs: defaultdict[str, list[str]] = defaultdict(list)
        """Of each input, what happened to it: the last words of event types."""
        self.prompts: dict[str, str] = {}
        """Run or input to the words that it brings."""
        self.words: Counter[str] = Counter()
        """What users say in the conversations."""
        self.resolved: dict[tuple[str, str, str], str] = {}
        self.attempts: Counter[Attempt] = Counter()
        self.bill: defaultdict[Attempt, list[ev.UsageUpdated]] = defaultdict(list)
        self.lost = 0
        self.requested: dict[Call, ev.ToolRequested] = {}
        self.granted: Counter[Call] = Counter()
        self.outcomes: dict[Call, str] = {}
        self.approved: set[Call] = set()
        self._began: list[int] = []
        self._ended: list[int] = []
        for log in logs.values():
            for event in log:
                self._read(event)
        self._began.sort()
        self._ended.sort()

    def was_at_work(self, at: int) -> bool:
        """Whether an attempt or a tool was open at a time, as the logs have it."""
        return bisect_left(self._began, at) > bisect_left(self._ended, at)

    def _read(self, event: ev.Event) -> None:
        run = event.run_id or ""
        attempt, call = (run, event.turn, event.attempt), (run, event.turn, event.call_id or "")
        match event:
            case ev.RunQueued(prompt=prompt):
                self.queued[run] += 1
                self.prompts[run] = "" if prompt is None else prompt.text
            case ev.RunStarted():
                self.began.add(run)
            case ev.RunCancelling():
                self.cancelling.setdefault(run, event)
            case ev.RunFinished():
                self.ends[run].append(event)
            case ev.InputQueued():
                self.inputs[event.input_id].append("queued")
                self.prompts[event.input_id] = event.prompt.text
            case ev.InputDelivered() | ev.InputDropped():
                self.inputs[event.input_id].append(event.type.removeprefix("input."))
            case ev.MessageAppended(message=message) if message.role == "user":
                self.words[message.text] += 1
            case ev.ApprovalResolved():
                self.resolved[run, event.call_id or "", event.by] = event.decision
                if event.decision == "approve":
                    self.approved.add(call)
            case ev.ModelStarted():
                self.attempts[attempt] += 1
                self._began.append(event.ts)
            case ev.ModelFinished() | ev.ModelFailed():
                self.lost += event.type == "model.failed" and event.error_type == "Interrupted"
                if self.attempts[attempt]:  # one that failed before it was sent never began
                    self._ended.append(event.ts)
            case ev.UsageUpdated():
                self.bill[attempt].append(event)
            case ev.ToolRequested():
                self.requested[call] = event
            case ev.ToolStarted():
                if not self.granted[call]:
                    self._began.append(event.ts)
                self.granted[call] += 1
            case ev.ToolFinished():
                self.outcomes[call] = event.outcome
                if self.granted[call]:
                    self._ended.append(event.ts)
            case _:
                pass


def _inputs(report: Report, books: Books, journal: _Journal) -> None:
    def is_kept(line: Line) -> bool:
        run = line["run"]
        match line["kind"]:
            case "send":
                return run in journal.queued and journal.prompts[run] == line["words"]
            case "steer" | "follow_up":
                return line["input"] in journal.inputs and journal.prompts[line["input"]] == line["words"]
            case "cancel":
                return run in journal.cancelling or any(end.status == "cancelled" for end in journal.ends[run])
            case kind:
                return bool(journal.resolved.get((run, line["call"], line["by"])) == kind)

    inputs = [line for line in books.told if line["kind"] not in ("end", "try")]
    report.count("inputs accepted", Counter(line["kind"] for line in inputs))
    tries = Counter(line["run"] for line in books.told if line["kind"] == "try")
    report.say("sends repeated, as nobody knew of the first", sum(count - 1 for count in tries.values()))
    report.promise("inputs lost", (f"{line}" for line in inputs if not is_kept(line)))
    accepted_twice = [f"run {run!r}" for run, count in journal.queued.items() if count > 1]
    accepted_twice += [f"input {input!r}" for input, fates in journal.inputs.items() if fates.count("queued") > 1]
    report.promise("inputs accepted twice", accepted_twice)
    fates = {run: int(run in journal.began) for run in journal.queued}
    fates |= {input: fates.count("delivered") for input, fates in journal.inputs.items()}
    wrong = [
        f"{id!r}: told {times} times, in the conversation {journal.words[journal.prompts[id]]} times"
        for id, times in fates.items()
        if times > 1 or journal.words[journal.prompts[id]] != times
    ]
    wrong += [f"{input!r}: {fates}" for input, fates in journal.inputs.items() if len(fates) != 2]
    report.promise("inputs not delivered or dropped once", wrong)


def _runs(report: Report, books: Books, journal: _Journal) -> None:
    report.say("runs accepted", len(journal.queued))
    report.count("runs ended", Counter(end.status for ends in journal.ends.values() for end in ends))
    report.promise(
        "runs without exactly one end",
        (f"{run!r}: {journal.ends[run]}" for run in journal.queued if len(journal.ends[run]) != 1),
    )
    report.promise(
        "ends unlike the first decision to end",
        (
            f"{run!r}: to end {decision.status}, ended {[end.status for end in journal.ends[run]]}"
            for run, decision in journal.cancelling.items()
            if any(end.status != decision.status for end in journal.ends[run])
        ),
    )
    told = [line for line in books.told if line["kind"] == "end"]
    report.promise(
        "results told that the journal does not have",
        (
            f"{line}"
            for line in told
            if [(end.status, str(end.cost)) for end in journal.ends[line["run"]]] != [(line["status"], line["cost"])]
        ),
    )


def _log(report: Report, books: Books) -> None:
    report.say("agents", len(books.logs))
    report.say("events", len(books.rows))
    seqs: defaultdict[str, list[int]] = defaultdict(list)
    for key, seq in books.rows:
        seqs[key].append(seq)
    counts = Counter(books.rows)
    report.promise("duplicate seq", (f"{key!r} seq {seq}" for (key, seq), count in counts.items() if count > 1))
    report.promise(
        "gaps in seq, or seq out of order",
        (
            f"{key!r}: seq {seq} comes after {before}"
            for key, found in seqs.items()
            for before, seq in pairwise([0, *found])
            if seq not in (before, before + 1)
        ),
    )
    found = {key: verify(log) for key, log in books.logs.items()}
    report.promise("faults that verify finds", (f"{key!r}: {fault}" for key in found for fault in found[key]))
    report.promise(
        "heads unlike their logs",
        (f"{head}" for head in books.heads if head.seq != max(seqs.get(head.key, [0])) or head.open_runs),
    )


def _requests(report: Report, books: Books, journal: _Journal) -> None:
    requests = [line for line in books.served if "request" in line]
    whole = {line["answered"] for line in books.served if line.get("whole")}
    report.say("requests that reached the server", len(requests))
    report.say("answered whole", len(whole))
    faults = Counter(line["fault"] for line in requests if line.get("fault"))
    report.count("answered with a fault, on purpose", faults)
    report.say("attempts lost to kills", journal.lost)
    report.promise(
        "requests refused as invalid", (f"{line['user']!r}: {line['faults']}" for line in requests if line["faults"])
    )
    sent = Counter(line["user"] for line in requests)
    report.promise("attempts sent twice", (f"{user!r}" for user, count in sent.items() if count > 1))
    report.promise(
        "cost intents lost (requests without model.started)",
        (f"{user!r}" for user in sent if _attempt(user) not in journal.attempts),
    )


def _bill(report: Report, books: Books, journal: _Journal) -> None:
    report.promise(
        "attempts without exactly one row in the bill",
        (
            f"{attempt}: {len(journal.bill[attempt])} rows"
            for attempt in {*journal.attempts, *journal.bill}
            if journal.attempts[attempt] != 1 or len(journal.bill[attempt]) != 1
        ),
    )
    served = {_attempt(line["user"]): line for line in books.served if "request" in line}
    wrong: list[str] = []
    known = estimated = Decimal(0)
    of_run: defaultdict[str, Decimal] = defaultdict(Decimal)
    for attempt, rows in journal.bill.items():
        for row in rows:
            if row.cost is None:
                wrong.append(f"{attempt}: its cost is unknown")
                continue
            of_run[attempt[0]] += row.cost
            if row.estimated:
                estimated += row.cost
                continue
            known += row.cost
            usage = _usage(served.get(attempt, {}))
            if usage is None or (row.usage.input_tokens, row.usage.output_tokens) != usage:
                wrong.append(f"{attempt}: the bill says {row.usage}, the server {usage}")
    report.promise("bill rows unlike the server's", wrong)
    sums = [
        f"run {run!r}: {end.cost} in its end, {of_run[run]} in its rows"
        for run, ends in journal.ends.items()
        for end in ends
        if end.cost != of_run[run]
    ]
    for key, log in books.logs.items():
        costs = [event for event in log if event.type == "usage.updated"]
        if costs and costs[-1].agent_cost != sum(event.cost or 0 for event in costs):
            sums.append(f"agent {key!r}: {costs[-1].agent_cost} in its last row, not the sum of its rows")
    report.promise("bills that do not add up", sums)
    report.say("the bill, in dollars", f"{known + estimated} = {known} as the server told + {estimated} estimated")


def _usage(line: Line) -> tuple[int, int] | None:
    """What the server charges for a request: nothing where it refused or never saw it, None where it broke off."""
    if line.get("fault") in ("cut", "error in stream"):
        return None
    if not line or line["faults"] or line["fault"]:
        return 0, 0
    return line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"]


def _executions(report: Report, books: Books, journal: _Journal) -> None:
    report.count("executions of tools", Counter(f"{line['tool']} ({line['replay']})" for line in books.ran))
    report.count("calls answered", Counter(journal.outcomes.values()))
    keys: Counter[str] = Counter(line["key"] for line in books.ran)
    tokens: Counter[str] = Counter(line["token"] for line in books.ran)
    never = [line for line in books.ran if line["replay"] == "never"]
    report.promise(
        'replay="never" executed twice',
        {f"{line['key']!r}" for line in never if keys[line["key"]] > 1 or tokens[line["token"]] > 1},
    )
    safe = {line["key"] for line in books.ran if line["replay"] == "safe"}
    report.say('replay="safe" executed again', sum(keys[key] - 1 for key in safe))
    of_token: defaultdict[str, set[str]] = defaultdict(set)
    of_key: defaultdict[str, set[str]] = defaultdict(set)
    executed: Counter[Call] = Counter()
    wrong: list[str] = []
    for line in books.ran:
        of_token[line["token"]].add(line["key"])
        of_key[line["key"]].add(line["token"])
        call = (line["run"], line["turn"], line["call"])
        executed[call] += 1
        requested = journal.requested.get(call)
        if requested is None or requested.idempotency_key != line["key"]:
            wrong.append(f"{line}: the journal has {requested}")
    wrong += [f"{one!r}: {many}" for one, many in (*of_token.items(), *of_key.items()) if len(many) > 1]
    report.promise("executions under another idempotency key", wrong)
    report.promise(
        "executions without tool.started",
        (f"{call}" for call, times in executed.items() if times > journal.granted[call]),
    )
    asked = {token for line in books.served for token in _tokens(line)}
    launched = {(line["run"], line["turn"], line["call"]) for line in books.ran if line["tool"] == "launch"}
    unwanted = [f"no model asked for {token!r}" for token in tokens if token not in asked]
    unwanted += [f"nobody approved {call}" for call in launched - journal.approved]
    unwanted += [f"{call} was denied" for call in executed if journal.outcomes.get(call) == "denied"]
    report.promise("executions that nobody asked for or allowed", unwanted)
    report.promise(
        "results of tools that did not run",
        (f"{call}" for call, outcome in journal.outcomes.items() if outcome == "ok" and not executed[call]),
    )


def _attempt(user: str) -> Attempt:
    run, turn, attempt = user.rsplit("/", 2)
    return run, int(turn), int(attempt)


def _tokens(line: Line) -> Iterable[str]:
    return (json.loads(call["function"]["arguments"])["token"] for call in line.get("calls") or ())
