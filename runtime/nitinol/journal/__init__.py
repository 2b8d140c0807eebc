"""Where events are kept: the contract in `base`, one module for each kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nitinol.env import Env, Loop
from nitinol.errors import ConfigurationError
from nitinol.journal.base import Head, Journal, Opening
from nitinol.journal.memory import MemoryJournal

if TYPE_CHECKING:
    from nitinol.journal.read_only import ReadOnlyJournal

Store: TypeAlias = "str | Path | Callable[[Env, Loop], Journal] | None"
"""`None` = memory; a path or `sqlite:///path` = a SQLite file; or a function that opens a journal of your own."""


def open_journal(store: Store, env: Env, core: Loop) -> Journal:
    """The journal of a store.

    Raises:
        ConfigurationError: There is no such kind of store.
        StorageFailed: It cannot be opened; `StoreInUse` where another process owns it.
    """
    if store is None:
        return MemoryJournal()
    if callable(store):
        return store(env, core)
    from nitinol.journal.sqlite import SqliteJournal  # not needed by those who keep their journal in memory

    return SqliteJournal(path_of(store), env, core)


def open_read_only(store: Store) -> ReadOnlyJournal:
    """The journal of a store that somebody else may own, for reading.

    Raises:
        ConfigurationError: It is no store on disk.
        StorageFailed: There is none, or it cannot be read.
    """
    if store is None or callable(store):
        raise ConfigurationError(f"read_only=True looks into a store on disk, not into {store!r}: give its path")
    from nitinol.journal.read_only import ReadOnlyJournal

    return ReadOnlyJournal(path_of(store))


def path_of(store: str | Path) -> Path:
    """The file of a store.

    Raises:
        ConfigurationError: It is no file.
    """
    text = str(store)
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "sqlite":
        raise ConfigurationError(f"store={text!r}: the stores are None (memory), a path, and sqlite:///path")
    return Path(rest.removeprefix("/") if separator else text).absolute()


__all__ = ["Head", "Journal", "MemoryJournal", "Opening", "Store", "open_journal", "open_read_only", "path_of"]
