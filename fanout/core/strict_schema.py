"""JSON Schemas in the forms that providers enforce.

Providers enforce a subset of JSON Schema: each object lists all of its properties as required and
allows no others, and most checks of values are not known. A schema of a user is brought into that
form; what it loses is checked by fanout alone.

Sources: OpenAI's guide "Structured model outputs" (supported schemas), Anthropic's guide "Structured
outputs" (JSON Schema limitations), Gemini's guide "Structured output" (JSON Schema support).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "WRAPPED",
    "Dialect",
    "NativeSchema",
    "native_schema",
    "object_properties",
    "resolved",
    "takes_text",
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
# The formats of texts that each dialect enforces: another one makes some refuse the schema.
_DATES = frozenset({"date-time", "date", "time"})
_FORMATS: dict[Dialect, frozenset[str]] = {
    "openai": _DATES | {"duration", "email", "hostname", "ipv4", "ipv6", "uuid"},
    "anthropic": _DATES | {"duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"},
    "gemini": frozenset({"date-time"}),
    "llama": _DATES | {"uuid"},
}
# What says which values there are at all: a strict schema has one of them everywhere.
_KINDS = frozenset({"type", "enum", "const", "anyOf", "$ref"})
# With these, an object has properties that a strict schema cannot name.
_OPEN = frozenset({"patternProperties", "unevaluatedProperties"})
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_ESCAPES = frozenset("/~%")
_ROOT, _DEFINITIONS = "#", "#/$defs/"
# They take no schema that refers to itself.
_NOT_RECURSIVE: frozenset[Dialect] = frozenset({"anthropic", "gemini"})
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
    references = {
        _DEFINITIONS + name: _references(one) for name, one in (definitions or {}).items()
    }
    references[_ROOT] = _references(made)
    if is_wrapped and any(_ROOT in found for found in references.values()):
        # Its root would be another one.
        return None
    if dialect in _NOT_RECURSIVE and _is_recursive(references):
        return None
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


def _references(part: Any) -> set[str]:
    """Return what a part of a schema refers to."""
    if isinstance(part, list):
        return {one for each in part for one in _references(each)}
    if not isinstance(part, dict):
        return set()
    own = part.get("$ref")
    found = {one for each in part.values() for one in _references(each)}
    return found | {own} if isinstance(own, str) else found


def _is_recursive(references: dict[str, set[str]]) -> bool:
    """Say whether parts refer to each other in a circle: none is left once the others are."""
    left = dict(references)
    while True:
        done = [name for name, found in left.items() if not found & left.keys()]
        if not done:
            return bool(left)
        for name in done:
            del left[name]


class _InexpressibleError(Exception):
    """The provider has no form of this schema."""


class _Form:
    """Brings the parts of one schema into the form of a provider."""

    def __init__(self, dialect: Dialect) -> None:
        self.unchecked: list[str] = []
        self._dialect = dialect
        self._known = _STRUCTURE | _ANNOTATIONS | _CHECKS[dialect]

    def of(self, schema: Any, at: str) -> dict[str, Any]:
        if schema is True or schema == {}:
            # Any value at all: a strict schema must name the type.
            raise _InexpressibleError
        if not isinstance(schema, dict):
            raise _InexpressibleError
        schema = self._with_labels(_with_one_of_all(schema), at)
        made = self._known_part(schema, at)
        if "properties" in made or made.get("type") == "object":
            self._close(made, schema)
        if not _KINDS & made.keys() or (made.get("type") == "array" and "items" not in made):
            raise _InexpressibleError
        if "$ref" in made:
            # OpenAI takes nothing beside it.
            made = {name: one for name, one in made.items() if name not in _ANNOTATIONS}
        return made

    def _known_part(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        if _OPEN & schema.keys():
            raise _InexpressibleError
        made: dict[str, Any] = {}
        for keyword, value in schema.items():
            name = _RENAMED.get(keyword, keyword)
            if keyword in _SILENT:
                continue
            is_known = name in self._known and self._knows_format(name, value)
            if not is_known or keyword == "oneOf":
                self._lose(keyword, at)
            if is_known:
                made[name] = self._value(name, value, at)
        return made

    def _lose(self, keyword: str, at: str) -> None:
        self.unchecked.append(f"{at or '/'}: {keyword}")

    def _knows_format(self, keyword: str, value: Any) -> bool:
        return keyword != "format" or value in _FORMATS[self._dialect]

    def _with_labels(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        """Return a schema whose enum or const has its type, as providers ask for."""
        labels = [schema["const"]] if "const" in schema else schema.get("enum")
        if not isinstance(labels, list):
            return schema
        types = list(dict.fromkeys(_TYPES.get(type(label), "") for label in labels))
        if "" in types:
            # Lists or objects as labels.
            raise _InexpressibleError
        kind: Any = types[0] if len(types) == 1 else types
        typed = schema if "type" in schema else {**schema, "type": kind}
        if self._dialect != "gemini" or set(types) <= {"string", "null"}:
            return typed
        # Its labels are texts.
        self._lose("const" if "const" in schema else "enum", at)
        return {name: one for name, one in typed.items() if name not in {"const", "enum"}}

    def _value(self, keyword: str, value: Any, at: str) -> Any:
        if keyword in ("properties", "$defs"):
            return {name: self.of(each, f"{at}/{name}") for name, each in value.items()}
        if keyword == "items":
            return self.of(value, f"{at}/*")
        if keyword == "anyOf":
            return [self.of(each, at) for each in value]
        if keyword == "$ref":
            return self._reference(str(value))
        return value

    def _reference(self, reference: str) -> str:
        reference = reference.replace("#/definitions/", _DEFINITIONS)
        start, name = reference[: len(_DEFINITIONS)], reference[len(_DEFINITIONS) :]
        if reference != _ROOT and (start != _DEFINITIONS or not _ESCAPES.isdisjoint(name)):
            raise _InexpressibleError
        return reference

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
    return _pruned(answer, schema, schema)


def _pruned(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    # As deep as the answer, which parse_json bounds.
    schema = resolved(schema, root)
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_pruned(each, items, root) for each in value]
    if not isinstance(value, dict):
        return value
    properties: dict[str, Any] = {}
    required: set[str] = set()
    for part in _parts(schema, root):
        properties.update(part.get("properties", {}))
        required.update(part.get("required", ()))
    return {
        name: _pruned(each, properties.get(name, {}), root)
        for name, each in value.items()
        if each is not None or name in required or _allows_null(properties.get(name), root)
    }


def object_properties(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the properties that a schema gives objects, in its order."""
    parts = _parts(resolved(schema, schema), schema)
    return tuple(dict.fromkeys(name for part in parts for name in part.get("properties", ())))


