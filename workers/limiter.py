"""The fleet's rate limits, as the calls of one worker process meet them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from fanout.errors import BrokerError
from fanout.limits import MAX_BLOCK_S
from fanout.runs import ErrorKind
from fanout.tokens import estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.errors import LLMError
    from fanout.limits import Rates
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.stores import Store

__all__ = ["Gate", "Limiter"]

# How old what a worker knows of a model's pause may be: one small read per model, not per call.
_LOOK_S = 0.5
# The pause after a refusal that names none.
_PAUSE_S = 1.0
# Those that waited together are spread over so much of the pause, or they would be refused again.
_SPREAD = 0.5

_log = logging.getLogger(__name__)


class Limiter:
    """Knows which models are to be left alone for a while; on the loop of the calls.

    Args:
        store: What the fleet shares; asked in threads, as it blocks.
        clock: Seconds, rising.
        sleep: Waits.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._paused_until: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}

    def gate(self, model: str, rates: Rates) -> Gate:
        """Return the gate for the calls of a run."""
        return Gate(self, model, rates)

    async def enter(self, model: str, rates: Rates, tokens: int) -> None:
        """Wait until a call of so many tokens may begin."""
        while not await self._has_slot(model, rates, tokens):
            continue
        # The provider may have asked for a pause meanwhile.
        while await self._has_paused(model):
            continue

    async def _has_slot(self, model: str, rates: Rates, tokens: int) -> bool:
        if not rates.is_limited:
            return True
        try:
            slot = await asyncio.to_thread(self._store.take_slot, model, rates=rates, tokens=tokens)
        except BrokerError as error:
            # Its outcome could not be written either: the call waits for the server.
            _log.warning("cannot ask for the rate limit of %s: %s", model, error)
            await self._sleep(_PAUSE_S)
            return False
        await self._sleep(slot.wait_s)
        return slot.is_taken

    async def _has_paused(self, model: str) -> bool:
        """Wait until a pause is over; say whether there was one."""
        now = self._clock()
        if now - self._looked_at.get(model, float("-inf")) >= _LOOK_S:
            # Set first: the other calls should not look as well.
            self._looked_at[model] = now
            await self._look(model)
        pause_s = self._paused_until.get(model, 0.0) - self._clock()
        if pause_s <= 0:
            return False
        await self._sleep(pause_s * (1 + _SPREAD * random.random()))  # noqa: S311 - no secret
        return True

    async def _look(self, model: str) -> None:
        try:
            pause_s = await asyncio.to_thread(self._store.pause_of, model)
        except BrokerError as error:
            _log.warning("cannot see whether %s is to be left alone: %s", model, error)
            return
        if pause_s > 0:
            self._pause(model, pause_s)

    def _pause(self, model: str, pause_s: float) -> None:
        until = self._clock() + pause_s
        self._paused_until[model] = max(until, self._paused_until.get(model, 0.0))

    async def refused(self, model: str, retry_after_s: float | None) -> None:
        """Have the whole fleet leave a model alone for as long as its provider asks."""
        pause_s = min(MAX_BLOCK_S, _PAUSE_S if retry_after_s is None else retry_after_s)
        self._pause(model, pause_s)
        try:
            await asyncio.to_thread(self._store.pause_model, model, pause_s)
        except BrokerError as error:
            _log.warning("cannot tell the fleet to leave %s alone: %s", model, error)

    async def consumed(self, model: str, rates: Rates, tokens: int) -> None:
        """Correct what a call was taken to consume; ``tokens`` may be negative."""
        if not rates.tokens_per_minute or not tokens:
            return
        try:
            await asyncio.to_thread(self._store.correct_slot, model, rates=rates, tokens=tokens)
        except BrokerError as error:
            _log.warning("cannot correct the rate limit of %s: %s", model, error)


class Gate:
    """What the calls of one run go through: see ``fanout.llm.calls.Gate``."""

    def __init__(self, limiter: Limiter, model: str, rates: Rates) -> None:
        self._limiter = limiter
        self._model = model
        self._rates = rates
        # Where they are not limited, nobody asks how many they are.
        self._counts_tokens = bool(rates.tokens_per_minute)

    async def enter(self, request: LLMRequest) -> None:
        """Wait until the call may begin."""
        tokens = _expected_tokens(request) if self._counts_tokens else 0
        await self._limiter.enter(self._model, self._rates, tokens)

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> None:
        """Learn from how the call went."""
        if error is not None and error.kind is ErrorKind.RATE_LIMITED:
            await self._limiter.refused(self._model, error.retry_after_s)
        if reply is None or not self._counts_tokens:
            return
        if reply.usage.input_tokens is None or reply.usage.output_tokens is None:
            return
        used = reply.usage.input_tokens + reply.usage.output_tokens
        await self._limiter.consumed(self._model, self._rates, used - _expected_tokens(request))


def _expected_tokens(request: LLMRequest) -> int:
    """Return what a provider books for a call before it answers: the prompt, and room for it."""
    prompt = estimate_tokens(request.prompt) + estimate_tokens(request.system or "")
    return prompt + (request.max_tokens or 0)
