"""A result backend whose chords tolerate failed header tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import states
from celery.backends.redis import RedisBackend

from fanout.patience import patiently

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TolerantRedisBackend"]

# After this the reaper sees to the chord.
_PATIENCE_S = 3_600.0


class TolerantRedisBackend(RedisBackend):  # type: ignore[misc]
    """Celery's Redis backend, but the callback of a chord runs although header tasks failed.

    Stock Celery raises ChordError at the first failed member and skips the callback
    (celery#1881). Here the callback receives a record in that member's place:
    ``{"task_id": ..., "state": ..., "error": the exception's type, "reason": ...}``. The failed
    task itself stays FAILURE, for Flower and metrics. The exception's message is left out, as it
    may quote a document; ``reason`` is only what Celery itself says of a revoked task.
    """

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a member of a chord, however long the server is away.

        Stock Celery fails the task, whose work is done, and the chord waits for ever. A member is
        counted once however often it returns, so it may be sent again.
        """
        count = super().on_chord_part_return
        patiently(lambda: count(request, state, result, **kwargs), patience_s=_PATIENCE_S)

    def _unpack_chord_result(
        self, tup: bytes, decode: Callable[[bytes], Any], *_states: frozenset[str]
    ) -> Any:
        _, task_id, state, result = decode(tup)
        if state not in states.EXCEPTION_STATES:
            return result
        error = result if isinstance(result, dict) else {}
        record = {"task_id": task_id, "state": state, "error": error.get("exc_type")}
        if state == states.REVOKED:
            record["reason"] = str(error.get("exc_message"))
        return record
