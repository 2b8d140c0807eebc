"""A runtime that only looks on: beside the owner of a store, after its death, and where there is none."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON, wait_for
from tests.runtime.owner import Owner

from nitinol import Agent, AgentRef, ModelRequest, RunHandle, Runtime
from nitinol.actors.bus import Subscription
from nitinol.env import Env, Loop
from nitinol.errors import (
    AgentParked,
    ConfigurationError,
    KeyTaken,
    NewerSchema,
    NotFound,
    ReadOnly,
    RuntimeStopped,
    StorageFailed,
)
from nitinol.events import EventBase
from nitinol.journal import Journal
from nitinol.testing import Answer, ScriptedProvider, crash


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def owner(path: Path) -> Iterator[Owner]:
    """A process that owns the store; whatever becomes of it, it has ended after the test."""
    owner = Owner(path)
    yield owner
    owner.kill()


def echo(request: ModelRequest) -> Answer:
    return f"you said {request.messages[-1].text}"


def scout(**options: Any) -> Agent[Any]:
    return Agent(name="scout", model=ScriptedProvider(echo), **options)


def test_the_tree_counts_an_agents_lives_as_its_owner_does(path: Path) -> None:
    """Incarnations after the first, of crashes and of processes that came one after the other."""

    def restarts(rt: Runtime) -> dict[str, int]:
        (agents,) = (node for node in rt.tree().children if node.id == "agents")
        return {node.id: node.restarts for node in agents.children}

    for lives, crashes in ((0, False), (2, True)):
        with Runtime(path, agents=[scout()]) as rt:
            ref = rt.start("scout", key="scout/1")
            if crashes:
                ref.ask("hi", timeout=SOON)
                crash(ref)
            ref.ask("hi", timeout=SOON)
            assert restarts(rt) == {"scout/1": lives}
        with Runtime(path, read_only=True) as rt:
            assert restarts(rt) == {"scout/1": lives}


def fill(path: Path, *keys: str) -> None:
    """A store without an owner: an agent at each key, which said one thing."""
    with Runtime(path, drain=0.0) as rt:
        for key in keys:
            rt.start(scout(), key=key).ask("hi", timeout=SOON)


def tamper(path: Path, statement: str, *values: object) -> None:
    """Change the file from outside."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


# ---- looking


def test_all_that_tells_answers_beside_the_owner(path: Path, owner: Owner) -> None:
    """Agents, runs, conversations and costs of another process, with no definition known here. rule 4"""
    owner.do("ask scout/1 hello there")
    owner.do("send scout/2 run-2 call")
    with Runtime(path, read_only=True) as rt:
        with rt.subscribe("approval.requested", after=0) as asked:
            asked.get(SOON)
        assert [ref.key for ref in rt.agents()] == ["scout/1", "scout/2"]
        assert [ref.key for ref in rt.agents("*/2")] == ["scout/2"]
        one, two = rt.agents()
        assert [message.text for message in one.history()] == ["hello there", "you said hello there"]
        assert one.messages() == one.history()
        status = one.status()
        assert (status.agent, status.state, status.message_count, one.current) == ("scout", "idle", 2, None)
        assert status.cost is not None
        assert status.cost > 0
        assert [event["type"] for event in one.snapshot()["events"]][-1] == "run.finished"
        assert two.status().state == "paused"
        assert [call.arguments for call in two.pending_approvals()] == [{"where": "the moon"}]
        assert two.current is not None
        assert two.current.run_id == "run-2"
        assert one.agent.name == "scout"
        nodes = {node.id: node for node in rt.tree().children}
        assert [(node.id, node.state) for node in nodes["agents"].children] == [
            ("scout/1", "idle"),
            ("scout/2", "paused"),
        ]
        assert nodes["journal"].state == "read only"
        with pytest.raises(NotFound):
            rt.get("scout/3")
        with pytest.raises(NotFound):
            rt.handle("run-3")


