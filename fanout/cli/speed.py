"""The speed of a run or a fleet over the last seconds, from repeated looks at its counts."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.records import RunStatus

if TYPE_CHECKING:
    from fanout.core.records import Usage
    from fanout.runs.status import Status

__all__ = ["Meter", "Speed", "eta_s"]

# The speed is that of the last seconds: an average from the start hides that calls have stalled.
_WINDOW_S = 10.0
# Long calls end in bursts: the expected end needs more of them.
_LONG_WINDOW_S = 60.0
_LEAST_S = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """What ends in a second; None where that is not known yet, or never.

    ``lately`` is the branches, on average of the last minute.
    """

    branches: float | None = None
    calls: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    lately: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return it as JSON-able values, per second."""
        values = {name: getattr(self, name) for name in _QUANTITIES}
        return {f"{n}_per_s": v if v is None else round(v, 2) for n, v in values.items()}


_QUANTITIES = ("branches", "calls", "input_tokens", "output_tokens")


class _Sample(NamedTuple):
    at: float
    branches: int
    usage: Usage

    def quantity(self, name: str) -> int | None:
        found: int | None = self.branches if name == "branches" else getattr(self.usage, name)
        return found

    def rate_to(self, later: _Sample, name: str) -> float | None:
        first, last = self.quantity(name), later.quantity(name)
        if first is None and not self.usage.calls:
            # Without a call nothing is known, and nothing was consumed.
            first = 0
        if first is None or last is None:
            return None
        # A retry takes failed branches out of the count again.
        return float(max(0, last - first)) / (later.at - self.at)


class Meter:
    """Measures the speed over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[_Sample] = deque()

    def see(self, done: int, usage: Usage, *, now: float | None = None) -> Speed:
        """Record the counts so far, and return the speed."""
        last = _Sample(time.monotonic() if now is None else now, done, usage)
        self._seen.append(last)
        first, long_ago = self._since(_WINDOW_S), self._since(_LONG_WINDOW_S)
        while self._seen[0] is not long_ago:
            self._seen.popleft()
        if last.at - first.at < _LEAST_S:
            return Speed()
        rates = {name: first.rate_to(last, name) for name in _QUANTITIES}
        return Speed(**rates, lately=long_ago.rate_to(last, "branches"))

    def _since(self, seconds: float) -> _Sample:
        """Return the first sample that is not older; where only the last is, the one before it."""
        last = self._seen[-1]
        recent = next(sample for sample in self._seen if last.at - sample.at <= seconds)
        return self._seen[-2] if recent is last and len(self._seen) > 1 else recent


def eta_s(status: Status, speed: Speed) -> float | None:
    """Return the seconds until all branches will have ended, or None.

    It is unknown while the input is still being read, while the run is paused, is stopping or waits
    for the budget of the next day, and if no branch has ended lately.
    """
    left = status.total - status.done
    if status.status is not RunStatus.RUNNING or not left or not speed.lately:
        return None
    if status.is_stopping or status.used_up:
        return None
    return left / speed.lately
