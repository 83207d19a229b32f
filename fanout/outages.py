"""When a model fails for everybody, and not for one document: pure policy, no broker.

Two questions, answered apart. *Whose fault is a failed call?* A branch may fail so often for
reasons of its own; what strikes all branches alike spends none of that. What else was called tells:
a branch that fails where others, called beside it or later, succeed is at fault itself. *Should the
model be left alone?* Where hardly a call can succeed, a circuit breaker holds all calls back, lets
one through now and then, and lets all go on when one has succeeded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from fanout.exhaustion import is_exhausted
from fanout.runs import ErrorKind

if TYPE_CHECKING:
    from fanout.errors import LLMError

__all__ = [
    "BESIDE_S",
    "CLOSED",
    "FIRST_PROBE_S",
    "FORGET_S",
    "MAX_PROBE_S",
    "REOPEN_S",
    "SHARED",
    "Breaker",
    "Evidence",
    "Standing",
    "Verdict",
    "ask",
    "close",
    "down_s",
    "is_outage",
    "judge",
    "judge_alone",
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


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of a model when a call of a branch has failed.

    Attributes:
        failing: Branches whose calls have failed, and none that began as late has succeeded.
        success_share: The share, 0 to 1, of branches whose first call succeeded, lately.
        has_recovered: Whether calls that were made again have succeeded since the branch failed.
        lead_s: By how many seconds the branch's first failed call began later than any call that
            has succeeded; negative where one began later still; None where none ever succeeded.
        is_beside: Whether a call has succeeded that ended later than that.
        down_s: See Standing.
    """

    failing: int
    success_share: float
    has_recovered: bool
    lead_s: float | None
    is_beside: bool
    down_s: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a failed call means for its branch.

    Attributes:
        cost: How much of an attempt it is, 0 to 1.
        weight: What all attempts so far are to be counted as, 0 to 1 each: see Evidence.
        down_s: See Standing.
        is_held: Whether all further calls to the model wait at the gate.
        is_blind: Whether nothing is known that it could be judged by: no call ever succeeded here.
    """

    cost: float
    weight: float = 1.0
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


def judge(error: LLMError, evidence: Evidence, *, is_held: bool = False) -> Verdict:
    """Return what a failed call means for its branch, by what happened to others."""
    return Verdict(
        cost=_cost(error, evidence),
        weight=_weight(error, evidence),
        down_s=evidence.down_s,
        is_held=is_held,
        is_blind=evidence.lead_s is None and error.retry_after_s is None,
    )


def judge_alone(error: LLMError) -> Verdict:
    """Return the same where nothing is known of other branches."""
    is_asked = error.retry_after_s is not None and not error.is_own
    return Verdict(cost=0.0 if is_asked or _lacks_something(error) else 1.0)


def _lacks_something(error: LLMError) -> bool:
    """Say whether the caller's process had no thread or descriptor for the call: that passes.

    Memory may be lacking for this one document, however often it is tried.
    """
    return is_exhausted(error) and not isinstance(error.__cause__, MemoryError)


def _cost(error: LLMError, evidence: Evidence) -> float:
    if error.is_own or error.kind not in SHARED:
        return 0.0 if _lacks_something(error) else 1.0
    if error.retry_after_s is not None or evidence.lead_s is None:
        return 0.0
    if is_outage(evidence.failing, evidence.success_share):
        return 0.0
    is_suspect = evidence.lead_s < 0
    if evidence.down_s is not None:
        return _UNSURE if is_suspect else 0.0
    is_common = _is_common(error)
    if is_suspect or (evidence.is_beside and not is_common):
        return 1.0
    return 0.0 if is_common or evidence.lead_s > _LATELY_S else _UNSURE


def _is_common(error: LLMError) -> bool:
    return error.kind in _COMMON or error.status in _COMMON_STATUSES


def _weight(error: LLMError, evidence: Evidence) -> float:
    """Return what failures weigh beside successes.

    Where calls fail by chance, as many in a row prove as little as they are likely: five whole
    attempts are a chance of 1 in 100,000, and of refusals for everybody's load twice as many are
    wanted. Where what fails stays failed, each is a whole one.
    """
    if error.is_own or error.kind not in SHARED or not evidence.has_recovered:
        return 1.0
    least, most = _SHARE_BOUNDS
    share = min(max(evidence.success_share, least), most)
    weight = min(1.0, -math.log10(1 - share))
    return weight / 2 if _is_common(error) else weight


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
