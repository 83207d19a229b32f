"""What one worker process has seen of a model: who failed, who succeeded, and when they began."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.outages import BESIDE_S, Evidence, is_outage

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["ModelHealth"]

_NEVER = float("-inf")
# How much the latest branch counts in the share of those that succeed at once, when many have.
_ALPHA = 0.05
# What is believed of a model of which nothing is known.
_PRIOR = 0.9
# While calls succeed, even few of them, a model is not to be left alone.
_SILENT_S = 2.0
_MOST_FAILING = 1_000


class ModelHealth:
    """Counts the ends of calls to a model; all times are seconds of one clock.

    A success costs a few comparisons: each call has one.
    """

    def __init__(self) -> None:
        self._share = _PRIOR
        self._firsts = 1
        self._ok_began = _NEVER
        self._ok_ended = _NEVER
        self._recovered_at = _NEVER
        # When the last failed call of each branch began, and whether its first one is among them.
        self._failing: dict[Hashable, tuple[float, bool]] = {}

    def succeeded(self, *, began: float, now: float, is_first: bool) -> None:
        """Count a call that succeeded; ``is_first`` where the branch had made none before."""
        self._ok_began = max(self._ok_began, began)
        self._ok_ended = now
        if self._failing:
            self._absolve(began)
        if is_first:
            self._began_well(1.0)
        else:
            self._recovered_at = now

    def _began_well(self, share: float) -> None:
        self._firsts += 1
        self._share += max(_ALPHA, 1 / self._firsts) * (share - self._share)

    def _absolve(self, began: float) -> None:
        """Take those out that failed although the model was well."""
        for branch, (failed, is_first) in list(self._failing.items()):
            if failed <= began + BESIDE_S:
                del self._failing[branch]
                if is_first:
                    self._began_well(0.0)

    def failed(self, branch: Hashable, *, first_began: float, began: float, is_first: bool) -> None:
        """Count a call that failed for a reason that others may share."""
        if self.has_succeeded_after(first_began):
            # A later call has succeeded: it says nothing of the model.
            _, had_first = self._failing.pop(branch, (0.0, False))
            if is_first or had_first:
                self._began_well(0.0)
        elif branch in self._failing or len(self._failing) < _MOST_FAILING:
            _, had_first = self._failing.get(branch, (0.0, False))
            self._failing[branch] = (began, is_first or had_first)

    def has_succeeded_after(self, moment: float) -> bool:
        """Say whether a call has succeeded that began later than that."""
        return self._ok_began > moment

    def evidence(self, *, first_began: float, down_s: float | None) -> Evidence:
        """Return what is known when a call has failed of a branch whose first such began then."""
        never = self._ok_began == _NEVER
        return Evidence(
            failing=len(self._failing),
            success_share=self._share,
            has_recovered=self._recovered_at >= first_began,
            is_beside=self._ok_ended > first_began,
            lead_s=None if never else first_began - self._ok_began,
            down_s=down_s,
        )

    def is_down(self, now: float) -> bool:
        """Say whether the model is to be left alone: calls fail, and none succeeds."""
        if now - self._ok_ended < _SILENT_S:
            return False
        never = self._ok_began == _NEVER
        failing = len(self._failing)
        return failing > 1 if never else is_outage(failing, self._share)
