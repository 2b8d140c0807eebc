"""What models cost: our sum beside genai-prices' own, over a golden table and over every model it knows."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from genai_prices.types import ModelPrice
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.providers.golden import MILLIONTH, NOON, ROWS, Row, lines

from nitinol import Agent, Prices, Runtime
from nitinol.prices import PriceList
from nitinol.provider import KnownModel, ModelInfo
from nitinol.testing import ScriptedProvider, say
from nitinol.usage import Usage
from nitinol_providers import OpenAICompatible, catalog, supplement
from nitinol_providers.catalog import VENDOR_IDS, CatalogPrices, known_models, model_info

VERSION = genai_prices.__version__
KNOWN = list(known_models())


def prices_of(model: str, vendor: str) -> CatalogPrices:
    """From the catalogue."""
    prices = model_info(model, vendor=vendor).prices
    assert isinstance(prices, CatalogPrices)
    return prices


def sound_usages(most_input: int, most_output: int) -> st.SearchStrategy[Usage]:
    """Every part within its whole."""

    @st.composite
    def draw_usage(draw: st.DrawFn) -> Usage:
        sent, answered = draw(st.integers(0, most_input)), draw(st.integers(0, most_output))
        read = draw(st.integers(0, sent))
        written = draw(st.integers(0, sent - read))
        return Usage(
            input_tokens=sent,
            cache_read_tokens=read,
            cache_write_tokens=written,
            cache_write_1h_tokens=draw(st.integers(0, written)),
            output_tokens=answered,
            reasoning_tokens=draw(st.integers(0, answered)),
        )

    return draw_usage()


class TestGoldenTable:
    @pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.model}, {row.what}" if isinstance(row, Row) else "")
    def test_our_cost_is_genai_prices_own_or_the_difference_is_explained(self, row: Row) -> None:
        """To a millionth of a dollar. parity: P5"""
        ours, theirs = row.ours(), row.theirs()
        assert ours is not None
        if row.why and VERSION not in supplement.RELEASED:
            return  # a later version may have caught up
        assert abs(ours - theirs - Decimal(row.difference)) < MILLIONTH
        assert bool(row.why) == bool(Decimal(row.difference))

    def test_the_table_has_every_family_and_every_kind(self) -> None:
        """Cache reads, writes for five minutes and an hour, reasoning, long requests, server tools, hours and dates."""
        assert {row.vendor for row in ROWS} == {*VENDOR_IDS.values()} - {"together"}
        assert {row.flavor for row in ROWS} == {"messages", "responses", "chat", "gemini"}
        usages = [row.usage() for row in ROWS]
        for field in ("cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"):
            assert sum(bool(getattr(usage, field)) for usage in usages) >= 5, field
        assert sum(bool(usage.server_tool_calls) for usage in usages) >= 5
        assert sum(usage.input_tokens > 200_000 for usage in usages) >= 10
        assert sum(row.at != NOON for row in ROWS) >= 5

    def test_the_table_prints(self) -> None:
        """`python -m tests.providers.golden`: a line a row, a note a reason, and how many were the same."""
        printed = lines()
        assert len(printed) > len(ROWS) + 1
        assert printed[-1].startswith(f"{len(ROWS)} usages: ")


class TestEveryModel:
    def test_every_price_is_genai_prices_own(self) -> None:
        """Of all models that it knows, with any usage, at hours that differ; so no kind of price is forgotten."""
        chance = random.Random(5)
        compared = 0
        for known in KNOWN:
            if not isinstance(known.info.prices, CatalogPrices):
                continue
            vendor = VENDOR_IDS[known.provider]
            entry = known.info.prices.model
            for _ in range(3):
                at = datetime(2026, 11, 25, chance.randrange(24), chance.randrange(60), tzinfo=UTC)
                sent, answered = chance.choice([1_000, 150_000, 900_000]), chance.randrange(5_000)
                read, written = sent * chance.randrange(50) // 100, sent * chance.randrange(50) // 100
                counts: dict[str, Any] = {
                    "input_tokens": sent,
                    "cache_read_tokens": read,
                    "cache_write_tokens": written,
                    "cache_write_1h_tokens": written * chance.randrange(100) // 100,
                    "output_tokens": answered,
                }
                reasoning = answered * chance.randrange(100) // 100
                usage = Usage(**counts, reasoning_tokens=reasoning)
                judge = genai_prices.calc_price(
                    genai_prices.Usage(**counts, output_reasoning_tokens=reasoning),
                    entry,
                    provider_id=vendor,
                    genai_request_timestamp=at,
                )
                ours = known.info.prices.at(at.timestamp).cost(usage)
                assert ours is not None, known
                assert abs(ours - judge.total_price) < MILLIONTH, (known, counts, at)
                compared += 1
        assert compared > 3_000

    @settings(max_examples=300)
    @given(
        known=st.sampled_from(KNOWN),
        usage=sound_usages(1_200_000, 200_000),
        more=st.tuples(st.integers(0, 100_000), st.integers(0, 10_000)),
        start=st.integers(0, 400 * 86400),
        later=st.integers(0, 86400),
    )
    def test_nothing_costs_more_than_at_most(
        self, known: KnownModel, usage: Usage, more: tuple[int, int], start: int, later: int
    ) -> None:
        """Whatever part is cached, written or thought, in whichever tier, up to a day later, over changes of prices."""
        prices = known.info.prices
        assert prices is not None
        began = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + start
        before, after = prices, prices
        if isinstance(prices, CatalogPrices):
            before, after = prices.at(lambda: began), prices.at(lambda: began + later)
        most = before.at_most(usage.input_tokens + more[0], usage.output_tokens + more[1])
        cost = after.cost(usage)
        assert most is not None
        assert cost is not None
        assert 0 <= cost <= most

    def test_a_price_is_never_guessed(self) -> None:
        """Every model that is shown has prices, by which nothing costs something and a token never less than nothing."""
        for known in KNOWN:
            prices = known.info.prices
            assert isinstance(prices, PriceList)
            assert re.search(r"\(.*\d{4}-\d{2}-\d{2}", prices.source), known
            assert prices.cost(Usage()) is not None


class TestTiersAndHours:
    def test_a_tier_is_of_the_whole_input_and_of_all_of_it(self) -> None:
        """What is read from the cache counts to the length, and one token more makes every token dearer."""
        prices = prices_of("claude-haiku-5-5", "anthropic")
        short = prices.cost(Usage(input_tokens=100_000, cache_read_tokens=99_000, output_tokens=1_000))
        long = prices.cost(Usage(input_tokens=100_001, cache_read_tokens=99_001, output_tokens=1_000))
        assert short is not None
        assert long is not None
        assert long > short * 4

    def test_the_dearest_hour_of_the_next_day_is_reserved_and_no_bygone_price(self) -> None:
        """DeepSeek's peak; o3's price of long ago; a rise that comes tomorrow."""
        night = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp
        flash = prices_of("deepseek-flash", "deepseek").at(night)
        assert flash.at_most(1_000_000, 0) == Decimal("0.3")
        assert flash.cost(Usage(input_tokens=1_000_000)) == Decimal("0.15")
        assert prices_of("o3", "openai").at_most(1_000_000, 0) == Decimal(2)
        argon = prices_of("gemini-4-argon", "google")
        assert argon.at(datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp).at_most(1_000_000, 0) == Decimal(2)
        eve = argon.at(datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp)
        assert eve.at_most(1_000_000, 0) == Decimal(4)
        assert eve.cost(Usage(input_tokens=1_000_000)) == Decimal(2)

    def test_the_hour_is_looked_up_again_when_it_changes(self) -> None:
        """One list of prices serves an agent for days."""
        now = datetime(2026, 11, 25, 0, 59, 59, tzinfo=UTC)
        prices = prices_of("deepseek-flash", "deepseek").at(lambda: now.timestamp())
        usage = Usage(output_tokens=1_000_000)
        assert prices.cost(usage) == Decimal("0.6")
        now += timedelta(seconds=1)
        assert prices.cost(usage) == Decimal("1.2")


class TestFees:
    @pytest.mark.parametrize(
        ("vendor", "model", "calls", "fee"),
        [
            ("anthropic", "claude-opus-5-5", 3, "0.03"),
            ("openai", "gpt-5.4", 2, "0.02"),
            ("google", "gemini-3.8-flash", 3, "0.042"),
            ("google", "gemini-2.5-pro", 3, "0.035"),  # by the request that needed a search
            ("x-ai", "grok-4.7", 4, "0.02"),
        ],
    )
    def test_a_call_of_the_vendors_own_tools_has_its_fee(self, vendor: str, model: str, calls: int, fee: str) -> None:
        """Where it is known: genai-prices', or the table's. parity: P4"""
        prices = prices_of(model, vendor)
        plain, called = (
            prices.cost(Usage(input_tokens=10)),
            prices.cost(Usage(input_tokens=10, server_tool_calls=calls)),
        )
        assert plain is not None
        assert called is not None
        assert called - plain == Decimal(fee)

    def test_a_fee_that_nobody_knows_makes_the_cost_unknown(self) -> None:
        """Not free."""
        assert prices_of("llama-3.3-70b-versatile", "groq").cost(Usage(input_tokens=1, server_tool_calls=1)) is None

    def test_a_fee_of_each_request_is_charged_whatever_it_says(self) -> None:
        """Perplexity's, found by the address of its API."""
        prices = model_info("sonar-pro", url="https://api.perplexity.ai").prices
        assert prices is not None
        assert prices.cost(Usage(output_tokens=1_000)) == Decimal("0.014") + Decimal("0.015")
        assert prices.at_most(0, 1_000) == Decimal("0.029")

    def test_what_we_cannot_count_has_no_price(self) -> None:
        """Answers of sound and pictures, by other units than our usage has."""
        for vendor, model in (
            ("openai", "gpt-audio"),
            ("google", "gemini-3-pro-image"),
            ("mistral", "voxtral-small-2507"),
        ):
            info = model_info(model, vendor=vendor)
            assert info.prices is None
        assert model_info("gpt-audio", vendor="openai").context_window == 128_000


