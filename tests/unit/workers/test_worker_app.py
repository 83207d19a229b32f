"""What hangs on a worker's Celery application."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import workers
from fanout.core.settings import load_settings
from workers.config import make_worker_app
from workers.context import app as worker_app
from workers.context.app import WorkerApp, context_of


def test_nothing_hangs_on_the_application_that_its_class_does_not_declare():
    """No module sets an attribute of an ``app``; what is Celery's own is named here."""
    celery = {"Worker", "amqp_cls", "control_cls", "events_cls", "holder"}
    declared = celery | set(WorkerApp.__annotations__)
    for path in Path(workers.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value)
                if owner == "app" or owner.endswith(".app"):
                    assert node.attr in declared, (path, node.lineno, node.attr)


def test_a_process_has_one_context_and_a_forked_child_one_of_its_own(monkeypatch):
    made = []

    def make(app, *, concurrency):
        made.append((app, concurrency))
        return SimpleNamespace(number=len(made))

    monkeypatch.setattr(worker_app, "make_context", make)
    with make_worker_app(load_settings(concurrency=7)) as app:
        assert not app.made_context
        first = app.context
        assert made == [(app, 7)]
        assert {id(each) for each in (app.context, app.made_context)} == {id(first)}
        assert context_of(SimpleNamespace(app=app)) is first
        pid = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: pid + 1)
        assert not app.made_context
        assert app.context.number == 2
