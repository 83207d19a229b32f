"""Rate limits of the mock provider: of requests and tokens, as buckets or as windows of a minute."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KINDS", "TELLS", "Quota"]

_MINUTE_S = 60.0
KINDS = {
    "bucket": "it refills all the time, and holds the limit of a minute (OpenAI, Anthropic)",
    "second": "it refills all the time, and holds the limit of a second",
    "window": "it begins anew each minute",
}
_HOLDS_S = {"bucket": 60.0, "second": 1.0, "window": 60.0}
TELLS = {
    "headers": "x-ratelimit-* in each reply, and retry-after-ms in a refusal",
    "wait": "retry-after-ms in a refusal",
    "nothing": "429",
}


class _Limit:
    """One limit of a number of units a minute."""

    def __init__(self, name: str, per_minute: float, kind: str, now: float) -> None:
        self.name = name
        self._per_minute = per_minute
        self._per_s = per_minute / _MINUTE_S
        self._is_window = kind == "window"
        self._holds = self._per_s * _HOLDS_S[kind]
        self._left = self._holds
        self._at = self._began = now

    def refill(self, now: float) -> None:
        """Count what has come since the last call."""
        if not self._is_window:
            self._left = min(self._holds, self._left + self._per_s * (now - self._at))
        elif now >= self._began + _MINUTE_S:
            self._began += _MINUTE_S * ((now - self._began) // _MINUTE_S)
            self._left = self._holds
        self._at = now

    def lacks_s(self, units: float) -> float:
        """Return the seconds until so many units are there; 0 if they are."""
        if self._left >= units:
            return 0.0
        if self._is_window:
            return self._began + _MINUTE_S - self._at
        return (units - self._left) / self._per_s

    def take(self, units: float) -> None:
        """Use some units."""
        self._left -= units

    def headers(self) -> str:
        """Return the headers of this limit, as OpenAI sends them."""
        if self._is_window:
            reset_s = self._began + _MINUTE_S - self._at
        else:
            reset_s = (self._holds - self._left) / self._per_s
        # A bucket of a second is told as the minute that it is a part of.
        left = self._left if self._holds == self._per_minute else self._per_minute
        return (
            f"x-ratelimit-limit-{self.name}: {self._per_minute:.0f}\r\n"
            f"x-ratelimit-remaining-{self.name}: {left:.0f}\r\n"
            f"x-ratelimit-reset-{self.name}: {_duration(reset_s)}\r\n"
        )


class Quota:
    """The rate limits of one key.

    Args:
        rpm: Requests a minute; 0 is no limit.
        tpm: Tokens a minute; 0 is no limit.
        kind: One of KINDS.
        tells: One of TELLS.
        clock: A monotonic clock in seconds.

    Attributes:
        by_second: For each second since the first request, [accepted, refused, tokens accepted].
    """

    def __init__(
        self,
        *,
        rpm: float,
        tpm: float,
        kind: str,
        tells: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._tells = tells
        now = clock()
        self._requests = _Limit("requests", rpm, kind, now) if rpm else None
        self._tokens = _Limit("tokens", tpm, kind, now) if tpm else None
        self._limits = [limit for limit in (self._requests, self._tokens) if limit is not None]
        self._began: float | None = None
        self.by_second: list[list[int]] = []

    def take(self, tokens: int) -> tuple[bool, str]:
        """Take a request of so many tokens; return whether it is accepted, and its headers."""
        now = self._clock()
        counts = self._second(now)
        lacks_s = 0.0
        for limit in self._limits:
            limit.refill(now)
            lacks_s = max(lacks_s, limit.lacks_s(1 if limit is self._requests else tokens))
        is_accepted = not lacks_s
        if is_accepted:
            for limit in self._limits:
                limit.take(1 if limit is self._requests else tokens)
            counts[0] += 1
            counts[2] += tokens
        else:
            counts[1] += 1
        headers = ""
        if self._tells == "headers":
            headers = "".join(limit.headers() for limit in self._limits)
        if not is_accepted and self._tells != "nothing":
            headers += f"retry-after-ms: {math.ceil(lacks_s * 1e3)}\r\n"
        return is_accepted, headers

    def _second(self, now: float) -> list[int]:
        if self._began is None:
            self._began = now
        while len(self.by_second) <= now - self._began:
            self.by_second.append([0, 0, 0])
        return self.by_second[int(now - self._began)]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f}ms"
    minutes, rest = divmod(seconds, _MINUTE_S)
    return f"{minutes:.0f}m{rest:.3f}s" if minutes else f"{rest:.3f}s"
