"""The Celery application of a worker: ``celery -A workers.app worker``."""

from __future__ import annotations

from fanout.core.settings import load_settings
from workers.config import make_worker_app
from workers.telemetry.logs import set_up_logs

__all__ = ["app"]

_settings = load_settings()
set_up_logs(_settings)
app = make_worker_app(_settings, owns_process=True)
