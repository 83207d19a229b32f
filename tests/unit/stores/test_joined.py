"""Calls of the batch lane that wait for the answer of an identical one."""

from __future__ import annotations

import msgspec
import pytest

from fanout.core.gathered import GatherRequest
from fanout.core.ids import BranchId, ShardId
from fanout.core.kept_answers import AnswerSettled, KeptAnswer, SharedFailure
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.core.state import BeginRequest, RecordRequest
from fanout.stores.redis import joined
from tests.fakes import RUN, begin_one, make_shard, record_one


@pytest.fixture
def store(any_store):
    return any_store


GATHER = GatherRequest(
    branch_id=BranchId(RUN, 0, 0, 0),
    token="t",
    item="i-1",
    line=b"{}",
    lane_id="L",
    lane=b'{"model":"m","account":""}',
)


KEY = "ab" * 20


def gathers(store, run_id, position, **options):
    """Gather the call of a branch that others may be identical to; return the verdict."""
    branch = BranchId(run_id, 0, 0, position)
    begin_one(store, BeginRequest(branch, token="t"))
    asked = msgspec.structs.replace(
        GATHER, branch_id=branch, item=f"{run_id}{position}-1", key=KEY, **options
    )
    [reply] = store.gather_all([asked])
    return reply.verdict


def wakes(store, epoch, grace_s=0.0):
    """Wake followers; return those that were made ready."""
    before = store.ready_branches(99)
    _, keys = store.joined_keys((0, 0))
    woken = store.wake_joined(epoch, keys, most=9, grace_s=grace_s)
    ready = store.ready_branches(99)[len(before) :]
    assert woken == len(ready)
    return sorted((one.branch_id.run_id, one.branch_id.position) for one in ready)


@pytest.fixture
def followed(store):
    """Two runs: a branch of the first leads, another one of it and two of the second follow."""
    for run_id in (RUN, "r2"):
        store.create_run(run_id, spec="{}", created_at=1.0)
        store.put_shard(ShardId(run_id, 0, 0), make_shard())
    verdicts = [gathers(store, *each) for each in [(RUN, 0), ("r2", 0), (RUN, 1), ("r2", 1)]]
    assert verdicts == ["gathered", "joined", "joined", "joined"]
    branches = [BranchId(run_id, 0, 0, at) for run_id in (RUN, "r2") for at in (0, 1)]
    marks = [prepared.followed for prepared in store.prepared(branches)]
    assert marks == ["", f"{RUN}1-1", "r20-1", "r21-1"]
    assert [queue.calls for queue in store.lane_queues()] == [1]
    # They count as gathered, and healing leaves them alone.
    assert [store.gathered(run_id) for run_id in (RUN, "r2")] == [2, 2]
    assert store.shard_state(ShardId("r2", 0, 0)).held == frozenset({0, 1})
    epoch = store.lead_batches("p", ttl_s=60).epoch
    assert (wakes(store, epoch), store.wake_joined(epoch + 1, [KEY], most=9, grace_s=0)) == (
        [],
        None,
    )
    return store, epoch


def test_followers_are_ready_when_the_answer_is_kept_or_its_call_has_ended_without_one(followed):
    store, epoch = followed
    # A copy of the leader's message, and of a follower's.
    assert [gathers(store, RUN, 0), gathers(store, "r2", 0)] == ["gathered"] * 2
    [leader] = [mark for page in store.gathered_marks(RUN) for mark in page if mark[0] == "0:0:0"]
    store.release_gathered(epoch, RUN, [leader])
    store.published(store.ready_branches(9))
    assert wakes(store, epoch) == [], "it is under way"
    assert record_one(
        store, RecordRequest(BranchId(RUN, 0, 0, 0), Outcome(index=0, kind=ErrorKind.TIMEOUT))
    ).first
    assert wakes(store, epoch, 60.0) == [], "the answer may be on its way"
    assert wakes(store, epoch, 60.0) == []
    assert wakes(store, epoch) == [(RUN, 1), ("r2", 0), ("r2", 1)]
    assert store.joined_keys((0, 0)) == ((0, 0), [])
    # They do not wait for each other.
    assert [gathers(store, RUN, 1), gathers(store, "r2", 1)] == ["gathered"] * 2
    assert store.lane_queues()[0].calls == 3


@pytest.mark.parametrize("at_once", [500, 1])
def test_followers_are_ready_when_any_branch_has_kept_the_answer(followed, monkeypatch, at_once):
    store, epoch = followed
    monkeypatch.setattr(joined, "_WOKEN_AT_ONCE", at_once)
    answer = AnswerSettled(bytes.fromhex(KEY), "kept", KeptAnswer(text="a"))
    assert store.settle_answers([answer], token="x", ttl_s=60, limit_mb=100) == [True]
    assert wakes(store, epoch) == [(RUN, 1), ("r2", 0), ("r2", 1)]
    assert store.joined_keys((0, 0)) == ((0, 0), [])