class TestNames:
    @pytest.mark.parametrize(
        ("vendor", "name", "model"),
        [
            ("anthropic", "claude-sonnet-4-6-20260101", "claude-sonnet-4-6"),
            ("anthropic", "claude-sonnet-4-6-latest", "claude-sonnet-4-6"),
            ("anthropic", "claude-opus-5-5-20261101", "claude-opus-5-5"),
            ("anthropic", "CLAUDE-OPUS-5-5", "claude-opus-5-5"),
            ("openai", "gpt-5.4-2026-03-05", "gpt-5.4"),
            ("openai", "gpt-5.4-20260305", "gpt-5.4"),
            ("google", "models/gemini-2.5-pro", "gemini-2.5-pro"),
            ("google", "gemini-2.5-pro-preview-05-06", "gemini-2.5-pro"),
            ("google", "gemini-flash-latest", "gemini-3.8-flash"),
            ("x-ai", "grok-4.7-latest", "grok-4.7"),
            ("x-ai", "grok-code-fast-1", "grok-build-0.1"),
            ("mistral", "mistral-large-latest", "mistral-large-2512"),
            ("deepseek", "deepseek-v4-flash-vision-exp", "deepseek-v4-flash"),
            ("groq", "openai/gpt-oss-120b", "openai/gpt-oss-120b"),
            ("openrouter", "anthropic/claude-sonnet-4.5", "anthropic/claude-sonnet-4.5"),
        ],
    )
    def test_dated_names_and_aliases_are_known(self, vendor: str, name: str, model: str) -> None:
        """parity: C4"""
        assert prices_of(name, vendor).model == model
        assert model_info(name, vendor=vendor).context_window

    @pytest.mark.parametrize(
        ("vendor", "name"),
        [
            ("anthropic", "claude-sonnet-4-60"),
            ("anthropic", "claude-opus-4-5-turbo"),
            ("anthropic", "claude-20"),
            ("anthropic", "no-such-model"),
            ("google", "gemini-1.5-flash-8b"),
            ("google", "gemini-2.5-pro-ultra"),
            ("google", "models/"),
            ("deepseek", "deepseek-chat-v9"),
            ("deepseek", "deepseek-r1-distill-llama-70b"),
            ("openai", "gpt-99"),
            ("openrouter", "openai/gpt-5.4:nitro"),
            ("openrouter", "nobody/nothing:free"),
            ("no-such-vendor", "gpt-5.4"),
        ],
    )
    def test_a_name_that_only_begins_as_a_known_one_is_unknown(self, vendor: str, name: str) -> None:
        """Nothing is known of it; nothing is guessed, and nothing is free."""
        assert model_info(name, vendor=vendor) == ModelInfo()

    def test_openrouters_free_models_are_free(self) -> None:
        """That is what the suffix says."""
        prices = model_info("deepseek/deepseek-r1:free", vendor="openrouter").prices
        assert prices is not None
        assert prices.cost(Usage(input_tokens=10**6, output_tokens=10**6)) == 0

    def test_a_vendor_is_found_by_its_address(self) -> None:
        """Of an OpenAI-compatible server; one at home is no vendor."""
        found = model_info("gpt-5.4", url="https://api.openai.com/v1")
        assert found == model_info("gpt-5.4", vendor="openai")
        assert model_info("gpt-5.4", url="http://127.0.0.1:8000/v1") == ModelInfo() == model_info("gpt-5.4")


