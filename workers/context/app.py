"""The Celery application of a worker, with typed attributes."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any, cast

from celery import Celery, signals

from fanout.system.fork_locks import ForkSafeLock
from workers.context.worker_context import make_context

if TYPE_CHECKING:
    from fanout.core.settings import Settings
    from workers.context.worker_context import WorkerContext

__all__ = ["WorkerApp", "app_of", "context_of"]


class WorkerApp(Celery):  # type: ignore[misc]
    """Celery's application for one worker and its prefork children.

    Attributes:
        settings: The worker's settings; set before the first use of ``context``.
        owns_process: Whether it may configure what this process logs.
        holder: The name under which the worker and its children claim branches.
    """

    settings: Settings
    owns_process: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holder = secrets.token_hex(6)
        self._making = ForkSafeLock()
        self._made: tuple[int, WorkerContext] | None = None
        self._uses_utc: bool | None = None

    def uses_utc_timezone(self) -> bool:
        """Return whether the times of messages are in UTC; Celery asks for each message."""
        if self._uses_utc is None:
            self._uses_utc = bool(super().uses_utc_timezone())
        return self._uses_utc

    @property
    def context(self) -> WorkerContext:
        """The context of the calling process; a forked child makes its own."""
        made = self.made_context
        if made is not None:
            return made
        with self._making:
            made = self.made_context
            if made is None:
                made = make_context(self, concurrency=int(self.conf.worker_concurrency))
                self._made = (os.getpid(), made)
            return made

    @property
    def made_context(self) -> WorkerContext | None:
        """The context of the calling process, or None if it has none yet."""
        made = self._made
        return made[1] if made is not None and made[0] == os.getpid() else None

    def wind_up_on_shutdown(self) -> None:
        """Send pending reports and give permits back before the worker, or a prefork child, ends."""

        def on_shutdown(sender: Any = None, **_: Any) -> None:
            # A program may run several workers. A child sends a name and no worker.
            is_of_another = getattr(sender, "app", self) is not self
            if self.made_context is not None and not is_of_another:
                self.made_context.wind_up()

        signals.worker_process_shutdown.connect(on_shutdown, weak=False)
        signals.worker_shutdown.connect(on_shutdown, weak=False)


def app_of(owner: Any) -> WorkerApp:
    """Return the application of a Celery worker, consumer, pool or request."""
    return cast("WorkerApp", owner.app)


def context_of(owner: Any) -> WorkerContext:
    """Return the context of the calling process: see ``app_of`` and ``WorkerApp.context``."""
    return app_of(owner).context
