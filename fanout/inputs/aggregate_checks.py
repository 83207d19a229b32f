"""Checks of what a job's aggregate goes by, and measures, against its schema and its columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.answer_parts import ANSWER, ORIGINS, known_fields, part_of, schemas_at
from fanout.core.cells import COLUMN, OWN
from fanout.core.errors import SpecError
from fanout.core.measures import measure_of
from fanout.core.step_answers import STEPS, step_of
from fanout.inputs.prompt_checks import step_problem
from fanout.inputs.prompts import near_hint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fanout.core.answer_parts import Part
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec

__all__ = ["likely_typos", "part_columns", "require_parts"]

_NUMBERS = ("integer", "number")
# A ranking also reads numbers in text, such as "8/10".
_RANKED = (*_NUMBERS, "string")
_NAMED = 30


def part_columns(spec: RunSpec) -> frozenset[str]:
    """Return the columns that a job's aggregate goes by, or measures."""
    parts = [part for _, part, _ in _parts(spec)]
    return frozenset(part.key for part in parts if part.sources == ("column",))


def require_parts(spec: RunSpec, columns: frozenset[str]) -> None:
    """Check that there is all that a job's aggregate goes by, and measures.

    Args:
        spec: The job.
        columns: The columns of its input.

    Raises:
        SpecError: A field is not in the schema, or not of numbers; or a column is not in the input.
    """
    for field, part, kinds in _parts(spec):
        problem = _problem(spec, part, kinds, columns)
        if problem:
            raise SpecError(problem, field=field)


