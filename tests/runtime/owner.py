"""A program that owns a store and does what it is told, a line at a time: `python owner.py STORE`.

    ask KEY TEXT          a run, to its end
    send KEY RUN_ID TEXT  a run, until it is accepted
    release               what `wait` waits for
    work COUNT AGENTS     so many runs, one agent after the other
    work                  runs without an end
    crash KEY             until it is parked
    forget KEY
    stop                  in good order

It answers each with `ok`, and begins with `owns`. To `wait` the model answers once it is released, to `call` with a tool
call that needs approval, to all else with an echo.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from nitinol import Agent, ModelRequest, Prices, Runtime, errors, tool
from nitinol.testing import Answer, ScriptedProvider, call, crash, gate, say

held = gate("waited")


@tool(approval=True)
def launch(where: str) -> str:
    """Launch."""
    return f"launched to {where}"


def script(request: ModelRequest) -> Answer:
    last = request.messages[-1]
    if last.role == "tool":
        return "done"
    if last.text == "wait":
        return held
    return call("launch", where="the moon") if last.text == "call" else say(f"you said {last.text}", chunks=3)


AGENT = Agent(name="scout", model=ScriptedProvider(script, prices=Prices(input="3", output="15")), tools=[launch])


class Owner:
    """The program, from outside."""

    def __init__(self, store: Path) -> None:
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(root)])},
        )  # fmt: skip
        assert self.hear() == "owns"

    def say(self, line: str) -> None:
        """Tell it to do something."""
        self._pipe(self.process.stdin).write(f"{line}\n")
        self._pipe(self.process.stdin).flush()

    def hear(self) -> str:
        """What it says next."""
        return self._pipe(self.process.stdout).readline().strip()

    def do(self, line: str) -> None:
        """Tell it, and wait until it is done."""
        self.say(line)
        assert self.hear() == "ok"

    def stop(self) -> None:
        """Let it end in good order."""
        self.say("stop")
        assert self.process.wait(30) == 0
        self._close()

    def kill(self) -> None:
        """End it as `kill -9` does. Also one that has ended."""
        self.process.kill()
        self.process.wait(30)
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            self._pipe(pipe).close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def main() -> None:
    with Runtime(sys.argv[1], agents=[AGENT], drain=0.0) as rt:
        print("owns", flush=True)
        for line in sys.stdin:
            verb, *words = line.split()
            match verb, words:
                case "ask", [key, *text]:
                    rt.start(AGENT, key=key).ask(" ".join(text), timeout=30)
                case "send", [key, run_id, *text]:
                    rt.start(AGENT, key=key).send(" ".join(text), run_id=run_id)
                case "release", []:
                    held.release()
                case "work", []:
                    print("ok", flush=True)
                    for number in itertools.count():
                        rt.start(AGENT, key=f"agent/{number % 10}").ask(f"number {number}", timeout=30)
                case "work", [runs, agents]:
                    for number in range(int(runs)):
                        rt.start(AGENT, key=f"agent/{number % int(agents)}").ask(f"number {number}", timeout=30)
                case "crash", [key]:
                    ref = rt.get(key)
                    while ref.status().state != "parked":
                        try:
                            crash(ref)
                        except errors.NitinolError:
                            break
                case "forget", [key]:
                    rt.forget(key)
                case _:
                    break
            print("ok", flush=True)


if __name__ == "__main__":
    main()
