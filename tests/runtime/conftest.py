"""What several files of tests of actors begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.logs_of import SOON
from tests.some_actors import KINDS, Kind

from nitinol.env import Loop, LoopThread


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that ends with the test."""
    loop = LoopThread("test-loop")
    yield loop
    assert loop.close(SOON)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both kinds of actors."""
    kind: Kind = request.param
    return kind
