"""Cursors: a subscriber that leaves and re-joins, however often and wherever, sees every durable event once, in order."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.logs_of import SOON

from nitinol import Agent, ModelRequest, Runtime
from nitinol.testing import Answer, ScriptedProvider, say

pytestmark = pytest.mark.slow

VISITS = 1000
"""Of each reader."""
AGENTS = 4


def echo(request: ModelRequest) -> Answer:
    return say(f"you said {request.messages[-1].text}", chunks=3)


AGENT = Agent(name="scout", model=ScriptedProvider(echo))


@contextmanager
def load(rt: Runtime, enough: threading.Event) -> Generator[None]:
    """Agents that work, all at once, until there is enough of it; they let the readers go first now and then."""

    def work(number: int) -> None:
        ref = rt.start(AGENT, key=f"agent/{number}")
        while not enough.is_set():
            ref.ask("hi", timeout=60)

    with ThreadPoolExecutor(AGENTS) as pool:
        workers = [pool.submit(work, number) for number in range(AGENTS)]
        try:
            yield
        finally:
            enough.set()
        for worker in workers:
            worker.result(60)


class Reader:
    """Comes, reads some events, and leaves; its cursor is the last durable event that it has read."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cursor = 0
        self.seen: list[int] = []
        self.visits = 0

    def options(self) -> dict[str, Any]:
        """Of its next visit: also with a queue so small that it falls behind."""
        self.visits += 1
        return {"after": self.cursor, "maxsize": self.random.choice((1, 2, 10, 1000))}

    def stays(self) -> int:
        """Events until it leaves: none, a few, or more than there are just now."""
        return self.random.choice((0, 1, 2, 3, 5, 8, 40))

    def take(self, event: Any) -> None:
        """An event that it was given. Ephemeral ones, which may be lost or doubled, move no cursor."""
        if event.durable:
            self.cursor = event.position
            self.seen.append(event.position)

    def read(self, rt: Runtime, visits: int) -> None:
        """So many visits."""
        for _ in range(visits):
            with rt.subscribe(**self.options()) as events:
                for _ in range(self.stays()):
                    self.take(events.get(SOON))

    async def aread(self, rt: Runtime, visits: int) -> None:
        """As `read`, on an event loop."""
        for _ in range(visits):
            async with rt.subscribe(**self.options()) as events:
                for _ in range(self.stays()):
                    async with asyncio.timeout(SOON):
                        self.take(await events.aget())

    def finish(self, rt: Runtime) -> None:
        """The rest."""
        with rt.subscribe(after=self.cursor) as events:
            while (event := events.poll()) is not None:
                self.take(event)


def positions(rt: Runtime) -> list[int]:
    """Of all that is committed."""
    return [event.position for event in rt._system.journal.scan(0, 10_000_000)]  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_who_leaves_and_rejoins_a_thousand_times_misses_nothing(store: str, tmp_path: Path) -> None:
    """Under load, at random points, with queues of any size, from a thread and from an event loop, each a thousand times."""
    readers = [Reader(seed) for seed in range(4)]
    with Runtime(tmp_path / "agents.db" if store == "sqlite" else None, drain=0.0) as rt:
        with load(rt, threading.Event()), ThreadPoolExecutor(4) as pool:
            reading = [pool.submit(reader.read, rt, VISITS) for reader in readers[:2]]
            reading += [pool.submit(asyncio.run, reader.aread(rt, VISITS)) for reader in readers[2:]]
            for each in reading:
                each.result(100)
        for reader in readers:
            reader.finish(rt)
            assert reader.visits == VISITS
            assert reader.seen == positions(rt), f"seed {readers.index(reader)}"


def test_a_cursor_outlives_its_runtime(tmp_path: Path) -> None:
    """Ten runtimes on one file, one after the other; the reader leaves each at a random point, or is left by it."""
    reader, late = Reader(7), Reader(8)
    path = tmp_path / "agents.db"
    for life in range(10):
        with Runtime(path, agents=[AGENT], drain=0.0) as rt, load(rt, threading.Event()):
            reader.read(rt, VISITS // 10)
            asyncio.run(late.aread(rt, VISITS // 10))
            subscription = rt.subscribe(after=reader.cursor)
            for _ in range(life * 10):
                reader.take(subscription.get(SOON))
        # Its runtime has stopped: what it holds is delivered, and the journal is read to its end.
        for event in subscription:
            reader.take(event)
    with Runtime(path, drain=0.0) as rt:
        for each in (reader, late):
            each.finish(rt)
            assert each.visits == VISITS
            assert each.seen == positions(rt)


def test_a_cursor_is_good_beside_the_owner(tmp_path: Path) -> None:
    """It may be taken from a runtime that looks on to its owner, and back, at every visit."""
    path = tmp_path / "agents.db"
    reader = Reader(9)
    with Runtime(path, drain=0.0) as rt, Runtime(path, read_only=True) as beside:
        with load(rt, threading.Event()):
            for number in range(VISITS):
                reader.read(beside if number % 2 else rt, 1)
        reader.finish(rt)
        assert reader.seen == positions(rt)


FILTERS: list[tuple[tuple[str, ...], dict[str, Any], Callable[[Any], bool]]] = [
    (("run.*",), {}, lambda event: event.type.startswith("run.")),
    ((), {"key": "agent/1"}, lambda event: event.key == "agent/1"),
    (
        ("usage.updated",),
        {"key": "agent/[02]"},
        lambda event: event.type == "usage.updated" and event.key in "agent/0 agent/2",
    ),
]


def test_a_filter_misses_nothing_of_its_own(tmp_path: Path) -> None:
    """Whatever it passes over moves no cursor, and nothing that it wants is passed over."""
    readers = [Reader(seed) for seed in range(len(FILTERS))]
    with Runtime(tmp_path / "agents.db", drain=0.0) as rt:
        with load(rt, threading.Event()):
            for _ in range(200):
                for reader, (types, options, _wants) in zip(readers, FILTERS, strict=True):
                    with rt.subscribe(*types, **{**reader.options(), **options}) as events:
                        for _ in range(reader.random.choice((0, 1, 3))):
                            reader.take(events.get(SOON))
        committed = rt._system.journal.scan(0, 10_000_000)  # pyright: ignore[reportPrivateUsage]
        for reader, (types, options, wants) in zip(readers, FILTERS, strict=True):
            with rt.subscribe(*types, after=reader.cursor, **options) as events:
                while (event := events.poll()) is not None:
                    reader.take(event)
            expected = [event.position for event in committed if wants(event)]
            assert reader.seen == expected
