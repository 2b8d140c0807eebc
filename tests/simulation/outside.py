"""What outlives every life: a model that is asked, tools that do things, people who were promised something.

It keeps the books that the journal is held against: every request a provider saw, every execution of a tool, every word
that was given to a caller. A life that is over is not heard any more.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from tests.runtime.test_machine_schedules import faults

from nitinol import Agent, Approval, Block, Budget, Compaction, Hooks, ToolContext, ToolError, errors, tool
from nitinol import events as ev
from nitinol.hooks import HookContext
from nitinol.http import Http
from nitinol.messages import Message, Part, Text, ToolCall
from nitinol.prices import Prices
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, StreamPart, UsageSoFar
from nitinol.result import RunResult
from nitinol.retry import Retry
from nitinol.tool_spec import Tool
from nitinol.usage import Usage

LARGE = 70_000
"""Characters of what the journal keeps beside its log."""

GONE = "scout/gone"
"""An agent that people forget: of its log nothing may be left, so nothing is looked up in it but its bill."""

At = tuple[str, int, int]
"""An attempt: run, turn, attempt."""


class Heard(Protocol):
    """A life, as the outside sees it."""

    number: int
    dead: bool


@dataclass(slots=True)
class Execution:
    """A tool did what it does, once."""

    key: str
    """Its idempotency key."""
    name: str
    text: str
    life: int


@dataclass(slots=True)
class Sent:
    """A message to an agent, and what its sender was told."""

    key: str
    run_id: str
    after: str | None
    """The run that this sender knew to be accepted before."""
    state: str = "sent"
    """Or `accepted`, or `refused`."""


@dataclass(slots=True)
class Outside:
    """The books."""

    random: Random
    trace: Callable[[str], object]
    wrong: list[str] = field(default_factory=list[str])
    requests: dict[At, int] = field(default_factory=dict[At, int])
    """By attempt, in which life it came."""
    told: dict[At, Usage | None] = field(default_factory=dict["At", "Usage | None"])
    """The usage that a whole answer reported."""
    executions: dict[str, list[Execution]] = field(default_factory=lambda: defaultdict(list))
    """By idempotency key."""
    sent: dict[str, Sent] = field(default_factory=dict[str, Sent])
    """By run."""
    accepted: dict[str, str] = field(default_factory=dict[str, str])
    """By key, the run that was accepted last."""
    inputs: dict[str, tuple[str, str, str]] = field(default_factory=dict[str, tuple[str, str, str]])
    """Accepted steers and follow-ups: id to run, mode and words."""
    cancelled: list[str] = field(default_factory=list[str])
    """Runs whose cancel was accepted."""
    resolved: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Accepted decisions: run, call, decision."""
    counted: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """How often a key was told that it was reset, configured, stopped or resumed: key and event type."""
    results: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """Handed out: run to status and words."""
    seen: list[ev.Event] = field(default_factory=list[ev.Event])
    """Durable events, as a subscriber was given them over all lives."""
    paused: set[str] = field(default_factory=set[str])
    """Runs in which a model has paused, and goes on without a word of anybody's."""
    cursor: int = 0
    shown: dict[str, At | None] = field(default_factory=dict["str", "At | None"])
    """By run, the attempt that is open by the events that a subscriber saw."""
    words: int = 0
    every: float | None = None
    """Seconds in which a model takes one request of all that come; `None` = it takes them all."""
    limited: int = 0
    """Requests that came too soon for that."""
    _free_at: dict[str, float] = field(default_factory=dict[str, float])

    def fail(self, what: str) -> None:
        """Something is wrong."""
        self.trace(f"WRONG {what}")
        if len(self.wrong) < 20:
            self.wrong.append(what)

    def say(self, what: str) -> str:
        """Words that nobody said before."""
        self.words += 1
        return f"{what} {self.words}"

    def see(self, event: ev.Event) -> None:
        """A subscriber is shown an event."""
        self.cursor = event.position
        at = (event.run_id or "", event.turn, event.attempt)
        if event.durable:
            self.seen.append(event)
            self.trace(f"{event.position} {event.key}#{event.seq} {event.type}")
        match event.type:
            case "model.started":
                self.shown[at[0]] = at
            case "model.finished" | "model.failed" | "run.finished":
                self.shown[at[0]] = None
            case "model.delta" if event.key != GONE and self.shown.get(at[0]) != at:
                self.fail(f"a subscriber is shown {event.text!r} of attempt {at}, and {self.shown.get(at[0])} is open")
            case _:
                pass

    def hear(self, life: Heard, request: ModelRequest) -> None:
        """A request arrives."""
        at = (request.run_id, request.turn, request.attempt)
        if life.dead:
            return
        self.trace(f"request {at}")
        if at in self.requests:
            self.fail(f"attempt {at} was sent in life {self.requests[at]}, and again in {life.number}")
        if request.key != GONE:
            self.requests[at] = life.number
        wrong = faults(request.messages)
        last = request.messages[-1].role if request.messages else None
        if wrong or (last == "assistant" and request.run_id not in self.paused):
            self.fail(f"the request of attempt {at} is refused: {wrong or 'an assistant has the last word'}")

    def too_soon(self, model: str, now: float) -> float | None:
        """Seconds until this model takes a request, or `None`: it takes this one."""
        if self.every is None:
            return None
        wait = self._free_at.get(model, 0.0) - now
        if wait > 0:
            self.limited += 1
            return wait
        self._free_at[model] = now + self.every
        return None

    def do(self, life: Heard, ctx: ToolContext, name: str, replay: str) -> str:
        """A tool does what it does."""
        key = ctx.idempotency_key
        text = f"{name} did {key} in life {life.number}"
        if zlib.crc32(key.encode()) % 40 == 0:
            text += "!" * LARGE  # too long to stay in the log
        if life.dead:
            return text
        self.trace(f"execution {key} {name}")
        before = self.executions[key] if ctx.key != GONE else []
        if before and replay == "never":
            self.fail(f"{name}, which is never replayed, did {key} in life {before[0].life} and again in {life.number}")
        before.append(Execution(key, name, text, life.number))
        return text


