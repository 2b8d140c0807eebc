"""An answer that follows a schema: as the vendor's own format where it can say the schema, else as a forced tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nitinol.provider import ModelRequest
from nitinol_providers.anthropic_models import abilities

_KEPT = ("title", "description", "enum", "const")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How the model is held to a schema: one of `format` and `tool`."""

    format: Mapping[str, Any] | None = None
    """For `output_config`."""
    tool: Mapping[str, Any] | None = None
    """The tool whose arguments are the answer."""
    wrapped: bool = False
    """Whether the answer is the tool's only argument, since arguments are always an object."""

    @property
    def tool_name(self) -> str | None:
        """What the model calls to answer."""
        return None if self.tool is None else str(self.tool["name"])

    def text(self, arguments: Mapping[str, Any]) -> str:
        """A call of the tool, as the words of an answer."""
        answer = arguments["value"] if self.wrapped and list(arguments) == ["value"] else arguments
        return json.dumps(answer, ensure_ascii=False)


def output(model: str, request: ModelRequest) -> Output | None:
    """How this request's schema is told; None where it has none."""
    schema = request.output_schema
    if schema is None:
        return None
    if abilities(model).json_schema:
        try:
            return Output(format={"type": "json_schema", "schema": _strict(schema, _definitions(schema), ())})
        except _Inexpressible:
            pass
    name = "final_answer"
    while name in (tool.name for tool in request.tools):
        name += "_"
    wrapped = schema.get("type") != "object"
    return Output(tool=_tool(name, schema, wrapped), wrapped=wrapped)


def _tool(name: str, schema: Mapping[str, Any], wrapped: bool) -> dict[str, Any]:
    parameters = dict(schema)
    if wrapped:
        definitions = parameters.pop("$defs", None)
        parameters = {"type": "object", "properties": {"value": parameters}, "required": ["value"]}
        if definitions:
            parameters["$defs"] = definitions
    description = (
        "Give your final answer. Call it once, when you have all that you need, instead of answering in words."
    )
    return {"name": name, "description": description, "input_schema": parameters}


class _Inexpressible(Exception):
    """The format has no words for this schema."""


def _definitions(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return schema.get("$defs") or {}


def _strict(schema: Any, definitions: Mapping[str, Any], within: Sequence[str]) -> dict[str, Any]:
    """The schema in the format's subset. What it may not say, such as a minimum, is told to the model as words."""
    if not isinstance(schema, Mapping):
        raise _Inexpressible
    given = dict(cast("Mapping[str, Any]", schema))
    made: dict[str, Any] = {}
    if "$defs" in given:
        made["$defs"] = {name: _strict(item, definitions, (name,)) for name, item in given.pop("$defs").items()}
    if "$ref" in given:
        name = str(given["$ref"]).removeprefix("#/$defs/")
        if name not in definitions or name in within:  # elsewhere, or a schema that holds itself
            raise _Inexpressible
        _strict(definitions[name], definitions, (*within, name))
        return {**made, "$ref": given["$ref"]}
    made |= {key: given.pop(key) for key in _KEPT if key in given}
    kind = given.pop("type", None)
    if variants := given.pop("anyOf", None) or given.pop("oneOf", None):
        made["anyOf"] = [_strict(variant, definitions, within) for variant in variants]
        given.pop("discriminator", None)
    elif kind == "object":
        if given.pop("additionalProperties", False) is not False or not given.get("properties"):
            raise _Inexpressible
        fields = given.pop("properties").items()
        made |= {"type": kind, "properties": {key: _strict(item, definitions, within) for key, item in fields}}
        made |= {"required": list(given.pop("required", ())), "additionalProperties": False}
    elif kind == "array":
        made |= {"type": kind, "items": _strict(given.pop("items", None), definitions, within)}
        if given.get("minItems") in (0, 1):
            made["minItems"] = given.pop("minItems")
    elif isinstance(kind, str):
        made["type"] = kind
        if given.get("format") in _FORMATS:
            made["format"] = given.pop("format")
    elif "enum" not in made and "const" not in made:
        raise _Inexpressible
    if rest := list(_words(given)):
        made["description"] = "\n".join(filter(None, [made.get("description"), f"({', '.join(rest)})"]))
    return made


def _words(rest: Mapping[str, Any]) -> Iterator[str]:
    for key, value in rest.items():
        if key in ("allOf", "prefixItems", "patternProperties", "not", "if", "$anchor", "contains", "dependentSchemas"):
            raise _Inexpressible
        yield f"{key}: {json.dumps(value, ensure_ascii=False, default=str)}"
