"""A command's output in bounded memory: its beginning and its end."""

from __future__ import annotations

import codecs

MAX_OUTPUT = 30_000
"""Characters of output that a model is shown."""


class CappedOutput:
    """Keeps the first and the last half of `limit` characters, however many are written.

    Bytes are decoded as UTF-8, whatever piece a character comes in; what is not UTF-8 becomes U+FFFD.
    """

    def __init__(self, limit: int = MAX_OUTPUT) -> None:
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head = ""
        self._tail = ""
        self._length = 0

    def write(self, chunk: bytes) -> None:
        """Add a piece of output."""
        self.write_text(self._decoder.decode(chunk))

    def write_text(self, text: str) -> None:
        """Add output that is text already."""
        self._length += len(text)
        room = self._limit // 2 - len(self._head)
        self._head += text[:room]
        self._tail = (self._tail + text[room:])[-(self._limit - self._limit // 2) :]

    @property
    def truncated(self) -> bool:
        """Whether something was left out."""
        return self._length > self._limit

    def text(self) -> str:
        """What was kept, with a note where something is missing. Ends the decoding: nothing is written after it."""
        self.write_text(self._decoder.decode(b"", final=True))
        gap = ""
        if self.truncated:
            left_out = self._length - len(self._head) - len(self._tail)
            gap = f"\n[{left_out:,} of {self._length:,} characters left out]\n"
        # No NUL leaves a tool: JSON can hold it, but not every store of JSON.
        whole = self._head + gap + self._tail
        return whole.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
