"""Children of a supervisor: a user's actor, and another supervisor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pykka

from nitinol.actors.actor import Actor, Down, Home, crash_of, home, shut_down
from nitinol.actors.child_spec import ChildSpec, Spec, SupervisorSpec, check_actor_class
from nitinol.actors.supervisor import (
    LIVE,
    Add,
    Child,
    ChildDown,
    End,
    Settle,
    State,
    StopChild,
    Supervisor,
    Up,
    Wake,
    lay_down,
    release,
)
from nitinol.env import Env, Loop
from nitinol.errors import ConfigurationError, StartFailed
from nitinol.logs import get_logger

LATE = 1.0
"""Of the seconds that a supervisor has to stop, what is kept for telling of it; a tenth of them, if that is less."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where children live.

    Args:
        env: Their clock, and where threads come from.
        loop: The supervisors' loop.
        user: The loop of users' loop actors.
        check_process: Raises in the child of a fork.
    """

    env: Env
    loop: Loop
    user: Loop
    check_process: Callable[[], object] = lambda: None


def child_of(spec: Spec, place: Place) -> Child:
    """The child that a spec describes."""
    return ActorChild(spec, place) if isinstance(spec, ChildSpec) else SupervisorChild(spec, place)


class ActorChild(Child):
    """An actor of a user's."""

    def __init__(self, spec: ChildSpec, place: Place) -> None:
        super().__init__(spec.id, spec.restart, spec.shutdown, spec.intensity, spec.period)
        self.spec = spec
        self._place = place
        self.actor: Actor | None = None
        """The incarnation that is up, or comes up."""

    @property
    def now(self) -> State:
        actor = self.actor
        return "down" if self.state == "up" and (actor is None or actor.actor_stopped.is_set()) else self.state

    @property
    def inbox_depth(self) -> int:
        actor = self.actor
        return 0 if actor is None else len(cast("Any", actor.actor_inbox))

    def begin(self, by: Supervisor) -> float:
        self.actor = None
        try:
            self._place.env.start_thread(f"start-{self.id}", partial(self._start, by, self.number))
        except RuntimeError as error:  # the process has as many threads as it may
            by.post(ChildDown(self, self.number, Down(id=self.id, reason="crash", error=error)))
        return self.start_seconds

    @property
    def start_seconds(self) -> float:
        return self.spec.start_timeout

    def end(self, by: Supervisor, seconds: float) -> None:
        if self.actor is None:  # it is being started: nobody is there to be asked
            self.give_up()
            by.post(ChildDown(self, self.number, Down(id=self.id, reason="shutdown")))
        else:
            shut_down(self.actor)

    def give_up(self) -> None:
        actor, self.actor = self.actor, None
        if actor is not None:
            get_logger().warning("an actor was given up", child=self.id, state=self.state)
            actor.abandon()

    def release(self, gone: Callable[[], object]) -> None:
        actor = self.actor
        if actor is None:
            gone()
            return
        loop = self._place.loop
        actor.watch(lambda _: loop.call(gone))
        shut_down(actor)
        loop.call_later(self.shutdown, actor.abandon)

    def park(self, reason: str) -> None:
        get_logger().error("an actor was parked", child=self.id, reason=reason)

    def _start(self, by: Supervisor, number: int) -> None:
        """On a thread of its own: it is a user's code."""
        at = Home(self.id, self._place.env, self._place.user)
        token = home.set(at)
        try:
            actor = self._actor_of(self.spec.start())
        except BaseException as error:
            self._tell(by, number, crash_of(self.id, error))
            return
        finally:
            home.reset(token)
        if not self._place.loop.call(self._started, by, number, actor):
            shut_down(actor)  # the runtime is gone

    def _tell(self, by: Supervisor, number: int, down: Down) -> None:
        """Tell of its end, in its own thread, or on its own loop."""
        if down.error is not None and (number > 1 or self.state == "up"):  # else whoever wanted it is told
            get_logger().warning("an actor crashed", child=self.id, error=down.why, exc_info=down.error)
        by.post(ChildDown(self, number, down))

    def _actor_of(self, ref: pykka.ActorRef[Any]) -> Actor:
        if inspect.iscoroutine(ref):
            ref.close()
        if not isinstance(ref, pykka.ActorRef):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"child {self.id!r}: start returned {ref!r}; it must return what Feed.start(…) returns, a reference"
            )
        started: pykka.ActorRef[Any] = ref  # pyright: ignore[reportUnknownVariableType] # isinstance does not tell of what
        try:
            check_actor_class(self.id, started.actor_class)
        except ConfigurationError:
            started.stop(block=False)
            raise
        actor = started._actor_weakref()  # pyright: ignore[reportPrivateUsage] # references of Pykka's are weak
        if actor is None:
            raise StartFailed(f"child {self.id!r} was down before it was seen")
        return cast("Actor", actor)

    def _started(self, by: Supervisor, number: int, actor: Actor) -> None:
        if number != self.number or self.state != "starting":  # nobody waits for it any more
            shut_down(actor)
            return
        self.actor = actor
        actor.watch(partial(self._tell, by, number), lambda: by.post(Up(self, number)))


