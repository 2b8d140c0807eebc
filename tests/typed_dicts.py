"""Whether a JSON value is what a vendor's SDK lets its caller send: its `TypedDict`s, walked by hand.

pydantic's `TypeAdapter` panics on such a nest of `Iterable`s, and would let unknown keys pass.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, Union, cast, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

_MARKS = (Annotated, Required, NotRequired)


def misfits(value: object, kind: Any, at: str = "body") -> list[str]:
    """Where a value is not of a type, which may be a `TypedDict`; empty where it is."""
    return list(_misfits(value, kind, at))


def _misfits(value: object, kind: Any, at: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (Any, object):
        return
    if origin in _MARKS:
        yield from _misfits(value, arguments[0], at)
    elif origin in (Union, types.UnionType):
        yield from _fits_none(value, arguments, at)
    elif origin is Literal:
        if value not in arguments:
            yield f"{at}={value!r} is none of {arguments}"
    elif is_typeddict(kind):
        yield from _fields(value, kind, at)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        for key, item in cast("dict[str, object]", value).items():
            yield from _misfits(item, arguments[1], f"{at}.{key}")
    elif isinstance(origin, type) and issubclass(origin, Iterable) and isinstance(value, list):
        for number, item in enumerate(cast("list[object]", value)):
            yield from _misfits(item, arguments[0], f"{at}[{number}]")
    elif not isinstance(kind, type) or not _is(value, kind):
        yield f"{at}={value!r} is no {kind}"


def _is(value: object, kind: type) -> bool:
    numbers = kind in (int, float) and isinstance(value, (int, kind)) and not isinstance(value, bool)
    return numbers or (kind not in (int, float) and isinstance(value, kind))


def _fits_none(value: object, kinds: Sequence[Any], at: str) -> Iterator[str]:
    """Nothing if one of them fits; else what is wrong with the one that is meant, by its type or role."""
    found = {kind: misfits(value, kind, at) for kind in kinds}
    if all(found.values()):
        meant = [wrong for kind, wrong in found.items() if is_typeddict(kind) and _is_meant(value, kind)]
        yield from max(meant or found.values(), key=_depth)


def _depth(wrong: Sequence[str]) -> int:
    return len(wrong[0].partition("=")[0].partition(" ")[0])


def _is_meant(value: object, kind: Any) -> bool:
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    hints = _hints(kind)
    return any(key in hints and not misfits(fields.get(key, ()), hints[key]) for key in ("type", "role"))


def _fields(value: object, kind: Any, at: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{at}={value!r} is no {kind.__name__}"
        return
    fields, hints = cast("dict[str, Any]", value), _hints(kind)
    config: Mapping[str, Any] = getattr(kind, "__pydantic_config__", {})
    # Not `__required_keys__`: it knows nothing where annotations are strings.
    needed = (key for key, hint in hints.items() if get_origin(hint) is Required)
    yield from (f"{at}.{key} is missing" for key in needed if key not in fields)
    for key, item in fields.items():
        if key in hints:
            yield from _misfits(item, hints[key], f"{at}.{key}")
        elif config.get("extra") != "allow":
            yield f"{at}.{key} is unknown to {kind.__name__}"


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)
