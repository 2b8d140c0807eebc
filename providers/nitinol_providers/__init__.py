"""Providers: each speaks one vendor's wire format, and every line that knows a vendor is here."""

from nitinol_providers.gemini import Gemini
from nitinol_providers.openai_compatible import OpenAICompatible

__all__ = ["Gemini", "OpenAICompatible"]
