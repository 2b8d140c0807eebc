"""The verbs of the command line that look into a store, or move an agent: log, agents, verify, export, import.

All but `import` and `verify --rebuild` only read, beside the store's owner or without one, and need no definitions.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from nitinol.errors import BadExport, ConfigurationError, NotFound, StorageFailed

if TYPE_CHECKING:
    from nitinol.events import Event
    from nitinol.journal.base import Head
    from nitinol.journal.read_only import ReadOnlyJournal
    from nitinol.journal.rows import Spent

PAGE = 1000
"""Events read at a time."""
Command = Callable[[argparse.Namespace], int]


def add_commands(commands: Any) -> None:
    """Add the verbs to the parser's."""

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        verb = cast("argparse.ArgumentParser", commands.add_parser(name, help=help))
        verb.set_defaults(command=partial(_flushed, command))
        verb.add_argument("store", help="the file of a store, such as agents.db")
        return verb

    log = add("log", _log, "show what happened in a store, a line an event")
    log.add_argument("--key", help="only of agents whose key matches this shell pattern")
    log.add_argument("--run", metavar="RUN_ID", help="only of this run")
    log.add_argument("--type", nargs="+", action="extend", default=[], metavar="PATTERN", help="such as 'tool.*'")
    log.add_argument("--after", type=int, default=0, metavar="POSITION", help="only behind this position (0)")
    log.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    log.add_argument("--json", action="store_true", help="print events as lines of JSON")

    agents = add("agents", _agents, "show the agents of a store, and the bill")
    agents.add_argument("pattern", nargs="?", default="*", help="only keys that match this shell pattern")
    agents.add_argument("--json", action="store_true", help="print one object of JSON")

    verify = add("verify", _verify, "check a store from end to end")
    verify.add_argument(
        "--rebuild", action="store_true", help="first make anew what stands beside the log; needs no owner"
    )

    export = add("export", _export, "print an agent as lines of JSON")
    export.add_argument("key", help="of the agent")

    into = add("import", _import, "put an exported agent into a store, which is made where there is none")
    into.add_argument("file", help="made by nitinol export; - reads standard input")
    into.add_argument("--key", help="another key than it had")


def _flushed(command: Command, options: argparse.Namespace) -> int:
    try:
        return command(options)
    finally:
        # Here, where a reader that has left is nothing bad, and not as the interpreter ends.
        sys.stdout.flush()


def _open(options: argparse.Namespace) -> closing[ReadOnlyJournal]:
    from nitinol.journal import open_read_only

    return closing(open_read_only(options.store))


# -- log


def _log(options: argparse.Namespace) -> int:
    from nitinol.actors.bus import matching_types

    try:
        types = matching_types(options.type)
    except ValueError as error:
        raise ConfigurationError(f"--type: {error}") from None
    show: Callable[[Event], str] = _in_json if options.json else _InWords()
    if options.follow:
        return _follow(options, show)
    with _open(options) as store:
        if not 0 <= options.after <= store.position:
            raise ConfigurationError(
                f"--after {options.after} is no position of this store, whose last is {store.position}"
            )
        for event in _events(store, options):
            if (
                event.position > options.after
                and (types is None or event.type in types)
                and (options.key is None or fnmatchcase(event.key, options.key))
                and (options.run is None or event.run_id == options.run)
            ):
                print(show(event))
    return 0


def _events(store: ReadOnlyJournal, options: argparse.Namespace) -> Iterator[Event]:
    """At least those that are wanted."""
    if options.run is not None:
        found = store.find_run(options.run)
        if found is None:
            raise NotFound(f"no run {options.run!r} is known in store {options.store!r}")
        return _pages(lambda last: store.read(found[0], last.seq if last else found[1] - 1, PAGE))
    key: str | None = options.key
    if key is not None and not any(char in key for char in "*?["):
        if store.head(key) is None:
            raise NotFound(f"no agent has a log at {key!r} in store {options.store!r}; see `nitinol agents`")
        return _pages(lambda last: store.read(key, last.seq if last else 0, PAGE))
    return _pages(lambda last: store.scan(last.position if last else options.after, PAGE))


def _pages(read: Callable[[Event | None], Sequence[Any]]) -> Iterator[Event]:
    page = read(None)
    while page:
        yield from page
        page = read(page[-1])


def _follow(options: argparse.Namespace, show: Callable[[Event], str]) -> int:
    from nitinol.runtime import Runtime

    with Runtime(options.store, read_only=True) as rt:
        try:
            events = rt.subscribe(*options.type, key=options.key, run_id=options.run, after=options.after)
        except ValueError as error:
            raise ConfigurationError(f"--after: {error}") from None
        for event in events:
            print(show(event), flush=True)
    return 0


def _in_json(event: Event) -> str:
    return event.to_json()


class _InWords:
    """An event in a line; the columns grow with what is in them."""

    def __init__(self) -> None:
        from nitinol import terminal

        self._terminal = terminal
        self._width = 0

    def __call__(self, event: Event) -> str:
        who = self._terminal.in_line(f"{event.key}#{event.seq}")
        self._width = max(self._width, len(who))
        told = self._terminal.summary(event)
        return f"{event.position:>6}  {_time(event.ts)}  {who:<{self._width}}  {event.type:<18} {told}".rstrip()


def _time(ns: int) -> str:
    """UTC, to the millisecond; the 0 of what has not happened is a dash."""
    return (
        f"{datetime.fromtimestamp(ns // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%S}.{ns // 1_000_000 % 1000:03d}Z"
        if ns
        else "-"
    )


