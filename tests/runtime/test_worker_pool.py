"""The worker pool's slots, counted: real workers, but a core loop and a clock that only the test moves."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.logs_of import SOON

from nitinol.actors.worker_pool import Job, WorkerPool
from nitinol.env import Env, Timer

TIMEOUT = 10.0


class ManualEnv(Env):
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.clock = 1000.0

    def monotonic(self) -> float:
        return self.clock


@dataclass(slots=True, eq=False)
class ManualTimer:
    """A call that is made when the clock has come to `due`."""

    due: float
    function: Callable[..., object]
    args: tuple[Any, ...]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualLoop:
    """A `Loop` in the test's thread; workers may call it from theirs."""

    name = "manual"

    def __init__(self, env: ManualEnv) -> None:
        self._env = env
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.SimpleQueue()
        self._timers: list[ManualTimer] = []

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        self._calls.put((function, args))
        return True

    def call_later(self, delay: float, function: Callable[..., object], *args: Any) -> Timer:
        timer = ManualTimer(self._env.clock + delay, function, args)
        self._timers.append(timer)
        return timer

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        raise NotImplementedError("these jobs are functions")

    def is_current(self) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Make calls as they come, until it is true."""
        while not condition():
            function, args = self._calls.get(timeout=SOON)
            function(*args)

    def advance(self, seconds: float) -> None:
        """Move the clock, then make the calls that are due."""
        self._env.clock += seconds
        due = [timer for timer in self._timers if timer.due <= self._env.clock]
        self._timers = [timer for timer in self._timers if timer not in due]
        for timer in sorted(due, key=lambda timer: timer.due):
            if not timer.cancelled:
                timer.function(*timer.args)


class Work:
    """A job that lends its slot as it is told to, and runs until it is let go."""

    def __init__(self, name: str, *, nested: int = 0, timeout: float = 1000.0) -> None:
        self.endings: list[str] = []
        self.late: list[float] = []
        self._nested = nested
        self._go_on = threading.Event()
        self.job = Job(
            group=name,
            run=self._run,
            is_async=False,
            timeout=timeout,
            done=lambda ending, value, seconds: self.endings.append(ending),
            late=self.late.append,
        )

    def _run(self) -> None:
        for _ in range(self._nested):
            self.job.lend()
        assert self._go_on.wait(SOON)
        for _ in range(self._nested):
            self.job.take_back()

    def go_on(self) -> None:
        """Let the function come to its end."""
        self._go_on.set()


class Bench:
    """A pool of some workers."""

    def __init__(self, size: int) -> None:
        env = ManualEnv()
        self.loop = ManualLoop(env)
        self.pool = WorkerPool(env, self.loop, self.loop, size)
        self.works: list[Work] = []

    def submit(self, name: str, *, nested: int = 0, timeout: float = 1000.0) -> Work:
        """Queue a job, and wait until it has lent what it lends."""
        work = Work(name, nested=nested, timeout=timeout)
        self.works.append(work)
        self.pool.submit(work.job)
        if work.job.state == "running":
            self.loop.run_until(lambda: work.job.lent == nested)
        return work

    def finish(self, work: Work) -> None:
        """Let a job come to its end, and hear of it."""
        work.go_on()
        self.loop.run_until(lambda: bool(work.endings))

    def come_back(self, work: Work) -> None:
        """Let the function of a job that was given up come to its end, and hear of it."""
        work.go_on()
        self.loop.run_until(lambda: bool(work.late))

    def states(self, *works: Work) -> list[str]:
        """Where the jobs are."""
        return [work.job.state for work in works]


@pytest.fixture
def one() -> Iterator[Bench]:
    """A pool of one worker; at the end of the test its threads may end too."""
    bench = Bench(1)
    yield bench
    bench.pool.stop()
    for work in bench.works:
        work.go_on()


def test_a_lent_slot_is_used_and_comes_back(one: Bench) -> None:
    """While a job waits for others one more runs, however deep it waits; when it goes on, none does."""
    lender = one.submit("lender", nested=3)
    borrower, third = one.submit("borrower"), one.submit("third")
    assert one.states(lender, borrower, third) == ["running", "running", "queued"]
    one.finish(borrower)
    assert one.states(lender, third) == ["running", "running"]
    one.finish(lender)
    fourth = one.submit("fourth")
    assert one.states(third, fourth) == ["running", "queued"]
    one.finish(third)
    assert one.states(fourth) == ["running"]


@pytest.mark.parametrize("nested", [1, 3])
@pytest.mark.parametrize("ending", ["timeout", "cancelled"])
def test_the_slot_lent_by_a_job_that_is_given_up_does_not_come_back_twice(one: Bench, ending: str, nested: int) -> None:
    """A job lends its slot and is given up: it frees one slot, the pool's own, and not the one it lent as well.

    When the function comes back after all and takes back what it lent, it takes nothing from the pool.
    """
    lender = one.submit("lender", nested=nested, timeout=TIMEOUT)
    borrower, third = one.submit("borrower"), one.submit("third")
    assert one.states(lender, borrower, third) == ["running", "running", "queued"]
    if ending == "cancelled":
        one.pool.cancel(lender.job, grace=TIMEOUT)
    one.loop.advance(TIMEOUT)
    assert lender.endings == [ending]
    assert one.pool.abandoned == 1
    # The borrower has the pool's only slot now.
    assert one.states(borrower, third) == ["running", "queued"]

    one.come_back(lender)
    assert (lender.late, lender.endings, one.pool.abandoned) == ([0.0], [ending], 0)
    assert one.states(borrower, third) == ["running", "queued"]
    one.finish(borrower)
    fourth = one.submit("fourth")
    assert one.states(third, fourth) == ["running", "queued"]
    one.finish(third)
    assert one.states(fourth) == ["running"]
    one.finish(fourth)
    assert (third.endings, fourth.endings) == (["returned"], ["returned"])


def test_jobs_given_up_with_their_slots_lent_do_not_widen_the_pool(one: Bench) -> None:
    """However often it happens, as many run at once as the pool has slots."""
    for number in range(3):
        lender = one.submit(f"lender {number}", nested=1, timeout=TIMEOUT)
        one.loop.advance(TIMEOUT)
        assert lender.endings == ["timeout"]
    works = [one.submit(f"work {number}") for number in range(4)]
    assert one.states(*works) == ["running", "queued", "queued", "queued"]


def test_a_job_given_up_with_its_slot_in_use_frees_it(one: Bench) -> None:
    """One that lent nothing, and one that had taken its slot back, give the pool's slot to the next."""
    plain = one.submit("plain", timeout=TIMEOUT)
    waiting = one.submit("waiting")
    assert one.states(plain, waiting) == ["running", "queued"]
    one.loop.advance(TIMEOUT)
    assert (plain.endings, one.states(waiting)) == (["timeout"], ["running"])
    one.pool.lend(waiting.job)
    one.pool.take_back(waiting.job)
    one.pool.cancel(waiting.job, grace=TIMEOUT)
    one.loop.advance(TIMEOUT)
    works = [one.submit("first"), one.submit("second")]
    assert (waiting.endings, one.states(*works)) == (["cancelled"], ["running", "queued"])
