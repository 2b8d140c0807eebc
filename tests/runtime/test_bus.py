"""The event bus: one ordered stream, and readers of every kind."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.logs_of import SOON, log_of, wait_for

from nitinol import Agent, Delta, Message, ModelInfo, ModelRequest, ModelResponse, Runtime, ToolContext, events, tool
from nitinol.actors.bus import EventBus, Subscription, matching_types
from nitinol.env import Env
from nitinol.errors import (
    ConfigurationError,
    ConnectionFailed,
    RuntimeStopped,
    SubscriptionClosed,
    SubscriptionOverflow,
)
from nitinol.http import Http
from nitinol.journal import MemoryJournal
from nitinol.messages import Text
from nitinol.provider import StreamPart
from nitinol.retry import Retry
from nitinol.state import AgentState
from nitinol.testing import ScriptedProvider, call, fail, say


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


def ignored(error: Exception | None) -> None:
    """Nobody waits for it."""


class Desk:
    """A journal and a bus without agents: the test says what happens."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.bus = EventBus(Env(), self.journal)
        self.journal.open("k", lambda opening: None)
        self.seq = 0

    def durable(self, count: int = 1) -> None:
        """Commit and publish durable events, each in a commit of its own."""
        for _ in range(count):
            self.seq += 1
            self._commit("k", self.seq)

    def lives(self, key: str, count: int) -> None:
        """Another agent, with so many events."""
        self.journal.open(key, lambda opening: None)
        for seq in range(1, count + 1):
            self._commit(key, seq)

    def _commit(self, key: str, seq: int) -> None:
        event = events.AgentConfigured(seq=seq, key=key, agent="a", changes={})
        self.journal.append(key, 1, [event], AgentState(key, "a"), lambda error: self.bus.publish([event]))

    def ephemeral(self, name: str = "tick") -> None:
        """Publish an ephemeral event."""
        self.bus.publish([events.Custom(name=name, payload={}, key="k", agent="a")])

    def subscribe(self, *patterns: str, **options: Any) -> Subscription:
        """Follow it."""
        return Subscription(self.bus, matching_types(patterns), **options)


def drained(subscription: Subscription) -> list[events.Event]:
    """What is there now."""
    found: list[events.Event] = []
    while (event := subscription.poll()) is not None:
        found.append(event)
    return found


class Typist:
    """A provider that types letter by letter, as the test lets it."""

    name, model = "typist", "typist-1"

    def __init__(self, letters: str) -> None:
        self.letters = letters
        self.keys = threading.Semaphore(0)
        self.typed = 0

    def info(self) -> ModelInfo:
        """Nothing."""
        return ModelInfo()

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        """One letter for each `press`."""
        for letter in self.letters:
            while not self.keys.acquire(blocking=False):
                await asyncio.sleep(0)
            self.typed += 1
            yield Delta("text", letter)
        message = Message(role="assistant", parts=(Text(self.letters),))
        yield ModelResponse(message=message, usage=None, stop_reason="end_turn")

    def press(self, count: int = 1) -> None:
        """Let it type."""
        self.keys.release(count)


# ---- order


def test_live_order_is_journal_order(rt: Runtime) -> None:
    """Whatever forty agents do at once, a subscriber sees durable events by position, each agent's by seq. parity: E1"""

    @tool
    def work() -> str:
        """Work."""
        return "done"

    script = ScriptedProvider(
        lambda request: "end" if request.messages[-1].role == "tool" else [call("work"), call("work")]
    )
    agent = Agent(name="a", model=script, tools=[work])
    with rt.subscribe(maxsize=100_000) as subscription:
        handles = [rt.start(agent).send("go") for _ in range(40)]
        for handle in handles:
            handle.result(SOON)
        seen = [event for event in drained(subscription) if event.durable]
    positions = [event.position for event in seen]
    assert positions == sorted(set(positions))
    for handle in handles:
        mine = [event.seq for event in seen if event.key == handle.key]
        assert mine == [event.seq for event in log_of(rt.get(handle.key))]


