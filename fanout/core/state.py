"""What the store answers with: frozen records."""

from __future__ import annotations

from typing import Literal

import msgspec

from fanout.core.ids import BranchId  # noqa: TC001 - msgspec reads the annotation
from fanout.core.latency import Latency
from fanout.core.records import ErrorKind, Outcome, RunStatus, Usage

__all__ = [
    "Begun",
    "End",
    "Grant",
    "Parked",
    "Recorded",
    "RunRecord",
    "Sealed",
    "ShardState",
    "StageProgress",
    "StageRecord",
    "StageWindow",
    "Start",
    "Totals",
    "Verdict",
    "WorkerRecord",
]

Verdict = Literal["go", "done", "halted", "expired", "paused", "held", "suspect", "gone"]


class Start(msgspec.Struct, frozen=True):
    """A delivery of a branch that asks whether it may make its call.

    Attributes:
        branch_id: The branch.
        token: Names this delivery: asking again with the same one is not counted.
        holder: Who makes the call: see ``RedisStore.beat``.
        beats_for_s: The ``ttl_s`` that the holder beats with.
        lasts_s: Seconds after which the branch is not held any more, whatever its holder does.
        feed: As the branch was published with, for when it is parked.
        is_alone: Whether no other suspect is processed beside it.
    """

    branch_id: BranchId
    token: str
    holder: str = ""
    beats_for_s: float = 0.0
    lasts_s: int = 0
    feed: int = 0
    is_alone: bool = False


class End(msgspec.Struct, frozen=True):
    """The outcome of a branch, to be written.

    Attributes:
        branch_id: The branch.
        outcome: How it ended.
        feed: The size of the shard where its branches are published one after the other
            (``max_workers``), else 0; the position to publish next is then returned.
    """

    branch_id: BranchId
    outcome: Outcome
    feed: int = 0


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a branch may make its call.

    Attributes:
        verdict: ``go``; ``done``, as it has an outcome already; ``halted``, as its run was
            stopped; ``expired``, as the run's deadline has passed; ``paused``: it was parked and
            is published again when the run goes on; ``held``: a worker that is alive is making
            its call, and this is a copy of its message; ``suspect``: it was begun several times and
            never ended, so it must be begun alone; ``gone``, as there is no such run any more.
        deliveries: How often this branch has been begun, this time included where it is ``go``.
    """

    verdict: Verdict
    deliveries: int = 0


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an outcome.

    Attributes:
        first: Whether it was the first for its branch, and so was kept and counted.
        next: The position in the shard of the branch to publish next, or None.
        ended: How many branches of the shard have ended with it.
    """

    first: bool
    next: int | None = None
    ended: int = 0


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """That a stage takes no more shards.

    Attributes:
        shards: How many it has.
        first: Whether it was sealed by this call.
    """

    shards: int
    first: bool


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A shard that may now be published.

    Attributes:
        shard: The shard, in its stage.
        lanes: How many of its branches may be in flight at once; 0 is all.
    """

    shard: int
    lanes: int = 0


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A branch that was not begun because its run is paused.

    Attributes:
        branch_id: The branch.
        feed: As it was published with: see ``RedisStore.record``.
    """

    branch_id: BranchId
    feed: int


class StageProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the shards of a stage are.

    Attributes:
        written: Shards that the stage has so far.
        sealed: Whether these are all.
        opened: Shards that were ever let into the queue: the first ones.
        open: The lanes of each shard that is being processed, by shard.
        marks: For each open shard a value that changes whenever a branch of it begins or ends.
        heals: How often the stage itself was healed.
    """

    written: int = 0
    sealed: bool = False
    opened: int = 0
    open: dict[int, int] = {}
    marks: dict[int, tuple[int, ...]] = {}
    heals: int = 0


class ShardState(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a shard that is being processed.

    Attributes:
        first: The stage-wide index of its first branch.
        count: Its branches.
        published: How many of them, from the first, were published or had ended before; None where
            none ever were.
        finished: Whether it is compacted.
        ended: The positions that have an outcome.
        held: The positions that a worker which is alive has begun and not ended.
        heals: How often it was healed.
    """

    first: int
    count: int
    published: int | None
    finished: bool
    ended: frozenset[int]
    held: frozenset[int] = frozenset()
    heals: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run. All times are by the store's clock, as those of machines differ.

    Attributes:
        run_id: Its name.
        status: Where it is.
        created_at: Seconds since the epoch.
        reopened_at: When its latest retry began, or None where there was none.
        ended_at: Seconds since the epoch, or None while it goes on.
        stage: The number of the stage that is being processed.
        base_stage: Reduce stages up to this number belong to an aggregate that a retry discarded;
            those of the present one follow it.
        halt: Why no further call may be made: the status it will end with, or None.
        deadline_at: Seconds since the epoch after which no branch is begun, or None.
        error: One line that says why the run failed, or None.
        retry: The kinds of failure that the latest retry processes again.
        read_at: When this was its state, in seconds since the epoch.
        wire: The version of the wire format that it is written in, or None where it says none.
    """

    run_id: str
    status: RunStatus
    created_at: float
    reopened_at: float | None = None
    ended_at: float | None = None
    stage: int = 0
    base_stage: int = 0
    halt: RunStatus | None = None
    deadline_at: float | None = None
    error: str | None = None
    retry: frozenset[ErrorKind] = frozenset()
    read_at: float = 0.0
    wire: int | None = None

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline had passed."""
        return self.deadline_at is not None and self.read_at >= self.deadline_at

    @property
    def last_stage(self) -> int:
        """The highest number that a stage of the run has."""
        return max(self.stage, self.base_stage)

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status.has_ended


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a stage.

    Attributes:
        shards: Shards written so far; all of them once ``sealed``.
        total: Branches written so far.
        sealed: Whether the input is complete.
        succeeded: Branches with an output.
        failed: Branches with an error.
        errors: Failed branches by kind.
        usage: What the calls consumed.
        latency: How long they took; what a retry processed again stays counted.
    """

    shards: int = 0
    total: int = 0
    sealed: bool = False
    succeeded: int = 0
    failed: int = 0
    errors: dict[ErrorKind, int] = {}
    usage: Usage = Usage()
    latency: Latency = Latency()

    @property
    def done(self) -> int:
        """Branches that have an outcome."""
        return self.succeeded + self.failed


class StageWindow(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a stage is in flight.

    Attributes:
        open: Shards that are being processed.
        waiting: Shards that are written and not yet let into the queue.
        lanes_used: Branches that the open shards may have in flight, where ``max_workers`` caps it.
        lanes_limit: That cap; 0 where there is none.
    """

    open: int = 0
    waiting: int = 0
    lanes_used: int = 0
    lanes_limit: int = 0


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself every few seconds.

    Attributes:
        name: Its Celery node name.
        host: The name of its machine.
        pid: Its process there.
        pool: Celery's worker pool.
        concurrency: Branches that it can have in flight.
        in_flight: Branches that it has in flight.
        processed: Branches that it has ended since it was started.
        started_at: Seconds since the epoch, by its clock.
        sent_at: When it said this, by its clock.
        version: Its version of fanout.
        wire: Its version of the wire format.
        queues: The queues that it takes from.
        polled_at: When it last asked its queues for messages, or had every slot taken, by its
            clock; 0.0: not yet.
        stuck: Branches that it has and that make no progress: they are left to other workers.
        problem: Why it takes no messages, in one line; empty where it does.
        seen_at: When it said this, by the store's clock.
    """

    name: str
    host: str = ""
    pid: int = 0
    pool: str = ""
    concurrency: int = 1
    in_flight: int = 0
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


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet has done since its store was new. These only rise, also when runs are deleted.

    Attributes:
        submitted: Runs submitted.
        ended: Runs ended, by final status; one that is retried ends again.
        succeeded: Branches with an output, of all stages.
        errors: Failed branches by kind.
        usage: What the calls consumed, as far as it is known.
        latency: How long branches took.
        healed: Steps that the reaper did again.
        pauses: How often a provider's refusal made the fleet pause.
        dropped: Messages that workers have refused and dropped.
    """

    submitted: int = 0
    ended: dict[RunStatus, int] = {}
    succeeded: int = 0
    errors: dict[ErrorKind, int] = {}
    usage: Usage = Usage()
    latency: Latency = Latency()
    healed: int = 0
    pauses: int = 0
    dropped: int = 0
