"""What is to be said about an input beside its documents: how it is read, and what is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Document

__all__ = ["Notice", "Notify", "counted", "listed", "log_notice"]

_log = logging.getLogger("fanout.inputs.documents")
# Of how many documents that cannot be used it is said loudly, as a share of all.
_LOUD_SHARE = 0.03
_SHOWN_KINDS = 12


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be said about an input.

    Attributes:
        text: The line.
        is_warning: Whether it must be seen also by who wants no progress: some input is left out.
    """

    text: str
    is_warning: bool = False


Notify = Callable[[Notice], None]


def log_notice(notice: Notice) -> None:
    """Say it to who uses the library: a warning of the logger ``fanout.inputs.documents``."""
    _log.log(logging.WARNING if notice.is_warning else logging.INFO, "%s", notice.text)


def counted(documents: Iterable[Document], notify: Notify) -> Iterator[Document]:
    """Yield documents, and say at the end when more than a few of them could not be used."""
    total = faulty = 0
    first = ""
    for document in documents:
        total += 1
        if document.error is not None:
            faulty += 1
            first = first or f"{document.name}: {document.error}"
        yield document
    if faulty and faulty > _LOUD_SHARE * total:
        text = (
            f"{faulty:,} of {total:,} documents ({faulty / total:.1%}) cannot be used; "
            f"the first is {first} (strict refuses such an input)"
        )
        notify(Notice(text=text, is_warning=True))


# Kinds that are words, not the ends of names, as they are called where there is one.
_SINGULARS = {
    "folders": "folder",
    "broken links": "broken link",
    "links to folders": "link to a folder",
    "special files": "special file",
}


def _of(count: int, kind: str) -> str:
    return _SINGULARS.get(kind, kind) if count == 1 else kind


def listed(kinds: dict[str, int]) -> str:
    """Return how many there are of each kind, the most frequent first: ``12 .pdf, 3 .png``."""
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{count:,} {_of(count, kind)}" for kind, count in ordered[:_SHOWN_KINDS]]
    more = sum(count for _, count in ordered[_SHOWN_KINDS:])
    return ", ".join([*shown, *([f"{more:,} others"] if more else [])])
