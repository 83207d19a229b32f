"""``fanout run``: one job from input to answer."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.options import job_options, job_spec
from fanout.cli.output import OutputFolder, answer_text, output_row
from fanout.cli.progress import Progress, summary
from fanout.client import Client
from fanout.runs import RunStatus
from fanout.settings import load_settings

if TYPE_CHECKING:
    from types import FrameType

    from fanout.client import Run
    from fanout.results import Status

__all__ = ["command"]

_INTERRUPTED = 130
_SHOWN_FAULTS = 5


@click.command("run", epilog="A JOB.yaml has the same fields; options win over it.")
@job_options
@click.option(
    "--broker-url",
    metavar="URL",
    help="The fleet's Redis server [default: $FANOUT_BROKER_URL, else embedded]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write outputs.jsonl, errors.jsonl, the aggregate and run.json here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the status and the answer as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
def command(
    inputs: tuple[str, ...],
    broker_url: str | None,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Run a job: put a prompt to every chunk of every INPUT, and print the answer.

    An INPUT is a file (.txt, .md, .jsonl, .csv), a folder, a glob, or - for standard input.
    Without a broker, a server and a worker are started for the run and stopped after it.
    """
    settings = load_settings(broker_url=broker_url)
    spec = job_spec(inputs, options, settings)
    folder = OutputFolder(out) if out else None
    progress = Progress(is_quiet=quiet)
    stop = _Stop(progress)
    with Client(broker_url, concurrency=spec.max_workers) as client, stop:
        if spec.model == "local":
            progress.note("starting the local model; its first use fetches 93 MB, once")
        faults = _Faults(progress)
        run = client.submit(
            spec, on_bad_document=faults, on_created=stop.arm, should_stop=stop.is_set
        )
        faults.close()
        status = _wait(run, progress, stop)
        result_status = _deliver(run, status, folder, progress, as_json=as_json)
    return _INTERRUPTED if stop.is_set() else result_status


class _Stop:
    """Ctrl-C: once asks the run to stop, twice ends the program at once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._event = threading.Event()
        self._is_armed = False
        self._previous: Any = None

    def arm(self, _run_id: str) -> None:
        """From here on there is a run to stop; before, there is nothing to keep."""
        self._is_armed = True

    def is_set(self) -> bool:
        return self._event.is_set()

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)

    def __exit__(self, *_exc: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self._is_armed or self._event.is_set():
            raise KeyboardInterrupt
        self._event.set()
        self._progress.note("stopping: what has finished is kept; Ctrl-C again to quit at once")


class _Faults:
    """Says which documents cannot be used: the first few, and how many more."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._count = 0

    def __call__(self, name: str, reason: str) -> None:
        self._count += 1
        if self._count <= _SHOWN_FAULTS:
            self._progress.note(f"skipping {name}: {reason}")

    def close(self) -> None:
        if self._count > _SHOWN_FAULTS:
            self._progress.note(f"skipping {self._count - _SHOWN_FAULTS:,} more documents")


def _wait(run: Run, progress: Progress, stop: _Stop) -> Status:
    def on_progress(status: Status) -> None:
        progress.show(status)
        if stop.is_set():
            run.cancel()

    status = run.wait(on_progress=on_progress)
    progress.clear()
    return status


def _deliver(
    run: Run, status: Status, folder: OutputFolder | None, progress: Progress, *, as_json: bool
) -> int:
    aggregated, notes = run.aggregate()
    try:
        if folder is not None:
            folder.write(run, status, aggregated, notes)
    finally:
        # A full disk must not cost the answer too.
        _print(run, status, aggregated, notes, folder, as_json=as_json)
        for note in notes:
            progress.note(f"note: {note}")
        progress.note(summary(status))
        if status.error:
            click.echo(f"fanout: {status.error}", err=True)
    return 0 if status.status is RunStatus.SUCCEEDED else 1


def _print(
    run: Run,
    status: Status,
    aggregated: Any,
    notes: list[str],
    folder: OutputFolder | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        record = {**status.to_dict(), "aggregated": aggregated, "notes": notes}
        click.echo(json.dumps(record, ensure_ascii=False))
    elif aggregated is not None:
        click.echo(answer_text(aggregated))
    elif folder is None:
        for branch in run.outcomes():
            if branch.kind is None:
                click.echo(json.dumps(output_row(branch), ensure_ascii=False))
    sys.stdout.flush()
