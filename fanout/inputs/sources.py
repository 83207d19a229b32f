"""What a run reads: files, or objects that the caller gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout.inputs.documents import FileSource, Items, log_notice
from fanout.inputs.documents.files import RUN
from fanout.inputs.documents.past_runs import RUN_TEXT_COLUMN
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Notify
    from fanout.inputs.documents.past_runs import OpenRun

__all__ = ["ItemSource", "has_only_rows", "source_of", "source_of_files", "text_columns_of"]


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


def source_of(
    spec: RunSpec, documents: Any, notify: Notify, open_run: OpenRun | None
) -> FileSource | ItemSource:
    """Return what a run reads. Raises InputError."""
    if documents is None:
        base = Path(spec.base_dir or "")
        return source_of_files(spec, spec.inputs, base=base, notify=notify, open_run=open_run)
    return ItemSource(spec, documents)


class ItemSource:
    """Documents that the caller gives as objects; for the methods see FileSource."""

    def __init__(self, spec: RunSpec, items: Any) -> None:
        self._items = Items(items, text_column=spec.text_column, max_bytes=_max_bytes(spec))

    @property
    def is_lasting(self) -> bool:
        """Whether they can be read twice."""
        return self._items.is_lasting

    def uses(self, field: str) -> bool:
        """Say whether a field of the job has an effect on them."""
        return field == "text_column" and self._items.has_rows

    def documents(self, _only: Container[int] | None = None) -> Iterator[Document]:
        """Read them."""
        return self._items.documents()

    def named(self) -> None:
        """Return None: what there is has been read already, or may be read only once."""

    def columns(self, names: frozenset[str]) -> frozenset[str]:
        """Return which of some columns they have."""
        found = frozenset[str]()
        for document in self.documents():
            found |= names.intersection(document.columns)
            if found == names:
                break
        return found

    def why_empty(self) -> str:
        """Return why there is no document."""
        return "chunks is empty: there is nothing to do"


def text_columns_of(spec: RunSpec) -> frozenset[str]:
    """Return the names that the column of the text may have."""
    if spec.text_column is not None:
        return frozenset({spec.text_column})
    names = {RUN_TEXT_COLUMN if one.startswith(RUN) else DEFAULT_TEXT_COLUMN for one in spec.inputs}
    return frozenset(names or {DEFAULT_TEXT_COLUMN})


def _max_bytes(spec: RunSpec) -> int:
    return int(spec.max_document_mb * 1_000_000)
