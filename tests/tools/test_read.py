"""The read tool (parity: T6)."""

from __future__ import annotations

import os
import resource
import string
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitinol.errors import ToolError
from nitinol.messages import Image
from nitinol.tool_spec import ToolContext
from nitinol_tools import read
from nitinol_tools.files import MAX_CHARACTERS

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 16


@pytest.fixture
def ctx(tmp_path: Path) -> ToolContext:
    return ToolContext(working_directory=tmp_path)


def put(ctx: ToolContext, name: str, content: str | bytes) -> Path:
    path = ctx.working_directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_lines_are_numbered_and_right_aligned(ctx: ToolContext) -> None:
    """As `cat -n` prints them; a last line without line end counts. parity: T6"""
    put(ctx, "f", "one\n\n\tthree")
    assert read(ctx, "f").text == "     1\tone\n     2\t\n     3\t\tthree"
    assert read(ctx, "f").data == {"lines": 3, "next_offset": None}


def test_offset_and_limit_choose_lines_and_the_text_says_how_to_go_on(ctx: ToolContext) -> None:
    """`offset` is 1-based; the last page has no such note. parity: T6"""
    put(ctx, "f", "".join(f"line {n}\n" for n in range(1, 11)))
    page = read(ctx, "f", offset=4, limit=2)
    assert page.text.startswith("     4\tline 4\n     5\tline 5\n")
    assert "offset=6" in page.text
    assert page.data == {"lines": 2, "next_offset": 6}
    assert read(ctx, "f", offset=9, limit=2).text == "     9\tline 9\n    10\tline 10"


def test_the_first_two_thousand_lines_are_the_default(ctx: ToolContext) -> None:
    """A file of just so many lines is complete. parity: T6"""
    put(ctx, "long", "x\n" * 2_001)
    put(ctx, "just", "x\n" * 2_000)
    assert "  2000\tx\n" in read(ctx, "long").text
    assert "  2001\t" not in read(ctx, "long").text
    assert "offset=2001" in read(ctx, "long").text
    assert "offset=" not in read(ctx, "just").text


def test_paging_gives_every_line_once(ctx: ToolContext) -> None:
    """`next_offset` leads through the whole file, over the block size too. parity: T6"""
    lines = [f"{n} " + "x" * (n % 90) for n in range(20_000)]
    put(ctx, "f", "\n".join(lines))
    seen: list[str] = []
    offset: int | None = 1
    while offset is not None:
        page = read(ctx, "f", offset=offset, limit=3_333)
        seen += [line.split("\t", 1)[1] for line in page.text.split("\n")[: page.data["lines"]]]
        offset = page.data["next_offset"]
    assert seen == lines


@pytest.mark.parametrize(("content", "lines"), [("a\nb\n", 2), ("a\nb", 2), ("x\n" * 300_000, 300_000)])
def test_an_offset_past_the_end_is_an_error_with_the_number_of_lines(
    ctx: ToolContext, content: str, lines: int
) -> None:
    """Not an empty answer that the model takes for an empty file. parity: T6"""
    put(ctx, "f", content)
    assert f"{lines}\t" in read(ctx, "f", offset=lines).text
    for offset in (lines + 1, lines + 100):
        with pytest.raises(ToolError, match=f"has {lines:,} lines"):
            read(ctx, "f", offset=offset)


def test_an_offset_or_limit_below_one_is_refused(ctx: ToolContext) -> None:
    """By the schema, and for a program that calls the tool. parity: T6"""
    put(ctx, "f", "x")
    for arguments in ({"path": "f", "offset": 0}, {"path": "f", "limit": 0}):
        with pytest.raises(ToolError):
            read.bind(arguments, ctx)
        with pytest.raises(ToolError):
            read(ctx, **arguments)


def test_a_very_long_line_is_cut_with_a_note(ctx: ToolContext) -> None:
    """After 2,000 characters, also where each takes four bytes; the next line is whole. parity: T6"""
    put(ctx, "f", "a" * 500_000 + "\n" + "😀" * 2_000 + "\r\n" + "😀" * 2_001 + "\nlast\n")
    first, second, third, last = read(ctx, "f").text.split("\n")
    assert first.startswith("     1\t" + "a" * 2_000 + " [cut")
    assert "500,001 bytes" in first
    assert second == "     2\t" + "😀" * 2_000
    assert third.startswith("     3\t" + "😀" * 2_000 + " [cut")
    assert last == "     4\tlast"


def test_an_answer_has_an_end_whatever_the_limit(ctx: ToolContext) -> None:
    """And says where to go on. parity: T6"""
    put(ctx, "f", ("y" * 999 + "\n") * 2_000)
    page = read(ctx, "f", limit=10**9)
    assert len(page.text) < MAX_CHARACTERS + 3_000
    assert f"offset={page.data['next_offset']}" in page.text


