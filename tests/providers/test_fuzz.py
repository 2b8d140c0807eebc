"""Damaged answers give typed errors, or answers that are sound; never anything else. `NITINOL_FUZZ=300` is for how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest
from tests.fuzz import SECONDS, Fuzzer, fuzz
from tests.protocols import PROTOCOLS, Protocol

from nitinol.http import Http
from nitinol.provider import ModelRequest, StreamPart
from nitinol_providers import OpenAICompatible


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_a_damaged_answer_is_sound_or_a_typed_error(protocol: Protocol) -> None:
    """Whatever it says is also sent on, to each provider. The same damage each time, but where `NITINOL_FUZZ` asks for more."""
    fuzzer = Fuzzer(protocol)
    seed = random.randrange(2**32) if SECONDS else "the tests"
    asyncio.run(fuzz(fuzzer, seed, seconds=SECONDS, least=400))
    assert fuzzer.outcomes["answered"] > 50
    assert fuzzer.outcomes["MalformedResponse"] > 50


class Careless(OpenAICompatible):
    """A provider that lets a parser's own error out, once in a while."""

    async def stream(self, request: ModelRequest, http: Http) -> AsyncGenerator[StreamPart, None]:
        async for part in super().stream(request, http):
            if getattr(part, "usage", None) is None:
                raise KeyError("choices")
            yield part


def test_the_fuzzer_notices() -> None:
    """An error of no type of ours ends it, with the seed that shows it again."""
    fuzzer = Fuzzer(PROTOCOLS[0])
    fuzzer.provider = Careless("m", base_url="http://127.0.0.1:9")
    with pytest.raises(AssertionError, match=r"chat, seed 1/0:(.|\n)*KeyError"):
        asyncio.run(fuzz(fuzzer, 1, least=50))
