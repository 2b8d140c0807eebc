"""`rt.supervise`: actors of users, and supervisors of them, in a real runtime."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pykka
import pytest
from tests.logs_of import SOON

from nitinol import (
    Agent,
    ChildRef,
    ChildSpec,
    Down,
    LoopActor,
    Runtime,
    SupervisorRef,
    SupervisorSpec,
    ThreadActor,
    arun,
    run,
    stream,
    tool,
)
from nitinol.errors import (
    AgentDown,
    ConfigurationError,
    InboxFull,
    NotFound,
    RuntimeDown,
    RuntimeStopped,
    StartFailed,
    WouldDeadlock,
)
from nitinol.runtime import TreeNode
from nitinol.testing import ScriptedProvider, call, gate, say

SHORT = 0.2
"""A deadline that is meant to pass."""


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0, shutdown=SOON) as runtime:
        yield runtime


class Does:
    """Counts its incarnations; calls what it is sent with itself, if it can be called; raises it, if it is an exception."""

    born: int
    on_stopped: Callable[[], object] | None = None

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        return message(self) if callable(message) else ("got", message)

    def on_stop(self) -> None:
        if self.on_stopped is not None:
            self.on_stopped()


class Hold:
    """A handler that hangs until it is released."""

    def __init__(self, seconds: float = SOON) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self.seconds = seconds

    def __call__(self, _: object) -> None:
        self.entered.set()
        self.release.wait(self.seconds)


def keep(name: str, value: object) -> Callable[[Any], None]:
    """A message by which the actor has this as an attribute."""
    return lambda actor: setattr(actor, name, value)


def does(action: Callable[[Any], object]) -> Any:
    """A message that does something with the actor."""
    return action


def calls(function: Callable[[], object]) -> Callable[[Any], object]:
    """A message by which the actor calls this."""
    return lambda _: function()


class Threaded(Does, ThreadActor):
    """On a thread of its own."""


class Looped(Does, LoopActor):
    """On the user loop."""


both = pytest.mark.parametrize("actor_class", [Threaded, Looped])


def spec(id: str, actor_class: Any = Threaded, **options: Any) -> ChildSpec:
    """A child."""
    return ChildSpec(id, actor_class.start, **options)


def wait_until(rt: Runtime, true: Callable[[], bool]) -> None:
    """Look until it is so, once in each turn of the supervisors' loop."""
    until = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < until, "it never came"
        turn: Future[None] = Future()
        assert rt._system.supervising.call(turn.set_result, None)  # pyright: ignore[reportPrivateUsage]
        turn.result(SOON)


def node(rt: Runtime, *path: str) -> TreeNode:
    """The part of the tree at this path."""
    found = rt.tree()
    for id in path:
        (found,) = [child for child in found.children if child.id == id]
    return found


def threads(name: str) -> list[threading.Thread]:
    """Threads that live, with this in their names."""
    return [thread for thread in threading.enumerate() if name in thread.name]


def join_all(name: str) -> None:
    """Wait for the end of all threads with this in their names, also of one that is just being started."""
    until = time.monotonic() + SOON
    while threads(name):
        assert time.monotonic() < until, f"they live: {threads(name)}"
        for thread in threads(name):
            with suppress(RuntimeError):
                thread.join(SOON)


def crash(ref: ChildRef, reason: str = "boom") -> Down:
    """Crash it, and wait until it is down; then cut its delay short."""
    told = ref.watch()
    ref.tell(RuntimeError(reason))
    down = told.result(SOON)
    ref.resume()
    return down


def come_back(rt: Runtime, ref: ChildRef, restarts: int) -> None:
    """Wait for this restart."""
    wait_until(rt, lambda: ref.restarts == restarts and ref.state == "up")


# -- one actor


@both
def test_an_actor_is_started_and_asked(rt: Runtime, actor_class: Any) -> None:
    """Once `supervise` returns it is up, under its name."""
    ref = rt.supervise(spec("feed", actor_class))
    assert (ref.id, ref.state, ref.restarts, repr(ref)) == ("feed", "up", 0, "<ChildRef 'feed': up>")
    assert ref.ask("hi", timeout=SOON) == ("got", "hi")
    heard: Future[Any] = Future()
    ref.tell(does(lambda self: heard.set_result(self.id)))
    assert heard.result(SOON) == "feed"
    assert cast("ChildRef", rt.child("feed")).ask("you", timeout=SOON) == ("got", "you")
    if actor_class is Threaded:
        assert len(threads("nitinol-feed")) == 1


@both
def test_a_proxy(rt: Runtime, actor_class: Any) -> None:
    """Pykka's, of the incarnation that is up."""
    ref = rt.supervise(spec("feed", actor_class))
    proxy: Any = ref.actor_ref.proxy()
    assert proxy.on_receive("x").get() == ("got", "x")
    crash(ref)
    come_back(rt, ref, 1)
    with pytest.raises(pykka.ActorDeadError):
        proxy.on_receive("x").get()
    assert ref.actor_ref.proxy().on_receive("x").get() == ("got", "x")


