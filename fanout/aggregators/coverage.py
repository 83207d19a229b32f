"""What an aggregate is made of: the documents, chunks and branches behind it, and what it lacks.

Branches are counted in input order, so that a document or chunk is counted once, however many branches
it has: it follows another one, or is the same. So counts of neighbouring branches can be added, and a
node of a tree needs only those of its parts.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.units import exact_percent, percent, plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.records import ErrorKind

__all__ = [
    "Coverage",
    "CoverageCounter",
    "ScatteredTallies",
    "Tally",
    "TallyCounter",
    "lacking",
    "missing_words",
]


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """What an aggregate is made of.

    Attributes:
        documents: The documents that have a branch in its group.
        documents_behind: Those of which an answer is behind it.
        chunks: The chunks that have a branch in its group.
        chunks_behind: Those of which an answer is behind it.
        branches: The branches of its group.
        branches_behind: Those whose answer is behind it.
        missing: The branches that failed, by kind.
        lost: The answers that a failed call of the reduce was to take in, by the kind of its failure.
        truncated: The answers that were cut off at their limit of tokens, and kept; those of the reduce
            count, too.
        cut: The answers, and partial results of the reduce, of which only a beginning fitted a prompt.
        problem: Why there is no aggregate: too few branches are behind it, or its call failed; else None.
    """

    documents: int = 0
    documents_behind: int = 0
    chunks: int = 0
    chunks_behind: int = 0
    branches: int = 0
    branches_behind: int = 0
    missing: dict[str, int] = {}
    lost: dict[str, int] = {}
    truncated: int = 0
    cut: int = 0
    problem: str | None = None

    @property
    def share(self) -> float:
        """The share of branches behind it, 0 to 1; 0 without branches."""
        return self.branches_behind / self.branches if self.branches else 0.0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing, and nothing was cut."""
        return self.branches_behind == self.branches and not self.truncated and not self.cut

    @property
    def words(self) -> str:
        """What is behind it and what is missing, in one line."""
        branches = plural(self.branches, "branch", "branches")
        documents = plural(self.documents, "document", "documents")
        share = percent(self.branches_behind, self.branches) or "0.0%"
        behind = f"{self.branches_behind:,} of {branches} ({share})"
        parts = [f"{behind}, {self.documents_behind:,} of {documents}"]
        if self.missing:
            parts.append(f"failed: {_kinds(self.missing)}")
        if self.lost:
            parts.append(f"lost with failed calls of the reduce: {_kinds(self.lost)}")
        if self.truncated:
            parts.append(f"{self.truncated:,} cut off at a limit of tokens")
        if self.cut:
            parts.append(f"{self.cut:,} shown in part")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {"share": self.share, **msgspec.to_builtins(self)}


