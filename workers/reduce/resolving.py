"""The reduce ``resolve``: which values of a field name the same thing.

Equal values are the same without a call. Of those that are alike, a model is asked by pairs, in a stage after
the map; a second stage asks of what holds together by others only. Nothing but the stages holds what was
found: the pairs are found again from the answers, and the verdicts are those of the stages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

from fanout.aggregators import Aggregate
from fanout.aggregators.base import LEFT_OUT
from fanout.core.ids import StageId
from fanout.core.records import Chunk
from fanout.core.units import plural
from fanout.inputs.resolution_prompts import is_same, resolution_prompt
from fanout.policy.resolution import candidates, closing_pairs, grouped
from workers.reduce.coverage import with_coverage
from workers.reduce.items import goes_on
from workers.reduce.made import FirstFailedCalls, Made
from workers.reduce.resolved_values import values_of
from workers.reduce.writing import StageWriter, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.policy.resolution import Candidates, Groups
    from fanout.policy.tournaments import Pair
    from workers.context.worker_context import WorkerContext
    from workers.reduce.resolved_values import Values

__all__ = ["resolve"]

# Different values that are compared with each other; n-grams of more would not fit into memory.
_MOST_VALUES = 100_000


class _Verdicts:
    """What the model says of pairs."""

    def __init__(self, reduce: str) -> None:
        self.calls = FirstFailedCalls(reduce)
        self.of: dict[Pair, bool | None] = {}
        self.failed = 0

    def add(self, pair: Pair, outcome: Outcome, group: str) -> None:
        if outcome.output is not None:
            self.of[pair] = is_same(outcome.output)
            return
        self.of[pair] = None
        self.failed += 1
        self.calls.add(outcome, group)

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate, or None: no call had an answer, or the budget had no room for some."""
        if not self.failed or not (self.calls.over_budget or self.failed == len(self.of)):
            return None
        pairs = plural(self.failed, "pair of values", "pairs of values")
        return f"no aggregate could be made: {pairs} could not be compared: {self.calls.why}"


def resolve(
    context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec, reduce: Reduce
) -> Made | None:
    """Write the next pairs, and return None; or return what the reduce comes to.

    Also None if the run is over, or was stopped before all pairs of a stage were written.

    Args:
        context: The worker's process.
        run: The run.
        stage_id: The stage that has ended: the map, or one of pairs.
        spec: The job.
        reduce: The reduce.
    """
    values = values_of(context, StageId(run.run_id, 0), spec, reduce)
    if (problem := values.problem()) is not None:
        return Made((), [], f"no aggregate could be made: {problem}")
    known = values.keys[:_MOST_VALUES]
    last = max(run.base_stage, stage_id.stage)
    # If a run is stopped later, what its calls have come to is kept.
    is_begun = run.halt is not None and last > run.base_stage
    found = candidates(
        [key for _, key in known],
        most=reduce.max_pairs,
        groups=[group for group, _ in known],
        goes_on=None if is_begun else partial(goes_on, context, run),
    )
    if found is None:
        # The run is over, or is reduced anew.
        return None
    verdicts = _Verdicts(reduce.name)
    pairs, stage = found.pairs, run.base_stage
    # The second time, of groups that hold together by others only.
    for _ in range(2):
        if not pairs:
            break
        stage += 1
        round_id = StageId(run.run_id, stage)
        if stage > last:
            _write(context, spec, reduce, values, pairs, round_id)
            return None
        if not _read(context, round_id, reduce, values, pairs, verdicts):
            return None
        if verdicts.problem is not None:
            break
        groups = grouped(len(values.keys), verdicts.of)
        left = reduce.max_pairs - len(verdicts.of)
        pairs = closing_pairs(groups, values.weights, verdicts.of, most=left)
    if verdicts.problem is not None:
        return Made((), verdicts.calls.errors, verdicts.problem)
    groups = grouped(len(values.keys), verdicts.of)
    notes = _notes(reduce, values, found, verdicts, groups)
    made = _aggregates(reduce, values, verdicts, groups, notes)
    return with_coverage(spec, made, values.behind)._replace(errors=verdicts.calls.errors)


