"""Tables as Parquet files."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from fanout.runs.tables.arrow import arrow_batches, arrow_schema, require_arrow

if TYPE_CHECKING:
    from fanout.runs.tables.table import Table

__all__ = ["write_parquet"]


def write_parquet(table: Table, file: IO[bytes]) -> list[str]:
    """Write a table as Parquet, batch by batch.

    Raises:
        InputError: pyarrow is missing.
        OSError: The file cannot be written, for example on a full disk.
    """
    require_arrow()
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(file, arrow_schema(table), compression="zstd") as writer:
        for batch in arrow_batches(table):
            writer.write_batch(batch)
    return []
