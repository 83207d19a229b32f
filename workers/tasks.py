"""The Celery tasks: thin, so that their work can be called without Celery."""

from __future__ import annotations

import logging
import traceback
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import CeleryError, Reject, SoftTimeLimitExceeded

from fanout.broker import app as broker
from fanout.broker.dropped import dropped_messages
from fanout.broker.result_backend import TaskFault
from fanout.core.errors import BrokerError, UnknownRunError
from fanout.core.ids import BranchId, PartitionId, ShardId, StageId
from fanout.system.logs import place_of, told_of
from workers.branch.delivery_ends import (
    BranchGathered,
    BranchGone,
    BranchHandedBack,
    BranchHeld,
    BranchParked,
)
from workers.branch.execution import BranchFailed, run_branch
from workers.consumer.task_requests import (
    BranchRequest,
    HandedBackError,
    MonitoredRequest,
    PostponedError,
    RunGoneError,
    StillHeldError,
    delivery_of,
)
from workers.context.inflight import CallStoppedError
from workers.context.models import check_model
from workers.reduce.groups import pack_partition
from workers.reduce.items import TooEarlyError
from workers.reduce.stages import aggregate, collect, expand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Task

    from workers.context.app import WorkerApp

__all__ = ["register"]

# Errors that Celery and the chord must see unchanged; their messages quote no contents.
_KNOWN = (BranchFailed, BrokerError, CeleryError, SoftTimeLimitExceeded)

_log = logging.getLogger(__name__)

# If the store is unreachable, the task returns to its queue and keeps its place in its chord.
_PATIENT = {
    "autoretry_for": (BrokerError,),
    "retry_backoff": 1,
    "retry_backoff_max": 30,
    "max_retries": 10,
}


@contextmanager
def _not_done() -> Iterator[None]:
    """Translate the errors of unfinished work for Celery, so that its chord does not count it."""
    try:
        yield
    except BranchHeld:
        # The message is a copy: the holder of the branch reports its end.
        raise StillHeldError("another worker has it") from None
    except BranchParked:
        raise PostponedError("the run is paused") from None
    except BranchGathered:
        raise PostponedError("its call waits for a batch") from None
    except TooEarlyError:
        raise PostponedError("too early") from None
    except (BranchGone, UnknownRunError):
        dropped_messages.add("is of a run that is not known")
        raise RunGoneError("its run is gone") from None
    except BranchHandedBack as fault:
        error = HandedBackError if fault.is_released else Reject
        raise error("the branch is handed back", requeue=True) from None
    except CallStoppedError:
        # Of a reduce: another worker goes on.
        raise HandedBackError("the worker stops", requeue=True) from None
    except _KNOWN:
        raise
    except Exception as error:  # noqa: BLE001 - it is raised again, without its message
        raise _without_contents(error) from None


def _without_contents(error: Exception) -> TaskFault:
    """Return a fault in place of an unexpected error.

    The message of the error may quote a document, and Celery would write it to logs and task events,
    which monitoring pages show.
    """
    lines = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    _log.error("%s\n%s", told_of(error), lines)
    return TaskFault(f"{type(error).__name__} at {place_of(error)}")


def register(app: WorkerApp) -> None:
    """Register fanout's tasks with a worker's application."""
    # Not shared: a program that embeds a worker may have Celery applications of its own.
    # A task whose prefork child died is retried after a second, not after Celery's 180.
    task = partial(app.task, shared=False, default_retry_delay=1)

    # A failed branch is an ordinary end: ``throws`` keeps its traceback out of the logs. Calls are
    # retried on the loop; Celery's retries are for an unreachable store and for lost workers.
    options = {"throws": (BranchFailed, TaskFault), "bind": True, "Request": BranchRequest}
    others = {"throws": (TaskFault,), "Request": MonitoredRequest, **_PATIENT}

    @task(name=broker.BRANCH, **options, **_PATIENT)  # type: ignore[untyped-decorator]
    def branch(self: Task, run_id: str, stage: int, shard: int, position: int) -> None:
        token = delivery_of(self.request.properties)
        ended = self.request.get("ended")
        with _not_done():
            if ended is not None:
                # The branch was processed on the loop; Celery only needs its end.
                raise ended
            run_branch(app.context, BranchId(run_id, stage, shard, position), token=token)

    @task(name=broker.EXPAND, **others)  # type: ignore[untyped-decorator]
    def expand_shard(run_id: str, stage: int, shard: int) -> None:
        with _not_done():
            expand(app.context, ShardId(run_id, stage, shard))

    @task(name=broker.COLLECT, **others)  # type: ignore[untyped-decorator]
    def collect_shard(results: list[Any], run_id: str, stage: int, shard: int) -> dict[str, int]:
        with _not_done():
            return collect(app.context, results, ShardId(run_id, stage, shard))

    @task(name=broker.SEAL, **others)  # type: ignore[untyped-decorator]
    def seal_stage(run_id: str, stage: int) -> None:  # noqa: ARG001 - the task's signature
        """Do nothing: its chord waits for its return. Fails if the run does not exist."""
        with _not_done():
            app.context.connections.store.run(run_id)

    @task(name=broker.AGGREGATE, **others)  # type: ignore[untyped-decorator]
    def aggregate_stage(_results: list[Any], run_id: str, stage: int) -> None:
        with _not_done():
            aggregate(app.context, StageId(run_id, stage))

    @task(name=broker.PACK, **others)  # type: ignore[untyped-decorator]
    def pack_groups(run_id: str, stage: int, reduce: int, partition: int) -> None:
        with _not_done():
            pack_partition(app.context, PartitionId(run_id, stage, reduce, partition))

    @task(name=broker.PREFLIGHT, throws=(TaskFault,), Request=MonitoredRequest)  # type: ignore[untyped-decorator]
    def preflight(model: str, note: str, *, batches: bool = False) -> None:
        with _not_done():
            check_model(app.context, model, note, batches=batches)
