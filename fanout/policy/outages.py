"""When a model fails for everybody, and not for one document: pure policy, no broker.

Two questions, answered apart. *Whose fault is a failed call?* A branch may fail so often for
reasons of its own; what strikes all branches alike spends none of that. The calls of others that
began about when its own did tell: a failure counts as much as it was unlikely then, so that five
whole ones are a chance of 1 in 100,000. *Should the model be left alone?* Where hardly a call can
succeed, a circuit breaker holds all calls back, lets one through now and then, and lets all go on
when one has succeeded.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from fanout.core.exhaustion import is_exhausted
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.errors import LLMError

__all__ = [
    "BESIDE_S",
    "CLOSED",
    "FIRST_PROBE_S",
    "FORGET_S",
    "MAX_PROBE_S",
    "REOPEN_S",
    "SHARED",
    "SLOT_S",
    "Beside",
    "Breaker",
    "Failure",
    "Slot",
    "Standing",
    "Verdict",
    "ask",
    "beside",
    "close",
    "cost_alone",
    "cost_of_own",
    "down_s",
    "is_outage",
    "judge_alone",
    "reaches_s",
    "spent",
    "trip",
]

FIRST_PROBE_S = 1.0
MAX_PROBE_S = 30.0
# A breaker that nobody has asked for so long says nothing any more.
FORGET_S = 120.0
# Who was told by another worker's success that the model answers may not stop the fleet again so
# soon: it may be that worker alone which does not reach the provider.
REOPEN_S = 30.0

# What may strike everybody. The first are never about one document, the others may be.
_COMMON = frozenset({ErrorKind.RATE_LIMITED, ErrorKind.CONNECTION})
SHARED = _COMMON | {ErrorKind.SERVER_ERROR, ErrorKind.TIMEOUT}
_COMMON_STATUSES = frozenset({429, 502, 503, 504, 529})

# Calls that began within one such span are counted together.
SLOT_S = 0.25
# How far around a failed call those of others are looked at: as far as its branch's call before is
# away, as it is the next one's chance that is to be told.
_LEAST_REACH_S = 1.0
_MOST_REACH_S = 10.0
# A success shows that a call was possible which began so little later.
BESIDE_S = 0.5
# How old a success may be, where nobody else calls: then there is nothing to compare with, and a
# failure counts in part. At the usual waits between them, these are some minutes.
_LATELY_S = 60.0
_UNSURE = 1 / 3
# So many failures side by side as would happen once in a thousand times.
_CHANCE = 1e-3
_LEAST_BRANCHES = 2
_SHARE_BOUNDS = (0.02, 0.98)


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls to a model are held back, in seconds of one clock.

    Attributes:
        opened_at: Since when they are; None where they are not.
        until: When the next of them may be tried.
        probes: How often one was.
        closed_at: When they last were let go on.
    """

    opened_at: float | None = None
    until: float = 0.0
    probes: int = 0
    closed_at: float = float("-inf")


CLOSED = Breaker()


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever wants to call a model is told.

    Attributes:
        wait_s: Seconds for which no call shall begin; 0 where it may.
        down_s: Seconds since which the model fails for everybody; None where it does not.
        is_probe: Whether this call is let through to see whether the model is well again.
    """

    wait_s: float = 0.0
    down_s: float | None = None
    is_probe: bool = False


class Slot(msgspec.Struct, kw_only=True):
    """Calls to a model that began within one span of SLOT_S, as far as they have ended.

    Attributes:
        succeeded: First calls of their branches that succeeded.
        failed: First calls that failed for a reason that others may share.
        succeeded_again: Calls of branches that had failed before, and now succeeded.
        failed_again: The same that failed once more, and no call that began after their branch's
            first one has succeeded.
        failed_late: The same, and one has: the branch may be at fault itself.
    """

    succeeded: int = 0
    failed: int = 0
    succeeded_again: int = 0
    failed_again: int = 0
    failed_late: int = 0

    def share(self, *, has_recovered: bool) -> float | None:
        """Return the share, 0 to 1, of calls that failed; None where there were none.

        First calls tell most. Those that failed late tell something where such calls do succeed.
        """
        again = self.failed_again + (self.failed_late if has_recovered else 0)
        for failed, succeeded in ((self.failed, self.succeeded), (again, self.succeeded_again)):
            if failed + succeeded:
                return failed / (failed + succeeded)
        return None


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """How the calls of other branches went that began about when a failed one did.

    Attributes:
        calls: How many they were that began as late: those before say nothing of an outage that
            has just begun.
        share: The share, 0 to 1, of the time at which such a call failed.
        late: Calls that failed late: see Slot.
    """

    calls: int = 0
    share: float = 1.0
    late: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A failed call of a branch, of a kind that others may share.

    Attributes:
        began: When, in seconds of one clock.
        alone: What it costs where no call of others began about then: see cost_alone.
        counted: In which field of Slot.
        is_asked: Whether the provider asked to wait: then it costs nothing.
    """

    began: float
    alone: float = 0.0
    counted: str = "failed"
    is_asked: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a failed call means for its branch.

    Attributes:
        cost: How many attempts it adds to what the branch has spent. Its failures before are
            judged anew by what is known since: it may be more than 1, or negative.
        down_s: See Standing.
        is_held: Whether all further calls to the model wait at the gate.
        is_blind: Whether nothing is known that it could be judged by: no call ever succeeded here.
    """

    cost: float
    down_s: float | None = None
    is_held: bool = False
    is_blind: bool = False

    def beside_success(self) -> Verdict:
        """Return the verdict where others are known to have succeeded all the same."""
        return msgspec.structs.replace(self, cost=max(self.cost, _UNSURE))


def is_outage(failing: int, success_share: float) -> bool:
    """Say whether it is no chance that so many branches fail and none succeeds."""
    least, most = _SHARE_BOUNDS
    share = min(max(success_share, least), most)
    return failing >= _LEAST_BRANCHES and (1 - share) ** failing <= _CHANCE


def reaches_s(failures: Sequence[Failure]) -> list[float]:
    """Return how many seconds around each failed call of a branch those of others are looked at."""
    gaps = [after.began - before.began for before, after in pairwise(failures)]
    return [min(max(gap, _LEAST_REACH_S), _MOST_REACH_S) for gap in [0.0, *gaps]]


def beside(slots: Sequence[Slot | None], *, has_recovered: bool) -> Beside:
    """Return what the slots around a failed call tell, which is in the middle; None has no calls.

    The time counts, and not the calls: who fails calls less often than who succeeds. Until there
    is another call, it goes as it went.
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
    return Beside(calls=calls, share=failing / length, late=late) if length else Beside()


