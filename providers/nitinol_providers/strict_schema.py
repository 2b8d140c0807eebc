"""JSON schemas in the subset that OpenAI's strict mode takes, which then holds the model to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_KEPT = frozenset(
    (
        *("type", "title", "description", "enum", "const", "format", "$ref", "$defs", "anyOf", "oneOf"),
        *("properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    )
)
_DROPPED = frozenset(("default", "discriminator", "examples"))
_FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"))
_DEEPEST = 10


def strict(schema: Mapping[str, Any], *, narrow: bool) -> dict[str, Any] | None:
    """The schema as strict mode wants it, or None where that would say something else.

    Args:
        narrow: Whether a property that may be left out may become one that is always there: what fits the result fits
            the schema too. Right for an answer; a tool's optional argument would be made up.
    """
    return _object(schema, narrow, 1) if schema.get("type") == "object" else None


def rooted(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema with what it refers to as a whole in its place, which is how a recursive one is written."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    definitions = schema.get("$defs", {})
    return {**definitions[name], "$defs": definitions} if name in definitions else schema


def _node(value: Any, narrow: bool, depth: int) -> dict[str, Any] | None:
    schema: Mapping[str, Any] = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
    kind = schema.get("type")
    if depth > _DEEPEST or not schema.keys() & {"type", "anyOf", "oneOf", "$ref"}:
        return None
    if not schema.keys() <= _KEPT | _DROPPED or schema.get("format", "date") not in _FORMATS:
        return None
    if kind == "object":
        return _object(schema, narrow, depth)
    made: dict[str, Any] = {key: item for key, item in schema.items() if key in _KEPT and key != "oneOf"}
    if kind == "array":
        made["items"] = _node(schema.get("items"), narrow, depth + 1)
        return None if made["items"] is None else made
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        options = [_node(choice, narrow, depth) for choice in choices]
        return None if None in options else {**made, "anyOf": options}
    if "$ref" in made and len(made) > 1:  # nothing may stand beside a reference
        reference = made.pop("$ref")
        return {**made, "anyOf": [{"$ref": reference}]}
    return made


def _object(schema: Mapping[str, Any], narrow: bool, depth: int) -> dict[str, Any] | None:
    properties = schema.get("properties")
    if properties is None or schema.get("additionalProperties", False) is not False:
        return None  # any object at all
    if not schema.keys() <= _KEPT | _DROPPED or not (narrow or set(properties) == set(schema.get("required", ()))):
        return None
    made = {key: item for key, item in schema.items() if key in _KEPT}
    made["required"], made["additionalProperties"] = list(properties), False
    for key in ("properties", "$defs"):
        if key in made:
            made[key] = {name: _node(item, narrow, depth + 1) for name, item in made[key].items()}
            if None in made[key].values():
                return None
    return made
