"""`audit`: every kind of fault that a store can have is found, and a sound one has none."""

from __future__ import annotations

import re
import shutil
import sqlite3
import tracemalloc
from pathlib import Path

import pytest
from tests.logs_of import SOON, wait_for
from tests.runtime.owner import Owner

from nitinol import Agent, Approval, Image, ModelRequest, Prices, Runtime, tool
from nitinol.errors import NewerSchema, StorageFailed, StoreInUse
from nitinol.journal.audit import audit
from nitinol.journal.rebuild import rebuild
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate

never = gate("never")
LARGE = 300_000


@tool(approval=Approval(timeout=3600))
def launch() -> str:
    """Launch."""
    return "launched"


@tool
def photograph() -> list[str | Image]:
    """Take a picture."""
    return ["x" * LARGE, Image(data=b"picture" * LARGE)]


def script(request: ModelRequest) -> Answer:
    last = request.messages[-1]
    if last.role == "tool":
        return "done"
    match last.text:
        case "launch" | "photograph" as name:
            return call(name)
        case "wait":
            return never
        case _:
            return f"you said {last.text}"


def agent(name: str = "scout") -> Agent[str]:
    model = ScriptedProvider(script, prices=Prices(input="3", output="15") if name == "scout" else None)
    return Agent(name=name, model=model, tools=[launch, photograph])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which there is one of everything, and nothing wrong."""
    path = tmp_path_factory.mktemp("sound") / "agents.db"
    with Runtime(path, drain=0.0) as rt, rt.subscribe("approval.requested") as asked:
        for text in ("one", "two"):
            rt.start(agent(), key="idle").ask(text, timeout=SOON)
        rt.start(agent(), key="picture").ask("photograph", timeout=SOON)
        rt.start(agent("stranger"), key="unpriced").ask("hi", timeout=SOON)
        rt.start(agent(), key="paused").send("launch", run_id="paused-run")
        rt.start(agent(), key="open").send("wait", run_id="open-run")
        rt.get("open").send("later", run_id="later-run")
        rt.start(agent(), key="parked").ask("hi", timeout=SOON)
        for key in ("gone", "back"):
            rt.start(agent(), key=key).ask("photograph", timeout=SOON)
            rt.forget(key)
        rt.start(agent("stranger"), key="back").ask("hi", timeout=SOON)
        wait_for(asked, "approval.requested")
        with rt.subscribe("agent.parked") as parked:
            crash(rt.get("parked"))
            for _ in range(5):
                rt.get("parked").resume()
                crash(rt.get("parked"))
            wait_for(parked, "agent.parked")
        assert never.reached()
    return path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copy(sound, tmp_path / "agents.db"))


def tamper(path: Path, statement: str, *values: object) -> None:
    """Change the file from outside; something does change."""
    with sqlite3.connect(path) as connection:
        changed = connection.execute(statement, values).rowcount
    connection.close()
    assert changed != 0


def faults(path: Path) -> list[str]:
    """A line each, as the command line shows them."""
    return [f"{fault.key or 'the store'}: {fault.text}" for fault in audit(path).faults]


def test_a_sound_store_has_no_fault(sound: Path) -> None:
    """Whatever happened in it; and it is counted right, forgotten agents' bill included."""
    found = audit(sound)
    assert found.faults == []
    assert (found.agents, found.runs) == (7, 9)
    with sqlite3.connect(sound) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (found.events,)
        assert connection.execute("SELECT count(*) FROM timers").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM blobs").fetchone()[0] >= 2
    connection.close()
    assert found.spent.priced > 0
    assert found.spent.unpriced == 2


