"""The values that ``resolve`` compares: those of a field of the answers of a run, by groups."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators import CoverageCounter, Fields, Tally, lacking
from fanout.aggregators.base import NameSample
from fanout.aggregators.parts import answer_value
from fanout.core.records import RunStatus
from fanout.core.units import plural
from fanout.policy.resolution import normal
from fanout.system.logs import about
from workers.reduce.items import branches, item_of, shard_branches, tally_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.aggregators import Item
    from fanout.aggregators.parts import PartReader
    from fanout.core.ids import ShardId, StageId
    from fanout.core.records import Chunk, Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["Values", "require_field", "values_of"]

_log = logging.getLogger(__name__)
# So many answers show whether answers have a field.
_ENOUGH = 20


class Values:
    """The different values of the answers of a run, with how often each is written in which way.

    Args:
        spec: The job.
        reduce: The reduce.

    Attributes:
        behind: What is behind the aggregate of each group, in the order of their first appearance.
        keys: The group and the normal form of each value, the most frequent first; of equal ones, the first
            in the input. Groups with too little behind their aggregate have none.
        forms: How often each is written in which way.
        weights: How often each is there.
        missing: The branches without an answer, by group.
        without: Those whose answer has no value, by group.
    """

    def __init__(self, spec: RunSpec, reduce: Reduce) -> None:
        self._spec = spec
        self._reduce = reduce
        self._fields = Fields(
            schema=spec.answer_schema,
            choices=spec.answer_choices,
            model=spec.model,
            steps=spec.step_names,
        )
        self._reader: PartReader = self._fields.reader(reduce.by[0])
        self._forms: dict[tuple[str, str], Counter[str]] = {}
        self._answers = self._with_field = self._with_fields = 0
        self._coverage = CoverageCounter()
        self.behind: dict[str, Tally] = {}
        self.keys: list[tuple[str, str]] = []
        self.forms: list[Counter[str]] = []
        self.weights: list[int] = []
        self.missing: defaultdict[str, NameSample] = defaultdict(NameSample)
        self.without: defaultdict[str, NameSample] = defaultdict(NameSample)

    def add_all(self, found: Iterable[tuple[Chunk, Outcome]]) -> None:
        """Count the values of branches, which come in the order of the input."""
        for chunk, outcome in found:
            item = item_of(self._spec, self._reduce, chunk, outcome)
            self._coverage.add(item.group, tally_of(self._spec, chunk, outcome))
            self._add(item)
        self._order()

    def _add(self, item: Item) -> None:
        """Count the values of a branch; one that it has twice counts once."""
        if item.output is None:
            self.missing[item.group].add(item)
            return
        answer = answer_value(item.output, self._fields)
        self._answers += 1
        self._with_field += self._reader.is_in(item, answer)
        self._with_fields += isinstance(answer, dict | list)
        found = self._reader.values(item, answer)
        texts = [text for text in map(_text, found) if text]
        if len(texts) < max(1, len(found)):
            self.without[item.group].add(item)
        firsts: dict[str, str] = {}
        for text in texts:
            firsts.setdefault(normal(text), text)
        for key, text in firsts.items():
            self._forms.setdefault((item.group, key), Counter())[text] += 1

    def _order(self) -> None:
        self.behind = self._coverage.tallies()
        is_lacking = set(filter(self.is_lacking, self.behind))
        rows = [row for row in self._forms.items() if row[0][0] not in is_lacking]
        rows.sort(key=lambda row: -row[1].total())
        self.keys = [key for key, _ in rows]
        self.forms = [forms for _, forms in rows]
        self.weights = [forms.total() for forms in self.forms]

    def is_lacking(self, group: str) -> bool:
        """Whether too little is behind the aggregate of a group: its values are not looked at."""
        return lacking(self.behind[group], self._spec.min_group_success) is not None

    def shown(self, number: int) -> str:
        """Return a value as it is written most often; of equal ones, as it is written first."""
        return self.forms[number].most_common(1)[0][0]

    @property
    def may_have_field(self) -> bool:
        """Whether further answers may have the field: a schema names it, or answers have fields at all."""
        of_answer = self._reader.may_be_of_answer
        return self._spec.answer_schema is not None or not of_answer or self._with_fields > 0

    def problem(self, least: int = 1) -> str | None:
        """Return why there is nothing to resolve: no answer has the field; None if one has it.

        Args:
            least: So many answers show it.
        """
        if self._with_field or self._answers < least:
            return None
        answers = plural(self._answers, "answer", "answers")
        name = self._reduce.by[0]
        hint = "a schema, or a prompt that asks for JSON, gives answers fields; `output` is a whole answer"
        return f"{self._reduce.field('by')}: none of {answers} has a field {name!r} ({hint})"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split())
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return msgspec.json.encode(value).decode() if is_number else ""


def values_of(context: WorkerContext, map_id: StageId, spec: RunSpec, reduce: Reduce) -> Values:
    """Return the values of all answers of a run."""
    values = Values(spec, reduce)
    values.add_all(branches(context, map_id))
    return values


def require_field(context: WorkerContext, shard_id: ShardId) -> None:
    """Look once the first shard of a run has ended whether its answers show that there is nothing to resolve.

    Without this, it would be found out when the whole map has been paid for. Answers without any field stop
    the run. That is a guess, so a run that was retried goes on. If answers have fields, this one may be
    optional: its absence is only logged. Other reduces of a run may be of use all the same.
    """
    if shard_id.stage > 0 or shard_id.shard > 0:
        return
    spec = context.runs.specs.get(shard_id.run_id)
    if len(spec.reductions) != 1 or not spec.reductions[0].resolves:
        return
    opening = context.connections.store.run(shard_id.run_id).opening
    if opening:
        return
    values = Values(spec, spec.reductions[0])
    values.add_all(shard_branches(context, shard_id, spec.branches_per_chunk))
    problem = values.problem(least=_ENOUGH)
    if problem is None:
        return
    if values.may_have_field:
        _log.warning("run %s goes on, but %s", shard_id.run_id, problem, extra=about(shard_id))
        return
    error = f"{problem}; the run was stopped for that, and a retry goes on without this check"
    context.connections.store.halt(shard_id.run_id, RunStatus.FAILED, error=error, opening=opening)
