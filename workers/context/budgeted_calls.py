"""The calls of one branch to one model, each of which must fit into its budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.budgets import NO_AMOUNTS, Amounts
from fanout.llm.usage import billed
from fanout.policy.budgets import guessed_of_call, known_use, used_by_call
from fanout.policy.tree_budgets import kept_above
from workers.context.budget_gate import BudgetGate
from workers.context.several_budgets import HeldPart, TakenPart, hold_all, take_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from fanout.core.lanes import Lane
    from fanout.core.records import Usage
    from fanout.llm.base import LLMRequest
    from fanout.llm.call_bounds import CallBounds
    from fanout.llm.calls import CallAttempt, CallGate
    from fanout.policy.tree_budgets import CallsAbove
    from workers.context.budget_account import BudgetAccount
    from workers.context.budget_holds import BudgetHold
    from workers.context.held_places import HeldPlace

__all__ = ["BudgetedCalls", "used_in_batch"]


class BudgetedCalls:
    """The calls of one branch to one model, each of which must fit into budgets.

    Args:
        accounts: The budgets, those first whose calls wait longest.
        bounds: What a call can use and has used, by each of these.
        is_reduce: Whether the branch is of the reduce.
        holds: The same budgets for calls that no process waits for.
        above: The calls for which the branch leaves room in the last budget.
    """

    def __init__(
        self,
        accounts: Sequence[BudgetAccount],
        bounds: Sequence[CallBounds],
        *,
        is_reduce: bool,
        holds: Sequence[BudgetHold],
        above: CallsAbove | None = None,
    ) -> None:
        self._holds = holds
        self._above = above
        self._accounts = accounts
        self._bounds = bounds
        self._is_reduce = is_reduce
        # Of the call in flight.
        self._most: Sequence[Amounts] = ()
        self._lane: Lane = "realtime"
        # The last request that was asked about, and the most that it can use.
        self._request: LLMRequest | None = None
        self._most_of_request: Sequence[Amounts] = ()

    def __enter__(self) -> Self:
        for account in self._accounts:
            account.opens()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.give_back()
        for account in self._accounts:
            account.closes()

    def gate(
        self,
        gate: CallGate,
        place: HeldPlace | None = None,
        begins: Callable[[LLMRequest], bool] | None = None,
    ) -> BudgetGate:
        """Return a gate that lets a call through once it fits; ``gate`` comes after that.

        So a call that waits for room, perhaps for hours, has not taken a part of a rate limit; and it
        leaves the ``place`` of its branch. ``begins`` enters ``gate`` if that takes no wait, and returns
        whether it did.
        """
        return BudgetGate(self, gate, place, begins)

    def observing(self, observe: Callable[[CallAttempt], None]) -> Callable[[CallAttempt], None]:
        """Return an observer of calls that also notes what they have used."""

        def ended(attempt: CallAttempt) -> None:
            self._ended(attempt)
            observe(attempt)

        return ended

    def _ended(self, attempt: CallAttempt) -> None:
        """Note what a call has used; one of which nothing is known has used what it may."""
        usage = billed(attempt.kind, attempt.usage) if attempt.kind else attempt.usage
        # It has its cost, by the lane that it was bought in.
        lane = attempt.lane or self._lane
        most, self._most = self._most, ()
        for account, bound, one in zip(self._accounts, self._bounds, most, strict=False):
            used, guessed = _used(bound, usage, one, lane)
            account.settle(one, used, guessed, is_reduce=self._is_reduce)

    def _most_of(self, request: LLMRequest) -> Sequence[Amounts]:
        """Return the most that a call can use, by each budget."""
        if request is not self._request:
            self._most_of_request = [bound.most(request) for bound in self._bounds]
            self._request = request
        return self._most_of_request

    def _left(self, most: Sequence[Amounts]) -> list[Amounts]:
        """Return what a call leaves for others, of each budget."""
        left = [NO_AMOUNTS] * len(most)
        if self._above is not None:
            left[-1] = kept_above(most[-1], self._above)
        return left

    def give_back(self) -> None:
        """Give back what is reserved for a call that has not begun."""
        if not self._most:
            return
        most, self._most = self._most, ()
        for account, one in zip(self._accounts, most, strict=False):
            account.settle(one, NO_AMOUNTS)

    def takes(self, request: LLMRequest) -> bool:
        """Reserve for a call, and return True, if that takes no wait; this is faster than ``reserve``."""
        if self._above is not None:
            return False
        most = self._most_of(request)
        # Most jobs have a single budget.
        has_taken = self._accounts[0].takes(most[0]) if len(most) == 1 else self._takes_all(most)
        if has_taken:
            self._most, self._lane = most, request.lane
        return has_taken

    def _takes_all(self, most: Sequence[Amounts]) -> bool:
        for number, (account, one) in enumerate(zip(self._accounts, most, strict=True)):
            if not account.takes(one):
                for other, taken in zip(self._accounts[:number], most, strict=False):
                    other.settle(taken, NO_AMOUNTS)
                return False
        return True

    async def reserve(self, request: LLMRequest) -> None:
        """Wait until a call fits into all budgets.

        Raises:
            LLMError: What is spent leaves no room for it.
            CallStoppedError: The run or this worker stops.
        """
        most = self._most_of(request)
        left_of, is_reduce = self._left(most), self._is_reduce
        if len(most) == 1:
            await self._accounts[0].take(most[0], is_reduce=is_reduce, left=left_of[0])
        else:
            parts = map(TakenPart, self._accounts, most, left_of)
            await take_all([*parts], is_reduce=is_reduce)
        self._most, self._lane = most, request.lane

    @property
    def has_reserved(self) -> bool:
        """Whether something is reserved for a call that has not ended."""
        return bool(self._most)

    async def hold(self, item: str, request: LLMRequest) -> None:
        """Reserve the most that a call can use that goes into a batch.

        Raises:
            LLMError: What is spent or reserved leaves no room for it.
            CallStoppedError: The run is gone, or this worker stops.
        """
        most = self._most_of(request)
        parts = map(HeldPart, self._holds, most, self._left(most))
        await hold_all([*parts], item, is_reduce=self._is_reduce)

    async def unhold(self, item: str, usage: Usage | None = None, *, insists: bool = True) -> None:
        """Settle what is reserved for a call that nobody waits for any more.

        Args:
            item: The call.
            usage: What it has used, with its cost; None if it was not made.
            insists: Whether to wait for an unreachable server.

        Raises:
            CallStoppedError: The run is gone.
        """
        for hold, bound in zip(self._holds, self._bounds, strict=True):
            await hold.end(item, used_in_batch(bound, usage), insists=insists)

    async def landed(self, item: str, request: LLMRequest, usage: Usage) -> None:
        """Note what a call has used whose result a batch has brought, with its cost."""
        most = self._most_of(request)
        for hold, bound, one in zip(self._holds, self._bounds, most, strict=True):
            used, guessed = _used(bound, usage, one, "batch")
            await hold.end(item, used, guessed=guessed)


def _used(
    bound: CallBounds, usage: Usage | None, most: Amounts, lane: Lane
) -> tuple[Amounts, Amounts]:
    """Return what a call has used, and the part of it that is only the most that it can be.

    Of one of which nothing is known, that is all that it may use.
    """
    own = None if usage is None else bound.own(usage, lane)
    # What most calls report.
    known = known_use(own) if own is not None and own.calls == 1 else None
    if known is not None:
        return known, NO_AMOUNTS
    return most if own is None else used_by_call(own, most), guessed_of_call(own, most)


def used_in_batch(bound: CallBounds, usage: Usage | None) -> Amounts | None:
    """Return what a call of a batch has used; None if that is not known."""
    return NO_AMOUNTS if usage is None else known_use(bound.own(usage, "batch"))