# What is done, and what is said about it: a regular expression of one of the lines.
DERIVED = [
    ("UPDATE heads SET seq = seq - 1 WHERE key = 'idle'", r"idle: heads: seq is \d+; by its log it is \d+"),
    ("UPDATE heads SET agent = 'x' WHERE key = 'idle'", r"idle: heads: agent is 'x'; by its log it is 'scout'"),
    ("UPDATE heads SET state = 'running' WHERE key = 'idle'", "idle: heads: state is 'running'; by its log it is 'stopped'"),
    ("UPDATE heads SET run_id = NULL WHERE key = 'open'", "open: heads: run_id is None; by its log it is 'open-run'"),
    ("UPDATE heads SET open_runs = 1 WHERE key = 'open'", "open: heads: open_runs is 1; by its log it is 2"),
    ("UPDATE heads SET active = 0 WHERE key = 'open'", "open: heads: active is False; by its log it is True"),
    ("UPDATE heads SET usage = '{}' WHERE key = 'idle'", "idle: heads: usage is "),
    ("UPDATE heads SET usage = 'rubbish' WHERE key = 'idle'", "idle: heads: its row cannot be read"),
    ("UPDATE heads SET cost = '9.99' WHERE key = 'idle'", r"idle: heads: cost is Decimal\('9\.99'\)"),
    ("UPDATE heads SET cost = 'nine' WHERE key = 'idle'", "idle: heads: its row cannot be read"),
    ("UPDATE heads SET messages = 99 WHERE key = 'idle'", "idle: heads: messages is 99; by its log it is 4"),
    ("UPDATE heads SET started_at = 1 WHERE key = 'idle'", "idle: heads: started_at is 1"),
    ("UPDATE heads SET last_event_at = 1 WHERE key = 'idle'", "idle: heads: last_event_at is 1"),
    ("UPDATE heads SET epoch = 0 WHERE key = 'parked'", r"parked: heads: epoch is 0; its last event was written under \d+"),
    ("UPDATE heads SET seq = base_seq WHERE key = 'idle'", r"idle: heads: its last event is 0; by its log it is \d+"),
    ("DELETE FROM heads WHERE key = 'idle'", "idle: heads: it has no row"),
    ("UPDATE snapshots SET body = replace(body, '\"message_count\":', '\"message_count\":0') WHERE key = 'idle'", "idle: snapshots: that of seq \\d+ cannot be read|idle: snapshots: at seq"),
    ("UPDATE snapshots SET body = CAST(replace(body, '\"incarnation\":1', '\"incarnation\":7') AS BLOB) WHERE key = 'idle'", r"idle: snapshots: at seq \d+ incarnation is 7; by its log it is 1"),
    ("UPDATE snapshots SET body = x'00' WHERE key = 'idle'", r"idle: snapshots: that of seq \d+ cannot be read"),
    ("UPDATE snapshots SET seq = 999 WHERE key = 'idle'", "idle: snapshots: there is one of seq 999, where its log has no event"),
    ("UPDATE snapshots SET seq = seq - 1 WHERE key = 'idle'", r"idle: snapshots: that of seq \d+ cannot be read"),
    ("UPDATE snapshots SET key = 'nobody' WHERE key = 'idle'", "nobody: snapshots: there is one, and neither log nor head"),
    ("UPDATE timers SET due = 5", r"paused: timers: due is 5; by its log it is \d+"),
    ("DELETE FROM timers", r"paused: timers: due is None; by its log it is \d+"),
    ("INSERT INTO timers VALUES ('idle', 5)", "idle: timers: due is 5; by its log it is None"),
    ("INSERT INTO timers VALUES ('nobody', 5)", "nobody: timers: it has a row, and neither log nor head"),
    ("UPDATE scopes SET cost = '7' WHERE name = 'idle'", r"idle: scopes: key 'idle' has \d+ tokens, \$7, .* by the bill"),
    ("UPDATE scopes SET unpriced = 7 WHERE name = 'stranger'", "the store: scopes: agent 'stranger' has .* 7 unpriced"),
    ("UPDATE scopes SET usage = '{}' WHERE scope = 'day'", r"the store: scopes: day '20\d\d-\d\d-\d\d' has 0 tokens"),
    ("UPDATE scopes SET usage = 'x' WHERE scope = 'day'", r"the store: scopes: the row of day .* cannot be read"),
    ("DELETE FROM scopes WHERE name = 'gone'", "gone: scopes: key 'gone' has no row; by the bill it is"),
    ("INSERT INTO scopes VALUES ('model', 'm', '{}', '0', 0)", "the store: scopes: model 'm' has .*; by the bill it is no row"),
    ("DELETE FROM runs WHERE run_id = 'open-run'", "open: runs: 'open-run' is at seq None; by its log it is at 2"),
    ("UPDATE runs SET seq = 9 WHERE run_id = 'open-run'", "open: runs: 'open-run' is at seq 9; by its log it is at 2"),
    ("UPDATE runs SET key = 'idle' WHERE run_id = 'open-run'", "idle: runs: 'open-run' is at seq 2; by its log it is at None"),
    ("INSERT INTO runs VALUES ('r', 'nobody', 1)", "nobody: runs: 'r' is one of its runs, and it has neither log nor head"),
    ("INSERT INTO blobs VALUES ('h', x'00')", "the store: blobs: no event uses 'h'"),
    ("INSERT INTO blobs VALUES ('h', 5)", "the store: blobs: no event uses 'h'"),
    ("DELETE FROM blob_uses", r"picture: seq \d+ \(\w+\.\w+\): blob_uses: \[\] where its event has \['"),
    ("INSERT INTO blob_uses VALUES ('h', 999999)", "the store: blob_uses: 'h' is used at position 999999, where there is no event"),
]  # fmt: skip
LAST = "(SELECT max(seq) FROM events WHERE key = 'idle')"
LOG = [
    ("DELETE FROM events WHERE key = 'idle' AND seq = 5", r"idle: seq 6 \(\S+\): expected seq 5"),
    ("DELETE FROM events WHERE key = 'idle' AND seq = 1", r"idle: seq 2 \(run\.queued\): the first event should be seq 1"),
    (f"DELETE FROM events WHERE key = 'idle' AND seq = {LAST}", r"idle: heads: seq is \d+; by its log it is \d+"),
    ("DELETE FROM events WHERE key = 'idle'", r"idle: heads: its last event is \d+; by its log it is 0"),
    ("UPDATE events SET key = 'thief' WHERE key = 'idle' AND seq = 3", r"thief: seq 3 \(\S+\): its body is that of event 3 of 'idle'"),
    ("UPDATE events SET seq = 999 WHERE key = 'idle' AND seq = 3", r"idle: seq 999 \(\S+\): its body is that of event 3 of 'idle'"),
    ("UPDATE events SET epoch = 9 WHERE key = 'idle' AND seq = 3", r"idle: seq 4 \(\S+\): written under epoch 1, after one of epoch 9"),
    ("UPDATE events SET position = 99999 WHERE key = 'idle' AND seq = 3", r"idle: seq 4 \(\S+\): position \d+ does not rise"),
    ("UPDATE events SET position = 99999 WHERE key = 'idle' AND seq = 3", r"the store: positions go on from \d+, and there is an event at 99999"),
    ("UPDATE events SET type = 'agent.teleported' WHERE key = 'idle' AND seq = 3", r"idle: seq 3 \(agent\.teleported\): it cannot be read"),
    ("UPDATE events SET body = x'00ff' WHERE key = 'idle' AND seq = 3", r"idle: seq 3 \(\S+\): it cannot be read"),
    ("UPDATE events SET body = x'00ff' WHERE key = 'idle' AND seq = 3", r"idle: seq \d+ \(\S+\): the log does not fold"),
    ("UPDATE events SET type = 'run.finished', body = replace(body, '\"message\"', '\"x\"') WHERE key = 'idle' AND seq = 4", r"idle: seq 4 \(run\.finished\): it cannot be read"),
    (
        "UPDATE events SET body = (SELECT body FROM events WHERE key = 'idle' AND type = 'run.queued' ORDER BY seq LIMIT 1)"
        " WHERE key = 'idle' AND type = 'run.queued' AND seq > 5",
        r"idle: seq 2 \(run\.queued\): run '\w+' was queued before",
    ),
    (
        "UPDATE events SET body = replace(body, '\"agent_cost\":\"', '\"agent_cost\":\"1') WHERE type = 'usage.updated' AND key = 'idle'",
        r"idle: seq \d+ \(usage\.updated\): it says \d+ tokens, 1\S+ so far; its rows come to",
    ),
    (
        "UPDATE events SET body = replace(body, '\"cost\":\"', '\"cost\":\"1') WHERE type = 'usage.updated' AND key = 'gone'",
        r"gone: scopes: key 'gone' has",
    ),
    ("UPDATE heads SET base_seq = 2 WHERE key = 'idle'", r"idle: seq 1 \(agent\.started\): what is up to 2 was forgotten, and it is still there"),
    ("UPDATE events SET body = 5 WHERE key = 'idle' AND seq = 3", "idle: (it could not be checked|seq 3)"),
    ("UPDATE events SET epoch = 'x' WHERE key = 'idle' AND seq = 3", "idle: it could not be checked"),
    ("DELETE FROM blobs", r"picture: seq \d+ \(\S+\): blobs: its part '\w{64}' is missing"),
    ("UPDATE blobs SET body = x'00'", r"picture: seq \d+: blobs: the part '\w{64}' has another hash"),
    ("UPDATE events SET blobs = 'h' WHERE key = 'idle' AND seq = 3", r"idle: seq 3 \(\S+\): blob_uses: \[\] where its event has \['h'\]"),
    ("UPDATE events SET blobs = NULL WHERE key = 'picture'", r"picture: seq \d+ \(\S+\): blob_uses: \['\w{64}'.* where its event has \[\]"),
    ("UPDATE sqlite_sequence SET seq = 3", r"the store: positions go on from 3, and there is an event at \d+"),
    ("DROP TABLE timers", "the store: it could not be read to the end: .*no such table: timers"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "said"), DERIVED + LOG, ids=lambda text: text[:70])
