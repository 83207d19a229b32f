"""Celery's worker forgets a message that has succeeded."""

from __future__ import annotations

from celery.worker import state


def test_what_has_succeeded_is_remembered_by_nobody(monkeypatch):
    """Its message is gone, so Celery has no use for it."""
    from workers.consumer.task_requests import BranchRequest

    request = object.__new__(BranchRequest)
    request.id, request._eventer = "r1/0/0/1", None
    state.task_reserved(request)
    before = len(state.successful_requests)
    request.on_settled(None)
    assert request.id not in state.requests
    assert request not in state.reserved_requests
    assert len(state.successful_requests) == before
