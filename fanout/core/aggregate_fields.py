"""The fields of a job that say what its aggregate is made of: ``by``, ``measures`` and ``k``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from fanout.core.cells import with_point
from fanout.core.field_words import twice_in
from fanout.core.measures import measure_of
from fanout.core.spec_fields import NUMBER

__all__ = ["AggregateFields"]


def _listed(value: object) -> object:
    """Return names as a tuple; a text has them between commas."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple):
        return value
    return tuple(one.strip() if isinstance(one, str) else one for one in value)


def _by(names: tuple[str, ...]) -> tuple[str, ...]:
    made = tuple(with_point(name) for name in names)
    _require_distinct(made)
    if sum("*" in name.split(".") for name in made) > 1:
        msg = (
            "several lists cannot be counted element by element at once: leave all but one `*` out"
        )
        raise ValueError(msg)
    return made


def _measures(names: tuple[str, ...]) -> tuple[str, ...]:
    made = tuple(measure_of(name).name for name in names)
    _require_distinct(made)
    return made


def _require_distinct(names: tuple[str, ...]) -> None:
    if "" in names:
        msg = "has an empty name"
        raise ValueError(msg)
    twice = twice_in(names)
    if twice is not None:
        msg = f"has {twice!r} twice"
        raise ValueError(msg)


class AggregateFields(BaseModel):
    """The fields of a job that say what its aggregate is made of: see RunSpec."""

    by: Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_by)] = ()
    measures: Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_measures)] = ()
    k: Annotated[int | None, Field(ge=1), NUMBER] = None
