"""The records of the store's interface: requests, replies, and the state of runs."""

from __future__ import annotations

from typing import Literal

import msgspec

from fanout.core.ids import BranchId  # noqa: TC001 - msgspec reads the annotation
from fanout.core.latency import Latency
from fanout.core.records import NO_CALL, ErrorKind, Outcome, RunStatus, Usage

__all__ = [
    "BeginReply",
    "BeginRequest",
    "BeginVerdict",
    "CheckpointRequest",
    "Frontier",
    "RecordReply",
    "RecordRequest",
    "RunRecord",
    "SealReply",
    "ShardState",
    "StageFrontier",
    "StageLoad",
    "StageProgress",
    "StageRecord",
]

BeginVerdict = Literal["go", "done", "halted", "expired", "paused", "held", "suspect", "gone"]


class BeginRequest(msgspec.Struct, frozen=True):
    """The request of a delivery to begin its branch.

    Attributes:
        branch_id: The branch.
        token: The delivery's id: a repeated request with the same token is not counted.
        holder: The process that makes the call: see ``RedisStore.beat``.
        beats_for_s: The ``ttl_s`` of the holder's beats.
        lasts_s: Seconds after which the holder no longer holds the branch, even if it is alive.
        is_alone: Whether the worker processes no other suspect branch at the same time.
    """

    branch_id: BranchId
    token: str
    holder: str = ""
    beats_for_s: float = 0.0
    lasts_s: int = 0
    is_alone: bool = False


class CheckpointRequest(msgspec.Struct, frozen=True):
    """The request to write how far a branch of several calls is, before its next call.

    Attributes:
        branch_id: The branch.
        token: The token of its begin.
        checkpoint: What the next delivery needs to go on from here.
        holder: The process that makes the calls.
        lasts_s: Seconds from now that the claim lasts.
    """

    branch_id: BranchId
    token: str
    checkpoint: bytes
    holder: str = ""
    lasts_s: int = 0


class RecordRequest(msgspec.Struct, frozen=True):
    """The request to record the outcome of a branch.

    Attributes:
        branch_id: The branch.
        outcome: How it ended.
        has_checkpoint: Whether the branch may have a checkpoint, which is deleted with this.
        usage_of: The usage of its calls by model; empty if its run calls only one.
        opening: The opening of the run (RunRecord.opening) in which it ended; None is any. A failure
            of an opening that a retry has ended is not written: the retry processes the branch again.
    """

    branch_id: BranchId
    outcome: Outcome
    has_checkpoint: bool = False
    usage_of: dict[str, Usage] = {}
    opening: float | None = None


