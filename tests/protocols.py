"""The four wire formats and their providers: what a test of all of them is parametrised over."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.chat import Chat
from tests.fakes.gemini import Gemini
from tests.fakes.messages import Messages
from tests.fakes.responses import Responses

from nitinol.provider import Provider
from nitinol_providers import OpenAICompatible

if TYPE_CHECKING:
    from tests.fakes.said import Fake

RECORDINGS = Path(__file__).parent / "providers" / "recordings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One wire format, and the provider that speaks it to a server on loopback."""

    name: str
    path: str
    """What is asked under the server's address; a pattern of `re`."""
    model: str
    """A model of the vendor's that thinks and calls tools."""
    fake: Callable[[], Fake]
    """A strict server's script."""
    make: Callable[[str, str], Provider]
    """The provider for a model and a server's address, without a slash at the end."""

    folder: str = ""
    """Of the recordings."""

    def __str__(self) -> str:
        return self.name

    def recordings(self) -> dict[str, bytes]:
        """Answers of real servers as they were streamed, by name."""
        return {path.stem: path.read_bytes() for path in sorted((RECORDINGS / self.folder).glob("*.sse"))}


def _made(module: str, name: str, suffix: str, model: str, url: str) -> Provider:
    made: Any = getattr(importlib.import_module(f"nitinol_providers.{module}"), name)
    provider: Provider = made(model, base_url=url + suffix, api_key="sk-secret")
    return provider


def _chat(model: str, url: str) -> Provider:
    return OpenAICompatible(model, base_url=f"{url}/v1", api_key="sk-secret")


def _there(module: str) -> bool:
    return importlib.util.find_spec(f"nitinol_providers.{module}") is not None


_ALL = (
    Protocol(name="chat", path=r"/v1/chat/completions", model="gpt-oss-120b", fake=Chat, make=_chat),
    Protocol(
        name="responses",
        folder="responses",
        path=r"/v1/responses",
        model="gpt-5.4",
        fake=Responses,
        make=partial(_made, "openai", "OpenAI", "/v1"),
    ),
    Protocol(
        name="messages",
        folder="anthropic",
        path=r"/v1/messages",
        model="claude-sonnet-4-5",
        fake=Messages,
        make=partial(_made, "anthropic", "Anthropic", ""),
    ),
    Protocol(
        name="gemini",
        folder="gemini",
        model="gemini-3-pro",
        fake=Gemini,
        path=r"/v1beta/models/[\w.-]+:streamGenerateContent\?alt=sse",
        make=partial(_made, "gemini", "Gemini", ""),
    ),
)
PROTOCOLS = [
    p for p in _ALL if p.name == "chat" or _there({"responses": "openai", "messages": "anthropic"}.get(p.name, p.name))
]
