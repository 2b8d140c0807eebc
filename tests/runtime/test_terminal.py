"""How things look at a terminal."""

from __future__ import annotations

from decimal import Decimal

import pytest

from nitinol import events as ev
from nitinol.terminal import count, describe, in_line, printable, show_call, show_cost


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
