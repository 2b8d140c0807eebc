"""Who owns a store: one process, by a lock of the operating system that dies with it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nitinol.errors import StorageFailed, StoreInUse

NAMING = 1.0
"""Seconds to find out who owns a store; an owner writes its name right after it took the lock."""


def own(path: Path) -> Callable[[], None]:
    """Take the lock on a store; the lock file beside it says whose it is.

    Returns:
        How to let go of it.

    Raises:
        StoreInUse: Another process has it, or this one by another journal.
        StorageFailed: The lock file cannot be written.
    """
    lock_path = path.with_name(path.name + "-lock")
    try:
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        way_out = (
            "make its directory first"
            if isinstance(error, FileNotFoundError)
            else "see that its directory can be written"
        )
        raise StorageFailed(f"store {str(path)!r} cannot be opened: {error.strerror}; {way_out}") from error
    until = time.monotonic() + NAMING
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            owner = os.pread(handle, 32, 0).decode().strip()
        # The name may be that of the owner before: the new one is about to write its own.
        known = owner.isdigit() and _lives(int(owner))
        if known or time.monotonic() >= until:
            os.close(handle)
            name = f"process {owner}" if known else "a process that does not say its name"
            raise StoreInUse(
                f"store {str(path)!r} is owned by {name}; stop it, open another store, or look on with read_only=True"
            )
        time.sleep(0.001)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    _held.add(handle)
    return partial(_let_go, handle)


def owner_of(path: Path) -> tuple[int, bool] | None:
    """The process that owns a store, or owned it last, and whether it lives; `None` where the last one left in good order.

    Takes no lock. Where a process that was killed has left its name, another may live by now that has its number.
    """
    try:
        owner = path.with_name(path.name + "-lock").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return (int(owner), _lives(int(owner))) if owner.isdigit() else None


def _let_go(handle: int) -> None:
    if handle not in _held:  # twice, or in the child of a fork
        return
    _held.discard(handle)
    os.ftruncate(handle, 0)  # its name first: who comes next must not be told of one who has left
    os.close(handle)


def _let_go_in_child() -> None:
    """A fork shares its parent's locks, and would hold them when the parent is dead."""
    while _held:
        os.close(_held.pop())


_held: set[int] = set()
os.register_at_fork(after_in_child=_let_go_in_child)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
