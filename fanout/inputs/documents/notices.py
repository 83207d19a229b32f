"""Notices about an input for the user: how it is read, and what is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from fanout.core.units import percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Document

__all__ = ["Notice", "Notify", "counted", "listed", "log_notice"]

_log = logging.getLogger("fanout.inputs.documents")
# The share of unusable documents above which a notice is a warning.
_WARN_SHARE = 0.03
_SHOWN_KINDS = 12


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One line for the user about an input; a warning, if a part is left out, is always shown."""

    text: str
    is_warning: bool = False


Notify = Callable[[Notice], None]


def log_notice(notice: Notice) -> None:
    """Log a notice with the logger ``fanout.inputs.documents``, for users of the library."""
    _log.log(logging.WARNING if notice.is_warning else logging.INFO, "%s", notice.text)


def counted(documents: Iterable[Document], notify: Notify) -> Iterator[Document]:
    """Yield documents, and warn at the end if more than a few of them cannot be used."""
    total = faulty = 0
    first = ""
    for document in documents:
        total += 1
        if document.error is not None:
            faulty += 1
            first = first or f"{document.name}: {document.error}"
        yield document
    if faulty and faulty > _WARN_SHARE * total:
        text = (
            f"{faulty:,} of {total:,} documents ({percent(faulty, total)}) cannot be used; "
            f"the first is {first} (strict refuses such an input)"
        )
        notify(Notice(text=text, is_warning=True))


# The singular of kinds that are words and not file extensions.
_SINGULARS = {
    "folders": "folder",
    "broken links": "broken link",
    "links to folders": "link to a folder",
    "special files": "special file",
}


def listed(kinds: dict[str, int]) -> str:
    """Return the counts of each kind as text, the most frequent first: ``12 .pdf, 3 .png``."""
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    named = [(count, _SINGULARS.get(kind, kind) if count == 1 else kind) for kind, count in ordered]
    shown = [f"{count:,} {kind}" for count, kind in named[:_SHOWN_KINDS]]
    more = sum(count for _, count in ordered[_SHOWN_KINDS:])
    return ", ".join([*shown, *([f"{more:,} others"] if more else [])])
