"""What a reduce has come to, before it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.aggregators import Aggregate, Streamed
    from fanout.runs.status import ReduceError

__all__ = ["Made"]


class Made(NamedTuple):
    """What a reduce has come to.

    Attributes:
        aggregates: The aggregates by group; each must be read before the next is asked for.
        errors: The calls that failed.
        problem: Why there is no aggregate, or None.
    """

    aggregates: Iterable[tuple[str, Aggregate | Streamed]] = ()
    errors: list[ReduceError] = []  # noqa: RUF012 - nobody changes it
    problem: str | None = None
