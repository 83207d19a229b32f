"""Which JSON Schemas no answer can meet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["contradiction"]

_BOUNDS = (
    ("minimum", "maximum"),
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
)
# A schema that says no more than these of its values is checked against its own `enum`.
_SIMPLE = frozenset(
    {"type", "enum", "minimum", "maximum", "minLength", "maxLength", "title", "description"}
)


def contradiction(schema: Mapping[str, Any], where: str = "") -> str | None:
    """Return why no answer can meet a schema; None if none of the plain reasons holds.

    Looked at are bounds and ``enum`` of the answer and of the fields that it must have.

    Args:
        schema: A valid JSON Schema.
        where: The path of its field.
    """
    prefix = f"{where}: " if where else ""
    for low, high in _BOUNDS:
        least, most = schema.get(low), schema.get(high)
        if least is not None and most is not None and least > most:
            return f"{prefix}{low} {least} is greater than {high} {most}"
    if "enum" in schema and schema.keys() <= _SIMPLE and "type" in schema:
        is_met = jsonschema_rs.validator_for(dict(schema)).is_valid
        if not any(map(is_met, schema["enum"])):
            return f"{prefix}no value of enum meets the rest of the schema"
    if schema.get("type") != "object":
        return None
    fields, required = schema.get("properties") or {}, schema.get("required") or ()
    for name in required:
        field = fields.get(name)
        if isinstance(field, dict) and (found := contradiction(field, f"{where}/{name}")):
            return found
    return None