def test_an_attempts_deltas_lie_between_its_start_and_its_end(rt: Runtime) -> None:
    """Also where attempts fail and are made again. parity: E1"""
    script = ScriptedProvider(
        [
            say("lost words", chunks=5, cut=True),
            fail(ConnectionFailed()),
            [say("kept", chunks=4), call("none")],
            say("end", chunks=3),
        ]
    )
    agent = Agent(name="a", model=script, retry=Retry(base=0.0))
    with rt.subscribe("model.*", maxsize=10_000) as subscription:
        rt.start(agent).ask("go", timeout=SOON)
        seen = drained(subscription)
    current: tuple[int, int] | None = None
    text: dict[tuple[int, int], str] = {}
    for event in seen:
        at = (event.turn, event.attempt)
        match event.type:
            case "model.started":
                assert current is None
                current = at
            case "model.delta":
                assert at == current
                text[at] = text.get(at, "") + event.text
            case "model.finished" | "model.failed":
                assert at == current
                current = None
            case _:
                pass
    assert text == {(1, 1): "lost words", (1, 3): "kept", (2, 1): "end"}


def test_who_joins_late_first_gets_the_text_so_far_as_one_delta(rt: Runtime) -> None:
    """Then the rest as it comes: together it is the whole answer, whenever one joins. parity: E1"""
    typist = Typist("abcdefgh")
    ref = rt.start(Agent(name="a", model=typist))
    with rt.subscribe("model.delta") as first:
        handle = ref.send("go")
        readers: list[Subscription] = []
        for letter in "abcdefg":
            typist.press()
            event = first.get(SOON)
            assert event.type == "model.delta"
            assert event.text == letter
            readers.append(rt.subscribe("model.delta", key=ref.key))
            readers.append(rt.subscribe("model.delta", key="a/*", after=0))
        typist.press()
        handle.result(SOON)
    for number, reader in enumerate(readers):
        deltas = [event.text for event in drained(reader) if event.type == "model.delta"]
        so_far = number // 2 + 1
        # A cursor joins the live stream when it is first read: all of this attempt was over by then.
        assert deltas == (["abcdefgh"[:so_far], *"abcdefgh"[so_far:]] if number % 2 == 0 else [])


def test_a_cursor_that_joins_in_mid_attempt_gets_the_text_so_far(rt: Runtime) -> None:
    """Replay first, then the text so far, then live; and no gap is told of what came before it joined."""
    typist = Typist("abcd")
    ref = rt.start(Agent(name="a", model=typist))
    with rt.subscribe("model.delta") as first:
        handle = ref.send("go")
        typist.press(2)
        wait_for(first, "model.delta", count=2)
    with rt.subscribe(key=ref.key, after=0) as reader:
        replayed = [reader.get(SOON).type for _ in range(6)]
        assert replayed[-1] == "model.started"
        joined = reader.get(SOON)
        assert joined.type == "model.delta"
        assert joined.text == "ab"
        typist.press(2)
        handle.result(SOON)
        rest = drained(reader)
        assert [event.text for event in rest if event.type == "model.delta"] == ["c", "d"]
        assert "bus.gap" not in {event.type for event in rest}


# ---- stalled readers


@pytest.mark.parametrize("overflow", ["coalesce", "drop"])
def test_a_stalled_reader_loses_no_durable_event(overflow: Any) -> None:
    """30,000 events behind, it drains: every durable one once, in order, then live; its memory stays flat."""
    desk = Desk()
    with desk.subscribe(maxsize=100, overflow=overflow) as stalled, desk.subscribe(maxsize=10) as other:
        desk.durable(200)
        assert len(stalled.queue) == 100
        before = len(stalled.queue)
        for _ in range(300):
            desk.durable(100)
            desk.ephemeral()
        assert len(stalled.queue) == before
        desk.durable(5)
        seen = drained(stalled)
        durable = [event.seq for event in seen if event.durable]
        assert durable == list(range(1, desk.seq + 1))
        (gap,) = [event for event in seen if event.type == "bus.gap"]
        assert gap.lost == 300
        positions = [event.position for event in seen]
        assert positions == sorted(positions)
        desk.durable()
        desk.ephemeral()
        assert [event.type for event in drained(stalled)] == ["agent.configured", "custom"]
        assert [event.seq for event in drained(other) if event.durable] == list(range(1, desk.seq + 1))


