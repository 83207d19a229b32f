"""The outputs of a run that has ended, as the documents of another one.

Each branch that succeeded is a row: the columns of its own row, its text among them; ``aspect`` and
``sample`` where the run has several; ``title``, ``subtask`` and ``passages`` where its parts and prompts
have them; the answers of its steps, ``rejected``, ``is_best`` and ``rank``, as its tables have them;
``output``, which is the text; and the fields of an answer that is a JSON object. A name of fanout's own
always means fanout's: a column of that name is called ``column.NAME``, and a field of an answer that has
the name of a column ``output.NAME``.

A branch of a run in which workers read is the document that it has read, or the reason why it has not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.cells import cell_text
from fanout.core.errors import InputError
from fanout.core.json_text import parse_json
from fanout.core.model_names import READER_MODEL
from fanout.core.records import Document, RunStatus
from fanout.inputs.documents.parsed import Parsed
from fanout.inputs.documents.past_runs import RUN_TEXT_COLUMN
from fanout.inputs.documents.rows import checked, document_of_row, faulty
from fanout.runs.rows import free_name, layout_of, part_cells, source_cells
from fanout.runs.status import retry_help
from fanout.runs.tables.table import step_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.cells import Cell
    from fanout.core.spec import RunSpec
    from fanout.runs.branch_output import Output
    from fanout.runs.status import Status

__all__ = ["RunOutputs"]

_FIELD = f"{RUN_TEXT_COLUMN}."


class RunOutputs:
    """The outputs of a run; see ``fanout.inputs.documents.past_runs.PastRun``.

    Args:
        spec: The job of the run.
        status: Its status.
        outputs: Yields its branches in input order, with their texts.

    Raises:
        InputError: It has not ended, or has no output.
    """

    def __init__(
        self, spec: RunSpec, status: Status, outputs: Callable[[], Iterable[Output[Any]]]
    ) -> None:
        self._spec = spec
        self._status = status
        self._outputs = outputs
        layout = layout_of(spec)
        self._steps = step_columns(layout)
        # A step that did not run has empty cells.
        self._step_names = [name for names in self._steps.names() for name in names]
        self._layout = layout
        run_id = status.run_id
        if not status.status.has_ended:
            raise InputError(
                f"has not ended ({status.status.value}, {status.done:,} of {status.total:,} "
                f"branches done): `fanout watch {run_id}` follows it to its end",
                source=self._name,
            )
        # What workers could not read is a document with the reason.
        self._is_reading = spec.model == READER_MODEL
        if not status.succeeded and not self._is_reading:
            raise InputError(
                f"has no output ({status.status.value}, {status.failed:,} of {status.total:,} "
                f"branches failed): `fanout errors {run_id}` says why",
                source=self._name,
            )

    @property
    def _name(self) -> str:
        return f"run:{self._status.run_id}"

    @property
    def left_out(self) -> str | None:
        """Which branches have no output, or None."""
        status = self._status
        parts = []
        if status.status is RunStatus.CANCELLED:
            parts.append("it was cancelled, and may not have read its whole input")
        if status.failed and not self._is_reading:
            branches = "branch has" if status.total == 1 else "branches have"
            parts.append(
                f"{status.failed:,} of {status.total:,} {branches} no output, and are left out "
                f"({retry_help(status)})"
            )
        return "; ".join(parts) or None

    def documents(
        self, indices: Iterator[int], *, text_column: str | None, max_bytes: int
    ) -> Iterator[Document]:
        """Yield a document for each output, lazily.

        Raises:
            InputError: The run was deleted, retried or changed while it was read.
        """
        count = 0
        for output in self._outputs():
            if output.kind is None:
                count += 1
                yield self._document(output, next(indices), text_column, max_bytes)
            elif self._is_reading:
                yield faulty(output.document, next(indices), output.message or str(output.kind))
        if count != self._status.succeeded:
            raise InputError(
                f"changed while it was read: it had {self._status.succeeded:,} outputs, and "
                f"{count:,} were there",
                source=self._name,
            )

    def _document(
        self, output: Output[Any], index: int, text_column: str | None, max_bytes: int
    ) -> Document:
        cells = source_cells(output)
        if self._is_reading and text_column in {None, RUN_TEXT_COLUMN}:
            return _read_document(output, index, cells, max_bytes)
        row = self._row(output, cells)
        document = document_of_row(
            output.document, index, row, text_column or RUN_TEXT_COLUMN, max_bytes
        )
        headings = [(0, output.headings)] if output.headings else []
        return msgspec.structs.replace(
            document,
            text_column="" if text_column else RUN_TEXT_COLUMN,
            page_numbers=output.pages,
            headings=headings,
        )

    def _row(self, output: Output[Any], cells: dict[str, Cell]) -> dict[str, Cell]:
        own: dict[str, Cell] = {}
        if len(self._spec.prompts) > 1:
            own["aspect"] = output.aspect
        if len(self._spec.variants.models) > 1 or self._spec.fallback:
            own["model"] = output.model
        if self._spec.fallback:
            own["asked_model"] = output.asked_model
        if self._spec.variants.samples > 1:
            own["sample"] = output.sample
        own |= part_cells(output, self._layout)
        own |= dict.fromkeys(self._step_names)
        for of_step in self._steps.cells(output):
            own |= of_step
        if self._layout.has_judge:
            own["rejected"] = output.is_rejected
        if self._layout.has_best:
            own["is_best"] = output.is_best
        if self._layout.has_rank:
            own["rank"] = output.rank
        own[RUN_TEXT_COLUMN] = cell_text(output.value)
        row = {free_name(name, own): cell for name, cell in cells.items()} | own
        for field, value in self._fields(output.value).items():
            row[_FIELD + field if field in row else field] = value
        return row

    def _fields(self, answer: Any) -> dict[str, Cell]:
        """Return the fields of an answer that is a JSON object."""
        if self._spec.steps or self._spec.schema is not None:
            return answer if isinstance(answer, dict) else {}
        if self._spec.output_format != "json":
            return {}
        try:
            value = parse_json(answer)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def _read_document(
    output: Output[Any], index: int, cells: dict[str, Cell], max_bytes: int
) -> Document:
    """Return the document that a worker has read."""
    try:
        read = msgspec.json.decode(output.output or "", type=Parsed)
    except msgspec.DecodeError as error:
        return faulty(output.document, index, f"its reading gave no document: {error}")
    document = checked(output.document, index, read.text, max_bytes)
    if document.error is not None:
        return document
    return msgspec.structs.replace(
        document, columns=cells, pages=read.pages, headings=read.headings
    )
