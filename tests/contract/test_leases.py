"""Leases and retries go by the clock of the server, not by that of the machine."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from datetime import datetime, timedelta
from types import SimpleNamespace

import kombu.transport.redis
import pytest
import redis
from kombu.transport import virtual

from fanout.broker import app as broker
from fanout.broker.inspection import UNACKED, UNACKED_INDEX
from fanout.broker.message_leases import ServerClockQoS, renew
from fanout.core.settings import load_settings
from workers.config import make_worker_app
from workers.consumer import server_clock, task_requests

LEASE_S = 30
SKEWS = pytest.mark.parametrize("ahead_s", [600, -600])


@pytest.fixture
def client(broker_url):
    with redis.Redis.from_url(broker_url) as client:
        yield client


@pytest.fixture
def machine(monkeypatch):
    """Have the clock of this machine be so many seconds ahead of the server's."""

    def wrong(ahead_s):
        real, now = time.time, datetime.now
        monkeypatch.setattr(time, "time", lambda: real() + ahead_s)
        monkeypatch.setattr(kombu.transport.redis, "time", time.time)
        moved = SimpleNamespace(now=lambda zone: now(zone) + timedelta(seconds=ahead_s))
        for module in (server_clock, task_requests):
            monkeypatch.setattr(module, "datetime", moved)

    return wrong


@pytest.fixture
def app(broker_url):
    settings = load_settings(broker_url=broker_url, visibility_timeout_s=LEASE_S)
    app = make_worker_app(settings)
    yield app
    app.context.close()
    app.close()


@pytest.fixture
def channel(app):
    with app.connection_for_read() as connection, connection.channel() as channel:
        app.amqp.queues[broker.BRANCHES_QUEUE](channel).declare()
        app.send_task(broker.BRANCH, ("r", 0, 0, 0, 0), task_id="r/0/0/0")
        yield channel


def take(channel):
    """Take the message as a worker does."""
    taken = channel.basic_get(broker.BRANCHES_QUEUE)
    return taken.delivery_tag


def age_s(client, tag):
    """Seconds since the lease of a message began, by the server's clock."""
    now_s, _ = client.time()
    return now_s - client.zscore(UNACKED_INDEX, tag)


def look(channel):
    channel.qos.restore_visible(num=10, interval=1)


@SKEWS
def test_a_lease_begins_when_the_server_says(machine, channel, client, ahead_s):
    machine(ahead_s)
    assert abs(age_s(client, take(channel))) < 60


@SKEWS
def test_a_lease_lapses_when_the_server_says(machine, channel, client, ahead_s):
    tag = take(channel)
    machine(ahead_s)
    look(channel)
    assert client.llen(broker.BRANCHES_QUEUE) == 0, "it was put back too early"
    client.zincrby(UNACKED_INDEX, -LEASE_S - 1, tag)
    look(channel)
    assert client.llen(broker.BRANCHES_QUEUE) == 1, "it is not put back"


@SKEWS
def test_a_lease_is_renewed_to_what_the_server_says(machine, channel, client, ahead_s):
    tag = take(channel)
    machine(ahead_s)
    client.zincrby(UNACKED_INDEX, -20, tag)
    renew(client, UNACKED_INDEX, [tag, "of a message that was settled"])
    assert abs(age_s(client, tag)) < 5
    assert client.zcard(UNACKED_INDEX) == 1


def test_what_is_taken_is_kept_as_kombu_keeps_it(channel, client):
    """A worker of another version, or Flower, finds there what it expects."""
    tag = take(channel)
    ours = client.hget(UNACKED, tag)
    [message] = channel.qos._delivered.values()
    channel.qos._delivered.clear()
    client.delete(UNACKED, UNACKED_INDEX)
    kombu.transport.redis.QoS.append(channel.qos, message, tag)
    assert json.loads(client.hget(UNACKED, tag)) == json.loads(ours)
    assert isinstance(channel.qos, virtual.QoS)


def test_all_that_a_worker_opens_goes_by_the_servers_clock(app):
    """On any channel: kombu looks for lapsed leases from any of them."""
    with app.connection_for_read() as connection:
        assert isinstance(connection.default_channel.qos, ServerClockQoS)
        assert isinstance(connection.channel().qos, ServerClockQoS)
        assert connection.as_uri().startswith("redis://")
        # As all others, it takes nothing that is too large, or no message.
        assert connection.default_channel.max_message_bytes > 0
        with connection.clone() as other:
            assert isinstance(other.default_channel.qos, ServerClockQoS)


def test_behind_sentinels_it_stays_so_when_the_next_one_is_asked():
    url = "sentinel://127.0.0.1:9,127.0.0.1:10/0?master=m"
    app = make_worker_app(load_settings(broker_url=url))
    connection = app.connection_for_read()
    for _ in range(3):
        assert connection.get_transport_cls().Channel.QoS is ServerClockQoS
        connection.maybe_switch_next()
    app.close()


@SKEWS
def test_a_task_that_is_tried_again_begins_when_the_server_says(machine, app, ahead_s):
    """Written on one machine, waited for on another: both clocks are wrong, and differ."""
    machine(ahead_s)
    message = app.amqp.as_task_v2("r/0/0/0", broker.BRANCH, (), {}, 5)
    written = datetime.fromisoformat(message.headers["eta"])
    real = time.time() - ahead_s
    assert abs(written.timestamp() - real - 5) < 60
    waiting = task_requests.MonitoredRequest(
        SimpleNamespace(delivery_info={}, properties={}),
        app=app,
        headers={**message.headers},
        body=message.body,
        decoded=True,
    )
    assert abs(waiting.eta.timestamp() - time.time() - 5) < 60


@pytest.mark.parametrize(
    ("words", "is_left"),
    [
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("MISCONF Errors writing to the AOF file", True),
        ("NOPERM User default has no permissions to run the 'set' command", True),
        ("WRONGTYPE Operation against a key", False),
    ],
)
def test_lapsed_messages_wait_while_the_server_refuses_to_restore_them(
    monkeypatch, channel, words, is_left
):
    """Kombu's timer would log a traceback each second; a consumer that connects must know."""

    def refuse(*_args, **_kwargs):
        raise redis.ResponseError(words)

    monkeypatch.setattr(kombu.transport.redis.QoS, "restore_visible", refuse)
    with pytest.raises(redis.ResponseError):
        look(channel)
    with nullcontext() if is_left else pytest.raises(redis.ResponseError):
        look(channel)


@pytest.mark.parametrize(("words", "is_left"), [("NOREPLICAS Not enough", True), ("ERR no", False)])
def test_bindings_wait_while_the_server_refuses_to_keep_them(monkeypatch, channel, words, is_left):
    """Kombu would log a traceback."""

    def refuse(_self):
        raise redis.ResponseError(words)

    monkeypatch.setattr(kombu.transport.redis.Channel, "maybe_refresh_binding_expiry", refuse)
    with nullcontext() if is_left else pytest.raises(redis.ResponseError):
        channel.maybe_refresh_binding_expiry()