# ---- tools


def _maybe_raise(ctx: ToolContext) -> None:
    """By its key, so that a replay fares alike."""
    draw = zlib.crc32(ctx.idempotency_key.encode()) % 20
    if draw == 0:
        raise ToolError("not today")
    if draw == 1:
        raise OSError("out of order")
    if draw == 2 and ctx.deps.outside.random.random() < 0.3:
        raise SystemExit(3)
    if ctx.cancelled:
        raise InterruptedError("nobody waits")


@tool(timeout=3.0)
def note(ctx: ToolContext, text: str = "") -> str:
    """Does something that must not be done twice."""
    _maybe_raise(ctx)
    ctx.progress({"noting": text})
    return str(ctx.deps.outside.do(ctx.deps, ctx, "note", "never"))


@tool(replay="safe", timeout=3.0)
def peek(ctx: ToolContext, text: str = "") -> str:
    """May be done again."""
    _maybe_raise(ctx)
    return str(ctx.deps.outside.do(ctx.deps, ctx, "peek", "safe"))


@tool(timeout=3.0)
async def wire(ctx: ToolContext, text: str = "") -> str:
    """As `note`, as a coroutine."""
    await asyncio.sleep(ctx.deps.outside.random.random() ** 4 * 2)
    _maybe_raise(ctx)
    done = str(ctx.deps.outside.do(ctx.deps, ctx, "wire", "never"))
    await asyncio.sleep(ctx.deps.outside.random.random() ** 4 * 4)
    return done


@tool(replay="safe", timeout=3.0)
async def probe(ctx: ToolContext, text: str = "") -> str:
    """As `peek`, as a coroutine."""
    await asyncio.sleep(ctx.deps.outside.random.random() ** 4)
    _maybe_raise(ctx)
    done = str(ctx.deps.outside.do(ctx.deps, ctx, "probe", "safe"))
    await asyncio.sleep(ctx.deps.outside.random.random() ** 4 * 4)
    return done


@tool(serial=True, timeout=3.0)
def alone(ctx: ToolContext, text: str = "") -> str:
    """As `note`, with no other at its side."""
    _maybe_raise(ctx)
    return str(ctx.deps.outside.do(ctx.deps, ctx, "alone", "never"))


