"""One agent out of one store and into another: all of it, sound, or nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from tests.logs_of import SOON, assert_valid, log_of, wait_for
from tests.runtime.owner import Owner

from nitinol import Agent, Image, ModelRequest, Prices, Runtime, ToolContext, tool
from nitinol.errors import BadExport, ConfigurationError, KeyTaken, NotFound, WouldDeadlock
from nitinol.journal.audit import audit
from nitinol.journal.base import Conflict
from nitinol.journal.transfer import read_export
from nitinol.testing import Answer, ScriptedProvider, call, gate

PICTURE = bytes(range(256)) * 1000
ran: list[str] = []


@tool(replay="safe")
def photograph(ctx: ToolContext) -> list[str | Image]:
    """Take a picture."""
    ran.append(ctx.idempotency_key)
    return ["x" * 200_000 + "ü\u2028\x85☃", Image(data=PICTURE, name="x.png")]


def script(request: ModelRequest) -> Answer:
    last = request.messages[-1]
    if last.role == "tool":
        return "done"
    return call("photograph") if last.text == "photograph" else f"you said {last.text}"


def scout(model: ScriptedProvider | None = None) -> Agent[str]:
    model = model or ScriptedProvider(script, prices=Prices(input="3", output="15"))
    return Agent(name="scout", model=model, tools=[photograph])


Stores = tuple[Runtime, Runtime]


@pytest.fixture(params=["sqlite to sqlite", "memory to sqlite", "sqlite to memory"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Two runtimes: one to export from, one to import into."""
    source, _, target = request.param.split()
    one = tmp_path / "one.db" if source == "sqlite" else None
    two = tmp_path / "two.db" if target == "sqlite" else None
    with Runtime(one, agents=[scout()], drain=0.0) as here, Runtime(two, agents=[scout()], drain=0.0) as there:
        yield here, there
    for path in (one, two):
        assert path is None or audit(path).faults == []


def without_position(lines: list[str]) -> list[dict[str, Any]]:
    """What an export says, but for what is a store's own."""
    return [{name: value for name, value in json.loads(line).items() if name != "position"} for line in lines]


def export(rt: Runtime, key: str = "k") -> list[str]:
    """As it comes from a file: each line with its end."""
    return [f"{line}\n" for line in rt.export_agent(key)]


# ---- the trip


def test_an_agent_survives_the_trip(stores: Stores) -> None:
    """Ids, seq, times, costs, messages, large parts, media and lines' ends: the export of the import is the same. parity: A6"""
    here, there = stores
    ref = here.start(scout(), key="k")
    results = [ref.ask(text, timeout=SOON) for text in ("photograph", "hello ü\u2028☃ 𝄞")]
    lines = export(here)
    assert json.loads(lines[0]) == {
        "format": "nitinol.agent", "v": 1, "key": "k", "agent": "scout", "base_seq": 0, "seq": len(lines) - 1,
    }  # fmt: skip
    assert "".join(lines).splitlines() == [line.removesuffix("\n") for line in lines]
    assert there.import_agent(lines) == "k"
    # In memory it starts at once, and may have said so by now.
    assert without_position(export(there)[1 : len(lines)]) == without_position(lines[1:])
    moved = there.start(scout(), key="k")
    assert moved.history() == ref.history()
    assert moved.status().cost == ref.status().cost
    assert (moved.status().usage, moved.status().started_at) == (ref.status().usage, ref.status().started_at)
    again = there.handle(results[0].run_id).result(SOON)
    assert again.tool_calls == results[0].tool_calls
    media = next(part for message in moved.history() for part in message.parts if part.type == "tool_answer").media
    assert media == (Image(data=PICTURE, name="x.png"),)
    assert moved.ask("more", timeout=SOON).text == "you said more"
    assert moved.status().incarnation == ref.status().incarnation + 1
    assert_valid(moved)


