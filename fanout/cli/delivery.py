"""Deliver the answer of a run that has ended."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.evaluation_view import evaluation_lines, evaluation_note, shortfalls
from fanout.cli.exits import CLOSED_PIPE, FAILURE, mute_stdout
from fanout.cli.progress import summary
from fanout.cli.run_answer import RunAnswer
from fanout.cli.run_facts import model_lines
from fanout.cli.session import print_json
from fanout.core.errors import FanoutError, RunError
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.units import plural
from fanout.inputs.documents.urls import shown_input
from fanout.runs.answer_text import source_lines
from fanout.runs.rows import output_row
from fanout.runs.status import retry_help, without_aggregate
from fanout.runs.tables.output_file import OutputFile
from fanout.system.terminal import print_error, print_line, print_parts, print_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from fanout.cli.destinations import Destination
    from fanout.cli.evaluation_view import Threshold
    from fanout.cli.progress import Progress
    from fanout.cli.streaming import StreamPrinter
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.runs.status import ReduceError, Status

__all__ = [
    "Delivery",
    "Scoring",
    "conclude",
    "deliver",
    "json_option",
    "left_out",
    "quiet_option",
    "unpaid_calls",
]

# Notes that are printed for people; groups may have very many.
_NOTES = 100

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the status and the answer as JSON."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the answers of a run are evaluated.

    Attributes:
        threshold: What each variant must reach; None is nothing.
        labels: The columns of the labels by field; None takes those of the job.
    """

    threshold: Threshold | None = None
    labels: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where the answer of a run goes.

    Attributes:
        out: The folder or the file of ``--out``; None writes none.
        stream: Has printed the branches as they ended; None prints them at the end.
        report: The file to write the run to as a web page; None writes no page.
        is_new: Whether to tell the user how to print it again.
        is_stopped: Whether the user has stopped the run.
        is_cut: Whether that was before its input was read to its end.
        is_kept: Whether the server keeps the run after this command.
        scoring: How to evaluate the answers, which are then not printed; None delivers them.
    """

    out: Destination | None = None
    stream: StreamPrinter | None = None
    report: Path | None = None
    as_json: bool = False
    is_new: bool = False
    is_stopped: bool = False
    is_cut: bool = False
    is_kept: bool = True
    scoring: Scoring | None = None


def deliver(run: Run, status: Status, progress: Progress, delivery: Delivery) -> int:
    """Print the answer of a run, or how good it is, write its files, and return the exit status."""
    aggregated = run.stored_aggregate()
    labels = None if delivery.scoring is None else delivery.scoring.labels
    answer = RunAnswer(
        aggregated=aggregated,
        evaluation=run.evaluation(labels),
        has_sources=run.spec.sources,
    )
    faults: list[str] = []
    with _noting(faults, "cannot write the results"):
        if delivery.is_cut:
            progress.warn("the run was stopped: its input was not read to its end")
        if delivery.is_stopped and isinstance(delivery.out, OutputFile):
            progress.warn(_unwritten(delivery.out, run.run_id, is_kept=delivery.is_kept))
        elif delivery.out is not None:
            _write(run, status, answer, progress, delivery.out)
    with _noting(faults, f"cannot write the report to {delivery.report}"):
        if delivery.report is not None:
            from fanout.report import write

            write(run, delivery.report, labels=labels)
            progress.note(f"report: {delivery.report}")
    # A full disk must not cost the answer too.
    is_read = True
    with _noting(faults, "cannot print the answers"):
        try:
            if delivery.stream is not None:
                delivery.stream.finish()
            _print(run, status, answer, progress, delivery)
        except BrokenPipeError:
            if not delivery.is_new:
                # The reader has closed the pipe, and can ask for the answer again.
                raise
            mute_stdout()
            is_read = False
    for note in _notes(answer, status, delivery):
        progress.note(note)
    for line in _again(run.run_id, status, answer, delivery) if delivery.is_new else ():
        progress.note(line)
    exit_status = conclude(status, progress, run=run) or _say_shortfalls(answer, delivery)
    return _say_faults(faults, run, delivery, exit_status, is_read=is_read)


def _notes(answer: RunAnswer, status: Status, delivery: Delivery) -> Iterator[str]:
    is_text = delivery.stream is None and not delivery.as_json and delivery.scoring is None
    # The text, or the error of the run, says why there is no aggregate.
    is_told = is_text and bool(answer.aggregated)
    has_error = status.error is not None
    notes = enumerate(answer.aggregated.each_note(has_reasons=not is_told, has_error=has_error))
    yield from (f"note: {note}" for _, note in islice(notes, _NOTES))
    last = max((number + 1 for number, _ in notes), default=_NOTES)
    if last > _NOTES:
        yield f"and {last - _NOTES:,} more notes: `--json` has all"
    # An evaluation that is printed has them.
    if answer.evaluation is not None and delivery.scoring is None:
        yield from evaluation_note(answer.evaluation)
        yield from (f"note: {note}" for note in answer.evaluation.notes)


def _say_shortfalls(answer: RunAnswer, delivery: Delivery) -> int:
    """Print which variants miss the threshold; return the exit status."""
    found = _shortfalls(answer, delivery)
    for shortfall in found:
        print_error(shortfall)
    return FAILURE if found else 0


def _shortfalls(answer: RunAnswer, delivery: Delivery) -> list[str]:
    threshold = None if delivery.scoring is None else delivery.scoring.threshold
    if threshold is None or answer.evaluation is None:
        return []
    return list(shortfalls(answer.evaluation, threshold))


def _write(
    run: Run, status: Status, answer: RunAnswer, progress: Progress, out: Destination
) -> None:
    if isinstance(out, OutputFile):
        for loss in out.write(run.outcomes()):
            progress.warn(loss)
    else:
        record = {**answer.to_dict(status), "spec": spec_record(run.spec)}
        # It has a file of its own.
        del record["aggregated"]
        is_by_name = bool(run.spec.reduces)
        parts = answer.parts(status, is_indented=True)
        out.write(
            run.outcomes(),
            answer.aggregated,
            record,
            is_by_name=is_by_name,
            failed_calls=answer.aggregated.values.errors(),
            parts=parts,
        )
    progress.note(f"results: {out.path}")


def _unwritten(out: OutputFile, run_id: str, *, is_kept: bool) -> str:
    """Return why a table file is not written: a part of a table would pass for the whole."""
    again = (
        f"`fanout results {run_id} --out {out.path}` writes what has finished"
        if is_kept
        else "the run was not kept"
    )
    return f"{out.path} is not written, as the run was stopped: {again}"


def spec_record(spec: RunSpec) -> dict[str, Any]:
    """Return a job as JSON values, with the credentials in the URLs of its inputs masked."""
    return {**spec.model_dump(mode="json"), "inputs": list(map(shown_input, spec.inputs))}


def _say_faults(
    faults: list[str], run: Run, delivery: Delivery, exit_status: int, *, is_read: bool
) -> int:
    """Print what was not written, and how to get it; return the exit status."""
    if faults:
        exit_status = FAILURE
    elif not is_read:
        exit_status = exit_status or CLOSED_PIPE
        faults.append("cannot print all answers: the reader has closed the pipe")
    for fault in faults:
        print_error(fault)
    if faults:
        again = f"`fanout results {run.run_id} --out DIR` writes the answers again"
        if delivery.scoring is not None:
            again = f"`fanout eval {run.run_id}` prints the evaluation again, {again}"
        again = f"nothing is lost: {again}"
        print_error(again if delivery.is_kept else "the run was not kept")
    return exit_status


def unpaid_calls(run_id: str, status: Status, failed: Iterable[ReduceError]) -> Iterator[str]:
    """Yield how calls of the aggregate are made that the budget had no room for, if there are any.

    Args:
        run_id: The run.
        status: Its status.
        failed: The failed calls of its aggregate; read only if it has a budget.
    """
    if status.budget is None or not status.budget.limited:
        return
    over = sum(one.kind is ErrorKind.BUDGET for one in failed)
    if over:
        calls, them = plural(over, "call", "calls"), "them" if over > 1 else "it"
        yield (
            f"cut short by the budget: {calls} of the aggregate; `fanout retry {run_id} "
            f"--budget-{status.budget.fullest} N` makes {them} with a larger budget"
        )


def left_out(status: Status) -> Iterator[str]:
    """Yield which branches of a run that has ended are missing, and what helps, if there are any."""
    run_id = status.run_id
    if not status.failed:
        return
    failed = plural(status.failed, "branch", "branches")
    if status.errors.get(ErrorKind.BAD_REQUEST, 0) == status.failed:
        # As often as they are tried.
        yield f"left out: {failed} that cannot be used; `fanout errors {run_id}` says why"
        return
    it = "it" if status.failed == 1 else "them"
    yield f"left out: {failed}; `fanout errors {run_id}` lists {it}, {retry_help(status)}"


def _again(run_id: str, status: Status, answer: RunAnswer, delivery: Delivery) -> Iterator[str]:
    """Yield which branches are missing, and how to print the answer again."""
    if delivery.is_kept:
        yield from left_out(status)
    if delivery.is_kept and not delivery.is_stopped:
        yield from unpaid_calls(run_id, status, answer.aggregated.values.errors())
    if delivery.scoring is not None and delivery.is_kept:
        yield f"kept: `fanout eval {run_id}` prints this again, `fanout results {run_id}` the answers"
    elif delivery.out is None and delivery.is_kept and not delivery.is_stopped:
        yield f"kept: `fanout results {run_id}` prints this again, with --out DIR into files"


@contextmanager
def _noting(faults: list[str], what: str) -> Iterator[None]:
    """Record a failed write in ``faults`` and continue with the next output."""
    try:
        yield
    except RunError as error:
        faults.append(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        faults.append(f"{what}: {error.strerror or error}")


def conclude(status: Status, progress: Progress, *, run: Run | None = None) -> int:
    """Print how a run ended; return the exit status.

    Args:
        status: The last status of the run.
        progress: Prints the summary.
        run: The run whose most frequent error is printed; None prints none, as errors may quote
            documents that a watcher should not see.
    """
    progress.note(summary(status))
    for line in model_lines(status):
        progress.note(line)
    problem = status.error
    if run is not None:
        # The errors of the branches may be gone; that of the run is in its status.
        with suppress(FanoutError):
            problem = run.problem(status)
    if problem:
        print_error(problem)
    return 0 if status.status is RunStatus.SUCCEEDED else 1


def _print(
    run: Run, status: Status, answer: RunAnswer, progress: Progress, delivery: Delivery
) -> None:
    if delivery.stream is not None:
        if answer.aggregated:
            parts = {"aggregated": answer.aggregated.json(), **answer.sources()}
            print_json(dict.fromkeys(parts), parts)
    elif delivery.as_json:
        record = {**answer.to_dict(status), **_threshold(answer, delivery)}
        print_json(record, answer.parts(status))
    elif delivery.scoring is not None and answer.evaluation is not None:
        for line in evaluation_lines(answer.evaluation):
            print_line(line)
    elif answer.aggregated:
        # Who reads a file or a pipe has room for long cells.
        print_parts(answer.aggregated.texts(is_whole=not sys.stdout.isatty()))
        cited = answer.aggregated.sources() if answer.has_sources else None
        coverage = None if cited is None else answer.aggregated.coverage()
        for line in source_lines(cited, coverage):
            print_line(line)
    else:
        _print_branches(run, status, answer, progress, delivery)


def _print_branches(
    run: Run, status: Status, answer: RunAnswer, progress: Progress, delivery: Delivery
) -> None:
    """Print the answers of the branches of a run without an aggregate, or why it has none."""
    problem = answer.aggregated.stored.problem
    if problem is not None:
        print_text(without_aggregate(problem))
    if delivery.out is not None or not status.succeeded:
        return
    if problem is not None:
        if delivery.is_kept:
            answered = plural(status.succeeded, "branch has an answer", "branches have answers")
            progress.note(f"{answered}: `fanout results {run.run_id} --out DIR` writes them")
        return
    if delivery.is_stopped and sys.stdout.isatty():
        answered = plural(status.succeeded, "branch has", "branches have")
        progress.note(
            f"{answered} an answer: `fanout results {run.run_id}` prints "
            f"{'it' if status.succeeded == 1 else 'them'}, with --out DIR into files"
        )
        return
    for branch in run.outcomes():
        if branch.kind is None:
            print_json(output_row(branch))


def _threshold(answer: RunAnswer, delivery: Delivery) -> dict[str, Any]:
    threshold = None if delivery.scoring is None else delivery.scoring.threshold
    if threshold is None:
        return {}
    is_met = not _shortfalls(answer, delivery)
    return {"threshold": {"metric": threshold.metric, "least": threshold.least, "is_met": is_met}}
