"""Lines of a log: as text or as JSON, each with the run that it is about, and none too often."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["JsonFormatter", "Seldom", "about", "about_task", "path_of"]

_PATH = ("run_id", "stage", "shard", "position")
_FIELDS = (*_PATH, "task")


def about(
    run_id: str, stage: int | None = None, shard: int | None = None, position: int | None = None
) -> dict[str, Any]:
    """Return what a line is about, as the ``extra`` of a call of a logger."""
    values = zip(_PATH, (run_id, stage, shard, position), strict=True)
    return {name: value for name, value in values if value is not None}


def about_task(task_id: str) -> dict[str, Any]:
    """Return what the id of a task is about (fanout.broker.app); nothing where it is none of fanout's.

    ``run/stage/shard/position`` is a branch; others end with a word, which is the task's.
    """
    run_id, *rest = task_id.split("/")
    word = rest.pop() if rest and not rest[-1].isdecimal() else None
    if not 0 < len(rest) < len(_PATH) or not all(part.isdecimal() for part in rest):
        return {}
    where = about(run_id, *map(int, rest))
    return {**where, "task": word or "branch"}


def path_of(where: dict[str, Any]) -> str:
    """Return ``run/stage/shard/position``, as far as it is known."""
    parts = [str(where[name]) for name in _PATH if where.get(name) is not None]
    word = where.get("task")
    return "/".join([*parts, word] if word and "position" not in where else parts)


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
