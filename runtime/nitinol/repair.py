"""Repair: the view of a transcript that a model is sent is always valid, whatever the transcript went through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nitinol.messages import Message, Part, Text, ToolAnswer, ToolCall

LOST = "This call has no result: it was interrupted."


def view(messages: Sequence[Message]) -> tuple[tuple[Message, ...], int, int]:
    """The messages to send, and how many parts were added and removed to make them valid.

    Each tool call is answered exactly once, in position, by the message after it; no message is empty, nor any words in it; no answer stands
    without its call; messages of a user in a row are merged. Call ids may repeat across turns. A valid transcript comes
    back as it is.
    """
    return View().of(messages)


class View:
    """The view of a transcript that grows: what is settled is not looked at again. For one thread."""

    __slots__ = ("_added", "_removed", "_seen", "_sent")

    def __init__(self) -> None:
        self._sent: list[Message] = []
        """The view of the first `_seen` messages, which no later one changes."""
        self._seen = self._added = self._removed = 0

    def of(self, messages: Sequence[Message]) -> tuple[tuple[Message, ...], int, int]:
        """As `view`, of messages that begin with those that it was given before."""
        out, added, removed = self._sent, self._added, self._removed
        settled = len(out), added, removed, self._seen
        rest = messages[self._seen :]
        index = 0
        while index < len(rest):
            message = rest[index]
            index += 1
            if message.role == "tool":
                removed += len(message.parts)  # its calls are not before it, or it would have been taken with them
                continue
            empty, asks = 0, False
            for part in message.parts:
                if isinstance(part, Text):
                    empty += not part.text
                elif isinstance(part, ToolCall):
                    asks = True
            if message.role == "assistant" and len(message.parts) > empty:
                settled = len(out), added, removed, self._seen + index - 1
            if empty:
                removed += empty
                kept = tuple(part for part in message.parts if part.type != "text" or part.text)
                message = replace(message, parts=kept)
            if not message.parts:
                removed += not empty
                continue
            if message.role == "user" and out and out[-1].role == "user":
                out[-1] = replace(out[-1], parts=out[-1].parts + message.parts)
                continue
            out.append(message)
            if message.role != "assistant" or not asks:
                continue
            given: list[Part] = []
            while index < len(rest) and rest[index].role == "tool":
                given.extend(rest[index].parts)
                index += 1
            answers: dict[str, ToolAnswer] = {}
            for part in given:
                if isinstance(part, ToolAnswer) and part.call_id not in answers:
                    answers[part.call_id] = part
            ordered: list[Part] = []
            for call in message.tool_calls:
                answer = answers.pop(call.call_id, None)
                if answer is None:
                    added += 1
                    answer = ToolAnswer(call_id=call.call_id, name=call.name, text=LOST, error=True)
                ordered.append(answer)
            removed += len(given) - sum(part in given for part in ordered)
            out.append(Message(role="tool", parts=tuple(ordered)))
        whole = tuple(out), added, removed
        # What the last answer began is looked at again: its results may be still to come, and a user go on speaking.
        length, self._added, self._removed, self._seen = settled
        del out[length:]
        return whole
