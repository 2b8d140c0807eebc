"""Confinement: no path that a model can write leads out of the allowed roots (parity: T10)."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nitinol.errors import ToolError
from nitinol.tool_spec import ToolContext
from nitinol_tools import edit, read, write
from nitinol_tools.paths import locate, open_directory, open_file

SECRET = "the secret outside"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed root with a secret beside it."""
    inside = tmp_path / "b"
    inside.mkdir()
    (tmp_path / "secret").write_text(SECRET)
    return inside


def refused(ctx: ToolContext, path: str) -> None:
    """No file tool takes this path."""
    with pytest.raises(ToolError):
        read(ctx, path)
    with pytest.raises(ToolError):
        write(ctx, path, "overwritten")
    with pytest.raises(ToolError):
        edit(ctx, path, SECRET, "edited")


def test_a_relative_path_starts_at_the_working_directory(root: Path) -> None:
    """Not at the process's own. parity: T10"""
    (root / "sub").mkdir()
    (root / "sub" / "f").write_text("found")
    assert "found" in read(ToolContext(working_directory=root), "sub/f").text
    assert "found" in read(ToolContext(working_directory=root / "sub"), "./f").text


def test_the_working_directory_is_the_only_allowed_path_by_default(root: Path) -> None:
    """`allowed_paths=None`; an absolute path inside it is as good as a relative one. parity: T10"""
    (root / "f").write_text("found")
    assert "found" in read(ToolContext(working_directory=root), str(root / "f")).text
    refused(ToolContext(working_directory=root), str(root.parent / "secret"))


def test_allowed_paths_may_be_several_relative_single_files_or_none_at_all(root: Path) -> None:
    """Relative ones start at the working directory; they replace it; `()` allows nothing. parity: T10"""
    other = root.parent / "other"
    other.mkdir()
    (other / "f").write_text("found")
    (root / "own").write_text("mine")
    ctx = ToolContext(working_directory=root, allowed_paths=(Path("../other"), Path("../secret")))
    assert "found" in read(ctx, "../other/f").text
    assert SECRET in read(ctx, "../secret").text
    refused(ctx, "own")
    refused(ToolContext(working_directory=root, allowed_paths=()), "own")


def test_the_error_names_the_path_and_the_allowed_roots(root: Path) -> None:
    """So the model can choose another. parity: T10"""
    with pytest.raises(ToolError) as caught:
        locate("../secret", ToolContext(working_directory=root))
    assert "'../secret'" in str(caught.value)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    "path", ["../secret", "x/../../secret", "./../b/../secret", "..", "../b2/f", "/", "/etc/hostname", "~", "~/x"]
)
def test_dots_and_tildes_do_not_escape(root: Path, path: str) -> None:
    """`..` is followed, then judged; `~` is the home directory. parity: T10"""
    refused(ToolContext(working_directory=root), path)
    assert (root.parent / "secret").read_text() == SECRET


def test_a_name_that_begins_like_the_root_is_not_inside_it(root: Path) -> None:
    """`/a/bc` is not inside `/a/b`. parity: T10"""
    (root.parent / "bc").mkdir()
    (root.parent / "bc" / "f").write_text(SECRET)
    refused(ToolContext(working_directory=root), str(root) + "c/f")
    refused(ToolContext(working_directory=root), "../bc/f")


@pytest.mark.parametrize("path", ["", "a\0b", "\0", "bad\ud800name"])
def test_what_can_be_no_path_is_an_error_the_model_can_read(root: Path, path: str) -> None:
    """Empty, with NUL, or not encodable. parity: T10"""
    refused(ToolContext(working_directory=root), path)


def test_symlinks_that_lead_out_are_refused_wherever_they_stand(root: Path) -> None:
    """As last part, as a parent, dangling, or through another link. parity: T10"""
    (root / "file").symlink_to(root.parent / "secret")
    (root / "parent").symlink_to(root.parent)
    (root / "dangling").symlink_to(root.parent / "new")
    (root / "chain").symlink_to("file")
    (root / "loop").symlink_to("loop")
    for path in ("file", "parent/secret", "parent/new", "parent/new/deep", "dangling", "chain", "loop", "loop/x"):
        refused(ToolContext(working_directory=root), path)
    assert sorted(entry.name for entry in root.parent.iterdir()) == ["b", "secret"]
    assert (root.parent / "secret").read_text() == SECRET


