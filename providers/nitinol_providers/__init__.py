"""Providers: each speaks one vendor's wire format, and every line that knows a vendor is here."""

from nitinol_providers.anthropic import Anthropic
from nitinol_providers.gemini import Gemini
from nitinol_providers.openai import OpenAI
from nitinol_providers.openai_compatible import OpenAICompatible

__all__ = ["Anthropic", "Gemini", "OpenAI", "OpenAICompatible"]
