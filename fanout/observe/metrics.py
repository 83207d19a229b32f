"""The metrics of a fleet for Prometheus.

They are read from the store, where the script that writes an outcome also counts it. So they are
exact, they are the same on each machine, and a lost worker loses none. No label names a run, as a
fleet has thousands of runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from fanout.core.errors import BrokerError
from fanout.core.latency import BOUNDS_S
from fanout.core.rate_limits import Rates
from fanout.core.records import TERMINAL, ErrorKind, RunStatus
from fanout.observe.fleet import fleet_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from prometheus_client import Metric

    from fanout.core.fleet_records import Totals
    from fanout.core.latency import Latency
    from fanout.core.state import StageLoad
    from fanout.observe.fleet import FleetStatus
    from fanout.stores import RedisStore

__all__ = ["FleetCollector", "families"]

_log = logging.getLogger(__name__)


class FleetCollector:
    """The collector that ``prometheus_client`` calls at each scrape.

    Args:
        store: The fleet's store.
        client: A client of the server that has its queues.
    """

    def __init__(self, store: RedisStore, client: redis.Redis) -> None:
        self._store = store
        self._client = client

    def describe(self) -> list[Metric]:
        """Return no descriptions, so that registration needs no server."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the current metrics; if the server does not answer, only ``fanout_up`` as 0."""
        try:
            fleet = fleet_status(self._store, self._client)
        except BrokerError as error:
            _log.warning("no metrics: %s", error)
            yield _gauge("up", "Whether the broker answers.", 0)
            return
        yield _gauge("up", "Whether the broker answers.", 1)
        yield from families(fleet)


def families(fleet: FleetStatus) -> Iterator[Metric]:
    """Yield the metrics of a fleet."""
    yield from _of_totals(fleet.totals)
    yield from _of_queues(fleet)
    yield from _of_workers(fleet)


def _of_totals(totals: Totals) -> Iterator[Metric]:
    yield _counter("runs_submitted", "Runs submitted.", totals.submitted)
    ended = {status.value: totals.ended.get(status, 0) for status in sorted(TERMINAL)}
    yield _counter("runs_ended", "Runs ended, by final status.", ended, "status")
    outcomes = {"succeeded": totals.succeeded}
    outcomes.update((kind.value, totals.errors.get(kind, 0)) for kind in ErrorKind)
    yield _counter("branches_ended", "Branches ended, by outcome.", outcomes, "outcome")
    usage = totals.usage
    yield _counter("calls", "Calls made to models, retries included.", usage.calls)
    yield _counter("input_tokens", "Tokens of prompts, where known.", usage.known("input_tokens"))
    text = "Tokens of prompts that a provider's cache served, where known."
    yield _counter("cached_input_tokens", text, usage.known("cached_input_tokens"))
    text = "Tokens of prompts that were written to a provider's cache, where known."
    yield _counter("cache_write_tokens", text, usage.known("cache_write_tokens"))
    yield _counter("output_tokens", "Tokens of answers, where known.", usage.known("output_tokens"))
    text = "Tokens of answers that were reasoning, where known."
    yield _counter("reasoning_tokens", text, usage.known("reasoning_tokens"))
    yield _counter("cost_usd", "US dollars, where known.", usage.known("cost_usd"))
    saved = totals.saved
    yield _counter("answers_cached", "Answers taken from the cache.", saved.calls)
    text = "US dollars that answers from the cache had cost, where known."
    yield _counter("saved_usd", text, saved.known("cost_usd"))
    yield _counter("refused", "Calls that a provider refused for their rate.", totals.pauses)
    yield _counter("healed", "Steps that the reaper did again.", totals.healed)
    text = "Messages that workers have refused and dropped."
    yield _counter("messages_dropped", text, totals.dropped)
    yield _latency(totals.latency)


