"""The most common error of a run's branches."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["commonest_error", "error_sort"]

_WORD = re.compile(r"[\w-]+")
_MAX_SHOWN = 300
_NO_CALL = frozenset({ErrorKind.CANCELLED, ErrorKind.EXPIRED})


def commonest_error(error: str, failed: Iterable[tuple[ErrorKind, str]]) -> str:
    """Return why a run failed, with the most common error of its branches and its count.

    Branches that made no call because the run was over count only if there are no others.

    Args:
        error: Why the run failed.
        failed: Kind and message of each failed branch.
    """
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], tuple[ErrorKind, str]] = {}
    for kind, message in failed:
        sort = error_sort(kind, message)
        counts[sort] += 1
        examples.setdefault(sort, (kind, message))
    called = Counter({sort: n for sort, n in counts.items() if examples[sort][0] not in _NO_CALL})
    common = (called or counts).most_common(1)
    if not common:
        return error
    (sort, count), (kind, message) = common[0], examples[common[0][0]]
    if message in error:
        return error
    return f"{error}; most common: {kind} {count:,}: {message[:_MAX_SHOWN]}"


def error_sort(kind: ErrorKind | None, message: str | None) -> tuple[str, str]:
    """Return a key that is equal for similar errors: it has no ids, times and lengths."""
    return str(kind), _WORD.sub(_without_numbers, message or "")


def _without_numbers(word: re.Match[str]) -> str:
    return "#" if any(map(str.isdigit, word[0])) else word[0]
