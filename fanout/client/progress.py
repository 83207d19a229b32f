"""The progress of a run that a Python program waits for, where the caller wants to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.system.programs import load_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.runs.status import Status

__all__ = ["ShownProgress"]


class ShownProgress:
    """Gives what to call with each status: it shows the progress, if that is to be shown.

    Args:
        on_progress: What the caller wants to be called, too.
        is_shown: Whether to show it, as ``fanout run`` does.
        is_embedded: Whether the run's worker is this program's own.
    """

    def __init__(
        self, on_progress: Callable[[Status], None] | None, *, is_shown: bool, is_embedded: bool
    ) -> None:
        self._on_progress = on_progress
        self._progress = load_program("progress")(is_embedded=is_embedded) if is_shown else None

    def __enter__(self) -> Callable[[Status], None] | None:
        return self._on_progress if self._progress is None else self._follow

    def _follow(self, status: Status) -> None:
        if self._progress is not None:
            self._progress(status)
        if self._on_progress is not None:
            self._on_progress(status)

    def __exit__(self, *_exc: object) -> None:
        if self._progress is not None:
            self._progress.close()
