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

from nitinol.actors.worker_pool import GRACE, KILL_GRACE, KILLED, Job, WorkerDied, WorkerPool
from nitinol.env import Env, Timer

TIMEOUT = 10.0


class Planned(Exception):
    """Breaks a worker's machinery."""


class ManualEnv(Env):
    """A clock that stands still until it is moved, and workers whose machinery breaks as a test says."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.clock = 1000.0
        self.hired = 0
        self.breaks: list[str] = []
        """Where the next workers break: "before" a job, "after" it, "idle" between two, "thread": there is none; or not."""

    def start_worker(self, actor_class: type[Any], *args: Any) -> Any:
        self.hired += 1
        breaks = self.breaks.pop(0) if self.breaks else ""
        if breaks == "thread":
            raise RuntimeError("can't start new thread")
        finished, gone = args

        class Breaking(actor_class):  # type: ignore[misc] # whichever it is
            def on_receive(self, message: Any) -> None:
                if breaks == "before":
                    raise Planned("before")
                actor_class.on_receive(self, message)
                if breaks == "idle":
                    raise Planned("idle")

        def told(*outcome: Any) -> None:
            if breaks == "after":
                raise Planned("after")
            finished(*outcome)

        return super().start_worker(Breaking, told, gone)

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
    """A job that lends its slot as it is told to, and runs until it is let go.

    Args:
        dies: Whether it ends when it is killed; `None`: it cannot be killed.
    """

    def __init__(self, name: str, *, nested: int = 0, timeout: float = 1000.0, dies: bool | None = None) -> None:
        self.endings: list[str] = []
        self.late: list[float] = []
        self._nested = nested
        self._go_on = threading.Event()
        self.job = Job(
            group=name,
            run=self._run,
            is_async=False,
            timeout=timeout,
            done=self._done,
            late=self.late.append,
            warn=None if dies is None else lambda: self.told.append("warned"),
            kill=None if dies is None else self._kill,
        )
        self.told: list[str] = []
        self.value: Any = None
        self._dies = dies
        self._killed = False

    def _done(self, ending: str, value: Any, seconds: float) -> None:
        self.endings.append(ending)
        self.value = value

    def _kill(self) -> None:
        self.told.append("killed")
        if self._dies:
            self._killed = True
            self._go_on.set()

    def _run(self) -> None:
        for _ in range(self._nested):
            self.job.lend()
        assert self._go_on.wait(SOON)
        if self._killed:
            raise InterruptedError("killed")
        for _ in range(self._nested):
            self.job.take_back()

    def go_on(self) -> None:
        """Let the function come to its end."""
        self._go_on.set()


class Bench:
    """A pool of some workers."""

    def __init__(self, size: int) -> None:
        self.env = ManualEnv()
        self.loop = ManualLoop(self.env)
        self.saturated: list[tuple[int, int]] = []
        self.pool = WorkerPool(
            self.env, self.loop, self.loop, size, lambda queued, size: self.saturated.append((queued, size))
        )
        self.works: list[Work] = []

    def submit(self, name: str, *, nested: int = 0, timeout: float = 1000.0, dies: bool | None = None) -> Work:
        """Queue a job, and wait until it has lent what it lends."""
        work = Work(name, nested=nested, timeout=timeout, dies=dies)
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


# ---- too many that hang


def test_beyond_the_cap_what_waits_is_refused_too(one: Bench) -> None:
    """Of ten jobs that hang, five strand a thread, one more than four times the pool; the others end at once, saying why."""
    works = [one.submit(f"work {number}", timeout=TIMEOUT) for number in range(10)]
    for _ in range(10):
        one.loop.advance(TIMEOUT)
    assert one.pool.abandoned == one.env.hired == 5
    assert [work.endings for work in works] == [["timeout"]] * 5 + [["refused"]] * 5
    assert "5 tools hang past their deadline" in str(works[9].value)
    late = one.submit("late")
    assert late.endings == ["refused"]
    one.come_back(works[0])
    assert one.states(one.submit("again")) == ["running"]


def test_what_can_be_killed_runs_beyond_the_cap(one: Bench) -> None:
    """It strands no thread."""
    for number in range(5):
        one.submit(f"work {number}", timeout=TIMEOUT)
        one.loop.advance(TIMEOUT)
    assert one.states(one.submit("thread"), one.submit("process", dies=True)) == ["ended", "running"]


def test_the_pool_tells_when_a_job_has_to_wait(one: Bench) -> None:
    """How many wait, and for how many workers; not of those that run at once."""
    one.submit("first")
    assert one.saturated == []
    one.submit("second")
    one.submit("third")
    assert one.saturated == [(1, 1), (2, 1)]


# ---- what can be killed


def test_a_job_that_can_be_killed_is_killed_at_its_deadline(one: Bench) -> None:
    """Its slot and its worker come back with it, none is given up, and nothing is late."""
    hangs, waits = one.submit("hangs", timeout=TIMEOUT, dies=True), one.submit("waits")
    one.loop.advance(TIMEOUT)
    one.loop.run_until(lambda: bool(hangs.endings))
    assert (hangs.endings, hangs.told, type(hangs.value)) == (["timeout"], ["killed"], InterruptedError)
    assert one.states(waits) == ["running"]
    assert (one.pool.abandoned, one.env.hired) == (0, 1)
    one.finish(waits)
    one.loop.advance(TIMEOUT)
    assert hangs.late == []


def test_a_kill_that_does_not_help_gives_the_worker_up(one: Bench) -> None:
    """After a second, as any function that hangs; its slot is free for others."""
    hangs, waits = one.submit("hangs", timeout=TIMEOUT, dies=False), one.submit("waits")
    one.loop.advance(TIMEOUT)
    assert (hangs.endings, one.states(waits)) == ([], ["queued"])
    one.loop.advance(KILLED)
    assert (hangs.endings, hangs.value, one.states(waits)) == (["timeout"], None, ["running"])
    assert (one.pool.abandoned, one.env.hired) == (1, 2)
    one.come_back(hangs)
    assert one.pool.abandoned == 0


def test_a_cancelled_job_is_warned_and_then_killed(one: Bench) -> None:
    """It has most of the run's grace: what heeds the warning keeps its result, what does not ends `cancelled`, surely."""
    heeds = one.submit("heeds", dies=True)
    one.pool.cancel(heeds.job)
    one.finish(heeds)
    assert (heeds.endings, heeds.told) == (["returned"], ["warned"])
    ignores = one.submit("ignores", dies=True)
    one.pool.cancel(ignores.job)
    one.loop.advance(KILL_GRACE - 0.01)
    assert (ignores.endings, ignores.told) == ([], ["warned"])
    one.loop.advance(0.01)
    one.loop.run_until(lambda: bool(ignores.endings))
    assert (ignores.endings, ignores.told, type(ignores.value)) == (
        ["cancelled"],
        ["warned", "killed"],
        InterruptedError,
    )
    assert KILL_GRACE < GRACE