def test_a_resume_that_comes_while_it_is_stopped_has_the_last_word(rt: Runtime) -> None:
    """Whoever stops it may not have waited for its end."""
    ref = rt.supervise(spec("feed", Threaded))
    busy, go = threading.Event(), threading.Event()

    def work(self: Any) -> None:
        busy.set()
        go.wait(SOON)

    ref.tell(does(work))
    assert busy.wait(SOON)
    stopping = threading.Thread(target=ref.stop)
    stopping.start()
    wait_until(rt, lambda: ref.state == "stopping")
    ref.resume()
    go.set()
    stopping.join(SOON)
    come_back(rt, ref, 1)
    assert ref.ask("hi", timeout=SOON) == ("got", "hi")


@both
def test_a_crash_is_a_restart(rt: Runtime, actor_class: Any) -> None:
    """Told, asked, or by an exit: the asker gets what it raised, who watches is told once, and the next one comes up."""
    ref = rt.supervise(spec("feed", actor_class))
    with pytest.raises(ValueError, match="no such thing"):
        ref.ask(ValueError("no such thing"), timeout=SOON)
    ref.resume()
    come_back(rt, ref, 1)
    down = crash(ref, "told")
    assert (down.id, down.reason, down.why) == ("feed", "crash", "RuntimeError: told")
    come_back(rt, ref, 2)
    with pytest.raises(AgentDown, match="SystemExit"):
        ref.ask(SystemExit(3), timeout=SOON)
    ref.resume()
    come_back(rt, ref, 3)
    assert ref.ask("hi", timeout=SOON) == ("got", "hi")


@both
def test_who_is_down_is_named(rt: Runtime, actor_class: Any) -> None:
    """In each error: the child, what it is now, why, and the way out."""
    ref = rt.supervise(spec("feed", actor_class, intensity=0))
    down = ref.watch()
    ref.tell(RuntimeError("the wire is cut"))
    down.result(SOON)
    wait_until(rt, lambda: ref.state == "parked")
    for speak in (lambda: ref.tell("hi"), lambda: ref.ask("hi", timeout=SOON), lambda: ref.actor_ref):
        with pytest.raises(
            AgentDown, match=r"child 'feed' is parked: 1 crashes in 60 s, .*the wire is cut; ref.resume\(\)"
        ):
            speak()
    ref.resume()
    wait_until(rt, lambda: ref.state == "up")
    ref.stop()
    with pytest.raises(AgentDown, match=r"child 'feed' is stopped; ref.resume\(\) starts it again"):
        ref.tell("hi")


@both
def test_an_ask_has_a_deadline(rt: Runtime, actor_class: Any) -> None:
    """The error names the child; the message is not handled later."""
    ref = rt.supervise(spec("feed", actor_class))
    hold, ran = Hold(), threading.Event()
    ref.tell(hold)
    assert hold.entered.wait(SOON)
    with pytest.raises(TimeoutError, match=r"child 'feed' has not answered within 0.05 seconds"):
        ref.ask(does(lambda _: ran.set()), timeout=0.05)
    hold.release.set()
    assert ref.ask("next", timeout=SOON) == ("got", "next")
    assert not ran.is_set()


@both
def test_under_asyncio(rt: Runtime, actor_class: Any) -> None:
    """asupervise, aask and astop; a deadline, a crash, and a wait that is cancelled."""

    async def main() -> None:
        ref = await rt.asupervise(spec("feed", actor_class))
        assert await ref.aask("hi", timeout=SOON) == ("got", "hi")
        hold = Hold()
        ref.tell(hold)
        with pytest.raises(TimeoutError, match="child 'feed'"):
            await ref.aask("late", timeout=0.05)
        hold.release.set()
        with pytest.raises(ValueError, match="boom"):
            await ref.aask(ValueError("boom"), timeout=SOON)
        await ref.astop()
        assert ref.state == "stopped"
        with pytest.raises(StartFailed):
            await rt.asupervise(ChildSpec("bad", lambda: Failing.start()))

    asyncio.run(main())


def test_a_wait_that_is_cancelled_hurts_nobody(rt: Runtime) -> None:
    """Whoever stops waiting for a start, a stop or a `Down` changes nothing: the supervisor lives."""
    release = threading.Event()

    def start() -> Any:
        release.wait(SOON)
        return Threaded.start()

    async def main() -> None:
        starting = asyncio.create_task(rt.asupervise(ChildSpec("slow", start)))
        await asyncio.sleep(0)
        wait_until(rt, lambda: bool(threads("start-slow")))
        starting.cancel()
        release.set()
        ref = cast("ChildRef", rt.child("slow"))
        wait_until(rt, lambda: ref.state == "up")
        hold = Hold()
        ref.tell(hold)
        assert hold.entered.wait(SOON)
        stop = asyncio.create_task(ref.astop())
        await asyncio.sleep(0)
        wait_until(rt, lambda: ref.state == "stopping")
        stop.cancel()
        watch = ref.watch()
        assert watch.cancel()
        hold.release.set()
        wait_until(rt, lambda: ref.state == "stopped")

    asyncio.run(main())
    assert node(rt, "users").restarts == 0
    assert rt.supervise(spec("next")).state == "up"


