"""A tool that waits for a person: its run is paused, also across a restart of the process, until somebody decides."""

import tempfile
from pathlib import Path

from nitinol import Agent, Runtime, errors, tool
from nitinol.provider import ModelRequest
from nitinol.testing import Answer, ScriptedProvider, call, say


@tool(approval=True)  # or approval=Approval(timeout=3600, default="deny"): after an hour it is decided without anybody
def pay(to: str, dollars: int) -> str:
    """Pay somebody."""
    return f"paid {dollars} dollars to {to}"


def answer(request: ModelRequest) -> Answer:
    """A scripted model: it wants to pay, and tells what came of it."""
    came_of_it = [part.text for part in request.messages[-1].parts if part.type == "tool_answer"]
    return say(f"The bill is settled: {came_of_it[0]}.") if came_of_it else call("pay", to="the printer", dollars=20)


clerk = Agent(name="clerk", model=ScriptedProvider(answer), tools=[pay], deadline=60.0)

with tempfile.TemporaryDirectory() as folder:
    store = Path(folder) / "agents.db"

    with Runtime(store, agents=[clerk]) as rt, rt.subscribe("approval.requested") as asked:
        run_id = rt.start(clerk, key="clerk/kim").send("Settle what we owe.").run_id
        event = asked.get(timeout=10)
        assert event.type == "approval.requested"
        print("asked:", event.key, event.call_id, event.name, dict(event.arguments))

    # The process may end here, and come back after days.

    with Runtime(store, agents=[clerk]) as rt:
        for key, calls in rt.pending_approvals().items():  # of all agents in the store
            handle = rt.get(key).current  # a property: the handle of the run in progress, or None
            for waiting in calls:
                assert handle is not None
                handle.approve(waiting.call_id, by="kim")  # or handle.deny(waiting.call_id, "too much", by="kim")
                try:
                    handle.deny(waiting.call_id, by="lee")
                except errors.AlreadyResolved as error:  # the first decision holds
                    print("too late:", error)
        print(rt.handle(run_id).result(timeout=10).text)
