"""The verbs of the command line that look into a store, or move an agent: log, agents, spend, tree, verify,
export, import.

All but `import` and `verify --rebuild` only read, beside the store's owner or without one, and need no definitions.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from nitinol.errors import BadExport, ConfigurationError, NotFound, StorageFailed

if TYPE_CHECKING:
    from nitinol.events import Event
    from nitinol.journal.base import Head, Past
    from nitinol.journal.bill import Spent
    from nitinol.journal.read_only import ReadOnlyJournal

PAGE = 1000
"""Events read at a time."""
MANY = 50
"""Agents of which `tree` shows all; of more, it shows those first that somebody should look at, and counts the rest."""
Command = Callable[[argparse.Namespace], int]


def add_commands(commands: Any) -> None:
    """Add the verbs to the parser's."""

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        verb = cast("argparse.ArgumentParser", commands.add_parser(name, help=help))
        verb.set_defaults(command=partial(_flushed, command))
        store = verb.add_argument("store", help="the file of a store, such as agents.db")
        store.required = command is not _log  # whose --type may have taken it with what is meant for it
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

    spend = add("spend", _spend, "show what was spent, by agents, keys, models or days")
    spend.add_argument("--by", choices=("agent", "key", "model", "day"), default="agent", help="what a line is (agent)")
    spend.add_argument("--json", action="store_true", help="print one object of JSON")

    tree = add("tree", _tree, "show the supervision tree of a store: who runs, waits, crashed or is parked, and why")
    tree.add_argument("--key", default="*", metavar="PATTERN", help="only agents whose key matches this shell pattern")
    tree.add_argument("--all", action="store_true", help=f"show every agent, also of more than {MANY}")
    tree.add_argument("--json", action="store_true", help="print one object of JSON, with every agent")

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

    if options.store is None:
        options.store = _store_among(options.type)
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


def _store_among(types: list[str]) -> str:
    """The store, which `--type` has taken with its patterns: the one word that is none."""
    from nitinol.actors.bus import matching_types

    def is_pattern(word: str) -> bool:
        try:
            return bool(matching_types([word]))
        except ValueError:
            return False

    words = [word for word in types if not is_pattern(word)]
    if len(words) != 1:
        raise ConfigurationError("which store? write it first: nitinol log agents.db --type 'tool.*' 'run.*'")
    types.remove(words[0])
    return words[0]


def _events(store: ReadOnlyJournal, options: argparse.Namespace) -> Iterator[Event]:
    """At least those that are wanted."""
    if options.run is not None:
        found = store.find_run(options.run)
        if found is None:
            raise NotFound(f"no run {options.run!r} is known in store {options.store!r}")
        return _pages(lambda last: store.read(found[0], last.seq if last else found[1] - 1, PAGE))
    key: str | None = options.key
    if key is not None and not _is_glob(key):
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
    iso = _iso(ns)
    return "-" if iso is None else f"{iso[:-7]}Z"


def _iso(ns: int) -> str | None:
    """As in the JSON of events; the 0 of what has not happened is `None`."""
    from nitinol.events import to_iso

    return to_iso(ns) if ns else None


# -- agents


