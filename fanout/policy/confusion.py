"""Which answers documents with a label got: exact counts in bounded memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fanout.policy.metrics import ClassCounts, class_score, macro_f1

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fanout.policy.metrics import ClassScore, Estimate

__all__ = ["Confusion", "ConfusionCounter", "Mistake", "Term"]

# More labels than this are no classes.
_MOST_LABELS = 1_000
# Different values of labels and answers, and pairs of them, that are counted one by one.
_MOST_TERMS = 10_000
_MOST_CELLS = 20_000
_SHOWN_LABELS = 50
_SHOWN_MISTAKES = 20
# Stands in cells for the answers that are not counted one by one. No key is empty.
_REST = ""


class Term(NamedTuple):
    """A label or an answer: what it is compared by, which is not empty, and its text."""

    key: str
    text: str


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """A wrong answer, and how often documents with the label got it."""

    label: str
    answer: str
    count: int


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """Which answers documents with a label got.

    Attributes:
        labels: The labels: the rows, and the first columns.
        counts: For each label, how often it got each label as its answer.
        other: For each label, how often it got an answer that is none of ``labels``; beyond 20,000
            different pairs of label and answer, a new pair counts here too.
        failed: For each label, how often it got no answer.
        more_labels: Labels without a row, as there are too many.
        mistakes: The most frequent wrong answers.
    """

    labels: list[str]
    counts: list[list[int]]
    other: list[int]
    failed: list[int]
    more_labels: int
    mistakes: list[Mistake]


class ConfusionCounter:
    """Counts answers by label and answer.

    Args:
        known: Labels that have a row in any case, in their order.
    """

    def __init__(self, known: Iterable[Term] = ()) -> None:
        self._texts = {one.key: one.text for one in known}
        self._known = len(self._texts)
        self._classes = {key: ClassCounts() for key in self._texts}
        self._cells: Counter[tuple[str, str | None]] = Counter()
        self._labels = 0
        self._has_uncounted = False
        self.is_unbounded = False
        """Whether there are too many labels for classes, so that only shares are known."""

    def add(self, label: Term, answer: Term | None) -> None:
        """Count an answer to a document with a label; None is a failed one."""
        if self.is_unbounded:
            return
        counts = self._counts_of(label)
        if counts is None:
            self.is_unbounded = True
            # They are of no use any more.
            self._classes, self._cells, self._texts = {}, Counter(), {}
            return
        counts.support += 1
        if answer is not None:
            self._predict(answer)
            counts.correct += answer.key == label.key
        cell, rest = (label.key, None if answer is None else answer.key), (label.key, _REST)
        has_room = len(self._cells) < _MOST_CELLS
        is_plain = answer is None or answer.key == label.key
        self._cells[cell if is_plain or has_room or cell in self._cells else rest] += 1

    def _counts_of(self, label: Term) -> ClassCounts | None:
        """Return the counts of a label; None if they would not be exact."""
        counts = self._classes.get(label.key)
        if counts is not None and counts.support:
            return counts
        # It may have been an answer that was not counted.
        if self._labels >= _MOST_LABELS or (counts is None and self._has_uncounted):
            return None
        self._labels += 1
        if counts is None or label.key not in self._texts:
            self._texts[label.key] = label.text
        return self._classes.setdefault(label.key, ClassCounts())

    def _predict(self, answer: Term) -> None:
        counts = self._classes.get(answer.key)
        if counts is None:
            if len(self._classes) >= _MOST_TERMS:
                self._has_uncounted = True
                return
            counts = self._classes[answer.key] = ClassCounts()
            self._texts[answer.key] = answer.text
        counts.predicted += 1

    def macro_f1(self, *, units: int | None = None) -> Estimate | None:
        """Return the mean F1 of the labels; None if they are none or too many."""
        return macro_f1(self._classes, self._cells, units=units)

    def scores(self) -> list[ClassScore]:
        """Return the scores of the labels: the known ones in their order, then by frequency."""
        return [class_score(self._texts[key], self._classes[key]) for key in self._shown()]

    def confusion(self) -> Confusion | None:
        """Return which answers the labels got; None if there are none, or too many labels."""
        shown = self._shown()
        if not shown or not self._labels:
            return None
        rows = {key: at for at, key in enumerate(shown)}
        counts = [[0] * len(shown) for _ in shown]
        other, failed = [0] * len(shown), [0] * len(shown)
        for (label, answer), count in self._cells.items():
            at = rows.get(label)
            if at is None:
                continue
            if answer is None:
                failed[at] += count
            elif answer in rows:
                counts[at][rows[answer]] += count
            else:
                other[at] += count
        return Confusion(
            labels=[self._texts[key] for key in shown],
            counts=counts,
            other=other,
            failed=failed,
            more_labels=self._labels - sum(self._classes[key].support > 0 for key in shown),
            mistakes=self._mistakes(),
        )

    def _shown(self) -> Sequence[str]:
        keys = list(self._classes)
        known, found = keys[: self._known], keys[self._known :]
        labels = [key for key in found if self._classes[key].support]
        labels.sort(key=lambda key: (-self._classes[key].support, self._texts[key]))
        return [*known, *labels][: max(_SHOWN_LABELS, self._known)]

    def _mistakes(self) -> list[Mistake]:
        wrong = [
            (-count, self._texts[label], self._texts[answer])
            for (label, answer), count in self._cells.items()
            if answer is not None and answer != label and answer in self._texts
        ]
        return [
            Mistake(label=label, answer=answer, count=-count)
            for count, label, answer in sorted(wrong)[:_SHOWN_MISTAKES]
        ]
