"""A hundred thousand asks that race with stops, crashes and actors that are given up: none hangs. Shows 3

`NITINOL_ASKS` is how many there are, for each kind of actors.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pykka
import pytest
from tests.logs_of import SOON
from tests.some_actors import KINDS, Doer, Downs, Kind, launch, made, settle, started

from nitinol.actors.actor import Inbox, ThreadInbox
from nitinol.env import Loop, LoopThread
from nitinol.errors import AgentDown, InboxFull

ASKS = int(os.environ.get("NITINOL_ASKS", "100000"))
THREADS, AT_ONCE = 4, 25
FAR = 60.0
"""Seconds: a deadline that only an ask that hangs can reach."""
ENDS = ("stop", "crash", "asked crash", "exit", "abandon")


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop that ends with the test."""
    loop = LoopThread("test-loop")
    yield loop
    assert loop.close(SOON)


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Targets:
    """Some actors, each replaced when it is down; all that were told a `Down`."""

    def __init__(self, kind: Kind, loop: Loop, count: int) -> None:
        self._kind: Kind = kind
        self._loop = loop
        self.downs: list[Downs] = []
        self.actors = [self._new() for _ in range(count)]

    def _new(self) -> Any:
        actor, downs = started(self._kind, self._loop), Downs()
        actor.watch(downs)
        self.downs.append(downs)
        return actor

    def end(self, chance: random.Random) -> None:
        """End one, in one of all ways, and put another in its place."""
        place = chance.randrange(len(self.actors))
        actor = self.actors[place]
        match chance.choice(ENDS):
            case "stop":
                actor.actor_ref.stop(block=False)
            case "crash":
                _send(actor, ValueError("crash"))
            case "asked crash":
                actor.actor_ref.ask(ValueError("crash"), block=False, timeout=FAR)
            case "exit":
                _send(actor, SystemExit(1))
            case _:
                actor.abandon()
        self.actors[place] = self._new()


def _send(actor: Doer, error: BaseException) -> None:
    try:
        actor.actor_ref.tell(error)
    except InboxFull:
        actor.abandon()


def ask(targets: Targets, seed: int, count: int, longest: list[float]) -> Counter[str]:
    """Ask, some at a time; how each ended."""
    chance, ends = random.Random(seed), Counter[str]()
    while count:
        share = min(count, AT_ONCE)
        count -= share
        answers: list[Any] = []
        for _ in range(share):
            ref = chance.choice(targets.actors).actor_ref
            try:
                answers.append(ref.ask("x", block=False, timeout=FAR))
            except InboxFull:
                ends["full"] += 1
        began = time.monotonic()
        for answer in answers:
            try:
                answer.get()
                ends["answered"] += 1
            except AgentDown:
                ends["down"] += 1
            except pykka.Timeout:
                ends["hung"] += 1
        longest.append(time.monotonic() - began)
    return ends


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_no_ask_hangs(kind: Kind, loop: Loop) -> None:
    """From four threads, while a fifth ends one actor after the other, in all ways: each is answered, or refused."""
    seed = random.randrange(1 << 30)
    print(f"seed={seed}")
    targets, done, longest = Targets(kind, loop, 8), threading.Event(), list[float]()

    def end_them() -> None:
        chance = random.Random(seed)
        while not done.is_set():
            targets.end(chance)
            chance.choice(targets.actors).actor_ref.ask("let others run", block=False, timeout=FAR)

    with ThreadPoolExecutor(THREADS + 1) as pool:
        ender = pool.submit(end_them)
        try:
            asked = [pool.submit(ask, targets, seed + n, ASKS // THREADS, longest) for n in range(THREADS)]
            ends = sum((each.result(300) for each in asked), Counter[str]())
        finally:
            done.set()
        ender.result(SOON)
    for actor in targets.actors:
        actor.actor_ref.stop()
    reasons = Counter(downs.wait().reason for downs in targets.downs)
    print(f"{kind}: {dict(ends)}, {len(targets.downs)} actors, {dict(reasons)}, longest wait {max(longest):.2f} s")
    assert ends["hung"] == 0
    assert sum(ends.values()) == ASKS // THREADS * THREADS
    assert min(ends["answered"], ends["down"]) > 0
    assert set(reasons) >= {"normal", "crash", "killed"}


@pytest.mark.parametrize("kind", KINDS)
def test_only_who_asks_one_that_hangs_waits_for_its_deadline(kind: Kind, loop: Loop) -> None:
    """Nobody gives the actor up: the one whose handler hangs ends at its deadline, those behind it too, none sooner, none never."""
    actor, go, busy = started(kind, loop), threading.Event(), threading.Event()

    def hang() -> None:
        busy.set()
        go.wait(SOON)

    hangs = actor.actor_ref.ask(hang, block=False, timeout=1.0)
    assert busy.wait(SOON)
    behind = [actor.actor_ref.ask("x", block=False, timeout=0.2) for _ in range(100)]
    for answer in (hangs, *behind):
        with pytest.raises(pykka.Timeout):
            answer.get()
    go.set()
    assert actor.actor_ref.ask("x", timeout=SOON) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_is_taken_in_the_moment_of_giving_up_is_refused(kind: Kind, loop: Loop) -> None:
    """Between the inbox and the handler nobody sees whose answer it is: who is given up there refuses it itself."""
    actor, ran = made(kind, loop), list[str]()

    class Late(Inbox):
        def get(self) -> Any:
            envelope = super().get()
            actor.abandon()
            return envelope

    class LateThread(ThreadInbox):
        def _take(self) -> Any:
            envelope = super()._take()
            actor.abandon()
            return envelope

    actor.actor_inbox = actor.actor_ref.actor_inbox = Late() if kind == "loop" else LateThread()
    answer = actor.actor_ref.ask(lambda: ran.append("ran"), block=False, timeout=SOON)
    launch(actor)
    with pytest.raises(AgentDown):
        answer.get()
    settle(actor, loop)
    assert ran == []
