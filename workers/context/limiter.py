"""Applies the fleet's rate limits and circuit breakers to the calls of a worker process."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING

from fanout.core.rate_limits import MAX_BLOCK_S
from fanout.policy.outages import close, trip
from workers.context.call_window import CallPlaces, plainly
from workers.context.fair_line import ANYBODY
from workers.context.model_gate import GIVEN_UP, ModelGate
from workers.context.model_state import PROBES, ModelState
from workers.context.pacing import Pacer, ask_store
from workers.context.token_ratios import TokenRatios

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fanout.core.rate_limits import Rates
    from fanout.stores import RedisStore
    from workers.context.fair_line import Turn
    from workers.context.held_places import HeldPlace

__all__ = ["Limiter"]

# The pause after a refusal without a retry-after.
_PAUSE_S = 1.0
# Calls that waited together spread over this share of the pause, or they would be refused again.
_SPREAD = 0.5
_MAX_SPREAD_S = 2.0
# Seconds after which a waiting branch checks again whether the pause is over. A branch that has
# failed may be at fault itself: it waits longer by this factor, so that other branches try first.
_POLL_S = 0.5
_FAILED_POLL_FACTOR = 3.0

_CANNOT_PAUSE = "cannot tell the fleet to leave {} alone"

_log = logging.getLogger(__name__)


class Limiter:
    """Holds back calls to models that refuse or fail; runs on the loop of the calls.

    Args:
        store: The fleet's limits and breakers; called in threads, as it blocks.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
        until: Awaits something as a call that waits.
    """

    def __init__(
        self,
        store: RedisStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        until: Callable[[Awaitable[None]], Awaitable[None]] = plainly,
    ) -> None:
        self._store = store
        self.clock = clock
        self._sleep = sleep
        self._until = until
        self._models: dict[str, ModelState] = {}
        self.ratios = TokenRatios(store)

    def gate(
        self,
        model: str,
        rates: Rates,
        *,
        gives_up: bool = False,
        timeout_s: float | None = None,
        turn: Turn = ANYBODY,
        place: HeldPlace | None = None,
    ) -> ModelGate:
        """Return the gate for the calls of a branch; close it after the last one.

        Args:
            model: The model.
            rates: Its rates.
            gives_up: Whether a branch that meets server errors asks another model, and does not wait
                for the end of an outage.
            timeout_s: The timeout of a call in seconds; None for none.
            turn: The run of the branch: those that wait for a model take turns.
            place: That of the branch: it leaves it while a call waits long for a limit, told or learnt, or
                for the end of a pause.
        """
        known = self._models.get(model)
        if known is None:
            places = CallPlaces(self._store, model, clock=self.clock, until=self._until)
            pacer = Pacer(self._store, model, clock=self.clock, sleep=self._sleep)
            known = self._models[model] = ModelState(model, places, pacer)
        return ModelGate(
            self,
            known,
            rates,
            gives_up=gives_up,
            timeout_s=timeout_s,
            turn=turn,
            place=place,
        )

    def holds_back(self, models: Iterable[str]) -> bool:
        """Return whether calls to one of some models may wait long, for limits that were learnt."""
        for name in models:
            known = self._models.get(name)
            if known is not None and (known.pacer.has_limits or known.places.is_bounded):
                return True
        return False

    async def aclose(self) -> None:
        """End what watches the models; the loop is about to end."""
        for model in self._models.values():
            await model.places.aclose()

    async def wait_until_well(
        self, model: ModelState, *, until: float, has_failed: bool, gives_up: bool = False
    ) -> None:
        """Wait while calls to a model are held back, but no longer than ``until``.

        Raises:
            LLMError: The model fails with server errors for all branches, and the branch gives up.
        """
        while await self._is_held(model, until=until, has_failed=has_failed, gives_up=gives_up):
            continue

    async def _is_held(
        self, model: ModelState, *, until: float, has_failed: bool, gives_up: bool
    ) -> bool:
        """Wait until a pause is over; return whether there was one, so that another may follow."""
        came, was_held = self.clock(), False
        poll_s = _POLL_S * (_FAILED_POLL_FACTOR if has_failed else 1.0)
        while True:
            now = self.clock()
            if model.must_look(now):
                # Set first, so that other calls do not read it as well.
                model.looked_at = now
                await self._look(model)
                now = self.clock()
            elif model.first_look.locked() and not (model.is_read and model.down_at is None):
                # Another call is reading them for the first time, or asks whether to probe.
                async with model.first_look:
                    continue
            hold_s = model.hold_s(now)
            if model.probes and model.down_at is not None:
                model.probes -= 1
                return False
            if gives_up and model.down_at is not None and model.failed_with in GIVEN_UP:
                model.require_unfailed()
                return False
            left_s = until - now
            if model.down_at is not None and not has_failed:
                # It waits no longer than the branches that were waiting when the outage began.
                left_s = min(left_s, model.down_at + (until - came) - now)
            if hold_s <= 0 or left_s <= 0:
                break
            was_held = True
            await self._sleep(min(hold_s, left_s, poll_s * (1 + random.random())))  # noqa: S311
        if not was_held or hold_s > 0:
            return False
        await self._sleep(min(_SPREAD * (now - came), _MAX_SPREAD_S) * random.random())  # noqa: S311
        return True

    async def _look(self, model: ModelState) -> None:
        async with model.first_look:
            try:
                await self._read(model)
            except asyncio.CancelledError:
                # Another call reads them.
                model.looked_at = float("-inf")
                raise
            model.is_read = True

    async def _read(self, model: ModelState) -> None:
        read = partial(self._store.pause_of, model.name)
        standing = await ask_store(read, f"cannot see whether {model.name} is to be left alone")
        if standing is None:
            return
        now = self.clock()
        if standing.learnt is not None:
            model.pacer.heard(standing.learnt)
        if standing.has_window:
            model.places.heard()
        model.fleet_until = now + standing.wait_s
        if standing.is_probe:
            model.probes = PROBES
        if standing.down_s is not None:
            model.fell(now - standing.down_s, now)
        elif model.down_at is not None and model.breaker.opened_at is None:
            # Another worker's call has succeeded.
            model.rose(now)
            model.fleet_until = now + standing.wait_s

    async def refused(self, model: ModelState, retry_after_s: float | None) -> None:
        """Pause the model for the whole fleet, for as long as its provider asks."""
        await model.pacer.refused()
        if model.places.has_noise:
            return
        pause_s = min(MAX_BLOCK_S, _PAUSE_S if retry_after_s is None else retry_after_s)
        model.refused_until = max(model.refused_until, self.clock() + pause_s)
        pause = partial(self._store.pause_model, model.name, pause_s)
        await ask_store(pause, _CANNOT_PAUSE.format(model.name))

    async def failed_for_all(self, model: ModelState) -> None:
        """Open the fleet's breaker for a model that fails for all branches."""
        now = self.clock()
        if model.down_at is not None:
            return
        model.fell(now, now)
        # Until the store has answered.
        model.breaker = trip(model.breaker, now=now, reopen_s=0.0)
        _log.warning("%s fails for every branch: its calls wait until it answers again", model.name)
        trip_breaker = partial(self._store.trip_breaker, model.name)
        if await ask_store(trip_breaker, _CANNOT_PAUSE.format(model.name)):
            model.breaker = close(model.breaker, now=now)
            model.looked_at = float("-inf")

    async def succeeded_while_down(self, model: ModelState, began: float) -> None:
        """Close the fleet's breaker if the call began while the model was held back."""
        if began < model.heard_at:
            return
        model.rose(self.clock())
        _log.warning("%s answers again", model.name)
        close_breaker = partial(self._store.close_breaker, model.name)
        await ask_store(close_breaker, f"cannot tell the fleet that {model.name} answers again")
