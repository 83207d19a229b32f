"""How a worker is set up, over what all sides of the broker share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fanout.broker.app import make_app
from fanout.core.settings import DEFAULT_BROKER_URL, check_traces
from fanout.llm.keys import key_files
from workers.consumer.leases import LeaseRenewal
from workers.consumer.presence import Presence
from workers.consumer.reaper import ReaperStep
from workers.consumer.shutdown import Shutdown, listen_in_children
from workers.consumer.stalled_children import watch_children
from workers.context.app import WorkerApp
from workers.options import Program
from workers.tasks import register
from workers.telemetry.events import EventSending

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["make_worker_app"]


# Pools of our own.
_POOLS = {
    "asyncio": "workers.consumer.pool:AsyncioPool",
    "threads": "workers.consumer.pool:ThreadTaskPool",
}


def make_worker_app(settings: Settings, *, owns_process: bool = False) -> WorkerApp:
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
    app: WorkerApp = make_app(settings, app_class=WorkerApp, takes_messages=True)
    app.settings, app.owns_process = settings, owns_process
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
        worker_consumer="workers.consumer.consumer:Consumer",
        # A server that is away comes back, whenever that is.
        broker_connection_max_retries=None,
        # A server that is full, or a replica since a failover, refuses commands: that passes, too.
        broker_channel_error_retry=True,
        # Functions of users may print; that is theirs, not the log's.
        worker_redirect_stdouts=False,
    )
    register(app)
    app.close_reports_on_shutdown()
    app.Worker = app.subclass_with_self(Program, name="Worker")
    app.steps["worker"].update({Presence, LeaseRenewal, ReaperStep, EventSending, Shutdown})
    listen_in_children(app)
    watch_children(app)
    return app
