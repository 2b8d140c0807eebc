"""Where events are kept: the contract in `base`, one module for each kind of store."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from nitinol.env import Env, Loop
from nitinol.errors import ConfigurationError
from nitinol.journal.base import Head, Journal, Opening
from nitinol.journal.memory import MemoryJournal

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


__all__ = ["Head", "Journal", "MemoryJournal", "Opening", "Store", "open_journal", "path_of"]
