"""What several files of tests of actors begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.logs_of import SOON
from tests.some_actors import KINDS, Kind, ThreadDoer

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


@pytest.fixture(autouse=True)
def no_actor_stays() -> Iterator[None]:
    """The doers that a test has left on threads of their own end with it."""
    yield
    for ref in list(ThreadDoer.alive):
        ref.stop(block=False)
