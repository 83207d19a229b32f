"""Asks models for the answer of a branch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fanout.core.model_names import READER_MODEL
from fanout.llm.answers import validate_json
from fanout.llm.calls import complete_with_retries
from fanout.llm.registry import known_context_tokens

if TYPE_CHECKING:
    from fanout.core.ids import StageId
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.llm.calls import CallResult
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["Asking"]


class Asking:
    """Asks models for the answer of one branch, any number of times.

    Args:
        claim: The right to make the calls.
        context: The context of this worker process.
        stage_id: The stage of the branch.
        spec: The run's spec.
        calls: Records each call.
    """

    def __init__(
        self, claim: Claim, context: WorkerContext, stage_id: StageId, spec: RunSpec, calls: Calls
    ) -> None:
        self._claim = claim
        self._context = context
        self._stage_id = stage_id
        self._spec = spec
        self._calls = calls

    async def answer(self, model: str, request: LLMRequest) -> CallResult:
        """Return the answer of a model, or why there is none.

        Raises:
            CallStoppedError: The calls were ended early.
            ModelError: This worker cannot use the model.
        """
        result = await self._ask(model, request)
        self._calls.stop_after = result.stop_after
        return result

    async def _ask(self, model: str, request: LLMRequest) -> CallResult:
        spec, models, is_branch = self._spec, self._context.models, self._stage_id.stage == 0
        self._calls.asks(model, request)
        llm = models.made.get(model) or await self._made(model)
        wants_json = is_branch and spec.output_format == "json"
        return await models.in_flight.call(
            self._stage_id.run_id,
            complete_with_retries(
                llm,
                request,
                policy=spec.retries,
                timeout_s=spec.timeout_s,
                max_reasks=spec.max_reasks,
                keeps_cut=spec.on_truncated == "keep",
                window_tokens=spec.context_tokens or known_context_tokens(model),
                validate=validate_json if wants_json else None,
                gate=self._claim.gate(models.limiter.gate(model, spec.rate.rates), spec.timeout_s),
                # A document may be larger than an answer.
                max_output_kb=(
                    None if model == READER_MODEL else self._context.settings.max_output_kb
                ),
                observe=partial(self._calls.ended, model),
                sleep=models.in_flight.wait,
            ),
            has_deadline=is_branch,
        )

    async def _made(self, model: str) -> LLM:
        # Loading a model may take long; the calls then report progress.
        self._claim.waits()
        return await self._context.models.get(model)
