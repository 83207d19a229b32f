"""The interface of aggregators: branches in, one value out."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import msgspec

from fanout.aggregators.coverage import Coverage  # noqa: TC001 - msgspec reads the annotation
from fanout.aggregators.sources import Source  # noqa: TC001 - msgspec reads the annotation
from fanout.core.cells import Cell  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from fanout.aggregators.streams import Streamed

__all__ = [
    "LEFT_OUT",
    "Accumulator",
    "Aggregate",
    "Held",
    "Item",
    "NameSample",
    "Spilling",
    "ballots",
    "place",
]

_SAMPLE_NAMES = 10


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One branch, as the input of an aggregator.

    ``output`` is None if the branch failed, ``model``, the one that answered, if the run has only one,
    ``asked_model``, if the run has no ``fallback``, and ``sample``, if it has one of each. ``group`` is
    empty if the run has no groups, and ``columns`` are those of the row. ``votes`` are those of a branch
    that asked for several answers: see Outcome. ``steps`` are the answers of its steps, where the
    aggregate goes by one.
    """

    index: int
    document: str
    aspect: str | None = None
    model: str | None = None
    asked_model: str | None = None
    sample: int | None = None
    group: str = ""
    output: str | None = None
    votes: dict[str, int] = {}
    columns: dict[str, Cell] = {}
    steps: dict[str, Any] = {}


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a value is that is stored in pieces: see ``fanout.runs.result_values``.

    Attributes:
        form: How it is written: see ``fanout.aggregators.streams``.
        start: Its first byte in all pieces of the result.
        end: The byte behind its last one.
        rows: How many rows it has; 0 of other forms.
    """

    form: Literal["text", "rows", "json"]
    start: int
    end: int
    rows: int = 0


class Aggregate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of an aggregator: text or another JSON value, from branches with an answer.

    Of one that is stored in pieces, ``value`` is None, and ``held`` says where they are. ``coverage`` is
    what is behind it; None in results of earlier versions. ``sources`` are those that it cites; empty
    without ``sources`` in its job.
    """

    value: Any
    succeeded: int = 0
    failed: int = 0
    notes: list[str] = []
    coverage: Coverage | None = None
    held: Held | None = None
    sources: list[Source] = []

    @property
    def exists(self) -> bool:
        """Whether there is a value."""
        return self.value is not None or self.held is not None

    @property
    def problem(self) -> str | None:
        """Why there is none: too little is behind it, or its call failed; else None."""
        return None if self.coverage is None else self.coverage.problem


def ballots(item: Item) -> dict[str, int]:
    """Return the answers of a branch with their votes: one vote, if it asked for one answer.

    Votes for answers that the branch does not name are those of ``""``.
    """
    if item.output is None or not item.votes:
        return {} if item.output is None else {item.output: 1}
    winner, *others = item.votes.items()
    # The winner may be named by its beginning only.
    return {item.output: winner[1], **dict(others)}


LEFT_OUT = "failed and left out"


class Accumulator(Protocol):
    """Takes the branches of one group, in any order, and returns their aggregate.

    The aggregate is that of the branches in input order, however they came. So shards may be
    accumulated apart, and merged. What may be large is kept as records, and not in memory.
    """

    def add(self, item: Item) -> None:
        """Add one branch, failed or not."""

    def merge(self, other: Self) -> None:
        """Add the branches of another accumulator of the same kind, which is not used any more."""

    def result(self) -> Aggregate | Streamed:
        """Return the aggregate of the added branches, once; none may be added any more."""


@runtime_checkable
class Spilling(Protocol):
    """An accumulator that holds more in memory than a few counters."""

    def spill(self) -> None:
        """Make records of what it holds: see ``fanout.aggregators.records``."""


def place(item: Item) -> str:
    """Return the origin of an answer: document, aspect, model, and the sample after the first."""
    model = item.model
    if model is not None and item.asked_model not in {None, model}:
        model = f"{model} in place of {item.asked_model}"
    parts = [
        item.document,
        item.aspect,
        model,
        f"sample {item.sample + 1}" if item.sample else None,
    ]
    return " · ".join(part for part in parts if part)


class NameSample:
    """Counts branches, and keeps the names of the first few in the input."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[int, str]] = []

    def add(self, item: Item) -> None:
        """Count one branch."""
        self.count += 1
        if len(self._first) < _SAMPLE_NAMES or item.index < self._first[-1][0]:
            self._keep([(item.index, place(item))])

    def merge(self, other: NameSample) -> None:
        """Count the branches that another one has counted."""
        self.count += other.count
        self._keep(other._first)

    def _keep(self, names: list[tuple[int, str]]) -> None:
        self._first = heapq.nsmallest(_SAMPLE_NAMES, [*self._first, *names])

    def notes(self, words: str, *, one: str | None = None) -> list[str]:
        """Return one note with the count, the words and the names; none if nothing was counted.

        Args:
            words: The words about these branches.
            one: Those about a single branch, if they differ.
        """
        if self.count == 1 and one is not None:
            words = one
        if not self.count:
            return []
        more = self.count - len(self._first)
        names = ", ".join(name for _, name in self._first) + (f" and {more:,} more" if more else "")
        return [f"{self.count:,} {words}: {names}"]
