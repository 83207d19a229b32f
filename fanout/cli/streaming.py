"""``--stream``: the branches of a run on standard output, as they end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fanout.cli.session import print_json
from fanout.core.errors import BrokerError, RunError
from fanout.runs.rows import stream_row

if TYPE_CHECKING:
    from typing import Self

    from fanout.client.run import Run

__all__ = ["StreamPrinter"]

# The thread may wait for the reader of a pipe, which nothing can end.
_CLOSE_S = 1.0


class StreamPrinter:
    """Prints each branch of a run once, as a line of JSON, in a thread of its own.

    The input may still be read meanwhile. A reader that goes away, or a full disk, ends the
    printing and not the run.
    """

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    def begin(self, run: Run) -> None:
        """Print the branches of this run from here on."""
        self._thread = threading.Thread(target=self._print, args=(run,), daemon=True)
        self._thread.start()

    def _print(self, run: Run) -> None:
        try:
            for branch in run.stream():
                if self._is_over.is_set():
                    return
                print_json(stream_row(branch))
        except Exception as error:  # noqa: BLE001 - ``finish`` raises it
            self._fault = error

    def finish(self) -> None:
        """Wait until all branches of a run that has ended are printed.

        Raises:
            OSError: They could not be; a BrokenPipeError where the reader is gone.
            RunError: They could not be read.
        """
        if self._thread is not None:
            self._thread.join()
        if isinstance(self._fault, BrokerError):
            raise RunError(f"cannot print all branches: {self._fault}") from self._fault
        if self._fault is not None:
            raise self._fault

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)
