"""The Celery application of a worker, and what hangs on it: with types, and nothing besides."""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING, Any, cast

from celery import Celery, signals

from workers.context.worker_context import WorkerContext

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["WorkerApp", "app_of", "context_of"]


class WorkerApp(Celery):  # type: ignore[misc]
    """Celery's application for one worker and its prefork children.

    Attributes:
        settings: The worker's; set before its first use.
        owns_process: Whether it may say what this process logs.
        holder: The name under which the worker, and any child of it, claims branches.
    """

    settings: Settings
    owns_process: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holder = secrets.token_hex(6)
        self._making = threading.Lock()
        self._made: tuple[int, WorkerContext] | None = None

    @property
    def context(self) -> WorkerContext:
        """What the tasks of the calling process share; a forked child makes one of its own."""
        made = self.made_context
        if made is not None:
            return made
        with self._making:
            made = self.made_context
            if made is None:
                made = WorkerContext(self, concurrency=int(self.conf.worker_concurrency))
                self._made = (os.getpid(), made)
            return made

    @property
    def made_context(self) -> WorkerContext | None:
        """The context of the calling process, or None where it has none yet."""
        made = self._made
        return made[1] if made is not None and made[0] == os.getpid() else None

    def close_reports_at_the_end(self) -> None:
        """Have what was reported sent before the worker, or a prefork child of it, ends."""

        def on_end(**_: Any) -> None:
            if self.made_context is not None:
                self.made_context.reports.close()

        signals.worker_process_shutdown.connect(on_end, weak=False)
        signals.worker_shutdown.connect(on_end, weak=False)


def app_of(owner: Any) -> WorkerApp:
    """Return the application of a worker, a consumer, a pool or a request of Celery's."""
    return cast("WorkerApp", owner.app)


def context_of(owner: Any) -> WorkerContext:
    """Return the context of the calling process: see ``app_of`` and ``WorkerApp.context``."""
    return app_of(owner).context
