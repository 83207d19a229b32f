"""How chords of shards end: what Celery's Redis backend counts, and when a callback runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from celery import states
from celery.backends.redis import RedisBackend

from fanout.broker import app as broker
from fanout.broker.result_backend import TaskFault, TolerantRedisBackend
from fanout.core.ids import ShardId, StageId
from workers.branch.execution import BranchFailed

from .messages import GROUP, make_known, members, queued, request


def test_the_result_backend_is_the_tolerant_one(app):
    assert type(app.backend) is TolerantRedisBackend
    assert isinstance(app.backend, RedisBackend)


def chord_keys(client):
    """What the server keeps of chords, but for the token of a claim."""
    kept = {}
    for key in client.scan_iter("celery-taskset-meta-*"):
        kind = client.type(key)
        if kind == b"zset":
            kept[key] = client.zrange(key, 0, -1, withscores=True)
        else:
            kept[key] = client.smembers(key) if kind == b"set" else client.get(key)
    return kept


def part(position, callback, *, error=None, group=GROUP):
    """A member that has ended, as the worker's pool tells of it."""
    known = request(position, callback, group=group)
    asked = SimpleNamespace(id=known.id, group=group, group_index=position, context=known)
    return asked, "FAILURE" if error else "SUCCESS", error


def test_members_that_return_together_leave_what_celery_leaves_one_by_one(
    app, publisher, server_client
):
    publisher.shard_chord(ShardId("r1", 0, 0), range(5))
    callback = members(server_client)[0]
    parts = [part(at, callback, error=ValueError("x") if at == 2 else None) for at in range(4)]
    for asked, state, error in parts:
        app.backend.on_chord_part_return(asked.context, state, error)
    one_by_one = chord_keys(server_client)
    server_client.flushdb()
    make_known(server_client)
    publisher.shard_chord(ShardId("r1", 0, 0), range(5))
    app.backend.on_chord_parts_return(parts)
    assert chord_keys(server_client) == one_by_one
    assert queued(server_client, broker.CONTROL_QUEUE) == []


@pytest.mark.parametrize("last", [[], [0], [1]])
def test_a_chord_that_members_complete_together_runs_its_callback_once(
    app, publisher, server_client, last
):
    """Also where the last of them is a copy of one that was counted."""
    publisher.shard_chord(ShardId("r1", 0, 0), range(3))
    callback = members(server_client)[0]
    app.backend.on_chord_parts_return([part(0, callback)])
    app.backend.on_chord_parts_return([part(at, callback) for at in (1, 2, *last)])
    assert len(queued(server_client, broker.CONTROL_QUEUE)) == 1
    app.backend.on_chord_parts_return([part(at, callback) for at in (0, 1, 2)])
    assert len(queued(server_client, broker.CONTROL_QUEUE)) == 1, "copies that come later"


