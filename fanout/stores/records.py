"""What the store answers with: frozen records."""

from __future__ import annotations

from typing import Literal

import msgspec

from fanout.runs import ErrorKind, RunStatus, Usage

__all__ = [
    "Begun",
    "Grant",
    "Parked",
    "Recorded",
    "RunRecord",
    "Sealed",
    "ShardState",
    "StageProgress",
    "StageRecord",
    "Verdict",
]

Verdict = Literal["go", "done", "halted", "expired", "paused", "held", "suspect", "gone"]


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
    """

    first: bool
    next: int | None = None


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
        shard: Its number.
        lanes: How many of its branches may be in flight at once; 0 is all.
    """

    shard: int
    lanes: int = 0


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A branch that was not begun because its run is paused.

    Attributes:
        stage: Its stage.
        shard: Its shard.
        position: Its position in the shard.
        feed: As it was published with: see ``Store.record``.
    """

    stage: int
    shard: int
    position: int
    feed: int


class StageProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the shards of a stage are.

    Attributes:
        written: Shards that the stage has so far.
        sealed: Whether these are all.
        opened: Shards that were ever let into the queue: the first ones.
        open: The lanes of each shard that is being processed, by number.
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
        published: How many of them, from the first, were published; None where none ever were.
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
    """The state of a run.

    Attributes:
        run_id: Its name.
        status: Where it is.
        created_at: Seconds since the epoch.
        ended_at: Seconds since the epoch, or None while it goes on.
        stage: The number of the stage that is being processed.
        base_stage: Reduce stages up to this number belong to an aggregate that a retry discarded;
            those of the present one follow it.
        halt: Why no further call may be made: the status it will end with, or None.
        deadline_at: Seconds since the epoch after which no branch is begun, or None.
        error: One line that says why the run failed, or None.
        retry: The kinds of failure that the latest retry processes again.
    """

    run_id: str
    status: RunStatus
    created_at: float
    ended_at: float | None = None
    stage: int = 0
    base_stage: int = 0
    halt: RunStatus | None = None
    deadline_at: float | None = None
    error: str | None = None
    retry: frozenset[ErrorKind] = frozenset()

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
    """

    shards: int = 0
    total: int = 0
    sealed: bool = False
    succeeded: int = 0
    failed: int = 0
    errors: dict[ErrorKind, int] = {}
    usage: Usage = Usage()

    @property
    def done(self) -> int:
        """Branches that have an outcome."""
        return self.succeeded + self.failed
