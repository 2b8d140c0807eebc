"""A decision in the making: the events of one commit, and the draft of the state that already contains them.

What `machine.decide` says of each input, it says in these words: start, ask, answer, charge, compact, finish.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, TypeVar, cast

from nitinol import events as ev
from nitinol.agent import Agent, model_name
from nitinol.compaction import Compaction, going, size_of, truncated
from nitinol.inputs import Done
from nitinol.messages import Compacted, InputMode, Message, Outcome, RunStatus, Text, ToolAnswer
from nitinol.state import AgentState, CallState, PendingInput, RunState, later
from nitinol.tool_spec import Approval
from nitinol.usage import Usage

LOOP = 3
"""Turns that call the same and get the same, in a row or by turns with one other, after which the model is told; after as many more the run ends."""

E = TypeVar("E", bound=ev.EventBase)


class Decision:
    """Events as they are decided, and the draft state that already contains them."""

    def __init__(self, state: AgentState, now: int) -> None:
        self.state = state.copy()
        self.now = now
        self.events: list[ev.Event] = []

    @property
    def run(self) -> RunState:
        assert self.state.run is not None
        return self.state.run

    @property
    def agent(self) -> Agent[Any]:
        assert self.state.definition is not None
        return self.state.definition

    def emit(self, event_class: type[E], /, *, attempt: int = 0, call_id: str | None = None, **payload: Any) -> E:
        """An event of the run in progress, or of the agent where there is none."""
        run = self.state.run
        if run is not None and payload.get("run_id", run.run_id) == run.run_id:
            payload.update(run_id=run.run_id, parent_run_id=run.parent_run_id, root_run_id=run.root_run_id)
            payload.setdefault("turn", run.turn)
        seq = self.state.seq + 1
        payload.setdefault("incarnation", self.state.incarnation)
        event = event_class(
            id=f"{self.state.key}#{seq}",
            seq=seq,
            ts=self.now,
            agent=self.state.agent,
            key=self.state.key,
            attempt=attempt,
            call_id=call_id,
            **payload,
        )
        self.state.absorb(event)
        self.events.append(cast("ev.Event", event))
        return event

    # -- the life of a run

    def adopt_definition(self) -> None:
        """Between runs: a changed definition takes over."""
        if self.state.next_definition is not None:
            self.state.definition, self.state.next_definition = self.state.next_definition, None

    def start_next(self) -> None:
        """Start the first queued run, if the agent is free."""
        state = self.state
        if state.run is None:
            self.adopt_definition()
        if state.run is not None or not state.queue or state.definition is None or state.stopped or state.parked:
            return
        queued = state.queue[0]
        budget = queued.budget or self.agent.budget
        self.emit(
            ev.RunStarted,
            run_id=queued.run_id,
            parent_run_id=queued.parent_run_id,
            root_run_id=queued.root_run_id,
            model=state.model or model_name(self.agent.model),
            deadline=self.agent.deadline,
            definition=self.agent.digest,
            budget=None if budget is None else budget.to_json(),
        )
        for message in queued.history:
            self.emit(ev.MessageAppended, message=message)
        if queued.prompt is not None:
            self.emit(ev.MessageAppended, message=queued.prompt)
        self.next_turn()

    def next_turn(self, *inputs: PendingInput, called: str = "") -> None:
        """Begin a turn with these inputs and the steers, unless a limit says no. Every call before is answered.

        Args:
            called: The first tool of the turn that has ended, if it called any.
        """
        run, agent = self.run, self.agent
        due = run.due()
        if due is not None and self.now >= due:
            return self.finish("deadline_exceeded", f"the deadline of {run.deadline:g} s has passed")
        if run.turn >= agent.max_turns:
            return self.finish("max_turns", f"the run took {run.turn} turns; max_turns={agent.max_turns}")
        if called and not self.pending("steer") and self.goes_in_circles(called):
            return  # what a user has said meanwhile may lead out of it, and is heard first
        for item in self.state.inputs:  # in the order of their acceptance
            if item not in inputs and (item.run_id != run.run_id or item.mode != "steer"):
                continue
            self.emit(ev.InputDelivered, input_id=item.input_id)
            self.emit(ev.MessageAppended, message=item.prompt)
        self.emit(
            ev.TurnStarted,
            turn=run.turn + 1,
            message_count=len(self.state.transcript),
            estimated_tokens=self.state.estimated_tokens,
        )

    def pending(self, mode: InputMode) -> list[PendingInput]:
        """This run's undelivered inputs of a mode."""
        return [item for item in self.state.inputs if item.run_id == self.run.run_id and item.mode == mode]

    def finish(
        self, status: RunStatus, error: str | None = None, *, error_type: str | None = None, text: str | None = None
    ) -> None:
        """The one end of a run; then the next one starts."""
        run = self.run
        for item in self.state.inputs:
            if item.run_id == run.run_id:
                self.emit(ev.InputDropped, input_id=item.input_id, reason=f"the run ended {status}")
        self.emit(
            ev.RunFinished,
            status=status,
            text=text or run.text,
            turns=run.turn,
            usage=run.usage,
            cost=run.cost,
            duration=max(self.now - run.started_at, 0) / 1e9,
            error=error,
            error_type=error_type,
        )
        self.start_next()

    def end(self, by: str, status: RunStatus, reason: str | None) -> None:
        """End the run early: at once if nothing is in flight, else when it is settled or the grace is over."""
        if self.run.ending is not None:
            return
        self.emit(ev.RunCancelling, by=by, status=status, reason=reason)
        self.settle(force=self.state.parked)  # nobody would see what a parked agent's effects come to

    def settle(self, force: bool = False, text: str | None = None) -> None:
        """While ending: answer what has not started, and finish once nothing is in flight."""
        run = self.run
        assert run.ending is not None
        for call in run.calls:
            if call.stage in ("proposed", "waiting", "approval"):
                self.answer(call, "cancelled", "The call was cancelled before it started.")
            elif call.stage == "running" and force:
                self.answer(
                    call, "uncertain", "The call was cancelled while it ran; whether it took effect is not known."
                )
        if run.attempt_open and force:
            self.charge_lost_attempt("cancelled")
        if run.attempt_open or any(call.stage != "done" for call in run.calls):
            return
        self.collect()
        self.finish(run.ending, run.ending_reason, text=text)

    # -- tool calls

    def request(self, call: CallState, blocked: str | None = None) -> None:
        """Pin a call, and refuse it at once where it cannot run, or a hook has blocked it."""
        wanted = call.call
        tool = self.agent.tool(wanted.name)
        call_id = wanted.call_id
        self.emit(
            ev.ToolRequested,
            call_id=call_id,
            name=wanted.name,
            arguments=dict(wanted.arguments),
            idempotency_key=f"{self.run.run_id}/{self.run.turn}/{call_id}",
            tool_hash=tool.digest if tool is not None else "",
        )
        if blocked is not None:
            self.answer(call, "blocked", f"The call was blocked: {blocked}")
        elif wanted.malformed is not None:
            self.answer(
                call,
                "error",
                f"The arguments are not a JSON object: {wanted.malformed[:200]!r}. Call {wanted.name!r} again.",
            )
        elif tool is None:
            known = ", ".join(tool.name for tool in self.agent.tools) or "none"
            self.answer(call, "error", f"There is no tool {wanted.name!r}. The tools are: {known}.")
        elif tool.approval is not None and (wrong := tool.misfit(wanted.arguments)) is not None:
            self.answer(call, "error", wrong)  # nobody should be asked about a call that cannot run
        elif tool.approval is not None:
            self.ask_approval(call, tool.approval, tool.digest)

    def ask_approval(self, call: CallState, approval: Approval, tool_hash: str) -> None:
        """The call waits for a person, and the run with it."""
        expires = None if approval.timeout is None else later(self.now, approval.timeout)
        self.emit(
            ev.ApprovalRequested, call_id=call.call.call_id, name=call.call.name, arguments=dict(call.call.arguments),
            expires_at=expires, tool_hash=tool_hash,
        )  # fmt: skip
        if self.run.paused_at is None:
            self.emit(ev.RunPaused, reason="approval")

    def answer(self, call: CallState, outcome: Outcome, text: str, done: Done | None = None) -> None:
        """The one answer of a call."""
        failed = outcome != "ok"
        self.emit(
            ev.ToolFinished,
            call_id=call.call.call_id,
            name=call.call.name,
            outcome=outcome,
            text=text,
            data=done.data if done else None,
            error=(done.error if done and done.error else text) if failed else None,
            duration=done.duration if done else 0.0,
            media=done.media if done else (),
        )

    def after_answer(self) -> None:
        """A call was answered: is the turn over?"""
        run = self.run
        if run.ending is not None:
            return self.settle()
        if run.paused_at is not None and not any(call.stage == "approval" for call in run.calls):
            self.emit(ev.RunResumed, reason="approval", recoveries=run.recoveries)
        if all(call.stage == "done" for call in run.calls):
            name = run.calls[0].call.name if run.calls else ""
            self.collect()
            self.next_turn(called=name)

    def goes_in_circles(self, name: str) -> bool:
        """Whether the run ends because it does the same again and again; before that, the model is told."""
        run = self.run
        again = [index for index, echo in enumerate(run.echoes) if echo == run.echoes[-1]][-LOOP:]
        # So often the same, with one other thing between at most: nothing new has come of so many turns.
        if len(again) < LOOP or len(set(run.echoes[again[0] :])) > 2:
            return False
        if run.nudged:
            self.emit(ev.LoopDetected, name=name, count=2 * LOOP, action="stop")
            self.finish("loop_detected", f"{name!r} was called again and again, with the same arguments and result")
            return True
        self.emit(ev.LoopDetected, name=name, count=LOOP, action="nudge")
        nudge = (
            f"You have called {name!r} {LOOP} times with the same arguments, and each time the result was the same. "
            "Do something else, or answer with what you have: if this goes on, the run ends."
        )
        self.emit(ev.MessageAppended, message=Message(role="user", parts=(Text(nudge),)))
        return False

    def collect(self) -> None:
        """All calls of the turn are answered: their answers enter the transcript in call order."""
        run = self.run
        if not run.calls:
            return
        answers = tuple(
            ToolAnswer(
                call_id=call.call.call_id,
                name=call.call.name,
                text=call.text,
                error=call.outcome != "ok",
                media=call.media,
            )
            for call in run.calls
        )
        count = len(run.calls)
        self.emit(ev.MessageAppended, message=Message(role="tool", parts=answers))
        self.emit(ev.TurnFinished, stop_reason=run.stop_reason, tool_calls=count, echo=_echo(run.calls))

    # -- context

    def compact(self, then: Compacted, fallback: Literal["truncate"] | None = None) -> None:
        """From here on the view leaves this out."""
        state = self.state
        gone = going(state.transcript, state.compacted, then)
        self.emit(
            ev.ContextCompacted,
            tokens_before=state.gauge.tokens(state.estimated_tokens),
            tokens_after=state.gauge.tokens(size_of(state.transcript, then)),
            removed=len(gone),
            through=then.hidden - 1 if then.hidden > state.compacted.hidden else gone[-1],
            fallback=fallback,
            view=then,
        )

    def truncate(self, why: str) -> None:
        """No summary came."""
        run, policy = self.run, self.agent.compaction or Compaction()
        assert run.compacting is not None
        if policy.fallback is None:
            return self.finish(
                "failed", f"the conversation is too long, and no summary came: {why}; Compaction(fallback='truncate') goes on without one",
                error_type="ContextOverflow",
            )  # fmt: skip
        self.compact(truncated(self.state.transcript, self.state.compacted, run.compacting), fallback="truncate")

    def fall_back(self, attempt: int, model: str) -> bool:
        """Go on with the next model, if there is one."""
        run, agent = self.run, self.agent
        if run.model_index + 1 >= len(agent.models):
            return False
        following = agent.models[run.model_index + 1]
        self.emit(ev.ModelFallback, attempt=attempt, from_model=model, to_model=model_name(following))
        return True

    # -- money

    def charge(
        self,
        provider: str,
        model: str,
        usage: Usage,
        cost: Decimal | None,
        source: str | None,
        attempt: int,
        estimated: bool,
    ) -> None:
        """One row of the bill."""
        run, state = self.run, self.state
        before = state.accounts(self.now)
        self.emit(
            ev.UsageUpdated,
            attempt=attempt,
            provider=provider,
            model=model,
            usage=usage,
            cost=cost,
            estimated=estimated,
            price_source=source,
            run_usage=run.usage + usage,
            run_cost=_plus(run.cost, cost),
            agent_usage=state.usage + usage,
            agent_cost=_plus(state.cost, cost),
        )
        for scope in run.scopes:
            self.emit(ev.BudgetSettled, attempt=attempt, scope=scope, amount=cost, tokens=usage.total_tokens)
        for old, new in zip(before, state.accounts(self.now), strict=True):
            fraction = new.budget.passed(old.spent, new.spent)
            if fraction is not None:
                self.warn(new.scope, new.budget.limit, str(new.spent), fraction)

    def warn(self, scope: str, limit: str, spent: str, fraction: float) -> None:
        """A budget is nearly spent."""
        self.emit(ev.BudgetWarning, scope=scope, limit=limit, spent=spent, fraction=fraction)

    def charge_lost_attempt(self, why: str) -> None:
        """Close an attempt that nobody will report on: its reservation is owed, as an estimate."""
        run = self.run
        self.emit(
            ev.ModelFailed, attempt=run.attempt, error_type="Interrupted", error=f"the attempt was lost: {why}",
            status_code=None, retry_after=None, request_id=None, retryable=True,
        )  # fmt: skip
        self.charge(
            run.provider, run.model, run.reserved_usage, run.reserved, run.price_source, run.attempt, estimated=True
        )
        self.emit(ev.ModelDiscarded, attempt=run.attempt, characters=0)


def _plus(total: Decimal | None, cost: Decimal | None) -> Decimal | None:
    return None if total is None or cost is None else total + cost


def _echo(calls: Sequence[CallState]) -> str:
    """What a turn did and what came of it: the same for the same tools, arguments and results, in whatever order."""
    said: list[str] = []
    for call in calls:
        told = [call.call.name, call.call.arguments, call.call.malformed, call.outcome, call.text]
        try:
            said.append(json.dumps(told, sort_keys=True, default=repr))
        except (TypeError, ValueError):  # a hook's arguments may be no JSON
            said.append(repr(told))
        said[-1] += "".join(hashlib.sha256(media.data or b"").hexdigest() + (media.url or "") for media in call.media)
    return hashlib.sha256("\n".join(sorted(said)).encode("utf-8", "replace")).hexdigest()[:16]
