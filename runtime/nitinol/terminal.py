"""How events, money and tool calls look to a person at a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from nitinol.events import Event
from nitinol.messages import Message
from nitinol.usage import Usage

_UNPRINTABLE: dict[int, str | None] = {
    **{code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160))},
    **dict.fromkeys((*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF), None),
    **{ord("\t"): "\t", ord("\n"): "\n", ord("\r"): None},
}


def printable(text: str) -> str:
    """A model's or a tool's text without control characters, with which it could command the terminal."""
    return text.translate(_UNPRINTABLE)


def in_line(text: str, width: int = 200) -> str:
    """Text as one printable line of at most `width` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else f"{line[: width - 1]}…"


def describe(event: Event) -> tuple[str, str] | None:
    """What to tell of an event in one line, and the style for it; `None` = nothing, or not in one line."""
    match event.type:
        case "tool.requested":
            return f"→ {show_call(event.name, event.arguments)}", "cyan"
        case "tool.finished":
            why = f": {in_line(event.error)}" if event.error else ""
            return (
                f"← {in_line(event.name)} {event.outcome}, {event.duration:.2f} s{why}",
                "cyan" if event.outcome == "ok" else "red",
            )
        case "model.failed" if event.error_type != "Cancelled":
            return f"({in_line(event.error_type)}: {in_line(event.error)})", "yellow"
        case "model.discarded" if event.characters:
            return "(the answer broke off; what there is of it does not count)", "yellow"
        case "model.retrying":
            return f"(trying again in {event.delay:.1f} s)", "yellow"
        case "model.fallback":
            return f"(going on with {in_line(event.to_model)})", "yellow"
        case "agent.crashed":
            return f"✗ crashed: {event.error_type}: {in_line(event.error)}", "bold red"
        case "agent.restarted":
            return f"↻ restarted after {event.delay:.2f} s", "bold green"
        case "agent.parked":
            return f"✗ parked after {count(event.restarts, 'restart')}: {in_line(event.reason)}", "bold red"
        case "run.resumed":
            return "↻ the run goes on", "bold green"
        case _:
            return None


def summary(event: Event) -> str:
    """The telling fields of any durable event, in one line; empty where its type says all."""
    told = describe(event)
    if told is not None:
        return told[0]
    match event.type:
        case "run.queued":
            return _show_message(event.prompt) if event.prompt is not None else count(len(event.history), "message")
        case "input.queued":
            return f"{event.mode} {_show_message(event.prompt)}"
        case "message.appended":
            return _show_message(event.message)
        case "run.started":
            return in_line(event.model)
        case "run.finished":
            bill = f"{count(event.turns, 'turn')}, {show_cost(event.cost)}, {event.duration:.1f} s"
            return f"{event.status}: {bill}{f': {in_line(event.error)}' if event.error else ''}"
        case "run.cancelling":
            return f"{event.status}, by {in_line(event.by)}{f': {in_line(event.reason)}' if event.reason else ''}"
        case "turn.started":
            return f"turn {event.turn}, {count(event.message_count, 'message')}"
        case "turn.finished":
            return f"{event.stop_reason}, {count(event.tool_calls, 'tool call')}"
        case "model.started":
            purpose = ", for a summary" if event.compacting is not None else ""
            return f"{in_line(event.provider)}:{in_line(event.model)}, attempt {event.attempt}{purpose}"
        case "model.finished":
            return f"{event.stop_reason}, {event.duration:.1f} s"
        case "model.failed":
            return f"{in_line(event.error_type)}: {in_line(event.error)}"
        case "usage.updated":
            guess = ", estimated" if event.estimated else ""
            return f"{show_tokens(event.usage)}, {show_cost(event.cost)}{guess}; so far {show_cost(event.agent_cost)}"
        case "tool.started":
            return f"{in_line(event.name)}, execution {event.execution}"
        case "approval.requested":
            return f"? {show_call(event.name, event.arguments)}"
        case "approval.resolved":
            return f"{event.decision}, by {in_line(event.by)}{f': {in_line(event.reason)}' if event.reason else ''}"
        case "agent.configured":
            return ", ".join(f"{in_line(name)}={in_line(value, 60)}" for name, value in event.changes.items())
        case "agent.started":
            return f"incarnation {event.incarnation}{', recovered' if event.recovered else ''}"
        case "agent.stopped" | "run.paused" | "input.dropped":
            return in_line(event.reason)
        case "budget.reserved" | "budget.settled":
            return f"{in_line(event.scope)}: {show_cost(event.amount)}, {count(event.tokens, 'token')}"
        case "budget.warning":
            return f"{in_line(event.scope)}: {event.fraction:.0%} of {in_line(event.limit)} is spent: {in_line(event.spent)}"
        case "budget.exceeded":
            return f"{in_line(event.scope)}: spent {in_line(event.spent)}, needs {in_line(event.needed)}, limit {in_line(event.limit)}"
        case "context.compacted":
            sizes = f"about {event.tokens_before:,} tokens to {event.tokens_after:,}, {count(event.removed, 'message')} shortened or gone"
            return f"{sizes}, with no summary" if event.fallback is not None else sizes
        case "context.repaired":
            return f"{count(event.added, 'message')} added, {event.removed} removed"
        case "loop.detected":
            return f"{in_line(event.name)} {count(event.count, 'time')}: {event.action}"
        case "custom":
            return f"{in_line(event.name)}, which this version does not know"
        case _:
            return ""


def _show_message(message: Message) -> str:
    calls = [show_call(call.name, call.arguments) for call in message.tool_calls]
    answers = [in_line(part.text, 80) for part in message.parts if part.type == "tool_answer"]
    text = [in_line(message.text)] if message.text.strip() else []
    others = [part.type for part in message.parts if part.type in ("image", "audio", "document")]
    return f"{message.role}: {'; '.join([*text, *others, *calls, *answers]) or '(empty)'}"


def show_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A tool call in a line, long arguments shortened."""
    shown = (f"{key}={in_line(json.dumps(value, ensure_ascii=False), 60)}" for key, value in arguments.items())
    return f"{in_line(name)}({', '.join(shown)})"


def show_cost(cost: Decimal | None) -> str:
    """Dollars to four decimals, or as many as it takes to show two digits; `unknown` where nobody knows."""
    if cost is None:
        return "unknown"
    decimals = 4 if not cost or cost.adjusted() >= -3 else 1 - cost.adjusted()
    return f"${cost:.{decimals}f}"


def show_tokens(usage: Usage) -> str:
    """Tokens in and out."""
    return f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it must be."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Sequence[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """Columns as wide as they must be. (rich's own table takes seconds for ten thousand rows.)"""
    from rich.cells import cell_len

    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        gaps = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = (
            gap + cell if column in right else cell + gap
            for column, (gap, cell) in enumerate(zip(gaps, row, strict=True))
        )
        yield "  ".join(cells).rstrip()
