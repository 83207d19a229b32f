"""A finding: what was looked at, whether it is as it should be, and what to do if not."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Finding", "State", "fail", "judged", "not_allowed", "ok", "warn", "worst"]


class State(StrEnum):
    """How it is, best first."""

    OK = "ok"  # as it should be
    WARN = "warn"  # it works, but not as well or as safely as it could; or it cannot be seen
    FAIL = "fail"  # runs will fail, hang or be lost


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding.

    Attributes:
        check: What was looked at.
        state: How it is.
        found: What was found, in one line.
        advice: What to do, in one line; None where there is nothing to do.
    """

    check: str
    state: State
    found: str
    advice: str | None = None


def ok(check: str, found: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check=check, state=State.OK, found=found)


def warn(check: str, found: str, advice: str) -> Finding:
    """Return that something could be better."""
    return Finding(check=check, state=State.WARN, found=found, advice=advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """Return that something is wrong."""
    return Finding(check=check, state=State.FAIL, found=found, advice=advice)


def judged(
    check: str, value: float, found: str, advice: str, *, warn_over: float, fail_over: float
) -> Finding:
    """Return a finding about a quantity that should be small."""
    if value > fail_over:
        return fail(check, found, advice)
    return warn(check, found, advice) if value > warn_over else ok(check, found)


def not_allowed(check: str, command: str) -> Finding:
    """Return that the server does not let us look."""
    advice = f"ask as a user who may run {command}: one for people, not the workers' own"
    return warn(check, f"not allowed to look ({command})", advice)


def worst(findings: Iterable[Finding]) -> State:
    """Return the worst state of all findings."""
    return max((finding.state for finding in findings), key=list(State).index, default=State.OK)