def test_a_stalled_readers_memory_is_flat() -> None:
    """What it has not read is in the journal, not in its queue."""
    desk = Desk()
    with desk.subscribe(maxsize=10):
        desk.durable(100)
        sizes: list[int] = []
        for _ in range(2):
            gc.collect()
            tracemalloc.start()
            for _ in range(5000):
                desk.ephemeral()
            sizes.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
    assert max(sizes) < 100_000


def test_a_reader_that_falls_behind_again_and_again_misses_nothing() -> None:
    """Reading one for every three that come, then catching up, in several turns."""
    desk = Desk()
    seen: list[int] = []
    with desk.subscribe(maxsize=7) as reader:
        for _ in range(200):
            desk.durable(3)
            event = reader.poll()
            if event is not None and event.durable:
                seen.append(event.seq)
            if desk.seq % 150 == 0:
                seen += [event.seq for event in drained(reader) if event.durable]
        seen += [event.seq for event in drained(reader) if event.durable]
    assert seen == list(range(1, desk.seq + 1))


def test_coalesced_deltas_keep_every_letter() -> None:
    """A full queue merges deltas into its last one; nothing is lost, so no gap is told."""
    desk = Desk()
    started = events.ModelStarted(key="k", agent="a", run_id="r", provider="p", model="m", reserved=None)
    with desk.subscribe(maxsize=5) as reader:
        attempt = desk.bus.open_attempt(started)
        for letter in "the quick brown fox":
            desk.bus.publish_delta(attempt, 0, "text", letter, 0)
        assert len(reader.queue) == 5
        seen = drained(reader)
    assert "".join(event.text for event in seen if event.type == "model.delta") == "the quick brown fox"
    assert {event.type for event in seen} == {"model.delta"}


def test_different_deltas_are_never_merged() -> None:
    """Thinking, text and other runs stay apart; what finds no room is counted."""
    desk = Desk()
    started = events.ModelStarted(key="k", agent="a", run_id="r", provider="p", model="m", reserved=None)
    with desk.subscribe(maxsize=2) as reader:
        attempt = desk.bus.open_attempt(started)
        desk.bus.publish_delta(attempt, 0, "thinking", "hm", 0)
        desk.bus.publish_delta(attempt, 0, "text", "a", 0)
        desk.bus.publish_delta(attempt, 0, "thinking", "hm", 0)
        desk.bus.publish_delta(attempt, 0, "text", "b", 0)
        seen = drained(reader)
    assert [event.text for event in seen if event.type == "model.delta"] == ["hm", "ab"]
    assert [event.lost for event in seen if event.type == "bus.gap"] == [1]


def test_drop_counts_exactly_and_tells_where() -> None:
    """`bus.gap` comes before the first event behind the gap, with the exact number."""
    desk = Desk()
    with desk.subscribe(maxsize=3, overflow="drop") as reader:
        desk.durable(2)
        for number in range(10):
            desk.ephemeral(f"{number}")
        first = drained(reader)
        assert [event.type for event in first] == ["agent.configured", "agent.configured", "custom", "bus.gap"]
        gap = first[-1]
        assert gap.type == "bus.gap"
        assert (gap.lost, gap.after, gap.position) == (9, 2, 2)
        desk.ephemeral()
        desk.durable()
        assert [event.type for event in drained(reader)] == ["custom", "agent.configured"]


def test_a_cursor_taken_from_any_event_skips_nothing() -> None:
    """A reader may re-join behind whatever it saw last, a gap included."""
    desk = Desk()
    with desk.subscribe(maxsize=4, overflow="drop") as reader:
        for _ in range(50):
            desk.durable(3)
            desk.ephemeral()
        durable_seen = 0
        while (event := reader.poll()) is not None:
            durable_seen += event.durable
            with desk.subscribe(after=event.position) as again:
                rest = [other.seq for other in drained(again) if other.durable]
            assert rest == list(range(durable_seen + 1, desk.seq + 1)), event


