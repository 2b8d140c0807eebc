"""What a supervisor is told of a child: how it is started, when it is restarted, how often, and how it is stopped.

In OTP's words, with seconds for milliseconds. Specs are checked when they are made.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import pykka

from nitinol.actors.actor import Actor
from nitinol.errors import ConfigurationError
from nitinol.messages import check_name
from nitinol.usage import is_count

Restart = Literal["permanent", "transient", "temporary"]
"""Restarted always; after a crash; never, also not with its group."""
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one", "dynamic"]
"""Who is restarted with a child that crashed: nobody; all; those that were started after it. `dynamic` is one for one, and
its children, which come and go at run time, are stopped all at once."""

STORM = 100


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child of a supervisor: an actor of yours, a `ThreadActor` or a `LoopActor`.

    Attributes:
        id: Its name, unique under its supervisor.
        start: Starts the actor and returns its reference, as `lambda: Feed.start(url)`. Called on a thread of its own, for
            each incarnation.
        restart: `"permanent"`: restarted whenever it ends, but by a stop from outside; `"transient"`: after a crash;
            `"temporary"`: never, and it leaves the tree when it ends.
        shutdown: Seconds it has to stop; then it is given up, and its thread left behind.
        start_timeout: Seconds that `start` and its `on_start` may take; a start that takes longer has failed.
        intensity: Restarts within `period` seconds; one more crash parks it.
        period: Seconds.
    """

    id: str
    start: Callable[[], pykka.ActorRef[Any]]
    _: KW_ONLY
    restart: Restart = "permanent"
    shutdown: float = 5.0
    start_timeout: float = 10.0
    intensity: int = 5
    period: float = 60.0

    def __post_init__(self) -> None:
        _check(self)
        _seconds(self.id, "start_timeout", self.start_timeout, positive=True)
        if not callable(self.start):
            raise ConfigurationError(f"child {self.id!r}: start={self.start!r} must be a function without arguments")
        if inspect.isclass(self.start):
            raise ConfigurationError(
                f"child {self.id!r}: start={self.start.__name__} makes an actor and does not start it; give {self.start.__name__}.start"
            )
        if inspect.iscoroutinefunction(self.start):
            raise ConfigurationError(f"child {self.id!r}: start is a coroutine; it must be a plain function")
        owner = getattr(self.start, "__self__", None)
        if inspect.isclass(owner) and issubclass(owner, pykka.Actor):
            check_actor_class(self.id, owner)


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """A supervisor as a child of another.

    Attributes:
        id: Its name, unique under its supervisor.
        children: Specs, started in this order and stopped in the reverse.
        strategy: Who is restarted with a child that crashed.
        restart: As of any child; a supervisor fails when it has had enough of its children.
        shutdown: Seconds in which all its children stop; what is left then is given up.
        intensity: Restarts of the supervisor within `period` seconds; one more failure parks it, with all below it.
        period: Seconds; also of `storm`.
        storm: Second and later crashes of the same child that it bears, over all its children, within `period` seconds;
            one more, and it fails itself.
    """

    id: str
    children: Sequence[ChildSpec | SupervisorSpec] = ()
    _: KW_ONLY
    strategy: Strategy = "one_for_one"
    restart: Restart = "permanent"
    shutdown: float = 30.0
    intensity: int = 5
    period: float = 60.0
    storm: int = STORM

    def __post_init__(self) -> None:
        _check(self)
        if self.strategy not in get_args(Strategy):
            raise ConfigurationError(
                f"supervisor {self.id!r}: strategy={self.strategy!r} must be one of {', '.join(get_args(Strategy))}"
            )
        _count(self.id, "storm", self.storm)
        if not isinstance(self.children, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"supervisor {self.id!r}: children={self.children!r} must be a list of specs")
        object.__setattr__(self, "children", tuple(self.children))
        seen: set[str] = set()
        for child in self.children:
            if not isinstance(child, (ChildSpec, SupervisorSpec)):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"supervisor {self.id!r}: {child!r} is neither a ChildSpec nor a SupervisorSpec"
                )
            if child.id in seen:
                raise ConfigurationError(f"supervisor {self.id!r} has two children {child.id!r}; ids are unique")
            seen.add(child.id)


Spec = ChildSpec | SupervisorSpec


def check_actor_class(id: str, actor_class: type[Any]) -> None:
    """Refuse an actor that cannot be supervised."""
    if not issubclass(actor_class, Actor):
        raise ConfigurationError(
            f"child {id!r}: {actor_class.__name__} is one of Pykka's own actors, which nobody can supervise: an exception under"
            " ask leaves it alive, one in on_start is told to no one, and SystemExit stops every actor of the process; derive"
            " it from nitinol.ThreadActor"
        )
    if inspect.iscoroutinefunction(actor_class.on_receive):
        raise ConfigurationError(
            f"child {id!r}: {actor_class.__name__}.on_receive is a coroutine function; an actor handles one message after the other, by a plain function"
        )


def _check(spec: Spec) -> None:
    check_name("id", spec.id)
    if spec.restart not in get_args(Restart):
        raise ConfigurationError(
            f"child {spec.id!r}: restart={spec.restart!r} must be one of {', '.join(get_args(Restart))}"
        )
    _seconds(spec.id, "shutdown", spec.shutdown)
    _seconds(spec.id, "period", spec.period, positive=True)
    _count(spec.id, "intensity", spec.intensity)


def _seconds(id: str, name: str, value: Any, positive: bool = False) -> None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf
    if not sound or (positive and not value):
        least = "more than zero" if positive else "zero or more"
        raise ConfigurationError(f"child {id!r}: {name}={value!r} must be seconds, {least}")


def _count(id: str, name: str, value: Any) -> None:
    if not is_count(value):
        raise ConfigurationError(f"child {id!r}: {name}={value!r} must be a whole number, zero or more")
