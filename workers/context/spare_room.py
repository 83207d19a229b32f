"""Room in a budget that a process has at the server beyond its calls in flight.

A call that fits into it begins without a question to the server. It is what earlier calls have used less
than they may, and what the process has asked for ahead.
"""

from __future__ import annotations

import math

from fanout.core.budgets import NO_AMOUNTS, Amounts
from fanout.policy.budgets import pace

__all__ = ["COUNTED_S", "SpareRoom"]

# Seconds over which the calls that begin are counted.
COUNTED_S = 0.04


class SpareRoom:
    """What the server holds for a process, less what its calls in flight may use and have used since.

    It may be below nothing: a provider can bill a call for more than it was to use.

    Attributes:
        begun: The calls that have taken a part since they were last counted.
        most: The most that the last of them, or of those that asked, can use.
    """

    __slots__ = ("_calls", "_nano_usd", "_pace", "_since", "_tokens", "begun", "most")

    def __init__(self) -> None:
        self._nano_usd = self._calls = self._tokens = self.begun = self._pace = 0
        self._since = -math.inf
        self.most = NO_AMOUNTS

    def counted(self, asked: int, now: float) -> int:
        """Return how many calls begin in COUNTED_S or so.

        Args:
            asked: The calls that ask for their part now.
            now: Monotonic seconds.
        """
        self.begun += asked
        if now - self._since < COUNTED_S:
            return max(self._pace, self.begun)
        self._pace = pace(self.begun, before=self._pace)
        self.begun, self._since = 0, now
        return self._pace

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return max(self._nano_usd, self._calls, self._tokens) <= 0

    def takes(self, most: Amounts) -> bool:
        """Take the part of a call, and return True, if there is room for it."""
        nano_usd = self._nano_usd - most.nano_usd
        calls = self._calls - most.calls
        tokens = self._tokens - most.tokens
        if nano_usd < 0 or calls < 0 or tokens < 0:
            return False
        self._nano_usd, self._calls, self._tokens = nano_usd, calls, tokens
        self.begun += 1
        self.most = most
        return True

    def frees(self, most: Amounts, used: Amounts) -> None:
        """Take back the part of a call that has ended, less what it has used."""
        self._nano_usd += most.nano_usd - used.nano_usd
        self._calls += most.calls - used.calls
        self._tokens += most.tokens - used.tokens

    def grows(self, by: Amounts) -> None:
        """Note what the server has granted beside the calls that asked."""
        self.frees(by, NO_AMOUNTS)

    def keeps(self, most: Amounts) -> Amounts:
        """Keep at most so much; return what is kept, which is never below nothing."""
        self._nano_usd = max(0, min(self._nano_usd, most.nano_usd))
        self._calls = max(0, min(self._calls, most.calls))
        self._tokens = max(0, min(self._tokens, most.tokens))
        return Amounts(nano_usd=self._nano_usd, calls=self._calls, tokens=self._tokens)
