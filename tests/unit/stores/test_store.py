"""The run store on a fake server, on a real one, and with its blobs as files."""

from __future__ import annotations

import random
import time

import msgspec
import pytest
import redis

from fanout.core.errors import StoredDataError, UnknownRunError
from fanout.core.fleet_records import Totals, WorkerRecord
from fanout.core.gathered import (
    BatchRecord,
    GatherReply,
    GatherRequest,
    Landing,
    LandRequest,
    LaneRecord,
    Member,
    Prepared,
    RunBatch,
)
from fanout.core.group_hashes import encode_hashes
from fanout.core.ids import BranchId, PartitionId, ShardId, StageId
from fanout.core.latency import Latency, bucket_of
from fanout.core.partitions import PartitionRecord
from fanout.core.queue_names import TAKEN, TURNS, backlogs_of
from fanout.core.rate_limits import CallTokens, LimitState, Rates
from fanout.core.records import (
    NO_CALL,
    QUANTITIES,
    ErrorKind,
    Outcome,
    RunStatus,
    Shard,
    Usage,
    total_usage,
)
from fanout.core.state import (
    BeginReply,
    BeginRequest,
    CheckpointRequest,
    Frontier,
    RecordRequest,
    SealReply,
    StageLoad,
)
from fanout.policy.admission import in_play_limit
from fanout.policy.group_plans import planned
from fanout.policy.outages import FIRST_PROBE_S, BreakerReply
from fanout.policy.pricing import Price, priced
from fanout.stores import RedisStore
from fanout.stores.redis.batch_lanes import RedisBatchLanes
from fanout.stores.redis.branches import RedisBranches
from fanout.stores.redis.gathered import RedisGathered
from fanout.stores.redis.groups import RedisGroups
from fanout.stores.redis.joined import RedisJoined
from fanout.stores.redis.runs import RedisRuns
from fanout.stores.redis.stages import RedisStages
from tests.fakes import RUN, begin_one, fake_store, make_shard, record_one, share_one


@pytest.fixture
def store(any_store):
    return any_store


@pytest.fixture
def run(store):
    store.create_run(RUN, spec='{"model": "fake"}', created_at=1000.5)
    return RUN


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


def test_runs_are_found_by_what_their_ids_begin_with(store):
    for number, run_id in enumerate(["ab1", "ab2", "b1", "a*"]):
        store.create_run(run_id, spec="{}", created_at=float(number))
    store.end_run("ab1", RunStatus.FAILED, ended_at=9.0)
    found = [(record.run_id, record.status.value) for record in store.runs("ab")]
    assert found == [("ab2", "enqueuing"), ("ab1", "failed")]
    assert [record.run_id for record in store.runs("a*")] == ["a*"], "it is no pattern"
    assert list(store.runs("ab11")) == []


def test_more_runs_than_are_read_at_once_are_all_listed(store):
    names = [f"{number % 2}{number:03}" for number in range(250)]
    for number, run_id in enumerate(names):
        store.create_run(run_id, spec="{}", created_at=float(number))
    store.delete_run(names[120])
    expected = [name for name in reversed(names) if name != names[120]]
    assert [record.run_id for record in store.runs()] == expected
    assert len(list(store.runs("1"))) == 125


def test_a_run_that_has_expired_is_not_found_by_its_id(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client)
    for run_id in ("ab1", "ab2"):
        store.create_run(run_id, spec="{}", created_at=1.0)
    client.delete("fanout:run:ab1")
    assert [record.run_id for record in store.runs("ab")] == ["ab2"]
    assert client.zrange("fanout:runs", 0, -1) == [b"ab2"], "it is listed no more"
    assert store.active_runs() == ["ab1", "ab2"], "the reaper looks whether its deletion has ended"
    store.close()


def test_there_is_one_clock(store):
    assert store.now() == pytest.approx(time.time(), abs=10)


def test_a_shard_comes_back_as_it_was_written(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard(2))
    assert store.shard(ShardId(run, 0, 0)) == make_shard(2)


def test_a_shard_written_twice_is_counted_once(store, run):
    assert store.put_shard(ShardId(run, 0, 0), make_shard(3))
    assert store.put_shard(ShardId(run, 0, 0), make_shard(2))
    assert store.put_shard(ShardId(run, 0, 1), make_shard(2, first=3))
    record = store.stage(StageId(run, 0))
    assert (record.shards, record.total) == (2, 5)
    assert store.shard(ShardId(run, 0, 0)) == make_shard(3), "the first one stands"


def test_a_sealed_stage_takes_no_more_shards_and_the_first_seal_stands(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert store.seal_stage(StageId(run, 0)) == SealReply(shards=1, first=True)
    assert not store.put_shard(ShardId(run, 0, 1), make_shard())
    assert not store.put_shard(ShardId(run, 0, 0), make_shard())
    assert store.seal_stage(StageId(run, 0)) == SealReply(shards=1, first=False)
    assert (store.stage(StageId(run, 0)).shards, store.stage(StageId(run, 0)).sealed) == (1, True)


def test_a_stage_can_be_sealed_before_it_has_a_shard(store, run):
    assert store.seal_stage(StageId(run, 0)) == SealReply(shards=0, first=True)


@pytest.mark.parametrize("how", ["halt", "end_run"])
def test_a_run_that_was_stopped_takes_no_more_shards(store, run, how):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    if how == "halt":
        store.halt(run, RunStatus.CANCELLED)
    else:
        store.end_run(run, RunStatus.FAILED, ended_at=1.0)
    assert not store.put_shard(ShardId(run, 0, 1), make_shard())
    assert store.stage(StageId(run, 0)).shards == 1


def test_an_unknown_run_takes_no_shard_and_no_seal(store):
    with pytest.raises(UnknownRunError):
        store.put_shard(ShardId("nope", 0, 0), make_shard())
    with pytest.raises(UnknownRunError):
        store.seal_stage(StageId("nope", 0))


def test_the_window_bounds_the_shards_in_flight(store, run):
    for number in range(4):
        store.put_shard(ShardId(run, 0, number), make_shard())
    assert store.open_shards(StageId(run, 0), window=2) == [0, 1]
    assert store.open_shards(StageId(run, 0), window=2) == []
    assert store.open_shards(StageId(run, 0), window=2, finished=1) == [2]
    assert store.open_shards(StageId(run, 0), window=2, finished=1) == [], (
        "closing twice frees one place"
    )


def test_a_wider_window_opens_more(store, run):
    for number in range(4):
        store.put_shard(ShardId(run, 0, number), make_shard())
    store.open_shards(StageId(run, 0), window=1)
    assert store.open_shards(StageId(run, 0), window=3) == [1, 2]


@pytest.mark.parametrize(("stage", "branches", "opened"), [(1, 100, 5), (1, 500, 1), (0, 100, 1)])
def test_more_shards_of_a_reduce_are_in_flight_where_they_have_few_branches(
    store, run, stage, branches, opened
):
    for number in range(9):
        shard = make_shard(branches, first=branches * number)
        store.put_shard(ShardId(run, stage, number), shard)
    assert store.open_shards(StageId(run, stage), window=1) == list(range(opened))
    assert store.open_shards(StageId(run, stage), window=1, finished=0) == [opened]


def test_a_branch_may_begin_and_its_deliveries_are_counted(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a")) == BeginReply(
        verdict="go", deliveries=1
    )
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="b")).deliveries == 2
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 2), token="c")).deliveries == 1


def test_a_begin_that_is_sent_again_counts_once(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a")).deliveries == 1
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a")).deliveries == 1


def test_a_branch_that_was_begun_twice_without_an_end_must_be_begun_alone(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    for token in ("a", "b"):
        begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token=token))
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="c")) == BeginReply(
        verdict="suspect", deliveries=2
    )
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="c")).deliveries == 2, (
        "it is not counted yet"
    )
    assert (
        begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="c", is_alone=True)).deliveries
        == 3
    )


def test_a_begin_can_be_taken_back_by_its_holder(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a"))
    store.release_claim(BranchId(run, 0, 0, 1), token="another")
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="b")).deliveries == 2
    store.release_claim(BranchId(run, 0, 0, 1), token="b")
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="c")).deliveries == 2
    store.release_claim(BranchId(run, 0, 0, 1), token="c", counts=True)
    assert (
        begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="d", is_alone=True)).deliveries
        == 3
    )


def begin(store, token, **more):
    return begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 1), token=token, **more)).verdict


