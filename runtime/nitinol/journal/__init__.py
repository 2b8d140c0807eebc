"""Where events are kept: the contract in `base`, one module for each kind of store."""

from nitinol.journal.base import Journal, Opening
from nitinol.journal.memory import MemoryJournal

__all__ = ["Journal", "MemoryJournal", "Opening"]
