"""The models of a worker process, and what limits and ends their calls."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

import msgspec

from fanout.broker.app import Preflight
from fanout.core.errors import ModelError
from fanout.core.ids import StageId
from fanout.core.redaction import redacted
from fanout.llm import make_llm
from fanout.llm.batches.base import check_batches
from fanout.llm.error_kinds import FEW
from fanout.llm.user_code import check_llm, close_llm
from fanout.policy.retries import is_common
from fanout.runs.common_errors import error_sort
from workers.context.broken_models import BrokenModels
from workers.context.inflight import InFlight
from workers.context.late_runs import LateRuns
from workers.context.limiter import Limiter
from workers.telemetry.logs import quiet_clients

if TYPE_CHECKING:
    from fanout.core.records import Outcome
    from fanout.core.settings import Settings
    from fanout.core.state import RunRecord, StageRecord
    from fanout.llm import LLM
    from fanout.stores import RedisStore
    from workers.context.worker_context import Connections, WorkerContext

__all__ = ["CommonFailures", "Models", "check_model"]

_REMEMBERED_RUNS = 64
_NOTE_TTL_S = 600
_MAX_MESSAGE = 1_000


class Models:
    """The models that branches call; made on first use, and closed on the loop they ran on.

    Args:
        connections: The stores of limits and runs.
        settings: The worker's settings.
        concurrency: How many calls a model should expect at a time.
        quiets_clients: Whether to silence the log records of client packages.

    Attributes:
        made: The models that are ready, by name.
        in_flight: The calls in flight.
        limiter: The rate limits that all workers share.
        common_failures: Counts failures that stop a run.
        late: The runs whose branches no longer wait for batches.
        broken: The models that runs with several cannot call.
    """

    def __init__(
        self,
        connections: Connections,
        settings: Settings,
        *,
        concurrency: int,
        quiets_clients: bool,
    ) -> None:
        self._settings = settings
        self._concurrency = concurrency
        self._quiets_clients = quiets_clients
        self._making = asyncio.Lock()
        self.made: dict[str, LLM] = {}
        self.in_flight = InFlight(connections.fail_fast_store)
        self.limiter = Limiter(
            connections.fail_fast_store, sleep=self.in_flight.wait, until=self.in_flight.until
        )
        self.common_failures = CommonFailures(connections.store)
        self.broken = BrokenModels(connections.store)
        self.late = LateRuns(connections.fail_fast_store, wait_s=settings.batch_wait_s)

    async def get(self, name: str) -> LLM:
        """Return the model, which is made if need be. Branches look in ``made`` first.

        Raises:
            ModelError: It cannot be used.
        """
        async with self._making:
            if name not in self.made:
                self.made[name] = make_llm(
                    name, settings=self._settings, concurrency=self._concurrency
                )
                if self._quiets_clients:
                    # Their packages may have been imported only now.
                    quiet_clients()
            return self.made[name]

    async def check(self, name: str, *, batches: bool = False) -> str | None:
        """Check that a model can be used. Raises ModelError.

        Returns:
            Why no batches of it can be made: see ``check_batches``; None if that was not asked.
        """
        llm = await self.get(name)
        await check_llm(llm)
        return await check_batches(llm) if batches else None

    async def aclose(self) -> None:
        """Close the models' connections, and stop watching the runs of calls."""
        for llm in self.made.values():
            await close_llm(llm)
        self.made.clear()
        await self.limiter.aclose()
        await self.in_flight.aclose()


def check_model(context: WorkerContext, model: str, note: str, *, batches: bool = False) -> None:
    """Check ``model``, perhaps its batches, and store the result, a Preflight as JSON, as ``note``."""
    try:
        found = context.loop.wait_for(context.models.check(model, batches=batches))
    except ModelError as error:
        answer = Preflight(message=redacted(str(error)), kind=error.kind)
    except Exception as error:  # noqa: BLE001 - the waiting client must get a result
        fault = redacted(f"{type(error).__name__}: {error}")[:_MAX_MESSAGE]
        answer = Preflight(message=f"the model {model} could not be checked: {fault}")
    else:
        answer = Preflight(batches=found and redacted(found))
    context.connections.store.put_note(note, msgspec.json.encode(answer), ttl_s=_NOTE_TTL_S)


class CommonFailures:
    """Finds runs whose branches all fail in the same way: by a wrong key or model, not by a document.

    Counts the failures of each run in this process; a branch that succeeds costs nothing. Safe to share
    between threads.

    Args:
        store: The store that counts the fleet's successes.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._runs: OrderedDict[tuple[str, float], Counter[tuple[str, str]]] = OrderedDict()

    def reason(
        self, run: RunRecord, stage_id: StageId, outcome: Outcome, stop_after: int
    ) -> str | None:
        """Return why the failure of a branch should stop its run, or None.

        Failures of before a retry do not count.
        """
        if stop_after == 1:
            return f"{outcome.kind}: {outcome.message}"
        seen = self._count(run, outcome)
        records = [
            self._store.stage(StageId(run.run_id, stage)).without_retried(run.retry)
            for stage in range(stage_id.stage + 1)
        ]
        succeeded = sum(record.succeeded for record in records)
        alike = max(seen, _failed_so(records[-1], outcome) if stop_after <= FEW else 0)
        if not is_common(alike=alike, stop_after=stop_after, succeeded=succeeded):
            return None
        return (
            f"{outcome.kind}: {outcome.message}; stopped, as the first {alike} branches failed of "
            "the same"
        )

    def _count(self, run: RunRecord, outcome: Outcome) -> int:
        opening = (run.run_id, run.opening)
        sort = error_sort(outcome.kind, outcome.message)
        with self._lock:
            counts = self._runs.setdefault(opening, Counter())
            self._runs.move_to_end(opening)
            if len(self._runs) > _REMEMBERED_RUNS:
                self._runs.popitem(last=False)
            counts[sort] += 1
            return counts[sort]


def _failed_so(record: StageRecord, outcome: Outcome) -> int:
    """Return how many branches of the fleet failed with this kind, or 0 if others failed otherwise.

    So a fleet of many processes stops a run after as few failures as one process.
    """
    failed = record.errors.get(outcome.kind, 0) if outcome.kind else 0
    return failed + 1 if failed == record.failed else 0
