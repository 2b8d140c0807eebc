"""A program that goes through everything an agent can go through: `python crasher.py STORE SIDE [POINT]`.

With a point it dies there, as by `kill -9`. Run again without one, it goes on: every step names its run, so that what was
accepted before is the same run now. It keeps the books of the world outside in `SIDE`: `accepted`, what it was told was
accepted; `asked`, each request that reached the model; `ran`, each execution of a tool.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nitinol import (
    Agent,
    Approval,
    Budget,
    Compaction,
    Hooks,
    Message,
    ModelRequest,
    Prices,
    Runtime,
    ToolContext,
    errors,
    tool,
)
from nitinol.agent import model_name
from nitinol.env import Env
from nitinol.hooks import HookContext
from nitinol.http import Http
from nitinol.messages import Text, ToolCall
from nitinol.retry import Retry
from nitinol.testing import Answer, ScriptedProvider, call, crash, crash_at, fail, gate, say
from nitinol.usage import Usage

STORE, SIDE = Path(sys.argv[1]), Path(sys.argv[2])
SOON = 20.0


def book(name: str, line: str) -> None:
    """Write a line that outlives the process."""
    handle = os.open(SIDE / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.fsync(handle)
    os.close(handle)


@tool
def pay(ctx: ToolContext) -> str:
    """Pay; may not be repeated."""
    book("ran", f"pay {ctx.idempotency_key}")
    return "paid"


@tool(replay="safe")
def look(ctx: ToolContext) -> str:
    """Look; may be repeated."""
    book("ran", f"look {ctx.idempotency_key}")
    return "seen"


@tool(approval=Approval(timeout=3600))
def launch(ctx: ToolContext) -> str:
    """Launch; needs a person's word."""
    book("ran", f"launch {ctx.idempotency_key}")
    return "launched"


fed, held = gate(call("look", call_id="look")), gate("too late for a steer")
"""Answers that come when inputs were accepted meanwhile."""
never = gate("never")


def answer(request: ModelRequest) -> Answer:
    """By the step, which is the key, and by how far its conversation is."""
    after_tool = request.messages[-1].role == "tool"
    if request.purpose == "compact":
        return "notes"
    match request.key:
        case "approval":
            return "done" if after_tool else call("launch", call_id="launch")
        case "retry" if request.attempt == 1:
            return fail(errors.Overloaded())
        case "retry":
            return say("half", cut=True)
        case "inputs":
            return "done" if request.turn > 1 else fed
        case "dropped":
            return held
        case "cancelled":
            return never
        case "circles":
            return call("look", call_id="look")
        case "hooked":
            return "done" if after_tool else call("look", call_id="look")
        case _:
            return "done" if after_tool else call("pay", call_id="pay")


class Model(ScriptedProvider):
    """Books each request before it answers."""

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[Any]:
        book("asked", f"{request.run_id}/{request.turn}/{request.attempt}")
        async for part in super().stream(request, http):
            yield part


class Look(Hooks):
    """Sees each call first."""

    def before_tool(self, ctx: HookContext, call: ToolCall) -> None:
        return None


class Eager(Env):
    """Restarts come at once."""

    def random(self) -> float:
        return 0.0


PRICES = Prices(input="1", output="1")
MODEL = Model(answer, prices=PRICES, max_output_tokens=1000)
SPARE = Model(lambda request: "done", model="spare", prices=PRICES, max_output_tokens=1000)
PLAIN = Agent(name="plain", model=MODEL, tools=[pay, look, launch], retry=Retry(attempts=2, base=0.001))
FRAIL = PLAIN.replace(name="frail", fallbacks=[SPARE])
HOOKED = PLAIN.replace(name="hooked", hooks=[Look()])
POOR = PLAIN.replace(name="poor", budget=Budget(usd="0.000001"))
NARROW = PLAIN.replace(
    name="narrow", context_window=600, compaction=Compaction(reserve_tokens=100, keep_recent_tokens=50)
)
DEAR = Model(lambda request: "done", model="dear", usage=Usage(output_tokens=600), max_output_tokens=1000)
THRIFTY = PLAIN.replace(name="thrifty", model=DEAR, budget=Budget(tokens=1100))
AGENTS = [PLAIN, FRAIL, HOOKED, POOR, NARROW, THRIFTY]


def main() -> None:
    with Runtime(STORE, agents=AGENTS, drain=0.0, env=Eager()) as rt:

        def send(agent: Agent[str], key: str, prompt: str = "go", **more: Any) -> Any:
            handle = rt.start(agent, key=key).send(prompt, run_id=key, **more)
            book("accepted", key)
            return handle

        send(PLAIN, "plain").result(SOON)
        send(FRAIL, "retry").result(SOON)
        send(HOOKED, "hooked").result(SOON)
        send(POOR, "poor").result(SOON)
        send(THRIFTY, "thrifty").result(SOON)
        broken = [
            Message(role="user", parts=(Text("look"),)),
            Message(role="assistant", parts=(ToolCall(call_id="x", name="look"),)),
        ]
        send(PLAIN, "repaired", messages=broken).result(SOON)

        with rt.subscribe("run.paused", run_id="approval", after=0) as pauses:
            handle = send(PLAIN, "approval")
            pauses.get(SOON)
            with suppress(errors.AlreadyResolved):
                handle.approve("launch")
            handle.result(SOON)

        for key, answered in (("inputs", fed), ("dropped", held)):
            handle = send(PLAIN, key)
            if handle.done() or answered.reached(SOON):
                with suppress(errors.AlreadyResolved):
                    book("accepted", handle.steer("steer"))
                    if key == "inputs":
                        book("accepted", handle.follow_up("follow"))
            answered.release()
            handle.result(SOON)

        handle = send(PLAIN, "cancelled")
        if not handle.done():
            never.reached(SOON)
            with suppress(errors.AlreadyResolved):
                handle.cancel()
            handle.result(SOON)

        long = [
            Message(role="user", parts=(Text("go far"),)),
            Message(role="assistant", parts=(Text("far " * 600),)),
        ]
        send(NARROW, "long", messages=long).result(SOON)
        send(PLAIN, "circles").result(SOON)

        ref = rt.start(PLAIN, key="plain")
        ref.set_model(SPARE)
        assert model_name(ref.agent.model) == "scripted:spare"
        ref.reset()
        with rt.subscribe("agent.parked", "agent.started", key="plain") as lives:
            for _ in range(6):
                crash(ref)
                lives.get(SOON)
        ref.resume()
        ref.ask("are you there?", timeout=SOON)
        ref.stop()


if __name__ == "__main__":
    if sys.argv[3:]:
        crash_at(sys.argv[3])
    main()
    print("through")
