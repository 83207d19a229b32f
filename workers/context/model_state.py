"""What a worker process knows about a model: its health, and whether its calls are held back."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from fanout.core.errors import LLMError
from fanout.core.rate_limits import Rates
from fanout.policy.outages import CLOSED, ask, close, spread
from workers.context.model_health import ModelHealth

if TYPE_CHECKING:
    from fanout.core.records import ErrorKind
    from workers.context.call_window import CallPlaces
    from workers.context.pacing import Pacer

__all__ = ["LOOK_S", "PROBES", "ModelState"]

# How old a worker's knowledge of a model's pause may be: one small read per model, not per call.
LOOK_S = 0.5
# How old it is at most where calls wait for the end of an outage: a waiting call reads it so often.
_LATELY_S = 5.0
# How many calls of the probing worker probe: one of them may fail by itself.
PROBES = 2


class ModelState:
    """What this worker knows about a model, its ``places`` for calls in flight, and its ``pacer``."""

    def __init__(self, name: str, places: CallPlaces, pacer: Pacer) -> None:
        self.name = name
        self.places = places
        self.pacer = pacer
        self.health = ModelHealth()
        self.looked_at = float("-inf")
        # Whether the fleet's limits were read at all; no call begins before that.
        self.is_read = False
        self.first_look = asyncio.Lock()
        # Until when the fleet makes no calls, and until when this worker does not after a refusal.
        self.fleet_until = 0.0
        self.refused_until = 0.0
        # Since when it is known to fail for all branches, to the fleet or to this worker alone.
        self.down_at: float | None = None
        # This worker's own breaker: used if the server is unreachable, or other workers are well.
        self.breaker = CLOSED
        self.probes = 0
        # How the last call failed for a reason that others may share, and when; None if none did since
        # the model was last well.
        self.failed_with: ErrorKind | None = None
        self.failed_at = float("-inf")
        # When calls were last held back.
        self.heard_at = 0.0

    def must_look(self, now: float) -> bool:
        """Return whether the next call that waits is to read whether the model is well.

        At the end of a wait in an outage one call of the fleet probes: which one, the server decides.
        """
        is_due = self.down_at is not None and self.looked_at < self.fleet_until <= now
        return is_due or now - self.looked_at >= LOOK_S

    def hold_s(self, now: float) -> float:
        """Return the seconds for which no call should begin."""
        until = max(self.fleet_until, self.refused_until)
        if until <= now and self.breaker.opened_at is not None:
            standing, self.breaker = ask(
                self.breaker,
                now=now,
                share=spread(random.random()),  # noqa: S311 - see there
            )
            if standing.is_probe:
                self.probes = PROBES
            return standing.wait_s
        return max(0.0, until - now)

    def is_well(self, now: float) -> bool:
        """Return whether a call may begin, by what was read lately."""
        return (
            self.is_read
            and now - self.looked_at < LOOK_S
            and self.down_at is None
            and self.fleet_until <= now >= self.refused_until
            and self.breaker.opened_at is None
        )

    def rates(self, told: Rates, now: float) -> Rates:
        """Return the rates to keep to: those of the job, or learnt ones that are lower."""
        rates, pace = self.pacer.rates(told, now), self.places.pace
        return rates if pace is None else rates.lower(Rates(requests_per_minute=pace))

    def down_s(self, now: float) -> float | None:
        """Return for how many seconds the model has failed for all branches, or None."""
        return None if self.down_at is None else now - self.down_at

    def is_down_lately(self, now: float) -> bool:
        """Return whether the model fails for all branches, by what was read or found out lately.

        Only calls that have room read it: if they all wait for something else, nothing is known.
        """
        return self.down_at is not None and now - max(self.looked_at, self.heard_at) < _LATELY_S

    def fell(self, at: float, now: float) -> None:
        """Note that the model fails since ``at``."""
        if self.down_at is None:
            self.heard_at = now
        self.down_at = at if self.down_at is None else min(at, self.down_at)

    def rose(self, now: float) -> None:
        """Note that the model is well again."""
        self.down_at = None
        self.fleet_until = self.refused_until = 0.0
        self.breaker = close(self.breaker, now=now)
        self.probes = 0
        self.failed_with = None

    def failed(self, kind: ErrorKind, now: float) -> None:
        """Note that a call failed for a reason that others may share."""
        self.failed_with = kind
        self.failed_at = now

    def answered(self, began: float) -> None:
        """Note an answer to a call that began at ``began``: it tells nothing of later failures."""
        if self.down_at is None and began >= self.failed_at:
            self.failed_with = None

    def require_unfailed(self) -> None:
        """Raise LLMError if a call of this worker has failed, so that a further one would too."""
        if self.failed_with is not None:
            raise LLMError(self.failed_with, f"{self.name} fails for every branch", is_own=True)
