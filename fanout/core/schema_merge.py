"""Two JSON Schemas of one value as one, where providers enforce no ``allOf``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.schema_references import alternatives, referred

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CONDITIONS",
    "NOTES",
    "SILENT",
    "NoMergeError",
    "NoValueError",
    "lacks_required",
    "merged",
    "with_fitting_labels",
]

# Keywords without effect on what is valid, and the notes for a reader.
SILENT = frozenset({"$schema", "$id", "$comment", "default", "examples", "deprecated", "readOnly",
                    "writeOnly", "discriminator"})  # fmt: skip
NOTES = frozenset({"title", "description"})
# What no provider enforces, and what holds beside anything else.
CONDITIONS = frozenset({"if", "then", "else", "not", "dependentRequired", "dependentSchemas",
                        "dependencies", "contains", "propertyNames"})  # fmt: skip
_DEMANDS = frozenset({"required", "dependentRequired", "dependencies"})
# Pairs of a condition and a form, by their identity.
_Seen = set[tuple[int, int]]
_LABELS = ("const", "enum")


class NoMergeError(Exception):
    """There is no single schema of what two schemas allow together."""


class NoValueError(NoMergeError):
    """Two schemas allow no value together."""


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what two schemas allow together; the notes of the first one stay.

    Raises:
        NoMergeError: There is none.
        NoValueError: They contradict each other.
    """
    _require_open(one, other)
    _require_open(other, one)
    # An if belongs to the then beside it: the conditions of the other one stay together.
    apart = CONDITIONS & other.keys() if CONDITIONS & one.keys() else frozenset[str]()
    made = dict(one)
    for keyword, value in other.items():
        if keyword in apart:
            continue
        if keyword not in made:
            made[keyword] = value
        elif keyword not in SILENT | NOTES and made[keyword] != value:
            made[keyword] = _both(keyword, made[keyword], value)
    if apart:
        made["allOf"] = [*made.get("allOf", ()), {name: other[name] for name in apart}]
    return with_fitting_labels(made)


