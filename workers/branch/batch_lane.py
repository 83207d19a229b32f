"""The calls of a branch in the batch lane: gathered before a batch, and answered by its results."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import LLMError, StoredDataError
from fanout.core.records import ErrorKind
from fanout.llm.batches.base import BatchResult
from fanout.llm.usage import NO_USAGE, billed_at
from workers.branch.delivery_ends import BranchGathered
from workers.context.held_places import LongWait
from workers.context.inflight import CallStoppedError

if TYPE_CHECKING:
    from fanout.core.gathered import Joins, LaneRecord, Prepared
    from fanout.core.ids import BranchId
    from fanout.core.records import Usage
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.llm.batches.base import BatchClient
    from fanout.policy.outages import FailureVerdict
    from fanout.policy.pricing import Price
    from workers.branch.claims import Claim
    from workers.context.budgeted_calls import BudgetedCalls

__all__ = ["GatheredCalls", "PreparedModel", "item_of", "result_of", "used_by"]

_ITEM_BYTES = 12
# What the provider did not come to is sent again. Both cost nothing.
_AGAIN = {
    ErrorKind.EXPIRED: (ErrorKind.TIMEOUT, "the provider did not come to it within its batch"),
    ErrorKind.CANCELLED: (ErrorKind.SERVER_ERROR, "its batch was cancelled"),
}


class GatheredCalls:
    """The gate of calls in the batch lane.

    A call whose result a batch has brought goes on. Any other is gathered, which ends the delivery.

    Args:
        claim: The right to make the calls.
        client: The batch API of the model.
        lane: What the calls of one batch have in common.
        earlier: How many calls the branch has made before those of this gate.
        prepared: What batches have for the branch.
        place: The place of the model: 0 is the run's ``model``, and after that come ``all_models``.
        step: What names the answer among those of the steps of the branch; empty without steps.
        price: The price of the model; None if it is unknown.
        budgeted: The budgets that the calls must fit into; None for none.

    Attributes:
        client: The batch API of the model.
        key: The key of the answer that the calls are for, in hex; empty if it is not kept. A call follows
            one of another branch with the same key, in place of being made.
    """

    def __init__(
        self,
        claim: Claim,
        client: BatchClient,
        lane: LaneRecord,
        *,
        earlier: int,
        prepared: Prepared,
        place: int = 0,
        step: str = "",
        price: Price | None = None,
        budgeted: BudgetedCalls | None = None,
    ) -> None:
        self._budgeted = budgeted
        self._claim = claim
        self.client = client
        self._lane = lane
        self._number = earlier
        self._prepared = prepared
        self._place = place
        self._step = step
        self._price = price
        self.key = ""
        self.result: BatchResult | None = None

    @property
    def has_result(self) -> bool:
        """Whether a batch has brought the result of the next call."""
        return self._prepared.item == self._item(self._number + 1)

    @property
    def has_followed(self) -> bool:
        """Whether the next call has waited for an identical one of another branch."""
        return self._prepared.followed == self._item(self._number + 1)

    @property
    def has_reply(self) -> bool:
        """Whether that is an answer."""
        return self.has_result and result_of(self._prepared.result).reply is not None

    def _item(self, number: int) -> str:
        branch_id, since = self._claim.branch_id, self._prepared.since
        model, place = self._lane.model, self._place
        return item_of(branch_id, model, place, number, since=since, step=self._step)

    async def give_up(self) -> BatchResult | None:
        """Settle what is reserved for the next call, which does not wait for a batch any more.

        Returns:
            What a provider has made of it, or may have; None if no batch has made it.
        """
        result = result_of(self._prepared.result) if self.has_result else None
        if self._budgeted is not None:
            usage = None if result is None else used_by(result, self._price)
            await self._budgeted.unhold(self._item(self._number + 1), usage)
        return result

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:  # noqa: ARG002 - a gate
        """Let a call go on that has its result, else gather it. See Claim.gather."""
        self._number += 1
        item = self._item(self._number)
        if self._prepared.item == item:
            self.result = result_of(self._prepared.result)
            if self._budgeted is not None:
                await self._budgeted.landed(item, request, used_by(self.result, self._price))
            self._claim.waits()
            return 0.0
        joins: Joins = "may"
        if self._budgeted is not None:
            await self._follow(item, self._budgeted)
            with LongWait(self._claim.leaves_place):
                await self._budgeted.hold(item, request)
            joins = "never"
        line = await self.client.line(item, request)
        try:
            await self._claim.gather(item, line, self._lane, key=self.key, joins=joins)
        except CallStoppedError:
            if self._budgeted is not None:
                await self._budgeted.unhold(item, insists=False)
            raise
        return 0.0

    async def _follow(self, item: str, budgeted: BudgetedCalls) -> None:
        """Follow an identical call, if there is one: nothing of the budget is held for that."""
        if not self.key:
            return
        try:
            await self._claim.gather(item, b"", self._lane, key=self.key, joins="only")
        except BranchGathered as gathered:
            if gathered.follows:
                # An earlier delivery may have been about to make the call.
                await budgeted.unhold(item)
            raise

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> FailureVerdict | None:
        """Do nothing: a result of a batch says nothing of the provider's state now."""


class PreparedModel:
    """A model whose answers are the results that its gate has found."""

    def __init__(self, calls: GatheredCalls) -> None:
        self._calls = calls

    async def check(self) -> None:
        """See LLM."""

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Return the reply in the result, or raise its error. See LLM."""
        result = self._calls.result
        if result is None:
            raise LLMError(ErrorKind.INTERNAL, "there is no result of a batch")
        again = _AGAIN.get(result.error.kind) if result.error is not None else None
        if again is not None:
            raise LLMError(*again, usage=NO_USAGE)
        return self._calls.client.taken(request, result)

    async def aclose(self) -> None:
        """See LLM."""


def item_of(
    branch_id: BranchId, model: str, place: int, number: int, *, since: str = "", step: str = ""
) -> str:
    """Return the id of a call of a branch for a batch.

    It is the same in each delivery, however its request is written down by then, and with a new key:
    workers learn what a provider takes. It is another one after a retry of the run.

    Args:
        branch_id: The branch.
        model: The model.
        place: Its place: 0 is the run's ``model``, and after that come ``all_models``.
        number: Counts the calls of the branch from 1.
        since: When the run was last retried; empty for never.
        step: What names the answer among those of the steps of the branch; empty without steps.
    """
    call = f"{branch_id.task_id} {model} {since}"
    if step:
        # An earlier step that was answered from the cache has made no call that counts.
        call = f"{call} {step}"
    digest = hashlib.blake2b(call.encode(), digest_size=_ITEM_BYTES).hexdigest()
    return f"{digest}-{place}-{number}"


def result_of(held: bytes) -> BatchResult:
    """Return the result of a call as it is stored. Raises StoredDataError."""
    try:
        return msgspec.json.decode(held, type=BatchResult)
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"the result of a batch in the store is damaged ({error})") from None


def used_by(result: BatchResult, price: Price | None) -> Usage:
    """Return what a call of a batch has consumed, as far as it is known, with its cost."""
    reply, error = result.reply, result.error
    if reply is not None:
        return billed_at(price, None, reply.usage, reply.lane or "batch")
    if error is None:
        return billed_at(price, None, None, "batch")
    reported = NO_USAGE if error.kind in _AGAIN else error.usage
    return billed_at(price, error.kind, reported, "batch")