def _write(
    context: WorkerContext,
    spec: RunSpec,
    reduce: Reduce,
    values: Values,
    pairs: list[Pair],
    round_id: StageId,
) -> None:
    is_fenced = spec.is_fenced(reduce.model)

    def chunks(since: int) -> Iterator[Chunk]:
        for number, (one, other) in enumerate(pairs[since:], since):
            text = resolution_prompt(
                reduce.by[0],
                values.shown(one),
                values.shown(other),
                reduce.criteria,
                is_fenced=is_fenced,
            )
            yield Chunk(
                text=text, document="", document_index=0, position=number, columns=reduce.columns
            )

    write_all(StageWriter(context, round_id, reduce), chunks)


def _read(
    context: WorkerContext,
    round_id: StageId,
    reduce: Reduce,
    values: Values,
    pairs: list[Pair],
    verdicts: _Verdicts,
) -> bool:
    """Add the verdicts of a stage, in the order of its pairs; return whether all were written."""
    store, done = context.connections.store, 0
    for shard_id in map(round_id.shard, store.shards_of(round_id, reduce=reduce.name)):
        for position, outcome in sorted(store.outcomes(shard_id).items()):
            pair = pairs[done + position]
            verdicts.add(pair, outcome, values.keys[pair.one][0])
        done += len(store.indices(shard_id))
    return done >= len(pairs)


def _aggregates(
    reduce: Reduce, values: Values, verdicts: _Verdicts, groups: Groups, notes: list[str]
) -> list[tuple[str, Aggregate]]:
    """Return the aggregate of each group of branches; the notes about all are with the first."""
    different = Counter(group for group, _ in values.keys)
    asked = Counter(values.keys[pair.one][0] for pair in verdicts.of)
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for numbers in groups.members:
        rows[values.keys[numbers[0]][0]].append(_row(values, numbers))
    made = []
    for group, tally in values.behind.items():
        pairs = plural(asked[group], "pair was", "pairs were")
        own = []
        if not values.is_lacking(group):
            count = plural(different[group], "value differs", "values differ")
            own.append(
                f"{count} in more than case and punctuation; {pairs} compared by {reduce.model}"
            )
        own += notes
        what = f"no text in {reduce.by[0]}"
        own += values.without[group].notes(f"answers have {what}", one=f"answer has {what}")
        own += values.missing[group].notes(LEFT_OUT)
        one = Aggregate(
            value=sorted(rows[group], key=lambda row: -row["count"]),
            succeeded=tally.behind,
            failed=tally.branches - tally.behind,
            notes=own,
        )
        made.append((group, one))
        notes = []
    return made


def _row(values: Values, numbers: list[int]) -> dict[str, Any]:
    """Return the values that name one thing."""
    forms: Counter[str] = Counter()
    for number in numbers:
        forms.update(values.forms[number])
    # Of equal counts, the first in the input.
    members = dict(sorted(forms.items(), key=lambda form: -form[1]))
    return {"value": next(iter(members)), "count": forms.total(), "members": members}


def _notes(
    reduce: Reduce, values: Values, found: Candidates, verdicts: _Verdicts, groups: Groups
) -> list[str]:
    """Return the notes about the comparisons of all groups."""
    notes = []
    if found.left_out:
        pairs = plural(found.left_out, "less alike pair was", "less alike pairs were")
        notes.append(f"{pairs} not compared (max_pairs is {reduce.max_pairs:,})")
    if len(values.keys) > _MOST_VALUES:
        rare = len(values.keys) - _MOST_VALUES
        notes.append(f"the {rare:,} rarest values were compared with no other")
    if verdicts.failed:
        failed = plural(verdicts.failed, "comparison", "comparisons")
        notes.append(
            f"{failed} failed: the values are kept apart, unless others bring them together"
        )
    if groups.contradictions:
        kept = plural(groups.contradictions, "pair is", "pairs are")
        notes.append(f"{kept} kept apart, as the model contradicts itself about their groups")
    if reduce.group_by is None:
        return notes
    return [f"of all groups together: {note}" for note in notes]
