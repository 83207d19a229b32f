"""The collection of a run's figures from its branches, one by one, in bounded memory."""

from __future__ import annotations

import heapq
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.cells import cell_text
from fanout.core.redaction import redacted
from fanout.report.durations import DurationCounter
from fanout.report.examples import (
    NAME_CHARS,
    RejectionCounter,
    shown_branch,
    shown_passages,
    shown_steps,
)
from fanout.report.figures import (
    Answer,
    AttemptRow,
    DocumentFigures,
    ErrorExample,
    ErrorRow,
    Figures,
    Tally,
    TokenFigures,
)
from fanout.report.models import ModelCounter
from fanout.report.slices import Slice, SliceCounter
from fanout.report.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.latency import Latency
    from fanout.core.records import ErrorKind
    from fanout.core.usage import Usage
    from fanout.report.durations import DurationFigures
    from fanout.runs.branch_output import Output

__all__ = ["gather"]

_EXAMPLES = 3
_SLOWEST = 20
_WORST_DOCUMENTS = 20
_ANSWERS = 10
_MESSAGE_CHARS = 500
_ANSWER_CHARS = 600


class _ErrorCounter:
    """Counts failures, and keeps the first branches with different messages as examples."""

    def __init__(self) -> None:
        self._counts: dict[ErrorKind, int] = {}
        self._distinct: dict[ErrorKind, list[ErrorExample]] = {}
        self._repeated: dict[ErrorKind, list[ErrorExample]] = {}

    def add(self, branch: Output[Any], kind: ErrorKind) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        distinct = self._distinct.setdefault(kind, [])
        if len(distinct) >= _EXAMPLES:
            return
        message = one_line(branch.message or "", _MESSAGE_CHARS)
        steps = shown_steps(branch)
        example = ErrorExample(branch=shown_branch(branch), message=message, steps=steps)
        repeated = self._repeated.setdefault(kind, [])
        if all(message != other.message for other in distinct):
            distinct.append(example)
        elif len(repeated) < _EXAMPLES:
            repeated.append(example)

    def rows(self) -> list[ErrorRow]:
        def examples(kind: ErrorKind) -> list[ErrorExample]:
            chosen = (self._distinct[kind] + self._repeated[kind])[:_EXAMPLES]
            return sorted(chosen, key=lambda example: example.branch.index)

        counts = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [ErrorRow(kind=kind, count=n, examples=examples(kind)) for kind, n in counts]


