"""The other side of `cpu_per_run`: a server of chat completions on loopback, as cheap as asyncio allows.

A conversation without a tool's answer gets two parallel tool calls, their arguments in three deltas each; one with it gets
100 chunks of text, then usage and `[DONE]`. Every event is a write of its own on a socket without Nagle's delay, so it is a
TCP segment of its own, `pace` seconds after the one before (0: as fast as the loop goes round, one event for each open
stream in turn). `python chat_server.py PACE` prints its port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Sequence
from typing import Any, cast

import measure

CHUNKS = 100
WORD = "word%02d of the answer "
ANSWER = "".join(WORD % number for number in range(CHUNKS))


def _event(choice: dict[str, Any] | None, usage: dict[str, int] | None = None) -> bytes:
    chunk: dict[str, Any] = {
        "id": "chatcmpl-DgLaYGHK2rvWGBIg",
        "object": "chat.completion.chunk",
        "created": 1795402469,
        "model": "bench",
        "system_fingerprint": "fp_bench",
        "choices": [] if choice is None else [{"index": 0, "logprobs": None, "finish_reason": None, **choice}],
        "usage": usage,
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _call(index: int, **function: str) -> bytes:
    head: dict[str, Any] = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
    return _event({"delta": {"tool_calls": [{"index": index, **head, "function": function}]}})


def _whole(*events: bytes) -> Sequence[bytes]:
    """The pieces of an HTTP answer: the head goes with the first event, the end with the last."""
    pieces = [b"%x\r\n%b\r\n" % (len(event), event) for event in (*events, b"data: [DONE]\n\n")]
    pieces[0] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + pieces[0]
    pieces[-1] += b"0\r\n\r\n"
    return pieces


_USAGE = _event(None, {"prompt_tokens": 60, "completion_tokens": 120, "total_tokens": 180})
CALLS = _whole(
    _event({"delta": {"role": "assistant", "content": None}}),
    _call(0, name="add", arguments=""),
    _call(0, arguments='{"a": 1,'),
    _call(0, arguments=' "b": 2}'),
    _call(1, name="add", arguments=""),
    _call(1, arguments='{"a": 3,'),
    _call(1, arguments=' "b": 4}'),
    _event({"delta": {}, "finish_reason": "tool_calls"}),
    _USAGE,
)
WORDS = _whole(
    _event({"delta": {"role": "assistant", "content": ""}}),
    *(_event({"delta": {"content": WORD % number}}) for number in range(CHUNKS)),
    _event({"delta": {}, "finish_reason": "stop"}),
    _USAGE,
)


class Connection(asyncio.Protocol):
    """One connection, kept alive unless the client asks otherwise."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = bytes(self._received).partition(b"\r\n\r\n")
        if not end:
            return
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received.clear()
        self._close = b"connection: close" in fields
        self._send(WORDS if b'"tool_call_id"' in body else CALLS, 0)

    def _send(self, pieces: Sequence[bytes], at: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(pieces[at])
        if at + 1 < len(pieces):
            if self._pace:
                self._loop.call_later(self._pace, self._send, pieces, at + 1)
            else:
                self._loop.call_soon(self._send, pieces, at + 1)
        elif self._close:
            self._transport.close()


async def main(pace: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    measure.pin(1)
    asyncio.run(main(float(sys.argv[1])))
