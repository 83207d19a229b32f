"""The status of a fleet: its workers, its queues, its runs."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.broker.backlog import read_backlog, read_memory
from fanout.core.errors import StoredDataError, UnknownRunError
from fanout.core.ids import StageId
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.core.settings import Settings
from fanout.core.state import StageLoad
from fanout.policy.admission import workers_wanted
from fanout.runs.budget_status import BudgetStatus, day_budgets
from fanout.runs.status import latency_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from fanout.broker.backlog import Queue, ServerMemory, TakenMessages
    from fanout.core.fleet_records import Totals, WorkerRecord
    from fanout.core.rate_limits import LimitState
    from fanout.core.records import RunStatus
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = ["FleetStatus", "active_runs", "fleet_status"]

# Names of before, and the fields that they are.
_DEPRECATED = {
    "lanes_used": "permits_used",
    "lanes_limit": "permits_limit",
    "lanes_wanted": "permits_wanted",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetStatus:
    """The status of a fleet at one moment.

    Attributes:
        workers: The live workers, by name.
        queues: The backlog of each queue, control first.
        leases: The messages that workers have taken and not settled.
        memory: The server's memory; None if the server's user may not read it.
        runs: How many runs that have not ended are in each status.
        window: The shards in flight and the permits that workers have; the sum over these runs.
        totals: The counters since the store was new.
        limits: How far the rate limits of models are used, in seconds from now.
        active: The runs that have not ended, the newest first.
        read_at: When the status was read, in seconds since the epoch, by the store's clock.
        day_budgets: What is left of the budgets of this day (UTC), by the models that they hold for.
        day_left_s: Seconds until they begin anew; None without any.
    """

    workers: list[WorkerRecord]
    queues: tuple[Queue, ...]
    leases: TakenMessages
    memory: ServerMemory | None
    runs: dict[RunStatus, int]
    window: StageLoad
    totals: Totals
    limits: dict[str, LimitState]
    active: tuple[str, ...] = ()
    read_at: float = 0.0
    day_budgets: dict[str, BudgetStatus] = field(default_factory=dict)
    day_left_s: float | None = None

    @property
    def concurrency(self) -> int:
        """Branches that the workers can have in flight."""
        return sum(worker.concurrency for worker in self.workers)

    @property
    def in_flight(self) -> int:
        """Branches that they have in flight, by their latest records."""
        return sum(worker.in_flight for worker in self.workers)

    @property
    def workers_wanted(self) -> int:
        """How many workers could hold all admitted branches in flight at once.

        Branches that wait for a permit of their run are none of them: a worker more would not help.
        """
        waiting = sum(queue.waiting for queue in self.queues if queue.name == BRANCHES_QUEUE)
        takers = [w.concurrency for w in self.workers if BRANCHES_QUEUE in w.queues]
        # The few control messages among the taken ones are soon done.
        return workers_wanted(
            waiting=waiting,
            taken=self.leases.taken,
            waiting_for_permits=self.window.waiting_for_permits,
            concurrencies=takers,
            usual=Settings.model_fields["concurrency"].default,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values; latency as percentiles."""
        budgets = {name: status.day_dict() for name, status in self.day_budgets.items()}
        names = [name for name in self.__slots__ if name != "day_budgets"]
        fields = {name: msgspec.to_builtins(getattr(self, name)) for name in names}
        fields["day_budgets"] = budgets
        for worker in fields["workers"]:
            del worker["day_budgets"]
        fields["totals"]["latency"] = latency_row(self.totals.latency)
        window = fields["window"]
        window |= {old: window[new] for old, new in _DEPRECATED.items()}
        return fields


def fleet_status(store: RedisStore, client: redis.Redis) -> FleetStatus:
    """Return the status of a fleet. Raises BrokerError."""
    queues, leases = read_backlog(client)
    runs = sorted(active_runs(store), key=lambda run: run.created_at, reverse=True)
    loads = [load for run in runs for load in _loads(store, run)]
    workers = store.workers()
    budgets, day_left_s = day_budgets(store, workers)
    return FleetStatus(
        workers=workers,
        queues=queues,
        leases=leases,
        memory=read_memory(client),
        runs=dict(Counter(run.status for run in runs)),
        window=_sum(loads),
        totals=store.totals(),
        limits=store.limits(),
        active=tuple(run.run_id for run in runs),
        read_at=store.now(),
        day_budgets=budgets,
        day_left_s=day_left_s,
    )


def active_runs(store: RedisStore) -> Iterator[RunRecord]:
    """Yield the runs that have not ended."""
    for run_id in store.active_runs():
        # The run may be damaged, deleted since, or expired.
        with suppress(StoredDataError, UnknownRunError):
            yield store.run(run_id)


def _loads(store: RedisStore, run: RunRecord) -> Iterator[StageLoad]:
    """Yield the load of each stage of a run that is being processed; what is of the run only once."""
    first, *later = (store.stage_load(StageId(run.run_id, stage)) for stage in run.open_stages)
    yield first
    for load in later:
        yield StageLoad(open=load.open, waiting=load.waiting)


def _sum(loads: list[StageLoad]) -> StageLoad:
    names = StageLoad.__struct_fields__
    return StageLoad(**{n: sum(getattr(load, n) for load in loads) for n in names})