def test_a_run_is_waited_for_and_followed_beside_its_owner(path: Path, owner: Owner) -> None:
    """By `result`, `await`, iteration and `text`, from before its end; the wait may end, and begin again."""
    owner.do("send scout/1 run-1 wait")

    async def look(handle: RunHandle[Any]) -> tuple[Any, list[str]]:
        return await handle, [event.type async for event in handle]

    with Runtime(path, read_only=True) as rt, ThreadPoolExecutor(4) as pool:
        handle = rt.handle("run-1")
        assert not handle.done()
        with pytest.raises(TimeoutError):
            handle.result(0.01)
        types = pool.submit(lambda: [event.type for event in handle])
        waits: list[Callable[[], Any]] = [
            handle.result,
            lambda: "".join(handle.text()),
            lambda: asyncio.run(look(handle)),
        ]
        outcomes = [pool.submit(wait) for wait in waits]
        owner.do("release")
        assert outcomes[0].result(SOON).text == "waited"
        assert outcomes[1].result(SOON) == "waited"
        result, seen = outcomes[2].result(SOON)
        assert (result.text, result.key) == ("waited", "scout/1")
        assert seen == types.result(SOON)
        assert (seen[0], seen[-1]) == ("run.queued", "run.finished")
        assert not any(type.startswith("model.delta") for type in seen)
        assert handle.done()
        assert rt.get("scout/1").status().state == "idle"


def test_a_wait_goes_on_with_the_owners_successor(path: Path, owner: Owner) -> None:
    """The owner is killed in the middle of the run; the next one finishes it."""
    owner.do("send scout/1 run-1 wait")
    with (
        Runtime(path, read_only=True) as rt,
        rt.subscribe("model.started", after=0) as models,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(rt.handle("run-1").result)
        wait_for(models, "model.started")
        owner.kill()
        with pytest.raises(TimeoutError):
            rt.handle("run-1").result(0.05)
        successor = Owner(path)
        successor.do("release")
        assert waiting.result(SOON).text == "waited"
        successor.stop()


def test_whoever_waits_is_told_that_the_agent_was_parked(path: Path, owner: Owner) -> None:
    """As in its own process, and so is who comes later."""
    owner.do("send scout/1 run-1 wait")
    with Runtime(path, read_only=True) as rt, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rt.handle("run-1").result)
        owner.do("crash scout/1")
        with pytest.raises(AgentParked, match=r"scout/1.*crashes in"):
            waiting.result(SOON)
        assert rt.get("scout/1").status().state == "parked"
        with pytest.raises(AgentParked):
            rt.handle("run-1").result(SOON)


def test_typed_output_needs_the_definition(path: Path) -> None:
    """Given as `agents=`, or to `start`, which starts nobody here; neither model nor key of it must be there."""
    with Runtime(path, drain=0.0) as rt:
        handle = rt.start(Agent(name="scout", model=ScriptedProvider(["[1, 2]"]), output=list[int]), key="k").send("hi")
        handle.result(SOON)
    known: Agent[list[int]] = Agent(name="scout", model="unheard-of:model", output=list[int])
    with Runtime(path, read_only=True) as rt:
        assert rt.handle(handle.run_id).result(SOON).output == "[1, 2]"
        ref = rt.start(known, key="k")
        assert rt.handle(handle.run_id).result(SOON).output == [1, 2]
        assert ref.status().incarnation == 1
        with pytest.raises(KeyTaken, match="'scout'"):
            rt.start(Agent(name="other", model="unheard-of:model"), key="k")
    with Runtime(path, agents=[known], read_only=True) as rt:
        assert rt.handle(handle.run_id).result(SOON).output == [1, 2]


def test_many_agents_are_listed_by_their_heads(path: Path) -> None:
    """`agents` and `tree` read no log: they answer where there is none to read."""
    fill(path, *(f"scout/{number:03}" for number in range(100)))
    tamper(path, "DELETE FROM events")
    with Runtime(path, read_only=True) as rt:
        assert len(rt.agents("scout/0[0-4]*")) == 50
        assert {node.state for node in rt.tree().children[-1].children} == {"stopped"}


def test_a_log_that_does_not_fold_is_parked_here_too(path: Path) -> None:
    """Status answers, as in its owner, and says why."""
    fill(path, "k", "other")
    tamper(path, "DELETE FROM events WHERE key = 'k' AND seq = 3")
    with Runtime(path, read_only=True) as rt:
        assert rt.get("k").status().state == "parked"
        assert rt.get("other").status().state == "stopped"
        assert rt.get("k").status().state == "parked"


def test_a_forgotten_agent_is_gone_here_too(path: Path, owner: Owner) -> None:
    """And a new life at its key is a new one, also for who holds a reference to the old."""
    owner.do("ask scout/1 secret")
    with Runtime(path, read_only=True) as rt:
        ref = rt.get("scout/1")
        assert len(ref.history()) == 2
        owner.do("forget scout/1")
        with pytest.raises(NotFound):
            rt.get("scout/1")
        assert (rt.agents(), ref.history()) == ([], ())
        owner.do("ask scout/1 hello")
        assert [message.text for message in ref.history()] == ["hello", "you said hello"]
        assert ref.status().incarnation == 1
        assert [each.key for each in rt.agents()] == ["scout/1"]


