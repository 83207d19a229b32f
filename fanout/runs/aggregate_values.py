"""The aggregates of a reduce as instances of a type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.runs.outputs import typed_value

if TYPE_CHECKING:
    from fanout.core.answer_types import AnswerType

__all__ = ["typed_aggregate"]


def typed_aggregate(
    of_type: AnswerType | None, value: Any, *, is_grouped: bool, name: str = "the aggregate"
) -> tuple[Any, list[str]]:
    """Return an aggregate with its instances, and why some could not be made.

    Args:
        of_type: The type; None leaves the aggregate as it is.
        value: The aggregate, by group if it has groups.
        is_grouped: Whether it has.
        name: What notes call it.
    """
    if of_type is None or value is None:
        return value, []
    if not is_grouped:
        return typed_value(of_type, value, name)
    made = {group: typed_value(of_type, one, group) for group, one in value.items()}
    faults = [fault for _, found in made.values() for fault in found]
    return {group: one for group, (one, _) in made.items()}, faults
