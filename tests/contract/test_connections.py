"""Connections of Celery, kombu and redis-py notice a dead peer, and show no password."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import redis
from celery.worker.consumer.connection import Connection as ConnectionStep

from fanout.broker import app as broker
from fanout.broker.publisher import Publisher
from fanout.broker.result_backend import TolerantSentinelBackend
from fanout.core.errors import BrokerError
from fanout.core.ids import ShardId
from fanout.core.settings import load_settings
from fanout.stores.connection import MasterConnection, connect
from fanout.stores.connection_pool import FastPool
from tests.servers import SentinelProcess, ServerProcess

from .messages import make_known


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


def test_every_connection_notices_within_half_a_minute_that_its_peer_has_died(any_app):
    with any_app.connection_for_read() as connection:
        channel = connection.default_channel
        clients = [channel.client, channel._create_client(), any_app.backend.client]
        for client in clients:
            taken = client.connection_pool.get_connection()
            _assert_watched(taken)
            client.connection_pool.release(taken)


def test_connections_for_messages_and_results_come_from_the_fast_pool(broker_url):
    with broker.make_app(load_settings(broker_url=broker_url)) as app:
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            pools = [channel.pool, channel.async_pool, app.backend.client.connection_pool]
            kombus = super(type(channel), channel)._get_pool()
        assert [type(pool) for pool in pools] == [FastPool] * 3
        connections = pools[0]
        ours = connections.connection_kwargs | {"connection_class": connections.connection_class}
        theirs = kombus.connection_kwargs | {"connection_class": kombus.connection_class}
        assert ours.keys() == theirs.keys() | {"driver_info"}
        assert connections.max_connections == kombus.max_connections
        assert ours["socket_timeout"] == theirs["socket_timeout"] == 20


def test_a_connection_names_its_client_without_a_look_at_the_installed_version(
    broker_url, monkeypatch
):
    app = broker.make_app(load_settings(broker_url=broker_url))
    with (
        app,
        app.connection_for_read() as connection,
        connect(broker_url) as own,
        monkeypatch.context() as patch,
    ):
        patch.setattr("redis.utils.get_lib_version", lambda: pytest.fail("it looks"))
        said = [each.client_info() for each in (own, connection.default_channel.client)]
    known = [(each["lib-name"], each["lib-ver"]) for each in said]
    assert known == [("redis-py", redis.__version__)] * 2


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


def test_behind_a_sentinel_messages_can_be_published_in_batches_too(watched):
    server, sentinel = watched
    app = broker.make_app(load_settings(broker_url=sentinel.url))
    with app.producer_pool.acquire() as producer:
        assert producer.supports_batch_publish
    make_known(app.backend.client)
    Publisher(app).shard_chord(ShardId("r1", 0, 0), range(3))
    with server.client() as client:
        assert client.llen(broker.BRANCHES_QUEUE) == 3
    assert type(app.backend) is TolerantSentinelBackend
    assert app.backend.client.connection_pool.connection_class is MasterConnection
    app.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:canary-pw@127.0.0.1:1/0",
        "sentinel://:canary-pw@127.0.0.1:1,127.0.0.1:2/0?master=m&sentinel_password=canary-pw2",
    ],
)
def test_a_worker_tells_nobody_its_broker_s_password(url):
    app = broker.make_app(load_settings(broker_url=url))
    told = [
        app.conf.humanize(with_defaults=True, censored=True),
        app.connection().as_uri(),
        app.backend.as_uri(),
        # What `inspect stats` and Flower show.
        repr(ConnectionStep.info(None, SimpleNamespace(connection=app.connection()))),
    ]
    app.close()
    assert [text for text in told if "canary-pw" in text] == []
