"""A file's lines as a model reads them: numbered, cut where they are endless, never a whole file in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

MAX_LINE = 2_000
"""Characters shown of one line."""
_BLOCK = 256 * 1024
_START = 4 * (MAX_LINE + 1)
"""Bytes that hold at least one character more than `MAX_LINE`, if the line has so many."""


def skip_lines(file: BinaryIO, count: int) -> int:
    """Move on by so many lines, block by block.

    Returns:
        The number of lines skipped; fewer where the file ends before, a last one without line end included.
    """
    skipped, unfinished = 0, False
    while skipped < count:
        block = file.read(_BLOCK)
        if not block:
            return skipped + unfinished
        ends = block.count(b"\n")
        if skipped + ends < count:
            skipped, unfinished = skipped + ends, not block.endswith(b"\n")
            continue
        end = -1
        for _ in range(count - skipped):
            end = block.index(b"\n", end + 1)
        file.seek(end + 1 - len(block), os.SEEK_CUR)
        skipped = count
    return skipped


def next_lines(file: BinaryIO) -> Iterator[str]:
    """The lines from here on, without their line ends, cut after `MAX_LINE` characters with a note."""
    while start := file.readline(_START):
        length = len(start)
        while not start.endswith(b"\n") and (rest := file.readline(_BLOCK)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        line = start.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
        # No NUL leaves a tool: JSON can hold it, but not every store of JSON.
        yield cut(line.replace("\0", "\ufffd"), length)


def cut(line: str, length: int) -> str:
    """One line as it is shown.

    Args:
        line: Its beginning, at least `MAX_LINE` characters where it has so many.
        length: Its whole length in bytes, for the note.
    """
    if len(line) <= MAX_LINE:
        return line
    return f"{line[:MAX_LINE]} [cut after {MAX_LINE:,} characters; the line has {length:,} bytes]"


def numbered(lines: Iterable[str], first: int) -> Iterator[str]:
    """Lines with right-aligned numbers and a tab before them, as `cat -n` prints them."""
    return (f"{number:>6}\t{line}" for number, line in enumerate(lines, first))
