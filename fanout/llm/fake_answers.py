"""Answers of the fake model that have a shape: the same digest gives the same answer."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.schema_references import resolved
from fanout.inputs.plan_answers import PlanShape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.answer_shape import AnswerShape

__all__ = ["fake_answer"]

# Deeper than this, optional parts are left out.
_DEEPEST = 8
_SPAN = 100


def fake_answer(shape: AnswerShape, digest: bytes) -> str:
    """Return an answer that has a shape: a label, or JSON."""
    if shape.choices:
        return shape.choices[digest[0] % len(shape.choices)]
    if isinstance(shape, PlanShape):
        return shape.example()
    draws = (digest[at % len(digest)] for at in count())
    made = _Maker(shape.schema, draws).value(shape.schema, 0)
    return msgspec.json.encode(made).decode()


class _Maker:
    """Makes values of the common forms of JSON Schema; others may not be valid."""

    def __init__(self, root: dict[str, Any], draws: Iterator[int]) -> None:
        self._root = root
        self._draws = draws

    def value(self, schema: Any, depth: int) -> Any:
        schema = resolved(schema, self._root)
        if "const" in schema:
            return schema["const"]
        options = schema.get("enum") or schema.get("anyOf") or schema.get("oneOf")
        if options:
            one = options[next(self._draws) % len(options)] if depth < _DEEPEST else options[-1]
            return one if "enum" in schema else self.value(one, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0]
        if kind == "object" or "properties" in schema:
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return self._scalar(kind, schema)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.value(each, depth + 1)
            for name, each in schema.get("properties", {}).items()
            if depth < _DEEPEST or name in required
        }

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        size = max(least, min(schema.get("maxItems", 2), next(self._draws) % 3))
        if depth >= _DEEPEST:
            size = least
        return [self.value(schema.get("items", {}), depth + 1) for _ in range(size)]

    def _scalar(self, kind: Any, schema: dict[str, Any]) -> Any:
        draw = next(self._draws)
        if kind in ("integer", "number"):
            low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
            high = schema.get("maximum", schema.get("exclusiveMaximum", low + _SPAN + 1) - 1)
            drawn = low + draw % max(1, int(high - low) + 1)
            return int(drawn) if kind == "integer" else min(float(drawn), high)
        if kind == "boolean":
            return draw % 2 == 1
        if kind == "null":
            return None
        text = f"fake {draw}".ljust(schema.get("minLength", 0), ".")
        return text[: schema.get("maxLength", len(text))]