def test_a_branch_that_a_living_holder_has_begun_is_not_begun_by_another(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    store.beat("h1", ttl_s=60)
    assert begin(store, "a", holder="h1", lasts_s=60) == "go"
    assert begin(store, "a", holder="h1", lasts_s=60) == "go", "it asks again"
    assert begin(store, "b", holder="h2", lasts_s=60) == "held"
    assert begin(store, "c", holder="h1", lasts_s=60) == "held", "nor by itself"
    assert store.shard_state(ShardId(run, 0, 0)).held == {1}


def test_a_claim_that_its_delivery_confirms_is_extended(server_clock):
    store = fake_store()
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.put_shard(ShardId(RUN, 0, 0), make_shard())
    store.beat("h1", ttl_s=3600)
    assert begin(store, "a", holder="h1", lasts_s=2) == "go"
    server_clock.now += 1.5
    assert begin(store, "a", holder="h1", lasts_s=2) == "go"
    server_clock.now += 1.5
    assert begin(store, "b", holder="h2", lasts_s=2) == "held"
    server_clock.now += 1.0
    assert begin(store, "b", holder="h2", lasts_s=2) == "go"


def advance(store, token, checkpoint=b"x", position=1, **more):
    of = BranchId(RUN, 0, 0, position)
    [reply] = store.checkpoint_all([CheckpointRequest(of, token, checkpoint, **more)])
    return reply.verdict


def checkpoint(store, position=1):
    return store.checkpoints([BranchId(RUN, 0, 0, position)])[0]


def test_a_checkpoint_is_there_until_the_branch_has_ended(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    branch = BranchId(run, 0, 0, 1)
    assert checkpoint(store) is None
    begin(store, "a")
    assert [advance(store, "a", blob) for blob in (b"one", b"\x00two")] == ["go", "go"]
    both = [branch, BranchId(run, 0, 0, 2)]
    assert store.checkpoints(both) == [b"\x00two", None], "the last one; and of no other branch"
    record_one(store, RecordRequest(branch, ok(1), has_checkpoint=True))
    assert checkpoint(store) is None
    assert advance(store, "a") == "done"
    assert checkpoint(store) is None


def test_a_delivery_that_has_lost_its_claim_writes_no_checkpoint(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert advance(store, "a") == "held", "it has not begun"
    begin(store, "a")
    assert advance(store, "a", b"of a") == "go"
    begin(store, "b")
    assert advance(store, "a", b"late") == "held"
    store.release_claim(BranchId(run, 0, 0, 1), token="b")
    assert advance(store, "b", b"late") == "held"
    assert checkpoint(store) == b"of a"


def test_a_checkpoint_extends_the_claim(server_clock):
    store = fake_store()
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.put_shard(ShardId(RUN, 0, 0), make_shard())
    store.beat("h1", ttl_s=3600)
    begin(store, "a", holder="h1", lasts_s=2)
    server_clock.now += 1.5
    assert advance(store, "a", holder="h1", lasts_s=2) == "go"
    server_clock.now += 1.5
    assert begin(store, "b", holder="h2", lasts_s=2) == "held"


def test_a_branch_that_advances_is_not_taken_for_one_that_kills_its_worker(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    for number in range(6):
        reply = begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token=f"t{number}"))
        assert (reply.verdict, reply.deliveries) == ("go", 2 if number else 1)
        assert advance(store, f"t{number}") == "go"
    assert begin(store, "x") == "go"
    assert begin(store, "y") == "suspect", "it has not advanced since"


def test_a_branch_that_is_handed_back_is_known_to_have_a_checkpoint(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    branch = BranchId(run, 0, 0, 1)
    for token in ("a", "b", "c"):
        begin_one(store, BeginRequest(branch, token=token))
        if token == "a":
            advance(store, token)
        store.release_claim(branch, token=token)
    assert begin_one(store, BeginRequest(branch, token="d")).deliveries == 2


@pytest.mark.parametrize(
    ("end", "verdict"),
    [
        (lambda store: store.halt(RUN, RunStatus.CANCELLED), "halted"),
        (lambda store: store.pause(RUN), "paused"),
    ],
)
def test_a_branch_learns_with_its_checkpoint_that_no_call_may_begin(store, run, end, verdict):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    begin(store, "a")
    end(store)
    assert advance(store, "a", b"paid") == verdict
    assert checkpoint(store) == b"paid", "it was paid for"


def test_a_deadline_ends_branches_between_calls_but_not_those_of_the_reduce(store):
    store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=2.0)
    for stage, verdict in ((0, "expired"), (1, "go")):
        branch = BranchId(RUN, stage, 0, 0)
        store.put_shard(branch.shard_id, make_shard())
        # A begin would refuse it: the deadline passes during the call.
        store._redis.hset(f"fanout:run:{RUN}:s{stage}:0:state", "t:0", "a me 9")
        assert store.checkpoint_all([CheckpointRequest(branch, "a", b"x")])[0].verdict == verdict


@pytest.mark.parametrize("how", ["compact", "retry", "delete"])
def test_checkpoints_go_with_their_shard(store, run, how):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    begin(store, "a")
    advance(store, "a")
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), failed(1)))
    assert checkpoint(store) == b"x", "the record knew of none"
    match how:
        case "compact":
            store.compact(ShardId(run, 0, 0), {1: failed(1)})
        case "retry":
            store.reopen_shard(ShardId(run, 0, 0), kept={}, dropped=[failed(1)])
        case "delete":
            store.delete_run(run)
    assert checkpoint(store) is None


def test_a_run_that_ended_while_it_was_paused_is_not_unpaused(store, run):
    assert store.pause(run)
    store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
    assert not store.unpause(run)


# A delivery dies, and its message comes twice: as Celery's further try, and back from the broker.
# What each step gives: (delivery, holder) begins; "died" is the claim of its delivery given up by
# the process that took it; "ends" is a holder that is silent; "late" is a begin that a dead process
# had sent, and which comes only now.
LOST = {
    "a further try begins when the dead one is given up": [
        ("a", "h1", "go"), ("died", "a"), ("try", "h2", "go"), ("copy", "h1", "held"),
    ],
    "the copy is first": [
        ("a", "h1", "go"), ("died", "a"), ("copy", "h2", "go"), ("try", "h1", "held"),
        ("try2", "h2", "held"),
    ],
    "nobody begins before it is given up": [
        ("a", "h1", "go"), ("try", "h2", "held"), ("copy", "h1", "held"), ("died", "a"),
        ("copy2", "h1", "go"), ("try2", "h2", "held"),
    ],
    "it is given up twice, and another one has begun": [
        ("a", "h1", "go"), ("died", "a"), ("copy", "h2", "go"), ("died", "a"),
        ("try", "h1", "held"),
    ],
    "given up when another one has begun after the parent was silent": [
        ("a", "h1", "go"), ("ends", "h1"), ("copy", "h2", "go"), ("died", "a"),
        ("try", "h2", "held"),
    ],
    "the parent dies before it is given up": [
        ("a", "h1", "go"), ("copy", "h2", "held"), ("ends", "h1"), ("copy2", "h2", "go"),
        ("try", "h2", "held"),
    ],
    "the parent dies after it is given up": [
        ("a", "h1", "go"), ("died", "a"), ("ends", "h1"), ("copy", "h2", "go"),
        ("try", "h2", "held"),
    ],
    "the second one dies as well": [
        ("a", "h1", "go"), ("died", "a"), ("copy", "h2", "go"), ("died", "a"), ("died", "copy"),
        ("try", "h1", "alone"), ("copy2", "h2", "held"),
    ],
    "the begin of the dead one comes late": [
        ("died", "a"), ("a", "h1", "go"), ("copy", "h2", "held"), ("died", "a"),
        ("copy2", "h2", "go"), ("try", "h1", "held"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_what_was_at_a_branch_that_died_is_followed_by_one_delivery(store, run, case, passing):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    for holder in ("h1", "h2"):
        store.beat(holder, ttl_s=60)
    for step in LOST[case]:
        match step:
            case ("died", token):
                store.release_claim(BranchId(run, 0, 0, 1), token=token, counts=True)
            case ("ends", holder):
                store.beat(holder, ttl_s=0.001)
                passing.until(lambda: not store.shard_state(ShardId(run, 0, 0)).held)
            case (token, holder, "alone"):
                assert begin(store, token, holder=holder, lasts_s=60) == "suspect", step
                assert begin(store, token, holder=holder, lasts_s=60, is_alone=True) == "go", step
            case (token, holder, verdict):
                assert begin(store, token, holder=holder, lasts_s=60) == verdict, step
    assert store.shard_state(ShardId(run, 0, 0)).held == {1}


class Passing:
    """The time of a server: that of a fake one passes only as a test says.

    Attributes:
        short_s: Seconds that do not pass while a test is at its next steps.
    """

    def __init__(self, clock):
        self._clock = clock
        self.short_s = 0.2 if clock else 1.0

    def by(self, seconds):
        """Let so many seconds pass."""
        if self._clock:
            self._clock.now += seconds
        else:
            time.sleep(seconds)

    def until(self, condition):
        """Let time pass until a condition holds, and a moment more."""
        for _ in range(1_000):
            has_come = condition()
            self.by(0.05)
            if has_come:
                return
        raise AssertionError("it does not come to that")


@pytest.fixture
def passing(request, store):
    is_real = request.node.callspec.params["any_store"] == "server"
    return Passing(None if is_real else request.getfixturevalue("server_clock"))


def test_what_is_gone_is_taken_back_by_nobody(store, run):
    before = sorted(store._redis.keys())
    store.release_claim(BranchId(run, 0, 7, 1), token="a")
    store.release_claim(BranchId("nope", 0, 0, 1), token="a")
    assert sorted(store._redis.keys()) == before


def test_a_holder_that_is_silent_holds_nothing(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert begin(store, "a", holder="h1", lasts_s=60) == "go"
    assert store.shard_state(ShardId(run, 0, 0)).held == set()
    assert begin(store, "b", holder="h2", lasts_s=60) == "go"


def test_a_branch_is_not_held_for_longer_than_requested(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    store.beat("h1", ttl_s=60)
    begin(store, "a", holder="h1", lasts_s=0)
    assert store.shard_state(ShardId(run, 0, 0)).held == set()
    assert begin(store, "b", holder="h2") == "go"


def test_a_branch_that_was_handed_back_is_not_held(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    store.beat("h1", ttl_s=60)
    begin(store, "a", holder="h1", lasts_s=60)
    store.release_claim(BranchId(run, 0, 0, 1), token="a")
    assert begin(store, "b", holder="h2", lasts_s=60) == "go"


def test_when_all_were_silent_the_first_to_return_does_not_take_the_others_for_dead(
    store, run, passing
):
    store.put_shard(ShardId(run, 0, 0), make_shard())

    def held():
        return store.shard_state(ShardId(run, 0, 0)).held

    def lapse():
        passing.until(lambda: not held())

    store.beat("dead", ttl_s=passing.short_s)
    begin_one(store, BeginRequest(BranchId(run, 0, 0, 2), token="a", holder="dead", lasts_s=60))
    lapse()
    for holder in ("h1", "h2"):
        store.beat(holder, ttl_s=passing.short_s)
    begin(store, "b", holder="h1", lasts_s=60)
    assert held() == {1}
    lapse()
    store.beat("h2", ttl_s=passing.short_s)
    assert held() == {1}, "h1 is given time to say that it is alive; the dead one is not"


def test_a_worker_that_was_silent_as_long_takes_no_holder_for_dead(store, run, passing):
    """The server was away, or refused all beats; what it asks now comes before its own beat."""
    ttl_s = passing.short_s
    store.put_shard(ShardId(run, 0, 0), make_shard())

    def copy():
        return begin(store, "b", holder="h2", beats_for_s=ttl_s, lasts_s=60)

    for holder in ("h1", "h2"):
        store.beat(holder, ttl_s=ttl_s)
    assert begin(store, "a", holder="h1", beats_for_s=ttl_s, lasts_s=60) == "go"
    passing.until(lambda: not store.shard_state(ShardId(run, 0, 0)).held)
    assert copy() == "held"
    assert begin(store, "c", holder="h3", beats_for_s=ttl_s, lasts_s=60) == "held", "it is new"
    store.beat("h2", ttl_s=ttl_s)
    assert copy() == "held", "now h1 is given time"

    def is_begun():
        store.beat("h2", ttl_s=ttl_s)
        return copy() == "go"

    passing.until(is_begun)


def test_shards_without_all_their_outcomes_are_incomplete_and_can_be_adopted(store, run):
    for number in range(3):
        store.put_shard(ShardId(run, 0, number), make_shard(1, first=number))
    assert store.incomplete(StageId(run, 0)) == [0, 1, 2]
    record_one(store, RecordRequest(BranchId(run, 0, 0, 0), ok(0)))
    store.compact(ShardId(run, 0, 0), {0: ok(0)})
    record_one(store, RecordRequest(BranchId(run, 0, 1, 0), ok(1)))
    assert store.incomplete(StageId(run, 0)) == [2]
    store.adopt(StageId(run, 0), [2])
    assert store.progress(StageId(run, 0)).open == {2}


@pytest.mark.parametrize("ends_as", [RunStatus.SUCCEEDED, RunStatus.FAILED])
def test_a_run_that_is_cancelled_as_it_ends_is_cancelled(store, run, ends_as):
    """Its last task has read the run before the cancel, which was told that it was in time."""
    assert store.halt(run, RunStatus.CANCELLED)
    assert store.end_run(run, ends_as, ended_at=5.0)
    assert store.run(run).status is RunStatus.CANCELLED


def test_a_paused_run_parks_its_branches_until_it_goes_on(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert store.pause(run)
    assert not store.pause(run), "it is paused already"
    assert store.run(run).status is RunStatus.PAUSED
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a")).verdict == "paused"
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="b")).verdict == "paused"
    assert store.unpause(run)
    assert not store.unpause(run)
    assert store.run(run).status is RunStatus.ENQUEUING
    assert store.take_parked(run) == [BranchId(RUN, 0, 0, 1)]
    assert store.take_parked(run) == []
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="c")).deliveries == 1


def test_what_was_begun_before_a_pause_goes_on_and_is_not_parked(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a"))
    store.pause(run)
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a")) == BeginReply(
        verdict="go", deliveries=1
    )
    assert store.take_parked(run) == []
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="b")).verdict == "paused", (
        "another delivery"
    )


def test_what_has_ended_or_was_stopped_cannot_be_paused(store, run):
    store.halt(run, RunStatus.CANCELLED)
    assert not store.pause(run)
    store.end_run(run, RunStatus.CANCELLED, ended_at=1.0)
    assert not store.pause(run)
    assert not store.pause("nope")


def test_no_branch_begins_after_the_deadline_but_reductions_do(store):
    store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=time.time() - 2)
    store.put_shard(ShardId(RUN, 0, 0), make_shard())
    store.put_shard(ShardId(RUN, 1, 0), make_shard())
    assert begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 0), token="a")).verdict == "expired"
    assert begin_one(store, BeginRequest(BranchId(RUN, 1, 0, 0), token="a")).verdict == "go"


