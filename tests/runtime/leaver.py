"""A program that works hard and then leaves in one of many ways: `python leaver.py WAY STORE SEED`.

Its runtime has agents with coroutines, functions and borrowed threads that hang for ever, models that never answer, open
approvals, an agent in backoff, and agents that go from run to run; how many of each is chance. Once all of them are at
work it says `leaving`, and leaves. Where it lives on after a stop, it lets go of what hung, and says `clean` if every
thread, file and process is gone that was not there before, else what is left.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from nitinol import Agent, Hooks, ModelRequest, Runtime, ToolContext, errors, run, tool
from nitinol.oneshot import default_runtime
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate, say

WAY, STORE, SEED = sys.argv[1], sys.argv[2], int(sys.argv[3])
SOON = 20.0
DRAIN, SHUTDOWN = 0.2, 2.0
chance = random.Random(SEED)
PARENT = os.getpid()

released = threading.Event()
"""What hung comes back."""
never = gate("never")
begun = threading.Semaphore(0)
"""Released once for each call that hangs."""
runtimes: list[Runtime] = []


@tool
async def sit(ctx: ToolContext) -> str:
    """A coroutine that hangs, and heeds a cancel."""
    begun.release()
    await asyncio.Event().wait()
    return "never"


@tool(timeout=3600)
def stall(ctx: ToolContext) -> str:
    """A function that hangs, and heeds nothing."""
    begun.release()
    released.wait()
    return "late"


@tool
async def borrow(ctx: ToolContext) -> str:
    """A coroutine whose thread hangs."""
    begun.release()
    await asyncio.to_thread(released.wait)
    return "late"


@tool(approval=True)
def launch() -> str:
    """Needs a person's word."""
    return "launched"


@tool
def leave(ctx: ToolContext) -> str:
    """Stops the runtime it runs in."""
    say_it("leaving")
    runtimes[0].stop()
    say_it("stopped within")
    return "left"


@tool
async def aleave(ctx: ToolContext) -> str:
    """Stops the runtime whose loop it runs on."""
    say_it("leaving")
    try:
        runtimes[0].stop()
    except errors.WouldDeadlock:
        await runtimes[0].astop()
    return "left"


class Leaving(Hooks):
    """Stops its runtime before a tool runs."""

    def before_tool(self, ctx: Any, call: Any) -> None:
        say_it("leaving")
        runtimes[0].stop()


def script(request: ModelRequest) -> Answer:
    last = request.messages[-1]
    if last.role == "tool" or last.text in ("hello", "again"):
        return say("done", chunks=3)
    return never if last.text == "wait" else call(last.text)


AGENT = Agent(
    name="busy", model=ScriptedProvider(script), tools=[sit, stall, borrow, launch, leave, aleave], max_pending=1000
)
HOOKED = Agent(name="hooked", model=ScriptedProvider(script), tools=[launch, sit], hooks=[Leaving()])


def say_it(line: str) -> None:
    """To the test, in one write: other threads may speak too."""
    os.write(1, f"{line}\n".encode())


def open_runtime(store: str | None = STORE) -> Runtime:
    rt = Runtime(store, agents=[AGENT, HOOKED], drain=DRAIN, shutdown=SHUTDOWN, workers=64)
    runtimes.append(rt)
    return rt


def load(rt: Runtime) -> None:
    """Give everybody something to do; returns once they do it."""
    with rt.subscribe("run.paused") as paused:
        kinds = {kind: chance.randint(1, 5) for kind in ("sit", "stall", "borrow", "launch", "wait")}
        for kind, count in kinds.items():
            for number in range(count):
                rt.start(AGENT, key=f"{kind}/{number}").send(kind)
        for _ in range(kinds["sit"] + kinds["stall"] + kinds["borrow"]):
            assert begun.acquire(timeout=SOON)
        for _ in range(kinds["launch"]):
            paused.get(SOON)
        assert never.reached(SOON)
    falling = rt.start(AGENT, key="falling")
    falling.send("sit")
    assert begun.acquire(timeout=SOON)
    for _ in range(chance.randint(1, 4)):  # the last restarts are seconds away
        with suppress(errors.NitinolError, TimeoutError):
            crash(falling, timeout=0.01)
    for number in range(chance.randint(1, 4)):
        threading.Thread(target=work, args=(rt, f"worker/{number}"), daemon=True).start()
    threading.Thread(target=follow, args=(rt,), daemon=True).start()


