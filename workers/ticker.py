"""Something that is done every few seconds for as long as a worker lives."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from fanout.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ticker"]

# How soon a beat that failed is tried again: a server that comes back should hear of us first.
_AGAIN_S = 0.25

_log = logging.getLogger(__name__)


class Ticker:
    """A thread that calls ``beat`` at once and then every ``every_s`` seconds.

    A thread, and not a timer of Celery's: those are cleared when the connection to the broker is
    lost, and stand still while a worker finishes what is in flight.
    """

    def __init__(self, name: str, every_s: float, beat: Callable[[], None]) -> None:
        self._name = name
        self._every_s = every_s
        self._beat = beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fanout-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        is_away = False
        while not self._stop.is_set():
            wait_s = self._every_s
            try:
                self._beat()
                is_away = False
            except BrokerError as error:
                # Said once: the consumer notices as well, and reconnects.
                if not is_away:
                    _log.warning("%s: %s", self._name, error)
                is_away = True
                wait_s = min(_AGAIN_S, wait_s)
            except Exception:  # noqa: BLE001 - a fault of one beat must not end all that follow
                _log.exception("%s failed", self._name)
            self._stop.wait(wait_s)

    def stop(self) -> None:
        """End, and wait for a beat that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
