"""How a worker process that stops gives branches back to the queue."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.context.event_loop import LoopThread
    from workers.context.inflight import InFlight

__all__ = ["HandBack"]


class HandBack:
    """Ends calls, so that their branches go back to the queue; any thread may ask for it.

    Args:
        in_flight: The calls.
        loop: The loop that they run on.
    """

    def __init__(self, in_flight: InFlight, loop: LoopThread) -> None:
        self._in_flight = in_flight
        self._loop = loop
        self._begun = threading.Event()
        self._before: list[Callable[[], None]] = []

    @property
    def has_begun(self) -> bool:
        """Whether this process stops, and no longer waits for calls in flight."""
        return self._begun.is_set()

    def before(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` before this process ends its calls."""
        self._before.append(callback)

    def waiting(self) -> None:
        """Hand back the branches that only wait, for example for a model that fails."""
        self._loop.call_soon(self._in_flight.hand_back_waiting)

    def all(self) -> None:
        """Hand back all branches: end the calls in flight."""
        for callback in self._before:
            callback()
        self._begun.set()
        self._loop.call_soon(self._in_flight.hand_back)
