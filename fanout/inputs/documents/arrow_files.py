"""Arrow IPC files and streams, Feather files, and folders of Hugging Face datasets, as documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, BinaryIO

from fanout.core.encodable import is_utf8
from fanout.core.errors import InputError
from fanout.inputs.documents.arrow_rows import arrow_table, batch_documents, broken_errors
from fanout.inputs.documents.extras import extra_module
from fanout.inputs.documents.reading import Checked, still_there
from fanout.inputs.documents.remote import RemoteError, one_line
from fanout.inputs.documents.rows import faulty

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.reading import Reading

__all__ = ["check_arrow", "check_dataset", "read_arrow", "read_dataset"]

_FILE = b"ARROW1\0\0"
_OLD_FEATHER = b"FEA1"
_STATE = "state.json"
# What a file with other content raises.
_NO_STATE = (OSError, ValueError, KeyError, TypeError, RecursionError)


def check_arrow(file: InputFile, reading: Reading) -> Checked:
    """Read the schema of an Arrow file. Raises InputError: see text_column_of."""
    extra_module("pyarrow", extra="tables", source=file.name)
    try:
        with reading.open_anywhere(file) as opened:
            if opened.read(len(_OLD_FEATHER)) == _OLD_FEATHER:
                return Checked(fault="is a Feather file of version 1: write it again")
            opened.seek(0)
            reader, _ = _reader(opened)
            return arrow_table(file.name, reader.schema, reading.text_column)
    except broken_errors() as error:
        return Checked(fault=f"is no whole Arrow file: {one_line(error)}")


def read_arrow(
    file: InputFile,
    table: Checked,
    reading: Reading,
    indices: Iterator[int],
    *,
    name: str | None = None,
    first: int = 1,
) -> Generator[Document, None, int]:
    """Yield the rows of an Arrow file as documents, named ``path:row``, lazily.

    It holds one record batch at a time. A damaged batch of a file does not affect the others; in a
    stream, it ends the reading.

    Args:
        file: The file.
        table: Its format.
        reading: How the job reads.
        indices: The indices of the next documents.
        name: What its rows are called by; None is its own name.
        first: The number of the first row.

    Returns:
        The number of the row after the last.

    Raises:
        InputError: The file disappeared, or its store does not answer.
    """
    extra_module("pyarrow", extra="tables", source=file.name)
    row, known = first, name or file.name
    try:
        with still_there(file.name), reading.open_anywhere(file) as opened:
            for batch in _batches(opened):
                if isinstance(batch, str):
                    yield faulty(f"{known}:{row}", next(indices), batch)
                    continue
                yield from batch_documents(batch, known, row, table, indices, reading.max_bytes)
                row += batch.num_rows
    except broken_errors() as error:
        fault = f"cannot be read from row {row:,} on: {one_line(error)}"
        yield faulty(f"{known}:{row}", next(indices), fault)
    return row


def _reader(file: BinaryIO) -> tuple[Any, bool]:
    """Return a reader of a file at its beginning, and whether it can read any batch by number."""
    from pyarrow import ipc

    is_file = file.read(len(_FILE)) == _FILE
    file.seek(0)
    return (ipc.open_file(file), True) if is_file else (ipc.open_stream(file), False)


def _batches(file: BinaryIO) -> Iterator[Any]:
    """Yield the batches of a file; in place of a damaged one, the error as text."""
    reader, is_file = _reader(file)
    if not is_file:
        yield from reader
        return
    for number in range(reader.num_record_batches):
        try:
            batch = reader.get_batch(number)
        except RemoteError:
            raise
        except broken_errors() as error:
            batch = f"the batch {number + 1} of the file cannot be read: {one_line(error)}"
        yield batch


def check_dataset(file: InputFile, reading: Reading) -> Checked:
    """Read the schema of a folder that ``datasets`` saved. Raises InputError: see text_column_of."""
    try:
        parts = _parts(file, reading)
    except _NO_STATE as error:
        return Checked(fault=f"is no whole folder of a dataset: {_STATE}: {one_line(error)}")
    if not parts:
        return Checked(fault="the dataset has no data")
    return check_arrow(parts[0], reading)


def read_dataset(
    file: InputFile, table: Checked, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    """Yield the rows of a dataset as documents, named ``folder:row``. Raises InputError."""
    try:
        parts = _parts(file, reading)
    except _NO_STATE as error:
        raise InputError(f"broke while it was read: {one_line(error)}", source=file.name) from None
    first = 1
    for part in parts:
        first = yield from read_arrow(part, table, reading, indices, name=file.name, first=first)


def _parts(file: InputFile, reading: Reading) -> list[InputFile]:
    """Return the data files of a dataset, in order."""
    with reading.open(file.below(_STATE)) as opened:
        state = json.load(opened)
    names = [str(one["filename"]) for one in state["_data_files"]]
    for name in names:
        if "\0" in name or not is_utf8(name):
            msg = f"no file can be called {name!r}"
            raise ValueError(msg)
    return [file.below(name) for name in names]
