"""The evaluation of a run: its answers against labels, by model, prompt and field.

It takes the branches one by one, in input order, in bounded memory. The unit is the document:
intervals and tests take documents as independent, and not several answers to one.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fanout.core.errors import SpecError
from fanout.core.labels import WHOLE, compared, label_columns
from fanout.core.units import plural
from fanout.policy.metrics import holm, sign_test
from fanout.runs.answer_terms import Terms
from fanout.runs.evaluation_result import Comparison, Evaluation, VariantEvaluation
from fanout.runs.step_outputs import output_of_step
from fanout.runs.variant_scores import VariantCounter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fanout.core.spec import RunSpec
    from fanout.policy.confusion import Term
    from fanout.runs.branch_output import Output

__all__ = ["Evaluator", "evaluate", "evaluate_by"]

# More variants than this are not compared with each other.
_MOST_COMPARED = 20
_SHOWN_LABELS = 5


class _Variant(NamedTuple):
    aspect: int
    model: int


class _FieldCounter:
    """Counts the branches of all variants for one field of their answers."""

    def __init__(self, spec: RunSpec, field: str, column: str) -> None:
        self.field = field
        self._column = column
        self._terms = Terms(spec, field)
        self._step = compared(spec, field).step
        choices = self._terms.choices
        variants = spec.variants
        self._choices = {one.key for one in choices}
        self.counters = {
            _Variant(aspect, model): VariantCounter(choices)
            for aspect in range(len(variants.aspects))
            for model in range(len(variants.models))
        }
        self._is_compared = 1 < len(self.counters) <= _MOST_COMPARED
        self._better: dict[tuple[_Variant, _Variant], int] = {}
        self.documents = self.unlabelled = 0
        self._label: Term | None = None
        self._scores: dict[_Variant, tuple[int, int]] = {}
        self._unknown: dict[str, int] = {}
        self._more_unknown = 0
        # Wrong answers that are objects, and the fields of the first.
        self._objects = 0
        self._fields: tuple[str, ...] = ()

    def begin(self, first: Output) -> None:
        """Begin a document, of which this is the first branch."""
        self.end()
        self._label = self._terms.label(first.columns.get(self._column))
        if self._label is None:
            self.unlabelled += 1
            return
        self.documents += 1
        if self._choices and self._label.key not in self._choices:
            self._note_unknown(self._label)

    def add(self, variant: _Variant, branch: Output) -> None:
        """Count a branch of the document."""
        if self._label is None:
            return
        branch = branch if self._step is None else output_of_step(branch, self._step)
        answer = None if branch.kind is not None else self._terms.answer(branch.value)
        is_right = self.counters[variant].add(self._label, answer, branch)
        if not is_right and answer is not None and (fields := self._terms.fields(branch.value)):
            self._objects += 1
            self._fields = self._fields or fields
        right, count = self._scores.get(variant, (0, 0))
        self._scores[variant] = right + is_right, count + 1

    def end(self) -> None:
        """Compare the variants on the document, if there is one."""
        for variant in self._scores:
            self.counters[variant].documents += 1
        if self._is_compared:
            self._compare(self._scores)
        self._scores = {}

    def _note_unknown(self, label: Term) -> None:
        if label.text in self._unknown or len(self._unknown) < _SHOWN_LABELS:
            self._unknown[label.text] = self._unknown.get(label.text, 0) + 1
        else:
            self._more_unknown += 1

    def _compare(self, scores: Mapping[_Variant, tuple[int, int]]) -> None:
        for one, (right, count) in scores.items():
            for other, (other_right, other_count) in scores.items():
                if right * other_count > other_right * count:
                    pair = one, other
                    self._better[pair] = self._better.get(pair, 0) + 1

    def comparisons(self, first: int) -> Iterator[Comparison]:
        """Yield the comparisons; ``first`` is the position of the field's first variant."""
        if not self._is_compared:
            return
        ordered = list(self.counters)
        for at, one in enumerate(ordered):
            for further, other in enumerate(ordered[at + 1 :], at + 1):
                better = self._better.get((one, other), 0)
                worse = self._better.get((other, one), 0)
                yield Comparison(
                    first=first + at,
                    second=first + further,
                    first_better=better,
                    second_better=worse,
                    p_value=sign_test(better, worse),
                    p_corrected=1.0,
                )

    def notes(self) -> Iterator[str]:
        """Yield what a reader should know."""
        if self.unlabelled:
            documents = plural(self.unlabelled, "document", "documents")
            yield f"not evaluated: {documents} without a label in {self._column!r}"
        if self._unknown:
            count = sum(self._unknown.values()) + self._more_unknown
            listed = ", ".join(map(repr, self._unknown)) + (", ..." if self._more_unknown else "")
            labels = plural(count, "label", "labels")
            yield f"{labels} in {self._column!r} can never be right, being none of the choices: {listed}"
        if self._objects:
            column, known = self._column, self._fields
            field = column if column in known else known[0]
            objects = plural(
                self._objects, "wrong answer is an object", "wrong answers are objects"
            )
            yield (
                f"{objects}, compared as a whole with {column!r}: --label {field}={column} compares a field "
                f"of it (there are: {', '.join(known[:_SHOWN_LABELS])})"
            )
        if any(one.has_too_many_labels for one in self.counters.values()):
            yield f"{self._column!r} has too many different labels for F1: see the accuracy"
        if len(self.counters) > _MOST_COMPARED:
            yield f"more than {_MOST_COMPARED} variants are not compared with each other"


