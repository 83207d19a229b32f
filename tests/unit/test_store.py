"""One suite over every implementation of the run store, so that the fake cannot drift."""

from __future__ import annotations

import fakeredis
import pytest
import redis

from fanout.admission import Lanes
from fanout.errors import UnknownRunError
from fanout.runs import Chunk, ErrorKind, Outcome, RunStatus, Shard, Usage
from fanout.stores import MemoryStore, RedisStore

RUN = "r1"


@pytest.fixture(params=["memory", "fakeredis", "server"])
def store(request):
    if request.param == "memory":
        yield MemoryStore()
        return
    if request.param == "fakeredis":
        client = fakeredis.FakeRedis()
    else:
        client = redis.Redis.from_url(request.getfixturevalue("broker_url"))
    store = RedisStore(client)
    yield store
    store.close()


@pytest.fixture
def run(store):
    store.create_run(RUN, spec='{"model": "fake"}', created_at=1000.5)
    return RUN


def shard(count=3, first=0):
    chunks = [Chunk(text=f"t{i}", document=f"d{i}", document_index=i) for i in range(count)]
    return Shard(first=first, count=count, first_chunk=first, chunks=chunks)


def ok(index=0, **usage):
    return Outcome(index=index, output="yes", attempts=1, usage=Usage(calls=1, **usage))


def failed(index=0, kind=ErrorKind.TIMEOUT):
    return Outcome(index=index, kind=kind, message="too slow", attempts=2, usage=Usage(calls=2))


def test_a_new_run_is_enqueuing_and_keeps_its_spec(store, run):
    record = store.run(run)
    assert record.status is RunStatus.ENQUEUING
    assert record.created_at == 1000.5
    assert record.ended_at is None
    assert store.spec(run) == '{"model": "fake"}'


@pytest.mark.parametrize("ask", ["run", "spec", "delete_run"])
def test_an_unknown_run_is_an_error(store, ask):
    with pytest.raises(UnknownRunError, match="nope"):
        getattr(store, ask)("nope")


def test_runs_are_listed_newest_first(store):
    for run_id, created_at in [("old", 1.0), ("new", 3.0), ("mid", 2.0)]:
        store.create_run(run_id, spec="{}", created_at=created_at)
    assert [record.run_id for record in store.runs()] == ["new", "mid", "old"]


def test_a_shard_comes_back_as_it_was_written(store, run):
    store.put_shard(run, 0, 0, shard(2))
    assert store.shard(run, 0, 0) == shard(2)


def test_a_shard_written_twice_is_counted_once(store, run):
    store.put_shard(run, 0, 0, shard(3))
    store.put_shard(run, 0, 0, shard(3))
    store.put_shard(run, 0, 1, shard(2, first=3))
    record = store.stage(run, 0)
    assert (record.shards, record.total) == (2, 5)


def test_the_window_bounds_the_shards_in_flight(store, run):
    for number in range(4):
        store.put_shard(run, 0, number, shard())
    assert [grant.shard for grant in store.open_shards(run, 0, window=2)] == [0, 1]
    assert store.open_shards(run, 0, window=2) == []
    assert [g.shard for g in store.open_shards(run, 0, window=2, finished=1)] == [2]
    assert store.open_shards(run, 0, window=2, finished=1) == [], "closing twice frees one place"


def test_a_wider_window_opens_more(store, run):
    for number in range(4):
        store.put_shard(run, 0, number, shard())
    store.open_shards(run, 0, window=1)
    assert [grant.shard for grant in store.open_shards(run, 0, window=3)] == [1, 2]


def test_max_workers_is_spread_over_shards_and_never_exceeded(store, run):
    store.set_lanes(run, 0, Lanes(window=2, per_shard=3, cap=5))
    for number in range(4):
        store.put_shard(run, 0, number, shard())
    grants = store.open_shards(run, 0, window=50)
    assert [(grant.shard, grant.lanes) for grant in grants] == [(0, 3), (1, 2)]
    grants = store.open_shards(run, 0, window=50, finished=0)
    assert [(grant.shard, grant.lanes) for grant in grants] == [(2, 3)]