def work(rt: Runtime, key: str) -> None:
    """Run after run, until the runtime is gone."""
    with suppress(errors.RuntimeStopped, errors.AgentStopped):
        while True:
            rt.start(AGENT, key=key).ask("hello")


def follow(rt: Runtime) -> None:
    """Read all there is, until the runtime is gone."""
    with suppress(errors.RuntimeStopped):
        for _ in rt.subscribe():
            pass


# -- what is left


def held() -> tuple[set[threading.Thread], set[str]]:
    """Threads, and open files by what they are."""
    files: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            files.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return set(threading.enumerate()), {file for file in files if "/proc/" not in file}


def check_clean(before: tuple[set[threading.Thread], set[str]]) -> None:
    """Say what is left of a runtime that has stopped."""
    released.set()
    threads, files = before
    for thread in set(threading.enumerate()) - threads - {threading.current_thread()}:
        thread.join(SOON)
    left_threads = {thread.name for thread in set(threading.enumerate()) - threads - {threading.current_thread()}}
    left = sorted(left_threads) + sorted(held()[1] - files)
    with suppress(ChildProcessError):
        left.append(f"process {os.waitpid(-1, os.WNOHANG)[0]}")
    say_it(f"left: {left}" if left else "clean")


def timed(stop: Callable[[], object]) -> None:
    """Stop, and say how long it took."""
    say_it("leaving")
    began = time.monotonic()
    try:
        stop()
    finally:
        say_it(f"took {time.monotonic() - began:.3f}")


def refused(action: Callable[[], object]) -> None:
    """An action that must raise at once, and say whose the runtime is."""
    said = "it was not refused"
    try:
        action()
    except errors.RuntimeStopped as error:
        said = str(error)
    assert f"belongs to process {PARENT}" in said, said


def interrupt() -> NoReturn:
    """As Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()
    raise AssertionError("it was not interrupted")


# -- the ways: each ends the program, or returns


def way_stop(rt: Runtime) -> None:
    timed(rt.stop)
    rt.stop()


def way_with(rt: Runtime) -> None:
    with rt:
        say_it("leaving")


def way_with_error(rt: Runtime) -> None:
    with rt:
        say_it("leaving")
        raise RuntimeError("planned")


def way_with_interrupt(rt: Runtime) -> None:
    with rt:
        say_it("leaving")
        interrupt()


def way_with_exit(rt: Runtime) -> None:
    with rt:
        say_it("leaving")
        sys.exit(7)


def way_with_sigterm(rt: Runtime) -> None:
    """What supervision.md tells users to do."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with rt:
        say_it("leaving")
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait()


def way_sigterm(rt: Runtime) -> None:
    say_it("leaving")
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()


def way_end(rt: Runtime) -> None:
    say_it("leaving")


def way_sys_exit(rt: Runtime) -> None:
    say_it("leaving")
    sys.exit(7)


def way_error(rt: Runtime) -> None:
    say_it("leaving")
    raise RuntimeError("planned")


def way_interrupt(rt: Runtime) -> None:
    say_it("leaving")
    interrupt()


def way_end_memory(rt: Runtime) -> None:
    other = open_runtime(None)
    load(other)
    say_it("leaving")


