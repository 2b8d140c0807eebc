"""Runs of hundreds of turns in a small window, against a server that refuses what is invalid or too long (issue 5, Shows 4)."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests import servers
from tests.logs_of import assert_valid, log_of
from tests.runtime.test_machine_schedules import faults
from tests.strict_server import Answer, StrictModel, call_of, schemas_of, usage_of

from nitinol import Agent, Compaction, Runtime, tool
from nitinol import local as local_model
from nitinol.journal.audit import audit
from nitinol.retry import Retry
from nitinol_providers import OpenAICompatible

pytestmark = pytest.mark.slow

TURNS = 400
WINDOW = 16_000
PLANTED = (57, 163, 300)
"""Requests that are refused as too long, and are not."""
FACTS = re.compile(r"FACT[A-Z0-9]{6}")
LONG = 180.0
QUESTIONS = 4


class Endless(StrictModel):
    """Calls tools for hundreds of turns; asked for a summary, it gives the facts that it was told."""

    def choose(self, request: Mapping[str, Any], chance: random.Random) -> Answer:
        schemas = schemas_of(request)
        text, calls = None, list[Mapping[str, Any]]()
        if not schemas:
            facts = dict.fromkeys(FACTS.findall(request["messages"][-1]["content"]))
            text = f"Goal: go on.\nFiles and facts: {', '.join(facts)}."
        elif self.turns < TURNS:
            self.turns += 1
            names = chance.choices(sorted(schemas), k=chance.choice((1, 1, 1, 2, 3)))
            calls = [call_of(f"call_{index}", name, schemas[name], chance) for index, name in enumerate(names)]
        else:
            text = "I am done."
        return Answer(text=text, calls=calls, usage=usage_of(request, text, calls), fault=None)

    turns = 0


class World:
    """What the tools find."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.facts: list[str] = []
        self.calls = 0

    def find(self) -> str:
        self.calls += 1
        chance = self.random
        kind = chance.choice(("prose", "prose", "code", "numbers", "other"))
        length = chance.choice((40, 400, 2000, 6000)) if chance.random() > 0.02 else 90_000
        text = {
            "prose": "the quick brown fox jumps over it ",
            "code": "if (x[i] != y[j]) { return f(a, b); }\n",
            "numbers": "3.14159,271828,0x5f3759df;",
            "other": "検索結果は次のとおりです。",
        }[kind]
        found = (text * (length // len(text) + 1))[:length]
        if self.calls <= 3:  # of the first turn or two
            self.facts.append("FACT" + "".join(chance.choices("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", k=6)))
            found = f"{self.facts[-1]} {found[:300]}"
        return f"{self.calls}: {found}"


def books(path: Path) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, path.read_text().splitlines()) if "request" in line]