def test_the_text_so_far_leads_no_cursor_back() -> None:
    """Who joins in mid-attempt has read what was committed since its last delta."""
    desk = Desk()
    started = events.ModelStarted(seq=1, key="k", agent="a", run_id="r", provider="p", model="m", reserved=None)
    desk.journal.append("k", 1, [started], AgentState("k", "a"), lambda error: desk.bus.publish([started]))
    desk.bus.publish_delta(desk.bus.open_attempt(started), 1, "text", "Once", 0)
    desk.seq = 1
    desk.durable()
    with desk.subscribe(after=0) as subscription:
        seen = drained(subscription)
    assert [event.type for event in seen] == ["model.started", "agent.configured", "model.delta"]
    assert [event.position for event in seen] == [1, 2, 2]


def test_close_on_overflow_ends_with_its_error() -> None:
    """What was queued is delivered, then `SubscriptionOverflow`, and nothing after the hole."""
    desk = Desk()
    reader = desk.subscribe(maxsize=3, overflow="close")
    desk.durable(5)
    assert [reader.get(SOON).seq for _ in range(2)] == [1, 2]
    desk.durable(5)
    assert reader.get(SOON).seq == 3
    for _ in range(2):
        with pytest.raises(SubscriptionOverflow, match="3 events"):
            reader.get(SOON)


# ---- cursors


def test_a_cursor_replays_and_then_follows() -> None:
    """`after=`: from the beginning, from the middle, from the end."""
    desk = Desk()
    desk.durable(20)
    for cursor in (0, 1, 19, 20):
        with desk.subscribe(after=cursor) as reader:
            seen = [event.position for event in drained(reader)]
            desk.durable()
            seen += [event.position for event in drained(reader)]
            assert seen == list(range(cursor + 1, desk.seq + 1))
    with desk.subscribe() as reader:
        assert drained(reader) == []


def test_a_thousand_rejoins_under_load_see_each_event_once() -> None:
    """While another thread publishes without pause, with switches every 10 µs: no gap, no duplicate, in order."""
    desk = Desk()
    ended = threading.Event()

    def publish() -> None:
        while not ended.is_set():
            desk.durable(3)
            desk.ephemeral()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer = threading.Thread(target=publish)
    try:
        writer.start()
        seen: list[int] = []
        cursor = 0
        for number in range(1000):
            with desk.subscribe("agent.*", after=cursor, maxsize=1 + number % 5) as reader:
                for _ in range(1 + number % 7):
                    event = reader.get(SOON)
                    cursor = event.position
                    if event.durable:
                        seen.append(event.seq)
    finally:
        ended.set()
        writer.join(SOON)
        sys.setswitchinterval(interval)
    assert seen == list(range(1, len(seen) + 1))


