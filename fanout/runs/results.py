"""The records of a run for callers: status, result and stored aggregate."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import msgspec

from fanout.core.records import NO_CALL
from fanout.runs.branch_errors import BranchError
from fanout.runs.branch_output import AnswerT, Output
from fanout.runs.output_files import OutputFolder, require_no_wide, write_json
from fanout.runs.rows import RowLayout, full_row
from fanout.runs.savings import Savings, saved_row
from fanout.runs.status import coverage_value
from fanout.runs.tables.formats import format_of
from fanout.runs.tables.output_file import OutputFile

if TYPE_CHECKING:
    from os import PathLike

    from fanout.core.records import RunStatus, Usage
    from fanout.runs.evaluation_result import Evaluation
    from fanout.runs.status import ReduceError
    from fanout.runs.tables.table import Table


__all__ = ["Result"]


_JSON_SUFFIXES = {".json", ".jsonl"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Result(Savings, Generic[AnswerT]):
    """The result of a run. Its ``repr`` is one short line; a notebook shows its first rows.

    Attributes:
        run_id: The run's id.
        status: How it ended.
        branches: Every branch in input order: chunks x aspects x models x samples, samples
            fastest.
        aggregated: The aggregate; by group if the run has groups; None if there is none. With an
            ``aggregate_schema`` a JSON value, or an instance of the type that it was given as. Of a list of
            reduces, this and the next two are dicts with that of each, by name.
        aggregate_coverage: What is behind the aggregate: a ``Coverage`` with documents, chunks and
            branches, and what is missing; by group if the run has groups; None if there is none.
        sources: What the aggregate cites, in the order in which it first cites it: a list of ``Source``,
            each with id, document, pages, chunk, branch, and how often; by group if the run has groups;
            None without ``sources``.
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
        has_reduces: Whether the job has a list of reduces.
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
    # As the aggregate: a value, or values by reduce and group.
    aggregate_coverage: Any = None
    sources: Any = None
    has_reduces: bool = False

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
        return [BranchError.of(branch) for branch in self.branches if branch.kind is not None]

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
        ``rank`` with ``rank``, ``top`` and ``pairwise``, ``asked_model`` in jobs with a ``fallback``, and
        ``votes``, ``share`` and ``samples`` in a run with ``certainty``; an unknown value is None.
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
            "aggregate_coverage": coverage_value(self.aggregate_coverage),
            "sources": msgspec.to_builtins(self.sources),
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
                folder.write(
                    self.branches,
                    self.aggregated_value,
                    self._record(),
                    is_by_name=self.has_reduces,
                    failed_calls=self.reduce_errors,
                )

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
