"""Records the failed and successful calls of a model in one worker process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.policy.outages import (
    NEIGHBOUR_S,
    SLOT_S,
    TimeSlot,
    is_outage,
    neighbour_calls,
    reaches_s,
    spent,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from fanout.policy.outages import Failure

__all__ = ["ModelHealth"]

_NEVER = float("-inf")
# The weight of the latest branch in the moving share of branches whose first call succeeds.
_ALPHA = 0.05
_FIRSTS = 20
# The assumed share for a model without calls.
_PRIOR = 0.9
# A model is not down if a call succeeded in this many seconds.
_SILENT_S = 2.0
_MOST_FAILING = 1_000
# Five minutes of calls: a call that takes longer to fail is judged as if there were no others.
_MOST_SLOTS = 1_200
# For this many seconds a success after a retry shows that failures are random.
_RECOVERS_S = 600.0


class ModelHealth:
    """Counts the ends of calls to a model; all times are seconds of one clock.

    A success costs only a few comparisons, as it is the common case.
    """

    # By the number of the slot of time.
    _slots: dict[int, TimeSlot]

    def __init__(self) -> None:
        self._share = _PRIOR
        self._firsts = 1
        self._ok_began = _NEVER
        self._ok_ended = _NEVER
        self._slots = {}
        self._recovered_at = _NEVER
        # When the last failed call of each branch began, and whether its first one is among them.
        self._failing: dict[Hashable, tuple[float, bool]] = {}

    def succeeded(self, *, began: float, now: float, is_first: bool) -> None:
        """Count a call that succeeded; ``is_first`` if it is the branch's first call."""
        if began > self._ok_began:  # noqa: PLR1730 - a third of what max() takes
            self._ok_began = began
        self._ok_ended = now
        if self._failing:
            self._absolve(began)
        slot = self._slots.get(int(began / SLOT_S)) or self._new_slot(began)
        if is_first:
            slot.succeeded += 1
            self._began_well(1.0)
        else:
            slot.succeeded_again += 1
            self._recovered_at = now

    def _new_slot(self, began: float) -> TimeSlot:
        if len(self._slots) >= _MOST_SLOTS:
            del self._slots[next(iter(self._slots))]
        return self._slots.setdefault(int(began / SLOT_S), TimeSlot())

    def _began_well(self, share: float) -> None:
        self._firsts += 1
        alpha = _ALPHA if self._firsts >= _FIRSTS else 1 / self._firsts
        self._share += alpha * (share - self._share)

    def _absolve(self, began: float) -> None:
        """Remove the branches that failed although the model was well."""
        for branch, (failed, is_first) in list(self._failing.items()):
            if failed <= began + NEIGHBOUR_S:
                del self._failing[branch]
                if is_first:
                    self._began_well(0.0)

    def failed(self, branch: Hashable, *, first_began: float, began: float, is_first: bool) -> str:
        """Count a failure that other branches may share; return the counter of its slot."""
        is_late = self.has_succeeded_after(first_began)
        if is_late:
            # A later call has succeeded: this failure says nothing about the model.
            _, had_first = self._failing.pop(branch, (0.0, False))
            if is_first or had_first:
                self._began_well(0.0)
        elif branch in self._failing or len(self._failing) < _MOST_FAILING:
            _, had_first = self._failing.get(branch, (0.0, False))
            self._failing[branch] = (began, is_first or had_first)
        slot = self._slots.get(int(began / SLOT_S)) or self._new_slot(began)
        counted = "failed" if is_first else "failed_late" if is_late else "failed_again"
        _add(slot, counted, 1)
        return counted

    def has_succeeded_after(self, moment: float) -> bool:
        """Return whether a call that began after ``moment`` has succeeded."""
        return self._ok_began > moment

    def lead_s(self, first_began: float) -> float | None:
        """Return the seconds from the start of the latest successful call; None if none succeeded."""
        return None if self._ok_began == _NEVER else first_began - self._ok_began

    def spent(self, failures: Sequence[Failure], *, now: float) -> float:
        """Return how many attempts a branch's failed calls count as, given how other calls went."""
        has_recovered = self._recovered_at >= failures[0].began
        own = self._taken_out(failures)
        others = [
            neighbour_calls(self._around(failure.began, reach_s), has_recovered=has_recovered)
            for failure, reach_s in zip(failures, reaches_s(failures), strict=True)
        ]
        for slot, counted in own:
            _add(slot, counted, 1)
        return spent(
            failures,
            others,
            chance_of_success=self._share,
            has_recovered=has_recovered,
            is_chance=now - self._recovered_at <= _RECOVERS_S,
        )

    def _around(self, moment: float, reach_s: float) -> list[TimeSlot | None]:
        middle, reach = int(moment / SLOT_S), int(reach_s / SLOT_S)
        return [self._slots.get(number) for number in range(middle - reach, middle + reach + 1)]

    def _taken_out(self, failures: Sequence[Failure]) -> list[tuple[TimeSlot, str]]:
        """Take the branch's own calls out of their slots; return what was taken out."""
        own = []
        for failure in failures:
            slot = self._slots.get(int(failure.began / SLOT_S))
            # A slot that was dropped may have been made again, without that call.
            if slot is not None and getattr(slot, failure.counted):
                _add(slot, failure.counted, -1)
                own.append((slot, failure.counted))
        return own

    def is_down(self, now: float) -> bool:
        """Return whether the model is down: calls fail, and none succeeds."""
        if now - self._ok_ended < _SILENT_S:
            return False
        never = self._ok_began == _NEVER
        failing = len(self._failing)
        return failing > 1 if never else is_outage(failing, self._share)


def _add(slot: TimeSlot, field: str, number: int) -> None:
    setattr(slot, field, getattr(slot, field) + number)
