"""What is left of a budget, as it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits
from fanout.core.day_budgets import matching
from fanout.core.units import dollars

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.budgets import BudgetState
    from fanout.core.fleet_records import WorkerRecord
    from fanout.stores import RedisStore

__all__ = ["BudgetStatus", "amount_words", "day_budgets"]

_NAMES = ("usd", "calls", "tokens")


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a budget. Each amount has ``usd``, ``calls`` and ``tokens``.

    Attributes:
        limit: What all calls together may use; None is no limit.
        spent: What counts as spent: what calls have used, and the most that those can have used of
            which nothing is known.
        unsure: The part of it that calls may have used of which nothing is known: those that timed out
            or were cancelled, those that were in flight on workers that died, and, as long as they
            are there, those in batches.
        reserved: What calls in flight may use.
        is_batched: Whether calls are in batches, so that their part of ``unsure`` will be known.
        is_used_up: Of the budget of a day: whether calls wait for the next one.
    """

    limit: BudgetLimits
    spent: Amounts
    unsure: Amounts = NO_AMOUNTS
    reserved: Amounts = NO_AMOUNTS
    is_batched: bool = False
    is_used_up: bool = False

    @classmethod
    def of(cls, state: BudgetState, *, has_ended: bool = False, is_batched: bool = False) -> Self:
        """Return what is left of a budget; after the end of its run, no call is in flight."""
        unsure = state.unsure + state.held if has_ended else state.unsure
        return cls(
            limit=state.limits,
            spent=state.spent + unsure,
            unsure=unsure + state.guessed,
            reserved=NO_AMOUNTS if has_ended else state.held,
            is_batched=is_batched,
            is_used_up=state.is_full,
        )

    @property
    def limited(self) -> list[str]:
        """The names of the limits: ``usd``, ``calls`` and ``tokens``, as far as there are."""
        return [name for name in _NAMES if getattr(self.limit, name) is not None]

    @property
    def fullest(self) -> str:
        """The name of the limit of which the largest part is spent."""
        return max(
            self.limited, key=lambda name: getattr(self.spent, name) / getattr(self.limit, name)
        )

    @property
    def left(self) -> dict[str, float]:
        """What is left of each limit: ``usd``, ``calls``, ``tokens``, as far as there are."""
        return {
            name: max(0, _left(getattr(self.limit, name), getattr(self.spent, name)))
            for name in self.limited
        }

    @property
    def words(self) -> str:
        """What is spent of what, as one text."""
        over = any(getattr(self.spent, name) > getattr(self.limit, name) for name in self.limited)
        passed = " (passed: the provider reports more than its calls could use)" if over else ""
        return f"budget: {self.spent_words}{passed}"

    @property
    def day_words(self) -> str:
        """What is spent of the budget of a day, and whether calls wait for the next one."""
        return f"{self.spent_words}{', used up: calls wait' if self.is_used_up else ''}"

    @property
    def left_words(self) -> str:
        """What is left, as one text."""
        return ", ".join(amount_words(name, amount) for name, amount in self.left.items())

    @property
    def spent_words(self) -> str:
        """What is spent of what, without the word budget."""
        parts = [
            f"{amount_words(name, getattr(self.spent, name), is_bare=name != 'usd')} of "
            f"{amount_words(name, getattr(self.limit, name))}"
            for name in self.limited
        ]
        text = f"{', '.join(parts)} spent"
        if self.unsure != NO_AMOUNTS:
            whose = f"{'in batches, or ' if self.is_batched else ''}of which nothing is known"
            some = [
                amount_words(name, getattr(self.unsure, name))
                for name in self.limited
                if getattr(self.unsure, name)
            ]
            text += f" (up to {', '.join(some)} of it by calls {whose})" if some else ""
        return text

    def day_dict(self) -> dict[str, Any]:
        """Return the same of the budget of a day, and whether calls wait for the next one."""
        return {**self.to_dict(), "is_used_up": self.is_used_up}

    def to_dict(self) -> dict[str, Any]:
        """Return the limits, and what is spent, reserved and left of them, as JSON values."""
        names = self.limited
        parts = {"spent": self.spent, "unsure": self.unsure, "reserved": self.reserved}
        return {
            "limit": {name: getattr(self.limit, name) for name in names},
            **{part: {name: getattr(of, name) for name in names} for part, of in parts.items()},
            "left": self.left,
        }


def _left(limit: float, spent: float) -> float:
    # Without the noise of a difference of floats.
    return limit - spent if isinstance(limit, int) else round(limit - spent, 9)


def day_budgets(
    store: RedisStore, workers: Iterable[WorkerRecord], models: Iterable[str] | None = None
) -> tuple[dict[str, BudgetStatus], float | None]:
    """Return what is left of the budgets of the day that live workers keep, and until when.

    The seconds until they begin anew are None if there is none.

    Args:
        store: Where it is counted.
        workers: The workers.
        models: Only the budgets that calls to these must fit into; None for all.
    """
    limits = {name: limit for worker in workers for name, limit in worker.day_budgets.items()}
    if models is not None and limits:
        names = {name for model in models for name in matching(model, limits)}
        limits = {name: limit for name, limit in limits.items() if name in names}
    if not limits:
        return {}, None
    states, left_s = store.day_budgets(list(limits))
    found = zip(limits.items(), states, strict=True)
    return {
        name: BudgetStatus.of(
            msgspec.structs.replace(state, limits=limit), is_batched=state.is_batched
        )
        for (name, limit), state in found
    }, left_s


def amount_words(name: str, amount: float, *, is_bare: bool = False) -> str:
    """Return an amount of US dollars, calls or tokens with its unit, unless ``is_bare``."""
    if name == "usd":
        return dollars(amount)
    if is_bare:
        return f"{amount:,}"
    return f"{amount:,} {name if amount != 1 else name.removesuffix('s')}"