class Evaluator:
    """Evaluates branches that come in input order.

    Args:
        spec: The job, with labels.

    Raises:
        SpecError: The labels do not fit the answers.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._labels = label_columns(spec)
        self._variants = spec.variants
        self._models = spec.variants.models
        self._fields = [_FieldCounter(spec, *one) for one in self._labels.items()]
        self._document = -1
        self._columns: set[str] = set()

    def observed(self, branches: Iterable[Output]) -> Iterator[Output]:
        """Yield branches that come in input order, and count each."""
        for branch in branches:
            self.add(branch)
            yield branch

    def add(self, branch: Output) -> None:
        """Count a branch; those of one document come together."""
        if branch.document_index != self._document:
            self._document = branch.document_index
            self._columns.update(branch.columns)
            for field in self._fields:
                field.begin(branch)
        rest = branch.index // self._variants.samples
        rest, model = divmod(rest, len(self._models))
        variant = _Variant(rest % len(self._variants.aspects), model)
        for field in self._fields:
            field.add(variant, branch)

    def require_columns(self) -> None:
        """Check that a document had each column. Raises SpecError."""
        for column in self._labels.values():
            if column not in self._columns:
                near = get_close_matches(column, self._columns, n=1)
                hint = f" did you mean {near[0]}?" if near else ""
                known = ", ".join(sorted(self._columns)) or "none"
                raise SpecError(
                    f"there is no column {column!r};{hint} known: {known}", field="labels"
                )

    def result(self) -> Evaluation:
        """Return the evaluation of the branches so far."""
        variants: list[VariantEvaluation] = []
        comparisons: list[Comparison] = []
        for field in self._fields:
            field.end()
            comparisons += field.comparisons(len(variants))
            for variant, counter in field.counters.items():
                variants.append(
                    VariantEvaluation(
                        model=self._models[variant.model],
                        aspect=self._variants.aspects[variant.aspect],
                        field=field.field or None,
                        **counter.figures(),
                    )
                )
        return Evaluation(
            labels={**self._labels},
            documents=max((field.documents for field in self._fields), default=0),
            unlabelled=min((field.unlabelled for field in self._fields), default=0),
            variants=variants,
            comparisons=_corrected(comparisons),
            notes=[*(note for field in self._fields for note in field.notes()), *self._of_cache()],
        )

    def _of_cache(self) -> Iterator[str]:
        cached = max(sum(one.cached for one in field.counters.values()) for field in self._fields)
        if cached:
            answers = plural(cached, "answer is", "answers are")
            yield f"{answers} from the cache: tokens and cost are those of when they were made"


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    values = holm([one.p_value for one in comparisons])
    corrected = [
        msgspec.structs.replace(one, p_corrected=value)
        for one, value in zip(comparisons, values, strict=True)
    ]
    return sorted(corrected, key=lambda one: one.p_value)


def evaluate(spec: RunSpec, branches: Iterable[Output]) -> Evaluation | None:
    """Return the evaluation of branches in input order; None if the job has no labels.

    Args:
        spec: The job.
        branches: Each is read once and not kept.
    """
    if not spec.labels:
        return None
    evaluator = Evaluator(spec)
    for branch in branches:
        evaluator.add(branch)
    return evaluator.result()


def evaluate_by(
    labels: str | Mapping[str, str], spec: RunSpec, branches: Iterable[Output]
) -> Evaluation:
    """Return the evaluation of branches in input order by other labels than those of the job.

    Args:
        labels: The column of the labels, or a mapping of fields of the answer to columns.
        spec: The job.
        branches: Each is read once and not kept.

    Raises:
        SpecError: The labels do not fit the answers, or no document has such a column.
    """
    columns = {WHOLE: labels} if isinstance(labels, str) else dict(labels)
    evaluator = Evaluator(spec.model_copy(update={"labels": columns}))
    for branch in branches:
        evaluator.add(branch)
    evaluator.require_columns()
    return evaluator.result()
