"""What a run takes of its input: the documents that meet ``where``, a sample of these, the first ones.

The order is ``where``, ``sample``, ``limit``. The same input always gives the same documents, in the
order of the input, so that a run can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.core.cells import COLUMN, OWN
from fanout.core.conditions import parse_condition
from fanout.core.errors import SpecError
from fanout.core.units import plural
from fanout.inputs.documents.notices import Notice
from fanout.inputs.prompts import near_hint
from fanout.inputs.sampling import sampled

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from fanout.core.cells import Cell
    from fanout.core.conditions import Comparison, Condition
    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents.notices import Notify

__all__ = ["WHERE_NAMES", "Selection"]

WHERE_NAMES = (
    "document",  # the name of the document
    "index",  # its 0-based position in the input
    "input",  # its text
)
# What is known even of a document that cannot be used.
_ALWAYS_KNOWN = frozenset({"document", "index"})


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
        text_columns: The names that the column of the text may have.
    """

    def __init__(self, spec: RunSpec, *, text_columns: frozenset[str]) -> None:
        self._condition: Condition | None = parse_condition(spec.where) if spec.where else None
        self._where = spec.where
        self._size = spec.sample
        self._seed = spec.seed or 0
        self._limit = spec.limit
        self._text_columns = text_columns

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
        return frozenset(bare) - self._text_columns

    @property
    def goes_by_name(self) -> bool:
        """Whether it needs no more of documents than their names and their order."""
        names = self._condition.names if self._condition is not None else ()
        return self.is_active and _ALWAYS_KNOWN.issuperset(name.removeprefix(OWN) for name in names)

    @property
    def needs_rows(self) -> bool:
        """Whether the condition names anything that only rows have."""
        names = self._condition.names if self._condition is not None else ()
        return any(name.removeprefix(OWN) not in WHERE_NAMES for name in names)

    def require(self, columns: Collection[str]) -> None:
        """Check that the input has the columns of the condition.

        Raises:
            SpecError: It has not, or a name may be a column's or fanout's.
        """
        for comparison in self._condition.comparisons if self._condition is not None else ():
            self._require(comparison, columns)

    def _require(self, comparison: Comparison, columns: Collection[str]) -> None:
        name = comparison.column
        where = f"at character {comparison.at}: "
        if name in WHERE_NAMES and name in columns:
            raise SpecError(
                f"{where}{name!r} is not clear: the input has a column of this name; write "
                f"{COLUMN}{name} for the column, or {OWN}{name} for fanout's own",
                field="where",
            )
        column = name.removeprefix(COLUMN)
        is_own = name.removeprefix(OWN) in WHERE_NAMES
        if not is_own and column not in columns and column not in self._text_columns:
            known = sorted({*WHERE_NAMES, *columns, *self._text_columns})
            raise SpecError(
                f"{where}there is no column {name!r};{near_hint(name, known)} "
                f"known: {', '.join(known)}",
                field="where",
            )

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
            once_more = None if again is None else lambda: self._met(again(), _Counts())
            chosen = sampled(chosen, self._size, seed=self._seed, again=once_more)
        for document in chosen:
            counts.taken += 1
            yield document
            if counts.taken == self._limit:
                break
        is_cut = counts.taken == self._limit and self._size is None
        if notify is not None:
            notify(Notice(text=self._report(counts, is_cut=is_cut)))

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
        if document.error is not None and not document.columns:
            names = {name.removeprefix(OWN) for name in condition.names}
            if not names <= _ALWAYS_KNOWN:
                return True
        return condition.matches(lambda name: self._cell(document, name))

    def _cell(self, document: Document, name: str) -> Cell:
        own = name.removeprefix(OWN)
        if own in WHERE_NAMES and (own != name or name not in document.columns):
            return {
                "document": document.name,
                "index": document.index,
                "input": document.text,
            }[own]
        column = name if name in document.columns else name.removeprefix(COLUMN)
        is_text = column == document.text_column or column in self._text_columns
        if is_text and column not in document.columns:
            return document.text
        return document.columns.get(column)

    def _report(self, counts: _Counts, *, is_cut: bool) -> str:
        if is_cut:
            met = f" of those that meet where ({counts.read:,} read)" if self._where else ""
            return f"taken: the first {plural(counts.taken, 'document', 'documents')}{met}"
        text = f"taken: {counts.taken:,} of {plural(counts.read, 'document', 'documents')}"
        has_more = self._where and counts.met != counts.taken
        return f"{text} ({counts.met:,} meet where)" if has_more else text
