"""The progress of a run that a Python program waits for, where the caller wants to see it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from fanout.system.programs import load_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.runs.results import Status

__all__ = ["shown_progress"]


@contextmanager
def shown_progress(
    on_progress: Callable[[Status], None] | None, *, is_shown: bool, is_embedded: bool
) -> Iterator[Callable[[Status], None] | None]:
    """Give what to call with each status: it shows the progress, if that is to be shown.

    Args:
        on_progress: What the caller wants to be called, too.
        is_shown: Whether to show it, as ``fanout run`` does.
        is_embedded: Whether the run's worker is this program's own.
    """
    if not is_shown:
        yield on_progress
        return
    progress = load_program("progress")(is_embedded=is_embedded)

    def follow(status: Status) -> None:
        progress(status)
        if on_progress is not None:
            on_progress(status)

    try:
        yield follow
    finally:
        progress.close()
