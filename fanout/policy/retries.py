"""When a failed call is made again: a pure policy by kind of error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.core.rate_limits import MAX_BLOCK_S
from fanout.core.records import ErrorKind
from fanout.policy.outages import MAX_PROBE_S

if TYPE_CHECKING:
    from fanout.core.spec import RetrySpec

__all__ = [
    "RETRYABLE",
    "STOPS_RUN",
    "RetryDecision",
    "decide",
    "is_common",
    "more_room",
    "stop_after",
]

RETRYABLE = frozenset(
    {
        ErrorKind.RATE_LIMITED,  # it passes, and the provider often says when
        ErrorKind.TIMEOUT,  # one slow answer says nothing of the next
        ErrorKind.CONNECTION,  # networks and servers come back
        ErrorKind.SERVER_ERROR,  # the provider's fault, mostly short
        ErrorKind.INVALID_OUTPUT,  # sampling may give a better answer
    }
)

# These fail every branch alike: one message instead of a hundred thousand failures.
STOPS_RUN = frozenset({ErrorKind.AUTH, ErrorKind.BUDGET})

# Parts of attempts do not add up exactly.
_ROUNDING = 1e-6


class RetryDecision(msgspec.Struct, frozen=True, kw_only=True):
    """Make the call again.

    Attributes:
        wait_s: Seconds to wait before it.
    """

    wait_s: float


def decide(
    *,
    kind: ErrorKind,
    spent: float,
    failures: int,
    elapsed_s: float,
    policy: RetrySpec,
    jitter: float,
    retry_after_s: float | None = None,
    is_held: bool = False,
) -> RetryDecision | None:
    """Return whether and when a failed call is made again, or None where it is not.

    The wait doubles with each failure, up to ``policy.max_wait_s``, and is between half of that
    and all of it, so that branches that failed together do not come back together. What the
    provider asks for in ``Retry-After`` is the least, but it is asked again after MAX_BLOCK_S.

    Args:
        kind: Why the call failed.
        spent: Attempts that count against the branch: see fanout.policy.outages.
        failures: Calls that have failed so far, from 1.
        elapsed_s: Seconds since the first call began, or since which the model fails for everybody.
        policy: The bounds.
        jitter: A random number from 0 to 1.
        retry_after_s: Seconds that the provider asked to wait, or None.
        is_held: Whether all calls to the model are held back: then there is no need to wait here.
    """
    if policy.max_attempts == 1:
        # Whoever allows one call wants no other, whatever struck it.
        return None
    if kind not in RETRYABLE or spent >= policy.max_attempts - _ROUNDING:
        return None
    if is_held:
        # Whatever the provider asks for is waited for there.
        full, asked_s = policy.base_wait_s, 0.0
    else:
        full = min(policy.max_wait_s, policy.base_wait_s * 2.0 ** min(failures - 1, 30))
        asked_s = min(retry_after_s or 0.0, MAX_BLOCK_S)
        if spent < failures - _ROUNDING:
            # It is the provider who is slow to be well: look soon whether it is.
            full = min(full, MAX_PROBE_S)
    wait_s = max(full * (0.5 + jitter / 2), asked_s)
    if elapsed_s + wait_s > policy.max_elapsed_s:
        return None
    return RetryDecision(wait_s=wait_s)


def more_room(
    kind: ErrorKind,
    *,
    spent: float,
    elapsed_s: float,
    policy: RetrySpec,
    max_tokens: int | None,
    used_tokens: int | None,
) -> int | None:
    """Return how many tokens to allow an answer that was cut, when it is asked for once more.

    Twice what it had. None where it is not to be asked for again, or nobody knows what it had: the
    same limit would cut it at the same place.

    Args:
        kind: Why the call failed.
        spent: Attempts that count against the branch: see fanout.policy.outages.
        elapsed_s: Seconds since the first call began.
        policy: The bounds.
        max_tokens: The limit that was asked for, or None.
        used_tokens: Tokens that the answer had, or None.
    """
    if kind is not ErrorKind.TRUNCATED or spent >= policy.max_attempts - _ROUNDING:
        return None
    room = max_tokens or used_tokens
    return 2 * room if room and elapsed_s <= policy.max_elapsed_s else None


def stop_after(kind: ErrorKind, given: int | None) -> int:
    """Return how many branches must fail alike until their run is stopped; 0: it is not.

    Args:
        kind: Why a branch failed.
        given: What its error says of that itself, or None.
    """
    if given is None:
        return 1 if kind in STOPS_RUN else 0
    return given


def is_common(*, alike: int, stop_after: int, succeeded: int) -> bool:
    """Say whether what a branch failed of will fail all others: their run is then stopped.

    Args:
        alike: Branches of the run that have failed so, this one included.
        stop_after: How many it takes; 1 needs no others, and outweighs what succeeded.
        succeeded: Branches of the run that have succeeded.
    """
    if stop_after <= 1:
        return stop_after == 1
    return succeeded == 0 and alike >= stop_after
