"""Shuts a worker down: branches in flight end within a grace time, or are handed back."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals

from workers.context.app import app_of, context_of

if TYPE_CHECKING:
    from celery.worker import WorkController

    from workers.context.app import WorkerApp

__all__ = ["Shutdown", "listen_in_children"]

# Tells a prefork child to hand back its branch. Celery uses SIGUSR1 for stack traces.
_HAND_BACK = signal.SIGUSR2

_log = logging.getLogger(__name__)


class Shutdown(bootsteps.StartStopStep):  # type: ignore[misc]
    """Gives branches in flight ``grace_s`` seconds after the first SIGTERM or SIGINT."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._timer: threading.Timer | None = None

    def start(self, _worker: WorkController) -> None:
        """Listen for the signal; the pool has started, so a context can be made."""
        context_of(self._worker).hand_back.before(self._tell_children)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)

    def _on_shutting_down(self, **_: Any) -> None:
        if self._timer is None:
            grace_s = app_of(self._worker).settings.grace_s
            self._timer = threading.Timer(grace_s, context_of(self._worker).hand_back.all)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:
                # No thread is left for the timer: nothing would end the calls in flight later.
                context_of(self._worker).hand_back.all()
            if not _children(self._worker):
                context_of(self._worker).hand_back.waiting()

    def _tell_children(self) -> None:
        _log.info("handing back what is in flight")
        for pid in _children(self._worker):
            os.kill(pid, _HAND_BACK)

    def stop(self, _worker: WorkController) -> None:
        """Stop listening."""
        signals.worker_shutting_down.disconnect(self._on_shutting_down)

    def terminate(self, worker: WorkController) -> None:
        """Stop at once. Celery sends no signal when a terminated worker has ended."""
        self.stop(worker)
        context_of(worker).wind_up()


def _children(worker: WorkController) -> list[int]:
    pool = getattr(worker.pool, "_pool", None)
    return [child.pid for child in getattr(pool, "_pool", ())]


def listen_in_children(app: WorkerApp) -> None:
    """Make the prefork children of a worker hand back their branches on a signal."""

    def on_child(**_: Any) -> None:
        signal.signal(_HAND_BACK, lambda *_: app.context.hand_back.all())

    signals.worker_process_init.connect(on_child, weak=False)
