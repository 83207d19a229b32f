"""The waits between looks at a run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pauses", "polls"]

_FIRST_POLL_S = 0.01
_POLL_S = 0.03
_LAST_POLL_S = 0.25
# A wait between polls is this share of the time waited so far, so an end is seen 5 % late at most.
_POLL_SHARE = 0.05
# The same once a run has taken half a minute: runs of hours do not ask 33 times a second.
_LATER_POLL_SHARE = 0.001


def polls(until: float | None) -> Iterator[None]:
    """Yield now and after growing waits, until the monotonic clock is past ``until``."""
    yield
    for pause_s in pauses(until):
        time.sleep(pause_s)
        yield


def pauses(until: float | None) -> Iterator[float]:
    """Yield the seconds until each next poll."""
    waited_s = 0.0
    while until is None or time.monotonic() < until:
        pause_s = min(max(_FIRST_POLL_S, waited_s * _POLL_SHARE), _POLL_S)
        pause_s = min(max(pause_s, waited_s * _LATER_POLL_SHARE), _LAST_POLL_S)
        yield pause_s
        waited_s += pause_s
