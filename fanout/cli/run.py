"""``fanout run`` and ``fanout submit``: a job from its input on."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fanout.cli import estimate
from fanout.cli.delivery import Delivery, deliver, json_option, quiet_option
from fanout.cli.destinations import (
    out_options,
    require_no_input,
    require_room_for_rows,
    warn_of_room,
)
from fanout.cli.exits import FAILURE, INTERRUPTED
from fanout.cli.following import enqueue_monitor, follow
from fanout.cli.job_options import job_options
from fanout.cli.options import in_words, job_spec
from fanout.cli.progress import Progress
from fanout.cli.session import (
    EMBEDDED,
    Faults,
    Stop,
    broker_option,
    client_for,
    enqueued,
    fleet,
    one_object,
    print_json,
    progress_of,
)
from fanout.cli.streaming import StreamPrinter
from fanout.core.errors import InputError, SpecError
from fanout.core.settings import load_settings
from fanout.core.units import duration
from fanout.llm.assets import WEIGHTS, has_runtime, has_weights
from fanout.policy.lanes import CALL_S, is_too_short
from fanout.system.terminal import print_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from fanout.cli.destinations import Destination
    from fanout.client.client import Client
    from fanout.client.run import Run
    from fanout.core.settings import Settings
    from fanout.core.spec import RunSpec

__all__ = ["JOB_EPILOG", "carry_out", "report_option", "run", "submit", "sure_option"]

JOB_EPILOG = "A JOB.yaml has the same fields; options win over it."
# The options that say what becomes of an answer.
_OF_A_RUN = ("--out", "--wide", "--force", "--out-mode", "--report", "--stream", "--yes")
report_option = click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the run as one web page here, too, as `fanout report` does.",
)
sure_option = click.option(
    "--yes",
    "-y",
    "is_sure",
    is_flag=True,
    help="Do not ask, however much it costs ($FANOUT_CONFIRM_USD).",
)


@click.command("run", epilog=JOB_EPILOG)
@job_options
@broker_option(EMBEDDED)
@out_options
@report_option
@click.option(
    "--stream",
    "is_streamed",
    is_flag=True,
    help="Print each branch as a line of JSON as soon as it has ended.",
)
@json_option
@quiet_option
@click.option(
    "--dry-run", is_flag=True, help="Only say what it would cost, as `fanout estimate` does."
)
@sure_option
def run(
    inputs: tuple[str, ...],
    broker_url: str | None,
    open_out: Callable[[RunSpec], AbstractContextManager[Destination | None]],
    report: Path | None,
    is_streamed: bool,  # noqa: FBT001 - a click flag
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
    dry_run: bool,  # noqa: FBT001 - a click flag
    is_sure: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Run a job: put a prompt to every chunk of every INPUT, and print the answer.

    An INPUT is a document (PDF, Word, PowerPoint, OpenDocument, RTF, HTML, EPUB, mail, .txt, .md), a
    table (.csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .feather, .xlsx, .sqlite), a folder
    of them, a glob, a URL of one of these (s3://, https:// and others), - for standard input (one
    text), or run:RUN for the outputs of another run.
    Without a broker, a worker is started for the run, and a server that keeps it in
    $FANOUT_STATE_DIR: results, retry, resume and the like find it there later.
    """
    if is_streamed and as_json:
        raise click.UsageError(
            "--stream prints lines, and --json one object: leave one of them out"
        )
    if dry_run:
        _require_dry()
        return estimate.dry_run(
            inputs, options, broker_url=broker_url, as_json=as_json, is_quiet=quiet
        )
    return carry_out(
        inputs,
        options,
        is_sure=is_sure,
        broker_url=broker_url,
        open_out=open_out,
        delivery=Delivery(report=report, as_json=as_json),
        quiet=quiet,
        is_streamed=is_streamed,
    )


def carry_out(
    inputs: tuple[str, ...],
    options: dict[str, Any],
    *,
    broker_url: str | None,
    open_out: Callable[[RunSpec], AbstractContextManager[Destination | None]],
    delivery: Delivery,
    quiet: bool,
    is_streamed: bool = False,
    is_sure: bool = False,
) -> int:
    """Run a job to its end, deliver its answer, or how good it is, and return the exit status.

    Args:
        inputs: The arguments: the job file, if there is one, and inputs.
        options: The options of the job.
        broker_url: The fleet's server; None takes the configured one, or an embedded fleet.
        open_out: Opens what ``--out`` names.
        delivery: Where the answer goes, as far as the command line says it.
        quiet: Whether to show no progress.
        is_streamed: Whether to print each branch as soon as it has ended.
        is_sure: Whether not to ask, however much it costs.
    """
    settings = load_settings(broker_url=broker_url)
    spec = job_spec(inputs, options, settings)
    _require_deliverable(spec, delivery)
    progress = progress_of(settings, is_quiet=quiet, is_plain=is_streamed and sys.stdout.isatty())
    stop = Stop(progress)
    with ExitStack() as stack:
        # First: a signal must not leave an unfinished file.
        stack.enter_context(stop)
        with stop.deferred():
            out = stack.enter_context(open_out(spec))
        with in_words(inputs, options):
            require_room_for_rows(out, spec)
        client = stack.enter_context(client_for(spec, settings, broker_url))
        stream = stack.enter_context(StreamPrinter()) if is_streamed else None
        with in_words(inputs, options):
            run = _begin(client, spec, settings, progress, stop, stream, is_sure=is_sure)
        if run is None:
            return FAILURE
        is_cut = stop.is_set()
        warn_of_room(out, run, progress)
        status = follow(run, progress, should_stop=stop.is_set, has_own_worker=client.is_embedded)
        delivery = replace(
            delivery,
            out=out,
            stream=stream,
            is_new=True,
            is_stopped=stop.is_set(),
            is_cut=is_cut,
            is_kept=client.keeps_runs,
        )
        exit_status = deliver(run, status, progress, delivery)
    return INTERRUPTED if stop.is_set() else exit_status


