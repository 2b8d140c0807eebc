"""Events: JSON both ways, the closed union, and the fast maker of deltas."""

from __future__ import annotations

import inspect
import json
from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitinol import events as ev
from nitinol.messages import Audio, Document, Image, Message, Text, Thinking, ToolAnswer, ToolCall

CONTRACT = """
agent.started(recovered) .crashed(error_type, error) .restarted(restarts, delay) .parked(restarts, reason) .resumed() .stopped(reason) .configured(changes)
conversation.reset()
run.queued(prompt, pending_count) .started(model, deadline) .paused(reason) .resumed(reason, recoveries) .cancelling(by) .finished(status, text, turns, usage, cost, duration, error)
turn.started(message_count, estimated_tokens) .finished(stop_reason, tool_calls)
message.appended(message)
model.started(provider, model, reserved) .finished(stop_reason, response_id, duration) .failed(error_type, error, status_code, retry_after, request_id)
model.discarded(characters) .retrying(delay) .fallback(from_model, to_model)
tool.requested(name, arguments, idempotency_key) .started(name, isolation, timeout, execution) .finished(name, outcome, text, data, error, duration)
approval.requested(name, arguments, expires_at) .resolved(decision, arguments, by, reason)
input.queued(input_id, mode, prompt) .delivered(input_id) .dropped(input_id, reason)
usage.updated(provider, model, usage, cost, estimated, price_source, run_usage, run_cost, agent_usage, agent_cost)
budget.reserved(scope, amount) .settled(scope, amount) .warning(scope, limit, spent, fraction) .exceeded(scope, limit, spent, needed)
context.compacted(tokens_before, tokens_after, removed, through, fallback) .repaired(added, removed)
loop.detected(name, count, action)
model.first_token(seconds) .delta(kind, text, index)
tool.progress(data) .late_result(after)
pool.saturated(queued, workers)
loop.blocked(seconds, stack)
bus.gap(lost, after)
custom(name, payload)
"""
"""design.md section 5, without what is not built yet: group.*"""
EPHEMERAL = {
    "model.first_token", "model.delta", "tool.progress", "tool.late_result", "pool.saturated", "loop.blocked", "bus.gap",
    "custom",
}  # fmt: skip
ENVELOPE = "id seq position ts agent key incarnation run_id parent_run_id root_run_id group_id turn attempt call_id"


def contract() -> dict[str, list[str]]:
    """The types of section 5 and their payload fields."""
    found: dict[str, list[str]] = {}
    for line in CONTRACT.strip().splitlines():
        family = ""
        for item in line.split(") "):
            name, _, payload = item.rstrip(")").partition("(")
            family = family if name.startswith(".") else name.partition(".")[0]
            found[family + name if name.startswith(".") else name] = [part for part in payload.split(", ") if part]
    return found


# ---- an event of any type, of any content

words = st.text(max_size=8)
numbers = st.integers(-(2**53), 2**53)
jsons = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(words, jsons, max_size=3)
money = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=-(10**6), max_value=10**6)
media = st.one_of(
    st.builds(Image, data=st.binary(max_size=9), media_type=st.just("image/png"), name=st.none() | words),
    st.builds(Audio, data=st.binary(max_size=9)),
    st.builds(Document, url=words),
)
parts = st.one_of(
    st.builds(Text, words),
    st.builds(Thinking, text=words, signature=st.none() | words, redacted=st.booleans()),
    media,
    st.builds(ToolCall, call_id=words, name=words, arguments=objects, malformed=st.none() | words, signature=words),
    st.builds(
        ToolAnswer,
        call_id=words,
        name=words,
        text=words,
        error=st.booleans(),
        media=st.lists(media, max_size=2).map(tuple),
    ),
)
messages = st.builds(
    Message,
    role=st.sampled_from(("user", "assistant", "tool")),
    parts=st.lists(parts, max_size=4).map(tuple),
    provider=st.none() | words,
    model=st.none() | words,
)
BY_FIELD: dict[str, st.SearchStrategy[Any]] = {
    "ts": st.integers(0, 4 * 10**18),
    "data": jsons,
    "arguments": objects,
    "payload": objects,
    "budget": st.none() | objects,
    "changes": st.dictionaries(words, words, max_size=3),
    "media": st.lists(media, max_size=2).map(tuple),
    "history": st.lists(messages, max_size=2).map(tuple),
    "message": messages,
}
for kind, strategy in (
    (Message, messages),
    (Decimal, money),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, words),
):
    st.register_type_strategy(kind, strategy)


