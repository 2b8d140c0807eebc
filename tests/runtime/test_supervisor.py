"""The supervisor of agents, on a clock and timers of the test's own: each row of supervision.md's table "Restart"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.manual import ALMOST_ONE, ManualEnv, ManualLoop

from nitinol.actors.actor import Down
from nitinol.actors.agent_supervisor import AgentSupervisor, Crashed, Gone
from nitinol.actors.patience import Patience
from nitinol.actors.supervisor import Wake

INTENSITY, PERIOD, HEALTHY = 5, 60.0, 60.0
BASE, CAP = 0.1, 30.0


@dataclass(slots=True, eq=False)
class Child:
    """A child that writes down what its supervisor asks of it."""

    key: str
    restarts: list[tuple[int, float, bool]] = field(default_factory=list[tuple[int, float, bool]])
    parks: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def restart(self, restarts: int, delay: float, by_hand: bool) -> None:
        self.restarts.append((restarts, delay, by_hand))

    def park(self, restarts: int, reason: str) -> None:
        self.parks.append((restarts, reason))


class Bench:
    """A supervisor with nothing real around it."""

    def __init__(self) -> None:
        self.env = ManualEnv()
        self.loop = ManualLoop(self.env)
        self.downs: list[Down] = []
        self.supervisor = AgentSupervisor(self.env, self.loop)
        self.supervisor.watch(self.downs.append)
        self.supervisor.launch()
        self.loop.run()

    def tell(self, message: Any) -> None:
        """Send the supervisor a message, and let it handle it."""
        self.supervisor.post(message)
        self.loop.run()

    def crash(self, child: Child, reason: str = "boom") -> None:
        """The child crashes now."""
        self.tell(Crashed(child, reason))

    def wait_out(self, child: Child) -> float:
        """Move the clock to the child's restart; how long it took."""
        before, since = len(child.restarts), self.env.clock
        while len(child.restarts) == before:
            assert self.loop.pending(), "no restart will come"
            assert self.env.clock - since < 2 * CAP, "the restart is too long in coming"
            self.loop.advance(0.005)
        return self.env.clock - since

    def crash_and_restart(self, child: Child) -> float:
        """The child crashes and is restarted; after what delay, as the child was told."""
        self.crash(child)
        self.wait_out(child)
        return child.restarts[-1][1]

    def crash_until_parked(self, child: Child) -> None:
        """The child crashes as soon as it lives, until it is parked."""
        parks = len(child.parks)
        for _ in range(INTENSITY):
            self.crash_and_restart(child)
        self.crash(child)
        assert len(child.parks) == parks + 1


@pytest.fixture
def bench() -> Bench:
    return Bench()


def longest(crashes_in_a_row: int) -> float:
    """The delay after so many crashes in a row, with all the chance there is."""
    return ALMOST_ONE * min(CAP, BASE * 2.0 ** (crashes_in_a_row - 1))


# -- intensity and period


def test_five_crashes_in_a_period_are_restarted_and_the_sixth_parks(bench: Bench) -> None:
    """intensity 5: the child is told how often it was restarted and why no more; no restart comes any more."""
    child = Child("a")
    for number in range(1, INTENSITY + 1):
        bench.crash_and_restart(child)
        assert (len(child.restarts), child.restarts[-1][0], child.parks) == (number, number, [])
    bench.crash(child, "the last straw")
    assert [restarts for restarts, _ in child.parks] == [INTENSITY]
    assert "the last straw" in child.parks[0][1]
    assert bench.loop.pending() == 0
    bench.loop.advance(10 * PERIOD)
    assert (len(child.restarts), len(child.parks)) == (INTENSITY, 1)


@pytest.mark.parametrize(("after", "parked"), [(PERIOD - 0.5, True), (PERIOD + 0.5, False)])
def test_a_crash_counts_for_one_period(bench: Bench, after: float, parked: bool) -> None:
    """period 60 s: the sixth crash parks while the first is younger than that, and not when it is older."""
    child = Child("a")
    bench.env.chance = 0.0  # restarts at once: the crashes are where the test puts them
    first = bench.env.clock
    for _ in range(INTENSITY):
        bench.crash(child)
        bench.loop.advance(1.0)
    bench.loop.advance(first + after - bench.env.clock)
    bench.crash(child)
    bench.loop.advance(0.0)
    assert (len(child.restarts), len(child.parks)) == ((INTENSITY, 1) if parked else (INTENSITY + 1, 0))


