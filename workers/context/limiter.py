"""Applies the fleet's rate limits and circuit breakers to the calls of a worker process."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING

from fanout.core.rate_limits import MAX_BLOCK_S, CallTokens
from fanout.core.records import ErrorKind
from fanout.policy.outages import (
    SHARED,
    Failure,
    FailureVerdict,
    close,
    cost_alone,
    cost_of_own,
    trip,
)
from workers.context.call_window import CallPlaces, plainly
from workers.context.model_state import LOOK_S, PROBES, ModelState
from workers.context.pacing import Pacer, ask_store
from workers.context.token_ratios import TokenRatios

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from typing import Self

    from fanout.core.errors import LLMError
    from fanout.core.rate_limits import Rates
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.stores import RedisStore

__all__ = ["Limiter", "ModelGate"]

# The pause after a refusal without a retry-after.
_PAUSE_S = 1.0
# Calls that waited together spread over this share of the pause, or they would be refused again.
_SPREAD = 0.5
_MAX_SPREAD_S = 2.0
# Seconds after which a waiting branch checks again whether the pause is over. A branch that has
# failed may be at fault itself: it waits longer by this factor, so that other branches try first.
_POLL_S = 0.5
_FAILED_POLL_FACTOR = 3.0
_MOST_REFUSALS = 5
# Kinds that say nothing about the model: faults of fanout itself.
_SILENT = frozenset({ErrorKind.INTERNAL})

# Where a branch may ask another model, it does not wait for the end of these. None: it is not known
# how a model fails that other workers have found to fail.
_GIVEN_UP = frozenset({ErrorKind.SERVER_ERROR, None})

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
    ) -> ModelGate:
        """Return the gate for the calls of a branch; close it after the last one.

        Args:
            model: The model.
            rates: Its rates.
            gives_up: Whether a branch that meets server errors asks another model, and does not wait
                for the end of an outage.
            timeout_s: The timeout of a call in seconds; None for none.
        """
        known = self._models.get(model)
        if known is None:
            places = CallPlaces(self._store, model, clock=self.clock, until=self._until)
            pacer = Pacer(self._store, model, clock=self.clock, sleep=self._sleep)
            known = self._models[model] = ModelState(model, places, pacer)
        return ModelGate(self, known, rates, gives_up=gives_up, timeout_s=timeout_s)

    def holds_back(self, models: Iterable[str]) -> bool:
        """Return whether calls to one of some models may wait long, for limits that were learnt."""
        known = [self._models[name] for name in models if name in self._models]
        return any(one.pacer.has_limits or one.places.is_bounded for one in known)

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
            if now - model.looked_at >= LOOK_S:
                # Set first, so that other calls do not read it as well.
                model.looked_at = now
                await self._look(model)
                now = self.clock()
            elif not model.is_read:
                # Another call is reading them for the first time.
                async with model.first_look:
                    continue
            hold_s = model.hold_s(now)
            if model.probes and model.down_at is not None:
                model.probes -= 1
                return False
            if gives_up and model.down_at is not None and model.failed_with in _GIVEN_UP:
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


class ModelGate:
    """What the calls of one branch go through: see ``fanout.llm.calls.CallGate``.

    As a context it is closed at its end, also where a call was cancelled.
    """

    def __init__(
        self,
        limiter: Limiter,
        model: ModelState,
        rates: Rates,
        *,
        gives_up: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._limiter = limiter
        self._timeout_s = timeout_s
        # Whether a call of this branch has a place among those in flight.
        self._has_place = False
        self._gives_up = gives_up
        self._model = model
        # What the job tells; and what the last call kept to, with the tokens that were booked for it.
        self._told = rates
        self._rates = rates
        self._booked: CallTokens | None = None
        self._calls = 0
        self._began = 0.0
        # When the first call began that failed for a reason that others may share.
        self._failed_at: float | None = None
        # The calls that failed so, and how many attempts they are.
        self._failures: list[Failure] = []
        self._spent = 0.0

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:
        """Wait until the call may begin; return the seconds that a rate limit took of that.

        Raises:
            LLMError: The model fails for all branches, and this one gives up.
        """
        limiter, model, for_rate_s = self._limiter, self._model, 0.0
        now = came = limiter.clock()
        await model.places.enter()
        self._has_place = True
        rates = self._rates = model.pacer.rates(self._told, now)
        if rates.is_limited:
            await self._wait_for_slot(request)
        if rates.is_limited or model.places.is_bounded:
            now = limiter.clock()
            for_rate_s = now - came
        if not model.is_well(now):
            has_failed = self._failed_at is not None
            await limiter.wait_until_well(
                model, until=now + left_s, has_failed=has_failed, gives_up=self._gives_up
            )
            now = limiter.clock()
        self._calls += 1
        self._began = now
        return for_rate_s

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> FailureVerdict | None:
        """Record the end of a call; return the verdict on its error, if any."""
        self.close()
        if self._booked is not None:
            self._correct(self._booked, reply)
        if error is not None and error.is_shed:
            # Calls in other lanes succeed.
            return FailureVerdict(cost=0.0)
        if reply is not None:
            limiter = self._limiter
            elapsed_s = limiter.clock() - self._began
            limiter.ratios.observe(self._model.name, request, reply.usage, elapsed_s=elapsed_s)
        seen = reply.limits if reply is not None else error.limits if error is not None else None
        if seen is not None:
            await self._model.pacer.saw(seen, began=self._began)
        if error is not None and error.kind in SHARED:
            return await self._failed(error)
        if error is None or error.kind not in _SILENT:
            # Any answer, or a refusal of this prompt, shows that the model is up.
            model, now = self._model, self._limiter.clock()
            model.answered(self._began)
            model.places.succeeded(now - self._began, self._timeout_s)
            model.health.succeeded(began=self._began, now=now, is_first=self._calls == 1)
            if model.down_at is not None:
                await self._limiter.succeeded_while_down(model, self._began)
        return None

    async def _failed(self, error: LLMError) -> FailureVerdict:
        model, limiter = self._model, self._limiter
        first = self._failed_at = self._began if self._failed_at is None else self._failed_at
        model.failed(error.kind, limiter.clock())
        is_refusal = error.kind is ErrorKind.RATE_LIMITED or error.retry_after_s is not None
        # A prompt that is always refused while others are not must not hold up other branches.
        is_odd = self._calls > _MOST_REFUSALS and model.health.has_succeeded_after(first)
        if is_refusal and not is_odd:
            await limiter.refused(model, error.retry_after_s)
        if not (error.is_own or is_odd):
            is_paced = self._rates.is_limited or model.pacer.has_limits
            model.places.failed(
                error, began=self._began, is_paced=is_paced, timeout_s=self._timeout_s
            )
        counted = None
        if not error.is_own:
            is_first = self._calls == 1
            counted = model.health.failed(
                self, first_began=first, began=self._began, is_first=is_first
            )
            if model.health.is_down(limiter.clock()):
                await limiter.failed_for_all(model)
        if self._gives_up and error.kind in _GIVEN_UP:
            return FailureVerdict(cost=1.0)
        down_s = model.down_s(limiter.clock())
        # Without a retry-after the pause is short: the branch itself waits longer each time.
        is_pause = (error.retry_after_s or 0.0) >= _PAUSE_S and not is_odd
        return FailureVerdict(
            cost=self._cost(error, first, counted, is_down=down_s is not None),
            down_s=down_s,
            is_held=down_s is not None or is_pause,
            is_blind=model.health.lead_s(first) is None and error.retry_after_s is None,
        )

    def _cost(self, error: LLMError, first: float, counted: str | None, *, is_down: bool) -> float:
        """Return how many more attempts the branch has spent by this failed call."""
        own = cost_of_own(error)
        if own is not None or counted is None:
            return own or 0.0
        health, before = self._model.health, self._spent
        alone = cost_alone(error, lead_s=health.lead_s(first), is_down=is_down)
        is_asked = error.retry_after_s is not None
        self._failures.append(
            Failure(began=self._began, alone=alone, counted=counted, is_asked=is_asked)
        )
        self._spent = health.spent(self._failures, now=self._limiter.clock())
        return self._spent - before

    def close(self) -> None:
        """Give back the place of a call that has ended."""
        if self._has_place:
            self._has_place = False
            self._model.places.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def _wait_for_slot(self, request: LLMRequest) -> None:
        pacer, tokens = self._model.pacer, CallTokens()
        if self._rates.counts_tokens:
            # Where they are not limited, nobody asks how many they are.
            tokens = self._booked = self._expected_tokens(request, pacer)
        await pacer.wait(self._rates, tokens)

    def _expected_tokens(self, request: LLMRequest, pacer: Pacer) -> CallTokens:
        """Return the tokens to book: the prompt's, and ``max_tokens`` as most providers do."""
        prompt, answer = (
            self._limiter.ratios.expected_tokens(self._model.name, request),
            request.max_tokens,
        )
        if answer and not self._rates.output_tokens_per_minute:
            return CallTokens(prompt, answer)
        return CallTokens(prompt, pacer.likely_output(answer))

    def _correct(self, booked: CallTokens, reply: LLMReply | None) -> None:
        self._booked = None
        if reply is None or reply.usage.input_tokens is None or reply.usage.output_tokens is None:
            return
        actual = CallTokens(reply.usage.input_tokens, reply.usage.output_tokens)
        self._model.pacer.used(self._rates, booked, actual)