def _require_deliverable(spec: RunSpec, delivery: Delivery) -> None:
    """Raise if what is asked for cannot be delivered, before the first paid call.

    Raises:
        SpecError: There are no labels to evaluate the answers by.
        InputError: The report cannot be written, or would replace an input.
    """
    if delivery.scoring is not None and not spec.labels:
        raise SpecError("is required: which column has the right answers?", field="--label")
    if delivery.report is not None:
        _require_writable(delivery.report)
        require_no_input([delivery.report], spec, "--report")


def _begin(
    client: Client,
    spec: RunSpec,
    settings: Settings,
    progress: Progress,
    stop: Stop,
    stream: StreamPrinter | None,
    *,
    is_sure: bool,
) -> Run | None:
    """Enqueue a job; return its run, or None if the user does not agree to its cost."""
    if not estimate.is_agreed(client, spec, settings, progress, is_sure=is_sure):
        return None
    _note_lane(spec, settings, progress)
    if "local" in spec.all_models and settings.broker_url is None and has_runtime():
        progress.note(_local_note(settings.cache_dir))
    return _submit(client, spec, progress, stop, on_run=None if stream is None else stream.begin)


def _note_lane(spec: RunSpec, settings: Settings, progress: Progress) -> None:
    """Say that no batch will be made, if the deadline leaves no time for one."""
    deadline_s = spec.deadline_s
    if spec.lane != "auto" or deadline_s is None:
        return
    if is_too_short(deadline_s, call_s=CALL_S, wait_s=settings.batch_wait_s):
        progress.note(
            f"a deadline of {duration(deadline_s)} is too short for a batch: "
            "the calls are made at once, at the list price"
        )


def _require_dry() -> None:
    """Raise UsageError if an option has no effect, as nothing is run."""
    context = click.get_current_context()
    for option in context.command.params:
        name = option.opts[0]
        is_given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if name in _OF_A_RUN and is_given:
            raise click.UsageError(f"{name} has no effect with --dry-run: leave one of them out")


def _require_writable(report: Path) -> None:
    """Raise InputError if the report cannot be written."""
    if not os.access(report.parent, os.W_OK | os.X_OK):
        there = "may not be written to" if report.parent.is_dir() else "is no folder"
        raise InputError(f"cannot write to --report {report}: {report.parent} {there}")


def _local_note(cache_dir: Path) -> str:
    if has_weights(cache_dir):
        return "starting the local model"
    return f"fetching the local model, {WEIGHTS.fetched_mb} MB, once"


@click.command("submit", epilog=JOB_EPILOG)
@job_options
@broker_option()
@one_object
@quiet_option
def submit(
    inputs: tuple[str, ...],
    broker_url: str | None,
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Submit a job to a fleet: print the run's id, enqueue its input, and return.

    The id is printed before the input is enqueued (with --json, to standard error): should this be
    killed meanwhile, `fanout resume` enqueues the rest. It first says what a dear job costs
    ($FANOUT_CONFIRM_USD), as `fanout run` does, but never asks; with --quiet it makes no estimate.
    """
    settings = load_settings(broker_url=broker_url)
    spec = job_spec(inputs, options, settings)
    progress = Progress(is_quiet=quiet)
    stop = Stop(progress)
    with fleet(broker_url) as client, stop:
        with in_words(inputs, options):
            if not quiet:
                estimate.is_agreed(client, spec, settings, progress, is_sure=True)
                _note_lane(spec, settings, progress)
            on_id = progress.note if as_json else print_line
            run = _submit(client, spec, progress, stop, on_id=on_id)
        now = run.status()
        progress.note(enqueued(now.total))
        if as_json:
            print_json(now.to_dict())
    return INTERRUPTED if stop.is_set() else 0


def _submit(
    client: Client,
    spec: RunSpec,
    progress: Progress,
    stop: Stop,
    *,
    on_id: Callable[[str], None] = lambda _run_id: None,
    on_run: Callable[[Run], None] | None = None,
) -> Run:
    def on_created(run_id: str) -> None:
        stop.arm(run_id)
        on_id(run_id)
        if on_run is not None:
            on_run(client.run(run_id))
        begin_monitor(lambda: client.run(run_id))

    faults = Faults(progress)
    with enqueue_monitor(progress) as begin_monitor:
        run = client.submit(
            spec,
            on_bad_document=faults,
            on_notice=faults.notice,
            on_created=on_created,
            should_stop=stop.is_set,
        )
    faults.close()
    return run
