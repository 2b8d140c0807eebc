"""One life of the victim of `tests.chaos`: `python -m tests.chaos_victim STORE BOOKS URL SEED LIFE [last]`.

Twenty agents with tools of both replay kinds, and users who send, steer, follow up, cancel and approve at random, until
somebody kills the process; the last life instead lets everything end. It says `opening` before it opens the store, `busy`
once its tools run, `done` at the end.

It keeps the books of the world outside, each line synced: `told` has what it was told to be accepted, `ran` each
execution of a tool, written before the tool takes effect.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nitinol import (
    Agent,
    AgentRef,
    Approval,
    Hooks,
    ModelInfo,
    ModelRequest,
    Prices,
    RunHandle,
    Runtime,
    ToolContext,
    tool,
)
from nitinol.errors import AlreadyResolved
from nitinol.hooks import HookContext
from nitinol.retry import Retry
from nitinol_providers import OpenAICompatible

STORE, BOOKS, URL, SEED, LIFE = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
LAST = sys.argv[6:] == ["last"]
AGENTS = 20
GENERATION = 5
"""Lives after which the users turn to fresh agents, so that no log grows without end; the old ones finish their runs."""
SOON = 60.0


def key_of(number: int, life: int) -> str:
    """The agent that a user talks to in a life."""
    return f"agent-{number:02}.{life // GENERATION:03}"


def book(name: str, **line: Any) -> None:
    """Write a line that outlives the process. From any thread."""
    handle = os.open(BOOKS / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, json.dumps({**line, "life": LIFE}).encode() + b"\n")
    os.fsync(handle)
    os.close(handle)


# ---- the agents

_busy = threading.Event()


def run_tool(name: str, replay: str, ctx: ToolContext, token: str) -> None:
    """What all tools begin with."""
    call = {"run": ctx.run_id, "turn": ctx.turn, "call": ctx.call_id, "key": ctx.idempotency_key}
    book("ran", tool=name, replay=replay, token=token, **call)
    if not _busy.is_set():
        _busy.set()
        print("busy", flush=True)


@tool(replay="safe")
def look(ctx: ToolContext, token: str, limit: int) -> str:
    """Look something up, on a thread."""
    run_tool("look", "safe", ctx, token)
    time.sleep(0.001 * (limit % 20))
    return f"seen {token}"


@tool(replay="safe")
async def search(ctx: ToolContext, token: str, limit: int) -> str:
    """Search, in a coroutine."""
    run_tool("search", "safe", ctx, token)
    await asyncio.sleep(0.001 * (limit % 20))
    return f"found {token}"


@tool
def pay(ctx: ToolContext, token: str, cents: int) -> str:
    """Pay, on a thread; not to be repeated."""
    run_tool("pay", "never", ctx, token)
    time.sleep(0.001 * (cents % 20))
    return f"paid {token}"


@tool
async def mail(ctx: ToolContext, token: str, pages: int) -> str:
    """Mail, in a coroutine; not to be repeated."""
    run_tool("mail", "never", ctx, token)
    await asyncio.sleep(0.001 * (pages % 20))
    return f"mailed {token}"


@tool(approval=Approval())
def launch(ctx: ToolContext, token: str) -> str:
    """Launch, if a person says so; not to be repeated."""
    run_tool("launch", "never", ctx, token)
    return f"launched {token}"


class Signed(Hooks):
    """Tells the server which attempt a request is, in the one field that a vendor leaves to its user."""

    async def before_model(self, ctx: HookContext, request: ModelRequest) -> ModelRequest:
        return request.replace(extra={"user": f"{request.run_id}/{request.turn}/{request.attempt}"})


class Strict(OpenAICompatible):
    """Without the catalogue of prices, whose import would take up most of a life."""

    def info(self) -> ModelInfo:
        return ModelInfo()


AGENT = Agent(
    name="victim",
    model=Strict("strict", base_url=URL, api_key="key"),
    instructions="You are one of twenty.",
    tools=[look, search, pay, mail, launch],
    hooks=[Signed()],
    retry=Retry(attempts=6, base=0.005, cap=0.05),
    max_pending=64,
    max_output_tokens=500,
    prices=Prices(input="1", output="2"),
)

# ---- the users


class User:
    """Talks to one agent. What it does is chosen by the seed; when, by the machine."""

    def __init__(self, rt: Runtime, number: int, boss: Boss, unanswered: Sequence[str]) -> None:
        self.rt, self.boss = rt, boss
        self.key = key_of(number, LIFE)
        self.unanswered = [words for words in unanswered if words.startswith(f"{self.key}.")]
        self.name = f"{self.key}.{LIFE}"
        self.chance = random.Random(f"{SEED}/{self.name}")
        self.count = 0

    def words(self) -> str:
        """Never the same twice, in any life."""
        self.count += 1
        return f"{self.name}.{self.count}"

    async def live(self) -> None:
        """Send and disturb, until the process is killed."""
        ref = self.rt.start(AGENT, key=self.key)
        await self.boss.look(ref)
        for words in self.unanswered:
            await self.send(ref, words)
        while True:
            handle = await self.send(ref, self.words())
            await asyncio.sleep(self.chance.uniform(0.0, 0.03))
            await self.disturb(self.chance.choice([handle, ref.current or handle]))
            if self.chance.random() < 0.6 or ref.status().pending_count > 2:
                await ended(handle)

    async def send(self, ref: AgentRef[Any], words: str) -> RunHandle[Any]:
        """Send words under a run id of their own, which makes it safe to send them again."""
        book("told", kind="try", run=words)
        handle = await ref.asend(words, run_id=words)
        book("told", kind="send", run=words, words=words)
        return handle

    async def disturb(self, handle: RunHandle[Any]) -> None:
        """Steer, follow up, cancel, or let it be."""
        words = self.words()
        with suppress(AlreadyResolved):
            match self.chance.choices(("nothing", "steer", "follow_up", "cancel"), (50, 20, 20, 10))[0]:
                case "steer":
                    book("told", kind="steer", run=handle.run_id, input=await handle.asteer(words), words=words)
                case "follow_up":
                    book("told", kind="follow_up", run=handle.run_id, input=await handle.afollow_up(words), words=words)
                case "cancel":
                    await handle.acancel(by=words)
                    book("told", kind="cancel", run=handle.run_id, by=words)
                case _:
                    pass


async def ended(handle: RunHandle[Any]) -> None:
    """Wait for a run and book what it came to."""
    result = await handle
    book("told", kind="end", run=handle.run_id, status=result.status, cost=str(result.cost))


def unanswered() -> list[str]:
    """What was sent in an earlier life, and nobody was told whether it was accepted."""
    if not (BOOKS / "told").exists():
        return []
    lines = [json.loads(line) for line in (BOOKS / "told").read_text().splitlines()]
    answered = {line["run"] for line in lines if line["kind"] == "send"}
    return sorted({line["run"] for line in lines if line["kind"] == "try"} - answered)


class Boss:
    """Approves and denies for all agents; some calls are left to a later life."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self.chance = random.Random(f"{SEED}/{LIFE}/boss")
        self.count = 0

    async def live(self) -> None:
        """Decide whatever comes."""
        async with self.rt.subscribe("approval.requested") as requests:
            async for event in requests:
                await self.decide(self.rt.handle(event.run_id or ""), event.call_id or "")

    async def look(self, ref: AgentRef[Any]) -> None:
        """Decide what waits since an earlier life. The agent's log has been read then."""
        await ref.amessages()
        for call in ref.pending_approvals():
            if (handle := ref.current) is not None:
                await self.decide(handle, call.call_id)

    async def decide(self, handle: RunHandle[Any], call_id: str) -> None:
        """By chance; yes, no, or not now."""
        self.count += 1
        by = f"boss.{LIFE}.{self.count}"
        decision = self.chance.choices(("approve", "deny", "leave"), (75, 15, 0 if LAST else 10))[0]
        with suppress(AlreadyResolved):
            if decision == "approve":
                await handle.aapprove(call_id, by=by)
            elif decision == "deny":
                await handle.adeny(call_id, by=by)
            if decision != "leave":
                book("told", kind=decision, run=handle.run_id, call=call_id, by=by)


