"""The outputs of another run as documents: the input ``run:ID``.

This room knows no runs. Who reads an input passes a function that opens one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from fanout.core.errors import InputError
from fanout.inputs.documents.files import RUN
from fanout.inputs.documents.reading import Checked

if TYPE_CHECKING:
    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.reading import Reading

__all__ = ["RUN_TEXT_COLUMN", "OpenRun", "PastRun", "check_run", "read_run", "run_id_of"]

# The column of the answers.
RUN_TEXT_COLUMN = "output"


class PastRun(Protocol):
    """A run that has ended."""

    @property
    def left_out(self) -> str | None:
        """Which of its branches are no documents, for a notice; None if all are."""
        ...

    def documents(
        self, indices: Iterator[int], *, text_column: str | None, max_bytes: int
    ) -> Iterator[Document]:
        """Yield a document for each branch that succeeded, lazily.

        Args:
            indices: The indices of the next documents.
            text_column: The column of the text; None is the answer.
            max_bytes: The size above which a document is refused.

        Raises:
            InputError: The run changed while it was read.
        """
        ...


# Returns a run by its id. It raises InputError if there is none, or if it cannot be read.
OpenRun = Callable[[str], PastRun]


class CheckedRun(Checked, frozen=True, kw_only=True):
    """A run that was found."""

    run: PastRun


def run_id_of(given: str) -> str | None:
    """Return the id of the run that an input names, or None if it names something else."""
    return given.removeprefix(RUN).strip() if given.startswith(RUN) else None


def check_run(file: InputFile, reading: Reading) -> CheckedRun:
    """Look for a run. Raises InputError if it cannot be read."""
    if reading.open_run is None:
        raise InputError("the outputs of runs cannot be read here", source=file.name)
    run = reading.open_run(file.name.removeprefix(RUN).strip())
    left_out = None if run.left_out is None else f"{file.name}: {run.left_out}"
    return CheckedRun(run=run, left_out=left_out)


def read_run(
    _file: InputFile, checked: CheckedRun, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    """Yield the outputs of a run as documents."""
    return checked.run.documents(
        indices, text_column=reading.text_column, max_bytes=reading.max_bytes
    )
