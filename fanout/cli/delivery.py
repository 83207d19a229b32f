"""Follow a run to its end, and deliver its answer."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.exits import CLOSED_PIPE, FAILURE, mute_stdout
from fanout.cli.progress import summary
from fanout.cli.session import half_stopped, print_json
from fanout.core.errors import BrokerError, FanoutError, RunError
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.units import plural
from fanout.inputs.documents.urls import shown_input
from fanout.runs.answer_text import answer_text
from fanout.runs.rows import output_row
from fanout.runs.status import retry_help, truncation_notes
from fanout.runs.tables.output_file import OutputFile
from fanout.system.terminal import print_error, print_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fanout.cli.destinations import Destination
    from fanout.cli.progress import Follower, Progress
    from fanout.cli.streaming import StreamPrinter
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.runs.status import Status

__all__ = [
    "Delivery",
    "conclude",
    "deliver",
    "enqueue_monitor",
    "follow",
    "json_option",
    "quiet_option",
]


# Time without progress before the client asks the server why, and between two such questions.
_STANDSTILL_S = 5.0
# A run that is stopped ends within a second or so, where a worker ends it: without one nobody does
# while the client waits. The workers of embedded runs are the client's own, and may be starting.
_UNTENDED_S = 5.0
_UNENDED_S = 60.0
_LAST_LOOK_S = 1.0
_AT_WORK = {RunStatus.ENQUEUING, RunStatus.RUNNING, RunStatus.REDUCING}


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the status and the answer as JSON."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


def follow(
    run: Run,
    progress: Follower,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    has_own_worker: bool = False,
) -> Status:
    """Show the progress of a run until it has ended; cancel it if it should stop.

    Args:
        run: The run.
        progress: What shows it.
        should_stop: Called several times a second.
        has_own_worker: Whether a worker of this process does the work.

    Returns:
        The last status: of a run that has ended, or was cancelled and is ended by nobody for now.

    Raises:
        BrokerError: The server did not answer for too long; the run goes on.
    """
    look_why = _Standstill(run, progress)
    ending = _Ending(run, has_own_worker=has_own_worker)

    def on_progress(status: Status) -> None:
        progress.show(status)
        look_why(status)
        if should_stop():
            run.cancel()
            ending.see(status)

    def on_away(error: BrokerError) -> None:
        if error.is_refusal:
            # The server answers, and refuses to store that the run stops; the rest goes on.
            progress.refused(str(error))
        else:
            progress.away()
        if should_stop():
            ending.miss(error)

    try:
        return run.wait(on_progress=on_progress, on_away=on_away)
    except _UnendedError as unended:
        progress.close()
        progress.unended(str(unended))
        return unended.status
    finally:
        progress.close()


class _UnendedError(Exception):
    """Nobody ends a run that was cancelled."""

    def __init__(self, why: str, status: Status) -> None:
        super().__init__(why)
        self.status = status


class _Ending:
    """Gives up a run that was cancelled, and that nobody ends: one signal must end the client."""

    def __init__(self, run: Run, *, has_own_worker: bool) -> None:
        self._run = run
        self._has_own_worker = has_own_worker
        self._is_stopped = False
        self._at: tuple[int, int] | None = None
        self._since = 0.0

    def see(self, status: Status) -> None:
        """Raise _UnendedError if the run has not moved for too long since it was cancelled."""
        self._is_stopped = True
        if status.status.has_ended:
            return
        waited_s = self._waited_s((status.done, status.workers))
        has_worker = self._has_own_worker or status.workers > 0
        if waited_s < (_UNENDED_S if has_worker else _UNTENDED_S):
            return
        if self._has_own_worker:
            raise _UnendedError(half_stopped(self._run.run_id), status)
        does = "the workers have not ended it yet" if has_worker else "no worker is there to end it"
        raise _UnendedError(
            f"run {self._run.run_id} is stopped, but {does}: it ends as cancelled as soon as one does; "
            f"`fanout results {self._run.run_id}` gives what has finished",
            status,
        )

    def miss(self, error: BrokerError) -> None:
        """Raise BrokerError if the server has not answered for too long since the first signal."""
        if self._waited_s((-1, -1)) < _UNTENDED_S:
            return
        how = f"could not be stopped, and goes on: `fanout cancel {self._run.run_id}` stops it"
        if self._is_stopped:
            how = f"is stopped: `fanout results {self._run.run_id}` gives what has finished"
        raise BrokerError(f"{error}; run {self._run.run_id} {how}") from error

    def _waited_s(self, at: tuple[int, int]) -> float:
        now = time.monotonic()
        if at != self._at:
            self._at, self._since = at, now
        return now - self._since


class _Standstill:
    """Finds out why a run makes no progress: refused writes, or a model whose calls wait."""

    def __init__(self, run: Run, progress: Follower) -> None:
        self._run = run
        self._progress = progress
        self._at: tuple[RunStatus, int] | None = None
        self._due_at = 0.0

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        at = (status.status, status.done)
        if at != self._at:
            if self._at is not None:
                self._progress.refused(None)
                self._progress.held(self._run.spec.model, None)
            self._at, self._due_at = at, now + _STANDSTILL_S
        elif now >= self._due_at and status.status in _AT_WORK:
            self._due_at = now + _STANDSTILL_S
            self._progress.refused(self._run.write_problem())
            self._progress.held(self._run.spec.model, self._run.model_limit())


@contextmanager
def enqueue_monitor(progress: Follower) -> Iterator[Callable[[Callable[[], Run]], None]]:
    """Give a function that starts a thread, which says why the client cannot enqueue a run."""
    has_ended = threading.Event()
    threads: list[threading.Thread] = []

    def watch(find: Callable[[], Run]) -> None:
        while not has_ended.wait(_STANDSTILL_S):
            with suppress(FanoutError):
                progress.refused(find().write_problem())

    def begin(find: Callable[[], Run]) -> None:
        threads.append(threading.Thread(target=watch, args=(find,), daemon=True))
        threads[-1].start()

    try:
        yield begin
    finally:
        has_ended.set()
        for thread in threads:
            # It may still wait for an answer that is no longer needed.
            thread.join(_LAST_LOOK_S)


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
    """

    out: Destination | None = None
    stream: StreamPrinter | None = None
    report: Path | None = None
    as_json: bool = False
    is_new: bool = False
    is_stopped: bool = False
    is_cut: bool = False
    is_kept: bool = True


