"""The commands that look: ``status``, ``results``, ``errors``, ``runs`` and ``workers``."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import click
import msgspec

from fanout.cli.delivery import deliver, json_option, out_option, quiet_option
from fanout.cli.output import OutputFolder, error_row
from fanout.cli.progress import Progress, summary
from fanout.cli.session import (
    broker_option,
    fleet,
    objects,
    one_object,
    one_run,
    run_argument,
    say,
)
from fanout.cli.view import workers_lines
from fanout.errors import UnknownRunError
from fanout.runs import ErrorKind, RunStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from fanout.client import Client
    from fanout.handle import Run
    from fanout.results import Output, Status

__all__ = ["errors", "results", "runs", "status", "workers"]

_SHOWN_RUNS = 20


@click.command("status")
@run_argument
@broker_option()
@one_object
def status(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Say where a run is."""
    with one_run(broker_url, run_id) as run:
        now = run.status()
    say(_line(now), now.to_dict(), as_json=as_json)


def _line(now: Status) -> str:
    if not now.status.has_ended:
        return f"run {now.run_id} {Progress().line(now)}"
    return f"{summary(now)} · {now.error}" if now.error else summary(now)


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
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in ErrorKind]),
    help="Only branches that failed in this way; give several. [default: all]",
)
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="The first N only. [default: all]"
)
@click.option("--summary", "sums", is_flag=True, help="Each kind once: how many, and an example.")
@objects
def errors(
    run_id: str,
    broker_url: str | None,
    kinds: tuple[str, ...],
    limit: int | None,
    sums: bool,  # noqa: FBT001 - a click flag
    as_json: bool,  # noqa: FBT001 - a click flag
) -> None:
    """List the branches of a run that have failed, one a line."""
    with one_run(broker_url, run_id) as run:
        failed = _failed(run, frozenset(kinds))
        if sums:
            _print_sums(failed, as_json=as_json)
            return
        for branch in islice(failed, limit):
            row = error_row(branch)
            say(_error(row), row, as_json=as_json)


def _failed(run: Run, kinds: frozenset[str]) -> Iterator[Output]:
    for branch in run.outcomes():
        if branch.kind is not None and (not kinds or branch.kind.value in kinds):
            yield branch


def _error(row: dict[str, object]) -> str:
    # A message may quote a provider's page: a line stays a line.
    message = " ".join(str(row["message"]).split())
    attempts = f"after {row['attempts']} calls" if row["attempts"] != 1 else "after 1 call"
    return f"{row['index']}\t{row['document']}\t{row['kind']}\t{message} ({attempts})"


def _print_sums(failed: Iterable[Output], *, as_json: bool) -> None:
    counts: Counter[ErrorKind] = Counter()
    examples: dict[ErrorKind, dict[str, object]] = {}
    for branch in failed:
        if branch.kind is not None:
            counts[branch.kind] += 1
            examples.setdefault(branch.kind, error_row(branch))
    for kind, count in counts.most_common():
        example = examples[kind]
        text = f"{count:,}\t{kind.value}\tsuch as {_error(example)}"
        say(text, {"kind": kind.value, "count": count, "example": example}, as_json=as_json)


@click.command("runs")
@broker_option()
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in RunStatus]),
    help="Only runs in this status; give several. [default: all]",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(0),
    default=_SHOWN_RUNS,
    show_default=True,
    help="The newest N only; 0 is all.",
)
@objects
def runs(
    broker_url: str | None,
    statuses: tuple[str, ...],
    limit: int,
    as_json: bool,  # noqa: FBT001 - a click flag
) -> None:
    """List the runs that the fleet remembers, the newest first."""
    with fleet(broker_url) as client:
        found = _statuses(client, frozenset(statuses))
        shown = list(islice(found, limit or None))
        has_more = bool(limit) and next(found, None) is not None
        if not as_json and sys.stdout.isatty() and shown:
            click.echo(f"{'RUN':<8}  {'CREATED':<19}  {'STATUS':<9}  BRANCHES")
        for now in shown:
            say(_row(now), now.to_dict(), as_json=as_json)
        if has_more:
            click.echo(f"these are the newest {limit}; --limit 0 lists all", err=True)


def _statuses(client: Client, wanted: frozenset[str]) -> Iterator[Status]:
    for run in client.runs():
        try:
            now = run.status()
        except UnknownRunError:
            # It was deleted meanwhile.
            continue
        if not wanted or now.status.value in wanted:
            yield now


def _row(now: Status) -> str:
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.created_at))
    failed = f", {now.failed:,} failed" if now.failed else ""
    return f"{now.run_id}  {created}  {now.status.value:<9}  {now.done:,}/{now.total:,}{failed}"


@click.command("workers")
@broker_option()
@objects
def workers(broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """List the live workers with their load."""
    with fleet(broker_url) as client:
        found = client.fleet().workers
    if as_json:
        for worker in found:
            click.echo(json.dumps(msgspec.to_builtins(worker)))
    else:
        for line in workers_lines(found, shown=len(found)):
            click.echo(line)