def test_a_branch_may_begin_and_its_deliveries_are_counted(store, run):
    store.put_shard(run, 0, 0, shard())
    assert store.begin(run, 0, 0, 1).verdict == "go"
    assert store.begin(run, 0, 0, 1).deliveries == 2
    assert store.begin(run, 0, 0, 2).deliveries == 1


def test_a_branch_with_an_outcome_does_not_begin_again(store, run):
    store.put_shard(run, 0, 0, shard())
    store.record(run, 0, 0, 1, ok(1))
    assert store.begin(run, 0, 0, 1).verdict == "done"


def test_no_branch_of_a_halted_run_begins(store, run):
    store.put_shard(run, 0, 0, shard())
    assert store.halt(run, RunStatus.FAILED, error="bad key")
    assert store.begin(run, 0, 0, 0).verdict == "halted"
    record = store.run(run)
    assert (record.halt, record.error) == (RunStatus.FAILED, "bad key")


def test_the_first_halt_stands(store, run):
    store.halt(run, RunStatus.FAILED, error="bad key")
    assert not store.halt(run, RunStatus.CANCELLED)
    assert store.run(run).halt is RunStatus.FAILED


def test_no_branch_of_a_deleted_run_begins(store, run):
    store.put_shard(run, 0, 0, shard())
    store.delete_run(run)
    assert store.begin(run, 0, 0, 0).verdict == "gone"
    assert not store.record(run, 0, 0, 0, ok()).first
    with pytest.raises(UnknownRunError):
        store.run(run)


def test_the_first_outcome_stands_and_is_counted_once(store, run):
    store.put_shard(run, 0, 0, shard())
    assert store.record(run, 0, 0, 0, ok(0)).first
    assert not store.record(run, 0, 0, 0, failed(0)).first
    assert store.outcomes(run, 0, 0) == {0: ok(0)}
    record = store.stage(run, 0)
    assert (record.done, record.succeeded, record.failed) == (1, 1, 0)


def test_failures_are_counted_by_kind(store, run):
    store.put_shard(run, 0, 0, shard())
    store.record(run, 0, 0, 0, failed(0))
    store.record(run, 0, 0, 1, failed(1))
    store.record(run, 0, 0, 2, failed(2, ErrorKind.AUTH))
    record = store.stage(run, 0)
    assert record.failed == 3
    assert record.errors == {ErrorKind.TIMEOUT: 2, ErrorKind.AUTH: 1}


def test_usage_adds_up(store, run):
    store.put_shard(run, 0, 0, shard())
    store.record(run, 0, 0, 0, ok(0, input_tokens=10, output_tokens=2, cost_usd=0.5))
    store.record(run, 0, 0, 1, ok(1, input_tokens=5, output_tokens=1, cost_usd=0.25))
    usage = Usage(calls=2, input_tokens=15, output_tokens=3, cost_usd=0.75)
    assert store.stage(run, 0).usage == usage


def test_an_unknown_quantity_makes_the_sum_unknown_not_smaller(store, run):
    store.put_shard(run, 0, 0, shard())
    store.record(run, 0, 0, 0, ok(0, input_tokens=10, output_tokens=2))
    store.record(run, 0, 0, 1, ok(1, input_tokens=10))
    usage = store.stage(run, 0).usage
    assert usage == Usage(calls=2, input_tokens=20, output_tokens=None, cost_usd=None)


def test_a_failed_call_without_usage_leaves_the_sum_known(store, run):
    store.put_shard(run, 0, 0, shard())
    store.record(run, 0, 0, 0, ok(0, input_tokens=10, output_tokens=2, cost_usd=0.0))
    store.record(run, 0, 0, 1, failed(1))
    usage = store.stage(run, 0).usage
    assert usage == Usage(calls=3, input_tokens=10, output_tokens=2, cost_usd=0.0)


