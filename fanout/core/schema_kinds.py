"""The types of the values that a JSON Schema allows."""

from __future__ import annotations

from typing import Any

from fanout.core.schema_references import alternatives, resolved

__all__ = ["TYPES", "takes_text"]

# The type of a label in JSON, by its type in Python.
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def takes_text(schema: dict[str, Any]) -> bool:
    """Say whether a text may be valid, and neither an object nor an array."""
    kinds = _kinds_of(schema)
    return "string" in kinds and not kinds & {"object", "array", None}


def _kinds_of(root: dict[str, Any]) -> set[str | None]:
    """Return the types of valid values; None stands for any that the schema does not name."""
    kinds: set[str | None] = set()
    waiting: list[Any] = [root]
    seen: dict[int, dict[str, Any]] = {}
    while waiting:
        one = resolved(waiting.pop(), root)
        if id(one) in seen:
            continue
        seen[id(one)] = one
        kind = one.get("type")
        if kind is not None:
            kinds.update([kind] if isinstance(kind, str) else kind)
            continue
        values = one.get("enum", [one["const"]] if "const" in one else [])
        kinds.update(TYPES.get(type(value)) for value in values)
        parts = alternatives(one)
        if not values and not parts:
            kinds.add(None)
        waiting += parts
    return kinds or {None}