def test_words_that_are_no_unicode_survive_in_memory() -> None:
    """Each line can be written to any file."""
    with Runtime(drain=0.0) as here, Runtime(drain=0.0) as there:
        here.start(scout(), key="k").ask("a\ud800b", timeout=SOON)
        lines = export(here)
        for line in lines:
            line.encode()
        there.import_agent(lines)
        assert there.start(scout(), key="k").history()[0].text == "a\ud800b"


def test_a_snapshot_can_be_imported_too(stores: Stores) -> None:
    """As it is, or through JSON. parity: A6"""
    here, there = stores
    ref = here.start(scout(), key="k")
    ref.ask("photograph", timeout=SOON)
    there.import_agent(ref.snapshot())
    there.import_agent(json.loads(json.dumps(ref.snapshot())), key="again")
    for key in ("k", "again"):
        assert there.start(scout(), key=key).history() == ref.history()
    with pytest.raises(BadExport, match="no snapshot of an agent"):
        there.import_agent({"key": "x"}, key="x")


def test_a_living_agent_is_exported_as_committed(tmp_path: Path) -> None:
    """In the middle of a run; each export is sound, whatever is written meanwhile."""
    with Runtime(tmp_path / "one.db", drain=0.0) as here, Runtime(drain=0.0) as there, ThreadPoolExecutor(1) as pool:
        ref = here.start(scout(), key="k")
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                ref.ask("photograph", timeout=SOON)

        with here.subscribe("run.queued") as queued:
            working = pool.submit(work)
            wait_for(queued, "run.queued")
        for number in range(20):
            assert there.import_agent(export(here), key=f"copy-{number}") == f"copy-{number}"
        stop.set()
        working.result(SOON)


def test_it_is_exported_beside_its_owner(tmp_path: Path) -> None:
    """By a runtime that looks on."""
    owner = Owner(tmp_path / "agents.db")
    owner.do("send scout/1 run-1 wait")
    with Runtime(tmp_path / "agents.db", read_only=True) as rt, Runtime(drain=0.0) as there:
        there.import_agent(rt.export_agent("scout/1"))
        there.start(scout(), key="scout/1")
        assert there.handle("run-1").result(SOON).text == "you said wait"
        assert not rt.handle("run-1").done()
    owner.kill()


def test_a_log_that_begins_late_is_exported_as_it_is(tmp_path: Path) -> None:
    """What was forgotten is not there, and seq goes on from where it was."""
    with Runtime(tmp_path / "one.db", drain=0.0) as here:
        here.start(scout(), key="k").ask("secret", timeout=SOON)
        here.forget("k")
        here.start(scout(), key="k").ask("hi", timeout=SOON)
        lines = export(here)
        base = json.loads(lines[0])["base_seq"]
        assert base > 5
        assert "secret" not in "".join(lines)
        for path in (tmp_path / "two.db", None):
            with Runtime(path, drain=0.0) as there:
                there.import_agent(lines)
                moved = there.start(scout(), key="k")
                assert moved.ask("more", timeout=SOON).text == "you said more"
                assert log_of(moved)[0].seq == base + 1
                there.forget("k")
    assert audit(tmp_path / "two.db").faults == []


# ---- what it does where it comes


def test_an_interrupted_run_goes_on_where_its_definition_is_known(tmp_path: Path) -> None:
    """At once where it was given as `agents=`, else with `start`."""
    never = gate("never")
    with Runtime(tmp_path / "one.db", drain=0.0) as here:
        handle = here.start(scout(ScriptedProvider([never])), key="k").send("hello")
        assert never.reached()
        queued = here.get("k").send("later")
    with Runtime(tmp_path / "one.db", read_only=True) as looking:
        lines = export(looking)
    for path in (tmp_path / "two.db", None):
        with Runtime(path, agents=[scout()], drain=0.0) as rt:
            rt.import_agent(lines)
            assert rt.handle(handle.run_id).result(SOON).text == "you said hello"
            assert rt.handle(queued.run_id).result(SOON).text == "you said later"
            assert_valid(rt.get("k"))
    for path in (tmp_path / "three.db", None):
        with Runtime(path, drain=0.0) as rt:
            rt.import_agent(lines)
            with pytest.raises(NotFound):
                rt.get("k")
            ref = rt.start(scout(), key="k")
            assert rt.handle(handle.run_id).result(SOON).text == "you said hello"
            assert rt.handle(queued.run_id).result(SOON).text == "you said later"
            assert_valid(ref)