# ---- changing

REFUSED: dict[str, Callable[[Runtime, AgentRef[Any], RunHandle[Any]], Any]] = {
    "send": lambda rt, ref, handle: ref.send("hi"),
    "ask": lambda rt, ref, handle: ref.ask("hi", timeout=SOON),
    "set_model": lambda rt, ref, handle: ref.set_model(ScriptedProvider(["x"])),
    "reset": lambda rt, ref, handle: ref.reset(),
    "resume": lambda rt, ref, handle: ref.resume(),
    "stop": lambda rt, ref, handle: ref.stop(),
    "steer": lambda rt, ref, handle: handle.steer("left"),
    "follow_up": lambda rt, ref, handle: handle.follow_up("and then"),
    "approve": lambda rt, ref, handle: handle.approve("c"),
    "deny": lambda rt, ref, handle: handle.deny("c"),
    "cancel": lambda rt, ref, handle: handle.cancel(),
    "start of a new key": lambda rt, ref, handle: rt.start(scout(), key="new"),
    "start of a fresh key": lambda rt, ref, handle: rt.start(scout()),
    "forget": lambda rt, ref, handle: rt.forget("k"),
    "forget of one not looked at": lambda rt, ref, handle: rt.forget("other"),
    "publish": lambda rt, ref, handle: rt.publish("news"),
    "import": lambda rt, ref, handle: rt.import_agent(rt.export_agent("k"), key="copy"),
}
TWINS: dict[str, Callable[[Runtime, AgentRef[Any], RunHandle[Any]], Any]] = {
    "asend": lambda rt, ref, handle: ref.asend("hi"),
    "aask": lambda rt, ref, handle: ref.aask("hi"),
    "areset": lambda rt, ref, handle: ref.areset(),
    "aresume": lambda rt, ref, handle: ref.aresume(),
    "astop": lambda rt, ref, handle: ref.astop(),
    "asteer": lambda rt, ref, handle: handle.asteer("left"),
    "acancel": lambda rt, ref, handle: handle.acancel(),
    "aforget": lambda rt, ref, handle: rt.aforget("k"),
    "aimport_agent": lambda rt, ref, handle: rt.aimport_agent(rt.export_agent("k"), key="copy"),
}


@pytest.fixture
def looking(path: Path) -> Iterator[tuple[Runtime, AgentRef[Any], RunHandle[Any]]]:
    """A runtime that looks on, one of its agents, and a run."""
    fill(path, "k", "other")
    with Runtime(path, read_only=True) as rt:
        ref = rt.get("k")
        run = next(event["run_id"] for event in ref.snapshot()["events"] if event["type"] == "run.queued")
        yield rt, ref, rt.handle(run)


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_would_change_something_is_refused(
    name: str, looking: tuple[Runtime, AgentRef[Any], RunHandle[Any]], path: Path
) -> None:
    """The error names the store and the way out. rule 4"""
    with pytest.raises(ReadOnly, match=r"agents\.db' is open with read_only=True here; ask its owner"):
        REFUSED[name](*looking)


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_refused_too(name: str, looking: tuple[Runtime, AgentRef[Any], RunHandle[Any]]) -> None:
    """As what they are twins of."""

    async def call() -> None:
        with pytest.raises(ReadOnly):
            await TWINS[name](*looking)

    asyncio.run(call())


def test_leaving_a_handle_cancels_nothing_here(path: Path, owner: Owner) -> None:
    """`with handle` does elsewhere."""
    owner.do("send scout/1 run-1 wait")
    with Runtime(path, read_only=True) as rt:
        with rt.handle("run-1"):
            pass
        owner.do("release")
        assert rt.handle("run-1").result(SOON).status == "completed"


# ---- following


def read_until(subscription: Subscription, last: str) -> list[EventBase]:
    """All durable events up to the end of this run."""
    seen: list[EventBase] = []
    while not seen or (seen[-1].type, seen[-1].run_id) != ("run.finished", last):
        seen.append(subscription.get(60.0))
    return seen