def test_runs_are_active_until_they_end_and_again_when_reopened(store, run):
    assert store.active_runs() == [run]
    store.end_run(run, RunStatus.FAILED, ended_at=1.0)
    assert store.active_runs() == []
    store.reopen_run(run, retry=frozenset())
    assert store.active_runs() == [run]


def test_the_progress_of_a_stage_changes_when_a_branch_begins_or_ends(store, run):
    for number in range(3):
        store.put_shard(ShardId(run, 0, number), make_shard())
    store.open_shards(StageId(run, 0), window=2)
    first = store.progress(StageId(run, 0))
    assert (first.written, first.opened, first.sealed, first.open) == (3, 2, False, {0, 1})
    begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="a"))
    second = store.progress(StageId(run, 0))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), ok(1)))
    third = store.progress(StageId(run, 0))
    assert first.marks[1] == second.marks[1] == third.marks[1]
    assert len({first.marks[0], second.marks[0], third.marks[0]}) == 3


def test_the_state_of_a_shard_says_what_was_published_and_what_has_ended(store, run):
    store.put_shard(ShardId(run, 0, 0), Shard(first=7, count=3, first_chunk=0, chunks=[]))
    state = store.shard_state(ShardId(run, 0, 0))
    assert (state.first, state.count, state.published, state.ended) == (7, 3, False, frozenset())
    assert store.start_shard(ShardId(run, 0, 0))
    assert not store.start_shard(ShardId(run, 0, 0)), "the first stands"
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), ok(1)))
    store.healed(ShardId(run, 0, 0))
    state = store.shard_state(ShardId(run, 0, 0))
    assert (state.published, state.ended, state.heals) == (True, frozenset({1}), 1)
    store.compact(ShardId(run, 0, 0), store.outcomes(ShardId(run, 0, 0)))
    assert store.shard_state(ShardId(run, 0, 0)).finished
    assert store.indices(ShardId(run, 0, 0)) == range(7, 10)
    with pytest.raises(UnknownRunError):
        store.shard_state(ShardId(run, 0, 9))


def test_a_lock_is_its_holder_s_until_it_runs_out(store):
    assert store.take_lock("x", "me", ttl_s=60)
    assert store.take_lock("x", "me", ttl_s=60)
    assert not store.take_lock("x", "you", ttl_s=60)
    assert store.take_lock("y", "you", ttl_s=60)


def test_a_branch_with_an_outcome_does_not_begin_again(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), ok(1)))
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="t")).verdict == "done"


def test_no_branch_of_a_halted_run_begins(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert store.halt(run, RunStatus.FAILED, error="bad key")
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 0), token="t")).verdict == "halted"
    record = store.run(run)
    assert (record.halt, record.error) == (RunStatus.FAILED, "bad key")


def test_the_first_halt_stands(store, run):
    store.halt(run, RunStatus.FAILED, error="bad key")
    assert not store.halt(run, RunStatus.CANCELLED)
    assert store.run(run).halt is RunStatus.FAILED


def test_no_branch_of_a_deleted_run_begins(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    store.delete_run(run)
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 0), token="t")).verdict == "gone"
    assert not record_one(store, RecordRequest(BranchId(run, 0, 0, 0), ok())).first
    with pytest.raises(UnknownRunError):
        store.run(run)


def test_the_first_outcome_stands_and_is_counted_once(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    assert record_one(store, RecordRequest(BranchId(run, 0, 0, 0), ok(0))).first
    assert not record_one(store, RecordRequest(BranchId(run, 0, 0, 0), failed(0))).first
    assert store.outcomes(ShardId(run, 0, 0)) == {0: ok(0)}
    record = store.stage(StageId(run, 0))
    assert (record.done, record.succeeded, record.failed) == (1, 1, 0)


def test_failures_are_counted_by_kind(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    record_one(store, RecordRequest(BranchId(run, 0, 0, 0), failed(0)))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), failed(1)))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 2), failed(2, ErrorKind.AUTH)))
    record = store.stage(StageId(run, 0))
    assert record.failed == 3
    assert record.errors == {ErrorKind.TIMEOUT: 2, ErrorKind.AUTH: 1}


def test_usage_adds_up(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    record_one(
        store,
        RecordRequest(
            BranchId(run, 0, 0, 0), ok(0, input_tokens=10, output_tokens=2, cost_usd=0.5)
        ),
    )
    record_one(
        store,
        RecordRequest(
            BranchId(run, 0, 0, 1), ok(1, input_tokens=5, output_tokens=1, cost_usd=0.25)
        ),
    )
    usage = Usage(calls=2, input_tokens=15, output_tokens=3, cost_usd=0.75)
    assert store.stage(StageId(run, 0)).usage == usage


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_store_adds_up_as_outcomes_do(store, run, seed, at_once):
    """Random usages, some of them unknown, and branches that made no call."""
    rng = random.Random(seed)
    store.put_shard(ShardId(run, 0, 0), make_shard())

    def usage():
        if rng.random() < 0.3:
            return Usage()
        return priced(
            Usage(
                calls=rng.randint(1, 3),
                input_tokens=rng.choice([None, *[rng.randint(0, 10**6)] * (3 * (seed % 2) + 1)]),
                output_tokens=rng.randint(0, 10**5),
            ),
            Price(input_mtok=0.25, output_mtok=rng.choice([2.0, 1.0 / 3])),
        )

    used = [usage() for _ in range(3)]
    requests = []
    for number, one in enumerate(used):
        kind = None if one.calls else ErrorKind.CANCELLED
        outcome = Outcome(index=number, kind=kind, attempts=one.calls, usage=one)
        by_model = {"m": one} if one.calls else {}
        branch = BranchId(run, 0, 0, number)
        requests.append(RecordRequest(branch, outcome=outcome, usage_of=by_model))
    for first in range(0, len(requests), at_once):
        store.record_all(requests[first : first + at_once])
    store.record_all(requests)
    expected = total_usage(used)
    stage = store.stage(StageId(run, 0))
    totals = store.totals().usage
    for name in QUANTITIES:
        sums = [stage.usage, *stage.usage_of.values()]
        for found in sums:
            assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
            assert found.known(name) == pytest.approx(expected.known(name)), name
        assert totals.known(name) == pytest.approx(expected.known(name)), name


def test_a_quantity_that_is_0_is_known_beside_what_else_branches_used(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    free = ok(0, input_tokens=0, cached_input_tokens=0, output_tokens=2, cost_usd=0.0)
    paid = ok(1, input_tokens=0, cached_input_tokens=0, output_tokens=1, cost_usd=0.5)
    record_one(store, RecordRequest(BranchId(run, 0, 0, 0), free))
    assert store.stage(StageId(run, 0)).usage == free.usage
    assert store.totals().usage == free.usage
    store.record_all(
        [
            RecordRequest(BranchId(run, 0, 0, 1), paid),
            RecordRequest(BranchId(run, 0, 0, 2), Outcome(index=2, kind=ErrorKind.CANCELLED)),
            RecordRequest(BranchId(run, 0, 0, 0), paid),
        ]
    )
    used = Usage(calls=2, input_tokens=0, cached_input_tokens=0, output_tokens=3, cost_usd=0.5)
    assert store.stage(StageId(run, 0)).usage == used
    assert store.totals().usage == used


def test_an_unknown_quantity_makes_the_sum_unknown_not_smaller(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    record_one(
        store, RecordRequest(BranchId(run, 0, 0, 0), ok(0, input_tokens=10, output_tokens=2))
    )
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), ok(1, input_tokens=10)))
    usage = store.stage(StageId(run, 0)).usage
    assert usage == Usage(calls=2, input_tokens=20, at_least={"output_tokens": 2})


