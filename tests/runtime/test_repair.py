"""Repair: whatever a transcript went through, the view of it is one that a model accepts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nitinol.messages import Image, Message, Part, Role, Text, Thinking, ToolAnswer, ToolCall
from nitinol.repair import LOST, View, view

ids = st.sampled_from(("c1", "c2", "c3"))
words = st.builds(Text, st.sampled_from(("", "so", "well")))
pictures = st.just(Image(url="https://example.org/x.png"))
thoughts = st.builds(Thinking, text=st.sampled_from(("", "hm")))
calls = st.builds(ToolCall, call_id=ids, name=st.just("add"))
answers = st.builds(ToolAnswer, call_id=ids, name=st.just("add"), text=st.sampled_from(("3", "4")))


def message(role: Role, parts: st.SearchStrategy[Part], *, unique: bool = False) -> st.SearchStrategy[Message]:
    def key(part: Part) -> object:
        return part.call_id if isinstance(part, ToolCall) else id(part)

    lists = st.lists(parts, max_size=4, unique_by=key if unique else None)
    return lists.map(lambda items: Message(role=role, parts=tuple(items)))


anything = st.lists(
    st.one_of(
        message("user", st.one_of(words, pictures)),
        message("assistant", st.one_of(words, thoughts, calls), unique=True),
        message("tool", st.one_of(answers, answers, words)),
    ),
    max_size=8,
)


def wrong(messages: tuple[Message, ...]) -> list[str]:
    """What a model would refuse. Written apart from `repair`, on purpose."""
    found: list[str] = []
    for index, item in enumerate(messages):
        before = messages[index - 1] if index else None
        following = messages[index + 1] if index + 1 < len(messages) else None
        if not item.parts or any(isinstance(part, Text) and not part.text for part in item.parts):
            found.append(f"{index}: empty")
        if item.role == "user" and before is not None and before.role == "user":
            found.append(f"{index}: two users in a row")
        if item.role == "tool":
            asked = [call.call_id for call in before.tool_calls] if before is not None else []
            if [part.call_id if isinstance(part, ToolAnswer) else None for part in item.parts] != asked or not asked:
                found.append(f"{index}: answers what was not asked")
        if item.tool_calls and (following is None or following.role != "tool"):
            found.append(f"{index}: calls without answers")
    return found


@given(anything, st.lists(st.integers(0, 8)))
def test_a_view_that_grows_is_the_view(messages: list[Message], looks: list[int]) -> None:
    """However often a growing transcript was looked at, and wherever, the view is what one look at all of it gives."""
    growing = View()
    for length in sorted(looks):
        assert growing.of(messages[:length]) == view(messages[:length])
    assert growing.of(messages) == view(messages)


@given(anything)
def test_the_view_of_any_messages_is_valid(messages: list[Message]) -> None:
    """Each call answered exactly once, in position; nothing empty; no two users in a row. design.md section 6"""
    sent, _, _ = view(messages)
    assert not wrong(sent)


@given(anything)
def test_a_valid_transcript_comes_back_as_it_is(messages: list[Message]) -> None:
    """Nothing is added or removed twice: a view is its own view."""
    sent, _, _ = view(messages)
    assert view(sent) == (sent, 0, 0)


@given(anything)
def test_what_was_said_is_kept(messages: list[Message]) -> None:
    """Repair drops answers without calls and what is empty; no words, no calls."""
    sent, _, _ = view(messages)

    def said(items: tuple[Message, ...] | list[Message]) -> list[Part]:
        return [part for item in items if item.role != "tool" for part in item.parts if part != Text("")]

    assert said(sent) == said(messages)


def test_a_call_without_an_answer_is_told_so() -> None:
    """Counted as added; the answers that are there stay, in call order."""
    messages = [
        Message(role="user", parts=(Text("go"),)),
        Message(role="assistant", parts=(ToolCall(call_id="c1", name="add"), ToolCall(call_id="c2", name="add"))),
        Message(role="tool", parts=(ToolAnswer(call_id="c2", name="add", text="2"),)),
    ]
    sent, added, removed = view(messages)
    assert (added, removed) == (1, 0)
    assert sent[2].parts == (
        ToolAnswer(call_id="c1", name="add", text=LOST, error=True),
        ToolAnswer(call_id="c2", name="add", text="2"),
    )


def test_call_ids_may_repeat_across_turns() -> None:
    """Each turn's answers are its own."""
    turn = [
        Message(role="assistant", parts=(ToolCall(call_id="c1", name="add"),)),
        Message(role="tool", parts=(ToolAnswer(call_id="c1", name="add", text="2"),)),
    ]
    messages = [Message(role="user", parts=(Text("go"),)), *turn, *turn]
    assert view(messages) == (tuple(messages), 0, 0)


def test_an_answer_without_its_call_is_removed() -> None:
    """Also a second answer, and one that comes after something else."""
    messages = [
        Message(role="tool", parts=(ToolAnswer(call_id="c1", name="add", text="stray"),)),
        Message(role="user", parts=(Text("go"),)),
        Message(role="assistant", parts=(ToolCall(call_id="c1", name="add"),)),
        Message(role="tool", parts=(ToolAnswer(call_id="c1", name="add", text="1"),)),
        Message(role="tool", parts=(ToolAnswer(call_id="c1", name="add", text="2"),)),
    ]
    sent, added, removed = view(messages)
    assert (len(sent), added, removed) == (3, 0, 2)
    assert sent[-1].parts == (ToolAnswer(call_id="c1", name="add", text="1"),)


def test_messages_of_a_user_in_a_row_are_one() -> None:
    """A run that ended before its answer leaves its question; the next one joins it."""
    one, two = Message(role="user", parts=(Text("one"),)), Message(role="user", parts=(Text("two"),))
    assert view([one, two]) == ((Message(role="user", parts=(Text("one"), Text("two"))),), 0, 0)
    empty = Message(role="assistant", parts=())
    assert view([one, empty, two])[0] == (Message(role="user", parts=(Text("one"), Text("two"))),)
