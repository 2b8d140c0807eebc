"""Conversations of any kind, for hypothesis: what a provider may be asked to go on with."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nitinol import tool
from nitinol.messages import (
    Audio,
    Content,
    Document,
    Image,
    Media,
    Message,
    Native,
    Part,
    Text,
    Thinking,
    ToolAnswer,
    ToolCall,
)
from nitinol.provider import ModelRequest
from nitinol.repair import view
from nitinol.tool_spec import Tool

WORDS = st.text(st.characters(codec="utf-8"), max_size=30)
SAID = WORDS.filter(bool)
IDS = st.one_of(st.from_regex(r"call_[a-z0-9]{1,8}", fullmatch=True), st.text(min_size=1, max_size=90))
NAMES = st.sampled_from(("look_up", "note", "gone", "functions.made up"))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), WORDS
)
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3)
)
ARGUMENTS = st.dictionaries(WORDS, JSON, max_size=3)
TYPES = {
    Image: ("image/png", "image/jpeg", "image/webp", "image/tiff", "application/octet-stream"),
    Audio: ("audio/wav", "audio/mpeg", "audio/ogg"),
    Document: ("application/pdf", "text/plain", "application/json", "application/zip"),
}


@st.composite
def media(draw: st.DrawFn) -> Media:
    """A picture, sound or document, by bytes or address."""
    kind: Any = draw(st.sampled_from(tuple(TYPES)))
    where = {"url": "https://example.test/a"} if draw(st.booleans()) else {"data": draw(st.binary(max_size=9))}
    made: Media = kind(**where, media_type=draw(st.sampled_from(TYPES[kind])), name=draw(st.none() | SAID))
    return made


@st.composite
def calls(draw: st.DrawFn) -> ToolCall:
    """A tool call, some with what is no JSON."""
    malformed = draw(st.none() | SAID)
    arguments = draw(ARGUMENTS) if malformed is None else {}
    signature = draw(st.none() | SAID)
    return ToolCall(call_id=draw(IDS), name=draw(NAMES), arguments=arguments, malformed=malformed, signature=signature)


CONTENTS: st.SearchStrategy[Content] = st.builds(Text, SAID) | media()
THOUGHTS = st.builds(Thinking, text=WORDS, signature=st.none() | WORDS, redacted=st.booleans())
NATIVES = st.builds(Native, data=st.dictionaries(SAID, JSON, max_size=2), text=WORDS)
SPOKEN: st.SearchStrategy[Part] = st.builds(Text, SAID) | THOUGHTS | NATIVES | calls() | media()


def _id_of(part: Part) -> object:
    """What no two parts of a message share."""
    return part.call_id if isinstance(part, ToolCall) else id(part)


@st.composite
def answers(draw: st.DrawFn, call: ToolCall) -> ToolAnswer:
    """What came of a call."""
    shown = tuple(draw(st.lists(media(), max_size=2)))
    return ToolAnswer(call_id=call.call_id, name=call.name, text=draw(WORDS), error=draw(st.booleans()), media=shown)


@st.composite
def conversations(draw: st.DrawFn, own: st.SearchStrategy[Message] | None = None) -> tuple[Message, ...]:
    """Valid as the runtime keeps them: each call answered, no message empty. `own`: answers that the provider itself gave."""
    foreign = st.builds(
        Message,
        role=st.just("assistant"),
        parts=st.lists(SPOKEN, min_size=1, max_size=5, unique_by=_id_of).map(tuple),
        provider=st.sampled_from(("anthropic", "gemini", "mistral", "openai", "xai", None)),
        model=st.sampled_from(("a", "b", None)),
    )
    spoken = foreign if own is None else own | foreign
    made: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        said = draw(st.lists(CONTENTS, min_size=1, max_size=3))
        made.append(Message(role="user", parts=tuple(said)))
        answer = draw(spoken)
        made.append(answer)
        if answer.tool_calls:
            made.append(Message(role="tool", parts=tuple(draw(answers(call)) for call in answer.tool_calls)))
    return view(made)[0]


@tool
def look_up(word: str, limit: int = 3) -> str:
    """Look a word up."""
    return word * limit


@tool
def note(text: str, tags: list[str]) -> str:
    """Take a note."""
    return text + str(tags)


TOOLS: tuple[Tool, ...] = (look_up, note)
SCHEMAS: tuple[dict[str, Any] | None, ...] = (
    None,
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}}},
    {"type": "array", "items": {"type": "string"}},
)


@st.composite
def model_requests(draw: st.DrawFn, own: st.SearchStrategy[Message] | None = None) -> ModelRequest:
    """A request with any of the options."""
    return ModelRequest(
        messages=draw(conversations(own)),
        instructions=draw(st.none() | SAID),
        tools=draw(st.sampled_from(((), TOOLS))),
        output_schema=draw(st.sampled_from(SCHEMAS)),
        max_output_tokens=draw(st.none() | st.integers(16, 10_000)),
        temperature=draw(st.none() | st.floats(0, 2)),
        thinking=draw(st.sampled_from((None, 1, 8000, 100_000, "low", "medium", "high"))),
        cache=draw(st.booleans()),
        key=draw(WORDS),
        run_id="RUN",
        turn=1,
    )