def test_members_of_several_chords_are_counted_each_in_its_own(app, publisher, server_client):
    for shard in range(2):
        publisher.shard_chord(ShardId("r1", 0, shard), range(2))
    callback = publisher._collect(ShardId("r1", 0, 0)), publisher._collect(ShardId("r1", 0, 1))
    parts = [
        part(at, callback[shard], group=f"r1/0/{shard}") for at in range(2) for shard in range(2)
    ]
    app.backend.on_chord_parts_return(parts[:3])
    [(headers, _, _)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["id"] == "r1/0/0/collect"


def test_the_callback_runs_when_the_last_member_returns_and_has_no_word_of_those_that_succeeded(
    app, publisher, server_client
):
    publisher.shard_chord(ShardId("r1", 0, 0), range(2))
    callback = members(server_client)[0]
    app.backend.mark_as_done("r1/0/0/0", None, request(0, callback), store_result=False)
    assert queued(server_client, broker.CONTROL_QUEUE) == []
    app.backend.mark_as_done("r1/0/0/1", None, request(1, callback), store_result=False)
    [(headers, _, body)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["id"] == "r1/0/0/collect", "the callback keeps the id it was given"
    assert (headers["group"], headers["group_index"]) == ("r1/0", 0)
    assert body[:2] == [[[]], {"run_id": "r1", "stage": 0, "shard": 0}]
    assert body[2]["chord"]["task"] == broker.AGGREGATE, "and is a member of the root chord"


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_failed_member_is_counted_and_becomes_a_record_without_its_message(
    app, publisher, server_client, state
):
    publisher.shard_chord(ShardId("r1", 0, 0), range(2))
    callback = members(server_client)[0]
    if state == "FAILURE":
        error = ValueError("could not parse: the text of a document")
        app.backend.mark_as_failure(
            "r1/0/0/0", error, request=request(0, callback), store_result=False
        )
    else:
        app.backend.mark_as_revoked(
            "r1/0/0/0", "expired", request=request(0, callback), store_result=False
        )
    app.backend.mark_as_done("r1/0/0/1", None, request(1, callback), store_result=False)
    [(_, _, body)] = queued(server_client, broker.CONTROL_QUEUE)
    [record] = body[0][0]
    assert record["task_id"] == "r1/0/0/0"
    assert record["state"] == state
    assert record["error"] == ("ValueError" if state == "FAILURE" else "TaskRevokedError")
    assert "the text of a document" not in json.dumps(body)
    if state == "REVOKED":
        assert "expired" in record["reason"]


def test_a_member_that_returns_twice_counts_once(app, publisher, server_client):
    publisher.shard_chord(ShardId("r1", 0, 0), range(2))
    callback = members(server_client)[0]
    for _ in range(2):
        app.backend.mark_as_done("r1/0/0/0", None, request(0, callback), store_result=False)
    assert queued(server_client, broker.CONTROL_QUEUE) == []


def test_a_member_that_returns_after_the_end_does_not_run_the_callback_again(
    app, publisher, server_client
):
    publisher.shard_chord(ShardId("r1", 0, 0), range(1))
    callback = members(server_client)[0]
    for _ in range(3):
        app.backend.mark_as_done("r1/0/0/0", None, request(0, callback), store_result=False)
    assert len(queued(server_client, broker.CONTROL_QUEUE)) == 1


def test_a_root_chord_is_not_complete_before_its_seal(app, publisher, server_client):
    """All known shards may have returned while the client is still splitting."""
    aggregate = publisher._aggregate(StageId("r1", 0))
    for shard in range(2):
        done = request(shard, aggregate, group="r1/0", task_id=f"r1/0/{shard}/collect")
        app.backend.mark_as_done(done.id, {"shard": shard}, done, store_result=False)
    assert queued(server_client, broker.CONTROL_QUEUE) == []
    publisher.seal(StageId("r1", 0), shards=2)
    [(headers, _, body)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["task"] == broker.SEAL
    seal = request(2, body[2]["chord"], group="r1/0", task_id="r1/0/seal")
    app.backend.mark_as_done(seal.id, None, seal, store_result=False)
    _, (headers, _, body) = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["task"] == broker.AGGREGATE
    assert body[:2] == [[[]], {"run_id": "r1", "stage": 0}]


def test_the_callback_of_a_chord_with_very_many_members_is_a_small_message(
    app, publisher, server_client
):
    size = 20_000
    backend = app.backend
    publisher._set_size("r1/0", size)
    aggregate = publisher._aggregate(StageId("r1", 0))
    returned = (request(at, aggregate, group="r1/0", task_id=f"r1/0/{at}/c") for at in range(size))
    *most, last = [
        (SimpleNamespace(id=each.id, group="r1/0", group_index=each.group_index), "SUCCESS", None)
        for each in returned
    ]
    backend._write_members("r1/0", most)
    known = request(size - 1, aggregate, group="r1/0", task_id=last[0].id)
    backend.mark_as_done(known.id, None, known, store_result=False)
    [message] = server_client.lrange(broker.CONTROL_QUEUE, 0, -1)
    assert len(message) < 3_000


@pytest.mark.parametrize(
    ("result", "is_told"),
    [
        (None, None),
        (BranchFailed("timeout"), None),
        (TaskFault("ValueError at workers.reduce.stages:7"), "ValueError"),
    ],
)
def test_a_member_of_a_chord_is_written_as_celery_writes_it(app, result, is_told):
    app.conf.broker_transport_options = {"run_keys": "fanout:run:"}
    backend = TolerantRedisBackend(app=app, url="redis://127.0.0.1:1/0")
    written = []
    backend.__dict__["_members_script"] = lambda keys, args: written.append(args)
    task_state = states.SUCCESS if result is None else states.FAILURE
    request = SimpleNamespace(id="r1/0/0/1", group_index=1)
    backend._write_members("r1/0/0", [(request, task_state, result)])
    [[place, task_id, entry]] = written
    assert (place, task_id) == (1, "r1/0/0/1")
    of_celery = backend.encode([1, task_id, task_state, backend.encode_result(result, task_state)])
    assert entry == of_celery
    record = backend._unpack_chord_result(entry, backend.decode)
    assert (record and record["error"]) == is_told