def takes_text(schema: dict[str, Any]) -> bool:
    """Say whether a text may be valid, and neither an object nor an array."""
    kinds = _kinds_of(schema, schema)
    return "string" in kinds and not kinds & {"object", "array", None}


def _kinds_of(schema: Any, root: dict[str, Any], within: tuple[int, ...] = ()) -> set[str | None]:
    """Return the types of valid values; None stands for any that the schema does not name."""
    schema = resolved(schema, root)
    if id(schema) in within:
        return set()
    kind = schema.get("type")
    if kind is not None:
        return {kind} if isinstance(kind, str) else set(kind)
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kinds = {_TYPES.get(type(value)) for value in values}
    for one in _alternatives(schema):
        kinds |= _kinds_of(one, root, (*within, id(schema)))
    return kinds or {None}


def _parts(schema: dict[str, Any], root: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return a schema and its alternatives, each resolved."""
    return (schema, *(resolved(one, root) for one in _alternatives(schema)))


def _alternatives(schema: dict[str, Any]) -> list[Any]:
    return [one for keyword in ("anyOf", "oneOf", "allOf") for one in schema.get(keyword, ())]


def resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema refers to within its document; an empty one if that is nothing."""
    seen = set[str]()
    while isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        reference = schema["$ref"]
        if reference in seen:
            return {}
        seen.add(reference)
        schema = _at(root, reference)
    return schema if isinstance(schema, dict) else {}


def _at(root: Any, reference: str) -> Any:
    """Return the part of a document at a reference such as ``#/$defs/Tag``; None if there is none."""
    start, _, pointer = reference.partition("#")
    if start:
        return None
    found = root
    for part in pointer.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def _allows_null(schema: Any, root: dict[str, Any], within: tuple[int, ...] = ()) -> bool:
    if schema is None:
        # Not a property that the user has named: it stays, and the check decides.
        return True
    schema = resolved(schema, root)
    if id(schema) in within:
        return False
    kind = schema.get("type")
    return (
        kind == "null"
        or (isinstance(kind, list) and "null" in kind)
        or None in schema.get("enum", ())
        or any(_allows_null(one, root, (*within, id(schema))) for one in _alternatives(schema))
    )
