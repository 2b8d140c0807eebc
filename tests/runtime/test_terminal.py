"""How things look at a terminal."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import cast

import pytest
from tests.runtime.test_sqlite_journal import DURABLE, an

from nitinol import Image, Message, Text
from nitinol import events as ev
from nitinol.messages import Compacted
from nitinol.terminal import count, describe, in_line, printable, show_call, show_cost, summary


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (None, "unknown"),
        (Decimal(0), "$0.0000"),
        (Decimal("1234.5"), "$1234.5000"),
        (Decimal("0.0123456"), "$0.0123"),
        (Decimal("0.00012345"), "$0.00012"),
        (Decimal("0.0000012"), "$0.0000012"),
        (Decimal("9E-9"), "$0.0000000090"),
    ],
)
def test_a_cost_shows_two_digits_at_least_and_an_unknown_one_is_never_zero(cost: Decimal | None, shown: str) -> None:
    """Money that was spent never looks like none."""
    assert show_cost(cost) == shown


def test_text_of_a_model_cannot_command_the_terminal() -> None:
    """Escape sequences lose their escape; lines and tabs stay."""
    assert printable("a\tb\r\nc\x1b[2J\x07\x9b1m") == "a\tb\nc�[2J��1m"


def test_a_long_text_is_cut_to_one_line() -> None:
    """Whatever it holds, it takes one line of the width."""
    assert in_line("one\ntwo\n\n  three") == "one two three"
    assert in_line("x" * 300, 10) == "xxxxxxxxx…"


def test_a_tool_call_shows_its_arguments_shortened() -> None:
    """A file's whole content would not fit in a line."""
    shown = show_call("write", {"path": "ä.txt", "content": "x" * 1000, "lines": [1, 2]})
    assert shown.startswith('write(path="ä.txt", content="xxx')
    assert shown.endswith("…, lines=[1, 2])")
    assert len(shown) < 120


def test_only_one_is_singular() -> None:
    """No `1 turns`."""
    assert [count(number, "turn") for number in (0, 1, 2)] == ["0 turns", "1 turn", "2 turns"]


def test_a_failed_tool_says_why() -> None:
    """Its error is in the line, and nothing of it on the next."""
    event = ev.ToolFinished(name="read", outcome="error", text="", data=None, error="no\nsuch file", duration=0.25)
    assert describe(event) == ("← read error, 0.25 s: no such file", "red")


def test_what_is_not_told_in_one_line_is_nothing() -> None:
    """Deltas are text, not lines; an attempt that had said nothing leaves nothing to take back."""
    assert describe(ev.ModelDelta(kind="text", text="hi")) is None
    assert describe(ev.ModelDiscarded(characters=0)) is None
    assert describe(ev.ModelDiscarded(characters=2)) is not None


@pytest.mark.parametrize("cls", DURABLE, ids=lambda cls: cls.type)
def test_every_durable_event_is_summed_up_in_one_line(cls: type[ev.EventBase]) -> None:
    """Nothing in it commands the terminal, and what is said of an event with something in every field is short."""
    event = cast("ev.Event", an(cls, key="k", agent="a", run_id="r", call_id="c", seq=1, turn=1, attempt=1))
    line = summary(event)
    assert line == printable(line)
    assert len(line.splitlines()) <= 1
    assert len(line) < 600
    told = [field for field in dataclasses.fields(cls) if field.name not in ev.ENVELOPE]
    assert line or not told or cls in (ev.ModelDiscarded, ev.InputDelivered)


def test_the_log_tells_of_a_compaction_and_what_it_took() -> None:
    """An attempt at a summary is no answer, and whether a summary stands for what went is in the line."""
    started = ev.ModelStarted(provider="p", model="m", reserved=None, attempt=2)
    assert summary(started) == "p:m, attempt 2"
    assert summary(dataclasses.replace(started, compacting=Compacted(hidden=2))) == "p:m, attempt 2, for a summary"
    done = ev.ContextCompacted(tokens_before=7_000, tokens_after=900, removed=1, through=3, fallback=None)
    assert summary(done) == "about 7,000 tokens to 900, 1 message shortened or gone"
    assert summary(dataclasses.replace(done, fallback="truncate")).endswith(", with no summary")


def test_a_message_shows_what_is_in_it() -> None:
    """Its words, its calls and what else there is."""
    message = Message(role="user", parts=(Text("look\nhere \x1b[1m"), Image(data=b"x"), Text("")))
    event = ev.MessageAppended(message=message)
    assert summary(event) == "user: look here �[1m; image"
    assert summary(ev.MessageAppended(message=Message(role="user", parts=()))) == "user: (empty)"
