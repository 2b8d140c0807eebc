"""What every protocol's answer is read with: events, texts and counts that may be anything, calls, errors in the stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

from pydantic_core import from_json

from nitinol import errors
from nitinol.errors import MalformedResponse, ProviderError
from nitinol.http_errors import error_message, error_type
from nitinol.messages import StopReason, ToolCall
from nitinol.provider import ModelRequest
from nitinol_providers.overflow import classify

BROKEN = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What reading raises where an answer has another shape than its protocol's."""
_CODES: Mapping[str, type[ProviderError]] = {
    "server_error": errors.ServerError,
    "vector_store_timeout": errors.ServerError,
    "rate_limit_exceeded": errors.RateLimited,
    "rate_limit_error": errors.RateLimited,
    "insufficient_quota": errors.RateLimited,
    "overloaded": errors.Overloaded,
    "overloaded_error": errors.Overloaded,
    "unavailable_error": errors.Overloaded,
    "authentication_error": errors.AuthenticationFailed,
    "invalid_api_key": errors.AuthenticationFailed,
    "permission_error": errors.AuthenticationFailed,
    "invalid_request_error": errors.InvalidRequest,
    "not_found_error": errors.InvalidRequest,
    "invalid_prompt": errors.ContentRefused,  # OpenAI: flagged by its policy
    "bio_policy": errors.ContentRefused,
    "misalignment_policy_violation": errors.ContentRefused,
    "data_residency_mismatch": errors.InvalidRequest,
    "unsupported_image_media_type": errors.InvalidRequest,
    "empty_image_file": errors.InvalidRequest,
    "failed_to_download_image": errors.InvalidRequest,
}
_LONE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_LARGE = re.compile(rb"\d[eE]\+?\d{3}")


def parse_event(data: bytes) -> Any:
    """The JSON of one event; `ValueError` if it is none."""
    try:
        return _finite(data)
    except ValueError:
        if not _LONE.search(data):
            raise
        # A server that cuts an emoji in two sends half of it as an escape, which is no text; the rest of the chunk is.
        return _finite(_LONE.sub(rb"\\ufffd", data))


def _finite(data: bytes) -> Any:
    """JSON; `ValueError` where a number is too large for one, and would go back as a word that no server reads."""
    made: Any = from_json(data, allow_inf_nan=False)
    if _LARGE.search(data):
        json.dumps(made, allow_nan=False)
    return made


def read_arguments(raw: str) -> dict[str, Any] | None:
    """A call's arguments; None where they are no JSON object. Nothing at all means no arguments."""
    if not raw.strip():
        return {}
    try:
        arguments: Any = _finite(raw.encode())
    except ValueError:
        return None
    if arguments is None:
        return {}
    return cast("dict[str, Any]", arguments) if isinstance(arguments, dict) else None


def make_calls(
    request: ModelRequest, found: Iterable[tuple[str | None, str, str, str | None]], *, cut: bool = False
) -> list[ToolCall]:
    """Calls of id, name, arguments as they were written, and signature; each gets an id that no other of the conversation has.

    Args:
        cut: Whether the answer ended at its limit, within the last of them. If that one has no arguments yet, it may need
            some, so it must not run without.

    Raises:
        MalformedResponse: One has no name.
    """
    taken = {call.call_id for message in request.messages for call in message.tool_calls}
    made: list[ToolCall] = []
    raw = ""
    for number, (id, name, raw, signature) in enumerate(found):
        if not name:
            raise MalformedResponse("a tool call has no name")
        again = 0
        while not id or id in taken:
            # No chance in it: the same answer must give the same ids.
            id = "_".join(filter(None, ("call", request.run_id, str(request.turn), str(number), "x" * again)))
            again += 1
        taken.add(id)
        arguments = read_arguments(raw)
        malformed = raw if arguments is None else None
        made.append(
            ToolCall(call_id=id, name=name, arguments=arguments or {}, malformed=malformed, signature=signature)
        )
    if cut and made and not made[-1].arguments and not raw.strip():
        made[-1] = replace(made[-1], malformed="")
    return made


def stop_of(told: StopReason, *, calls: bool) -> StopReason:
    """Why an answer ended. Its calls say whether it waits for tools, whatever the server tells."""
    if told in ("end_turn", "tool_use"):
        return "tool_use" if calls else "end_turn"
    return told


def chunk_error(error: Any) -> ProviderError:
    """An error that came inside an answer of status 200, by its code."""
    fields = as_object(cast("Any", error)) if isinstance(error, dict) else as_object(None)
    code, kind = str(fields.get("code")), str(fields.get("type"))
    status = next((int(text) for text in (code, str(fields.get("status"))) if text.isdecimal()), 0)
    known = _CODES.get(code) or _CODES.get(kind)
    if known is None and code.startswith(("image_", "invalid_")):  # OpenAI: a dozen ways to send no picture
        known = errors.InvalidRequest
    by_status = error_type(status) if 400 <= status < 600 else None
    cls = classify(status, str(cast("object", error))) or by_status or known or errors.ServerError
    return cls(error_message(cast("object", error)), status_code=status or None)


def as_text(value: Any) -> str:
    """A text that may be null. Anything else is a mistake that no later place would notice in time."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value or ""


def as_object(value: Any) -> Mapping[str, Any]:
    """A JSON object that may be null."""
    return value or {}


def tells(raw: Mapping[str, Any], *names: str) -> bool:
    """Whether one of these is a number of tokens."""
    return any(_is_count(raw.get(name)) for name in names)


def count(value: Any) -> int:
    """A number of tokens; 0 where it is none, or none that a store would take."""
    return int(value) if _is_count(value) else 0


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**63


def reported_cost(raw: Mapping[str, Any]) -> Decimal | None:
    """OpenRouter's bill, or xAI's. With the user's own key, the vendor's bill comes on top of OpenRouter's; where that is not told, it is unknown."""
    if (ticks := raw.get("cost_in_usd_ticks")) is not None:
        return Decimal(count(ticks)) / 10**10 if _is_count(ticks) else None
    costs = [raw.get("cost")]
    if raw.get("is_byok"):
        costs.append(as_object(raw.get("cost_details")).get("upstream_inference_cost"))
    try:
        total = sum((Decimal(str(cost)) for cost in costs), Decimal(0))  # by way of text: 0.1 is a tenth
    except ArithmeticError:  # it is no number, or one too large
        return None
    return total if total.is_finite() and total >= 0 else None
