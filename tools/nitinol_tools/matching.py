"""Where a model's text is in a file, whatever line ends the file has, and why it is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE_END = r"(?:\r\n|(?<!\r)\n)"
_NUMBERED = re.compile(r" *\d+\t")


def pattern(text: str) -> str:
    """A regular expression that finds the text, each of its line ends being LF or CRLF."""
    return _LINE_END.join(re.escape(line) for line in text.replace("\r\n", "\n").split("\n"))


def positions(text: str, old: str) -> Iterator[int]:
    """Every place where `old` begins; places that overlap too, since they make a match ambiguous."""
    search = re.compile(pattern(old)).search
    found = search(text)
    while found:
        yield found.start()
        found = search(text, found.start() + 1)


def substitute(text: str, old: str, new: str) -> tuple[str, int]:
    """Replace every match by `new`, whose line ends become those of the match, or else of the file's first line.

    Returns:
        The new text, and how many matches there were.
    """
    crlf = _ends_with_crlf(text)

    def fit(found: re.Match[str]) -> str:
        return with_crlf(new) if (_ends_with_crlf(found[0]) if "\n" in found[0] else crlf) else new

    return re.subn(pattern(old), fit, text)


def with_crlf(text: str) -> str:
    """The text with CRLF for each LF."""
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def why_missing(text: str, old: str) -> str:
    """What a model that looked for `old` should know: a sentence, without its full stop."""
    if all(_NUMBERED.match(line) for line in old.splitlines()):
        return "leave out the line numbers and the tabs after them"
    if "\ufffd" in old:
        return "the file holds bytes that are not UTF-8; choose text without \ufffd"
    loose = re.search(r"\s+".join(re.escape(word) for word in old.split()), text) if old.split() else None
    if loose:
        line = text.count("\n", 0, loose.start()) + 1
        return f"line {line} differs from it in white space only; copy it exactly"
    return "it must match exactly, white space included; read the file again"


def _ends_with_crlf(text: str) -> bool:
    """Whether the first line end is CRLF."""
    end = text.find("\n")
    return end > 0 and text[end - 1] == "\r"
