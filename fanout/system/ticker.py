"""Something that is done every few seconds for as long as a worker lives."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ticker"]

# How soon a beat that failed is tried again: a server that comes back should hear of us first.
_AGAIN_S = 0.25

_log = logging.getLogger(__name__)


class Ticker:
    """Calls ``beat`` when it starts, and then from a thread every ``every_s`` seconds.

    A thread, and not a timer of Celery's: those are cleared when the connection to the broker is
    lost, and stand still while a worker finishes what is in flight.
    """

    def __init__(self, name: str, every_s: float, beat: Callable[[], None]) -> None:
        self._name = name
        self._every_s = every_s
        self._beat = beat
        self._is_away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fanout-{name}", daemon=True)

    def start(self) -> None:
        """Make the first beat, and begin; a server that is away is borne."""
        self._try()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(min(_AGAIN_S, self._every_s) if self._is_away else self._every_s):
            self._try()

    def _try(self) -> None:
        try:
            self._beat()
            self._is_away = False
        except BrokerError as error:
            # Said once: the consumer notices as well, and reconnects.
            if not self._is_away:
                _log.warning("%s: %s", self._name, error)
            self._is_away = True
        except Exception:  # noqa: BLE001 - a fault of one beat must not end all that follow
            _log.exception("%s failed", self._name)

    def stop(self) -> None:
        """End, and wait for a beat that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
