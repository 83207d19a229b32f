"""The intake of a run: its documents, checked against its prompts and its groups."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.core.errors import InputError, SpecError
from fanout.core.field_effects import READING
from fanout.inputs.aggregate_checks import likely_typos, part_columns, require_parts
from fanout.inputs.documents import STDIN, FileSource, Items, Notice, counted, log_notice
from fanout.inputs.documents.files import RUN
from fanout.inputs.documents.past_runs import RUN_TEXT_COLUMN
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN
from fanout.inputs.documents.urls import is_relative
from fanout.inputs.names import DocumentNames
from fanout.inputs.prompt_checks import (
    group_column,
    label_leaks,
    require_group,
    require_labels,
    require_prompts,
    templates_of,
)
from fanout.inputs.prompts import BRANCH_NAMES
from fanout.inputs.selection import WHERE_NAMES, Selection
from fanout.inputs.surrogates import encodable

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Chunks, Notify
    from fanout.inputs.documents.past_runs import OpenRun

__all__ = [
    "FilesToRead",
    "checked_documents",
    "files_for_workers",
    "has_only_rows",
    "source_of_files",
]

_SHOWN_FAULTS = 3
# Rows of one input may have different columns. The head is read in any case, and the search for a
# column that a prompt needs goes on further if the input cannot be read again.
_HEAD_ROWS = 20
_SEARCHED_ROWS = 1_000
_HEAD_CHARS = 8_000_000


class FilesToRead(NamedTuple):
    """Files whose documents workers are to read.

    Attributes:
        source: The files.
        chosen: The numbers of those to read, if ``where``, ``sample`` and ``limit`` choose by the
            names of files; None is all: they choose when all is read.
    """

    source: FileSource
    chosen: frozenset[int] | None = None


def checked_documents(
    spec: RunSpec,
    documents: Chunks | None,
    *,
    notify: Notify = log_notice,
    open_run: OpenRun | None = None,
) -> Iterator[Document]:
    """Return the documents of a run, after checking its prompts and its groups against them.

    It reads the first documents at once, as prompts may use their columns. With ``strict``, it
    first reads through an input that can be read twice.

    Args:
        spec: The job.
        documents: The input, if it is not in files.
        notify: Receives notices of files that are left out, and of detected delimiters.
        open_run: Opens the runs that are inputs.

    Raises:
        PromptError: A prompt is wrong, or has a name that is unknown or ambiguous.
        SpecError: ``group_by``, ``by``, ``measures``, ``labels``, ``id_column`` or ``where`` names no
            column.
        InputError: There is no document, a source cannot be read, or ``strict`` refuses it.
    """
    templates = templates_of(spec)
    warnings, notify_and_keep = _kept(notify)
    source = _source(spec, documents, notify_and_keep, open_run)
    selection = Selection(spec, text_columns=_text_columns(spec))
    _require_used(spec, documents, source, selection)
    names = DocumentNames(spec.id_column, notify)
    only = _chosen_files(source, selection, notify)

    def read() -> Iterator[Document]:
        return names.apply(source.documents(only))

    again = read if source.is_lasting else None

    def chosen(documents: Iterator[Document], notify: Notify | None = None) -> Iterator[Document]:
        if only is not None or not selection.is_active:
            return documents
        return selection.take(documents, again=again, notify=notify)

    if spec.strict:
        _refuse_losses(None if again is None else chosen(again()), warnings)
    needed = frozenset[str]().union(*(one.columns(BRANCH_NAMES) for one in templates))
    needed |= group_column(spec) | part_columns(spec) | names.columns | selection.columns
    needed |= {*spec.labels.values()}
    stream = read()
    head, columns = _head(stream, needed, source)
    if needed - columns and source.is_lasting:
        columns |= source.columns(needed - columns)
    text_columns = _text_columns(spec) if source.uses("text_column") else frozenset()
    require_prompts(templates, columns, text_column=spec.text_column, text_columns=text_columns)
    require_group(spec, columns)
    require_parts(spec, columns)
    require_labels(spec, columns, text_columns=text_columns)
    names.require(columns)
    selection.require(columns)
    for text in (*label_leaks(spec, templates), *likely_typos(spec, columns)):
        notify(Notice(text=text, is_warning=True))
    taken = chosen(chain(head, stream), notify)
    if selection.is_active:
        taken = _some(taken, selection)
    checked = counted(map(encodable, taken), notify)
    return _strictly(checked) if spec.strict else checked


def files_for_workers(spec: RunSpec, *, notify: Notify = log_notice) -> FilesToRead:
    """Return the files of a job whose documents workers are to read, after checking the job.

    Args:
        spec: The job.
        notify: Receives notices of files that are left out, and of those that are chosen.

    Raises:
        PromptError, SpecError: As ``checked_documents``; documents in files have no columns.
        InputError: A source cannot be listed, no file is chosen, or ``strict`` refuses what is left
            out.
    """
    for template in templates_of(spec):
        template.require(BRANCH_NAMES)
    require_group(spec, frozenset())
    require_parts(spec, frozenset())
    require_labels(spec, frozenset())
    warnings, notify_and_keep = _kept(notify)
    base = Path(spec.base_dir or "")
    source = source_of_files(spec, spec.inputs, base=base, notify=notify_and_keep, parses=False)
    selection = Selection(spec, text_columns=_text_columns(spec))
    _require_used(spec, None, source, selection)
    if spec.strict:
        _refuse_notices(warnings)
    return FilesToRead(source=source, chosen=_chosen_files(source, selection, notify))


def source_of_files(
    spec: RunSpec,
    inputs: Iterable[str],
    *,
    base: Path,
    notify: Notify = log_notice,
    open_run: OpenRun | None = None,
    parses: bool = True,
) -> FileSource:
    """Return the files of a run's inputs. Raises InputError."""
    return FileSource(
        tuple(inputs),
        text_column=spec.text_column,
        delimiter=spec.delimiter,
        sheet=spec.sheet,
        encoding=spec.encoding,
        parse_timeout_s=spec.parse_timeout_s,
        max_bytes=_max_bytes(spec),
        base=base,
        notify=notify,
        open_run=open_run,
        parses=parses,
    )


