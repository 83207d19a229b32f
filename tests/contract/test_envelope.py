"""A worker drops a faulty message or broadcast, or Celery can handle it as it is."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import redis
from celery import Celery
from celery.exceptions import InvalidTaskError
from celery.worker import strategy
from celery.worker.control import Panel
from celery.worker.pidbox import Pidbox
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.transport.redis import Channel

from fanout.broker import app as broker
from fanout.broker.app import make_app
from fanout.broker.dropped import MALFORMED, dropped_messages
from fanout.broker.publisher import Publisher
from fanout.broker.transport import _LimitedMessage
from fanout.core.ids import PartitionId, ShardId, StageId
from fanout.core.settings import load_settings
from tests.hostile import changed, closed, opened
from workers.config import make_worker_app
from workers.consumer.control_commands import _COMMANDS, _checked, fault_of_broadcast
from workers.consumer.envelope import find_fault

FUZZ = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Channels:
    """What a message needs of its channel to be decoded."""

    decode_body, codecs = Channel.decode_body, Channel.codecs


def taken(raw):
    """A message as a worker's transport has it. Raises what kombu raises of what is none."""
    message = _LimitedMessage(json.loads(raw), channel=Channels())
    message.accept = {"application/json"}
    return message


def publish_one_of_each(app):
    app.backend.client.hset("fanout:run:run1", "spec", "{}")
    publisher = Publisher(app)
    publisher.preflight("fake", "note1")
    publisher.expand(StageId("run1", 0), [1])
    publisher.shard_chord(ShardId("run1", 0, 3), positions=range(2))
    publisher.collect(ShardId("run1", 0, 3))
    publisher.aggregate(StageId("run1", 0))
    publisher.pack([PartitionId("run1", 0, 0, 2)])
    publisher.seal(StageId("run1", 0), shards=4)
    publisher.close()


def drained(url):
    with redis.Redis.from_url(url) as server:
        queues = (broker.CONTROL_QUEUE, broker.BRANCHES_QUEUE)
        found = [raw for queue in queues for raw in server.lrange(queue, 0, -1)]
        server.delete(*queues)
    return found


@pytest.fixture(scope="module")
def worker(server):
    """A worker's application, what it is given as it comes, and a message of each sort."""
    url = f"redis://127.0.0.1:{server.port}/0"
    app = make_worker_app(load_settings(broker_url=url))
    connections = SimpleNamespace(fail_fast_store=SimpleNamespace(now=_now))
    app._made = (os.getpid(), SimpleNamespace(connections=connections))
    with make_app(load_settings(broker_url=url)) as client:
        publish_one_of_each(client)
    yield SimpleNamespace(app=app, sound=drained(url), url=url)
    app.close()


def _now():
    return datetime.now(UTC).timestamp()


def given_to_celery(app, message):
    """Have Celery make a request of a message, as its consumer does; return it, or None."""
    made, scheduled = [], []
    consumer = SimpleNamespace(
        app=app, hostname="w@test", connection_errors=(), event_dispatcher=None,
        pool=SimpleNamespace(apply_async=None, is_green=False), disable_rate_limits=True,
        task_buckets={}, on_task_request=made.append, apply_eta_task=None, _limit_task=None,
        _limit_post_eta=None, qos=SimpleNamespace(increment_eventually=lambda: None),
        timer=SimpleNamespace(call_at=lambda _at, _call, args, **_: scheduled.extend(args)),
        controller=SimpleNamespace(state=SimpleNamespace(revoked=set())),
    )  # fmt: skip
    task = app.tasks[message.headers["task"]]
    handle = strategy.default(task, app, consumer, info=lambda *_a, **_k: None)
    handle(message, None, lambda: None, lambda: None, ())
    return made, scheduled


def test_what_fanout_sends_is_sound_and_so_is_what_celery_sends_again(worker):
    tasks = set()
    for raw in worker.sound:
        message = taken(raw)
        assert find_fault(message) is None, raw
        [request], _ = given_to_celery(worker.app, message)
        task = worker.app.tasks[message.headers["task"]]
        tasks.add(task.name)
        context = {**request.request_dict, **message.payload[2], "called_directly": False}
        task.push_request(**context)
        try:
            task.retry(countdown=20, throw=False)
        finally:
            task.pop_request()
        [again] = drained(worker.url)
        message = taken(again)
        assert find_fault(message) is None, again
        assert message.headers["retries"] == 1
        _, [waits] = given_to_celery(worker.app, message)
        assert 0 < waits.eta.timestamp() - _now() < 30
    assert tasks == set(worker.app.tasks) - {n for n in worker.app.tasks if n.startswith("celery.")}