def test_a_watch_of_an_agent_that_nobody_waits_for(rt: Runtime) -> None:
    """A cancelled watch does not keep a crash from being handled."""
    from nitinol.testing import crash as crash_agent

    ref = rt.start(Agent(name="a", model=ScriptedProvider(lambda _: say("yes"))))
    assert ref.ask("hi", timeout=SOON).text == "yes"
    assert ref.watch().cancel()
    with rt.subscribe("agent.restarted") as back:
        crash_agent(ref)
        back.get(SOON)
    assert ref.ask("still there?", timeout=SOON).text == "yes"


def test_a_watch_tells_once_also_who_comes_late(rt: Runtime) -> None:
    """And an actor, by a message that overtakes others."""
    watcher, ref = rt.supervise(spec("watcher", Looped)), rt.supervise(spec("feed"))
    heard: Future[Down] = Future()
    watcher.ask(keep("on_receive", heard.set_result), timeout=SOON)
    told = ref.watch(to=watcher)
    ref.stop()
    assert told.result(SOON).reason == heard.result(SOON).reason == "shutdown"
    assert ref.watch().result(SOON) == told.result()


# -- how it ends


@both
def test_a_stop_is_waited_for(rt: Runtime, actor_class: Any) -> None:
    """It has let go of what it holds; it stays in the tree, and `resume` starts it."""
    ref = rt.supervise(spec("feed", actor_class))
    stopped = threading.Event()
    ref.ask(keep("on_stopped", stopped.set), timeout=SOON)
    ref.stop()
    assert stopped.is_set()
    assert (ref.state, node(rt, "users", "feed").state, node(rt, "users", "feed").last_reason) == (
        "stopped",
        "stopped",
        "shutdown",
    )
    ref.resume()
    come_back(rt, ref, 1)


@both
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_an_actor_that_ends_by_itself(rt: Runtime, actor_class: Any, restart: Any) -> None:
    """permanent: it comes back; transient: it has ended; temporary: it has left the tree."""
    ref = rt.supervise(spec("feed", actor_class, restart=restart))
    told = ref.watch()
    ref.tell(does(lambda self: self.stop()))
    assert told.result(SOON).reason == "normal"
    if restart == "permanent":
        come_back(rt, ref, 1)
    else:
        wait_until(rt, lambda: ref.state == "ended")
    left = [child.id for child in node(rt, "users").children] if restart != "temporary" else []
    assert left == ([] if restart == "temporary" else ["feed"])
    if restart == "temporary":
        with pytest.raises(NotFound, match="no child 'feed'"):
            rt.child("feed")


@both
def test_an_actor_that_does_not_stop_is_given_up(rt: Runtime, actor_class: Any) -> None:
    """At its deadline it is down as "killed", and what it had not answered is refused."""
    ref = rt.supervise(spec("feed", actor_class, shutdown=SHORT))
    hold = Hold()
    ref.tell(hold)
    assert hold.entered.wait(SOON)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ref.ask, "hi", timeout=SOON)
        wait_until(rt, lambda: node(rt, "users", "feed").inbox_depth == 1)
        told = ref.watch()
        ref.stop()
        with pytest.raises(AgentDown, match="'feed'"):
            asked.result(SOON)
    assert told.result(SOON).reason == "killed"
    assert ref.state == "stopped"
    hold.release.set()
    join_all("nitinol-feed")


def test_an_actor_that_is_given_up_with_nothing_to_do(rt: Runtime) -> None:
    """As at a deadline of nothing: its thread ends, and it lets go of what it holds. For its supervisor it was killed."""
    ref = rt.supervise(spec("feed", restart="temporary"))
    stopped = threading.Event()
    actor = ref.ask(does(lambda self: self), timeout=SOON)
    ref.ask(keep("on_stopped", stopped.set), timeout=SOON)
    told = ref.watch()
    actor.abandon()
    assert told.result(SOON).reason == "killed"
    assert stopped.wait(SOON)
    join_all("nitinol-feed")
    wait_until(rt, lambda: ref.state == "ended")


@both
def test_an_inbox_is_bounded(rt: Runtime, actor_class: Any) -> None:
    """The tree tells how many wait; one more than may is refused, and the error names the child."""
    small: Any = type("Small", (actor_class,), {"inbox_limit": 3})
    ref = rt.supervise(ChildSpec("feed", small.start))
    hold = Hold()
    ref.tell(hold)
    assert hold.entered.wait(SOON)
    for _ in range(3):
        ref.tell("more")
    assert node(rt, "users", "feed").inbox_depth == 3
    with pytest.raises(InboxFull, match=r"'feed'.* has 3 messages"):
        ref.tell("too many")
    hold.release.set()


# -- starts that fail


class Failing(ThreadActor):
    """Never comes up."""

    def on_start(self) -> None:
        raise OSError("no such host")


def plain() -> Any:
    """An actor of Pykka's own."""
    actor_class = type("Plain", (pykka.ThreadingActor,), {"use_daemon_thread": True})
    return actor_class


