"""Server-sent events: bytes in, the data of each event out."""

from __future__ import annotations

from nitinol.errors import MalformedResponse

MAX_BYTES = 16 * 2**20
"""The most bytes of one event."""


class SseParser:
    """Cuts a stream of bytes into the data of server-sent events, whatever the chunks and the line ends.

    Works on bytes from end to end, so a character may lie across chunks, and U+2028 ends no line. Each byte is looked
    at once, however many chunks an event comes in. `event:`, `id:`, `retry:` and comments are ignored: every provider's
    data says by itself what it is. Rules: https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    __slots__ = ("_begun", "_cr", "_lf", "_limit", "_pieces", "_size")

    def __init__(self, *, limit: int = MAX_BYTES) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []  # of the event that has not ended yet, but for a line end in `_lf`
        self._size = 0
        self._lf = b""
        self._cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._begun = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; give the data of every event that they end.

        Raises:
            MalformedResponse: One event is longer than the limit.
        """
        # What nearly every chunk is: one whole event, and nothing held back before it.
        is_event = chunk.startswith(b"data: ") and chunk.find(b"\n") == len(chunk) - 2 and chunk[-1] == 10
        if is_event and not self._pieces and b"\r" not in chunk:
            self._cr, self._begun = False, True
            return [chunk[6:-2]]
        if self._cr and chunk:
            self._cr = False
            if chunk[0] == 10:
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._cr = chunk[-1] == 13
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        blocks = (self._lf + chunk).split(b"\n\n")
        tail = blocks.pop()
        if blocks and self._pieces:
            blocks[0] = b"".join((*self._pieces, blocks[0]))
            self._pieces.clear()
            self._size = 0
        self._lf = b""
        if tail:
            if tail[-1] == 10:
                self._lf, tail = b"\n", tail[:-1]
            self._pieces.append(tail)
            self._size += len(tail)
            if self._size > self._limit:
                raise MalformedResponse(f"one event of the stream is longer than {self._limit} bytes")
        events: list[bytes] = []
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:])
                self._begun = True
            elif (data := self._data(block)) is not None:
                events.append(data)
        return events

    def close(self) -> list[bytes]:
        """The stream has ended: give the data of an event that no blank line ended.

        The standard drops such an event, but some servers leave out the blank line, or even the line end, after their
        last one. It is safe to give it: data cut short is no JSON, and a provider misses its terminal event all the same.
        """
        block = b"".join(self._pieces)
        self._pieces.clear()
        data = self._data(block)
        return [] if data is None else [data]

    def _data(self, block: bytes) -> bytes | None:
        if not self._begun:
            self._begun = True
            block = block.removeprefix(b"\xef\xbb\xbf")
        lines: list[bytes] = []
        for line in block.split(b"\n"):
            if line.startswith(b"data:"):
                lines.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                lines.append(b"")
        return b"\n".join(lines) if lines else None
