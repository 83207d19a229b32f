"""What calls of batches reserve from a budget: no process waits for them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.budgets import NO_AMOUNTS
from fanout.core.errors import BrokerError
from fanout.system.logs import RateLimitFilter
from workers.context.budget_refusals import require_fit
from workers.context.inflight import CallStoppedError, StopReason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.budgets import Amounts, BudgetReply, BudgetStep
    from workers.context.inflight import InFlight

__all__ = ["BudgetHold"]

# Seconds until a call asks again for room, or tries an unreachable server again.
_AGAIN_S = 1.0
_LAST_AGAIN_S = 10.0
_GROWTH = 1.5
_LOG_S = 30.0

_log = logging.getLogger(__name__)
_log.addFilter(RateLimitFilter(_LOG_S))


class BudgetHold:
    """A budget that calls of batches must fit into.

    Args:
        send: Takes a step at the server; the reply is None if there is no such run.
        of: Names the budget. If it is that of a day, a call that does not fit waits; else it fails.
        in_flight: Ends what waits when this worker stops.
    """

    def __init__(
        self,
        send: Callable[[BudgetStep], Awaitable[BudgetReply | None]],
        of: BudgetStep,
        in_flight: InFlight,
    ) -> None:
        self._send = send
        self._of = of
        self._in_flight = in_flight

    async def take(
        self,
        item: str,
        most: Amounts,
        *,
        is_reduce: bool,
        left: Amounts = NO_AMOUNTS,
        waits: bool = True,
    ) -> bool:
        """Reserve the most that a call can use, beside what is to be left, perhaps after a wait.

        Without ``waits``, the answer is False where there is no room now.

        Raises:
            LLMError: What is spent or reserved for batches leaves no room for it.
            CallStoppedError: The run is gone, or this worker stops.
        """
        pause_s = _AGAIN_S
        step = structs.replace(self._of, call=item, amounts=most, is_reduce=is_reduce, left=left)
        while (reply := await self._sent(step)) is None or not reply.granted[0]:
            if reply is not None:
                state = reply.state
                require_fit(most, state, is_reduce=is_reduce, day=self._of.day, left=left)
                if not waits:
                    return False
            await self._in_flight.wait(pause_s)
            pause_s = min(_LAST_AGAIN_S, pause_s * _GROWTH)
        return True

    async def end(
        self,
        item: str,
        used: Amounts | None,
        *,
        guessed: Amounts = NO_AMOUNTS,
        insists: bool = True,
    ) -> None:
        """Settle what a call has used.

        Args:
            item: The call.
            used: What it has used; None if it is unknown.
            guessed: The part of that which is only the most that it can be.
            insists: Whether to wait for an unreachable server.

        Raises:
            CallStoppedError: The run is gone.
        """
        step = structs.replace(self._of, call=item, amounts=used, guessed=guessed, ends=True)
        # The server may be unreachable for a while.
        while await self._sent(step) is None and insists:  # noqa: ASYNC110
            await asyncio.sleep(_AGAIN_S)

    async def _sent(self, step: BudgetStep) -> BudgetReply | None:
        """Return the reply; None if the server is unreachable."""
        try:
            reply = await self._send(step)
        except BrokerError as error:
            _log.warning("cannot reserve what a call of a batch may use: %s", error)
            return None
        if reply is None:
            raise CallStoppedError(StopReason.HALTED)
        return reply