@pytest.mark.parametrize(
    ("start", "error", "says"),
    [
        (lambda: Failing.start(), StartFailed, "child 'bad' did not start: OSError: no such host"),
        (lambda: 1 / 0, StartFailed, "child 'bad' did not start: ZeroDivisionError"),
        (lambda: None, ConfigurationError, r"child 'bad': start returned None; it must return"),
        (
            lambda: plain().start(),
            ConfigurationError,
            "child 'bad': Plain is one of Pykka's own actors, which nobody can",
        ),
        (lambda: asyncio.sleep(0), ConfigurationError, "child 'bad': start returned <coroutine"),
    ],
    ids=["on_start", "raises", "none", "pykka", "coroutine"],
)
def test_a_first_start_that_fails(rt: Runtime, start: Any, error: type[Exception], says: str) -> None:
    """It is told why, and nothing is left: neither in the tree, nor a thread, nor an actor. The id is free."""
    with pytest.raises(error, match=says):
        rt.supervise(ChildSpec("bad", start))
    with pytest.raises(NotFound):
        rt.child("bad")
    assert [each.id for each in rt.tree().children if each.id == "users"] == []
    join_all("bad")
    wait_until(rt, lambda: not pykka.ActorRegistry.get_all())
    assert rt.supervise(spec("bad")).state == "up"


@pytest.mark.parametrize(
    ("where", "actor_class"), [("start", Threaded), ("on_start", Threaded), ("start", Looped), ("on_start", Looped)]
)
def test_a_first_start_that_hangs(rt: Runtime, where: str, actor_class: Any) -> None:
    """It has failed after `start_timeout`. When it comes back after all, nobody wants it: its actor is stopped."""
    release, stopped = threading.Event(), threading.Event()

    def on_start(_: object) -> None:
        if where == "on_start":
            release.wait(SOON)

    slow: Any = type("Slow", (actor_class,), {"on_start": on_start, "on_stop": does(lambda _: stopped.set())})

    def start() -> Any:
        if where == "start":
            release.wait(SOON)
        return slow.start()

    began = time.monotonic()
    with pytest.raises(StartFailed, match="'slow' was not up in time"):
        rt.supervise(ChildSpec("slow", start, start_timeout=SHORT))
    assert SHORT <= time.monotonic() - began < SOON / 2
    with pytest.raises(NotFound):
        rt.child("slow")
    release.set()
    assert stopped.wait(SOON)
    join_all("slow")


def test_an_actor_that_was_given_up_before_its_turn_does_not_come_up(rt: Runtime) -> None:
    """The user loop is held by another actor, longer than the start may take."""
    hold, came_up = Hold(), threading.Event()
    holder = rt.supervise(spec("holder", Looped))
    late: Any = type("Late", (Looped,), {"on_start": does(lambda _: came_up.set())})
    holder.tell(hold)
    assert hold.entered.wait(SOON)
    with pytest.raises(StartFailed, match="'late' was not up in time"):
        rt.supervise(ChildSpec("late", late.start, start_timeout=SHORT))
    hold.release.set()
    assert holder.ask("are you there?", timeout=SOON) == ("got", "are you there?")
    assert not came_up.is_set()


def test_a_start_that_hangs_at_a_restart_is_a_crash(rt: Runtime) -> None:
    """The late one is stopped, although it carries the same name and the next one is waited for; that one is adopted."""
    late, third, release, stopped = (threading.Event() for _ in range(4))
    actors: list[Threaded] = []
    count = iter(range(10))

    class Slow(Threaded):
        def on_start(self) -> None:
            actors.append(self)

        def on_stop(self) -> None:
            stopped.set()

    def start() -> Any:
        number = next(count)
        if number == 1:
            late.wait(SOON)
        if number == 2:
            third.set()
            release.wait(SOON)
        return Slow.start()

    ref = rt.supervise(ChildSpec("slow", start, start_timeout=2.0))
    ref.tell(RuntimeError("boom"))
    assert third.wait(SOON)
    late.set()
    assert stopped.wait(SOON)
    release.set()
    come_back(rt, ref, 2)
    assert ref.ask(does(lambda self: self is actors[2]), timeout=SOON)