def test_symlinks_that_stay_inside_are_followed(root: Path) -> None:
    """Also a root that is one, and a write through one keeps the link. parity: T10"""
    (root / "target").write_text("old")
    (root / "link").symlink_to("target")
    (root.parent / "alias").symlink_to(root)
    ctx = ToolContext(working_directory=root.parent / "alias")
    assert "old" in read(ctx, "link").text
    write(ctx, "link", "new")
    assert (root / "link").is_symlink()
    assert (root / "target").read_text() == "new"


def test_dot_dot_after_a_symlink_is_resolved_as_the_system_does(root: Path) -> None:
    """`link/..` is the parent of where the link leads, not of the link. parity: T10"""
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "f").write_text("found")
    (root / "link").symlink_to("deep/er")
    (root / "out").symlink_to(root.parent)
    assert "found" in read(ToolContext(working_directory=root), "link/../f").text
    refused(ToolContext(working_directory=root), "out/../f")


def test_a_symlink_swapped_in_after_the_check_is_not_followed(root: Path) -> None:
    """Neither as a directory on the way nor as the file. parity: T10"""
    (root / "sub").mkdir()
    (root / "sub" / "secret").write_text("harmless")
    place = locate("sub/secret", ToolContext(working_directory=root))
    (root / "sub" / "secret").unlink()
    (root / "sub" / "secret").symlink_to(root.parent / "secret")
    with open_directory(place) as directory, pytest.raises(OSError, match="symbolic links"):
        open_file(place.name, directory)
    (root / "sub").rename(root / "moved")
    (root / "sub").symlink_to(root.parent)
    with pytest.raises(OSError, match="Not a directory"), open_directory(place):
        pass


def test_the_whole_file_system_can_be_allowed(root: Path) -> None:
    """`allowed_paths=[Path("/")]` confines nothing, and `/` itself is a directory. parity: T10"""
    ctx = ToolContext(working_directory=root, allowed_paths=(Path("/"),))
    assert SECRET in read(ctx, "../secret").text
    with pytest.raises(ToolError, match="directory"):
        read(ctx, "/")


def test_no_descriptor_is_left_open(root: Path) -> None:
    """Whether a call succeeds or fails on its way down. parity: T10"""
    ctx = ToolContext(working_directory=root)
    before = len(os.listdir("/proc/self/fd"))
    write(ctx, "a/b/c", "x")
    for path in ("a/b/c", "a/b/none", "a/b/c/d", "a/b"):
        try:
            read(ctx, path)
        except ToolError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


NAMES = ["..", ".", "a", "b", "secret", "in", "out", "up", "none", "/", "~"]


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(NAMES), min_size=1, max_size=8), absolute=st.booleans())
def test_no_list_of_dots_names_and_symlinks_escapes(parts: list[str], absolute: bool) -> None:
    """Whatever is written through such a path, nothing outside the root is read or changed. parity: T10"""
    with TemporaryDirectory() as directory:
        top = Path(directory).resolve()
        root = top / "b"
        (root / "a" / "b").mkdir(parents=True)
        (top / "secret").write_text(SECRET)
        (root / "a" / "in").symlink_to("b")
        (root / "a" / "out").symlink_to(top)
        (root / "a" / "b" / "up").symlink_to("../..")
        (root / "out").symlink_to("../secret")
        path = (f"{root}/" if absolute else "") + "/".join(parts)
        ctx = ToolContext(working_directory=root)
        try:
            assert SECRET not in read(ctx, path).text
        except ToolError as error:
            assert SECRET not in str(error)  # noqa: PT017
        try:
            write(ctx, path, "overwritten")
        except ToolError:
            pass
        else:
            assert Path(os.path.realpath(root / path)).is_relative_to(root)
        assert sorted(entry.name for entry in top.iterdir()) == ["b", "secret"]
        assert (top / "secret").read_text() == SECRET
