"""Configures the Celery application of a worker, beyond the settings shared with clients."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fanout.broker.app import make_app
from fanout.core.settings import DEFAULT_BROKER_URL
from fanout.core.trace_settings import check_traces
from fanout.llm.keys import key_files
from workers.consumer.batching import BatchingStep
from workers.consumer.leases import LeaseRenewal, watch_children
from workers.consumer.presence import Presence
from workers.consumer.reaper import ReaperStep
from workers.consumer.shutdown import Shutdown, listen_in_children
from workers.context.app import WorkerApp
from workers.options import Program
from workers.tasks import register
from workers.telemetry.events import EventSending

if TYPE_CHECKING:
    from fanout.core.settings import Settings

__all__ = ["make_worker_app"]


# Pools that fanout implements.
_POOLS = {
    "asyncio": "workers.consumer.pool:AsyncioPool",
    "threads": "workers.consumer.pool:ThreadTaskPool",
}


def make_worker_app(settings: Settings, *, owns_process: bool = False) -> WorkerApp:
    """Return a Celery application that processes fanout's tasks.

    Args:
        settings: ``broker_url`` defaults to a server on this machine.
        owns_process: Whether it may configure what this process logs.
    """
    if settings.broker_url is None:
        settings = settings.model_copy(update={"broker_url": DEFAULT_BROKER_URL})
    check_traces(settings)
    # Not before the process starts: other users can read the environment with which it was started.
    os.environ.update(key_files(os.environ))
    app: WorkerApp = make_app(settings, app_class=WorkerApp, takes_messages=True)
    app.settings, app.owns_process = settings, owns_process
    app.amqp_cls = "workers.consumer.server_clock:ServerClockAMQP"
    app.events_cls = "workers.telemetry.events:Events"
    app.control_cls = "workers.consumer.mailbox:Control"
    app.conf.update(
        worker_pool=_POOLS.get(settings.pool, settings.pool),
        worker_concurrency=settings.concurrency,
        # One message per free place: the other messages stay for other workers.
        worker_prefetch_multiplier=1,
        # A message leaves the queue when its work is done, not when it begins.
        task_acks_late=True,
        # The death of a child is reported as WorkerLostError, not hidden by endless redeliveries; its
        # branch is retried until ``max_deliveries`` is reached.
        task_reject_on_worker_lost=False,
        task_retry_on_worker_lost=True,
        # Always, not at the request of a monitor, which would miss the events before its request.
        # Sent in batches; benchmarks/events_cost.py measures the cost.
        worker_send_task_events=settings.task_events,
        worker_consumer="workers.consumer.consumer:Consumer",
        # Wait for an unreachable server without a limit.
        broker_connection_max_retries=None,
        # A full server, or a replica after a failover, refuses commands: that passes as well.
        broker_channel_error_retry=True,
        # Functions of users may print; that output is not part of the log.
        worker_redirect_stdouts=False,
    )
    register(app)
    app.wind_up_on_shutdown()
    app.Worker = app.subclass_with_self(Program, name="Worker")
    app.steps["worker"].update(
        {Presence, LeaseRenewal, ReaperStep, BatchingStep, EventSending, Shutdown}
    )
    listen_in_children(app)
    watch_children(app)
    return app