def test_a_child_that_crashes_seldom_is_never_parked(bench: Bench) -> None:
    """Old crashes leave the period one by one: it is a window that moves, however long the child's record."""
    child = Child("a")
    bench.env.chance = 0.0
    for number in range(1, 101):
        bench.crash(child)
        bench.loop.advance(PERIOD / INTENSITY + 0.1)
        assert (len(child.restarts), child.parks) == (number, [])


# -- backoff


def test_the_delay_doubles_with_each_crash_in_a_row_up_to_the_cap(bench: Bench) -> None:
    """backoff 0.1 to 30 s: the longest delays, as the child is told them, and as they pass on the clock.

    The child lives for 40 seconds each time: too seldom a crash to be parked, too short a life to be healthy, though
    with the delay it is more than 60 seconds from crash to crash.
    """
    child = Child("a")
    told: list[float] = []
    for number in range(1, 15):
        bench.crash(child)
        assert len(child.restarts) == number - 1
        passed = bench.wait_out(child)
        told.append(child.restarts[-1][1])
        assert passed == pytest.approx(told[-1], abs=0.006)
        bench.loop.advance(40.0)
    assert told == [longest(number) for number in range(1, 15)]
    assert told[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert told[8:] == pytest.approx([25.6, 30.0, 30.0, 30.0, 30.0, 30.0])


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5])
def test_the_jitter_is_full(bench: Bench, chance: float) -> None:
    """A delay is a random share of its longest, from nothing at all."""
    child = Child("a")
    bench.env.chance = chance
    delays = [bench.crash_and_restart(child) for _ in range(INTENSITY)]
    assert delays == pytest.approx([chance * BASE * 2.0**number for number in range(INTENSITY)])


def test_a_restart_waits_for_its_delay(bench: Bench) -> None:
    """Not a moment before; then once."""
    child = Child("a")
    bench.crash(child)
    bench.loop.advance(longest(1) * 0.99)
    assert child.restarts == []
    bench.loop.advance(longest(1) * 0.02)
    assert child.restarts == [(1, longest(1), False)]
    bench.loop.advance(10 * CAP)
    assert len(child.restarts) == 1


# -- healthy


def test_a_healthy_minute_resets_the_backoff(bench: Bench) -> None:
    """healthy 60 s: after less the delay goes on doubling, after more it begins anew."""
    child = Child("a")
    assert [bench.crash_and_restart(child) for _ in range(3)] == [longest(1), longest(2), longest(3)]
    bench.loop.advance(HEALTHY - 0.5)
    assert bench.crash_and_restart(child) == longest(4)
    bench.loop.advance(HEALTHY + 0.5)
    assert [bench.crash_and_restart(child) for _ in range(2)] == [longest(1), longest(2)]


# -- wake


@pytest.mark.parametrize("by_hand", [False, True])
def test_wake_cuts_a_delay_short(bench: Bench, by_hand: bool) -> None:
    """A child in backoff is restarted now, and its timer does not restart it a second time."""
    child = Child("a")
    bench.crash(child)
    now = bench.env.clock
    bench.tell(Wake(child, by_hand=by_hand))
    assert (len(child.restarts), child.restarts[0][0], bench.env.clock) == (1, 1, now)
    assert bench.loop.pending() == 0
    bench.loop.advance(10 * CAP)
    assert len(child.restarts) == 1


def test_a_delay_cut_short_counts_like_any_other(bench: Bench) -> None:
    """Waking a child again and again goes around neither the backoff nor the intensity."""
    child = Child("a")
    for _ in range(INTENSITY):
        bench.crash(child)
        bench.tell(Wake(child, by_hand=False))
    assert [delay for _, delay, _ in child.restarts] == [longest(number) for number in range(1, INTENSITY + 1)]
    bench.crash(child)
    assert len(child.parks) == 1


