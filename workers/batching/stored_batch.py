"""A batch in the store: its record is written, its results are landed, and it ends."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import structs

from fanout.core.errors import LLMError
from fanout.core.gathered import LandRequest
from workers.batching.lost_results import encoded, failed, unknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from fanout.core.gathered import BatchRecord, Member
    from fanout.core.settings import Settings
    from fanout.llm.batches.base import BatchError, BatchResult
    from fanout.stores import RedisStore
    from workers.batching.clients import LaneApi
    from workers.batching.ready import ReadyBranches

__all__ = ["LeadershipLostError", "StoredBatch"]

_log = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """Another process makes the batches now."""


class StoredBatch:
    """One batch, for the process that leads.

    Args:
        batch: Its record.
        api: The batch API of its lane.
        store: Fails if the server is unreachable: a later round repeats the step.
        patient: Waits for the server: for what the provider has taken already.
        ready: Publishes branches.
        settings: How often a batch is asked about.
        epoch: Of the leadership.
        is_sure: Whether this process leads for some time yet.
        may_exist: Whether an earlier submission of it may have succeeded.

    Attributes:
        batch: Its record.
        may_exist: Whether the provider may have it, while it has no id.
        is_unwanted: Whether none of its runs waits for it any more.
        may_land: Whether its results may be read as soon as it has ended.
        is_behind: Whether its results wait, as its runs have messages enough.
    """

    def __init__(
        self,
        batch: BatchRecord,
        api: LaneApi,
        *,
        store: RedisStore,
        patient: RedisStore,
        ready: ReadyBranches,
        settings: Settings,
        epoch: int,
        is_sure: Callable[[], bool],
        may_exist: bool,
    ) -> None:
        self.batch = batch
        self._client, self._is_own = api
        self._store = store
        self._patient = patient
        self._ready = ready
        self._settings = settings
        self._epoch = epoch
        self._is_sure = is_sure
        self.may_exist = may_exist
        self.is_unwanted = False
        self.may_land = True
        self.is_behind = False

    async def _now(self) -> float:
        return await asyncio.to_thread(self._store.now)

    async def _write(
        self, *, store: RedisStore | None = None, has_lines: bool = True, **changes: Any
    ) -> None:
        self.batch = structs.replace(self.batch, **changes)
        put = partial((store or self._store).put_batch, has_lines=has_lines)
        if not await asyncio.to_thread(put, self._epoch, self.batch):
            raise LeadershipLostError

    async def _fail(self, error: BatchError) -> None:
        """Let all calls of the batch that have no result end with an error."""
        await self._land_rest(failed(error))
        await self._end()

    async def _lose(self, error: BatchError) -> None:
        """Let all calls that have no result end with an error: they may have been billed."""
        await self._land_rest(unknown(error))
        # The batch may still run, and needs its file.
        await self._end(discards=False)

    async def _land_some(self, results: list[BatchResult]) -> None:
        items = {result.custom_id: result for result in results}
        members = await asyncio.to_thread(self._store.batch_members, self.batch.number, list(items))
        await self._put([LandRequest(one, encoded(items[one.item])) for one in members])

    async def _land_rest(self, result: bytes, *, but: AbstractSet[str] = frozenset()) -> None:
        pages = self._store.members_left(self.batch.number)
        while True:
            page: list[Member] | None = await asyncio.to_thread(next, pages, None)
            if page is None:
                return
            await self._put([LandRequest(one, result) for one in page if one.item not in but])

    async def _put(self, requests: list[LandRequest]) -> None:
        if not requests:
            return
        number = self.batch.number
        landed = await asyncio.to_thread(self._store.land, self._epoch, number, requests)
        if landed is None:
            raise LeadershipLostError
        await self._ready.publish()
        self.is_behind = True
        try:
            await self._ready.wait_for_room({one.member.branch_id.run_id for one in requests})
        finally:
            self.is_behind = False

    async def _end(self, *, discards: bool = True) -> None:
        batch = self.batch
        if not await asyncio.to_thread(self._store.end_batch, self._epoch, batch.number):
            raise LeadershipLostError
        _log.info("batch %d (%s) has ended", batch.number, batch.batch_id or "not made")
        if batch.batch_id and discards:
            try:
                await self._client.discard(batch.batch_id)
            except LLMError as error:
                _log.info("the files of %s stay at the provider: %s", batch.batch_id, error.kind)