@tool(approval=Approval(timeout=20.0), timeout=3.0)
def risky(ctx: ToolContext, text: str = "") -> str:
    """As `note`, if a person says yes in time."""
    return str(ctx.deps.outside.do(ctx.deps, ctx, "risky", "never"))


@tool(approval=Approval(timeout=9.0, default="approve"), replay="safe", timeout=3.0)
def gated(ctx: ToolContext, text: str = "") -> str:
    """As `peek`, unless a person says no in time."""
    return str(ctx.deps.outside.do(ctx.deps, ctx, "gated", "safe"))


@tool(approval=True, timeout=3.0)
async def asked(ctx: ToolContext, text: str = "") -> str:
    """As `wire`, once a person says yes."""
    return str(ctx.deps.outside.do(ctx.deps, ctx, "asked", "never"))


TOOLS = (note, peek, wire, probe, alone, risky, gated, asked)


# ---- the model

PRICES = Prices(input="3", output="15", source="simulated")


class SimProvider:
    """A vendor: it takes its time, fails in every way that vendors do, and refuses what is no conversation.

    In some worlds it limits the rate of requests, and does not always say when the next may come.
    """

    name, account = "sim", "one"

    def __init__(self, life: Any, model: str, trouble: float, window: int | None = None) -> None:
        self.model = model
        self._life, self._trouble, self._window = life, trouble, window

    def info(self) -> ModelInfo:
        return ModelInfo(max_output_tokens=400, prices=PRICES, context_window=self._window)

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        outside: Outside = self._life.outside
        random = outside.random
        outside.hear(self._life, request)
        wait = outside.too_soon(self.model, self._life.env.monotonic())
        if wait is not None:
            raise errors.RateLimited("too fast", status_code=429, retry_after=wait if random.random() < 0.7 else None)
        await asyncio.sleep(random.random() ** 4 * 5)
        trouble = random.random() < self._trouble
        if trouble and random.random() < 0.6:
            raise _failure(random)
        if random.random() < 0.2:
            yield UsageSoFar(Usage(input_tokens=7, output_tokens=1))
        parts = _answer(outside, request)
        for index, part in enumerate(parts):
            if isinstance(part, Text):
                for at in range(0, len(part.text), 9):
                    yield Delta("text", part.text[at : at + 9], index)
                    await asyncio.sleep(random.random() ** 6 * 2)
            elif isinstance(part, ToolCall):
                yield Delta("tool_args", "{}", index)
        if trouble:
            raise errors.ConnectionFailed("the line is dead")
        usage = Usage(input_tokens=random.randint(1, 90), output_tokens=random.randint(1, 30))
        told = usage if random.random() < 0.9 else None
        calls = any(isinstance(part, ToolCall) for part in parts)
        pauses = not calls and random.random() < 0.03
        if not self._life.dead:
            outside.told[request.run_id, request.turn, request.attempt] = told
            if pauses:
                outside.paused.add(request.run_id)
        yield ModelResponse(
            message=Message(role="assistant", parts=tuple(parts), provider=self.name, model=self.model),
            usage=told,
            stop_reason="tool_use" if calls else "pause" if pauses else "end_turn",
        )


def _failure(random: Random) -> Exception:
    return random.choice(
        (
            lambda: errors.RateLimited("slowly", retry_after=random.random() * 5),
            lambda: errors.Overloaded("too many", status_code=529),
            lambda: errors.ServerError("alas", status_code=500),
            lambda: errors.ProviderTimeout("too late"),
            lambda: errors.ConnectionFailed("nobody there"),
            lambda: errors.InvalidRequest("no", status_code=400),
            lambda: errors.MalformedResponse("gibberish"),
            lambda: errors.ContextOverflow("too long", status_code=400),
        )
    )()


