"""The records of budgets: what calls may use, and what they have used.

Money is counted in whole billionths of a US dollar, so that sums of millions of calls are exact.
"""

from __future__ import annotations

import math
from typing import Self

import msgspec

__all__ = [
    "LEAST_BUDGET",
    "NO_AMOUNTS",
    "Amounts",
    "BudgetLimits",
    "BudgetReply",
    "BudgetReport",
    "BudgetState",
    "BudgetStep",
    "is_counted",
    "nano_usd_of",
]

NANO = 1_000_000_000
# Floats have noise below this part of a billionth.
_NOISE_DIGITS = 3


def nano_usd_of(usd: float) -> int:
    """Return US dollars in billionths, rounded up: what is counted is never less than what is paid."""
    return math.ceil(round(usd * NANO, _NOISE_DIGITS))


# Of smaller sums nothing is counted.
LEAST_BUDGET = "must be a billionth of a US dollar (0.000000001) or more"


def is_counted(usd: float) -> bool:
    """Say whether a limit in US dollars is at least the smallest sum that is counted."""
    return _floor_nano_usd(usd) > 0


def _floor_nano_usd(usd: float) -> int:
    return math.floor(round(usd * NANO, _NOISE_DIGITS))


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """What calls use, or may use at most.

    Attributes:
        nano_usd: Billionths of a US dollar; ``usd`` has US dollars.
        calls: Calls.
        tokens: Tokens of prompts and answers.
    """

    nano_usd: int = 0
    calls: int = 0
    tokens: int = 0

    @property
    def usd(self) -> float:
        """US dollars."""
        return self.nano_usd / NANO

    def __repr__(self) -> str:
        return f"Amounts(usd={self.usd!r}, calls={self.calls}, tokens={self.tokens})"

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            nano_usd=self.nano_usd + other.nano_usd,
            calls=self.calls + other.calls,
            tokens=self.tokens + other.tokens,
        )

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(
            nano_usd=self.nano_usd - other.nano_usd,
            calls=self.calls - other.calls,
            tokens=self.tokens - other.tokens,
        )


NO_AMOUNTS = Amounts()


class BudgetLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What calls may use together; None is no limit. For the fields see Amounts."""

    nano_usd: int | None = None
    calls: int | None = None
    tokens: int | None = None

    @classmethod
    def of(
        cls, *, usd: float | None = None, calls: int | None = None, tokens: int | None = None
    ) -> Self:
        """Return limits that are given in US dollars."""
        # Rounded down, as what is counted is rounded up.
        nano_usd = None if usd is None else _floor_nano_usd(usd)
        return cls(nano_usd=nano_usd, calls=calls, tokens=tokens)

    @property
    def usd(self) -> float | None:
        """US dollars."""
        return None if self.nano_usd is None else self.nano_usd / NANO

    def __repr__(self) -> str:
        return f"BudgetLimits(usd={self.usd!r}, calls={self.calls}, tokens={self.tokens})"

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self != BudgetLimits()


class BudgetReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a process reports of its use of a budget, and what it asks for.

    Attributes:
        session: The unique name of this use of the budget by one process.
        number: Counts the reports of a session from 1 on: one that arrives twice counts once.
        held: What its calls in flight may use at most.
        spent: What its calls have used since the session began.
        guessed: The part of it that is the most that calls may have used, as the use is unknown.
        reduced: The part of it that calls of the reduce have used.
        asked: For each further call, what it may use at most, whether it is of the reduce, and what is
            to be left for calls that follow it.
    """

    session: str
    number: int
    held: Amounts = NO_AMOUNTS
    spent: Amounts = NO_AMOUNTS
    guessed: Amounts = NO_AMOUNTS
    reduced: Amounts = NO_AMOUNTS
    asked: tuple[tuple[Amounts, bool, Amounts], ...] = ()


class BudgetStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a call that no process waits for, such as one of a batch: it is reserved, or settled.

    What is reserved counts as used until it is settled. Each step of a call counts once.

    Attributes:
        call: The unique id of the call.
        run_id: The run whose budget it is; empty for the budget of a day.
        day: The name of the budget of a day.
        limits: The limits of that; those of a run are in its record.
        amounts: The most that the call can use, or what it has used. None if that is unknown: then what
            is reserved counts.
        guessed: The part of what it has used that is the most that it may have been.
        is_reduce: Whether the call is of the reduce.
        left: What is to be left for calls that follow it.
        ends: Whether the call has ended.
    """

    call: str = ""
    run_id: str = ""
    day: str = ""
    limits: BudgetLimits = BudgetLimits()
    amounts: Amounts | None = None
    guessed: Amounts = NO_AMOUNTS
    is_reduce: bool = False
    left: Amounts = NO_AMOUNTS
    ends: bool = False


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """A budget as the server has it.

    Attributes:
        limits: What all calls together may use.
        map_limits: What those of the branches may use: the rest is kept for the reduce.
        spent: What calls have used; one whose use is unknown counts with the most that it can have used.
        unsure: What calls in batches, and those in flight on processes that have died, may have used.
        held: What calls in flight may use.
        guessed: The part of ``spent`` that is the most that calls may have used, as the use is unknown.
        is_full: Of the budget of a day: whether calls wait for the next one.
        is_batched: Of the budget of a day: whether part of ``unsure`` is of calls in batches.
    """

    limits: BudgetLimits = BudgetLimits()
    map_limits: BudgetLimits = BudgetLimits()
    spent: Amounts = NO_AMOUNTS
    unsure: Amounts = NO_AMOUNTS
    held: Amounts = NO_AMOUNTS
    guessed: Amounts = NO_AMOUNTS
    is_full: bool = False
    is_batched: bool = False

    @property
    def used(self) -> Amounts:
        """What counts as used."""
        return self.spent + self.unsure


class BudgetReply(msgspec.Struct, frozen=True, kw_only=True):
    """The reply to a report.

    Attributes:
        granted: For each call that was asked for, whether it may begin.
        state: The budget after that.
    """

    granted: tuple[bool, ...]
    state: BudgetState
