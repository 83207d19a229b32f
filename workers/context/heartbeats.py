"""The intervals of a worker's heartbeats, as shares of the visibility timeout."""

from __future__ import annotations

__all__ = ["ALIVE", "BEATS", "RENEWALS", "SURE"]

# The store considers a holder dead after BEATS / RENEWALS (half) of the visibility timeout without a
# beat: before its messages are delivered again, and after up to two failed beats.
RENEWALS = 6
BEATS = 3
# The store considers a holder dead after this share of the timeout without a beat.
ALIVE = BEATS / RENEWALS
# If a holder is alive now, the store considers it alive for at least this share of the timeout.
SURE = (BEATS - 1) / RENEWALS