def _answer(outside: Outside, request: ModelRequest) -> list[Part]:
    random = outside.random
    parts: list[Part] = []
    if random.random() < 0.8:
        parts.append(Text(outside.say("words")))
    names = [tool.name for tool in request.tools]
    if names and random.random() < (0.75 if request.turn < 3 else 0.3):
        for number in range(random.choice((1, 1, 1, 2, 3))):
            name = random.choice(names) if random.random() < 0.97 else "missing"
            call_id = (
                f"call_{number}" if random.random() < 0.9 else "call_0"
            )  # the same in every turn, and in an answer
            arguments: dict[str, Any] = {"text": outside.say("argument")}
            if random.random() < 0.04:
                arguments = {"wrong": 1}
            malformed = "{oops" if random.random() < 0.04 else None
            parts.append(
                ToolCall(call_id=call_id, name=name, arguments={} if malformed else arguments, malformed=malformed)
            )
    elif random.random() < 0.02:
        return [Text("")]
    return parts


# ---- agents


class Watching(Hooks):
    """Hooks that mostly look on, on a worker and as coroutines."""

    def before_tool(self, ctx: HookContext, call: ToolCall) -> ToolCall | Block | None:
        draw = zlib.crc32(f"{ctx.run_id}/{ctx.turn}/{call.call_id}".encode()) % 12
        return Block("not that") if draw == 0 else call.replace(arguments=dict(call.arguments)) if draw < 4 else None

    async def before_model(self, ctx: HookContext, request: ModelRequest) -> None:
        await asyncio.sleep(0.01)

    async def after_run(self, ctx: HookContext, result: RunResult[Any]) -> None:
        await asyncio.sleep(0.01)

    def agent_stop(self, ctx: HookContext, reason: str) -> None:
        """Looks on."""


POLICY = Compaction(reserve_tokens=60, keep_recent_tokens=100, deadline=20.0)


def some_agents(random: Random) -> Callable[[Any, float, Random], list[Agent[Any]]]:
    """The definitions of a world; each life makes them anew, for itself, and now and then they have changed."""
    options: list[dict[str, Any]] = [
        {
            "name": name,
            "max_turns": random.choice((3, 6, 12)),
            "deadline": random.choice((None, None, 30.0, 120.0)),
            "budget": random.choice((None, None, None, Budget(usd="0.05"), Budget(usd="0.01"), Budget(tokens=3000))),
            "busy": random.choice(("queue", "queue", "queue", "reject")),
            "retry": Retry(attempts=random.choice((1, 2, 4))),
            "max_pending": random.choice((1, 4, 16)),
            "max_tool_calls": random.choice((None, None, None, 5)),
            "tools": random.sample(TOOLS, random.randint(3, len(TOOLS))),
            "hooked": random.random() < 0.25,
            "fallbacks": random.choice((0, 0, 1)),
            "window": random.choice((None, 300, 400)),
            "compaction": random.choice((POLICY, POLICY, POLICY, None)),
        }
        for name in ("clerk", "scout")
    ]

    def make(life: Any, trouble: float, drift: Random) -> list[Agent[Any]]:
        agents: list[Agent[Any]] = []
        for each in options:
            if drift.random() < 0.15:
                tools: list[Tool] = each["tools"]
                match drift.choice(("option", "text", "less", "more")):
                    case "option":
                        each["max_turns"] = drift.choice((3, 6, 12))
                    case "text":
                        each["tools"] = [tool.replace(description=_other_words(drift)) for tool in tools]
                    case "less" if len(tools) > 1:
                        each["tools"] = tools[1:]
                    case _:
                        each["tools"] = list(TOOLS)
            given = dict(each)
            hooks = [Watching()] if given.pop("hooked") else []
            window = given.pop("window")
            fallbacks = [SimProvider(life, "spare", trouble) for _ in range(given.pop("fallbacks"))]
            main = SimProvider(life, "main", trouble, window)
            agents.append(Agent(model=main, fallbacks=fallbacks, hooks=hooks, deps=life, **given))
        return agents

    return make


def _other_words(random: Random) -> str:
    return f"Changed, version {random.randint(1, 9)}."


def a_conversation(outside: Outside) -> list[Message]:
    """What went before, as somebody remembers it: not always as a provider would take it."""
    said = Message(role="user", parts=(Text(outside.say("earlier")),))
    asked_for = ToolCall(call_id="call_0", name="peek", arguments={})
    return [said, Message(role="assistant", parts=(asked_for,), provider="sim", model="main")][
        : outside.random.choice((1, 2, 2))
    ]
