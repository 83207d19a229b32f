"""The budgets that calls of this process must fit into: that of their run, and those of the day."""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.budgets import BudgetStep
from fanout.core.day_budgets import matching
from fanout.core.errors import ModelError
from fanout.core.model_names import READER_MODEL
from fanout.core.plan_runs import job_run
from fanout.llm.call_bounds import CallBounds
from workers.context.batches import Batches
from workers.context.budget_account import BudgetAccount
from workers.context.budget_holds import BudgetHold
from workers.context.budgeted_calls import BudgetedCalls, used_in_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fanout.core.budgets import BudgetLimits
    from fanout.core.ids import StageId
    from fanout.core.records import Usage
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLM
    from fanout.policy.tree_budgets import CallsAbove
    from fanout.stores import RedisStore
    from workers.context.inflight import InFlight

__all__ = ["BudgetPlan", "Budgets"]

_REMEMBERED = 64


class BudgetPlan(NamedTuple):
    """The budgets that the calls of a stage to one model must fit into.

    Attributes:
        run_id: The run, if that has a budget.
        names: The names of the budgets of the day; these come before that of the run.
        bounds: What a call can use, by each budget.
        is_reduce: Whether the stage is one of the reduce.
        holds: The same budgets for calls that no process waits for.
        problem: Why one of them cannot be kept; None if all can be.
        problem_if_limited: The same for calls that limit the length of their answers.
    """

    run_id: str | None
    names: tuple[str, ...]
    bounds: Sequence[CallBounds]
    is_reduce: bool
    holds: Sequence[BudgetHold]
    problem: str | None
    problem_if_limited: str | None


class Budgets:
    """Makes the calls of branches fit into budgets; runs on the loop of the calls.

    Args:
        store: The store of what is used; it fails at once if the server is unreachable.
        in_flight: Ends what waits when a run or this worker stops.
        days: The limits of a day for the models whose names fit the patterns.
        process: The unique name of this process.
        dies_after_s: Seconds without a report after which the server takes this process for dead.
    """

    def __init__(
        self,
        store: RedisStore,
        in_flight: InFlight,
        days: Mapping[str, BudgetLimits],
        *,
        process: str,
        dies_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._in_flight = in_flight
        self._days = days
        self._dies_after_s = dies_after_s
        # One thread takes them for all branches.
        self._hold = Batches(store.hold_budgets, None)
        self._make = partial(
            BudgetAccount,
            process=process,
            in_flight=in_flight,
            dies_after_s=dies_after_s,
            clock=clock,
        )
        self._runs: OrderedDict[str, BudgetAccount] = OrderedDict()
        self._of_days: dict[str, BudgetAccount] = {}

    def applies(self, spec: RunSpec) -> bool:
        """Say whether calls of a run may have to fit into a budget."""
        return bool(self._days) or spec.budget.is_limited

    def plan(self, stage_id: StageId, spec: RunSpec, model: str, llm: LLM) -> BudgetPlan | None:
        """Return the budgets of the calls of a stage to a model; None if there are none.

        Prices may change: it is to be made anew from time to time.
        """
        names = self._names(model)
        if not names and not spec.budget.is_limited:
            return None
        is_reduce = stage_id.stage > 0
        bounds = self._bounds(spec, model, llm)
        return BudgetPlan(
            run_id=job_run(stage_id.run_id) if spec.budget.is_limited else None,
            names=tuple(names),
            bounds=bounds,
            is_reduce=is_reduce,
            holds=self._holds(stage_id, spec, model),
            problem=self._problem(spec, names, bounds, max_tokens=None),
            problem_if_limited=self._problem(spec, names, bounds, max_tokens=1),
        )

    def _problem(
        self,
        spec: RunSpec,
        names: Sequence[str],
        bounds: Sequence[CallBounds],
        *,
        max_tokens: int | None,
    ) -> str | None:
        """Return why a budget cannot be kept, as something of the model is unknown."""
        limits = [(f"the workers' budget of a day for {name}", self._days[name]) for name in names]
        limits.append(("the budget", spec.budget.limits))
        # Without a budget of the run, the last has no bounds.
        kept = zip(limits, bounds, strict=False)
        found = ((what, bound.unkept(limit, max_tokens)) for (what, limit), bound in kept)
        return next((f"{what} in {one[0]} {one[1]}" for what, one in found if one), None)

    def calls(
        self, plan: BudgetPlan, *, max_tokens: int | None = None, above: CallsAbove | None = None
    ) -> BudgetedCalls:
        """Return the budgets of a branch's calls.

        Args:
            plan: The budgets of its stage.
            max_tokens: How long their answers are at most.
            above: The calls above it in its tree, for which it leaves room in the budget of the run.

        Raises:
            ModelError: One cannot be kept, as something of the model is unknown.
        """
        problem = plan.problem_if_limited if max_tokens else plan.problem
        if problem is not None:
            raise ModelError(problem)
        accounts = [self._of_day(name) for name in plan.names]
        if plan.run_id is not None:
            accounts.append(self._of_run(plan.run_id))
        return BudgetedCalls(
            accounts,
            plan.bounds,
            is_reduce=plan.is_reduce,
            holds=plan.holds,
            above=None if plan.run_id is None else above,
        )

    async def unhold(
        self, stage_id: StageId, spec: RunSpec, model: str, item: str, usage: Usage | None
    ) -> None:
        """Settle what is reserved for a call of a batch whose branch makes no call any more.

        Args:
            stage_id: The stage of the branch.
            spec: Its run's spec.
            model: The model.
            item: The call.
            usage: What it has used; None if it was not made.

        Raises:
            CallStoppedError: The run is gone.
        """
        for hold, bound in zip(
            self._holds(stage_id, spec, model), self._bounds(spec, model), strict=True
        ):
            await hold.end(item, used_in_batch(bound, usage))

    def _bounds(self, spec: RunSpec, model: str, llm: LLM | None = None) -> list[CallBounds]:
        """Return the bounds of a call by each of its budgets: those of the day, then the run's."""
        names = self._names(model)
        of_days = [CallBounds(spec, model, llm, trusts_job=False)] * len(names)
        of_run = [CallBounds(spec, model, llm)] if spec.budget.is_limited else []
        return [*of_days, *of_run]

    def _names(self, model: str) -> list[str]:
        return [] if model == READER_MODEL else matching(model, self._days)

    def _holds(self, stage_id: StageId, spec: RunSpec, model: str) -> list[BudgetHold]:
        of = [BudgetStep(day=name, limits=self._days[name]) for name in self._names(model)]
        if spec.budget.is_limited:
            of.append(BudgetStep(run_id=job_run(stage_id.run_id)))
        return [BudgetHold(self._hold, one, self._in_flight) for one in of]

    async def aclose(self) -> None:
        """Report what was used; the loop is about to end."""
        for account in [*self._runs.values(), *self._of_days.values()]:
            await account.aclose()

    def _of_run(self, run_id: str) -> BudgetAccount:
        account = self._runs.get(run_id)
        if account is None:
            report = partial(self._store.report_budget, run_id, dies_after_s=self._dies_after_s)
            account = self._runs[run_id] = self._make(report)
            idle = [known for known, one in self._runs.items() if one.is_idle and one != account]
            for known in idle[: max(0, len(self._runs) - _REMEMBERED)]:
                del self._runs[known]
        return account

    def _of_day(self, name: str) -> BudgetAccount:
        account = self._of_days.get(name)
        if account is None:
            report = partial(
                self._store.report_day_budget,
                name,
                limits=self._days[name],
                dies_after_s=self._dies_after_s,
            )
            account = self._of_days[name] = self._make(report, day=name)
        return account