def test_a_follower_sees_every_event_once_in_order_across_a_kill(path: Path) -> None:
    """The owner works, is killed -9 in the middle, twice, and a successor goes on: nothing is lost, doubled or early."""
    owner = Owner(path)
    owner.do("ask agent/0 hi")
    with Runtime(path, read_only=True) as rt, ThreadPoolExecutor(3) as pool:
        live, all_of_it, slow = rt.subscribe(), rt.subscribe(after=0), rt.subscribe(after=0, maxsize=1)
        first = rt._system.journal.position + 1  # pyright: ignore[reportPrivateUsage]
        seen = [pool.submit(read_until, subscription, "the-last") for subscription in (live, all_of_it, slow)]
        with rt.subscribe("run.finished") as runs:
            for _ in range(2):
                owner.do("work")
                wait_for(runs, "run.finished", count=25)
                owner.kill()
                owner = Owner(path)
        owner.do("work 30 10")
        owner.do("send agent/0 the-last bye")
        told, whole, late = (outcome.result(60) for outcome in seen)
        owner.stop()
        committed = [event for event in rt._system.journal.scan(0, 100_000) if event.position <= whole[-1].position]  # pyright: ignore[reportPrivateUsage]
        positions = [event.position for event in committed]
        assert len(positions) > 500
        assert [event.position for event in whole] == positions
        assert [event.position for event in late] == positions
        assert [event.position for event in told] == [position for position in positions if position >= first]
        assert [event.to_json() for event in whole] == [event.to_json() for event in committed]
        assert sum(event.type == "agent.started" for event in whole) > 10  # the successors are among them
    for subscription in (live, all_of_it, slow):
        subscription.close()


def test_a_follower_outlives_clean_owners(path: Path) -> None:
    """The last one to leave a WAL removes it, but never from under who reads."""
    fill(path)
    with Runtime(path, read_only=True) as rt, rt.subscribe("run.queued", after=0) as queued:
        for number in range(3):
            owner = Owner(path)
            owner.do(f"send agent/0 run-{number} hi")
            assert queued.get(SOON).run_id == f"run-{number}"
            owner.stop()


def test_an_event_of_a_newer_version_is_told_in_its_place(path: Path) -> None:
    """As `custom`, once, between the others, live and from the log."""
    fill(path, "k")
    with Runtime(path, read_only=True) as rt, rt.subscribe() as live, rt.subscribe(after=0) as whole:
        tamper(
            path,
            "INSERT INTO events (key, seq, epoch, type, body) VALUES ('k', 99, 1, 'agent.teleported', ?)",
            b'{"id":"k#99","seq":99,"key":"k","agent":"scout","where":"mars"}',
        )
        fresh = live.get(SOON)
        assert (fresh.type, fresh.key, fresh.seq) == ("custom", "k", 99)
        with rt.subscribe(after=fresh.position - 1) as again:
            assert again.get(SOON).position == fresh.position
        types = [whole.get(SOON).type for _ in range(fresh.position)]
        assert types[-1] == "custom"
        tamper(path, "UPDATE events SET type = 'agent.stopped' WHERE seq = 99")
        tamper(
            path,
            "INSERT INTO events (key, seq, epoch, type, body) VALUES ('k', 100, 1, 'agent.resumed', ?)",
            b'{"id":"k#100","seq":100,"key":"k","agent":"scout"}',
        )
        assert [subscription.get(SOON).seq for subscription in (live, whole)] == [100, 100]


def test_a_runtime_that_looks_on_ends_at_once(path: Path, owner: Owner) -> None:
    """Whatever the owner still does; who waits is told."""
    owner.do("send scout/1 run-1 wait")
    with ThreadPoolExecutor(2) as pool:
        with Runtime(path, read_only=True, drain=600.0) as rt:
            handle = rt.handle("run-1")
            subscription = rt.subscribe()
            waiting, reading = pool.submit(handle.result), pool.submit(list[EventBase], subscription)
        with pytest.raises(RuntimeStopped):
            waiting.result(SOON)
        assert all(event.key == "scout/1" for event in reading.result(SOON))  # it ends
    with pytest.raises(RuntimeStopped):
        rt.get("scout/1")
    owner.do("release")


# ---- the file

LOOK = """
import sys
from nitinol import Runtime
with Runtime(sys.argv[1], read_only=True) as rt, rt.subscribe(after=0) as events:
    print(sum(1 for _ in iter(events.poll, None)), [len(ref.history()) for ref in rt.agents()])
"""