def test_each_kind_of_fault_is_found(statement: str, said: str, path: Path) -> None:
    """By a line that names the key, and the event where it is one's."""
    tamper(path, statement)
    lines = faults(path)
    assert any(re.match(said, line) for line in lines), "\n".join(lines)


@pytest.mark.parametrize(("statement", "said"), DERIVED, ids=lambda text: text[:70])
def test_what_stands_beside_the_log_is_made_anew(statement: str, said: str, path: Path, sound: Path) -> None:
    """From the log, which stays as it is. What was forgotten stays so."""
    tamper(path, statement)
    rebuild(path)
    assert faults(path) == []
    everything = "SELECT * FROM events ORDER BY position"
    with sqlite3.connect(path) as connection, sqlite3.connect(sound) as before:
        assert connection.execute(everything).fetchall() == before.execute(everything).fetchall()
        if "heads" not in statement:
            heads = "SELECT * FROM heads ORDER BY key"
            assert connection.execute(heads).fetchall() == before.execute(heads).fetchall()
    connection.close()
    before.close()
    with Runtime(path, agents=[agent(), agent("stranger")], drain=0.0) as rt:
        assert rt.get("idle").ask("three", timeout=SOON).text == "you said three"
    assert faults(path) == []


def test_a_log_that_was_never_there_is_not_made_up(path: Path) -> None:
    """A rebuild of a log with a fault leaves the fault to be seen."""
    tamper(path, "DELETE FROM events WHERE key = 'idle' AND seq = 5")
    rebuild(path)
    assert any("expected seq 5" in line for line in faults(path))
    tamper(path, "DELETE FROM blobs")
    with pytest.raises(StorageFailed, match="lost a part of an event"):
        rebuild(path)


