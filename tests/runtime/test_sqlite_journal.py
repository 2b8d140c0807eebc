"""The SQLite journal: what it acknowledged is there, whatever happened since, and one process owns the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from tests.logs_of import SOON, assert_valid, log_of

from nitinol import Agent, Image, Message, ModelRequest, Runtime, events
from nitinol.env import Env, Loop
from nitinol.errors import ConfigurationError, KeyTaken, NewerSchema, NotFound, StorageFailed, StoreInUse
from nitinol.events import EventBase
from nitinol.journal import open_journal
from nitinol.journal.base import Conflict, Opening, verify
from nitinol.journal.sqlite import SqliteJournal
from nitinol.messages import Compacted, Text, Thinking, ToolAnswer, ToolCall
from nitinol.state import AgentState, BrokenLog
from nitinol.testing import Answer, ScriptedProvider
from nitinol.usage import Usage

HERE = Path(__file__).parent
FILL = 20_000
"""Characters of a message that fills a disk quickly."""


class Store:
    """A journal, and a core loop to call it on; every call waits for its outcome."""

    def __init__(self, path: Path, make: Callable[..., SqliteJournal] = SqliteJournal) -> None:
        self.core: Loop = Env().start_loop("test-core")
        try:
            self.journal = make(path, Env(), self.core)
        except BaseException:
            self.core.close(SOON)
            raise

    def open(self, key: str) -> Opening:
        opened: Future[Opening | Exception] = Future()
        self.core.call(self.journal.open, key, opened.set_result)
        outcome = opened.result(SOON)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def append(self, key: str, epoch: int, *batch: EventBase, state: AgentState | None = None) -> None:
        self.settle(self.appending(key, epoch, *batch, state=state))

    def appending(
        self, key: str, epoch: int, *batch: EventBase, state: AgentState | None = None
    ) -> Future[Exception | None]:
        committed: Future[Exception | None] = Future()
        self.core.call(self.journal.append, key, epoch, batch, state or after(*batch), committed.set_result)
        return committed

    def forget(self, key: str) -> None:
        forgotten: Future[Exception | None] = Future()
        self.core.call(self.journal.forget, key, forgotten.set_result)
        self.settle(forgotten)

    @staticmethod
    def settle(outcome: Future[Exception | None]) -> None:
        error = outcome.result(SOON)
        if error is not None:
            raise error

    def close(self) -> None:
        self.core.close(SOON)
        self.journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def after(*batch: EventBase) -> AgentState:
    """The state by these events alone."""
    return AgentState(batch[0].key, batch[0].agent, seq=batch[0].seq - 1).fold(batch)


def note(key: str, seq: int, text: str = "note") -> EventBase:
    """Some durable event."""
    return events.AgentConfigured(id=f"{key}#{seq}", seq=seq, key=key, agent="a", ts=seq, changes={"note": text})


def queued(key: str, seq: int, run_id: str) -> EventBase:
    """An accepted run."""
    return events.RunQueued(seq=seq, key=key, agent="a", run_id=run_id, prompt=None, pending_count=0)


def scout(name: str = "scout") -> Agent[str]:
    """An agent that always says the same."""

    def hi(request: ModelRequest) -> Answer:
        return "hi"

    return Agent(name=name, model=ScriptedProvider(hi))


def run_python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process of its own, which speaks line by line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


# ---- round trips


def test_what_was_appended_is_read_again(path: Path) -> None:
    """By key and by position, in this process and in the next one; seq and positions go on. rule 1"""
    store = Store(path)
    for key in ("k", "other"):
        assert store.open(key) == Opening(1, [])
        store.append(key, 1, note(key, 1), queued(key, 2, f"run-{key}"))
    store.append("k", 1, note("k", 3))
    journal = store.journal
    assert [event.seq for event in journal.read("k")] == [1, 2, 3]
    assert [event.seq for event in journal.read("k", 1, 1)] == [2]
    assert [event.position for event in journal.scan(0, 10)] == [1, 2, 3, 4, 5]
    assert [(event.key, event.seq) for event in journal.scan(2, 2)] == [("other", 1), ("other", 2)]
    assert (journal.find_run("run-other"), journal.find_run("nobody's")) == (("other", 2), None)
    store.close()
    store = Store(path)
    journal = store.journal
    assert journal.position == 5
    opening = store.open("k")
    assert (opening.epoch, [event.seq for event in opening.events]) == (2, [1, 2, 3])
    store.append("k", 2, note("k", 4))
    assert [event.position for event in journal.read("k")] == [1, 2, 5, 6]
    assert verify([*journal.read("other")]) == []
    store.close()


def test_heads_tell_what_is_open_without_reading_logs(store: Store) -> None:
    """Open runs are counted; a parked agent is not among the interrupted; one that was only opened is not known."""
    for key in ("busy", "done", "parked", "empty"):
        store.open(key)
    store.append("busy", 1, queued("busy", 1, "r1"))
    end: dict[str, Any] = {
        "status": "completed",
        "text": "",
        "turns": 0,
        "usage": Usage(),
        "cost": None,
        "duration": 0.0,
    }
    finished = events.RunFinished(seq=2, key="done", agent="a", run_id="r2", **end)
    store.append("done", 1, queued("done", 1, "r2"), finished)
    parked = events.AgentParked(seq=2, key="parked", agent="a", restarts=5, reason="")
    store.append("parked", 1, queued("parked", 1, "r3"), parked)
    journal = store.journal
    assert [head.key for head in journal.heads()] == ["busy", "done", "parked"]
    assert [head.key for head in journal.heads(active=True)] == ["busy"]
    head = journal.head("parked")
    assert head is not None
    assert (head.agent, head.seq, head.open_runs, head.state) == ("a", 2, 1, "parked")
    assert (journal.head("empty"), journal.head("nobody")) == (None, None)


def test_many_threads_read_while_one_writes(store: Store) -> None:
    """Each sees a prefix of the log, and no connection is left behind by a thread that has ended."""
    store.open("k")
    journal, seen = store.journal, threading.Barrier(8, timeout=SOON)

    def read(_: int) -> list[int]:
        seen.wait()
        return [event.seq for event in journal.read("k")]

    for seq in range(1, 30):
        appended = store.appending("k", 1, note("k", seq))
        with ThreadPoolExecutor(8) as pool:
            for seqs in pool.map(read, range(8)):
                assert seqs == [*range(1, len(seqs) + 1)]
        store.settle(appended)
    assert len(journal._idle) <= 8  # pyright: ignore[reportPrivateUsage]


# ---- who may write


def test_a_stale_incarnation_fails_alone(store: Store) -> None:
    """Its append is refused, whoever else is in the same transaction. rule 3"""
    held = threading.Event()
    store.core.call(held.wait, SOON)  # so that all of it waits for the writer together
    outcomes = [Future[Any]() for _ in range(5)]
    told = [cast("Callable[[object], None]", outcome.set_result) for outcome in outcomes]
    journal = store.journal
    store.core.call(journal.open, "k", told[0])
    store.core.call(journal.append, "k", 1, [note("k", 1)], after(note("k", 1)), told[1])
    store.core.call(journal.open, "k", told[2])
    store.core.call(journal.append, "k", 1, [note("k", 2)], after(note("k", 2)), told[3])
    store.core.call(journal.append, "k", 2, [note("k", 2, "new")], after(note("k", 2, "new")), told[4])
    held.set()
    first, one, second, stale, two = (outcome.result(SOON) for outcome in outcomes)
    assert (first.epoch, second.epoch, [event.seq for event in second.events]) == (1, 2, [1])
    assert (one, two) == (None, None)
    assert isinstance(stale, Conflict)
    assert cast("events.AgentConfigured", journal.read("k", 1)[0]).changes == {"note": "new"}


def test_a_gap_is_refused(store: Store) -> None:
    """Seq has neither gaps nor doubles. rule 1"""
    store.open("k")
    store.append("k", 1, note("k", 1))
    for seq in (1, 3):
        with pytest.raises(Conflict, match=f"seq {seq}"):
            store.append("k", 1, note("k", seq))
    store.append("k", 1, note("k", 2))


def test_a_run_of_another_key_fails_alone(store: Store) -> None:
    """A run_id is one run in the whole store; the decision that brings it a second time is not committed. rule 2"""
    store.open("k")
    store.open("other")
    store.append("k", 1, queued("k", 1, "r"))
    outcomes = [
        store.appending("other", 1, note("other", 1), queued("other", 2, "r")),
        store.appending("k", 1, note("k", 2)),
    ]
    with pytest.raises(Conflict, match="UNIQUE"):
        store.settle(outcomes[0])
    store.settle(outcomes[1])
    assert store.journal.read("other") == []
    store.append("other", 1, note("other", 1))


def test_what_no_store_can_hold_fails_alone(store: Store) -> None:
    """A key that is not Unicode neither opens nor holds up anybody."""
    opening = Future[Any]()
    store.core.call(store.journal.open, "bad\ud800", opening.set_result)
    good = store.open("k")
    assert isinstance(opening.result(SOON), Conflict)
    store.append("k", good.epoch, note("k", 1))


def test_an_outcome_that_raises_does_not_keep_others_waiting(store: Store) -> None:
    """Each callback is a call of its own on the core loop."""
    held = threading.Event()
    store.core.call(held.wait, SOON)

    def fail(_: object) -> None:
        raise RuntimeError("of a callback")

    store.core.call(store.journal.open, "k", fail)
    opened = Future[Any]()
    store.core.call(store.journal.open, "other", opened.set_result)
    held.set()
    assert opened.result(SOON).epoch == 1


# ---- events


def an(cls: type[EventBase], **envelope: Any) -> EventBase:
    """An event of a type, with something in every field."""
    usage = Usage(input_tokens=10, cache_read_tokens=3, output_tokens=5, reported_cost=Decimal("0.01"))
    call = ToolCall(call_id="c", name="add", arguments={"a": [1, None, {"b": "ü"}]}, signature="sig")
    answer = ToolAnswer(call_id="c", name="add", text="3", media=(Image(data=b"\x00\xff"),))
    parts = (Text("words\x00 and ☃"), Thinking(text="hm", signature="s"), Image(url="https://x/y.png"), call, answer)
    message = Message(role="assistant", parts=parts, provider="p", model="m")
    values: dict[str, Any] = {
        "recovered": True, "error_type": "ValueError", "error": "wrong", "restarts": 2, "delay": 0.5, "reason": "why",
        "changes": {"model": "x"}, "prompt": message, "pending_count": 1, "history": (message,), "model": "m",
        "deadline": 2.5, "definition": "abc", "recoveries": 1, "by": "kim", "status": "sealed", "text": "words",
        "turns": 3, "usage": usage, "cost": Decimal("0.000123"), "duration": 1.5, "message_count": 4,
        "estimated_tokens": 50, "stop_reason": "tool_use", "tool_calls": 2, "message": message, "provider": "p",
        "reserved": Decimal("1.10"), "max_output_tokens": 100, "response_id": "resp", "status_code": 529,
        "retry_after": 2.0, "request_id": "req", "retryable": True, "characters": 7, "from_model": "a",
        "to_model": "b", "name": "add", "arguments": {"a": [1, {"b": None}]}, "idempotency_key": "r/1/c",
        "tool_hash": "h", "isolation": "thread", "timeout": 2.0, "execution": 2, "outcome": "ok",
        "data": {"rows": [1, 2.5, "x", None, True]}, "media": (Image(data=b"\x89PNG", name="x.png"),),
        "expires_at": 1_700_000_000_123_456_789, "decision": "approve", "input_id": "i", "mode": "steer",
        "estimated": True, "price_source": "table", "run_usage": usage, "run_cost": None, "agent_usage": usage,
        "agent_cost": Decimal("12.34"), "scope": "run:r", "limit": "$1", "spent": "$0.9", "needed": "$0.2", "added": 1,
        "removed": 2, "budget": {"usd": "1.50", "tokens": 7}, "reserved_tokens": 70, "capped": "store", "tokens": 9, "measure": 2,
        "amount": Decimal("0.02"), "fraction": 0.8, "count": 3, "action": "nudge",
        "echo": "cafe", "context_window": 8000, "tokens_before": 90, "tokens_after": 9, "through": 4, "fallback": "truncate",
        "compacting": Compacted(hidden=3, kept=(0, 2)), "view": Compacted(hidden=3, handoff="so ☃", lost=1, clip=9),
    }  # fmt: skip
    wanted = [field.name for field in fields(cls) if field.name not in events.ENVELOPE]
    return cls(**envelope, **{name: values[name] for name in wanted})


DURABLE = [cls for cls in events.TYPES.values() if cls.durable]


@pytest.mark.parametrize("cls", DURABLE, ids=lambda cls: cls.type)
def test_every_durable_event_survives_the_store(cls: type[EventBase]) -> None:
    """Field by field, type by type: nothing is lost, nothing becomes something like it. rule 1"""
    envelope: dict[str, Any] = {
        "id": "k#7", "seq": 7, "ts": 1_700_000_000_123_456_789, "agent": "a", "key": "k", "incarnation": 2,
        "run_id": "r", "parent_run_id": "p", "root_run_id": "o", "group_id": "g", "turn": 3, "attempt": 2, "call_id": "c",
    }  # fmt: skip
    for event in (an(cls, **envelope), an(cls, seq=1, key="k", agent="a")):
        again = events.unpack(event.type, events.pack(event))
        assert type(again) is cls
        assert again.to_dict() == event.to_dict()
        for field in fields(cls):
            assert getattr(again, field.name) == getattr(event, field.name), field.name


def test_words_that_are_no_unicode_are_stored(store: Store) -> None:
    """A lone surrogate is replaced, and holds up nobody."""
    store.open("k")
    store.append("k", 1, note("k", 1, "a\ud800b"))
    assert cast("events.AgentConfigured", store.journal.read("k")[0]).changes == {"note": "a?b"}


def tamper(path: Path, statement: str, *values: object) -> None:
    """Change the file from outside."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("agent.teleported", b'{"seq":2,"where":"mars"}'),
        ("message.appended", b'{"seq":2,"message":"new shape"}'),
        ("run.queued", b"\x00rubbish"),
    ],
)
def test_an_event_of_a_newer_version_parks_its_agent(path: Path, type: str, body: bytes) -> None:
    """A monitor sees it as `custom`; its agent is refused with a reason, nothing is lost, and no other notices."""
    with Runtime(path, drain=0.0) as rt:
        for key in ("k", "other"):
            rt.start(scout(), key=key).ask("hi", timeout=SOON)
    tamper(
        path,
        "UPDATE events SET type = ?, body = ? WHERE key = 'k' AND seq = (SELECT max(seq) FROM events WHERE key = 'k')",
        type,
        body.replace(b'"seq":2', b'"seq":999'),
    )
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        for _ in range(2):
            with pytest.raises(BrokenLog, match=r"upgrade nitinol|cannot be read"):
                rt.get("k").send("again")
        assert rt.get("k").status().state == "parked"
        with rt.subscribe("custom", after=0) as seen:
            strange = seen.get(SOON)
            assert strange.type == "custom"
            assert strange.name == type
        assert rt.get("other").ask("again", timeout=SOON).text == "hi"


