"""What a worker logs, and how: Celery sets the logs up, and this goes over what it has set up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import redis
from celery import signals
from celery._state import get_current_task
from celery.utils.log import ColorFormatter

from fanout.system.logs import JsonFormatter, about_task, located, path_of
from fanout.system.terminal import indented
from workers.telemetry.log_filters import guard

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["set_up_logs"]

# As Celery's, with what the line is about.
_TEXT = "[%(asctime)s: %(levelname)s/%(processName)s] %(where)s%(message)s"

# These have several lines for each branch, at INFO: a flood where there are a million. What a
# worker says of branches, shards and runs is in workers.telemetry.reports.
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "httpx", "httpx2")

# Who speaks of lost connections, and what these are.
_CONNECTED = ("celery.worker", "celery.backends", "kombu")
_LOST = (OSError, redis.ConnectionError, redis.TimeoutError)
_INSECURE = "no ssl options"
_PENDING = "CPendingDeprecationWarning"


def set_up_logs(settings: Settings) -> None:
    """Have the logs of this process formatted as the settings say, once Celery has set them up."""

    def on_set_up(logger: logging.Logger, loglevel: int, colorize: Any, **_: Any) -> None:
        formatter: logging.Formatter = JsonFormatter(_locate)
        if settings.log_format == "text":
            formatter = _TextFormatter(use_color=bool(colorize))
        for handler in logger.handlers:
            handler.setFormatter(formatter)
            handler.addFilter(_ConnectionLossFilter())
        # Last, as it bounds the length of every line.
        guard(logger)
        if loglevel > logging.DEBUG:
            for name in _CHATTY:
                logging.getLogger(name).setLevel(max(logging.WARNING, loglevel))

    signals.after_setup_logger.connect(on_set_up, weak=False)
    signals.after_setup_task_logger.connect(on_set_up, weak=False)


class _ConnectionLossFilter(logging.Filter):
    """Shortens the records of a lost connection to one line.

    It leaves out what Celery then says of its next version.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "py.warnings":
            return _PENDING not in record.getMessage()
        if record.name == "kombu.connection" and _INSECURE in record.getMessage():
            # Logged when Flower asks for the configuration, of a connection that is not made: those
            # that are made verify the server (fanout.broker.app).
            return False
        if record.name.startswith(_CONNECTED):
            message = record.getMessage()
            error = record.exc_info[1] if record.exc_info else None
            if isinstance(error, _LOST):
                # Where it was noticed says nothing; Celery shows an error's repr, redis-py's says
                # nothing either.
                record.exc_info = record.exc_text = None
                message = f"{message} ({error})"
            if record.exc_info is None:
                record.msg, record.args = " ".join(message.split()), ()
        return True


def _locate(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record of Celery's, or of a task in this thread, is about."""
    data = getattr(record, "data", None)
    if isinstance(data, dict) and "id" in data:
        return about_task(str(data["id"]))
    task = get_current_task()
    task_id = task.request.id if task is not None and task.request else None
    return about_task(task_id) if task_id else {}


class _SanitisingFormatter(logging.Formatter):
    """What is logged, as text that no terminal obeys; Celery's adds its colours to it."""

    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record))


class _TextFormatter(ColorFormatter, _SanitisingFormatter):  # type: ignore[misc]
    """Celery's lines, with the path of the task that they are about.

    What follows in a record after its first line is indented: nothing that is logged can pass for
    a line of its own.
    """

    def __init__(self, *, use_color: bool) -> None:
        super().__init__(_TEXT, use_color=use_color)  # type: ignore[call-arg]

    def format(self, record: logging.LogRecord) -> str:
        path = path_of(located(record, _locate))
        record.where = f"[{path}] " if path else ""
        return str(super().format(record))
