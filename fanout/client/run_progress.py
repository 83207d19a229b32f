"""How far a run is: its status, as the server has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from fanout.core.errors import StoredDataError
from fanout.core.ids import StageId
from fanout.core.plan_runs import plan_run
from fanout.core.records import total_saved, total_usage, usage_by_model
from fanout.core.spec import stored_spec
from fanout.runs.budget_status import BudgetStatus, day_budgets
from fanout.runs.lost_calls import with_lost_calls
from fanout.runs.status import StageStatus, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.fleet_records import WorkerRecord
    from fanout.core.lanes import LaneChoice
    from fanout.core.rate_limits import LimitState
    from fanout.core.records import Usage
    from fanout.core.spec import RunSpec
    from fanout.core.state import (
        RunRecord,
        StageRecord,
    )
    from fanout.stores import RedisStore

__all__ = ["RunProgress"]


class _Job(Struct, frozen=True, kw_only=True):
    """What the status has of the job, which does not change; that of a damaged one is empty."""

    lane: LaneChoice | None = None
    models: tuple[str, ...] = ()
    asks_once: bool = True
    split: str = "none"
    model: str = ""
    split_model: str = ""

    @classmethod
    def of(cls, spec: RunSpec) -> Self:
        return cls(
            lane=spec.lane,
            models=spec.all_models,
            asks_once=not spec.steps and spec.certainty is None,
            split=spec.split,
            model=spec.model,
            split_model=spec.split_model or spec.model,
        )


class RunProgress:
    """Reads the status of a run.

    Args:
        run_id: The run's name.
        store: Where it is.
    """

    def __init__(self, run_id: str, store: RedisStore) -> None:
        self._run_id = run_id
        self._store = store
        self._known: _Job | None = None

    @property
    def _job(self) -> _Job:
        if self._known is None:
            try:
                self._known = _Job.of(stored_spec(self._store.spec(self._run_id)))
            except StoredDataError:
                # The status of a damaged run is of use all the same.
                return _Job()
        return self._known

    @property
    def plan_id(self) -> str | None:
        """The run in which a model splits the documents of this one; None without one."""
        return plan_run(self._run_id) if self._job.split == "model" else None

    def status(self) -> Status:
        """Return the progress of the run. Raises UnknownRunError."""
        store, run = self._store, self._store.run(self._run_id)
        stages = [store.stage(StageId(self._run_id, stage)) for stage in range(run.last_stage + 1)]
        plan = None if self.plan_id is None else store.stage(StageId(self.plan_id, 0))
        used = [*stages, *([] if plan is None else [plan])]
        if run.retry and not run.has_ended and run.halt is None:
            stages[0] = stages[0].without_retried(run.retry)
        branches = stages[0]
        gathered, batches = (0, []) if run.has_ended else store.in_batches(self._run_id)
        usage, budget = self._spent(run, used, is_batched=bool(gathered or batches))
        return Status(
            run_id=self._run_id,
            status=run.status,
            total=branches.total,
            done=branches.done,
            succeeded=branches.succeeded,
            failed=branches.failed,
            errors=branches.errors,
            usage=usage,
            created_at=run.created_at,
            elapsed_s=run.elapsed_s,
            stage=run.stage,
            error=run.error,
            latency=branches.latency,
            stages=_stages(stages, run.base_stage),
            max_workers=run.max_workers,
            permits_used=None if run.max_workers is None else run.permits_in_use,
            priority=run.priority,
            gathered=gathered,
            batches=tuple(batches),
            kept_truncated=branches.kept_truncated,
            kept_rejected=branches.kept_rejected,
            asks_once=self._job.asks_once,
            usage_by_model=self._by_model(stages, plan),
            saved=total_saved([stage.saved for stage in used]),
            budget=budget,
            lane=self._job.lane,
            is_late=run.is_late,
            notice=run.notice,
            is_stopping=run.is_stopping,
            asks_providers=any("/" in model for model in self._job.models),
            plan=None if plan is None else _stage_status(0, plan),
            **self._surroundings(run),
        )

    def _spent(
        self, run: RunRecord, used: Sequence[StageRecord], *, is_batched: bool
    ) -> tuple[Usage, BudgetStatus | None]:
        """Return what stages have used, and what is left of the run's budget; None without one."""
        usage = total_usage([stage.usage for stage in used])
        if not run.has_budget:
            return usage, None
        left = self._store.budget(self._run_id)
        how = {"has_ended": run.has_ended, "is_batched": is_batched}
        return with_lost_calls(usage, left, **how), BudgetStatus.of(left, **how)

    def _surroundings(self, run: RunRecord) -> dict[str, Any]:
        """Return what a status has of the fleet: workers, budgets of the day, learnt limits."""
        workers, vanished = self._store.known_workers()
        if run.has_ended:
            return {"workers": len(workers), "vanished": {}, "day_budgets": {}, "limits": {}}
        return {
            "workers": len(workers),
            "vanished": _lost(vanished, run),
            "day_budgets": self._day_budgets(workers),
            "limits": self._limits(),
        }

    def _by_model(
        self, stages: Sequence[StageRecord], plan: StageRecord | None
    ) -> dict[str, Usage]:
        """Return the usage by model, if the run calls several; else nothing."""
        found = [stage.usage_of for stage in stages]
        model, split_model = self._job.model, self._job.split_model
        if plan is not None and (split_model != model or plan.usage_of or any(found)):
            found = [stage.usage_of or {model: stage.usage} for stage in stages]
            found.append(plan.usage_of or {split_model: plan.usage})
        return {name: one for name, one in usage_by_model(found).items() if one.calls or not plan}

    def _day_budgets(self, workers: Sequence[WorkerRecord]) -> dict[str, BudgetStatus]:
        """Return the budgets of the day that the calls of the run must fit into."""
        models = self._job.models
        return day_budgets(self._store, workers, models)[0] if models else {}

    def _limits(self) -> dict[str, LimitState]:
        """Return the learnt limits of the run's models that calls keep to now."""
        found = self._store.limits()
        return {
            model: limit
            for model in self._job.models
            if (limit := found.get(model)) is not None and (limit.is_tight or limit.calls_at_once)
        }


def _lost(vanished: Sequence[WorkerRecord], run: RunRecord) -> dict[str, int]:
    """Return the branches in flight of workers that have vanished since the run began, by worker."""
    return {
        one.name: one.in_flight
        for one in vanished
        if one.in_flight and one.seen_at >= run.created_at
    }


def _stages(stages: Sequence[StageRecord], base_stage: int) -> tuple[StageStatus, ...]:
    """Return the progress of the stages, without those of the reduce that a retry discarded."""
    return tuple(
        _stage_status(number, record)
        for number, record in enumerate(stages)
        if number == 0 or number > base_stage
    )


def _stage_status(number: int, record: StageRecord) -> StageStatus:
    return StageStatus(
        stage=number,
        total=record.total,
        succeeded=record.succeeded,
        failed=record.failed,
        done=record.done,
        kept_truncated=record.kept_truncated,
        calls=record.usage.calls,
    )