# -- what is refused when it is written


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"id": ""}, "id=''"),
        ({"id": 3}, "id=3"),
        ({"start": None}, "child 'x': start=None must be a function without arguments"),
        ({"start": Threaded}, r"child 'x': start=Threaded makes an actor and does not start it; give Threaded.start"),
        ({"start": asyncio.sleep}, "child 'x': start is a coroutine"),
        ({"start": plain().start}, "child 'x': Plain is one of Pykka's own actors"),
        ({"restart": "sometimes"}, "child 'x': restart='sometimes' must be one of permanent, transient, temporary"),
        ({"shutdown": -1}, "child 'x': shutdown=-1 must be seconds, zero or more"),
        ({"shutdown": None}, "child 'x': shutdown=None"),
        ({"shutdown": float("nan")}, "child 'x': shutdown=nan"),
        ({"start_timeout": 0}, "child 'x': start_timeout=0 must be seconds, more than zero"),
        ({"start_timeout": "1"}, "child 'x': start_timeout='1'"),
        ({"period": 0.0}, "child 'x': period=0.0"),
        ({"period": float("inf")}, "child 'x': period=inf"),
        ({"intensity": -1}, "child 'x': intensity=-1 must be a whole number, zero or more"),
        ({"intensity": 1.5}, "child 'x': intensity=1.5"),
        ({"intensity": True}, "child 'x': intensity=True"),
    ],
)
def test_bad_values_of_a_child_spec(options: dict[str, Any], says: str) -> None:
    """They are refused when the spec is made; the message names the child, the option and the value."""
    given: dict[str, Any] = {"id": "x", "start": Threaded.start, **options}
    with pytest.raises(ConfigurationError, match=says):
        ChildSpec(**given)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"id": None}, "id=None"),
        (
            {"strategy": "all"},
            "supervisor 's': strategy='all' must be one of one_for_one, one_for_all, rest_for_one, dyn",
        ),
        ({"restart": None}, "restart=None"),
        ({"storm": -1}, "storm=-1"),
        ({"period": 0}, "period=0"),
        ({"shutdown": "soon"}, "shutdown='soon'"),
        ({"children": spec("a")}, "supervisor 's': children=ChildSpec"),
        ({"children": None}, "supervisor 's': children=None"),
        ({"children": [Threaded]}, "supervisor 's': .*Threaded.* is neither a ChildSpec nor a SupervisorSpec"),
        ({"children": [spec("a"), spec("a")]}, "supervisor 's' has two children 'a'; ids are unique"),
    ],
)
def test_bad_values_of_a_supervisor_spec(options: dict[str, Any], says: str) -> None:
    """As of a child's."""
    given: dict[str, Any] = {"id": "s", **options}
    with pytest.raises(ConfigurationError, match=says):
        SupervisorSpec(**given)


def test_unknown_options() -> None:
    """Both specs refuse what they do not know, and options by position."""
    for wrong in (
        lambda: ChildSpec("x", Threaded.start, timeout=3),  # type: ignore[call-arg] # pyright: ignore
        lambda: ChildSpec("x", Threaded.start, "permanent"),  # type: ignore[call-arg] # pyright: ignore
        lambda: SupervisorSpec("s", max_restarts=3),  # type: ignore[call-arg] # pyright: ignore
        lambda: SupervisorSpec("s", (), "dynamic"),  # type: ignore[call-arg] # pyright: ignore
    ):
        with pytest.raises(TypeError):
            wrong()


def test_what_is_no_spec(rt: Runtime) -> None:
    """It is named."""
    with pytest.raises(ConfigurationError, match=r"<class .*Threaded'> is neither a ChildSpec nor a SupervisorSpec"):
        rt.supervise(cast("Any", Threaded))


def test_an_id_is_unique_until_it_is_stopped(rt: Runtime) -> None:
    """The error says what the other does, and the way out."""
    first = rt.supervise(spec("feed"))
    with pytest.raises(
        ConfigurationError, match="has a child 'feed' already, which is up; ids are unique: stop that one"
    ):
        rt.supervise(spec("feed"))
    first.stop()
    second = rt.supervise(spec("feed", Looped))
    assert second.ask("hi", timeout=SOON) == ("got", "hi")
    first.resume()
    first.stop()
    assert (second.state, len(node(rt, "users").children)) == ("up", 1)


# -- supervisors


def test_a_supervisor_with_children(rt: Runtime) -> None:
    """In order of their start; each by its id; more may be added."""
    feeds = rt.supervise(SupervisorSpec("feeds", [spec("a"), spec("b", Looped)], strategy="rest_for_one"))
    assert isinstance(feeds, SupervisorRef)
    assert feeds.child("b").ask("hi", timeout=SOON) == ("got", "hi")
    c = feeds.supervise(spec("c"))
    inner = feeds.supervise(SupervisorSpec("inner", [spec("d")]))
    assert inner.child("d").state == c.state == "up"
    with pytest.raises(NotFound, match="supervisor 'feeds' has no child 'x'; it has: a, b, c, inner"):
        feeds.child("x")
    found = node(rt, "users", "feeds")
    assert [(each.id, each.kind, each.state) for each in found.children] == [
        ("a", "worker", "running"),
        ("b", "worker", "running"),
        ("c", "worker", "running"),
        ("inner", "supervisor", "running"),
    ]


def test_a_group_comes_back_together(rt: Runtime) -> None:
    """rest for one, for real: b and c are new, a is not; the tree tells how often, and why."""
    feeds = rt.supervise(SupervisorSpec("feeds", [spec("a"), spec("b"), spec("c", Looped)], strategy="rest_for_one"))
    a, b, c = (feeds.child(id) for id in "abc")
    for each in (a, b, c):
        each.ask(keep("born", 1), timeout=SOON)
    crash(b, "cut")
    come_back(rt, b, 1)
    come_back(rt, c, 1)
    assert a.ask(does(lambda self: self.born), timeout=SOON) == 1
    for each in (b, c):
        assert not each.ask(does(lambda self: hasattr(self, "born")), timeout=SOON)
    found = node(rt, "users", "feeds")
    assert [(each.restarts, each.last_reason) for each in found.children] == [
        (0, None),
        (1, "RuntimeError: cut"),
        (1, "shutdown"),
    ]