def test_the_bill_comes_along(tmp_path: Path) -> None:
    """It counts in the scopes of the store, on the days it was made; the log's rows are the bill."""
    with Runtime(tmp_path / "one.db", drain=0.0) as here:
        here.start(scout(), key="k").ask("hello", timeout=SOON)
        lines = export(here)
    with Runtime(tmp_path / "two.db", drain=0.0) as there:
        there.start(scout(), key="other").ask("hello", timeout=SOON)
        before = audit(tmp_path / "two.db").spent
        there.import_agent(lines)
    after = audit(tmp_path / "two.db")
    assert after.faults == []
    assert after.spent.priced == before.priced * 2
    assert after.spent.usage.total_tokens == before.usage.total_tokens * 2


def test_subscribers_see_what_was_imported(stores: Stores) -> None:
    """As anything else that is committed: once, in order; and cursors hold."""
    here, there = stores
    here.start(scout(), key="k").ask("hello", timeout=SOON)
    lines = export(here)
    there.start(scout(), key="other").ask("hello", timeout=SOON)
    with there.subscribe() as live, there.subscribe(after=0, key="k") as replay:
        there.import_agent(lines)
        for subscription in (live, replay):
            seen = [subscription.get(SOON) for _ in range(len(lines) - 1)]
            assert [event.seq for event in seen] == list(range(1, len(lines)))
            positions = [event.position for event in seen]
            assert positions == sorted(set(positions))
        there.get("other").ask("more", timeout=SOON)
        assert live.get(SOON).position > positions[-1]


def test_an_agent_may_be_copied_beside_itself(tmp_path: Path) -> None:
    """Under another key: key, ids and the runs' ids are its own, wherever they stand, and both go on."""
    with Runtime(tmp_path / "one.db", agents=[scout()], drain=0.0) as rt:
        ref = rt.start(scout(), key="k")
        result = ref.ask("photograph", timeout=SOON)
        assert rt.import_agent(export(rt), key="copy") == "copy"
        copy = rt.get("copy")
        text = json.dumps(copy.snapshot())
        assert result.run_id not in text
        assert '"k#' not in text
        log = log_of(copy)
        assert [event.id for event in log[:-1]] == [f"copy#{seq}" for seq in range(1, len(log))]
        runs = {event.run_id for event in log if event.run_id}
        assert len(runs) == 1
        asked = next(event for event in log if event.type == "tool.requested")
        assert asked.idempotency_key.startswith(f"{runs.pop()}/")
        assert copy.history() == ref.history()
        assert (ref.ask("one", timeout=SOON).text, copy.ask("two", timeout=SOON).text) == (
            "you said one",
            "you said two",
        )
        assert_valid(copy)
    assert audit(tmp_path / "one.db").faults == []


def test_a_moved_agent_keeps_the_ids_of_its_runs(stores: Stores) -> None:
    """Under another key, too, where nobody has them."""
    here, there = stores
    result = here.start(scout(), key="k").ask("hello", timeout=SOON)
    there.import_agent(export(here), key="moved")
    there.start(scout(), key="moved")
    assert there.handle(result.run_id).result(SOON).key == "moved"


# ---- refusals


def test_a_key_that_is_taken_is_refused(stores: Stores) -> None:
    """Live, known, or forgotten with its bill; and nothing is changed."""
    here, there = stores
    here.start(scout(), key="k").ask("hello", timeout=SOON)
    lines = export(here)
    there.start(scout(), key="k")  # it has not said a word
    with pytest.raises(KeyTaken, match="'k'"):
        there.import_agent(lines)
    there.forget("k")
    there.start(scout(), key="k").ask("mine", timeout=SOON)
    before = without_position(export(there))
    with pytest.raises(KeyTaken, match="give another key"):
        there.import_agent(lines)
    assert without_position(export(there)) == before
    with pytest.raises(ConfigurationError, match="key=5 "):
        there.import_agent(lines, key=cast("str", 5))
    there.import_agent(lines, key="free")
    with pytest.raises(KeyTaken):
        there.import_agent(lines, key="free")
    with pytest.raises(KeyTaken):
        here.import_agent(lines)


