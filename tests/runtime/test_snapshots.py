"""Snapshots: a fold from one is the fold from the log, and where there is any doubt about one, the log decides."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.logs_of import SOON, assert_valid, log_of
from tests.runtime.test_machine_schedules import play
from tests.runtime.test_sqlite_journal import Store, queued, scout

from nitinol import Agent, ModelRequest, Runtime, events
from nitinol.events import EventBase, pack, unpack
from nitinol.journal import snapshots
from nitinol.journal.base import Opening
from nitinol.journal.blobs import LARGE
from nitinol.journal.schema import TABLES
from nitinol.messages import Message, Text
from nitinol.state import AgentState
from nitinol.testing import Answer, ScriptedProvider


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def words(key: str, seq: int, text: str = "words") -> EventBase:
    """A message, outside of any run."""
    message = Message(role="user", parts=(Text(text),))
    return events.MessageAppended(id=f"{key}#{seq}", seq=seq, key=key, agent="a", ts=seq, message=message)


def talk(store: Store, count: int, key: str = "k", text: str = "words") -> AgentState:
    """An agent that is told so many messages, one commit each."""
    store.open(key)
    return talk_on(store, AgentState(key, "a"), 1, count, text)


def talk_on(store: Store, state: AgentState, epoch: int, count: int, text: str = "words") -> AgentState:
    for _ in range(count):
        event = words(state.key, state.seq + 1, text)
        state = state.apply(event)
        store.append(state.key, epoch, event, state=state)
    return state


@pytest.mark.parametrize("count", [snapshots.EVERY - 1, snapshots.EVERY])
def test_what_reads_them_is_made_as_the_store_is_opened(path: Path, count: int) -> None:
    """In the caller's thread, and not on the loop that reads; where there is none, it is not made."""
    with closing(Store(path)) as store:
        talk(store, count)
    made = (snapshots._kept, snapshots._said)  # pyright: ignore[reportPrivateUsage] # who is built when is what is tested
    for make in made:
        make.cache_clear()
    with closing(Store(path)):
        assert [make.cache_info().currsize for make in made] == [int(count == snapshots.EVERY)] * 2


def folded(opening: Opening, key: str = "k") -> AgentState:
    """What an agent makes of it."""
    return (opening.state or AgentState(key, "a", seq=opening.base_seq)).fold(opening.events)


