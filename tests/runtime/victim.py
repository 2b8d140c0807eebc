"""A program that is killed at a named point, and started again to finish: `python victim.py STORE POINT SIDE [go-on]`.

It writes each id it was given by `send` to `SIDE/accepted`, and each execution of a tool to `SIDE/ran`, both synced: the
books of the world outside, which no crash of the process may contradict.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

from nitinol import Agent, Approval, Delta, ModelRequest, Prices, Runtime, ToolContext, errors, tool
from nitinol.http import Http
from nitinol.retry import Retry
from nitinol.testing import Answer, ScriptedProvider, call, fail, say

STORE, POINT, SIDE = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
GOES_ON = sys.argv[4:] == ["go-on"]
SOON = 60.0
told = threading.Event()
"""`send` has returned, and the book says so."""
reached = threading.Event()
"""Two parallel tools: one is done, the other runs."""


def die() -> NoReturn:
    """As by `kill -9`: nothing is flushed, closed or said. But what `send` has returned is in the book: the test reads it."""
    if not GOES_ON:
        told.wait(SOON)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


def dies(point: str) -> bool:
    """Whether this is where this process ends. Once, but for the point that is one three times."""
    return point == POINT and (not GOES_ON or point == "three times")


def book(name: str, line: str) -> None:
    """Write a line that outlives the process."""
    handle = os.open(SIDE / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.fsync(handle)
    os.close(handle)


@tool(replay="safe")
def look(ctx: ToolContext) -> str:
    """Look something up; may be repeated."""
    book("ran", f"look {ctx.idempotency_key}")
    if dies("safe tool"):
        die()
    return "seen"


@tool
def pay(ctx: ToolContext) -> str:
    """Pay; may not be repeated."""
    book("ran", f"pay {ctx.idempotency_key}")
    if dies("never tool"):
        die()
    return "paid"


@tool
async def linger(ctx: ToolContext) -> str:
    """Take long enough for things to happen meanwhile."""
    book("ran", f"linger {ctx.idempotency_key}")
    reached.set()
    if GOES_ON:
        return "lingered"
    await asyncio.Event().wait()
    return "never"


@tool(approval=Approval(timeout=3600))
def launch(ctx: ToolContext) -> str:
    """Needs a person's word."""
    book("ran", f"launch {ctx.idempotency_key}")
    return "launched"


class Model(ScriptedProvider):
    """Answers by the last message; dies where it is told to."""

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[Any]:
        if dies("model started") or dies("three times"):
            die()
        if dies("mid-stream"):
            yield Delta("text", "half of ")
            await asyncio.sleep(0)
            die()
        if POINT == "waiting inputs" and not GOES_ON:
            reached.set()
            await asyncio.Event().wait()
        async for part in super().stream(request, http):
            yield part


def answer(request: ModelRequest) -> Answer:
    """Tools first, then an end."""
    if POINT == "backoff" and request.attempt == 1:
        return fail(errors.Overloaded())
    if request.messages[-1].role == "tool":
        return say("done", chunks=3)
    match POINT:
        case "safe tool":
            return call("look")
        case "never tool":
            return call("pay")
        case "parallel":
            return [call("pay"), call("linger")]
        case "cancelling":
            return call("linger")
        case "approval":
            return call("launch")
        case "requested":
            return [call("look"), call("pay")]
        case _:
            return say("done", chunks=3)


AGENT = Agent(
    name="victim",
    model=Model(answer, prices=Prices(input="1", output="2"), max_output_tokens=1000),
    tools=[look, pay, linger, launch],
    retry=Retry(base=60.0, cap=60.0) if POINT == "backoff" and not GOES_ON else Retry(base=0.001),
)


def watch(rt: Runtime, type: str, then: Callable[[], object]) -> None:
    """Do something as soon as an event of this type is committed."""
    subscription = rt.subscribe(type)

    def follow() -> None:
        subscription.get(SOON)
        then()

    threading.Thread(target=follow, daemon=True).start()


def begin(rt: Runtime) -> None:
    """The first life: up to the point."""
    ref = rt.start(AGENT, key="k")
    if POINT == "requested":
        die_at_commit("tool.requested")
    if POINT == "backoff":
        watch(rt, "model.retrying", die)
    if POINT == "approval":
        watch(rt, "run.paused", die)
    handle = ref.send("go", run_id="run-1")
    book("accepted", "run-1")
    told.set()
    if POINT == "accepted":
        die()
    if POINT == "cancelling":
        assert reached.wait(SOON)
        handle.cancel()
        die()
    if POINT == "parallel":
        with rt.subscribe("tool.finished", after=0) as ends:
            ends.get(SOON)
        assert reached.wait(SOON)
        die()
    if POINT == "waiting inputs":
        assert reached.wait(SOON)
        ref.send("second", run_id="run-2")
        book("accepted", "run-2")
        book("inputs", handle.steer("steer"))
        book("inputs", handle.follow_up("follow"))
        die()
    handle.result(SOON)


def die_at_commit(type: str) -> None:
    """Die in the moment a commit with such an event is told, before anything that it releases."""
    from nitinol.actors import agent_actor, cell

    class Dying(agent_actor.AgentActor):
        def _committed(self, events: Any, state: Any, request: Any) -> None:
            if any(event.type == type for event in events):
                die()
            super()._committed(events, state, request)

    cell.AgentActor = Dying  # type: ignore[attr-defined] # pyright: ignore


def finish(rt: Runtime) -> None:
    """Another life: everything that was accepted ends."""
    if POINT == "approval":
        rt.handle("run-1").approve("call_1_0")
    for line in (SIDE / "accepted").read_text().splitlines():
        result = rt.handle(line).result(SOON)
        print(line, result.status, flush=True)


def main() -> None:
    with Runtime(STORE, agents=[AGENT], drain=0.0) as rt:
        if GOES_ON:
            finish(rt)
        else:
            begin(rt)


if __name__ == "__main__":
    main()
