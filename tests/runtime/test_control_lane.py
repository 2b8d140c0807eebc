"""Cancels, decisions and stops overtake what else users have sent to an agent; its inbox is bounded, and they fit all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from tests.logs_of import SOON, assert_valid, types_of, wait_for

from nitinol import Agent, AgentRef, Runtime, tool
from nitinol.actors.actor import INBOX
from nitinol.errors import AgentStopped, InboxFull
from nitinol.inputs import Cancel, Input, Resolve, Send, Stop
from nitinol.messages import to_message
from nitinol.testing import ScriptedProvider, call

MANY = 500


@pytest.fixture
def rt() -> Iterator[Runtime]:
    """A runtime that is stopped at once at the end."""
    with Runtime(drain=0.0) as runtime:
        yield runtime


@tool(approval=True)
def ask_first() -> str:
    """A call that waits for approval."""
    return "done"


def waiting_agent() -> Agent[str]:
    """Its first run waits for approval; all later ones end at once."""
    model = ScriptedProvider(lambda request: "ok" if request.messages[-1].role == "tool" else [call("ask_first")])
    return Agent(name="waits", model=model, tools=[ask_first], max_pending=2 * INBOX)


def hold_core(ref: AgentRef[Any]) -> threading.Event:
    """Keep the core loop busy until the event is set: whatever is submitted waits."""
    go, busy = threading.Event(), threading.Event()

    def work() -> None:
        busy.set()
        go.wait(SOON)

    ref._system.core.call(work)  # pyright: ignore[reportPrivateUsage]
    assert busy.wait(SOON)
    return go


class Bench:
    """An agent whose first run waits for approval, and a core loop that can be kept busy."""

    def __init__(self, rt: Runtime) -> None:
        self.rt = rt
        self.ref: AgentRef[str] = rt.start(waiting_agent())
        with rt.subscribe(agent="waits") as subscription:
            self.first = self.ref.send("first")
            wait_for(subscription, "approval.requested")
        self.order: list[str] = []
        (self.call,) = self.ref.pending_approvals()

    def hold(self) -> threading.Event:
        """As `hold_core`."""
        return hold_core(self.ref)

    def submit(self, name: str, input: Input) -> Future[Any]:
        """Submit an input, and note when it is answered."""
        future = self.ref._cell.submit(input)  # pyright: ignore[reportPrivateUsage]
        future.add_done_callback(lambda _: self.order.append(name))
        return future

    def send(self, number: int) -> Future[Any]:
        """A run of its own."""
        send = Send(run_id=f"run-{number}", prompt=to_message(f"{number}"), history=(), is_new=True)
        return self.submit("send", send)


CONTROLS: dict[str, Callable[[Bench], Input]] = {
    "cancel": lambda bench: Cancel(run_id=bench.first.run_id, by="test"),
    "approve": lambda bench: Resolve(
        run_id=bench.first.run_id, call_id=bench.call.call_id, decision="approve", arguments=None, by="test"
    ),
    "stop": lambda bench: Stop(reason="test"),
}


@pytest.mark.parametrize("what", CONTROLS)
def test_a_control_overtakes_five_hundred_sends(rt: Runtime, what: str) -> None:
    """It is submitted last, and answered first; the sends keep their order, or are refused by the stop."""
    bench = Bench(rt)
    go = bench.hold()
    sends = [bench.send(number) for number in range(MANY)]
    control = bench.submit(what, CONTROLS[what](bench))
    go.set()
    control.result(SOON)
    if what == "stop":
        for send in sends:
            with pytest.raises(AgentStopped):
                send.result(SOON)
        return
    positions = [send.result(SOON)[0].seq for send in sends]
    assert positions == sorted(positions)
    assert bench.order.index(what) == 0
    assert control.result()[0].seq < positions[0]


def test_a_cancel_does_not_overtake_the_send_of_its_own_run(rt: Runtime) -> None:
    """It would be refused, and the run would go on: here the run is cancelled, and the others are not."""
    bench = Bench(rt)
    go = bench.hold()
    sends = [bench.send(number) for number in range(10)]
    cancel = bench.submit("cancel", Cancel(run_id="run-5", by="test"))
    go.set()
    for future in (*sends, cancel):
        future.result(SOON)
    assert rt.handle("run-5").result(SOON).status == "cancelled"
    assert bench.ref.status().pending_count == 9
    bench.first.cancel()


def test_an_ask_that_is_given_up_before_it_is_taken_does_not_run(rt: Runtime) -> None:
    """`ask(timeout=0)`, five hundred times, while the core is busy: each run ends cancelled, without a request."""
    asked: list[str] = []

    def answer(request: Any) -> str:
        asked.append(request.run_id)
        return "ok"

    ref = rt.start(Agent(name="given-up", model=ScriptedProvider(answer), max_pending=2 * INBOX))
    go = hold_core(ref)
    for number in range(MANY // 2):
        with pytest.raises(TimeoutError):
            ref.ask("give up", timeout=0, run_id=f"run-{number}")
    go.set()
    assert ref.ask("go", run_id="last", timeout=SOON).text == "ok"
    statuses = {rt.handle(f"run-{number}").result(SOON).status for number in range(MANY // 2)}
    assert (statuses, asked) == ({"cancelled"}, ["last"])
    assert_valid(ref)


def test_an_inbox_of_an_agent_is_bounded(rt: Runtime) -> None:
    """Exactly 1,000 inputs wait; one more is refused in clear words; a cancel, a decision and a stop are taken all the same."""
    bench = Bench(rt)
    go = bench.hold()
    sends = [bench.send(number) for number in range(INBOX + 10)]
    approve = bench.submit("approve", CONTROLS["approve"](bench))
    cancel = bench.submit("cancel", CONTROLS["cancel"](bench))
    stop = bench.submit("stop", CONTROLS["stop"](bench))
    go.set()
    approve.result(SOON)
    assert cancel.exception(SOON) is None
    stop.result(SOON)
    for send in sends[:INBOX]:
        assert isinstance(send.exception(SOON), AgentStopped)
    for send in sends[INBOX:]:
        error = send.exception(SOON)
        assert isinstance(error, InboxFull)
        assert f"has {INBOX} inputs waiting and takes no more for now" in str(error)
        assert repr(bench.ref.key) in str(error)


def test_who_was_refused_may_try_again(rt: Runtime) -> None:
    """The inbox has room as soon as inputs are taken."""
    bench = Bench(rt)
    go = bench.hold()
    sends = [bench.send(number) for number in range(INBOX + 1)]
    go.set()
    assert isinstance(sends[-1].exception(SOON), InboxFull)
    assert all(send.exception(SOON) is None for send in sends[:-1])
    assert bench.send(INBOX).exception(SOON) is None
    assert "run.queued" in types_of(bench.ref)