def _agents(options: argparse.Namespace) -> int:
    with _open(options) as store:
        heads = [head for head in store.heads() if fnmatchcase(head.key, options.pattern)]
        bill = [spent for key, spent in store.spent("key").items() if fnmatchcase(key, options.pattern)]
    if not bill:
        _check_found(heads, options.pattern, options.store)
    total = _total(bill)
    if options.json:
        usage = {name: value for name, value in _plain(total.usage).items() if value is not None}
        billed = {"usage": usage, "cost": str(total.priced), "unpriced": total.unpriced}
        print(json.dumps({"agents": [_head_data(head) for head in heads], "bill": billed}, ensure_ascii=False))
        return 0
    from nitinol import terminal

    header = ("key", "agent", "state", "open runs", "messages", "tokens", "cost", "last event")
    rows = [
        (
            terminal.in_line(head.key, 60), terminal.in_line(head.agent, 30), head.state, str(head.open_runs),
            str(head.messages), f"{head.usage.total_tokens:,}", terminal.show_cost(head.cost), _time(head.last_event_at),
        )
        for head in heads
    ]  # fmt: skip
    for line in terminal.table((header, *rows), right=(3, 4, 5, 6)) if rows else ():
        print(line)
    open_runs = sum(head.open_runs for head in heads)
    print(
        f"{terminal.count(len(heads), 'agent')}, {terminal.count(open_runs, 'open run')};"
        f" the bill: {terminal.show_tokens(total.usage)}, {terminal.show_cost(total.priced)}{_unpriced(total)}"
    )
    return 0


def _check_found(heads: Sequence[Head], pattern: str, store: str) -> None:
    if not heads and not _is_glob(pattern):
        raise NotFound(f"no agent has the key {pattern!r} in store {store!r}; `nitinol agents {store}` shows all")


def _is_glob(pattern: str) -> bool:
    return any(char in pattern for char in "*?[")


def _head_data(head: Head) -> dict[str, Any]:
    return {
        "key": head.key, "agent": head.agent, "state": head.state, "seq": head.seq, "run_id": head.run_id,
        "open_runs": head.open_runs, "messages": head.messages, "usage": _plain(head.usage),
        "cost": None if head.cost is None else str(head.cost),
        "started_at": _iso(head.started_at), "last_event_at": _iso(head.last_event_at),
    }  # fmt: skip


def _plain(usage: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        name: value if isinstance(value, int) or value is None else str(value) for name, value in asdict(usage).items()
    }


# -- spend


def _spend(options: argparse.Namespace) -> int:
    with _open(options) as store:
        bill = store.spent(options.by)
    total = _total(bill.values())
    if options.json:
        print(json.dumps({name: _spent_data(spent) for name, spent in bill.items()}, ensure_ascii=False))
        return 0
    from nitinol import terminal

    header = (options.by, "in", "of it cached", "out", "cost", "without a price")
    rows = [
        (
            terminal.in_line(name, 60), f"{spent.usage.input_tokens:,}", f"{spent.usage.cache_read_tokens:,}",
            f"{spent.usage.output_tokens:,}", terminal.show_cost(spent.priced if spent.priced else spent.cost),
            str(spent.unpriced or ""),
        )
        for name, spent in bill.items()
    ]  # fmt: skip
    for line in terminal.table((header, *rows), right=(1, 2, 3, 4, 5)) if rows else ():
        print(line)
    print(f"the bill: {terminal.show_tokens(total.usage)}, {terminal.show_cost(total.priced)}{_unpriced(total)}")
    return 0


def _spent_data(spent: Spent) -> dict[str, Any]:
    cost = None if spent.cost is None else str(spent.cost)
    return {"usage": _plain(spent.usage), "cost": cost, "priced": str(spent.priced), "unpriced": spent.unpriced}


def _total(bill: Iterable[Spent]) -> Spent:
    from nitinol.journal.bill import Spent

    return sum(bill, Spent())


def _unpriced(spent: Spent) -> str:
    from nitinol import terminal

    return f" and {terminal.count(spent.unpriced, 'row')} without a price" if spent.unpriced else ""


# -- tree


@dataclass(frozen=True, slots=True)
class _Branch:
    """An agent in the tree."""

    head: Head
    past: Past

    @property
    def weight(self) -> tuple[int, ...]:
        """What somebody should look at comes first: parked, then crashed, then at work."""
        head = self.head
        return (
            -(head.state == "parked"),
            -(self.past.last_reason is not None),
            -bool(head.open_runs),
            -head.last_event_at,
        )


