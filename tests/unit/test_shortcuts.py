"""What replaces a step of Celery's, as each branch has it, does what Celery does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery, states
from celery.events.dispatcher import EventDispatcher
from celery.worker import state

from workers.backend import TaskFault, TolerantRedisBackend
from workers.branches import BranchFailed
from workers.events import Dispatcher

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


@pytest.mark.parametrize(
    ("result", "is_told"),
    [
        (None, None),
        (BranchFailed("timeout"), None),
        (TaskFault("ValueError at workers.stages:7"), "ValueError"),
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


def test_what_has_succeeded_is_remembered_by_nobody(monkeypatch):
    """Its message is gone, so Celery has no use for it."""
    from workers.requests import BranchRequest

    request = object.__new__(BranchRequest)
    request.id, request._eventer = "r1/0/0/1", None
    state.task_reserved(request)
    before = len(state.successful_requests)
    request.on_settled(None)
    assert request.id not in state.requests
    assert request not in state.reserved_requests
    assert len(state.successful_requests) == before