def test_calls_of_unknown_usage_make_the_sum_unknown_and_branches_without_calls_do_not(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    known = Usage(calls=1, input_tokens=10, output_tokens=2, cost_usd=0.0)
    record_one(
        store,
        RecordRequest(
            BranchId(run, 0, 0, 0), ok(0, input_tokens=10, output_tokens=2, cost_usd=0.0)
        ),
    )
    record_one(
        store, RecordRequest(BranchId(run, 0, 0, 1), Outcome(index=1, kind=ErrorKind.CANCELLED))
    )
    assert store.stage(StageId(run, 0)).usage == known
    record_one(store, RecordRequest(BranchId(run, 0, 0, 2), failed(2)))
    part = {"input_tokens": 10, "output_tokens": 2}
    assert store.stage(StageId(run, 0)).usage == Usage(calls=3, at_least=part)


@pytest.mark.parametrize(
    "outcomes",
    [
        [],
        [Outcome(index=0, kind=ErrorKind.CANCELLED)],
        [Outcome(index=0, output="kept", saved=Usage(calls=1, cost_usd=0.5))],
        [Outcome(index=0, kind=ErrorKind.BUDGET, usage=Usage()), Outcome(index=1, output="kept")],
    ],
)
def test_without_a_call_nothing_is_used(store, run, outcomes):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    for outcome in outcomes:
        record_one(store, RecordRequest(BranchId(run, 0, 0, outcome.index), outcome))
    stage = store.stage(StageId(run, 0))
    assert stage.usage == store.totals().usage == NO_CALL
    assert stage.saved.known("cost_usd") == sum(one.saved.known("cost_usd") for one in outcomes)
    assert [one.usage for one in store.outcomes(ShardId(run, 0, 0)).values() if one.output] == [
        NO_CALL for one in outcomes if one.output
    ]


def test_missing_outcomes_are_filled_and_present_ones_kept(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), ok(1)))
    store.record_all(
        [RecordRequest(BranchId(run, 0, 0, p), failed(p, ErrorKind.LOST)) for p in range(3)]
    )
    outcomes = store.outcomes(ShardId(run, 0, 0))
    assert [outcomes[p].kind for p in range(3)] == [ErrorKind.LOST, None, ErrorKind.LOST]
    assert store.stage(StageId(run, 0)).done == 3


def test_compaction_keeps_the_outcomes_and_shuts_late_ones_out(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard(2))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 0), ok(0)))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), failed(1)))
    outcomes = store.outcomes(ShardId(run, 0, 0))
    store.compact(ShardId(run, 0, 0), outcomes)
    assert store.outcomes(ShardId(run, 0, 0)) == outcomes
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 0), token="t")).verdict == "done"
    assert not record_one(store, RecordRequest(BranchId(run, 0, 0, 0), failed(0))).first
    store.compact(ShardId(run, 0, 0), {})
    assert store.outcomes(ShardId(run, 0, 0)) == outcomes, "compacting again changes nothing"


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


def test_a_failure_of_before_a_retry_is_not_written_and_an_answer_is(store, run):
    for position in (0, 1):
        record_one(store, RecordRequest(BranchId(run, 0, 0, position), failed(position)))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 2), ok(2)))
    first = store.run(run).opening
    assert begin_one(store, BeginRequest(BranchId(run, 0, 1, 0), token="a")).opening == first == 0
    store.compact(ShardId(run, 0, 0), store.outcomes(ShardId(run, 0, 0)))
    store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
    assert store.reopen_run(run, retry=frozenset({ErrorKind.TIMEOUT}))
    again = [failed(0), failed(1)]
    store.reopen_shard(
        ShardId(run, 0, 0),
        kept={2: ok(2)},
        dropped=again,
        checkpoints={0: b"kept"},
        regrouped=[],
    )
    now = begin_one(store, BeginRequest(BranchId(run, 0, 0, 0), token="b")).opening
    assert now == store.run(run).opening != first

    def record(position, outcome, opening):
        branch = BranchId(run, 0, 0, position)
        return RecordRequest(branch, outcome, has_checkpoint=True, opening=opening)

    late = [record(0, failed(0), first), record(1, ok(1), first), record(2, failed(2), first)]
    replies = [(one.first, one.is_late) for one in store.record_all(late)]
    assert replies == [(False, True), (True, False), (False, False)]
    assert store.checkpoints([BranchId(run, 0, 0, 0)]) == [b"kept"]
    stage = store.stage(StageId(run, 0))
    assert (stage.succeeded, stage.failed) == (2, 0)
    assert record_one(store, record(0, failed(0), now)).first
    assert store.stage(StageId(run, 0)).failed == 1


def test_steps_of_an_opening_that_a_retry_has_ended_do_nothing(store, run):
    steps = {
        "status": lambda at: store.set_status(run, RunStatus.REDUCING, opening=at),
        "piece": lambda at: store.put_result_piece(run, b"p", writer="w", number=0, opening=at),
        "result": lambda at: store.put_result(run, b"r", writer="w", opening=at),
        "small result": lambda at: store.put_result(run, b"r", opening=at),
        "notice": lambda at: store.put_notice(run, "late", opening=at),
        "halt": lambda at: store.halt(run, RunStatus.FAILED, error="late", opening=at),
        "end": lambda at: store.end_run(
            run, RunStatus.FAILED, ended_at=9.0, error="late", opening=at
        ),
    }
    openings = []
    for _ in range(3):
        openings.append(store.run(run).opening)
        store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
        assert store.reopen_run(run, retry=frozenset())
    now = store.run(run).opening
    assert len({*openings, now}) == 4
    for opening in openings:
        assert not any(step(opening) for step in steps.values())
    record = store.run(run)
    assert (record.status, record.halt, record.error) == (RunStatus.RUNNING, None, None)
    assert store.result(run) is None
    assert run in store.active_runs()
    done = {name: step(now) for name, step in steps.items()}
    assert done == {name: name != "small result" for name in steps}, "the first result stands"


def test_no_result_is_written_to_a_run_that_has_ended(store, run):
    store.end_run(run, RunStatus.FAILED, ended_at=1.0)
    assert not store.put_result(run, b"late")
    assert store.result(run) is None


def test_the_error_of_a_halt_is_what_the_run_ends_with(store, run):
    store.halt(run, RunStatus.FAILED, error="auth: bad key")
    store.end_run(run, RunStatus.FAILED, ended_at=1.0, error="no branch succeeded")
    assert store.run(run).error == "auth: bad key"


def test_the_first_result_stands(store, run):
    assert store.result(run) is None
    assert store.put_result(run, b"one")
    assert not store.put_result(run, b"two")
    assert store.result(run) == b"one"


def test_a_note_is_taken_once(store):
    assert store.take_note("n") is None
    store.put_note("n", b"hello", ttl_s=60)
    assert store.take_note("n") == b"hello"
    assert store.take_note("n") is None


def names(store) -> list[str]:
    return [worker.name for worker in store.workers()]


def test_workers_are_known_until_they_go_or_fall_silent(store):
    store.worker_alive(WorkerRecord(name="b@x:1"), ttl_s=60)
    store.worker_alive(WorkerRecord(name="a@x"), ttl_s=60)
    store.worker_alive(WorkerRecord(name="c@x", in_flight=2), ttl_s=-1)
    assert names(store) == ["a@x", "b@x:1"]
    assert [(one.name, one.in_flight) for one in store.known_workers()[1]] == [("c@x", 2)]
    store.worker_gone("a@x")
    assert names(store) == ["b@x:1"]


def test_a_worker_is_known_by_its_last_record(store):
    said = WorkerRecord(name="a@x", concurrency=8, in_flight=3, queues=("q",), sent_at=5.0)
    store.worker_alive(WorkerRecord(name="a@x", concurrency=4), ttl_s=60)
    store.worker_alive(said, ttl_s=60)
    (known,) = store.workers()
    assert abs(known.seen_at - time.time()) < 60
    assert msgspec.structs.replace(known, seen_at=0.0) == said


