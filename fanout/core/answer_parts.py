"""The names of what answers are counted, ranked and grouped by: their fields, columns, and origin."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fanout.core.cells import COLUMN, OWN
from fanout.core.schema_references import alternatives, referred
from fanout.core.step_answers import STEPS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec

__all__ = [
    "ANSWER",
    "EACH",
    "ORIGINS",
    "Part",
    "goes_by_steps",
    "known_fields",
    "missing_in",
    "part_of",
    "schemas_at",
]

# The whole answer, and the prefix of its fields.
ANSWER = "output"
# Each element of a list, as a step of a path.
EACH = "*"
ORIGINS = ("document", "aspect", "model")
_MOST_KNOWN = 200
_ANYTHING: dict[str, Any] = {}

Source = Literal["answer", "origin", "column", "step"]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a name stands for.

    Attributes:
        name: The name, as the user gave it.
        sources: Where it is looked up; the first that has it counts.
        path: The steps to it in the answer; empty for the whole answer.
        key: Its name without a prefix, for a column, an origin or a step.
    """

    name: str
    sources: tuple[Source, ...]
    path: tuple[str, ...] = ()
    key: str = ""


def part_of(
    name: str,
    *,
    schema: Mapping[str, Any] | None = None,
    choices: tuple[str, ...] = (),
    steps: Collection[str] = (),
) -> Part:
    """Return what a name stands for.

    ``output`` is the answer, ``output.NAME`` a field of it, ``column.NAME`` a column of the row, and
    ``fanout.NAME`` the document, aspect or model. A plain name is a field of the answer if the schema
    has it, or without a schema, if the answer does; else the document, aspect or model; else a column.
    In a job with steps, ``steps.NAME`` is the answer of a step, and ``steps.NAME.field`` a field of it.

    Args:
        name: The name; points separate the steps to a nested field, and a step ``*`` is each element
            of a list.
        schema: The JSON Schema of answers, if they have one.
        choices: The labels that answers are, if they are labels.
        steps: The names of the steps of the job.
    """
    if steps and name.startswith(STEPS):
        key, *below = _steps(name)[1:]
        return Part(name=name, sources=("step",), path=tuple(below), key=key)
    if name.startswith(COLUMN):
        return Part(name=name, sources=("column",), key=name.removeprefix(COLUMN))
    if name.startswith(OWN):
        return Part(name=name, sources=("origin",), key=name.removeprefix(OWN))
    if name == ANSWER or name.startswith(f"{ANSWER}."):
        path = _steps(name)[1:]
        return Part(name=name, sources=("answer",), path=path)
    path = _steps(name)
    sources: tuple[Source, ...] = ("origin",) if name in ORIGINS else ("column",)
    if not choices and (schema is None or _is_open(schema)):
        sources = ("answer", *sources)
    elif schema is not None and schemas_at(schema, path[:1]):
        sources = ("answer",)
    return Part(name=name, sources=sources, path=path, key=name)


def goes_by_steps(spec: RunSpec, reduce: Reduce) -> bool:
    """Say whether an aggregate of a job goes by answers of steps, which may not be the output."""
    names = (*reduce.by, *reduce.measures, reduce.group_by or "")
    return bool(spec.steps) and any(STEPS in name for name in names)


def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def missing_in(schema: Mapping[str, Any] | None, path: str) -> str:
    """Return the part of a path up to the first name that no answer has; empty if answers may have all.

    Args:
        schema: The JSON Schema of the answers; None if they have none.
        path: Names with points between, as prompts and conditions have them; numbers count elements.
    """
    names = _steps(path) if path and schema is not None else ()
    for end in range(1, len(names) + 1):
        if schema is not None and not schemas_at(schema, names[:end], has_numbers=True):
            return ".".join(names[:end])
    return ""


def schemas_at(
    schema: Mapping[str, Any], path: tuple[str, ...], *, has_numbers: bool = False
) -> list[Mapping[str, Any]]:
    """Return what a JSON Schema says of the value at a path; empty if there can be none.

    An empty schema stands for any value: it is not known what is there. With ``has_numbers``, a number in
    the path is an element of a list.
    """
    definitions = _Definitions(schema)
    found = definitions.variants(schema)
    for step in path:
        found = [
            variant
            for one in found
            for child in (
                *_children(one, step),
                *(_children(one, EACH) if has_numbers and step.isdecimal() else ()),
            )
            for variant in definitions.variants(child)
        ]
    return found


def _children(schema: Mapping[str, Any], step: str) -> list[Any]:
    if step == EACH:
        is_list = {"items", "prefixItems"} & schema.keys() or _may_be(schema, "array")
        return _elements(schema) if is_list else []
    properties = schema.get("properties") or {}
    if step in properties:
        return [properties[step]]
    if schema.get("patternProperties"):
        return [_ANYTHING]
    others = schema.get("additionalProperties", not properties)
    if others is False or not _may_be(schema, "object"):
        return []
    return [others if isinstance(others, dict) else {}]


def _elements(schema: Mapping[str, Any]) -> list[Any]:
    """Return what a schema says of the elements of lists, each one that it names and the others."""
    found: list[Any] = list(schema.get("prefixItems") or ())
    items = schema.get("items", _ANYTHING)
    # Of older drafts, it may be a list.
    return found + (items if isinstance(items, list) else [items])


def _may_be(schema: Mapping[str, Any], kind: str) -> bool:
    kinds = schema.get("type")
    if kinds is None:
        return not {"enum", "const"} & schema.keys()
    return kind in ([kinds] if isinstance(kinds, str) else kinds)


def _is_open(schema: Mapping[str, Any]) -> bool:
    """Say whether a schema allows fields that it does not name."""
    return any(
        _may_be(one, "object")
        and (
            bool(one.get("additionalProperties"))
            or not (one.get("properties") or one.get("additionalProperties") is False)
        )
        for one in schemas_at(schema, ())
    )


class _Definitions:
    """Resolves the references and alternatives of a schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def variants(self, schema: Any) -> list[Mapping[str, Any]]:
        """Return a schema as one or several without references and alternatives."""
        waiting: deque[Any] = deque([schema])
        seen: set[int] = set()
        found: list[Mapping[str, Any]] = []
        while waiting:
            one = waiting.popleft()
            if one is True:
                one = _ANYTHING
            if not isinstance(one, dict) or id(one) in seen:
                continue
            seen.add(id(one))
            parts = alternatives(one)
            if isinstance(one.get("$ref"), str):
                parts.append(referred(self._root, one["$ref"]))
            waiting += parts
            if not parts or "properties" in one:
                found.append(one)
        return found


def known_fields(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that a JSON Schema has, nested ones with points."""
    found: dict[str, None] = {}
    waiting: list[tuple[str, ...]] = [()]
    while waiting and len(found) < _MOST_KNOWN:
        path = waiting.pop(0)
        for one in schemas_at(schema, path):
            for name in one.get("properties") or {}:
                below = (*path, name)
                if ".".join(below) not in found:
                    found[".".join(below)] = None
                    waiting.append(below)
            if one.get("items") and path and path[-1] != EACH:
                waiting.append((*path, EACH))
    return list(found)
