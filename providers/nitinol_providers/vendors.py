"""The vendors of chat completions: where they are, what their variables are called, and where they differ."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from nitinol.errors import ConfigurationError
from nitinol.http_errors import without_secrets

Media = Literal["image", "image_url", "audio", "document"]
"""What a vendor's models may take: pictures as bytes, pictures by address, sound, documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """One vendor's dialect of chat completions. The defaults are OpenAI's own."""

    name: str
    base_url: str = ""
    """Where it is, unless the caller or `url_variable` says otherwise; `""` = the caller must say."""
    url_variable: str | None = None
    url_suffix: str = ""
    """What follows the address in `url_variable`, which the vendor's SDK adds too."""
    key_variable: str | None = None
    key_required: bool = True
    catalog: str | None = None
    """Its id in genai-prices; None = nothing is known of its prices."""
    media: frozenset[Media] = frozenset(("image", "image_url"))
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    stream_options: bool = True
    """Whether usage must be asked for; some refuse the question, and tell anyway."""
    thinking: Literal["reasoning_effort", "reasoning", "thinking", "budget", "high_only"] = "reasoning_effort"
    replay: Literal["reasoning_content", "reasoning"] | None = None
    """The field in which the model's own thinking goes back to it; None = it takes none."""
    output: Literal["json_schema", "prompt"] = "json_schema"
    """How it is told the schema of its answer; `prompt` where it refuses a schema beside streaming or tools."""
    short_ids: bool = False
    """Call ids must be nine letters or digits."""
    user_after_tool: bool = True
    """Whether a user's message may follow a tool's."""
    read_url: Callable[[str], str] = str


def _ollama_url(host: str) -> str:
    """`OLLAMA_HOST` as Ollama reads it: a host, with or without scheme and port; a server's wildcard is this machine."""
    url = urlsplit(host if "://" in host else f"http://{host}")
    name = url.hostname or "127.0.0.1"
    name = "127.0.0.1" if name in ("0.0.0.0", "::") else f"[{name}]" if ":" in name else name
    port = url.port or ({"http": 80, "https": 443}.get(url.scheme, 11434) if "://" in host else 11434)
    return f"{url.scheme}://{name}:{port}{url.path.rstrip('/')}"


_EVERYTHING: frozenset[Media] = frozenset(("image", "image_url", "audio", "document"))

VENDORS = {
    vendor.name: vendor
    for vendor in (
        Vendor(
            name="openai-compatible",
            base_url="https://api.openai.com/v1",
            url_variable="OPENAI_BASE_URL",
            key_variable="OPENAI_API_KEY",
            media=_EVERYTHING,
        ),
        Vendor(
            name="ollama",
            base_url="http://127.0.0.1:11434/v1",
            url_variable="OLLAMA_HOST",
            url_suffix="/v1",
            read_url=_ollama_url,
            key_variable="OLLAMA_API_KEY",
            key_required=False,
            media=frozenset(("image",)),
        ),
        Vendor(
            name="openrouter",
            base_url="https://openrouter.ai/api/v1",
            key_variable="OPENROUTER_API_KEY",
            catalog="openrouter",
            media=_EVERYTHING,
            thinking="reasoning",
            replay="reasoning",
        ),
        Vendor(
            name="deepseek",
            base_url="https://api.deepseek.com",
            key_variable="DEEPSEEK_API_KEY",
            catalog="deepseek",
            media=frozenset(),
            thinking="thinking",
            replay="reasoning_content",
            output="prompt",
        ),
        Vendor(
            name="mistral",
            base_url="https://api.mistral.ai/v1",
            key_variable="MISTRAL_API_KEY",
            catalog="mistral",
            stream_options=False,
            thinking="high_only",
            short_ids=True,
            user_after_tool=False,
        ),
        Vendor(
            name="groq",
            base_url="https://api.groq.com/openai/v1",
            url_variable="GROQ_BASE_URL",
            url_suffix="/openai/v1",
            key_variable="GROQ_API_KEY",
            catalog="groq",
            max_tokens="max_completion_tokens",
            output="prompt",
        ),
        Vendor(
            name="together",
            base_url="https://api.together.xyz/v1",
            url_variable="TOGETHER_BASE_URL",
            key_variable="TOGETHER_API_KEY",
            catalog="together",
        ),
        Vendor(
            name="vllm",
            base_url="http://127.0.0.1:8000/v1",
            url_variable="VLLM_BASE_URL",
            key_variable="VLLM_API_KEY",
            key_required=False,
            media=frozenset(("image", "image_url", "audio")),
        ),
        Vendor(
            name="llamacpp",
            base_url="http://127.0.0.1:8080/v1",
            url_variable="LLAMACPP_BASE_URL",
            key_variable="LLAMA_API_KEY",
            key_required=False,
            media=frozenset(("image", "image_url", "audio")),
            thinking="budget",
        ),
    )
}


def base_url_of(vendor: Vendor) -> tuple[str, bool]:
    """Its address without the caller's word, and whether that is the vendor's own default."""
    given = os.environ.get(vendor.url_variable, "").strip() if vendor.url_variable else ""
    if not given:
        return vendor.base_url, True
    try:
        parts = urlsplit(vendor.read_url(given))
    except ValueError:
        raise ConfigurationError(
            f"{vendor.url_variable}={without_secrets(given)!r} is no http address; write for instance 'http://127.0.0.1:8000'"
        ) from None
    return parts._replace(path=parts.path.rstrip("/") + vendor.url_suffix).geturl(), False