def test_the_latency_of_a_stage_counts_branches_that_made_a_call(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    record_one(
        store,
        RecordRequest(
            BranchId(run, 0, 0, 0), msgspec.structs.replace(ok(0), attempts=1, elapsed_s=0.25)
        ),
    )
    record_one(
        store,
        RecordRequest(
            BranchId(run, 0, 0, 0), msgspec.structs.replace(ok(0), attempts=1, elapsed_s=9.0)
        ),
    )
    record_one(
        store, RecordRequest(BranchId(run, 0, 0, 1), Outcome(index=1, kind=ErrorKind.EXPIRED))
    )
    latency = store.stage(StageId(run, 0)).latency
    assert latency == Latency(counts={bucket_of(0.25): 1}, sum_s=0.25, least_s=0.25, most_s=0.25)


def timed(outcome, elapsed_s):
    return msgspec.structs.replace(outcome, attempts=1, elapsed_s=elapsed_s)


def test_durations_of_failures_that_a_retry_takes_back_are_not_in_the_latency(store, run):
    """Status, report and their percentiles are of the outcomes that there are."""
    store.put_shard(ShardId(run, 0, 0), make_shard(3))
    first = [timed(ok(0), 0.06), timed(failed(1), 1.3), timed(failed(2), 1.4)]
    for at, outcome in enumerate(first):
        record_one(store, RecordRequest(BranchId(run, 0, 0, at), outcome))
    before = store.stage(StageId(run, 0)).latency
    assert (before.least_s, before.most_s, before.percentile_s(0.99)) == (0.06, 1.4, 1.4)
    store.compact(ShardId(run, 0, 0), store.outcomes(ShardId(run, 0, 0)))
    store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
    store.reopen_run(run, retry=frozenset({ErrorKind.TIMEOUT}))
    store.reopen_shard(ShardId(run, 0, 0), kept={0: first[0]}, dropped=first[1:])
    kept = store.stage(StageId(run, 0)).latency
    assert (kept.counts, kept.most_s) == ({bucket_of(0.06): 1}, 0.06)
    assert kept.sum_s == pytest.approx(0.06)
    for at, elapsed_s in ((1, 0.08), (2, 0.1)):
        record_one(store, RecordRequest(BranchId(run, 0, 0, at), timed(ok(at), elapsed_s)))
    after = store.stage(StageId(run, 0)).latency
    assert after.mean_s == pytest.approx(0.08)
    assert after.count == 3
    assert 0.08 < after.percentile_s(0.99) <= after.most_s == 0.1


def test_no_duration_is_left_when_a_retry_takes_back_all(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard(3))
    dropped = [timed(failed(at), elapsed_s) for at, elapsed_s in enumerate((0.1, 0.2, 0.3))]
    for at, outcome in enumerate(dropped):
        record_one(store, RecordRequest(BranchId(run, 0, 0, at), outcome))
    store.end_run(run, RunStatus.FAILED, ended_at=1.0)
    store.reopen_run(run, retry=frozenset({ErrorKind.TIMEOUT}))
    store.reopen_shard(ShardId(run, 0, 0), kept={}, dropped=dropped)
    assert store.stage(StageId(run, 0)).latency == Latency()


def test_totals_count_each_outcome_once_and_outlive_the_run(store, run):
    usage = Usage(calls=2, input_tokens=10, output_tokens=3, cost_usd=0.5)
    store.put_shard(ShardId(run, 0, 0), make_shard())
    first = Outcome(index=0, output="x", attempts=2, usage=usage, elapsed_s=1.0)
    for _ in range(2):
        record_one(store, RecordRequest(BranchId(run, 0, 0, 0), first))
    record_one(
        store,
        RecordRequest(BranchId(run, 0, 0, 1), Outcome(index=1, output="y", usage=Usage(calls=1))),
    )
    record_one(
        store, RecordRequest(BranchId(run, 0, 0, 2), Outcome(index=2, kind=ErrorKind.TIMEOUT))
    )
    store.healed(StageId(run, 0))
    store.count_dropped(3)
    store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
    store.end_run(run, RunStatus.FAILED, ended_at=1.0)
    store.delete_run(run)
    totals = store.totals()
    assert totals == Totals(
        submitted=1,
        ended={RunStatus.SUCCEEDED: 1},
        succeeded=2,
        errors={ErrorKind.TIMEOUT: 1},
        usage=Usage(calls=3, input_tokens=10, output_tokens=3, cost_usd=0.5),
        latency=Latency(counts={bucket_of(1.0): 1}, sum_s=1.0),
        healed=1,
        dropped=3,
    )


def test_the_window_of_a_stage_says_what_is_open_and_what_waits(store, run):
    assert store.stage_load(StageId(run, 0)) == StageLoad()
    for number in range(3):
        store.put_shard(ShardId(run, 0, number), make_shard())
    store.open_shards(StageId(run, 0), window=2)
    assert store.stage_load(StageId(run, 0)) == StageLoad(open=2, waiting=1)


def test_the_load_of_a_run_with_max_workers_says_how_many_permits_are_used(store):
    store.create_run(RUN, spec="{}", created_at=1.0, max_workers=4)
    for process, wanted in (("a", 1), ("b", 9)):
        share_one(store, RUN, process=process, max_workers=4, has=0, wanted=wanted)
    run = store.run(RUN)
    assert (run.max_workers, run.permits_in_use, run.priority) == (4, 4, 1.0)
    load = store.stage_load(StageId(RUN, 0))
    assert (load.permits_used, load.permits_limit, load.waiting_for_permits) == (4, 4, 0)
    store._redis.hset(TURNS, RUN, 3)
    store._redis.hset(TAKEN, RUN, 9)
    assert store.stage_load(StageId(RUN, 0)).waiting_for_permits == 3 + 9 - 4
    store._redis.rpush(backlogs_of(RUN)[0], *["message"] * 200)
    assert store.stage_load(StageId(RUN, 0)).waiting_for_permits == in_play_limit(4) - 4


@pytest.mark.parametrize("priority", [0.25, 0.3, 1.0, 4.0])
def test_a_run_says_its_priority_and_that_it_has_no_cap(store, priority):
    store.create_run(RUN, spec="{}", created_at=1.0, priority=priority)
    run = store.run(RUN)
    assert (run.max_workers, run.permits_in_use, run.priority) == (None, 0, priority)


def test_a_run_that_has_ended_uses_no_permits(store):
    """Those of a worker that was killed stay in its record: nobody asks for them any more."""
    store.create_run(RUN, spec="{}", created_at=1.0, max_workers=4)
    share_one(store, RUN, process="a", max_workers=4, has=0, wanted=3)
    assert store.run(RUN).permits_in_use == 3
    store.end_run(RUN, RunStatus.CANCELLED, ended_at=2.0)
    assert store.run(RUN).permits_in_use == 0


PER_SECOND = Rates(requests_per_minute=60)


class Bookings:
    """Slots of one model, and when each is by a clock that began with the first."""

    def __init__(self, store):
        self.store = store
        # A busy machine may be late, so when it began is known within bounds only.
        self.began_after = time.monotonic()
        self.began_before = None

    def take(self, *expected, rates=PER_SECOND, tokens=0):
        """Take slots, which must be so many seconds from the beginning."""
        for moment in expected:
            before = time.monotonic()
            slot = self.store.reserve_calls("m", rates=rates, tokens=CallTokens(tokens))
            after = time.monotonic()
            self.began_before = self.began_before or after
            assert slot.is_taken
            # One that is due is given at once.
            earliest = self.began_after + moment - after - 0.05
            latest = max(0.0, self.began_before + moment - before) + 0.05
            assert max(0.0, earliest) <= slot.wait_s <= latest


@pytest.fixture
def bookings(store):
    return Bookings(store)


def test_slots_of_a_model_are_spaced_by_its_rate(store, bookings):
    # The first two at once: an idle second may be used up.
    bookings.take(0, 0, 1, 2, 3)
    assert store.reserve_calls("other", rates=PER_SECOND).wait_s == 0


def test_all_requests_for_a_slot_use_up_the_same_rate(bookings):
    bookings.take(0, 0, 1)
    # A run with another idea of the rate waits for what is used, and books by its own.
    bookings.take(2, 2.1, 2.2, rates=Rates(requests_per_minute=600))


def test_tokens_are_limited_beside_requests(bookings):
    rates = Rates(requests_per_minute=6_000, tokens_per_minute=600)
    bookings.take(0, 1, 3, rates=rates, tokens=20)


def test_a_slot_far_ahead_is_not_given(store, bookings):
    bookings.take(0, *range(10))
    slot = store.reserve_calls("m", rates=Rates(requests_per_minute=1))
    assert slot.is_taken
    slot = store.reserve_calls("m", rates=PER_SECOND)
    assert not slot.is_taken
    assert slot.wait_s > 30
    assert 60 < store.limits()["m"].requests_ahead_s <= 71


def test_tokens_that_were_not_used_are_given_back(store, bookings):
    rates = Rates(tokens_per_minute=60)
    bookings.take(0, rates=rates, tokens=10)
    store.correct_slot("m", rates=rates, tokens=CallTokens(-8))
    bookings.take(1, rates=rates, tokens=1)
    store.correct_slot("unknown", rates=rates, tokens=CallTokens(5))
    assert "unknown" not in store.limits()


def test_a_refusal_makes_all_wait_and_the_longest_one_stands(store, bookings):
    assert store.pause_of("m") == BreakerReply()
    store.pause_model("m", 5.0)
    store.pause_model("m", 2.0)
    assert 2.5 < store.pause_of("m").wait_s <= 5
    assert store.pause_of("other") == BreakerReply()
    bookings.take(5)
    assert 2.5 < store.limits()["m"].blocked_s <= 5
    assert store.totals().pauses == 2


def test_a_breaker_holds_all_back_lets_one_try_and_lets_all_go_on(store, passing):
    assert store.trip_breaker("m")
    assert store.trip_breaker("m"), "it is open already"
    held = store.pause_of("m")
    assert (0 < held.wait_s <= FIRST_PROBE_S, held.is_probe) == (True, False)
    assert held.down_s is not None
    assert store.limits()["m"].down_s is not None
    assert store.pause_of("other") == BreakerReply()
    passing.by(held.wait_s)
    first = store.pause_of("m")
    assert first.is_probe
    # The others wait on, and twice as long.
    assert FIRST_PROBE_S < first.wait_s <= 2 * FIRST_PROBE_S
    others = store.pause_of("m")
    assert (others.is_probe, others.wait_s > 0) == (False, True)
    # A pause that the provider asks for puts the next probe off.
    store.pause_model("m", 60.0)
    assert 50 < store.pause_of("m").wait_s <= 60
    store.close_breaker("m")
    assert store.pause_of("m") == BreakerReply()
    assert store.limits().get("m", LimitState()).down_s is None
    assert not store.trip_breaker("m"), "it was closed just now: others are well"
    assert store.pause_of("m") == BreakerReply()


def test_a_run_that_has_ended_can_be_reopened_once(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    store.put_shard(ShardId(run, 1, 0), make_shard())
    record_one(store, RecordRequest(BranchId(run, 1, 0, 0), ok(0)))
    store.open_shards(StageId(run, 0), window=2)
    kinds = frozenset({ErrorKind.AUTH, ErrorKind.TIMEOUT})
    assert not store.reopen_run(run, retry=kinds), "it has not ended"
    store.halt(run, RunStatus.FAILED, error="bad key")
    store.set_status(run, RunStatus.REDUCING, stage=1)
    store.put_result(run, b"old")
    store.end_run(run, RunStatus.FAILED, ended_at=5.0)
    assert store.reopen_run(run, retry=kinds)
    assert not store.reopen_run(run, retry=frozenset())
    record = store.run(run)
    assert record.retry == kinds
    assert record.reopened_at == pytest.approx(time.time(), abs=10)
    assert float(store.prepared([BranchId(run, 0, 0, 0)])[0].since) == record.reopened_at
    assert (record.status, record.stage, record.halt) == (RunStatus.RUNNING, 0, None)
    assert (record.error, record.ended_at, store.result(run)) == (None, None, None)
    assert store.run(run).base_stage == 2, "the next aggregate takes the stages from 3"
    assert store.stage(StageId(run, 1)).usage.calls == 1, "what was consumed stays counted"
    with pytest.raises(UnknownRunError):
        store.shard(ShardId(run, 1, 0))
    assert store.open_shards(StageId(run, 0), window=2) == [0]


def test_a_finished_shard_can_be_taken_back_to_what_is_kept(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard(3))
    record_one(
        store,
        RecordRequest(BranchId(run, 0, 0, 0), ok(0, input_tokens=5, output_tokens=1, cost_usd=0.5)),
    )
    record_one(store, RecordRequest(BranchId(run, 0, 0, 1), failed(1)))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 2), failed(2, ErrorKind.AUTH)))
    outcomes = store.outcomes(ShardId(run, 0, 0))
    store.compact(ShardId(run, 0, 0), outcomes)
    assert store.is_finished(ShardId(run, 0, 0))
    kept = {0: outcomes[0], 2: outcomes[2]}
    assert store.reopen_shard(ShardId(run, 0, 0), kept=kept, dropped=[outcomes[1]])
    assert not store.is_finished(ShardId(run, 0, 0))
    assert store.outcomes(ShardId(run, 0, 0)) == kept
    record = store.stage(StageId(run, 0))
    assert (record.succeeded, record.failed, record.errors) == (1, 1, {ErrorKind.AUTH: 1})
    assert record.usage.calls == 5, "what was consumed stays counted"
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 0), token="t")).verdict == "done"
    assert begin_one(store, BeginRequest(BranchId(run, 0, 0, 1), token="t")).verdict == "go"
    assert record_one(store, RecordRequest(BranchId(run, 0, 0, 1), ok(1))).first
    assert not store.reopen_shard(ShardId(run, 0, 0), kept={}, dropped=[outcomes[2]]), "once"
    assert store.outcomes(ShardId(run, 0, 0)) == {**kept, 1: ok(1)}
    store.end_run(run, RunStatus.FAILED, ended_at=1.0)
    store.reopen_run(run, retry=frozenset())
    assert store.reopen_shard(ShardId(run, 0, 0), kept=kept, dropped=[]), "once for each retry"