def _tree(options: argparse.Namespace) -> int:
    from nitinol.journal import path_of
    from nitinol.journal.base import Past
    from nitinol.journal.owner import owner_of

    with _open(options) as store:
        heads = [head for head in store.heads() if fnmatchcase(head.key, options.key)]
        pasts = store.pasts()
    _check_found(heads, options.key, options.store)
    agents = [_Branch(head, pasts.get(head.key) or Past()) for head in heads]
    owner = owner_of(path_of(options.store).resolve())
    if options.json:
        print(json.dumps(_tree_data(options.store, owner, agents), ensure_ascii=False))
        return 0
    _print_tree(options, owner, agents)
    return 0


def _tree_data(store: str, owner: tuple[int, bool] | None, agents: Sequence[_Branch]) -> dict[str, Any]:
    return {
        "store": store,
        "owner": None if owner is None else {"process": owner[0], "alive": owner[1]},
        "states": _count_states(agents),
        "open_runs": sum(agent.head.open_runs for agent in agents),
        "agents": [
            {
                "key": agent.head.key, "agent": agent.head.agent, "state": agent.head.state,
                "incarnation": agent.past.incarnation, "restarts": agent.past.restarts,
                "last_reason": agent.past.last_reason, "run_id": agent.head.run_id, "open_runs": agent.head.open_runs,
                "last_event_at": _iso(agent.head.last_event_at),
            }
            for agent in agents
        ],
    }  # fmt: skip


def _print_tree(options: argparse.Namespace, owner: tuple[int, bool] | None, agents: Sequence[_Branch]) -> None:
    from rich.console import Console

    from nitinol import terminal

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    few = len(agents) <= MANY or options.all
    shown = agents if few else sorted(agents, key=lambda agent: agent.weight)[:MANY]
    states = ", ".join(f"{number} {state}" for state, number in _count_states(agents).items())
    open_runs = sum(agent.head.open_runs for agent in agents)
    console.print(f"{terminal.in_line(options.store)}: {_show_owner(owner)}", style="bold")
    counts = f"{terminal.count(len(agents), 'agent')}{f' ({states})' if states else ''}"
    console.print(f"└─ agents: {counts}, {terminal.count(open_runs, 'open run')}")
    rows = [_show_branch(agent) for agent in shown]
    left = len(agents) - len(shown)
    lines = terminal.table([row for row, _ in rows], right=()) if rows else ()
    for number, (line, (_, style)) in enumerate(zip(lines, rows, strict=False), 1):
        console.print(f"   {'└─' if number == len(rows) and not left else '├─'} {line}", style=style)
    if left:
        console.print(
            f"   └─ … and {left} more that are less urgent: --all shows them, --key PATTERN some", style="dim"
        )


def _show_owner(owner: tuple[int, bool] | None) -> str:
    if owner is None:
        return "nobody owns it"
    process, alive = owner
    return f"owned by process {process}" if alive else f"process {process} owned it and is gone; this is what it left"


def _show_branch(agent: _Branch) -> tuple[tuple[str, ...], str]:
    """An agent's columns, and the style of its line."""
    from nitinol import terminal

    head, past = agent.head, agent.past
    facts = [f"incarnation {past.incarnation}"]
    if past.restarts:
        facts.append(terminal.count(past.restarts, "restart"))
    if head.open_runs:
        facts.append(terminal.count(head.open_runs, "open run"))
    reason = "" if past.last_reason is None else terminal.in_line(past.last_reason, 120)
    style = "bold red" if head.state == "parked" else "yellow" if reason else "" if head.open_runs else "dim"
    columns = (terminal.in_line(head.key, 60), terminal.in_line(head.agent, 30), head.state, ", ".join(facts))
    return (*columns, f"last: {reason}" if reason else ""), style


def _count_states(agents: Iterable[_Branch]) -> dict[str, int]:
    """How many agents are in which state, the most frequent first."""
    return dict(Counter(agent.head.state for agent in agents).most_common())


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
        f" {terminal.show_cost(found.spent.priced)}{_unpriced(found.spent)};"
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
