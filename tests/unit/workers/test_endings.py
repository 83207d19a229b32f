"""A run ends from any state: the engine in one process, its messages lost, its counters wrong."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.core.ids import ShardId, StageId
from fanout.core.records import Chunk, ErrorKind, RunStatus
from fanout.policy.packing import pack
from fanout.runs.enqueue import open_stage
from fanout.runs.reaper import Reaper
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, Clock, FakeContext, Publisher, run_branch
from workers.branch.execution import BranchFailed
from workers.reduce.items import TooEarlyError
from workers.reduce.stages import aggregate, collect, expand

_ROUNDS = 300


class Queue(Publisher):
    """Keeps the order of what was published, each step by itself; loses what it is told to."""

    sent: deque[Any]

    def __init__(self):
        super().__init__()
        self.sent = deque()
        self.lost = deque()

    def forget_chord(self, stage_id):
        pass

    def take(self):
        """Return the next message that is not lost, or None."""
        while self.sent:
            message = self.sent.popleft()
            if not (self.lost and self.lost.popleft()):
                return message
        return None


class Engine(FakeContext):
    """One worker, its queue and its reaper."""

    publisher: Queue

    def __init__(self, texts, *, shard, **fields):
        super().__init__(publisher=Queue(), retries={"max_attempts": 1}, **fields)
        self.server = self.store._redis
        self.clock = Clock()
        self.reaper = Reaper(
            self.store, self.publisher, self.messages, stall_s=15, clock=self.clock
        )
        chunks = [Chunk(text=t, document=t, document_index=i) for i, t in enumerate(texts)]
        shards = pack(chunks, branches_per_chunk=1, max_branches=shard)
        open_stage(self.store, self.publisher, StageId(RUN, 0), shards)

    @property
    def run(self):
        return self.store.run(RUN)

    def work(self):
        """Process what there is, and let time pass, until the run has ended."""
        for _ in range(_ROUNDS):
            while (message := self.publisher.take()) is not None:
                self._process(*message)
            if self.run.has_ended:
                return
            self.clock.now += 8
            self.reaper.sweep()
        pytest.fail(f"the run does not end: {self.store.progress(StageId(RUN, 0))}")

    def _process(self, what, stage, *ids):
        with suppress(TooEarlyError):
            match what:
                case "expand":
                    expand(self, ShardId(RUN, stage, *ids))
                case "chord":
                    shard, positions = ids
                    self.publisher.branches(ShardId(RUN, stage, shard), positions)
                case "branch":
                    shard, position = ids
                    shard_id = ShardId(RUN, stage, shard)
                    with suppress(BranchFailed):
                        run_branch(self, shard_id.branch(position))
                    if len(self.store.outcomes(shard_id)) == len(self.store.indices(shard_id)):
                        self.publisher.collect(shard_id)
                case "collect":
                    collect(self, [], ShardId(RUN, stage, *ids))
                    if not self.store.incomplete(StageId(RUN, stage)):
                        self.publisher.aggregate(StageId(RUN, stage))
                case "aggregate":
                    aggregate(self, StageId(RUN, stage))

    def require_complete(self):
        record = self.store.stage(StageId(RUN, 0))
        assert record.done == record.total
        outcomes = [self.store.outcomes(ShardId(RUN, 0, n)) for n in range(record.shards)]
        assert sum(len(some) for some in outcomes) == record.total
        failed = sum(not outcome.ok for some in outcomes for outcome in some.values())
        assert failed == record.failed == sum(record.errors.values())


def failing(*texts):
    return lambda request: ValueError("no") if request.prompt in texts else "fine"


@pytest.mark.parametrize("shard", [20, 7])
@pytest.mark.parametrize("failed", [["10"], ["0", "19"], ["3", "4", "5", "6"]])
def test_a_retry_ends_without_a_reaper_and_calls_only_what_had_failed(shard, failed):
    engine = Engine([str(i) for i in range(20)], shard=shard)
    engine.answer = failing(*failed)
    engine.work()
    assert engine.store.stage(StageId(RUN, 0)).failed == len(failed)
    engine.answer = failing()
    calls = engine.llm.calls
    assert retry_failed(engine.store, engine.publisher, RUN, None) == len(failed)
    engine.work()
    engine.require_complete()
    assert engine.run.status is RunStatus.SUCCEEDED
    assert engine.store.stage(StageId(RUN, 0)).failed == 0
    assert engine.llm.calls == calls + len(failed)
    assert engine.clock.now == 0, "nothing had to be healed"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_run_ends_from_any_state_of_its_counters_and_with_messages_lost(data):
    count = data.draw(st.integers(1, 12))
    size = data.draw(st.integers(1, 12))
    engine = Engine([str(i) for i in range(count)], shard=size)
    engine.answer = failing(*data.draw(st.sets(st.sampled_from([str(i) for i in range(count)]))))
    is_retry = data.draw(st.booleans())
    if is_retry:
        engine.work()
        with suppress(Exception):
            kinds = data.draw(st.sampled_from([None, frozenset({ErrorKind.INTERNAL})]))
            retry_failed(engine.store, engine.publisher, RUN, kinds)
    engine.publisher.lost.extend(data.draw(st.lists(st.booleans(), max_size=20)))
    server, stage = engine.server, f"fanout:run:{RUN}:s0"
    shards = engine.store.stage(StageId(RUN, 0)).shards
    server.hset(stage, "opened", data.draw(st.integers(0, shards)))
    for number in range(shards):
        if data.draw(st.booleans()):
            state = f"{stage}:{number}:state"
            following = data.draw(st.none() | st.integers(0, count + 2))
            if following is None:
                server.hdel(state, "next")
            else:
                server.hset(state, "next", following)
            server.hset(state, "heals", data.draw(st.integers(0, 4)))
        if data.draw(st.booleans()):
            server.hset(f"{stage}:open", number, data.draw(st.integers(0, count)))
        else:
            server.hdel(f"{stage}:open", number)
    engine.work()
    engine.require_complete()


@pytest.mark.parametrize("lost", [range(1), range(1, 4), range(2, 9)])
def test_a_chain_that_broke_goes_on_with_as_many_in_flight_as_before(lost):
    engine = Engine([str(i) for i in range(30)], shard=30)
    engine.publisher.lost.extend(at in lost for at in range(60))
    engine.work()
    engine.require_complete()
    assert engine.run.status is RunStatus.SUCCEEDED


def test_a_stage_whose_records_are_gone_fails_and_says_so():
    engine = Engine(["a", "b"], shard=9)
    engine.publisher.sent.clear()
    engine.server.delete(*engine.server.keys(f"fanout:run:{RUN}:s0*"))
    engine.work()
    assert engine.run.status is RunStatus.FAILED
    assert "could not be brought to its end" in engine.run.error


def test_a_branch_whose_run_this_worker_does_not_understand_says_so():
    """As of a client that knows a field that this worker does not."""
    context = FakeContext()
    context.write(["a"])
    context.store._redis.hset(f"fanout:run:{RUN}", "spec", '{"model": "fake", "new": 1}')
    shard_id = ShardId(RUN, 0, 0)
    with pytest.raises(BranchFailed):
        run_branch(context, shard_id.branch(0))
    (outcome,) = context.store.outcomes(shard_id).values()
    assert "another version of fanout" in outcome.message
