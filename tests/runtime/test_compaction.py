"""Compaction: a conversation that outgrows its model goes on, and what must stay of it stays. parity: C1, C2, C3, C4"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.test_machine_schedules import faults

from nitinol.compaction import (
    INSTRUCTIONS,
    LEAST,
    MOST,
    UNTOLD,
    Compaction,
    Gauge,
    Shown,
    estimate_tokens,
    going,
    handoff_tokens,
    plan,
    size_of,
    summary_prompt,
)
from nitinol.messages import (
    NOTHING_COMPACTED,
    Compacted,
    Document,
    Image,
    Message,
    Native,
    Part,
    Text,
    Thinking,
    ToolAnswer,
    ToolCall,
)
from nitinol.repair import View, view

# ---- any history, any budget (issue 5, Shows 5)

words = st.integers(0, 600).map(lambda count: "fact " * count)


@st.composite
def histories(draw: st.DrawFn) -> list[Message]:
    """Conversations as they come: several runs, tools, steers, pictures, and what a crash left behind."""
    made: list[Message] = []
    number = 0
    for _ in range(draw(st.integers(1, 4))):
        for _ in range(draw(st.integers(1, 2))):  # a prompt, and perhaps a steer
            number += 1
            parts: list[Part] = [Text(f"ask {number} {draw(words)}")]
            if draw(st.integers(0, 9)) == 0:
                parts.append(Image(url="https://example.org/x.png"))
            made.append(Message(role="user", parts=tuple(parts)))
        for _ in range(draw(st.integers(0, 4))):
            number += 1
            count = draw(st.integers(1, 3))
            calls = [ToolCall(call_id=f"c{at}", name="look", arguments={"n": number}) for at in range(count)]
            said: list[Part] = [Text(f"I look {number}")] if draw(st.booleans()) else []
            made.append(Message(role="assistant", parts=(*said, *calls)))
            answered = count if draw(st.integers(0, 19)) else 0  # a crash may lose an answer
            answers = [
                ToolAnswer(call_id=f"c{at}", name="look", text=f"seen {number} {draw(words)}") for at in range(answered)
            ]
            made.append(Message(role="tool", parts=tuple(answers)))
        number += 1
        if draw(st.integers(0, 9)):
            made.append(Message(role="assistant", parts=(Text(f"say {number} {draw(words)}"),)))
    while made[-1].role == "assistant":  # as it is when a model is asked
        made.pop()
    return made


policies = st.builds(
    Compaction,
    reserve_tokens=st.sampled_from((0, 100, 1000, 12_000)),
    keep_recent_tokens=st.sampled_from((0, 50, 500, 8_000)),
)
gauges = st.one_of(
    st.just(UNTOLD),
    st.builds(UNTOLD.told, st.integers(0, 9000), st.integers(1, 3000)),
)


def compacted(
    transcript: Sequence[Message],
    now: Compacted,
    policy: Compaction,
    room: int,
    since: int,
    tiers: Counter[str],
    must: bool,
) -> Compacted:
    """As the machine and its model do it, to the end."""
    for _ in range(60):
        size = size_of(transcript, now)
        if size <= room:
            return now
        found = plan(transcript, now, policy, room=room, size=size, since=since, must=must)
        if found is None:
            return now
        tiers[found.tier] += 1
        then = found.compacted
        if found.tier == "summarise":
            prompt = summary_prompt(transcript, now, then, room)
            assert len(prompt) <= max(4 * room, 3000)
            then = replace(then, handoff=f"notes to {then.hidden}")
        assert size_of(transcript, then) < size, f"{found.tier} helps nothing"
        assert going(transcript, now, then)
        now = then
    raise AssertionError("it does not end")


def last_unit(transcript: Sequence[Message]) -> int:
    """Where the last message begins, with the calls that it answers."""
    at = len(transcript) - 1
    while at and transcript[at].role == "tool":
        at -= 1
    return at


def must_stay(transcript: Sequence[Message], now: Compacted) -> int:
    """The size of what nothing may take away: the first message, what was asked for last, the handoff, the last message."""
    cut = last_unit(transcript)
    first = next(at for at, message in enumerate(transcript) if message.role == "user")
    kept = tuple(at for at in sorted({first, *now.kept}) if at < cut)
    least = replace(now, hidden=cut, kept=kept, clipped=len(transcript), clip=200)
    return size_of(transcript, least)


totals: Counter[str] = Counter()


@settings(max_examples=400, deadline=None)
@given(histories(), policies, gauges, st.integers(300, 20_000), st.booleans(), st.data())
def test_any_history_and_any_budget(
    transcript: list[Message], policy: Compaction, gauge: Gauge, window: int, must: bool, data: st.DataObject
) -> None:
    """The view is valid, under the limit, and keeps what must be kept; to compact it again changes nothing. Shows 5"""
    since = data.draw(st.sampled_from([at for at, message in enumerate(transcript) if message.role == "user"]))
    room = gauge.room(policy, window, 0)
    tiers: Counter[str] = Counter()
    now = compacted(transcript, NOTHING_COMPACTED, policy, room, since, tiers, must)
    totals.update(tiers)
    shown = Shown(transcript, now)
    sent, _, _ = view(shown)
    assert not faults(sent), faults(sent)
    size = size_of(transcript, now)
    stays = must_stay(transcript, now)
    if must:
        assert size <= room or size <= stays + handoff_tokens(room), "it could be shorter"
    else:  # a summary, or a clip, that would save less than an eighth is not worth it
        assert size <= room or size <= (stays + handoff_tokens(room)) * 4 // 3 + 8
    totals["under the limit" if size <= room else "no shorter possible"] += 1

    # the user's first words, as they are; and what was asked for last
    first = next(message for message in transcript if message.role == "user")
    assert sent[0].parts[: len(first.parts)] == first.parts
    # the newest messages, as they are, but for results that had to be clipped
    cut = last_unit(transcript)
    recent = Shown(transcript, now)[len(shown) - (len(transcript) - cut) :]
    for message, original in zip(recent, transcript[cut:], strict=True):
        assert message.role == original.role
        assert message == original or (message.role == "tool" and size_of(transcript, replace(now, clip=0)) > 0)
    # twice changes nothing
    again = compacted(transcript, now, policy, room, since, tiers, must)
    assert again == now


@settings(max_examples=150, deadline=None)
@given(histories(), st.lists(histories(), min_size=1, max_size=3), st.integers(400, 4000))
def test_several_times_in_one_life(first: list[Message], more: list[list[Message]], room: int) -> None:
    """A later handoff covers the earlier one; a view that grows is the view."""
    policy = Compaction(reserve_tokens=0, keep_recent_tokens=500)
    transcript, now, tiers = list(first), NOTHING_COMPACTED, Counter[str]()
    growing = View()
    for history in [[], *more]:
        since = len(transcript) if history else 0
        transcript += history
        before = now
        now = compacted(transcript, now, policy, room, since, tiers, False)
        assert now.hidden >= before.hidden
        if now != before:
            growing = View()
        assert growing.of(Shown(transcript, now)) == view(Shown(transcript, now))
        assert not faults(view(Shown(transcript, now))[0])
        assert view(Shown(transcript, now))[0][0].parts[0] == transcript[0].parts[0]
        kept = [transcript[at] for at in now.kept]
        assert all(message.role == "user" for message in kept)
        assert list(now.kept) == sorted(set(now.kept))


@given(gauges, st.integers(0, 50_000), st.integers(0, 50_000))
def test_a_gauge_is_monotonous_and_can_be_turned_round(gauge: Gauge, low: int, high: int) -> None:
    """So that what fits by the one fits by the other, to the token."""
    low, high = sorted((low, high))
    assert gauge.tokens(low) <= gauge.tokens(high)
    assert gauge.estimate_of(low) <= gauge.estimate_of(high)
    assert gauge.tokens(gauge.estimate_of(high)) <= high
    assert gauge.estimate_of(gauge.tokens(high)) >= high
    assert high * LEAST - 2 <= gauge.tokens(high) <= high * MOST + 1


def test_a_gauge_is_bounded() -> None:
    """By the last real usage; one that cannot be is not believed, and a short request proves little."""
    assert UNTOLD.tokens(1000) == 1000
    assert UNTOLD.told(1500, 1000).tokens(1000) == 1500
    assert UNTOLD.told(500, 1000).tokens(1000) == 750
    assert UNTOLD.told(6000, 1000).tokens(1000) == 4000
    for nonsense in (0, 7, 399, 8001):
        assert UNTOLD.told(nonsense, 1000) == UNTOLD
    assert UNTOLD.told(700, 300).tokens(100_000) < 140_000


def test_a_refusal_teaches_and_is_forgotten_in_time() -> None:
    """It may have been a mistake; and another model has another window."""
    gauge = UNTOLD.asks("a:one").refused(8000)
    assert gauge.ceiling == 6000
    assert gauge.room(Compaction(), 200_000, 0) == 6000
    assert gauge.rises().rises().ceiling == 7595
    assert gauge.asks("a:one") == gauge
    assert gauge.asks("a:two").room(Compaction(), 200_000, 0) == 188_000


@pytest.mark.parametrize(
    ("window", "beside", "room"),
    [
        (200_000, 0, 188_000),
        (16_000, 0, 4_000),
        (16_000, 400, 3_900),
        (8_000, 0, 2_000),
        (4_000, 2_000, 500),
        (1_000, 2_000, -250),
    ],
)
def test_the_reserve_leaves_a_quarter(window: int, beside: int, room: int) -> None:
    """Of what instructions and tools leave, however small the window is. parity: C1"""
    assert UNTOLD.room(Compaction(), window, beside) == room


def test_everything_counts() -> None:
    """Text, calls, results, thinking, media; letters by their bytes, digits and signs as shorter tokens. parity: C3"""

    def size(part: Part) -> int:
        return estimate_tokens(Message(role="user", parts=(part,))) - 4

    assert size(Text("x" * 400)) == size(Thinking(text="x" * 400)) == 100
    assert size(Text("7" * 400)) == size(Text("{" * 400)) == 250
    assert size(Text("長" * 400)) == 300
    assert size(Text("д" * 400)) == 200
    assert size(ToolCall(call_id="c", name="look", arguments={})) == 11
    assert size(ToolCall(call_id="c", name="look", arguments={"what": "x" * 400})) == 11 + 5 + 100
    assert size(ToolAnswer(call_id="c", name="look", text="x" * 400)) == 106
    assert size(Image(url="https://example.org/x.png")) == 1500
    assert size(ToolAnswer(call_id="c", name="look", text="", media=(Image(data=b"x"),))) == 1506
    assert size(Document(data=b"x" * 4000, media_type="text/plain")) == 1000
    assert size(Document(data=b"x" * 4000, media_type="application/pdf")) == 1500
    assert size(Native(data={"n": "x" * 100}, text="y" * 100)) > 50
    assert size(Text("\ud800" * 400)) == 250  # no text: each is sent as a sign


def test_a_question_fits_and_names_what_it_left_out() -> None:
    """The longest pieces are clipped first; facts in short messages stay."""
    answer = ToolAnswer(call_id="c", name="dump", text="a" * 90_000 + "END")
    transcript = [
        Message(role="user", parts=(Text("The code is 4711."), Image(url="https://example.org/x.png"))),
        Message(
            role="assistant", parts=(Thinking(text="secret"), ToolCall(call_id="c", name="dump", arguments={"at": 7}))
        ),
        Message(role="tool", parts=(answer,)),
        Message(role="assistant", parts=(Text("It is the blue door."),)),
        Message(role="user", parts=(Text("And now?"),)),
    ]
    prompt = summary_prompt(transcript, NOTHING_COMPACTED, Compacted(hidden=4, kept=(0,)), 2000)
    assert len(prompt) <= 8000
    assert "user: The code is 4711." in prompt
    assert "user: [image" in prompt
    assert 'assistant calls dump with {"at": 7}' in prompt
    assert "dump answers: aaa" in prompt
    assert "characters are left out here" in prompt
    assert "END\n\nassistant: It is the blue door." in prompt
    assert "secret" not in prompt
    assert "And now?" not in prompt


@pytest.mark.parametrize("letter", ["a", "7", "{", "д", "長", "🙂", "a長1"])
def test_a_question_fits_in_every_script(letter: str) -> None:
    """Letters are not bytes, and neither are tokens."""
    transcript = [Message(role="user", parts=(Text(letter * 9000),)), Message(role="user", parts=(Text(letter * 90),))]
    prompt = summary_prompt(transcript, NOTHING_COMPACTED, Compacted(hidden=2), 2000)
    asked = estimate_tokens(Message(role="user", parts=(Text(INSTRUCTIONS + prompt),)))
    assert 1000 <= asked <= 2000


def test_the_properties_saw_every_tier() -> None:
    """Else they prove little. Numbers with `pytest -s`."""
    print(f"\n{dict(totals)}")
    if totals:
        assert {"clear", "summarise", "truncate", "under the limit"} <= set(totals)