@pytest.mark.parametrize("ended", ["kept", "failed"])
def test_followers_are_ready_when_another_database_has_the_answer(followed, ended):
    """That of an embedded run has none."""
    store, epoch = followed
    # The same server stands for the other database, which is asked first.
    assert store.answers_ended([KEY, "ef" * 20]) == {}
    failure = SharedFailure(kind=ErrorKind.TRUNCATED)
    answers = {
        "kept": AnswerSettled(bytes.fromhex(KEY), "kept", KeptAnswer(text="a")),
        "failed": AnswerSettled(bytes.fromhex(KEY), "failed", failure=failure),
    }
    store.settle_answers([answers[ended]], token="x", ttl_s=60, limit_mb=100)
    elsewhere = store.answers_ended(["ef" * 20, KEY])
    assert elsewhere == {KEY: ended}
    store.clear_answers()
    store._redis.delete(store._lease(bytes.fromhex(KEY)))
    woken = store.wake_joined(epoch, [KEY], most=9, grace_s=60.0, elsewhere=elsewhere)
    # A failure is that of the leader only once that has ended.
    assert woken == {"kept": 3, "failed": 0}[ended]
    assert record_one(
        store, RecordRequest(BranchId(RUN, 0, 0, 0), Outcome(index=0, kind=ErrorKind.TRUNCATED))
    ).first
    [leader] = [mark for page in store.gathered_marks(RUN) for mark in page if mark[0] == "0:0:0"]
    store.release_gathered(epoch, RUN, [leader])
    store.published(store.ready_branches(9))
    woken += store.wake_joined(epoch, [KEY], most=9, grace_s=60.0, elsewhere=elsewhere)
    assert woken == 3


def test_followers_take_a_failure_at_once_and_lead_where_it_is_gone(followed):
    store, epoch = followed
    failure = SharedFailure(kind=ErrorKind.TRUNCATED)
    settled = AnswerSettled(bytes.fromhex(KEY), "failed", failure=failure)
    store.settle_answers([settled], token="x", ttl_s=60, limit_mb=100)
    assert wakes(store, epoch, 60.0) == [], "the call of the leader is another one"
    [leader] = [mark for page in store.gathered_marks(RUN) for mark in page if mark[0] == "0:0:0"]
    store.release_gathered(epoch, RUN, [leader])
    store.published(store.ready_branches(9))
    outcome = Outcome(index=0, kind=ErrorKind.TRUNCATED)
    assert record_one(store, RecordRequest(BranchId(RUN, 0, 0, 0), outcome)).first
    store._redis.pexpire(store._lease(bytes.fromhex(KEY)), 500)
    assert wakes(store, epoch, 60.0) == [(RUN, 1), ("r2", 0), ("r2", 1)]
    assert store._redis.pttl(store._lease(bytes.fromhex(KEY))) > 1_000
    assert store.joined_keys((0, 0)) == ((0, 0), [])
    # Those that come too late make one call again.
    assert [gathers(store, "r2", 0), gathers(store, "r2", 1)] == ["gathered", "joined"]


@pytest.mark.parametrize("end", ["deleted", "halted", "overdue", "paused"])
def test_the_first_follower_leads_once_the_run_of_the_leader_stops(followed, end):
    store, epoch = followed
    if end == "deleted":
        store.delete_run(RUN)
    elif end == "halted":
        store.halt(RUN, RunStatus.CANCELLED)
    elif end == "overdue":
        store._redis.hset(f"fanout:run:{RUN}", "deadline_at", store.now() - 1)
    else:
        store.pause(RUN)
        assert wakes(store, epoch) == [], "its call may be in a batch"
        store._redis.hdel(f"fanout:run:{RUN}:gathered", "0:0:0")
    assert wakes(store, epoch) == [("r2", 0)]
    assert wakes(store, epoch) == [], "the others wait for it"
    assert gathers(store, "r2", 0) == "gathered"
    assert gathers(store, "r2", 2, joins="only") == "joined"
    assert store.lane_queues()[0].calls == 2
    assert wakes(store, epoch) == []


def test_a_call_that_may_only_follow_is_left_if_there_is_none_to_follow(store):
    run = RUN
    store.create_run(run, spec="{}", created_at=1.0)
    assert gathers(store, run, 0, joins="only", line=b"") == "alone"
    assert (store.gathered(run), store.lane_queues()) == (0, [])
    assert gathers(store, run, 0) == "gathered"
    assert gathers(store, run, 1, joins="never") == "gathered"
    assert store.lane_queues()[0].calls == 2
