"""What is read while the server is full: Redis 7.0 then refuses every command of a transaction."""

from __future__ import annotations

import pytest
import redis

from fanout.broker.backlog import read_backlog
from fanout.core.ids import ShardId, StageId
from tests.fakes import RUN, fake_redis, fake_store, make_shard

READS = {
    "run": lambda store: store.run(RUN),
    "runs": lambda store: list(store.runs()),
    "stage": lambda store: store.stage(StageId(RUN, 0)),
    "progress": lambda store: store.progress(StageId(RUN, 0)),
    "window": lambda store: store.stage_load(StageId(RUN, 0)),
    "shard": lambda store: store.shard(ShardId(RUN, 0, 0)),
    "shard_state": lambda store: store.shard_state(ShardId(RUN, 0, 0)),
    "incomplete": lambda store: store.incomplete(StageId(RUN, 0)),
    "outcomes": lambda store: store.outcomes(ShardId(RUN, 0, 0)),
    "result": lambda store: store.result(RUN),
    "workers": lambda store: store.workers(),
    "limits": lambda store: store.limits(),
    "pause_of": lambda store: store.pause_of("m"),
    "token_sums": lambda store: store.token_sums("m"),
    "cut_ratio": lambda store: store.cut_ratio("m", "words"),
    "budget": lambda store: store.budget(RUN),
    "day_budgets": lambda store: store.day_budgets(["*"]),
    "totals": lambda store: store.totals(),
    "active_runs": lambda store: store.active_runs(),
    "wire": lambda store: store.wire(),
    "queues": lambda store: read_backlog(store._redis),
}


@pytest.mark.parametrize("name", READS)
def test_nothing_is_read_in_a_transaction(name, monkeypatch, fake_server):
    store = fake_store(fake_server)
    if store.active_runs() == []:
        store.create_run(RUN, spec="{}", created_at=1.0)
    store.put_shard(ShardId(RUN, 0, 0), make_shard())

    def refused(*_args, **_kwargs):
        raise redis.ResponseError("command not allowed when used memory > 'maxmemory'")

    monkeypatch.setattr(redis.client.Pipeline, "_execute_transaction", refused)
    READS[name](store)
    pipe = fake_redis(fake_server).pipeline()
    pipe.time()
    with pytest.raises(redis.ResponseError):
        pipe.execute()
