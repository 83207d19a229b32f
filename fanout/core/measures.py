"""The measures of a table: how many answers, which share, and sums of the numbers in a field."""

from __future__ import annotations

from difflib import get_close_matches

import msgspec

from fanout.core.cells import with_point
from fanout.core.field_words import shown

__all__ = ["MEASURES", "Measure", "measure_of"]

# Measures of all answers, and those of the numbers in a field.
_OF_ANSWERS = ("count", "share")
_OF_NUMBERS = ("mean", "min", "max", "sum")
MEASURES = (*_OF_ANSWERS, *(f"{kind}:FIELD" for kind in _OF_NUMBERS))


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """A measure of a table.

    Attributes:
        name: It, as the user gave it.
        kind: ``count``, ``share``, ``mean``, ``min``, ``max`` or ``sum``.
        field: The name of what it measures; empty for the first two.
    """

    name: str
    kind: str
    field: str = ""


def measure_of(name: str) -> Measure:
    """Return a measure by its name, such as ``count`` or ``mean:stars``.

    Raises:
        ValueError: There is no such measure.
    """
    kind, colon, field = (part.strip() for part in name.partition(":"))
    if kind in _OF_ANSWERS and not colon:
        return Measure(name=kind, kind=kind)
    if kind in _OF_NUMBERS and field:
        return Measure(name=f"{kind}:{field}", kind=kind, field=with_point(field))
    allowed = f"allowed: {', '.join(MEASURES)}"
    if kind in _OF_NUMBERS:
        msg = f"{shown(name)} needs a field, as in {kind}:stars ({allowed})"
    elif kind in _OF_ANSWERS:
        msg = f"{shown(name)} takes no field: write {kind} ({allowed})"
    else:
        near = get_close_matches(kind.casefold(), [*_OF_ANSWERS, *_OF_NUMBERS], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        msg = f"there is no measure {shown(name)}; {hint}({allowed})"
    raise ValueError(msg)