def _of_queues(fleet: FleetStatus) -> Iterator[Metric]:
    active = [status for status in RunStatus if not status.has_ended]
    runs = {status.value: fleet.runs.get(status, 0) for status in active}
    yield _gauge("runs", "Runs that have not ended, by status.", runs, "status")
    waiting = {queue.name: queue.waiting for queue in fleet.queues}
    yield _gauge("queue_messages", "Messages that no worker has taken.", waiting, "queue")
    ages = {queue.name: queue.oldest_s or 0.0 for queue in fleet.queues}
    text = "Age of the next message to be taken; 0 if none waits."
    yield _gauge("queue_oldest_seconds", text, ages, "queue")
    yield _gauge("leases", "Messages that workers have taken and not settled.", fleet.leases.taken)
    text = "Longest time since a lease was renewed; 0 if there are no leases."
    yield _gauge("lease_oldest_seconds", text, fleet.leases.oldest_s or 0.0)
    window = fleet.window
    yield _gauge("shards_open", "Shards that are being processed.", window.open)
    yield _gauge("shards_waiting", "Shards not yet let into the queue.", window.waiting)
    text = "Branches that wait for a call of a provider's batch."
    yield _gauge("branches_gathered", text, window.gathered)
    yield from _of_permits(window)
    yield from _of_learnt_limits(fleet)
    limits = fleet.limits.values()
    ahead = [max(limit.requests_ahead_s, limit.tokens_ahead_s) for limit in limits]
    text = "How far ahead calls are reserved at the most used rate limit."
    yield _gauge("limiter_ahead_seconds", text, max(ahead, default=0.0))
    paused = [limit.blocked_s for limit in limits]
    text = "Longest remaining pause of a model after its provider refused a call."
    yield _gauge("limiter_paused_seconds", text, max(paused, default=0.0))
    down = [limit.down_s or 0.0 for limit in limits]
    text = "Longest time for which a model has failed for all callers; 0 if none does."
    yield _gauge("model_down_seconds", text, max(down, default=0.0))
    yield from _of_budgets(fleet)
    if fleet.memory is not None:
        yield _gauge("redis_memory_bytes", "Memory the server uses.", fleet.memory.used_bytes)
        limit = fleet.memory.limit_bytes or 0
        yield _gauge("redis_max_memory_bytes", "The server's maxmemory; 0 if not set.", limit)


def _of_learnt_limits(fleet: FleetStatus) -> Iterator[Metric]:
    known = {model: limit.learnt for model, limit in fleet.limits.items() if limit.learnt}
    for name in Rates.__struct_fields__:
        rates = {model: rate for model in known if (rate := getattr(known[model], name))}
        words = name.removesuffix("_per_minute").replace("_", " ")
        text = f"The limit of {words} a minute that a provider's headers tell."
        yield _gauge(f"learnt_{name}", text, rates, "model")
    windows = {m: limit.calls_at_once for m, limit in fleet.limits.items() if limit.calls_at_once}
    text = "The most calls in flight at a provider that refused more, or was slow."
    yield _gauge("model_calls_at_once", text, windows, "model")


def _of_budgets(fleet: FleetStatus) -> Iterator[Metric]:
    """Yield the budgets of this day."""
    texts = {"usd": "US dollars", "calls": "Calls", "tokens": "Tokens"}
    for name, text in texts.items():
        budgets = {key: one for key, one in fleet.day_budgets.items() if name in one.limited}
        limits = {key: getattr(one.limit, name) for key, one in budgets.items()}
        yield _gauge(f"budget_{name}_limit", f"{text} of a day, by model.", limits, "models")
        spent = {key: getattr(one.spent, name) for key, one in budgets.items()}
        yield _gauge(f"budget_{name}_spent", f"{text} spent today, by model.", spent, "models")
    used_up = {key: int(one.is_used_up) for key, one in fleet.day_budgets.items()}
    text = "Whether calls wait for the budget of the next day, by model."
    yield _gauge("budget_used_up", text, used_up, "models")


def _of_permits(window: StageLoad) -> Iterator[Metric]:
    wanted = "Their branches that workers could take, or have taken, and that wait for a permit."
    permits = {
        "used": ("Permits that workers have for runs with max_workers.", window.permits_used),
        "limit": ("The sum of max_workers of these runs.", window.permits_limit),
        "wanted": (wanted, window.waiting_for_permits),
    }
    for name, (text, count) in permits.items():
        yield _gauge(f"permits_{name}", text, count)
        yield _gauge(f"lanes_{name}", f"Deprecated name of fanout_permits_{name}.", count)


def _of_workers(fleet: FleetStatus) -> Iterator[Metric]:
    yield _gauge("workers", "Live workers.", len(fleet.workers))
    text = "Workers that could hold all admitted branches in flight at once."
    yield _gauge("workers_wanted", text, fleet.workers_wanted)
    concurrency = {worker.name: worker.concurrency for worker in fleet.workers}
    yield _gauge("worker_concurrency", "Branches it can hold.", concurrency, "worker")
    in_flight = {worker.name: worker.in_flight for worker in fleet.workers}
    yield _gauge("worker_in_flight", "Branches it has in flight.", in_flight, "worker")


def _metric(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    value: float | Mapping[str, float] | None,
    label: str = "",
) -> Metric:
    """Return a metric with one value, or with one for each value of a label."""
    if not isinstance(value, Mapping):
        return kind(f"fanout_{name}", text, value=value or 0)
    family = kind(f"fanout_{name}", text, labels=[label])
    for labelled, one in value.items():
        family.add_metric([labelled], one)
    return family


_gauge = partial(_metric, GaugeMetricFamily)
_counter = partial(_metric, CounterMetricFamily)


def _latency(latency: Latency) -> Metric:
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, latency.cumulative(), strict=True))
    text = "Time from a branch's first call to its end, without answers of batches."
    return HistogramMetricFamily(
        "fanout_branch_seconds", text, buckets=buckets, sum_value=latency.sum_s
    )
