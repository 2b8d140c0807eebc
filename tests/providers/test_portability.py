"""A conversation of any provider goes on at any other, and comes back."""

from __future__ import annotations

import pytest
from tests.portability import carry
from tests.protocols import PROTOCOLS, Protocol


@pytest.mark.parametrize("second", PROTOCOLS, ids=lambda protocol: f"to_{protocol}")
@pytest.mark.parametrize("first", PROTOCOLS, ids=lambda protocol: f"from_{protocol}")
def test_it_is_understood_and_refused_nowhere(first: Protocol, second: Protocol) -> None:
    """With thinking, parallel calls and their results; between turns and in the middle of one."""
    assert carry(first, second) == []
