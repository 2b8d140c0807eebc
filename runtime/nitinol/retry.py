"""When to try a model again, and after how long. By the error's type, never by its text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nitinol.usage import is_count

PATIENCE = 3600.0
"""Seconds of a `Retry-After` that are obeyed; a server that asks for more is asked again after these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often one model is tried in a turn, and how long between.

    The delay is exponential with full jitter: a random part of `base * 2**(failures - 1)`, at most `cap`. A provider's
    own `Retry-After` is obeyed where it is longer. No retry is planned past the run's deadline.
    """

    attempts: int = 4
    """Attempts at each model of a turn; 1 turns retries off."""
    base: float = 1.0
    """Seconds, before jitter, after the first failure."""
    cap: float = 30.0
    """Seconds a jittered delay never exceeds."""
    stall: float = 60.0
    """Seconds without a byte after which an attempt has failed."""

    def __post_init__(self) -> None:
        if not is_count(self.attempts, 1):
            raise ValueError(f"Retry(attempts={self.attempts!r}) must be 1 or more; 1 means no retry")
        for name in ("base", "cap", "stall"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"Retry({name}={value!r}) must be seconds, zero or more")

    def delay(self, failures: int, retry_after: float | None, jitter: float) -> float:
        """Seconds to wait after the `failures`-th failure in a row.

        Args:
            failures: How many attempts have failed so far, 1 or more.
            retry_after: What the provider asked for, in seconds, or `None`.
            jitter: A number in [0, 1).
        """
        ceiling = min(self.cap, self.base * 2.0 ** min(failures - 1, 60))
        asked = retry_after if retry_after is not None and retry_after > 0 else 0.0
        return max(ceiling * jitter, min(asked, PATIENCE))