def test_a_supervisor_whose_child_does_not_start(rt: Runtime) -> None:
    """It does not start either, and what had started is stopped."""
    stopped = threading.Event()
    first: Any = type("First", (Threaded,), {"on_stop": does(lambda _: stopped.set())})
    with pytest.raises(
        StartFailed, match="child 'feeds' did not start: StartFailed: child 'bad' did not start: OSError"
    ):
        rt.supervise(SupervisorSpec("feeds", [ChildSpec("good", first.start), spec("bad", Failing)]))
    assert stopped.is_set()
    with pytest.raises(NotFound):
        rt.child("feeds")
    join_all("good")
    join_all("bad")


def test_a_supervisor_is_stopped_and_resumed(rt: Runtime) -> None:
    """With all below it. Meanwhile it takes no children, and says so; a stop of one holds for its next life."""
    feeds = rt.supervise(SupervisorSpec("feeds", [spec("a"), spec("b")]))
    feeds.stop()
    assert [each.state for each in node(rt, "users", "feeds").children] == ["down", "down"]
    with pytest.raises(StartFailed, match="its supervisor 'feeds' is stopped"):
        feeds.supervise(spec("c"))
    feeds.child("b").stop()
    feeds.resume()
    wait_until(rt, lambda: feeds.child("a").state == "up")
    assert feeds.child("b").state == "stopped"
    assert feeds.supervise(spec("c")).state == "up"


def test_a_failing_supervisor_never_takes_the_runtime_down(rt: Runtime) -> None:
    """child, supervisor, park: agents and other actors do not notice. `resume` brings it back, with all below it."""
    agent = rt.start(Agent(name="a", model=ScriptedProvider(lambda _: say("yes"))))
    other = rt.supervise(spec("other"))
    top = SupervisorSpec("top", [SupervisorSpec("mid", [spec("leaf", intensity=0)], strategy="one_for_all", intensity=0)],
                         strategy="one_for_all", intensity=0)  # fmt: skip
    ref = rt.supervise(top)
    leaf = ref.child("mid").child("leaf")
    crash(leaf, "bad luck")
    wait_until(rt, lambda: ref.state == "parked")
    reason = node(rt, "users", "top").last_reason or ""
    for words in ("supervisor 'top' gives up", "child 'mid'", "supervisor 'mid' gives up", "child 'leaf'", "bad luck"):
        assert words in reason
    with pytest.raises(StartFailed, match="its supervisor 'top' is parked"):
        ref.supervise(spec("more"))
    assert agent.ask("hi", timeout=SOON).text == "yes"
    assert (other.restarts, node(rt, "users").restarts, node(rt, "agents").restarts) == (0, 0, 0)
    ref.resume()
    wait_until(rt, lambda: leaf.state == "up")
    assert leaf.ask("hi", timeout=SOON) == ("got", "hi")


# -- the agents' supervisor, and the root


def kill_agents(rt: Runtime) -> None:
    """Crash the supervisor of agents, and wait until the next one is up."""
    agents = rt._system.agents  # pyright: ignore[reportPrivateUsage]
    number, told = agents.number, Future[None]()
    assert agents.supervisor is not None
    agents.supervisor.watch(lambda _: told.set_result(None))
    agents.supervisor.post("nonsense")
    told.result(SOON)
    wait_until(rt, lambda: (agents.number > number and agents.state == "up") or rt._system.failure is not None)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("stored", [False, True], ids=["memory", "sqlite"])
def test_agents_go_on_when_their_supervisor_fails(tmp_path: Any, stored: bool) -> None:
    """50 agents in the middle of a tool: each call runs once, each run ends as it would have; user actors come back too."""
    calls: list[str] = []
    all_in, release = threading.Semaphore(0), threading.Event()

    @tool
    def work(name: str) -> str:
        """Work."""
        calls.append(name)
        all_in.release()
        assert release.wait(SOON)
        return f"{name} done"

    agent = Agent(name="a", model=ScriptedProvider(two_turns), tools=[work])
    with Runtime(tmp_path / "store.db" if stored else None, workers=50, drain=0.0) as rt:
        feed = rt.supervise(spec("feed"))
        handles = [rt.start(agent, key=f"a/{number}").send(f"go {number}") for number in range(50)]
        for _ in handles:
            assert all_in.acquire(timeout=SOON)
        kill_agents(rt)
        release.set()
        assert [handle.result(SOON).text for handle in handles] == [f"{number} done" for number in range(50)]
        assert sorted(calls) == sorted(str(number) for number in range(50))
        assert node(rt, "agents").restarts == 1
        assert "TypeError" in (node(rt, "agents").last_reason or "")
        wait_until(rt, lambda: feed.state == "up")
        assert rt.get("a/7").ask("again 7", timeout=SOON).text == "7 done"


def two_turns(request: Any) -> Any:
    """A call of `work`, and then its result."""
    last = request.messages[-1]
    if last.role == "user":
        return call("work", name=last.text.split()[1])
    return say(last.parts[0].text)


def test_agents_in_a_backoff_go_on_when_their_supervisor_fails(rt: Runtime) -> None:
    """The failed one knew of their crashes; nobody else does."""
    from nitinol.testing import crash as crash_agent

    ref = rt.start(Agent(name="a", model=ScriptedProvider(lambda _: say("yes"))))
    assert ref.ask("hi", timeout=SOON).text == "yes"
    with rt.subscribe("agent.crashed") as crashed:
        crash_agent(ref)
        crashed.get(SOON)
    kill_agents(rt)
    assert ref.ask("hi", timeout=SOON).text == "yes"


