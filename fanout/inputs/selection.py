"""What a run takes of its input: the documents that meet ``where``, a sample of these, the first ones.

The order is ``where``, ``sample``, ``limit``. The same input always gives the same documents, in the
order of the input, so that a run can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappush, heapreplace
from random import Random
from typing import TYPE_CHECKING

from fanout.core.cells import COLUMN, OWN
from fanout.core.conditions import parse_condition
from fanout.inputs.documents.notices import Notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.cells import Cell
    from fanout.core.conditions import Condition
    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents.notices import Notify

__all__ = ["WHERE_NAMES", "Selection"]

WHERE_NAMES = (
    "document",  # the name of the document
    "index",  # its 0-based position in the input
    "input",  # its text
)
# The characters of a sample that are kept in memory. Of a larger one only the positions are, and
# its documents are read again where that is possible.
_KEPT_CHARS = 64_000_000
_COLUMN_CHARS = 100


@dataclass(kw_only=True)
class _Counts:
    """How many documents of an input were read, and how many of these meet ``where``."""

    read: int = 0
    met: int = 0
    taken: int = 0


class Selection:
    """Chooses documents as a job says; see the module.

    Args:
        spec: The job.
        text_column: The name of the text column in conditions.
    """

    def __init__(self, spec: RunSpec, *, text_column: str) -> None:
        self._condition: Condition | None = parse_condition(spec.where) if spec.where else None
        self._where = spec.where
        self._size = spec.sample
        self._seed = spec.seed or 0
        self._limit = spec.limit
        self._text_column = text_column

    @property
    def is_active(self) -> bool:
        """Whether it may leave out any document."""
        return not (self._condition is None and self._size is None and self._limit is None)

    @property
    def columns(self) -> frozenset[str]:
        """The columns, other than the text, that the condition names."""
        names = self._condition.names if self._condition is not None else ()
        bare = {
            name.removeprefix(COLUMN)
            for name in names
            if name not in WHERE_NAMES and not name.startswith(OWN)
        }
        return frozenset(bare - {self._text_column})

    def take(
        self,
        documents: Iterable[Document],
        *,
        again: Callable[[], Iterable[Document]] | None = None,
        notify: Notify | None = None,
    ) -> Iterator[Document]:
        """Yield the chosen documents in the order of the input, lazily where there is no sample.

        Args:
            documents: All documents.
            again: Returns all documents once more; None if they can be read only once.
            notify: Receives how many documents of how many were taken.
        """
        counts = _Counts()
        chosen = self._met(documents, counts)
        if self._size is not None:
            chosen = self._sampled(chosen, self._size, again)
        is_cut = False
        for document in chosen:
            if counts.taken == self._limit:
                is_cut = True
                break
            counts.taken += 1
            yield document
            # It is known without the next document, which may take long to read.
            if counts.taken == self._limit and self._size is None:
                is_cut = True
                break
        if notify is not None:
            notify(Notice(text=self._report(counts, is_cut=is_cut and self._size is None)))

    def none_text(self) -> str:
        """Return why no document was chosen."""
        return f"where: no document meets `{self._where}`" if self._where else "no document is left"

    def _met(self, documents: Iterable[Document], counts: _Counts) -> Iterator[Document]:
        condition = self._condition
        for document in documents:
            counts.read += 1
            if condition is None or self._meets(document, condition):
                counts.met += 1
                yield document

    def _meets(self, document: Document, condition: Condition) -> bool:
        """Say whether a document is chosen; one whose columns could not be read stays an error."""
        if document.error is not None and not document.columns and self._needs_row(condition):
            return True
        return condition.matches(lambda name: self._cell(document, name))

    def _needs_row(self, condition: Condition) -> bool:
        own = {"document", "index", f"{OWN}document", f"{OWN}index"}
        return not own.issuperset(condition.names)

    def _cell(self, document: Document, name: str) -> Cell:
        own = name.removeprefix(OWN)
        if own in WHERE_NAMES and (own != name or name not in document.columns):
            return document.text if own == "input" else getattr(
                document, "name" if own == "document" else own
            )
        column = name.removeprefix(COLUMN)
        if column == self._text_column and column not in document.columns:
            return document.text
        return document.columns.get(column)

    def _sampled(
        self,
        documents: Iterable[Document],
        size: int,
        again: Callable[[], Iterable[Document]] | None,
    ) -> Iterator[Document]:
        """Yield a uniform sample without repetition.

        Each document draws a number, and those with the smallest are taken: a larger sample of the
        same input has all documents of a smaller one.
        """
        draw = Random(self._seed).random  # noqa: S311 - no secret
        heap: list[tuple[float, int, Document | None]] = []
        chars, is_kept = 0, True
        for position, document in enumerate(documents):
            drawn = draw()
            is_full = len(heap) == size
            if is_full and drawn >= -heap[0][0]:
                continue
            chars += _chars(document)
            entry = (-drawn, position, document if is_kept else None)
            if not is_full:
                heappush(heap, entry)
            elif (out := heapreplace(heap, entry)[2]) is not None:
                chars -= _chars(out)
            if is_kept and again is not None and chars > _KEPT_CHARS:
                is_kept = False
                heap = [(key, at, None) for key, at, _ in heap]
        if is_kept or again is None:
            for _, _, kept in sorted(heap, key=lambda one: one[1]):
                if kept is not None:
                    yield kept
            return
        wanted = {at for _, at, _ in heap}
        for position, document in enumerate(self._met(again(), _Counts())):
            if position in wanted:
                yield document

    def _report(self, counts: _Counts, *, is_cut: bool) -> str:
        if is_cut:
            met = f" of those that meet where ({counts.read:,} read)" if self._where else ""
            return f"taken: the first {counts.taken:,} documents{met}"
        text = f"taken: {counts.taken:,} of {counts.read:,} documents"
        has_more = self._where and counts.met != counts.taken
        return f"{text} ({counts.met:,} meet where)" if has_more else text


def _chars(document: Document) -> int:
    return len(document.text) + _COLUMN_CHARS * (1 + len(document.columns))