class Tally(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Counts of neighbouring branches of a group; spans are count, first and last value."""

    branches: int = 0
    behind: int = 0
    documents: tuple[int, int, int] = (0, -1, -1)
    documents_behind: tuple[int, int, int] = (0, -1, -1)
    chunks: tuple[int, int, int] = (0, -1, -1)
    chunks_behind: tuple[int, int, int] = (0, -1, -1)
    missing: dict[str, int] = {}
    lost: dict[str, int] = {}
    truncated: int = 0
    cut: int = 0

    @classmethod
    def of(
        cls, *, document: int, chunk: int, kind: ErrorKind | None, is_cut: bool = False
    ) -> Tally:
        """Return the counts of one branch.

        Args:
            document: The position of its document in the input.
            chunk: The stage-wide index of its chunk.
            kind: Why it failed; None if it has an answer.
            is_cut: Whether its answer was cut off at a limit of tokens.
        """
        one, other = (1, document, document), (1, chunk, chunk)
        if kind is not None:
            return cls(1, 0, one, _NONE, other, _NONE, {kind.value: 1})
        return cls(1, 1, one, one, other, other, truncated=int(is_cut))

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Return the counts of neighbours together."""
        counter = TallyCounter()
        for one in tallies:
            counter.add(one)
        return counter.tally()

    def with_cuts(self, *, truncated: int = 0, cut: int = 0) -> Tally:
        """Return it with more answers that were cut off at their limit, or shown in part."""
        if not truncated and not cut:
            return self
        return msgspec.structs.replace(
            self, truncated=self.truncated + truncated, cut=self.cut + cut
        )

    def without_answers(self, kind: ErrorKind) -> Tally:
        """Return it with all its answers lost: the call that was to take them in has failed."""
        lost = Counter(self.lost)
        lost[kind.value] += self.behind
        return msgspec.structs.replace(
            self, behind=0, documents_behind=_NONE, chunks_behind=_NONE, lost=dict(+lost),
            truncated=0, cut=0,
        )  # fmt: skip

    def coverage(self, problem: str | None = None) -> Coverage:
        """Return what an aggregate of these branches is made of."""
        return Coverage(
            documents=self.documents[0],
            documents_behind=self.documents_behind[0],
            chunks=self.chunks[0],
            chunks_behind=self.chunks_behind[0],
            branches=self.branches,
            branches_behind=self.behind,
            missing=dict(sorted(self.missing.items())),
            lost=dict(sorted(self.lost.items())),
            truncated=self.truncated,
            cut=self.cut,
            problem=problem,
        )


_NONE = (0, -1, -1)
# A span that is the neighbour of none.
_ALONE = (1, -1, -2)


class TallyCounter:
    """Adds the counts of neighbours, in input order."""

    __slots__ = ("_behind", "_branches", "_cut", "_lost", "_missing", "_spans", "_truncated")

    def __init__(self) -> None:
        self._branches = self._behind = self._truncated = self._cut = 0
        self._spans = [_NONE] * 4
        self._missing: dict[str, int] = {}
        self._lost: dict[str, int] = {}

    def add(self, one: Tally) -> None:
        """Add counts that follow those that were added."""
        self._branches += one.branches
        self._behind += one.behind
        self._truncated += one.truncated
        self._cut += one.cut
        spans = (one.documents, one.documents_behind, one.chunks, one.chunks_behind)
        self._spans = [_joined(*both) for both in zip(self._spans, spans, strict=True)]
        for kind, count in one.missing.items():
            self._missing[kind] = self._missing.get(kind, 0) + count
        for kind, count in one.lost.items():
            self._lost[kind] = self._lost.get(kind, 0) + count

    def tally(self) -> Tally:
        """Return the counts together."""
        documents, documents_behind, chunks, chunks_behind = self._spans
        return Tally(
            self._branches,
            self._behind,
            documents,
            documents_behind,
            chunks,
            chunks_behind,
            dict(self._missing),
            dict(self._lost),
            self._truncated,
            self._cut,
        )


def _joined(before: tuple[int, int, int], after: tuple[int, int, int]) -> tuple[int, int, int]:
    if not before[0] or not after[0]:
        return after if after[0] else before
    is_same = before[2] == after[1]
    return before[0] + after[0] - is_same, before[1], after[2]


class ScatteredTallies:
    """Makes the counts of branches, which come in input order, such that they may be added in any order.

    A document, or chunk, counts with its first branch, and as behind with the first one that has an answer.
    So the sums are right, unless a call is lost that was to take in the first, but not all, of its answers:
    then it counts as not behind.
    """

    def __init__(self) -> None:
        self._last = [-1] * 4

    def of(self, one: Tally) -> Tally:
        """Return the counts of a branch."""
        spans = [one.documents, one.documents_behind, one.chunks, one.chunks_behind]
        for at, (count, place, _) in enumerate(spans):
            is_new = count > 0 and place != self._last[at]
            spans[at] = _ALONE if is_new else _NONE
            if count:
                self._last[at] = place
        return msgspec.structs.replace(
            one,
            documents=spans[0],
            documents_behind=spans[1],
            chunks=spans[2],
            chunks_behind=spans[3],
        )


class CoverageCounter:
    """Counts the branches of each group, which come in input order."""

    def __init__(self) -> None:
        self._groups: dict[str, TallyCounter] = {}

    def add(self, group: str, one: Tally) -> None:
        """Count a branch."""
        counter = self._groups.get(group)
        if counter is None:
            counter = self._groups[group] = TallyCounter()
        counter.add(one)

    def tallies(self) -> dict[str, Tally]:
        """Return the counts of each group, in the order in which the groups first appear."""
        return {group: counter.tally() for group, counter in self._groups.items()}


def lacking(tally: Tally, least: float) -> str | None:
    """Return why there is no aggregate if too few branches are behind it; None if enough are.

    Args:
        tally: The branches of its group.
        least: The share of them that must be behind it, 0 to 1.
    """
    if tally.behind >= least * tally.branches:
        return None
    return f"too little is behind it (min_group_success is {exact_percent(least)}): {tally.coverage().words}"


def missing_words(tally: Tally) -> list[str]:
    """Return what the prompt of a node says of what is missing: one sentence for each thing."""
    words = []
    left = tally.branches - tally.behind
    if left:
        kinds = _kinds(Counter(tally.missing) + Counter(tally.lost))
        words.append(f"{left:,} of {tally.branches:,} answers are missing, by reason: {kinds}.")
    if tally.truncated:
        words.append(
            f"{plural(tally.truncated, 'text', 'texts')} ended early, at a limit of length."
        )
    if tally.cut:
        words.append(f"Of {plural(tally.cut, 'text', 'texts')} only a beginning is shown.")
    return words


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
