"""What becomes of aggregates with too little behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators import Aggregate, CoverageCounter, Tally, covered, lacking
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind
from fanout.runs.status import NONE_MADE
from workers.reduce.items import branches, tally_of
from workers.reduce.made import Made

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.aggregators import Grouped, Streamed
    from fanout.core.spec import RunSpec
    from fanout.runs.status import ReduceError
    from workers.context.worker_context import WorkerContext

__all__ = ["CoveredGroups", "lacking_all", "with_coverage", "with_reason"]


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
        self._last_group = ""
        self._is_any = False
        self.errors: list[ReduceError] = []

    @property
    def aggregates(self) -> Iterator[tuple[str, Aggregate | Streamed]]:
        """The aggregates by group; each must be read before the next is asked for."""
        for group, made, tally in self._groups:
            self._last, self._last_group = lacking(tally, self._least), group
            self._is_any |= self._last is None
            yield group, covered(made, tally.coverage(self._last))

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate; None if there is one, or there are no groups."""
        return None if self._is_any or self._last is None else _none(self._last_group, self._last)


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
    group, last = list(problems.items())[-1] if problems and all(problems.values()) else ("", None)
    return Made(found, problem=last and _none(group, last))


def _none(group: str, why: str) -> str:
    """Return why there is no aggregate at all: that of the last group, which stands for the others."""
    return f"{NONE_MADE}{group}: {why}" if group else f"{NONE_MADE}{why}"


def with_reason(context: WorkerContext, run_id: str, spec: RunSpec, made: Made) -> Made:
    """Return what a reduce without groups, of which there is nothing but the reason, has come to.

    Its coverage has the reason, and that no answer is behind it.
    """
    if made.aggregates or made.problem is None:
        return made
    counter = CoverageCounter()
    for chunk, outcome in branches(context, StageId(run_id, 0)):
        counter.add("", tally_of(spec, chunk, outcome))
    tally = counter.tallies().get("", Tally()).without_answers(ErrorKind.INTERNAL)
    coverage = tally.coverage(made.problem.removeprefix(NONE_MADE))
    none = Aggregate(value=None, succeeded=0, failed=tally.branches, coverage=coverage)
    return made._replace(aggregates=[("", none)])


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