def change(path: Path, statement: str) -> None:
    """Change a store that nobody has open."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("seed", range(40))
def test_a_fold_from_a_snapshot_is_the_fold_from_the_log(seed: int) -> None:
    """At any event of any schedule: what is kept says all that the log says, to the last digit."""
    log = [unpack(event.type, pack(event)) for event in play(seed).log]
    connection = sqlite3.connect(":memory:")
    for statement in TABLES.split(";\n"):
        connection.execute(statement)
    state = AgentState(log[0].key, log[0].agent)
    for event in log:
        row = (event.key, event.seq, 1, event.type, pack(event))
        connection.execute("INSERT INTO events (key, seq, epoch, type, body) VALUES (?, ?, ?, ?, ?)", row)
        state = state.apply(event)
        snapshots.save(connection, state)
        kept = snapshots.load(connection, event.key)
        assert kept is not None
        assert kept == state
        assert (repr(kept.run), repr(kept.usage), kept.cost) == (repr(state.run), repr(state.usage), state.cost)
    connection.close()


def test_an_opening_reads_no_more_than_it_must(store: Store) -> None:
    """A long log is opened by its last snapshot and the few events behind; the first ones, before there is any, by all."""
    state = talk(store, snapshots.EVERY - 1)
    opening = store.open("k")
    assert (opening.state, len(opening.events)) == (None, state.seq)
    state = talk_on(store, state, 2, 3 * snapshots.EVERY)
    opening = store.open("k")
    assert opening.state is not None
    assert opening.state.seq == 3 * snapshots.EVERY
    assert [event.seq for event in opening.events] == list(range(opening.state.seq + 1, state.seq + 1))
    assert folded(opening) == state


def test_the_file_keeps_one_snapshot_of_a_key(store: Store) -> None:
    """So that its size for each turn stays the same, however long a conversation grows."""
    talk(store, 10 * snapshots.EVERY)
    with closing(sqlite3.connect(store.journal.path)) as connection:
        assert connection.execute("SELECT count(*), max(length(body)) < 1000 FROM snapshots").fetchone() == (1, 1)


def test_a_large_state_is_not_kept_every_few_events(store: Store) -> None:
    """A run that waits with a megabyte of history is written again only when the log has grown by as much as it is worth."""
    store.open("k")
    state, message = AgentState("k", "a"), Message(role="user", parts=(Text("x" * 100_000),))
    event = events.RunQueued(seq=1, key="k", agent="a", run_id="r", prompt=message, pending_count=0)
    state = state.apply(event)
    store.append("k", 1, event, state=state)
    state = talk_on(store, state, 1, 3 * snapshots.EVERY)
    opening = store.open("k")
    assert opening.state is not None
    assert opening.state.seq == snapshots.EVERY
    assert folded(opening) == state


def test_large_messages_are_read_from_where_they_are_kept(store: Store) -> None:
    """Those parts that stand beside the log."""
    state = talk(store, snapshots.EVERY, text="é" * LARGE)
    opening = store.open("k")
    assert opening.state is not None
    assert folded(opening) == state


@pytest.mark.parametrize(
    "doubt",
    [
        "UPDATE snapshots SET fold = fold + 1",
        "UPDATE snapshots SET body = CAST('{' AS BLOB)",
        "UPDATE snapshots SET body = CAST('{}' AS BLOB)",
        "UPDATE snapshots SET seq = seq - 1",
        "DELETE FROM snapshots",
    ],
)
def test_where_there_is_doubt_the_log_decides(path: Path, doubt: str) -> None:
    """A snapshot of another version, or one that cannot be read, is passed over; the next one takes its place."""
    store = Store(path)
    state = talk(store, 2 * snapshots.EVERY)
    store.close()
    change(path, doubt)
    store = Store(path)
    opening = store.open("k")
    assert opening.state is None
    assert folded(opening) == state
    state = talk_on(store, state, 2, 2 * snapshots.EVERY)
    opening = store.open("k")
    assert opening.state is not None
    assert folded(opening) == state
    store.close()


def test_a_snapshot_without_its_messages_is_not_used(path: Path) -> None:
    """A log with a hole is found by whoever folds it; a snapshot must not hide it."""
    store = Store(path)
    talk(store, 2 * snapshots.EVERY)
    store.close()
    change(path, "DELETE FROM events WHERE seq = 3")
    store = Store(path)
    opening = store.open("k")
    assert opening.state is None
    assert [event.seq for event in opening.events][:3] == [1, 2, 4]
    store.close()


def test_forgetting_takes_the_snapshot_along(store: Store) -> None:
    """Nothing that was said is left in one, and a new life of the key begins without it. rule 13"""
    talk(store, 2 * snapshots.EVERY, text="secret")
    store.forget("k")
    with closing(sqlite3.connect(store.journal.path)) as connection:
        assert connection.execute("SELECT count(*) FROM snapshots").fetchone() == (0,)
    opening = store.open("k")
    assert (opening.state, opening.events, opening.base_seq) == (None, [], 2 * snapshots.EVERY)
    state = talk_on(store, AgentState("k", "a", seq=opening.base_seq), opening.epoch, 2 * snapshots.EVERY)
    opening = store.open("k")
    assert opening.state is not None
    assert folded(opening) == state


def test_a_refused_decision_leaves_no_snapshot(store: Store) -> None:
    """What is rolled back is not kept, nor remembered."""
    state = talk(store, snapshots.EVERY - 1)
    taken = queued("other", 1, "taken")
    store.open("other")
    store.append("other", 1, taken)
    event = queued("k", state.seq + 1, "taken")
    with pytest.raises(Exception, match="cannot be written"):
        store.append("k", 1, event, state=state.apply(event))
    assert store.open("k").state is None


def test_a_conversation_goes_on_after_many_restarts(path: Path) -> None:
    """From a snapshot and what came after it, also across a reset."""
    said: list[str] = []
    for number in range(6):
        with Runtime(path, drain=0.0) as rt:
            ref = rt.start(scout(), key="k")
            if number == 4:
                ref.reset()
                said.clear()
            for _ in range(3):
                ref.ask(f"question {number}", timeout=SOON)
                said += [f"question {number}", "hi"]
            assert [message.text for message in ref.history()] == said
            cost, usage = ref.status().cost, ref.status().usage
            log = log_of(ref)
            assert AgentState("k", "scout").fold(log).usage == usage
            assert AgentState("k", "scout").fold(log).cost == cost


def test_words_that_are_no_unicode_stop_no_snapshot(path: Path) -> None:
    """A lone surrogate in a state is replaced, as in an event, and its agent goes on."""

    def odd(request: ModelRequest) -> Answer:
        return "odd \ud800 words"

    with Runtime(path, drain=0.0) as rt:
        ref = rt.start(Agent(name="odd", model=ScriptedProvider(odd)), key="k")
        for _ in range(snapshots.EVERY):
            assert ref.ask("odd \ud800 question", timeout=SOON).status == "completed"
        assert_valid(ref)
