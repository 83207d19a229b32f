"""The commands that look at runs: ``status``, ``watch``, ``results``, ``errors``, ``runs``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

from fanout.cli.delivery import conclude, deliver, follow, json_option, out_option, quiet_option
from fanout.cli.output import OutputFolder, error_row
from fanout.cli.progress import Progress, summary
from fanout.cli.session import broker_option, fleet, one_run, run_argument
from fanout.errors import UnknownRunError

if TYPE_CHECKING:
    from pathlib import Path

    from fanout.handle import Run
    from fanout.results import Output, Status

__all__ = ["errors", "results", "runs", "status", "watch"]


@click.command("status")
@run_argument
@broker_option()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Say where a run is."""
    with one_run(broker_url, run_id) as run:
        now = run.status()
    if as_json:
        click.echo(json.dumps(now.to_dict(), ensure_ascii=False))
    else:
        click.echo(_line(now))


def _line(now: Status) -> str:
    if not now.status.has_ended:
        return f"run {now.run_id} {Progress().line(now)}"
    return f"{summary(now)} · {now.error}" if now.error else summary(now)


@click.command("watch")
@run_argument
@broker_option()
def watch(run_id: str, broker_url: str | None) -> int:
    """Follow a run until it has ended. Ctrl-C ends the watching, not the run."""
    progress = Progress()
    with one_run(broker_url, run_id) as run:
        try:
            ended = follow(run, progress)
        except KeyboardInterrupt:
            progress.note(f"run {run_id} goes on: `fanout watch {run_id}` follows it again")
            raise
    return conclude(ended, progress)


@click.command("results")
@run_argument
@broker_option()
@out_option
@json_option
@quiet_option
def results(
    run_id: str,
    broker_url: str | None,
    out: Path | None,
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Print or write what a run has given, as `fanout run` does.

    Of a run that has not ended that is what there is so far, and the exit status is 1.
    """
    progress = Progress(is_quiet=quiet)
    with one_run(broker_url, run_id) as run:
        folder = OutputFolder(out) if out else None
        now = run.status()
        if not now.status.has_ended:
            progress.note("the run has not ended: this is what there is so far")
        return deliver(run, now, folder, progress, as_json=as_json)


@click.command("errors")
@run_argument
@broker_option()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")
def errors(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the branches of a run that have failed, one a line."""
    with one_run(broker_url, run_id) as run:
        for branch in run.outcomes():
            if branch.kind is not None:
                click.echo(_error(branch, as_json=as_json))


def _error(branch: Output, *, as_json: bool) -> str:
    row = error_row(branch)
    if as_json:
        return json.dumps(row, ensure_ascii=False)
    # A message may quote a provider's page: a line stays a line.
    message = " ".join(str(row["message"]).split())
    attempts = f"after {row['attempts']} calls" if row["attempts"] != 1 else "after 1 call"
    return f"{row['index']}\t{row['document']}\t{row['kind']}\t{message} ({attempts})"


@click.command("runs")
@broker_option()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each.")
def runs(broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the runs that the fleet remembers, the newest first."""
    with fleet(broker_url) as client:
        for run in client.runs():
            now = _status(run)
            if now is not None:
                click.echo(json.dumps(now.to_dict()) if as_json else _row(now))


def _status(run: Run) -> Status | None:
    """Return the status of a run, unless it was deleted meanwhile."""
    try:
        return run.status()
    except UnknownRunError:
        return None


def _row(now: Status) -> str:
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.created_at))
    failed = f", {now.failed:,} failed" if now.failed else ""
    return f"{now.run_id}  {created}  {now.status.value:<9}  {now.done:,}/{now.total:,}{failed}"
