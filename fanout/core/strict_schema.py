"""JSON Schemas in the forms that providers enforce.

Providers enforce a subset of JSON Schema: each object lists all of its properties as required and
allows no others, and most checks of values are not known. A schema of a user is brought into that
form; what it loses is checked by fanout alone.

Sources: OpenAI's guide "Structured model outputs" (supported schemas), Anthropic's guide "Structured
outputs" (JSON Schema limitations), Gemini's guide "Structured output" (JSON Schema support).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

__all__ = [
    "WRAPPED",
    "Dialect",
    "NativeSchema",
    "native_schema",
    "object_properties",
    "without_filled_nulls",
]

Dialect = Literal["openai", "anthropic", "gemini", "llama"]

# The property that holds an answer that is no object: providers enforce objects only.
WRAPPED = "answer"

_ANNOTATIONS = frozenset({"title", "description"})
_STRUCTURE = frozenset({"type", "enum", "const", "properties", "required", "items", "anyOf", "$ref", "$defs",
                        "additionalProperties"})  # fmt: skip
_NUMBERS = frozenset({"multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_LENGTHS = frozenset({"minLength", "maxLength"})
# What each dialect enforces beside structure.
_CHECKS: dict[Dialect, frozenset[str]] = {
    "openai": _NUMBERS | {"pattern", "format", "minItems", "maxItems"},
    "anthropic": frozenset({"format"}),
    "gemini": frozenset({"minimum", "maximum", "format", "minItems", "maxItems"}),
    "llama": _LENGTHS | {"minimum", "maximum", "pattern", "format", "minItems", "maxItems"},
}
# Keywords without effect on what is valid.
_SILENT = frozenset({"$schema", "$id", "$comment", "default", "examples", "deprecated", "readOnly",
                     "writeOnly", "discriminator"})  # fmt: skip
_RENAMED = {"definitions": "$defs", "oneOf": "anyOf"}


class NativeSchema(NamedTuple):
    """A schema in the form of a provider.

    Attributes:
        schema: The schema; its root is an object.
        is_wrapped: Whether the answer is the property ``answer`` of that object.
        unchecked: Where the provider checks less than the user's schema: ``/stars: maximum``.
    """

    schema: dict[str, Any]
    is_wrapped: bool
    unchecked: tuple[str, ...]


def native_schema(schema: dict[str, Any], dialect: Dialect) -> NativeSchema | None:
    """Return a schema in the form that a provider enforces; None if it cannot express it.

    Args:
        schema: A JSON Schema.
        dialect: The provider's form.
    """
    form = _Form(dialect)
    try:
        made = form.of(schema, "")
    except _InexpressibleError:
        return None
    definitions = made.pop("$defs", None)
    is_wrapped = made.get("type") != "object"
    if is_wrapped:
        made = {
            "type": "object",
            "properties": {WRAPPED: made},
            "required": [WRAPPED],
            "additionalProperties": False,
        }
    if definitions:
        made["$defs"] = definitions
    return NativeSchema(made, is_wrapped, tuple(dict.fromkeys(form.unchecked)))


class _InexpressibleError(Exception):
    """The provider has no form of this schema."""


class _Form:
    """Brings the parts of one schema into the form of a provider."""

    def __init__(self, dialect: Dialect) -> None:
        self.unchecked: list[str] = []
        self._known = _STRUCTURE | _ANNOTATIONS | _CHECKS[dialect]

    def of(self, schema: Any, at: str) -> dict[str, Any]:
        if schema is True or schema == {}:
            # Any value at all: a strict schema must name the type.
            raise _InexpressibleError
        if not isinstance(schema, dict):
            raise _InexpressibleError
        schema = _with_one_of_all(schema)
        made: dict[str, Any] = {}
        for keyword, value in schema.items():
            name = _RENAMED.get(keyword, keyword)
            if keyword in _SILENT:
                continue
            if name not in self._known:
                self.unchecked.append(f"{at or '/'}: {keyword}")
                continue
            if keyword == "oneOf":
                self.unchecked.append(f"{at or '/'}: oneOf")
            made[name] = self._value(name, value, at)
        if "properties" in made or made.get("type") == "object":
            self._close(made, schema)
        if made.get("type") == "array" and "items" not in made:
            raise _InexpressibleError
        return made

    def _value(self, keyword: str, value: Any, at: str) -> Any:
        if keyword in ("properties", "$defs"):
            return {name: self.of(each, f"{at}/{name}") for name, each in value.items()}
        if keyword == "items":
            return self.of(value, f"{at}/*")
        if keyword == "anyOf":
            return [self.of(each, at) for each in value]
        if keyword == "$ref":
            return str(value).replace("#/definitions/", "#/$defs/")
        return value

    def _close(self, made: dict[str, Any], schema: dict[str, Any]) -> None:
        """Make all properties of an object required, the optional ones with null, and allow no others."""
        if schema.get("additionalProperties") not in (None, False, True):
            # A mapping with any keys.
            raise _InexpressibleError
        properties = made.get("properties")
        if not properties:
            raise _InexpressibleError
        required = set(schema.get("required", ()))
        made["properties"] = {
            name: each if name in required else _or_null(each) for name, each in properties.items()
        }
        made["type"] = "object"
        made["required"] = list(properties)
        made["additionalProperties"] = False


def _with_one_of_all(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with the only part of an ``allOf`` in its place, as pydantic writes one."""
    parts = schema.get("allOf")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict):
        return {**{name: value for name, value in schema.items() if name != "allOf"}, **parts[0]}
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that allows null as well."""
    kind = schema.get("type")
    if kind == "null" or (isinstance(kind, list) and "null" in kind):
        return schema
    if isinstance(kind, str) and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [kind, "null"]}
    if "anyOf" in schema:
        if {"type": "null"} in schema["anyOf"]:
            return schema
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}


def without_filled_nulls(answer: Any, schema: dict[str, Any]) -> Any:
    """Return an answer without the nulls that stand for properties that it leaves out.

    Args:
        answer: The answer of a provider that requires all properties.
        schema: The schema of the user.
    """
    return _pruned(answer, schema, schema.get("$defs") or schema.get("definitions") or {})


def _pruned(value: Any, schema: Any, definitions: dict[str, Any]) -> Any:
    schema = _resolved(schema, definitions)
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_pruned(each, items, definitions) for each in value]
    if not isinstance(value, dict):
        return value
    properties: dict[str, Any] = {}
    required: set[str] = set()
    for part in (schema, *(_resolved(one, definitions) for one in _alternatives(schema))):
        properties.update(part.get("properties", {}))
        required.update(part.get("required", ()))
    return {
        name: _pruned(each, properties.get(name, {}), definitions)
        for name, each in value.items()
        if each is not None or name in required or _allows_null(properties.get(name), definitions)
    }


def object_properties(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the properties that a schema gives objects, in its order."""
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    root = _resolved(schema, definitions)
    parts = (root, *(_resolved(one, definitions) for one in _alternatives(root)))
    return tuple(dict.fromkeys(name for part in parts for name in part.get("properties", ())))


def _alternatives(schema: dict[str, Any]) -> list[Any]:
    return [one for keyword in ("anyOf", "oneOf", "allOf") for one in schema.get(keyword, ())]


def _resolved(schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    for _ in range(len(definitions) + 1):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str):
            break
        schema = definitions.get(reference.rpartition("/")[2], {})
    return schema if isinstance(schema, dict) else {}


def _allows_null(schema: Any, definitions: dict[str, Any]) -> bool:
    if schema is None:
        # Not a property that the user has named: it stays, and the check decides.
        return True
    schema = _resolved(schema, definitions)
    kind = schema.get("type")
    return (
        kind == "null"
        or (isinstance(kind, list) and "null" in kind)
        or None in schema.get("enum", ())
        or any(_allows_null(one, definitions) for one in _alternatives(schema))
    )
