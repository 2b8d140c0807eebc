"""Repair: the view of a transcript that a model is sent is always valid, whatever the transcript went through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nitinol.messages import Message, Part, ToolAnswer

LOST = "This call has no result: it was interrupted."


def view(messages: Sequence[Message]) -> tuple[tuple[Message, ...], int, int]:
    """The messages to send, and how many parts were added and removed to make them valid.

    Each tool call is answered exactly once, in position, by the message after it; no message is empty, nor any words in it; no answer stands
    without its call; messages of a user in a row are merged. Call ids may repeat across turns. A valid transcript comes
    back as it is.
    """
    out: list[Message] = []
    added = removed = 0
    index = 0
    while index < len(messages):
        message = messages[index]
        index += 1
        if message.role == "tool":
            removed += len(message.parts)  # its calls are not before it, or it would have been taken with them
            continue
        empty = sum(part.type == "text" and not part.text for part in message.parts)
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
        calls = message.tool_calls
        if message.role != "assistant" or not calls:
            continue
        given: list[Part] = []
        while index < len(messages) and messages[index].role == "tool":
            given.extend(messages[index].parts)
            index += 1
        answers: dict[str, ToolAnswer] = {}
        for part in given:
            if isinstance(part, ToolAnswer) and part.call_id not in answers:
                answers[part.call_id] = part
        ordered: list[Part] = []
        for call in calls:
            answer = answers.pop(call.call_id, None)
            if answer is None:
                added += 1
                answer = ToolAnswer(call_id=call.call_id, name=call.name, text=LOST, error=True)
            ordered.append(answer)
        removed += len(given) - sum(part in given for part in ordered)
        out.append(Message(role="tool", parts=tuple(ordered)))
    return tuple(out), added, removed
