"""What a run leaves out of its input, which ``strict`` refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import InputError
from fanout.inputs.surrogates import encodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents import Notice, Notify

__all__ = ["faults_in", "kept_warnings", "refuse_losses", "refuse_warnings", "without_losses"]

_SHOWN_FAULTS = 3


def kept_warnings(notify: Notify) -> tuple[list[Notice], Notify]:
    """Return a list, and a function that adds each warning to it and passes on every notice."""
    warnings: list[Notice] = []

    def notify_and_keep(notice: Notice) -> None:
        if notice.is_warning:
            warnings.append(notice)
        notify(notice)

    return warnings, notify_and_keep


def faults_in(faulty: list[Document]) -> str:
    """Return why documents cannot be used: of the first few, and how many more there are."""
    faults = [f"{document.name}: {document.error}" for document in faulty[:_SHOWN_FAULTS]]
    more = len(faulty) - len(faults)
    return "; ".join(faults) + (f"; and {more:,} more" if more else "")


def refuse_losses(documents: Iterable[Document] | None, warnings: list[Notice]) -> None:
    """Raise InputError if any document or file would be left out.

    Args:
        documents: The documents of the run; None if they can be read only once.
        warnings: The warnings about the input.
    """
    refuse_warnings(warnings)
    shown: list[Document] = []
    total = faulty = 0
    for document in map(encodable, documents or ()):
        total += 1
        if document.error is not None:
            faulty += 1
            shown = shown if len(shown) == _SHOWN_FAULTS else [*shown, document]
    if faulty:
        raise InputError(
            f"strict: {faulty:,} of {total:,} documents cannot be used: {faults_in(shown)}"
        )


def refuse_warnings(warnings: list[Notice]) -> None:
    """Raise InputError if there are warnings about the input."""
    if warnings:
        raise InputError(f"strict: {'; '.join(notice.text for notice in warnings)}")


def without_losses(documents: Iterator[Document]) -> Iterator[Document]:
    """Yield documents. Raises InputError for the first one that cannot be used."""
    for document in documents:
        if document.error is not None:
            raise InputError(f"strict: {document.name} cannot be used: {document.error}")
        yield document