class _Largest:
    """Keeps the items with the largest values; of equal ones the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Any]] = []
        self._added = 0

    def would_take(self, value: float) -> bool:
        return value > 0 and (len(self._heap) < self._most or value > self._heap[0][0])

    def add(self, value: float, item: Any) -> None:
        self._added += 1
        entry = (value, -self._added, item)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def items(self) -> list[Any]:
        return [item for _, _, item in sorted(self._heap, reverse=True)]


class _AnswerSample:
    """Keeps an evenly spaced sample of the answers: every n-th one, where n grows with the run."""

    def __init__(self) -> None:
        self._sample: list[Answer] = []
        self._every = 1
        self._count = 0

    def add(self, branch: Output[Any], output: str) -> None:
        if self._count % self._every == 0:
            shown = one_line(output, _ANSWER_CHARS)
            # The chunk of a run that reads names the URL of a document.
            text = None if branch.text is None else redacted(one_line(branch.text, _ANSWER_CHARS))
            self._sample.append(
                Answer(
                    branch=shown_branch(branch),
                    output=shown,
                    text=text,
                    passages=shown_passages(branch),
                )
            )
        self._count += 1
        if len(self._sample) > 2 * _ANSWERS:
            self._sample = self._sample[::2]
            self._every *= 2

    def answers(self) -> list[Answer]:
        step = max(1, -(-len(self._sample) // _ANSWERS))
        return self._sample[::step]


class _DocumentCounter:
    """Counts documents by how their branches ended."""

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


def _is_known(usage: Usage, name: str) -> bool:
    return getattr(usage, name) is not None or usage.known(name) > 0


class _FigureCollector:
    """Collects all figures of a run; the branches of a document come together."""

    def __init__(self, created_at: float) -> None:
        self._models = ModelCounter()
        self._all = Tally(name="")
        self._calls = self._repeated = 0
        self._errors = _ErrorCounter()
        self._attempts: dict[int, AttemptRow] = {}
        self._durations = DurationCounter()
        self._over_time = SliceCounter(created_at)
        self._tokens = TokenFigures()
        self._aspects: dict[str, Tally] = {}
        self._documents = _DocumentCounter()
        self._slowest = _Largest(_SLOWEST)
        self._answers = _AnswerSample()
        self._rejections = RejectionCounter()

    def add_document(self, branches: Iterable[Output[Any]]) -> None:
        tally = None
        for branch in branches:
            tally = tally or Tally(name=one_line(branch.document, NAME_CHARS))
            tally.count(branch)
            self._add(branch)
        if tally is not None:
            self._documents.add(tally)

    def _add(self, branch: Output[Any]) -> None:
        self._all.count(branch)
        self._models.add(branch)
        self._calls += branch.attempts
        # The answers of a vote and those of steps are questions of their own.
        asked = sum(step.attempts > 0 for step in branch.step_records) or branch.samples or 1
        self._repeated += max(0, branch.attempts - asked)
        if branch.is_rejected is not None:
            self._rejections.add(branch)
        if branch.aspect is not None:
            self._aspects.setdefault(branch.aspect, Tally(name=branch.aspect)).count(branch)
        if branch.kind is not None:
            self._errors.add(branch, branch.kind)
        else:
            self._answers.add(branch, cell_text(branch.value))
        self._add_attempts(branch)
        self._over_time.add(branch.ended_at, _as_slice(branch))
        if branch.attempts:
            self._add_usage(branch)
        if branch.has_latency:
            self._durations.add(branch.elapsed_s, failed=branch.kind is not None)
            if self._slowest.would_take(branch.elapsed_s):
                self._slowest.add(branch.elapsed_s, shown_branch(branch))

    def _add_attempts(self, branch: Output[Any]) -> None:
        row = self._attempts.setdefault(branch.attempts, AttemptRow(attempts=branch.attempts))
        if branch.kind is None:
            row.succeeded += 1
        else:
            row.failed += 1

    def _add_usage(self, branch: Output[Any]) -> None:
        tokens, usage = self._tokens, branch.usage
        if branch.kind is None:
            tokens.answered += 1
            # Of an answer whose branch gave up another call, that of the answer is known.
            tokens.known += all(_is_known(usage, one) for one in ("input_tokens", "output_tokens"))
            tokens.priced += _is_known(usage, "cost_usd")
        tokens.input_tokens += int(usage.known("input_tokens"))
        tokens.output_tokens += int(usage.known("output_tokens"))
        tokens.cost_usd += usage.known("cost_usd")

    def figures(self) -> Figures:
        return Figures(
            succeeded=self._all.succeeded,
            failed=self._all.failed,
            calls=self._calls,
            repeated=self._repeated,
            errors=self._errors.rows(),
            attempts=sorted(self._attempts.values(), key=lambda row: row.attempts),
            durations=self._durations.figures(),
            over_time=self._over_time.figures(),
            tokens=self._tokens,
            aspects=list(self._aspects.values()),
            models=self._models.figures(),
            documents=self._documents.figures(),
            slowest=self._slowest.items(),
            answers=self._answers.answers(),
            rejections=self._rejections.figures(),
        )


def gather(
    outcomes: Iterable[Output[Any]], *, created_at: float, latency: Latency | None = None
) -> Figures:
    """Return the figures of branches that come in input order.

    Args:
        outcomes: The branches that have ended; each is read once and not kept.
        created_at: When the run was submitted, in seconds since the epoch.
        latency: The durations in the status of the run. The figures then have its percentiles, as
            in all commands; with None, they have those of the branches.
    """
    collector = _FigureCollector(created_at)
    for _, branches in groupby(outcomes, key=lambda branch: branch.document_index):
        collector.add_document(branches)
    figures = collector.figures()
    if latency is None or not latency.count:
        return figures
    durations = figures.durations
    percentiles = {f"p{share}_s": latency.percentile_s(share / 100) for share in (50, 90, 99)}
    percentiles = {name: _within(durations, value) for name, value in percentiles.items()}
    durations = msgspec.structs.replace(durations, **percentiles)
    return msgspec.structs.replace(figures, durations=durations)


def _within(durations: DurationFigures, seconds: float | None) -> float | None:
    """Return a percentile of the status, which is rough, within the durations that the page lists."""
    if seconds is None or durations.least_s is None or durations.most_s is None:
        return seconds
    return min(max(seconds, durations.least_s), durations.most_s)


def _as_slice(branch: Output[Any]) -> Slice:
    is_ok = branch.kind is None
    return Slice(
        succeeded=int(is_ok),
        failed=int(not is_ok),
        input_tokens=branch.usage.input_tokens or 0,
        output_tokens=branch.usage.output_tokens or 0,
    )
