"""The metrics of a fleet: what Prometheus reads is what the store has counted."""

from __future__ import annotations

import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fanout.broker.backlog import Queue, ServerMemory, TakenMessages
from fanout.core.fleet_records import Totals, WorkerRecord
from fanout.core.latency import BOUNDS_S, Latency, bucket_of
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.core.rate_limits import LimitState, Rates
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.core.state import StageLoad
from fanout.observe.fleet import FleetStatus
from fanout.observe.metrics import FleetCollector, families


def fleet(**fields) -> FleetStatus:
    given = {
        "workers": [],
        "queues": (Queue(name="q", waiting=0),),
        "leases": TakenMessages(taken=0),
        "memory": None,
        "runs": {},
        "window": StageLoad(),
        "totals": Totals(),
        "limits": {},
    }
    return FleetStatus(**{**given, **fields})


class Fixed:
    def __init__(self, status: FleetStatus) -> None:
        self.status = status

    def collect(self):
        return families(self.status)


def scrape(collector) -> dict[tuple[str, ...], float]:
    """Return what Prometheus would read, by name and the values of labels."""
    registry = CollectorRegistry()
    registry.register(collector)
    parsed = text_string_to_metric_families(generate_latest(registry).decode())
    samples = (sample for family in parsed for sample in family.samples)
    return {(s.name, *s.labels.values()): s.value for s in samples}


def test_outcomes_are_counted_by_kind_and_no_kind_is_missing():
    totals = Totals(succeeded=7, errors={ErrorKind.TIMEOUT: 2})
    shown = scrape(Fixed(fleet(totals=totals)))
    assert shown["fanout_branches_ended_total", "succeeded"] == 7
    assert shown["fanout_branches_ended_total", "timeout"] == 2
    # A rate of something that begins at its second value is wrong: all are there from the start.
    kinds = {key[1] for key in shown if key[0] == "fanout_branches_ended_total"}
    assert kinds == {"succeeded", *ErrorKind}


def test_totals_and_usage():
    usage = Usage(
        calls=9, input_tokens=100, cached_input_tokens=60, cache_write_tokens=30, output_tokens=20,
        at_least={"cost_usd": 0.25},
    )  # fmt: skip
    totals = Totals(submitted=3, ended={RunStatus.FAILED: 1}, usage=usage, healed=4, dropped=5)
    shown = scrape(Fixed(fleet(totals=totals)))
    assert shown["fanout_runs_submitted_total",] == 3
    assert shown["fanout_runs_ended_total", "failed"] == 1
    assert shown["fanout_runs_ended_total", "succeeded"] == 0
    assert shown["fanout_calls_total",] == 9
    assert shown["fanout_input_tokens_total",] == 100
    assert shown["fanout_cached_input_tokens_total",] == 60
    assert shown["fanout_cache_write_tokens_total",] == 30
    assert shown["fanout_output_tokens_total",] == 20
    assert shown["fanout_reasoning_tokens_total",] == 0
    # A counter that goes away would look like a fleet that spends nothing.
    assert shown["fanout_cost_usd_total",] == 0.25
    assert shown["fanout_healed_total",] == 4
    assert shown["fanout_messages_dropped_total",] == 5


def test_latency_is_a_histogram_with_a_sum():
    latency = Latency(counts={bucket_of(0.25): 1, bucket_of(5_000.0): 1}, sum_s=5_000.25)
    shown = scrape(Fixed(fleet(totals=Totals(latency=latency))))
    assert shown["fanout_branch_seconds_bucket", "0.2"] == 0
    assert shown["fanout_branch_seconds_bucket", "0.3"] == 1
    assert shown["fanout_branch_seconds_bucket", str(BOUNDS_S[-1])] == 1
    assert shown["fanout_branch_seconds_bucket", "+Inf"] == 2
    assert shown["fanout_branch_seconds_count",] == 2
    assert shown["fanout_branch_seconds_sum",] == 5_000.25


def test_queues_leases_and_the_window():
    status = fleet(
        queues=(Queue(name="a", waiting=5, oldest_s=3.5), Queue(name="b", waiting=0)),
        leases=TakenMessages(taken=8, oldest_s=1.5),
        memory=ServerMemory(used_bytes=10, limit_bytes=100),
        runs={RunStatus.RUNNING: 2},
        window=StageLoad(open=3, waiting=4, permits_used=5, permits_limit=6, waiting_for_permits=7),
    )
    shown = scrape(Fixed(status))
    assert shown["fanout_queue_messages", "a"] == 5
    assert shown["fanout_queue_oldest_seconds", "a"] == 3.5
    assert shown["fanout_queue_oldest_seconds", "b"] == 0
    assert (shown["fanout_leases",], shown["fanout_lease_oldest_seconds",]) == (8, 1.5)
    assert (shown["fanout_redis_memory_bytes",], shown["fanout_redis_max_memory_bytes",]) == (
        10,
        100,
    )
    assert shown["fanout_runs", "running"] == 2
    assert shown["fanout_runs", "paused"] == 0
    assert (shown["fanout_shards_open",], shown["fanout_shards_waiting",]) == (3, 4)
    # The second are deprecated names.
    for name in ("permits", "lanes"):
        parts = ("used", "limit", "wanted")
        assert [shown[f"fanout_{name}_{part}",] for part in parts] == [5, 6, 7]
        window = status.to_dict()["window"]
        assert [window[f"{name}_{part}"] for part in parts] == [5, 6, 7]


def test_the_most_used_limit_shows():
    limits = {
        "a": LimitState(requests_ahead_s=2.0, tokens_ahead_s=9.0),
        "b": LimitState(requests_ahead_s=3.0, blocked_s=4.0, down_s=70.0),
    }
    shown = scrape(Fixed(fleet(limits=limits, totals=Totals(pauses=6))))
    assert shown["fanout_limiter_ahead_seconds",] == 9
    assert shown["fanout_limiter_paused_seconds",] == 4
    assert shown["fanout_model_down_seconds",] == 70
    assert shown["fanout_refused_total",] == 6


def test_learnt_limits_are_metrics():
    limits = {
        "a": LimitState(learnt=Rates(requests_per_minute=1_200, input_tokens_per_minute=50_000)),
        "b": LimitState(calls_at_once=20),
    }
    shown = scrape(Fixed(fleet(limits=limits)))
    assert shown["fanout_learnt_requests_per_minute", "a"] == 1_200
    assert shown["fanout_learnt_input_tokens_per_minute", "a"] == 50_000
    assert shown["fanout_model_calls_at_once", "b"] == 20
    assert ("fanout_learnt_tokens_per_minute", "a") not in shown


def test_memory_that_may_not_be_seen_is_left_out():
    assert ("fanout_redis_memory_bytes",) not in scrape(Fixed(fleet()))


def test_workers_and_their_load():
    taker = WorkerRecord(name="a@x", concurrency=8, in_flight=3, queues=(BRANCHES_QUEUE,))
    queues = (Queue(name=BRANCHES_QUEUE, waiting=13),)
    status = fleet(
        workers=[taker, WorkerRecord(name="b@y")], queues=queues, leases=TakenMessages(taken=8)
    )
    shown = scrape(Fixed(status))
    assert shown["fanout_workers_wanted",] == 3
    assert shown["fanout_workers",] == 2
    assert shown["fanout_worker_concurrency", "a@x"] == 8
    assert shown["fanout_worker_in_flight", "a@x"] == 3


def test_a_server_that_is_away_shows_as_down_and_nothing_else():
    away = redis.Redis(host="127.0.0.1", port=1)
    assert scrape(FleetCollector(None, away)) == {("fanout_up",): 0}