def way_interrupted_drain(rt: Runtime) -> None:
    """Ctrl-C while a stop waits for runs: it waits for none any longer, and says so in good order."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        timed(lambda: rt.stop(drain=60.0))
    except KeyboardInterrupt:
        say_it("interrupted")


def way_twice(rt: Runtime) -> None:
    threads = [threading.Thread(target=rt.stop) for _ in range(4)]
    say_it("leaving")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
        assert not [one for one in threading.enumerate() if one.name == "nitinol-core"], "it returned before the end"


def way_second_hurries(rt: Runtime) -> None:
    first = threading.Thread(target=lambda: rt.stop(drain=60.0))
    first.start()
    timed(lambda: rt.stop(drain=0))
    first.join()


def way_tool(rt: Runtime) -> None:
    with suppress(errors.RuntimeStopped, errors.AgentStopped):
        rt.start(AGENT, key="leaver").ask("leave")
    rt.stop()


def way_async_tool(rt: Runtime) -> None:
    with suppress(errors.RuntimeStopped, errors.AgentStopped):
        rt.start(AGENT, key="leaver").ask("aleave")
    rt.stop()


def way_hook(rt: Runtime) -> None:
    with suppress(errors.RuntimeStopped, errors.AgentStopped):
        rt.start(HOOKED, key="leaver").ask("launch")
    rt.stop()


def way_subscriber(rt: Runtime) -> None:
    told = rt.subscribe("custom")

    def follow_and_leave() -> None:
        for _ in told:
            say_it("leaving")
            rt.stop()

    follower = threading.Thread(target=follow_and_leave)
    follower.start()
    rt.publish("go")
    follower.join()
    rt.stop()


def way_during_start(rt: Runtime) -> None:
    def hammer() -> None:
        with suppress(errors.RuntimeStopped):
            while True:
                rt.start(AGENT, key=f"new/{time.monotonic_ns() % 500}").send("hello")
                started.set()

    started = threading.Event()
    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert started.wait(SOON)
    timed(rt.stop)
    for thread in threads:
        thread.join(SOON)


def way_blocked_loop(rt: Runtime) -> None:
    """A coroutine blocks the loop of coroutines: it is given up."""

    @tool
    async def block() -> str:
        """Block a loop."""
        begun.release()
        released.wait()
        return "late"

    agent = Agent(name="blocker", model=ScriptedProvider(lambda request: call("block")), tools=[block])
    rt.start(agent).send("go")
    assert begun.acquire(timeout=SOON)
    timed(rt.stop)


def way_two(rt: Runtime) -> None:
    """The other one goes on."""
    with open_runtime(f"{STORE}-2") as other:
        try:
            Runtime(f"{STORE}-2")
        except errors.StoreInUse:
            say_it("in use")
        load(other)
        timed(rt.stop)
        assert other.start(AGENT, key="k").ask("hello", timeout=SOON).text == "done"


def way_async_with(rt: Runtime) -> None:
    async def main() -> None:
        async with rt:
            await rt.start(AGENT, key="k").aask("hello")
            say_it("leaving")

    asyncio.run(main())


def way_async_with_interrupt(rt: Runtime) -> None:
    async def main() -> None:
        async with rt:
            say_it("leaving")
            os.kill(os.getpid(), signal.SIGINT)
            await rt.start(AGENT, key="k").aask("wait")

    asyncio.run(main())


def way_stop_in_task(rt: Runtime) -> None:
    """Under a full executor, and with a stop that blocks the loop beside one that does not."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waits = [loop.run_in_executor(None, released.wait) for _ in range(64)]
        say_it("leaving")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await rt.astop(drain=60.0)  # cancelled, it hurries, and ends all the same
        rt.stop()
        released.set()
        await asyncio.gather(*waits)

    import warnings

    warnings.simplefilter("ignore", RuntimeWarning)
    asyncio.run(main())


