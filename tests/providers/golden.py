"""The golden table of prices: what vendors said they counted, what it costs by our sum, and by genai-prices' own.

    python -m tests.providers.golden

Raw usages have the vendors' own shapes. Our side reads them as our providers do and asks `catalog.model_info(…).prices`;
genai-prices reads them itself, with `extract_usage(raw).calc_price()`. Each row is of one moment, so that hours and dates
of prices are the same for both. Where the two differ, the row says why, and by how much.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from genai_prices import extract_usage

from nitinol.provider import ModelRequest, UsageSoFar
from nitinol.usage import Usage
from nitinol_providers import anthropic_answer, catalog, responses_answer
from nitinol_providers.catalog import CatalogPrices
from nitinol_providers.chat_answer import read_usage
from nitinol_providers.gemini_answer import GeminiAnswer

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
MILLIONTH = Decimal("0.000001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One answer of a vendor."""

    vendor: str
    """As genai-prices calls it."""
    flavor: str
    """Which of the vendor's protocols, as genai-prices calls it."""
    model: str
    what: str
    raw: Mapping[str, Any]
    """The usage, as the vendor tells it."""
    output: tuple[str, ...] = ()
    """Types of items in the answer that are calls of the vendor's own tools, where its usage does not count them."""
    at: datetime = NOON
    difference: str = "0"
    """Ours less theirs, in dollars."""
    why: str = ""
    """Why it is not 0."""

    def usage(self) -> Usage:
        """As our provider reads it."""
        return READERS[self.flavor](self.raw, self.output)

    def ours(self) -> Decimal | None:
        """As the runtime charges it: what the vendor says it billed, above all."""
        usage = self.usage()
        if usage.reported_cost is not None:
            return usage.reported_cost
        prices = catalog.model_info(self.model, vendor=self.vendor).prices
        if isinstance(prices, CatalogPrices):
            prices = prices.at(self.at.timestamp)
        return None if prices is None else prices.cost(usage)

    def theirs(self) -> Decimal:
        """By genai-prices alone."""
        google = self.vendor == "google"
        answer = {
            ("modelVersion" if google else "model"): self.model,
            ("usageMetadata" if google else "usage"): self.raw,
        }
        flavor = (
            "default" if self.flavor in ("messages", "gemini") or self.vendor in ("groq", "mistral") else self.flavor
        )
        extracted = extract_usage(answer, provider_id=self.vendor, api_flavor=flavor)
        return extracted.calc_price(genai_request_timestamp=self.at).total_price


def _gemini(raw: Mapping[str, Any], output: tuple[str, ...]) -> Usage:
    """By a chunk with these counts, whose answer rests on so many searches."""
    candidate: dict[str, Any] = {"content": {"parts": [{"text": "So."}]}, "finishReason": "STOP"}
    if output:
        queries = [f"{kind} {number}" for number, kind in enumerate(output)]
        candidate["groundingMetadata"] = {"webSearchQueries": queries}
    chunk = json.dumps({"candidates": [candidate], "usageMetadata": dict(raw)}).encode()
    parts = GeminiAnswer("gemini", ModelRequest(messages=())).read(chunk)
    return next(part.usage for part in parts if isinstance(part, UsageSoFar))


READERS: Mapping[str, Callable[[Mapping[str, Any], tuple[str, ...]], Usage]] = {
    "messages": lambda raw, output: anthropic_answer.read_usage(raw) or Usage(),
    "responses": lambda raw, output: responses_answer.read_usage(raw, [{"type": kind} for kind in output]) or Usage(),
    "chat": lambda raw, output: read_usage(raw) or Usage(),
    "gemini": _gemini,
}


# -- the vendors' shapes


def claude(fresh: int, out: int, *, read: int = 0, short: int = 0, hour: int = 0, **more: Any) -> dict[str, Any]:
    """Of Anthropic's messages."""
    return {
        "input_tokens": fresh,
        "cache_creation_input_tokens": short + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour},
        "output_tokens": out,
        "service_tier": "standard",
        **more,
    }


