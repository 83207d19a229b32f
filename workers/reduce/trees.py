"""What the trees of calls of a reduce have come to: the answers of their roots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators import Aggregate, Tally, lacking
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind
from fanout.runs.status import ReduceError
from workers.reduce.cited import with_checked_sources
from workers.reduce.coverage import with_coverage
from workers.reduce.frontier import group_counts, node_places, node_tally
from workers.reduce.items import reduce_branches
from workers.reduce.made import Made
from workers.reduce.refining import refined

if TYPE_CHECKING:
    from fanout.aggregators import Source
    from fanout.core.records import Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from workers.context.worker_context import WorkerContext

__all__ = ["answer_of_refining", "answers_of_trees"]


def answers_of_trees(
    context: WorkerContext, run_id: str, spec: RunSpec, reduce: Reduce, stages: range
) -> Made:
    """Return what a reduce by a tree of calls for each group has come to.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        reduce: The reduce.
        stages: The stages of its nodes, in order. A group is done at the first one in which it has a
            single node.
    """
    aggregates: dict[str, Aggregate] = {}
    answered: dict[str, bool] = {}
    errors: list[ReduceError] = []
    problems: list[str] = []
    for stage in stages:
        behind: dict[str, Tally] = {}
        for chunk, outcome in reduce_branches(context, StageId(run_id, stage), reduce):
            group, count, failed = group_counts(chunk)
            if outcome.kind is not None and chunk.error is None:
                errors.append(_error(reduce, group, outcome))
            # A group with several chunks here is answered by a later stage, which overwrites this.
            tally = Tally.total([behind.get(group, Tally()), node_tally(chunk, outcome)])
            behind[group] = tally
            problem = chunk.error or lacking(tally, spec.min_group_success)
            value = None
            if problem is None:
                value = _value(outcome.output, is_json=reduce.schema is not None)
            else:
                problems.append(problem)
            sources: list[Source] = []
            if value is not None and (places := node_places(chunk)):
                is_deep = stage > stages.start
                value, sources = with_checked_sources(
                    context, run_id, spec, value, places, is_deep=is_deep
                )
            aggregates[group] = Aggregate(
                value=value,
                succeeded=count,
                failed=failed,
                coverage=tally.coverage(problem),
                sources=sources,
            )
            answered[group] = value is not None
    problem = None if any(answered.values()) else _problem(errors, problems)
    return Made(aggregates.items(), errors, problem)


def answer_of_refining(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce
) -> Made:
    """Return what the calls of a reduce have refined."""
    chain, failed = refined(context, run, reduce)
    errors = [_error(reduce, "", outcome) for outcome in failed]
    made = Aggregate(
        value=_value(chain.answer, is_json=reduce.schema is not None),
        succeeded=chain.tally.behind,
        failed=chain.failed,
        notes=chain.remarks,
    )
    found = with_coverage(spec, [("", made)], {"": chain.tally})
    problem = found.problem
    if problem is None and chain.answer is None:
        silent = ["no call had anything to say of the answers"]
        problem = _problem(errors, [] if errors else silent)
    return Made(found.aggregates, errors, problem)


def _value(answer: str | None, *, is_json: bool) -> Any:
    return msgspec.json.decode(answer) if is_json and answer is not None else answer


def _error(reduce: Reduce, group: str, outcome: Outcome) -> ReduceError:
    return ReduceError(
        reduce=reduce.name,
        group=group,
        kind=outcome.kind or ErrorKind.INTERNAL,
        message=outcome.message or "",
        attempts=outcome.attempts,
    )


def _problem(errors: list[ReduceError], problems: list[str]) -> str:
    if problems:
        return f"no aggregate could be made: {problems[-1]}"
    if not errors:
        return "no aggregate could be made: there is no answer to reduce"
    last = errors[-1]
    why = f"{last.kind.value}: {last.message} (after {last.attempts} attempts)"
    return f"no aggregate could be made: {why}"