@pytest.mark.timeout(600)
def test_a_run_of_400_turns_in_a_window_of_16k(tmp_path: Path) -> None:
    """No request is refused but the planted overflows; what the first turn found is still known at the end. Shows 4"""
    world = World(seed=11)

    @tool
    def search(what: str) -> str:
        """Search for something."""
        return world.find()

    @tool
    def count(what: str, often: int) -> str:
        """Count something."""
        return f"{what} {often} {world.find()[:200]}"

    model = Endless(tmp_path / "book", seed=3, window=WINDOW, overflows=PLANTED)
    began = time.perf_counter()
    with servers.Server(model, keep=False) as server, Runtime(tmp_path / "agents.db") as rt:
        provider = OpenAICompatible("strict", base_url=f"{server.url}/v1", api_key="key")
        agent = Agent(
            name="walker",
            model=provider,
            instructions="You search and count.",
            tools=[search, count],
            max_turns=TURNS + 10,
            context_window=WINDOW,
            compaction=Compaction(reserve_tokens=4_000, keep_recent_tokens=3_000),
            retry=Retry(base=0.001),
        )
        ref = rt.start(agent, key="k")
        first = "Find the FACT0FIRST of this place, and never forget it."
        handle = ref.send(first)
        steers: list[str] = []
        with rt.subscribe("turn.started", "run.finished", key="k") as turns:
            while (event := turns.get(LONG)).type != "run.finished":
                if event.turn % 90 == 0:
                    steers.append(f"steer {event.turn}: look at number {event.turn}, too")
                    handle.steer(steers[-1])
        result = handle.result(LONG)
        log, seen, history = log_of(ref), ref.messages(), ref.history()
        assert_valid(ref)
    model.close()
    lines = books(tmp_path / "book")
    refused = [line for line in lines if line["faults"] or ("too_long" in line and not line["planted"])]
    compactions = [event for event in log if event.type == "context.compacted"]
    kinds = Counter(
        "truncated" if event.fallback else "cleared" if event.view.hidden == before.view.hidden else "summarised"
        for before, event in zip([compactions[0], *compactions], compactions, strict=False)
    )
    fullest = max(line["usage"]["prompt_tokens"] for line in lines if "usage" in line)
    print(
        f"\n{result.turns} turns, {len(lines)} requests, {len(refused)} refused beside {len(PLANTED)} planted overflows,"
        f" {len(compactions)} compactions {dict(kinds)}, fullest request {fullest} tokens of {WINDOW},"
        f" {len(history)} messages of which {len(seen)} are shown, in {time.perf_counter() - began:.1f} s"
    )
    assert (result.status, result.turns, result.text) == ("completed", TURNS + 1, "I am done.")
    assert refused == []
    assert len([line for line in lines if line.get("planted")]) == len(PLANTED)
    assert not faults(seen)
    assert seen[0].text.startswith(first)
    assert len(world.facts) == 3
    told = str(seen)
    assert all(fact in told for fact in world.facts), "found in the first turns, and known at the end"
    assert all(steer in str(history) for steer in steers)
    assert len(compactions) >= 10
    assert len(seen) < len(history) // 4
    assert fullest > 9_000, "the window is used"
    assert audit(tmp_path / "agents.db").faults == []


needs_model = pytest.mark.skipif(
    not local_model.is_installed() and not os.environ.get("CI"),
    reason=f"the local model is not installed; run: {local_model.INSTALL_COMMAND}",
)


@needs_model
@pytest.mark.timeout(900)
def test_a_long_conversation_with_the_real_local_model() -> None:
    """It finishes, in a window of 4k, with summaries that so small a model can write; the first message stays. Shows 4"""
    with local_model.LocalModel() as server, Runtime() as rt:
        provider = OpenAICompatible("local", base_url=server.base_url, api_key="key")
        agent = Agent(
            name="talker",
            model=provider,
            context_window=4096,
            max_output_tokens=48,
            compaction=Compaction(reserve_tokens=3_000, keep_recent_tokens=400, deadline=LONG),
        )
        ref = rt.start(agent, key="k")
        began = time.perf_counter()
        for number in range(QUESTIONS):
            story = f"Part {number}: " + "Ada walks on through the green hills and counts the white sheep. " * 24
            result = ref.ask("My name is Ada." if not number else f"{story} What does Ada count?", timeout=LONG)
            assert result.status == "completed", result.error
        log = log_of(ref)
        compactions = [event for event in log if event.type == "context.compacted"]
        fullest = max(event.usage.input_tokens for event in log if event.type == "usage.updated")
        print(
            f"\n{QUESTIONS} questions to the local model: {len(compactions)} compactions, {sum(bool(e.fallback) for e in compactions)}"
            f" of them without a summary, fullest request {fullest} tokens, in {time.perf_counter() - began:.1f} s"
        )
        assert compactions
        assert fullest <= 4096
        assert [event.error_type for event in log if event.type == "model.failed"] == []
        assert ref.messages()[0].text.startswith("My name is Ada.")
        assert not faults(ref.messages())
        assert_valid(ref)
