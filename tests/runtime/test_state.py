"""The fold, and the log that it grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitinol import events as ev
from nitinol.agent import Agent
from nitinol.errors import NitinolError
from nitinol.inputs import (
    Opened,
    Send,
)
from nitinol.machine import (
    decide,
)
from nitinol.messages import Message, Text
from nitinol.state import AgentState, BrokenLog, Log

BLANK = AgentState(key="a/1", agent="a", definition=Agent(name="a", model="test:one"))


def started() -> AgentState:
    """An agent with a run in progress."""
    state = BLANK.fold(decide(BLANK, Opened(), 1))
    return state.fold(decide(state, Send(run_id="r1", prompt=Message(role="user", parts=(Text("go"),))), 2))


# ---- Log


@given(st.lists(st.tuples(st.integers(0, 7), st.integers())))
def test_every_version_of_a_log_stays_what_it_was(appends: list[tuple[int, int]]) -> None:
    """Whichever version is appended to, in whatever order: a model of plain lists says so."""
    logs: list[Log[int]] = [Log()]
    models: list[list[int]] = [[]]
    for which, item in appends:
        parent = which % len(logs)
        logs.append(logs[parent].append(item))
        models.append([*models[parent], item])
        assert [list(log) for log in logs] == models


@given(st.lists(st.integers(), max_size=6), st.integers(-8, 8), st.integers(-8, 8), st.sampled_from((1, 2, -1)))
def test_a_log_reads_like_a_list(items: list[int], start: int, stop: int, stride: int) -> None:
    """Length, indices, slices, equality; a longer version is not seen."""
    log = Log(items)
    log.append(99)
    assert (len(log), list(log), log) == (len(items), items, Log(items))
    assert list(log[start:stop:stride]) == items[start:stop:stride]
    assert log != log.append(1)
    assert log != items
    if -len(items) <= start < len(items):
        assert log[start] == items[start]
    else:
        with pytest.raises(IndexError):
            log[start]


def test_a_log_does_not_keep_the_list_it_was_made_of() -> None:
    """It is its own."""
    items = [1]
    log = Log(items)
    items.append(2)
    assert list(log) == [1]


def test_a_log_is_no_key() -> None:
    """Two versions may become equal."""
    with pytest.raises(TypeError):
        hash(Log([1]))


# ---- the fold


def test_apply_gives_a_new_state_and_leaves_the_old_one() -> None:
    """Also the run within it: whoever holds a state may keep it for ever."""
    state = started()
    shown = repr(state)
    envelope = {"run_id": "r1", "turn": 1, "attempt": 1}
    later = state.apply(
        ev.ModelStarted(seq=state.seq + 1, provider="test", model="one", reserved=None, **envelope)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    )
    assert later.run is not None
    assert later.run.attempt_open
    assert repr(state) == shown
    assert later != state


def test_a_copy_is_equal_and_apart() -> None:
    """What is absorbed by a copy stays there."""
    state = started()
    copy = state.copy()
    assert copy == state
    assert copy.run is not state.run
    copy.absorb(ev.AgentStopped(seq=state.seq + 1, reason="x"))
    assert (copy.activity, state.activity) == ("stopped", "running")


@pytest.mark.parametrize("seq", [0, 1, 3])
def test_a_gap_or_a_double_is_a_broken_log(seq: int) -> None:
    """seq counts every durable event."""
    state = BLANK.apply(ev.AgentStarted(seq=1, recovered=False, incarnation=1))
    with pytest.raises(BrokenLog, match=r"the log has a gap or a double") as caught:
        state.apply(ev.AgentStopped(seq=seq, reason="x"))
    assert isinstance(caught.value, NitinolError)


def test_an_event_of_a_newer_version_is_a_broken_log() -> None:
    """It parks the agent instead of being overlooked."""
    line = '{"v":1,"type":"agent.teleported","durable":true,"seq":1,"key":"a/1","where":"Mars"}'
    with pytest.raises(BrokenLog, match=r"'agent\.teleported'.*upgrade"):
        BLANK.apply(ev.from_json(line))


def test_ephemeral_events_change_nothing() -> None:
    """They carry the last durable seq."""
    state = started()
    assert state.apply(ev.ModelDelta(seq=state.seq, kind="text", text="x")) == state
    assert state.apply(ev.Custom(seq=state.seq, name="mine", payload={})) == state


@pytest.mark.parametrize(
    "event",
    [
        ev.RunPaused(seq=5, run_id="r2", reason="approval"),
        ev.ToolStarted(seq=5, run_id=None, name="x", isolation="thread", timeout=1.0, execution=1),
        ev.ModelFinished(seq=5, run_id="r2", stop_reason="end_turn", response_id=None, duration=1.0),
    ],
    ids=lambda event: event.type,
)
def test_an_event_of_a_run_that_is_not_open_is_a_broken_log(event: ev.EventBase) -> None:
    """Such a log cannot be folded."""
    state = started()
    object.__setattr__(event, "seq", state.seq + 1)
    with pytest.raises(BrokenLog, match="which is not open"):
        state.apply(event)


def test_a_tool_request_that_no_model_made_is_a_broken_log() -> None:
    """A call belongs to an answer."""
    state = started()
    event = ev.ToolRequested(
        seq=state.seq + 1, run_id="r1", turn=1, call_id="c9", name="x", arguments={}, idempotency_key="k"
    )
    with pytest.raises(BrokenLog, match="'c9'"):
        state.apply(event)


def test_announcements_are_ignored_by_the_fold() -> None:
    """Durable, and of no consequence: section 5."""
    state = started()
    after = state.apply(ev.ModelRetrying(seq=state.seq + 1, run_id="r1", delay=1.0, ts=9))
    after.seq, after.last_event_at = state.seq, state.last_event_at
    assert after == state


def test_the_activity_is_one_word() -> None:
    """For `status()`."""
    state = started()
    assert BLANK.activity == "idle"
    assert state.activity == "running"
    seq = state.seq + 1
    assert state.apply(ev.RunPaused(seq=seq, run_id="r1", reason="approval")).activity == "paused"
    assert state.apply(ev.RunCancelling(seq=seq, run_id="r1", by="kim")).activity == "cancelling"
    assert state.apply(ev.AgentParked(seq=seq, restarts=5, reason="x")).activity == "parked"
    assert state.apply(ev.AgentStopped(seq=seq, reason="x")).activity == "stopped"