class BeginReply(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a branch may make its call.

    Attributes:
        verdict: ``go``: it may. ``done``: it has an outcome already. ``halted``: its run was
            stopped. ``expired``: the run's deadline has passed. ``paused``: it is parked, and is
            published again when the run goes on. ``held``: a live worker makes its call, and this
            message is a copy. ``suspect``: it was begun several times and never ended, so it must
            be begun alone. ``gone``: the run no longer exists.
        deliveries: How often this branch has been begun; with ``go``, this time is included.
        opening: The opening of the run: see RunRecord.opening.
    """

    verdict: BeginVerdict
    deliveries: int = 0
    opening: float = 0.0


class RecordReply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a recorded outcome.

    Attributes:
        first: Whether it was the first of its branch; only the first is kept and counted.
        ended: How many branches of the shard have ended, this one included.
        is_late: Whether it is a failure of before a retry, while the branch has no outcome of after it.
    """

    first: bool
    ended: int = 0
    is_late: bool = False


class Frontier(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a reduce has packed the outcomes of a stage into the next one, while both go on.

    Attributes:
        shard: The shard of the first branch that is not packed; 0 of a reduce that packs all at once.
        position: The position of that branch in its shard.
        branches: The branches of the next stage that the reduce has written.
    """

    shard: int = 0
    position: int = 0
    branches: int = 0


class StageFrontier(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of a reduce, as one of the reduces that write it sees it.

    Attributes:
        shards: Its shards, those of other reduces included.
        branches: Its branches, those of other reduces included.
        frontier: How far this reduce has written it.
    """

    shards: int
    branches: int
    frontier: Frontier


class SealReply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to sealing a stage, which then takes no more shards; ``first``: this call did it."""

    shards: int
    first: bool


class StageProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a stage's shards.

    Attributes:
        written: Shards that the stage has so far.
        sealed: Whether these are all.
        opened: How many shards were ever opened; they are opened in order.
        open: The shards that are being processed.
        marks: For each open shard, a value that changes when one of its branches begins or ends.
        heals: How often the stage itself was healed.
    """

    written: int = 0
    sealed: bool = False
    opened: int = 0
    open: frozenset[int] = frozenset()
    marks: dict[int, tuple[int, ...]] = {}
    heals: int = 0

    @property
    def first_open(self) -> int:
        """The first shard that has not ended: all before it have."""
        return min(self.open, default=self.opened)

    @property
    def is_complete(self) -> bool:
        """Whether all shards were opened, and none is open any more."""
        return self.opened >= self.written and not self.open


class ShardState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an open shard.

    Attributes:
        first: The stage-wide index of its first branch.
        count: The number of its branches.
        published: Whether they were published.
        finished: Whether its outcomes are compacted.
        ended: The positions of the branches with an outcome.
        held: The positions of those that a live worker has begun, or that wait for a batch.
        heals: How often it was healed.
    """

    first: int
    count: int
    published: bool
    finished: bool
    ended: frozenset[int]
    held: frozenset[int] = frozenset()
    heals: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a run. All times are by the store's clock, as machines' clocks differ.

    Attributes:
        run_id: Its id.
        status: Its status.
        created_at: Seconds since the epoch.
        reopened_at: When its latest retry began, or None without one.
        ended_at: Seconds since the epoch, or None while it goes on.
        stage: The number of the stage that is being processed.
        ahead: The highest number of a stage of the tree without groups that was begun; 0 without one,
            and where the aggregate has groups or compares answers.
        base_stage: Reduce stages up to this number belong to an aggregate that a retry discarded;
            those of the current one follow it.
        halt: The status that a stopped run will end with, or None. No further call may be made.
        deadline_at: Seconds since the epoch after which no branch is begun, or None.
        error: One line that says why the run failed, or None.
        retry: The kinds of failure that the latest retry processes again.
        read_at: When this state was read, in seconds since the epoch.
        wire: The version of the wire format of its records, or None if they have none.
        max_workers: The most branches of it in flight, or None.
        priority: Its share of busy workers.
        permits_used: The permits that workers have; 0 without ``max_workers``.
        idle_s: The seconds for which it had ended before it was retried.
        has_budget: Whether its calls must fit into a budget.
        is_late: Whether some of its calls could not wait for a batch, because of its deadline.
        notice: What users are to know of it while it goes on, in one line, or None.
    """

    run_id: str
    status: RunStatus
    created_at: float
    reopened_at: float | None = None
    ended_at: float | None = None
    stage: int = 0
    ahead: int = 0
    base_stage: int = 0
    halt: RunStatus | None = None
    deadline_at: float | None = None
    error: str | None = None
    retry: frozenset[ErrorKind] = frozenset()
    read_at: float = 0.0
    wire: int | None = None
    max_workers: int | None = None
    priority: float = 1.0
    permits_used: int = 0
    idle_s: float = 0.0
    has_budget: bool = False
    is_late: bool = False
    notice: str | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds from its submission to its end, or to now, without those before a retry."""
        return (self.ended_at or self.read_at) - self.created_at - self.idle_s

    @property
    def opening(self) -> float:
        """Which opening of the run this is: 0 for the first, else when its latest retry began.

        A step that ends a run, or writes what its outcomes come to, counts for this opening only: a retry
        may have reopened the run since the step began.
        """
        return self.reopened_at or 0.0

    @property
    def permits_in_use(self) -> int:
        """The permits that workers have; none once it has ended, as then nobody reports them."""
        return 0 if self.has_ended else self.permits_used

    @property
    def is_overdue(self) -> bool:
        """Whether its deadline had passed."""
        return self.deadline_at is not None and self.read_at >= self.deadline_at

    @property
    def is_stopping(self) -> bool:
        """Whether its branches are to make no further call, and it has not ended yet."""
        return not self.has_ended and (
            self.halt is not None or (self.is_overdue and self.stage == 0)
        )

    @property
    def open_stages(self) -> tuple[int, ...]:
        """The stages that are being processed: the present one, and those after it that have begun."""
        return (self.stage, *range(max(self.stage, self.base_stage) + 1, self.ahead + 1))

    @property
    def last_stage(self) -> int:
        """The highest number that a stage of the run has."""
        return max(self.stage, self.base_stage, self.ahead)

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
        kept_truncated: Those with an output that was cut off at its limit of tokens.
        kept_rejected: Those with an output that a judge did not pass.
        errors: Failed branches by kind.
        again: Those of them that the latest retry has still to take back.
        usage: The usage of the calls.
        usage_of: The usage by model, if the run calls several.
        latency: The durations of the branches; those of failures that a retry took back are left out.
        saved: What the answers had cost that came from the cache; ``calls`` is their number.
    """

    shards: int = 0
    total: int = 0
    sealed: bool = False
    succeeded: int = 0
    failed: int = 0
    kept_truncated: int = 0
    kept_rejected: int = 0
    errors: dict[ErrorKind, int] = {}
    again: dict[ErrorKind, int] = {}
    usage: Usage = NO_CALL
    usage_of: dict[str, Usage] = {}
    latency: Latency = Latency()
    saved: Usage = NO_CALL

    @property
    def done(self) -> int:
        """Branches that have an outcome."""
        return self.succeeded + self.failed

    def without_retried(self, kinds: frozenset[ErrorKind]) -> StageRecord:
        """Return the counts without the failures of these kinds that are still to be retried."""
        # A client or worker of an earlier version does not count them.
        again = {
            kind: min(max(self.again.get(kind, 0), 0), self.errors.get(kind, 0)) for kind in kinds
        }
        left = {kind: count - again.get(kind, 0) for kind, count in self.errors.items()}
        return msgspec.structs.replace(
            self,
            failed=self.failed - sum(again.values()),
            errors={kind: count for kind, count in left.items() if count},
        )


class StageLoad(
    msgspec.Struct, frozen=True, kw_only=True, rename={"waiting_for_permits": "permits_wanted"}
):
    """How much of a stage is in flight.

    Attributes:
        open: Shards that are being processed.
        waiting: Shards that are written and not yet opened.
        permits_used: The permits that workers have; 0 without ``max_workers``.
        permits_limit: ``max_workers`` of the run; 0 without it.
        waiting_for_permits: Its branches that workers could take, or have taken, above that number;
            in JSON ``permits_wanted``.
        gathered: Branches of the run that wait for a call of a provider's batch.
    """

    open: int = 0
    waiting: int = 0
    permits_used: int = 0
    permits_limit: int = 0
    waiting_for_permits: int = 0
    gathered: int = 0