def test_stop_kills_what_can_be_killed(one: Bench) -> None:
    """And lets go of its worker."""
    hangs = one.submit("hangs", dies=True)
    one.pool.stop()
    one.loop.run_until(lambda: bool(hangs.endings))
    assert (hangs.endings, hangs.told) == (["cancelled"], ["killed"])


# ---- workers that die


def test_a_worker_that_dies_with_its_job_done_answers_it(one: Bench) -> None:
    """The job may have taken effect: it is not run again, but ends with an error at once; another worker serves the next."""
    one.env.breaks = ["after"]
    lost, waits = one.submit("lost"), one.submit("waits")
    one.pool.lend(lost.job)  # and nobody takes it back
    borrowed = one.submit("borrowed")
    assert one.states(lost, waits, borrowed) == ["running", "running", "queued"]
    one.finish(lost)
    assert (lost.endings, type(lost.value)) == (["raised"], WorkerDied)
    assert "after" in str(lost.value)
    assert one.states(borrowed) == ["queued"]  # the slot that was lent is not there twice
    one.finish(waits)
    assert one.states(borrowed) == ["running"]
    one.finish(borrowed)
    assert borrowed.endings == ["returned"]


def test_a_job_that_had_not_begun_goes_to_another_worker(one: Bench) -> None:
    """Nobody notices that the first one died."""
    one.env.breaks = ["before", "before"]
    work = one.submit("work")
    one.finish(work)
    assert (work.endings, one.env.hired) == (["returned"], 3)
    assert one.states(one.submit("next")) == ["running"]


def test_a_worker_that_dies_idle_is_replaced(one: Bench) -> None:
    """Also if nobody has heard of it yet when the next job comes."""
    one.env.breaks = ["idle"]
    one.finish(one.submit("first"))
    work = one.submit("second")
    one.finish(work)
    assert (work.endings, one.env.hired) == (["returned"], 2)


def test_a_given_up_worker_that_dies_counts_no_more(one: Bench) -> None:
    """Its job is answered already."""
    one.env.breaks = ["after"]
    work = one.submit("work", timeout=TIMEOUT)
    one.loop.advance(TIMEOUT)
    assert one.pool.abandoned == 1
    work.go_on()
    one.loop.run_until(lambda: one.pool.abandoned == 0)
    assert work.endings == ["timeout"]


def test_without_a_thread_the_job_ends_and_its_slot_is_free(one: Bench) -> None:
    """The system has no thread for us: that call says so, and the next may have more luck."""
    one.env.breaks = ["thread"]
    work = one.submit("work")
    assert (work.endings, str(work.value)) == (["refused"], "can't start new thread")
    assert one.states(one.submit("next")) == ["running"]


def test_a_cancelled_job_whose_worker_dies_is_not_run_by_another(one: Bench) -> None:
    """It ends `cancelled`."""
    one.env.breaks = ["before"]
    work = one.submit("work")
    one.pool.cancel(work.job)
    one.loop.run_until(lambda: bool(work.endings))
    assert (work.endings, one.env.hired) == (["cancelled"], 1)


def test_groups_take_turns(one: Bench) -> None:
    """One job of each, however many one group has brought before."""
    first = one.submit("a")
    greedy = [one.submit("a") for _ in range(3)]
    modest = one.submit("b")
    one.finish(first)
    assert one.states(greedy[0], modest) == ["running", "queued"]
    one.finish(greedy[0])
    assert one.states(greedy[1], modest) == ["queued", "running"]