def test_the_sixth_failure_within_a_minute_takes_the_runtime_down() -> None:
    """Every call raises `RuntimeDown`, who waits is told, user actors are stopped; the process lives and may open another."""
    held = gate("never")
    with Runtime(drain=0.0, shutdown=SOON) as rt:
        ref = rt.start(Agent(name="a", model=ScriptedProvider(lambda _: held)))
        handle = ref.send("go")
        assert held.reached()
        feed = rt.supervise(SupervisorSpec("feeds", [spec("feed")]))
        leaf = feed.child("feed")
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(handle.result, 60.0)
            for _ in range(6):
                rt._system.root.post(_wake(rt))  # pyright: ignore[reportPrivateUsage]
                wait_until(rt, lambda: rt._system.agents.state == "up")  # pyright: ignore[reportPrivateUsage]
                kill_agents(rt)
            with pytest.raises(RuntimeDown, match=r"the root supervisor failed: .*'agents'.*open a new runtime"):
                waits.result(SOON)
        agent = Agent(name="b", model=ScriptedProvider(lambda _: say("yes")))
        for refused in (
            lambda: rt.start(agent),
            lambda: ref.send("more"),
            lambda: ref.ask("more", timeout=SOON),
            lambda: ref.stop(),
            lambda: ref.resume(),
            lambda: rt.supervise(spec("more")),
            lambda: rt.child("feeds"),
            lambda: rt.publish("x"),
        ):
            with pytest.raises(RuntimeDown, match="root supervisor"):
                refused()
        join_all("nitinol-feed")
        leaf.stop()
        with pytest.raises(StartFailed, match="its supervisor 'feeds' is down"):
            feed.supervise(spec("more"))
        assert rt.tree().state == "down"
    with Runtime(drain=0.0) as again:
        assert again.start(agent).ask("hi", timeout=SOON).text == "yes"


def test_a_root_that_crashes_leaves_no_actor_behind() -> None:
    """As a root should not: the runtime is down, and what it supervised is stopped."""
    with Runtime(drain=0.0, shutdown=SOON) as rt:
        feeds = rt.supervise(SupervisorSpec("feeds", [spec("feed")]))
        told = feeds.child("feed").watch()
        rt._system.root.post("nonsense")  # pyright: ignore[reportPrivateUsage]
        assert told.result(SOON).reason == "shutdown"
        join_all("nitinol-feed")
        with pytest.raises(RuntimeDown, match="does not know 'nonsense'"):
            rt.supervise(spec("more"))


def _wake(rt: Runtime) -> Any:
    from nitinol.actors.supervisor import Wake

    return Wake(rt._system.agents, by_hand=False)  # pyright: ignore[reportPrivateUsage]


# -- actors and agents


def answering() -> Agent[str]:
    """An agent that says yes."""
    return Agent(name="yes", model=ScriptedProvider(lambda _: say("yes")))


def test_a_feed_sends_to_agents(rt: Runtime) -> None:
    """In a handler of a thread actor, `send` is allowed: it waits for a commit, which waits for no actor."""
    feed, ref = rt.supervise(spec("feed")), rt.start(answering())
    assert feed.ask(does(lambda _: ref.send("news")), timeout=SOON).result(SOON).text == "yes"


