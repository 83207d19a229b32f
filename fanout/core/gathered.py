"""The records of the batch lane in the store: gathered branches, and the batches of a provider."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from fanout.core.ids import BranchId  # noqa: TC001 - msgspec reads the annotation

__all__ = [
    "BatchRecord",
    "BatchStage",
    "FilledBatch",
    "GatherReply",
    "GatherRequest",
    "Joins",
    "LandRequest",
    "Landing",
    "LaneQueue",
    "LaneRecord",
    "Leadership",
    "Member",
    "Prepared",
    "RunBatch",
]

GatherVerdict = Literal[
    "gathered", "joined", "alone", "done", "halted", "expired", "paused", "held", "gone"
]
# Whether a call follows an identical one, if there is one: see GatherRequest.
Joins = Literal["may", "never", "only"]
# forming: its members are being chosen. intent: they are fixed, and it is about to be made.
# submitted: the provider has it. landing: it has ended, and its results are being written.
BatchStage = Literal["forming", "intent", "submitted", "landing"]


class LaneRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests of one batch must have in common.

    Attributes:
        model: The model string.
        account: A digest of the provider's URL and key: only they see the batch again.
    """

    model: str
    account: str

    @property
    def lane_id(self) -> str:
        """Its id: letters and digits."""
        return hashlib.blake2b(f"{self.account} {self.model}".encode(), digest_size=8).hexdigest()


class GatherRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request to gather the next call of a branch for a batch, and to release its claim.

    Attributes:
        branch_id: The branch.
        token: The token of its begin.
        item: The id of the call: the same for each delivery that comes to it.
        line: The line of the call in the file of a batch.
        lane_id: The lane.
        lane: The lane's record as JSON.
        key: The key of the answer in hex; empty if the call neither leads nor follows.
        joins: Whether it follows an identical call: ``may``; ``never``; or ``only``, and is not gathered
            if there is none.
    """

    branch_id: BranchId
    token: str
    item: str
    line: bytes
    lane_id: str
    lane: bytes
    key: str = ""
    joins: Joins = "may"


class GatherReply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a GatherRequest.

    Attributes:
        verdict: ``gathered``; ``joined``, if it waits for the answer of another branch; ``alone``, if
            nothing was done, as there is none to wait for; or why the branch makes no call: see
            BeginReply.
        settled: How many branches of its shard have ended or were gathered, with repeats.
    """

    verdict: GatherVerdict
    settled: int = 0


class LaneQueue(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a lane that are in no batch yet.

    Attributes:
        lane_id: The lane.
        record: What its calls have in common.
        calls: How many there are.
        bytes: The size of their lines.
        oldest_s: Seconds since the first was gathered.
        newest_s: Seconds since the last was gathered.
        held_s: Seconds for which no batch is to be made; 0 for none.
        most_calls: The most calls in the next batch, if the provider had no room for more; or None.
    """

    lane_id: str
    record: LaneRecord
    calls: int
    bytes: int
    oldest_s: float
    newest_s: float
    held_s: float = 0.0
    most_calls: int | None = None


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch of the fleet. Times are by the store's clock, in seconds since the epoch.

    Attributes:
        number: Its number in the fleet.
        lane_id: Its lane.
        stage: How far it is.
        calls: How many calls it was made of; while it is forming, the most of them.
        bytes: The size of their lines.
        nonce: The random id by which the provider's list of batches is searched.
        intent_at: When its members were fixed; later, when it was last about to be made.
        first_item: The item of the first line of its file.
        tries: How many steps of its stage have failed at the provider so far, one after the other.
        due_at: When it is looked at next.
        batch_id: The provider's id, or empty.
        submitted_at: When the provider had it.
        polls: How often its status was asked for.
        answered: The requests with a result, as the provider says.
        succeeded: The requests with an answer once it has ended, as the provider says; None if it does not.
        is_whole: Whether the provider was done with all requests when it ended: none expired or was
            cancelled.
        cancelled_at: When the provider was asked to cancel it, or None.
        problem: Why it could not be submitted or read so far, in one line.
    """

    number: int
    lane_id: str
    stage: BatchStage = "forming"
    calls: int = 0
    bytes: int = 0
    nonce: str = ""
    intent_at: float = 0.0
    first_item: str = ""
    tries: int = 0
    due_at: float = 0.0
    batch_id: str = ""
    submitted_at: float = 0.0
    polls: int = 0
    answered: int = 0
    succeeded: int | None = None
    is_whole: bool = False
    cancelled_at: float | None = None
    problem: str = ""


class Member(msgspec.Struct, frozen=True):
    """A call of a batch: its item, and its branch."""

    item: str
    branch_id: BranchId


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What batches have for a branch.

    Attributes:
        item: The last call that was answered; empty for none.
        result: Its result as JSON.
        is_promoted: Whether the branch no longer waits for batches.
        followed: The last call that has waited for an identical one of another branch; empty for none.
        since: When the run was last retried; empty for never.
    """

    item: str = ""
    result: bytes = b""
    is_promoted: bool = False
    followed: str = ""
    since: str = ""

    @property
    def number(self) -> int:
        """The number of that call among all calls of the branch, from 1; 0 for none."""
        return int(self.item.rpartition("-")[2] or 0)

    @property
    def place(self) -> int:
        """The place of its model: 0 is the run's ``model``, and after that come ``all_models``."""
        return int(self.item.split("-")[-2])


class LandRequest(msgspec.Struct, frozen=True):
    """The result of a call of a batch: the first one is kept, if the branch still waits for it."""

    member: Member
    result: bytes


class FilledBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a step to fill a batch did.

    Attributes:
        calls: The calls of the batch so far.
        bytes: The size of their lines.
        first_item: The item that it has had for the longest time; empty without one.
        is_full: Whether no more calls fit, or none is left.
    """

    calls: int
    bytes: int
    first_item: str
    is_full: bool


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """A branch to publish, and the call that it waited for."""

    branch_id: BranchId
    item: str


class Leadership(msgspec.Struct, frozen=True, kw_only=True):
    """The right of one process to make and poll batches.

    Attributes:
        epoch: Rises with each new holder: a step of an earlier one is refused.
        left_s: Seconds that it lasts.
    """

    epoch: int
    left_s: float


class RunBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch with calls of a run, as ``fanout status`` shows it.

    Attributes:
        number: Its number in the fleet.
        batch_id: The provider's id; empty before the provider has it.
        state: ``forming``, ``intent``, ``submitted``, ``landing``, or ``cancelling``.
        calls: The calls in it, of all runs.
        answered: How many of them have a result, as the provider says.
        age_s: Seconds since the provider has it, or None.
        problem: Why it does not go on, in one line.
    """

    number: int
    batch_id: str = ""
    state: str = "forming"
    calls: int = 0
    answered: int = 0
    age_s: float | None = None
    problem: str = ""
