"""What a worker logs, and how: Celery sets the logs up, and this goes over what it has set up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import signals
from celery._state import get_current_task
from celery.utils.log import ColorFormatter

from fanout.logs import JsonFormatter, about_task, located, path_of

if TYPE_CHECKING:
    from fanout.settings import Settings

__all__ = ["set_up_logs"]

# As Celery's, with what the line is about.
_TEXT = "[%(asctime)s: %(levelname)s/%(processName)s] %(where)s%(message)s"

# These have several lines for each branch, at INFO: a flood where there are a million. What a
# worker says of branches, shards and runs is in workers.reports.
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "httpx", "httpx2")

_PENDING = "CPendingDeprecationWarning"


def set_up_logs(settings: Settings) -> None:
    """Have the logs of this process formatted as the settings say, once Celery has set them up."""

    def on_set_up(logger: logging.Logger, loglevel: int, colorize: Any, **_: Any) -> None:
        formatter: logging.Formatter = JsonFormatter(_locate)
        if settings.log_format == "text":
            formatter = _TextFormatter(use_color=bool(colorize))
        for handler in logger.handlers:
            handler.setFormatter(formatter)
        _quieten(loglevel)

    signals.after_setup_logger.connect(on_set_up, weak=False)
    signals.after_setup_task_logger.connect(on_set_up, weak=False)


def _quieten(loglevel: int) -> None:
    if loglevel > logging.DEBUG:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(max(logging.WARNING, loglevel))
    warnings_logger = logging.getLogger("py.warnings")
    if not any(isinstance(known, _NoAdvice) for known in warnings_logger.filters):
        warnings_logger.addFilter(_NoAdvice())


class _NoAdvice(logging.Filter):
    """Leaves out what Celery says of its next version each time that a connection is lost."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _PENDING not in record.getMessage()


def _locate(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record of Celery's, or of a task in this thread, is about."""
    data = getattr(record, "data", None)
    if isinstance(data, dict) and "id" in data:
        return about_task(str(data["id"]))
    task = get_current_task()
    task_id = task.request.id if task is not None and task.request else None
    return about_task(task_id) if task_id else {}


class _TextFormatter(ColorFormatter):  # type: ignore[misc]
    """Celery's lines, with the path of the task that they are about."""

    def __init__(self, *, use_color: bool) -> None:
        super().__init__(_TEXT, use_color=use_color)

    def format(self, record: logging.LogRecord) -> str:
        path = path_of(located(record, _locate))
        record.where = f"[{path}] " if path else ""
        return str(super().format(record))
