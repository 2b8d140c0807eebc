"""Watch: one ordered stream of events. A monitor may join late, leave, and go on from its cursor without a gap."""

from nitinol import Agent, Runtime, tool
from nitinol.testing import ScriptedProvider, call, say


@tool
def measure(place: str) -> str:
    """Measure the temperature of a place."""
    return f"{len(place)} degrees in {place}"


model = ScriptedProvider(
    [call("measure", place="Oslo"), say("It is 4 degrees."), call("measure", place="Bergen"), say("It is 6 degrees.")]
)
thermometer = Agent(name="thermometer", model=model, tools=[measure])

with Runtime() as rt:
    ref = rt.start(thermometer, key="thermometer/1")
    ref.ask("How warm is it in Oslo?", timeout=10)

    cursor = 0  # 0 is the beginning: what happened before anyone watched
    with rt.subscribe("run.*", "tool.*", "usage.*", key="thermometer/*", after=cursor) as events:
        for event in events:
            cursor = event.position
            print(f"{event.seq:>3} {event.key} {event.type}")
            if event.type == "run.finished":
                break

    print("... not watching ...")
    ref.ask("And in Bergen?", timeout=10)

    with rt.subscribe("run.*", "tool.*", "usage.*", key="thermometer/*", after=cursor) as events:
        for event in events:
            print(f"{event.seq:>3} {event.key} {event.type}")
            if event.type == "run.finished":
                break