def test_a_fed_shard_hands_out_each_further_position_once(store, run):
    store.put_shard(run, 0, 0, shard(4))
    store.start_shard(run, 0, 0, published=2)
    assert store.record(run, 0, 0, 0, ok(0), feed=4).next == 2
    assert store.record(run, 0, 0, 0, ok(0), feed=4).next is None, "a second delivery feeds none"
    assert store.record(run, 0, 0, 1, ok(1), feed=4).next == 3
    assert store.record(run, 0, 0, 2, ok(2), feed=4).next is None
    assert store.record(run, 0, 0, 3, ok(3), feed=4).next is None


def test_starting_a_fed_shard_again_hands_out_nothing_twice(store, run):
    store.put_shard(run, 0, 0, shard(4))
    store.start_shard(run, 0, 0, published=1)
    store.record(run, 0, 0, 0, ok(0), feed=4)
    store.start_shard(run, 0, 0, published=1)
    assert store.record(run, 0, 0, 1, ok(1), feed=4).next == 2


def test_missing_outcomes_are_filled_and_present_ones_kept(store, run):
    store.put_shard(run, 0, 0, shard())
    store.record(run, 0, 0, 1, ok(1))
    store.record_missing(run, 0, 0, [(p, failed(p, ErrorKind.LOST)) for p in range(3)])
    outcomes = store.outcomes(run, 0, 0)
    assert [outcomes[p].kind for p in range(3)] == [ErrorKind.LOST, None, ErrorKind.LOST]
    assert store.stage(run, 0).done == 3


def test_compaction_keeps_the_outcomes_and_shuts_late_ones_out(store, run):
    store.put_shard(run, 0, 0, shard(2))
    store.record(run, 0, 0, 0, ok(0))
    store.record(run, 0, 0, 1, failed(1))
    outcomes = store.outcomes(run, 0, 0)
    store.compact(run, 0, 0, outcomes)
    assert store.outcomes(run, 0, 0) == outcomes
    assert store.begin(run, 0, 0, 0).verdict == "done"
    assert not store.record(run, 0, 0, 0, failed(0)).first
    store.compact(run, 0, 0, {})
    assert store.outcomes(run, 0, 0) == outcomes, "compacting again changes nothing"


def test_a_status_moves_until_the_end_and_not_after(store, run):
    assert store.set_status(run, RunStatus.REDUCING, stage=2)
    assert (store.run(run).status, store.run(run).stage) == (RunStatus.REDUCING, 2)
    assert store.end_run(run, RunStatus.SUCCEEDED, ended_at=1007.0)
    assert not store.set_status(run, RunStatus.RUNNING)
    assert not store.end_run(run, RunStatus.FAILED, ended_at=1009.0, error="late")
    assert not store.halt(run, RunStatus.CANCELLED)
    record = store.run(run)
    assert record.has_ended
    assert (record.status, record.ended_at, record.error) == (RunStatus.SUCCEEDED, 1007.0, None)


def test_the_error_of_a_halt_is_what_the_run_ends_with(store, run):
    store.halt(run, RunStatus.FAILED, error="auth: bad key")
    store.end_run(run, RunStatus.FAILED, ended_at=1.0, error="no branch succeeded")
    assert store.run(run).error == "auth: bad key"


def test_the_first_result_stands(store, run):
    assert store.result(run) is None
    store.put_result(run, b"one")
    store.put_result(run, b"two")
    assert store.result(run) == b"one"


def test_a_note_is_taken_once(store):
    assert store.take_note("n") is None
    store.put_note("n", b"hello", ttl_s=60)
    assert store.take_note("n") == b"hello"
    assert store.take_note("n") is None