def events_of(cls: type[ev.EventBase]) -> st.SearchStrategy[ev.EventBase]:
    return st.builds(cls, **{field.name: BY_FIELD.get(field.name, ...) for field in fields(cls)})


def plain(event: ev.EventBase) -> dict[str, Any]:
    return {"class": type(event), **{field.name: getattr(event, field.name) for field in fields(event)}}


@pytest.mark.parametrize("cls", ev.TYPES.values(), ids=list(ev.TYPES))
@settings(max_examples=25)
@given(data=st.data())
def test_an_event_is_the_same_after_json(cls: type[ev.EventBase], data: st.DataObject) -> None:
    """Every type, every field: the journal, monitors and the fold read what was written. parity: E1"""
    event = data.draw(events_of(cls))
    if isinstance(event, ev.ApprovalResolved) and data.draw(st.booleans()):
        object.__setattr__(event, "arguments", None)
    line = event.to_json()
    assert "\n" not in line
    assert plain(ev.from_json(line)) == plain(event)
    assert plain(ev.from_json(line.encode())) == plain(event)
    assert ev.from_json(line).to_json() == line


# ---- the union


def test_every_event_class_is_in_the_union_and_has_a_type_of_its_own() -> None:
    """So `match` and `if event.type ==` narrow over all there is."""
    classes = {
        value
        for value in vars(ev).values()
        if inspect.isclass(value) and issubclass(value, ev.EventBase) and value.type and value.__module__ == ev.__name__
    }
    assert classes == set(get_args(ev.Event)) == set(ev.TYPES.values())
    assert len({cls.type for cls in classes}) == len(classes)
    assert all(cls.__doc__ for cls in classes)


def test_events_have_the_names_and_fields_of_the_contract() -> None:
    """design.md section 5: payload fields are public API, in this order; a few more may follow them."""
    wanted = contract()
    assert set(wanted) == set(ev.TYPES)
    for name, cls in ev.TYPES.items():
        payload = [field.name for field in fields(cls) if field.name not in ev.ENVELOPE]
        assert payload[: len(wanted[name])] == wanted[name], name
    assert tuple(ENVELOPE.split()) == ev.ENVELOPE
    assert {name for name, cls in ev.TYPES.items() if not cls.durable} == EPHEMERAL


def test_events_are_frozen_and_are_themselves_only() -> None:
    """Two events are equal if they are the same one; `stamp` gives the position, nothing else changes."""
    event = ev.RunPaused(reason="approval")
    with pytest.raises(FrozenInstanceError):
        event.reason = "x"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    assert event != ev.RunPaused(reason="approval")
    assert len({event, event}) == 1
    ev.stamp(event, 7)
    assert event.position == 7
    assert repr(event) == "RunPaused(position=7, reason='approval')"


# ---- JSON


def test_json_tells_version_type_and_durability_and_times_as_iso() -> None:
    """To the nanosecond, in UTC. parity: E1"""
    event = ev.ToolStarted(
        id="a/1#3", seq=3, ts=1_700_000_000_000_000_001, agent="a", key="a/1", run_id="r1", turn=1, call_id="c1",
        name="add", isolation="thread", timeout=1.5, execution=1,
    )  # fmt: skip
    data = json.loads(event.to_json())
    assert (data["v"], data["type"], data["durable"]) == (1, "tool.started", True)
    assert data["ts"] == "2023-11-14T22:13:20.000000001Z"
    assert (data["key"], data["call_id"], data["timeout"]) == ("a/1", "c1", 1.5)


