"""What calls of batches reserve from a budget: no process waits for them."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError, UnknownRunError
from fanout.policy.budgets import Fit, fit
from workers.context.budget_account import over
from workers.context.inflight import CallStoppedError, StopReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.budgets import Amounts, BudgetReply
    from workers.context.inflight import InFlight

__all__ = ["BudgetHold"]

# Seconds until a call asks again for room, or tries an unreachable server again.
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class BudgetHold:
    """A budget that calls of batches must fit into.

    Args:
        send: Sends a step to the server; it blocks.
        waits: Whether a call that never fits waits for the next day; else it fails.
    """

    def __init__(self, send: Callable[..., BudgetReply], *, waits: bool = False) -> None:
        self._send = send
        self._waits = waits

    async def take(self, item: str, most: Amounts, *, is_reduce: bool, in_flight: InFlight) -> None:
        """Reserve the most that a call can use, perhaps after a wait.

        Raises:
            LLMError: What is spent or reserved for batches leaves no room for it.
            CallStoppedError: The run is gone, or this worker stops.
        """
        while True:
            reply = await self._sent(partial(self._send, item, most, is_reduce=is_reduce))
            if reply is not None and reply.granted[0]:
                return
            is_over = reply is not None and not self._waits
            if reply is not None and is_over:
                state = reply.state
                if fit(most, state, is_reduce=is_reduce) is Fit.NEVER:
                    raise over(most, state, is_reduce=is_reduce)
            await in_flight.wait(_AGAIN_S)

    async def end(self, item: str, used: Amounts) -> None:
        """Settle what a call has used. Raises CallStoppedError if the run is gone."""
        # The server may be unreachable for a while.
        while await self._sent(partial(self._send, item, used, ends=True)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_AGAIN_S)

    async def _sent(self, step: Callable[[], BudgetReply]) -> BudgetReply | None:
        """Return the reply; None if the server is unreachable."""
        try:
            return await asyncio.to_thread(step)
        except UnknownRunError:
            raise CallStoppedError(StopReason.HALTED) from None
        except BrokerError as error:
            _log.warning("cannot reserve what a call of a batch may use: %s", error)
            return None
