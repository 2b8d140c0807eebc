"""The file tools: `read`, `write` and `edit`. They run on worker threads and stay inside the agent's allowed paths."""

from __future__ import annotations

import difflib
import itertools
import os
import threading
from codecs import BOM_UTF8
from typing import Annotated, BinaryIO

from pydantic import Field

from nitinol.errors import ToolError
from nitinol.messages import Image
from nitinol.tool_spec import ToolContext, ToolResult, tool
from nitinol_tools.lines import cut, next_lines, numbered, skip_lines
from nitinol_tools.matching import positions, substitute, why_missing
from nitinol_tools.paths import explained, locate, open_directory, open_file, replace_file, status

MAX_LINES = 2_000
"""Lines that `read` shows by default."""
MAX_CHARACTERS = 180_000
"""Characters after which `read` stops, whatever its `limit`: the runtime cuts answers longer than 200,000."""
MAX_IMAGE = 20 * 1024 * 1024
"""Bytes of the largest picture that `read` shows."""
MAX_EDIT = 50 * 1024 * 1024
"""Bytes of the largest file that `edit` changes: it holds it in memory."""

_replacing = threading.Lock()
"""Held while a file is replaced, so that no edit in this process overwrites another that it has not seen."""
_SNIFFED = 8 * 1024
_CONTEXT_LINES = 3
_SNIPPET_LINES = 40


@tool(replay="safe")
def read(
    ctx: ToolContext,
    path: str,
    offset: Annotated[int, Field(ge=1)] = 1,
    limit: Annotated[int, Field(ge=1)] = MAX_LINES,
) -> ToolResult:
    """Read a text file, with line numbers, or look at a picture (PNG, JPEG, GIF, WebP).

    Args:
        path: The file; a relative path starts at the working directory.
        offset: The first line to read; the file's first line is 1.
        limit: How many lines to read at most.
    """
    if offset < 1 or limit < 1:
        raise ToolError(f"offset and limit must be 1 or more, not {offset} and {limit}")
    place = locate(path, ctx)
    with explained("read", path), open_directory(place) as directory, _open(path, place.name, directory) as file:
        start = file.read(_SNIFFED)
        file.seek(len(BOM_UTF8) if start.startswith(BOM_UTF8) else 0)
        if media_type := _image_type(start):
            return _picture(path, file, media_type)
        _refuse_binary(path, start)
        return _page(path, file, offset, limit)


@tool(serial=True)
def write(ctx: ToolContext, path: str, content: str) -> ToolResult:
    """Write a file whole: a new one, with the directories it needs, or over an old one.

    Args:
        path: The file; a relative path starts at the working directory.
        content: All that the file shall hold.
    """
    if path.endswith("/"):
        raise ToolError(f"cannot write {path!r}: it names a directory; add the file's name")
    place, data = locate(path, ctx), _encode("content", content)
    with explained("write", path), open_directory(place, create=True) as directory, _replacing:
        before = status(place.name, directory)
        replace_file(place.name, directory, data, before)
    lines = content.count("\n") + (not content.endswith("\n") and content != "")
    return ToolResult(
        f"{'created' if before is None else 'overwrote'} {path!r}: {len(data):,} bytes, {lines:,} lines",
        data={"bytes": len(data), "lines": lines, "created": before is None},
    )


@tool(serial=True)
def edit(ctx: ToolContext, path: str, old_string: str, new_string: str, replace_all: bool = False) -> ToolResult:
    """Replace text in a file. The old text must be there exactly once, unless `replace_all` is set.

    Args:
        path: The file; a relative path starts at the working directory.
        old_string: The text to replace, exactly as in the file, without line numbers. Several lines make it unique.
        new_string: What to put in its place.
        replace_all: Replace every occurrence.
    """
    if not old_string:
        raise ToolError("old_string is empty; use write to make a file")
    if old_string == new_string:
        raise ToolError("old_string and new_string are the same; nothing to change")
    _encode("old_string", old_string)
    _encode("new_string", new_string)
    place = locate(path, ctx)
    with explained("edit", path), open_directory(place) as directory, _open(path, place.name, directory) as file:
        seen = os.fstat(file.fileno())
        if seen.st_size > MAX_EDIT:
            raise ToolError(f"cannot edit {path!r}: it has {seen.st_size:,} bytes, more than {MAX_EDIT:,}")
        content = file.read()
        _refuse_binary(path, content[:_SNIFFED])
        # Bytes that are not UTF-8 go through as surrogates, and come out as they were.
        text = content.decode("utf-8", "surrogateescape")
        start = _first_match(path, text, old_string, replace_all)
        changed, count = substitute(text, old_string, new_string)
        with _replacing:
            # While `file` is open its inode number cannot go to a newer version of the file.
            before = status(place.name, directory)
            if before is None or _version(before) != _version(seen):
                raise ToolError(f"cannot edit {path!r}: it was changed by someone else just now; read it again")
            replace_file(place.name, directory, changed.encode("utf-8", "surrogateescape"), before)
    places = "1 place" if count == 1 else f"{count:,} places"
    snippet = _snippet(changed, start, new_string.count("\n") + 1)
    return ToolResult(f"replaced {places} in {path!r}; now:\n{snippet}", data={"replacements": count})