def has_only_rows(spec: RunSpec) -> bool:
    """Say whether a run's input is files of rows only, which can be counted at little cost.

    Raises:
        InputError: An input does not exist, or cannot be read.
    """
    if any(one.startswith(RUN) for one in spec.inputs):
        return False
    base = Path(spec.base_dir or "")
    source = source_of_files(spec, spec.inputs, base=base, notify=lambda _notice: None)
    return source.is_lasting and source.has_only_rows


def _kept(notify: Notify) -> tuple[list[Notice], Notify]:
    """Return a list, and a function that adds each warning to it and passes on every notice."""
    warnings: list[Notice] = []

    def notify_and_keep(notice: Notice) -> None:
        if notice.is_warning:
            warnings.append(notice)
        notify(notice)

    return warnings, notify_and_keep


def _max_bytes(spec: RunSpec) -> int:
    return int(spec.max_document_mb * 1_000_000)


def _source(
    spec: RunSpec, documents: Any, notify: Notify, open_run: OpenRun | None
) -> FileSource | _ItemSource:
    if documents is None:
        base = Path(spec.base_dir or "")
        return source_of_files(spec, spec.inputs, base=base, notify=notify, open_run=open_run)
    return _ItemSource(spec, documents)


def _require_used(
    spec: RunSpec, documents: Any, source: FileSource | _ItemSource, selection: Selection
) -> None:
    """Check that the fields that say how to read an input have an effect on this one.

    Raises:
        SpecError: One has none.
    """
    given = {name for name in READING & spec.model_fields_set if getattr(spec, name) is not None}
    if "base_dir" in given and not _has_relative(spec, documents):
        raise SpecError(
            "has no effect: no input is a relative path; leave it out", field="base_dir"
        )
    if "delimiter" in given and not source.uses("delimiter"):
        raise SpecError("has no effect: no input is a .csv or .tsv file; leave it out",
                        field="delimiter")  # fmt: skip
    if "sheet" in given and not source.uses("sheet"):
        raise SpecError("has no effect: no input is an .xlsx file; leave it out", field="sheet")
    for field in ("text_column", "id_column"):
        if field in given and not source.uses("text_column"):
            raise SpecError("has no effect: no input has rows; leave it out", field=field)
    if "where" in given and selection.needs_rows and not source.uses("text_column"):
        raise SpecError(
            "has no effect: no input has rows, and so no columns; it may name "
            f"{', '.join(WHERE_NAMES)}",
            field="where",
        )
    if spec.id_column is not None and spec.id_column in _text_columns(spec):
        raise SpecError(
            f"{spec.id_column!r} is the column of the text; name another", field="id_column"
        )
    if "encoding" in given and not source.uses("encoding"):
        raise SpecError("has no effect: no input is text or a table of text; leave it out",
                        field="encoding")  # fmt: skip
    if "parse_timeout_s" in given and not source.uses("parse_timeout_s"):
        raise SpecError("has no effect: no input is a document that is parsed, such as a PDF, "
                        "or a workbook or database; leave it out", field="parse_timeout_s")  # fmt: skip


