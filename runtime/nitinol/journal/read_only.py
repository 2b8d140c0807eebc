"""A store beside its owner: what reads works, what writes is refused, and the file stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nitinol.errors import ReadOnly, StorageFailed
from nitinol.events import EventBase
from nitinol.journal.base import Committed, Opening
from nitinol.journal.reader import StoreReader
from nitinol.journal.schema import SCHEMA, Disk, LocalDisk, found_schema
from nitinol.state import AgentState


class ReadOnlyJournal(StoreReader):
    """A journal that only reads: see `Journal`. It takes no lock, and needs no owner to live.

    Raises:
        StorageFailed: There is no such file, it is no store, or an older version's; `NewerSchema` for a newer one's.
    """

    durable = True

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        super().__init__(path.resolve(), disk or LocalDisk())
        if disk is None and not self.path.is_file():
            what = "is no file" if self.path.exists() else "does not exist"
            raise StorageFailed(f"store {str(self.path)!r} {what}; give the path that its owner has")
        try:
            with self._connection() as connection:
                self._check(found_schema(connection, self.path))
        except BaseException:
            self.close()
            raise

    def extent(self, key: str) -> tuple[int, int]:
        """The seq before the first event of a key that was not forgotten, and that of its last; (0, 0) of an unknown one."""
        rows = self._select("SELECT base_seq, seq FROM heads WHERE key = ?", (key,))
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    def refusal(self, what: str) -> ReadOnly:
        """The error of a change; `what` is refused."""
        return ReadOnly(f"{what}: store {str(self.path)!r} is open with read_only=True here; ask its owner")

    def open(self, key: str, opened: Callable[[Opening | Exception], None]) -> None:
        """Refused."""
        opened(self.refusal(f"agent {key!r} cannot be opened"))

    def append(
        self, key: str, epoch: int, events: Sequence[EventBase], state: AgentState, committed: Committed
    ) -> None:
        """Refused."""
        committed(self.refusal(f"agent {key!r} cannot be written"))

    def forget(self, key: str, forgotten: Committed) -> None:
        """Refused."""
        forgotten(self.refusal(f"agent {key!r} cannot be forgotten"))

    def restore(self, key: str, events: Sequence[EventBase], state: AgentState, restored: Committed) -> None:
        """Refused."""
        restored(self.refusal(f"agent {key!r} cannot be restored"))

    def close(self) -> None:
        """Let go of the file. What is read later opens it once more."""
        self.close_readers()

    def _check(self, found: int | None) -> None:
        if found is None:
            raise StorageFailed(f"{str(self.path)!r} is no store of agents: it has no journal; give the path of one")
        if found < SCHEMA:
            raise StorageFailed(
                f"store {str(self.path)!r} has schema {found}, and this version reads {SCHEMA}: an owner brings it up to"
                f" date; open it once with Runtime({str(self.path)!r})"
            )
