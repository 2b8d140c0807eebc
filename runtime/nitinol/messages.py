"""Messages and their parts: one vocabulary that every provider translates from and to."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Discriminator, PlainSerializer, Tag

from nitinol.errors import ConfigurationError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """What only the provider that made it understands, such as a call of its own tools and what that found.

    It goes back to that provider as it came; to any other as its `text`, or not at all.
    """

    data: Mapping[str, Any]
    """As it stands on the wire."""
    text: str = ""
    """What it says, in words."""
    type: Literal["native"] = "native"


Part: TypeAlias = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Thinking, Tag("thinking")]
    | Annotated[Image, Tag("image")]
    | Annotated[Audio, Tag("audio")]
    | Annotated[Document, Tag("document")]
    | Annotated[ToolCall, Tag("tool_call")]
    | Annotated[ToolAnswer, Tag("tool_answer")]
    | Annotated[Native, Tag("native")],
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What a view of a transcript leaves out, and what stands there instead. The transcript itself stays whole.

    Messages are told by their index in the transcript, from 0.
    """

    hidden: int = 0
    """Messages before this one are not shown."""
    kept: tuple[int, ...] = ()
    """But these of them are, word for word: the user's first, and what the user asked for last."""
    handoff: str = ""
    """The summary that stands for the others."""
    lost: int = 0
    """How many of the others no summary covers."""
    cleared: int = 0
    """Of tool results before this one, only the tool's name is shown."""
    clipped: int = 0
    """Of tool results before this one, the beginning and the end are shown."""
    clip: int = 0
    """So many characters of each."""


NOTHING_COMPACTED = Compacted()
"""All is shown."""


def fault(message: object, role: Role | None = None) -> str | None:
    """What is wrong with a message that somebody outside made; `None` where it is sound.

    Types are promises that Python does not keep: what enters a log must be what it says, or every fold of it fails.
    """
    if not isinstance(message, Message):
        return f"{message!r} is no Message"
    if message.role not in get_args(Role) or (role is not None and message.role != role):
        return f"its role is {message.role!r}" + (f", not {role!r}" if role else "")
    if not isinstance(message.parts, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        return f"its parts are a {type(message.parts).__name__}, not a tuple"
    if not all(value is None or isinstance(value, str) for value in (message.provider, message.model)):  # pyright: ignore[reportUnnecessaryIsInstance]
        return "its provider or model is no str"
    return next((wrong for part in message.parts if (wrong := _part_fault(part)) is not None), None)


def _part_fault(part: object) -> str | None:
    texts: tuple[object, ...] = ()
    options: tuple[object, ...] = ()
    match part:
        case Text():
            texts = (part.text,)
        case Thinking():
            texts, options = (part.text,), (part.signature,)
        case ToolCall():
            texts, options = (part.call_id, part.name), (part.malformed, part.signature)
            if not isinstance(part.arguments, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                return f"the arguments of call {part.name!r} are {part.arguments!r}, not a dict"
        case ToolAnswer():
            texts = (part.call_id, part.name, part.text)
        case Native():
            texts = (part.text,)
            if not isinstance(part.data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                return f"the data of its native part is {part.data!r}, not a dict"
        case Image() | Audio() | Document():
            options = (part.url, part.name)
            if not isinstance(part.data, (bytes, type(None))):  # pyright: ignore[reportUnnecessaryIsInstance]
                return f"the data of its {part.type} is no bytes"
        case _:
            return f"{part!r} is no part of a message"
    given = [*texts, *(option for option in options if option is not None)]
    if not all(isinstance(text, str) for text in given):  # pyright: ignore[reportUnnecessaryIsInstance]
        return f"a field of {part!r} is no str"
    return None


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
        if wrong := fault(prompt):
            raise TypeError(f"the prompt is not sound: {wrong}")
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


def is_unicode(*texts: str) -> bool:
    """Whether UTF-8 can hold them: there is no lone surrogate in them."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(what: str, value: object) -> None:
    """Raise `ConfigurationError` unless a name that a user gives is one that a store can hold."""
    if not isinstance(value, str) or not value or not is_unicode(value):
        raise ConfigurationError(f"{what}={value!r} must be a str of Unicode characters, one at least")


def _read(path: str | Path, media_type: str | None, default: str) -> dict[str, Any]:
    path = Path(path)
    return {
        "data": path.read_bytes(),
        "media_type": media_type or mimetypes.guess_type(path.name)[0] or default,
        "name": path.name,
    }
