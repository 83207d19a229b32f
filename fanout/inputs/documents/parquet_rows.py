"""The rows of Parquet files as documents, in memory that does not depend on their size."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fanout.core.errors import InputError
from fanout.inputs.documents.arrow_rows import arrow_table, batch_documents, broken_errors
from fanout.inputs.documents.extras import extra_module
from fanout.inputs.documents.reading import Checked, still_there
from fanout.inputs.documents.remote import RemoteError, one_line
from fanout.inputs.documents.rows import faulty

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.reading import Reading

__all__ = ["check_parquet", "read_parquet"]

# The memory of one batch, decoded, and of what is read ahead of a column.
_BATCH_BYTES = 8_000_000
# So few copies of the longest allowed text take little memory, and more rows take less time.
_LEAST_SHARED_ROWS = 64
_BUFFER_BYTES = 256_000
_REMOTE_BUFFER_BYTES = 4_000_000
_MOST_ROWS = 8_192


def check_parquet(file: InputFile, reading: Reading) -> Checked:
    """Read the schema of a Parquet file. Raises InputError: see text_column_of."""
    extra_module("pyarrow", extra="tables", source=file.name)
    try:
        with _opened(file, reading) as parquet:
            return arrow_table(file.name, parquet.schema_arrow, reading.text_column)
    except broken_errors() as error:
        return Checked(fault=f"is no whole Parquet file: {one_line(error)}")


def read_parquet(
    file: InputFile, table: Checked, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    """Yield the rows of a Parquet file as documents, named ``path:row``, from 1, lazily.

    A row group that is damaged does not affect the others.

    Raises:
        InputError: The file disappeared, or its store does not answer.
    """
    extra_module("pyarrow", extra="tables", source=file.name)
    try:
        with still_there(file.name), _opened(file, reading) as parquet:
            if parquet.schema_arrow.names != list(table.header or ()):
                raise InputError("has changed since it was checked", source=file.name)
            first = 1
            for group in range(parquet.num_row_groups):
                yield from _group(parquet, group, file.name, first, table, indices, reading)
                first += parquet.metadata.row_group(group).num_rows
    except broken_errors() as error:
        yield faulty(file.name, next(indices), f"is no whole Parquet file: {one_line(error)}")


@contextmanager
def _opened(file: InputFile, reading: Reading) -> Iterator[Any]:
    from pyarrow import parquet

    # It reads in parts of its own, a column here and a column there. Without pre_buffer, these are
    # parts of a column, and not the whole of a row group.
    with (
        reading.open_anywhere(file, is_sequential=False) as opened,
        parquet.ParquetFile(
            opened,
            pre_buffer=False,
            buffer_size=_BUFFER_BYTES if file.remote is None else _REMOTE_BUFFER_BYTES,
            page_checksum_verification=True,
        ) as found,
    ):
        yield found


def _group(
    parquet: Any,
    group: int,
    name: str,
    first: int,
    table: Checked,
    indices: Iterator[int],
    reading: Reading,
) -> Iterator[Document]:
    """Yield the rows of one row group; if it is damaged, the last document says which are lost."""
    found = parquet.metadata.row_group(group)
    row = first
    try:
        batches = parquet.iter_batches(batch_size=_batch_rows(found), row_groups=[group])
        for batch in batches:
            yield from batch_documents(batch, name, row, table, indices, reading.max_bytes)
            row += batch.num_rows
    except RemoteError:
        raise
    except broken_errors() as error:
        last = first + found.num_rows - 1
        fault = f"rows {row:,} to {last:,} cannot be read: {one_line(error)}"
        yield faulty(f"{name}:{row}", next(indices), fault)


def _batch_rows(group: Any) -> int:
    """Return how many rows of a group to decode together."""
    bytes_per_row = group.total_byte_size / max(1, group.num_rows)
    by_size = max(1, min(_MOST_ROWS, int(_BATCH_BYTES / max(1.0, bytes_per_row))))
    # The size counts a text once that many rows share, and each of these gets a copy.
    shared = max(map(_shared_bytes, map(group.column, range(group.num_columns))), default=0)
    return min(by_size, max(_LEAST_SHARED_ROWS, _BATCH_BYTES // max(1, shared)))


def _shared_bytes(column: Any) -> int:
    """Return how many bytes a single value that rows of a column share may have."""
    is_shared = column.has_dictionary_page and column.physical_type == "BYTE_ARRAY"
    return int(column.total_uncompressed_size) if is_shared else 0