class TestSupplement:
    def test_every_row_is_of_a_model_that_is_known(self) -> None:
        """A limit or a window under a misspelt name would never be seen."""
        ids = {provider.id: {model.id.lower() for model in provider.models} for provider in get_snapshot().providers}
        for table in (supplement.MAX_OUTPUT_TOKENS, supplement.CONTEXT_WINDOWS):
            for vendor, rows in table.items():
                for name in rows:
                    assert name in ids[vendor] or model_info(name, vendor=vendor).prices is not None, (vendor, name)
        for vendor, names in supplement.SERVES.items():
            for name, served in names.items():
                assert model_info(name, vendor=vendor).prices is model_info(served, vendor=vendor).prices or (
                    prices_of(name, vendor).model == prices_of(served, vendor).model
                ), name

    def test_an_answer_is_shorter_than_the_window(self) -> None:
        """A cap as large as the window would leave no room for a request."""
        for known in KNOWN:
            limit, window = known.info.max_output_tokens, known.info.context_window
            assert limit is None or window is None or limit < window, known

    def test_windows_and_limits_of_what_people_use_are_known(self) -> None:
        """parity: C4"""
        for vendor, model, window, limit in (
            ("anthropic", "claude-opus-5-5", 1_000_000, 128_000),
            ("openai", "gpt-5.4", 1_050_000, 128_000),
            ("openai", "gpt-5-chat-latest", 128_000, 16_384),
            ("google", "gemini-2.5-pro", 1_048_576, 65_536),
            ("groq", "llama-3.3-70b-versatile", 131_072, 32_768),
        ):
            info = model_info(model, vendor=vendor)
            assert (info.context_window, info.max_output_tokens) == (window, limit)

    def test_it_has_a_date(self) -> None:
        """As its docstring says."""
        assert datetime.fromisoformat(supplement.DATE)
        assert supplement.DATE in (supplement.__doc__ or "")


