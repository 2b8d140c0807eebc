"""The edit tool (parity: T8)."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nitinol.errors import ToolError
from nitinol.tool_spec import ToolContext
from nitinol_tools import edit, read, write
from nitinol_tools.matching import positions


@pytest.fixture
def ctx(tmp_path: Path) -> ToolContext:
    return ToolContext(working_directory=tmp_path)


def edited(ctx: ToolContext, content: bytes, old: str, new: str, replace_all: bool = False) -> bytes:
    path = ctx.working_directory / "f"
    path.write_bytes(content)
    edit(ctx, "f", old, new, replace_all)
    return path.read_bytes()


def refusal(ctx: ToolContext, content: bytes, old: str, new: str = "new") -> str:
    path = ctx.working_directory / "f"
    path.write_bytes(content)
    with pytest.raises(ToolError) as caught:
        edit(ctx, "f", old, new)
    assert path.read_bytes() == content
    return str(caught.value)


def test_a_unique_match_is_replaced(ctx: ToolContext) -> None:
    """And nothing else; special characters mean themselves. parity: T8"""
    assert edited(ctx, b"a.c abc\n", "a.c", r"\1\g<0>") == b"\\1\\g<0> abc\n"
    assert edited(ctx, b"one\ntwo\nthree", "one\ntwo\n", "") == b"three"


def test_the_answer_shows_the_lines_around_the_change(ctx: ToolContext) -> None:
    """Three before and after, numbered as by read. parity: T8"""
    (ctx.working_directory / "f").write_text("".join(f"{n}\n" for n in range(1, 21)))
    result = edit(ctx, "f", "10\n11", "ten\nhalf\neleven")
    numbers = ["7", "8", "9", "ten", "half", "eleven", "12", "13", "14"]
    lines = [f"{number:>6}\t{line}" for number, line in enumerate(numbers, 7)]
    assert result.text == "replaced 1 place in 'f'; now:\n" + "\n".join(lines)
    assert result.data == {"replacements": 1}


def test_the_answer_to_a_long_change_is_short(ctx: ToolContext) -> None:
    """At most 40 lines, each cut as by read. parity: T8"""
    (ctx.working_directory / "f").write_text("old\n")
    result = edit(ctx, "f", "old", "\n".join(["x" * 9_000] * 500))
    assert len(result.text.splitlines()) == 41
    assert len(result.text) < 41 * 2_100


def test_an_ambiguous_match_is_refused_with_the_number_of_places(ctx: ToolContext) -> None:
    """And where they are; matches that overlap are ambiguous too. parity: T8"""
    said = refusal(ctx, b"x = 1\ny = 2\nx = 1\n", "x = 1")
    assert "2 times (lines 1, 3)" in said
    assert "replace_all" in said
    assert "2 times" in refusal(ctx, b"aaa", "aa")


def test_replace_all_replaces_every_match(ctx: ToolContext) -> None:
    """One match is fine, none is still refused. parity: T8"""
    assert edited(ctx, b"x y x", "x", "z", replace_all=True) == b"z y z"
    assert edited(ctx, b"x", "x", "z", replace_all=True) == b"z"
    assert edited(ctx, b"aaa", "aa", "b", replace_all=True) == b"ba"
    assert edit(ctx, "f", "a", "", replace_all=True).text.startswith("replaced 1 place")
    with pytest.raises(ToolError, match="is not in 'f'"):
        edit(ctx, "f", "none", "z", replace_all=True)


def test_a_missing_text_is_refused_with_a_hint(ctx: ToolContext) -> None:
    """White space that differs, line numbers, bytes that are not UTF-8. parity: T8"""
    assert "line 2 differs from it in white space only" in refusal(ctx, b"x\n\tif a:\n\t\tb\n", "if a:\n    b")
    assert "leave out the line numbers" in refusal(ctx, b"a\nb\n", "     1\ta\n     2\tb")
    assert "not UTF-8" in refusal(ctx, b"caf\xe9", "caf\ufffd")
    assert "read the file again" in refusal(ctx, b"x", "something else")


def test_an_edit_that_changes_nothing_is_refused(ctx: ToolContext) -> None:
    """As is an empty old text, which would match everywhere. parity: T8"""
    assert "the same" in refusal(ctx, b"x", "x", "x")
    assert "old_string is empty" in refusal(ctx, b"x", "")
    assert "UTF-8" in refusal(ctx, b"x", "x", "\udc80")


def test_crlf_line_ends_are_kept(ctx: ToolContext) -> None:
    """The model sees LF; new lines get the file's line ends. parity: T8"""
    assert edited(ctx, b"a\r\nb\r\nc\r\n", "a\nb", "1\n2\n3") == b"1\r\n2\r\n3\r\nc\r\n"
    assert edited(ctx, b"a\r\nb\r\n", "b", "1\n2") == b"a\r\n1\r\n2\r\n"
    assert edited(ctx, b"a\r\nb\r\n", "a\r\nb", "1\r\n2") == b"1\r\n2\r\n"
    assert edited(ctx, b"a\r\nb\r\n", "\nb", "\nc") == b"a\r\nc\r\n"
    assert edited(ctx, b"a\nb\r\nc\n", "b\nc", "1\n2") == b"a\n1\r\n2\n"
    assert edited(ctx, b"a\r\nb\nc\nd\n", "b\nc", "1\n2") == b"a\r\n1\n2\nd\n"
    assert edited(ctx, b"a\nb\n", "a\nb", "1\n2") == b"1\n2\n"


