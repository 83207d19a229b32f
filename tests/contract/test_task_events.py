"""A worker tells monitors of tasks what Celery's own dispatcher would."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.events.dispatcher import EventDispatcher

from workers.telemetry.events import Dispatcher

EVENTS = [
    ("task-received", {"name": "fanout.branch", "args": "()", "retries": 0, "eta": None}),
    ("task-started", {}),
    ("task-succeeded", {"result": "None", "runtime": 0.5}),
    ("task-failed", {"exception": "BranchFailed('timeout')", "traceback": ""}),
]


@pytest.fixture
def app():
    with Celery(broker="memory://", set_as_current=False) as app:
        yield app


def sent(kind, app, **options):
    """What a dispatcher keeps for the next batch, and how often it says so."""
    heard = []
    with app.connection_for_write() as connection:
        dispatcher = kind(
            connection,
            hostname="w@test",
            app=app,
            on_send_buffered=lambda: heard.append(1),
            **options,
        )
        for type_, fields in EVENTS:
            dispatcher.send(type_, uuid="r1/0/0/1", **fields)
        dispatcher.send("worker-online", freq=5)
        kept = [dict(event) for event in dispatcher._group_buffer["task"]]
        dispatcher.flush()
        assert dispatcher._group_buffer["task"] == []
    moments = [(event.pop("timestamp"), event.pop("clock")) for event in kept]
    assert moments == sorted(moments)
    assert len(set(moments)) == len(moments)
    return kept, len(heard)


@pytest.mark.parametrize(
    ("options", "many"),
    [
        ({"buffer_group": {"task"}}, len(EVENTS)),
        ({"buffer_group": {"task"}, "groups": ["worker"]}, 0),
        ({"buffer_group": {"task"}, "enabled": False}, 0),
        ({}, 0),
    ],
)
def test_the_events_of_tasks_are_those_of_celery(app, options, many):
    ours = sent(Dispatcher, app, **options)
    assert ours == sent(EventDispatcher, app, **options)
    assert len(ours[0]) == ours[1] == many


def test_as_many_events_as_a_batch_has_are_sent_at_once(app, monkeypatch):
    batches = []
    monkeypatch.setattr(Dispatcher, "_publish", lambda _self, events, *_a: batches.append(events))
    with app.connection_for_write() as connection:
        dispatcher = Dispatcher(connection, hostname="w", app=app, buffer_group={"task"})
        dispatcher.buffer_limit = 3
        for number in range(7):
            dispatcher.send("task-started", uuid=str(number))
    assert [[event["uuid"] for event in batch] for batch in batches] == [list("012"), list("345")]


def test_the_events_that_wait_survive_a_reconnect(app, monkeypatch):
    batches = []
    monkeypatch.setattr(Dispatcher, "_publish", lambda _self, events, *_a: batches.append(events))
    with app.connection_for_write() as connection:
        before, after = (
            Dispatcher(connection, hostname="w", app=app, buffer_group={"task"}) for _ in range(2)
        )
        before.send("task-started", uuid="1")
        # As the Events step of Celery's consumer does.
        after.extend_buffer(before)
        after.flush()
    assert [[event["uuid"] for event in batch] for batch in batches] == [["1"]]


BAD, GOOD = {"args": "\ud800"}, {"args": "()"}


@pytest.mark.parametrize(
    ("type_", "all_fields", "sent"),
    [
        ("task-received", [GOOD, BAD, GOOD, BAD], 2),
        ("task-received", [BAD], 0),
        ("task-received", [GOOD], 1),
        ("worker-online", [BAD], 0),
    ],
)
def test_an_event_that_cannot_be_encoded_is_dropped_with_one_line(
    app, caplog, type_, all_fields, sent
):
    bodies = []
    with app.connection_for_write() as connection:
        dispatcher = Dispatcher(connection, hostname="w", app=app, buffer_group={"task"})
        producer = SimpleNamespace(publish=lambda body, **_: bodies.append(json.loads(body)))
        dispatcher.producer = producer
        for fields in all_fields:
            dispatcher.send(type_, uuid="r1/0/0/1", **fields)
        for _ in range(2):
            dispatcher.flush()
    assert sum(map(len, bodies)) == sent
    bad = all_fields.count(BAD)
    assert caplog.messages == bad * [f"dropped an event {type_}: UnicodeEncodeError"]


def test_a_heartbeat_waits_for_no_server_and_is_not_sent_late(app):
    """Celery would have it wait for ever, in the thread in which a worker reconnects and stops."""
    asked = []

    def publish(_body, *, routing_key, retry, **_options):
        asked.append((routing_key, retry))
        raise ConnectionRefusedError

    with app.connection_for_write() as connection:
        dispatcher = Dispatcher(connection, hostname="w", app=app, buffer_group={"task"})
        dispatcher.producer = SimpleNamespace(publish=publish)
        for type_ in ("worker-online", "worker-heartbeat"):
            dispatcher.send(type_, freq=2.0, retry=True)
        dispatcher.flush()
        kept = [key for _, key in dispatcher._outbound_buffer]
    assert asked == [
        ("worker.online", False), ("worker.heartbeat", False), ("worker.online", False)
    ]  # fmt: skip
    assert kept == ["worker.online"]
