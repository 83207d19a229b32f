"""Tells while a run goes on that no answer of its first shard has a field that a reduce goes by.

A job whose answers have no schema cannot be checked for a mistyped name before its calls. The field may also
be optional: the run goes on, and its status says so.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from fanout.aggregators.parts import answer_value
from fanout.core.field_words import shown
from fanout.core.units import plural
from workers.reduce.computed import fields_of
from workers.reduce.items import item_of, shard_branches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from fanout.aggregators import Fields, Item
    from fanout.aggregators.parts import PartReader
    from fanout.core.ids import ShardId
    from fanout.core.records import Chunk, Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["note_missing_fields"]

# So many answers show whether answers have a field.
_ENOUGH = 20
_SHOWN_NAMES = 8


def note_missing_fields(context: WorkerContext, shard_id: ShardId) -> None:
    """Note at a run, once its first shard has ended, which fields of its reduces no answer has."""
    if shard_id.stage > 0 or shard_id.shard > 0:
        return
    spec = context.runs.specs.get(shard_id.run_id)
    sought = [
        one
        for reduce in ([] if spec.answer_schema or spec.answer_choices else spec.reductions)
        if (one := _Sought(spec, reduce)).is_any
    ]
    if not sought:
        return
    store = context.connections.store
    run = store.run(shard_id.run_id)
    found = _missing(sought, shard_branches(context, shard_id, spec.branches_per_chunk))
    notice = "; ".join(found) or None
    if notice != run.notice:
        store.put_notice(run.run_id, notice, opening=run.opening)


def _missing(sought: Sequence[_Sought], found: Iterable[tuple[Chunk, Outcome]]) -> list[str]:
    for chunk, outcome in found:
        if outcome.output is None:
            continue
        for one in sought:
            one.see(chunk, outcome)
        if not any(one.is_any for one in sought):
            break
    return [problem for one in sought if (problem := one.problem())]


class _Sought:
    """The fields of answers that a reduce goes by, and none of the answers so far has."""

    def __init__(self, spec: RunSpec, reduce: Reduce) -> None:
        self._spec = spec
        self._reduce = reduce
        self._fields: Fields = fields_of(spec, reduce)
        self._left: dict[str, PartReader] = {
            one.name: one
            for one in self._fields.readers
            if one.may_be_of_answer and not one.is_whole
        }
        self._answers = 0
        self._names: dict[str, None] = {}

    @property
    def is_any(self) -> bool:
        """Whether there is a field that no answer so far has."""
        return bool(self._left)

    def see(self, chunk: Chunk, outcome: Outcome) -> None:
        """Look at a branch with an answer."""
        item: Item = item_of(self._spec, self._reduce, chunk, outcome)
        answer: Any = answer_value(outcome.output or "", self._fields)
        self._left = {
            name: reader for name, reader in self._left.items() if not reader.is_in(item, answer)
        }
        if isinstance(answer, dict | list):
            self._answers += 1
        if isinstance(answer, dict) and len(self._names) < _SHOWN_NAMES:
            self._names.update(dict.fromkeys(answer))

    def problem(self) -> str | None:
        """Return which field is missing, and those that are there; None without enough answers with some."""
        if not self._left or self._answers < _ENOUGH:
            return None
        name = next(iter(self._left))
        there = list(self._names)[:_SHOWN_NAMES]
        known = f" (they have {', '.join(map(shown, there))})" if there else ""
        near = get_close_matches(name, there, n=1)
        hint = f"; did you mean {shown(near[0])}?" if near else ""
        answers = plural(self._answers, "answer", "answers")
        return f"{self._reduce.words}: none of the first {answers} has a field {shown(name)}{known}{hint}"