def test_a_forgotten_key_keeps_its_bill_for_itself(tmp_path: Path) -> None:
    """Its seq went on; a log that begins anew cannot be there."""
    with Runtime(tmp_path / "one.db", drain=0.0) as rt:
        rt.start(scout(), key="k").ask("hello", timeout=SOON)
        lines = export(rt)
        rt.forget("k")
        with pytest.raises(KeyTaken, match="its bill is left"):
            rt.import_agent(lines)
        rt.import_agent(lines, key="new")
    assert audit(tmp_path / "one.db").faults == []


def test_a_run_that_is_known_is_refused(stores: Stores) -> None:
    """A run's id is one run in a store: it cannot be two agents', unless it is copied under another key."""
    here, there = stores
    result = here.start(scout(), key="k").ask("hello", timeout=SOON)
    there.start(scout(), key="other").ask("hello", timeout=SOON, run_id=result.run_id)
    lines = export(here)
    with pytest.raises(ConfigurationError, match="'other' here already; import it with another key="):
        there.import_agent(lines)
    there.import_agent(lines, key="copy")


def test_what_is_not_there_cannot_be_exported(stores: Stores) -> None:
    """Also an agent that has said nothing yet, or was forgotten."""
    here, _ = stores
    with pytest.raises(NotFound, match="'nobody'"):
        here.export_agent("nobody")


def edit(number: int, **changes: Any) -> Callable[[list[str]], list[str]]:
    """An export with other fields in one line."""

    def change(lines: list[str]) -> list[str]:
        data = {**json.loads(lines[number]), **changes}
        return [
            *lines[:number],
            json.dumps({name: value for name, value in data.items() if value is not ...}),
            *lines[number + 1 :],
        ]

    return change


DAMAGE: list[tuple[str, Callable[[list[str]], list[str]], str]] = [
    ("empty", lambda lines: [], "no export of an agent"),
    ("blank", lambda lines: ["\n", "  \n"], "no export of an agent"),
    ("without its header", lambda lines: lines[1:], "no export of an agent: its first line"),
    ("some other text", lambda lines: ["hello\n", *lines], "line 1 is no JSON"),
    ("some other JSON", lambda lines: ["[]\n", *lines], "no export of an agent"),
    ("only a header", lambda lines: lines[:1], "cut off: it ends with event 0"),
    ("cut off at a line", lambda lines: lines[:-1], r"cut off: it ends with event \d+, and should with \d+"),
    ("cut off in a line", lambda lines: [*lines[:-1], lines[-1][:50]], r"line \d+ is no JSON"),
    ("a line lost", lambda lines: [*lines[:5], *lines[6:]], r"line 6: event 6 .* where 5 should be"),
    ("a line doubled", lambda lines: [*lines[:5], lines[4], *lines[5:]], r"line 6: event 4 .* where 5 should be"),
    ("two lines changed", lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], r"line 5: event 5 .* where 4"),
    ("lines of two exports", lambda lines: [*lines, *lines], r"line \d+: a log has no event of type None"),
    ("a newer header", edit(0, v=2), "version 2, and this version of nitinol reads 1; upgrade"),
    ("another base", edit(0, base_seq=3), "line 2: event 1 .* where 4 should be"),
    ("a base that is none", edit(0, base_seq=-1), "header is damaged: base_seq is -1"),
    ("no key", edit(0, key=...), "header is damaged: key is None"),
    ("another key", edit(0, key="x"), "line 2: an event of agent 'scout' at 'k', not of 'scout' at 'x'"),
    ("an unknown type", edit(3, type="agent.teleported"), "line 4: a log has no event of type 'agent.teleported'.*upgrade"),
    ("an ephemeral type", edit(3, type="model.delta"), "line 4: a log has no event of type 'model.delta'"),
    ("an unknown field", edit(3, warp=9), "line 4: its 'run.started' has warp, which this version does not know; upgrade"),
    ("a newer event", edit(3, v=2), "line 4: its 'run.started' is of version 2"),
    ("a field lost", edit(3, model=...), "line 4 is damaged: .*model"),
    ("a field of another type", edit(4, message="hello"), "line 5 is damaged"),
    ("a time that is none", edit(3, ts="yesterday"), "line 4 is damaged"),
    ("a time beyond time", edit(3, ts=10**30), "line 4 is damaged"),
    ("a name that is none", edit(3, run_id="\ud800"), "line 4 is damaged: a name in it is no Unicode"),
    ("another id", edit(3, id="x#9"), r"line 4: event 3 \('x#9'\) where 3 should be"),
    ("a run that was not queued", edit(2, run_id="stray"), "no sound log: seq 3 .* was never queued"),
    ("a list", lambda lines: [*lines[:3], "[1]\n", *lines[3:]], "line 4: a log has no event of type None"),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage[0])
