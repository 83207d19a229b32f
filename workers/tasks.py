"""The Celery tasks: thin, so that what they do can be called without Celery."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject

from fanout import broker
from fanout.errors import BrokerError
from workers.branches import (
    BranchFailed,
    BranchHandedBack,
    BranchHeld,
    BranchParked,
    run_branch,
)
from workers.preflight import check_model
from workers.requests import PostponedError, ReportsAll
from workers.stages import TooEarlyError, aggregate, collect, expand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery, Task

    from workers.runtime import Runtime

__all__ = ["register"]

# The store being away for a while is not the task's fault: it comes back to the queue, with its
# place in its chord.
_PATIENT = {
    "autoretry_for": (BrokerError,),
    "retry_backoff": 1,
    "retry_backoff_max": 30,
    "max_retries": 10,
}


@contextmanager
def _not_done() -> Iterator[None]:
    """Tell Celery of work that is not done, so that its chord does not count it."""
    try:
        yield
    except BranchHeld:
        # A copy of a message: what becomes of the branch is told by whoever holds it.
        raise Ignore from None
    except BranchParked:
        raise PostponedError("the run is paused") from None
    except TooEarlyError:
        raise PostponedError("too early") from None
    except BranchHandedBack:
        raise Reject("the worker stops", requeue=True) from None


def register(app: Celery, runtime: Callable[[], Runtime]) -> None:
    """Register fanout's tasks with a worker's application.

    Args:
        app: The application.
        runtime: Returns the runtime of the calling process.
    """
    app.fanout_runtime = runtime

    # Not shared: a program that embeds a worker may have Celery applications of its own.
    # A task whose prefork child died is tried again after a second, not after Celery's 180.
    task = partial(app.task, shared=False, default_retry_delay=1, Request=ReportsAll)

    # A failed branch is an ordinary end: ``throws`` keeps its traceback out of the logs. Retries of
    # calls happen on the loop; Celery's are for a store that is away, and for lost workers.
    options = {"throws": (BranchFailed,), "bind": True, **_PATIENT}

    @task(name=broker.BRANCH, **options)  # type: ignore[untyped-decorator]
    def branch(self: Task, run_id: str, stage: int, shard: int, position: int, feed: int) -> None:
        tries = self.request.retries
        with _not_done():
            run_branch(runtime(), run_id, stage, shard, position, feed, tries=tries)

    @task(name=broker.EXPAND, **_PATIENT)  # type: ignore[untyped-decorator]
    def expand_shard(run_id: str, stage: int, shard: int, lanes: int) -> None:
        expand(runtime(), run_id, stage, shard, lanes)

    @task(name=broker.COLLECT, **_PATIENT)  # type: ignore[untyped-decorator]
    def collect_shard(results: list[Any], run_id: str, stage: int, shard: int) -> dict[str, int]:
        with _not_done():
            return collect(runtime(), results, run_id, stage, shard)

    @task(name=broker.SEAL)  # type: ignore[untyped-decorator]
    def seal_stage(run_id: str, stage: int) -> None:
        """Do nothing: that it returns is what its chord waits for."""

    @task(name=broker.AGGREGATE, **_PATIENT)  # type: ignore[untyped-decorator]
    def aggregate_stage(_results: list[Any], run_id: str, stage: int) -> None:
        with _not_done():
            aggregate(runtime(), run_id, stage)

    @task(name=broker.PREFLIGHT)  # type: ignore[untyped-decorator]
    def preflight(model: str, note: str) -> None:
        check_model(runtime(), model, note)
