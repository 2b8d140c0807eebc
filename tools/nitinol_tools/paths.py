"""Confinement: from the path a model gives to a file inside the allowed roots, and no other.

A path is resolved first: against the working directory, with every `..` and every symlink on its way followed. What
remains must lie inside an allowed root, compared part by part, so `/a/bc` is not inside `/a/b`. The file is then
reached from that root one directory at a time, following no symlink; who swaps one in after the check gets an error,
not an escape. Hard links are not seen: whoever can make one could read the file already. POSIX only.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nitinol.errors import ToolError
from nitinol.tool_spec import ToolContext

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BUFFER = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a file is, or would be: free of symlinks, inside an allowed root."""

    root: Path
    """The directory from which it is reached."""
    directories: tuple[str, ...]
    """The names from `root` down to the file's directory."""
    name: str
    """The file's own name; `.` where the path is the root of the file system."""


def locate(path: str, ctx: ToolContext) -> Place:
    """Resolve a model's path and check that it lies inside the allowed paths.

    Relative paths start at `ctx.working_directory`, and so do relative `ctx.allowed_paths`; a leading `~` is the home
    directory. The file need not exist.

    Raises:
        ToolError: It leads out of the allowed paths, is empty, or can be no path.
    """
    if not path or "\0" in path:
        raise ToolError(f"{path!r} is no path: it is empty or holds a NUL character")
    try:
        real = Path(os.path.realpath(ctx.working_directory / _expand(path)))
    except (UnicodeEncodeError, RuntimeError) as error:
        raise ToolError(f"{path!r} is no path: {error}") from None
    allowed = (ctx.working_directory,) if ctx.allowed_paths is None else ctx.allowed_paths
    roots = [Path(os.path.realpath(ctx.working_directory / root)) for root in allowed]
    for root in roots:
        if real == root:
            return Place(root=real.parent, directories=(), name=real.name or ".")
        if real.is_relative_to(root):
            *directories, name = real.relative_to(root).parts
            return Place(root=root, directories=tuple(directories), name=name)
    listed = ", ".join(repr(str(root)) for root in roots) or "none"
    raise ToolError(f"{path!r} is outside the allowed paths ({listed}); give a path inside one of them")


def _expand(path: str) -> Path:
    """`~` and `~/x`, but not `~name`, which may well be a file."""
    return Path(path).expanduser() if path == "~" or path.startswith("~/") else Path(path)


@contextmanager
def open_directory(place: Place, *, create: bool = False) -> Generator[int]:
    """The file descriptor of the directory that holds the file, for calls that take a `dir_fd`.

    Args:
        place: From `locate`.
        create: Make the directories that are missing below the root.

    Raises:
        OSError: A directory is missing, is none, may not be entered, or became a symlink.
    """
    directory = os.open(place.root, _DIRECTORY)
    try:
        for name in place.directories:
            child = _enter(name, directory, create)
            os.close(directory)
            directory = child
        yield directory
    finally:
        os.close(directory)


def _enter(name: str, directory: int, create: bool) -> int:
    with suppress(FileNotFoundError):
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    if create:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=directory)
    return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)


def open_file(name: str, directory: int) -> BinaryIO:
    """Open a regular file of this directory for reading.

    Raises:
        OSError: It is missing, a directory, a symlink, may not be read, or is no regular file.
    """
    # O_NONBLOCK: a FIFO without a writer would hold the thread for ever.
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        _check_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb", buffering=_BUFFER)
    except BaseException:
        os.close(descriptor)
        raise


def status(name: str, directory: int) -> os.stat_result | None:
    """What is known of a file that is to be replaced, or None where it does not exist yet.

    Raises:
        OSError: It is no regular file, or may not be written.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    _check_regular(found)
    if not os.access(name, os.W_OK, dir_fd=directory):
        raise PermissionError(f"{name} is read-only")
    return found


def replace_file(name: str, directory: int, content: bytes, before: os.stat_result | None) -> None:
    """Write a file whole or not at all: readers see the old content or the new, also after a crash in between.

    Args:
        name: The file's name in `directory`.
        directory: From `open_directory`.
        content: All of it.
        before: The file's `status`; its mode and, where this process may give it, its owner are kept.

    Raises:
        OSError: The directory may not be written, the disk is full, and the like; the old file is untouched.
    """
    temporary = f".{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                with suppress(PermissionError):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, before.st_mode & 0o777)
            file.write(content)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")


@contextmanager
def explained(action: str, path: str) -> Generator[None]:
    """Turn an `OSError` into a `ToolError` that says what could not be done, to which path, and why."""
    try:
        yield
    except IsADirectoryError:
        raise ToolError(f"cannot {action} {path!r}: it is a directory, not a file") from None
    except NotADirectoryError:
        raise ToolError(f"cannot {action} {path!r}: a part of the path is a file, not a directory") from None
    except OSError as error:
        raise ToolError(f"cannot {action} {path!r}: {error.strerror or error}") from None
