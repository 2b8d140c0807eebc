"""What genai-prices lacks, in tables with a date: limits of answers, fees of tools, names it has not caught up with.

A vendor here goes by its id in genai-prices; a model by the name sent to it, or by its entry's id there.

Source: the catalogue of prices and limits in litellm 1.110.2 of 2026-11-20, held against the catalogue models.dev of
2026-07-02 and the vendors' own pages where the two disagree. Where a limit is still in doubt, it is the lower one: too
low cuts an answer short, too high is refused by the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping

from nitinol.prices import Prices

DATE = "2026-11-20"
"""Of all tables here."""

RELEASED: Mapping[str, str] = {"0.2.3": "2026-11-10"}
"""When a version of genai-prices came out, whose data carries no date."""

_ANSWERS: Mapping[str, Mapping[int, str]] = {
    "anthropic": {
        4_096: "claude-3-haiku claude-3-opus-latest claude-3-sonnet",
        8_192: "claude-3-5-haiku-latest claude-3-5-sonnet",
        32_000: "claude-opus-4-0 claude-opus-4-1",
        64_000: """
            claude-3-7-sonnet-latest claude-haiku-4-5 claude-opus-4-5 claude-sonnet-4-0 claude-sonnet-4-5
            claude-sonnet-4-6
        """,
        128_000: """
            claude-fable-5 claude-fable-5-1 claude-haiku-5-5 claude-mythos-5 claude-mythos-5-1 claude-opus-4-6
            claude-opus-4-7 claude-opus-4-8 claude-opus-5 claude-opus-5-5 claude-sonnet-5 claude-sonnet-5-5
        """,
    },
    "deepseek": {384_000: "deepseek-flash deepseek-v4-flash deepseek-v4-pro"},
    "google": {
        8_192: "gemini-2.0-flash gemini-2.0-flash-lite",
        65_536: """
            gemini-2.5-flash gemini-2.5-flash-lite gemini-2.5-pro gemini-3-flash-preview gemini-3-pro-preview
            gemini-3.1-flash-lite gemini-3.1-pro-preview gemini-3.5-flash gemini-3.5-flash-lite gemini-3.6-flash
            gemini-3.7-flash gemini-3.8-flash
        """,
    },
    "groq": {
        16_384: "qwen/qwen3.8-27b",
        32_768: "llama-3.3-70b-versatile",
        40_960: "qwen/qwen3-32b",
        65_536: "openai/gpt-oss-120b openai/gpt-oss-20b openai/gpt-oss-safeguard-20b",
    },
    "mistral": {128_000: "codestral-2508", 131_072: "deepseek-v4-1-flash-1017 zai-glm-5-3 zai-glm-5-3-flash"},
    "openai": {
        4_096: "gpt-3.5-turbo gpt-3.5-turbo-1106 gpt-3.5-turbo-16k gpt-4 gpt-4-turbo gpt-4o-2024-05-13",
        16_384: """
            ft:gpt-4o ft:gpt-4o-mini gpt-4o gpt-4o-mini gpt-4o-mini-search-preview gpt-4o-search-preview gpt-5-chat
            gpt-5-chat-latest gpt-5.1-chat-latest gpt-5.2-chat-latest gpt-5.3
        """,
        32_768: "gpt-4.1 gpt-4.1-mini gpt-4.1-nano",
        100_000: "o1 o1-pro o3 o3-deep-research o3-mini o3-pro o4-mini o4-mini-deep-research",
        128_000: """
            gpt-5 gpt-5-mini gpt-5-nano gpt-5-search-api gpt-5.1 gpt-5.1-codex-mini gpt-5.2 gpt-5.2-pro gpt-5.3-codex
            gpt-5.4 gpt-5.4-mini gpt-5.4-nano gpt-5.4-pro gpt-5.5 gpt-5.5-pro gpt-5.6-luna gpt-5.6-sol gpt-5.6-terra
            gpt-6-astra gpt-6-cyber gpt-6-luna gpt-6-rosalind gpt-6-sol gpt-6.1-sol gpt-6.1-terra
        """,
        272_000: "gpt-5-pro",
    },
    "together": {128_000: "zai-org/GLM-5.2 zai-org/GLM-5.3 zai-org/GLM-5.3-Flash"},
}

MAX_OUTPUT_TOKENS: Mapping[str, Mapping[str, int]] = {
    vendor: {name.lower(): most for most, names in rows.items() for name in names.split()}
    for vendor, rows in _ANSWERS.items()
}
"""The most tokens that one answer may have. A model whose only limit is its window stands in no row."""

CONTEXT_WINDOWS: Mapping[str, Mapping[str, int]] = {
    "anthropic": {"claude-mythos-5": 1_000_000, "claude-mythos-5-1": 1_000_000},
    "google": {
        "gemini-2.5-pro": 1_048_576,
        "gemini-3-pro-preview": 1_048_576,
        "gemini-3.1-pro-preview": 1_048_576,
        "gemini-4-hydrogen": 1_048_576,
    },
    "groq": {"llama-3.1-8b-instant": 131_072, "llama-3.3-70b-versatile": 131_072},
    "mistral": {
        "deepseek-v4-1-flash-1017": 1_048_576,
        "devstral-small-latest": 256_000,
        "ministral-8b-latest": 262_144,
        "mistral-medium-latest": 262_144,
        "mistral-small-latest": 262_144,
        "zai-glm-5-3": 1_048_576,
        "zai-glm-5-3-flash": 1_048_576,
    },
    "openai": {
        "gpt-5-chat": 128_000,
        "gpt-5-chat-latest": 128_000,
        "gpt-5.1-chat-latest": 128_000,
        "gpt-5.2-chat-latest": 128_000,
    },
}
"""Tokens of a request and its answer, where genai-prices knows none, or that of a sibling."""

SERVES: Mapping[str, Mapping[str, str]] = {
    "deepseek": {"deepseek-v4-flash-vision-exp": "deepseek-v4-flash"},
    "google": {"gemini-3.1-pro-preview-customtools": "gemini-3.1-pro-preview"},
    "mistral": {
        "codestral-latest": "codestral-2508",
        "devstral-latest": "devstral-2512",
        "devstral-medium-latest": "devstral-2512",
        "magistral-medium-latest": "mistral-medium-2604",
        "magistral-small-latest": "mistral-small-2603",
        "ministral-14b-latest": "ministral-14b-2512",
        "ministral-3b-latest": "ministral-3b-2512",
        "mistral-large-3": "mistral-large-2512",
        "mistral-large-latest": "mistral-large-2512",
        "mistral-medium": "mistral-medium-2604",
    },
    "x-ai": {
        "grok-4.20-non-reasoning": "grok-4.20",
        "grok-4.20-reasoning": "grok-4.20",
        "grok-code-fast": "grok-build-0.1",
        "grok-code-fast-1": "grok-build-0.1",
    },
}
"""Which model a vendor serves under a name that genai-prices does not know, or knows as it once was."""

_CLAUDE_MYTHOS = {"input": "10", "output": "50", "cache_write": "12.5", "cache_write_1h": "20"}
PRICES: Mapping[str, Mapping[str, Prices]] = {
    "anthropic": {
        "claude-mythos-5": Prices(
            **_CLAUDE_MYTHOS, cache_read="1", server_tool_call="0.01", source=f"litellm ({DATE})"
        ),
        "claude-mythos-5-1": Prices(
            **_CLAUDE_MYTHOS, cache_read="0.25", server_tool_call="0.01", source=f"litellm ({DATE})"
        ),
    },
    "google": {
        "gemini-4-hydrogen": Prices(
            input="1.5", output="7.5", cache_read="0.075", server_tool_call="0.014", source=f"litellm ({DATE})"
        )
    },
}
"""Prices of models that genai-prices does not know."""

SERVER_TOOL_FEES: Mapping[str, str] = {"x-ai": "0.005"}
"""US dollars for one call of a vendor's own tools, where genai-prices knows none: xAI's search and code, by its page on
prices."""
