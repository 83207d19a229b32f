"""What is wrong with a reduce of a list, by its name and field, and the short forms of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from fanout.core.errors import SpecError
from fanout.core.field_names import ALIASES
from fanout.core.field_words import shown, wrong_value
from fanout.core.item_errors import ItemError, ItemWords, item_error, item_path

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

__all__ = ["ReduceFieldError", "canonical_reduce", "reduce_error"]

_FIELD = "reduce"
# The field that a text or a list beside the name of an aggregator is.
_MAIN = {"llm": "aggregate_prompt", "best": "criteria", "pairwise": "criteria"}
_BY = "by"
_WITHOUT_MAIN = ("concat",)
_LONGEST_NAME = 64


class ReduceFieldError(ItemError):
    """A field of a reduce of a list is wrong."""


def canonical_reduce(
    given: Mapping[object, object], number: int, kinds: Sequence[str]
) -> dict[str, object]:
    """Return the fields of a reduce of a list, with the name of its aggregator as ``reduce``.

    ``{name: counts, table: {by: product}}`` is ``{name: counts, reduce: table, by: product}``. A text or a
    list beside the name of an aggregator is its most important field: ``{name: counts, table: product}``.

    Args:
        given: The fields as they were given.
        number: The place of the reduce in the list, from 1.
        kinds: The names of aggregators.

    Raises:
        ReduceFieldError: A field is given twice, or there are two aggregators, or none.
    """
    name = given.get("name")
    called = name if isinstance(name, str) else str(number)
    fields: dict[str, object] = {}
    is_short = any(key in kinds for key in given)
    for key, value in given.items():
        is_kind = key in kinds
        found = _of_kind(called, str(key), value) if is_kind else {str(key): value}
        kind = [(_FIELD, key)] if is_kind else []
        for alias, one in (*kind, *found.items()):
            field = ALIASES.get(alias, alias)
            if field in fields:
                both = f"has {fields[field]} and {one}; give it one of the two"
                what = both if field == _FIELD else "is given twice"
                raise ReduceFieldError(called, "" if field == _FIELD else field, what)
            # In the form in which runs store reduces, fields that were not given are empty.
            if is_short and isinstance(one, (list, tuple)) and not one:
                raise ReduceFieldError(called, field, "the list is empty; leave it out, or fill it")
            fields[field] = one
    if "none" in (fields.get(_FIELD), *given):
        reason = "none makes no aggregate, and has no place in a list; leave it out"
        raise ReduceFieldError(called, "", reason)
    if _FIELD not in fields:
        near = [match for key in given for match in get_close_matches(str(key), kinds, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        reason = f"does not say how: give it one of {', '.join(kinds)}{hint}"
        raise ReduceFieldError(called, "", reason)
    return fields


def _of_kind(called: str, kind: str, value: object) -> dict[str, object]:
    if value is None or value is True:
        return {}
    if isinstance(value, Mapping):
        return {str(field): one for field, one in value.items()}
    if isinstance(value, (str, list, tuple)) and kind not in _WITHOUT_MAIN:
        return {_MAIN.get(kind, _BY): value}
    main = _MAIN.get(kind, _BY)
    short = f"{main} (a text{'' if kind == 'llm' else ' or a list'}), or "
    start = "" if kind in _WITHOUT_MAIN else short
    reason = f"must be {start}a mapping of its fields, such as group_by (got {shown(value)})"
    raise ReduceFieldError(called, kind, reason)


def reduce_error(
    first: ErrorDetails,
    fields: Mapping[str, object] | None,
    reduce: type[BaseModel],
    job: type[BaseModel],
) -> SpecError | None:
    """Return the error of a field of a reduce of a list; None if the error is of another kind.

    Args:
        first: What pydantic says.
        fields: The fields of the job as they were given.
        reduce: The model of such reduces.
        job: The model of the job.
    """
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ReduceFieldError):
        return SpecError(cause.reason, field=item_path(_FIELD, cause.item, cause.field))
    words = ItemWords(
        one="reduce",
        field=_FIELD,
        names=(_FIELD, "reduces"),
        example="{name: votes, vote: output}",
        is_name=lambda name: name.isprintable() and 0 < len(name) <= _LONGEST_NAME,
        of_all=_of_all,
        unknown=lambda field: _unknown(field, reduce, job),
        wrong=wrong_value,
        inner=lambda where: where[:1],
    )
    return item_error(first, fields, words)


def _of_all(first: ErrorDetails) -> str:
    kind = type(first["input"]).__name__
    return f"must be a list of reduces, each a mapping with a name of its own (got {kind})"


def _unknown(field: str, reduce: type[BaseModel], job: type[BaseModel]) -> str:
    known = [*reduce.model_fields]
    listed = f"(known: {', '.join(sorted(known))})"
    of_aggregate = f"aggregate_{field}"
    near = [of_aggregate] if of_aggregate in known else get_close_matches(field, known, n=1)
    # Another name is only meant if it has this one in it, as judge_model has model.
    if field in job.model_fields and not (near and field in near[0]):
        return f"is a field of the job, and not of a reduce {listed}"
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"a reduce has no such field{hint} {listed}"