# ---- forgetting


def test_forgetting_keeps_the_bill(store: Store) -> None:
    """Bodies go, cost rows stay; seq and epoch go on, and a stale incarnation stays out. rule 13"""
    store.open("k")
    bill = an(events.UsageUpdated, seq=2, key="k", agent="a")
    store.append("k", 1, queued("k", 1, "r"), bill, note("k", 3))
    store.forget("k")
    journal = store.journal
    assert journal.read("k") == []
    assert [event.type for event in journal.scan(0, 10)] == ["usage.updated"]
    assert (journal.find_run("r"), journal.head("k"), journal.heads()) == (None, None, [])
    assert journal.position == 3
    with pytest.raises(Conflict):
        store.append("k", 1, note("k", 4))
    opening = store.open("k")
    assert (opening.base_seq, opening.events, opening.epoch) == (3, [], 3)
    store.append("k", 3, queued("k", 4, "r"))
    assert [(event.seq, event.position) for event in journal.read("k")] == [(4, 4)]


def test_a_forgotten_key_starts_anew(path: Path) -> None:
    """Also under another name; live or only in the store; it is not in the stream but for its bill. rule 13"""
    with Runtime(path, drain=0.0) as rt:
        handle = rt.start(scout(), key="k").send("secret")
        handle.result(SOON)
        rt.forget("k")
        with pytest.raises(NotFound):
            rt.get("k")
        ref = rt.start(scout(name="other"), key="k")
        assert ref.history() == ()
        assert ref.ask("hi", timeout=SOON, run_id=handle.run_id).text == "hi"
        assert_valid(ref)
    with Runtime(path, drain=0.0) as rt:
        rt.forget("k")
        with pytest.raises(NotFound):
            rt.forget("k")
        ref = rt.start(scout(), key="k")
        assert ref.history() == ()
        ref.ask("again", timeout=SOON)
        assert_valid(ref)
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT count(*), sum(body LIKE '%secret%') FROM events WHERE type = 'usage.updated'")
        assert rows.fetchone() == (3, 0)
        assert connection.execute("SELECT count(*) FROM events WHERE body LIKE '%secret%'").fetchone() == (0,)
    connection.close()


