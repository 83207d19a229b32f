"""The rows of Arrow record batches as documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.cells import cell_of
from fanout.inputs.documents.reading import Checked
from fanout.inputs.documents.remote import one_line
from fanout.inputs.documents.rows import document_of_cells, faulty, text_column_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Document

__all__ = ["SLICE_ROWS", "arrow_table", "batch_documents", "broken_errors"]

# Rows that become Python objects at the same time.
SLICE_ROWS = 1_000


def arrow_table(name: str, schema: Any, text_column: str | None) -> Checked:
    """Return the format of a table by its schema. Raises InputError: see text_column_of."""
    if not schema.names:
        return Checked(fault="it has no column")
    column = text_column_of(name, schema.names, text_column, None)
    is_named = text_column is not None or len(schema.names) > 1
    return Checked(header=tuple(schema.names), text_column=column, is_named=is_named)


def broken_errors() -> tuple[type[Exception], ...]:
    """Return what pyarrow raises for damaged files: also for sizes and names that are damaged."""
    from pyarrow import ArrowException

    return (OSError, UnicodeDecodeError, MemoryError, ArrowException)


def batch_documents(
    batch: Any,
    name: str,
    first: int,
    table: Checked,
    indices: Iterator[int],
    max_bytes: int,
) -> Iterator[Document]:
    """Yield the rows of a record batch as documents, named ``path:row``, lazily.

    A row that Python cannot hold, such as one with invalid UTF-8, does not affect the others.

    Args:
        batch: A pyarrow.RecordBatch.
        name: The name of the file.
        first: The number of the first row.
        table: The format of the file.
        indices: The indices of the next documents.
        max_bytes: The size above which a document is refused.
    """
    is_valid = _is_valid(batch)
    if not is_valid and (fault := _short_list(batch)):
        for row in range(first, first + batch.num_rows):
            yield faulty(f"{name}:{row}", next(indices), fault)
        return
    for start in range(0, batch.num_rows, SLICE_ROWS):
        part = batch.slice(start, SLICE_ROWS)
        try:
            if not is_valid:
                part.validate(full=True)
            rows: Iterable[Document] = _documents(
                part, name, first + start, table, indices, max_bytes
            )
        except _UNUSABLE:
            rows = _one_by_one(part, name, first + start, table, indices, max_bytes)
        yield from rows


# Most of pyarrow's own errors are ValueErrors, or one of these. A decimal with a damaged scale, and a
# moment that no calendar has, are ArithmeticErrors.
_UNUSABLE = (
    ValueError, TypeError, ArithmeticError, RecursionError, NotImplementedError, LookupError,
)  # fmt: skip


def _is_valid(batch: Any) -> bool:
    """Say whether a batch is sound: offsets that point outside of a buffer would end the process."""
    try:
        batch.validate(full=True)
    except ValueError:
        return False
    return True


def _short_list(batch: Any) -> str | None:
    """Return why no row of a batch may be read; None if rows can be checked one by one.

    In a slice of a list of a fixed size, pyarrow does not check whether the values end before it, and
    reading them would end the process.
    """
    for at, kind in enumerate(map(str, batch.schema.types)):
        # A tensor is an extension type of such a list.
        if "fixed_size_list" in kind or "extension<" in kind:
            try:
                batch.column(at).validate()
            except _UNUSABLE as error:
                return f"the row cannot be used: {one_line(error)}"
    return None


def _documents(
    part: Any, name: str, first: int, table: Checked, indices: Iterator[int], max_bytes: int
) -> list[Document]:
    names, text_column = part.schema.names, table.text_column
    text_at = names.index(text_column)
    texts = _texts(part.column(text_at))
    others = [name for name in names if name != text_column]
    cells = [_cells(part.column(at)) for at in range(len(names)) if at != text_at]
    rows: Iterator[tuple[Any, ...]] = (
        zip(*cells, strict=True) if cells else iter([()] * part.num_rows)
    )
    return [
        document_of_cells(
            f"{name}:{first + at}",
            next(indices),
            texts[at],
            text_column,
            max_bytes,
            dict(zip(others, row, strict=True)),
            text_at,
            is_named=table.is_named,
        )
        for at, row in enumerate(rows)
    ]


def _one_by_one(
    part: Any, name: str, first: int, table: Checked, indices: Iterator[int], max_bytes: int
) -> Iterator[Document]:
    for at in range(part.num_rows):
        row = part.slice(at, 1)
        try:
            row.validate(full=True)
            yield from _documents(row, name, first + at, table, indices, max_bytes)
        except _UNUSABLE as error:
            fault = f"the row cannot be used: {one_line(error)}"
            yield faulty(f"{name}:{first + at}", next(indices), fault)


def _texts(column: Any) -> list[Any]:
    """Return the texts of a column. Files without string types have them as bytes."""
    return [value.decode() if isinstance(value, bytes) else value for value in column.to_pylist()]


def _cells(column: Any) -> list[Any]:
    if _is_plain(column.type):
        return list(column.to_pylist())
    return [cell_of(value) for value in _readable(column).to_pylist(maps_as_pydicts="lossy")]


def _is_plain(kind: Any) -> bool:
    """Say whether the values of a type are JSON values as they are."""
    from pyarrow import types

    if types.is_uint64(kind):
        return False
    tests = (types.is_string, types.is_large_string, types.is_boolean, types.is_integer)
    return any(test(kind) for test in tests)


def _readable(column: Any) -> Any:
    """Return a column without nanoseconds, which Python's own types do not have.

    Times that need them become text.
    """
    import pyarrow as pa

    wanted = _without_nanoseconds(column.type)
    if wanted == column.type:
        return column
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid:
        is_nested = pa.types.is_nested(column.type)
        return column.cast(wanted, safe=False) if is_nested else column.cast(pa.string())


def _without_nanoseconds(kind: Any) -> Any:
    """Return a type with microseconds in place of nanoseconds."""
    import pyarrow as pa

    types, wanted = pa.types, kind
    if types.is_timestamp(kind) and kind.unit == "ns":
        wanted = pa.timestamp("us", kind.tz)
    elif types.is_time64(kind) and kind.unit == "ns":
        wanted = pa.time64("us")
    elif types.is_duration(kind) and kind.unit == "ns":
        wanted = pa.duration("us")
    elif types.is_dictionary(kind):
        value = _without_nanoseconds(kind.value_type)
        wanted = kind if value == kind.value_type else value
    elif types.is_struct(kind):
        fields = (kind.field(at) for at in range(kind.num_fields))
        wanted = pa.struct([one.with_type(_without_nanoseconds(one.type)) for one in fields])
    elif types.is_map(kind):
        wanted = pa.map_(*map(_without_nanoseconds, (kind.key_type, kind.item_type)))
    elif types.is_list(kind) or types.is_large_list(kind):
        make = pa.list_ if types.is_list(kind) else pa.large_list
        wanted = make(kind.value_field.with_type(_without_nanoseconds(kind.value_type)))
    return wanted