def _page(path: str, file: BinaryIO, offset: int, limit: int) -> ToolResult:
    skipped = skip_lines(file, offset - 1)
    shown: list[str] = []
    room = MAX_CHARACTERS
    for line in itertools.islice(numbered(next_lines(file), offset), limit):
        shown.append(line)
        room -= len(line) + 1
        if room < 0:
            break
    if not shown and not skipped:
        return ToolResult(f"{path!r} is empty", data={"lines": 0, "next_offset": None})
    if not shown:
        raise ToolError(f"offset {offset:,} is past the end of {path!r}, which has {skipped:,} lines")
    after = offset + len(shown) if file.read(1) else None
    if after is not None:
        shown += ["", f"[lines {offset} to {after - 1}; there are more: go on with offset={after}]"]
    lines = len(shown) if after is None else after - offset
    return ToolResult("\n".join(shown), data={"lines": lines, "next_offset": after})


def _picture(path: str, file: BinaryIO, media_type: str) -> ToolResult:
    data = file.read(MAX_IMAGE + 1)
    if len(data) > MAX_IMAGE:
        raise ToolError(f"cannot read {path!r}: the picture has more than {MAX_IMAGE:,} bytes")
    picture = Image(data=data, media_type=media_type, name=os.path.basename(path))
    return ToolResult(f"{path!r} is a picture: {media_type}, {len(data):,} bytes", media=(picture,))


def _image_type(start: bytes) -> str | None:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    return None


def _refuse_binary(path: str, start: bytes) -> None:
    if b"\0" in start:
        raise ToolError(f"{path!r} is a binary file, or text in UTF-16; only UTF-8 text can be read and edited")


def _open(path: str, name: str, directory: int) -> BinaryIO:
    try:
        return open_file(name, directory)
    except FileNotFoundError:
        raise ToolError(f"there is no file {path!r}{_similar(path, name, directory)}") from None


def _similar(path: str, name: str, directory: int) -> str:
    """`; did you mean …?` with names of the same directory, or nothing."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in itertools.islice(entries, 5_000) if entry.name.isprintable()]
    near = difflib.get_close_matches(name, names, n=3)
    written = " or ".join(repr(os.path.join(os.path.dirname(path), other)) for other in near)
    return f"; did you mean {written}?" if near else ""


def _encode(argument: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ToolError(f"{argument} cannot be written as UTF-8: {error.reason} at character {error.start}") from None


def _first_match(path: str, text: str, old: str, replace_all: bool) -> int:
    places = positions(text, old)
    found = list(itertools.islice(places, 1)) if replace_all else list(places)
    if not found:
        raise ToolError(f"old_string is not in {path!r}: {why_missing(text, old)}")
    if len(found) > 1:
        lines = ", ".join(str(text.count("\n", 0, start) + 1) for start in found[:5])
        raise ToolError(
            f"old_string is in {path!r} {len(found):,} times (lines {lines}{', …' if len(found) > 5 else ''}); "
            "add lines around it to make it unique, or set replace_all"
        )
    return found[0]


def _version(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _snippet(text: str, start: int, height: int) -> str:
    """The changed lines with some around them, numbered; only the first ones of a long change."""
    changed = text.count("\n", 0, start)
    first = max(changed - _CONTEXT_LINES, 0)
    last = min(changed + height + _CONTEXT_LINES, first + _SNIPPET_LINES)
    lines = text.removesuffix("\n").split("\n", last)[first:last]
    shown = (line.removesuffix("\r").encode("utf-8", "replace").decode() for line in lines)
    return "\n".join(numbered((cut(line, len(line.encode())) for line in shown), first + 1))


def _renew_lock() -> None:
    """In the child of a fork, where nobody may be left to release it."""
    global _replacing
    _replacing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