# ---- getters


def test_getters_wait_until_the_log_was_read(path: Path) -> None:
    """After a start on a store, `history`, `messages` and `snapshot` never tell of an agent without a past."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(scout(), key="k").ask("hi", timeout=SOON)
    for getter in ("messages", "history", "snapshot"):
        with Runtime(path, drain=0.0) as rt:
            held = threading.Event()
            rt._system.core.call(held.wait, SOON)  # pyright: ignore[reportPrivateUsage]
            ref = rt.start(scout(), key="k")
            assert (ref.status().state, ref.current) == ("starting", None)
            with ThreadPoolExecutor(1) as pool:
                looked = pool.submit(getattr(ref, getter))
                held.set()
                found = looked.result(SOON)
            assert len(found["events"] if getter == "snapshot" else found) >= 2


async def looks(path: Path) -> None:
    async with Runtime(path, drain=0.0) as rt:
        assert [message.text for message in await rt.start(scout(), key="k").ahistory()] == ["hi", "hi"]
    async with Runtime(path, drain=0.0) as rt:
        assert len(await rt.start(scout(), key="k").amessages()) == 2
    async with Runtime(path, drain=0.0) as rt:
        assert (await rt.start(scout(), key="k").asnapshot())["events"]


def test_the_twins_wait_too(path: Path) -> None:
    """As the getters, without blocking the loop."""
    import asyncio

    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        ref.ask("hi", timeout=SOON)
        ref.stop()
        assert len(ref.history()) == 2  # a stopped agent answers from what is committed
    asyncio.run(looks(path))


def test_a_key_of_the_store_keeps_its_name(path: Path) -> None:
    """Also after a restart of the process."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(scout(), key="k").ask("hi", timeout=SOON)
    with Runtime(path, drain=0.0) as rt, pytest.raises(KeyTaken, match="'scout'"):
        rt.start(scout(name="other"), key="k").send("hi")


