"""The aggregator that counts and measures groups of answers, as rows of a table."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample
from fanout.aggregators.exact import ExactNumbers
from fanout.aggregators.first_forms import FirstForms
from fanout.aggregators.parts import Fields, answer_value, written_value
from fanout.aggregators.records import Records
from fanout.aggregators.shown_forms import ShownForms
from fanout.aggregators.streams import Streamed
from fanout.core.json_text import identity
from fanout.core.measures import measure_of
from fanout.system.external_sort import grouped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from fanout.aggregators.base import Item

__all__ = ["Table"]

_ALL = Fields()
_NULL = b"null"
# The kinds of records, in their order.
_FORMS, _ROWS = range(2)
# What a row takes in memory, beside its values, and what the numbers of a field take.
_ROW_BYTES, _NUMBERS_BYTES = 500, 400
# The order of kinds of values in a column.
_NUMBER, _TEXT, _TRUTH, _LIST, _OBJECT, _NOTHING = range(6)


class _Row:
    """The answers with the same values."""

    def __init__(self, fields: int) -> None:
        self.count = 0
        self.numbers = [ExactNumbers() for _ in range(fields)]

    def take(self, count: int, states: Iterable[tuple[Any, ...]]) -> None:
        """Add the answers of a record."""
        self.count += count
        for ours, theirs in zip(self.numbers, states, strict=True):
            ours.merge(ExactNumbers.of(theirs))


class Table:
    """Counts answers by the values of some parts, and measures numbers in others.

    The value is a list of rows: objects with the parts of ``by`` and the measures (else ``count``), under
    their names. Without ``by`` there is one row. ``share`` is that of all answers; ``mean``, ``min``,
    ``max`` and ``sum`` are of the numbers in a part. Values are compared as JSON: ``1`` equals
    ``1.0``, a list or object counts as a whole, and a missing part is null. Of equal values the first
    is shown; a number that is an answer without a shape as text, if JSON writes it in another way
    (``3.10``). A step ``*`` counts an answer once for each different element of a list.

    Rows are sorted by their values, column by column: numbers, then text, false and true, lists,
    objects, and null last. Only rows are held, not answers.

    Failed branches are left out and named in a note; values that are no numbers are left out of the
    measures, and counted in a note.
    """

    def __init__(self, fields: Fields = _ALL, records: Records | None = None) -> None:
        self._fields = fields
        self._records = records or Records()
        self._by = [fields.reader(name) for name in fields.by]
        self._measures = [measure_of(name) for name in fields.measures or ("count",)]
        names = dict.fromkeys(one.field for one in self._measures if one.field)
        self._measured = [fields.reader(name) for name in names]
        self._rows: dict[tuple[bytes, ...], _Row] = {}
        self._forms = [FirstForms() for _ in self._by]
        self._succeeded = 0
        self._missing = NameSample()
        self._without = [NameSample() for _ in self._by]
        self._no_number = [NameSample() for _ in self._measured]

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(item)
            return
        self._succeeded += 1
        answer = answer_value(item.output, self._fields)
        numbers = [self._numbers(at, item, answer) for at in range(len(self._measured))]
        keys = [self._keys(at, item, answer) for at in range(len(self._by))]
        for key in product(*keys):
            row = self._row(key)
            row.count += 1
            for taken, some in zip(row.numbers, numbers, strict=True):
                for number in some:
                    taken.add(number)

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        other.spill()
        for key, data in other._records:
            self._records.add(key, *data)
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        samples = zip(
            [*self._without, *self._no_number], [*other._without, *other._no_number], strict=True
        )
        for sample, further in samples:
            sample.merge(further)

    def spill(self) -> None:
        """See Spilling."""
        for at, forms in enumerate(self._forms):
            for key, first, form in forms:
                self._records.add((_FORMS, at, key, first), form)
        for keys, row in self._rows.items():
            order = tuple(_order(msgspec.json.decode(one)) for one in keys)
            numbers = tuple(one.state() for one in row.numbers)
            self._records.add((_ROWS, order), keys, row.count, numbers)
        self._rows, self._forms = {}, [FirstForms() for _ in self._by]

    def result(self) -> Streamed:
        """See Accumulator."""
        self.spill()
        return Streamed(form="rows", chunks=self._chunks(), end=self._end)

    def _chunks(self) -> Iterator[bytes]:
        with ShownForms(len(self._by), self._records.scratch) as forms:
            shown = forms.of_rows(self._combined(forms))
            for keys, (count, *states) in shown:
                row = _Row(len(self._measured))
                row.take(count, states)
                yield msgspec.json.encode(self._shown(keys, row)) + b"\n"

    def _combined(self, forms: ShownForms) -> Iterator[tuple[tuple[bytes, ...], tuple[Any, ...]]]:
        """Yield the values and the counts of each row, in order, behind the forms of values."""
        for kind, records in grouped(self._records):
            if kind == _FORMS:
                for (_, at, key, first), (form,) in records:
                    forms.add(at, key, first, form)
                continue
            for _, same in grouped(records, at=1):
                row = _Row(len(self._measured))
                keys: tuple[bytes, ...] = ()
                for _, data in same:
                    keys, count, states = data
                    row.take(count, states)
                yield keys, (row.count, *(one.state() for one in row.numbers))
        if not self._by and self._succeeded == 0:
            none = _Row(len(self._measured))
            yield (), (none.count, *(one.state() for one in none.numbers))

    def _end(self) -> Aggregate:
        return Aggregate(
            value=None,
            succeeded=self._succeeded,
            failed=self._missing.count,
            notes=self._notes(),
        )

    def _row(self, key: tuple[bytes, ...]) -> _Row:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = _Row(len(self._measured))
            size = sum(map(len, key)) + _NUMBERS_BYTES * len(self._measured)
            self._records.hold(_ROW_BYTES + size)
        return row

    def _keys(self, at: int, item: Item, answer: Any) -> list[bytes]:
        """Return the values of a column by which an answer is counted, each once."""
        reader, forms = self._by[at], self._forms[at]
        values = reader.values(item, answer)
        if not values:
            self._without[at].add(item)
            return [_NULL]
        keys: dict[bytes, None] = {}
        for part, value in enumerate(values):
            key = identity(value)
            if key not in keys:
                keys[key] = None
                if forms.is_new(key, (item.index, part)):
                    shown = value
                    if reader.is_whole and item.output is not None:
                        shown = written_value(item.output, value, self._fields)
                    self._records.hold(forms.add(key, shown, (item.index, part)))
        return list(keys)

    def _numbers(self, at: int, item: Item, answer: Any) -> list[int | float]:
        numbers = self._measured[at].numbers(item, answer)
        found = [number for number in numbers if number is not None]
        if not found or len(found) < len(numbers):
            self._no_number[at].add(item)
        return found

    def _shown(self, key: tuple[bytes, ...], row: _Row) -> dict[str, Any]:
        parts = zip(self._by, key, strict=True)
        shown = {reader.name: msgspec.json.decode(one) for reader, one in parts}
        numbers = dict(zip((one.name for one in self._measured), row.numbers, strict=True))
        for measure in self._measures:
            if measure.kind == "count":
                shown[measure.name] = row.count
            elif measure.kind == "share":
                shown[measure.name] = row.count / self._succeeded if self._succeeded else 0.0
            else:
                shown[measure.name] = numbers[measure.field].measure(measure.kind)
        return shown

    def _notes(self) -> list[str]:
        notes = self._missing.notes(LEFT_OUT)
        for reader, sample in zip(self._by, self._without, strict=True):
            what = f"no {reader.name}: counted as null"
            notes += sample.notes(f"answers have {what}", one=f"answer has {what}")
        for reader, sample in zip(self._measured, self._no_number, strict=True):
            what = f"no number in {reader.name}, or other values beside numbers: left out of its measures"
            notes += sample.notes(f"answers have {what}", one=f"answer has {what}")
        return notes


def _order(value: Any) -> tuple[int, Any]:
    """Return what values of any JSON types are sorted by."""
    if isinstance(value, bool):
        return _TRUTH, value
    if isinstance(value, int | float):
        return _NUMBER, value
    if isinstance(value, str):
        return _TEXT, value
    if value is None:
        return _NOTHING, 0
    return (_LIST if isinstance(value, list) else _OBJECT), identity(value)