# What is the fleet's and not a run's.
OF_THE_FLEET = {b"fanout:runs", b"fanout:active", b"fanout:totals", b"fanout:run-totals"}


def test_deleting_leaves_no_key_of_a_run(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client)
    store.create_run(RUN, spec="{}", created_at=1.0)
    for number in range(2):
        store.put_shard(ShardId(RUN, 0, number), make_shard())
    store.open_shards(StageId(RUN, 0), window=2)
    begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 0), token="t"))
    record_one(store, RecordRequest(BranchId(RUN, 0, 0, 0), ok()))
    for writer in "vw":
        store.put_result_piece(RUN, b"x", writer=writer, number=0)
    store.put_result(RUN, b"x", writer="w")
    store.put_result_piece(RUN, b"x", writer="w", number=1)
    assert client.dbsize() > 6
    store.delete_run(RUN)
    assert set(client.keys("*")) <= OF_THE_FLEET
    store.close()


# Every step that writes of a run, and what it gives or raises where there is none.
GATHER = GatherRequest(
    branch_id=BranchId(RUN, 0, 0, 0), token="t", item="i-1", line=b"{}", lane_id="L", lane=b"{}"
)
LATE = {
    "put_result": (lambda s: s.put_result(RUN, b"x"), UnknownRunError),
    "put_result_piece": (
        lambda s: s.put_result_piece(RUN, b"x", writer="w", number=0),
        UnknownRunError,
    ),
    "drop_result_pieces": (lambda s: s.drop_result_pieces(RUN, writer="w"), None),
    "fix_packing_ratio": (lambda s: s.fix_packing_ratio(RUN, 3.0), UnknownRunError),
    "set_status": (lambda s: s.set_status(RUN, RunStatus.REDUCING, stage=1), False),
    "end_run": (lambda s: s.end_run(RUN, RunStatus.FAILED, ended_at=2.0, error="x"), False),
    "halt": (lambda s: s.halt(RUN, RunStatus.CANCELLED, error="x"), False),
    "put_notice": (lambda s: s.put_notice(RUN, "x"), False),
    "pause": (lambda s: s.pause(RUN), False),
    "note_late": (lambda s: s.note_late(RUN), False),
    "unpause": (lambda s: s.unpause(RUN), False),
    "reopen_run": (lambda s: s.reopen_run(RUN, retry=frozenset({ErrorKind.TIMEOUT})), False),
    "put_shard": (lambda s: s.put_shard(ShardId(RUN, 0, 2), make_shard()), UnknownRunError),
    "put_next": (
        lambda s: s.put_next(ShardId(RUN, 1, 0), make_shard(), Frontier()),
        UnknownRunError,
    ),
    "put_groups": (
        lambda s: s.put_groups(
            ShardId(RUN, 0, 2), 0, encode_hashes([1]), opening=0.0, is_reset=False
        ),
        UnknownRunError,
    ),
    "put_group_plan": (
        lambda s: s.put_group_plan(RUN, 0, *planned(lambda: [[1, 2]]), opening=0.0),
        UnknownRunError,
    ),
    "take_partition": (
        lambda s: s.take_partition(PartitionId(RUN, 1, 0, 0), "t", lasts_s=9),
        UnknownRunError,
    ),
    "release_partition": (
        lambda s: s.release_partition(PartitionId(RUN, 1, 0, 0), "t"),
        None,
    ),
    "put_part": (
        lambda s: s.put_part(
            PartitionId(RUN, 1, 0, 0),
            before=PartitionRecord(),
            after=PartitionRecord(nodes=1),
            shard=(ShardId(RUN, 1, 0), make_shard()),
        ),
        UnknownRunError,
    ),
    "share_permits": (
        lambda s: share_one(s, RUN, process="p", max_workers=3, has=0, wanted=1),
        UnknownRunError,
    ),
    "seal_stage": (lambda s: s.seal_stage(StageId(RUN, 0)), UnknownRunError),
    "open_shards": (
        lambda s: s.open_shards(StageId(RUN, 0), window=9, finished=0),
        UnknownRunError,
    ),
    "open_shards as one drains": (
        lambda s: s.open_shards(StageId(RUN, 0), window=9, draining=0),
        UnknownRunError,
    ),
    "start_shard": (lambda s: s.start_shard(ShardId(RUN, 0, 0)), UnknownRunError),
    "adopt": (lambda s: s.adopt(StageId(RUN, 0), [0, 1]), UnknownRunError),
    "healed": (lambda s: s.healed(StageId(RUN, 0)), UnknownRunError),
    "healed a shard": (lambda s: s.healed(ShardId(RUN, 0, 0)), UnknownRunError),
    "reopen_shard": (
        lambda s: s.reopen_shard(ShardId(RUN, 0, 0), kept={0: ok()}, dropped=[]),
        UnknownRunError,
    ),
    "take_parked": (lambda s: s.take_parked(RUN), []),
    "gather_all": (lambda s: s.gather_all([GATHER]), [GatherReply(verdict="gone")]),
    "release_gathered": (
        lambda s: s.release_gathered(1, RUN, [("0:0:0", "i-1")], result=b"x", promotes=True),
        UnknownRunError,
    ),
    "land": (lambda s: s.land(1, 1, [LandRequest(Member("i-1", BranchId(RUN, 0, 0, 0)), b"x")]), 0),
    "published": (lambda s: s.published([Landing(branch_id=GATHER.branch_id, item="i-1")]), None),
    "show_batches": (lambda s: s.show_batches(RUN, [RunBatch(number=1)]), None),
    "drop_gathered_run": (lambda s: s.drop_gathered_run(RUN), False),
    "begin_all": (
        lambda s: s.begin_all(
            [BeginRequest(BranchId(RUN, 0, 1, at), token="u") for at in range(2)]
        ),
        [BeginReply(verdict="gone")] * 2,
    ),
    "release_claim": (lambda s: s.release_claim(BranchId(RUN, 0, 0, 0), token="t"), None),
    "checkpoint_all": (
        lambda s: s.checkpoint_all([CheckpointRequest(BranchId(RUN, 0, 0, 1), "t", b"x")]),
        [BeginReply(verdict="gone")],
    ),
    "record_all": (
        lambda s: [
            each.first for each in s.record_all([RecordRequest(BranchId(RUN, 0, 1, 0), failed())])
        ],
        [False],
    ),
    "compact": (
        lambda s: s.compact(ShardId(RUN, 0, 0), {at: ok(at) for at in range(3)}),
        UnknownRunError,
    ),
}
READS = {
    *(
        "spec",
        "run",
        "runs",
        "active_runs",
        "result",
        "result_piece",
        "stage",
        "frontier",
        "shards_of",
        "groups_of",
        "group_plan",
        "partition_groups",
        "partition",
        "partitions",
        "owner",
        "size",
        "is_finished",
        "is_reopened",
        "reopened",
        "shard",
        "indices",
    ),
    *("progress", "stage_load", "shard_state", "incomplete", "outcomes"),
    *("ended_positions", "some_outcomes", "checkpoints"),
    *("prepared", "gathered", "gathered_marks", "gathered_runs", "in_batches", "messages_behind"),
    *(
        "lane_queues",
        "lane",
        "batches",
        "batch_lines",
        "batch_members",
        "members_left",
        "batch_runs",
    ),
    *("ready_branches", "still_ready", "joined_keys", "has_batch_work", "in_no_batch"),
}
# Steps of the process that makes batches: they write nothing of a run.
OF_BATCHES = {
    *("lead_batches", "next_batch_number", "fill_batch", "put_batch", "end_batch", "lane_scarce"),
    *("unpack", "empty_lane", "wake_joined"),
}


def test_each_step_of_the_store_is_among_those_that_may_come_late():
    parts = (
        RedisRuns,
        RedisStages,
        RedisGroups,
        RedisBranches,
        RedisGathered,
        RedisJoined,
        RedisBatchLanes,
    )
    steps = {name for part in parts for name in vars(part) if name[0] != "_"}
    late = {name.split(" ")[0] for name in LATE}
    assert steps - READS - OF_BATCHES - late == {"create_run", "begin_delete", "delete_run"}


def come_late(store):
    """Do each step of a run that is gone; return those that were not as they should be."""
    wrong = {}
    for name, (step, expected) in LATE.items():
        try:
            said = step(store)
        except UnknownRunError:
            said = UnknownRunError
        if said != expected:
            wrong[name] = said
    return wrong


def test_what_comes_after_a_deletion_or_during_it_writes_nothing(store, run, tmp_path):
    for number in range(2):
        store.put_shard(ShardId(run, 0, number), make_shard(3, 3 * number))
    store.open_shards(StageId(run, 0), window=1)
    store.start_shard(ShardId(run, 0, 0))
    begin_one(store, BeginRequest(BranchId(run, 0, 0, 0), token="t"))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 0), ok()))
    totals = store.totals()
    assert store.lead_batches("p", ttl_s=60).epoch == 1
    assert store.begin_delete(run) == [2, 0]
    assert store.active_runs() == [run], "who deletes it may die now"
    assert come_late(store) == {}, "during it"
    store.delete_run(run)
    assert come_late(store) == {}, "after it"
    assert store.active_runs() == []
    assert store.totals() == totals
    with pytest.raises(UnknownRunError):
        store.begin_delete(run)
    store.sweep_files()
    assert [path for path in tmp_path.rglob("*") if run in str(path.relative_to(tmp_path))] == []
    of_fleet = {*OF_THE_FLEET, b"fanout:noted-storages", b"fanout:batches:leader"}
    assert set(store._redis.keys("*")) <= of_fleet


