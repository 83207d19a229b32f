"""What the engine leans on inside Celery and kombu: a test for each fact."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest
import redis
from celery.app.task import Context
from celery.backends.redis import RedisBackend

from fanout.broker import app as broker
from fanout.broker.publisher import Publisher
from fanout.broker.result_backend import TolerantRedisBackend, TolerantSentinelBackend
from fanout.core.errors import BrokerError
from fanout.core.settings import load_settings
from fanout.stores import Grant
from fanout.stores.connection import MasterConnection
from tests.servers import SentinelProcess, ServerProcess

GROUP = "r1/0/0"


@pytest.fixture
def app(broker_url):
    app = broker.make_app(load_settings(broker_url=broker_url))
    yield app
    app.close()


@pytest.fixture
def server_client(broker_url):
    with redis.Redis.from_url(broker_url) as client:
        yield client


def make_known(client):
    """Of a run that is not known nothing is published, and nothing is counted."""
    client.hset("fanout:run:r1", "spec", "{}")


@pytest.fixture
def publisher(app, server_client):
    make_known(server_client)
    return Publisher(app)


def queued(client, queue):
    """The messages of a queue, oldest first: header, properties and body."""
    lists = [queue, *sorted(client.scan_iter(f"{queue}.of.*"))]
    messages = [json.loads(raw) for each in lists for raw in reversed(client.lrange(each, 0, -1))]
    return [(m["headers"], m["properties"], json.loads(_body(m))) for m in messages]


def _body(message):
    import base64

    return base64.b64decode(message["body"])


def request(position, callback, *, group=GROUP, task_id=None):
    return Context(
        id=task_id or f"{group}/{position}",
        group=group,
        group_index=position,
        chord=callback,
        ignore_result=True,
    )


def members(client):
    """The chord callback as the branches of a published shard carry it."""
    headers_and_bodies = queued(client, broker.BRANCHES_QUEUE)
    return [body[2]["chord"] for _, _, body in headers_and_bodies]


def test_the_result_backend_is_the_tolerant_one(app):
    assert type(app.backend) is TolerantRedisBackend
    assert isinstance(app.backend, RedisBackend)


def test_messages_can_be_published_in_batches(app):
    with app.producer_pool.acquire() as producer:
        assert producer.supports_batch_publish


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server of its own, and the sentinel that watches it."""
    folder = tmp_path_factory.mktemp("watched")
    server = ServerProcess(folder / "server")
    sentinel = SentinelProcess(folder / "sentinel", server.port)
    yield server, sentinel
    sentinel.kill()
    server.kill()


@pytest.fixture(params=["redis", "sentinel"])
def any_app(request, broker_url):
    """An application on a server that is known by its address, or by its sentinel."""
    url = broker_url
    if request.param == "sentinel":
        url = request.getfixturevalue("watched")[1].url
    app = broker.make_app(load_settings(broker_url=url))
    yield app
    app.close()


def test_behind_a_sentinel_messages_can_be_published_in_batches_too(watched):
    server, sentinel = watched
    app = broker.make_app(load_settings(broker_url=sentinel.url))
    with app.producer_pool.acquire() as producer:
        assert producer.supports_batch_publish
    make_known(app.backend.client)
    Publisher(app).shard_chord("r1", 0, 0, range(3), size=3, feed=0)
    with server.client() as client:
        assert client.llen(broker.BRANCHES_QUEUE) == 3
    assert type(app.backend) is TolerantSentinelBackend
    assert app.backend.client.connection_pool.connection_class is MasterConnection
    app.close()


def test_every_connection_notices_within_half_a_minute_that_its_peer_has_died(any_app):
    with any_app.connection_for_read() as connection:
        channel = connection.default_channel
        clients = [channel.client, channel._create_client(), any_app.backend.client]
        for client in clients:
            taken = client.connection_pool.get_connection()
            _assert_watched(taken)
            client.connection_pool.release(taken)


def _assert_watched(connection):
    def option(name):
        return connection._sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))

    assert connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert option("TCP_KEEPINTVL") * option("TCP_KEEPCNT") <= 15
    assert connection.socket_timeout == 20
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert option("TCP_KEEPIDLE") == 10
        assert option("TCP_USER_TIMEOUT") == 20_000