def test_a_damaged_export_changes_nothing(
    damage: tuple[str, Callable[[list[str]], list[str]], str], tmp_path: Path
) -> None:
    """Not one row; and the text says what is wrong, and where."""
    _, spoil, said = damage
    with Runtime(drain=0.0) as here:
        here.start(scout(), key="k").ask("hello", timeout=SOON)
        lines = spoil(export(here))
    path = tmp_path / "two.db"
    with Runtime(path, drain=0.0) as there:
        there.start(scout(), key="other").ask("hello", timeout=SOON)
        before = contents(path)
        with pytest.raises(BadExport, match=said):
            there.import_agent(lines)
        assert contents(path) == before


def test_an_import_that_loses_a_race_changes_nothing(stores: Stores) -> None:
    """Its run was queued at another agent between the look and the commit: all of it is refused."""
    here, there = stores
    result = here.start(scout(), key="k").ask("photograph", timeout=SOON)
    log = read_export(export(here))
    other = there.start(scout(), key="other")
    other.ask("hello", timeout=SOON, run_id=result.run_id)
    system = there._system  # pyright: ignore[reportPrivateUsage]
    position = system.journal.position
    with pytest.raises(Conflict, match="'k'"):
        system.restore("k", log.events, log.state).result(SOON)
    assert system.journal.position == position
    with pytest.raises(NotFound):
        there.export_agent("k")
    assert other.ask("more", timeout=SOON).text == "you said more"


def contents(path: Path) -> list[list[Any]]:
    """Every row of every table."""
    with sqlite3.connect(path) as connection:
        tables = ("events", "heads", "timers", "scopes", "runs", "blobs", "blob_uses")
        rows = [connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]
    connection.close()
    return rows


# ---- sync and async


def test_the_twin_imports_too(tmp_path: Path) -> None:
    """And raises the same."""

    async def move() -> None:
        async with Runtime(drain=0.0) as here, Runtime(tmp_path / "two.db", agents=[scout()], drain=0.0) as there:
            await here.start(scout(), key="k").aask("hello", timeout=SOON)
            lines = list(here.export_agent("k"))
            assert await there.aimport_agent(lines) == "k"
            assert (await there.get("k").aask("more", timeout=SOON)).text == "you said more"
            with pytest.raises(KeyTaken):
                await there.aimport_agent(lines)
            with pytest.raises(BadExport):
                await there.aimport_agent(lines[:-1], key="x")

    asyncio.run(move())


def test_importing_on_a_loop_of_the_runtime_is_refused() -> None:
    """It would wait for itself."""
    with Runtime(drain=0.0) as rt:
        refused: list[BaseException] = []
        done = threading.Event()

        def call() -> None:
            try:
                rt.import_agent([])
            except WouldDeadlock as error:
                refused.append(error)
            done.set()

        rt._system.core.call(call)  # pyright: ignore[reportPrivateUsage]
        assert done.wait(SOON)
        assert refused
