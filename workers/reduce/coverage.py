"""What becomes of aggregates with too little behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators import Aggregate, CoverageCounter, covered, lacking
from fanout.core.ids import StageId
from workers.reduce.items import branches, tally_of
from workers.reduce.made import Made

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.aggregators import Streamed, Tally
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["lacking_all", "with_coverage"]


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
    return Made(found, problem=last and f"no aggregate could be made: {last}")


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
