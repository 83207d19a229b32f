"""The nulls of an answer that stand for properties that it leaves out.

A provider that requires all properties makes a model write null for those that a user's schema does
not require. Which ones these are depends on the alternative of the schema that the answer is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.schema_references import referred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["without_filled_nulls"]

# Combinations of alternatives that are tried for one value, and values and schemas in all.
_MOST_VARIANTS = 256
_MOST_STEPS = 200_000
_IS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
    ),
}


def without_filled_nulls(answer: Any, schema: dict[str, Any], *, keeps_allowed: bool = True) -> Any:
    """Return an answer without the nulls that stand for properties that it leaves out.

    Args:
        answer: The answer of a provider that requires all properties.
        schema: The schema of the user.
        keeps_allowed: Whether a null stays that its property seems to allow, by the types and labels
            in its schema.
    """
    return _Pruning(schema, keeps_allowed=keeps_allowed).of(answer, (schema,))[0]


class _Pruning:
    """Prunes the values of one answer, each by the alternative of its schema that it fits."""

    def __init__(self, root: dict[str, Any], *, keeps_allowed: bool) -> None:
        self._root = root
        self._keeps_allowed = keeps_allowed
        self._known: dict[tuple[int, ...], tuple[Any, bool]] = {}
        self._steps = 0

    def of(self, value: Any, schemas: tuple[Any, ...]) -> tuple[Any, bool]:
        """Return a value without filled nulls, and whether it fits all of some schemas.

        What fits has the types, labels and properties of the schemas: other keywords are not read.
        """
        # As deep as the answer, which parse_json bounds. The same value in the same alternatives is
        # looked at once, or a schema that refers to itself would double the work at each level.
        schemas = tuple(one for one in schemas if one is not True)
        if not schemas:
            return value, True
        key = (id(value), *map(id, schemas))
        known = self._known.get(key)
        if known is None:
            known = self._best(value, schemas)
            self._known[key] = known
        return known

    def _best(self, value: Any, schemas: tuple[Any, ...]) -> tuple[Any, bool]:
        first: tuple[Any, bool] | None = None
        for parts in self._variants(schemas):
            self._steps += 1
            found = self._by(value, parts)
            if found[1] or self._steps > _MOST_STEPS:
                return found
            first = first or found
        return first or (value, False)

    def _variants(self, schemas: tuple[Any, ...]) -> Iterator[list[dict[str, Any]]]:
        """Yield the parts that hold together, one of each alternative."""
        waiting: list[tuple[list[dict[str, Any]], list[Any]]] = [([], list(schemas))]
        for _ in range(_MOST_VARIANTS):
            if not waiting:
                return
            parts, left = waiting.pop()
            unions = self._flatten(parts, left)
            if unions is None:
                continue
            if not unions:
                yield parts
                continue
            first, *others = unions
            rest = [{"anyOf": union} for union in others]
            waiting.extend((list(parts), [one, *rest]) for one in reversed(first))

    def _flatten(self, parts: list[dict[str, Any]], left: list[Any]) -> list[list[Any]] | None:
        """Add the parts of schemas that hold together; return their alternatives, None if none can."""
        unions: list[list[Any]] = []
        while left:
            one = left.pop()
            if one is False:
                return None
            if not isinstance(one, dict) or any(one is part for part in parts):
                continue
            parts.append(one)
            reference = one.get("$ref")
            if isinstance(reference, str):
                left.append(referred(self._root, reference))
            left.extend(one.get("allOf", ()))
            unions += [one[name] for name in ("anyOf", "oneOf") if one.get(name)]
        return unions

    def _by(self, value: Any, parts: list[dict[str, Any]]) -> tuple[Any, bool]:
        if not all(_has_type(value, part) and _is_label(value, part) for part in parts):
            return value, False
        if isinstance(value, list):
            return self._list(value, parts)
        if isinstance(value, dict):
            return self._object(value, parts)
        return value, True

    def _list(self, value: list[Any], parts: list[dict[str, Any]]) -> tuple[Any, bool]:
        found = [
            self.of(each, tuple(_item(part, at) for part in parts)) for at, each in enumerate(value)
        ]
        return [each for each, _ in found], all(fits for _, fits in found)

    def _object(self, value: dict[str, Any], parts: list[dict[str, Any]]) -> tuple[Any, bool]:
        required = {name for part in parts for name in part.get("required", ())}
        made: dict[str, Any] = {}
        fits = True
        for name, each in value.items():
            schemas = tuple(_property(part, name) for part in parts)
            one, is_fit = self.of(each, schemas)
            is_named = any(name in part.get("properties", {}) for part in parts)
            is_filled = each is None and not (is_fit and self._keeps_allowed)
            if is_filled and is_named and name not in required:
                continue
            made[name] = one
            fits = fits and is_fit
        return made, fits and required <= made.keys()


def _has_type(value: Any, schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    if kinds is None:
        return True
    return any(_IS[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _is_label(value: Any, schema: Mapping[str, Any]) -> bool:
    if "const" in schema:
        return bool(value == schema["const"])
    return "enum" not in schema or value in schema["enum"]


def _item(schema: Mapping[str, Any], at: int) -> Any:
    items, first = schema.get("items", True), schema.get("prefixItems", ())
    if isinstance(items, list):
        items, first = schema.get("additionalItems", True), items
    return first[at] if at < len(first) else items


def _property(schema: Mapping[str, Any], name: str) -> Any:
    """Return the schema of a property; what matches a pattern fits: it is left to the check."""
    properties = schema.get("properties", {})
    if name in properties:
        return properties[name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)
