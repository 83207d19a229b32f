"""The Celery application of a worker: ``celery -A workers.app worker``."""

from __future__ import annotations

from fanout.settings import load_settings
from workers.config import make_worker_app
from workers.logs import guard_logs

__all__ = ["app"]

guard_logs()
app = make_worker_app(load_settings(), owns_process=True)
