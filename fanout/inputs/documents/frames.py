"""Rows from tables of other libraries: pandas, polars, pyarrow, datasets, and the Arrow interface.

A table is recognised by its methods, so none of these libraries is loaded unless the caller has
loaded it. Rows are made in slices: dictionaries of all rows would take many times the memory of the
table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fanout.core.errors import FanoutError, InputError
from fanout.inputs.documents.extras import extra_module
from fanout.inputs.documents.rows import repeated_column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["ArrowArray", "ArrowStream", "Frame", "frame_of", "is_frame", "lazy_frame_hint"]

_SLICE_ROWS = 1_000


class ArrowStream(Protocol):
    """What has the Arrow PyCapsule interface of a table or a stream of batches."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return a capsule with a stream of Arrow batches."""
        ...


class ArrowArray(Protocol):
    """What has the Arrow PyCapsule interface of one batch."""

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        """Return two capsules: the schema and the batch."""
        ...


class Frame(NamedTuple):
    """A table of another library.

    Attributes:
        columns: The names of its columns; None for one that has no columns, but is a list of items.
        rows: Its rows as mappings, or its items, lazily.
        is_lasting: Whether it can be read again.
    """

    columns: tuple[str, ...] | None
    rows: Iterable[Any]
    is_lasting: bool = True


def lazy_frame_hint(items: Any) -> str | None:
    """Return how to get the rows of a table that is not computed yet; None if it is computed."""
    if hasattr(items, "collect") and hasattr(items, "collect_schema"):
        return "give the result of its collect()"
    if hasattr(items, "toPandas"):
        return "give the result of its toPandas()"
    # What dask has delayed.
    if hasattr(items, "compute") and hasattr(items, "dask"):
        return "give the result of its compute()"
    return None


def is_frame(items: Any) -> bool:
    """Return whether something is a table, or a column, of another library."""
    return _reader(items) is not None


def frame_of(items: Any) -> Frame | None:
    """Return a table that is ready to be read, or None if the items are none.

    Raises:
        InputError: Two of its columns have the same name, it cannot be read, or pyarrow, which
            it takes, is missing.
    """
    reader = _reader(items)
    if reader is None:
        return None
    try:
        frame = reader(items)
    except FanoutError:
        raise
    except Exception as error:
        raise _unreadable(items, error) from error
    if frame.columns is not None:
        _require_unique(frame.columns)
    return frame._replace(rows=_guarded(items, frame.rows))


def _reader(items: Any) -> Callable[[Any], Frame] | None:
    def has(*names: str) -> bool:
        return all(hasattr(items, name) for name in names)

    kinds: tuple[tuple[bool, Callable[[Any], Frame]], ...] = (
        (has("iter_rows", "iter_slices"), _polars),
        (has("iloc", "columns"), _pandas),
        (has("with_format", "column_names"), _dataset),
        # Columns of pandas and polars are lists of items.
        (has("iloc") or has("dtype", "to_list"), lambda column: Frame(None, column)),
        (has("schema", "to_batches"), _table),
        (has("schema", "to_pylist"), _batch),
        (has("schema", "read_next_batch"), _batches),
        (has("to_pylist", "type"), _arrow_column),
        (has("__arrow_c_stream__") or has("__arrow_c_array__"), _capsule),
    )
    return next((reader for is_kind, reader in kinds if is_kind), None)


def _unreadable(items: Any, error: Exception) -> InputError:
    lines = str(error).splitlines() or [""]
    return InputError(
        f"chunks: the {type(items).__name__} cannot be read: {type(error).__name__}: {lines[0]}"
    )


def _guarded(items: Any, rows: Iterable[Any]) -> Iterator[Any]:
    """Yield rows; an exception of the other library becomes an InputError."""
    try:
        yield from rows
    except FanoutError:
        raise
    except Exception as error:
        raise _unreadable(items, error) from error


def _require_unique(columns: Sequence[str]) -> None:
    if problem := repeated_column(columns):
        raise InputError(f"chunks: the table has {problem}")


def _polars(frame: Any) -> Frame:
    return Frame(tuple(frame.columns), frame.iter_rows(named=True))


def _pandas(frame: Any) -> Frame:
    """Levels of the index that have a name are columns before the others; others are left out."""
    index = getattr(frame.index, "names", ())
    levels = [at for at, name in enumerate(index) if name is not None]
    names = tuple(_label(name) for name in [*(index[at] for at in levels), *frame.columns])

    def rows() -> Iterator[Any]:
        for start in range(0, len(frame), _SLICE_ROWS):
            part = frame.iloc[start : start + _SLICE_ROWS]
            if levels:
                part = part.reset_index(level=levels)
            part.columns = list(names)
            yield from part.to_dict("records")

    return Frame(names, rows())


def _label(label: object) -> str:
    """Return the label of a column as one name; the parts of several levels are joined."""
    if isinstance(label, tuple):
        return "_".join(str(part) for part in label if str(part))
    return str(label)


def _dataset(data: Any) -> Frame:
    """Return a dataset of Hugging Face, whose rows have Python values in any of its formats."""
    plain = data.with_format(None)
    names = plain.column_names

    def rows() -> Iterator[Any]:
        for part in plain.iter(batch_size=_SLICE_ROWS):
            yield from (
                dict(zip(part, row, strict=True)) for row in zip(*part.values(), strict=True)
            )

    # One that streams may come from a network, and has no length.
    is_lasting = hasattr(data, "__len__")
    return Frame(None if names is None else tuple(names), rows(), is_lasting)


def _table(table: Any) -> Frame:
    return Frame(tuple(table.schema.names), _rows(table.to_batches(max_chunksize=_SLICE_ROWS)))


def _batch(batch: Any) -> Frame:
    return Frame(tuple(batch.schema.names), _rows([batch]))


def _batches(reader: Any) -> Frame:
    return Frame(tuple(reader.schema.names), _rows(reader), is_lasting=False)


def _arrow_column(column: Any) -> Frame:
    parts = column.chunks if hasattr(column, "chunks") else [column]
    return Frame(None, _rows(parts))


def _rows(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield the rows of record batches, or the items of arrays."""
    for part in parts:
        for start in range(0, len(part), _SLICE_ROWS):
            yield from _values(part.slice(start, _SLICE_ROWS))


def _values(part: Any) -> list[Any]:
    try:
        values: list[Any] = part.to_pylist()
    except ValueError:
        # Without pandas, Python has no value for nanoseconds: they become text, as dates do.
        values = _text_for_nanoseconds(part).to_pylist()
    return values


def _text_for_nanoseconds(part: Any) -> Any:
    if not hasattr(part, "columns"):
        return part.cast("string")
    for at, column in enumerate(part.columns):
        if getattr(column.type, "unit", None) == "ns":
            part = part.set_column(at, part.schema.names[at], column.cast("string"))
    return part


def _capsule(items: Any) -> Frame:
    """Return what has the Arrow PyCapsule interface: batches, one batch, or a column."""
    source = f"chunks: a {type(items).__name__}"
    pa = extra_module("pyarrow", extra="tables", source=source)
    if hasattr(items, "__arrow_c_stream__"):
        try:
            return _batches(pa.RecordBatchReader.from_stream(items))
        except (pa.ArrowInvalid, TypeError):
            return _arrow_column(pa.chunked_array(items))
    array = pa.array(items)
    if pa.types.is_struct(array.type):
        return _batch(pa.record_batch(items))
    return _arrow_column(array)
