"""The policy of budgets: what a call may use at most, and whether it fits into what is left.

Before a call, the most that it can use is reserved; after it, what it did use is settled. The sum of
what is spent and reserved never exceeds the limit, so neither does what is spent. A script on the
server decides for all workers (fanout.stores.redis.budget_scripts); ``fits`` is its rule.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from fanout.core.budgets import NANO, NO_AMOUNTS, Amounts, BudgetLimits, BudgetState, nano_usd_of
from fanout.core.units import dollars
from fanout.policy.pricing import most_usd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.core.lanes import Lane
    from fanout.core.records import Usage
    from fanout.policy.pricing import Price

__all__ = [
    "COMPARISON_SHARE",
    "REDUCE_SHARE",
    "Fit",
    "fit",
    "fits",
    "guessed_of_call",
    "has_spare",
    "known_use",
    "map_limits",
    "most_of_call",
    "needed_for_spare",
    "over_budget",
    "pace",
    "reduce_share",
    "spare_room",
    "too_large",
    "used_by_call",
]

# The decimals of cents, and of billionths of a dollar.
_CENTS, _NANOS = 2, 9
# The part of a budget that is kept for the reduce, where that makes calls.
REDUCE_SHARE = 0.1
# The same where answers are compared by two: these are more calls than the branches make.
COMPARISON_SHARE = 0.5
# A process that begins more calls than these at a time has room for next ones beside those in flight, for so
# many times as many, while the budget has so many times that left: what a process holds counts as used if
# it dies.
_FEW_CALLS = 8
_SPARE_CALLS = 4
_SPARE_TIMES = 100
_NAMES = ("nano_usd", "calls", "tokens")


class Fit(Enum):
    """Whether a call fits into a budget."""

    FITS = "fits"
    LATER = "later"  # perhaps, when calls in flight have used less than they may
    NEVER = "never"  # what is spent leaves no room for it


def fits(most: Amounts, *, used: Amounts, limits: BudgetLimits) -> bool:
    """Say whether a further call that uses at most ``most`` stays within the limits."""
    usd, calls, tokens = limits.nano_usd, limits.calls, limits.tokens
    return (
        (usd is None or used.nano_usd + most.nano_usd <= usd)
        and (calls is None or used.calls + most.calls <= calls)
        and (tokens is None or used.tokens + most.tokens <= tokens)
    )


def fit(most: Amounts, state: BudgetState, *, is_reduce: bool) -> Fit:
    """Return whether a call fits now, perhaps later, or never."""
    limits = state.limits if is_reduce else state.map_limits
    if not fits(most, used=state.used, limits=limits):
        return Fit.NEVER
    is_now = fits(most, used=state.used + state.held, limits=limits)
    return Fit.FITS if is_now else Fit.LATER


def pace(begun: int, *, before: int) -> int:
    """Return how many calls a process begins in the time of a count, which may have seen none.

    Calls come in bursts, as many branches share a round trip: the pace halves from count to count.

    Args:
        begun: The calls that it has begun during the count.
        before: What this has returned for the count before.
    """
    return max(begun, before // 2)


def spare_room(held: Amounts, *, begun: int, most: Amounts) -> Amounts:
    """Return what a process is to have for its next calls beside those in flight.

    Args:
        held: What those in flight can use.
        begun: The calls that it begins in the time of a count: its ``pace``.
        most: The most that one of them can use.
    """
    if max(begun, held.calls // 4) <= _FEW_CALLS:
        return NO_AMOUNTS
    if _SPARE_CALLS * begun < held.calls // 2:
        return Amounts(nano_usd=held.nano_usd // 2, calls=held.calls // 2, tokens=held.tokens // 2)
    return _times(most, _SPARE_CALLS * begun)


def needed_for_spare(spare: Amounts) -> Amounts:
    """Return what a budget must have left for spare room: near its end no call waits for that."""
    return _times(spare, _SPARE_TIMES)


def has_spare(spare: Amounts, state: BudgetState) -> bool:
    """Say whether a budget has room for so much beside the calls in flight."""
    return fits(needed_for_spare(spare), used=state.used + state.held, limits=state.map_limits)


def _times(amounts: Amounts, times: int) -> Amounts:
    return Amounts(
        nano_usd=amounts.nano_usd * times,
        calls=amounts.calls * times,
        tokens=amounts.tokens * times,
    )


def too_large(most: Amounts, state: BudgetState, *, is_reduce: bool) -> bool:
    """Say whether a call would not even fit into a budget of which nothing is used."""
    limits = state.limits if is_reduce else state.map_limits
    return not fits(most, used=NO_AMOUNTS, limits=limits)


def reduce_share(kinds: Sequence[str]) -> float:
    """Return the share of a budget that is kept for the calls of reduces; 0 if they make none.

    Of several reduces, each has its share; the branches have half of the budget at least.
    """
    shares = dict.fromkeys(("best", "pairwise", "resolve"), COMPARISON_SHARE) | {
        "llm": REDUCE_SHARE
    }
    return min(sum(shares.get(kind, 0.0) for kind in kinds), COMPARISON_SHARE)


def map_limits(limits: BudgetLimits, *, reduce_share: float) -> BudgetLimits:
    """Return what the branches may use of a budget whose rest is kept for the calls of the reduce.

    At least one call is kept, if the budget has room for another.
    """
    if not reduce_share:
        return limits
    kept_calls = 0 if limits.calls is None else max(1, math.ceil(limits.calls * reduce_share))
    return BudgetLimits(
        nano_usd=_without_share(limits.nano_usd, reduce_share),
        calls=None if limits.calls is None else max(1, limits.calls - kept_calls),
        tokens=_without_share(limits.tokens, reduce_share),
    )


def _without_share(limit: int | None, share: float) -> int | None:
    return None if limit is None else limit - math.ceil(limit * share)


def most_of_call(
    prompt_tokens: int, answer_tokens: int | None, *, price: Price | None, lane: Lane = "realtime"
) -> Amounts:
    """Return the most that a call can use; what is unknown counts as nothing.

    A job with a limit of something unknown is refused before its run.
    """
    if answer_tokens is None:
        return Amounts(calls=1)
    usd = 0.0
    if price is not None:
        usd = most_usd(price, prompt_tokens, answer_tokens, lane)
        if lane == "flex":
            # It may end in the realtime one.
            usd = max(usd, most_usd(price, prompt_tokens, answer_tokens, "realtime"))
    return Amounts(nano_usd=nano_usd_of(usd), calls=1, tokens=prompt_tokens + answer_tokens)


def used_by_call(usage: Usage, most: Amounts) -> Amounts:
    """Return what a call has used; of what its provider does not say, the most that it can be."""
    tokens, cost_usd = most.tokens, usage.cost_usd
    if usage.input_tokens is not None and usage.output_tokens is not None:
        tokens = usage.input_tokens + usage.output_tokens
    return Amounts(
        nano_usd=most.nano_usd if cost_usd is None else nano_usd_of(cost_usd),
        calls=1,
        tokens=tokens,
    )


def guessed_of_call(usage: Usage | None, most: Amounts) -> Amounts:
    """Return the part of ``used_by_call`` that is only the most that it can be; all without a usage.

    That a call was made is known.
    """
    knows_cost = usage is not None and usage.cost_usd is not None
    knows_tokens = (
        usage is not None and usage.input_tokens is not None and usage.output_tokens is not None
    )
    if knows_cost and knows_tokens:
        return NO_AMOUNTS
    return Amounts(
        nano_usd=0 if knows_cost else most.nano_usd, tokens=0 if knows_tokens else most.tokens
    )


def known_use(usage: Usage) -> Amounts | None:
    """Return what a call has used; None if its provider does not say all of that."""
    cost_usd, read, written = usage.cost_usd, usage.input_tokens, usage.output_tokens
    if cost_usd is None or read is None or written is None:
        return None
    return Amounts(nano_usd=nano_usd_of(cost_usd), calls=usage.calls, tokens=read + written)


def over_budget(
    most: Amounts,
    state: BudgetState,
    *,
    is_reduce: bool,
    budget: str = "the run's budget",
    left: Amounts = NO_AMOUNTS,
) -> str:
    """Return why a call does not fit, for the error of its branch.

    Args:
        most: The most that it can use.
        state: The budget.
        is_reduce: Whether it is of the reduce.
        budget: Names the budget.
        left: What is to be left for calls that follow it.
    """
    limits, needs = state.limits if is_reduce else state.map_limits, most + left
    if too_large(needs, state, is_reduce=is_reduce):
        # Also when nothing is spent.
        state = BudgetState(limits=state.limits, map_limits=state.map_limits)
    named = next(
        name for name in _NAMES if not fits(needs, used=state.used, limits=_only(limits, name))
    )
    spent, limit = getattr(state.used, named), getattr(state.limits, named)
    needed, kept = getattr(most, named), limit - getattr(limits, named)
    above = getattr(left, named)
    shown = _words(named, limit, (spent, needed, above, kept))
    is_spent = f"{shown(spent)} spent, and " if spent else ""
    text = f"{budget} of {shown(limit)} has no room for this call: {is_spent}it may use {shown(needed)}"
    if above:
        text = f"{text}, and the calls above it {shown(above)}"
    return f"{text} ({shown(kept)} kept for the reduce)" if kept else text


def _only(limits: BudgetLimits, name: str) -> BudgetLimits:
    return msgspec.structs.replace(BudgetLimits(), **{name: getattr(limits, name)})


def _words(name: str, limit: int, parts: Sequence[int]) -> Callable[[int], str]:
    """Return what puts the amounts of one message into words: a limit, and what is more than it.

    Dollars are rounded as far as the limit stays what it is, and less than the sum of its parts.
    """
    if name != "nano_usd":
        one = name.removesuffix("s")
        return lambda amount: f"{amount:,} {one if amount == 1 else name}"
    decimals = next((n for n in range(_CENTS, _NANOS) if _is_told(limit, parts, n)), _NANOS)
    return lambda amount: dollars(amount / NANO, decimals=decimals)


def _is_told(limit: int, parts: Sequence[int], decimals: int) -> bool:
    """Say whether so many decimals show a limit as it is, and that its parts are more than it."""
    unit: int = 10 ** (_NANOS - decimals)
    # What is shown of a part, which may have more decimals, is never less than the part rounded down.
    return limit % unit == 0 and sum(part // unit for part in parts) > limit // unit
