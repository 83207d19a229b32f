"""Formats and filters the logs of a worker, after Celery has set them up.

No record shows keys or contents, and each has a bounded length. Celery's own records name tasks, and
the errors that they raised. The clients of providers log whole requests, with the prompt, where their
logging is on: these records are dropped at every level.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import redis
from celery import signals
from celery._state import get_current_task
from celery.exceptions import Ignore, Reject
from celery.utils.log import ColorFormatter

from fanout.core.redaction import redacted
from fanout.system.logs import JsonFormatter, about_task, located, path_of
from fanout.system.terminal import indented

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["LogGuard", "quiet_clients", "set_up_logs"]

# Celery's format, with the path of the run, shard or branch.
_TEXT = "[%(asctime)s: %(levelname)s/%(processName)s] %(where)s%(message)s"

# Loggers with several lines at INFO for each branch, which are too many for a million branches.
# workers.telemetry.reports logs the ends of branches, shards and runs.
_CHATTY = ("celery.worker.strategy", "celery.app.trace", "httpx", "httpx2")

# Loggers that report lost connections, and the errors of these.
_CONNECTED = ("celery.worker", "celery.backends", "kombu")
_LOST = (OSError, redis.ConnectionError, redis.TimeoutError)
_INSECURE = "no ssl options"
_PENDING = "CPendingDeprecationWarning"

_MAX_MESSAGE = 2_000
_MAX_TRACEBACK = 20_000

# Below WARNING these loggers show requests and replies.
_CLIENTS = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "asyncio")
# litellm shows them in its errors as well; the outcome of the branch has the meaning of the error.
_MUTE = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "litellm")


def set_up_logs(settings: Settings) -> None:
    """Format and filter the logs of this process by the settings, once Celery has set them up."""

    def on_set_up(logger: logging.Logger, loglevel: int, colorize: Any, **_: Any) -> None:
        formatter: logging.Formatter = JsonFormatter(_locate)
        if settings.log_format == "text":
            formatter = _TextFormatter(use_color=bool(colorize))
        for handler in logger.handlers:
            handler.setFormatter(formatter)
            handler.addFilter(_ConnectionLossFilter())
            handler.addFilter(_HandBackFilter(is_shown=loglevel <= logging.DEBUG))
        # The last filter, as it bounds the length of every line.
        _guard(logger)
        if loglevel > logging.DEBUG:
            for name in _CHATTY:
                logging.getLogger(name).setLevel(max(logging.WARNING, loglevel))

    signals.after_setup_logger.connect(on_set_up, weak=False)
    signals.after_setup_task_logger.connect(on_set_up, weak=False)


class _ConnectionLossFilter(logging.Filter):
    """Shortens the records of a lost connection to one line.

    Drops Celery's warning about a setting of its next version.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "py.warnings":
            return _PENDING not in record.getMessage()
        if record.name == "kombu.connection" and _INSECURE in record.getMessage():
            # Kombu logs this when Flower asks for the configuration, about a connection that is never
            # made: all connections that are made verify the server (fanout.broker.app).
            return False
        if record.name.startswith(_CONNECTED):
            message = record.getMessage()
            error = record.exc_info[1] if record.exc_info else None
            if isinstance(error, _LOST):
                # The traceback does not help, nor does redis-py's repr of an error, which Celery shows.
                record.exc_info = record.exc_text = None
                message = f"{message} ({error})"
            if record.exc_info is None:
                record.msg, record.args = " ".join(message.split()), ()
        return True


class _HandBackFilter(logging.Filter):
    """Drops Celery's line of each branch that goes back to its queue, as this is no fault.

    In some pools each branch that waits for a permit does so twice a second.

    Args:
        is_shown: Whether the line stays, without its traceback.
    """

    def __init__(self, *, is_shown: bool) -> None:
        super().__init__()
        self._is_shown = is_shown

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.name != "celery.app.trace" or not isinstance(error, (Ignore, Reject)):
            return True
        # The traceback says no more than the message.
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
        record.exc_info = record.exc_text = None
        return self._is_shown


def _locate(record: logging.LogRecord) -> dict[str, Any]:
    """Return the run, shard or branch of a record of Celery's, or of a task in this thread."""
    data = getattr(record, "data", None)
    if isinstance(data, dict) and "id" in data:
        return about_task(str(data["id"]))
    task = get_current_task()
    task_id = task.request.id if task is not None and task.request else None
    return about_task(task_id) if task_id else {}


class _SanitisingFormatter(logging.Formatter):
    """Removes control characters from a record, before Celery's formatter adds its colours."""

    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record))


class _TextFormatter(ColorFormatter, _SanitisingFormatter):  # type: ignore[misc]
    """Celery's lines, with the path of their task.

    Indents the lines of a record after its first, so that no text in it looks like another record.
    """

    def __init__(self, *, use_color: bool) -> None:
        super().__init__(_TEXT, use_color=use_color)  # type: ignore[call-arg]

    def format(self, record: logging.LogRecord) -> str:
        path = path_of(located(record, _locate))
        record.where = f"[{path}] " if path else ""
        return str(super().format(record))


class LogGuard(logging.Filter):
    """A filter of handlers: redacts and bounds records, and drops those of clients."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Make a record safe; return whether to log it."""
        if not _is_logged(record):
            return False
        record.msg, record.args = _bounded(redacted(record.getMessage()), _MAX_MESSAGE), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_type = record.exc_info[0].__name__
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = _bounded(redacted(record.exc_text), _MAX_TRACEBACK)
        # Formatters use the text if there is one.
        record.exc_info = None
        return True


def _is_logged(record: logging.LogRecord) -> bool:
    package = record.name.partition(".")[0]
    if package in _MUTE:
        return False
    return package not in _CLIENTS or record.levelno >= logging.WARNING


def _bounded(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _guard(logger: logging.Logger) -> None:
    """Guard all handlers of a logger, and those of billiard's logger for prefork children."""
    for handler in (*logger.handlers, *logging.getLogger("multiprocessing").handlers):
        if not any(isinstance(each, LogGuard) for each in handler.filters):
            handler.addFilter(LogGuard())
    quiet_clients()


def quiet_clients() -> None:
    """Save the clients of providers the work for records that are dropped."""
    for name in _CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _MUTE:
        # Some have handlers of their own, which have no LogGuard.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
