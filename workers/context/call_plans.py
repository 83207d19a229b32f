"""What the calls of a stage to one model need: decided once, for all branches of this worker."""

from __future__ import annotations

import time
from collections import OrderedDict
from math import ceil
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fanout.core.model_names import READER_MODEL
from fanout.llm.answers import validate_json
from fanout.llm.base import identity_of
from fanout.llm.calls import complete_with_retries
from fanout.llm.prices import price_of
from fanout.llm.registry import known_context_tokens
from workers.context.fair_line import Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from typing import Any

    from fanout.core.ids import StageId
    from fanout.core.rate_limits import Rates
    from fanout.core.settings import Settings
    from fanout.core.spec import RunSpec
    from fanout.core.spec_fields import RetrySpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.llm.calls import CallAttempt, CallGate, CallResult
    from fanout.policy.pricing import Price
    from fanout.policy.progress import CallsSoFar
    from workers.context.budgets import BudgetPlan, Budgets

__all__ = ["CallPlan", "CallPlans"]

_MOST = 256
# Prices may change at each full half hour.
_LASTS_S = 60.0
# How long a claim lasts beyond the calls of its branch and their waits; and the longest wait for a
# rate limit or a budget.
_HOLD_MARGIN_S = 60
_LONGEST_QUEUE_S = 24 * 3600

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class CallPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all calls of a stage to one model.

    Attributes:
        spec: The run's spec.
        model: The model's string.
        llm: The model.
        window_tokens: The model's context window; None if it is unknown.
        validate: Checks an answer without a shape; None for any text.
        max_output_kb: The longest answer in kilobytes; None is any length.
        price: The price of the model; None if it is unknown.
        identity: What names the model for the answer cache; None if its answers are not kept.
        rates: The rates that the job tells.
        turn: The run, where the calls of several wait for the model.
        budget: The budgets that the calls have to fit into; None for none.
        wants_json: Whether an answer without a shape must be JSON.
        until: Monotonic seconds until which it holds.
    """

    spec: RunSpec
    model: str
    llm: LLM
    window_tokens: int | None
    validate: Callable[[str], str] | None
    max_output_kb: int | None
    price: Price | None
    identity: str | None
    rates: Rates
    turn: Turn
    budget: BudgetPlan | None
    wants_json: bool
    until: float

    def complete(
        self,
        llm: LLM,
        request: LLMRequest,
        *,
        policy: RetrySpec,
        gate: CallGate,
        observe: Callable[[CallAttempt], None],
        so_far: CallsSoFar | None,
        keep: Callable[[CallsSoFar], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]],
    ) -> Coroutine[Any, Any, CallResult]:
        """Return ``complete_with_retries`` as the run wants it; see there."""
        spec = self.spec
        return complete_with_retries(
            llm,
            request,
            policy=policy,
            timeout_s=spec.timeout_s,
            max_reasks=spec.max_reasks,
            keeps_cut=spec.on_truncated == "keep",
            window_tokens=self.window_tokens,
            validate=self.validate,
            gate=gate,
            max_output_kb=self.max_output_kb,
            observe=observe,
            so_far=so_far,
            keep=keep,
            price=self.price,
            sleep=sleep,
        )


class CallPlans:
    """The plans of a worker process.

    Args:
        settings: The settings of this worker.
        budgets: The budgets of runs and of days.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        budgets: Budgets,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._budgets = budgets
        self._clock = clock
        self._plans: OrderedDict[tuple[StageId, str], CallPlan] = OrderedDict()
        self._claims: OrderedDict[str, _ClaimTime] = OrderedDict()

    def plan(self, stage_id: StageId, model: str, llm: LLM, spec: RunSpec) -> CallPlan:
        """Return the plan of the calls of a stage to a model.

        Raises:
            SettingsError: The file of ``FANOUT_PRICES`` cannot be used.
        """
        key, now = (stage_id, model), self._clock()
        plan = self._plans.get(key)
        if plan is None or plan.llm is not llm or plan.spec is not spec or now >= plan.until:
            plan = self._made(stage_id, model, llm, spec, until=now + _LASTS_S)
            _keep(self._plans, key, plan)
        return plan

    def _made(
        self, stage_id: StageId, model: str, llm: LLM, spec: RunSpec, *, until: float
    ) -> CallPlan:
        wants_json = stage_id.stage == 0 and spec.output_format == "json"
        # What the job says of its model need not hold for another one.
        own_models = spec.reduce_models if stage_id.stage else (spec.model,)
        own_window = spec.context_tokens if model in own_models else None
        return CallPlan(
            spec=spec,
            model=model,
            llm=llm,
            window_tokens=own_window or known_context_tokens(model),
            validate=validate_json if wants_json else None,
            # A document may be larger than an answer.
            max_output_kb=None if model == READER_MODEL else self._settings.max_output_kb,
            price=price_of(model, spec.price),
            identity=identity_of(llm) if spec.cache else None,
            rates=spec.rate.rates,
            turn=Turn(stage_id.run_id, spec.priority),
            budget=self._budgets.plan(stage_id, spec, model, llm),
            wants_json=wants_json,
            until=until,
        )

    def claim_s(
        self, run_id: str, spec: RunSpec, holds_back: Callable[[Iterable[str]], bool]
    ) -> int:
        """Return how many seconds the claim of a branch lasts at most.

        Args:
            run_id: The run.
            spec: Its spec.
            holds_back: Returns whether calls to one of some models may wait long for learnt limits.
        """
        known = self._claims.get(run_id)
        if known is None or known.spec is not spec:
            known = _ClaimTime(
                spec=spec,
                calls_s=_longest_s(spec),
                may_queue=spec.rate.rates.is_limited or self._budgets.applies(spec),
                models=tuple({spec.model, *spec.all_models}),
            )
            _keep(self._claims, run_id, known)
        may_queue = known.may_queue or holds_back(known.models)
        return known.calls_s + may_queue * _LONGEST_QUEUE_S


class _ClaimTime(msgspec.Struct, frozen=True, kw_only=True):
    """How long the branches of a run may take, without waits for a limit."""

    spec: RunSpec
    calls_s: int
    may_queue: bool
    models: tuple[str, ...]


def _longest_s(spec: RunSpec) -> int:
    # An outage may last this long before the first call, and the calls may take as long again.
    longest_s = 2 * (spec.retries.max_elapsed_s + spec.timeout_s)
    # Each model that is asked in turn may make one more call.
    longest_s += len(spec.fallback) * spec.timeout_s
    # It may first wait for the calls of an identical branch.
    longest_s += spec.retries.max_elapsed_s if spec.cache else 0.0
    return ceil(longest_s) + _HOLD_MARGIN_S


def _keep(kept: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    kept[key] = value
    if len(kept) > _MOST:
        kept.popitem(last=False)
