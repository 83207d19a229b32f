"""Which worker makes the calls of a branch: one at a time, whatever comes to several."""

from __future__ import annotations

import asyncio
import logging
import time
from math import ceil
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError, UnknownRunError
from fanout.stores import BeginRequest
from workers.context.heartbeats import ALIVE, SURE
from workers.context.inflight import CallStoppedError, StopReason

if TYPE_CHECKING:
    from fanout.core.errors import LLMError
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.calls import CallGate
    from fanout.policy.outages import FailureVerdict
    from fanout.stores import BeginReply
    from workers.context.progress import TrackedBranch
    from workers.context.worker_context import WorkerContext

__all__ = [
    "BranchGone",
    "BranchHandedBack",
    "BranchHeld",
    "BranchOver",
    "BranchParked",
    "Claim",
    "require_call",
]

# What a branch may take beyond its calls and their waits, before it is not held any more; and what
# it may wait for a rate limit.
_HOLD_MARGIN_S = 60
_LONGEST_QUEUE_S = 24 * 3600


_log = logging.getLogger(__name__)


class BranchParked(Exception):  # noqa: N818 - it is no error
    """The run is paused: the branch is remembered, and published again when the run goes on."""


class BranchHeld(Exception):  # noqa: N818 - it is no error
    """Another worker, which is alive, makes the call: this is a copy of its message."""


class BranchHandedBack(Exception):  # noqa: N818 - it is no error
    """The worker stops: the branch goes back to the queue, as if it had not been begun."""


class BranchOver(Exception):  # noqa: N818 - it is no error
    """The branch has ended elsewhere: there is nothing to write down."""


class BranchGone(BranchOver):
    """There is no such run: nobody waits for the branch, and nothing must be counted."""


def require_call(begun: BeginReply) -> None:
    """Raise where this delivery has neither a call to make nor an outcome to write.

    Raises:
        BranchOver: The branch has ended.
        BranchGone: Its run is gone.
        BranchHeld: Another worker has it.
        BranchParked: Its run is paused.
    """
    match begun.verdict:
        case "done":
            raise BranchOver
        case "gone":
            raise BranchGone
        case "held":
            raise BranchHeld
        case "paused":
            raise BranchParked


