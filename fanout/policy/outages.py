"""The outage policy: whether a model fails for all callers, or a call for its own document.

It answers two questions separately. *Does a failed call count against its branch?* A branch has a
number of attempts for failures of its own; a failure that strikes all branches uses none of them.
The calls of other branches that began at about the same time decide: the less likely a failure was
then, the more it counts, so that five whole attempts are a chance of 1 in 100,000. *Should calls to
the model stop?* When hardly any call can succeed, a circuit breaker holds back all calls, lets a
probe through now and then, and closes when a call has succeeded.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from fanout.core.exhaustion import is_exhausted
from fanout.core.rate_limits import LearntLimits  # noqa: TC001 - msgspec reads the annotation
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.errors import LLMError

__all__ = [
    "CLOSED",
    "FIRST_PROBE_S",
    "FORGET_S",
    "MAX_PROBE_S",
    "NEIGHBOUR_S",
    "REOPEN_S",
    "SHARED",
    "SLOT_S",
    "Breaker",
    "BreakerReply",
    "Failure",
    "FailureVerdict",
    "NeighbourCalls",
    "TimeSlot",
    "ask",
    "close",
    "cost_alone",
    "cost_of_own",
    "down_s",
    "is_outage",
    "judge_alone",
    "neighbour_calls",
    "reaches_s",
    "spent",
    "spread",
    "trip",
]

FIRST_PROBE_S = 1.0
MAX_PROBE_S = 4.0
_SPREAD = 0.25
# An open breaker that no caller has asked for this long counts as closed.
FORGET_S = 120.0
# After another worker's success has closed the breaker, it cannot open again for this long: the
# reporting worker may be the only one that cannot reach the provider.
REOPEN_S = 30.0

# Errors that may strike all callers. Those in _COMMON never depend on one document, others may.
_COMMON = frozenset({ErrorKind.RATE_LIMITED, ErrorKind.CONNECTION})
SHARED = _COMMON | {ErrorKind.SERVER_ERROR, ErrorKind.TIMEOUT}
_COMMON_STATUSES = frozenset({429, 502, 503, 504, 529})

# Calls that began within one span of this length are counted together.
SLOT_S = 0.25
# The bounds of the time around a failed call in which other branches' calls are compared. It is the
# time since the previous call of the same branch: the comparison estimates a retry's chance.
_LEAST_REACH_S = 1.0
_MOST_REACH_S = 10.0
# A success shows that a call could succeed if it began at most this much later.
NEIGHBOUR_S = 0.5
# The greatest age of a success that counts if no other branch calls. There is then no comparison,
# and each failure counts in part: with the usual waits, a branch keeps trying for some minutes.
_RECENT_S = 60.0
_UNSURE = 1 / 3
# The probability below which a series of failures is no longer a coincidence.
_CHANCE = 1e-3
_LEAST_BRANCHES = 2
_SHARE_BOUNDS = (0.02, 0.98)


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls to a model are held back, in seconds of one clock.

    Attributes:
        opened_at: The time since which they are; None if they are not.
        until: The time of the next probe.
        probes: The number of probes so far.
        closed_at: The time at which the breaker last closed.
    """

    opened_at: float | None = None
    until: float = 0.0
    probes: int = 0
    closed_at: float = float("-inf")


CLOSED = Breaker()


class BreakerReply(msgspec.Struct, frozen=True, kw_only=True):
    """The breaker's reply to a caller that wants to call a model.

    Attributes:
        wait_s: Seconds to wait before the call; 0 if it may begin.
        down_s: Seconds since the model began to fail for all callers; None if it does not.
        is_probe: Whether this call is a probe that checks whether the model has recovered.
        learnt: The limits that the fleet has learnt, or None.
        has_window: Whether the fleet bounds its calls in flight: see fanout.policy.adaptive.
    """

    wait_s: float = 0.0
    down_s: float | None = None
    is_probe: bool = False
    learnt: LearntLimits | None = None
    has_window: bool = False