def test_a_damaged_file_is_a_fault_or_an_error_and_never_a_crash(sound: Path, tmp_path: Path) -> None:
    """Wherever the damage is."""
    whole = sound.read_bytes()
    found = 0
    for at in range(0, len(whole), len(whole) // 40):
        path = tmp_path / f"damaged-{at}.db"
        path.write_bytes(whole[:at] + b"\xa5" * 3000 + whole[at + 3000 :])
        try:
            found += bool(audit(path).faults)
        except StorageFailed:
            found += 1
    assert found >= 35  # free pages may be damaged


def test_what_is_no_store_is_an_error(tmp_path: Path, path: Path) -> None:
    """As everywhere."""
    with pytest.raises(StorageFailed, match="does not exist"):
        audit(tmp_path / "missing.db")
    tamper(path, "UPDATE meta SET value = '99'")
    with pytest.raises(NewerSchema, match="upgrade nitinol"):
        audit(path)


def test_an_owner_that_works_is_checked_at_one_moment(tmp_path: Path) -> None:
    """Again and again, while it writes, after it was killed, and beside its successor: never a fault."""
    path = tmp_path / "agents.db"
    owner = Owner(path)
    owner.do("work")
    checked = [audit(path)]
    while len(checked) < 5 or checked[-1].events <= checked[0].events:  # it gets on by itself
        checked.append(audit(path))
    owner.kill()
    checked.append(audit(path))
    owner = Owner(path)
    checked.append(audit(path))
    with pytest.raises(StoreInUse, match=f"process {owner.process.pid}"):
        rebuild(path)
    owner.stop()
    checked.append(audit(path))
    assert [found.faults for found in checked] == [[]] * len(checked)
    counts = [found.events for found in checked]
    assert counts == sorted(counts)


def test_many_logs_never_lie_in_memory(tmp_path: Path) -> None:
    """It holds one at a time: a store many times the size of what it takes."""
    path = tmp_path / "agents.db"
    with Runtime(path, drain=0.0) as rt:
        for number in range(40):
            rt.start(agent(), key=f"k/{number}").ask(f"{number} " + "x" * 50_000, timeout=SOON)
    tracemalloc.start()
    try:
        assert audit(path).faults == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 4
