"""The gate of calls that have to fit into budgets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from workers.context.held_places import LongWait

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from fanout.core.errors import LLMError
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.calls import CallGate
    from fanout.policy.outages import FailureVerdict
    from workers.context.budgeted_calls import BudgetedCalls
    from workers.context.held_places import HeldPlace

__all__ = ["BudgetGate"]


class BudgetGate:
    """See ``BudgetedCalls.gate``."""

    def __init__(
        self,
        calls: BudgetedCalls,
        gate: CallGate,
        place: HeldPlace | None,
        begins: Callable[[LLMRequest], bool] | None = None,
    ) -> None:
        self._calls = calls
        self._gate = gate
        self._leaves = None if place is None else place.leaves_place
        self._begins = begins

    def begins(self, request: LLMRequest) -> bool:
        """Begin a call, and return True, if nothing holds it back; this is faster than ``enter``.

        If not, there may be room for it in the budget: then ``enter`` has to follow.
        """
        return self._begins is not None and self._calls.takes(request) and self._begins(request)

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:
        """See CallGate; a wait for the budget counts as one for a rate limit."""
        came = time.monotonic()
        if not self._calls.has_reserved:
            with LongWait(self._leaves):
                await self._calls.reserve(request)
        waited_s = time.monotonic() - came
        try:
            return waited_s + await self._gate.enter(request, left_s=left_s)
        except BaseException:
            self._calls.give_back()
            raise

    def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> Coroutine[Any, Any, FailureVerdict | None]:
        """See CallGate."""
        return self._gate.leave(request, reply, error)