def _has_relative(spec: RunSpec, documents: Any) -> bool:
    paths = () if documents is not None else spec.inputs
    return any(one != STDIN and not one.startswith(RUN) and is_relative(one) for one in paths)


class _ItemSource:
    """Documents that the caller gives as objects; for the methods see FileSource."""

    def __init__(self, spec: RunSpec, items: Any) -> None:
        self._items = Items(items, text_column=spec.text_column, max_bytes=_max_bytes(spec))

    @property
    def is_lasting(self) -> bool:
        return self._items.is_lasting

    def uses(self, field: str) -> bool:
        return field == "text_column" and self._items.has_rows

    def documents(self, _only: Container[int] | None = None) -> Iterator[Document]:
        return self._items.documents()

    def named(self) -> None:
        """Return None: what there is has been read already, or may be read only once."""

    def columns(self, names: frozenset[str]) -> frozenset[str]:
        found = frozenset[str]()
        for document in self.documents():
            found |= names.intersection(document.columns)
            if found == names:
                break
        return found

    def why_empty(self) -> str:
        return "chunks is empty: there is nothing to do"


def _text_columns(spec: RunSpec) -> frozenset[str]:
    """Return the names that the column of the text may have."""
    if spec.text_column is not None:
        return frozenset({spec.text_column})
    names = {RUN_TEXT_COLUMN if one.startswith(RUN) else DEFAULT_TEXT_COLUMN for one in spec.inputs}
    return frozenset(names or {DEFAULT_TEXT_COLUMN})


def _chosen_files(
    source: FileSource | _ItemSource, selection: Selection, notify: Notify
) -> frozenset[int] | None:
    """Return the files that are chosen by their names alone, so that no other is read; else None.

    Raises:
        InputError: None is chosen.
    """
    named = source.named() if selection.goes_by_name else None
    if not named:
        return None
    chosen = frozenset(
        one.index for one in selection.take(named, again=lambda: named, notify=notify)
    )
    if not chosen:
        raise InputError(selection.none_text())
    return chosen


def _some(documents: Iterator[Document], selection: Selection) -> Iterator[Document]:
    """Return the chosen documents. Raises InputError if there is none that can be used."""
    head: list[Document] = []
    for document in documents:
        head.append(document)
        if document.error is None:
            return chain(head, documents)
    raise InputError(f"no document can be used: {_faults(head)}" if head else selection.none_text())


def _head(
    stream: Iterator[Document], needed: frozenset[str], source: FileSource | _ItemSource
) -> tuple[list[Document], frozenset[str]]:
    """Return the first documents and their columns.

    Raises:
        InputError: No document can be used.
    """
    head: list[Document] = []
    columns: set[str] = set()
    rows = chars = 0
    for document in stream:
        head.append(document)
        if document.error is not None:
            continue
        columns.update(document.columns)
        rows += 1
        chars += len(document.text)
        has_all = needed <= columns
        most = _HEAD_ROWS if has_all or source.is_lasting else _SEARCHED_ROWS
        is_plain = has_all and not document.columns
        if is_plain or rows >= most or chars >= _HEAD_CHARS:
            break
    if not rows:
        raise InputError(
            f"no document can be used: {_faults(head)}" if head else source.why_empty()
        )
    return head, frozenset(columns)


def _faults(faulty: list[Document]) -> str:
    faults = [f"{document.name}: {document.error}" for document in faulty[:_SHOWN_FAULTS]]
    more = len(faulty) - len(faults)
    return "; ".join(faults) + (f"; and {more:,} more" if more else "")


def _refuse_losses(documents: Iterable[Document] | None, warnings: list[Notice]) -> None:
    """Raise InputError if any document or file would be left out.

    Args:
        documents: The documents of the run; None if they can be read only once.
        warnings: The warnings about the input.
    """
    _refuse_notices(warnings)
    shown: list[Document] = []
    total = faulty = 0
    for document in map(encodable, documents or ()):
        total += 1
        if document.error is not None:
            faulty += 1
            shown = shown if len(shown) == _SHOWN_FAULTS else [*shown, document]
    if faulty:
        raise InputError(
            f"strict: {faulty:,} of {total:,} documents cannot be used: {_faults(shown)}"
        )


def _refuse_notices(warnings: list[Notice]) -> None:
    if warnings:
        raise InputError(f"strict: {'; '.join(notice.text for notice in warnings)}")


def _strictly(documents: Iterator[Document]) -> Iterator[Document]:
    for document in documents:
        if document.error is not None:
            raise InputError(f"strict: {document.name} cannot be used: {document.error}")
        yield document
