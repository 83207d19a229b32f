"""The splitting of documents by a model, as the client of a run goes through it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fanout.client import model_splitting
from fanout.core.plan_runs import plan_run
from fanout.core.records import RunStatus
from fanout.core.spec import make_spec
from tests.fakes import RUN, Publisher, fake_store


def test_a_run_that_is_cancelled_before_its_splitting_has_a_record_splits_nothing(monkeypatch):
    store = fake_store()
    spec = make_spec(model="fake", prompt="{input}", split="model")
    store.create_run(RUN, spec=spec.model_dump_json(), created_at=1.0)

    def create_run(run_id, made, *, created_at):
        # A client that cancels the run finds no splitting yet.
        store.halt(RUN, RunStatus.CANCELLED)
        store.create_run(run_id, spec=made.model_dump_json(), created_at=created_at)

    connections: Any = SimpleNamespace(
        patient=store, publisher=Publisher(), create_run=create_run, enqueuer=pytest.fail
    )
    monkeypatch.setattr(model_splitting, "wait_until_ended", lambda *_, **__: None)
    split = model_splitting._ModelSplit(
        connections,
        RUN,
        spec,
        find=lambda _run_id: SimpleNamespace(status=lambda: SimpleNamespace(total=0)),
        notify=lambda _notice: None,
        should_stop=None,
        says_idle=False,
    )
    assert list(split.documents(pytest.fail)) == []
    assert store.run(plan_run(RUN)).halt is RunStatus.CANCELLED