def test_slow_readers_under_load_see_each_event_once() -> None:
    """Four readers with tiny queues fall behind and catch up all the time: each sees the whole stream."""
    desk = Desk()
    total = 20_000

    def read(maxsize: int) -> list[int]:
        with desk.subscribe(maxsize=maxsize, after=0) as reader:
            seen: list[int] = []
            while len(seen) < total:
                event = reader.get(SOON)
                if event.durable:
                    seen.append(event.seq)
            return seen

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read, maxsize) for maxsize in (1, 2, 10, 100)]
            for _ in range(total // 10):
                desk.durable(10)
                desk.ephemeral()
            for reader in readers:
                assert reader.result(SOON) == list(range(1, total + 1))
    finally:
        sys.setswitchinterval(interval)


def test_a_cursor_is_not_held_up_by_a_forgotten_tail() -> None:
    """The last positions of the stream may belong to an agent that is forgotten: a reader still joins the live stream."""
    desk = Desk()
    desk.durable(2)
    desk.lives("gone", 20)
    desk.journal.forget("gone", ignored)
    with desk.subscribe(after=0) as reader:
        assert [event.key for event in drained(reader)] == ["k", "k"]
        desk.ephemeral()
        assert [event.type for event in drained(reader)] == ["custom"]


def test_a_key_that_was_forgotten_and_lives_again_is_in_the_stream() -> None:
    """Forgetting one life of a key takes nothing from the next."""
    desk = Desk()
    desk.lives("big", 20)
    desk.durable(4)
    desk.journal.forget("k", ignored)
    desk.journal.open("k", lambda opening: None)
    desk.seq = 0
    desk.durable(2)
    desk.journal.forget("big", ignored)  # most of the stream is dead now: it is swept
    with desk.subscribe(after=0, key="k") as reader:
        assert [event.seq for event in drained(reader)] == [1, 2]


# ---- filters


def test_patterns_keys_agents_and_runs_filter(rt: Runtime) -> None:
    """Alone and together; a glob and a plain key."""
    script = ScriptedProvider(lambda request: "ok")
    one, two = Agent(name="one", model=script), Agent(name="two", model=script)
    subscriptions = {
        "all": rt.subscribe(),
        "type": rt.subscribe("run.*"),
        "types": rt.subscribe("run.queued", "usage.*"),
        "agent": rt.subscribe("run.finished", agent="one"),
        "glob": rt.subscribe("run.finished", key="one/*"),
        "key": rt.subscribe("run.finished", key="two/a"),
        "run": rt.subscribe(run_id="mine"),
        "run and key": rt.subscribe(run_id="mine", key="one/b"),
        "nobody": rt.subscribe(run_id="mine", key="two/a"),
    }
    rt.start(one, key="one/a").ask("x", timeout=SOON)
    rt.start(one, key="one/b").ask("x", run_id="mine", timeout=SOON)
    rt.start(two, key="two/a").ask("x", timeout=SOON)
    seen = {name: drained(subscription) for name, subscription in subscriptions.items()}
    assert {event.type for event in seen["type"]} == {"run.queued", "run.started", "run.finished"}
    assert {event.type for event in seen["types"]} == {"run.queued", "usage.updated"}
    assert [event.key for event in seen["agent"]] == ["one/a", "one/b"]
    assert [event.key for event in seen["glob"]] == ["one/a", "one/b"]
    assert [event.key for event in seen["key"]] == ["two/a"]
    assert {event.run_id for event in seen["run"]} == {"mine"}
    assert seen["run and key"] == seen["run"]
    assert seen["nobody"] == []
    assert [event for event in seen["all"] if event.run_id == "mine"] == seen["run"]
    for subscription in subscriptions.values():
        subscription.close()


def test_closing_one_subscription_leaves_the_others(rt: Runtime) -> None:
    """Of the same key, of the same run, and of both."""
    ref = rt.start(Agent(name="a", model=ScriptedProvider(lambda request: "ok")), key="k")
    with rt.subscribe("run.finished", key="k") as by_key, rt.subscribe("run.finished", run_id="r") as by_run:
        rt.subscribe(run_id="r", key="k").close()
        rt.subscribe(run_id="other", key="k").close()
        rt.subscribe(key="k").close()
        double = rt.subscribe(key="other")
        double.close()
        double.close()
        ref.ask("x", run_id="r", timeout=SOON)
        assert by_key.get(SOON).run_id == "r"
        assert by_run.get(SOON).run_id == "r"
    bus = rt._system.bus  # pyright: ignore[reportPrivateUsage]
    assert (dict(bus._by_key), dict(bus._by_run), bus._everyone) == ({}, {}, [])  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("pattern", ["tools.*", "run.ended", "", "agent"])
def test_a_pattern_that_can_match_nothing_is_a_value_error(rt: Runtime, pattern: str) -> None:
    """A misspelt pattern is not a quiet stream."""
    with pytest.raises(ValueError, match="no event type matches"):
        rt.subscribe("run.*", pattern)


def test_wrong_options_of_a_subscription_are_refused(rt: Runtime) -> None:
    """Before it follows anything."""
    wrong: Any = "explode"
    with pytest.raises(ConfigurationError, match="overflow"):
        rt.subscribe(overflow=wrong)
    with pytest.raises(ConfigurationError, match="maxsize"):
        rt.subscribe(maxsize=0)


def test_a_users_own_events_are_published(rt: Runtime) -> None:
    """`publish`: ephemeral, to those who follow everything or `custom`."""
    with rt.subscribe("custom") as reader:
        rt.publish("deploy", {"version": 3})
        event = reader.get(SOON)
    assert event.type == "custom"
    assert (event.name, event.payload, event.durable) == ("deploy", {"version": 3}, False)
    assert event.ts > 0


# ---- reading


def test_get_waits_and_times_out(rt: Runtime) -> None:
    """And leaves nothing behind: a reader that polls a quiet stream for ever costs the same."""
    with rt.subscribe() as reader:
        for _ in range(50):
            with pytest.raises(TimeoutError, match="no event"):
                reader.get(timeout=0.0001)
        assert len(reader._waiters) == 0  # pyright: ignore[reportPrivateUsage]
        rt.publish("now")
        assert reader.get(SOON).type == "custom"


def test_a_cancelled_reader_leaves_nothing_behind(rt: Runtime) -> None:
    """As `get`, for coroutines; and no event is lost to the cancelled wait."""

    async def main() -> None:
        with rt.subscribe("custom") as reader:
            for _ in range(20):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.0001):
                        await reader.aget()
            assert len(reader._waiters) == 0  # pyright: ignore[reportPrivateUsage]
            rt.publish("now")
            async with asyncio.timeout(SOON):
                assert (await reader.aget()).type == "custom"

    asyncio.run(main())


