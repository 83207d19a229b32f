"""Processes one branch: claims it, calls the model and writes the outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.errors import (
    FanoutError,
    LostDataError,
    StorageError,
    StoredDataError,
    UnknownRunError,
)
from fanout.core.exhaustion import is_exhausted
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.core.state import RecordRequest
from fanout.policy.admission import is_draining, is_gathered_up
from fanout.policy.answers_so_far import AnswersSoFar
from fanout.policy.steps import at_step
from fanout.runs.enqueue import fleet_window
from fanout.system.logs import RateLimitFilter, about
from workers.branch.ahead import has_no_siblings, wait_for_sibling
from workers.branch.answering import LOST, answer
from workers.branch.claims import Claim
from workers.branch.delivery_ends import (
    BranchGathered,
    BranchGone,
    BranchHandedBack,
    BranchHeld,
    BranchOver,
    require_call,
)
from workers.branch.late_results import count_unused
from workers.branch.outcomes import presentable, unanswered
from workers.branch.places import Place
from workers.context.batches import until_ended
from workers.context.inflight import BEFORE_CALL, StopReason, run_ending
from workers.telemetry.reports import Calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.state import BeginReply
    from workers.context.progress import TrackedBranch
    from workers.context.worker_context import WorkerContext

__all__ = ["BranchFailed", "process_branch", "run_branch"]

# How long a branch without its input keeps its place, so that other workers come first.
_MISSING_INPUT_S = 1.0
_INPUT_LOG_S = 30.0

# How long a branch without a permit keeps its thread or process, which other runs could use.
_PERMIT_PATIENCE_S = 0.5

_log = logging.getLogger(__name__)
_input_log = logging.getLogger(f"{__name__}.input")
_input_log.addFilter(RateLimitFilter(_INPUT_LOG_S))


class BranchFailed(Exception):  # noqa: N818 - Flower shows the name: it should read as a state
    """A branch ended with an error; its outcome, written before this is raised, has the details.

    It carries the kind alone, because logs and monitoring pages show it.
    """


def run_branch(context: WorkerContext, branch_id: BranchId, *, token: str) -> None:
    """Process a branch and block this thread until it ends: see ``process_branch``."""
    progress = context.branches.progress
    branch = progress.begin(branch_id)
    try:
        context.loop.wait_for(
            process_branch(context, branch, token=token, patience_s=_PERMIT_PATIENCE_S)
        )
    finally:
        progress.end(branch)


async def process_branch(
    context: WorkerContext,
    branch: TrackedBranch,
    *,
    token: str,
    on_admitted: Callable[[], None] = lambda: None,
    patience_s: float | None = None,
) -> None:
    """Process a branch.

    The branch holds its place until its call ends: another branch may call while it is written.

    Args:
        context: The context of this worker process.
        branch: The branch and its progress.
        token: The id of its delivery.
        on_admitted: Called when it has a place for its call.
        patience_s: Seconds that it waits for a permit; None for any time.

    Raises:
        BranchFailed: It ended with an error, so that Celery counts the task as failed.
        BranchParked: Its run is paused.
        BranchHeld: Another worker has it, or a retry has published it again.
        BranchHandedBack: This worker stops, has left the branch to others, or lacks a resource.
    """
    branch.task = asyncio.current_task()
    delivery = _Delivery(context, branch, token)
    try:
        place = Place(context, branch.branch_id.run_id, on_admitted, patience_s)
        # A thread or process is not to wait for another one.
        if patience_s or has_no_siblings(context, branch.branch_id):
            ended = await delivery.in_place(place)
        else:
            with await wait_for_sibling(context, branch) as delivery.claim.lead:
                ended = await delivery.in_place(place)
        if ended is not None:
            await delivery.end(*ended)
    except BaseException as fault:
        if not _is_of_worker(fault):
            raise
        raise BranchHandedBack(is_released=await delivery.is_released()) from fault


def _is_of_worker(fault: BaseException) -> bool:
    """Return whether a fault is the worker's, not the branch's."""
    return isinstance(fault, asyncio.CancelledError) or is_exhausted(fault)


class _Delivery:
    """One delivery of a branch, with its claim."""

    def __init__(self, context: WorkerContext, branch: TrackedBranch, token: str) -> None:
        self._context = context
        self._branch = branch
        self._id = branch.branch_id
        self._shard_id = self._id.shard_id
        self.claim = Claim(context, branch, token)
        # Number of branches in its shard; known when there is an outcome.
        self._size = 0
        self.begin = self.claim.begin

    async def in_place(self, place: Place) -> tuple[Outcome, Calls] | None:
        """Make the call in a place; return what ``call`` does, or None if the outcome is written."""
        if not place.begins():
            await place.begin()
        # The branch leaves it while it waits for another one.
        self.claim.place = place
        try:
            begun = await self.begin()
            if begun.verdict != "suspect":
                return await self.call(begun)
            self._branch.moves("waits to be alone")
            # Run suspects one at a time and count the begin only now: if the worker dies again, this
            # branch is the cause.
            async with self._context.branches.alone:
                ended = await self.call(await self.begin(is_alone=True))
                if ended is not None:
                    await self.end(*ended)
                return None
        finally:
            place.leave()

    async def call(self, begun: BeginReply) -> tuple[Outcome, Calls] | None:
        """Make the call; return the outcome and calls, or None if there is nothing to write."""
        calls = Calls(time.time())
        try:
            require_call(begun)
            outcome = presentable(await self._outcome(begun, calls))
        except BranchGathered as gathered:
            if is_gathered_up(settled=gathered.settled, size=self._size):
                await asyncio.to_thread(_drain, self._context, self._shard_id)
            raise
        except BranchGone:
            raise
        except BranchOver:
            return None
        is_batched = calls.is_batched and outcome.attempts > 0
        lane = "batch" if is_batched and not outcome.ok else outcome.lane
        return structs.replace(outcome, ended_at=time.time(), lane=lane), calls

    async def is_released(self) -> bool:
        """Release the claim; return whether that is done, or is left to a later attempt."""
        try:
            await self.claim.release()
        except BaseException as fault:
            if not _is_of_worker(fault):
                raise
            return False
        return True

    async def end(self, outcome: Outcome, calls: Calls) -> None:
        """Write the outcome."""
        self._branch.moves("is written down", within_s=self._context.branches.progress.step_s)
        await self._write(outcome, calls)
        if outcome.kind is not None:
            raise BranchFailed(outcome.kind.value)

    async def _write(self, outcome: Outcome, calls: Calls) -> None:
        context, shard_id = self._context, self._shard_id
        if calls.stop_after and not outcome.ok:
            await asyncio.to_thread(self._stop_if_common, outcome, calls)
        usage_of = outcome.usage_of
        if calls.is_by_model and not usage_of:
            called = calls.models or list(calls.earlier.usage_of)
            usage_of = dict.fromkeys(called[:1], outcome.usage)
        recorded = await context.branches.record(
            RecordRequest(
                self._id,
                outcome=outcome,
                has_checkpoint=self.claim.has_checkpoint,
                usage_of=usage_of,
                opening=self.claim.opening,
            )
        )
        for settling in calls.settling:
            if not settling.done():
                await until_ended(settling)
        if recorded.is_late:
            # The retry has published the branch again: this message is a copy.
            raise BranchHeld
        if not recorded.first:
            # It had an outcome, or its run was deleted during the call: then this raises
            # UnknownRunError, and no chord counts the branch.
            await asyncio.to_thread(context.connections.store.run, shard_id.run_id)
        if recorded.first and is_draining(ended=recorded.ended, size=self._size):
            await asyncio.to_thread(_drain, context, shard_id)
        if recorded.first:
            context.reports.branch_ended(self._id, outcome, calls)

    def _stop_if_common(self, outcome: Outcome, calls: Calls) -> None:
        context, stage_id, opening = self._context, self._id.stage_id, self.claim.opening
        run = context.connections.store.run(stage_id.run_id)
        if run.opening != opening:
            # It failed before a retry, which may have put right what was wrong.
            return
        error = context.models.common_failures.reason(run, stage_id, outcome, calls.stop_after)
        if error is not None:
            context.connections.store.halt(
                run.run_id, RunStatus.FAILED, error=error, opening=opening
            )

    async def _outcome(self, begun: BeginReply, calls: Calls) -> Outcome:
        known = self._context.runs.indices
        indices = known.ready(self._shard_id) or await known(self._shard_id)
        index, self._size = indices[self._id.position], len(indices)
        if begun.deliveries != 1:
            self.claim.is_again = True
            await self._restore(calls)
        if begun.verdict in ("halted", "expired"):
            await count_unused(self.claim, self._context, calls)
            has_called = calls.attempts or calls.earlier.attempts
            when = "before this branch had ended" if has_called else BEFORE_CALL
            kind, message = run_ending(StopReason(begun.verdict), when=when)
            return unanswered(index, kind, await self._at_step(message, calls), calls)
        if begun.deliveries > self._context.settings.max_deliveries:
            await count_unused(self.claim, self._context, calls)
            times = begun.deliveries - 1
            message = f"the worker died {times} times while it ran this branch"
            message = await self._at_step(message, calls, is_begun=True)
            return unanswered(index, ErrorKind.POISONED, message, calls)
        try:
            return await answer(self.claim, self._context, self._shard_id, index, calls)
        except BranchHandedBack:
            await self.claim.release()
            raise
        except (LostDataError, StorageError) as error:
            is_lost = self._context.storage.is_lost
            if isinstance(error, LostDataError) and await asyncio.to_thread(
                is_lost, self._shard_id
            ):
                return unanswered(index, ErrorKind.LOST, LOST, calls)
            await self._leave_to_others(error)
            raise BranchHandedBack from None

    async def _restore(self, calls: Calls) -> None:
        """Find what earlier deliveries of a branch of several calls have paid for."""
        try:
            spec = await self._context.runs.specs(self._id.run_id)
            calls.is_by_model = spec.is_by_model
            calls.so_far = AnswersSoFar.of(await self.claim.last_checkpoint())
            calls.earlier = calls.so_far.with_calls()
        except UnknownRunError:
            # The call finds it out.
            return
        except StoredDataError as error:
            _log.warning("a branch begins anew: %s", error, extra=about(self._id))

    async def _at_step(self, message: str, calls: Calls, *, is_begun: bool = False) -> str:
        """Return why the branch ends, with the step that it was at, if that is known."""
        done = calls.so_far.steps
        if not done and not is_begun:
            return message
        try:
            spec = await self._context.runs.specs(self._id.run_id)
        except (UnknownRunError, StoredDataError):
            return message
        return at_step(message, spec.steps, done, is_begun=is_begun)

    async def _leave_to_others(self, error: Exception) -> None:
        """Give back a branch whose input this worker cannot read: another worker may."""
        self._branch.moves("waits for its input")
        _input_log.warning("given back, as its input is not here: %s", error)
        await self.claim.release()
        # Do not take it again at once.
        await asyncio.sleep(_MISSING_INPUT_S)


def _drain(context: WorkerContext, shard_id: ShardId) -> None:
    """Publish further shards: this one has few branches left, and these may be slow."""
    store, stage_id = context.connections.store, shard_id.stage_id
    try:
        window = fleet_window(store)
        opened = store.open_shards(stage_id, window=window, draining=shard_id.shard)
        context.connections.publisher.expand(stage_id, opened)
    except UnknownRunError:
        raise
    except FanoutError as error:
        # The branch has ended anyway: the end of the shard, or the reaper, opens the next shard.
        _log.warning(
            "no further shards are opened for now: %s", error, extra=about(shard_id.run_id)
        )
