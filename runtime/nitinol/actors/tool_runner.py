"""From the effect `RunTool` to the input `Done`: slot, commit of `tool.started`, execution, `after_tool` hooks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pydantic_core

from nitinol import events as ev
from nitinol.actors.hook_runner import HookFailed, HookRunner
from nitinol.actors.port import Port, Stopper
from nitinol.actors.processes import ProcessCall, Processes, ProcessLost, RaisedThere
from nitinol.actors.worker_pool import Ending, Job, WorkerDied, WorkerPool
from nitinol.agent import Agent
from nitinol.env import Env, Loop
from nitinol.errors import ToolError
from nitinol.hooks import Block, Halt
from nitinol.inputs import (
    Done,
    Granted,
    Prepared,
    by_hook,
)
from nitinol.logs import describe, get_logger
from nitinol.machine import (
    PrepareTool,
    RunTool,
)
from nitinol.messages import Outcome
from nitinol.state import CallState, RunState
from nitinol.tool_spec import Tool, ToolContext, ToolResult, clip, to_answer

Publish = Callable[[ev.Event], None]

_caller: ContextVar[RunState | None] = ContextVar("caller", default=None)


def calling_run() -> RunState | None:
    """The run whose tool the caller is: its thread's, or its coroutine's and the tasks' that this has started."""
    return _caller.get()


class ToolRunner:
    """On the core loop. Keeps what is in flight by agent, so that a restarted agent finds its executions again."""

    def __init__(
        self, env: Env, core: Loop, pool: WorkerPool, processes: Processes, hooks: HookRunner, publish: Publish
    ) -> None:
        self.env, self.core, self.pool, self.hooks, self.publish = env, core, pool, hooks, publish
        self.processes = processes
        self._executions: dict[str, dict[tuple[str, int, str], _Execution]] = {}

    def in_flight(self, key: str) -> dict[tuple[str, int, str], int]:
        """Executions that run for a key: (run_id, turn, call_id) to the number of the execution."""
        return {at: execution.number for at, execution in self._executions.get(key, {}).items() if execution.number}

    def start(self, effect: RunTool, port: Port, agent: Agent[Any], state_run: RunState, call: CallState) -> Stopper:
        """Run a call, or adopt its execution, if one is in flight."""
        at = (effect.run_id, effect.turn, effect.call_id)
        running = self._executions.setdefault(port.key, {})
        execution = running.get(at)
        if execution is None:
            tool = agent.tool(call.call.name)
            if tool is None:
                port.tell(_answer(effect, 0, "error", f"There is no tool {call.call.name!r} any more."))
                return lambda: None
            execution = running[at] = _Execution(self, effect, port, agent, state_run, call, tool)
            self.pool.submit(execution.job)
        return execution.cancel

    def prepare(self, effect: PrepareTool, port: Port, agent: Agent[Any], call: CallState) -> Stopper:
        """Show a call to the `before_tool` hooks."""
        task = self.core.spawn(self._prepare(effect, port, agent, call))
        return task.cancel

    async def _prepare(self, effect: PrepareTool, port: Port, agent: Agent[Any], call: CallState) -> None:
        at: dict[str, Any] = {"run_id": effect.run_id, "turn": effect.turn, "call_id": effect.call_id}
        try:
            # A copy: what the model said is committed, and not a hook's to change in place.
            shown = call.call.replace(arguments=deepcopy(dict(call.call.arguments)))
            answer = await self.hooks.run("before_tool", agent, port.committed, shown)
        except HookFailed as error:
            port.tell(by_hook(effect.run_id, "failed", str(error)))
            return
        if isinstance(answer, Halt):
            port.tell(by_hook(effect.run_id, "halted", answer.reason))
        elif isinstance(answer, Block):
            port.tell(Prepared(**at, call=call.call, blocked=answer.reason))
        else:
            # The call keeps its id, whatever a hook returns: the model must find its answer.
            changed = call.call if answer is shown else answer.replace(call_id=call.call.call_id)
            port.tell(Prepared(**at, call=changed))

    def warm_up(self, then: Callable[[], object] = lambda: None) -> None:
        """Get ready to start processes; `then` is called in any case, and the first call says what is wrong."""

        def done(ending: Ending, value: Any, duration: float) -> None:
            then()

        self.hooks.pool.submit(Job(group="", run=self.processes.warm_up, is_async=False, timeout=60.0, done=done))

    def ended(self, execution: _Execution) -> None:
        """An execution is over, and its answer told."""
        running = self._executions.get(execution.port.key)
        if running is not None:
            running.pop(execution.at, None)
            if not running:
                del self._executions[execution.port.key]


