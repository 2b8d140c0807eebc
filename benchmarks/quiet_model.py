"""A model that keeps nothing: what grows in a bench with it, the runtime made grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

ANSWER = "an answer of some words"


class QuietModel:
    """Answers each request at once, or once it may, with the same words; or with a call of a tool for a while.

    Args:
        calls: Requests of a run that are answered by a call of the tool `step`.
        held: Whether no request is answered.
    """

    name = "quiet"
    model = "quiet"

    def __init__(self, calls: int = 0, held: bool = False) -> None:
        self.calls, self.held = calls, held

    def info(self) -> Any:
        from nitinol.provider import ModelInfo

        return ModelInfo()

    async def stream(self, request: Any, http: Any) -> AsyncIterator[Any]:
        from nitinol.messages import Message, Text, ToolCall
        from nitinol.provider import Delta, ModelResponse
        from nitinol.usage import Usage

        if self.held:
            await asyncio.Event().wait()
        usage = Usage(input_tokens=100, output_tokens=10)
        if request.turn <= self.calls:
            call = ToolCall(call_id=f"call-{request.turn}", name="step", arguments={"number": request.turn})
            yield ModelResponse(message=Message(role="assistant", parts=(call,)), usage=usage, stop_reason="tool_use")
        else:
            yield Delta("text", ANSWER)
            yield ModelResponse(
                message=Message(role="assistant", parts=(Text(ANSWER),)), usage=usage, stop_reason="end_turn"
            )
