"""Lines of a log: as text or as JSON, each with the run that it is about, and none too often."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict

from fanout.core.ids import joined, parse_task_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import Id

__all__ = ["JsonFormatter", "Seldom", "about", "about_task", "path_of"]

_PATH = ("run_id", "stage", "shard", "position")
_FIELDS = (*_PATH, "task")


def about(of: str | Id) -> dict[str, Any]:
    """Return what a line is about, a run or a part of one, as the ``extra`` of a logger's call."""
    return {"run_id": of} if isinstance(of, str) else asdict(of)


def about_task(task_id: str) -> dict[str, Any]:
    """Return what the id of a task is about (fanout.core.ids); nothing where it is none of fanout's."""
    try:
        of, word = parse_task_id(task_id)
    except ValueError:
        return {}
    return {**about(of), "task": word}


def path_of(where: dict[str, Any]) -> str:
    """Return ``run/stage/shard/position``, as far as it is known."""
    names = _PATH if "position" in where else (*_PATH, "task")
    return joined(*(where[name] for name in names if where.get(name) is not None))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: when, how grave, who says what, and about which run.

    Args:
        locate: Returns what a record is about where it does not say so itself.
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
        # A filter has made text of it, to leave out what must not be said.
        return {"type": getattr(record, "exc_type", ""), "traceback": record.exc_text}
    return None


def located(
    record: logging.LogRecord, locate: Callable[[logging.LogRecord], dict[str, Any]] | None
) -> dict[str, Any]:
    """Return what a record is about: what it says itself, else what ``locate`` finds."""
    if getattr(record, "run_id", None) is not None:
        return record.__dict__
    return locate(record) if locate is not None else {}


class Seldom(logging.Filter):
    """Lets one record pass in ``every_s`` seconds, of all that it is asked about.

    For what repeats as long as something is wrong, such as a collector that is away.
    """

    def __init__(self, every_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        self._next = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter. A record that passes has no traceback."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._every_s
        record.exc_info = record.exc_text = None
        return True