def test_a_subscription_is_closed_from_another_thread(rt: Runtime) -> None:
    """The iteration of its reader ends; `get` says so."""
    reader = rt.subscribe()
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(lambda: [event.type for event in reader])
        rt.publish("one")
        reader.close()
        assert set(reading.result(SOON)) <= {"custom"}
    with pytest.raises(SubscriptionClosed):
        reader.get(SOON)

    async def iterate() -> list[str]:
        return [event.type async for event in reader]

    assert asyncio.run(iterate()) == []


def test_an_async_reader_is_closed_from_another_thread(rt: Runtime) -> None:
    """`async for` ends."""

    async def main() -> list[str]:
        async with rt.subscribe() as reader:
            threading.Timer(0.02, reader.close).start()
            return [event.type async for event in reader]

    assert asyncio.run(main()) == []


def test_two_loops_iterate_at_once(rt: Runtime) -> None:
    """Each its own subscription, in its own thread; one subscription may also move from loop to loop."""
    total = 200

    async def read(reader: Subscription, count: int) -> list[Any]:
        async with asyncio.timeout(SOON):
            return [(await anext(reader)).name for _ in range(count)]  # type: ignore[union-attr] # pyright: ignore

    with rt.subscribe("custom") as one, rt.subscribe("custom") as two, rt.subscribe("custom") as moving:
        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(asyncio.run, read(reader, total)) for reader in (one, two)]
            for number in range(total):
                rt.publish(f"{number}")
            names = [f"{number}" for number in range(total)]
            assert [reader.result(SOON) for reader in readers] == [names, names]
        assert asyncio.run(read(moving, 100)) + asyncio.run(read(moving, 100)) == names


def test_a_stopped_runtime_ends_its_streams_after_what_they_still_have() -> None:
    """Also a reader that was behind gets every durable event before its stream ends."""
    with Runtime(drain=0.0) as rt:
        ref = rt.start(Agent(name="a", model=ScriptedProvider(lambda request: "ok")))
        stalled, quick = rt.subscribe(maxsize=2, after=0), rt.subscribe(maxsize=2)
        for _ in range(5):
            ref.ask("x", timeout=SOON)
    log = [event.seq for event in log_of(ref)]
    assert [event.seq for event in stalled if event.durable] == log
    seen = [event.seq for event in quick if event.durable]
    assert seen == log[-len(seen) :]
    with pytest.raises(RuntimeStopped):
        rt.subscribe()


def test_a_stalled_subscriber_costs_the_others_nothing(rt: Runtime) -> None:
    """One reads everything while another never reads."""

    @tool
    def work(ctx: ToolContext) -> str:
        """Work."""
        for number in range(200):
            ctx.progress(number)
        return "done"

    script = ScriptedProvider(lambda request: "end" if request.messages[-1].role == "tool" else call("work"))
    ref = rt.start(Agent(name="a", model=script, tools=[work]))
    with rt.subscribe(maxsize=1) as stalled, rt.subscribe("tool.progress", maxsize=10_000) as reader:
        for _ in range(20):
            ref.ask("go", timeout=SOON)
        assert len([event for event in drained(reader) if event.type == "tool.progress"]) == 4000
        assert len(stalled.queue) <= 1
        seen = drained(stalled)
        assert sum(event.lost for event in seen if event.type == "bus.gap") >= 4000
