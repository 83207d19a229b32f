"""Schemas of answers in the form of Gemini's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fanout.core.strict_schema import NativeSchema

__all__ = ["response_schema"]

# What OpenAPI has in another form.
_OTHER_FORM = frozenset(
    {"$defs", "additionalProperties", "type", "properties", "items", "anyOf", "const", "enum"}
)
# Parts that refer to the same ones several times would grow beyond any bound.
_MOST_PARTS = 5_000


def response_schema(native: NativeSchema) -> dict[str, Any] | None:
    """Return a schema as Gemini takes it: OpenAPI's form, without references.

    None if it is too large without them. Source: Gemini's API reference, ``Schema``.
    """
    try:
        return _OpenApi(native.schema.get("$defs", {})).of(native.schema)
    except _TooLargeError:
        return None


class _TooLargeError(Exception):
    """A schema is too large once what it refers to is in its place."""


class _OpenApi:
    """Brings the parts of one schema, whose definitions are given, into OpenAPI's form."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._left = _MOST_PARTS

    def of(self, schema: dict[str, Any]) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0:
            raise _TooLargeError
        reference = schema.get("$ref")
        if isinstance(reference, str):
            return self.of(self._definitions.get(reference.rpartition("/")[2], {}))
        made = {name: value for name, value in schema.items() if name not in _OTHER_FORM}
        if "properties" in schema:
            made["properties"] = {name: self.of(one) for name, one in schema["properties"].items()}
            made["propertyOrdering"] = list(schema["properties"])
        if "items" in schema:
            made["items"] = self.of(schema["items"])
        return self._with_kind(made, schema)

    def _with_kind(self, made: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        given = schema.get("type", ())
        kinds = [one for one in ([given] if isinstance(given, str) else given) if one != "null"]
        options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
        if "null" in given or len(options) < len(schema.get("anyOf", ())):
            made["nullable"] = True
        labels = [schema["const"]] if "const" in schema else schema.get("enum")
        if labels is not None:
            # Texts, by the dialect.
            made["enum"] = [label for label in labels if label is not None]
        if len(kinds) > 1:
            options = [{"type": one} for one in kinds]
        elif kinds:
            made["type"] = kinds[0].upper()
        if len(options) == 1:
            return {**self.of(options[0]), **made}
        if options:
            made["anyOf"] = [self.of(one) for one in options]
        return made