WAITS: dict[str, Callable[[Runtime], object]] = {
    "ask": lambda rt: rt.start(answering()).ask("hi", timeout=SOON),
    "result": lambda rt: rt.start(answering()).send("hi").result(SOON),
    "iteration": lambda rt: list(rt.start(answering()).send("hi")),
    "text": lambda rt: list(rt.start(answering()).send("hi").text()),
    "run": lambda rt: run("hi", answering()),
    "stop": lambda rt: rt.start(answering()).stop(),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_handler_waits_for_no_run(rt: Runtime, name: str) -> None:
    """A tool of the run may ask this very actor: the error names the call and the way out, and the actor crashes by it."""
    feed = rt.supervise(spec("feed"))
    with pytest.raises(WouldDeadlock, match=rf"{name}\(\) in an actor's handler would wait for others") as caught:
        feed.ask(does(lambda _: WAITS[name](rt)), timeout=SOON)
    assert ("another thread" if name == "stop" else "ref.send(…)") in str(caught.value)


def test_a_handler_stops_no_actor_and_no_runtime(rt: Runtime) -> None:
    """It may be its own."""
    feed = rt.supervise(spec("feed", intensity=100))
    for stop in (feed.stop, rt.stop):
        with pytest.raises(WouldDeadlock, match=r"stop\(\) in an actor's handler"):
            feed.ask(calls(stop), timeout=SOON)
        feed.resume()
        wait_until(rt, lambda: feed.state == "up")


def test_what_a_handler_may_do(rt: Runtime) -> None:
    """Start a stream, run a coroutine of its own, and start a sibling."""
    feed = rt.supervise(spec("feed"))
    assert feed.ask(does(lambda _: asyncio.run(arun("hi", answering()))), timeout=SOON).text == "yes"
    assert feed.ask(does(lambda _: stream("hi", answering())), timeout=SOON).result(SOON).text == "yes"
    assert feed.ask(does(lambda _: rt.supervise(spec("sibling"))), timeout=SOON).state == "up"


def test_a_loop_actors_handler_waits_for_nothing(rt: Runtime) -> None:
    """Neither for a commit: the loop is everybody's. What is refused has not been done."""
    feed, ref = rt.supervise(spec("feed", Looped, intensity=100)), rt.start(answering())
    other = rt.supervise(spec("other"))
    for wait in (lambda: ref.send("hi"), lambda: rt.supervise(spec("sibling")), other.stop):
        with pytest.raises(WouldDeadlock, match="would block a loop of the runtime"):
            feed.ask(calls(wait), timeout=SOON)
        feed.resume()
        wait_until(rt, lambda: feed.state == "up")
    assert [(each.id, each.state) for each in node(rt, "users").children] == [("feed", "running"), ("other", "running")]


def test_a_tool_may_wait(rt: Runtime) -> None:
    """For a run, and for an actor: its thread is nobody's handler."""
    feed = rt.supervise(spec("feed"))

    @tool
    def work(name: str) -> str:
        """Work."""
        return f"{feed.ask(name, timeout=SOON)[1]} {rt.start(answering()).ask('hi', timeout=SOON).text}"

    agent = Agent(name="a", model=ScriptedProvider(two_turns), tools=[work])
    assert rt.start(agent).ask("go 7", timeout=SOON).text == "7 yes"


# -- the end of the runtime


def test_actors_stop_in_reverse_before_the_agents() -> None:
    """With the runtime."""
    order: list[str] = []
    with Runtime(drain=0.0) as rt:
        refs = [rt.supervise(spec(id, Looped if id == "b" else Threaded)) for id in "abc"]
        for ref in refs:
            ref.ask(keep("on_stopped", partial(order.append, ref.id)), timeout=SOON)
        live = rt.start(answering())
        assert live.ask("hi", timeout=SOON).text == "yes"
    assert order == ["c", "b", "a"]
    with pytest.raises(AgentDown, match="child 'a' is down"):
        refs[0].tell("hi")
    with pytest.raises(RuntimeStopped):
        rt.supervise(spec("late"))


@both
@pytest.mark.parametrize("shutdown", [SHORT, 60.0])
def test_a_runtime_stops_in_time_with_an_actor_that_hangs(actor_class: Any, shutdown: float) -> None:
    """It is given up at its own deadline or the runtime's; who asked it is refused. In time, others stop in good order."""
    hold = Hold(60.0)
    stopped: list[str] = []
    with Runtime(drain=0.0, shutdown=2.0) as rt, ThreadPoolExecutor(1) as pool:
        first = rt.supervise(spec("first"))
        first.ask(keep("on_stopped", partial(stopped.append, "first")), timeout=SOON)
        ref = rt.supervise(spec("feed", actor_class, shutdown=shutdown))
        asked = pool.submit(ref.ask, hold, timeout=60.0)
        assert hold.entered.wait(SOON)
        began = time.monotonic()
        rt.stop()
        assert time.monotonic() - began < 2.0 + 1.5
        with pytest.raises(AgentDown, match=r"'feed'.* was given up"):
            asked.result(SOON)
        assert stopped == ["first"] or shutdown > SHORT
        hold.release.set()
    join_all("nitinol-feed")


def test_a_start_that_outlives_the_runtime() -> None:
    """Who waits for it is told; what it has started after all is stopped."""
    entered, release, stopped = threading.Event(), threading.Event(), threading.Event()

    class Slow(Threaded):
        def on_stop(self) -> None:
            stopped.set()

    def start() -> Any:
        entered.set()
        release.wait(SOON)
        return Slow.start()

    with Runtime(drain=0.0) as rt, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(rt.supervise, ChildSpec("slow", start))
        assert entered.wait(SOON)
        rt.stop()
        with pytest.raises(StartFailed, match="'slow' did not start: it was stopped before it was up"):
            waits.result(SOON)
    release.set()
    assert stopped.wait(SOON)
    join_all("slow")


def test_references_answer_after_the_end(rt: Runtime) -> None:
    """Nobody waits for a runtime that is gone."""
    feeds = rt.supervise(SupervisorSpec("feeds", [spec("a")]))
    ref = feeds.child("a")
    rt.stop()
    ref.stop()
    ref.resume()
    assert ref.watch().result(SOON).reason == "shutdown"
    with pytest.raises(StartFailed, match="its supervisor 'feeds' is down"):
        feeds.supervise(spec("b"))
    assert ref.state in ("down", "stopped")


def test_what_a_users_error_says_is_read_where_it_was_raised(rt: Runtime) -> None:
    """A slow `__str__` holds up its own actor, and no supervisor."""
    entered, go = threading.Event(), threading.Event()

    class SlowToTell(Exception):
        def __str__(self) -> str:
            entered.set()
            assert go.wait(SOON)
            return "at last"

    ref = rt.supervise(spec("feed"))
    told = ref.watch()
    ref.tell(SlowToTell())
    assert entered.wait(SOON)
    assert rt.supervise(spec("sibling")).state == "up"
    go.set()
    assert told.result(SOON).why == "SlowToTell: at last"
