"""The health probe: whether the workers of a machine take messages, by their records."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.fleet_records import WorkerRecord
    from fanout.stores import RedisStore

__all__ = ["probe_problem", "write_refusal"]


def write_refusal(store: RedisStore, asker: str) -> BrokerError | None:
    """Return why the server refuses a script that writes, as workers do; None if it does not."""
    try:
        store.take_lock(f"{asker}-{secrets.token_hex(4)}", asker, ttl_s=1)
    except BrokerError as error:
        return error
    return None


def probe_problem(
    workers: Iterable[WorkerRecord], *, host: str, name: str | None, now: float, within_s: float
) -> str | None:
    """Return in one line why the workers of a machine do not consume, or None if they do.

    Args:
        workers: All workers that the fleet knows.
        host: The machine's name.
        name: The node name of the one worker to check; None: all workers of the machine.
        now: Seconds since the epoch, by this machine's clock, which its workers use as well.
        within_s: The greatest age of a worker's latest record, in seconds.
    """
    if name is None:
        ours = [worker for worker in workers if worker.host == host]
        missing = f"no live worker on {host} is known to the fleet"
    else:
        ours = [worker for worker in workers if name in _names(worker)]
        missing = f"no live worker {name} is known to the fleet"
    problems = (_problem(worker, now, within_s) for worker in ours)
    return next((problem for problem in problems if problem), None) if ours else missing


def _names(worker: WorkerRecord) -> tuple[str, str]:
    """Return a worker's node name, and the part of it that needs no host."""
    return worker.name, worker.name.partition("@")[0]


def _problem(worker: WorkerRecord, now: float, within_s: float) -> str | None:
    silent_s = now - worker.sent_at
    if silent_s > within_s:
        return f"worker {worker.name} has sent no record for {silent_s:.0f} s"
    if not worker.polled_at:
        return f"worker {worker.name} has not begun to take messages"
    if worker.problem:
        return f"worker {worker.name} takes no messages: {worker.problem}"
    if worker.stuck:
        return (
            f"worker {worker.name} is alive, but {worker.stuck:,} of its branches make no "
            "progress: restart it"
        )
    idle_s = now - worker.polled_at
    if idle_s > within_s:
        return (
            f"worker {worker.name} is alive, but has not looked for messages for {idle_s:.0f} s "
            f"although it has free places: restart it"
        )
    return None
