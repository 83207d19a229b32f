"""How a delivery of a branch ends without an outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.core.state import BeginReply

__all__ = ["NO_CALL", "BranchGathered", "BranchGone", "BranchHandedBack", "BranchHeld", "BranchOver",
           "BranchParked", "require_call"]  # fmt: skip


class BranchParked(Exception):  # noqa: N818 - it is no error
    """The run is paused: the branch is parked, and published again when the run resumes."""


class BranchGathered(Exception):  # noqa: N818 - it is no error
    """Its next call waits for a batch: the branch is published again with the result.

    Attributes:
        settled: How many branches of its shard have ended or were gathered.
        follows: Whether it waits for the answer of an identical call.
    """

    def __init__(self, settled: int, *, follows: bool = False) -> None:
        super().__init__()
        self.settled = settled
        self.follows = follows


class BranchHeld(Exception):  # noqa: N818 - it is no error
    """Another live worker makes the call: this message is a redelivery."""


class BranchHandedBack(Exception):  # noqa: N818 - it is no error
    """The worker stops: the branch returns to its queue, and its begin does not count.

    Attributes:
        is_released: Whether the claim of this delivery, if it had one, is released.
    """

    def __init__(self, *, is_released: bool = True) -> None:
        super().__init__()
        self.is_released = is_released


class BranchOver(Exception):  # noqa: N818 - it is no error
    """The branch has ended on another worker: there is no outcome to write."""


class BranchGone(BranchOver):
    """The run does not exist: no client waits for the branch, and no chord must count it."""


# By the verdict on a claim.
NO_CALL = {"done": BranchOver, "gone": BranchGone, "held": BranchHeld, "paused": BranchParked}


def require_call(begun: BeginReply) -> None:
    """Raise if this delivery has neither a call to make nor an outcome to write.

    Raises:
        BranchOver: The branch has ended.
        BranchGone: Its run does not exist.
        BranchHeld: Another worker has it.
        BranchParked: Its run is paused.
    """
    reason = NO_CALL.get(begun.verdict)
    if reason is not None:
        raise reason