async def finish(rt: Runtime, boss: Boss) -> None:
    """Let everything that was accepted end, also where nobody but a person has anything to do."""
    for life in range(0, LIFE + 1, GENERATION):
        for ref in [rt.start(AGENT, key=key_of(number, life)) for number in range(AGENTS)]:
            await boss.look(ref)
            while (handle := ref.current) is not None:
                async with asyncio.timeout(SOON):
                    await ended(handle)
            assert ref.status().pending_count == 0, f"{ref.key} has runs that nobody works on"


async def main() -> None:
    print("opening", flush=True)
    async with Runtime(STORE, agents=[AGENT], drain=0.0) as rt:
        boss = Boss(rt)
        async with asyncio.TaskGroup() as everybody:
            decisions = everybody.create_task(boss.live())
            if LAST:
                await finish(rt, boss)
                decisions.cancel()
            else:
                sends = unanswered()
                for number in range(AGENTS):
                    everybody.create_task(User(rt, number, boss, sends).live())
    print("done", flush=True)


def die_with_parent() -> None:
    """Wait for the end of standard input, which is that of whoever would have killed us."""
    os.read(0, 1)  # not by sys.stdin, whose lock the end of the interpreter wants
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=die_with_parent, daemon=True).start()
    asyncio.run(main())
