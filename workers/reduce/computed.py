"""The aggregates that no call is made for: all of a run are computed in one pass over its branches."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fanout.aggregators import Fields, GroupedAggregates
from fanout.core.ids import StageId
from fanout.system.external_sort import Scratch
from workers.reduce.coverage import CoveredGroups
from workers.reduce.items import branches, item_of, tally_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["computed", "fields_of"]


@contextmanager
def computed(
    context: WorkerContext, run_id: str, spec: RunSpec, reduces: Sequence[Reduce]
) -> Iterator[dict[str, CoveredGroups]]:
    """Give what reduces without calls have come to, by name; they are to be read inside.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        reduces: The reduces.
    """
    with ExitStack() as stack:
        counters = [
            (reduce, stack.enter_context(_groups(spec, reduce, len(reduces)))) for reduce in reduces
        ]
        if counters:
            for chunk, outcome in branches(context, StageId(run_id, 0)):
                tally = tally_of(spec, chunk, outcome)
                for reduce, groups in counters:
                    groups.add(item_of(spec, reduce, chunk, outcome), tally)
        yield {reduce.name: CoveredGroups(spec, groups.counted()) for reduce, groups in counters}


def _groups(spec: RunSpec, reduce: Reduce, count: int) -> GroupedAggregates:
    """Return what aggregates the branches of a reduce. Together, several have the memory of one."""
    scratch = Scratch()
    if count > 1:
        scratch = scratch.divided(count)
    return GroupedAggregates(reduce.kind, fields_of(spec, reduce), scratch)


def fields_of(spec: RunSpec, reduce: Reduce) -> Fields:
    """Return what the aggregators of a reduce go by."""
    return Fields(
        by=reduce.by,
        measures=reduce.measures,
        k=reduce.k,
        schema=spec.answer_schema,
        choices=spec.answer_choices,
        model=spec.model,
        steps=spec.step_names,
    )