@given(st.integers(0, 10**19))
def test_times_are_exact(ns: int) -> None:
    """Nanoseconds inside, ISO 8601 outside."""
    assert ev.from_iso(ev.to_iso(ns)) == ns


def test_times_of_others_are_read_too() -> None:
    """With fewer digits, or none."""
    assert ev.from_iso("1970-01-01T00:00:01Z") == 1_000_000_000
    assert ev.from_iso("1970-01-01T00:00:01.5Z") == 1_500_000_000


def test_an_unknown_type_becomes_custom_with_its_payload() -> None:
    """A monitor shows it; the envelope is where it was."""
    event = ev.from_json(
        '{"v":1,"type":"agent.teleported","durable":true,"seq":4,"key":"a/1","ts":"1970-01-01T00:00:01Z","where":"Mars"}'
    )
    assert isinstance(event, ev.Custom)
    assert (event.name, event.payload) == ("agent.teleported", {"where": "Mars"})
    assert (event.seq, event.key, event.ts) == (4, "a/1", 1_000_000_000)


def test_a_field_that_a_newer_version_added_is_passed_over() -> None:
    """Old readers go on."""
    event = ev.from_json('{"type":"run.paused","reason":"approval","mood":"good"}')
    assert isinstance(event, ev.RunPaused)
    assert event.reason == "approval"


@pytest.mark.parametrize("line", ["[]", "{}", "3", "nonsense", '{"type":"run.paused"}'])
def test_what_is_no_event_is_a_value_error(line: str) -> None:
    """Also one that lacks a field."""
    with pytest.raises(ValueError, match=r"."):
        ev.from_json(line)


def test_an_event_as_sse_is_one_frame() -> None:
    """`id` is the position, `event` the type, `data` one line of JSON, whatever is in it."""
    event = ev.ModelDelta(position=9, kind="text", text="a\nb\r\n\u2028c")
    lines = event.to_sse().split("\n")
    assert lines[0] == "id: 9"
    assert lines[1] == "event: model.delta"
    assert lines[3:] == ["", ""]
    assert "\r" not in lines[2]
    assert json.loads(lines[2].removeprefix("data: "))["text"] == event.text


# ---- the maker of deltas


def test_a_made_delta_is_a_delta_in_all_fields() -> None:
    """The twin has the same slots in the same order; only the speed differs."""
    envelope = ev.ModelStarted(
        id="a/1#3", seq=3, position=5, ts=6, agent="a", key="a/1", incarnation=2, run_id="r1", parent_run_id="p",
        root_run_id="o", group_id="g", turn=7, attempt=8, call_id="c", provider="test", model="one", reserved=None,
    )  # fmt: skip
    made = ev.delta_maker(envelope)(60, 30, 50, "thinking", "hm", 4)
    by_hand = ev.ModelDelta(
        id="a/1#3", seq=30, position=50, ts=60, agent="a", key="a/1", incarnation=2, run_id="r1", parent_run_id="p",
        root_run_id="o", group_id="g", turn=7, attempt=8, call_id="c", kind="thinking", text="hm", index=4,
    )  # fmt: skip
    assert type(made) is ev.ModelDelta
    assert plain(made) == plain(by_hand)
    assert made.to_json() == by_hand.to_json()
    assert repr(made) == repr(by_hand)
    assert not made.durable


def test_a_made_delta_is_frozen() -> None:
    """As any event."""
    made = ev.delta_maker(ev.RunPaused(reason="x"))(1, 2, 3, "text", "hm", 0)
    with pytest.raises(FrozenInstanceError):
        made.text = "x"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError):
        del made.text  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(made, "__dict__")
