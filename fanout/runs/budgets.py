"""The budgets of runs: their limits, and how a retry replaces them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from fanout.core.budgets import BudgetLimits
from fanout.core.errors import RunError, SpecError
from fanout.core.field_words import shown, wrong_value
from fanout.core.spec import BudgetSpec, stored_spec
from fanout.policy.budgets import map_limits
from fanout.runs.budget_status import BudgetStatus, amount_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = ["checked_budget", "new_limits", "require_kept", "run_limits"]

_NAMES = ("usd", "calls", "tokens")


def run_limits(spec: RunSpec) -> tuple[BudgetLimits, BudgetLimits] | None:
    """Return what all calls of a run may use, and those of its branches; None without a budget."""
    return _with_map(spec, spec.budget.limits) if spec.budget.is_limited else None


def _with_map(spec: RunSpec, limits: BudgetLimits) -> tuple[BudgetLimits, BudgetLimits]:
    return limits, map_limits(limits, has_reduce=spec.reduction == "llm")


def require_kept(spec: RunSpec, limits: BudgetLimits) -> None:
    """Make sure that a budget can be kept: what a call uses at most must be known.

    Raises:
        SpecError: It cannot; the message names the model, and what to give.
    """
    # The prices of models take a while to load.
    from fanout.llm.call_bounds import unkept

    problem = unkept(spec, limits)
    if problem is not None:
        field, reason = problem
        raise SpecError(reason, field=f"budget.{field}")


def checked_budget(given: BudgetSpec | Mapping[str, Any]) -> BudgetSpec:
    """Return a budget. Raises SpecError if it is none."""
    try:
        budget = BudgetSpec.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(("budget", *map(str, first["loc"])))
        message = wrong_value(first)
        if first["type"] == "value_error":
            message = first["msg"].removeprefix("Value error, ")
        raise SpecError(f"{message} (got {shown(first['input'])})", field=field) from None
    if not budget.is_limited:
        raise SpecError(f"must have a limit: {', '.join(_NAMES)}", field="budget")
    return budget


def new_limits(
    store: RedisStore, run: RunRecord, budget: BudgetSpec
) -> tuple[BudgetLimits, BudgetLimits]:
    """Return what all calls of a run may use with a new budget, and those of its branches.

    What the run has spent counts. Limits that the new budget does not give stay.

    Raises:
        RunError: The run has no budget.
        SpecError: The run has spent as much, or the budget cannot be kept.
    """
    if not run.has_budget:
        raise RunError(
            f"run {run.run_id} was submitted without a budget, so what it has used is not counted: "
            "retry it without one"
        )
    spec, before = stored_spec(store.spec(run.run_id)), store.budget(run.run_id)
    given = budget.limits
    require_kept(spec, given)
    spent = BudgetStatus.of(before, has_ended=True).spent
    for name in _NAMES:
        limit, used = getattr(given, name), getattr(spent, name)
        if limit is not None and limit <= used:
            raise SpecError(
                f"must be more than the {amount_words(name, used)} that the run has spent (got "
                f"{limit})",
                field=f"budget.{name}",
            )
    parts = {part: getattr(given, part) for part in BudgetLimits.__struct_fields__}
    changed = {part: limit for part, limit in parts.items() if limit is not None}
    return _with_map(spec, msgspec.structs.replace(before.limits, **changed))