def digest(path: Path) -> str:
    """In a process that has nothing open there: closing a file drops SQLite's locks on it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("end", ["killed", "clean"])
def test_looking_changes_no_byte(path: Path, end: str) -> None:
    """Not even where a killed owner has left a WAL, which whoever writes would write back; and no lock is taken."""
    owner = Owner(path)
    owner.do("work 5 2")
    if end == "killed":
        owner.kill()
    else:
        owner.stop()
    path.with_name("agents.db-lock").unlink()
    before = digest(path)
    wal = path.with_name("agents.db-wal")
    left = wal.read_bytes() if wal.exists() else b""
    done = subprocess.run([sys.executable, "-c", LOOK, path], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("[6, 4]\n")
    assert digest(path) == before
    assert (wal.read_bytes() if wal.exists() else b"") == left
    assert not path.with_name("agents.db-lock").exists()
    successor = Owner(path)
    successor.do("ask agent/0 again")
    successor.stop()


def test_a_store_that_may_only_be_read_can_be_looked_at() -> None:
    """Its file without the right to write it, as nobody where that can be, since root may write everything."""
    code = (
        "import os, sys\nfrom nitinol import Runtime\n"
        "def look():\n"
        "    with Runtime(sys.argv[1], read_only=True) as rt: return len(rt.get('k').history())\n"
        "look()\n"  # so that everything is imported: nobody may not even read the library
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "print(look())"
    )
    with tempfile.TemporaryDirectory() as directory:  # not `tmp_path`, which is for one user
        store = Path(directory) / "agents.db"
        fill(store, "k")
        store.parent.chmod(0o777)
        store.chmod(0o444)
        done = subprocess.run(
            [sys.executable, "-c", code, store], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr


def _journal_of_my_own(env: Env, core: Loop) -> Journal:
    raise AssertionError("it is not asked for one")


def test_what_cannot_be_looked_at_says_why(tmp_path: Path) -> None:
    """With the path, and the way out; nothing is made where nothing was."""
    rubbish, other, newer, older = (tmp_path / name for name in ("rubbish.db", "other.db", "newer.db", "older.db"))
    rubbish.write_bytes(b"no database at all" * 100)
    tamper(other, "CREATE TABLE meta (x)")
    for path, schema in ((newer, "99"), (older, "1")):
        fill(path, "k")
        tamper(path, "UPDATE meta SET value = ? WHERE name = 'schema'", schema)
    cases: list[tuple[Any, type[Exception], str]] = [
        (tmp_path / "missing.db", StorageFailed, r"missing\.db' does not exist; give the path"),
        (tmp_path, StorageFailed, "is no file; give the path"),
        (rubbish, StorageFailed, r"rubbish\.db' cannot be read: file is not a database"),
        (other, StorageFailed, r"other\.db"),
        (newer, NewerSchema, r"newer\.db' has schema 99; .*upgrade nitinol"),
        (older, StorageFailed, r"older\.db' has schema 1, .*open it once with Runtime"),
        (None, ConfigurationError, "read_only=True looks into a store on disk, not into None"),
        (_journal_of_my_own, ConfigurationError, "give its path"),
        ("postgresql://x/y", ConfigurationError, "the stores are"),
    ]
    for store, error, why in cases:
        with pytest.raises(error, match=why):
            Runtime(store, read_only=True)
    assert not (tmp_path / "missing.db").exists()


def test_a_lagging_cursor_is_good_here(path: Path, owner: Owner) -> None:
    """A cursor of the owner's, ahead of what was followed so far, loses and repeats nothing."""
    with Runtime(path, read_only=True) as rt:
        held = threading.Event()
        rt._system.core.call(held.wait, SOON)  # pyright: ignore[reportPrivateUsage]
        owner.do("ask scout/1 one")
        at = rt._system.journal.position  # pyright: ignore[reportPrivateUsage]
        with rt.subscribe("message.appended", after=at) as after, rt.subscribe("message.appended", after=0) as whole:
            assert after.poll() is None
            held.set()
            owner.do("ask scout/1 two")
            texts = [json.loads(after.get(SOON).to_json())["message"]["parts"][0]["text"] for _ in range(2)]
            assert texts == ["two", "you said two"]
            assert [whole.get(SOON).seq for _ in range(4)] == sorted({event.seq for event in _messages(rt)})


def _messages(rt: Runtime) -> list[EventBase]:
    journal = rt._system.journal  # pyright: ignore[reportPrivateUsage]
    return [event for event in journal.read("scout/1") if event.type == "message.appended"]
