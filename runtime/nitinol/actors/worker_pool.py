"""The worker pool: bounded, fair, supervised. Functions run on worker actors with a thread each, coroutines on the user loop.

A worker that is past its job's deadline is given up: the job is answered, another worker takes its place, and when the
function comes back after all, its result is reported as late and its thread ends. Python cannot stop a thread. A job that
waits for a process can be stopped: its process is killed, its worker comes back at once.

The pool supervises its workers: one that dies by itself is replaced, and its job answered, or given to another worker if
it had not begun.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pykka

from nitinol.actors.actor import ThreadActor
from nitinol.env import Env, Loop, Timer
from nitinol.logs import get_logger

Ending = Literal["returned", "raised", "timeout", "cancelled", "refused"]

ABANDONED = 4
"""Given-up threads the pool bears, as a multiple of its size; beyond it, thread jobs are refused."""
COROUTINES = 64
"""Coroutines that may run at once, as a multiple of the pool's size."""
GRACE = 2.0
"""Seconds that a cancelled function has."""
KILL_GRACE = 1.75
"""Seconds that one has which can be killed: a run waits 2 s for what it has cancelled, and the kill must be seen by then."""
KILLED = 1.0
"""Seconds within which a killed job has ended; only a process that hangs in the kernel takes longer, and is given up."""

_local = threading.local()


@dataclass(slots=True, eq=False)
class Job:
    """Something to run. All callbacks come on the core loop.

    Args:
        group: Groups take turns, so that one agent's hundred calls do not hold up another's one.
        run: The function; or, with `is_async`, what makes the coroutine.
        timeout: Seconds from the slot.
        done: Told once how it ended, with the value or the exception, and after how many seconds in the slot.
        grant: Asked when there is a slot; it answers `proceed(True)` to run, `proceed(False)` to give the slot back.
        late: Told when a job that was given up comes back, and how many seconds after.
        warn: Tells the function that its job is cancelled, where it cannot see that by itself. Must not block.
        kill: Makes the function raise, at once, where that can be done. Must not block.
    """

    group: str
    run: Callable[[], Any]
    is_async: bool
    timeout: float
    done: Callable[[Ending, Any, float], None]
    grant: Callable[[Callable[[bool], None]], None] | None = None
    late: Callable[[float], None] | None = None
    warn: Callable[[], None] | None = None
    kill: Callable[[], None] | None = None
    state: Literal["queued", "granting", "running", "ended"] = "queued"
    cancelled: bool = False
    started_at: float = 0.0
    ended_at: float = 0.0
    timer: Timer | None = None
    task: asyncio.Task[Any] | None = None
    began: bool = False
    """A worker has taken it: it must not run again. Set in the worker's thread."""
    killed: Ending | None = None
    """It was killed, for that reason, and has not ended yet."""
    pool: WorkerPool | None = None
    """Where it runs; set by `submit`."""
    lent: int = 0
    """How many calls of this job wait for others; while any does, its slot is lent out."""

    def lend(self) -> None:
        """The job waits for other jobs: its slot may be used meanwhile. From the job's thread."""
        if self.pool is not None:
            self.pool.core.call(self.pool.lend, self)

    def take_back(self) -> None:
        """The job goes on. From the job's thread."""
        if self.pool is not None:
            self.pool.core.call(self.pool.take_back, self)


class Worker(ThreadActor):
    """Runs one job after another on its own daemon thread. Nothing that a job raises escapes.

    Args:
        finished: Told of a job's end: the worker, the job, whether it returned, and the value or the exception. It answers
            False where it cannot be told any more.
        gone: Told when its thread ends, in whatever way.
    """

    waits = True

    def __init__(
        self, finished: Callable[[Any, Job, bool, Any], object], gone: Callable[[Any, BaseException | None], object]
    ) -> None:
        super().__init__()
        self._finished, self._gone = finished, gone

    def on_receive(self, message: Any) -> None:
        job: Job = message
        job.began = True
        _local.job = job
        try:
            value, returned = job.run(), True
        except BaseException as error:  # SystemExit, KeyboardInterrupt, MemoryError: a job's end, never the worker's
            value, returned = error, False
        finally:
            _local.job = None
        if self._finished(self.actor_ref, job, returned, value) is False:
            self.stop()  # nobody is there any more who would say so

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self._died = exception_value

    _died: BaseException | None = None

    def _actor_loop(self) -> None:
        # Around everything: an exception that another thread sets in this one can come between any two lines.
        try:
            super()._actor_loop()
        except BaseException as error:
            self._died = error
        finally:
            self.actor_stopped.set()
            self._gone(self.actor_ref, self._died)


class WorkerDied(Exception):
    """The worker of a job died, otherwise than by being told. Not the job's doing."""


