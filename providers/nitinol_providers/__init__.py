"""Providers: each speaks one vendor's wire format, and every line that knows a vendor is here."""

from nitinol_providers.openai import OpenAI
from nitinol_providers.openai_compatible import OpenAICompatible

__all__ = ["OpenAI", "OpenAICompatible"]
