"""What is left of a budget, as it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits
from fanout.core.units import dollars

if TYPE_CHECKING:
    from fanout.core.budgets import BudgetState

__all__ = ["BudgetStatus", "amount_words"]

_NAMES = ("usd", "calls", "tokens")


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a budget. Each amount has ``usd``, ``calls`` and ``tokens``.

    Attributes:
        limit: What all calls together may use; None is no limit.
        spent: What counts as spent: what calls have used, and the most that those can have used of
            which nothing is known.
        unsure: The part of it that calls may have used of which nothing is known yet: those in
            batches, and those that were in flight on workers that died.
        reserved: What calls in flight may use.
    """

    limit: BudgetLimits
    spent: Amounts
    unsure: Amounts = NO_AMOUNTS
    reserved: Amounts = NO_AMOUNTS

    @classmethod
    def of(cls, state: BudgetState, *, has_ended: bool = False) -> Self:
        """Return what is left of a budget; after the end of its run, no call is in flight."""
        unsure = state.unsure + state.held if has_ended else state.unsure
        return cls(
            limit=state.limits,
            spent=state.spent + unsure,
            unsure=unsure,
            reserved=NO_AMOUNTS if has_ended else state.held,
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
        return f"budget: {self.spent_words}"

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
            some = [
                amount_words(name, getattr(self.unsure, name))
                for name in self.limited
                if getattr(self.unsure, name)
            ]
            text += (
                f" (up to {', '.join(some)} of it by calls of which nothing is known)"
                if some
                else ""
            )
        return text

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


def amount_words(name: str, amount: float, *, is_bare: bool = False) -> str:
    """Return an amount of US dollars, calls or tokens with its unit, unless ``is_bare``."""
    if name == "usd":
        return dollars(amount)
    if is_bare:
        return f"{amount:,}"
    return f"{amount:,} {name if amount != 1 else name.removesuffix('s')}"