def test_a_deletion_that_died_half_way_is_completed_by_the_next_process(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
    for _ in range(2):
        assert store.begin_delete(run) == [1, 0]
        with pytest.raises(UnknownRunError):
            store.run(run)
        assert list(store.runs()) == []
        assert store.active_runs() == [run], "a list does not end a deletion"
    store.delete_run(run)
    with pytest.raises(UnknownRunError):
        store.delete_run(run)


def test_every_key_of_a_run_expires(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client, ttl_s=100)
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.put_shard(ShardId(RUN, 0, 0), make_shard())
    store.open_shards(StageId(RUN, 0), window=2)
    store.start_shard(ShardId(RUN, 0, 0))
    begin_one(store, BeginRequest(BranchId(RUN, 0, 0, 0), token="t"))
    record_one(store, RecordRequest(BranchId(RUN, 0, 0, 0), ok()))
    store.put_result_piece(RUN, b"x", writer="w", number=0)
    store.put_result(RUN, b"x", writer="w")
    store.compact(ShardId(RUN, 0, 0), {0: ok()})
    store.reopen_shard(ShardId(RUN, 0, 1), kept={0: ok()}, dropped=[])
    share_one(store, RUN, process="p", max_workers=3, has=0, wanted=1)
    store.healed(StageId(RUN, 2))
    store.healed(ShardId(RUN, 2, 0))
    keys = set(client.keys("*")) - OF_THE_FLEET
    assert len(keys) == 14
    assert all(0 < client.ttl(key) <= 100 for key in keys)
    store.close()


def test_a_fleet_speaks_one_version_of_the_wire_and_the_first_says_which(store):
    assert store.wire() is None
    assert store.claim_wire(3, holder="a", ttl_s=60) == 3
    assert store.claim_wire(4, holder="b", ttl_s=60) == 3
    assert store.claim_wire(3, holder="c", ttl_s=60) == 3
    assert store.wire() == 3


def test_a_fleet_goes_over_to_another_version_when_nobody_speaks_the_old_one(store, passing):
    store.claim_wire(3, holder="a", ttl_s=60)
    store.claim_wire(3, holder="b", ttl_s=passing.short_s)
    store.release_wire("a")
    assert store.claim_wire(4, holder="c", ttl_s=60) == 3
    passing.until(lambda: store.claim_wire(4, holder="c", ttl_s=60) == 4)
    assert store.claim_wire(3, holder="a", ttl_s=60) == 4


def test_who_was_refused_keeps_nobody_from_leaving(store):
    store.claim_wire(3, holder="a", ttl_s=60)
    store.claim_wire(4, holder="b", ttl_s=60)
    store.release_wire("a")
    assert store.claim_wire(5, holder="c", ttl_s=60) == 5


def test_a_fleet_keeps_its_version_while_a_run_is_active(store, run):
    store.claim_wire(3, holder="a", ttl_s=60)
    store.release_wire("a")
    assert store.claim_wire(4, holder="b", ttl_s=60) == 3
    store.end_run(run, RunStatus.SUCCEEDED, ended_at=1.0)
    assert store.claim_wire(4, holder="b", ttl_s=60) == 4


def test_a_run_that_was_deleted_does_not_hold_the_version(store, run):
    store.claim_wire(3, holder="a", ttl_s=60)
    store.release_wire("a")
    store.delete_run(run)
    assert store.claim_wire(4, holder="b", ttl_s=60) == 4


def make_run(store, run_id, wire):
    store.create_run(run_id, spec="{}", created_at=1.0, wire=wire)


@pytest.mark.parametrize("wires", [[4], [4, 99], [99], [-1]])
def test_runs_of_clients_keep_no_worker_away_but_those_that_the_old_workers_had(store, wires):
    """What a run says of itself a client writes: it must not stop a fleet."""
    for number, wire in enumerate(wires):
        make_run(store, f"run{number}", wire)
    assert store.claim_wire(3, holder="a", ttl_s=60) == 3, "on a new server"
    store.release_wire("a")
    assert store.claim_wire(4, holder="b", ttl_s=60) == 4, "when it goes over"
    store.release_wire("b")
    make_run(store, "mine", 4)
    assert store.claim_wire(5, holder="c", ttl_s=60) == 4


@pytest.mark.parametrize(
    ("spoken", "is_there", "runs", "needed"),
    [
        (None, False, [], 3),
        (None, False, [3], 3),
        (None, False, [None], 3),
        (None, False, [4], 4),
        (3, True, [], 3),
        (3, True, [4], 3),
        (3, False, [4], 3),
        (4, True, [], 4),
        (4, True, [3], 4),
        (4, False, [], 3),
        (4, False, [3], 3),
        (4, False, [4], 4),
        (4, False, [None], 4),
    ],
)
def test_a_client_claims_nothing_and_is_told_what_it_must_speak(
    store, spoken, is_there, runs, needed
):
    if spoken is not None:
        store.claim_wire(spoken, holder="w", ttl_s=60)
        if not is_there:
            store.release_wire("w")
    for number, wire in enumerate(runs):
        make_run(store, f"run{number}", wire)
    assert store.wire_for(3, needs_room=True) == needed
    assert store.wire() == spoken
    assert [store.run(f"run{number}").wire for number in range(len(runs))] == runs


def test_totals_of_a_version_that_counted_all_in_one_place_go_on(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client)
    client.hset("fanout:totals", mapping={"submitted": 7, "ended:failed": 2, "ended:odd": 1})
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.end_run(RUN, RunStatus.FAILED, ended_at=2.0)
    totals = store.totals()
    assert (totals.submitted, totals.ended) == (8, {RunStatus.FAILED: 3})
    store.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda client, key: client.set(key, "x"),
        lambda client, key: client.hset(key, "status", "odd"),
        lambda client, key: client.hset(key, "status", ""),
        lambda client, key: client.hset(key, "stage", "x"),
        lambda client, key: client.hset(key, "retry", "odd"),
        lambda client, key: client.hset(key, "created_at", b"\xff"),
        lambda client, key: client.hset(key, mapping={"status": "running", "halt": "odd"}),
    ],
)
def test_a_damaged_run_keeps_nobody_from_the_others(broker_url, damage):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client)
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.create_run("other", spec="{}", created_at=2.0)
    client.delete("fanout:run:other")
    damage(client, "fanout:run:other")
    with pytest.raises((StoredDataError, UnknownRunError)):
        store.run("other")
    assert [record.run_id for record in store.runs()] == [RUN]
    assert store.wire_for(3) == 3
    assert store.claim_wire(3, holder="a", ttl_s=60) == 3
    store.release_wire("a")
    store.claim_wire(4, holder="a", ttl_s=60)
    store.close()


def test_totals_that_a_client_has_spoilt_keep_no_run_from_beginning_or_ending(broker_url):
    client = redis.Redis.from_url(broker_url)
    store = RedisStore(client)
    most = 2**63 - 1
    client.hset("fanout:run-totals", mapping={"submitted": most, "ended:failed": most})
    store.create_run(RUN, spec="{}", created_at=1.0)
    assert store.end_run(RUN, RunStatus.FAILED, ended_at=2.0, error="said")
    assert store.run(RUN).error == "said"
    assert store.active_runs() == []
    store.close()


def test_branches_that_begin_together_are_told_what_each_would_be_told_alone(store, run):
    for number in range(2):
        store.put_shard(ShardId(run, 0, number), make_shard(first=3 * number))
    record_one(store, RecordRequest(BranchId(run, 0, 0, 0), ok(0)))
    begin_one(
        store, BeginRequest(BranchId(run, 0, 0, 1), token="before", holder="other", lasts_s=60)
    )
    store.beat("other", ttl_s=60)
    asked = [
        BeginRequest(BranchId(run, 0, shard, at), token=f"{shard}{at}")
        for at in range(3)
        for shard in (0, 1)
    ]
    asked.append(BeginRequest(BranchId("unknown", 0, 0, 0), token="x"))
    begun = store.begin_all(asked)
    assert [each.verdict for each in begun] == ["done", "go", "held", "go", "go", "go", "gone"]
    assert [each.deliveries for each in begun] == [0, 1, 1, 1, 1, 1, 0]
    assert store.begin_all([]) == []