def _require_open(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Refuse to merge properties into an object that allows only its own."""
    if one.get("additionalProperties", True) is True:
        return
    if not other.get("properties", {}).keys() <= one.get("properties", {}).keys():
        raise NoMergeError


def _both(keyword: str, one: Any, other: Any) -> Any:
    if keyword == "const":
        raise NoValueError
    both = _BOTH.get(keyword)
    if both is None:
        raise NoMergeError
    return both(one, other)


def _both_properties(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {name: _all_of(one[name], other[name]) for name in one if name in other}
    return {**one, **other, **both}


def _both_labels(one: list[Any], other: list[Any]) -> list[Any]:
    return [label for label in one if any(_is_same(label, each) for each in other)]


def _both_openings(one: Any, other: Any) -> Any:
    if True not in (one, other):
        raise NoMergeError
    return other if one is True else one


def _all_of(one: Any, other: Any) -> Any:
    if one is True or one == other:
        return other
    return one if other is True else {"allOf": [one, other]}


def _both_types(one: Any, other: Any) -> Any:
    ones, others = ([kind] if isinstance(kind, str) else kind for kind in (one, other))
    kinds = dict.fromkeys(kind for kind in ones if kind in others)
    for these, those in ((ones, others), (others, ones)):
        if "integer" in these and "number" in those:
            kinds["integer"] = None
    if not kinds:
        raise NoValueError
    if "number" in kinds:
        kinds.pop("integer", None)
    return next(iter(kinds)) if len(kinds) == 1 else list(kinds)


_BOTH: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "maxLength", "maxItems", "maxProperties"), min),
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
    "properties": _both_properties,
    "items": _all_of,
    "allOf": lambda one, other: [*one, *other],
    "type": _both_types,
    "enum": _both_labels,
    "additionalProperties": _both_openings,
    "uniqueItems": lambda one, other: one or other,
}


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def with_fitting_labels(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose labels are those that all of its keywords for labels and types allow.

    Raises:
        NoValueError: There is none.
    """
    if not {*_LABELS} & schema.keys():
        return schema
    labels = schema["enum"] if "enum" in schema else [schema["const"]]
    if "const" in schema:
        labels = [label for label in labels if _is_same(label, schema["const"])]
    kinds = schema.get("type")
    if kinds is not None:
        allowed = [kinds] if isinstance(kinds, str) else kinds
        labels = [label for label in labels if not {*_kinds(label)}.isdisjoint(allowed)]
    if not labels:
        raise NoValueError
    if "enum" not in schema:
        return schema
    if "const" in schema:
        return {name: value for name, value in schema.items() if name != "enum"}
    return schema if labels == schema["enum"] else {**schema, "enum": labels}


def _kinds(label: Any) -> tuple[str, ...]:
    if label is None:
        return ("null",)
    if isinstance(label, bool):
        return ("boolean",)
    if isinstance(label, (int, float)):
        return ("integer", "number") if label == int(label) else ("number",)
    if isinstance(label, str):
        return ("string",)
    return ("array",) if isinstance(label, list) else ("object",)


def lacks_required(schema: dict[str, Any], made: dict[str, Any], root: dict[str, Any]) -> bool:
    """Say whether conditions of a schema may require properties that its strict form forbids.

    Args:
        schema: The schema, with conditions that no provider enforces.
        made: Its strict form, whose objects have no properties but those that they name.
        root: The document of the schema.
    """
    kept = CONDITIONS - {"if", "not", "propertyNames"} | {"allOf"}
    conditions = {name: schema[name] for name in kept & schema.keys()}
    return bool(conditions) and _may_lack(conditions, made, root, set())


def _may_lack(condition: Any, made: Any, root: dict[str, Any], seen: _Seen) -> bool:
    if not isinstance(condition, dict) or (id(condition), id(made)) in seen:
        return False
    seen.add((id(condition), id(made)))
    if made is None or "properties" not in made:
        # A reference or alternatives: what it names is not looked up.
        return _is_demanding(condition, made, root, seen)
    names = made["properties"]
    needed = {*condition.get("required", ())}
    for keyword in ("dependentRequired", "dependencies"):
        for one in condition.get(keyword, {}).values():
            needed.update(one if isinstance(one, list) else ())
    inner = condition.get("properties", {})
    return (
        not needed <= names.keys()
        or any(_may_lack(one, made, root, seen) for one in _of_same(condition, root))
        or any(_may_lack(inner[name], names[name], root, seen) for name in inner if name in names)
    )


def _is_demanding(condition: dict[str, Any], made: Any, root: dict[str, Any], seen: _Seen) -> bool:
    items = made.get("items") if isinstance(made, dict) else None
    if isinstance(made, dict) and not {"$ref", "anyOf"} & made.keys():
        parts = [condition.get("items"), condition.get("contains")]
        below = [one for one in parts if one is not None and items is not None]
        return any(_may_lack(one, items, root, seen) for one in below) or any(
            _may_lack(one, made, root, seen) for one in _of_same(condition, root)
        )
    below = [*condition.get("properties", {}).values(), *_of_same(condition, root)]
    below += [condition[name] for name in ("items", "contains") if name in condition]
    return bool(_DEMANDS & condition.keys()) or any(
        _may_lack(one, None, root, seen) for one in below
    )


def _of_same(condition: dict[str, Any], root: dict[str, Any]) -> list[Any]:
    """Return the schemas of the same value that a condition applies."""
    named = (condition.get(name, {}) for name in ("dependentSchemas", "dependencies"))
    found = [one for each in named for one in each.values() if isinstance(one, dict)]
    found += [condition[name] for name in ("then", "else") if name in condition]
    found += alternatives(condition)
    if isinstance(condition.get("$ref"), str):
        found.append(referred(root, condition["$ref"]))
    return found
