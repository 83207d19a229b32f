"""How a worker is set up, over what all sides of the broker share."""

from __future__ import annotations

import os
import secrets
import threading
from typing import TYPE_CHECKING, Any

from celery import signals

from fanout.broker.app import make_app
from fanout.core.settings import DEFAULT_BROKER_URL, check_traces
from fanout.llm.keys import key_files
from workers.consumer.leases import Leases
from workers.consumer.presence import Presence
from workers.consumer.reaper import ReaperStep
from workers.consumer.shutdown import Shutdown, listen_in_children
from workers.consumer.stalled_children import watch_children
from workers.consumer.version_check import WireCheck
from workers.context.runtime import Runtime
from workers.options import Program
from workers.tasks import register
from workers.telemetry.events import SendsEvents

if TYPE_CHECKING:
    from celery import Celery

    from fanout.core.settings import Settings

__all__ = ["make_worker_app"]


# Pools of our own.
_POOLS = {
    "asyncio": "workers.consumer.pool:TaskPool",
    "threads": "workers.consumer.thread_pool:TaskPool",
}


def make_worker_app(settings: Settings, *, owns_process: bool = False) -> Celery:
    """Return a Celery application that processes fanout's tasks.

    Args:
        settings: ``broker_url`` defaults to a server on this machine.
        owns_process: Whether it may say what this process logs.
    """
    if settings.broker_url is None:
        settings = settings.model_copy(update={"broker_url": DEFAULT_BROKER_URL})
    check_traces(settings)
    # Here, and not before the process was started: a process's first environment can be seen.
    os.environ.update(key_files(os.environ))
    app = make_app(settings, takes_messages=True)
    app.amqp_cls = "workers.consumer.server_clock:ServerClockAMQP"
    app.events_cls = "workers.telemetry.events:Events"
    app.conf.update(
        worker_pool=_POOLS.get(settings.pool, settings.pool),
        worker_concurrency=settings.concurrency,
        # One message per free thread: what is taken is what is processed, the rest stays for
        # other workers.
        worker_prefetch_multiplier=1,
        # A message leaves the queue when its work is done, not when it begins.
        task_acks_late=True,
        # A child that dies under a branch is made known as WorkerLostError, not hidden by an
        # endless redelivery; it is tried again until ``max_deliveries`` is reached.
        task_reject_on_worker_lost=False,
        task_retry_on_worker_lost=True,
        # Always, and not when a monitor asks for it: that would miss what a worker does before it
        # has heard of that. Sent in batches; measured with benchmarks/events_cost.py.
        worker_send_task_events=settings.task_events,
        worker_consumer="workers.consumer.shutdown:HandsBack",
        # A server that is away comes back, whenever that is.
        broker_connection_max_retries=None,
        # A server that is full, or a replica since a failover, refuses commands: that passes, too.
        broker_channel_error_retry=True,
        # Functions of users may print; that is theirs, not the log's.
        worker_redirect_stdouts=False,
    )
    runtime = _RuntimeOfProcess(app, settings)
    register(app, runtime)
    runtime.close_reports_at_the_end()
    app.fanout_settings = settings
    app.fanout_owns_process = owns_process
    app.fanout_holder = secrets.token_hex(6)
    app.fanout_wire = WireCheck(app)
    app.Worker = app.subclass_with_self(Program, name="Worker")
    app.steps["worker"].update({Presence, Leases, ReaperStep, SendsEvents, Shutdown})
    listen_in_children(app)
    watch_children(app, runtime.made)
    return app


class _RuntimeOfProcess:
    """Hands out the runtime of the calling process; a forked child makes one of its own."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._lock = threading.Lock()
        self._made: tuple[int, Runtime] | None = None

    def __call__(self) -> Runtime:
        pid = os.getpid()
        made = self._made
        if made is not None and made[0] == pid:
            return made[1]
        with self._lock:
            if self._made is None or self._made[0] != pid:
                concurrency = int(self._app.conf.worker_concurrency)
                self._made = (pid, Runtime(self._app, self._settings, concurrency=concurrency))
            return self._made[1]

    def made(self) -> Runtime | None:
        """Return the runtime of the calling process, or None where it has none yet."""
        made = self._made
        return made[1] if made is not None and made[0] == os.getpid() else None

    def close_reports_at_the_end(self) -> None:
        """Have what was reported sent before the worker, or a prefork child of it, ends."""

        def on_end(**_: Any) -> None:
            made = self._made
            if made is not None and made[0] == os.getpid():
                made[1].reports.close()

        signals.worker_process_shutdown.connect(on_end, weak=False)
        signals.worker_shutdown.connect(on_end, weak=False)
