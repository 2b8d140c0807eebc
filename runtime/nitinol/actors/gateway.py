"""The gateway: from the effect `CallModel` to the input `Answered` or `Failed`. It lives on the I/O loop and owns httpx."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any, cast, get_args

from nitinol import events as ev
from nitinol import provider as providers
from nitinol.actors.bus import EventBus
from nitinol.actors.gate import Gates, Pass
from nitinol.actors.hook_runner import HookFailed, HookRunner, hook_context
from nitinol.actors.ledger import Ledger
from nitinol.actors.port import Port, Stopper
from nitinol.agent import Agent, model_name
from nitinol.budget import FLOOR, UNSAID, Account, bound, periods
from nitinol.compaction import (
    DEFAULT_WINDOW,
    INSTRUCTIONS,
    Compaction,
    Plan,
    estimate_tokens,
    going,
    summary_output,
    summary_prompt,
)
from nitinol.env import Env, Loop
from nitinol.errors import (
    ConfigurationError,
    ConnectionFailed,
    InvalidRequest,
    MalformedResponse,
    NotRecorded,
    ProviderError,
    ProviderTimeout,
)
from nitinol.hooks import Halt
from nitinol.http import HttpPool
from nitinol.inputs import (
    Answered,
    AttemptReady,
    Failed,
    TooLong,
    by_hook,
)
from nitinol.logs import describe, get_logger
from nitinol.machine import (
    CallModel,
    plan_for,
    summary_due,
)
from nitinol.messages import Compacted, Message, StopReason, Text, fault
from nitinol.prices import Sound
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, Provider, UsageSoFar
from nitinol.recording import is_playing
from nitinol.state import AgentState, later
from nitinol.tool_spec import Tool
from nitinol.usage import NO_USAGE, Usage, is_count, quarters

CLOSING = 2.0
"""Seconds that a stream may take to close before its agent goes on without its last word."""
BREATH = 256
"""Deltas after which an attempt lets others run, also one whose provider never waits."""


class ModelGateway:
    """Runs attempts, each as a task. On the core loop only."""

    def __init__(self, env: Env, core: Loop, bus: EventBus, hooks: HookRunner, ledger: Ledger) -> None:
        self.env, self.core, self.bus, self.hooks, self.ledger = env, core, bus, hooks, ledger
        self.http = HttpPool()
        self.known: dict[type, asyncio.Future[None]] = {}
        """Classes of providers that were asked what they know of a model; done once one has answered."""
        self.flying: dict[str, asyncio.Task[None]] = {}
        """By key: the attempt that is not over yet."""
        self.log = get_logger()
        self.gates = Gates(env, core, self.log)

    def start(self, effect: CallModel, port: Port, agent: Agent[Any], state: AgentState) -> Stopper:
        """Begin an attempt; its outcome is told to the port."""
        attempt = _Attempt(self, effect, port, agent, state)
        task = self.flying[port.key] = self.core.spawn(attempt.run())
        task.add_done_callback(partial(self._landed, port.key))
        return task.cancel

    def when_landed(self, key: str, then: Callable[[], object]) -> bool:
        """Whether an attempt of the agent is still being closed; `then` is called when it is, or is given up."""
        task = self.flying.get(key)
        if task is None or task.done():
            return False
        waits = True

        def call(_: object = None) -> None:
            nonlocal waits
            if waits:
                waits = False
                given_up.cancel()
                then()

        given_up = self.core.call_later(CLOSING, call)
        task.add_done_callback(call)
        return True

    def _landed(self, key: str, task: asyncio.Task[None]) -> None:
        if self.flying.get(key) is task:
            del self.flying[key]

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


class _Attempt:
    """One attempt at a model."""

    def __init__(
        self, gateway: ModelGateway, effect: CallModel, port: Port, agent: Agent[Any], state: AgentState
    ) -> None:
        self.gateway, self.effect, self.port, self.agent, self.state = gateway, effect, port, agent, state
        self.provider: Provider | None = None
        self.info = ModelInfo()
        self.prices: Sound | None = None
        self.leave: Pass | None = None
        """The gate's; `None` where no provider is asked."""
        self.sent = False
        self.texts: list[str] = []
        self.characters = 0
        self.usage: Usage | None = None
        self.input_tokens = self.estimated_tokens = 0
        self.name, self.window = "", DEFAULT_WINDOW
        self.messages: tuple[Message, ...] = ()
        self.compacting: Compacted | None = None
        """It asks for a summary, which nobody is shown."""

    async def run(self) -> None:
        """Wait for the turn to retry, build the request, have `model.started` committed, stream, report."""
        gateway, effect, port = self.gateway, self.effect, self.port
        try:
            await self._delay()
            request = await self._build()
            if request is None:
                return
            began = await self._announce(request)
            if began is None:
                return
            self.sent = True
            started = gateway.env.monotonic()
            request = request.replace(max_output_tokens=self._limit(request, began), attempt=effect.attempt)
            response = await self._ask(request, began, started)
            await self._finish(response, gateway.env.monotonic() - started)
        except asyncio.CancelledError:
            if self.sent or self._is_open():  # else nothing is owed, and whoever cancelled knows
                self._fail(ProviderError("the attempt was cancelled"), error_type="Cancelled")
            raise
        except HookFailed as error:
            self._hook_failed(error)
            self._fail(ProviderError(str(error)), error_type="HookFailed")
        except (ProviderError, ConfigurationError) as error:
            await self._report(error)
        except BaseException as error:  # a provider's bug is this attempt's failure, not the gateway's
            gateway.log.error("a provider raised what is no ProviderError", key=port.key, exc_info=error)
            await self._report(MalformedResponse(f"the provider raised {type(error).__name__}: {describe(error)}"))

    def _is_open(self) -> bool:
        """Whether `model.started` was committed, although its news did not reach this task before it was cancelled."""
        effect, run = self.effect, self.port.committed.run
        at = None if run is None or not run.attempt_open else (run.run_id, run.turn, run.attempt)
        return at == (effect.run_id, effect.turn, effect.attempt)

    async def _report(self, error: Exception) -> None:
        """Tell of a failure; the `on_error` hooks come first, so that a `Halt` ends the run before the failure does."""
        if self.leave is not None:  # at once, whatever the hooks do: others are about to meet the same limit
            self.leave.fail(error)
        try:
            await self._on_error(error)
        finally:
            self._fail(error)

    def _hook_failed(self, error: HookFailed) -> None:
        # Before the attempt's own failure, which could end the run, or go on with another model.
        self.port.tell(by_hook(self.effect.run_id, "failed", str(error)))

    async def _delay(self) -> None:
        if _is_rehearsed():
            return
        delay = (self.effect.not_before - self.gateway.env.now()) / 1e9
        if delay > 0:
            await asyncio.sleep(delay)

    async def _build(self) -> ModelRequest | None:
        """The request, after the hooks; `None` if one of them halted the run, or it would be too long."""
        agent, state, effect = self.agent, self.state, self.effect
        model = agent.models[effect.model_index]
        if effect.model_index == 0 and state.model is not None and state.model != model_name(model):
            model = state.model
        self.provider = providers.overridden() or providers.resolve(model)
        self.name = model_name(self.provider)
        self.info = await self._ask_info(self.provider)
        prices = agent.prices if agent.prices is not None else self.info.prices
        self.prices = None if prices is None else Sound(prices)
        if not _is_rehearsed():
            self.leave = await self.gateway.gates.enter(model, self.provider, self.port.key)
        self.window = agent.context_window or self.info.context_window or DEFAULT_WINDOW
        self.messages, self.added, self.removed = self.port.view_of(state)
        instructions = agent.instructions
        if callable(instructions):
            context = hook_context(agent, state)
            instructions = await self.gateway.hooks.call(instructions, context, timeout=30.0, group=state.key)
        run = state.run
        due = run.due() if run is not None else None
        request = ModelRequest(
            messages=self.messages,
            instructions=instructions,
            tools=cast("tuple[Tool, ...]", agent.tools),
            output_schema=agent.output_schema,
            max_output_tokens=agent.max_output_tokens,
            temperature=agent.temperature,
            thinking=agent.thinking,
            cache=agent.cache,
            extra=agent.extra or {},
            stall=agent.retry.stall,
            timeout=None if due is None else max((due - self.gateway.env.now()) / 1e9, 0.001),
            key=state.key,
            run_id=effect.run_id,
            turn=effect.turn,
            attempt=effect.attempt,
        )
        self._measure(request)
        plan = plan_for(state, self.name, self.estimated_tokens, self.window)
        if plan is None:
            hooked = await self._before_model(request)
            if hooked is None:
                return None
            request = self._fitted(hooked)
            plan = plan_for(state, self.name, self.estimated_tokens, self.window)
        return request if plan is None else await self._shorten(request, plan)

    async def _before_model(self, request: ModelRequest) -> ModelRequest | None:
        """The request, as the `before_model` hooks leave it; `None` if one of them halted the run."""
        if not self.agent.has_hook("before_model"):
            return request
        answer = await self.gateway.hooks.run("before_model", self.agent, self.state, request)
        if isinstance(answer, Halt):
            self._halt(answer)
            return None
        changed = cast("ModelRequest", answer)
        _check_request(changed)
        return changed

    def _halt(self, halt: Halt) -> None:
        self.port.tell(by_hook(self.effect.run_id, "halted", halt.reason))

    def _measure(self, request: ModelRequest) -> None:
        """How many tokens it has: by our estimate, and calibrated."""
        known = request.messages is self.messages
        said = self.state.estimated_tokens if known else sum(map(estimate_tokens, request.messages))
        words = quarters(request.instructions or "") + sum(tool.size for tool in request.tools)
        self.estimated_tokens = said + (words + quarters(str(request.output_schema or ""))) // 4
        self.input_tokens = self.state.gauge.tokens(self.estimated_tokens)

    def _fitted(self, request: ModelRequest) -> ModelRequest:
        """Measured, and with no longer an answer than the window has room for: some servers refuse such a request."""
        self._measure(request)
        wanted, known = request.max_output_tokens, self.agent.context_window or self.info.context_window
        left = None if known is None else max(known - bound(self.input_tokens), FLOOR)
        return request if wanted is None or left is None or wanted <= left else request.replace(max_output_tokens=left)

    async def _shorten(self, request: ModelRequest, plan: Plan) -> ModelRequest | None:
        """Instead of a request that is too long, one for a summary, where that is what helps."""
        effect, agent, state, provider = self.effect, self.agent, self.state, cast("Provider", self.provider)
        again = state.run is not None and state.run.compacting is not None
        if plan.tier != "give up" and not again and await self._on_compaction(plan):
            return None
        if plan.tier != "summarise":
            self.port.tell(
                TooLong(
                    run_id=effect.run_id,
                    turn=effect.turn,
                    attempt=effect.attempt,
                    provider=provider.name,
                    model=provider.model,
                    estimated_tokens=self.estimated_tokens,
                    context_window=self.window,
                )
            )
            return None
        self.compacting = plan.compacted
        self.added = self.removed = 0
        policy, now = agent.compaction or Compaction(), self.gateway.env.now()
        due = summary_due(state) or later(now, policy.deadline)
        room = state.gauge.asks(self.name).room(policy, self.window, 0)
        output = summary_output(room)
        prompt = summary_prompt(state.transcript, state.compacted, plan.compacted, room - output)
        limits = [output, *([self.info.max_output_tokens] if self.info.max_output_tokens else [])]
        left = max((due - now) / 1e9, 0.001)
        asked = request.replace(
            messages=(Message(role="user", parts=(Text(prompt),)),),
            instructions=INSTRUCTIONS,
            tools=(),
            output_schema=None,
            max_output_tokens=min(limits),
            thinking=None,
            cache=False,
            timeout=left if request.timeout is None else min(left, request.timeout),
            purpose="compact",
        )
        hooked = await self._before_model(asked)
        return None if hooked is None else self._fitted(hooked)

    async def _on_compaction(self, plan: Plan) -> bool:
        """Let the hooks see what goes; whether one of them halted the run."""
        agent, state = self.agent, self.state
        if not agent.has_hook("on_compaction"):
            return False
        gone = going(state.transcript, state.compacted, plan.compacted)
        messages = tuple(state.transcript[at] for at in gone)
        try:
            answer = await self.gateway.hooks.run("on_compaction", agent, state, messages)
        except HookFailed as error:
            self.gateway.log.warning("on_compaction failed", key=self.port.key, error=str(error))
            return False
        if isinstance(answer, Halt):
            self._halt(answer)
            return True
        return False

    async def _ask_info(self, provider: Provider) -> ModelInfo:
        # A provider's first answer may import a catalogue of prices, which takes longer than actors should wait.
        # One asks on a worker's thread, and the others wait for it.
        known, kind = self.gateway.known, type(provider)
        asked = known.get(kind)
        if asked is None:
            asked = known[kind] = asyncio.get_running_loop().create_future()
            try:
                await self.gateway.hooks.call(provider.info, timeout=30.0, group=self.port.key)
            finally:
                asked.set_result(None)
        elif not asked.done():
            await asyncio.shield(asked)
        return provider.info()

    async def _announce(self, request: ModelRequest) -> ev.ModelStarted | None:
        """Commit `model.started`; `None` if the run has moved on, or its budget says no."""
        effect, provider = self.effect, cast("Provider", self.provider)
        at_most, limit = bound(self.input_tokens), request.max_output_tokens or self.info.max_output_tokens
        prices = self.prices
        if prices is None or prices.at_most(at_most, limit or UNSAID) is None:
            prices = None
            self._check_unpriced()
        grant = await self.gateway.ledger.reserve(self.port.key, self._accounts, at_most, limit, prices)
        began = None
        try:
            ready = AttemptReady(
                run_id=effect.run_id,
                turn=effect.turn,
                attempt=effect.attempt,
                provider=provider.name,
                model=provider.model,
                grant=grant,
                price_source=None if prices is None else prices.source,
                added=self.added,
                removed=self.removed,
                estimated_tokens=self.estimated_tokens,
                context_window=self.window,
                compacting=self.compacting,
            )
            events = await self.port.ask(ready)
            began = next((event for event in events if isinstance(event, ev.ModelStarted)), None)
        finally:
            if began is None and not self._is_open():
                self.gateway.ledger.release(self.port.key)
        return began

    def _accounts(self) -> Sequence[Account]:
        return self.port.committed.accounts(self.gateway.env.now())

    def _limits_money(self) -> bool:
        limited = any(account.budget.usd is not None for account in self._accounts())
        return limited or self.gateway.ledger.limits_money

    def _check_unpriced(self) -> None:
        """A model without a price under a budget of money. One that stands in for another in a test costs nothing."""
        if providers.overridden() is not None or not self._limits_money():
            return
        if self.agent.on_unpriced == "block":
            raise ConfigurationError(
                f"model {self.name} has no known price, and there is a money budget; give prices=, or on_unpriced='warn'"
            )
        self.gateway.log.warning("no price is known; the money budget does not hold", model=self.name)

    def _limit(self, request: ModelRequest, began: ev.ModelStarted) -> int | None:
        """What the provider is told: nothing, where it would only hear its model's own limit again."""
        own = request.max_output_tokens is None and began.capped is None and self.info.max_output_tokens is not None
        return None if own else began.max_output_tokens

    async def _ask(self, request: ModelRequest, began: ev.ModelStarted, started: float) -> ModelResponse:
        if self.compacting is None:
            return await self._stream(request, began, started)
        try:
            async with asyncio.timeout(request.timeout):
                return await self._stream(request, began, started)
        except TimeoutError:
            raise ProviderTimeout("the summary took longer than its deadline") from None

    async def _stream(self, request: ModelRequest, began: ev.ModelStarted, started: float) -> ModelResponse:
        gateway, port = self.gateway, self.port
        bus, attempt = gateway.bus, gateway.bus.open_attempt(began)
        provider = cast("Provider", self.provider)
        http = gateway.http.session(stall=request.stall, timeout=request.timeout)
        stream = cast("AsyncGenerator[Any, None]", provider.stream(request, http))
        response: ModelResponse | None = None
        pieces = 0
        try:
            async for part in stream:
                if isinstance(part, Delta) and self.compacting is not None:
                    self.characters += len(part.text)
                elif isinstance(part, Delta):
                    if not self.characters:
                        self._was_taken()
                        seconds = gateway.env.monotonic() - started
                        first = ev.ephemeral(
                            ev.ModelFirstToken, began, gateway.env.now(), port.committed.seq, seconds=seconds
                        )
                        bus.publish([first])
                    self.characters += len(part.text)
                    if part.kind == "text":
                        self.texts.append(part.text)
                    bus.publish_delta(attempt, port.committed.seq, part.kind, part.text, part.index)
                    pieces += 1
                    if not pieces % BREATH:
                        await asyncio.sleep(0)
                elif isinstance(part, ModelResponse):
                    response = part
                elif isinstance(part, UsageSoFar):  # pyright: ignore[reportUnnecessaryIsInstance] # a third party's provider
                    _check_usage(part.usage, provider)
                    self.usage = part.usage
                else:
                    raise MalformedResponse(
                        f"provider {provider.name!r} yielded {type(part).__name__}, which is no StreamPart"
                    )
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        if response is None:
            raise MalformedResponse(f"provider {provider.name!r} ended its stream without a ModelResponse")
        _check(response, provider)
        return response

    async def _finish(self, response: ModelResponse, duration: float) -> None:
        gateway, effect, provider = self.gateway, self.effect, cast("Provider", self.provider)
        self.usage = response.usage or self.usage
        self._was_taken()
        # Before the hooks, which may change the answer, but not what it took.
        if self.usage is None:
            answered = sum(len(getattr(part, "text", "")) for part in response.message.parts)
            self.characters = max(self.characters, answered)
        usage = self.usage or self._estimate()
        cost, estimated = self._bill(usage)
        if self.compacting is None and self.agent.has_hook("after_model"):
            # It may run agents, who wait for what this one does not need any more.
            gateway.ledger.lower(self.port.key, cost, usage.total_tokens)
            answer = await self.gateway.hooks.run("after_model", self.agent, self.port.committed, response)
            if isinstance(answer, Halt):
                self._halt(answer)
            else:
                response = cast("ModelResponse", answer)
                _check(response, provider)
        self.port.tell(
            Answered(
                run_id=effect.run_id,
                turn=effect.turn,
                attempt=effect.attempt,
                provider=provider.name,
                model=provider.model,
                response=response,
                usage=usage,
                cost=cost,
                price_source=self._source(usage),
                estimated=estimated or self.usage is None,
                duration=duration,
            )
        )

    def _was_taken(self) -> None:
        if self.leave is not None:
            self.leave.accept()

    def _fail(self, error: Exception, error_type: str | None = None) -> None:
        effect, provider = self.effect, self.provider
        known = error if isinstance(error, ProviderError) else ProviderError(describe(error))
        usage: Usage | None = None
        if self.sent:
            # Who got no connection, or an HTTP error, owes nothing; anything later is owed, at least the input.
            unsent = isinstance(error, (ConnectionFailed, ConfigurationError, InvalidRequest, NotRecorded))
            unheard = unsent and known.status_code is None
            refused = not self.characters and self.usage is None and (unheard or (known.status_code or 0) >= 400)
            usage = NO_USAGE if refused else self._so_far()
        elif self._is_open():
            usage = NO_USAGE
        self.port.tell(
            Failed(
                run_id=effect.run_id,
                turn=effect.turn,
                attempt=effect.attempt,
                provider=provider.name if provider else "",
                model=provider.model if provider else model_name(self.agent.models[effect.model_index]),
                error_type=error_type or type(error).__name__,
                error=describe(error),
                retryable=known.retryable,
                status_code=known.status_code,
                retry_after=known.retry_after,
                request_id=known.request_id,
                usage=usage,
                cost=Decimal(0) if usage is NO_USAGE else self._bill(usage)[0] if usage is not None else None,
                price_source=self._source(usage),
                estimated=usage is not NO_USAGE,
                text="".join(self.texts),
                characters=self.characters if self.compacting is None else 0,
            )
        )

    async def _on_error(self, error: Exception) -> None:
        if not self.agent.has_hook("on_error"):
            return
        state = self.port.committed
        if self.sent:
            usage = self._so_far()
            self.gateway.ledger.lower(self.port.key, self._bill(usage)[0], usage.total_tokens)
        try:
            answer = await self.gateway.hooks.run("on_error", self.agent, state, describe(error))
        except HookFailed as failure:
            self._hook_failed(failure)
            return
        if isinstance(answer, Halt):
            self._halt(answer)

    def _estimate(self) -> Usage:
        """From characters: of the request, and of what was shown or answered."""
        return Usage(input_tokens=self.input_tokens, output_tokens=(self.characters + 3) // 4)

    def _so_far(self) -> Usage:
        """What the provider has told, or what was shown, where that is more."""
        shown = self._estimate()
        if self.usage is None:
            return shown
        told = self.usage
        tokens = max(told.output_tokens, shown.output_tokens)
        return replace(told, input_tokens=told.input_tokens or shown.input_tokens, output_tokens=tokens)

    def _bill(self, usage: Usage) -> tuple[Decimal | None, bool]:
        """What a usage costs, and whether that is an estimate."""
        if usage.reported_cost is not None:
            return usage.reported_cost, False
        cost = self.prices.cost(usage) if self.prices is not None else None
        if cost is None and self.prices is not None and self._limits_money():
            # A part has no known price, as a fee of the provider's own tools. A budget counts its tokens all the same.
            return self.prices.at_most(usage.input_tokens, usage.output_tokens), True
        return cost, False

    def _source(self, usage: Usage | None) -> str | None:
        """Where the cost of a usage comes from, with a date."""
        if usage is not None and usage.reported_cost is not None:
            day, _ = periods(self.gateway.env.now())
            return f"reported by {cast('Provider', self.provider).name} ({day})"
        return self.prices.source if self.prices is not None else None


def _is_rehearsed() -> bool:
    """Whether no provider is really asked: tests never wait for a retry."""
    return providers.overridden() is not None or is_playing()


def _check_request(request: ModelRequest) -> None:
    most = request.max_output_tokens
    if most is not None and not is_count(most, 1):  # a hook may set anything
        raise HookFailed(f"before_model set max_output_tokens={most!r}; it must be a whole number, 1 or more, or None")


def _check(response: ModelResponse, provider: Provider) -> None:
    """A third party's provider may answer anything; what enters the log must be sound."""
    wrong = fault(response.message, "assistant")
    if wrong is None and response.stop_reason not in get_args(StopReason):
        wrong = f"stop_reason={response.stop_reason!r} must be one of {get_args(StopReason)}"
    if wrong is not None:
        raise MalformedResponse(f"provider {provider.name!r} gave a response that is not sound: {wrong}")
    if response.usage is not None:
        _check_usage(response.usage, provider)


def _check_usage(usage: object, provider: Provider) -> None:
    wrong = usage.fault() if isinstance(usage, Usage) else f"{usage!r} is no Usage"
    if wrong is not None:
        raise MalformedResponse(f"provider {provider.name!r} told a usage that is not sound: {wrong}")
