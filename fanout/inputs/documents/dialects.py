"""Detection of how a table is written: what separates its cells, and what is around them.

Each possibility is tried on the beginning of the file, and that by which most rows have as many cells
as the header is taken. An unusual one needs a reason: it must make more rows whole than the usual one.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import PurePath
from typing import NamedTuple

from fanout.core.errors import InputError
from fanout.inputs.documents.csv_rows import TAB, CsvRows, Dialect, is_number
from fanout.inputs.documents.lines import read_lines

__all__ = ["Trial", "detect_dialect", "is_tsv"]

_DELIMITERS = (",", ";", TAB, "|")
# Delimiters whose shares of good rows differ by less than this are ambiguous.
_NEAR = 0.1
_GOOD = 0.5
# Rows of a column in single quotes that are no accident.
_WRAPPED_ROWS = 2


class Trial(NamedTuple):
    """A sample of a table, read in one dialect.

    Attributes:
        dialect: The dialect.
        header: The names of the columns, as they are written.
        numeric: The positions of columns that hold numbers in all rows.
        share: The share of rows, 0 to 1, that have as many cells as the header; 1 without rows.
        is_wrapped: Whether the header, or all cells of a column, are in single quotes.
        fault: Why the header cannot be read, or None.
    """

    dialect: Dialect
    header: tuple[str, ...] = ()
    numeric: tuple[int, ...] = ()
    share: float = 1.0
    is_wrapped: bool = False
    fault: str | None = None


def detect_dialect(
    name: str,
    sample: bytes,
    *,
    skipped: int,
    delimiter: str | None,
    text_column: str,
    max_bytes: int,
) -> Trial:
    """Return the best reading of a sample.

    Args:
        name: The file's name; cells of ``.tsv`` files are expected to have tabs between them.
        sample: The beginning of the file: whole lines.
        skipped: Lines before the header.
        delimiter: The delimiter, if it is known.
        text_column: The column that the header should have.
        max_bytes: The size above which a row is refused.

    Raises:
        InputError: The delimiter is ambiguous.
    """

    def best(each: str) -> Trial:
        return _best_of_delimiter(sample, skipped, each, max_bytes)

    if delimiter is not None:
        return best(delimiter)
    if is_tsv(name):
        with_tabs = best(TAB)
        if len(with_tabs.header) != 1:
            return with_tabs
        others = [best(each) for each in _DELIMITERS if each != TAB]
        split = [trial for trial in others if len(trial.header) > 1 and trial.share > _GOOD]
        return _best(name, split, text_column) if split else with_tabs
    return _best(name, [best(each) for each in _DELIMITERS], text_column)


def is_tsv(name: str) -> bool:
    """Say whether a file should have tabs by its name, which may end in that of a compression."""
    return ".tsv" in PurePath(name.lower()).suffixes


def _best(name: str, trials: list[Trial], text_column: str) -> Trial:
    """Return the best trial: among those that split the header, the one that splits most rows."""
    if len(trials) == 1:
        return trials[0]
    split = [trial for trial in trials if len(trial.header) > 1]
    if not split:
        return trials[0]
    split.sort(key=lambda trial: -trial.share)
    near = [trial for trial in split if split[0].share - trial.share < _NEAR]
    with_text = [trial for trial in near if text_column in trial.header]
    if len(near) > 1 and len(with_text) != 1 and split[0].share > _GOOD:
        found = " or ".join(trial.dialect.delimiter_word for trial in near)
        raise InputError(
            f"the delimiter between its cells may be {found}; give it as delimiter (--delimiter)",
            source=name,
        )
    return with_text[0] if with_text else split[0]


def _best_of_delimiter(sample: bytes, skipped: int, delimiter: str, max_bytes: int) -> Trial:
    best = _trial(sample, skipped, Dialect(delimiter=delimiter), max_bytes)
    if len(best.header) == 1 and delimiter != ",":
        return best
    for dialect in _unusual(sample, delimiter):
        trial = _trial(sample, skipped, dialect, max_bytes)
        unquoted = dialect.quote == "'" and best.is_wrapped and trial.share >= best.share
        if trial.fault is None and (best.fault or trial.share > best.share or unquoted):
            best = trial
    return best


def _unusual(sample: bytes, delimiter: str) -> list[Dialect]:
    """Return the unusual dialects of which a sample has traces."""
    between = delimiter.encode()
    found = []
    if b'\\"' in sample:
        found.append(Dialect(delimiter=delimiter, has_escapes=True))
    if between + b' "' in sample:
        found.append(Dialect(delimiter=delimiter, skips_spaces=True))
    if between + b"'" in sample or sample.startswith(b"'") or b"\n'" in sample:
        found.append(Dialect(delimiter=delimiter, quote="'"))
        if b"\\'" in sample:
            found.append(Dialect(delimiter=delimiter, quote="'", has_escapes=True))
    return found


def _trial(sample: bytes, skipped: int, dialect: Dialect, max_bytes: int) -> Trial:
    """Return the reading of a sample in one dialect."""
    lines = read_lines(BytesIO(sample), max_bytes)
    for _ in range(skipped):
        next(lines, None)
    rows = CsvRows(lines, dialect=dialect, max_bytes=max_bytes)
    head = rows.header()
    if head is None or head.fault:
        return Trial(dialect, fault=head.fault if head else None)
    header = tuple(cell.strip() for cell in head.cells)
    if len(header) == 1 and dialect.delimiter != ",":
        return Trial(dialect, header, share=0.0)
    good, bad = [], 0
    for row in rows:
        if not row.fault and len(row.cells) == len(header):
            good.append(row.cells)
        else:
            bad += 1
    columns = list(zip(*good, strict=True))
    return Trial(
        dialect,
        header,
        numeric=tuple(at for at, cells in enumerate(columns) if all(map(is_number, cells))),
        share=len(good) / (len(good) + bad) if good or bad else 1.0,
        is_wrapped=all(map(_is_wrapped, header))
        or (len(good) >= _WRAPPED_ROWS and any(all(map(_is_wrapped, cells)) for cells in columns)),
    )


def _is_wrapped(cell: str) -> bool:
    return len(cell) > 1 and cell.startswith("'") and cell.endswith("'")
