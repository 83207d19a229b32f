"""What becomes of aggregates with too little behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators import Aggregate, CoverageCounter, covered, lacking
from fanout.core.ids import StageId
from workers.reduce.items import branches, tally_of
from workers.reduce.made import Made

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.aggregators import Grouped, Streamed, Tally
    from fanout.core.spec import RunSpec
    from fanout.runs.status import ReduceError
    from workers.context.worker_context import WorkerContext

__all__ = ["CoveredGroups", "lacking_all", "with_coverage"]

_NONE_MADE = "no aggregate could be made: "


class CoveredGroups:
    """What a reduce without calls has come to: its aggregates, with what is behind each.

    One with too little behind it says so in place of its value. If all are, there is a problem, which is
    known once the aggregates have been read, one after the other.

    Args:
        spec: The job.
        groups: The aggregates, with what is counted of their branches.
    """

    def __init__(self, spec: RunSpec, groups: Iterable[Grouped]) -> None:
        self._least = spec.min_group_success
        self._groups = groups
        self._last: str | None = None
        self._is_any = False
        self.errors: list[ReduceError] = []

    @property
    def aggregates(self) -> Iterator[tuple[str, Aggregate | Streamed]]:
        """The aggregates by group; each must be read before the next is asked for."""
        for group, made, tally in self._groups:
            self._last = lacking(tally, self._least)
            self._is_any |= self._last is None
            yield group, covered(made, tally.coverage(self._last))

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate; None if there is one, or there are no groups."""
        return None if self._is_any or self._last is None else f"{_NONE_MADE}{self._last}"


def with_coverage(
    spec: RunSpec,
    made: Iterable[tuple[str, Aggregate | Streamed]],
    tallies: dict[str, Tally],
) -> Made:
    """Return the aggregates of a reduce with what is behind them.

    One with too little behind it says so in place of its value. If all are, there is a problem.
    """
    problems = {group: lacking(tally, spec.min_group_success) for group, tally in tallies.items()}
    found = ((group, covered(one, tallies[group].coverage(problems[group]))) for group, one in made)
    last = list(problems.values())[-1] if problems and all(problems.values()) else None
    return Made(found, problem=last and f"{_NONE_MADE}{last}")


def lacking_all(context: WorkerContext, run_id: str, spec: RunSpec) -> Made | None:
    """Return what a reduce without groups has come to if too few branches succeeded; else None."""
    record = context.connections.store.stage(StageId(run_id, 0))
    if record.succeeded >= spec.min_group_success * record.total:
        return None
    counter = CoverageCounter()
    for chunk, outcome in branches(context, StageId(run_id, 0)):
        counter.add("", tally_of(spec, chunk, outcome))
    none = Aggregate(value=None, succeeded=record.succeeded, failed=record.failed)
    return with_coverage(spec, [("", none)], counter.tallies())
