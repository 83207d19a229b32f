"""How a worker stops: what is in flight is finished within a grace time, or handed back at once."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals

from workers.consumer.liveness import TellsOfPolls

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker import WorkController

__all__ = ["HandsBack", "Shutdown", "listen_in_children"]

# Tells a prefork child to hand back. Celery uses SIGUSR1, for stack traces.
_HAND_BACK = signal.SIGUSR2

_log = logging.getLogger(__name__)


class Shutdown(bootsteps.StartStopStep):  # type: ignore[misc]
    """Gives what is in flight ``grace_s`` seconds after the first SIGTERM or SIGINT."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._timer: threading.Timer | None = None
        worker.app.fanout_hand_back = self.hand_back

    def start(self, _worker: WorkController) -> None:
        """Listen for the signal."""
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)

    def _on_shutting_down(self, **_: Any) -> None:
        if self._timer is None:
            grace_s = self._worker.app.fanout_settings.grace_s
            self._timer = threading.Timer(grace_s, self.hand_back)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:
                # There is no thread for it: nothing would end the calls in flight later.
                self.hand_back()
            if not _children(self._worker):
                self._worker.app.fanout_runtime().hand_back_waiting()

    def hand_back(self) -> None:
        """End the calls in flight, and put their branches back into the queue."""
        _log.info("handing back what is in flight")
        for pid in _children(self._worker):
            os.kill(pid, _HAND_BACK)
        self._worker.app.fanout_runtime().hand_back()

    def stop(self, _worker: WorkController) -> None:
        """Stop listening."""
        signals.worker_shutting_down.disconnect(self._on_shutting_down)

    def terminate(self, worker: WorkController) -> None:
        """Stop at once. Celery does not say then, as it does else, when the worker has ended."""
        self.stop(worker)
        worker.app.fanout_runtime().reports.close()


def _children(worker: WorkController) -> list[int]:
    pool = getattr(worker.pool, "_pool", None)
    return [child.pid for child in getattr(pool, "_pool", ())]


class HandsBack(TellsOfPolls):
    """A consumer that a second SIGINT, or SIGQUIT, makes hand back at once.

    Celery would terminate the tasks, which it cannot in a pool of threads.
    """

    def __init__(
        self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        # Mingling costs a second of every reconnect; what workers would tell each other is not
        # used here.
        # Gossip runs what whoever publishes events has workers elect.
        never = {"without_mingle": True, "without_gossip": True}
        options = {**(worker_options or {}), **never}
        super().__init__(*args, worker_options=options, **kwargs)

    def cancel_active_requests(self) -> None:
        """Hand back what is in flight."""
        self.app.fanout_hand_back()


def listen_in_children(app: Celery) -> None:
    """Have the prefork children of a worker hand back when they are told to."""

    def on_child(**_: Any) -> None:
        signal.signal(_HAND_BACK, lambda *_: app.fanout_runtime().hand_back())

    signals.worker_process_init.connect(on_child, weak=False)
