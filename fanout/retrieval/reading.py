"""The passages of files, folders, tables and other runs: read as inputs are, and split."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.cells import cell_text
from fanout.core.errors import InputError
from fanout.core.tokens import BYTES_PER_TOKEN
from fanout.core.units import page_range
from fanout.inputs.documents import FileSource, Notice
from fanout.inputs.fences import blocks
from fanout.inputs.splitters import make_splitter, split_documents
from fanout.inputs.surrogates import encodable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Chunk
    from fanout.core.retrieval import Retrieval
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Notify
    from fanout.inputs.documents.past_runs import OpenRun
    from fanout.inputs.fences import Fenced

__all__ = ["ReadPassage", "expected_contexts", "read_passages"]

_PATTERN = re.compile(r"[*?\[]")
# How many passages show how long they are.
_SHOWN = 1_000
# An id in brackets, where the passage is from, and what is between two of them.
_FRAME_CHARS = 12
# What errors of inputs tell a user to give, and what it is for passages.
_TOLD = (
    (
        "name one with text_column (--text-column)",
        "name one with passage_column (--passage-column)",
    ),
    ("; see text_column", "; see passage_column"),
    ("; give it as delimiter (--delimiter)", "; write it with commas between its cells"),
)
_TITLE = "title"
_LONGEST_TITLE = 200


class ReadPassage(NamedTuple):
    """A passage of a file.

    Attributes:
        text: The text.
        source: Where it is from: the name of its document, with its pages.
        title: The column ``title`` of its row, or the headings that it stands under; perhaps empty.
    """

    text: str
    source: str
    title: str = ""


def read_passages(
    spec: RunSpec, source: str, *, notify: Notify, open_run: OpenRun | None = None
) -> Iterator[ReadPassage]:
    """Yield the passages of what a job retrieves from, as they are read.

    Args:
        spec: The job.
        source: The files.
        notify: Receives notices of what is left out.
        open_run: Opens the runs that are sources.

    Raises:
        InputError: It does not exist, cannot be read, or has no passage.
    """
    # By a quarter of the bytes, for any model: so all jobs share the index.
    splitter = make_splitter("markdown", chunk_tokens=spec.passage_tokens)
    count, fault = 0, None
    try:
        files = FileSource(
            (source,),
            text_column=spec.passage_column,
            delimiter=None,
            sheet=None,
            encoding=spec.encoding,
            parse_timeout_s=spec.parse_timeout_s,
            max_bytes=int(spec.max_document_mb * 1_000_000),
            base=Path(spec.base_dir or ""),
            notify=notify,
            open_run=open_run,
        )
        for chunk in split_documents(map(encodable, files.documents()), splitter):
            if chunk.error is not None:
                fault = _of_passages(f"{chunk.document}: {chunk.error}")
                notify(Notice(text=f"no passages of {fault}", is_warning=True))
                continue
            if chunk.text.strip():
                count += 1
                yield ReadPassage(chunk.text, _source_of(chunk, source), _title_of(chunk))
    except InputError as error:
        raise InputError(_of_passages(f"retrieve: {error}")) from None
    if not count:
        raise InputError(f"retrieve: there is no passage in {source} ({fault or 'it is empty'})")


def _of_passages(problem: str) -> str:
    """Return what is wrong with an input as what is wrong with passages: their fields have other names."""
    for ours, theirs in _TOLD:
        problem = problem.replace(ours, theirs)
    return problem


def _source_of(chunk: Chunk, source: str) -> str:
    """Return where a passage is from: its file, as it is called in the folder of all, and its pages."""
    name = chunk.document
    # A machine's own folders are nothing for a prompt, and would give each an index of its own.
    folder = source.rstrip("/") + "/"
    if not name.startswith(folder):
        folder = _PATTERN.split(source, maxsplit=1)[0].rpartition("/")[0] + "/"
    name = name.removeprefix(folder)
    pages = page_range(chunk.pages)
    return " ".join((f"{name}, page {pages}" if pages else name).split())


def _title_of(chunk: Chunk) -> str:
    cell = chunk.columns.get(_TITLE)
    title = chunk.headings if cell is None else cell_text(cell)
    line = " ".join(title.split())
    return line if len(line) <= _LONGEST_TITLE else f"{line[:_LONGEST_TITLE].rstrip()}..."


def expected_contexts(spec: RunSpec, *, open_run: OpenRun | None = None) -> dict[str, Fenced]:
    """Return texts about as long as the ``{context}`` of each step, by the first passages there are.

    That of a job without steps has an empty name. What a function finds is taken to be as long as a
    passage of a file may be.

    Raises:
        InputError: As ``read_passages`` does.
    """
    steps = [(step.name, spec.retrieval(step)) for step in spec.steps if not step.function]
    named = steps or [("", spec.retrieval())]
    return {
        name: _expected(spec, retrieval, open_run)
        for name, retrieval in named
        if retrieval is not None
    }


def _expected(spec: RunSpec, retrieval: Retrieval, open_run: OpenRun | None) -> Fenced:
    most = spec.passage_tokens * BYTES_PER_TOKEN + _FRAME_CHARS
    if retrieval.is_function:
        return blocks("passage", ["word " * (most // len("word "))] * retrieval.top_k)
    shown: list[str] = []
    passages = read_passages(spec, retrieval.source, notify=lambda _notice: None, open_run=open_run)
    for passage in passages:
        shown.append(f"{passage.text} {passage.source} {passage.title}{' ' * _FRAME_CHARS}")
        if len(shown) >= _SHOWN:
            break
    together, count = "".join(shown), min(len(shown), retrieval.top_k)
    size = max(1, len(together) // len(shown))
    return blocks("passage", [together[at * size :][:size] for at in range(count)])
