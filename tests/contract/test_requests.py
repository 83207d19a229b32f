"""Requests of branches leave in Celery's worker what its own requests leave, as far as it needs that."""

from __future__ import annotations

import inspect
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker import request as celery_request
from celery.worker import state
from celery.worker.consumer.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.consumer import promise
from celery.worker.request import Request

from workers.consumer.late_promises import LatePromise
from workers.consumer.task_requests import BranchRequest
from workers.context.app import WorkerApp


@pytest.fixture
def make_request():
    """Returns a request of a kind that has just arrived, with the events that it sends."""
    made = []

    def make(kind=BranchRequest, **fields):
        events = []
        request = object.__new__(kind)
        request.id, request.name, request._expires, request._request_dict = "id", "b", None, {}
        request._task = SimpleNamespace(acks_late=True, send_events=True)
        send = lambda type_, **of: events.append((type_, of))  # noqa: E731
        request._eventer = SimpleNamespace(enabled=True, send=send)
        for name, value in fields.items():
            setattr(request, name, value)
        made.append(request)
        return request, events

    yield make
    for request in made:
        state.task_ready(request)


def accepted(request, events):
    """What Celery's worker knows once a request has begun."""
    counted = state.total_count["b"], state.all_total_count[0]
    state.task_reserved(request)
    request.on_accepted(7, time.monotonic() - 200)
    return (
        state.requests["id"] is request,
        request in state.active_requests,
        request in state.reserved_requests,
        state.total_count["b"] - counted[0],
        state.all_total_count[0] - counted[1],
        request.worker_pid,
        round(time.time() - request.time_start, -2),
        events,
    )


def test_a_branch_begins_as_every_task_of_celery(make_request):
    ours, celerys = (accepted(*make_request(kind)) for kind in (BranchRequest, Request))
    assert ours == celerys
    assert ours[3:] == (1, 1, 7, 200, [("task-started", {"uuid": "id"})])


def test_a_branch_that_is_to_be_terminated_begins_as_celery_does(make_request, monkeypatch):
    ended = []
    monkeypatch.setattr(Request, "terminate", lambda _self, *how: ended.append(how))
    request, _ = make_request(_terminate_on_ack=("pool", "TERM"))
    request.on_accepted(7, time.monotonic())
    assert ended == [("pool", "TERM")]


def test_celery_logs_the_begin_of_a_branch_for_those_who_debug(make_request, monkeypatch):
    lines = []
    monkeypatch.setattr(celery_request, "_does_debug", True)
    monkeypatch.setattr(celery_request, "debug", lambda line, *_args: lines.append(line))
    request, _ = make_request()
    request.on_accepted(7, time.monotonic())
    assert len(lines) == 1


def test_a_branch_that_nobody_revoked_is_not(make_request):
    request, events = make_request()
    assert request.revoked() is False
    assert events == []


@pytest.mark.parametrize(
    ("fields", "stamps", "ids"),
    [
        ({}, {}, ["id"]),
        ({"_already_revoked": True}, {}, []),
        ({"_expires": "past"}, {}, []),
        ({"_request_dict": {"stamped_headers": ["a"], "stamps": {"a": "1"}}}, {"a": "1"}, []),
    ],
)
def test_a_revoked_branch_is_dropped_for_each_reason_of_celerys(
    make_request, monkeypatch, fields, stamps, ids
):
    monkeypatch.setattr(Request, "maybe_expire", lambda _self: True)
    monkeypatch.setattr(Request, "_announce_revoked", lambda *_args: None)
    monkeypatch.setattr(celery_request, "revoked_tasks", ids)
    monkeypatch.setattr(state, "revoked", ids)
    state.revoked_stamps.update(stamps)
    try:
        request, _ = make_request(**fields)
        assert request.revoked() is True
    finally:
        state.revoked_stamps.clear()


def test_what_has_succeeded_is_remembered_by_nobody(monkeypatch):
    """Its message is gone, so Celery has no use for it."""
    request = object.__new__(BranchRequest)
    request.id, request._eventer = "r1/0/0/1", None
    state.task_reserved(request)
    before = len(state.successful_requests)
    request.on_settled(None)
    assert request.id not in state.requests
    assert request not in state.reserved_requests
    assert len(state.successful_requests) == before


def test_celerys_consumer_takes_another_promise_for_each_message():
    parameters = inspect.signature(CeleryConsumer.create_task_handler).parameters
    assert parameters["promise"].default is promise


@pytest.mark.parametrize("has_listener", [False, True])
@pytest.mark.parametrize("fault", [None, OSError("the server is away")])
def test_a_late_promise_settles_a_message_as_that_of_vine(fault, has_listener):
    def settled(kind):
        seen = []

        def settle(*args):
            seen.append(args)
            if fault is not None:
                raise fault
            return "done"

        made = kind(settle, ("message",), on_error=lambda *args: seen.append(("error", *args)))
        if has_listener:
            made.then(seen.append, on_error=seen.append)
        for _ in range(2):
            # A promise of vine settles once.
            with suppress(OSError):
                made("logger", (OSError,))
        return seen

    ours, vines = settled(LatePromise), settled(promise)
    assert ours == vines
    assert ours[0] == ("message", "logger", (OSError,))


def test_the_time_zone_of_messages_is_worked_out_once(monkeypatch):
    app = WorkerApp()
    assert app.uses_utc_timezone() is Celery().uses_utc_timezone() is True
    monkeypatch.setattr(Celery, "uses_utc_timezone", lambda _self: pytest.fail("asked again"))
    assert app.uses_utc_timezone() is True
    other = WorkerApp()
    monkeypatch.undo()
    other.conf.timezone = "Europe/Berlin"
    assert other.uses_utc_timezone() is False