class _Lane:
    """Jobs of one kind, their queue by groups, and the slots they share."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.busy = 0
        self._groups: dict[str, deque[Job]] = {}
        self._turns: deque[str] = deque()
        self.queued = 0

    def put(self, job: Job) -> None:
        waiting = self._groups.get(job.group)
        if waiting is None:
            waiting = self._groups[job.group] = deque()
            self._turns.append(job.group)
        waiting.append(job)
        self.queued += 1

    def drop(self, job: Job) -> None:
        """Forget a job that waits."""
        waiting = self._groups[job.group]
        waiting.remove(job)
        self.queued -= 1
        if not waiting:
            del self._groups[job.group]
            self._turns.remove(job.group)

    def take(self) -> Job | None:
        """The next job, if there is a slot for it."""
        if not self._turns or self.busy >= self.slots:
            return None
        group = self._turns.popleft()
        waiting = self._groups[group]
        job = waiting.popleft()
        self.queued -= 1
        if waiting:
            self._turns.append(group)
        else:
            del self._groups[group]
        return job


class WorkerPool:
    """On the core loop only, but for `current_job`.

    Args:
        core: Where the callbacks come.
        user: Where coroutines run.
        size: Worker threads.
        saturated: Told when a thread job has to wait: jobs waiting, and the size.
    """

    def __init__(
        self, env: Env, core: Loop, user: Loop, size: int, saturated: Callable[[int, int], None] | None = None
    ) -> None:
        self.env, self.core, self.user, self.size = env, core, user, size
        self.abandoned = 0
        self._threads, self._coroutines = _Lane(size), _Lane(size * COROUTINES)
        self._idle: list[Any] = []
        self._workers: dict[Any, Job | None] = {}
        """Those that live, and what they are at. One that was told to stop is not among them."""
        self._saturated = saturated
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Queue a job. It is refused at once if the pool has stopped, or bears no more given-up threads."""
        job.pool = self
        if self._stopped:
            self._end(job, "refused", RuntimeError("the runtime is stopping"))
            return
        if self._refuses(job):
            return
        lane = self._lane(job)
        lane.put(job)
        self._dispatch(lane)
        if job.state == "queued" and not job.is_async and self._saturated is not None:
            self._saturated(lane.queued, self.size)

    def cancel(self, job: Job, grace: float | None = None) -> None:
        """Stop a job: one that waits is `cancelled` at once, a coroutine is cancelled, a function has `grace` seconds.

        By default these are `GRACE`, or `KILL_GRACE` if it can be killed.
        """
        if job.state == "ended" or job.cancelled:
            return
        if grace is None:
            grace = GRACE if job.kill is None else KILL_GRACE
        job.cancelled = True
        if job.state == "queued":
            self._lane(job).drop(job)
        if job.state in ("queued", "granting"):
            self._end(job, "cancelled", None)
        elif job.is_async:
            self.user.call(_cancel_task, job)
        elif job.warn is not None:
            job.warn()
        if job.state == "running":
            if job.timer is not None:
                job.timer.cancel()
            job.timer = self.core.call_later(grace, self._give_up, job, "cancelled")

    def lend(self, job: Job) -> None:
        """The job waits for other jobs: its slot may be used meanwhile."""
        job.lent += 1
        if job.lent == 1 and job.state == "running":
            self._threads.slots += 1
            self._dispatch(self._threads)

    def take_back(self, job: Job) -> None:
        """The job goes on."""
        job.lent -= 1
        if job.lent == 0 and job.state == "running":
            self._threads.slots -= 1

    def stop(self) -> None:
        """Refuse what waits and what comes, kill what can be killed; idle workers end, the others when their job does."""
        self._stopped = True
        for lane in (self._threads, self._coroutines):
            lane.slots = 1 << 30
            while (job := lane.take()) is not None:
                self._end(job, "cancelled", None)
            lane.slots = 0
        idle, self._idle = self._idle, []
        for worker in idle:
            self._dismiss(worker)
        for job in list(self._workers.values()):
            if job is not None and job.kill is not None:
                job.cancelled = True
                self._give_up(job, "cancelled")

    def _refuses(self, job: Job) -> bool:
        """Whether too many threads hang for one more function; then its job is over. One that can be killed leaves none."""
        if job.is_async or job.kill is not None or self.abandoned <= self.size * ABANDONED:
            return False
        error = RuntimeError(f"{self.abandoned} tools hang past their deadline; no thread is left")
        self._end(job, "refused", error)
        return True

    def _lane(self, job: Job) -> _Lane:
        return self._coroutines if job.is_async else self._threads

    def _dispatch(self, lane: _Lane) -> None:
        while (job := lane.take()) is not None:
            if self._refuses(job):  # they have come to hang while it waited
                continue
            lane.busy += 1
            job.state = "granting"
            if job.grant is None:
                self._start(job)
            else:
                job.grant(partial(self._granted, job))

    def _granted(self, job: Job, granted: bool) -> None:
        if granted:
            self._start(job)
            return
        lane = self._lane(job)
        lane.busy -= 1
        job.state = "ended"
        self._dispatch(lane)

    def _start(self, job: Job) -> None:
        if job.state != "granting" or self._stopped:  # it was cancelled while its grant was under way
            if job.state == "granting":
                self._end(job, "cancelled", None)
            lane = self._lane(job)
            lane.busy -= 1
            self._dispatch(lane)
            return
        job.state = "running"
        job.started_at = self.env.monotonic()
        job.timer = self.core.call_later(job.timeout, self._give_up, job, "timeout")
        if job.is_async:
            self.user.call(self._begin_coroutine, job)
        else:
            self._hand_over(job)

    def _hand_over(self, job: Job) -> None:
        """Give a job to a worker that lives."""
        while True:
            try:
                worker = self._idle.pop() if self._idle else self._hire()
            except BaseException as error:  # the system has no thread for us
                self._free(job, "refused", error)
                return
            self._workers[worker] = job
            try:
                worker.tell(job)
            except pykka.ActorDeadError:  # it has died, and we are about to hear of it
                self._workers.pop(worker, None)
                continue
            return

    def _hire(self) -> Any:
        call = self.core.call
        return self.env.start_worker(Worker, partial(call, self._returned), partial(call, self._gone))

    def _dismiss(self, worker: Any) -> None:
        self._workers.pop(worker, None)
        with suppress(pykka.ActorDeadError):
            worker.stop(block=False)

    def _gone(self, worker: Any, error: BaseException | None) -> None:
        """A worker's thread has ended. Unless it was told to, its job must not be lost with it."""
        if worker not in self._workers:
            return
        job = self._workers.pop(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        get_logger().error("a worker died", error=repr(error), exc_info=error)
        if job is None:
            return
        if job.state == "ended":
            self.abandoned -= 1
        elif not job.began and not job.cancelled and not self._stopped:
            self._hand_over(job)
        else:
            self._threads.slots -= job.lent > 0
            ending: Ending = "cancelled" if job.cancelled else "raised"
            self._free(job, job.killed or ending, WorkerDied(f"its worker died of {error!r}"))

    def _free(self, job: Job, ending: Ending, value: Any) -> None:
        self._threads.busy -= 1
        self._end(job, ending, value)
        self._dispatch(self._threads)

    def _begin_coroutine(self, job: Job) -> None:
        # In a context of its own: this one is of whoever woke the loop, perhaps another agent's tool.
        job.task = Context().run(self.user.spawn, self._guard(job))
        job.task.add_done_callback(partial(self._never_began, job))
        if job.cancelled:
            job.task.cancel()

    def _never_began(self, job: Job, task: asyncio.Task[Any]) -> None:
        # A task that is cancelled before its first step does not even enter its guard.
        if task.cancelled():
            self.core.call(self._returned, None, job, False, asyncio.CancelledError())

    async def _guard(self, job: Job) -> None:
        try:
            coroutine: Coroutine[Any, Any, Any] = job.run()
            value, returned = await coroutine, True
        except BaseException as error:  # a job's end, never the loop's
            value, returned = error, False
        self.core.call(self._returned, None, job, returned, value)

    def _returned(self, worker: Any, job: Job, returned: bool, value: Any) -> None:
        given_up = job.state == "ended"
        if worker is not None and worker in self._workers:
            if given_up:
                self.abandoned -= 1
            if given_up or self._stopped or len(self._idle) >= self.size:
                self._dismiss(worker)
            else:
                self._workers[worker] = None
                self._idle.append(worker)
        if given_up:
            if job.late is not None:
                job.late(self.env.monotonic() - job.ended_at)
            return
        lane = self._lane(job)
        lane.busy -= 1
        if job.killed is not None and not returned:
            self._end(job, job.killed, value)
        elif job.cancelled and not returned and (isinstance(value, asyncio.CancelledError) or not job.is_async):
            self._end(job, "cancelled", value)
        else:
            self._end(job, "returned" if returned else "raised", value)
        self._dispatch(lane)

    def _give_up(self, job: Job, ending: Ending) -> None:
        if job.state != "running":
            return
        if job.kill is not None and job.killed is None:
            job.killed = ending
            if job.timer is not None:
                job.timer.cancel()
            job.timer = self.core.call_later(KILLED, self._give_up, job, ending)
            job.kill()
            return
        lane = self._lane(job)
        lane.busy -= 1
        job.cancelled = True
        if job.is_async:
            self.user.call(_cancel_task, job)
        else:
            self.abandoned += 1
            lane.slots -= job.lent > 0  # given up while its slot was lent: it does not come back for it
        self._end(job, ending, None)
        self._dispatch(lane)

    def _end(self, job: Job, ending: Ending, value: Any) -> None:
        job.state = "ended"
        job.ended_at = self.env.monotonic()
        if job.timer is not None:
            job.timer.cancel()
        job.done(ending, value, job.ended_at - job.started_at if job.started_at else 0.0)


def current_job() -> Job | None:
    """The job that the calling thread runs, if it is a worker's."""
    return getattr(_local, "job", None)


def _cancel_task(job: Job) -> None:
    if job.task is not None:
        job.task.cancel()
