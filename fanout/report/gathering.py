"""Gathering the figures of a run from its branches, one by one, in memory that does not grow."""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.report.durations import Durations
from fanout.report.figures import (
    Answer,
    AttemptRow,
    DocumentFigures,
    ErrorExample,
    ErrorRow,
    Figures,
    Place,
    Tally,
    TokenFigures,
)
from fanout.report.slices import Slice, Slices
from fanout.report.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.latency import Latency
    from fanout.core.records import ErrorKind
    from fanout.runs.results import Output

__all__ = ["gather"]

_EXAMPLES = 3
_SLOWEST = 20
_WORST_DOCUMENTS = 20
_ANSWERS = 10
_NAME_CHARS = 200
_MESSAGE_CHARS = 500
_ANSWER_CHARS = 600


class _Errors:
    """Counts failures, and keeps the first branches with different messages."""

    def __init__(self) -> None:
        self._counts: dict[ErrorKind, int] = {}
        self._different: dict[ErrorKind, list[ErrorExample]] = {}
        self._alike: dict[ErrorKind, list[ErrorExample]] = {}

    def add(self, branch: Output, kind: ErrorKind) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        different = self._different.setdefault(kind, [])
        if len(different) >= _EXAMPLES:
            return
        message = one_line(branch.message or "", _MESSAGE_CHARS)
        example = ErrorExample(branch=_place(branch), message=message)
        alike = self._alike.setdefault(kind, [])
        if all(message != other.message for other in different):
            different.append(example)
        elif len(alike) < _EXAMPLES:
            alike.append(example)

    def rows(self) -> list[ErrorRow]:
        def examples(kind: ErrorKind) -> list[ErrorExample]:
            chosen = (self._different[kind] + self._alike[kind])[:_EXAMPLES]
            return sorted(chosen, key=lambda example: example.branch.index)

        counts = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [ErrorRow(kind=kind, count=n, examples=examples(kind)) for kind, n in counts]