def spent(
    failures: Sequence[Failure],
    others: Sequence[Beside],
    *,
    chance_of_success: float,
    has_recovered: bool,
    is_chance: bool,
) -> float:
    """Return how many attempts the failed calls of a branch are, by what was beside each.

    Args:
        failures: They.
        others: What was beside each.
        chance_of_success: Of a first call, 0 to 1.
        has_recovered: Whether a branch that had failed has succeeded since they began. Where none
            does of so many that it is no chance, what failed late is a whole one.
        is_chance: Whether one has lately: alone, a failure is no more than it is unlikely then.
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


def _cost(failure: Failure, others: Beside, alone: float, *, stays: bool) -> float:
    if stays and failure.counted == "failed_late":
        return 1.0
    if not others.calls:
        return min(alone, failure.alone)
    # This call is one of them: of two calls, one that fails shows little.
    share = (others.share * others.calls + 1) / (others.calls + 1)
    return min(1.0, -math.log10(share))


def cost_alone(error: LLMError, *, lead_s: float | None, is_down: bool) -> float:
    """Return what a failure costs, at most, where no call of others began about when it did.

    Args:
        error: Why the call failed.
        lead_s: By how many seconds the branch's first failed call began later than any call that
            has succeeded; negative where one began later still; None where none ever succeeded.
        is_down: Whether the model is known to fail for everybody.
    """
    if is_down or lead_s is None or lead_s > _LATELY_S or (lead_s >= 0 and _is_common(error)):
        return 0.0
    return _UNSURE


def cost_of_own(error: LLMError) -> float | None:
    """Return what a failure costs that is its branch's own; None where others may share it."""
    if error.is_own or error.kind not in SHARED:
        return 0.0 if _lacks_something(error) else 1.0
    return None


def judge_alone(error: LLMError) -> Verdict:
    """Return the same where nothing is known of other branches."""
    is_asked = error.retry_after_s is not None and not error.is_own
    return Verdict(cost=0.0 if is_asked or _lacks_something(error) else 1.0)


def _lacks_something(error: LLMError) -> bool:
    """Say whether the caller's process had no thread or descriptor for the call: that passes.

    Memory may be lacking for this one document, however often it is tried.
    """
    return is_exhausted(error) and not isinstance(error.__cause__, MemoryError)


def _is_common(error: LLMError) -> bool:
    return error.kind in _COMMON or error.status in _COMMON_STATUSES


def trip(breaker: Breaker, *, now: float, reopen_s: float = REOPEN_S) -> Breaker:
    """Return the breaker after a report that a model fails for everybody."""
    if down_s(breaker, now=now) is not None:
        return breaker
    if now - breaker.closed_at < reopen_s:
        return breaker
    return msgspec.structs.replace(breaker, opened_at=now, until=now + FIRST_PROBE_S, probes=0)


def ask(breaker: Breaker, *, now: float) -> tuple[Standing, Breaker]:
    """Return whether a call may begin, and the breaker after the question.

    Who asks when the time has come is let through as a probe, and the next one at twice the
    distance: a probe that fails need not be reported, nor one whose worker dies.
    """
    since_s = down_s(breaker, now=now)
    if since_s is None:
        return Standing(), msgspec.structs.replace(breaker, opened_at=None)
    if now < breaker.until:
        return Standing(wait_s=breaker.until - now, down_s=since_s), breaker
    probes = breaker.probes + 1
    wait_s = min(MAX_PROBE_S, FIRST_PROBE_S * 2.0 ** min(probes, 30))
    after = msgspec.structs.replace(breaker, until=now + wait_s, probes=probes)
    return Standing(wait_s=wait_s, down_s=since_s, is_probe=True), after


def down_s(breaker: Breaker, *, now: float) -> float | None:
    """Return since how many seconds a model fails for everybody; None where it does not."""
    if breaker.opened_at is None or now - breaker.until > FORGET_S:
        return None
    return max(0.0, now - breaker.opened_at)


def close(breaker: Breaker, *, now: float) -> Breaker:
    """Return the breaker after a call that began while it was open has succeeded."""
    return msgspec.structs.replace(breaker, opened_at=None, until=0.0, probes=0, closed_at=now)
