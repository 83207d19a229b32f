"""What is kept of the reduces of a run that was stopped while they went on: what has come to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators import Aggregate, CoverageCounter
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind
from workers.reduce.comparisons import compare
from workers.reduce.items import branches, item_of, tally_of
from workers.reduce.made import Made
from workers.reduce.resolving import resolve
from workers.reduce.trees import TreeAnswers, answer_of_refining

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.aggregators import Streamed, Tally
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.runs.result_writer import ReduceMade
    from fanout.runs.status import ReduceError
    from workers.context.worker_context import WorkerContext

__all__ = ["STOPPED", "kept"]

STOPPED = f"{ErrorKind.CANCELLED.value}: the run was stopped before this aggregate was made"


def kept(
    context: WorkerContext, run: RunRecord, spec: RunSpec, stage_id: StageId
) -> dict[str, ReduceMade]:
    """Return what the reduces by calls have come to, by name; the map has ended.

    An aggregate whose calls have ended stands; in place of each other one is that it was cancelled.

    Args:
        context: The worker's process.
        run: The run, which takes no further calls.
        spec: Its job.
        stage_id: The last stage that has ended.
    """
    called = spec.called_reductions
    counters = [(reduce, CoverageCounter()) for reduce in called]
    if counters:
        for chunk, outcome in branches(context, StageId(run.run_id, 0)):
            tally = tally_of(spec, chunk, outcome)
            for reduce, counter in counters:
                counter.add(item_of(spec, reduce, chunk, outcome).group, tally)
    return {
        reduce.name: _Kept(_made(context, run, spec, stage_id, reduce), counter.tallies())
        for reduce, counter in counters
    }


def _made(
    context: WorkerContext, run: RunRecord, spec: RunSpec, stage_id: StageId, reduce: Reduce
) -> ReduceMade:
    """Return what a reduce has come to so far; nothing if its calls are not known to have ended."""
    if reduce.kind == "llm" and not reduce.refines:
        last = max(stage_id.stage, run.base_stage, run.ahead)
        stages = range(run.base_stage + 1, last + 1)
        return TreeAnswers(context, run.run_id, spec, spec.reductions.index(reduce), stages)
    try:
        if reduce.refines:
            made: ReduceMade | None = answer_of_refining(context, run, spec, reduce)
        else:
            # Nothing is written any more: the run takes no calls.
            step = resolve if reduce.resolves else compare
            made = step(context, run, stage_id, spec, reduce)
    except SpecError as error:
        return Made(problem=str(error))
    if made is None:
        return Made()
    errors = list(made.errors)
    if any(one.kind is ErrorKind.CANCELLED for one in errors):
        return Made(errors=errors)
    return made


class _Kept:
    """The aggregates of a reduce that are whole, and in place of others that the run was stopped.

    Args:
        made: What the reduce has come to.
        totals: The branches of each of its groups.
    """

    def __init__(self, made: ReduceMade, totals: dict[str, Tally]) -> None:
        self._made = made
        self._totals = totals
        self._is_any = False

    @property
    def errors(self) -> Iterable[ReduceError]:
        """Its calls that failed."""
        return self._made.errors

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate; known once the aggregates have been read."""
        return None if self._is_any else self._made.problem or STOPPED

    @property
    def aggregates(self) -> Iterator[tuple[str, Aggregate | Streamed]]:
        """The aggregates by group; each is read before the next is asked for."""
        rest = dict(self._totals)
        for group, one in self._made.aggregates:
            total = rest.pop(group, None)
            if total is not None and (self._is_unjoined(group) or _is_part(one, total)):
                yield group, _none(total)
                continue
            self._is_any |= not isinstance(one, Aggregate) or one.value is not None
            yield group, one
        for group, total in rest.items():
            yield group, _none(total)

    def _is_unjoined(self, group: str) -> bool:
        return isinstance(self._made, TreeAnswers) and group in self._made.unjoined


def _is_part(one: Aggregate | Streamed, total: Tally) -> bool:
    """Say whether an aggregate is of some branches of its group only: further calls were to join them."""
    if not isinstance(one, Aggregate) or one.coverage is None:
        return False
    found = one.coverage
    is_cancelled = found.problem is not None and ErrorKind.CANCELLED.value in found.lost
    return is_cancelled or found.branches < total.branches


def _none(total: Tally) -> Aggregate:
    failed = total.branches - total.behind
    coverage = total.coverage(STOPPED)
    return Aggregate(value=None, succeeded=total.behind, failed=failed, coverage=coverage)
