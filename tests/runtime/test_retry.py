"""Retry: how long to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nitinol.retry import Retry

jitters = st.floats(0, 1, exclude_max=True)


@given(failures=st.integers(1, 10_000), jitter=jitters, base=st.floats(0, 100), cap=st.floats(0, 1000))
def test_a_delay_is_a_random_part_of_a_ceiling_that_doubles(
    failures: int, jitter: float, base: float, cap: float
) -> None:
    """Exponential with full jitter, never above the cap, never an overflow. parity: R2"""
    delay = Retry(base=base, cap=cap).delay(failures, None, jitter)
    assert 0 <= delay <= min(cap, base * 2.0 ** min(failures - 1, 60))


def test_the_ceiling_doubles_with_each_failure() -> None:
    """1, 2, 4, … up to the cap. parity: R2"""
    retry = Retry(base=1.0, cap=5.0)
    assert [retry.delay(failures, None, 0.5) for failures in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 2.5, 2.5]


@given(retry_after=st.floats(0, 3_600), failures=st.integers(1, 20), jitter=jitters)
def test_retry_after_is_obeyed_where_it_is_longer(retry_after: float, failures: int, jitter: float) -> None:
    """Also beyond the cap: the provider knows. parity: R2"""
    retry = Retry()
    assert retry.delay(failures, retry_after, jitter) == max(retry_after, retry.delay(failures, None, jitter))


@pytest.mark.parametrize("options", [{"attempts": 0}, {"base": -1.0}, {"cap": -1.0}, {"stall": -0.1}])
def test_what_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    """By name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Retry(**options)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
