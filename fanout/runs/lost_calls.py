"""Calls of which nobody knows what they have used, as their worker has died: the budget knows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.records import QUANTITIES

if TYPE_CHECKING:
    from fanout.core.budgets import BudgetState
    from fanout.core.records import Usage

__all__ = ["with_lost_calls"]


def with_lost_calls(
    usage: Usage, budget: BudgetState, *, has_ended: bool, is_batched: bool
) -> Usage:
    """Return the usage of a run, whose sums are unknown if calls are lost.

    No outcome has them, so the sums of outcomes are only the least that the run has used.

    Args:
        usage: The sum of the outcomes.
        budget: What is left of the run's budget.
        has_ended: Whether the run has ended: then no call is in flight.
        is_batched: Whether calls of it are in batches.
    """
    lost = budget.unsure + budget.held if has_ended else budget.unsure
    is_lost = lost.calls > 0 and not is_batched
    if has_ended:
        # What a call has used may be reported a moment after its outcome. A worker may also die after the
        # report and before the outcome: the branch then makes its call again.
        is_lost = (budget.spent + lost).calls > usage.calls
    if not is_lost:
        return usage
    # Of a model that costs nothing, the cost is known.
    has_cost = lost.nano_usd if lost.calls else budget.spent.nano_usd
    unknown = [name for name in QUANTITIES if name != "cost_usd" or has_cost]
    found = {name: known for name in unknown if (known := usage.known(name))}
    return structs.replace(usage, **dict.fromkeys(unknown), at_least={**usage.at_least, **found})
