"""Usage: the tokens of one attempt, one run or one life, in one vocabulary for all vendors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal


def is_count(value: object, least: int = 0) -> bool:
    """Whether it is a whole number, `least` or more; `True` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


MEASURE = 2
"""Of `quarters`. A change of it is another measure: what one has estimated says nothing of another's ratio to real tokens."""
_LETTERS = bytes(byte for byte in range(256) if byte >= 128 or chr(byte).isalpha() or chr(byte) in " \n\r\t")


def quarters(text: str | bytes) -> int:
    """How many quarters of tokens a text may have, roughly: one for a letter, or a byte of one; for a digit or sign, 2.5.

    Words, also of other alphabets, have long tokens; code and numbers have short ones.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    return len(data) + len(data.translate(None, _LETTERS)) * 3 // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of model calls. Sums with `+`.

    `input_tokens` and `output_tokens` are totals: cached tokens are within the input, reasoning within the output.
    """

    input_tokens: int = 0
    """All tokens of the request, read from and written to the cache included."""
    cache_read_tokens: int = 0
    """Of the input: read from the provider's cache."""
    cache_write_tokens: int = 0
    """Of the input: written to the provider's cache, however long it is kept."""
    cache_write_1h_tokens: int = 0
    """Of the cache writes: those kept for an hour."""
    output_tokens: int = 0
    """All tokens of the answer, reasoning included."""
    reasoning_tokens: int = 0
    """Of the output: thinking."""
    server_tool_calls: int = 0
    """Calls of the provider's own tools, which are billed by the call."""
    reported_cost: Decimal | None = None
    """US dollars, where the provider itself says what it billed."""

    @property
    def total_tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens

    def fault(self) -> str | None:
        """What is wrong with a usage that somebody outside made; `None` where it is sound."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "reported_cost":
                if not is_count(value):
                    return f"{item.name} is {value!r}"
            elif value is not None and (not isinstance(value, Decimal) or not value.is_finite() or value < 0):
                return f"reported_cost is {value!r}"
        return None

    def __add__(self, other: Usage) -> Usage:
        """Both together. A cost that only one of them reports is the cost of that one; of none, it is `None`."""
        if not isinstance(other, Usage):  # pyright: ignore[reportUnnecessaryIsInstance] # sum() begins with a 0
            return NotImplemented
        costs = [cost for cost in (self.reported_cost, other.reported_cost) if cost is not None]
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cache_write_1h_tokens=self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            server_tool_calls=self.server_tool_calls + other.server_tool_calls,
            reported_cost=sum(costs, Decimal(0)) if costs else None,
        )


NO_USAGE = Usage()
"""Nothing used yet."""
