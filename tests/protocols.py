"""The four wire formats and their providers: what a test of all of them is parametrised over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fakes.chat import Chat
from tests.fakes.gemini import Gemini as FakeGemini
from tests.fakes.messages import Messages
from tests.fakes.responses import Responses

from nitinol.provider import Provider
from nitinol_providers import Anthropic, Gemini, OpenAI, OpenAICompatible

if TYPE_CHECKING:
    from tests.fakes.said import Fake

RECORDINGS = Path(__file__).parent / "providers" / "recordings"
KEY = "sk-secret"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One wire format, and the provider that speaks it to a server on loopback."""

    name: str
    make: Callable[[str, str], Provider]
    """The provider for a model and a server's address, without a slash at the end."""
    model: str
    """A model of the vendor's that thinks and calls tools."""
    fake: Callable[[], Fake]
    """A strict server of it."""
    folder: str
    """Of the recordings."""

    def __str__(self) -> str:
        return self.name

    def recordings(self) -> dict[str, bytes]:
        """Answers of real servers as they were streamed, by name."""
        return {path.stem: path.read_bytes() for path in sorted((RECORDINGS / self.folder).glob("*.sse"))}


PROTOCOLS = (
    Protocol(
        name="chat",
        make=lambda model, url: OpenAICompatible(model, base_url=f"{url}/v1", api_key=KEY),
        model="gpt-oss-120b",
        fake=Chat,
        folder="",
    ),
    Protocol(
        name="responses",
        make=lambda model, url: OpenAI(model, base_url=f"{url}/v1", api_key=KEY),
        model="gpt-5.4",
        fake=Responses,
        folder="responses",
    ),
    Protocol(
        name="messages",
        make=lambda model, url: Anthropic(model, base_url=url, api_key=KEY),
        model="claude-sonnet-4-5",
        fake=Messages,
        folder="anthropic",
    ),
    Protocol(
        name="gemini",
        make=lambda model, url: Gemini(model, base_url=url, api_key=KEY),
        model="gemini-3-pro",
        fake=FakeGemini,
        folder="gemini",
    ),
)
