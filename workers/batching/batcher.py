"""Makes batches of gathered calls, one process of a fleet at a time, beside the calls of branches.

A leader renews its right on each beat; each of its writes carries the number of its leadership, so that
a process that was suspended writes nothing once another one leads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.errors import BrokerError, FanoutError, LLMError, ModelError
from fanout.core.gathered import BatchRecord
from fanout.policy.lanes import is_due, most_calls
from workers.batching.clients import LaneClients
from workers.batching.joined_calls import JoinedCalls
from workers.batching.provider_batch import LeadershipLostError, ProviderBatch, new_nonce
from workers.batching.ready import ReadyBranches
from workers.batching.slots import Slots
from workers.batching.waiting_runs import WaitingRuns
from workers.context.event_loop import LoopThread

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

    from fanout.broker.publisher import Publisher
    from fanout.core.gathered import LaneQueue, LaneRecord
    from fanout.core.settings import Settings
    from fanout.stores import RedisStore
    from workers.batching.clients import LaneApi

__all__ = ["Batcher"]

# Batches of a lane that are made in one round at most.
_MADE_AT_ONCE = 8
# The share of its leadership that must be left when a batch is submitted.
_SURE = 1 / 3
_CLOSE_S = 5.0
# Calls of a lane whose key this process does not have are gathered anew after so long.
_STRANDED_S = 60.0

_FOREIGN = (
    "batches of %s were made with another key or URL than this worker has (account %s): they are tried with "
    "its own, and calls that wait are gathered anew; give all workers of a fleet the same"
)

_log = logging.getLogger(__name__)


class Batcher:
    """Makes, asks about and lands batches while its process leads.

    Args:
        store: Fails if the server is unreachable.
        patient: Waits for the server.
        publisher: Publishes branches.
        settings: The worker's settings.
        process: The unique name of the process.
        ttl_s: Seconds without a beat after which another process leads.
        answers: The kept answers; None if the store has them.
    """

    def __init__(
        self,
        store: RedisStore,
        patient: RedisStore,
        publisher: Publisher,
        settings: Settings,
        *,
        process: str,
        ttl_s: float,
        answers: RedisStore | None = None,
    ) -> None:
        self._store = store
        self._patient = patient
        self._settings = settings
        self._process = process
        self._ttl_s = ttl_s
        self._ready = ReadyBranches(store, publisher)
        self._runs = WaitingRuns(store, wait_s=settings.batch_wait_s)
        self._joined = JoinedCalls(store, answers)
        self._epoch = 0
        self._leads_until = 0.0
        self._loop: LoopThread | None = None
        self._clients: LaneClients | None = None
        self._batches: dict[int, ProviderBatch] = {}
        self._tasks: dict[int, Future[None]] = {}
        self._problems: set[str] = set()

    @property
    def leads(self) -> bool:
        """Whether this process led at the last beat."""
        return self._epoch > 0

    def beat(self) -> None:
        """Take or renew the leadership, and do what is due. Raises BrokerError."""
        if not self._leads():
            return
        if not (self._store.has_batch_work() or self._runs.remembers):
            return
        self._joined.wake(self._epoch)
        self._ready.publish_all()
        queues = self._store.lane_queues()
        records = self._store.batches()
        if (
            not queues
            and not records
            and not self._runs.remembers
            and not self._store.gathered_runs()
        ):
            return
        for queue in queues:
            self._make_batches(queue)
        self._go_on()

    def _leads(self) -> bool:
        asked_at = time.monotonic()
        leadership = self._store.lead_batches(self._process, ttl_s=self._ttl_s)
        if leadership is None or leadership.epoch != self._epoch:
            self._forget()
        if leadership is None:
            self._epoch = 0
            return False
        self._epoch = leadership.epoch
        self._leads_until = asked_at + self._ttl_s
        return True

    def _is_sure(self) -> bool:
        return time.monotonic() < self._leads_until - _SURE * self._ttl_s

    def _forget(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._batches.clear()

    def _on_loop(self) -> tuple[LoopThread, LaneClients]:
        if self._loop is None or self._clients is None:
            self._loop, self._clients = LoopThread(), LaneClients(self._settings)
        return self._loop, self._clients

    def _api(self, lane: LaneRecord) -> LaneApi | None:
        loop, clients = self._on_loop()
        try:
            api = loop.wait_for(clients.get(lane))
        except ModelError as error:
            self._warn("the batches of %s wait: %s", lane.model, str(error))
            return None
        if not api.is_own:
            self._warn(_FOREIGN, lane.model, lane.account)
        return api

    def _warn(self, text: str, *given: str) -> None:
        if text % given not in self._problems:
            self._problems.add(text % given)
            _log.warning(text, *given)

    def _make_batches(self, queue: LaneQueue) -> None:
        api = self._api(queue.record)
        if api is None:
            return
        if not api.is_own:
            if queue.oldest_s >= _STRANDED_S:
                while not self._store.empty_lane(self._epoch, queue.lane_id):
                    pass
            return
        limits, settings = api.client.limits, self._settings
        for _ in range(_MADE_AT_ONCE):
            most = most_calls(queue, provider=limits.requests, setting=settings.batch_calls)
            due = is_due(
                queue, most_calls=most, most_bytes=limits.bytes, wait_s=settings.batch_wait_s
            )
            if not due:
                return
            batch = BatchRecord(
                number=self._store.next_batch_number(), lane_id=queue.lane_id, calls=most
            )
            made = self._fill(batch, api, most=most)
            if made is None:
                return
            left = [one for one in self._store.lane_queues() if one.lane_id == queue.lane_id]
            if not left or not self._leads():
                return
            queue = left[0]

    def _fill(self, batch: BatchRecord, api: LaneApi, *, most: int) -> BatchRecord | None:
        """Choose the members of a batch; return it, or None if it has none or another process leads."""
        if not self._store.put_batch(self._epoch, batch):
            return None
        most_bytes = api.client.limits.bytes
        while True:
            filled = self._store.fill_batch(
                self._epoch, batch, most_calls=most, most_bytes=most_bytes
            )
            if filled is None:
                return None
            if filled.is_full:
                break
        if not filled.calls:
            self._store.end_batch(self._epoch, batch.number)
            return None
        made = structs.replace(
            batch,
            stage="intent",
            calls=filled.calls,
            bytes=filled.bytes,
            first_item=filled.first_item,
            nonce=new_nonce(),
            intent_at=self._store.now(),
        )
        if not self._store.put_batch(self._epoch, made):
            return None
        self._batches[made.number] = self._at_provider(made, api, may_exist=False)
        return made

    def _at_provider(self, batch: BatchRecord, api: LaneApi, *, may_exist: bool) -> ProviderBatch:
        return ProviderBatch(
            batch,
            api,
            store=self._store,
            patient=self._patient,
            ready=self._ready,
            settings=self._settings,
            epoch=self._epoch,
            is_sure=self._is_sure,
            may_exist=may_exist,
        )

    def _go_on(self) -> None:
        """Let each batch that is due take its next step."""
        self._tasks = {number: task for number, task in self._tasks.items() if not task.done()}
        records = self._store.batches()
        self._batches = {
            one.number: self._batches[one.number] for one in records if one.number in self._batches
        }
        unwanted = self._runs.look(records, epoch=self._epoch, may_exist=self._may_exist)
        self._ready.publish_all()
        now = self._store.now()
        slots = Slots()
        for record in records:
            if record.number in self._tasks:
                is_behind = self._batches[record.number].is_behind
                slots.take(record.lane_id, record.stage, is_behind=is_behind)
        for record in records:
            self._take_step(record, slots, is_unwanted=unwanted.get(record.number, False), now=now)

    def _take_step(
        self, record: BatchRecord, slots: Slots, *, is_unwanted: bool, now: float
    ) -> None:
        """Let a batch take its next step, if that is due and its lane has a slot for it."""
        number, lane_id = record.number, record.lane_id
        is_forgotten = number in self._runs.forgotten and record.stage == "landing"
        task = self._tasks.get(number)
        if task is not None and is_forgotten:
            # A later round ends it, when the step has ended.
            task.cancel()
        if task is not None or not (is_forgotten or slots.are_free(lane_id, record.stage)):
            return
        batch = self._known(record)
        if batch is None:
            return
        batch.is_unwanted = is_unwanted
        batch.may_land = slots.are_free(lane_id, "landing")
        if is_forgotten:
            step = batch.forget()
        elif batch.is_to_cancel(now):
            step = batch.cancel()
        elif record.due_at <= now or number in self._runs.urgent:
            step = batch.advance()
        else:
            return
        slots.take(lane_id, record.stage)
        loop, _ = self._on_loop()
        led = self._led(number, step)
        self._tasks[number] = asyncio.run_coroutine_threadsafe(led, loop.event_loop)

    def _may_exist(self, record: BatchRecord) -> bool:
        """Return whether the provider may have a batch, as records say that are newer than ended steps."""
        if record.stage == "forming":
            return False
        known = self._batches.get(record.number)
        is_safe = known is not None and not known.may_exist and record.number not in self._tasks
        return record.stage != "intent" or not is_safe

    async def _led(self, number: int, step: Coroutine[object, object, None]) -> None:
        """Take a step of a batch; end it if the leadership lapses meanwhile."""
        task = asyncio.ensure_future(_reported(number, step))
        try:
            while not task.done():
                left_s = self._leads_until - time.monotonic()
                if left_s <= 0:
                    _log.info("batch %d is left: this process leads no more", number)
                    return
                await asyncio.wait([task], timeout=left_s)
            task.result()
        finally:
            task.cancel()

    def _known(self, record: BatchRecord) -> ProviderBatch | None:
        """Return a batch to go on with; None if there is nothing to do for it."""
        if record.number in self._batches:
            return self._batches[record.number]
        lane = self._store.lane(record.lane_id)
        api = None if lane is None else self._api(lane)
        if api is None:
            return None
        if record.stage == "forming" and api.is_own:
            # Another process began to choose its members.
            if self._fill(record, api, most=record.calls) is None:
                return None
        else:
            self._batches[record.number] = self._at_provider(record, api, may_exist=True)
        return self._batches[record.number]

    def close(self) -> None:
        """End the steps under way; another process goes on with them."""
        self._forget()
        if self._loop is None or self._clients is None:
            return
        closing = asyncio.run_coroutine_threadsafe(self._clients.aclose(), self._loop.event_loop)
        try:
            closing.result(_CLOSE_S)
        except TimeoutError:
            _log.info("connections for batches are left open")
        self._loop.close()


async def _reported(number: int, step: Coroutine[object, object, None]) -> None:
    """Await a step of a batch; log its error, as a later round takes the step again."""
    try:
        await step
    except LeadershipLostError:
        _log.info("batch %d is left to another process", number)
    except (BrokerError, LLMError) as error:
        _log.warning("batch %d does not go on for now: %s", number, type(error).__name__)
    except FanoutError as error:
        _log.warning("batch %d does not go on: %s", number, error)
    except Exception as error:  # noqa: BLE001 - the message may quote a prompt
        _log.warning("batch %d does not go on: %s", number, type(error).__name__)
