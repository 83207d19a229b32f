"""JSON Schemas in the forms that providers enforce.

Providers enforce a subset of JSON Schema: each object lists all of its properties as required and
allows no others, and most checks of values are not known. A schema of a user is brought into that
form; what it loses is checked by fanout alone.

Sources: OpenAI's guide "Structured model outputs" (supported schemas), Anthropic's guide "Structured
outputs" (JSON Schema limitations), Gemini's guide "Structured output" (JSON Schema support).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fanout.core.schema_kinds import TYPES
from fanout.core.schema_merge import (
    NOTES,
    SILENT,
    NoMergeError,
    NoValueError,
    lacks_required,
    merged,
    with_fitting_labels,
)
from fanout.core.schema_references import alternatives, referred, resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "WRAPPED",
    "Dialect",
    "NativeSchema",
    "native_schema",
    "object_properties",
]

Dialect = Literal["openai", "anthropic", "gemini", "llama"]

# The property that holds an answer that is no object: providers enforce objects only.
WRAPPED = "answer"

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
# With these, a value has parts that a strict schema cannot name.
_OPEN = frozenset({"patternProperties", "unevaluatedProperties", "prefixItems"})
_OF_OBJECTS = frozenset({"properties", "required", "additionalProperties", "minProperties",
                         "maxProperties", "patternProperties", "propertyNames"})  # fmt: skip
_ESCAPES = frozenset("/~%")
_ROOT, _DEFINITIONS = "#", "#/$defs/"
# They take no schema that refers to itself.
_NOT_RECURSIVE: frozenset[Dialect] = frozenset({"anthropic", "gemini"})
# A schema that is merged with one that refers to it has no end.
_MOST_STEPS, _MOST_DEPTH = 10_000, 130
# Drafts in which nothing beside a reference has an effect.
_REFERENCE_ALONE = ("draft-04", "draft-06", "draft-07")
_UNIONS = ("anyOf", "oneOf")
_DEFINED_IN = ("$defs", "definitions")


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
    form = _Form(schema, dialect)
    try:
        made, definitions = form.whole()
    except NoMergeError:
        return None
    is_wrapped = made.get("type") != "object"
    references = {_DEFINITIONS + name: _references(one) for name, one in definitions.items()}
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


def _of_same_value(part: dict[str, Any]) -> set[str]:
    """Return what a part of a strict schema refers to for the value itself."""
    found = {one for each in part.get("anyOf", ()) for one in _of_same_value(each)}
    return found | {part["$ref"]} if "$ref" in part else found


def _is_recursive(references: dict[str, set[str]]) -> bool:
    """Say whether parts refer to each other in a circle: none is left once the others are."""
    left = dict(references)
    while True:
        done = [name for name, found in left.items() if not found & left.keys()]
        if not done:
            return bool(left)
        for name in done:
            del left[name]


class _InexpressibleError(NoMergeError):
    """The provider has no form of this schema."""


class _Form:
    """Brings the parts of one schema into the form of a provider."""

    def __init__(self, root: dict[str, Any], dialect: Dialect) -> None:
        self.unchecked: list[str] = []
        self._root = root
        self._dialect = dialect
        self._known = _STRUCTURE | NOTES | _CHECKS[dialect]
        draft = str(root.get("$schema", ""))
        self._is_reference_alone = any(one in draft for one in _REFERENCE_ALONE)
        self._steps = self._depth = 0

    def whole(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the form of the schema and of the definitions that it needs."""
        made = self.of(self._root, "")
        definitions: dict[str, Any] = {}
        waiting = sorted(_references(made))
        while waiting:
            name = waiting.pop().removeprefix(_DEFINITIONS)
            if name != _ROOT and name not in definitions:
                definitions[name] = self.of(self._definition(name), f"/{name}")
                waiting += sorted(_references(definitions[name]))
        same = {_DEFINITIONS + name: _of_same_value(one) for name, one in definitions.items()}
        if _is_recursive({**same, _ROOT: _of_same_value(made)}):
            # It has no end.
            raise _InexpressibleError
        given = [name for one in _DEFINED_IN for name in self._root.get(one, ())]
        return made, {name: definitions[name] for name in given if name in definitions}

    def _definition(self, name: str) -> Any:
        found = [self._root[one][name] for one in _DEFINED_IN if name in self._root.get(one, ())]
        if not found or any(one != found[0] for one in found):
            raise _InexpressibleError
        return found[0]

    def of(self, schema: Any, at: str) -> dict[str, Any]:
        self._enter()
        made = self._of_flat(self._flat(schema), at)
        self._depth -= 1
        return made

    def _enter(self) -> None:
        self._steps += 1
        self._depth += 1
        if self._steps > _MOST_STEPS or self._depth > _MOST_DEPTH:
            raise _InexpressibleError

    def _flat(self, schema: Any) -> dict[str, Any]:
        """Return a schema with the parts of its ``allOf`` in their place.

        Nothing but notes stays beside a reference, and only conditions in ``allOf``.
        """
        if not isinstance(schema, dict):
            # Any value at all: a strict schema must name the type.
            raise _InexpressibleError
        self._enter()
        apart = {*_DEFINED_IN, "allOf", "$ref"}
        made = {name: value for name, value in schema.items() if name not in apart}
        reference, parts = schema.get("$ref"), schema.get("allOf", ())
        if isinstance(reference, str):
            if self._is_reference_alone:
                made, parts = {}, ()
            made = self._joined(made, {"$ref": reference})
        for part in parts:
            if part is not True:
                made = self._joined(made, self._flat(part))
        self._depth -= 1
        return made

    def _joined(self, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Return the flat schema of what two flat schemas allow together."""
        if not one.keys() - SILENT - NOTES:
            return {**other, **one}
        if not other.keys() - SILENT - NOTES:
            return {**other, **one}
        return merged(self._expanded(one), self._expanded(other))

    def _expanded(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in schema:
            return schema
        rest = {name: value for name, value in schema.items() if name != "$ref"}
        self._enter()
        found = self._expanded(self._flat(referred(self._root, schema["$ref"])))
        self._depth -= 1
        return {**found, **rest}

    def _of_flat(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        union = next((name for name in _UNIONS if name in schema), None)
        if union is not None:
            return self._of_union(schema, union, at)
        schema = self._with_labels(with_fitting_labels(schema), at)
        kinds = schema.get("type", ())
        if not isinstance(kinds, str) and "object" in kinds:
            return self._of_kinds(schema, at)
        if kinds and kinds != "object":
            schema = {name: one for name, one in schema.items() if name not in _OF_OBJECTS}
        made = self._known_part(schema, at)
        if "properties" in made or kinds == "object":
            self._close(made, schema)
        is_list = "array" in ([kinds] if isinstance(kinds, str) else kinds)
        if not _KINDS & made.keys() or (is_list and "items" not in made):
            raise _InexpressibleError
        if lacks_required(schema, made, self._root):
            raise _InexpressibleError
        if "$ref" in made:
            # OpenAI takes nothing beside it.
            return {"$ref": made["$ref"]}
        return made

    def _of_union(self, schema: dict[str, Any], union: str, at: str) -> dict[str, Any]:
        """Return the form of alternatives, each with what stands beside them."""
        notes = {name: schema[name] for name in NOTES & schema.keys()}
        beside = {n: one for n, one in schema.items() if n != union and n not in NOTES | SILENT}
        made: list[dict[str, Any]] = []
        depth = self._depth
        for one in schema[union]:
            try:
                made.append(self.of(self._joined(beside, self._flat(one)), at))
            except NoValueError:
                # It contradicts what stands beside it.
                self._depth = depth
        if not made:
            raise NoValueError
        if union == "oneOf":
            self._lose(union, at)
        if len(made) == 1 and "$ref" not in made[0]:
            return {**made[0], **notes}
        return {**notes, "anyOf": made}

    def _of_kinds(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        """Return the form of a schema of several types, an object among them."""
        notes = {name: schema[name] for name in NOTES & schema.keys()}
        rest = {name: one for name, one in schema.items() if name not in NOTES}
        made = [
            {"type": kind} if kind == "null" else self.of({**rest, "type": kind}, at)
            for kind in schema["type"]
        ]
        return {**notes, "anyOf": made}

    def _known_part(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        if _OPEN & schema.keys():
            raise _InexpressibleError
        made: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in SILENT:
                continue
            is_known = keyword in self._known and self._knows_format(keyword, value)
            if not is_known:
                self._lose(keyword, at)
            else:
                made[keyword] = self._value(keyword, value, at)
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
        types = list(dict.fromkeys(TYPES.get(type(label), "") for label in labels))
        if "" in types:
            # Lists or objects as labels.
            raise _InexpressibleError
        kind: Any = types[0] if len(types) == 1 else types
        given = schema.get("type", ())
        has_more = not isinstance(given, str) and not {"object", "array"}.isdisjoint(given)
        typed = {**schema, "type": kind} if has_more or not given else schema
        if self._dialect != "gemini" or set(types) <= {"string", "null"}:
            return typed
        # Its labels are texts.
        self._lose("const" if "const" in schema else "enum", at)
        return {name: one for name, one in typed.items() if name not in {"const", "enum"}}

    def _value(self, keyword: str, value: Any, at: str) -> Any:
        if keyword == "properties":
            return {name: self.of(each, f"{at}/{name}") for name, each in value.items()}
        if keyword == "items":
            return self.of(value, f"{at}/*")
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
        required = set(schema.get("required", ()))
        least = max(1, schema.get("minProperties", 0))
        if not properties or len(properties) < least or not required <= properties.keys():
            # The answer would lack what the user's schema asks for.
            raise _InexpressibleError
        made["properties"] = {
            name: each if name in required else _or_null(each) for name, each in properties.items()
        }
        made["type"] = "object"
        made["required"] = list(properties)
        made["additionalProperties"] = False


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


def object_properties(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the properties that a schema gives objects, in its order."""
    parts = _parts(resolved(schema, schema), schema)
    return tuple(dict.fromkeys(name for part in parts for name in part.get("properties", ())))


def _parts(schema: dict[str, Any], root: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return a schema and its alternatives, each resolved."""
    return (schema, *(resolved(one, root) for one in alternatives(schema)))
