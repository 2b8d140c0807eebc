"""What must be true in the end: the journal against itself, and against the books of the outside."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.runtime.test_machine_schedules import faults
from tests.simulation.disk import SimDisk
from tests.simulation.outside import GONE

from nitinol import events as ev
from nitinol.journal.audit import audit
from nitinol.journal.reader import StoreReader
from nitinol.repair import view
from nitinol.state import AgentState

if TYPE_CHECKING:
    from tests.simulation.world import World

REPLAYED = {"peek", "probe", "gated"}


def check(world: World) -> None:
    """Hold the journal that is left against everything that is known.

    By `audit`: each log by `verify`, by its fold and by the sums of its bill, and all that stands beside the logs.
    """
    from tests.simulation.world import STORE

    fail, disk = world.outside.fail, SimDisk(world.platter)
    try:
        found = audit(STORE, disk)
        reader = StoreReader(STORE, disk)
        log = reader.scan(0, 1_000_000)
        reader.close_readers()
    finally:
        disk.bury()
    for fault in found.faults:
        fail(f"{fault.key}: {fault.text}")
    world.numbers.events = len(log)
    logs: dict[str, list[ev.EventBase]] = defaultdict(list)
    for event in log:
        world.trace(f"{event.position} {zlib.crc32(ev.pack(event)):08x}")
        if event.key != GONE:
            logs[event.key].append(event)
    log = [event for event in log if event.key != GONE]
    if found.faults:
        return  # some of it cannot be folded
    for key, events in logs.items():
        state = AgentState(key, events[0].agent).fold(events)
        for wrong in [*faults(view(state.transcript)[0]), *faults(view(state.shown)[0])]:
            fail(f"{key}: its transcript is refused: {wrong}")
        held = world.committed.get(key)
        if held is not None:
            fold = AgentState(key, events[0].agent).fold(events[: held.seq])
            asleep = len(held.transcript) != held.message_count
            if held != (fold.asleep() if asleep else fold):
                fail(f"{key}: what its cell held is not the fold of its log")
    _check_runs(world, log)
    _check_model(world, log)
    _check_tools(world, log)
    _check_subscriber(world, log)


def _check_runs(world: World, log: Sequence[ev.EventBase]) -> None:
    outside, fail = world.outside, world.outside.fail
    queued = {event.run_id or "": event for event in log if isinstance(event, ev.RunQueued)}
    finished = {event.run_id or "": event for event in log if isinstance(event, ev.RunFinished)}
    cancelling = {event.run_id for event in log if isinstance(event, ev.RunCancelling)}
    for run_id in queued.keys() - finished.keys():
        fail(f"run {run_id!r} has not ended")
    for sent in outside.sent.values():
        event = queued.get(sent.run_id)
        if sent.state == "accepted" and event is None:
            fail(f"run {sent.run_id!r} was accepted, and is lost")
        if sent.state == "refused" and event is not None:
            fail(f"run {sent.run_id!r} was refused, and is there")
        if event is not None and sent.after is not None:
            before = queued.get(sent.after)
            if before is not None and before.seq > event.seq:
                fail(f"run {sent.run_id!r} was sent after {sent.after!r} was accepted, and comes before it")
    given = Counter(event.input_id for event in log if isinstance(event, ev.InputQueued))
    ended = Counter(event.input_id for event in log if isinstance(event, (ev.InputDelivered, ev.InputDropped)))
    for input_id, (run_id, mode, words) in outside.inputs.items():
        if given[input_id] != 1 or ended[input_id] != 1:
            fail(f"{mode} {words!r} to {run_id!r}: accepted {given[input_id]} times, settled {ended[input_id]} times")
    for input_id in given:
        if given[input_id] != 1 or ended[input_id] != 1:
            fail(f"input {input_id}: accepted {given[input_id]} times, settled {ended[input_id]} times")
    for run_id in outside.cancelled:
        if run_id not in cancelling and run_id not in finished:
            fail(f"run {run_id!r}: its cancel was accepted, and is lost")
    resolved = {
        (event.run_id, event.call_id, event.decision) for event in log if isinstance(event, ev.ApprovalResolved)
    }
    for decision in outside.resolved:
        if decision not in resolved:
            fail(f"{decision}: the decision was accepted, and is lost")
    counted = Counter((event.key, event.type) for event in log)
    for (key, kind), count in outside.counted.items():
        if counted[key, kind] < count:
            fail(f"{key}: {count} times {kind} was accepted, {counted[key, kind]} are there")
    for run_id, (status, text) in outside.results.items():
        end = finished.get(run_id)
        if end is None or (end.status, end.text) != (status, text):
            fail(f"run {run_id!r}: its result was given as {status} {text!r}, and is {end!r}")


def _check_model(world: World, log: Sequence[ev.EventBase]) -> None:
    outside, fail = world.outside, world.outside.fail
    started: Counter[tuple[str, int, int]] = Counter()
    answered: set[tuple[str, int, int]] = set()
    rows: dict[tuple[str, int, int], list[ev.UsageUpdated]] = defaultdict(list)
    for event in log:
        at = (event.run_id or "", event.turn, event.attempt)
        match event:
            case ev.ModelStarted():
                started[at] += 1
            case ev.ModelFinished():
                answered.add(at)
            case ev.UsageUpdated():
                rows[at].append(event)
            case _:
                pass
    for at in outside.requests:
        if started[at] != 1:
            fail(f"attempt {at} was sent, and {started[at]} times started")
        if len(rows[at]) != 1:
            fail(f"attempt {at} was sent, and has {len(rows[at])} rows in the bill")
    for at in answered:
        told = outside.told.get(at)
        if at not in outside.told:
            fail(f"attempt {at} was answered, and nobody asked")
        elif told is not None and rows[at][0].usage != told:
            fail(f"attempt {at} took {told}, and was billed {rows[at][0].usage}")


def _check_tools(world: World, log: Sequence[ev.EventBase]) -> None:
    outside, fail = world.outside, world.outside.fail
    keys: dict[tuple[str | None, int, str | None], str] = {}
    started: Counter[str] = Counter()
    for event in log:
        at = (event.run_id, event.turn, event.call_id)
        match event:
            case ev.ToolRequested():
                keys[at] = event.idempotency_key
            case ev.ToolStarted():
                started[keys[at]] += 1
                if started[keys[at]] > 1 and event.name not in REPLAYED:
                    fail(f"{event.name} {keys[at]} is never replayed, and was")
            case ev.ToolFinished():
                key = keys.get(at, "")
                done = outside.executions.get(key, [])
                if event.outcome == "ok" and event.text not in [each.text for each in done]:
                    fail(f"{event.name} {key} is said to have done {event.text!r}; it did {done}")
                if event.outcome in ("uncertain", "timeout") and not started[key]:
                    fail(f"{event.name} {key} is {event.outcome}, and never started")
                if event.outcome in ("denied", "blocked") and done:
                    fail(f"{event.name} {key} was {event.outcome}, and ran")
            case _:
                pass
    for key, done in outside.executions.items():
        if started[key] < len(done):
            fail(f"{done[0].name} {key} ran {len(done)} times, and was started {started[key]} times")


def _check_subscriber(world: World, log: Sequence[ev.EventBase]) -> None:
    fail = world.outside.fail
    seen = [event for event in world.outside.seen if event.key != GONE]
    for mine, theirs in zip(seen, log, strict=False):
        if mine.position != theirs.position or mine.type != theirs.type or ev.pack(mine) != ev.pack(theirs):
            fail(f"the subscriber saw {mine.position} {mine!r}; the journal has {theirs.position} {theirs!r}")
            return
    if len(seen) != len(log):
        fail(f"the subscriber saw {len(seen)} durable events; the journal has {len(log)}")
