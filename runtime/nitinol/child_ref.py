"""What `rt.supervise` gives: the stable side of an actor, or of a supervisor, that comes back under the same name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, cast

import pykka

from nitinol.actors.actor import ActorDown, ActorRef, Answer, Down
from nitinol.actors.child_spec import ChildSpec, Spec, SupervisorSpec
from nitinol.actors.children import ActorChild, SupervisorChild, child_of
from nitinol.actors.supervisor import Add, Child, Settle, State, StopChild, Wake
from nitinol.env import resolve
from nitinol.errors import ConfigurationError, NotFound


class Wait(Protocol):
    """Does something and waits for its future, or refuses where that would deadlock."""

    def __call__(self, do: Callable[[], Future[Any]], name: str, timeout: float | None = None) -> Any:
        """`name` is that of the method which waits."""
        ...


class SupervisedRef:
    """A child of a supervisor, over all its incarnations. From any thread."""

    def __init__(self, parent: SupervisorChild, child: Child, wait: Wait) -> None:
        self._owner, self._child, self._wait = parent, child, wait

    @property
    def _parent(self) -> SupervisorChild:
        self._owner.place.check_process()
        return self._owner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}: {self._child.now}>"

    @property
    def id(self) -> str:
        """As in its spec."""
        return self._child.id

    @property
    def state(self) -> State:
        """`up`; `down`, `starting`, `stopping`, `backoff` between incarnations; `parked`, `ended`, `stopped` when it has none."""
        self._owner.place.check_process()
        return self._child.now

    @property
    def restarts(self) -> int:
        """Incarnations after the first."""
        return max(self._child.number - 1, 0)

    def ready(self, timeout: float) -> None:
        """Wait until an incarnation is up, `timeout` seconds at most.

        Raises:
            AgentDown: It was parked, was stopped, or has ended: none will be up without a `resume`.
            TimeoutError: None is up yet.
        """
        try:
            self._wait(self._settled, "ready", timeout)
        except TimeoutError:
            raise self._not_up(timeout) from None
        self._check_up()

    async def aready(self, timeout: float) -> None:
        """As `ready`."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wrap_future(self._settled())
        except TimeoutError:
            raise self._not_up(timeout) from None
        self._check_up()

    def stop(self) -> None:
        """Stop it, and wait until it is down, for its `shutdown` seconds at most. It stays in the tree; `resume` starts it again."""
        self._wait(self._stop, "stop")

    async def astop(self) -> None:
        """As `stop`."""
        await asyncio.wrap_future(self._stop())

    def resume(self) -> None:
        """Start it again, if it was parked or stopped, or has ended; now, if it waits for its restart. Soon; never waits."""
        self._parent.post(Wake(self._child, by_hand=True))

    def _stop(self) -> Future[None]:
        stopped: Future[None] = Future()
        self._parent.post(StopChild(self._child, partial(resolve, stopped, None)))
        return stopped

    def _settled(self) -> Future[None]:
        settled: Future[None] = Future()
        self._parent.post(Settle(self._child, partial(resolve, settled, None)))
        return settled

    def _check_up(self) -> None:
        if self.state in ("parked", "ended", "stopped") or self._parent.rests:
            raise ActorDown(f"child {self.id!r} is {self._word()}")

    def _not_up(self, timeout: float) -> TimeoutError:
        return TimeoutError(f"child {self.id!r} is not up within {timeout} seconds: it is {self._word()}")

    def _word(self) -> str:
        reason = f": {self._child.reason}" if self._child.reason and self.state in ("backoff", "parked") else ""
        way_out = "; ref.resume() starts it again" if self.state in ("parked", "stopped", "ended") else ""
        above = f"; its supervisor {self._parent.id!r} is {self._parent.state}" if self._parent.rests else ""
        return f"{self.state}{reason}{above}{way_out}"


