"""An agent that lives on: it keeps its conversation, tells its state at any time, can be steered, and survives a crash."""

from nitinol import Agent, Runtime, tool
from nitinol.provider import ModelRequest
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate, say


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: the capital of Norway"


thinking = gate(call("look_up", word="Oslo"))  # an answer that is held back, so that there is time to steer


def answer(request: ModelRequest) -> Answer:
    """A scripted model: first it looks something up, then it tells what it was told."""
    if len(request.messages) == 1:
        return thinking
    told = [message.text for message in request.messages if message.role == "user"]
    return say(f"I was told: {' '.join(told)}")


writer = Agent(name="writer", model=ScriptedProvider(answer), instructions="You write short texts.", tools=[look_up])

with Runtime() as rt:
    ref = rt.start(writer, key="writer/kim")  # get or start: the same key is the same agent

    handle = ref.send("Write about Oslo.")
    thinking.reached()
    print("while the model thinks:", ref.status().state, "in turn", ref.status().turn)
    handle.steer("Mention the fjord.")  # delivered before the next model request
    handle.follow_up("Now in one line.")  # delivered where the run would have ended
    thinking.release()
    print(handle.result(timeout=10).text)

    crash(ref)  # its supervisor brings it back, with its conversation
    print(ref.ask("Do you remember?", timeout=10).text)
    print("incarnation", ref.status().incarnation, "with", len(ref.history()), "messages")
