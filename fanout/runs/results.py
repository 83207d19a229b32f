"""The records of a run for callers: status, result and stored aggregate."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import msgspec
from typing_extensions import TypeVar

from fanout.core.records import NO_CALL, share_of
from fanout.core.step_answers import answers_of
from fanout.runs.branch_errors import BranchError
from fanout.runs.output_files import OutputFolder, require_no_wide, write_json
from fanout.runs.rows import RowLayout, full_row
from fanout.runs.status import saved_row
from fanout.runs.tables.formats import format_of
from fanout.runs.tables.output_file import OutputFile

if TYPE_CHECKING:
    from os import PathLike

    from fanout.core.cells import Cell
    from fanout.core.lanes import Lane
    from fanout.core.passage_uses import PassageUse
    from fanout.core.records import ErrorKind, RunStatus, StepOutcome, Usage
    from fanout.runs.evaluation import Evaluation
    from fanout.runs.status import ReduceError
    from fanout.runs.tables.table import Table


__all__ = [
    "Output",
    "Result",
]


_JSON_SUFFIXES = {".json", ".jsonl"}
_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT", default=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Output(Generic[AnswerT]):
    """One branch of a run, failed or not: its place in the input, and its outcome.

    Attributes:
        index: Its position in ``Result.outputs``.
        document: The document's name.
        document_index: The document's 0-based position in the input.
        chunk: The index of its chunk in the run.
        position: The 0-based position of the chunk in its document.
        start: The offset in the document of the chunk's first character.
        end: The offset after its last character.
        aspect: The name of its prompt, or None if the run has a single prompt.
        sample: 0-based number of the sample.
        output: The answer, or None if the branch failed. Text; with a ``schema`` a JSON value, or an
            instance of the type that the schema was given as.
        kind: Why it failed, or None.
        message: One line about the failure, or None.
        attempts: Calls made for it.
        usage: Their usage.
        saved: What the answers had cost that came from the cache, without a call.
        elapsed_s: Seconds from the first call to the end, waits included.
        ended_at: When it ended, in seconds since the epoch; 0 if unknown.
        model: The model that answered; the one that was asked first, if none did.
        asked_model: The model that was asked first: another one is its ``fallback``. None if the branch
            asked several models in turn, for a vote.
        has_fallback: Whether another model may have answered.
        finish_reason: Why the last answer ended, in the provider's words; None if it did not say.
        lane: How the answer was bought, in a job with a ``lane``; None in others, or without an answer,
            unless a batch had its last call.
        is_cut: Whether the answer was cut off at a limit of tokens, and kept.
        confidence: The probability of the chosen label by the model, 0 to 1; None if unknown.
        votes: How often each answer was given, if the branch asked until one had a majority.
        samples: How many answers it asked for until then; None in a run without ``certainty``.
        usage_of: The usage by model, if the branch called several.
        columns: The other columns of the document's row: JSON values.
        text_at: The position of the text among the columns of the row; None if it is no row.
        text_column: The name of the text's column; None if it is no row.
        pages: The numbers of the pages that the chunk is on, from 1 on; empty if unknown.
        headings: The path of headings at the chunk's beginning; empty if there is none.
        title: The title of the part, where a model has split the document; empty where it gave none.
        subtask: What to do, where a model has split the work on the document; else empty.
        text: The chunk, if it is a column of a row, or if the caller asked for it, else None.
        json: The answer as a JSON value, where ``output`` is an instance of a type.
        step_records: The steps of the branch in the order in which they ran, a failed one last; empty in
            a run without steps.
        is_rejected: Whether a judge did not pass the output; None in a run without a judge.
        is_best: Whether it is the best output of its chunk; None in a run that does not look for it, or
            has not found it yet.
        passages: The passages that were found for the prompt, best first, with how much of each there was
            room for; of a branch with steps each step has its own. None in a run without ``retrieve``.
    """

    index: int
    document: str
    document_index: int
    chunk: int
    position: int
    start: int
    end: int
    aspect: str | None
    sample: int
    output: AnswerT | None
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    ended_at: float = 0.0
    model: str | None = None
    asked_model: str | None = None
    has_fallback: bool = False
    finish_reason: str | None = None
    lane: Lane | None = None
    is_cut: bool = False
    confidence: float | None = None
    votes: dict[str, int] = field(default_factory=dict)
    samples: int | None = None
    usage_of: dict[str, Usage] = field(default_factory=dict)
    columns: dict[str, Cell] = field(default_factory=dict)
    text_at: int | None = None
    text_column: str | None = None
    pages: list[int] = field(default_factory=list)
    headings: str = ""
    title: str | None = None
    subtask: str = ""
    text: str | None = None
    json: Any = None
    saved: Usage = NO_CALL
    step_records: tuple[StepOutcome, ...] = ()
    is_rejected: bool | None = None
    is_best: bool | None = None
    passages: tuple[PassageUse, ...] | None = None

    @property
    def steps(self) -> dict[str, Any]:
        """The last answer of each step that ran: text, or a JSON value where it has a schema."""
        return answers_of(self.step_records)

    @property
    def has_latency(self) -> bool:
        """Whether ``elapsed_s`` is the time of calls: that of a batch is no call's."""
        return self.attempts > 0 and self.lane != "batch"

    @property
    def cached(self) -> bool:
        """Whether an answer came from the cache."""
        return self.saved.calls > 0

    @property
    def saved_usd(self) -> float | None:
        """What that saved, in US dollars; 0 without such an answer, None if it is unknown."""
        return self.saved.cost_usd

    @property
    def value(self) -> Any:
        """The answer as a JSON value: what files and tables have."""
        return self.output if self.json is None else self.json

    @property
    def share(self) -> float | None:
        """The votes for the output, by all votes of the branch; None if it has none, or failed."""
        return share_of(self.votes) if self.kind is None else None


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Result(Generic[AnswerT]):
    """The result of a run. Its ``repr`` is one short line; a notebook shows its first rows.

    Attributes:
        run_id: The run's id.
        status: How it ended.
        branches: Every branch in input order: chunks x aspects x models x samples, samples
            fastest.
        aggregated: The aggregate; by group if the run has groups; None if there is none. With an
            ``aggregate_schema`` a JSON value, or an instance of the type that it was given as.
        notes: Remarks of the aggregator, such as a tie or answers that it left out.
        reduce_errors: The calls of an LLM aggregate that failed.
        usage: The usage of all calls; an unknown quantity is None.
        usage_by_model: The same by model.
        saved: What the answers had cost that came from the cache; ``calls`` is their number.
        error: Why the run failed, or None.
        elapsed_s: Seconds from submission to the end.
        layout: What the rows of its branches have.
        aggregated_json: The aggregate as a JSON value, where ``aggregated`` has instances of a type.
        evaluation: The answers against ``labels``; None if the job has none.
    """

    run_id: str
    status: RunStatus
    branches: list[Output[AnswerT]]
    aggregated: Any
    notes: list[str]
    reduce_errors: list[ReduceError]
    usage: Usage
    error: str | None
    elapsed_s: float
    layout: RowLayout = field(default_factory=RowLayout)
    aggregated_json: Any = None
    evaluation: Evaluation | None = None
    usage_by_model: dict[str, Usage] = field(default_factory=dict)
    saved: Usage = NO_CALL

    @property
    def cached(self) -> int:
        """The number of answers that came from the cache."""
        return self.saved.calls

    @property
    def saved_usd(self) -> float | None:
        """What that saved, in US dollars; 0 without such an answer, None if it is unknown."""
        return self.saved.cost_usd

    @property
    def aggregated_value(self) -> Any:
        """The aggregate as a JSON value: what files have."""
        return self.aggregated if self.aggregated_json is None else self.aggregated_json

    @property
    def outputs(self) -> list[AnswerT | None]:
        """The answer of each branch, in input order; None if it failed."""
        return [branch.output for branch in self.branches]

    @property
    def errors(self) -> list[BranchError]:
        """One record for each failed branch, in input order."""
        return [
            BranchError(
                index=branch.index,
                document=branch.document,
                kind=branch.kind,
                message=branch.message or "",
                attempts=branch.attempts,
                aspect=branch.aspect,
                model=branch.model,
                sample=branch.sample,
                columns=branch.columns,
                pages=branch.pages,
                headings=branch.headings,
                finish_reason=branch.finish_reason,
                votes=branch.votes,
                samples=branch.samples,
            )
            for branch in self.branches
            if branch.kind is not None
        ]

    @property
    def coverage(self) -> float:
        """The share of branches that succeeded, 0 to 1; 0 without branches."""
        total = len(self.branches)
        return sum(branch.kind is None for branch in self.branches) / total if total else 0.0

    def __repr__(self) -> str:
        from fanout.runs.result_views import result_line

        return result_line(self)

    def _repr_html_(self) -> str:
        """Return the first rows, the failures by kind, tokens and cost, as notebooks show them."""
        from fanout.runs.result_views import result_page

        return result_page(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-able values, with a row for each branch, in input order.

        Rows have ``index``, ``document``, ``chunk``, ``position``, ``start``, ``end``, ``aspect``,
        ``model``, ``sample``, ``output``, ``kind``, ``message``, ``attempts``, ``usage``, ``elapsed_s`` and
        ``columns``, ``finish_reason``, and ``pages``, ``headings``, ``lane`` and ``confidence`` where they
        are known, ``steps`` and ``rejected`` in jobs with steps, ``is_best`` with the reduce ``best``,
        ``asked_model`` in jobs with a ``fallback``, and ``votes``, ``share`` and ``samples`` in a run with
        ``certainty``; an unknown value is None.
        The result of a job with ``labels`` also has its ``evaluation``.
        """
        return {**self._record(), "branches": [full_row(branch) for branch in self.branches]}

    def _record(self) -> dict[str, Any]:
        kinds = Counter(branch.kind.value for branch in self.branches if branch.kind is not None)
        failed = sum(kinds.values())
        return {
            "run_id": self.run_id,
            "status": self.status.value,
            "total": len(self.branches),
            "succeeded": len(self.branches) - failed,
            "failed": failed,
            "errors": dict(sorted(kinds.items())),
            "coverage": self.coverage,
            "usage": self.usage.to_dict(),
            **saved_row(self.saved),
            "usage_by_model": {name: one.to_dict() for name, one in self.usage_by_model.items()},
            "elapsed_s": round(self.elapsed_s, 3),
            "error": self.error,
            "aggregated": self.aggregated_value,
            "notes": self.notes,
            "reduce_errors": msgspec.to_builtins(self.reduce_errors),
            **({} if self.evaluation is None else {"evaluation": self.evaluation.to_dict()}),
        }

    def to_arrow(self, *, wide: bool = False) -> Any:
        """Return a ``pyarrow.Table`` with a row for each branch, in input order.

        It has the columns of the input, then the answer (``output``, or its fields where answers are
        JSON), then ``error_kind``, ``error``, ``document``, ``pages``, ``chunk``, ``attempts``,
        ``input_tokens``, ``output_tokens`` and ``cost_usd``; what is unknown is missing. After the
        answer there is ``confidence``, if a model gave one to a label. A column of the input that has one of
        these names is called ``column.NAME``.

        Args:
            wide: A row for each chunk, with a column for each aspect, model and sample.

        Raises:
            InputError: The library is not installed.
            RunError: There would be too many columns.
        """
        from fanout.runs.tables.arrow import arrow_table

        return arrow_table(self._table(wide=wide))

    def to_pandas(self, *, wide: bool = False) -> Any:
        """Return a ``pandas.DataFrame`` as ``to_arrow`` does.

        Integers and booleans with missing cells have the types ``Int64`` and ``boolean``.
        """
        from fanout.runs.tables.frames import pandas_frame

        return pandas_frame(self._table(wide=wide))

    def to_polars(self, *, wide: bool = False) -> Any:
        """Return a ``polars.DataFrame`` as ``to_arrow`` does."""
        from fanout.runs.tables.frames import polars_frame

        return polars_frame(self._table(wide=wide))

    def to_parquet(
        self, path: str | PathLike[str], *, wide: bool = False, replace: bool = False
    ) -> None:
        """Write what ``to_arrow`` returns to a Parquet file, which is there once it is complete.

        Args:
            path: The file.
            wide: As for ``to_arrow``.
            replace: Whether an existing file may be replaced.

        Raises:
            InputError: The file is there already, or pyarrow is not installed.
            RunError: It cannot be written, for example on a full disk; an existing one stays.
        """
        self._save_table(Path(path), ".parquet", replace=replace, wide=wide)

    def _table(self, *, wide: bool) -> Table:
        from fanout.runs.tables.spool import MemorySpool
        from fanout.runs.tables.table import gather

        return gather(self.branches, self.layout, MemorySpool(), is_wide=wide)

    def save(self, path: str | PathLike[str], *, replace: bool = False, wide: bool = False) -> None:
        """Write the result to a folder or a table file, as ``fanout run --out`` does, or to JSON.

        Args:
            path: A folder; a file that ends in ``.csv``, ``.tsv``, ``.parquet``, ``.xlsx`` or
                ``.sqlite``, with a row for each branch; one that ends in ``.json``, for the value
                of ``to_dict``; or one that ends in ``.jsonl``, for its branches.
            replace: Whether existing results may be replaced.
            wide: Whether a table file has a row for each chunk, with a column for each aspect,
                model and sample.

        Raises:
            InputError: There are results already, the path cannot be written to, or ``wide`` has
                no effect.
            RunError: A file cannot be written, for example on a full disk; existing results stay.
        """
        target = Path(path)
        suffix = target.suffix.lower()
        if suffix in _JSON_SUFFIXES and not target.is_dir():
            require_no_wide(target, wide=wide)
            is_whole = suffix == ".json"
            rows = [self.to_dict()] if is_whole else map(full_row, self.branches)
            write_json(target, rows, indent=2 if is_whole else None, replaces=replace)
        elif not target.is_dir() and format_of(target) is not None:
            self._save_table(target, suffix, replace=replace, wide=wide)
        else:
            require_no_wide(target, wide=wide)
            with OutputFolder(target, replaces=replace, words=("", "replace=True")) as folder:
                folder.write(self.branches, self.aggregated_value, self._record())

    def _save_table(self, target: Path, suffix: str, *, replace: bool, wide: bool) -> None:
        with OutputFile(
            target,
            self.layout,
            suffix=suffix,
            replaces=replace,
            is_wide=wide,
            words=("", "replace=True", "wide"),
        ) as file:
            for loss in file.write(self.branches):
                _log.warning("%s", loss)
