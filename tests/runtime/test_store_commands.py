"""The verbs that look into a store: in process, and as processes beside an owner that lives, dies and comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, wait_for
from tests.runtime.owner import AGENT, Owner

from nitinol import Agent, Runtime, events
from nitinol.cli import main
from nitinol.errors import StorageFailed
from nitinol.journal.audit import audit
from nitinol.testing import ScriptedProvider, crash, gate, say


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with agents that are done, wait for approval, are suspended, and were forgotten."""
    path = tmp_path / "agents.db"
    never = gate("never")
    waiting: Agent[str] = Agent(name="waiter", model=ScriptedProvider([never]))
    with Runtime(path, drain=0.0) as rt, rt.subscribe("run.finished", "approval.requested") as told:
        rt.start(AGENT, key="scout/1").ask("hello", timeout=SOON, run_id="run-1")
        rt.start(AGENT, key="scout/2").send("call", run_id="run-2")
        wait_for(told, "approval.requested")
        rt.start(AGENT, key="gone").ask("secret", timeout=SOON)
        rt.forget("gone")
        rt.start(waiting, key="waiter/1").send("one")
        rt.get("waiter/1").send("two")
        assert never.reached()
    return path


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Owner]:
    """An owner of another store, in a process of its own."""
    owner = Owner(tmp_path / "live.db")
    yield owner
    owner.kill()


Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, *arguments: object, status: int = 0) -> list[str]:
    """The lines of a verb that says nothing on stderr."""
    assert main([*map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def complaint(capsys: Capture, *arguments: object) -> str:
    """The one line of a verb that fails."""
    assert main([*map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nitinol: ")
    assert err.count("\n") == 1
    return err


def tamper(path: Path, statement: str) -> None:
    """Change the file from outside."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


# ---- log


def test_log_is_a_line_an_event(path: Path, capsys: Capture) -> None:
    """Position, time in UTC, key and seq, type, and the telling fields."""
    lines = shown(capsys, "log", path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (len(lines),)
    connection.close()
    for line in lines:
        assert re.match(r" *\d+  20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  \S+#\d+ +[a-z]+\.[a-z_]+( |$)", line), line
    text = "\n".join(lines)
    for told in (
        "scout/1#2  run.queued         user: hello",
        "message.appended   assistant: you said hello",
        "usage.updated      2 tokens in, 4 out, $0.000066; so far $0.000066",
        "completed: 1 turn, $0.000066, ",
        '? launch(where="the moon")',
        "run.paused         approval",
        "agent.stopped      the runtime stopped",
    ):
        assert told in text
    assert "secret" not in text


FILTERS: list[tuple[list[str], Callable[[events.Event], bool]]] = [
    (["--key", "scout/1"], lambda event: event.key == "scout/1"),
    (["--key", "scout/*"], lambda event: event.key.startswith("scout/")),
    (["--run", "run-2"], lambda event: event.run_id == "run-2"),
    (["--run", "run-2", "--key", "scout/1"], lambda event: False),
    (["--type", "run.*", "tool.*"], lambda event: event.type.startswith(("run.", "tool."))),
    (["--type", "run.*", "--type", "tool.*"], lambda event: event.type.startswith(("run.", "tool."))),
    (["--after", "9"], lambda event: event.position > 9),
    (["--after", "9", "--key", "scout/1"], lambda event: event.position > 9 and event.key == "scout/1"),
    (["--after", "15", "--run", "run-2"], lambda event: event.position > 15 and event.run_id == "run-2"),
]


@pytest.mark.parametrize(("options", "wanted"), FILTERS, ids=[" ".join(options) for options, _ in FILTERS])
def test_log_shows_what_is_asked_for(
    options: list[str], wanted: Callable[[events.Event], bool], path: Path, capsys: Capture
) -> None:
    """By key, run, type and position, as JSON that `events.from_json` reads."""
    told = [events.from_json(line) for line in shown(capsys, "log", path, "--json", *options)]
    everything = [events.from_json(line) for line in shown(capsys, "log", path, "--json")]
    assert [event.position for event in told] == [event.position for event in everything if wanted(event)]
    assert len(shown(capsys, "log", path, *options)) == len(told)


def test_log_commands_no_terminal(tmp_path: Path, capsys: Capture) -> None:
    """What users and models wrote is made safe, and is one line."""
    path = tmp_path / "agents.db"
    with Runtime(path, drain=0.0) as rt:
        rt.start(AGENT, key="a\x1b[31m\nb").ask("red \x1b[31m\nand more", timeout=SOON)
    for verb in ("log", "agents"):
        lines = shown(capsys, verb, path)
        assert "\x1b" not in "".join(lines)
        assert not any(line.startswith("b") for line in lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--run", "nobody's"], 'no run "nobody\'s" is known in store'),
        (["--key", "nobody"], "no agent has a log at 'nobody' in store .*; see `nitinol agents`"),
        (["--type", "nope.*"], "--type: no event type matches 'nope"),
        (["--type", "tool.*", "nope.*"], "--type: no event type matches 'nope"),
        (["--after", "99999"], "--after 99999 is no position of this store, whose last is"),
        (["--after", "-1"], "--after -1 is no position"),
        (["--after", "99999", "--follow"], "--after: after=99999 is no position"),
    ],
)
def test_what_log_cannot_find_it_says(options: list[str], said: str, path: Path, capsys: Capture) -> None:
    """In one line, with status 1."""
    assert re.match(f"nitinol: {said}", complaint(capsys, "log", path, *options))


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process."""
    command = [sys.executable, "-m", "nitinol.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_log_follows_beside_an_owner_across_its_death(beside: Owner, tmp_path: Path) -> None:
    """Every event, once, in order; until Ctrl-C, which is status 130 and no traceback."""
    store = tmp_path / "live.db"
    beside.do("ask scout/1 hello")
    following = start("log", store, "--follow", "--json")
    assert following.stdout is not None
    told: list[events.Event] = []

    def until_finished(count: int) -> None:
        assert following.stdout is not None
        while count:
            told.append(events.from_json(following.stdout.readline()))
            count -= told[-1].type == "run.finished"

    until_finished(1)
    beside.do("work 5 2")
    until_finished(5)
    beside.kill()
    successor = Owner(store)
    successor.do("ask scout/1 again")
    until_finished(1)
    following.send_signal(signal.SIGINT)
    out, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (130, "")
    told += [events.from_json(line) for line in out.splitlines()]
    successor.stop()
    with Runtime(store, read_only=True) as rt:
        committed = rt._system.journal.scan(0, len(told))  # pyright: ignore[reportPrivateUsage]
    assert [event.to_json() for event in told] == [event.to_json() for event in committed]


def test_a_reader_that_leaves_is_no_error(path: Path) -> None:
    """As `nitinol log … | head -1`: no traceback, however much is still to come."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(AGENT, key="long").ask("x" * 100_000, timeout=SOON)
    for arguments in (("log", path, "--json"), ("export", path, "long"), ("agents", path)):
        process = start(*arguments)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) in (0, 1)
        assert process.stderr.read() == ""
        process.stderr.close()


# ---- agents


def test_agents_shows_each_and_the_bill(path: Path, capsys: Capture) -> None:
    """Of a stopped store, as `status()` says it; the bill counts forgotten agents, too."""
    lines = shown(capsys, "agents", path)
    assert re.split("  +", lines[0]) == [
        "key",
        "agent",
        "state",
        "open runs",
        "messages",
        "tokens",
        "cost",
        "last event",
    ]
    rows = [re.split("  +", line) for line in lines[1:-1]]
    assert [row[:5] for row in rows] == [
        ["scout/1", "scout", "stopped", "0", "2"],
        ["scout/2", "scout", "stopped", "1", "2"],
        ["waiter/1", "waiter", "stopped", "2", "1"],
    ]
    assert rows[0][5:7] == ["6", "$0.000066"]
    assert rows[0][7].endswith("Z")
    spent = audit(path).spent
    assert lines[-1].startswith(f"3 agents, 3 open runs; the bill: {spent.usage.input_tokens} tokens in, ")
    assert shown(capsys, "agents", path, "waiter/*")[-1].startswith("1 agent, 2 open runs; the bill: ")
    nobody = shown(capsys, "agents", path, "nobody/*")
    assert nobody == ["0 agents, 0 open runs; the bill: 0 tokens in, 0 out, $0.0000"]


def test_agents_as_json(path: Path, capsys: Capture) -> None:
    """One object: every agent, and the bill; money is text."""
    (line,) = shown(capsys, "agents", path, "--json")
    told = json.loads(line)
    assert [agent["key"] for agent in told["agents"]] == ["scout/1", "scout/2", "waiter/1"]
    one = told["agents"][0]
    assert (one["agent"], one["state"], one["open_runs"], one["messages"], one["cost"]) == (
        "scout",
        "stopped",
        0,
        2,
        "0.000066",
    )
    assert one["usage"]["output_tokens"] == 4
    assert 0 < events.from_iso(one["started_at"]) < events.from_iso(one["last_event_at"])
    spent = audit(path).spent
    assert told["bill"]["cost"] == str(spent.priced)
    assert told["bill"]["unpriced"] == spent.unpriced


def test_agents_reads_no_log(path: Path, capsys: Capture) -> None:
    """It would take long for ten thousand: it answers where there is none left."""
    before = shown(capsys, "agents", path)
    tamper(path, "DELETE FROM events")
    assert shown(capsys, "agents", path) == before


def test_agents_beside_their_owner(beside: Owner, tmp_path: Path, capsys: Capture) -> None:
    """As committed now."""
    beside.do("send scout/1 run-1 wait")
    assert shown(capsys, "agents", tmp_path / "live.db")[1].split()[:4] == ["scout/1", "scout", "running", "1"]


# ---- tree


def test_tree_shows_each_agent(path: Path, capsys: Capture) -> None:
    """Who owns the store, how many are in which state, and a line for each agent; forgotten ones are not there."""
    lines = shown(capsys, "tree", path)
    assert lines[0] == f"{path}: nobody owns it"
    assert lines[1] == "└─ agents: 3 agents (3 stopped), 3 open runs"
    assert [re.split("  +", line.strip()) for line in lines[2:]] == [
        ["├─ scout/1", "scout", "stopped", "incarnation 1"],
        ["├─ scout/2", "scout", "stopped", "incarnation 1, 1 open run"],
        ["└─ waiter/1", "waiter", "stopped", "incarnation 1, 2 open runs"],
    ]
    assert len(shown(capsys, "tree", path, "--key", "waiter/*")) == 3
    assert shown(capsys, "tree", path, "--key", "nobody/*")[1:] == ["└─ agents: 0 agents, 0 open runs"]


def test_tree_beside_an_owner_and_after_its_death(beside: Owner, tmp_path: Path, capsys: Capture) -> None:
    """States, restarts and the last reason, as committed now; and who has died holding the store."""
    store = tmp_path / "live.db"
    beside.do("send scout/1 run-1 wait")
    beside.do("ask bad hello")
    beside.do("crash bad")
    with Runtime(store, read_only=True) as rt, rt.subscribe("agent.parked", after=0) as parked:
        wait_for(parked, "agent.parked")  # it is committed soon after
    lines = shown(capsys, "tree", store)
    assert lines[0] == f"{store}: owned by process {beside.process.pid}"
    assert lines[1] == "└─ agents: 2 agents (1 parked, 1 running), 1 open run"
    bad, scout = (re.split("  +", line.strip()) for line in lines[2:])
    assert bad[:4] == ["├─ bad", "scout", "parked", "incarnation 6, 5 restarts"]
    assert re.fullmatch(r"last: .*RuntimeError: crashed by nitinol\.testing", bad[4])
    assert scout == ["└─ scout/1", "scout", "running", "incarnation 1, 1 open run"]
    with Runtime(store, read_only=True) as rt:
        nodes = {node.id: node for node in rt.tree().children[-1].children}
        assert (nodes["bad"].restarts, nodes["scout/1"].restarts, nodes["scout/1"].last_reason) == (5, 0, None)
        assert nodes["bad"].last_reason == bad[4].removeprefix("last: ")
        beside.do("forget bad")
        beside.do("ask bad again")
        bad_again = next(node for node in rt.tree().children[-1].children if node.id == "bad")
        assert (bad_again.restarts, bad_again.last_reason) == (0, None)
    beside.kill()
    assert shown(capsys, "tree", store)[0].endswith(
        f": process {beside.process.pid} owned it and is gone; this is what it left"
    )


def test_tree_as_json(path: Path, capsys: Capture) -> None:
    """One object: the owner, the states, and every agent that is asked for."""
    (line,) = shown(capsys, "tree", path, "--json", "--key", "scout/*")
    told = json.loads(line)
    assert (told["owner"], told["states"], told["open_runs"]) == (None, {"stopped": 2}, 1)
    one, two = told["agents"]
    assert (one["key"], one["agent"], one["state"], one["incarnation"], one["restarts"]) == (
        "scout/1",
        "scout",
        "stopped",
        1,
        0,
    )
    assert (one["last_reason"], one["run_id"], one["open_runs"]) == (None, None, 0)
    assert (two["run_id"], two["open_runs"]) == ("run-2", 1)
    agents = json.loads(shown(capsys, "agents", path, "scout/*", "--json")[0])["agents"]
    assert [agent["last_event_at"] for agent in told["agents"]] == [agent["last_event_at"] for agent in agents]
    tamper(
        path, "UPDATE heads SET started_at = 0, last_event_at = 0 WHERE key = 'scout/1'"
    )  # as of a log that is broken
    agents = json.loads(shown(capsys, "agents", path, "scout/1", "--json")[0])["agents"]
    agents += json.loads(shown(capsys, "tree", path, "--json", "--key", "scout/1")[0])["agents"]
    assert [agent["last_event_at"] for agent in agents] == [agents[0]["started_at"], None] == [None, None]


def test_tree_commands_no_terminal(tmp_path: Path, capsys: Capture) -> None:
    """Keys, names and reasons are made safe, and are one line each."""
    path = tmp_path / "agents.db"
    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(AGENT, key="a\x1b[31m\n└─ forged")
        ref.ask("hello", timeout=SOON)
        crash(ref, RuntimeError("\x1b]0;title\x07\nforged: 9 agents"))
    lines = shown(capsys, "tree", path)
    assert len(lines) == 3
    assert not {"\x1b", "\x07"} & set("".join(lines))
    assert "last: RuntimeError: " in lines[2]


def test_tree_of_ten_thousand_shows_what_is_urgent(path: Path, capsys: Capture) -> None:
    """Counts for all; lines for those that are parked, crashed or at work, and everybody with `--all`."""
    tamper(
        path,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) INSERT INTO heads"
        " SELECT printf('many/%05d', i), 1, 0, 1, 'many', CASE i WHEN 5000 THEN 'parked' ELSE 'idle' END, NULL, 0, 0,"
        " '{}', '0', 0, 1, i, NULL FROM n",
    )
    lines = shown(capsys, "tree", path)
    assert lines[1] == "└─ agents: 10003 agents (9999 idle, 3 stopped, 1 parked), 3 open runs"
    assert [line.split()[1] for line in lines[2:5]] == ["many/05000", "waiter/1", "scout/2"]
    assert lines[-1].startswith("   └─ … and 9953 more that are less urgent: --all shows them")
    assert len(lines) == 2 + 50 + 1
    assert len(shown(capsys, "tree", path, "--all")) == 2 + 10_003
    assert len(json.loads(shown(capsys, "tree", path, "--json")[0])["agents"]) == 10_003


DAMAGES = ["usage = 'rubbish'", "cost = 'nine'", "state = 'dancing'", "open_runs = 'many'", "agent = x'00'"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_named_and_mended(damage: str, path: Path, capsys: Capture) -> None:
    """By its key, with the way out, for verbs and runtimes alike; the log is untouched by it."""
    before = shown(capsys, "agents", path)
    tamper(path, f"UPDATE heads SET {damage} WHERE key = 'waiter/1'")
    for verb in ("agents", "tree"):
        said = complaint(capsys, verb, path)
        assert "the row of agent 'waiter/1' in heads is damaged; `nitinol verify " in said
        assert f"{path} --rebuild` makes it anew" in said
    with pytest.raises(StorageFailed, match=r"agent 'waiter/1' in heads is damaged"):
        Runtime(path)
    with Runtime(path, read_only=True) as rt:
        assert rt.get("scout/1").status().message_count == 2
    shown(capsys, "verify", path, "--rebuild")
    assert shown(capsys, "agents", path) == before


# ---- verify


def test_verify_sums_up_a_sound_store(path: Path, capsys: Capture) -> None:
    """One line, status 0."""
    (line,) = shown(capsys, "verify", path)
    assert re.fullmatch(r"3 agents, \d+ events, 4 runs; the bill: .*; no fault", line)


def test_verify_tells_each_fault_and_rebuild_mends_it(path: Path, capsys: Capture) -> None:
    """A line each, with its key, and status 1; what stands beside the log is made anew from it."""
    tamper(path, "UPDATE heads SET messages = 99 WHERE key = 'scout/1'")
    tamper(path, "DELETE FROM runs WHERE run_id = 'run-2'")
    lines = shown(capsys, "verify", path, status=1)
    assert lines[0] == "scout/1: heads: messages is 99; by its log it is 2"
    assert lines[1] == "scout/2: runs: 'run-2' is at seq None; by its log it is at 2"
    assert lines[2].endswith("; 2 faults")
    assert shown(capsys, "verify", path, "--rebuild")[-1].endswith("; no fault")
    tamper(path, "DELETE FROM events WHERE key = 'scout/1' AND seq = 3")
    lines = shown(capsys, "verify", path, status=1)
    assert lines[0].startswith("scout/1: seq 4 (")


def test_rebuild_needs_the_store_for_itself(beside: Owner, tmp_path: Path, capsys: Capture) -> None:
    """Verify does not."""
    beside.do("ask scout/1 hello")
    assert shown(capsys, "verify", tmp_path / "live.db")[-1].endswith("no fault")
    said = complaint(capsys, "verify", tmp_path / "live.db", "--rebuild")
    assert f"is owned by process {beside.process.pid}" in said


# ---- export and import


def test_an_agent_moves_through_a_file(path: Path, tmp_path: Path, capsys: Capture) -> None:
    """Into a store that did not exist; what is exported there again is the same."""
    file, there = tmp_path / "one.jsonl", tmp_path / "there.db"
    file.write_text("".join(f"{line}\n" for line in shown(capsys, "export", path, "waiter/1")))
    said = shown(capsys, "import", there, file)
    assert re.fullmatch(r"imported waiter/1: \d+ events, 2 open runs", said[0])
    assert shown(capsys, "import", there, file, "--key", "copy")[0].startswith("imported copy: ")
    assert shown(capsys, "verify", there)[-1].endswith("no fault")
    again = [{**json.loads(line), "position": 0} for line in shown(capsys, "export", there, "waiter/1")]
    assert again == [{**json.loads(line), "position": 0} for line in file.read_text().splitlines()]
    states = {row.split()[0]: row.split()[2] for row in shown(capsys, "agents", there)[1:-1]}
    assert states == {"waiter/1": "stopped", "copy": "stopped"}
    agent: Agent[str] = Agent(name="waiter", model=ScriptedProvider(lambda request: say("at last")))
    with Runtime(there, agents=[agent], drain=60.0) as rt, rt.subscribe("run.finished", after=0) as ends:
        assert [wait_for(ends, "run.finished").type for _ in range(4)] == ["run.finished"] * 4
    assert audit(there).faults == []


def test_an_agent_moves_through_a_pipe(path: Path, tmp_path: Path) -> None:
    """`nitinol export … | nitinol import … -`, whatever the encoding of the terminal."""
    with Runtime(path, drain=0.0) as rt:
        rt.start(AGENT, key="k").ask("ünï☃ \u2028 words", timeout=SOON)
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    export = start("export", path, "k", env=ascii_only)
    done = subprocess.run(
        [sys.executable, "-m", "nitinol.cli", "import", tmp_path / "there.db", "-"],
        stdin=export.stdout, capture_output=True, env=ascii_only, timeout=60, check=False,
    )  # fmt: skip
    assert export.communicate(timeout=30) == ("", "")
    assert done.returncode == 0, done.stderr
    with Runtime(tmp_path / "there.db", read_only=True) as rt:
        assert rt.get("k").history()[0].text == "ünï☃ \u2028 words"


def test_an_import_is_all_or_nothing(path: Path, tmp_path: Path, capsys: Capture) -> None:
    """What is damaged makes no store, and changes none; a key that is there is refused."""
    file = tmp_path / "one.jsonl"
    lines = shown(capsys, "export", path, "scout/1")
    file.write_text("\n".join(lines[:-1]))
    assert "one.jsonl': the export of 'scout/1' is cut off" in complaint(capsys, "import", tmp_path / "new.db", file)
    assert not (tmp_path / "new.db").exists()
    file.write_bytes(b"\xff\xfe rubbish")
    assert "is damaged, or no export" in complaint(capsys, "import", tmp_path / "new.db", file)
    file.write_text("\n".join(lines))
    assert "has a log here already" in complaint(capsys, "import", path, file)
    assert "key=''" in complaint(capsys, "import", path, file, "--key", "")
    assert "No such file" in complaint(capsys, "import", path, tmp_path / "missing.jsonl")
    assert shown(capsys, "verify", path)[-1].startswith("3 agents")


def test_an_import_needs_the_store_for_itself(path: Path, beside: Owner, tmp_path: Path, capsys: Capture) -> None:
    """Its owner can do it: `rt.import_agent`."""
    file = tmp_path / "one.jsonl"
    file.write_text("\n".join(shown(capsys, "export", path, "scout/1")))
    assert f"process {beside.process.pid}" in complaint(capsys, "import", tmp_path / "live.db", file)


# ---- what is no store


@pytest.mark.parametrize(
    "verb", [["log"], ["log", "--follow"], ["agents"], ["verify"], ["verify", "--rebuild"], ["export", "k"]]
)
def test_what_is_no_store_is_one_line(verb: list[str], path: Path, tmp_path: Path, capsys: Capture) -> None:
    """A file that is missing, foreign, newer or older; and nothing is made."""
    rubbish, foreign = tmp_path / "rubbish.db", tmp_path / "foreign.db"
    rubbish.write_bytes(b"no database at all" * 100)
    tamper(foreign, "CREATE TABLE things (x)")
    for store, said in (
        (tmp_path / "missing.db", r"missing.db' does not exist; give the path"),
        (tmp_path, "is no file"),
        (rubbish, "file is not a database"),
        (foreign, "is no store of agents"),
        ("postgresql://x/y", "the stores are None"),
    ):
        assert said in complaint(capsys, verb[0], store, *verb[1:])
    assert not (tmp_path / "missing.db").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("missing")]
    tamper(path, "UPDATE meta SET value = '99' WHERE name = 'schema'")
    assert "has schema 99; this version knows 3: upgrade nitinol" in complaint(capsys, verb[0], path, *verb[1:])


def test_a_corrupt_store_is_one_line(path: Path, capsys: Capture) -> None:
    """Wherever the damage is, no verb shows a traceback."""
    whole = path.read_bytes()
    for at in range(4096, len(whole), 8192):
        path.write_bytes(whole[:at] + b"\xa5" * 4096 + whole[at + 4096 :])
        for verb in (["log"], ["agents"], ["verify"], ["export", "scout/1"]):
            status = main([verb[0], str(path), *verb[1:]])
            _, err = capsys.readouterr()
            assert status in (0, 1)
            assert err.count("\n") <= 1, err


def test_types_may_stand_before_the_store(path: Path, capsys: Capture) -> None:
    """Which `--type` takes for one of its patterns."""
    wanted = shown(capsys, "log", path, "--type", "run.*", "tool.*")
    assert shown(capsys, "log", "--type", "run.*", "tool.*", path) == wanted
    assert shown(capsys, "log", "--type", "run.*", "--type", "tool.*", path) == wanted
    assert shown(capsys, "log", "--type", "run.*", "tool.*", "--after", 0, path) == wanted
    assert "which store? write it first" in complaint(capsys, "log", "--type", "run.*", "tool.*")
    assert "which store? write it first" in complaint(capsys, "log", "--type", "nope.*", path)


def test_a_key_that_nobody_has_is_said(path: Path, capsys: Capture) -> None:
    """As by `log`; what is left of the bill of one that was forgotten is shown."""
    for verb in (["agents", path, "nobody"], ["tree", path, "--key", "nobody"], ["agents", path, "nobody", "--json"]):
        assert re.search("no agent has the key 'nobody' in store .*; `nitinol agents", complaint(capsys, *verb))
    assert shown(capsys, "agents", path, "gone")[-1].startswith("0 agents")
