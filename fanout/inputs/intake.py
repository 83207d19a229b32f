"""The intake of a run: its documents, checked against its prompts and its groups."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import InputError
from fanout.inputs.aggregate_checks import likely_typos, part_columns, require_parts
from fanout.inputs.documents import FileSource, Notice, counted, log_notice
from fanout.inputs.losses import (
    faults_in,
    kept_warnings,
    refuse_losses,
    refuse_warnings,
    without_losses,
)
from fanout.inputs.names import DocumentNames
from fanout.inputs.prompt_checks import (
    group_columns,
    label_leaks,
    names_of,
    output_gaps,
    plan_templates,
    query_names,
    require_group,
    require_labels,
    require_prompts,
    templates_of,
    unnamed_groups,
)
from fanout.inputs.prompts import BRANCH_NAMES
from fanout.inputs.reading_fields import require_used
from fanout.inputs.retrieval_prompts import query_templates, step_prompts_of
from fanout.inputs.selection import Selection
from fanout.inputs.sources import source_of, source_of_files, text_columns_of
from fanout.inputs.surrogates import encodable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Chunks, Notify
    from fanout.inputs.documents.past_runs import OpenRun
    from fanout.inputs.prompts import Template
    from fanout.inputs.sources import ItemSource

__all__ = ["FilesToRead", "checked_documents", "files_for_workers"]

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
    warnings, notify_and_keep = kept_warnings(notify)
    source = source_of(spec, documents, notify_and_keep, open_run)
    selection = Selection(spec, text_columns=text_columns_of(spec))
    require_used(spec, documents, source, selection)
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
        refuse_losses(None if again is None else chosen(again()), warnings)
    stream = read()
    head, columns = _checked_head(spec, templates, stream, source, names, selection)
    typos = likely_typos(spec, columns, text_columns=_text_columns(spec, source))
    told = (label_leaks(spec, templates), typos, output_gaps(spec))
    for text in chain(*told, unnamed_groups(spec)):
        notify(Notice(text=text, is_warning=True))
    taken = chosen(chain(head, stream), notify)
    if selection.is_active:
        taken = _some(taken, selection)
    checked = counted(map(encodable, taken), notify)
    return without_losses(checked) if spec.strict else checked


def _checked_head(
    spec: RunSpec,
    templates: list[Template],
    stream: Iterator[Document],
    source: FileSource | ItemSource,
    names: DocumentNames,
    selection: Selection,
) -> tuple[list[Document], frozenset[str]]:
    """Return the first documents and the columns, after checking that these have what the job names.

    Raises:
        PromptError, SpecError, InputError: See ``checked_documents``.
    """
    needed = frozenset[str]().union(*(one.columns(names_of(spec)) for one in templates))
    needed |= frozenset[str]().union(
        *(one.columns(names_of(spec)) for one in query_templates(spec))
    )
    needed |= frozenset[str]().union(*(one.columns(BRANCH_NAMES) for one in plan_templates(spec)))
    needed |= group_columns(spec) | part_columns(spec) | names.columns | selection.columns
    needed |= {*spec.labels.values()}
    head, columns = _head(stream, needed, source)
    if needed - columns and source.is_lasting:
        columns |= source.columns(needed - columns)
    text_columns = _text_columns(spec, source)
    require_prompts(
        templates,
        columns,
        own=names_of(spec),
        text_column=spec.text_column,
        text_columns=text_columns,
        needs_input=not spec.steps,
    )
    require_prompts(
        plan_templates(spec),
        columns,
        text_column=spec.text_column,
        text_columns=text_columns,
        needs_input=False,
    )
    require_prompts(
        query_templates(spec),
        columns,
        own=query_names(spec),
        text_column=spec.text_column,
        text_columns=text_columns,
        needs_input=False,
    )
    step_prompts_of(spec).require_clear(columns)
    require_group(spec, columns, text_columns=text_columns)
    require_parts(spec, columns)
    require_labels(spec, columns, text_columns=text_columns)
    names.require(columns)
    selection.require(columns)
    return head, columns


def files_for_workers(spec: RunSpec, *, notify: Notify = log_notice) -> FilesToRead:
    """Return the files of a job whose documents workers are to read, after checking the job.

    Args:
        spec: The job.
        notify: Receives notices of files that are left out, and of those that are chosen.

    Raises:
        PromptError, SpecError: As ``checked_documents``; documents in files have no columns.
        InputError: A source cannot be listed, no file is chosen, a file has rows or is compressed, or
            ``strict`` refuses what is left out.
    """
    for template in templates_of(spec):
        template.require(names_of(spec), needs_input=not spec.steps)
    for template in query_templates(spec):
        template.require(query_names(spec), needs_input=False)
    for template in plan_templates(spec):
        template.require(BRANCH_NAMES, needs_input=False)
    require_group(spec, frozenset())
    require_parts(spec, frozenset())
    require_labels(spec, frozenset())
    warnings, notify_and_keep = kept_warnings(notify)
    base = Path(spec.base_dir or "")
    source = source_of_files(spec, spec.inputs, base=base, notify=notify_and_keep, parses=False)
    selection = Selection(spec, text_columns=text_columns_of(spec))
    require_used(spec, None, source, selection)
    if spec.strict:
        refuse_warnings(warnings)
    chosen = _chosen_files(source, selection, notify)
    # Now, before there is a run, and workers are asked to read anything.
    source.require_places(chosen)
    return FilesToRead(source=source, chosen=chosen)


def _text_columns(spec: RunSpec, source: FileSource | ItemSource) -> frozenset[str]:
    """Return the names that the column of the text may have; none without rows."""
    return text_columns_of(spec) if source.uses("text_column") else frozenset()


def _chosen_files(
    source: FileSource | ItemSource, selection: Selection, notify: Notify
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
    raise InputError(
        f"no document can be used: {faults_in(head)}" if head else selection.none_text()
    )


def _head(
    stream: Iterator[Document], needed: frozenset[str], source: FileSource | ItemSource
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
            f"no document can be used: {faults_in(head)}" if head else source.why_empty()
        )
    return head, frozenset(columns)
