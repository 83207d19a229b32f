"""The end of branches, as Celery sees it: their chord counts them, their messages go."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from celery import states

from fanout.broker.inspection import UNACKED, UNACKED_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.broker.result_backend import TolerantRedisBackend
    from workers.branch.execution import BranchFailed
    from workers.consumer.task_requests import BranchRequest
    from workers.context.worker_context import WorkerContext

__all__ = ["settle"]


def settle(
    context: WorkerContext, ends: Sequence[tuple[BranchRequest, BranchFailed | None]]
) -> list[None]:
    """Count branches that have ended in their chords, and acknowledge their messages.

    In this order: a message whose branch is counted may come again, which does no harm; a branch
    that is not counted must come again.
    """
    connections = context.connections
    backend = cast("TolerantRedisBackend", connections.backend)
    backend.on_chord_parts_return(
        (request, states.SUCCESS if error is None else states.FAILURE, error)
        for request, error in ends
    )
    requests = [request for request, _ in ends]
    tags = [request.message.delivery_tag for request in requests]
    with connections.broker.pipeline(transaction=False) as pipe:
        pipe.zrem(UNACKED_INDEX, *tags)
        pipe.hdel(UNACKED, *tags)
        pipe.execute()
    for request in requests:
        request.forget()
    return [None] * len(requests)