class _Execution:
    """One execution of one call."""

    def __init__(
        self,
        runner: ToolRunner,
        effect: RunTool,
        port: Port,
        agent: Agent[Any],
        run: RunState,
        call: CallState,
        tool: Tool,
    ) -> None:
        self.runner, self.effect, self.port, self.agent = runner, effect, port, agent
        self.run, self.call, self.tool = run, call, tool
        self.at = (effect.run_id, effect.turn, effect.call_id)
        self.started: ev.ToolStarted | None = None
        self.hooked: tuple[asyncio.Task[Any], ToolResult, float] | None = None
        """The tool has returned, and the `after_tool` hooks see its result."""
        self.process = ProcessCall(runner.processes) if tool.isolation == "process" else None
        self.job = Job(
            group=port.key,
            run=self._call_async if tool.is_async else self._call if self.process is None else self._call_process,
            is_async=tool.is_async,
            timeout=tool.timeout,
            done=self._done,
            grant=self._ask_grant,
            late=self._late,
            warn=None if self.process is None else self.process.cancel,
            kill=None if self.process is None else self.process.kill,
        )

    @property
    def number(self) -> int:
        """Which execution of its call; 0 before it started."""
        return 0 if self.started is None else self.started.execution

    def cancel(self) -> None:
        run = self.port.committed.run
        if self.hooked is None:
            self.runner.pool.cancel(self.job)
        elif run is not None and run.ending is not None:  # else it is the agent that stops: its next start decides
            hooks, result, duration = self.hooked
            if hooks.cancel():  # what the tool returned counts, whoever was still to see it
                self._tell_result(result, duration)

    # -- on the core loop

    def _ask_grant(self, proceed: Callable[[bool], None]) -> None:
        if self.process is not None and not self.runner.processes.ready:
            # The start of what forks processes is not on this call's time.
            self.runner.warm_up(partial(self._begin, proceed))
        else:
            self._begin(proceed)

    def _begin(self, proceed: Callable[[bool], None]) -> None:
        effect = self.effect
        future = self.port.ask(Granted(run_id=effect.run_id, turn=effect.turn, call_id=effect.call_id))

        def answered(future: asyncio.Future[Any]) -> None:
            started = next((event for event in future.result() if isinstance(event, ev.ToolStarted)), None)
            if started is None:
                self.runner.ended(self)
                proceed(False)
            else:
                self.started = started
                proceed(True)

        future.add_done_callback(answered)

    def _done(self, ending: Ending, value: Any, duration: float) -> None:
        tool, effect = self.tool, self.effect
        match ending:
            case "returned":
                if self.agent.has_hook("after_tool"):
                    hooks = self.runner.core.spawn(self._after_tool(value, duration))
                    self.hooked = (hooks, value, duration)
                    return
                self._tell_result(value, duration)
                return
            case "raised" if isinstance(value, ToolError):
                answer = _answer(effect, self.number, "error", describe(value), duration=duration)
            case "raised" if isinstance(value, (ProcessLost, WorkerDied)):
                answer = _answer(effect, self.number, "error", f"{tool.name!r} failed: {value}.", duration=duration)
            case "raised":
                where = {
                    "agent": self.agent.name,
                    "key": self.port.key,
                    "run_id": effect.run_id,
                    "call_id": effect.call_id,
                }
                if isinstance(value, RaisedThere):
                    text = describe(value)
                    get_logger().warning("a tool raised", tool=tool.name, **where, exception=value.told)
                else:
                    text = f"{type(value).__name__}: {describe(value)}"
                    get_logger().warning("a tool raised", tool=tool.name, **where, exc_info=value)
                answer = _answer(effect, self.number, "error", text, duration=duration)
            case "timeout":
                fate = "was given up" if self.process is None or value is None else "its process was killed"
                text = f"{tool.name!r} did not answer within {tool.timeout:g} seconds and {fate}."
                answer = _answer(effect, self.number, "timeout", text, duration=duration)
            case "cancelled" if self.number and value is None:  # given up, not seen to end
                text = "The call was cancelled while it ran; whether it took effect is not known."
                answer = _answer(effect, self.number, "uncertain", text, duration=duration)
            case "cancelled":
                answer = _answer(effect, self.number, "cancelled", "The call was cancelled.", duration=duration)
            case _:
                answer = _answer(effect, self.number, "error", f"{tool.name!r} could not run: {value}")
        self._tell(answer)

    async def _after_tool(self, result: ToolResult, duration: float) -> None:
        run_id = self.effect.run_id
        # A hook's end of the run comes before the result, which could begin the next turn.
        try:
            answer = await self.runner.hooks.run("after_tool", self.agent, self.port.committed, self.call.call, result)
            if isinstance(answer, Halt):
                self.port.tell(by_hook(run_id, "halted", answer.reason))
            else:
                result = to_answer(answer)
        except (HookFailed, ToolError) as error:  # it raised, or what it made of the result is no result
            self.port.tell(by_hook(run_id, "failed", describe(error)))
        self._tell_result(result, duration)

    def _tell_result(self, result: ToolResult, duration: float) -> None:
        outcome: Outcome = "error" if result.error else "ok"
        effect = self.effect
        self._tell(
            Done(
                run_id=effect.run_id,
                turn=effect.turn,
                call_id=effect.call_id,
                execution=self.number,
                outcome=outcome,
                text=result.text,
                data=result.data,
                media=result.media,
                duration=duration,
            )
        )

    def _tell(self, done: Done) -> None:
        self.port.tell(done)
        self.runner.ended(self)

    def _late(self, after: float) -> None:
        self._publish(ev.ToolLateResult, after=after)

    def _publish(self, event_class: type[Any], **payload: Any) -> None:
        if self.started is not None:
            now, seq = self.runner.env.now(), self.port.committed.seq
            self.runner.publish(ev.ephemeral(event_class, self.started, now, seq, **payload))

    # -- on a worker's thread, or the user loop

    def _call(self) -> ToolResult:
        bound = self.tool.bind(deepcopy(dict(self.call.call.arguments)), self._context())
        before = _caller.set(self.run)
        try:
            return to_answer(self.tool.function(**bound))
        finally:
            _caller.reset(before)

    def _call_process(self) -> ToolResult:
        assert self.process is not None
        return self.process.run(self.tool, self.call.call.arguments, self._context())

    async def _call_async(self) -> ToolResult:
        bound = self.tool.bind(deepcopy(dict(self.call.call.arguments)), self._context())
        _caller.set(self.run)  # in the task's own context
        return to_answer(await self.tool.function(**bound))

    def _context(self) -> ToolContext:
        agent, run = self.agent, self.run
        directory = Path(agent.working_directory).absolute()
        until = self.runner.env.now() / 1e9 + self.tool.timeout
        due = run.due()
        return ToolContext(
            agent=agent.name,
            key=self.port.key,
            run_id=run.run_id,
            turn=self.effect.turn,
            call_id=self.effect.call_id,
            idempotency_key=self.call.idempotency_key,
            deps=agent.deps,
            working_directory=directory,
            allowed_paths=None
            if agent.allowed_paths is None
            else tuple(directory / path for path in agent.allowed_paths),
            deadline=until if due is None else min(until, due / 1e9),
            is_cancelled=lambda: self.job.cancelled,
            report=self._report,
        )

    def _report(self, data: Any) -> None:
        # As plain data, made in the tool's time: subscribers may write it down, and the tool may change its object.
        plain = pydantic_core.to_jsonable_python(data, fallback=repr, inf_nan_mode="null")
        self.runner.core.call(self._progress, plain)

    def _progress(self, data: Any) -> None:
        if self.job.state == "running":
            self._publish(ev.ToolProgress, data=data)


def _answer(effect: RunTool, execution: int, outcome: Outcome, text: str, duration: float = 0.0) -> Done:
    return Done(
        run_id=effect.run_id,
        turn=effect.turn,
        call_id=effect.call_id,
        execution=execution,
        outcome=outcome,
        text=clip(text),
        error=clip(text),
        duration=duration,
    )
