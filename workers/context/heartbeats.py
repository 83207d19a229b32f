"""How often a worker tells the store that it lives, as shares of the visibility timeout."""

from __future__ import annotations

__all__ = ["ALIVE", "BEATS", "RENEWALS", "SURE"]

# The store takes a holder for dead after BEATS / RENEWALS = half the visibility timeout of silence,
# so before its messages come back; two of three beats may fail until then.
RENEWALS = 6
BEATS = 3
# After this share of it without a beat the store takes a holder for dead.
ALIVE = BEATS / RENEWALS
# A holder is alive for at least this share of the timeout after any moment at which it was.
SURE = (BEATS - 1) / RENEWALS
