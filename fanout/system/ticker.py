"""A thread that calls a function at an interval for the lifetime of a worker."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ticker"]

# The interval after a failed call: a server that returns should soon have this worker's record.
_RETRY_S = 0.25

_log = logging.getLogger(__name__)


class Ticker:
    """Calls ``beat`` when it starts, and then from a thread every ``every_s`` seconds.

    It does not use a timer of Celery: Celery clears its timers when it loses the connection to the
    broker, and stops them while a worker finishes the tasks in flight.
    """

    def __init__(self, name: str, every_s: float, beat: Callable[[], None]) -> None:
        self._name = name
        self._every_s = every_s
        self._beat = beat
        self._is_failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fanout-{name}", daemon=True)

    def start(self) -> None:
        """Make the first call, and start the thread. Tolerates an unreachable server."""
        self._try()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(
            min(_RETRY_S, self._every_s) if self._is_failing else self._every_s
        ):
            self._try()

    def _try(self) -> None:
        try:
            self._beat()
            self._is_failing = False
        except BrokerError as error:
            # Log it once: the consumer also notices, and reconnects.
            if not self._is_failing:
                _log.warning("%s: %s", self._name, error)
            self._is_failing = True
        except Exception:  # noqa: BLE001 - a failed call must not stop the later ones
            _log.exception("%s failed", self._name)

    def stop(self) -> None:
        """Stop, and wait for a running call."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
