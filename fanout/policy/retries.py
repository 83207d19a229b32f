"""The retry policy: whether and when a failed call is made again, and when a run stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.rate_limits import MAX_BLOCK_S
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from fanout.core.spec_fields import RetrySpec

__all__ = [
    "RETRYABLE",
    "STOPS_RUN",
    "is_common",
    "larger_token_limit",
    "may_ask_anew",
    "may_retry",
    "retry_wait_s",
    "stop_after",
]

RETRYABLE = frozenset(
    {
        ErrorKind.RATE_LIMITED,  # it passes, and the provider often says when
        ErrorKind.TIMEOUT,  # one slow answer does not predict the next
        ErrorKind.CONNECTION,  # networks and servers recover
        ErrorKind.SERVER_ERROR,  # the provider's fault, usually short
        ErrorKind.INVALID_OUTPUT,  # sampling may give a better answer
    }
)

# These fail every branch: one error message instead of a hundred thousand failures.
STOPS_RUN = frozenset({ErrorKind.AUTH, ErrorKind.BUDGET})

# The longest wait of a branch after failures that were not its own.
_SHARED_WAIT_S = 30.0

# The tolerance for sums of fractional attempts.
_ROUNDING = 1e-6


def may_retry(kind: ErrorKind, *, spent: float, policy: RetrySpec) -> bool:
    """Say whether a failed call is made again if there is time: see retry_wait_s."""
    if policy.max_attempts == 1:
        # A user who allows one call wants no second one, even in an outage.
        return False
    return kind in RETRYABLE and spent < policy.max_attempts - _ROUNDING


def retry_wait_s(
    *,
    kind: ErrorKind,
    spent: float,
    failures: int,
    elapsed_s: float,
    policy: RetrySpec,
    jitter: float,
    retry_after_s: float | None = None,
    is_held: bool = False,
) -> float | None:
    """Return the seconds to wait before a failed call is made again, or None if it is not.

    The wait doubles with each failure, up to ``policy.max_wait_s``. Jitter takes up to half of it
    away, so that branches that failed together do not retry together. The wait is at least the
    provider's ``Retry-After``, but of that at most MAX_BLOCK_S.

    Args:
        kind: Why the call failed.
        spent: Attempts that count against the branch: see fanout.policy.outages.
        failures: Calls that have failed so far, from 1.
        elapsed_s: Seconds since the first call began, or since the model began to fail for all.
        policy: The bounds.
        jitter: A random number from 0 to 1.
        retry_after_s: Seconds that the provider asked to wait, or None.
        is_held: Whether the breaker holds back all calls to the model, so that the wait is there.
    """
    if not may_retry(kind, spent=spent, policy=policy):
        return None
    if is_held:
        # The breaker also waits for the provider's Retry-After.
        full, asked_s = policy.base_wait_s, 0.0
    else:
        full = min(policy.max_wait_s, policy.base_wait_s * 2.0 ** min(failures - 1, 30))
        asked_s = min(retry_after_s or 0.0, MAX_BLOCK_S)
        if spent < failures - _ROUNDING:
            # The provider is at fault: check soon whether it has recovered.
            full = min(full, _SHARED_WAIT_S)
    wait_s = max(full * (0.5 + jitter / 2), asked_s)
    return None if elapsed_s + wait_s > policy.max_elapsed_s else wait_s


def larger_token_limit(
    kind: ErrorKind,
    *,
    spent: float,
    elapsed_s: float,
    policy: RetrySpec,
    max_tokens: int | None,
    prompt_tokens: int | None = None,
    window_tokens: int | None = None,
) -> int | None:
    """Return the token limit for the retry of a truncated answer: twice the previous one.

    None if there is no retry: no limit was set, so that the model's own cut the answer, or twice the
    limit does not fit the model's context window. For the other arguments see retry_wait_s.

    Args:
        kind: Why the call failed.
        spent: See retry_wait_s.
        elapsed_s: See retry_wait_s.
        policy: The bounds.
        max_tokens: The limit of the call, or None.
        prompt_tokens: The tokens of its prompt; None if they are unknown.
        window_tokens: The context window of the model; None if it is unknown.
    """
    if max_tokens is None:
        return None
    if not may_ask_anew(kind, spent=spent, elapsed_s=elapsed_s, policy=policy):
        return None
    room = 2 * max_tokens
    fits = window_tokens is None or (prompt_tokens or 0) + room <= window_tokens
    return room if fits else None


def may_ask_anew(kind: ErrorKind, *, spent: float, elapsed_s: float, policy: RetrySpec) -> bool:
    """Say whether there may be a second call after a truncated answer: see retry_wait_s."""
    is_left = spent < policy.max_attempts - _ROUNDING and elapsed_s <= policy.max_elapsed_s
    return is_left and kind is ErrorKind.TRUNCATED


def stop_after(kind: ErrorKind, given: int | None) -> int:
    """Return how many branches with the same failure stop their run, 0 for never.

    That is ``given``, the ``stop_after`` of the error; if it is None, its kind decides.
    """
    return given if given is not None else int(kind in STOPS_RUN)


def is_common(*, alike: int, stop_after: int, succeeded: int) -> bool:
    """Say whether a failure will strike all other branches, so that their run must stop.

    Args:
        alike: Branches of the run with the same failure, this one included.
        stop_after: The number that stops the run; 1 stops it even after successes.
        succeeded: Branches of the run that have succeeded.
    """
    if stop_after <= 1:
        return stop_after == 1
    return succeeded == 0 and alike >= stop_after