class Claim:
    """That one delivery of a branch may make its calls.

    Args:
        context: The context of this worker process.
        standing: Which branch it is, and where it stands.
        feed: As the branch was published with.
        token: Names the delivery. Whoever took its message knows it as well, and gives the claim up
            where this process dies: see workers.context.claim_releases.
    """

    def __init__(
        self, context: WorkerContext, standing: TrackedBranch, feed: int, token: str
    ) -> None:
        self._context = context
        self._standing = standing
        self._branch_id = standing.branch_id
        self._feed = feed
        self._token = token
        self._start: BeginRequest | None = None
        # Of its run, as soon as it is known.
        self.spec: RunSpec | None = None
        self._asked_at = 0.0
        self._sure_s = SURE * context.settings.visibility_timeout_s
        self._steps = context.branches
        self._step_s = self._steps.progress.step_s
        self._beats_for_s = ALIVE * context.settings.visibility_timeout_s

    async def begin(self, *, is_alone: bool = False) -> BeginReply:
        """Ask for the branch.

        Raises:
            BranchHandedBack: This worker stops.
        """
        if self._context.hand_back.has_begun:
            raise BranchHandedBack
        self._start = BeginRequest(
            self._branch_id,
            token=self._token,
            holder=self._context.holder,
            beats_for_s=self._beats_for_s,
            lasts_s=await self._lasts_s(),
            feed=self._feed,
            is_alone=is_alone,
        )
        return await self._ask(self._start)

    async def _ask(self, start: BeginRequest) -> BeginReply:
        self._asked_at = time.monotonic()
        self._standing.token = self._token
        self._moves("is begun")
        return await self._steps.begin(start)

    def _moves(self, doing: str, *, for_s: float = 0.0) -> None:
        self._standing.moves(doing, within_s=for_s + self._step_s)

    async def _lasts_s(self) -> int:
        try:
            spec = self.spec = await self._context.runs.specs(self._branch_id.run_id)
        except UnknownRunError:
            return 0
        waits_s = _LONGEST_QUEUE_S if spec.rate.rates.is_limited else 0.0
        # An outage may last so long before the first call, and the calls may take as long.
        longest_s = 2 * (spec.retries.max_elapsed_s + spec.timeout_s)
        return ceil(longest_s + waits_s) + _HOLD_MARGIN_S

    @property
    def is_sure(self) -> bool:
        """Whether the branch was asked for so lately that nobody else has it."""
        return self._start is None or time.monotonic() - self._asked_at < self._sure_s

    async def confirm(self) -> None:
        """Ask again.

        A worker that was stopped, or cut off, may have been taken for dead meanwhile, and another
        one has begun the branch.

        Raises:
            BranchOver: It has ended.
            BranchHeld: Another worker has it now.
            BranchParked: Another one had it, and its run is paused.
            CallStoppedError: Its run was stopped, or its deadline passed.
        """
        if self._start is None:
            return
        begun = await self._ask(self._start)
        require_call(begun)
        match begun.verdict:
            case "suspect":
                raise BranchHeld
            case "halted":
                raise CallStoppedError(StopReason.HALTED)
            case "expired":
                raise CallStoppedError(StopReason.EXPIRED)

    async def succeeded(self) -> int | None:
        """Return how many branches of the stage have, on any worker; None where nobody answers."""
        try:
            store = self._context.connections.fail_fast_store
            record = await asyncio.to_thread(store.stage, self._branch_id.stage_id)
        except (BrokerError, UnknownRunError):
            return None
        return record.succeeded

    async def give_back(self) -> None:
        """Take the begin back."""
        if self._start is None:
            return
        store, counts = self._context.connections.store, self._standing.is_stuck
        self._moves("is given back")
        await asyncio.to_thread(store.unbegin, self._branch_id, token=self._token, counts=counts)

    def gate(self, gate: CallGate, timeout_s: float) -> CallGate:
        """Return a gate that lets a call through while the branch is claimed.

        Args:
            gate: What it goes through besides.
            timeout_s: Seconds that the call may take.
        """
        return _ClaimedGate(self, gate, timeout_s)

    def waits(self) -> None:
        """Note that the branch waits because it was asked to: for as long as that lasts."""
        self._standing.moves("waits for its next call")

    def calls(self, timeout_s: float) -> None:
        """Note that the branch calls, which ends by itself."""
        self._moves("calls", for_s=timeout_s)


class _ClaimedGate:
    """See ``Claim.gate``."""

    def __init__(self, claim: Claim, gate: CallGate, timeout_s: float) -> None:
        self._claim = claim
        self._gate = gate
        self._timeout_s = timeout_s
        # Branches of the run that had succeeded when this one failed, and this worker knew of none.
        self._succeeded: int | None = None

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:
        """Wait until the call may begin, and the branch is this delivery's still."""
        self._claim.waits()
        for_rate_s = await self._gate.enter(request, left_s=left_s)
        if not self._claim.is_sure:
            await self._claim.confirm()
        self._claim.calls(self._timeout_s)
        return for_rate_s

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> FailureVerdict | None:
        """See CallGate."""
        if error is not None:
            # It may have to wait before its next call.
            self._claim.waits()
        try:
            verdict = await self._gate.leave(request, reply, error)
        except Exception as fault:
            if error is not None:
                raise
            # An answer is kept, whatever becomes of the count of it.
            _log.warning("a call is not counted: %s", type(fault).__name__)
            return None
        if verdict is None or not verdict.is_blind:
            return verdict
        before, self._succeeded = self._succeeded, await self._claim.succeeded()
        others_succeeded = None not in {before, self._succeeded} and before != self._succeeded
        return verdict.despite_success() if others_succeeded else verdict
