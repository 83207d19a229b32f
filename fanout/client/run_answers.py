"""What a run has come to: its job, status, answers and aggregate, as the server has them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from fanout.client.run_progress import RunProgress
from fanout.core.answer_types import UNTYPED
from fanout.core.errors import RunError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus
from fanout.core.spec import RunSpec, stored_spec
from fanout.runs.aggregate_values import typed_aggregate
from fanout.runs.branch_trace import trace_of
from fanout.runs.common_errors import commonest_error
from fanout.runs.evaluation import evaluate, evaluate_by
from fanout.runs.outputs import output_of, refused_note
from fanout.runs.result_values import ResultValues, stored_values
from fanout.runs.results import Result
from fanout.runs.rows import layout_of
from fanout.runs.status import Status, StoredResult, kept_notes
from fanout.runs.stored_aggregates import stored_aggregate
from fanout.runs.traced_comparisons import comparisons_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fanout.aggregators import Coverage, Source
    from fanout.core.answer_types import AnswerTypes
    from fanout.core.ids import ShardId
    from fanout.core.records import ErrorKind, Outcome, Shard
    from fanout.runs.branch_output import Output
    from fanout.runs.branch_trace import BranchTrace
    from fanout.runs.evaluation_result import Evaluation
    from fanout.runs.stored_aggregate import StoredAggregate
    from fanout.runs.stored_aggregates import StoredAggregates
    from fanout.runs.traced_comparisons import TracedComparison
    from fanout.stores import RedisStore

__all__ = ["RunAnswers"]

_LOOKED_AT_SHARDS = 100


class RunAnswers:
    """Reads what a run has come to so far.

    Args:
        run_id: The run's name.
        store: Where it is.
        types: The types of which its answers become instances.
    """

    def __init__(self, run_id: str, store: RedisStore, types: AnswerTypes = UNTYPED) -> None:
        self.run_id = run_id
        self._map_id = StageId(run_id, 0)
        self._store = store
        self._types = types
        self._progress = RunProgress(run_id, store)

    @property
    def spec(self) -> RunSpec:
        """The job of the run."""
        return stored_spec(self._store.spec(self.run_id))

    @property
    def plan_id(self) -> str | None:
        """The run in which a model splits the documents of this one; None without one."""
        return self._progress.plan_id

    def status(self) -> Status:
        """Return the progress of the run. Raises UnknownRunError."""
        return self._progress.status()

    def result(self) -> Result[Any]:
        """Return the outcomes so far; all of them once the run has ended.

        Answers with a schema are instances of its type in the process that submitted the run with a
        type, and JSON values in others.
        """
        status = self.status()
        spec = self.spec
        value, notes = self.aggregate()
        aggregated, faults = self._typed_aggregate(value)
        branches = list(self.outcomes())
        failed = sum(branch.kind is not None for branch in branches)
        if value is not None and self._types.answer is not None and failed > status.failed:
            faults.append(refused_note(self._types.answer, failed - status.failed))
        return Result(
            run_id=self.run_id,
            status=status.status,
            branches=branches,
            aggregated=aggregated,
            aggregate_coverage=self.aggregate_coverage(),
            sources=self.sources(),
            aggregated_json=value if self._types.has_aggregates else None,
            notes=[*kept_notes(status), *notes, *faults],
            reduce_errors=self.stored_result().all_errors,
            usage=status.usage,
            usage_by_model=status.usage_by_model or {spec.model: status.usage},
            saved=status.saved,
            error=self.problem(status),
            elapsed_s=status.elapsed_s,
            layout=layout_of(spec),
            evaluation=evaluate(spec, branches),
            has_reduces=bool(spec.reduces),
        )

    def _typed_aggregate(self, value: Any) -> tuple[Any, list[str]]:
        """Return an aggregate with its instances, and why some could not be made."""
        types, spec = self._types, self.spec
        if value is None or not types.has_aggregates:
            return value, []
        if not spec.reduces:
            return typed_aggregate(types.aggregate, value, is_grouped=spec.group_by is not None)
        made = {
            one.name: typed_aggregate(
                types.reduces.get(one.name),
                value[one.name],
                is_grouped=one.group_by is not None,
                name=one.name,
            )
            for one in spec.reductions
        }
        faults = [fault for _, found in made.values() for fault in found]
        return {name: one for name, (one, _) in made.items()}, faults

    def evaluation(self, labels: str | Mapping[str, str] | None = None) -> Evaluation | None:
        """Return the answers so far against labels, read branch by branch; None if there are none.

        Args:
            labels: The column of the labels, or a mapping of fields of the answer to columns; None
                takes those of the job.

        Raises:
            SpecError: The labels do not fit the answers, or no document has such a column.
        """
        if labels is not None:
            return evaluate_by(labels, self.spec, self.outcomes())
        return evaluate(self.spec, self.outcomes())

    def problem(self, status: Status) -> str | None:
        """Return why a run failed, with the most common error of its first 50,000 branches.

        None if it did not fail.
        """
        if status.error is None or status.status is not RunStatus.FAILED:
            return status.error
        return commonest_error(status.error, self._failures())

    def _failures(self) -> Iterator[tuple[ErrorKind, str]]:
        shards = min(self._store.stage(self._map_id).shards, _LOOKED_AT_SHARDS)
        for shard_id in map(self._map_id.shard, range(shards)):
            for outcome in self._store.outcomes(shard_id).values():
                if outcome.kind is not None:
                    yield outcome.kind, outcome.message or ""

    def aggregate(self) -> tuple[Any, list[str]]:
        """Return the aggregate, by group if the run has groups, and the aggregators' notes.

        The aggregate is None if there is none, or none yet. That of a run with a list of reduces is a dict
        with one for each, by name. All of it is in memory: that of a ``concat``, ``merge`` or ``rank`` may
        be as large as all answers. ``stored_aggregate`` reads it in parts.
        """
        found = self.stored_aggregate()
        return found.value(), found.notes()

    def stored_aggregate(self) -> StoredAggregate | StoredAggregates:
        """Return the aggregate as it is stored, to be read a part at a time. Raises UnknownRunError."""
        values = stored_values(self._store, self.run_id)
        if values is None:
            self._store.run(self.run_id)
            values = ResultValues(StoredResult())
        return stored_aggregate(values, self.spec)

    def aggregate_coverage(self) -> Coverage | dict[str, Any] | None:
        """Return what is behind the aggregate, by group if the run has groups; None if it is not known."""
        return self.stored_aggregate().coverage()

    def sources(self) -> list[Source] | dict[str, Any] | None:
        """Return what the aggregate cites, by group if the run has groups; None without ``sources``."""
        return self.stored_aggregate().sources() if self.spec.sources else None

    def stored_result(self) -> StoredResult:
        """Return the aggregates by group with counts and notes. Raises UnknownRunError.

        The values of large ones are left out.
        """
        return self.stored_aggregate().values.listed().stored

    def outcomes(self, *, with_text: bool = False) -> Iterator[Output[Any]]:
        """Yield the branches that have ended, in input order; one shard is in memory at a time.

        Args:
            with_text: Whether each has the text of its chunk; those of rows have it in any case.
        """
        spec = self.spec
        best, ranks = self._best(spec), self._ranks(spec)
        for shard_id in map(self._map_id.shard, range(self._store.stage(self._map_id).shards)):
            outcomes = self._store.outcomes(shard_id)
            if outcomes:
                shard = self._store.shard(shard_id)
                for _, outcome in sorted(outcomes.items()):
                    yield self._output(
                        spec, shard, outcome, with_text=with_text, best=best, ranks=ranks
                    )

    def trace(self, index: int) -> BranchTrace:
        """Return a branch from end to end: every prompt and answer, with what it took.

        Args:
            index: The index of the branch.

        Raises:
            RunError: The run has no such branch, or it has not ended.
            UnknownRunError: There is no such run.
        """
        shard_id = self._shard_of(index)
        shard = self._store.shard(shard_id)
        outcome = self._store.outcomes(shard_id).get(index - shard.first)
        if outcome is None:
            raise RunError(f"branch {index:,} of run {self.run_id} has not ended")
        spec = self.spec
        if not spec.compares:
            return trace_of(spec, shard, outcome)
        found = self._comparisons(index)
        return trace_of(
            spec, shard, outcome, values=self.stored_aggregate().values, comparisons=found
        )

    def _comparisons(self, index: int) -> Iterator[TracedComparison]:
        """Yield the comparisons of a branch, round by round; one shard is in memory at a time."""
        run = self._store.run(self.run_id)
        for number, stage in enumerate(range(run.base_stage + 1, run.last_stage + 1), 1):
            stage_id = StageId(self.run_id, stage)
            for shard_id in map(stage_id.shard, range(self._store.stage(stage_id).shards)):
                shard, outcomes = self._store.shard(shard_id), self._store.outcomes(shard_id)
                yield from comparisons_in(shard, outcomes, index, number=number)

    def _shard_of(self, index: int) -> ShardId:
        """Return the shard of a branch: shards have consecutive indices."""
        stage = self._store.stage(self._map_id)
        if not 0 <= index < stage.total:
            self._store.run(self.run_id)
            have = f"its branches are 0 to {stage.total - 1:,}" if stage.total else "it has none"
            raise RunError(f"run {self.run_id} has no branch {index:,}: {have}")
        at = bisect_right(
            range(stage.shards),
            index,
            key=lambda number: self._store.indices(self._map_id.shard(number))[0],
        )
        return self._map_id.shard(at - 1)

    def _output(
        self,
        spec: RunSpec,
        shard: Shard,
        outcome: Outcome,
        *,
        with_text: bool,
        best: frozenset[int] | None = None,
        ranks: Sequence[int] | None = None,
    ) -> Output[Any]:
        return output_of(
            spec, shard, outcome, with_text=with_text, types=self._types, best=best, ranks=ranks
        )

    def _best(self, spec: RunSpec) -> frozenset[int] | None:
        """Return the indices of the best answers; None if the job has none, or none yet."""
        if not spec.finds_best:
            return None
        value, _ = self.aggregate()
        return None if value is None else frozenset(row["index"] for row in value.values())

    def _ranks(self, spec: RunSpec) -> Sequence[int] | None:
        """Return the rank of each answer by index, or 0; None if the job has none, or none yet."""
        if not spec.ranks_answers:
            return None
        ranks = array("Q", bytes(8 * self._store.stage(self._map_id).total))
        for index, rank in self.stored_aggregate().ranks():
            ranks[index] = rank
        return ranks if any(ranks) else None
