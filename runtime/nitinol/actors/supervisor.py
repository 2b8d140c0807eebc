"""The supervisor: who is started when, restarted with whom, and given up; in OTP's words.

It runs on a loop of its own, so that nothing an agent, a hook, a tool or a user's actor does can stall it. It never sleeps
and never waits: a delay is a timer, and whatever a child does comes back as a message. What a start, a stop or a restart
means is the child's business; when, and how often, is decided here.

A change that concerns several children (the first start, the restart of a group, the end) is a phase: first all that must
go are stopped, one after the other, in reverse order of their start; then all that must live are started, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pykka._envelope import Envelope

from nitinol.actors.actor import Down, LoopActor
from nitinol.actors.child_spec import STORM, Restart, Strategy
from nitinol.actors.patience import Patience
from nitinol.env import Env, Loop, Timer
from nitinol.errors import ConfigurationError, StartFailed, SupervisorFailed

State = Literal["down", "starting", "up", "stopping", "backoff", "parked", "ended", "stopped"]
"""`down`: to be started; `ended`: by itself, and not restarted; `stopped`: from outside."""

LIVE: tuple[State, ...] = ("starting", "up", "stopping")
TURN = 0.1
"""Seconds that a child which takes all the time there is leaves to each that is stopped after it."""
SETTLED: tuple[State, ...] = ("up", "parked", "ended", "stopped")
"""Nothing changes by itself."""


class Child:
    """What a supervisor knows of a child, over all its incarnations. On the supervisors' loop, but for reading.

    Args:
        id: Unique among its siblings.
        restart: When it is restarted.
        shutdown: Seconds it has to stop.
    """

    __slots__ = (
        "id", "last", "number", "patience", "reason", "restart", "settling", "shutdown", "started", "state", "stopped", "timer",
        "until",
    )  # fmt: skip

    def __init__(self, id: str, restart: Restart, shutdown: float, intensity: int, period: float) -> None:
        self.id, self.restart, self.shutdown = id, restart, shutdown
        self.patience = Patience(intensity, period)
        self.state: State = "down"
        self.number = 0
        """Of its incarnation. What is heard of an older one is passed over."""
        self.last: Down | None = None
        """How the last incarnation ended."""
        self.reason: str | None = None
        """Why it does not live, or was restarted last, in words."""
        self.timer: Timer | None = None
        self.until = 0.0
        """When a start or a stop has taken too long."""
        self.started: Callable[[Exception | None], object] | None = None
        """Told once of its first start; if that fails, the child was never there."""
        self.stopped: tuple[Callable[[], object], ...] = ()
        """Told when it is down; while there are any, it was stopped from outside."""
        self.settling: tuple[Callable[[], object], ...] = ()
        """Told once it is up, or at rest."""

    @property
    def inbox_depth(self) -> int:
        """Messages that wait for it."""
        return 0

    @property
    def start_seconds(self) -> float:
        """Seconds that its start may take."""
        return 0.0

    @property
    def now(self) -> State:
        """Its state; `down` also where its supervisor has not heard of its end yet. From any thread."""
        return self.state

    def begin(self, by: Supervisor) -> float | None:
        """Begin an incarnation, and post `Up` or `ChildDown` to `by`. Seconds it may take; `None`: it is up."""
        raise NotImplementedError

    def end(self, by: Supervisor, seconds: float) -> None:
        """Ask it to stop; its `ChildDown` is posted to `by`."""
        raise NotImplementedError

    def give_up(self) -> None:
        """It has not come up, or not stopped, in time: it is down now, whatever it still does."""
        raise NotImplementedError

    def release(self, gone: Callable[[], object]) -> None:
        """Its supervisor is dead: stop, and call `gone` on the supervisors' loop when it is down."""
        raise NotImplementedError

    def park(self, reason: str) -> None:
        """No more incarnations until somebody resumes it."""

    def at_rest(self) -> None:
        """It has no incarnation, and gets none by itself: it was parked or stopped, has ended, or left the tree."""
        self.settle()

    def revive(self) -> None:
        """Whatever it has come to, it is to be started, and begins with a clean record."""
        self.patience.clear()
        self.state = "down"

    def tell_started(self, error: Exception | None) -> None:
        """Tell whoever waits for its first start how that went."""
        told, self.started = self.started, None
        if told is not None:
            told(error)

    def settle(self) -> None:
        """It is up, or at rest."""
        told, self.settling = self.settling, ()
        for each in told:
            each()