def test_the_credentials_of_a_watched_server_reach_all_that_connect_to_it():
    url = "sentinel://me:p%40ss+1@127.0.0.1:1,[::1]:2/3?master=m&sentinel_password=s3"
    settings = load_settings(broker_url=url)
    app = broker.make_app(settings)
    backend = app.backend.client.connection_pool
    store = broker.connect_broker(settings).connection_pool
    for pool in (backend, store):
        options = pool.connection_kwargs
        assert (options["username"], options["password"], options["db"]) == ("me", "p@ss+1", 3)
        assert pool.service_name == "m"
        known = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        assert [(k["host"], k["port"], k["password"]) for k in known] == [
            ("127.0.0.1", 1, "s3"),
            ("::1", 2, "s3"),
        ]
    connection = app.connection()
    assert (connection.userid, connection.password) == ("me", "p@ss+1")
    assert connection.virtual_host == "3"
    assert connection.alt == [
        "sentinel://me:p%40ss%2B1@127.0.0.1:1/3",
        "sentinel://me:p%40ss%2B1@[::1]:2/3",
    ]
    for shown in (connection.as_uri(), app.backend.as_uri()):
        assert "p@ss" not in shown
        assert "p%40ss" not in shown
    app.close()


def test_sentinels_that_do_not_answer_are_named_without_their_password():
    url = "sentinel://:hunter2@127.0.0.1:1,127.0.0.1:2/0?master=m&sentinel_password=hunter3"
    store = broker.make_store(load_settings(broker_url=url))
    assert store.address == "m behind the sentinels 127.0.0.1:1, 127.0.0.1:2"
    with pytest.raises(BrokerError, match=r"no broker answers at m behind") as caught:
        store.ping()
    assert "hunter" not in str(caught.value)


def test_a_retry_option_that_rules_out_batches_is_refused(broker_url):
    app = broker.make_app(load_settings(broker_url=broker_url))
    app.conf.broker_transport_options["retry_on_timeout"] = True
    with pytest.raises(BrokerError, match="retry"):
        Publisher(app).preflight("fake", "n")
    app.close()


def test_a_shard_is_published_as_a_chord(publisher, server_client):
    publisher.shard_chord("r1", 0, 3, range(3), size=5, feed=5)
    messages = queued(server_client, broker.BRANCHES_QUEUE)
    assert [headers["id"] for headers, _, _ in messages] == ["r1/0/3/0", "r1/0/3/1", "r1/0/3/2"]
    for position, (headers, properties, body) in enumerate(messages):
        assert headers["task"] == broker.BRANCH
        assert (headers["group"], headers["group_index"]) == ("r1/0/3", position)
        assert headers["root_id"] == "r1"
        assert headers["ignore_result"] is True
        assert properties["correlation_id"] == f"r1/0/3/{position}"
        ids = {"run_id": "r1", "stage": 0, "shard": 3, "position": position, "feed": 5}
        assert body[:2] == [[], ids], "ids only: no text crosses the broker"
        assert body[2]["chord"]["task"] == broker.COLLECT
    assert server_client.get("celery-taskset-meta-r1/0/3.s") == b"5"


@pytest.mark.parametrize(("stage", "feed"), [(0, 0), (3, 500)])
def test_each_member_of_a_header_is_the_message_that_celery_itself_would_send(
    app, publisher, server_client, stage, feed
):
    publisher.shard_chord("r1", stage, 3, range(40), size=40, feed=feed)
    ours = queued(server_client, broker.BRANCHES_QUEUE)
    server_client.delete(*server_client.keys("fanout.branches*"))
    for position in range(40):
        signature = publisher._signature(
            broker.BRANCH,
            {"run_id": "r1", "stage": stage, "shard": 3, "position": position, "feed": feed},
            queue=broker.BRANCHES_QUEUE,
            task_id=f"r1/{stage}/3/{position}",
            group_id=f"r1/{stage}/3",
            group_index=position,
            chord=publisher._collect("r1", stage, 3),
        )
        signature.apply_async()
    celerys = queued(server_client, broker.BRANCHES_QUEUE)
    for headers, properties, _ in (*ours, *celerys):
        headers.pop("sent_at", None)
        assert properties.pop("delivery_tag")
    assert ours == celerys
    assert len({json.dumps(message) for message in ours}) == 40


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
    publisher.shard_chord("r1", 0, 0, range(5), size=5, feed=0)
    callback = members(server_client)[0]
    parts = [part(at, callback, error=ValueError("x") if at == 2 else None) for at in range(4)]
    for asked, state, error in parts:
        app.backend.on_chord_part_return(asked.context, state, error)
    one_by_one = chord_keys(server_client)
    server_client.flushdb()
    make_known(server_client)
    publisher.shard_chord("r1", 0, 0, range(5), size=5, feed=0)
    app.backend.on_chord_parts_return(parts)
    assert chord_keys(server_client) == one_by_one
    assert queued(server_client, broker.CONTROL_QUEUE) == []


