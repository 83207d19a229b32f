"""Findings: what was checked, its state, and what to do about it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Finding", "State", "fail", "judged", "not_allowed", "ok", "warn", "worst"]


class State(StrEnum):
    """The state of a finding, the best first."""

    OK = "ok"  # as it should be
    WARN = "warn"  # it works, but not as well or as safely as it could; or it cannot be checked
    FAIL = "fail"  # runs will fail, hang or be lost


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding.

    Attributes:
        found: The facts, in one line.
        advice: What to do, in one line; None if there is nothing to do.
    """

    check: str
    state: State
    found: str
    advice: str | None = None


def ok(check: str, found: str) -> Finding:
    """Return a finding with the state OK."""
    return Finding(check=check, state=State.OK, found=found)


def warn(check: str, found: str, advice: str) -> Finding:
    """Return a finding with the state WARN."""
    return Finding(check=check, state=State.WARN, found=found, advice=advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """Return a finding with the state FAIL."""
    return Finding(check=check, state=State.FAIL, found=found, advice=advice)


def judged(
    check: str, value: float, found: str, advice: str, *, warn_over: float, fail_over: float
) -> Finding:
    """Return a finding about a quantity that should be small."""
    if value > fail_over:
        return fail(check, found, advice)
    return warn(check, found, advice) if value > warn_over else ok(check, found)


def not_allowed(check: str, command: str) -> Finding:
    """Return the finding that the server's user may not run a command of the check."""
    advice = f"run the doctor as a user with permission for {command}, not as the workers' user"
    return warn(check, f"no permission to check ({command})", advice)


def worst(findings: Iterable[Finding]) -> State:
    """Return the worst state of all findings."""
    return max((finding.state for finding in findings), key=list(State).index, default=State.OK)
