"""Where events are kept: the contract in `base`, one module for each kind of store."""

from pathlib import Path

from nitinol.env import Env, Loop
from nitinol.errors import ConfigurationError
from nitinol.journal.base import Head, Journal, Opening
from nitinol.journal.memory import MemoryJournal


def open_journal(store: str | Path | None, env: Env, core: Loop) -> Journal:
    """The journal of a store: `None` = memory; a path or `sqlite:///path` = a SQLite file.

    Raises:
        ConfigurationError: There is no such kind of store.
        StorageFailed: It cannot be opened; `StoreInUse` where another process owns it.
    """
    if store is None:
        return MemoryJournal()
    text = str(store)
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "sqlite":
        raise ConfigurationError(f"store={text!r}: the stores are None (memory), a path, and sqlite:///path")
    from nitinol.journal.sqlite import SqliteJournal  # not needed by those who keep their journal in memory

    return SqliteJournal(Path(rest.removeprefix("/") if separator else text).absolute(), env, core)


__all__ = ["Head", "Journal", "MemoryJournal", "Opening", "open_journal"]