def test_a_byte_order_mark_and_bytes_that_are_not_utf_8_are_kept(ctx: ToolContext) -> None:
    """An edit elsewhere in the file does not touch them. parity: T8"""
    assert edited(ctx, b"\xef\xbb\xbffirst\n", "first", "1st") == b"\xef\xbb\xbf1st\n"
    assert edited(ctx, b"caf\xe9 bar\n", "bar", "b\xe4r") == b"caf\xe9 b\xc3\xa4r\n"
    assert "\ufffd" not in edit(ctx, "f", "b\xe4r", "x").text
    assert (ctx.working_directory / "f").read_bytes() == b"caf\xe9 x\n"


def test_the_mode_is_kept_and_no_other_file_is_left(ctx: ToolContext) -> None:
    """An edit replaces the file in one step. parity: T8"""
    path = ctx.working_directory / "f"
    path.write_text("old")
    path.chmod(0o701)
    edit(ctx, "f", "old", "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o701
    assert os.listdir(ctx.working_directory) == ["f"]


def test_what_cannot_be_edited_is_a_clear_error(ctx: ToolContext) -> None:
    """Missing, a directory, binary, or too large to hold. parity: T8"""
    (ctx.working_directory / "sub").mkdir()
    (ctx.working_directory / "binary").write_bytes(b"a\0b")
    (ctx.working_directory / "huge").touch()
    os.truncate(ctx.working_directory / "huge", 2**30)
    for path, why in {
        "binari": r"there is no file 'binari'; did you mean 'binary'\?",
        "sub": "it is a directory",
        "binary": "binary file",
        "huge": "1,073,741,824 bytes",
    }.items():
        with pytest.raises(ToolError, match=why):
            edit(ctx, path, "a", "b")


def test_edits_at_the_same_time_lose_nothing_in_silence(ctx: ToolContext) -> None:
    """Each either holds or is refused: another agent may edit the same file. parity: T8"""
    write(ctx, "f", "".join(f"<{n}>\n" for n in range(8)))
    told: dict[int, str] = {}
    ready = threading.Barrier(8)

    def change(n: int) -> None:
        ready.wait()
        try:
            told[n] = edit(ctx, "f", f"<{n}>", f"[{n}]").text
        except ToolError as error:
            told[n] = str(error)

    threads = [threading.Thread(target=change, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = (ctx.working_directory / "f").read_text()
    for n in range(8):
        held = "replaced 1 place" in told[n]
        assert held or "changed by someone else" in told[n]
        assert (f"[{n}]" if held else f"<{n}>") in content


def test_an_edit_runs_alone_in_its_turn() -> None:
    """Two edits of one file in one turn both hold. parity: T8"""
    assert edit.serial
    assert edit.replay == "never"


TEXT = st.text(st.sampled_from("ab \t\r\n.*\\é😀\x0c\u2028"), max_size=30)


@settings(max_examples=300, deadline=None)
@given(before=TEXT, old=TEXT.filter(bool), after=TEXT, new=TEXT)
def test_an_edit_changes_the_match_and_no_other_byte(before: str, old: str, after: str, new: str) -> None:
    """Where the file has no CRLF it is `str.replace`; and undoing it gives the file back. parity: T8"""
    content = before + old + after
    assume("\r\n" not in content + new)
    assume(old != new)
    assume(content.count(old) == len(list(positions(content, old))) == 1)
    with TemporaryDirectory() as directory:
        ctx = ToolContext(working_directory=Path(directory))
        assert edited(ctx, content.encode(), old, new) == content.replace(old, new).encode()
        changed = content.replace(old, new)
        if new and len(list(positions(changed, new))) == 1 and "\r\n" not in changed:
            edit(ctx, "f", new, old)
            assert (Path(directory) / "f").read_bytes() == content.encode()


LINES = st.lists(st.text(st.sampled_from("ab \té😀"), max_size=8), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(lines=LINES, new=LINES, crlf=st.booleans(), data=st.data())
def test_lines_copied_from_read_can_be_edited(
    lines: list[str], new: list[str], crlf: bool, data: st.DataObject
) -> None:
    """What read shows, less the numbers, is what edit finds, whatever the line ends. parity: T6, T8"""
    end = "\r\n" if crlf else "\n"
    first = data.draw(st.integers(1, len(lines)))
    last = data.draw(st.integers(first, len(lines)))
    with TemporaryDirectory() as directory:
        ctx = ToolContext(working_directory=Path(directory))
        (ctx.working_directory / "f").write_bytes((end.join(lines) + end).encode())
        page = read(ctx, "f", offset=first, limit=last - first + 1).text.split("\n")[: last - first + 1]
        old = "\n".join(line.split("\t", 1)[1] for line in page)
        assume(old not in ("", "\n".join(new)))
        assume(len(list(positions(end.join(lines) + end, old))) == 1)
        edit(ctx, "f", old, "\n".join(new))
        expected = end.join([*lines[: first - 1], *new, *lines[last:]]) + end
        assert (ctx.working_directory / "f").read_bytes() == expected.encode()