def deliver(run: Run, status: Status, progress: Progress, delivery: Delivery) -> int:
    """Print the answer of a run, write its files, and return the exit status."""
    aggregated, notes = run.aggregate()
    faults: list[str] = []
    with _noting(faults, "cannot write the results"):
        if delivery.is_cut:
            progress.warn("the run was stopped: its input was not read to its end")
        if delivery.is_stopped and isinstance(delivery.out, OutputFile):
            progress.warn(_unwritten(delivery.out, run.run_id, is_kept=delivery.is_kept))
        elif delivery.out is not None:
            _write(run, status, aggregated, notes, progress, delivery.out)
    with _noting(faults, f"cannot write the report to {delivery.report}"):
        if delivery.report is not None:
            from fanout.report import write

            write(run, delivery.report)
            progress.note(f"report: {delivery.report}")
    # A full disk must not cost the answer too.
    is_read = True
    with _noting(faults, "cannot print the answers"):
        try:
            if delivery.stream is not None:
                delivery.stream.finish()
            _print(run, status, aggregated, notes, progress, delivery)
        except BrokenPipeError:
            if not delivery.is_new:
                # The reader has closed the pipe, and can ask for the answer again.
                raise
            mute_stdout()
            is_read = False
    for note in notes:
        progress.note(f"note: {note}")
    for line in _again(run.run_id, status, delivery) if delivery.is_new else ():
        progress.note(line)
    return _say_faults(faults, run, delivery, conclude(status, progress, run=run), is_read=is_read)


def _write(
    run: Run,
    status: Status,
    aggregated: Any,
    notes: list[str],
    progress: Progress,
    out: Destination,
) -> None:
    if isinstance(out, OutputFile):
        for loss in out.write(run.outcomes()):
            progress.warn(loss)
    else:
        record = {
            **status.to_dict(),
            "notes": [*truncation_notes(status), *notes],
            "spec": spec_record(run.spec),
        }
        out.write(run.outcomes(), aggregated, record)
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
        again = f"nothing is lost: `fanout results {run.run_id} --out DIR` writes the answers again"
        print_error(again if delivery.is_kept else "the run was not kept")
    return exit_status


def _again(run_id: str, status: Status, delivery: Delivery) -> Iterator[str]:
    """Yield which branches are missing, and how to print the answer again."""
    if status.failed and delivery.is_kept:
        unusable = status.errors.get(ErrorKind.BAD_REQUEST, 0)
        failed = plural(status.failed, "branch", "branches")
        if unusable == status.failed:
            # As often as they are tried.
            yield f"left out: {failed} that cannot be used; `fanout errors {run_id}` says why"
        else:
            it = "it" if status.failed == 1 else "them"
            yield f"left out: {failed}; `fanout errors {run_id}` lists {it}, {retry_help(status)}"
    if delivery.out is None and delivery.is_kept and not delivery.is_stopped:
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
    problem = status.error
    if run is not None:
        # The errors of the branches may be gone; that of the run is in its status.
        with suppress(FanoutError):
            problem = run.problem(status)
    if problem:
        print_error(problem)
    return 0 if status.status is RunStatus.SUCCEEDED else 1


def _print(
    run: Run,
    status: Status,
    aggregated: Any,
    notes: list[str],
    progress: Progress,
    delivery: Delivery,
) -> None:
    if delivery.stream is not None:
        if aggregated is not None:
            print_json({"aggregated": aggregated})
    elif delivery.as_json:
        notes = [*truncation_notes(status), *notes]
        print_json({**status.to_dict(), "aggregated": aggregated, "notes": notes})
    elif aggregated is not None:
        print_text(answer_text(aggregated, run.spec.reduction))
    elif delivery.out is None and status.succeeded:
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
