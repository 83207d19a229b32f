"""Whether the answers to a JSON Schema have a place for a text."""

from __future__ import annotations

from typing import Any

__all__ = ["has_text"]

_SCALARS = frozenset({"boolean", "integer", "number", "null"})
# What these allow is not looked at.
_OPEN = frozenset({"$ref", "allOf", "if", "not", "patternProperties", "prefixItems"})


def has_text(schema: Any) -> bool:
    """Return whether an answer has a place for any text, or may have one."""
    if not isinstance(schema, dict):
        return schema is not False
    if "enum" in schema or "const" in schema:
        return False
    if not _OPEN.isdisjoint(schema):
        return True
    for ways in ("anyOf", "oneOf"):
        if ways in schema:
            of_ways = any(map(has_text, schema[ways]))
            # Fields beside the ways are those of each.
            return of_ways or ("properties" in schema and _kind_has_text(schema))
    return _kind_has_text(schema)


def _kind_has_text(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    kinds = frozenset(kind if isinstance(kind, list) else () if kind is None else (kind,))
    if kinds and kinds <= _SCALARS:
        return False
    if kinds == {"object"} and schema.get("properties"):
        further = schema.get("additionalProperties", False)
        return any(map(has_text, schema["properties"].values())) or has_text(further)
    if kinds == {"array"} and "items" in schema:
        return has_text(schema["items"])
    return True