def test_workers_are_known_until_they_go_or_fall_silent(store):
    store.worker_alive("a@x", concurrency=8, ttl_s=60)
    store.worker_alive("b@x:1", concurrency=4, ttl_s=60)
    store.worker_alive("c@x", concurrency=4, ttl_s=-1)
    assert store.workers() == {"a@x": 8, "b@x:1": 4}
    store.worker_gone("a@x")
    assert store.workers() == {"b@x:1": 4}


def test_a_run_that_has_ended_can_be_reopened_once(store, run):
    store.put_shard(run, 0, 0, shard())
    store.put_shard(run, 1, 0, shard())
    store.record(run, 1, 0, 0, ok(0))
    store.open_shards(run, 0, window=2)
    assert not store.reopen_run(run), "it has not ended"
    store.halt(run, RunStatus.FAILED, error="bad key")
    store.set_status(run, RunStatus.REDUCING, stage=1)
    store.put_result(run, b"old")
    store.end_run(run, RunStatus.FAILED, ended_at=5.0)
    assert store.reopen_run(run)
    assert not store.reopen_run(run)
    record = store.run(run)
    assert (record.status, record.stage, record.halt) == (RunStatus.RUNNING, 0, None)
    assert (record.error, record.ended_at, store.result(run)) == (None, None, None)
    assert store.run(run).base_stage == 1, "the next aggregate takes the stages from 2"
    assert store.stage(run, 1).usage.calls == 1, "what was consumed stays counted"
    with pytest.raises(UnknownRunError):
        store.shard(run, 1, 0)
    assert [grant.shard for grant in store.open_shards(run, 0, window=2)] == [0]


def test_a_finished_shard_can_be_taken_back_to_what_is_kept(store, run):
    store.put_shard(run, 0, 0, shard(3))
    store.record(run, 0, 0, 0, ok(0, input_tokens=5, output_tokens=1, cost_usd=0.5))
    store.record(run, 0, 0, 1, failed(1))
    store.record(run, 0, 0, 2, failed(2, ErrorKind.AUTH))
    outcomes = store.outcomes(run, 0, 0)
    store.compact(run, 0, 0, outcomes)
    assert store.is_finished(run, 0, 0)
    kept = {0: outcomes[0], 2: outcomes[2]}
    store.reopen_shard(run, 0, 0, kept=kept, dropped=[outcomes[1]])
    assert not store.is_finished(run, 0, 0)
    assert store.outcomes(run, 0, 0) == kept
    record = store.stage(run, 0)
    assert (record.succeeded, record.failed, record.errors) == (1, 1, {ErrorKind.AUTH: 1})
    assert record.usage.calls == 5, "what was consumed stays counted"
    assert store.begin(run, 0, 0, 0).verdict == "done"
    assert store.begin(run, 0, 0, 1).verdict == "go"
    assert store.record(run, 0, 0, 1, ok(1)).first


def test_deleting_leaves_no_key(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client)
    store.create_run(RUN, spec="{}", created_at=1.0)
    for number in range(2):
        store.put_shard(RUN, 0, number, shard())
    store.open_shards(RUN, 0, window=2)
    store.begin(RUN, 0, 0, 0)
    store.record(RUN, 0, 0, 0, ok())
    store.put_result(RUN, b"x")
    assert client.dbsize() > 4
    store.delete_run(RUN)
    assert client.keys("*") == []
    store.close()


def test_every_key_of_a_run_expires(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client, ttl_s=100)
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.put_shard(RUN, 0, 0, shard())
    store.open_shards(RUN, 0, window=2)
    store.start_shard(RUN, 0, 0, published=1)
    store.begin(RUN, 0, 0, 0)
    store.record(RUN, 0, 0, 0, ok())
    store.put_result(RUN, b"x")
    store.compact(RUN, 0, 0, {0: ok()})
    keys = [key for key in client.keys("*") if key != b"fanout:runs"]
    assert len(keys) == 6
    assert all(0 < client.ttl(key) <= 100 for key in keys)
    store.close()
