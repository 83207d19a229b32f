"""The records of a fleet in the store: its workers, and its counters."""

from __future__ import annotations

import msgspec

from fanout.core.budgets import BudgetLimits  # noqa: TC001 - msgspec reads the annotation
from fanout.core.latency import Latency
from fanout.core.records import NO_CALL, ErrorKind, RunStatus, Usage

__all__ = ["Totals", "WorkerRecord"]


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record that a worker sends every few seconds.

    Attributes:
        name: Its Celery node name.
        host: The name of its machine.
        pid: Its process there.
        pool: Celery's worker pool.
        concurrency: Branches that it can have in flight.
        in_flight: Branches that it has in flight.
        waiting: Those of them that wait for a permit, a limit, a budget or another branch: they take no
            place.
        processed: Branches that it has ended since it was started.
        started_at: Seconds since the epoch, by its clock.
        sent_at: When it sent the record, by its clock.
        version: Its version of fanout.
        wire: Its version of the wire format.
        queues: The queues that it consumes.
        polled_at: When it last polled its queues, or had all places in use, by its clock; 0.0: not
            yet.
        stuck: Branches in flight that make no progress; other workers may take them.
        problem: Why it takes no messages, in one line; empty if it does.
        seen_at: When it sent the record, by the store's clock.
        day_budgets: What the fleet may use on a day, by the models that it holds for.
    """

    name: str
    host: str = ""
    pid: int = 0
    pool: str = ""
    concurrency: int = 1
    in_flight: int = 0
    waiting: int = 0
    processed: int = 0
    started_at: float = 0.0
    sent_at: float = 0.0
    version: str = ""
    wire: int = 0
    queues: tuple[str, ...] = ()
    polled_at: float = 0.0
    stuck: int = 0
    problem: str = ""
    seen_at: float = 0.0
    day_budgets: dict[str, BudgetLimits] = {}


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of a fleet since its store was new. They only rise, also when runs are deleted.

    Attributes:
        submitted: Runs submitted.
        ended: Runs ended, by final status; a run that is retried ends again.
        succeeded: Branches with an output, of all stages.
        errors: Failed branches by kind.
        usage: The usage of the calls, as far as it is known.
        latency: The durations of branches.
        healed: Steps that the reaper did again.
        pauses: How often a provider's refusal made the fleet pause.
        dropped: Messages that workers have refused and dropped.
        saved: What the answers had cost that came from the cache, as far as it is known.
    """

    submitted: int = 0
    ended: dict[RunStatus, int] = {}
    succeeded: int = 0
    errors: dict[ErrorKind, int] = {}
    usage: Usage = NO_CALL
    latency: Latency = Latency()
    healed: int = 0
    pauses: int = 0
    dropped: int = 0
    saved: Usage = NO_CALL