class TimeSlot(msgspec.Struct, kw_only=True):
    """The ended calls to a model that began within one span of SLOT_S.

    Attributes:
        succeeded: First calls of their branches that succeeded.
        failed: First calls that failed with an error that other branches may share.
        succeeded_again: Retries that succeeded.
        failed_again: Retries that failed, where no call that began after the branch's first one
            has succeeded.
        failed_late: Retries that failed, where such a call has succeeded: the branch itself may be
            the cause.
    """

    succeeded: int = 0
    failed: int = 0
    succeeded_again: int = 0
    failed_again: int = 0
    failed_late: int = 0

    def share(self, *, has_recovered: bool) -> float | None:
        """Return the share, 0 to 1, of calls that failed; None if there were none.

        First calls decide if there are any. Late failures count only if such retries do succeed.
        """
        again = self.failed_again + (self.failed_late if has_recovered else 0)
        for failed, succeeded in ((self.failed, self.succeeded), (again, self.succeeded_again)):
            if failed + succeeded:
                return failed / (failed + succeeded)
        return None


class NeighbourCalls(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of other branches that began at about the time of a failed call.

    Attributes:
        calls: How many began no earlier than the failed call: earlier ones cannot show an outage
            that has just begun.
        share: The share, 0 to 1, of the time in which such a call failed.
        late: Calls that failed late: see TimeSlot.
    """

    calls: int = 0
    share: float = 1.0
    late: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed call of a branch, with an error that other branches may share.

    Attributes:
        began: The time at which the call began, in seconds of one clock.
        alone: Its cost in attempts without calls of other branches at that time: see cost_alone.
        counted: The field of TimeSlot that counts it.
        is_asked: Whether the provider asked to wait: then it costs nothing.
    """

    began: float
    alone: float = 0.0
    counted: str = "failed"
    is_asked: bool = False


class FailureVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The consequences of a failed call for its branch.

    Attributes:
        cost: The attempts to add to those that the branch has spent. Later calls may change the
            cost of its earlier failures, so it may be more than 1, or negative.
        down_s: See BreakerReply.
        is_held: Whether the breaker holds back all further calls to the model.
        is_blind: Whether there is nothing to compare with, as no call here has ever succeeded.
    """

    cost: float
    down_s: float | None = None
    is_held: bool = False
    is_blind: bool = False

    def despite_success(self) -> FailureVerdict:
        """Return the verdict for a failure although calls of other branches have succeeded."""
        return msgspec.structs.replace(self, cost=max(self.cost, _UNSURE))


def is_outage(failing: int, success_share: float) -> bool:
    """Say whether ``failing`` failures without a success are too unlikely to be a coincidence."""
    least, most = _SHARE_BOUNDS
    share = min(max(success_share, least), most)
    return failing >= _LEAST_BRANCHES and (1 - share) ** failing <= _CHANCE


def reaches_s(failures: Sequence[Failure]) -> list[float]:
    """Return, for each failed call of a branch, the seconds around it to compare other calls in."""
    gaps = [after.began - before.began for before, after in pairwise(failures)]
    return [min(max(gap, _LEAST_REACH_S), _MOST_REACH_S) for gap in [0.0, *gaps]]


def neighbour_calls(slots: Sequence[TimeSlot | None], *, has_recovered: bool) -> NeighbourCalls:
    """Summarise the time slots around a failed call, which is in the middle; None has no calls.

    The share is of the time and not of the calls, as a failing branch calls less often than a
    succeeding one. A slot without calls counts as the last one with calls.
    """
    calls = late = length = 0
    failing, share = 0.0, None
    for number, slot in enumerate(slots):
        known = None if slot is None else slot.share(has_recovered=has_recovered)
        if slot is not None and known is not None and number >= len(slots) // 2:
            calls += slot.succeeded + slot.failed + slot.succeeded_again + slot.failed_again
        if slot is not None:
            late += slot.failed_late
        share = share if known is None else known
        if share is not None:
            failing += share
            length += 1
    if not length:
        return NeighbourCalls()
    return NeighbourCalls(calls=calls, share=failing / length, late=late)


def spent(
    failures: Sequence[Failure],
    others: Sequence[NeighbourCalls],
    *,
    chance_of_success: float,
    has_recovered: bool,
    is_chance: bool,
) -> float:
    """Return how many attempts the failed calls of a branch have spent.

    Args:
        failures: The failed calls.
        others: The neighbour calls of each.
        chance_of_success: Of a first call, 0 to 1.
        has_recovered: Whether a retry of any branch has succeeded since they began. If none has,
            although too many failed late for a coincidence, each late failure is a whole attempt.
        is_chance: Whether a retry has succeeded lately. A failure without neighbours then costs at
            most as much as it was unlikely.
    """
    late = 0 if has_recovered else sum(each.late for each in others)
    stays = is_outage(late, chance_of_success)
    least, most = _SHARE_BOUNDS
    chance = min(max(chance_of_success, least), most)
    alone = -math.log10(1 - chance) if is_chance else 1.0
    return sum(
        0.0 if failure.is_asked else _cost(failure, each, alone, stays=stays)
        for failure, each in zip(failures, others, strict=True)
    )


def _cost(failure: Failure, others: NeighbourCalls, alone: float, *, stays: bool) -> float:
    if stays and failure.counted == "failed_late":
        return 1.0
    if not others.calls:
        return min(alone, failure.alone)
    # The failed call itself counts as one more: one failure out of two calls shows little.
    share = (others.share * others.calls + 1) / (others.calls + 1)
    return min(1.0, -math.log10(share))


def cost_alone(error: LLMError, *, lead_s: float | None, is_down: bool) -> float:
    """Return the most attempts that a failure without neighbour calls costs.

    Args:
        error: Why the call failed.
        lead_s: Seconds from the beginning of the last call that succeeded to that of the branch's
            first failed call. It is negative if the success began later, and None without one.
        is_down: Whether the model is known to fail for all callers.
    """
    if is_down or lead_s is None or lead_s > _RECENT_S or (lead_s >= 0 and _is_common(error)):
        return 0.0
    return _UNSURE


def cost_of_own(error: LLMError) -> float | None:
    """Return the cost of a failure that is the branch's own; None if others may share its cause."""
    if error.is_own or error.kind not in SHARED:
        return 0.0 if _lacks_something(error) else 1.0
    return None


def judge_alone(error: LLMError) -> FailureVerdict:
    """Return the verdict on a failure if no other branches are known."""
    is_asked = error.retry_after_s is not None and not error.is_own
    return FailureVerdict(cost=0.0 if is_asked or _lacks_something(error) else 1.0)


def _lacks_something(error: LLMError) -> bool:
    """Say whether the caller's process had no thread or file descriptor for the call: it passes.

    Memory does not count: this one document may need too much of it at each attempt.
    """
    return is_exhausted(error) and not isinstance(error.__cause__, MemoryError)


def _is_common(error: LLMError) -> bool:
    return error.kind in _COMMON or error.status in _COMMON_STATUSES


def trip(breaker: Breaker, *, now: float, reopen_s: float = REOPEN_S) -> Breaker:
    """Return the breaker after a report that a model fails for all callers."""
    if down_s(breaker, now=now) is not None:
        return breaker
    if now - breaker.closed_at < reopen_s:
        return breaker
    return msgspec.structs.replace(breaker, opened_at=now, until=now + FIRST_PROBE_S, probes=0)


def spread(draw: float) -> float:
    """Return the share of the usual time after which the next probe comes, by a ``draw`` of 0 to 1.

    A provider that fails at regular intervals would else be down at each probe.
    """
    return 1.0 - _SPREAD * draw


def ask(breaker: Breaker, *, now: float, share: float = 1.0) -> tuple[BreakerReply, Breaker]:
    """Return whether a call may begin, and the breaker after the request.

    The first caller after the time of the next probe is let through as that probe, and the time to
    the next one doubles, but for its ``share``. So a failed probe needs no report, and neither does one
    whose worker dies.
    """
    since_s = down_s(breaker, now=now)
    if since_s is None:
        return BreakerReply(), msgspec.structs.replace(breaker, opened_at=None)
    if now < breaker.until:
        return BreakerReply(wait_s=breaker.until - now, down_s=since_s), breaker
    probes = breaker.probes + 1
    wait_s = share * min(MAX_PROBE_S, FIRST_PROBE_S * 2.0 ** min(probes, 30))
    after = msgspec.structs.replace(breaker, until=now + wait_s, probes=probes)
    return BreakerReply(wait_s=wait_s, down_s=since_s, is_probe=True), after


def down_s(breaker: Breaker, *, now: float) -> float | None:
    """Return the seconds since a model began to fail for all callers; None if it does not."""
    if breaker.opened_at is None or now - breaker.until > FORGET_S:
        return None
    return max(0.0, now - breaker.opened_at)


def close(breaker: Breaker, *, now: float) -> Breaker:
    """Return the breaker after a call that began while it was open has succeeded."""
    return msgspec.structs.replace(breaker, opened_at=None, until=0.0, probes=0, closed_at=now)
