"""What is published: the messages that Celery would send, in batches, and nothing else."""

from __future__ import annotations

import json

import pytest
import redis

from fanout.broker import app as broker
from fanout.broker.publisher import Publisher
from fanout.core.errors import BrokerError
from fanout.core.ids import ShardId, StageId
from fanout.core.settings import load_settings

from .messages import queued


def test_messages_can_be_published_in_batches(app):
    with app.producer_pool.acquire() as producer:
        assert producer.supports_batch_publish


def test_a_retry_option_that_rules_out_batches_is_refused(broker_url):
    app = broker.make_app(load_settings(broker_url=broker_url))
    app.conf.broker_transport_options["retry_on_timeout"] = True
    with pytest.raises(BrokerError, match="retry"):
        Publisher(app).preflight("fake", "n")
    app.close()


def test_a_shard_is_published_as_a_chord(publisher, server_client):
    publisher.shard_chord(ShardId("r1", 0, 3), range(3))
    messages = queued(server_client, broker.BRANCHES_QUEUE)
    assert [headers["id"] for headers, _, _ in messages] == ["r1/0/3/0", "r1/0/3/1", "r1/0/3/2"]
    for position, (headers, properties, body) in enumerate(messages):
        assert headers["task"] == broker.BRANCH
        assert (headers["group"], headers["group_index"]) == ("r1/0/3", position)
        assert headers["root_id"] == "r1"
        assert headers["ignore_result"] is True
        assert properties["correlation_id"] == f"r1/0/3/{position}"
        ids = {"run_id": "r1", "stage": 0, "shard": 3, "position": position}
        assert body[:2] == [[], ids], "ids only: no text crosses the broker"
        assert body[2]["chord"]["task"] == broker.COLLECT
    assert server_client.get("celery-taskset-meta-r1/0/3.s") == b"3"


@pytest.mark.parametrize("stage", [0, 3])
def test_each_member_of_a_header_is_the_message_that_celery_itself_would_send(
    app, publisher, server_client, stage
):
    publisher.shard_chord(ShardId("r1", stage, 3), range(40))
    ours = queued(server_client, broker.BRANCHES_QUEUE)
    server_client.delete(*server_client.keys("fanout.branches*"))
    for position in range(40):
        signature = publisher._signature(
            broker.BRANCH,
            {"run_id": "r1", "stage": stage, "shard": 3, "position": position},
            queue=broker.BRANCHES_QUEUE,
            task_id=f"r1/{stage}/3/{position}",
            group_id=f"r1/{stage}/3",
            group_index=position,
            chord=publisher._collect(ShardId("r1", stage, 3)),
        )
        signature.apply_async()
    celerys = queued(server_client, broker.BRANCHES_QUEUE)
    for headers, properties, _ in (*ours, *celerys):
        headers.pop("sent_at", None)
        assert properties.pop("delivery_tag")
    assert ours == celerys
    assert len({json.dumps(message) for message in ours}) == 40


def test_publishing_subscribes_to_nothing_and_stores_nothing(app, publisher, server_client):
    server_client.flushdb()
    publisher.expand(StageId("r1", 0), [0, 1])
    assert server_client.pubsub_channels() == []
    # The first to publish in a process also notes which queues there are.
    kept = [key for key in server_client.keys("*") if not key.startswith(b"_kombu.binding")]
    assert kept == [b"fanout.control"]


def test_an_empty_shard_chord_is_its_callback(publisher, server_client):
    publisher.collect(ShardId("r1", 0, 7))
    [(headers, _, body)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["id"] == "r1/0/7/collect"
    assert body[:2] == [[[]], {"run_id": "r1", "stage": 0, "shard": 7}]


def test_control_tasks_are_delivered_before_branches(app, publisher):
    publisher.shard_chord(ShardId("r1", 0, 0), range(2))
    publisher.collect(ShardId("r1", 0, 9))
    tasks = []
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection.default_channel)
        consumer.register_callback(lambda _body, message: tasks.append(message.headers["task"]))
        consumer.qos(prefetch_count=1)
        with consumer:
            connection.drain_events(timeout=60)
    assert tasks == [broker.COLLECT]


def test_a_message_is_small(publisher, server_client):
    publisher.shard_chord(ShardId("r1", 0, 3), range(1))
    [message] = server_client.lrange(broker.BRANCHES_QUEUE, 0, -1)
    assert len(message) < 3_000


def test_a_message_that_is_too_large_is_not_sent(broker_url):
    settings = load_settings(broker_url=broker_url, max_message_kb=16)
    app = broker.make_app(settings)
    with pytest.raises(BrokerError, match=r"a message of \d+ kB is larger than FANOUT_MAX_MESSAGE"):
        Publisher(app).preflight("m" * 16_000, "note")
    app.close()
    with redis.Redis.from_url(broker_url) as server:
        assert server.llen(broker.CONTROL_QUEUE) == 0
