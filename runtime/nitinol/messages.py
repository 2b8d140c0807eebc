"""Messages and their parts: one vocabulary that every provider translates from and to."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, PlainSerializer, Tag

Role = Literal["user", "assistant", "tool"]
StopReason = Literal["end_turn", "tool_use", "max_tokens", "refusal", "content_filter", "pause", "other"]
DeltaKind = Literal["text", "thinking", "tool_args"]
Outcome = Literal["ok", "error", "timeout", "cancelled", "denied", "blocked", "uncertain"]
RunStatus = Literal[
    "completed",
    "max_turns",
    "max_tool_calls",
    "budget_exceeded",
    "deadline_exceeded",
    "loop_detected",
    "halted",
    "cancelled",
    "failed",
    "sealed",
]
InputMode = Literal["steer", "follow_up"]


@dataclass(frozen=True, slots=True)
class Text:
    """Words."""

    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """A model's thinking. Only the provider that signed it can take it back as thinking."""

    text: str
    signature: str | None = None
    """The provider's proof that it wrote this; opaque."""
    redacted: bool = False
    """The provider hides the words; only the signature goes back."""
    type: Literal["thinking"] = "thinking"


def _decode(value: object) -> object:
    return base64.b64decode(value) if isinstance(value, str) else value


Bytes = Annotated[
    bytes,
    BeforeValidator(_decode),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), return_type=str, when_used="json"),
]
"""Bytes; base64 in JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Media:
    data: Bytes | None = None
    url: str | None = None
    media_type: str = "application/octet-stream"
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.url is None):
            raise ValueError(f"{type(self).__name__} takes data= or url=, one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(_Media):
    """A picture: bytes or an address."""

    type: Literal["image"] = "image"

    @classmethod
    def from_path(cls, path: str | Path, media_type: str | None = None) -> Image:
        """Read a file; its type comes from its name."""
        return cls(**_read(path, media_type, "image/png"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio(_Media):
    """Sound: bytes or an address."""

    type: Literal["audio"] = "audio"

    @classmethod
    def from_path(cls, path: str | Path, media_type: str | None = None) -> Audio:
        """Read a file; its type comes from its name."""
        return cls(**_read(path, media_type, "audio/wav"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Document(_Media):
    """A document, such as a PDF: bytes or an address."""

    type: Literal["document"] = "document"

    @classmethod
    def from_path(cls, path: str | Path, media_type: str | None = None) -> Document:
        """Read a file; its type comes from its name."""
        return cls(**_read(path, media_type, "application/pdf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A model asks for a tool."""

    call_id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    malformed: str | None = None
    """What the model wrote, where it is no JSON object; the call is then answered with an error."""
    signature: str | None = None
    """The provider's opaque token that must go back with the call."""
    type: Literal["tool_call"] = "tool_call"

    def replace(self, **changes: Any) -> ToolCall:
        """A copy with other fields; for `before_tool` hooks."""
        return replace(self, **changes)


Media: TypeAlias = Image | Audio | Document
Content: TypeAlias = Text | Image | Audio | Document


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    """The answer to one tool call."""

    call_id: str
    name: str
    text: str
    error: bool = False
    media: tuple[Annotated[Media, Discriminator("type")], ...] = ()
    type: Literal["tool_answer"] = "tool_answer"


Part: TypeAlias = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Thinking, Tag("thinking")]
    | Annotated[Image, Tag("image")]
    | Annotated[Audio, Tag("audio")]
    | Annotated[Document, Tag("document")]
    | Annotated[ToolCall, Tag("tool_call")]
    | Annotated[ToolAnswer, Tag("tool_answer")],
    Discriminator("type"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation.

    A `tool` message holds the answers to all calls of the assistant message before it, in call order.
    """

    role: Role
    parts: tuple[Part, ...]
    provider: str | None = None
    """Of an assistant's message: who wrote it, so that its signed thinking goes back to no one else."""
    model: str | None = None
    """Of an assistant's message: which model wrote it."""

    @property
    def text(self) -> str:
        """The words, without thinking."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


Prompt: TypeAlias = str | Content | Sequence[str | Content] | Message
"""What a user says: words, media, or a list of both."""


def to_message(prompt: Prompt) -> Message:
    """A prompt as a user's message.

    Raises:
        TypeError: It holds something that is neither words nor media.
        ValueError: It is empty.
    """
    if isinstance(prompt, Message):
        if prompt.role != "user":
            raise ValueError(
                f"a prompt is a user's message; this one's role is {prompt.role!r}; give history as messages="
            )
        return prompt
    given = [prompt] if isinstance(prompt, (str, Text, Image, Audio, Document)) else prompt
    items: list[object] = list(given)  # users pass what they like
    parts: list[Content] = []
    for item in items:
        if isinstance(item, str):
            parts.append(Text(item))
        elif isinstance(item, (Text, Image, Audio, Document)):
            parts.append(item)
        else:
            raise TypeError(
                f"a prompt is a str, an Image, Audio or Document, or a list of them; not {type(item).__name__}"
            )
    if not any(not isinstance(part, Text) or part.text.strip() for part in parts):
        raise ValueError("the prompt is empty")
    return Message(role="user", parts=tuple(parts))


def _read(path: str | Path, media_type: str | None, default: str) -> dict[str, Any]:
    path = Path(path)
    return {
        "data": path.read_bytes(),
        "media_type": media_type or mimetypes.guess_type(path.name)[0] or default,
        "name": path.name,
    }
