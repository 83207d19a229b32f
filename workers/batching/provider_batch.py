"""The steps of one batch at its provider: made, asked about, read, and landed.

Each step is written before the next begins, and can be repeated by another process: a batch whose
creation was cut off is searched for at the provider, and results are landed once each.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.batches import base
from fanout.llm.batches.base import (
    BatchError,
    BatchIntent,
    BatchResult,
    BatchState,
    BatchUnknownError,
)
from fanout.policy.lanes import poll_wait_s, retry_wait_s, scarce_calls
from fanout.policy.retries import RETRYABLE
from workers.batching.lines import write_lines
from workers.batching.lost_results import (
    NO_LINE,
    UNKNOWN,
    of_whole,
    said_of,
    without_result,
)
from workers.batching.stored_batch import LeadershipLostError, StoredBatch

if TYPE_CHECKING:
    from fanout.core.gathered import BatchRecord
    from fanout.llm.batches.base import BatchStatus
    from workers.batching.clients import LaneApi

__all__ = ["LeadershipLostError", "ProviderBatch", "new_nonce"]

_LANDED_AT_ONCE = 200
# Seconds between two searches for a batch that may have been made.
_FIND_AGAIN_S = 5.0
# The batch as a whole is known to have failed for these for a moment only.
_NO_ROOM = frozenset({ErrorKind.RATE_LIMITED, ErrorKind.SERVER_ERROR, ErrorKind.CONNECTION})
# After so many, an error that does not pass by itself ends the calls: an hour, with the default settings.
_MOST_TRIES = 60
# The most replies to a submission that make no sense.
_MOST_NONSENSE = 8

_log = logging.getLogger(__name__)


def new_nonce() -> str:
    """Return a random id of a batch."""
    return f"fanout-{secrets.token_hex(12)}"


class ProviderBatch(StoredBatch):
    """The steps of one batch, for the process that leads: see StoredBatch."""

    def __init__(self, batch: BatchRecord, api: LaneApi, **fields: Any) -> None:
        super().__init__(batch, api, **fields)
        # When a creation of this process that was cut off must have arrived.
        self._settles_at: float | None = None
        self._cancel_at = 0.0
        self._cancels = 0
        # How many replies to its creation, one after the other, made no sense.
        self._nonsense = 0
        # When the provider first did not know it, if it has not known it since.
        self._missing_at: float | None = None

    async def advance(self) -> None:
        """Take the next step of the batch.

        Raises:
            BrokerError: The server does not answer.
            LeadershipLostError: Another process leads now.
        """
        try:
            may_land = self.may_land or self.batch.stage == "landing"
            if self.batch.stage == "forming":
                # No batch of it can be made with the key of this process.
                await self._land_rest(b"")
                await self._end()
            elif self.batch.stage == "intent":
                await self._submit()
            elif self.batch.stage == "submitted":
                await self._ask()
            if self.batch.stage == "landing" and may_land:
                await self._land()
        except LLMError as error:
            await self._try_later(error)

    def is_to_cancel(self, now: float) -> bool:
        """Return whether the provider is to be asked now to cancel the batch."""
        batch = self.batch
        is_vain = self.is_unwanted and batch.stage == "submitted" and batch.cancelled_at is None
        return is_vain and now >= self._cancel_at

    async def cancel(self) -> None:
        """Ask the provider to cancel the batch. After a refusal it is polled, and asked again later."""
        self._cancel_at = await self._now() + retry_wait_s(self._cancels)
        self._cancels += 1
        try:
            await self._client.cancel(self.batch.batch_id)
        except LLMError as error:
            _log.warning("batch %d is not cancelled yet: %s", self.batch.number, error.kind)
            await self._write(problem=said_of(error))
            return
        now = await self._now()
        await self._write(cancelled_at=now, due_at=now, polls=0)

    async def forget(self) -> None:
        """End a batch that has ended at the provider, without its results: nobody waits for them."""
        await self._end()

    async def _try_later(self, error: LLMError) -> None:
        batch = self.batch
        if batch.batch_id and error.kind not in RETRYABLE and batch.tries >= _MOST_TRIES:
            _log.error("batch %d is given up: %s", batch.number, error.kind)
            await self._lose(of_whole(error))
            return
        wait_s = retry_wait_s(batch.tries, retry_after_s=error.retry_after_s)
        wait_s = min(wait_s, self._settings.batch_poll_s)
        _log.warning("batch %d is tried again in %.0f s: %s", batch.number, wait_s, error.kind)
        due_at = await self._now() + wait_s
        await self._write(tries=batch.tries + 1, due_at=due_at, problem=said_of(error))

    async def _submit(self) -> None:
        if self.may_exist and await self._is_found():
            return
        if self.is_unwanted or not self._is_own:
            await self._land_rest(b"" if self._is_own else UNKNOWN)
            await self._end()
            return
        if not self._is_sure():
            # The next beat renews the leadership.
            return
        with tempfile.TemporaryDirectory(prefix="fanout-batch-") as folder:
            path = Path(folder) / "batch.jsonl"
            if await self._write_file(path):
                await self._make(path)
            else:
                await self._end()

    async def _make(self, path: Path) -> None:
        """Make the batch of the lines in a file."""
        # What was tried before is known not to have made it.
        await self._write(intent_at=await self._now())
        try:
            batch_id = await self._client.submit(path, self._intent(), before=self._before_creation)
        except BatchUnknownError as error:
            self._nonsense += error.is_own
            if self._nonsense > _MOST_NONSENSE:
                # Each of them may have made a batch, which is nowhere to be found.
                await self._lose(BatchError.of(error))
                return
            now = await self._now()
            self.may_exist, self._settles_at = True, now + base.SETTLE_S
            await self._write(due_at=now + self._find_wait_s, problem=said_of(error))
        except LLMError as error:
            self.may_exist, self._nonsense = False, 0
            is_nonsense = error.is_own and self.batch.tries >= _MOST_NONSENSE
            if error.kind in RETRYABLE and not is_nonsense:
                await self._no_room(error)
            else:
                await self._fail(of_whole(error))
        else:
            await self._submitted(batch_id)

    async def _before_creation(self) -> None:
        """Note that the batch may exist from here on. The upload of its file may have taken long."""
        self._settles_at = None
        await self._write(intent_at=await self._now())
        if not self._is_sure():
            raise LeadershipLostError
        self.may_exist = True

    def _intent(self) -> BatchIntent:
        batch = self.batch
        return BatchIntent(
            nonce=batch.nonce,
            created_at=batch.intent_at,
            requests=batch.calls,
            first_id=batch.first_item,
            bytes=batch.bytes,
        )

    async def _write_file(self, path: Path) -> bool:
        """Write the file of the batch; return whether it has lines. Calls without a line are made anew."""
        batch = self.batch
        written = await asyncio.to_thread(write_lines, self._store, batch, path)
        if len(written.items) != batch.calls or written.first_item != batch.first_item:
            count = batch.calls - len(written.items)
            _log.warning("batch %d is made without %d of its calls", batch.number, count)
            await self._land_rest(NO_LINE, but=written.items)
            await self._write(
                calls=len(written.items), bytes=written.bytes, first_item=written.first_item
            )
        return bool(written.items)

    async def _is_found(self) -> bool:
        """Return whether the batch exists, or may exist for some time yet."""
        known = await self._known_ids()
        now = await self._now()
        try:
            batch_id = await self._client.find(self._intent(), known)
        except BatchUnknownError:
            await self._write(due_at=now + self._find_wait_s)
            return True
        if batch_id is not None:
            _log.warning("batch %d was made before: it is %s", self.batch.number, batch_id)
            await self._submitted(batch_id)
            return True
        settles_at = self._settles_at
        if settles_at is None:
            settles_at = self.batch.intent_at + self._client.settle_s(self._intent())
        if now < settles_at:
            await self._write(due_at=now + min(self._find_wait_s, settles_at - now))
            return True
        self._require_own()
        self.may_exist = False
        return False

    def _require_own(self) -> None:
        """Raise LLMError for some time, if another key or URL made the batch, which is not found."""
        if not self._is_own and self.batch.tries < _MOST_TRIES:
            message = "it was made with another key or URL than this worker has, and is not found"
            raise LLMError(ErrorKind.SERVER_ERROR, message)

    @property
    def _find_wait_s(self) -> float:
        return min(_FIND_AGAIN_S, self._settings.batch_poll_s)

    async def _submitted(self, batch_id: str) -> None:
        now = await self._now()
        due_at = now + self._poll_wait_s(0)
        await self._write(
            store=self._patient, stage="submitted", batch_id=batch_id, submitted_at=now,
            due_at=due_at, tries=0, problem="", has_lines=False,
        )  # fmt: skip
        _log.info("batch %d of %d calls is %s", self.batch.number, self.batch.calls, batch_id)

    def _poll_wait_s(self, polls: int) -> float:
        return poll_wait_s(polls, longest_s=self._settings.batch_poll_s)

    async def _no_room(self, error: LLMError) -> None:
        """Wait until the provider takes the batch, or further ones of its lane."""
        held_s = retry_wait_s(self.batch.tries + 2, retry_after_s=error.retry_after_s)
        held_s = min(held_s, self._settings.batch_poll_s)
        hold = partial(self._store.lane_scarce, held_s=held_s)
        await asyncio.to_thread(hold, self._epoch, self.batch.lane_id)
        await self._try_later(error)

    async def _ask(self) -> None:
        batch = self.batch
        status = await self._client.status(batch.batch_id)
        if status.state is not BatchState.GONE:
            self._missing_at = None
        if status.state is BatchState.RUNNING:
            polls = batch.polls + 1
            answered = (status.succeeded or 0) + (status.failed or 0)
            due_at = await self._now() + self._poll_wait_s(polls)
            await self._write(polls=polls, answered=answered, due_at=due_at, tries=0, problem="")
        elif status.state is BatchState.FAILED:
            await self._refused(status)
        elif status.state is BatchState.GONE:
            self._require_own()
            await self._missing()
        else:
            is_whole = status.state is BatchState.ENDED
            await self._write(
                stage="landing", answered=status.requests or batch.calls, tries=0,
                succeeded=status.succeeded, is_whole=is_whole,
            )  # fmt: skip

    async def _missing(self) -> None:
        """Ask again for a batch that the provider does not know, and look for it, for some time."""
        now = await self._now()
        self._missing_at = now if self._missing_at is None else self._missing_at
        if not self._is_own or now >= self._missing_at + base.MISSING_S:
            message = "the provider does not know the batch any more, or has deleted its results"
            await self._lose(BatchError(kind=ErrorKind.SERVER_ERROR, message=message))
            return
        found = None
        with suppress(BatchUnknownError):
            found = await self._client.find(self._intent(), await self._known_ids())
        if found is not None:
            _log.warning("batch %d has another id now: %s", self.batch.number, found)
            await self._submitted(found)
            return
        polls = self.batch.polls + 1
        wait_s = min(self._poll_wait_s(polls), self._missing_at + base.MISSING_S - now)
        problem = "the provider does not know the batch: it is asked again"
        await self._write(polls=polls, due_at=now + wait_s, problem=problem)

    async def _known_ids(self) -> set[str]:
        batches = await asyncio.to_thread(self._store.batches)
        return {one.batch_id for one in batches if one.batch_id}

    async def _refused(self, status: BatchStatus) -> None:
        """Let the calls of a batch that was refused as a whole fail, or be gathered anew."""
        batch, error = self.batch, status.error
        if error is None or error.kind not in _NO_ROOM:
            error = error or BatchError(kind=ErrorKind.SERVER_ERROR, message="")
            await self._fail(of_whole(error))
            return
        held_s = retry_wait_s(5, retry_after_s=error.retry_after_s)
        hold = partial(
            self._store.lane_scarce,
            held_s=min(held_s, self._settings.batch_poll_s),
            most_calls=scarce_calls(batch.calls),
        )
        await asyncio.to_thread(hold, self._epoch, batch.lane_id)
        await self._land_rest(b"")
        await self._end()

    async def _land(self) -> None:
        """Land the results, as fast as branches take them."""
        some: list[BatchResult] = []
        answers = 0
        async for result in self._client.results(self.batch.batch_id):
            some.append(result)
            answers += result.reply is not None
            if len(some) >= _LANDED_AT_ONCE:
                await self._land_some(some)
                some = []
        await self._land_some(some)
        await self._land_rest(without_result(self.batch, answers=answers))
        scarce = partial(self._store.lane_scarce, held_s=0)
        await asyncio.to_thread(scarce, self._epoch, self.batch.lane_id)
        await self._end()