def likely_typos(
    spec: RunSpec, columns: frozenset[str], *, text_columns: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield a warning for each name that no column has, where nothing is known of the answers.

    And for each measure of the text that a step answers with.

    Args:
        spec: The job.
        columns: The columns of its input. Without any, a name can only be meant as a field.
        text_columns: The names that the column of the text may have.
    """
    yield from _measured_texts(spec)
    if (
        not (columns or spec.steps)
        or spec.answer_schema is not None
        or spec.output_format == "json"
    ):
        return
    # A table may have several measures of a field.
    for field, part in dict.fromkeys((field, part) for field, part, _ in _parts(spec)):
        if part.sources == ("answer", "column") and part.key not in columns:
            known = [*sorted(columns), *(STEPS + name for name in spec.step_names)]
            hint = near_hint(part.name, known)
            if not columns and not hint:
                continue
            listed = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
            what = f"there is no column {part.name!r};{hint} known: {listed}"
            if part.name in text_columns:
                what = f"{part.name!r} is the column of the text, which is no value here"
            yield (
                f"{field}: {what}. It counts as a field of the answers, and only answers in JSON have "
                "fields"
            )


def _measured_texts(spec: RunSpec) -> Iterator[str]:
    for field, part in dict.fromkeys((field, part) for field, part, _ in _parts(spec)):
        step = step_of(part.name, spec.steps)[0] if part.sources == ("step",) else None
        if field.endswith("measures") and step is not None and step.is_text:
            yield (
                f"{field}: step {step.name!r} answers with a text, of which only one that is a number "
                "counts: a schema, as {type: number}, makes it one"
            )


def _parts(spec: RunSpec) -> list[tuple[str, Part, tuple[str, ...]]]:
    """Return each name with its field of the job, and the types that its values may have."""
    names = [name for reduce in spec.reductions for name in _names(reduce)]
    return [(field, _part_of(spec, name), kinds) for field, name, kinds in names]


def _names(reduce: Reduce) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    is_ranked = reduce.kind in ("rank", "top", "map_rerank")
    for name in reduce.by:
        bare = name.removeprefix("-") if is_ranked else name
        yield reduce.field("by"), bare, _RANKED if is_ranked else ()
    for one in map(measure_of, reduce.measures):
        if one.field:
            yield reduce.field("measures"), one.field, _NUMBERS


def _part_of(spec: RunSpec, name: str) -> Part:
    return part_of(
        name, schema=spec.answer_schema, choices=spec.answer_choices, steps=spec.step_names
    )


def _problem(
    spec: RunSpec, part: Part, kinds: tuple[str, ...], columns: frozenset[str]
) -> str | None:
    """Return why a part is not there, or not clear, or None."""
    if part.sources == ("answer",):
        return _problem_of_field(part, kinds, spec.answer_schema, spec.answer_choices)
    if part.sources == ("step",):
        return step_problem(spec, part.name) or _problem_of_step(spec, part, kinds)
    if "origin" in part.sources:
        return _problem_of_origin(spec, part, kinds, columns)
    if part.key in columns or "answer" in part.sources:
        return None if part.key in columns else _problem_of_path(spec, part)
    if part.name.startswith(COLUMN):
        known = [COLUMN + column for column in sorted(columns)]
        listed = ", ".join(known) or "none"
        return f"there is no column {part.key!r};{near_hint(part.name, known)} known: {listed}"
    known = _known(spec, columns)
    what = "answers are labels, and " if spec.answer_choices else ""
    listed = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
    hint = near_hint(part.name, known)
    return f"{what}there is no field or column {part.name!r};{hint} known: {listed}"


def _problem_of_origin(
    spec: RunSpec, part: Part, kinds: tuple[str, ...], columns: frozenset[str]
) -> str | None:
    name, key = part.name, part.key
    if key not in ORIGINS:
        return f"there is no {name!r}; known: {', '.join(OWN + one for one in ORIGINS)}"
    if key in columns and not name.startswith(OWN):
        return (
            f"{name!r} is not clear: the input has a column of this name; write {COLUMN}{name} "
            f"for the column, or {OWN}{name} for fanout's own"
        )
    if "answer" in part.sources:
        return None
    if key == "aspect" and not spec.aspects:
        return f"{name!r} needs aspects, and there are none"
    return f"{name!r} is no number" if kinds else None


def _problem_of_path(spec: RunSpec, part: Part) -> str | None:
    """Return why a plain name cannot be a field of an answer, of which nothing is known; or None."""
    if spec.answer_schema is None and part.name.startswith(STEPS) and not spec.steps:
        return (
            f"the job has no steps (got {part.name!r}); write {ANSWER}.{part.name} for a field of the "
            "answer"
        )
    return _problem_of_points(part) or _problem_like_step(spec, part)


def _problem_of_points(part: Part) -> str | None:
    # A field may itself have points, as in `approx.`.
    path = ".".join(part.path)
    if not part.path or (path and not path.startswith(".") and ".." not in path):
        return None
    return f"{part.name!r} names no field: there is nothing between, or behind, its points"


def _problem_like_step(spec: RunSpec, part: Part) -> str | None:
    """Return why a plain name is not clear that may be a field of an answer, and is a step."""
    if not part.path or part.path[0] not in spec.step_names:
        return None
    return (
        f"{part.name!r} is not clear: there is a step {part.path[0]!r}; write {STEPS}{part.name} for its "
        f"answer, or {ANSWER}.{part.name} for a field of the output"
    )


def _known(spec: RunSpec, columns: frozenset[str]) -> list[str]:
    fields = known_fields(spec.answer_schema) if spec.answer_schema else []
    origins = [one for one in ORIGINS if one != "aspect" or spec.aspects]
    steps = [STEPS + name for name in spec.step_names]
    return list(dict.fromkeys([*fields, *sorted(columns), *origins, ANSWER, *steps]))


def _problem_of_step(spec: RunSpec, part: Part, kinds: tuple[str, ...]) -> str | None:
    step, _ = step_of(part.name, spec.steps)
    if step is None:
        return None
    return _problem_of_field(part, kinds, step.answer_schema, step.choices)


def _problem_of_field(
    part: Part, kinds: tuple[str, ...], schema: dict[str, Any] | None, choices: tuple[str, ...]
) -> str | None:
    """Return why a field of an answer cannot be used by its schema, or None."""
    if choices:
        is_label = not part.path
        if not is_label:
            return f"answers are labels, which have no fields (got {part.name!r}); write {ANSWER}"
        return (
            None if not kinds or "string" in kinds else f"{part.name!r} is a label, and no number"
        )
    if schema is None:
        return _problem_of_points(part)
    found = schemas_at(schema, part.path)
    if not found:
        known = known_fields(schema)
        listed = ", ".join(known[:_NAMED]) or f"none; write {ANSWER} for the answer itself"
        path = ".".join(part.path)
        return f"the schema has no field {path!r};{near_hint(path, known)} known: {listed}"
    if kinds and not any(_may_be_one_of(one, kinds) for one in found):
        return f"{part.name!r} is no number by the schema (its type: {_types(found)})"
    return None


def _may_be_one_of(schema: Mapping[str, Any], kinds: tuple[str, ...]) -> bool:
    if "type" in schema:
        types = schema["type"]
        return bool({*kinds} & ({types} if isinstance(types, str) else {*types}))
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return values is None or any(_type(value) in kinds for value in values)


def _type(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "boolean"
    return "number" if isinstance(value, int | float) else "string"


def _types(found: list[Mapping[str, Any]]) -> str:
    named = [one.get("type", "enum") for one in found]
    return ", ".join(
        dict.fromkeys(one for kind in named for one in ([kind] if isinstance(kind, str) else kind))
    )