def use_in_child(rt: Runtime) -> None:
    """Nothing of the parent's can be used; everything of its own can."""
    ref, handle = refs[0], handles[0]
    for action in (
        lambda: rt.start(AGENT, key="k"), lambda: rt.get("sit/0"), rt.agents, lambda: rt.handle(handle.run_id),
        rt.subscribe, lambda: rt.publish("x"), rt.tree, lambda: rt.forget("sit/0"), lambda: rt.export_agent("sit/0"),
        lambda: ref.send("hello"), lambda: ref.ask("hello", timeout=SOON), ref.status, ref.messages, ref.history,
        ref.snapshot, ref.pending_approvals, lambda: ref.current, ref.stop, ref.reset, ref.resume, handle.done,
        handle.result, handle.cancel, lambda: list(handle), lambda: list(handle.text()), lambda: handle.steer("x"),
        lambda: asyncio.run(ref.aask("hello")), lambda: asyncio.run(handle.aresult()), subscriptions[0].get,
    ):  # fmt: skip
        refused(action)
    rt.stop()
    subscriptions[0].close()
    assert run("hello", AGENT).text == "done"
    with Runtime(f"{STORE}-child", agents=[AGENT]) as own:
        assert own.start(AGENT, key="k").ask("hello", timeout=SOON).text == "done"
    try:
        Runtime(STORE, read_only=True)
    except errors.StoreInUse:
        say_it("child done")


refs: list[Any] = []
handles: list[Any] = []
subscriptions: list[Any] = []


def hold(rt: Runtime) -> None:
    """Things for a child to inherit; the process's own runtime too."""
    run("hello", AGENT)
    refs.append(rt.get("sit/0"))
    handles.append(refs[0].current)
    subscriptions.append(rt.subscribe())


def go_on(rt: Runtime) -> None:
    """The parent, after its child has ended."""
    assert rt.start(AGENT, key="k").ask("again", timeout=SOON).text == "done"
    assert run("hello", AGENT).text == "done"
    subscriptions[0].close()
    default_runtime().stop()
    timed(rt.stop)


def way_fork(rt: Runtime) -> None:
    """The child leaves by the end of the interpreter, through a `with` of the parent's."""
    hold(rt)
    with rt:
        child = os.fork()
        if not child:
            use_in_child(rt)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
        go_on(rt)


def way_fork_many(rt: Runtime) -> None:
    """At any moment, whoever holds which lock; a grandchild too."""
    hold(rt)
    for number in range(int(os.environ.get("NITINOL_FORKS", "5"))):
        child = os.fork()
        if not child:
            if not os.fork():
                refused(refs[0].status)
                os._exit(0)
            assert os.wait()[1] == 0
            refused(lambda: rt.start(AGENT, key="k"))
            Runtime(f"{STORE}-child-{number}").stop()  # SQLite has locks of its own, which other threads may hold
            assert run("hello", AGENT).text == "done"
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
    go_on(rt)


def way_multiprocessing(rt: Runtime) -> None:
    hold(rt)
    process = multiprocessing.get_context("fork").Process(target=use_in_child, args=(rt,))
    process.start()
    process.join()
    assert process.exitcode == 0, "the child failed"
    process.close()
    go_on(rt)


def way_fork_in_tool(rt: Runtime) -> None:
    """The child of a worker thread ends when the function returns, as it would outside."""

    @tool
    def split() -> str:
        """Fork, and return twice."""
        child = os.fork()
        return str(os.waitpid(child, 0)[1]) if child else "child"

    def answer(request: ModelRequest) -> Answer:
        last = request.messages[-1]
        return call("split") if last.role == "user" else say(last.text or "none")

    hold(rt)
    splitter = Agent(name="splitter", model=ScriptedProvider(answer), tools=[split])
    result = rt.start(splitter).ask("go", timeout=SOON)
    assert result.tool_calls[0].text == "0", result.tool_calls
    go_on(rt)


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    before = held()
    rt = open_runtime()
    load(rt)
    globals()[f"way_{WAY}"](rt)
    if len(sys.argv) > 4:  # it lives on
        runtimes.clear()
        check_clean(before)


if __name__ == "__main__":
    main()