@pytest.fixture
def raised() -> Iterator[DataSnapshot]:
    """Prices brought by `genai_prices.UpdatePrices`, as it would: gpt-4o costs $7."""
    snapshot = get_snapshot()
    openai = next(provider for provider in snapshot.providers if provider.id == "openai")
    changed = deepcopy(openai)
    entry = next(model for model in changed.models if model.id == "gpt-4o")
    entry.prices = ModelPrice(input_mtok=Decimal(7), output_mtok=Decimal(7))
    others = [provider for provider in snapshot.providers if provider is not openai]
    newer = DataSnapshot([changed, *others], from_auto_update=True, timestamp=datetime(2026, 12, 24))
    set_custom_snapshot(newer)
    yield newer
    set_custom_snapshot(None)


class TestSource:
    def test_a_bundled_price_is_as_old_as_its_release(self) -> None:
        """Or, of a version that came after ours, as its installation."""
        date = supplement.RELEASED.get(VERSION)
        said = re.fullmatch(
            r"genai-prices (\S+) \((installed )?(\d{4}-\d{2}-\d{2})\)", prices_of("o3", "openai").source
        )
        assert said
        assert said[1] == VERSION
        assert said[3] == date if date else said[2]

    def test_prices_that_the_user_updates_hold_from_the_next_question(self, raised: DataSnapshot) -> None:
        """With the date they came."""
        prices = prices_of("gpt-4o", "openai")
        assert prices.cost(Usage(input_tokens=1_000_000)) == 7
        assert prices.source == "genai-prices (2026-12-24)"
        set_custom_snapshot(None)
        assert prices_of("gpt-4o", "openai").source != prices.source

    def test_every_bill_says_where_its_price_is_from(self) -> None:
        """In `usage.updated`, with a date."""
        usage = Usage(input_tokens=1_000, output_tokens=100)
        model = ScriptedProvider([say("Hello.")], usage=usage, prices=model_info("gpt-4o", vendor="openai").prices)
        with Runtime() as rt, rt.subscribe("usage.*") as events:
            result = rt.start(Agent(name="a", model=model)).ask("Hi")
            event = events.get(timeout=10)
        assert event is not None
        assert event.type == "usage.updated"
        assert event.price_source == prices_of("gpt-4o", "openai").source
        assert event.cost == result.cost == Decimal("0.0035")

    def test_a_bill_of_the_providers_own_is_above_every_price(self) -> None:
        """And says that it is one, and of which day."""
        usage = Usage(input_tokens=1_000, reported_cost=Decimal("0.0123"))
        model = ScriptedProvider([say("Hello.")], usage=usage)
        with Runtime() as rt, rt.subscribe("usage.*") as events:
            result = rt.start(Agent(name="a", model=model, prices=Prices(input="3", output="15"))).ask("Hi")
            event = events.get(timeout=10)
        assert event is not None
        assert event.type == "usage.updated"
        assert event.cost == result.cost == Decimal("0.0123")
        assert (
            event.price_source == f"reported by {model.name} ({datetime.fromtimestamp(event.ts / 1e9, UTC):%Y-%m-%d})"
        )

    def test_nothing_imports_the_catalogue_before_it_is_asked(self) -> None:
        """It takes longer than everything else together; nor does making a provider."""
        code = (
            "import sys, nitinol, nitinol.cli, nitinol_providers.catalog\n"
            "model = nitinol_providers.OpenAICompatible('gpt-4o', api_key='x')\n"
            "assert 'genai_prices' not in sys.modules\n"
            "assert model.info().prices.cost(nitinol.Usage(input_tokens=1))\n"
            "assert 'genai_prices' in sys.modules\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_a_provider_tells_it(self) -> None:
        """By the vendor, or by the address."""
        info = OpenAICompatible("gpt-4o", api_key="x", base_url="https://api.openai.com/v1").info()
        assert info == catalog.model_info("gpt-4o", vendor="openai")
        given = Prices(input="1", output="2", source="our contract of 2026-01-01")
        assert isinstance(given, PriceList)