class SupervisorChild(Child):
    """A supervisor under a supervisor. Its children are kept over its own restarts, also those that were added."""

    def __init__(self, spec: SupervisorSpec, place: Place) -> None:
        super().__init__(spec.id, spec.restart, spec.shutdown, spec.intensity, spec.period)
        self.spec = spec
        self.place = place
        self.children: list[Child] = [child_of(child, place) for child in spec.children]
        self.supervisor: Supervisor | None = None
        self._waiting: list[Any] = []
        self.rests = False
        """Whether no supervisor comes by itself."""

    @property
    def now(self) -> State:
        supervisor = self.supervisor
        return (
            "down" if self.state == "up" and (supervisor is None or supervisor.actor_stopped.is_set()) else self.state
        )

    def post(self, message: Any) -> None:
        """Tell the supervisor, or the next one, if it is being restarted. From any thread."""
        if not self.place.loop.call(self._post, message):
            self._answer(message)

    def _post(self, message: Any) -> None:
        if self.rests:
            self._answer(message)
        elif self.supervisor is None or self.supervisor.actor_stopped.is_set():
            self._waiting.append(message)
        else:
            self.supervisor.post(message)

    def begin(self, by: Supervisor) -> float | None:
        number = self.number
        self.rests = False
        self.supervisor = supervisor = self.make(number, lambda: by.post(Up(self, number)))
        supervisor.watch(partial(self._down, by, number))
        supervisor.launch()
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            supervisor.post(message)
        return self.start_seconds

    @property
    def start_seconds(self) -> float:
        """Those of all its children, and of stopping them."""
        return sum(child.start_seconds for child in self.children) + self.shutdown + LATE

    def make(self, number: int, ready: Callable[[], object]) -> Supervisor:
        """The supervisor of an incarnation."""
        spec, place = self.spec, self.place
        return Supervisor(
            place.env,
            place.loop,
            self.id,
            self.children,
            spec.strategy,
            storm=lambda: spec.storm,
            period=spec.period,
            shutdown=spec.shutdown,
            strict=number == 1,
            ready=ready,
            hand_on=self._post,
        )

    def end(self, by: Supervisor, seconds: float) -> None:
        assert self.supervisor is not None
        self.supervisor.post(End(self.place.env.monotonic() + seconds - min(LATE, seconds / 10)))

    def give_up(self) -> None:
        for child in reversed(self.children):
            if child.state in LIVE:
                child.give_up()
                lay_down(child)
        if self.supervisor is not None:
            self.supervisor.abandon()

    def release(self, gone: Callable[[], object]) -> None:
        assert self.supervisor is not None
        loop = self.place.loop
        self.supervisor.watch(lambda _: loop.call(gone))
        self.supervisor.post(End(self.place.env.monotonic() + self.shutdown))

    def park(self, reason: str) -> None:
        get_logger().error("a supervisor was parked", supervisor=self.id, reason=reason)

    def at_rest(self) -> None:
        super().at_rest()
        self.rests = True
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._answer(message)
        for child in list(self.children):
            if child.started is not None and child.state not in LIVE:  # else it is being stopped
                self.children.remove(child)
                self._answer(Add(child))
            child.at_rest()

    def _answer(self, message: Any) -> None:
        """What a supervisor would have done, where there is none."""
        match message:
            case Add(child):
                why = f"its supervisor {self.id!r} is {self.state}"
                child.tell_started(StartFailed(f"child {child.id!r} did not start: {why}"))
            case Settle(_, told):
                told()
            case StopChild(child, told):
                if child.restart == "temporary" and child in self.children:
                    self.children.remove(child)
                child.state = "stopped" if child in self.children else "ended"
                told()
            case Wake(child, True) if child in self.children:
                child.revive()  # it comes up with the next supervisor
            case _:
                return

    def _down(self, by: Supervisor, number: int, down: Down) -> None:
        """Its children do not outlive it."""
        if down.reason == "crash" and not isinstance(down.error, StartFailed):  # of that its caller is told
            get_logger().error("a supervisor failed", supervisor=self.id, error=down.why, exc_info=down.error)
        release(self.children, lambda: by.post(ChildDown(self, number, down)))
