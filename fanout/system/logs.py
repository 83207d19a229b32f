"""Log formatting: the run of a record, JSON lines, and a filter against repetition."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from fanout.core.errors import FanoutError, LLMError
from fanout.core.ids import joined, parse_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import Id

__all__ = [
    "JsonFormatter",
    "RateLimitFilter",
    "about",
    "about_task",
    "path_of",
    "place_of",
    "told_of",
]

_PATH = ("run_id", "stage", "shard", "position")
_OF_PARTITION = ("reduce", "partition")
_FIELDS = (*_PATH, *_OF_PARTITION, "task")


def about(of: str | Id) -> dict[str, Any]:
    """Return the fields of a run or a part of one, as the ``extra`` of a logger's call."""
    return {"run_id": of} if isinstance(of, str) else asdict(of)


def about_task(task_id: str) -> dict[str, Any]:
    """Return the fields of a task's id (fanout.core.ids); none if it is not a task of fanout."""
    try:
        of, word = parse_task_id(task_id)
    except ValueError:
        return {}
    return {**about(of), "task": word}


def place_of(error: BaseException) -> str:
    """Return the file and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "nowhere"


def told_of(error: BaseException) -> str:
    """Return what a log may say of an error, whose message may quote a document.

    The message of a fanout error says what to do; other errors are named alone, and so is that of a
    call, which may have the words of the provider about a prompt.
    """
    is_told = isinstance(error, FanoutError) and not isinstance(error, LLMError)
    return f"{type(error).__name__}: {error}" if is_told else type(error).__name__


def path_of(where: dict[str, Any]) -> str:
    """Return ``run/stage/shard/position``, as far as it is known."""
    names = _PATH if "position" in where else (*_PATH, *_OF_PARTITION, "task")
    return joined(*(where[name] for name in names if where.get(name) is not None))


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, and its run.

    Args:
        locate: Returns the fields of a record's run, for records that do not have them.
    """

    def __init__(self, locate: Callable[[logging.LogRecord], dict[str, Any]] | None = None) -> None:
        super().__init__()
        self._locate = locate

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = datetime.fromtimestamp(record.created, UTC)
        where = located(record, self._locate)
        line = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: where[name] for name in _FIELDS if where.get(name) is not None},
        }
        exception = _exception(record)
        if exception is not None:
            line["exception"] = exception
        return json.dumps(line, default=str)


def _exception(record: logging.LogRecord) -> dict[str, str] | None:
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info))
        return {"type": record.exc_info[0].__name__, "traceback": text}
    if record.exc_text:
        # A filter has formatted the exception already, to redact it.
        return {"type": getattr(record, "exc_type", ""), "traceback": record.exc_text}
    return None


def located(
    record: logging.LogRecord, locate: Callable[[logging.LogRecord], dict[str, Any]] | None
) -> dict[str, Any]:
    """Return the fields of a record's run: its own, or else those that ``locate`` finds."""
    if getattr(record, "run_id", None) is not None:
        return record.__dict__
    return locate(record) if locate is not None else {}


class RateLimitFilter(logging.Filter):
    """Passes at most one record in ``every_s`` seconds.

    It is for messages that repeat while a fault lasts, such as an unreachable collector.
    """

    def __init__(self, every_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._next = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter. It removes the traceback of a record that passes."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._every_s
        record.exc_info = record.exc_text = None
        return True
