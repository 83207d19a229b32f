"""Claims of branches: one worker at a time makes the calls of a branch, despite redeliveries."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

import msgspec

from fanout.core.errors import BrokerError, StoredDataError, UnknownRunError
from fanout.core.gathered import GatherRequest
from fanout.core.state import BeginRequest, CheckpointRequest
from workers.branch.claimed_gate import ClaimedGate
from workers.branch.delivery_ends import (
    NO_CALL,
    BranchGathered,
    BranchHandedBack,
    BranchHeld,
    require_call,
)
from workers.context.held_places import KEEPS_PLACE_S, RETURNS_S
from workers.context.inflight import CallStoppedError, StopReason
from workers.context.progress import ALIVE, SURE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.gathered import Joins, LaneRecord, Prepared
    from fanout.core.ids import BranchId
    from fanout.core.spec import RunSpec
    from fanout.core.state import BeginReply
    from fanout.llm.base import LLMRequest
    from fanout.llm.calls import CallGate
    from workers.branch.places import Place
    from workers.context.leads import Lead
    from workers.context.progress import TrackedBranch
    from workers.context.worker_context import WorkerContext

__all__ = ["Claim"]

_T = TypeVar("_T")


class Claim:
    """The right of one delivery of a branch to make its calls.

    Args:
        context: The context of this worker process.
        branch: The branch and its progress.
        token: The id of the delivery. The process that took the message knows it as well, and
            releases the claim if this process dies: see workers.context.branch_steps.
    """

    def __init__(self, context: WorkerContext, branch: TrackedBranch, token: str) -> None:
        self._context = context
        self._branch = branch
        self._branch_id = branch.branch_id
        self._token = token
        self._start: BeginRequest | None = None
        # The opening of the run in which it was begun: see RunRecord.opening.
        self.opening: float | None = None
        self._asked_at = 0.0
        self._sure_s = SURE * context.settings.visibility_timeout_s
        self._steps = context.branches
        self._step_s = self._steps.progress.step_s
        self._beats_for_s = ALIVE * context.settings.visibility_timeout_s
        # Hears of the calls, if others wait for them.
        self.lead: Lead | None = None
        # Whether the branch may have a checkpoint.
        self.has_checkpoint = False
        # Whether the branch was begun before.
        self.is_again = False
        self.place: Place | None = None
        # Whether its last failed call was refused, as there were too many.
        self.is_refused = False

    @property
    def branch_id(self) -> BranchId:
        """The branch."""
        return self._branch_id

    async def begin(self, *, is_alone: bool = False) -> BeginReply:
        """Claim the branch.

        Raises:
            BranchHandedBack: This worker stops.
        """
        if self._context.hand_back.has_begun:
            raise BranchHandedBack
        context, run_id, lasts_s = self._context, self._branch_id.run_id, 0
        spec = context.runs.specs.known(run_id) or await self._spec()
        # Without a spec there will be no call.
        if spec is not None:
            holds_back = context.models.limiter.holds_back
            lasts_s = context.call_plans.claim_s(run_id, spec, holds_back)
        self._start = BeginRequest(
            self._branch_id,
            token=self._token,
            holder=context.holder,
            beats_for_s=self._beats_for_s,
            lasts_s=lasts_s,
            is_alone=is_alone,
        )
        begun = await self._ask(self._start)
        self.opening = begun.opening
        return begun

    def _ask(self, start: BeginRequest) -> asyncio.Future[BeginReply]:
        self._asked_at = time.monotonic()
        self._branch.token = self._token
        self._moves("is begun")
        return self._steps.begin(start)

    def _moves(self, doing: str, *, for_s: float = 0.0) -> None:
        self._branch.moves(doing, within_s=for_s + self._step_s)

    async def _spec(self) -> RunSpec | None:
        try:
            return await self._context.runs.specs(self._branch_id.run_id)
        except (UnknownRunError, StoredDataError):
            return None

    @property
    def is_sure(self) -> bool:
        """Whether the last begin is so recent that no other worker can have the branch."""
        return self._start is None or time.monotonic() - self._asked_at < self._sure_s

    async def confirm(self) -> None:
        """Claim the branch again.

        A worker that was suspended or disconnected may have counted as dead, and another worker may
        have begun the branch.

        Raises:
            BranchOver: It has ended.
            BranchHeld: Another worker has it now.
            BranchParked: Another worker had it, and its run is paused.
            CallStoppedError: Its run was stopped, or its deadline passed.
        """
        if self._start is None:
            return
        begun = await self._ask(self._start)
        self.opening = begun.opening
        require_call(begun)
        if begun.verdict == "suspect":
            raise BranchHeld
        if begun.verdict in ("halted", "expired"):
            raise CallStoppedError(StopReason(begun.verdict))

    async def checkpoint(self, checkpoint: bytes) -> None:
        """Write how far the branch is, before its next call.

        Raises:
            BranchOver: It has ended.
            BranchHeld: This delivery has lost it.
            CallStoppedError: Its run was stopped or paused, its deadline passed, or this worker
                stops. The checkpoint is written.
        """
        if self._start is None:
            return
        self._moves("writes how far it is")
        self.has_checkpoint = True
        asked_at = time.monotonic()
        request = CheckpointRequest(
            self._branch_id,
            token=self._token,
            checkpoint=checkpoint,
            holder=self._start.holder,
            lasts_s=self._start.lasts_s,
        )
        begun = await _to_its_end(self._steps.checkpoint(request))
        self.waits()
        if begun.verdict in ("halted", "expired", "paused"):
            raise CallStoppedError(StopReason(begun.verdict))
        require_call(begun)
        self._asked_at = asked_at
        self._context.models.in_flight.require_room()

    async def gather(
        self, item: str, line: bytes, lane: LaneRecord, *, key: str = "", joins: Joins = "may"
    ) -> None:
        """Gather the next call for a batch; this ends the delivery, unless it may only follow another.

        Args:
            item: The id of the call.
            line: Its line.
            lane: What the calls of one batch have in common.
            key: The key of its answer; empty if it neither leads nor follows.
            joins: Whether it follows an identical call. See GatherRequest.

        Raises:
            BranchGathered: It is gathered, and the claim released.
            BranchOver: It has ended.
            BranchHeld: This delivery has lost it.
            CallStoppedError: Its run was stopped or paused, or its deadline passed.
        """
        self._moves("is gathered for a batch")
        reply = await _to_its_end(
            self._steps.gather(
                GatherRequest(
                    branch_id=self._branch_id,
                    token=self._token,
                    item=item,
                    line=line,
                    lane_id=lane.lane_id,
                    lane=msgspec.json.encode(lane),
                    key=key,
                    joins=joins,
                )
            )
        )
        self.waits()
        if reply.verdict == "alone":
            return
        if reply.verdict in ("gathered", "joined"):
            raise BranchGathered(reply.settled, follows=reply.verdict == "joined")
        if reply.verdict in ("halted", "expired", "paused"):
            raise CallStoppedError(StopReason(reply.verdict))
        raise NO_CALL[reply.verdict]

    async def prepared(self) -> Prepared:
        """Return what batches have for the branch."""
        return await self._steps.prepared(self._branch_id)

    async def last_checkpoint(self) -> bytes | None:
        """Return the checkpoint that an earlier delivery wrote, or None."""
        self.has_checkpoint = True
        return await self._steps.last_checkpoint(self._branch_id)

    async def succeeded(self) -> int | None:
        """Return the number of succeeded branches of the stage, on all workers; None if unknown."""
        try:
            store = self._context.connections.fail_fast_store
            record = await asyncio.to_thread(store.stage, self._branch_id.stage_id)
        except (BrokerError, UnknownRunError):
            return None
        return record.succeeded

    async def release(self) -> None:
        """Release the claim; the begin does not count unless the branch is stuck."""
        if self._start is None:
            return
        store, counts = self._context.connections.store, self._branch.is_stuck
        self._moves("is given back")
        await asyncio.to_thread(
            store.release_claim, self._branch_id, token=self._token, counts=counts
        )

    def gate(
        self,
        gate: CallGate,
        timeout_s: float,
        *,
        compares: bool = True,
        begins: Callable[[LLMRequest], bool] | None = None,
    ) -> CallGate:
        """Return a gate that lets a call through while the branch is claimed.

        Args:
            gate: The gate that the call passes as well.
            timeout_s: The timeout of the call, in seconds.
            compares: Whether the successes of the stage, on all workers, are those of this model.
            begins: Enters the gate if that takes no wait, and returns whether it did; None: it may wait.
        """
        return ClaimedGate(self, gate, timeout_s, compares=compares, begins=begins)

    def waits(self) -> None:
        """Record that the branch waits on purpose, for an unlimited time."""
        self._branch.moves("waits for its next call")

    def waits_for_answer(self) -> None:
        """Record that the branch waits for the calls of another one, and leave its place meanwhile."""
        self._branch.moves("waits for the answer to an identical branch")
        if self.place is not None:
            self.place.leave()

    @property
    def is_away(self) -> bool:
        """Whether the branch has left its place until its next call."""
        return self.place is not None and self.place.is_away

    @property
    def has_place(self) -> bool:
        """Whether a call of the branch may begin without a wait for a place."""
        return self.place is None or self.place.is_held

    def leaves_place(self, *, in_outage: bool = False) -> bool:
        """Leave the place until the next call of the branch, which has to wait long for it.

        See HeldPlace.
        """
        if self.place is None:
            return True
        if in_outage and not self.place.is_wanted:
            return False
        self.place.leave_for_now()
        return True

    async def rests(self, seconds: float) -> None:
        """Wait before the next call of the branch. Raises CallStoppedError if this worker stops.

        Only one whose call was refused leaves its place: while a provider fails, others in its place
        would fail, too.
        """
        if self.is_refused and seconds > KEEPS_PLACE_S:
            self.leaves_place()
        await self._context.models.in_flight.wait(seconds)

    @property
    def has_left_place(self) -> bool:
        """Whether the branch has left its place as it waited for the answer of another one."""
        place = self.place
        return place is not None and not place.is_held and place.is_left

    async def takes_place(self, *, has_called: bool = True) -> None:
        """Wait for the place again that the branch has left.

        Raises:
            BranchHandedBack: This worker stops, or has no place soon for a branch that has not called.
        """
        if self.place is not None:
            await self.place.enter(None if has_called else RETURNS_S)

    def calls(self, timeout_s: float) -> None:
        """Record that the branch calls the model, for ``timeout_s`` seconds at most."""
        self._branch.moves("calls", within_s=timeout_s + self._step_s)
        if self.lead is not None:
            self.lead.calls()

    def calls_function(self, timeout_s: float) -> None:
        """Record that the branch calls a function of the user, for ``timeout_s`` seconds at most."""
        self._moves("calls a function", for_s=timeout_s)

    def called(self, *, has_reply: bool) -> None:
        """Record that a call has ended."""
        if self.lead is None:
            return
        if has_reply:
            self.lead.answered()
        else:
            self.lead.ends()


async def _to_its_end(step: Awaitable[_T]) -> _T:
    """Await a step even if the caller is cancelled: what was paid for must not be lost then."""
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
