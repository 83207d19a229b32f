"""The seam to aggregation: branches in, one value out."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from fanout.core.records import ErrorKind  # noqa: TC001 - msgspec reads the annotation

__all__ = ["Accumulator", "Aggregate", "Item", "Named", "place"]

_NAMED = 10


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One branch as an aggregator sees it.

    Attributes:
        index: The index of the branch in the run.
        document: The document's name.
        chunk: The index of its chunk in the run.
        aspect: The name of its prompt, or None.
        sample: 0-based number of the sample.
        group: The group that it belongs to; empty where the run has no groups.
        output: The answer, or None where the branch failed.
        kind: Why it failed, or None.
    """

    index: int
    document: str
    chunk: int
    aspect: str | None = None
    sample: int = 0
    group: str = ""
    output: str | None = None
    kind: ErrorKind | None = None


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """What an aggregator made.

    Attributes:
        value: The aggregate: text, or anything that JSON can say.
        succeeded: How many branches had an answer.
        failed: How many had none.
        notes: What a reader of the value should know.
    """

    value: Any
    succeeded: int = 0
    failed: int = 0
    notes: list[str] = []


class Accumulator(Protocol):
    """Takes the branches of one group, in input order, and gives their aggregate."""

    def add(self, item: Item) -> None:
        """Take one branch, failed or not."""

    def result(self) -> Aggregate:
        """Return the aggregate of what was taken."""


def place(item: Item) -> str:
    """Return where an answer is from: document, aspect, and the sample behind the first."""
    parts = [item.document, item.aspect, f"sample {item.sample + 1}" if item.sample else None]
    return " · ".join(part for part in parts if part)


class Named:
    """How many there are of something, and the names of the first few."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, name: str) -> None:
        """Count one."""
        self.count += 1
        if len(self._first) < _NAMED:
            self._first.append(name)

    def __str__(self) -> str:
        more = self.count - len(self._first)
        return ", ".join(self._first) + (f" and {more:,} more" if more else "")
