"""The one table of how vendors say that a conversation is too long, and that their policy refuses it.

Everything else is decided by status or type; for these two, text is all that most vendors give.
"""

from __future__ import annotations

from nitinol.errors import ContentRefused, ContextOverflow, ProviderError

_OVERFLOW = (
    "context_length_exceeded",  # OpenAI, Groq: the error's code
    "model_context_window_exceeded",  # Anthropic, Z.AI
    "exceed_context_size",  # llama.cpp: the error's type
    "exceeds the available context size",  # llama.cpp
    "maximum context length",  # OpenAI, vLLM, DeepSeek, Mistral, OpenRouter
    "longer than the maximum model length",  # vLLM
    "exceed context window",  # llama-cpp-python
    "exceeds the context window",  # OpenAI Responses
    "exceeds the context length",  # Ollama
    "exceeds context length",  # Ollama
    "exceed context limit",  # Anthropic
    "prompt is too long",  # Anthropic
    "input is too long for requested model",  # Bedrock
    "exceeds the maximum number of tokens",  # Gemini
    "request payload size exceeds the limit",  # Gemini: so many bytes that it does not count the tokens
    "maximum prompt length is",  # xAI
    "`inputs` tokens + `max_new_tokens` must be",  # Together
    "reduce the length of the messages",  # Groq
    "request too large for model",  # Groq: more than a minute's tokens at once
    "too large for model with",  # Mistral
)
_REFUSED = (
    "content_filter",  # Azure, OpenAI
    "content_policy_violation",  # OpenAI
    "flagged_input",  # OpenRouter's moderation
    "requires moderation",  # OpenRouter
    "data_inspection_failed",  # Alibaba
    "content exists risk",  # DeepSeek
)


def classify(status: int, text: str) -> type[ProviderError] | None:
    """What the body of an error says beyond its status; None where it says nothing more. Fits `Http.sse(classify=)`.

    A 429 stays a rate limit and a 401 a refused key, whatever their words.
    """
    if status in (401, 429):
        return None
    lowered = text.lower()
    if any(words in lowered for words in _OVERFLOW):
        return ContextOverflow
    if status < 500 and any(words in lowered for words in _REFUSED):
        return ContentRefused
    return None