@FUZZ
@given(random=st.randoms(use_true_random=False), which=st.integers(0, 6))
def test_a_message_is_dropped_or_celery_can_take_it(worker, random, which):
    hostile = changed(opened(worker.sound[which]), random)
    try:
        message = taken(closed(hostile))
    except MALFORMED:
        # As the transport drops it.
        return
    if find_fault(message) is not None:
        return
    try:
        made, scheduled = given_to_celery(worker.app, message)
    except InvalidTaskError:
        # As the consumer drops it.
        return
    assert len(made) + len(scheduled) == 1
    for request in scheduled:
        assert request.eta.timestamp() < _now() + 3_700
    for request in made:
        # What is told of it can be sent.
        json.dumps([request.id, request.name, request.argsrepr, request.kwargsrepr])
        assert request.delivery_info["routing_key"] in {"fanout.control", "fanout.branches"}
        assert request.time_limits in ((None, None), [None, None])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("headers", "eta"), "0001-01-01T00:00:00"),
        (("headers", "eta"), "9999-12-31T23:59:59+00:00"),
        (("headers", "eta"), "2026-11-28T12:00:00"),
        (("headers", "eta"), 5),
        (("headers", "expires"), "2026-11-28T12:00:00+00:00"),
        (("headers", "timelimit"), [0.001, 0.001]),
        (("headers", "timelimit"), [None, -1]),
        (("headers", "retries"), 10**9),
        (("headers", "retries"), True),
        (("headers", "group"), "other/0/3"),
        (("headers", "group"), None),
        (("headers", "group_index"), 10**8),
        (("headers", "id"), "run1/0/3/9"),
        (("headers", "root_id"), "other"),
        (("headers", "shadow"), "x"),
        (("headers", "stamps"), {"a": 1}),
        (("headers", "called_directly"), True),
        (("headers", "update"), 1),
        (("headers", "wire"), True),
        (("headers", "sent_at"), -5),
        (("headers", "ignore_result"), False),
        (("properties", "priority"), 9),
        (("properties", "reply_to"), ["x"]),
        (("properties", "delivery_info", "routing_key"), "fanout:run:x"),
        (("properties", "delivery_info", "exchange"), "celeryev"),
        (("content-encoding",), "base64"),
        (("body", 1, "run_id"), "run1\n"),
        (("body", 2, "chord"), None),
        (("body", 2, "chord", "task"), "fanout.branch"),
        (("body", 2, "chord", "options", "queue"), "fanout:totals"),
        (("body", 2, "chord", "options", "link"), []),
        (("body", 2, "chord", "options", "chord"), None),
        (("body", 2, "chord", "kwargs", "shard"), 4),
        (("body", 2, "more"), 1),
    ],
)
def test_each_place_of_a_branchs_message_is_looked_at(worker, place, value):
    [sound, *_] = [raw for raw in worker.sound if b'"fanout.branch"' in raw]
    hostile = opened(sound)
    inner = hostile
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert find_fault(taken(sound)) is None
    assert find_fault(taken(closed(hostile))) is not None


def test_what_begins_too_late_is_no_task(worker):
    for delay, is_late in [(timedelta(minutes=5), False), (timedelta(days=1), True)]:
        message = opened(worker.sound[0])
        message["headers"]["eta"] = (datetime.now(UTC) + delay).isoformat()
        message = taken(closed(message))
        assert find_fault(message) is None
        if is_late:
            with pytest.raises(InvalidTaskError):
                given_to_celery(worker.app, message)
        else:
            assert given_to_celery(worker.app, message)[1]


PING = {
    "method": "ping", "arguments": {}, "destination": None, "pattern": None, "matcher": None,
    "ticket": "t", "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "a-b"},
}  # fmt: skip
ORDERS = [
    ("ping", {}), ("conf", {"with_defaults": False}), ("active", {"safe": True}), ("stats", {}),
    ("registered", {"taskinfoitems": [], "builtins": False}), ("query_task", {"ids": ["a"]}),
    ("revoke", {"task_id": "a", "terminate": True, "signal": "SIGTERM"}), ("shutdown", {}),
    ("revoke", {"task_id": ["a", "b"], "terminate": None, "signal": None}),
    ("rate_limit", {"task_name": "fanout.branch", "rate_limit": "10/m"}),
    ("time_limit", {"task_name": "fanout.branch", "hard": 3.5, "soft": None}),
    ("pool_grow", {"n": 1}), ("autoscale", {"max": 3, "min": 1}),
    ("pool_restart", {"reload": False}),
    ("add_consumer", {"queue": "fanout.branches"}),
    ("cancel_consumer", {"queue": "fanout.control"}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "arguments"), ORDERS)
