"""The gate of a branch's calls: each begins only while this worker has the branch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.errors import LLMError
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.calls import CallGate
    from fanout.policy.outages import FailureVerdict
    from workers.branch.claims import Claim

__all__ = ["ClaimedGate"]

_log = logging.getLogger(__name__)


class ClaimedGate:
    """See ``Claim.gate``."""

    def __init__(
        self,
        claim: Claim,
        gate: CallGate,
        timeout_s: float,
        *,
        compares: bool,
        begins: Callable[[LLMRequest], bool] | None = None,
    ) -> None:
        self._claim = claim
        self._begins = begins
        self._compares = compares
        self._gate = gate
        self._timeout_s = timeout_s
        # Succeeded branches of the stage at the last failure of which this worker could not tell whether
        # it is common.
        self._succeeded: int | None = None

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:
        """Wait until the call may begin, and check that this delivery still has the branch."""
        claim, for_rate_s = self._claim, 0.0
        if claim.has_left_place:
            claim.waits()
            await claim.takes_place()
        if self._begins is None or not self._begins(request):
            claim.waits()
            for_rate_s = await self._gate.enter(request, left_s=left_s)
        if not claim.is_sure:
            await claim.confirm()
        claim.calls(self._timeout_s)
        return for_rate_s

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> FailureVerdict | None:
        """See CallGate."""
        if self._claim.lead is not None:
            self._claim.called(has_reply=reply is not None)
        if error is not None:
            # It may have to wait before its next call.
            self._claim.waits()
            self._claim.is_refused = error.kind is ErrorKind.RATE_LIMITED
        try:
            verdict = await self._gate.leave(request, reply, error)
        except Exception as fault:
            if error is not None:
                raise
            # Keep the answer, even if it cannot be counted.
            _log.warning("a call is not counted: %s", type(fault).__name__)
            return None
        if verdict is None or not verdict.is_blind or not self._compares:
            return verdict
        before, self._succeeded = self._succeeded, await self._claim.succeeded()
        others_succeeded = None not in {before, self._succeeded} and before != self._succeeded
        return verdict.despite_success() if others_succeeded else verdict