def chat(prompt: int, out: int, *, cached: int = 0, wrote: int = 0, reasoning: int = 0, **more: Any) -> dict[str, Any]:
    """Of chat completions."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": out,
        "total_tokens": prompt + out,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0, "cache_write_tokens": wrote},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
        **more,
    }


def responses(
    sent: int, out: int, *, cached: int = 0, wrote: int = 0, reasoning: int = 0, **more: Any
) -> dict[str, Any]:
    """Of OpenAI's responses."""
    return {
        "input_tokens": sent,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": wrote},
        "output_tokens": out,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": sent + out,
        **more,
    }


def grok(prompt: int, out: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """Of xAI's chat completions, which leave reasoning out of the completion."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": out,
        "total_tokens": prompt + out + reasoning,
        "prompt_tokens_details": {"text_tokens": prompt, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
        "num_sources_used": 0,
    }


def gemini(
    prompt: int, out: int, *, cached: int = 0, thought: int = 0, found: int = 0, sound: int = 0
) -> dict[str, Any]:
    """Of Gemini's `usageMetadata`."""
    details = [{"modality": "TEXT", "tokenCount": prompt - sound}]
    if sound:
        details.append({"modality": "AUDIO", "tokenCount": sound})
    raw: dict[str, Any] = {
        "promptTokenCount": prompt,
        "candidatesTokenCount": out,
        "totalTokenCount": prompt + out + thought + found,
        "promptTokensDetails": details,
    }
    if cached:
        raw["cachedContentTokenCount"] = cached
        raw["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": cached}]
    if thought:
        raw["thoughtsTokenCount"] = thought
    if found:
        raw["toolUsePromptTokenCount"] = found
        raw["toolUsePromptTokensDetails"] = [{"modality": "TEXT", "tokenCount": found}]
    return raw


def deepseek(hit: int, miss: int, out: int, *, reasoning: int = 0, details: bool = True) -> dict[str, Any]:
    """Of DeepSeek's chat completions, which tell of the cache twice."""
    return {
        "prompt_tokens": hit + miss,
        "completion_tokens": out,
        "total_tokens": hit + miss + out,
        "prompt_cache_hit_tokens": hit,
        "prompt_cache_miss_tokens": miss,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        **({"prompt_tokens_details": {"cached_tokens": hit}} if details else {}),
    }


def _row(vendor: str, flavor: str, model: str, what: str, raw: Mapping[str, Any], **more: Any) -> Row:
    return Row(vendor=vendor, flavor=flavor, model=model, what=what, raw=raw, **more)


def _hour(hour: int, minute: int = 0, day: int = 25, month: int = 11, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, minute, tzinfo=UTC)


_CALLS = "genai-prices' reader of this protocol does not count the calls of tools, which our providers do"