# ---- opening


def test_a_newer_schema_is_refused(path: Path) -> None:
    """And the file is left as it is."""
    Store(path).close()
    tamper(path, "UPDATE meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(NewerSchema, match=r"agents\.db.*schema 99.*upgrade nitinol"):
        Store(path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """The error names the path and says what to do; nothing is left open."""
    rubbish = tmp_path / "rubbish.db"
    rubbish.write_bytes(b"no database at all" * 100)
    for path, why in (
        (rubbish, r"rubbish\.db.*not a database; give the path of a store"),
        (tmp_path / "missing" / "x.db", r"x\.db.*No such file or directory; make its directory first"),
        (tmp_path, "cannot be opened: unable to open.*give the path of a file"),
    ):
        for _ in range(2):
            with pytest.raises(StorageFailed, match=why):
                Runtime(path)
    with pytest.raises(ConfigurationError, match="the stores are"):
        open_journal("postgresql://localhost/x", Env(), cast("Loop", None))


def test_a_file_that_cannot_be_written_is_refused() -> None:
    """With the way out. It runs as nobody where it can, since root may write everything."""
    code = (
        "import os, sys\nfrom nitinol import Runtime, errors\nimport nitinol.journal.sqlite, nitinol.http\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: Runtime(sys.argv[1])\nexcept errors.StorageFailed as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as directory:  # not `tmp_path`, which is for one user
        path = Path(directory) / "agents.db"
        Store(path).close()
        path.chmod(0o444)
        lock = path.with_name("agents.db-lock")
        lock.chmod(0o444)
        path.parent.chmod(0o555)
        said = run_python(code, path).communicate(timeout=30)[0]
        assert "agents.db' cannot be opened: Permission denied; see that its directory can be written" in said
        lock.chmod(0o666)
        said = run_python(code, path).communicate(timeout=30)[0]
        assert "agents.db' cannot be opened: attempt to write a readonly database; give this process the right" in said
        path.parent.chmod(0o755)


# ---- who owns the file

OWN = """
import sys
from nitinol import Runtime, errors
try:
    rt = Runtime(sys.argv[1])
except errors.StoreInUse as error:
    print("refused", error, flush=True)
else:
    print("owns", flush=True)
    sys.stdin.readline()
    rt.stop()
"""


def test_one_process_cannot_open_a_store_twice(path: Path) -> None:
    """Nor through a link to it. rule 4"""
    link = path.with_name("link.db")
    with Runtime(path, drain=0.0):
        link.symlink_to(path)
        for again in (path, link, f"sqlite:///{path}"):
            with pytest.raises(StoreInUse, match=f"process {os.getpid()};"):
                Runtime(again)
    Runtime(link).stop()


def test_an_owner_owns_until_it_is_gone(path: Path) -> None:
    """Stopped by a signal it still owns; killed, its successor opens at once. rule 4"""
    owner = run_python(OWN, path)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "owns\n"
    owner.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreInUse, match=rf"agents\.db' is owned by process {owner.pid}; stop it"):
        Runtime(path)
    owner.kill()
    owner.communicate(timeout=30)
    Runtime(path).stop()


def test_a_race_for_a_store_has_one_winner(path: Path) -> None:
    """Never two owners, and the loser is told the winner's pid. rule 4"""
    code = """
import sys
from pathlib import Path
from nitinol.env import Env
from nitinol.errors import StoreInUse
from nitinol.journal.sqlite import SqliteJournal
loop = Env().start_loop("core")
for line in sys.stdin:
    try:
        journal = SqliteJournal(Path(line.strip()), Env(), loop)
    except StoreInUse as error:
        print(error, flush=True)
    else:
        print("owns", flush=True)
        sys.stdin.readline()
        journal.close()
        print("gone", flush=True)
"""
    racers = [run_python(code), run_python(code)]

    def say(racer: subprocess.Popen[str], line: str) -> None:
        assert racer.stdin is not None
        racer.stdin.write(line + "\n")
        racer.stdin.flush()

    def hear(racer: subprocess.Popen[str]) -> str:
        assert racer.stdout is not None
        return racer.stdout.readline().strip()

    for _ in range(200):
        for racer in racers:
            say(racer, str(path))
        said = [hear(racer) for racer in racers]
        assert sorted(line == "owns" for line in said) == [False, True], said
        winner = racers[said.index("owns")]
        loser = next(line for line in said if line != "owns")
        assert f"is owned by process {winner.pid};" in loser
        say(winner, "go")
        assert hear(winner) == "gone"
    for racer in racers:
        racer.communicate(timeout=30)


# ---- a disk that fails


class Small(SqliteJournal):
    """Its file may have so many pages, as on a disk that is full."""

    pages = 1_000_000

    def _connect(self) -> sqlite3.Connection:
        connection = super()._connect()
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        return connection

    def limit(self, pages: int | None) -> None:
        """From the next transaction on; `None`: there is room again."""
        self.pages = pages or 1_000_000
        assert self._writer is not None or pages is None
        if self._writer is not None:
            self._writer.execute(f"PRAGMA max_page_count = {self.pages}")


def test_a_full_disk_refuses_and_forgets_nothing(path: Path) -> None:
    """What is not acknowledged is not there, what is, is; once there is room the same append goes through. rule 9"""
    store = Store(path, Small)
    journal = cast("Small", store.journal)
    store.open("k")
    store.append("k", 1, note("k", 1))
    journal.limit(1)  # no less than it has
    outcomes = [store.appending("k", 1, note("k", seq, "x" * FILL)) for seq in range(2, 20)]
    failures = [outcome.result(SOON) for outcome in outcomes]
    acknowledged = 1 + failures.count(None)
    assert None not in failures[acknowledged - 1 :]
    with pytest.raises(StorageFailed, match=r"agents\.db.*full; make room on its disk"):
        store.append("k", 1, note("k", acknowledged + 1, "x" * FILL))
    assert [event.seq for event in journal.read("k")] == [*range(1, acknowledged + 1)]
    journal.limit(None)
    store.append("k", 1, note("k", acknowledged + 1, "x" * FILL))
    store.close()
    store = Store(path)
    assert [event.seq for event in store.open("k").events] == [*range(1, acknowledged + 2)]
    store.close()


FULL = """
import resource, sys, threading
from nitinol import Agent, Runtime, errors, tool
from nitinol.journal.base import verify
from nitinol.testing import Answer, ScriptedProvider, call
from tests.logs_of import log_of

ran, reached, room = [], threading.Event(), threading.Event()

@tool
def work() -> str:
    "Work."
    ran.append(1)
    reached.set()
    room.wait(30)
    return "worked"

def script(request):
    if request.messages[-1].role == "tool":
        return "end"
    return call("work") if request.messages[-1].text == "work" else "ok"

agent = Agent(name="a", model=ScriptedProvider(script), tools=[work])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Runtime(sys.argv[1], agents=[agent]) as rt:
    refs = [rt.start(agent, key=str(number)) for number in range(4)]
    working = refs[0].send("work")
    assert reached.wait(30)
    accepted = [ref.send("before") for ref in refs[1:]]
    for handle in accepted:
        handle.result(30)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the disk is full
    answers = []
    threads = []
    for number, ref in enumerate(refs):
        def send(ref=ref, number=number):
            answers.append(ref.send("x" * 100_000, run_id=f"full-{number}"))
        threads.append(threading.Thread(target=send))
        threads[-1].start()
    room.set()  # the tool ends while nothing can be written
    print("full", flush=True)
    sys.stdin.readline()
    print(len(answers), [ref.status().state for ref in refs], [len(ref.history()) for ref in refs], flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # there is room again
    for thread in threads:
        thread.join(30)
    assert working.result(30).text == "end", working.result(30)
    results = [handle.result(30) for handle in answers]
    assert [result.status for result in results] == ["completed"] * 4, results
    assert len(ran) == 1
    for ref in refs:
        log = log_of(ref)
        assert verify(log) == [], verify(log)
        assert not any(event.type == "agent.crashed" for event in log)
        assert not any(event.type == "run.resumed" and event.recoveries for event in log)
        assert sum(event.type == "run.queued" for event in log) == 2
    outcomes = [event.outcome for event in log_of(refs[0]) if event.type == "tool.finished"]
    print(outcomes, flush=True)
"""


def test_agents_wait_while_the_disk_is_full(path: Path) -> None:
    """Nothing is acknowledged meanwhile, no crash is counted, a tool's result is kept, and all go on by themselves. rule 9"""
    process = run_python(
        FULL, path, env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parents[1])])}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "full\n"
    assert process.stdin is not None
    process.stdin.write("look\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("0 ")
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert rest == "['ok']\n"


def test_a_second_runtime_goes_on_where_the_first_stopped(path: Path) -> None:
    """Conversation, bill and runs are there; results can be read after the stop, too."""
    with Runtime(path, drain=0.0) as rt:
        handle = rt.start(scout(), key="k").send("one")
        handle.result(SOON)
    assert handle.result(SOON).text == "hi"
    with Runtime(path, agents=[scout()], drain=0.0) as rt:
        assert rt.handle(handle.run_id).result(SOON).text == "hi"
        ref = rt.get("k")
        ref.ask("two", timeout=SOON)
        assert [message.text for message in ref.history()] == ["one", "hi", "two", "hi"]
        assert ref.status().incarnation == 2
        assert sum(event.type == "usage.updated" for event in log_of(ref)) == 2
        assert_valid(ref)