class _Largest:
    """Keeps the items with the largest values; of equals the first ones."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Any]] = []
        self._seen = 0

    def would_take(self, value: float) -> bool:
        return value > 0 and (len(self._heap) < self._most or value > self._heap[0][0])

    def add(self, value: float, item: Any) -> None:
        self._seen += 1
        entry = (value, -self._seen, item)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[Any]:
        return [item for _, _, item in sorted(self._heap, reverse=True)]


class _Spread:
    """Keeps some answers from all over the run: one in so many, and fewer as there are more."""

    def __init__(self) -> None:
        self._kept: list[Answer] = []
        self._every = 1
        self._seen = 0

    def add(self, branch: Output, output: str) -> None:
        if self._seen % self._every == 0:
            shown = one_line(output, _ANSWER_CHARS)
            text = None if branch.text is None else one_line(branch.text, _ANSWER_CHARS)
            self._kept.append(Answer(branch=_place(branch), output=shown, text=text))
        self._seen += 1
        if len(self._kept) > 2 * _ANSWERS:
            self._kept = self._kept[::2]
            self._every *= 2

    def answers(self) -> list[Answer]:
        step = max(1, -(-len(self._kept) // _ANSWERS))
        return self._kept[::step]


class _Documents:
    """Counts documents; the branches of a document follow one another."""

    def __init__(self) -> None:
        self._counts = {"complete": 0, "partial": 0, "failed": 0}
        self._worst = _Largest(_WORST_DOCUMENTS)

    def add(self, tally: Tally) -> None:
        state = "partial" if tally.succeeded and tally.failed else "complete"
        self._counts["failed" if not tally.succeeded else state] += 1
        if self._worst.would_take(tally.failed):
            self._worst.add(tally.failed, tally)

    def figures(self) -> DocumentFigures:
        return DocumentFigures(**self._counts, worst=self._worst.items())


class _Gathering:
    def __init__(self, created_at: float) -> None:
        self._all = Tally(name="")
        self._calls = 0
        self._errors = _Errors()
        self._attempts: dict[int, AttemptRow] = {}
        self._durations = Durations()
        self._over_time = Slices(created_at)
        self._tokens = TokenFigures()
        self._aspects: dict[str, Tally] = {}
        self._documents = _Documents()
        self._slowest = _Largest(_SLOWEST)
        self._answers = _Spread()

    def add_document(self, branches: Iterable[Output]) -> None:
        tally = None
        for branch in branches:
            tally = tally or Tally(name=one_line(branch.document, _NAME_CHARS))
            tally.count(branch)
            self._add(branch)
        if tally is not None:
            self._documents.add(tally)

    def _add(self, branch: Output) -> None:
        self._all.count(branch)
        self._calls += branch.attempts
        if branch.aspect is not None:
            self._aspects.setdefault(branch.aspect, Tally(name=branch.aspect)).count(branch)
        if branch.kind is not None:
            self._errors.add(branch, branch.kind)
        elif branch.output is not None:
            self._answers.add(branch, branch.output)
        self._add_attempts(branch)
        self._over_time.add(branch.ended_at, _as_slice(branch))
        if branch.attempts:
            self._durations.add(branch.elapsed_s, failed=branch.kind is not None)
            self._add_usage(branch)
            if self._slowest.would_take(branch.elapsed_s):
                self._slowest.add(branch.elapsed_s, _place(branch))

    def _add_attempts(self, branch: Output) -> None:
        row = self._attempts.setdefault(branch.attempts, AttemptRow(attempts=branch.attempts))
        if branch.kind is None:
            row.succeeded += 1
        else:
            row.failed += 1

    def _add_usage(self, branch: Output) -> None:
        tokens, usage = self._tokens, branch.usage
        # A call that failed is seldom known to have consumed anything: that leaves no sum unknown.
        if branch.kind is None:
            tokens.answered += 1
            tokens.known += None not in {usage.input_tokens, usage.output_tokens}
            tokens.priced += usage.cost_usd is not None
        tokens.input_tokens += usage.input_tokens or 0
        tokens.output_tokens += usage.output_tokens or 0
        tokens.cost_usd += usage.cost_usd or 0.0

    def figures(self) -> Figures:
        return Figures(
            succeeded=self._all.succeeded,
            failed=self._all.failed,
            calls=self._calls,
            errors=self._errors.rows(),
            attempts=sorted(self._attempts.values(), key=lambda row: row.attempts),
            durations=self._durations.figures(),
            over_time=self._over_time.figures(),
            tokens=self._tokens,
            aspects=list(self._aspects.values()),
            documents=self._documents.figures(),
            slowest=self._slowest.items(),
            answers=self._answers.answers(),
        )


def gather(
    outcomes: Iterable[Output], *, created_at: float, latency: Latency | None = None
) -> Figures:
    """Return the figures of branches that are given in input order, one at a time.

    Args:
        outcomes: The branches that have ended; each is read once and not kept.
        created_at: When the run was submitted, in seconds since the epoch.
        latency: The durations in the status of the run: the figures have its percentiles, as all
            commands do. With None they have those of the branches.
    """
    gathering = _Gathering(created_at)
    for _, branches in groupby(outcomes, key=lambda branch: branch.document_index):
        gathering.add_document(branches)
    figures = gathering.figures()
    if latency is None or not latency.count:
        return figures
    percentiles = {f"p{share:.0f}_s": latency.percentile_s(share / 100) for share in (50, 90, 99)}
    durations = msgspec.structs.replace(figures.durations, **percentiles)
    return msgspec.structs.replace(figures, durations=durations)


def _place(branch: Output) -> Place:
    return Place(
        index=branch.index,
        document=one_line(branch.document, _NAME_CHARS),
        aspect=branch.aspect,
        sample=branch.sample,
        attempts=branch.attempts,
        elapsed_s=branch.elapsed_s,
        kind=branch.kind,
    )


def _as_slice(branch: Output) -> Slice:
    is_ok = branch.kind is None
    return Slice(
        succeeded=int(is_ok),
        failed=int(not is_ok),
        input_tokens=branch.usage.input_tokens or 0,
        output_tokens=branch.usage.output_tokens or 0,
    )