def test_wake_leaves_a_child_alone_that_lives(bench: Bench) -> None:
    """Neither one that never crashed nor one that was restarted is started twice."""
    stranger, restarted = Child("a"), Child("b")
    bench.crash_and_restart(restarted)
    bench.tell(Wake(stranger, by_hand=False))
    for by_hand in (False, True):
        bench.tell(Wake(restarted, by_hand=by_hand))
    bench.loop.advance(10 * CAP)
    assert (len(stranger.restarts), len(restarted.restarts)) == (0, 1)
    assert bench.downs == []


def test_only_a_wake_by_hand_takes_a_child_out_of_the_park(bench: Bench) -> None:
    """Somebody's need does not; `resume` does, at once, and the child is told so."""
    child = Child("a")
    bench.crash_until_parked(child)
    bench.tell(Wake(child, by_hand=False))
    bench.loop.advance(10 * PERIOD)
    assert len(child.restarts) == INTENSITY
    bench.tell(Wake(child, by_hand=True))
    assert [(restarts, by_hand) for restarts, _, by_hand in child.restarts[INTENSITY:]] == [(INTENSITY + 1, True)]
    bench.tell(Wake(child, by_hand=True))
    assert len(child.restarts) == INTENSITY + 1


def test_a_wake_by_hand_clears_the_crashes(bench: Bench) -> None:
    """In the same period: five more crashes are restarted, the sixth parks again."""
    child = Child("a")
    bench.env.chance = 0.0
    first = bench.env.clock
    bench.crash_until_parked(child)
    bench.tell(Wake(child, by_hand=True))
    bench.crash_until_parked(child)
    assert bench.env.clock - first < PERIOD
    assert len(child.restarts) == 2 * INTENSITY + 1
    assert [by_hand for _, _, by_hand in child.restarts].count(True) == 1


# -- one for one


def test_a_sibling_never_notices(bench: Bench) -> None:
    """one for one: neither crashes, nor the park, nor waking or forgetting one child touches another's record."""
    one, other = Child("one"), Child("other")
    bench.crash_until_parked(one)
    assert (other.restarts, other.parks) == ([], [])
    bench.crash(other)
    bench.tell(Wake(one, by_hand=True))
    bench.tell(Gone("one"))
    assert (other.restarts, bench.loop.pending()) == ([], 1)
    bench.wait_out(other)
    assert other.restarts == [(1, longest(1), False)]
    assert (len(one.restarts), len(one.parks), other.parks) == (INTENSITY + 1, 1, [])


# -- gone


def test_who_is_gone_is_not_restarted(bench: Bench) -> None:
    """transient: a child that was stopped while it waited for its restart stays stopped."""
    child = Child("a")
    bench.crash(child)
    bench.tell(Gone("a"))
    assert bench.loop.pending() == 0
    bench.tell(Wake(child, by_hand=False))
    bench.loop.advance(10 * CAP)
    assert (child.restarts, child.parks) == ([], [])


def test_the_next_child_of_a_key_starts_with_a_clean_record(bench: Bench) -> None:
    """Gone forgets crashes, restarts, backoff and park; a key that was never heard of may be gone too."""
    first, second = Child("a"), Child("a")
    bench.tell(Gone("a"))
    bench.crash_until_parked(first)
    bench.tell(Gone("a"))
    for number in range(1, INTENSITY + 1):
        bench.crash_and_restart(second)
        assert second.restarts[-1] == (number, longest(number), False)
    assert second.parks == []
    assert (len(first.restarts), len(first.parks)) == (INTENSITY, 1)
    assert bench.downs == []


# -- its own end


def test_a_message_it_does_not_know_crashes_it(bench: Bench) -> None:
    """Whoever started it is told once, with the error; it handles nothing after that."""
    child = Child("a")
    bench.tell("nonsense")
    assert [type(down.error) for down in bench.downs] == [TypeError]
    assert "'nonsense'" in str(bench.downs[0].error)
    bench.crash(child)
    bench.loop.advance(10 * CAP)
    assert (child.restarts, len(bench.downs)) == ([], 1)


def test_the_delay_has_no_end_of_its_numbers(bench: Bench) -> None:
    """A child that crashes for hours, always just seldom enough: the longest delay, and never an error of arithmetic."""
    patience = Patience(intensity=1, period=1.0)
    for number in range(5000):
        assert patience.crash(40.0 * number, 1.0) is not None
        patience.restart()
        patience.up(40.0 * number + 1.0)
    assert patience.delay == CAP
