"""What the trees of calls of a reduce have come to: the answers of their roots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from fanout.aggregators import Aggregate, Tally, lacking
from fanout.core.ids import StageId
from fanout.runs.status import NONE_MADE
from workers.reduce.cited import Checked, checked_sources
from workers.reduce.coverage import with_coverage
from workers.reduce.frontier import group_counts, node_places, node_tally
from workers.reduce.group_answers import in_order, partition_branches, partitions_of
from workers.reduce.items import reduce_branches
from workers.reduce.made import FailedCalls, Made, failed_call, why_failed
from workers.reduce.refining import refined

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fanout.aggregators import Place
    from fanout.core.records import Chunk, Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.runs.status import ReduceError
    from workers.context.worker_context import WorkerContext

__all__ = ["TreeAnswers", "answer_of_refining"]


class TreeAnswers:
    """What a reduce by a tree of calls for each group has come to.

    The answers are read as the aggregates are asked for, those of a partition of groups together; errors
    and the problem are known after that.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        number: The number of the reduce.
        stages: The stages of its nodes, in order. A group is done at the first one in which it has a
            single node.

    Attributes:
        errors: The calls that failed.
        unjoined: The groups that have several nodes at the end, as the run was stopped: each of these is a
            part of the answer. A group is in it before its aggregate is given.
    """

    def __init__(
        self, context: WorkerContext, run_id: str, spec: RunSpec, number: int, stages: range
    ) -> None:
        self._context = context
        self._run_id = run_id
        self._spec = spec
        self._number = number
        self._reduce = spec.reductions[number]
        self._stages = stages
        self._problems: list[str] = []
        self._is_answered = False
        self.errors = FailedCalls()
        self.unjoined: set[str] = set()

    @property
    def aggregates(self) -> Iterator[tuple[str, Aggregate]]:
        """The aggregates by group, in the order in which the groups first appear."""
        context = self._context
        if self._reduce.has_partitions:
            for partition_id in partitions_of(context, self._run_id, self._number):
                nodes = partition_branches(context, partition_id, self._stages)
                yield from in_order(context, partition_id, self._answers(nodes))
        else:
            ids = (StageId(self._run_id, stage) for stage in self._stages)
            nodes = (reduce_branches(context, stage_id, self._reduce) for stage_id in ids)
            yield from self._answers(nodes).items()

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate; None if there is one."""
        if self._is_answered:
            return None
        return f"{NONE_MADE}{_why(self.errors.last, self._problems)}"

    def _answers(self, stages: Iterable[Iterable[tuple[Chunk, Outcome]]]) -> dict[str, Aggregate]:
        """Return the answers of the nodes of some groups, by stages."""
        found: dict[str, Aggregate] = {}
        cited: dict[str, tuple[Mapping[str, Place], bool]] = {}
        for number, nodes in enumerate(stages):
            behind: dict[str, Tally] = {}
            for chunk, outcome in nodes:
                group = group_counts(chunk)[0]
                tally = Tally.total([behind.get(group, Tally()), node_tally(chunk, outcome)])
                if group in behind:
                    self.unjoined.add(group)
                else:
                    self.unjoined.discard(group)
                behind[group] = tally
                # A group with several nodes here is answered by a later stage, which overwrites this.
                found[group] = self._answer(chunk, outcome, tally)
                cited[group] = node_places(chunk), number > 0
        self._is_answered |= any(one.value is not None for one in found.values())
        # Only now, as the check of quotes reads their sources.
        for group, (places, is_deep) in cited.items():
            found[group] = self._checked(found[group], places, is_deep=is_deep)
        return found

    def _checked(self, made: Aggregate, places: Mapping[str, Place], *, is_deep: bool) -> Aggregate:
        if made.value is None or not self._spec.sources:
            return made
        checked = checked_sources(
            self._context, self._run_id, self._spec, made.value, places, is_deep=is_deep
        )
        return structs.replace(
            made,
            value=checked.value,
            sources=checked.sources,
            notes=[*made.notes, *checked.notes],
        )

    def _answer(self, chunk: Chunk, outcome: Outcome, tally: Tally) -> Aggregate:
        group, count, failed = group_counts(chunk)
        problem = chunk.error or lacking(tally, self._spec.min_group_success)
        value = None
        if problem is None:
            value = _value(outcome.output, is_json=self._reduce.schema is not None)
        else:
            self._problems = [f"{group}: {problem}" if group else problem]
        if outcome.kind is not None and chunk.error is None:
            error = failed_call(self._reduce.name, group, outcome)
            self.errors.add(error)
            problem = problem or why_failed(error)
        return Aggregate(
            value=value, succeeded=count, failed=failed, coverage=tally.coverage(problem)
        )


def answer_of_refining(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce
) -> Made:
    """Return what the calls of a reduce have refined."""
    chain, failed = refined(context, run, reduce)
    errors = [failed_call(reduce.name, "", outcome) for outcome in failed]
    value = _value(chain.answer, is_json=reduce.schema is not None)
    checked = Checked(value, [], [])
    if value is not None and spec.sources:
        # A later call sees what is cited only in the answer so far.
        checked = checked_sources(context, run.run_id, spec, value, chain.sources, is_deep=True)
    made = Aggregate(
        value=checked.value,
        sources=checked.sources,
        succeeded=chain.tally.behind,
        failed=chain.failed,
        notes=[*chain.remarks, *checked.notes],
    )
    found = with_coverage(spec, [("", made)], {"": chain.tally})
    problem = found.problem
    if problem is None and chain.answer is None:
        silent = ["no call had anything to say of the answers"]
        why = _why(errors[-1] if errors else None, [] if errors else silent)
        none = structs.replace(made, coverage=chain.tally.coverage(why))
        return Made([("", none)], errors, f"{NONE_MADE}{why}")
    return Made(found.aggregates, errors, problem)


def _value(answer: str | None, *, is_json: bool) -> Any:
    return msgspec.json.decode(answer) if is_json and answer is not None else answer


def _why(error: ReduceError | None, problems: list[str]) -> str:
    """Return why there is no aggregate."""
    if problems:
        return problems[-1]
    return why_failed(error) if error is not None else "there is no answer to reduce"
