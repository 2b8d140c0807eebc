"""What tests of live agents look at: an agent's log, and the events of a stream."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from nitinol import AgentRef, Runtime, events
from nitinol.actors.bus import Subscription
from nitinol.events import Event
from nitinol.journal.base import verify

SOON = 10.0
"""Seconds within which what must happen happens, also on a busy machine."""


def log_of(ref: AgentRef[Any]) -> list[Event]:
    """The durable events of an agent, through JSON and back."""
    return [events.from_dict(event) for event in ref.snapshot()["events"]]


def types_of(ref: AgentRef[Any]) -> list[str]:
    """The types of an agent's durable events."""
    return [event.type for event in log_of(ref)]


def assert_valid(ref: AgentRef[Any]) -> None:
    """The log holds what `verify` asks for, and no run was left open."""
    log = log_of(ref)
    assert verify(log) == [], log
    queued = [event.run_id for event in log if event.type == "run.queued"]
    finished = [event.run_id for event in log if event.type == "run.finished"]
    assert sorted(map(str, queued)) == sorted(map(str, finished))


def wait_for(subscription: Subscription, *types: str, count: int = 1) -> Event:
    """The `count`-th event of one of these types; the ones before it are dropped."""
    while True:
        event = subscription.get(SOON)
        if event.type in types:
            count -= 1
            if not count:
                return event


def let_sleep(rt: Runtime) -> None:
    """As if the time had passed after which whoever is idle sleeps."""
    done: Future[None] = Future()
    system = rt._system  # pyright: ignore[reportPrivateUsage]
    system.core.call(system.let_sleep, 0.0)
    system.core.call(done.set_result, None)
    done.result(SOON)