# -- agents


def _agents(options: argparse.Namespace) -> int:
    with _open(options) as store:
        heads = [head for head in store.heads() if fnmatchcase(head.key, options.pattern)]
        bill = [spent for key, spent in store.spent("key").items() if fnmatchcase(key, options.pattern)]
    total = _total(bill)
    if options.json:
        usage = {name: value for name, value in _plain(total.usage).items() if value is not None}
        billed = {"usage": usage, "cost": str(total.cost), "unpriced": total.unpriced}
        print(json.dumps({"agents": [_head_data(head) for head in heads], "bill": billed}, ensure_ascii=False))
        return 0
    from nitinol import terminal

    header = ("key", "agent", "state", "open runs", "messages", "tokens", "cost", "last event")
    rows = [
        (
            terminal.in_line(head.key, 60), terminal.in_line(head.agent, 30), _state(head), str(head.open_runs),
            str(head.messages), f"{head.usage.total_tokens:,}", terminal.show_cost(head.cost), _time(head.last_event_at),
        )
        for head in heads
    ]  # fmt: skip
    for line in _table((header, *rows), right=(3, 4, 5, 6)) if rows else ():
        print(line)
    open_runs = sum(head.open_runs for head in heads)
    print(
        f"{terminal.count(len(heads), 'agent')}, {terminal.count(open_runs, 'open run')};"
        f" the bill: {terminal.show_tokens(total.usage)}, {terminal.show_cost(total.cost)}{_unpriced(total)}"
    )
    return 0


def _state(head: Head) -> str:
    return "suspended" if head.state == "stopped" and head.open_runs else head.state


def _head_data(head: Head) -> dict[str, Any]:
    from nitinol.events import to_iso

    return {
        "key": head.key, "agent": head.agent, "state": _state(head), "seq": head.seq, "run_id": head.run_id,
        "open_runs": head.open_runs, "messages": head.messages, "usage": _plain(head.usage),
        "cost": None if head.cost is None else str(head.cost),
        "started_at": to_iso(head.started_at), "last_event_at": to_iso(head.last_event_at),
    }  # fmt: skip


def _plain(usage: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        name: value if isinstance(value, int) or value is None else str(value) for name, value in asdict(usage).items()
    }


def _total(bill: Iterable[Spent]) -> Spent:
    from nitinol.journal.rows import Spent

    total = Spent()
    for spent in bill:
        total = Spent(total.usage + spent.usage, total.cost + spent.cost, total.unpriced + spent.unpriced)
    return total


def _unpriced(spent: Spent) -> str:
    from nitinol import terminal

    return f" and {terminal.count(spent.unpriced, 'row')} without a price" if spent.unpriced else ""


def _table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """Columns as wide as they must be. (rich's own table takes seconds for ten thousand rows.)"""
    from rich.cells import cell_len

    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        gaps = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = (
            gap + cell if column in right else cell + gap
            for column, (gap, cell) in enumerate(zip(gaps, row, strict=True))
        )
        yield "  ".join(cells).rstrip()


# -- verify


def _verify(options: argparse.Namespace) -> int:
    from nitinol import terminal
    from nitinol.journal import path_of
    from nitinol.journal.audit import audit
    from nitinol.journal.rebuild import rebuild

    path = path_of(options.store)
    if options.rebuild:
        rebuild(path)
    found = audit(path)
    for fault in found.faults:
        where = "the store" if fault.key is None else terminal.in_line(fault.key)
        print(f"{where}: {terminal.in_line(fault.text, 500)}")
    print(
        f"{terminal.count(found.agents, 'agent')}, {terminal.count(found.events, 'event')},"
        f" {terminal.count(found.runs, 'run')}; the bill: {terminal.show_tokens(found.spent.usage)},"
        f" {terminal.show_cost(found.spent.cost)}{_unpriced(found.spent)};"
        f" {terminal.count(len(found.faults), 'fault') if found.faults else 'no fault'}"
    )
    return 1 if found.faults else 0


# -- export and import


def _export(options: argparse.Namespace) -> int:
    from nitinol.journal.transfer import export_lines

    with _open(options) as store:
        log = store.read(options.key)
    if not log:
        raise NotFound(f"no agent has a log at {options.key!r} in store {options.store!r}; see `nitinol agents`")
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(encoding="utf-8", errors="strict")  # whatever the terminal has: this is for a file
    for line in export_lines(options.key, log):
        print(line)
    return 0


def _import(options: argparse.Namespace) -> int:
    from nitinol import terminal
    from nitinol.journal.transfer import read_export
    from nitinol.runtime import Runtime

    lines = _lines(options.file)
    try:
        log = read_export(lines)  # before a store is opened, and perhaps made
    except BadExport as error:
        raise BadExport(f"{options.file!r}: {error}") from error
    with Runtime(options.store) as rt:
        key = rt.import_agent(lines, key=options.key)
    open_runs = terminal.count(len(log.state.queue) + (log.state.run is not None), "open run")
    print(f"imported {terminal.in_line(key)}: {terminal.count(len(log.events), 'event')}, {open_runs}")
    return 0


def _lines(file: str) -> list[str]:
    try:
        if file == "-":
            return list(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8"))
        with open(file, encoding="utf-8") as lines:
            return list(lines)
    except OSError as error:
        raise StorageFailed(
            f"{file!r} cannot be read: {error.strerror}; give a file made by `nitinol export`"
        ) from error
    except UnicodeDecodeError as error:
        raise BadExport(f"{file!r} is damaged, or no export: {error}") from error