def test_what_monitors_ask_is_taken(method, arguments):
    assert (
        fault_of_broadcast({**PING, "method": method, "arguments": arguments}, {"clock": 3}) is None
    )
    assert fault_of_broadcast({"method": method, "arguments": arguments}, {}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "election"}, {"method": "hello"}, {"method": "objgraph"}, {"method": None},
        {"method": "ping", "arguments": {"x": 1}}, {"arguments": []}, {"destination": "w@test"},
        {"pattern": "(a+)+$", "matcher": "pcre"},
        {"reply_to": {"exchange": "", "routing_key": "x"}},
        {"reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "fanout.branches"}},
        {"reply_to": "x"}, {"more": 1},
        {"method": "revoke", "arguments": {"task_id": ["a"] * 1_001}},
        {"method": "revoke", "arguments": {"task_id": {"a": 1}}},
        {"method": "revoke", "arguments": {"task_id": "a", "signal": "SEGV"}},
        {"method": "rate_limit", "arguments": {"task_name": "celery.chord", "rate_limit": "1/s"}},
        {"method": "rate_limit", "arguments": {"task_name": "fanout.branch", "rate_limit": "1/y"}},
        {"method": "time_limit", "arguments": {"task_name": "fanout.branch", "hard": "x"}},
        {"method": "pool_grow", "arguments": {"n": 10**9}},
        {"method": "pool_restart", "arguments": {"modules": ["os"], "reload": True}},
        {"method": "add_consumer", "arguments": {"queue": "fanout:totals"}},
        {"method": "shutdown", "arguments": {"msg": "x" * 201}},
    ],
)  # fmt: skip
def test_what_is_no_order_is_refused(changes):
    assert fault_of_broadcast({**PING, **changes}, {"clock": 3}) is not None


@pytest.mark.parametrize("clock", [10**400, -1, "x", [1], 2**49, 0.5])
def test_a_clock_that_is_none_is_refused(clock):
    assert fault_of_broadcast(PING, {"clock": clock}) is not None


@FUZZ
@given(random=st.randoms(use_true_random=False), which=st.integers(0, len(ORDERS) - 1))
def test_a_broadcast_is_dropped_once_or_obeyed(worker, random, which):
    method, arguments = ORDERS[which]
    body = changed({**PING, "method": method, "arguments": arguments}, random)
    obeyed, before = [], dropped_messages.counts.total()
    controller = SimpleNamespace(use_eventloop=True)
    box = Pidbox(SimpleNamespace(app=worker.app, hostname="w@test", controller=controller))
    # The command itself is Celery's; that it is called with what it takes is what is asked here.
    box.node.handlers = {
        name: (lambda _state, _name=name, **given: obeyed.append((_name, given)))
        for name in Panel.data
    }
    box.node.reply = lambda *_a, **_k: None
    box.reset = lambda: pytest.fail("the channel was closed")
    _checked(box.on_message)(body, SimpleNamespace(headers={"clock": 1}))
    refused = dropped_messages.counts.total() - before
    is_for_another = not refused and bool(body.get("destination"))
    assert len(obeyed) + refused + is_for_another == 1
    assert all(name in _COMMANDS for name, _ in obeyed)


def test_each_order_is_one_of_celerys():
    assert set(_COMMANDS) <= set(Panel.data)


def test_each_order_that_celery_and_flower_send_is_taken(monkeypatch):
    app = Celery()
    sent = []

    def broadcast(command, arguments=None, **_how):
        sent.append({"method": command, "arguments": json.loads(json.dumps(arguments or {}))})

    monkeypatch.setattr(app.control, "broadcast", broadcast)
    inspect, control = app.control.inspect(), app.control
    for name in ("active", "active_queues", "clock", "conf", "ping", "registered", "report",
                 "reserved", "revoked", "scheduled", "stats"):  # fmt: skip
        getattr(inspect, name)()
    inspect.active(safe=True)
    inspect.conf(with_defaults=True)
    inspect.registered("rate_limit")
    inspect.query_task("an-id", "another")
    for name in ("disable_events", "enable_events", "heartbeat", "ping", "pool_grow",
                 "pool_restart", "pool_shrink", "shutdown"):  # fmt: skip
        getattr(control, name)()
    control.add_consumer("fanout.control")
    control.cancel_consumer("fanout.control")
    control.autoscale(4, 2)
    control.rate_limit("fanout.branch", "10/m")
    control.revoke("an-id")
    control.revoke("an-id", terminate=True, signal="SIGKILL")
    control.revoke(["an-id", "another"])
    control.terminate("an-id")
    control.time_limit("fanout.branch", soft=10, hard=20)
    assert [order for order in sent if fault_of_broadcast(order, {"clock": 1})] == []
    assert len(sent) == 32