@pytest.mark.parametrize("last", [[], [0], [1]])
def test_a_chord_that_members_complete_together_runs_its_callback_once(
    app, publisher, server_client, last
):
    """Also where the last of them is a copy of one that was counted."""
    publisher.shard_chord("r1", 0, 0, range(3), size=3, feed=0)
    callback = members(server_client)[0]
    app.backend.on_chord_parts_return([part(0, callback)])
    app.backend.on_chord_parts_return([part(at, callback) for at in (1, 2, *last)])
    assert len(queued(server_client, broker.CONTROL_QUEUE)) == 1
    app.backend.on_chord_parts_return([part(at, callback) for at in (0, 1, 2)])
    assert len(queued(server_client, broker.CONTROL_QUEUE)) == 1, "copies that come later"


def test_members_of_several_chords_are_counted_each_in_its_own(app, publisher, server_client):
    for shard in range(2):
        publisher.shard_chord("r1", 0, shard, range(2), size=2, feed=0)
    callback = publisher._collect("r1", 0, 0), publisher._collect("r1", 0, 1)
    parts = [
        part(at, callback[shard], group=f"r1/0/{shard}") for at in range(2) for shard in range(2)
    ]
    app.backend.on_chord_parts_return(parts[:3])
    [(headers, _, _)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["id"] == "r1/0/0/collect"


def test_publishing_subscribes_to_nothing_and_stores_nothing(app, publisher, server_client):
    server_client.flushdb()
    publisher.expand("r1", 0, [Grant(shard=0), Grant(shard=1)])
    assert server_client.pubsub_channels() == []
    # The first to publish in a process also notes which queues there are.
    kept = [key for key in server_client.keys("*") if not key.startswith(b"_kombu.binding")]
    assert kept == [b"fanout.control"]


def test_the_callback_runs_when_the_last_member_returns_and_has_no_word_of_those_that_succeeded(
    app, publisher, server_client
):
    publisher.shard_chord("r1", 0, 0, range(2), size=2, feed=0)
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
    publisher.shard_chord("r1", 0, 0, range(2), size=2, feed=0)
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
    publisher.shard_chord("r1", 0, 0, range(2), size=2, feed=0)
    callback = members(server_client)[0]
    for _ in range(2):
        app.backend.mark_as_done("r1/0/0/0", None, request(0, callback), store_result=False)
    assert queued(server_client, broker.CONTROL_QUEUE) == []


def test_a_member_that_returns_after_the_end_does_not_run_the_callback_again(
    app, publisher, server_client
):
    publisher.shard_chord("r1", 0, 0, range(1), size=1, feed=0)
    callback = members(server_client)[0]
    for _ in range(3):
        app.backend.mark_as_done("r1/0/0/0", None, request(0, callback), store_result=False)
    assert len(queued(server_client, broker.CONTROL_QUEUE)) == 1


def test_a_root_chord_is_not_complete_before_its_seal(app, publisher, server_client):
    """All known shards may have returned while the client is still splitting."""
    aggregate = publisher._aggregate("r1", 0)
    for shard in range(2):
        done = request(shard, aggregate, group="r1/0", task_id=f"r1/0/{shard}/collect")
        app.backend.mark_as_done(done.id, {"shard": shard}, done, store_result=False)
    assert queued(server_client, broker.CONTROL_QUEUE) == []
    publisher.seal("r1", 0, shards=2)
    [(headers, _, body)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["task"] == broker.SEAL
    seal = request(2, body[2]["chord"], group="r1/0", task_id="r1/0/seal")
    app.backend.mark_as_done(seal.id, None, seal, store_result=False)
    _, (headers, _, body) = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["task"] == broker.AGGREGATE
    assert body[:2] == [[[]], {"run_id": "r1", "stage": 0}]


def test_an_empty_shard_chord_is_its_callback(publisher, server_client):
    publisher.collect("r1", 0, 7)
    [(headers, _, body)] = queued(server_client, broker.CONTROL_QUEUE)
    assert headers["id"] == "r1/0/7/collect"
    assert body[:2] == [[[]], {"run_id": "r1", "stage": 0, "shard": 7}]


def test_control_tasks_are_delivered_before_branches(app, publisher):
    publisher.shard_chord("r1", 0, 0, range(2), size=2, feed=0)
    publisher.collect("r1", 0, 9)
    tasks = []
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(connection.default_channel)
        consumer.register_callback(lambda _body, message: tasks.append(message.headers["task"]))
        consumer.qos(prefetch_count=1)
        with consumer:
            connection.drain_events(timeout=5)
    assert tasks == [broker.COLLECT]


def test_a_message_is_small(publisher, server_client):
    publisher.shard_chord("r1", 0, 3, range(1), size=1, feed=0)
    [message] = server_client.lrange(broker.BRANCHES_QUEUE, 0, -1)
    assert len(message) < 3_000


def test_the_callback_of_a_chord_with_very_many_members_is_a_small_message(
    app, publisher, server_client
):
    size = 20_000
    backend = app.backend
    publisher._set_size("r1/0", size)
    aggregate = publisher._aggregate("r1", 0)
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