def test_a_branch_that_begins_twice_in_one_step_is_counted_twice(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    first, second = store.begin_all(
        [BeginRequest(BranchId(run, 0, 0, 1), token=token) for token in ("a", "b")]
    )
    assert (first.deliveries, second.deliveries) == (1, 2)


def test_outcomes_that_are_written_together_count_as_if_written_one_by_one(store, run):
    for number in range(2):
        store.put_shard(ShardId(run, 0, number), make_shard(first=3 * number))
    ends = [
        RecordRequest(
            BranchId(run, 0, 0, 0), ok(0, input_tokens=10, output_tokens=2, cost_usd=0.1)
        ),
        RecordRequest(BranchId(run, 0, 1, 0), ok(3, input_tokens=1, output_tokens=1, cost_usd=0.2)),
        RecordRequest(BranchId(run, 0, 0, 1), failed(1, ErrorKind.AUTH)),
        RecordRequest(BranchId(run, 0, 0, 0), failed(0)),
        RecordRequest(BranchId(run, 0, 0, 2), ok(2)),
        RecordRequest(BranchId("unknown", 0, 0, 0), ok(0)),
    ]
    store.start_shard(ShardId(run, 0, 0))
    recorded = store.record_all(ends)
    assert [each.first for each in recorded] == [True, True, True, False, True, False]
    record = store.stage(StageId(run, 0))
    assert (record.succeeded, record.failed, record.errors) == (3, 1, {ErrorKind.AUTH: 1})
    assert record.usage.input_tokens is None, "one of them is not known"
    assert store.totals().usage.input_tokens == 11
    assert store.totals().usage.cost_usd == pytest.approx(0.3)
    assert set(store.outcomes(ShardId(run, 0, 0))) == {0, 1, 2}


def test_more_than_one_step_may_carry_are_all_written(store, run):
    """A script blocks the server: it is given so many at a time."""
    store.put_shard(ShardId(run, 0, 0), make_shard(450))
    recorded = store.record_all(
        [RecordRequest(BranchId(run, 0, 0, at), ok(at)) for at in range(450)]
    )
    assert all(each.first for each in recorded)
    assert store.stage(StageId(run, 0)).succeeded == 450


def test_a_shard_that_drains_makes_room_for_another_until_very_many_are_open(store, run):
    for number in range(40):
        store.put_shard(ShardId(run, 0, number), make_shard(first=3 * number))
    assert store.open_shards(StageId(run, 0), window=2) == [0, 1]
    assert store.open_shards(StageId(run, 0), window=2, draining=0) == [2]
    assert store.open_shards(StageId(run, 0), window=2, draining=0) == [], "once"
    assert store.open_shards(StageId(run, 0), window=2, finished=0) == [], "its place is taken"
    assert store.open_shards(StageId(run, 0), window=2, draining=0) == [], "it is over"
    opened = [
        shard
        for n in range(1, 40)
        for shard in store.open_shards(StageId(run, 0), window=2, draining=n)
    ]
    assert opened == list(range(3, 17)), "sixteen are open: eight windows"
    assert store.open_shards(StageId(run, 0), window=2, finished=5) == [17]


def test_a_retry_begins_with_no_shard_that_drains(store, run):
    for number in range(3):
        store.put_shard(ShardId(run, 0, number), make_shard(first=3 * number))
    store.open_shards(StageId(run, 0), window=1)
    store.open_shards(StageId(run, 0), window=1, draining=0)
    store.end_run(run, RunStatus.FAILED, ended_at=5.0)
    assert store.reopen_run(run, retry=frozenset({ErrorKind.TIMEOUT}))
    assert store.open_shards(StageId(run, 0), window=1) == [0]


def test_each_outcome_says_how_many_of_its_shard_have_ended(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    ends = [RecordRequest(BranchId(run, 0, 0, at), ok(at)) for at in (2, 0, 2, 1)]
    recorded = store.record_all(ends)
    assert [each.ended for each in recorded if each.first] == [1, 2, 3]


def test_gathered_branches_become_members_of_batches(store, run):
    shard_id = ShardId(run, 0, 0)
    store.put_shard(shard_id, make_shard())
    branches = [shard_id.branch(position) for position in range(3)]
    lane = LaneRecord(model="openai/m", account="a")
    # Larger than what the server holds itself, where there is a storage.
    lines = [b"%d" % at * 40_000 + b"\n" for at in range(3)]
    for at, branch in enumerate(branches):
        begin_one(store, BeginRequest(branch, token=f"t{at}", holder="h", lasts_s=60))
    asked = [
        GatherRequest(
            branch_id=branch,
            token=f"t{at}",
            item=f"i{at}-1",
            line=lines[at],
            lane_id=lane.lane_id,
            lane=msgspec.json.encode(lane),
        )
        for at, branch in enumerate(branches)
    ]
    replies = store.gather_all([*asked, asked[0]])
    assert [(reply.verdict, reply.settled) for reply in replies] == [
        ("gathered", 1), ("gathered", 2), ("gathered", 3), ("held", 0),
    ]  # fmt: skip
    assert store.shard_state(shard_id).held == frozenset(range(3))
    [queue] = store.lane_queues()
    assert (queue.record, queue.calls, queue.bytes) == (lane, 3, 120_003)
    # A copy of a message finds its branch gathered: it is not gathered twice.
    assert begin_one(store, BeginRequest(branches[0], token="u")).deliveries == 2
    again = msgspec.structs.replace(asked[0], token="u")
    assert store.gather_all([again]) == [GatherReply(verdict="gathered", settled=3)]
    assert store.lane_queues()[0].calls == 3

    epoch = store.lead_batches("p", ttl_s=60).epoch
    assert store.lead_batches("q", ttl_s=60) is None
    batch = BatchRecord(number=store.next_batch_number(), lane_id=queue.lane_id)
    assert store.put_batch(epoch, batch)
    assert not store.put_batch(epoch + 1, batch), "a step of another leadership"
    filled = store.fill_batch(epoch, batch, most_calls=9, most_bytes=90_000)
    assert (filled.calls, filled.bytes, filled.is_full) == (2, 80_002, True)
    found = list(store.batch_lines(batch.number, first_item=filled.first_item))
    assert found == [("i0-1", lines[0]), ("i1-1", lines[1])]
    assert store.batch_runs(batch.number) == {run: 2}
    assert store.put_batch(epoch, batch, has_lines=False)
    assert not store._redis.exists(f"fanout:batches:batch:{batch.number}:lines")

    members = sorted(m for page in store.members_left(batch.number) for m in [*map(_pair, page)])
    assert members == [("i0-1", branches[0]), ("i1-1", branches[1])]
    first = LandRequest(Member(*members[0]), b"one")
    assert store.land(epoch, batch.number, [first]) == 1
    second = LandRequest(Member(*members[0]), b"two")
    assert store.land(epoch, batch.number, [second]) == 0, "the first result is kept"
    assert store.land(epoch + 1, batch.number, [second]) is None
    [prepared] = store.prepared([branches[0]])
    assert (prepared.item, prepared.number, prepared.result) == ("i0-1", 1, b"one")
    [ready] = store.ready_branches(9)
    assert store.still_ready([ready]) == [branches[0]]
    store.published([ready])
    assert (store.ready_branches(9), store.still_ready([ready])) == ([], [])
    assert store.gathered(run) == 2
    marks = [mark for page in store.gathered_marks(run) for mark in page]
    assert store.release_gathered(epoch, run, marks, promotes=True) == 2
    assert (
        store.prepared(branches[1:])
        == [msgspec.structs.replace(store.prepared([branches[1]])[0])] * 2
    )
    assert store.prepared([branches[1]])[0].is_promoted
    assert store.end_batch(epoch, batch.number)
    assert store.batches() == []
    assert record_one(store, RecordRequest(branches[0], ok(), has_checkpoint=True)).first
    assert store.prepared([branches[0]])[0] == Prepared()


def test_a_batch_that_has_landed_lets_the_next_one_be_a_little_larger(store, run):
    store.put_shard(ShardId(run, 0, 0), make_shard())
    branch, lane = BranchId(run, 0, 0, 0), LaneRecord(model="openai/m", account="a")
    begin_one(store, BeginRequest(branch, token="t", holder="h", lasts_s=60))
    text, lane_id = msgspec.json.encode(lane), lane.lane_id
    request = GatherRequest(
        branch_id=branch, token="t", item="i-1", line=b"x\n", lane_id=lane_id, lane=text
    )
    store.gather_all([request])
    epoch = store.lead_batches("p", ttl_s=60).epoch
    for held_s, most, known in (
        (9, 0, None),
        (0, 0, None),
        (9, 4, 4),
        (9, 0, 4),
        (0, 0, 5),
        (0, 0, 7),
    ):
        assert store.lane_scarce(epoch, lane_id, held_s=held_s, most_calls=most)
        [queue] = store.lane_queues()
        assert (queue.held_s > 0, queue.most_calls) == (held_s > 0, known)


def _pair(member):
    return member.item, member.branch_id


@pytest.mark.parametrize("state", ["paused", "halted", "overdue"])
def test_calls_of_a_run_that_makes_none_do_not_enter_a_batch(store, passing, state):
    deadline_at = store.now() + passing.short_s if state == "overdue" else None
    store.create_run(RUN, spec="{}", created_at=1.0, deadline_at=deadline_at)
    branch = BranchId(RUN, 0, 0, 0)
    begin_one(store, BeginRequest(branch, token="t"))
    [reply] = store.gather_all(
        [msgspec.structs.replace(GATHER, lane=b'{"model":"m","account":""}')]
    )
    assert reply.verdict == "gathered"
    if state == "paused":
        store.pause(RUN)
    elif state == "halted":
        store.halt(RUN, RunStatus.CANCELLED)
    else:
        passing.until(lambda: store.run(RUN).is_overdue)
    epoch = store.lead_batches("p", ttl_s=60).epoch
    batch = BatchRecord(number=1, lane_id="L")
    assert store.fill_batch(epoch, batch, most_calls=9, most_bytes=900).calls == 0
    [ready] = store.ready_branches(9)
    assert (ready.branch_id, store.lane_queues()) == (branch, [])


def test_calls_leave_lanes_and_batches_by_steps_of_their_leader(store):
    store.create_run(RUN, spec="{}", created_at=1.0)
    store.put_shard(ShardId(RUN, 0, 0), make_shard())
    branches = [BranchId(RUN, 0, 0, at) for at in range(3)]
    lane = b'{"model":"m","account":""}'
    for at, branch in enumerate(branches):
        begin_one(store, BeginRequest(branch, token="t"))
        call = msgspec.structs.replace(GATHER, branch_id=branch, item=f"i{at}", lane=lane)
        assert store.gather_all([call])[0].verdict == "gathered"
    epoch = store.lead_batches("p", ttl_s=60).epoch
    batch = BatchRecord(number=1, lane_id="L")
    assert store.fill_batch(epoch, batch, most_calls=2, most_bytes=900).calls == 2
    members = [Member(f"i{at}", branch) for at, branch in enumerate(branches[:2])]
    marks = [mark for page in store.gathered_marks(RUN) for mark in page]
    # Steps of another leadership.
    store.unpack(epoch + 1, 1, members)
    assert store.empty_lane(epoch + 1, "L")
    assert store.release_gathered(epoch + 1, RUN, marks) == 0
    assert (store.batch_runs(1), store.lane_queues()[0].calls) == ({RUN: 2}, 1)
    assert store.ready_branches(9) == []

    store.unpack(epoch, 1, [members[1], members[1]])
    assert store.batch_runs(1) == {RUN: 1}
    assert [item for item, _ in store.batch_lines(1, first_item="i1")] == ["i0"]
    assert store.empty_lane(epoch, "L")
    assert [ready.branch_id for ready in store.ready_branches(9)] == branches[2:]
    assert (store.lane_queues(), store.gathered(RUN)) == ([], 3)


def test_lanes_without_calls_or_batches_are_forgotten(store):
    lane = msgspec.json.encode(LaneRecord(model="m", account="a"))
    store._redis.hset("fanout:batches:lanes", mapping={"old": lane, "used": lane, "late": lane})
    store._redis.hset("fanout:batches:lane:late", "newest", "1")
    epoch = store.lead_batches("p", ttl_s=60).epoch
    assert store.put_batch(epoch, BatchRecord(number=1, lane_id="used"))
    assert store.lane_queues() == []
    assert set(store._redis.hkeys("fanout:batches:lanes")) == {b"used", b"late"}
    assert store._redis.ttl("fanout:batches:all") > 0


def test_more_shards_are_open_while_branches_wait_for_batches(store):
    store.create_run(RUN, spec="{}", created_at=1.0, is_gathered=True)
    stage_id = StageId(RUN, 0)
    for number in range(30):
        store.put_shard(stage_id.shard(number), make_shard(3, 3 * number))
    opened = store.open_shards(stage_id, window=2)
    while opened[-1] < 29:
        opened += store.open_shards(stage_id, window=2, draining=opened[-1])
        opened += store.open_shards(stage_id, window=2, draining=opened[-2])
    assert store.progress(stage_id).open == frozenset(range(30))
