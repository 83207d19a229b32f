"""Calls of the functions of a user that a branch makes between those of its models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import ModelError
from fanout.core.records import NO_CALL
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import complete_with_retries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.errors import LLMError
    from fanout.core.spec import RunSpec
    from fanout.llm.calls import CallResult
    from fanout.policy.outages import FailureVerdict
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext

__all__ = ["call_function"]


async def call_function(
    claim: Claim,
    context: WorkerContext,
    spec: RunSpec,
    path: str,
    ask: Callable[[CallableLLM], Awaitable[str]],
    *,
    instead: str,
) -> CallResult:
    """Return what came of the calls of a function, which is called again as a model is.

    Args:
        claim: The right to make the calls of the branch.
        context: The context of this worker process.
        spec: The job.
        path: The function.
        ask: Calls it once, and returns what it has found as a text. It raises LLMError.
        instead: What is wrong with a model in its place, for the error.

    Raises:
        BranchHandedBack: This worker stops.
        CallStoppedError: The run was stopped, or this worker stops.
        ModelError: This worker cannot use it, or it is a model.
    """
    models = context.models
    llm = models.made.get(path) or await models.get(path)
    if not isinstance(llm, CallableLLM):
        raise ModelError(f"{path} is a model, not a function{instead}")
    # A branch that has got the answer of an identical one has none.
    await claim.takes_place()
    return await models.in_flight.call(
        claim.branch_id.run_id,
        complete_with_retries(
            _Function(llm, ask),
            LLMRequest(prompt=""),
            policy=spec.retries,
            timeout_s=spec.timeout_s,
            gate=_Gate(claim, spec.timeout_s),
            max_output_kb=context.settings.max_output_kb,
            sleep=models.in_flight.wait,
        ),
        has_deadline=True,
    )


class _Gate:
    """Begins each call only while this worker has the branch, and tells how long it may take."""

    def __init__(self, claim: Claim, timeout_s: float) -> None:
        self._claim = claim
        self._timeout_s = timeout_s

    async def enter(self, _request: LLMRequest, *, left_s: float) -> float:  # noqa: ARG002
        """See CallGate."""
        if not self._claim.is_sure:
            await self._claim.confirm()
        self._claim.calls_function(self._timeout_s)
        return 0.0

    async def leave(
        self, _request: LLMRequest, _reply: LLMReply | None, _error: LLMError | None
    ) -> FailureVerdict | None:
        """See CallGate."""
        self._claim.waits()
        return None


class _Function:
    """A function of the user as a model that is asked one question."""

    def __init__(self, llm: CallableLLM, ask: Callable[[CallableLLM], Awaitable[str]]) -> None:
        self._llm = llm
        self._ask = ask

    async def check(self) -> None:
        """Do nothing: only a call shows whether a function works."""

    async def complete(self, _request: LLMRequest) -> LLMReply:
        """Return what the function returns. Raises LLMError."""
        return LLMReply(text=await self._ask(self._llm), usage=NO_CALL)

    async def aclose(self) -> None:
        """Do nothing: the function is closed with the worker."""
