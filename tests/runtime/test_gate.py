"""The gate before a model: one agent meets the limit, and all slow down."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.logs_of import SOON, assert_valid, log_of, types_of
from tests.servers import Connection, Server, answer, stream
from tests.simulation.loop import Clockwork, SimEnv

from nitinol import Agent, Hooks, Runtime, errors
from nitinol.actors import gate as gates
from nitinol.actors.gate import Gate, Gates, Line, Pass
from nitinol.hooks import HookContext
from nitinol.http import Http
from nitinol.logs import get_logger
from nitinol.messages import Message, Text
from nitinol.provider import Delta, ModelInfo, ModelRequest, ModelResponse, Provider, StreamPart, account_of
from nitinol.retry import PATIENCE, Retry
from nitinol.testing import ScriptedProvider, fail, override_model
from nitinol_providers import OpenAICompatible


def closed(*, sent: int = 10, retry_after: float | None = 2.0) -> Gate:
    """A gate that let so many out within a second, of which one was refused at second 1: it closed then."""
    gate = Gate()
    for number in range(sent):
        gate.leave(number / sent)
    gate.refuse(0.0, 1.0, retry_after, "a")
    return gate


def let_out(gate: Gate, now: float) -> float:
    """Let the next one out as soon as it may; when that is."""
    while delay := gate.wait(now):
        now += delay
    gate.leave(now, waiting=1)
    return now


class TestPolicy:
    """When a request may leave: pure, by a clock that is told."""

    def test_an_open_gate_keeps_nobody(self) -> None:
        gate = Gate()
        for _ in range(1000):
            assert gate.wait(0.0) == 0.0
            gate.leave(0.0)
            gate.accept(0.0)

    def test_nobody_leaves_before_the_provider_allows_it(self) -> None:
        gate = closed(retry_after=2.0)
        assert gate.wait(1.5) == pytest.approx(1.5)
        assert let_out(gate, 1.5) == pytest.approx(3.0)

    def test_a_later_refusal_of_the_same_burst_prolongs_the_pause_and_cuts_nothing(self) -> None:
        gate = closed(retry_after=2.0)
        gate.refuse(0.5, 1.2, 4.0, "b")
        gate.refuse(0.6, 1.3, 1.0, "c")
        assert let_out(gate, 1.3) == pytest.approx(5.2)

    def test_after_the_pause_they_leave_at_half_the_rate_that_was_taken(self) -> None:
        """Ten were sent in the three seconds up to the end of the pause, and four refused: two a second, so one."""
        gate = closed(sent=10, retry_after=2.0)
        for agent in "bcd":
            gate.refuse(0.5, 1.1, 1.0, agent)
        first = let_out(gate, 1.1)
        assert [let_out(gate, first), gate.rate] == pytest.approx([first + 1.0, 1.0])

    def test_each_that_is_taken_adds_the_same(self) -> None:
        gate = closed()
        now = let_out(gate, 1.0)
        rates: list[float] = []
        for _ in range(5):
            gate.accept(now)
            rates.append(gate.rate)
            now = let_out(gate, now)
        steps = [after - before for before, after in pairwise(rates)]
        assert steps == pytest.approx([steps[0]] * 4)
        assert steps[0] > 0

    def test_each_cut_halves_the_rate(self) -> None:
        gate = closed()
        now = let_out(gate, 1.0)
        before = gate.rate
        gate.refuse(now, now + 0.1, 1.0, "b")
        assert gate.rate == before / 2
        assert let_out(gate, now) == pytest.approx(now + 1.1)

    def test_what_left_before_a_cut_says_nothing_of_it(self) -> None:
        """Neither that it was taken, nor that it was refused."""
        gate = closed()
        early, late = let_out(gate, 1.0), let_out(gate, 1.0)
        gate.refuse(late, late + 0.1, 1.0, "b")
        rate = gate.rate
        gate.accept(early)
        gate.refuse(early, late + 0.2, 1.0, "c")
        assert gate.rate == rate

    def test_without_a_retry_after_the_pause_is_the_distance_at_the_new_rate(self) -> None:
        gate = closed(retry_after=None)
        now = let_out(gate, 1.0)
        assert now == pytest.approx(1.0 + gates.PAUSE)
        gate.refuse(now, now, None, "b")
        assert let_out(gate, now) == pytest.approx(now + 1 / gate.rate)

    def test_a_provider_that_asks_for_too_much_is_asked_again_sooner(self) -> None:
        assert closed(retry_after=1e300).wait(1.0) == pytest.approx(PATIENCE)

    def test_the_rate_has_a_floor(self) -> None:
        gate = closed(sent=1)
        for _ in range(gates.HOPELESS - 2):
            now = let_out(gate, 0.0)
            gate.refuse(now, now, 1e-3, "b")
            assert gate.rate >= gates.FLOOR

    def test_who_alone_was_refused_goes_by_its_own_retry(self) -> None:
        """It would otherwise wait twice; and its request is what shows the others whether they may."""
        gate = closed(retry_after=2.0)
        assert gate.is_scout("a")
        assert not gate.is_scout("b")
        gate.refuse(0.5, 1.1, None, "b")
        assert not gate.is_scout("a")

    def test_a_gate_that_nobody_passes_opens_until_somebody_is_taken(self) -> None:
        """A quota that is used up must fail runs by their `Retry`, not hold them for hours."""
        gate = closed(retry_after=None)
        now = 1.0
        for _ in range(gates.HOPELESS - 1):
            assert not gate.is_open
            now = let_out(gate, now)
            gate.refuse(now, now, None, "b")
        assert gate.is_open
        assert now < 120
        gate.leave(now)
        gate.refuse(now, now, 5.0, "b")
        assert gate.is_open
        gate.accept(now + 1)
        gate.refuse(now + 1, now + 2, 5.0, "b")
        assert not gate.is_open

    def test_it_is_open_again_when_all_was_well_for_a_while_and_nobody_waits(self) -> None:
        gate = closed()
        gate.leave(1.0 + gates.WELL + 1, waiting=1)
        assert not gate.is_open
        gate.leave(1.0 + gates.WELL + 2)
        assert gate.is_open

    @given(st.integers(0, 10_000), st.sampled_from([0.5, 3.0, 40.0]), st.booleans())
    def test_whatever_the_limit_it_is_found(self, seed: int, limit: float, hinted: bool) -> None:
        """Fifty at the door at once, then always somebody: much of what the provider allows is used, and little is refused."""
        random, gate = Random(seed), Gate()
        tokens, filled = 1.0 + limit / 4, 0.0
        taken = refused = 0

        def send(now: float, number: int) -> float:
            """What becomes of a request; when that is heard of."""
            nonlocal tokens, filled, taken, refused
            tokens, filled = min(1.0 + limit / 4, tokens + (now - filled) * limit), now
            heard = now + random.random() * 0.01
            if tokens >= 1.0:
                tokens -= 1.0
                taken += 1
                gate.accept(now)
            else:
                refused += 1
                gate.refuse(now, heard, (1.0 - tokens) / limit if hinted else None, f"agent {number}")
            return heard

        for _ in range(50):
            gate.leave(0.0)
        now = max(send(0.0, number) for number in range(50))
        burst, began, taken = refused, now, 0
        for number in range(400):
            now = let_out(gate, now)
            now = send(now, number)
        assert refused - burst < 0.25 * taken
        assert taken > 0.4 * limit * (now - began)


class TestIdentity:
    """Who shares a gate: one provider, one key, one model."""

    def line(self, gates: Gates, model: str | Provider, provider: Provider | None = None) -> Line:
        assert provider is not None or not isinstance(model, str)
        return gates.line(model, provider if provider is not None else model)  # type: ignore[arg-type]

    @pytest.fixture
    def gates(self) -> Gates:
        env = SimEnv(Clockwork(Random(1)), "test")
        return Gates(env, env.start_loop("core"), get_logger())

    def test_the_same_account_and_model_share(self, gates: Gates) -> None:
        def chat(model: str = "m", url: str = "http://127.0.0.1:1/v1", key: str = "key-one") -> Line:
            return self.line(gates, OpenAICompatible(model, base_url=url, api_key=key))

        assert chat() is chat()
        assert chat() is not chat(model="n")
        assert chat() is not chat(key="key-two")
        assert chat() is not chat(url="http://127.0.0.1:2/v1")

    def test_who_tells_no_account_shares_by_model_string_or_instance(self, gates: Gates) -> None:
        one, two = ScriptedProvider([]), ScriptedProvider([])
        assert self.line(gates, one) is self.line(gates, one)
        assert self.line(gates, one) is not self.line(gates, two)
        assert self.line(gates, "third:party", one) is self.line(gates, "third:party", two)

    def test_an_account_gives_no_key_away(self) -> None:
        account = account_of("https://api.example", "sk-secret-key")
        assert account == account_of("https://api.example", "sk-secret-key")
        assert account != account_of("https://api.example", "sk-other-key")
        assert "secret" not in account
        assert account not in repr(OpenAICompatible("m", base_url="http://127.0.0.1:1", api_key="sk-secret-key"))

    def test_a_process_that_meets_many_accounts_forgets_the_open_gates(self, gates: Gates) -> None:
        models = [ScriptedProvider([]) for _ in range(3 * 1000)]
        held = self.line(gates, models[0])
        held.gate.refuse(0.0, 0.0, 60.0, "a")
        for model in models:
            self.line(gates, model)
        assert len(gates._lines) <= 1000 + 1  # pyright: ignore[reportPrivateUsage]
        assert self.line(gates, models[0]) is held


class Hall:
    """A loop in virtual time, and a line on it whose gate has just closed for ten seconds."""

    def __init__(self) -> None:
        self.clockwork = Clockwork(Random(7))
        self.env = SimEnv(self.clockwork, "test")
        self.core = self.env.start_loop("core")
        self.line = Line(self.env, self.core, get_logger(), ScriptedProvider([]))
        self.out: list[str] = []
        self.times: list[float] = []
        self.passes: list[Pass] = []
        self.line.gate.leave(0.0)
        for agent in ("somebody", "somebody else"):
            self.line.refuse(0.0, 10.0, agent)

    def arrive(self, agent: str) -> asyncio.Task[Any]:
        """Somebody comes to the line; what waits for its turn."""
        return self.arrive_at(self.line, agent)

    def arrive_at(self, line: Line, agent: str) -> asyncio.Task[Any]:
        """As `arrive`, at another line."""
        tasks: list[asyncio.Task[Any]] = []
        self.core.call(lambda: tasks.append(self.core.spawn(self._enter(line, agent))))
        self.clockwork.run(lambda: bool(tasks), seconds=1.0)
        self.clockwork.run(lambda: False, seconds=0.01)
        return tasks[0]

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clockwork.run(lambda: False, seconds=seconds)

    async def _enter(self, line: Line, agent: str) -> None:
        self.passes.append(await line.enter(agent))
        self.out.append(agent)
        self.times.append(self.env.monotonic())


@pytest.fixture
def hall() -> Iterator[Hall]:
    hall = Hall()
    yield hall
    hall.clockwork.bury()


class TestLine:
    """Who waits, in virtual time."""

    def test_first_come_first_served(self, hall: Hall) -> None:
        for number in range(8):
            hall.arrive(f"agent {number}")
        hall.wait(9.0)
        assert hall.out == []
        hall.wait(3600.0)
        assert hall.out == [f"agent {number}" for number in range(8)]
        assert hall.times[0] >= 10.0
        gaps = [after - before for before, after in pairwise(hall.times)]
        assert min(gaps) >= 1.0, "they left in a crowd"

    def test_who_comes_when_it_is_nearly_time_stands_behind_those_who_waited(self, hall: Hall) -> None:
        hall.arrive("first")
        hall.arrive("second")
        hall.clockwork.run(lambda: "first" in hall.out, seconds=3600.0)
        hall.arrive("third")
        hall.wait(3600.0)
        assert hall.out == ["first", "second", "third"]

    def test_a_cancelled_one_leaves_the_line(self, hall: Hall) -> None:
        tasks = [hall.arrive(name) for name in ("first", "second", "third")]
        hall.core.call(tasks[0].cancel)
        hall.core.call(tasks[1].cancel)
        hall.wait(0.1)
        assert len(hall.line.waiting) == 1
        hall.clockwork.run(lambda: bool(hall.out), seconds=3600.0)
        assert (hall.out, tasks[0].cancelled(), tasks[1].cancelled()) == (["third"], True, True)
        assert hall.times[0] < 11.0, "the third waited for those who had gone"
        assert not hall.line.waiting

    def test_one_that_is_taken_lets_the_next_out_sooner(self, hall: Hall) -> None:
        for number in range(2):
            hall.arrive(f"agent {number}")
        hall.clockwork.run(lambda: bool(hall.passes), seconds=60.0)
        before = 1 / hall.line.gate.rate
        hall.passes[0].accept()
        hall.passes[0].accept()
        hall.wait(3600.0)
        assert hall.times[1] - hall.times[0] < before * 0.9

    def test_a_hopeless_gate_lets_all_out(self, hall: Hall) -> None:
        for number in range(20):
            hall.arrive(f"agent {number}")
        while len(hall.out) < 20:
            hall.clockwork.run(lambda: bool(hall.passes), seconds=600.0)
            while hall.passes:
                hall.passes.pop().fail(errors.RateLimited())
        assert hall.times[-1] - hall.times[gates.HOPELESS] < 0.1

    def test_only_a_refusal_for_the_rate_concerns_others(self, hall: Hall) -> None:
        line = Line(hall.env, hall.core, get_logger(), ScriptedProvider([]))
        leave = Pass(line, "a", 0.0)
        for error in (
            errors.ServerError(), errors.Overloaded(), errors.ProviderTimeout(), errors.ConnectionFailed(retry_after=9.0),
            errors.InvalidRequest(),
        ):  # fmt: skip
            leave.fail(error)
        assert line.gate.is_open
        leave.fail(errors.Overloaded(retry_after=9.0))
        assert not line.gate.is_open

    def test_that_requests_wait_is_logged_once_and_without_a_key(
        self, hall: Hall, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "nitinol"):
            provider = OpenAICompatible("m", name="groq", base_url="http://127.0.0.1:1", api_key="sk-secret-key")
            line = Line(hall.env, hall.core, get_logger(), provider)
            for agent in ("a", "b", "c"):
                Pass(line, agent, 0.0).fail(errors.RateLimited(retry_after=5.0))
            hall.arrive_at(line, "d")
            hall.wait(3600.0)
            hall.arrive_at(line, "e")
        closes, opens = (record.getMessage() for record in caplog.records)
        assert "requests wait in line" in closes
        assert "provider='groq' model='m'" in closes
        assert "all requests leave at once again" in opens
        assert "secret" not in closes + opens


class Limited:
    """A vendor that takes so many requests in each second of virtual time, and says when the next begins."""

    name, model, account = "limited", "limited-1", "one"

    def __init__(self, env: SimEnv, limit: int) -> None:
        self.env, self.limit = env, limit
        self.pause: float | None = None
        """What it asks for, if not the next second."""
        self.requests = self.refused = 0
        self._second, self._taken = 0, 0

    def info(self) -> ModelInfo:
        return ModelInfo()

    async def stream(self, request: ModelRequest, http: Http) -> AsyncIterator[StreamPart]:
        self.requests += 1
        now = self.env.monotonic()
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        self._taken += 1
        if self._taken > self.limit:
            self.refused += 1
            raise errors.RateLimited(status_code=429, retry_after=self.pause or int(now) + 1 - now)
        await asyncio.sleep(0.05)
        yield Delta("text", "done")
        yield ModelResponse(
            message=Message(role="assistant", parts=(Text("done"),)), usage=None, stop_reason="end_turn"
        )


class Ungated:
    """In the place of `Gates`: everybody leaves at once."""

    async def enter(self, *_: object) -> None:
        return None


class Company:
    """A real runtime in virtual time, with agents that all ask one vendor."""

    def __init__(self, limit: int, *, gated: bool = True, **options: Any) -> None:
        self.clockwork = Clockwork(Random(3))
        self.env = SimEnv(self.clockwork, "test", slowness=0.0)
        self.people = self.clockwork.loop("people")
        self.rt = Runtime(env=self.env)
        self.vendor = Limited(self.env, limit)
        self.agent: Agent[str] = Agent(name="a", model=self.vendor, **options)
        if not gated:
            self.rt._system.gateway.gates = Ungated()  # type: ignore[assignment] # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        self.results: dict[int, Any] = {}
        self.ended: dict[int, float] = {}

    def ask(self, number: int, agent: Agent[str] | None = None) -> None:
        """Somebody asks an agent, and waits for its result."""

        async def person() -> None:
            handle = await self.rt.start(agent or self.agent, key=f"a/{number}").asend("go")
            self.results[number] = await handle.aresult(None)
            self.ended[number] = self.env.monotonic()

        self.people.call(lambda: self.people.spawn(person()))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clockwork.run(lambda: False, seconds=seconds)

    def run(self, seconds: float, *, agents: int) -> None:
        """Let time pass until so many have their results."""
        self.clockwork.run(lambda: len(self.results) == agents, seconds=seconds)

    def types(self, number: int) -> list[str]:
        return types_of(self.rt.get(f"a/{number}"))

    def statuses(self) -> dict[str, int]:
        found = [result.status for result in self.results.values()]
        return {status: found.count(status) for status in sorted(set(found))}

    def close(self) -> None:
        stopping = self.rt._system.stop(0.0, 10.0)  # pyright: ignore[reportPrivateUsage]
        assert self.clockwork.run(stopping.done, seconds=60.0)
        self.clockwork.bury()
        self.rt.stop()


@pytest.fixture
def company() -> Iterator[Company]:
    """One of those that are there has just been refused, for ten seconds."""
    company = Company(0)
    for number in (1, 2):
        company.ask(number)
    company.vendor.pause = 10.0
    company.clockwork.run(lambda: company.vendor.refused == 2, seconds=5.0)
    company.clockwork.run(lambda: False, seconds=0.1)
    company.vendor.limit = 1000
    yield company
    company.close()


class TestAgents:
    """Live agents, behind one gate. parity: R2"""

    def test_two_hundred_agents_share_five_requests_a_second(self) -> None:
        """All complete, nearly as fast as the limit allows; but for the first burst hardly a request is refused."""
        company = Company(5)
        for number in range(200):
            company.ask(number)
        company.run(120.0, agents=200)
        assert company.statuses() == {"completed": 200}
        assert company.vendor.refused < 250, "more than the first burst, and one for four that were taken"
        assert company.env.monotonic() < 2 * 200 / 5
        for number in (0, 77, 199):
            log = log_of(company.rt.get(f"a/{number}"))
            failed = [event.error_type for event in log if event.type == "model.failed"]
            assert failed == ["RateLimited"] * len([event for event in log if event.type == "model.started"][1:])
            assert len([event for event in log if event.type == "model.retrying"]) == len(failed)
            assert_valid(company.rt.get(f"a/{number}"))
        company.close()

    def test_without_the_gate_most_of_them_fail(self) -> None:
        """Each runs into the limit for itself: what the gate is for."""
        company = Company(5, gated=False)
        for number in range(200):
            company.ask(number)
        company.run(300.0, agents=200)
        assert company.statuses()["failed"] > 100
        assert company.vendor.refused > 500
        company.close()

    def test_waiting_is_no_attempt_and_no_failure(self, company: Company) -> None:
        """Who comes while the gate is closed sends nothing, and its run knows of no failure."""
        company.ask(3)
        company.wait(5.0)
        assert (company.vendor.requests, company.results) == (2, {})
        assert company.types(3)[-1] == "turn.started"
        company.run(60.0, agents=3)
        assert company.statuses() == {"completed": 3}
        assert company.ended[3] >= 10.0
        assert company.types(3).count("model.started") == 1
        assert "model.failed" not in company.types(3)
        assert company.types(1).count("model.retrying") == 1

    def test_the_deadline_of_a_run_that_waits_holds(self, company: Company) -> None:
        """parity: R3"""
        company.ask(3, company.agent.replace(deadline=4.0))
        company.run(60.0, agents=3)
        assert company.results[3].status == "deadline_exceeded"
        assert 4.0 <= company.ended[3] < 5.0
        assert "model.started" not in company.types(3)
        assert company.vendor.requests == 4

    def test_a_cancelled_run_leaves_the_line(self, company: Company) -> None:
        for number in (3, 4):
            company.ask(number)
        company.wait(1.0)

        async def cancel() -> None:
            handle = company.rt.get("a/3").current
            assert handle is not None
            await handle.acancel()

        company.people.call(lambda: company.people.spawn(cancel()))
        company.run(1.0, agents=1)
        assert company.results[3].status == "cancelled"
        company.run(60.0, agents=4)
        assert company.statuses() == {"cancelled": 1, "completed": 3}
        assert company.vendor.requests == 5

    def test_a_slow_hook_does_not_keep_the_refusal_from_the_others(self) -> None:
        """The gate closes when the 429 comes, not when `on_error` has thought about it."""

        class Slow(Hooks):
            async def on_error(self, ctx: HookContext, error: str) -> None:
                await asyncio.sleep(5.0)

        company = Company(0)
        company.vendor.pause = 8.0
        for number in (1, 2):
            company.ask(number, company.agent.replace(hooks=[Slow()]))
        company.wait(1.0)
        company.vendor.limit = 1000
        company.ask(3)
        company.wait(1.0)
        assert company.vendor.requests == 2
        company.run(60.0, agents=3)
        assert company.statuses() == {"completed": 3}
        company.close()

    def test_another_model_is_not_held_up(self, company: Company) -> None:
        other = Limited(company.env, 1000)
        other.model = "limited-2"
        company.ask(3, company.agent.replace(model=other))
        company.run(1.0, agents=1)
        assert company.results[3].status == "completed"

    def test_who_is_alone_waits_no_longer_than_its_own_retry_says(self) -> None:
        company = Company(0, retry=Retry(attempts=3, base=0.01))
        company.vendor.pause = 0.5
        company.ask(1)
        company.run(60.0, agents=1)
        assert company.results[1].error_type == "RateLimited"
        assert company.vendor.requests == 3
        assert company.ended[1] < 1.2
        company.close()

    def test_a_used_up_quota_fails_all_runs_before_long(self) -> None:
        """A 429 for ever: every run ends as failed, after attempts of its own. parity: R2"""
        company = Company(0, retry=Retry(base=0.5))
        for number in range(50):
            company.ask(number)
        company.run(600.0, agents=50)
        assert company.statuses() == {"failed": 50}
        assert company.vendor.requests == 50 * 4
        company.close()

    def test_a_model_that_is_overridden_waits_at_no_gate(self) -> None:
        """Tests of users never wait."""
        script = ScriptedProvider(
            [fail(errors.RateLimited(retry_after=1000.0)), fail(errors.RateLimited()), "one", "two"]
        )
        agent = Agent(name="a", model="ollama:none")
        with override_model(script), Runtime() as rt:
            assert [rt.start(agent, key=f"a/{n}").ask("go", timeout=SOON).text for n in range(2)] == ["one", "two"]

    @pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
    def test_agents_behind_a_real_server_wait_for_it(self, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two keys at one server: those whose key is limited wait for `Retry-After`, the others do not notice."""
        monkeypatch.setenv("NITINOL_HTTP_TRANSPORT", transport)
        first = True
        seen: list[tuple[str, float]] = []

        async def serve(connection: Connection) -> bool | None:
            nonlocal first
            key = connection.request.headers["authorization"]
            seen.append((key, time.monotonic()))
            if first:
                first = False
                return await answer(429, {"error": {"message": "slow down"}}, retry_after="1")(connection)
            return await stream(*_chat("done"))(connection)

        def agent(key: str) -> Agent[str]:
            return Agent(name="a", model=OpenAICompatible("m", base_url=server.url, api_key=key), retry=Retry(base=0.0))

        with Server(serve) as server, Runtime() as rt:
            scout = rt.start(agent("limited")).send("go")
            with rt.subscribe("model.retrying", after=0) as retrying:
                refused_at = retrying.get(SOON).ts and time.monotonic()
            others = [rt.start(agent("limited")).send("go") for _ in range(3)]
            free = rt.start(agent("free")).ask("go", timeout=SOON)
            assert [handle.result(SOON).text for handle in (scout, *others)] == ["done"] * 4
            assert free.text == "done"
        late = [at - refused_at for key, at in seen[1:] if "limited" in key]
        assert len(late) == 4
        assert min(late) > 0.8
        assert [key for key, _ in seen[1:2]] == ["Bearer free"]


def _chat(text: str) -> list[bytes]:
    """An answer of chat completions."""
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n", b"data: [DONE]\n\n"]
