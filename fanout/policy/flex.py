"""The policy of the flex lane: what follows when a provider has no capacity left for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.core.lanes import Lane  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from fanout.core.spec_fields import RetrySpec

__all__ = ["FLEX_PATIENCE_S", "NextCall", "after_shed"]

# Seconds for which a branch asks for capacity at the low price, before it pays the list price.
FLEX_PATIENCE_S = 600.0


class NextCall(msgspec.Struct, frozen=True):
    """The next call of a branch: its lane, and the seconds until then."""

    lane: Lane
    wait_s: float


def after_shed(
    *,
    refusals: int,
    elapsed_s: float,
    policy: RetrySpec,
    jitter: float,
    retry_after_s: float | None = None,
) -> NextCall | None:
    """Return the next call after a refusal for lack of capacity; None if there is none.

    Such a refusal costs neither money nor an attempt. The waits double as those of other retries do.
    When the next one would end after FLEX_PATIENCE_S, or after half of the branch's time, the call
    is made in realtime. A policy of a single call makes no other one.

    Args:
        refusals: Refusals so far, from 1.
        elapsed_s: Seconds since the first call of the branch began.
        policy: The bounds.
        jitter: A random number from 0 to 1.
        retry_after_s: Seconds that the provider asked to wait, or None.
    """
    if policy.max_attempts == 1 or elapsed_s >= policy.max_elapsed_s:
        return None
    full = min(policy.max_wait_s, policy.base_wait_s * 2.0 ** min(refusals - 1, 30))
    wait_s = max(full * (0.5 + jitter / 2), retry_after_s or 0.0)
    if elapsed_s + wait_s > min(FLEX_PATIENCE_S, policy.max_elapsed_s / 2):
        return NextCall("realtime", 0.0)
    return NextCall("flex", wait_s)
