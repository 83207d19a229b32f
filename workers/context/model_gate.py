"""What the calls of a branch to one model go through: limits, pauses, and the breaker of the model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fanout.core.rate_limits import BURST_S, CallTokens
from fanout.core.records import ErrorKind
from fanout.policy.outages import SHARED, Failure, FailureVerdict, cost_alone, cost_of_own
from workers.context.fair_line import ANYBODY
from workers.context.held_places import LongWait
from workers.context.model_state import LOOK_S

if TYPE_CHECKING:
    from typing import Self

    from fanout.core.errors import LLMError
    from fanout.core.rate_limits import Rates
    from fanout.llm.base import LLMReply, LLMRequest
    from workers.context.fair_line import Turn
    from workers.context.held_places import HeldPlace
    from workers.context.limiter import Limiter
    from workers.context.model_state import ModelState
    from workers.context.pacing import Pacer

__all__ = ["GIVEN_UP", "ModelGate"]

_MOST_REFUSALS = 5
# Kinds that say nothing about the model: faults of fanout itself.
_SILENT = frozenset({ErrorKind.INTERNAL})
# A refusal without a retry-after, or with a shorter one, is a short pause.
_PAUSE_S = 1.0

# Where a branch may ask another model, it does not wait for the end of these. None: it is not known
# how a model fails that other workers have found to fail.
GIVEN_UP = frozenset({ErrorKind.SERVER_ERROR, None})


class ModelGate:
    """What the calls of one branch go through: see ``fanout.llm.calls.CallGate``.

    As a context it is closed at its end, also where a call was cancelled.

    Attributes:
        has_place: Whether a call of this branch has a place among those in flight.
    """

    def __init__(
        self,
        limiter: Limiter,
        model: ModelState,
        rates: Rates,
        *,
        gives_up: bool = False,
        timeout_s: float | None = None,
        turn: Turn = ANYBODY,
        place: HeldPlace | None = None,
    ) -> None:
        self._limiter = limiter
        self._turn = turn
        self._place = place
        self._timeout_s = timeout_s
        self.has_place = False
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

    def begins(self, _request: LLMRequest | None = None) -> bool:
        """Begin a call, and return True, if nothing holds it back; this is faster than ``enter``."""
        model, place = self._model, self._place
        if model.places.share is not None or (place is not None and place.is_away):
            return False
        now = self._limiter.clock()
        if not model.is_well(now):
            return False
        rates = model.rates(self._told, now)
        if rates.is_limited:
            return False
        model.places.in_flight += 1
        self.has_place, self._rates, self._began = True, rates, now
        self._calls += 1
        return True

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:
        """Wait until the call may begin; return the seconds that a rate limit took of that.

        Raises:
            LLMError: The model fails for all branches, and this one gives up.
        """
        if self.begins():
            return 0.0
        model, place = self._model, self._place
        leaves = None if place is None else partial(self._leaves, place)
        with LongWait(leaves):
            for_rate_s = await self._enter(request, left_s)
        while place is not None and place.is_away:
            came = self._limiter.clock()
            await place.takes_place(has_called=self._calls > 0)
            now = self._limiter.clock()
            for_rate_s += now - came
            if now - came > LOOK_S and not model.is_well(now):
                with LongWait(leaves):
                    await self._wait_until_well(left_s)
        self._calls += 1
        self._began = self._limiter.clock()
        return for_rate_s

    def _rates_now(self) -> Rates:
        self._rates = self._model.rates(self._told, self._limiter.clock())
        return self._rates

    def _leaves(self, place: HeldPlace) -> bool:
        # In an outage the branches that wait are those that had begun.
        return place.leaves_place(in_outage=self._model.is_down_lately(self._limiter.clock()))

    async def _enter(self, request: LLMRequest, left_s: float) -> float:
        limiter, model = self._limiter, self._model
        came = limiter.clock()
        await model.places.enter(self._turn)
        self.has_place = True
        is_bounded = model.places.is_bounded
        for_rate_s = limiter.clock() - came if is_bounded else 0.0
        while True:
            began = limiter.clock()
            self._rates = model.rates(self._told, began)
            if self._rates.is_limited:
                await self._wait_for_slot(request)
                for_rate_s += limiter.clock() - began
            now = limiter.clock()
            if model.is_well(now):
                break
            await self._wait_until_well(left_s)
            held_s, now = limiter.clock() - now, limiter.clock()
            left_s -= held_s
            # Calls that were held back together must not begin together where they have a pace.
            if held_s <= BURST_S or left_s <= 0 or not model.is_well(now):
                break
            if not model.rates(self._told, now).is_limited:
                break
        return for_rate_s

    async def _wait_until_well(self, left_s: float) -> None:
        limiter, has_failed = self._limiter, self._failed_at is not None
        until = limiter.clock() + left_s
        await limiter.wait_until_well(
            self._model, until=until, has_failed=has_failed, gives_up=self._gives_up
        )

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> FailureVerdict | None:
        """Record the end of a call; return the verdict on its error, if any."""
        self.close()
        if self._booked is not None:
            self._correct(self._booked, request, reply)
        if error is not None and error.is_shed:
            # Calls in other lanes succeed.
            return FailureVerdict(cost=0.0)
        now = self._limiter.clock()
        if reply is not None:
            self._limiter.ratios.observe(
                self._model.name, request, reply, elapsed_s=now - self._began
            )
        seen = reply.limits if reply is not None else error.limits if error is not None else None
        if seen is not None:
            await self._model.pacer.saw(seen, began=self._began, is_answer=reply is not None)
        if error is not None and error.kind in SHARED:
            return await self._failed(error)
        if error is None or error.kind not in _SILENT:
            # Any answer, or a refusal of this prompt, shows that the model is up.
            model = self._model
            model.answered(self._began)
            model.places.succeeded(now - self._began, self._timeout_s, now=now)
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
        if self._gives_up and error.kind in GIVEN_UP:
            return FailureVerdict(cost=1.0)
        down_s = model.down_s(limiter.clock())
        if model.places.has_noise and error.kind is ErrorKind.RATE_LIMITED:
            # It says nothing of the calls of others, nor of the next one of this branch.
            is_pause = error.retry_after_s is None
        else:
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
        if self.has_place:
            self.has_place = False
            self._model.places.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    async def _wait_for_slot(self, request: LLMRequest) -> None:
        pacer, tokens = self._model.pacer, CallTokens()
        if self._booked is not None:
            pacer.unused(self._booked)
            self._booked = None
        if self._rates.counts_tokens:
            # Where they are not limited, nobody asks how many they are.
            tokens = self._booked = self._expected_tokens(request, pacer)
        await pacer.wait(self._rates_now, tokens, self._turn)

    def _expected_tokens(self, request: LLMRequest, pacer: Pacer) -> CallTokens:
        """Return the tokens to book: the prompt's, and ``max_tokens`` as most providers do."""
        prompt, answer = (
            self._limiter.ratios.expected_tokens(self._model.name, request),
            request.max_tokens,
        )
        if answer and not self._rates.output_tokens_per_minute:
            return CallTokens(prompt, answer)
        return CallTokens(prompt, pacer.likely_output(answer))

    def _correct(self, booked: CallTokens, request: LLMRequest, reply: LLMReply | None) -> None:
        self._booked = None
        if reply is None:
            return
        # One count of a billion would keep all calls of the fleet waiting for days.
        usage = self._limiter.ratios.believed(self._model.name, request, reply)
        if usage.input_tokens is None or usage.output_tokens is None:
            return
        actual = CallTokens(usage.input_tokens, usage.output_tokens)
        self._model.pacer.used(self._rates, booked, actual)
