"""A conversation goes on at any other provider, and comes back: `python -m tests.portability` prints the table.

Each leg is a strict fake of its vendor, which refuses what the vendor would refuse, and hears the whole conversation: every
word, call and result of both legs, in order. Thinking may be heard as words by others, or not at all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.fakes.said import Heard, Turn, Vendor, called
from tests.protocols import PROTOCOLS, Protocol
from tests.servers import Request, Server

from nitinol import Agent, Retry, Runtime, events, tool
from nitinol.journal.base import verify
from nitinol.repair import view

_THOUGHT = "thinking aloud"
_BREAKS = "and now the other one"
"""A question whose first provider fails once the tools have answered."""


@tool
def look_up(word: str) -> str:
    """Look a word up.

    Args:
        word: Which.
    """
    return f"{word} means 42"


@tool
def note(text: str, tags: list[str]) -> str:
    """Take a note.

    Args:
        text: What.
        tags: For whom.
    """
    return f"noted {text!r} for {len(tags)}"


@dataclass
class Conversation:
    """What was said so far, by whomever, and what was wrong with how it was told to the next."""

    said: list[Heard] = field(default_factory=list[Heard])
    wrong: list[str] = field(default_factory=list[str])
    broken: str = ""
    """The leg that fails in mid-turn."""
    refused: int = 0
    """How often it did."""

    def asks(self, question: str) -> None:
        """The user asks."""
        self.said.append(("user", question))

    def leg(self, name: str, heard: Sequence[Heard]) -> Turn | int:
        """One request to the leg of this name: is it all there? Then it says something."""
        if missed := _difference(self.said, _joined(heard)):
            self.wrong.append(f"{name} did not hear it all: {missed}")
        number = len(self.said)
        if heard[-1][0] != "result":
            turn = Turn(
                thinking=f"{_THOUGHT} {name} {number} é😀",
                text=f"Let me see, {name} {number}.",
                calls=[
                    ("look_up", {"word": f"ünïcode {number}"}),
                    ("note", {"text": f'"{number}"', "tags": ["a", "b"]}),
                ],
            )
        elif name == self.broken and [text for who, text in self.said if who == "user"][-1] == _BREAKS:
            self.refused += 1
            return 503
        else:
            turn = Turn(thinking=f"{_THOUGHT} {name} {number}", text=f"The answer of {name} is {number}.")
        self.said.append(("assistant", turn.text))
        self.said.extend(called(tool, arguments) for tool, arguments in turn.calls)
        if turn.calls:
            self.said.append(("result", f"ünïcode {number} means 42"))
            self.said.append(("result", "for 2"))
        return turn


def carry(first: Protocol, second: Protocol) -> list[str]:
    """Begin at the first, go on at the second, come back; and once more in the middle of a turn. What was wrong."""
    said = Conversation(broken=f"1 {first}")

    fakes = {protocol.name: protocol.fake() for protocol in (first, second)}  # one vendor knows what it has signed

    def server(name: str, protocol: Protocol) -> Server:
        def choose(request: Request, heard: Sequence[Heard]) -> Turn | int:
            return said.leg(f"{name} {protocol}", heard)

        return Server(Vendor(fakes[protocol.name], choose))

    with server("1", first) as one, server("2", second) as two, Runtime() as rt:
        models = [protocol.make(protocol.model, leg.url) for protocol, leg in ((first, one), (second, two))]
        agent = Agent(
            name="traveller",
            model=models[0],
            tools=[look_up, note],
            instructions="Be brief.",
            thinking="low",
            retry=Retry(attempts=1),
        )
        legs = [
            ("one", agent),
            ("two", agent.replace(model=models[1])),
            ("three", agent),
            (_BREAKS, agent.replace(fallbacks=[models[1]])),
            ("five", agent),
            ("six", agent.replace(model=models[1])),
        ]
        ref = rt.start(agent, key="traveller")
        for question, definition in legs:
            said.asks(question)
            ref = rt.start(definition, key="traveller")
            result = ref.ask(question, timeout=30)
            if result.status != "completed":
                return [*said.wrong, f"{question!r} ended {result.status}: {result.error}"]
            if [call.outcome for call in result.tool_calls] != ["ok", "ok"]:
                said.wrong.append(f"{question!r}: {result.tool_calls}")
        if said.refused != 1:
            said.wrong.append(f"the first leg broke {said.refused} times, not once")
        transcript = ref.history()
        if view(transcript) != (tuple(transcript), 0, 0):
            said.wrong.append("the transcript is not valid as it is")
        said.wrong += verify([events.from_dict(event) for event in ref.snapshot()["events"]])
    return said.wrong


def _joined(heard: Sequence[Heard]) -> list[Heard]:
    """Words of one speaker in a row are one line, however a protocol parts them."""
    made: list[Heard] = []
    for who, text in heard:
        if made and made[-1][0] == who and who in ("user", "assistant"):
            made[-1] = (who, made[-1][1] + text)
        else:
            made.append((who, text))
    return made


def _difference(said: Sequence[Heard], heard: Sequence[Heard]) -> str:
    """The first line that is missing, or too much; none where they agree."""
    left = list(heard)
    for who, text in said:
        while left and not (left[0][0] == who and text in left[0][1]):
            if left[0][0] != "assistant" or _THOUGHT not in left[0][1]:
                return f"{left[0]!r} in the place of {(who, text)!r}"
            left.pop(0)
        if not left:
            return f"{(who, text)!r} is missing"
        left.pop(0)
    return f"{left!r} is too much" if left else ""


def main() -> int:
    """Print the table: who began, and who went on."""
    found = {(one.name, two.name): carry(one, two) for one in PROTOCOLS for two in PROTOCOLS}
    names = [protocol.name for protocol in PROTOCOLS]
    print("| from \\ to |", *(f"{name} |" for name in names))
    print("|---|" + "---|" * len(names))
    for name in names:
        print(f"| {name} |", *(f"{'fault' if found[name, other] else 'ok'} |" for other in names))
    for (one, two), wrong in found.items():
        for fault in wrong:
            print(f"{one} -> {two}: {fault}", file=sys.stderr)
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main())
