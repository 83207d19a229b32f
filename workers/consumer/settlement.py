"""Settles branches that have ended: counts them in their chords and acknowledges their messages."""

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

__all__ = ["settle_branches"]


def settle_branches(
    context: WorkerContext, ends: Sequence[tuple[BranchRequest, BranchFailed | None]]
) -> list[None]:
    """Count ended branches in their chords, and then acknowledge their messages.

    The order matters: a redelivered message of a counted branch does no harm, but a branch that is
    not counted must be redelivered.
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