class ChildRef(SupervisedRef):
    """An actor under a supervisor."""

    _child: ActorChild

    @property
    def actor_ref(self) -> ActorRef[Any]:
        """Pykka's reference to the incarnation that is up, for a proxy; it dies with that one.

        Raises:
            AgentDown: None is up.
        """
        self._owner.place.check_process()
        actor = self._child.actor
        if actor is None or actor.actor_stopped.is_set():
            raise ActorDown(f"child {self.id!r} is {self._word()}")
        return cast("ActorRef[Any]", actor.actor_ref)

    def tell(self, message: Any) -> None:
        """Send a message to the incarnation that is up. Never waits.

        Raises:
            AgentDown: None is up.
            InboxFull: As many messages wait as may.
        """
        self.actor_ref.tell(message)

    def ask(self, message: Any, *, timeout: float) -> Any:
        """Send a message, and wait for the reply.

        Args:
            message: What its `on_receive` gets.
            timeout: Seconds; when they have passed, the message is not handled any more.

        Raises:
            AgentDown: None is up, or it went down before it got to the message.
            InboxFull: As many messages wait as may.
            TimeoutError: There was no reply in time.
            WouldDeadlock: Called by an actor's handler, or on a loop of the runtime.
            Exception: What the actor raised; it has crashed by it.
        """
        try:
            return self.actor_ref.ask(message, timeout=timeout)
        except pykka.Timeout:
            raise self._late(timeout) from None

    async def aask(self, message: Any, *, timeout: float) -> Any:
        """As `ask`."""
        answer = cast("Answer[Any]", self.actor_ref.ask(message, block=False, timeout=timeout))
        try:
            return await answer
        except pykka.Timeout:
            raise self._late(timeout) from None

    def watch(self, to: ChildRef | pykka.ActorRef[Any] | None = None) -> Future[Down]:
        """Learn that the incarnation which is up now goes down: once, and at once if none is up.

        Args:
            to: An actor that is told the `Down`, too; it overtakes the messages of users.

        Returns:
            A future that holds the `Down`; it is set by a thread of the runtime's or of the actor's, which a callback must not block.
        """
        self._owner.place.check_process()
        told: Future[Down] = Future()
        actor = self._child.actor
        if actor is None:
            self._down(told, to, self._child.last or Down(id=self.id, reason="shutdown"))
        else:
            actor.watch(partial(self._down, told, to))
        return told

    def _down(self, told: Future[Down], to: ChildRef | pykka.ActorRef[Any] | None, down: Down) -> None:
        resolve(told, down)
        if to is not None:
            try:
                to.tell(down)
            except pykka.ActorDeadError:
                return

    def _late(self, timeout: float) -> TimeoutError:
        return TimeoutError(f"child {self.id!r} has not answered within {timeout} seconds")


class SupervisorRef(SupervisedRef):
    """A supervisor under a supervisor."""

    _child: SupervisorChild

    def child(self, id: str) -> Any:
        """The child of this id: a `ChildRef`, or a `SupervisorRef`. Never waits.

        Raises:
            NotFound: There is none.
        """
        for child in list(self._child.children):
            if child.id == id:
                return ref_to(self._child, child, self._wait)
        known = ", ".join(child.id for child in list(self._child.children)) or "none"
        raise NotFound(f"supervisor {self.id!r} has no child {id!r}; it has: {known}")

    def supervise(self, spec: Spec) -> Any:
        """Start one more child, the last in order; see `Runtime.supervise`."""
        child = to_child(self._child, spec)
        self._wait(partial(add, self._child, child), "supervise")
        return ref_to(self._child, child, self._wait)

    async def asupervise(self, spec: Spec) -> Any:
        """As `supervise`."""
        child = to_child(self._child, spec)
        await asyncio.wrap_future(add(self._child, child))
        return ref_to(self._child, child, self._wait)


def ref_to(parent: SupervisorChild, child: Child, wait: Wait) -> ChildRef | SupervisorRef:
    """The reference that fits a child."""
    return SupervisorRef(parent, child, wait) if isinstance(child, SupervisorChild) else ChildRef(parent, child, wait)


def to_child(parent: SupervisorChild, spec: Spec) -> Child:
    """A child to be added to a supervisor.

    Raises:
        ConfigurationError: It is no spec.
    """
    if not isinstance(spec, (ChildSpec, SupervisorSpec)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"{spec!r} is neither a ChildSpec nor a SupervisorSpec")
    return child_of(spec, parent.place)


def add(parent: SupervisorChild, child: Child) -> Future[None]:
    """Add a child to a supervisor. The future ends when it is up; or with why it is not, and then it was never there.

    The future's error is a `ConfigurationError` if another child has its id. If nobody waits any more, the child stays.
    """
    added: Future[None] = Future()

    def started(error: Exception | None) -> None:
        resolve(added, None, error)

    child.started = started
    parent.post(Add(child))
    return added