def test_missing_files_are_an_error_that_suggests_near_names(ctx: ToolContext) -> None:
    """From the same directory, written as the model wrote the path. parity: T6"""
    (ctx.working_directory / "sub").mkdir()
    put(ctx, "sub/settings.py", "")
    with pytest.raises(ToolError, match=r"there is no file 'sub/setings\.py'; did you mean 'sub/settings\.py'\?"):
        read(ctx, "sub/setings.py")
    with pytest.raises(ToolError, match=r"no file 'other'$"):
        read(ctx, "other")
    with pytest.raises(ToolError, match="'none/f'"):
        read(ctx, "none/f")
    with pytest.raises(ToolError, match="is a file, not a directory"):
        read(ctx, "sub/settings.py/x")


def test_directories_and_special_files_are_clear_errors(ctx: ToolContext) -> None:
    """A FIFO without a writer does not hold the thread. parity: T6"""
    os.mkfifo(ctx.working_directory / "fifo")
    with pytest.raises(ToolError, match=r"'\.': it is a directory"):
        read(ctx, ".")
    with pytest.raises(ToolError, match="'fifo': it is no regular file"):
        read(ctx, "fifo")


def test_an_empty_file_says_so(ctx: ToolContext) -> None:
    """It is no error. parity: T6"""
    put(ctx, "f", "")
    assert read(ctx, "f").text == "'f' is empty"


def test_pictures_come_as_pictures(ctx: ToolContext) -> None:
    """By their first bytes, not their name. parity: T6"""
    starts = {"png": PNG, "jpeg": b"\xff\xd8\xff\xe0", "gif": b"GIF89a\0", "webp": b"RIFF\0\0\0\0WEBPVP8 "}
    for kind, content in starts.items():
        put(ctx, "picture.txt", content)
        (picture,) = read(ctx, "picture.txt").media
        assert isinstance(picture, Image)
        assert (picture.data, picture.media_type) == (content, f"image/{kind}")


def test_other_binary_files_are_an_error(ctx: ToolContext) -> None:
    """Told by a NUL in the first 8 KiB. parity: T6"""
    put(ctx, "f", b"ELF" + b"\0" * 10)
    put(ctx, "g", "text".encode("utf-16"))
    for name in ("f", "g"):
        with pytest.raises(ToolError, match="binary"):
            read(ctx, name)


def test_text_that_is_not_quite_utf_8_is_read(ctx: ToolContext) -> None:
    """Wrong bytes are replaced, a byte order mark and carriage returns do not show. parity: T6"""
    put(ctx, "f", b"\xef\xbb\xbfcaf\xe9\r\nnext\r\n")
    assert read(ctx, "f").text == "     1\tcaf\ufffd\n     2\tnext"


def test_a_gigabyte_is_read_in_flat_memory(ctx: ToolContext) -> None:
    """Whether its lines are short, endless, or far away; quickly, since nothing is kept. parity: T6"""
    path = put(ctx, "huge", "first\n" * 2_000)
    with path.open("r+b") as file:
        file.seek(2**30)
        file.write(b"\nlast\n")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert "offset=2001" in read(ctx, "huge").text
    assert "cut after" in read(ctx, "huge", offset=2_001, limit=1).text
    assert read(ctx, "huge", offset=2_002).text == "  2002\tlast"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    assert time.monotonic() - started < 60


def test_a_file_that_may_not_be_read_is_a_clear_error(ctx: ToolContext) -> None:
    """With the system's reason. parity: T6"""
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    put(ctx, "f", "x").chmod(0)
    with pytest.raises(ToolError, match="cannot read 'f': Permission denied"):
        read(ctx, "f")


def test_a_read_may_be_replayed_after_a_crash() -> None:
    """It changes nothing, so its outcome is never `uncertain`. parity: T6"""
    assert read.replay == "safe"


ALPHABET = st.sampled_from(string.ascii_letters[:4] + " \t\r\x0c\x85\u2028éß漢😀\ufeff")


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.text(ALPHABET, max_size=12), min_size=1, max_size=30), end=st.booleans(), data=st.data())
def test_any_page_of_any_text_is_that_slice_of_its_lines(lines: list[str], end: bool, data: st.DataObject) -> None:
    """Only LF ends a line, with a CR before it or not; no other character does. parity: T6"""
    content = "\n".join(lines) + ("\n" if end else "")
    content_shown = content.removeprefix("\ufeff")
    expected = content_shown.removesuffix("\n").split("\n") if content_shown else []
    offset = data.draw(st.integers(1, max(len(expected), 1)))
    limit = data.draw(st.integers(1, 40))
    with TemporaryDirectory() as directory:
        Path(directory, "f").write_bytes(content.encode())
        result = read(ToolContext(working_directory=Path(directory)), "f", offset=offset, limit=limit)
    if not expected:
        assert result.text == "'f' is empty"
        return
    shown = result.text.split("\n")[: result.data["lines"]]
    wanted = [line.removesuffix("\r") for line in expected[offset - 1 : offset - 1 + limit]]
    assert shown == [f"{number:>6}\t{line}" for number, line in enumerate(wanted, offset)]
