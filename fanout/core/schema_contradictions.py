"""Which JSON Schemas no answer can meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["contradiction"]

_NUMBERS = frozenset({"integer", "number"})
# Two bounds, and the types of the values that they bind: values of others meet both.
_BOUNDS = (
    ("minimum", "maximum", _NUMBERS),
    ("minLength", "maxLength", frozenset({"string"})),
    ("minItems", "maxItems", frozenset({"array"})),
    ("minProperties", "maxProperties", frozenset({"object"})),
)
# A schema that says no more than these of its values is checked against its own `enum` or `const`.
_SIMPLE = frozenset({
    "type", "enum", "const", "minimum", "maximum", "minLength", "maxLength", "title", "description",
})  # fmt: skip

_VALUES = ("enum", "const")


def contradiction(schema: Mapping[str, Any], where: str = "") -> str | None:
    """Return why no answer can meet a schema; None if none of the plain reasons holds.

    Looked at are bounds, ``enum`` and ``const`` of the answer and of the fields that it must have.

    Args:
        schema: A valid JSON Schema.
        where: The path of its field.
    """
    own = _of_bounds(schema) or _of_values(schema)
    if own is not None:
        return f"{where}: {own}" if where else own
    if schema.get("type") != "object":
        return None
    return next(filter(None, _of_fields(schema, where)), None)


def _of_bounds(schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type", ())
    kinds = frozenset([kind] if isinstance(kind, str) else kind)
    for low, high, bound in _BOUNDS:
        least, most = schema.get(low), schema.get(high)
        is_bound = bool(kinds) and kinds <= bound
        if is_bound and least is not None and most is not None and least > most:
            return f"{low} {least} is greater than {high} {most}"
    return None


def _of_values(schema: Mapping[str, Any]) -> str | None:
    if not schema.keys() <= _SIMPLE or schema.keys().isdisjoint(_VALUES):
        return None
    is_met = jsonschema_rs.validator_for(dict(schema)).is_valid
    if "const" in schema and not is_met(schema["const"]):
        return "const does not meet the rest of the schema"
    if "enum" in schema and not any(map(is_met, schema["enum"])):
        return "no value of enum meets the rest of the schema"
    return None


def _of_fields(schema: Mapping[str, Any], where: str) -> Iterator[str | None]:
    fields = schema.get("properties") or {}
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    for name in schema.get("required") or ():
        path = f"{where}/{name}"
        field = fields.get(name)
        if field is False or (name not in fields and is_closed):
            yield f"{path}: is required and not allowed"
        elif isinstance(field, dict):
            yield contradiction(field, path)