@dataclass(frozen=True, slots=True)
class Up:
    """An incarnation of a child is up."""

    child: Child
    number: int


@dataclass(frozen=True, slots=True)
class ChildDown:
    """An incarnation of a child is down, or did not come up."""

    child: Child
    number: int
    down: Down


@dataclass(frozen=True, slots=True)
class Add:
    """One more child, started last."""

    child: Child


@dataclass(frozen=True, slots=True)
class StopChild:
    """Stop a child; it stays in the tree, and is not restarted until it is woken by hand."""

    child: Child
    told: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Wake:
    """Somebody needs the child now: a delay is cut short; one that does not live is started again, if `by_hand`."""

    child: Any
    by_hand: bool


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell somebody once the child is up, or at rest."""

    child: Child
    told: Callable[[], object]


@dataclass(frozen=True, slots=True)
class End:
    """Stop all children, in reverse order, and then the supervisor; at this time on the clock what is left is given up."""

    until: float


@dataclass(frozen=True, slots=True)
class _Due:
    """The delay of a child is over; of a group, if it is `None`."""

    child: Child | None
    number: int


@dataclass(frozen=True, slots=True)
class _Expired:
    """A start or a stop has taken too long."""

    child: Child
    number: int
    state: State


class Supervisor(LoopActor):
    """Starts children in order, restarts them by a strategy, stops them in reverse order.

    Args:
        env: Its clock and its chance.
        loop: The supervisors' loop.
        id: Its name.
        children: In order of their start. The list is shared with whoever owns it: added ones are appended, temporary ones
            that end are removed.
        strategy: Who is restarted with a child that crashed.
        storm: How many second and later crashes it bears within `period` seconds.
        shutdown: Seconds in which its children stop when it fails.
        strict: Whether a child that does not come up at first fails the supervisor; else that is a crash as any other.
        ready: Called once all children were started.
        hand_on: Given what was asked of it and it did not get to.
    """

    def __init__(
        self,
        env: Env,
        loop: Loop,
        id: str,
        children: list[Child],
        strategy: Strategy,
        *,
        storm: Callable[[], int] = lambda: STORM,
        period: float = 60.0,
        shutdown: float = 30.0,
        strict: bool = True,
        ready: Callable[[], object] | None = None,
        hand_on: Callable[[Add | StopChild | Wake | Settle], object] | None = None,
    ) -> None:
        super().__init__(loop)
        self.env = env
        self._name = id
        self.children, self._strategy = children, strategy
        self._storm, self._period, self._shutdown = storm, period, shutdown
        self._strict, self._ready = strict, ready
        self._hand_on = hand_on
        self._repeated: deque[float] = deque()
        """When children crashed that had crashed before in the period."""
        self._phase: Literal["stopping", "starting"] | None = "starting"
        self._low = 0
        """The first child that is to be stopped."""
        self._moving: set[Child] = set()
        """Children that come up or go down."""
        self._all_asked = False
        """Whether all dynamic children were seen to in this phase, and are only waited for: there may be thousands."""
        self._due = 0.0
        """When the children of a phase may start."""
        self._timer: Timer | None = None
        self._ending: BaseException | Literal["end"] | None = None
        self._until = 0.0

    def on_start(self) -> None:
        for child in list(self.children):
            if child.restart == "temporary" and child.number:  # of the supervisor's last incarnation
                self._leave(child, "its supervisor was restarted")
            elif child.state not in ("parked", "stopped"):
                child.revive()  # the crashes that made the supervisor before it fail were that one's end
        self._advance()

    def on_receive(self, message: Any) -> None:
        match message:
            case Up(child, number):
                if child.number == number and child.state == "starting":
                    self._came_up(child)
                    self._advance()
            case ChildDown(child, number, down):
                if child.number == number and child.state in LIVE:
                    self._went_down(child, down)
            case Add(child):
                self._add(child)
            case StopChild(child, told):
                self._stop_one(child, told)
            case Wake(child, by_hand):
                self._wake(child, by_hand)
            case Settle(child, told):
                if child.now in SETTLED:
                    told()
                else:
                    child.settling += (told,)
            case _Due(None, _):
                self._timer = None
                self._advance()
            case _Due(child, number):
                if child is not None and child.number == number and child.state == "backoff":
                    child.timer = None
                    self._begin_child(child)
            case _Expired(child, number, state):
                if child.number == number and child.state == state:
                    self._expire(child)
            case End(until):
                self._end_all("end", until)
            case _:
                raise TypeError(f"the supervisor does not know {message!r}")

    def _at_once(self, message: Any) -> None:
        """A delay is over: a message that is handled here and now. What escapes is a crash, as always."""
        if not self.actor_stopped.is_set():
            self._handle(Envelope(message))

    def on_unhandled(self, message: Any) -> None:
        if self._hand_on is not None and isinstance(message, (Add, StopChild, Wake, Settle)):
            self._hand_on(message)

    # -- one child

    def _begin_child(self, child: Child) -> None:
        _cancel(child)
        if child.number:
            child.patience.restart()
        child.state = "starting"
        child.number += 1
        self._moving.add(child)
        seconds = child.begin(self)
        if seconds is None:
            self._came_up(child)
        else:
            self._expire_in(child, seconds)

    def _came_up(self, child: Child) -> None:
        _cancel(child)
        self._moving.discard(child)
        child.state = "up"
        child.patience.up(self.env.monotonic())
        child.tell_started(None)
        child.settle()

    def _end(self, child: Child) -> None:
        _cancel(child)
        self._moving.add(child)
        child.state = "stopping"
        seconds = child.shutdown
        if self._ending is not None:
            left = max(self._until - self.env.monotonic(), 0.0)
            others = 0 if self._strategy == "dynamic" else sum(other.state in LIVE for other in self.children) - 1
            seconds = min(seconds, left - min(left / 2, others * TURN))
        self._expire_in(child, seconds)
        child.end(self, seconds)

    def _expire_in(self, child: Child, seconds: float) -> None:
        child.until = self.env.monotonic() + seconds
        child.timer = self._loop.call_later(seconds, self.post, _Expired(child, child.number, child.state))

    def _expire(self, child: Child) -> None:
        was = child.state
        child.give_up()
        late = StartFailed(f"{child.id!r} was not up in time") if was == "starting" else None
        self._went_down(child, Down(id=child.id, reason="killed" if late is None else "crash", error=late))

    def _went_down(self, child: Child, down: Down) -> None:
        _cancel(child)
        self._moving.discard(child)
        was, child.last, child.reason = child.state, down, down.why
        if was == "stopping":
            self._has_stopped(child)
        elif was == "starting" and child.started is not None:
            self._never_was(child, _not_started(child, down))
        elif was == "starting" and self._strict and self._ready is not None and self._ending is None:
            child.state = "down"
            self._end_all(_not_started(child, down), self.env.monotonic() + self._shutdown)
        elif child.restart == "temporary":
            self._remove(child)
        elif child.restart == "transient" and down.reason not in ("crash", "killed"):
            child.state = "ended"
            child.at_rest()
        else:
            self._crashed(child, down)
        self._advance()

    def _has_stopped(self, child: Child) -> None:
        told, child.stopped = child.stopped, ()
        child.state = "stopped" if told else "down"
        if child.restart == "temporary" or (child.started is not None and (told or self._ending is not None)):
            self._leave(child, "it was stopped before it was up")
        elif told:
            child.at_rest()
        for each in told:
            each()

    def _leave(self, child: Child, why: str) -> None:
        """It leaves the tree; whoever waits for its first start is told why."""
        self._never_was(child, StartFailed(f"child {child.id!r} did not start: {why}"))

    def _never_was(self, child: Child, error: Exception) -> None:
        """Its first start has failed: that is the business of whoever wanted it."""
        self._remove(child)
        child.tell_started(error)

    def _remove(self, child: Child) -> None:
        child.state = "ended"
        if child in self.children:
            self._low -= self.children.index(child) < self._low
            self.children.remove(child)
        child.at_rest()

    def _crashed(self, child: Child, down: Down) -> None:
        """It goes down although it should live: again, after a delay, with whoever goes with it; or not any more."""
        if self._ending is not None:
            child.state = "down"
            return
        now = self.env.monotonic()
        delay = child.patience.crash(now, self.env.random())
        child.state = "backoff"
        if self._is_storm(child, now):
            self._fail(f"more than {self._storm()} repeated crashes of its children within {self._period:g} s", down)
        elif delay is None and self._is_group:
            self._fail(f"child {child.id!r} had {child.patience.spent}", down)
        elif delay is None:
            child.state = "parked"
            child.reason = f"{child.patience.spent}, the last: {down.why}"
            child.park(child.reason)
            child.at_rest()
        elif self._is_group:
            low = 0 if self._strategy == "one_for_all" else self.children.index(child)
            self._low = min(low, self._low) if self._phase == "stopping" else low
            self._phase, self._due = "stopping", max(self._due, now + delay)
        else:
            child.timer = self._loop.call_later(delay, self._at_once, _Due(child, child.number))

    @property
    def _is_group(self) -> bool:
        return self._strategy in ("one_for_all", "rest_for_one")

    def _is_storm(self, child: Child, now: float) -> bool:
        if child.patience.is_repeated():
            self._repeated.append(now)
        while self._repeated and self._repeated[0] < now - self._period:
            self._repeated.popleft()
        return len(self._repeated) > self._storm()

    def _add(self, child: Child) -> None:
        refusal: Exception | None = None
        other = next((other for other in self.children if other.id == child.id), None)
        if self._ending is not None:
            refusal = StartFailed(f"child {child.id!r} was not started: its supervisor {self.id!r} is stopping")
        elif other is not None and other.state not in ("ended", "stopped"):
            refusal = ConfigurationError(
                f"supervisor {self.id!r} has a child {child.id!r} already, which is {other.state}; ids are unique: stop that one first"
            )
        if refusal is not None:
            child.tell_started(refusal)
            return
        if other is not None:
            self._remove(other)
        self.children.append(child)
        self._start(child)

    def _stop_one(self, child: Child, told: Callable[[], object]) -> None:
        if child.state in LIVE:
            child.stopped += (told,)
            if child.state != "stopping":
                self._end(child)
            return
        _cancel(child)
        if child in self.children:
            child.stopped += (told,)
            self._has_stopped(child)
        else:
            told()
        self._advance()

    def _wake(self, child: Child, by_hand: bool) -> None:
        if child not in self.children:
            return
        if by_hand and child.stopped:  # it is down soon, and then this is heard: whoever came later has the last word
            child.stopped += (partial(self.post, Wake(child, by_hand)),)
        elif self._ending is None:
            self._woken(child, by_hand)
        elif by_hand and child.state in ("parked", "ended", "stopped"):
            child.revive()  # for the next supervisor, if there is one

    def _woken(self, child: Child, by_hand: bool) -> None:
        if child.state in ("backoff", "down") and self._is_group:
            self._due = self.env.monotonic()
            self._advance()
        elif child.state == "backoff":
            self._begin_child(child)
        elif by_hand and child.state in ("parked", "ended", "stopped"):
            child.revive()
            self._start(child)

    def _start(self, child: Child) -> None:
        """Start it now, or when its turn comes: in a group, nobody starts beside those before it."""
        if self._all_asked or (self._phase is None and not self._is_group):
            self._begin_child(child)
            return
        self._phase = self._phase or "starting"
        self._advance()

    # -- several

    def _fail(self, why: str, down: Down) -> None:
        error = SupervisorFailed(f"supervisor {self.id!r} gives up: {why}; the last: {down.why}")
        error.__cause__ = down.error
        self._end_all(error, self.env.monotonic() + self._shutdown)

    def _end_all(self, ending: BaseException | Literal["end"], until: float) -> None:
        self._until = until if self._ending is None else min(self._until, until)
        self._ending = self._ending or ending
        self._phase, self._low, self._all_asked = "stopping", 0, False
        for child in list(self.children):
            if child.state == "backoff":
                _cancel(child)
                child.state = "down"
            elif child.state == "down" and child.started is not None:
                self._leave(child, "its supervisor stopped")
            elif child.state == "stopping" and self._until < child.until:
                self._end(child)
        self._advance()

    def _advance(self) -> None:
        """Go on with the phase, as far as it goes without waiting for anyone."""
        if self.actor_stopped.is_set():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._phase == "stopping" and self._stop_next():
            if self._ending is not None:
                self._finish()
                return
            wait = self._due - self.env.monotonic()
            if wait > 0:
                self._timer = self._loop.call_later(wait, self._at_once, _Due(None, 0))
                return
            for child in self.children[self._low :]:
                if child.state in ("backoff", "ended"):
                    child.state = "down"
            self._phase = "starting"
        if self._phase == "starting" and self._start_next():
            self._phase, self._due, self._all_asked = None, 0.0, False
            ready, self._ready = self._ready, None
            if ready is not None:
                ready()

    def _stop_next(self) -> bool:
        """Stop the last child that lives, of dynamic ones all; whether none lives any more."""
        if self._all_asked:
            return not self._moving
        for child in reversed(self.children[self._low :]):
            if child.state in ("starting", "up"):
                self._end(child)
            if child.state == "stopping" and self._strategy != "dynamic":
                return False
        self._all_asked = self._strategy == "dynamic"
        return not any(child.state == "stopping" for child in self.children[self._low :])

    def _start_next(self) -> bool:
        """Start the first child that should live and does not, of dynamic ones all; whether all do."""
        if self._all_asked:
            return not self._moving
        for child in list(self.children):
            if child.state == "down":
                self._begin_child(child)
            if child.state == "starting" and self._strategy != "dynamic":
                return False
        self._all_asked = self._strategy == "dynamic"
        return not any(child.state == "starting" for child in self.children)

    def _finish(self) -> None:
        if self._ending != "end":
            assert isinstance(self._ending, BaseException)
            raise self._ending
        self._reason = "shutdown"
        self._stop()


def lay_down(child: Child) -> None:
    """It is down, as its supervisor: as whoever stopped it wanted, if somebody did."""
    told, child.stopped = child.stopped, ()
    child.state = "stopped" if told else "down"
    if told:
        child.at_rest()
    for each in told:
        each()


def release(children: Sequence[Child], gone: Callable[[], object]) -> None:
    """Stop the children of a supervisor that died, and call `gone` when all are down."""
    live = [child for child in children if child.state in LIVE]
    left = len(live)

    def one_is_gone(child: Child, number: int) -> None:
        nonlocal left
        left -= 1
        if child.number == number and child.state in LIVE:  # else it was given up meanwhile, and may live again
            lay_down(child)
        if not left:
            gone()

    for child in children:
        _cancel(child)
    for child in reversed(live):  # what they still say is for nobody: it goes to the dead one
        child.release(partial(one_is_gone, child, child.number))
    if not live:
        gone()


def _not_started(child: Child, down: Down) -> StartFailed | ConfigurationError:
    if isinstance(down.error, ConfigurationError):
        return down.error
    error = StartFailed(f"child {child.id!r} did not start: {down.why}")
    error.__cause__ = down.error
    return error


def _cancel(child: Child) -> None:
    if child.timer is not None:
        child.timer.cancel()
        child.timer = None