ROWS: tuple[Row, ...] = (
    _row("anthropic", "messages", "claude-sonnet-4-6", "nothing cached", claude(1_234, 567)),
    _row("anthropic", "messages", "claude-sonnet-4-6-20260101", "a dated name", claude(10, 20, read=30_000)),
    _row("anthropic", "messages", "claude-opus-5-5", "read and 5-minute write", claude(12, 890, read=98_000, short=1_500)),
    _row("anthropic", "messages", "claude-opus-5-5", "1-hour write", claude(12, 890, read=98_000, hour=20_000)),
    _row("anthropic", "messages", "claude-opus-5-5", "writes of both kinds", claude(5, 44, read=1, short=7_000, hour=9_000)),
    _row("anthropic", "messages", "claude-opus-4-1", "the dearest, with thinking", claude(
        3_000, 9_000, output_tokens_details={"thinking_tokens": 7_777})),
    _row("anthropic", "messages", "claude-haiku-4-5-20251001", "a dated name, 1-hour write", claude(7, 300, hour=4_096)),
    _row("anthropic", "messages", "claude-haiku-5-5", "short of the long tier", claude(99_000, 400, read=999, short=1)),
    _row("anthropic", "messages", "claude-haiku-5-5", "long only by what is cached", claude(1_000, 400, read=99_001)),
    _row("anthropic", "messages", "claude-haiku-5-5", "long, with writes of both kinds", claude(
        1_000, 400, read=90_000, short=9_000, hour=9_000)),
    _row("anthropic", "messages", "claude-sonnet-4-5", "long, on the older tiers", claude(180_000, 5_000, read=30_000)),
    _row("anthropic", "messages", "claude-sonnet-4-6", "long, after its tiers were dropped", claude(900_000, 1)),
    _row("anthropic", "messages", "claude-sonnet-4-6", "long, before they were", claude(250_000, 1), at=_hour(12, 0, 1, 3)),
    _row("anthropic", "messages", "claude-opus-5-5", "3 searches of the web", claude(
        20_000, 900, server_tool_use={"web_search_requests": 3})),
    _row("anthropic", "messages", "claude-fable-5-1", "a fetch, which costs its tokens", claude(
        50_000, 100, server_tool_use={"web_search_requests": 0, "web_fetch_requests": 4})),
    _row("anthropic", "messages", "claude-3-5-haiku-20241022", "an old model, nulls in its usage", {
        "input_tokens": 400, "output_tokens": 200, "cache_creation_input_tokens": None, "cache_read_input_tokens": None}),
    _row("anthropic", "messages", "claude-sonnet-5-5", "1-hour write, thinking", claude(
        9, 4_000, read=40_000, hour=2_500, output_tokens_details={"thinking_tokens": 3_100})),
    _row("openai", "chat", "ft:gpt-4o-2024-08-06:acme::A1b2", "fine-tuned", chat(1_000, 100)),
    _row("openai", "chat", "gpt-5.4", "nothing cached", chat(1_000, 500)),
    _row("openai", "chat", "gpt-5.4-2026-03-05", "a dated name, cached", chat(20_000, 100, cached=19_968)),
    _row("openai", "chat", "gpt-5.4", "long", chat(300_000, 100, cached=1_024)),
    _row("openai", "chat", "gpt-5.6-sol", "a cache that is written", chat(40_000, 700, cached=8_192, wrote=30_000)),
    _row("openai", "chat", "gpt-4o-mini", "cached", chat(5_000, 40, cached=4_864)),
    _row("openai", "chat", "o4-mini", "reasoning", chat(900, 6_000, reasoning=5_632)),
    _row("openai", "chat", "o3", "today's price", chat(10_000, 2_000, cached=512)),
    _row("openai", "chat", "o3", "the price before June 2025", chat(10_000, 2_000), at=_hour(12, 0, 1, 6, 2025)),
    _row("openai", "chat", "gpt-4.1-nano", "no details at all", {"prompt_tokens": 12, "completion_tokens": 3}),
    _row("openai", "chat", "gpt-3.5-turbo", "an old model", chat(300, 20)),
    _row("openai", "responses", "gpt-5.4", "nothing cached", responses(812, 64)),
    _row("openai", "responses", "gpt-5.4", "cached, reasoning", responses(12_800, 3_000, cached=12_544, reasoning=2_880)),
    _row("openai", "responses", "gpt-6-sol", "a cache that is written", responses(90_000, 1_200, cached=50_000, wrote=39_000)),
    _row("openai", "responses", "gpt-6-sol", "the last token of the short tier", responses(272_000, 1)),
    _row("openai", "responses", "gpt-6-sol", "one token more", responses(272_001, 1)),
    _row("openai", "responses", "gpt-6-sol", "long, all kinds", responses(
        400_000, 9_000, cached=300_000, wrote=60_000, reasoning=8_000)),
    _row("openai", "responses", "gpt-5.6-sol", "its price before August 2026", responses(1_000, 100), at=_hour(12, 0, 1, 8)),
    _row("openai", "responses", "gpt-5-nano", "small", responses(11, 7)),
    _row("openai", "responses", "gpt-5.4", "2 searches of the web", responses(30_000, 800),
         output=("web_search_call",) * 2, difference="0.02", why=_CALLS),
    _row("openai", "responses", "gpt-5.4", "a search of files", responses(30_000, 800), output=("file_search_call",),
         difference="0.01", why=f"{_CALLS}; and it is charged as one of the web: $10 for 1,000, where files are $2.50"),
    _row("google", "gemini", "gemini-2.5-flash", "nothing cached", gemini(1_500, 200)),
    _row("google", "gemini", "gemini-2.5-flash", "thinking, cached", gemini(40_000, 300, cached=32_768, thought=1_700)),
    _row("google", "gemini", "gemini-2.5-pro", "the last token of the short tier", gemini(200_000, 10)),
    _row("google", "gemini", "gemini-2.5-pro", "long, cached, thinking", gemini(200_001, 10, cached=150_000, thought=4_000)),
    _row("google", "gemini", "gemini-3.1-pro-preview", "long", gemini(512_000, 6_000, cached=100_000, thought=1_000)),
    _row("google", "gemini", "gemini-flash-latest", "an alias", gemini(800, 90, thought=400)),
    _row("google", "gemini", "gemini-4-argon", "the price until November's end", gemini(10_000, 1_000, cached=2_000)),
    _row("google", "gemini", "gemini-4-argon", "the price after it", gemini(10_000, 1_000), at=_hour(0, 0, 1, 12)),
    _row("google", "gemini", "gemini-3.8-flash", "what its tools found", gemini(2_000, 300, found=12_000)),
    _row("google", "gemini", "gemini-3.8-flash", "3 searches of the web", gemini(2_000, 300),
         output=("GOOGLE_SEARCH_WEB",) * 3, difference="0.042", why=_CALLS),
    _row("google", "gemini", "gemini-2.5-pro", "3 searches, billed as one", gemini(2_000, 300),
         output=("GOOGLE_SEARCH_WEB",) * 3, difference="0.035", why=_CALLS),
    _row("google", "gemini", "gemini-2.5-flash", "sound", gemini(10_000, 100, sound=8_000), difference="-0.0056",
         why="our usage has no count of sound, which costs $1 a million here; it is charged as text, at $0.30"),
    _row("x-ai", "chat", "grok-4.7", "nothing cached", grok(3_000, 200)),
    _row("x-ai", "chat", "grok-4.7", "reasoning beside the completion, cached", grok(9_000, 50, cached=8_000, reasoning=1_900)),
    _row("x-ai", "chat", "grok-4.7", "the last token of the short tier", grok(199_999, 50, reasoning=10)),
    _row("x-ai", "chat", "grok-4.7", "long", grok(250_000, 50, cached=9_000, reasoning=10)),
    _row("x-ai", "chat", "grok-3-mini", "an old model", grok(700, 8, reasoning=320)),
    _row("x-ai", "responses", "grok-4.7", "reasoning, cached", responses(15_000, 2_500, cached=14_000, reasoning=2_000)),
    _row("x-ai", "responses", "grok-4.3", "long", responses(210_000, 900, cached=64)),
    _row("x-ai", "responses", "grok-4.7", "its own bill", responses(15_000, 2_500, cost_in_usd_ticks=450_000_000)),
    _row("x-ai", "responses", "grok-4.7", "its own bill, with a search", responses(15_000, 2_500, cost_in_usd_ticks=500_000_000),
         output=("web_search_call",), difference="0.005", why="xAI says what it billed, the fee of a search included"),
    _row("x-ai", "responses", "grok-4.7", "a search, without its bill", responses(15_000, 2_500),
         output=("web_search_call",), difference="0.005", why=_CALLS),
    _row("x-ai", "chat", "grok-code-fast-1", "a name that another model answers to now", grok(10_000, 1_000),
         difference="0.0085", why="retired in May 2026: grok-build-0.1 answers, at its price"),
    _row("deepseek", "chat", "deepseek-flash", "off-peak", deepseek(30_000, 2_000, 900), at=_hour(12)),
    _row("deepseek", "chat", "deepseek-flash", "the last second off-peak", deepseek(30_000, 2_000, 900), at=_hour(0, 59)),
    _row("deepseek", "chat", "deepseek-flash", "peak", deepseek(30_000, 2_000, 900), at=_hour(1)),
    _row("deepseek", "chat", "deepseek-v4-pro", "the second peak, reasoning", deepseek(
        1_024, 77, 8_000, reasoning=7_500), at=_hour(9, 59)),
    _row("deepseek", "chat", "deepseek-v4-pro", "the price before August 2026", deepseek(0, 500, 50), at=_hour(2, 0, 1, 7)),
    _row("deepseek", "chat", "deepseek-flash", "the cache told in the old way only", deepseek(30_000, 2_000, 900, details=False),
         difference="-0.00441", why="genai-prices' reader does not know prompt_cache_hit_tokens, and takes all as a miss"),
    _row("mistral", "chat", "mistral-medium-latest", "nothing cached", chat(4_000, 900)),
    _row("mistral", "chat", "mistral-medium-2604", "cached, reasoning", chat(4_000, 900, cached=3_000, reasoning=600)),
    _row("mistral", "chat", "mistral-small-latest", "an alias that has moved", chat(100, 10)),
    _row("mistral", "chat", "mistral-large-4", "the list price", chat(50_000, 3_000, cached=20_000)),
    _row("mistral", "chat", "codestral-2508", "code", chat(6_000, 200)),
    _row("mistral", "chat", "mistral-large-latest", "an alias that has moved", chat(10_000, 1_000), difference="-0.0195",
         why="since December 2025 the alias is mistral-large-2512; genai-prices has the price of the one before"),
    _row("groq", "chat", "openai/gpt-oss-120b", "cached, reasoning", chat(
        2_000, 700, cached=1_024, reasoning=512, queue_time=0.01, total_time=0.4)),
    _row("groq", "chat", "llama-3.3-70b-versatile", "a model without a price for cached input", chat(2_000, 90, cached=1_024)),
    _row("groq", "chat", "qwen/qwen3-32b", "reasoning", chat(300, 1_500, reasoning=1_400)),
    _row("openrouter", "chat", "anthropic/claude-sonnet-4.5", "read and write, no bill", chat(
        60_000, 500, cached=50_000, wrote=9_000)),
    _row("openrouter", "chat", "anthropic/claude-sonnet-4.5", "long", chat(260_000, 500, cached=50_000)),
    _row("openrouter", "chat", "openai/gpt-5.4", "cached, reasoning", chat(9_000, 2_000, cached=8_192, reasoning=1_600)),
    _row("openrouter", "chat", "perplexity/sonar-deep-research", "thinking with a price of its own", chat(
        1_000, 9_000, reasoning=6_000)),
    _row("openrouter", "chat", "deepseek/deepseek-r1:free", "free", chat(1_000, 900)),
    _row("openrouter", "chat", "anthropic/claude-opus-5.5", "its own bill", chat(1_000, 100, cost=0.006)),
    _row("openrouter", "chat", "anthropic/claude-opus-5.5", "the bill of a dearer host", chat(1_000, 100, cost=0.0066),
         difference="0.0006", why="OpenRouter says what it billed, whichever host it chose"),
)  # fmt: skip


def lines() -> list[str]:
    """The table, and what the differences are about."""
    head = ("vendor", "protocol", "model", "what", "ours", "genai-prices", "difference")
    cells: list[tuple[str, ...]] = [head]
    notes: dict[str, int] = {}
    for row in ROWS:
        ours, theirs = row.ours(), row.theirs()
        different = "unknown" if ours is None else "" if abs(ours - theirs) < MILLIONTH else f"{ours - theirs:+f}"
        if row.why:
            different += f" [{notes.setdefault(row.why, len(notes) + 1)}]"
        money = ("unknown" if ours is None else f"{ours:.7f}", f"{theirs:.7f}")
        cells.append((row.vendor, row.flavor, row.model, row.what, *money, different))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    same = sum(not row.why for row in ROWS)
    told = [f"[{number}] {why}." for why, number in notes.items()]
    count = f"{len(ROWS)} usages: {same} cost the same to a millionth of a dollar, {len(ROWS) - same} are explained"
    return [*table, "", *told, "", count]


if __name__ == "__main__":
    print("\n".join(lines()))
