"""The write tool (parity: T7)."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nitinol.errors import ToolError
from nitinol.tool_spec import ToolContext
from nitinol_tools import write
from nitinol_tools.paths import replace_file


@pytest.fixture
def ctx(tmp_path: Path) -> ToolContext:
    return ToolContext(working_directory=tmp_path)


def test_a_new_file_and_its_parents_are_made(ctx: ToolContext) -> None:
    """The answer counts bytes and lines. parity: T7"""
    result = write(ctx, "a/b/c.txt", "é\ntwo")
    assert (ctx.working_directory / "a/b/c.txt").read_bytes() == "é\ntwo".encode()
    assert result.text == "created 'a/b/c.txt': 6 bytes, 2 lines"
    assert result.data == {"bytes": 6, "lines": 2, "created": True}


def test_an_old_file_is_overwritten_and_keeps_its_mode(ctx: ToolContext) -> None:
    """Whole, even where the new content is shorter. parity: T7"""
    path = ctx.working_directory / "run.sh"
    path.write_text("something longer")
    path.chmod(0o750)
    assert write(ctx, "run.sh", "short\n").text == "overwrote 'run.sh': 6 bytes, 1 lines"
    assert path.read_text() == "short\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_a_new_file_has_the_mode_that_the_umask_gives(ctx: ToolContext) -> None:
    """It is no private temporary file. parity: T7"""
    plain = ctx.working_directory / "plain"
    plain.touch()
    write(ctx, "new", "x")
    assert (ctx.working_directory / "new").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(("content", "lines"), [("", 0), ("\n", 1), ("a", 1), ("a\n", 1), ("a\r\nb\r\n", 2)])
def test_content_is_written_as_it_is(ctx: ToolContext, content: str, lines: int) -> None:
    """No line end is added or changed. parity: T7"""
    assert write(ctx, "f", content).data["lines"] == lines
    assert (ctx.working_directory / "f").read_bytes() == content.encode()


def test_readers_see_the_old_file_or_the_new_one(ctx: ToolContext) -> None:
    """An open one still reads the old, and nothing else is left in the directory. parity: T7"""
    write(ctx, "f", "old")
    with (ctx.working_directory / "f").open() as reader:
        write(ctx, "f", "new")
        assert reader.read() == "old"
    assert os.listdir(ctx.working_directory) == ["f"]


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """Here the last step fails, since the name is a directory's. parity: T7"""
    (tmp_path / "taken" / "x").mkdir(parents=True)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            replace_file("taken", directory, b"new", None)
    finally:
        os.close(directory)
    assert os.listdir(tmp_path) == ["taken"]


def test_what_cannot_be_written_is_a_clear_error(ctx: ToolContext) -> None:
    """A directory, a device, below a file, a name that is too long, text that is none. parity: T7"""
    root = ctx.working_directory
    (root / "sub").mkdir()
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    for path, why in {
        "sub": "it is a directory",
        "new/": "names a directory",
        "fifo": "no regular file",
        "file/x": "a part of the path is a file",
        "n" * 300: "too long",
    }.items():
        with pytest.raises(ToolError, match=why):
            write(ctx, path, "x")
    with pytest.raises(ToolError, match="content cannot be written as UTF-8"):
        write(ctx, "new", "\ud800")
    assert sorted(os.listdir(root)) == ["fifo", "file", "sub"]


def test_a_root_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """Only directories below the allowed root are made. parity: T7"""
    with pytest.raises(ToolError, match="cannot write 'f': No such file or directory"):
        write(ToolContext(working_directory=tmp_path / "none"), "f", "x")


def test_a_read_only_file_is_refused(ctx: ToolContext) -> None:
    """Though its directory would let it be replaced. parity: T7"""
    if os.geteuid() == 0:
        pytest.skip("root writes everything")
    path = ctx.working_directory / "f"
    path.write_text("kept")
    path.chmod(0o444)
    with pytest.raises(ToolError, match="read-only"):
        write(ctx, "f", "x")
    assert path.read_text() == "kept"


def test_a_write_runs_alone_in_its_turn() -> None:
    """So that calls after it in the same turn see the file. parity: T7"""
    assert write.serial
    assert write.replay == "never"
