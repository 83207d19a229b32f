"""The commands that inspect: ``status``, ``results``, ``errors``, ``report``, ``runs`` and ``workers``."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.delivery import Delivery, deliver, json_option, quiet_option
from fanout.cli.destinations import out_options, require_no_input, require_room
from fanout.cli.facts import capacity_lines, runs_lines
from fanout.cli.progress import Progress, summary
from fanout.cli.run_facts import cap_parts, notice_parts, vanished_parts
from fanout.cli.session import (
    EMBEDDED,
    RUN_EPILOG,
    any_client,
    broker_option,
    fleet,
    kind_option,
    objects,
    one_object,
    one_run,
    print_json,
    run_argument,
    say,
)
from fanout.core.errors import InputError, UnknownRunError
from fanout.core.queue_names import NO_CONSUMER
from fanout.core.records import RunStatus
from fanout.core.units import plural
from fanout.runs.rows import call_row, error_row
from fanout.system.terminal import can_draw, print_line, print_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from fanout.cli.destinations import Destination
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.runs.status import ReduceError, Status

__all__ = ["errors", "report", "results", "runs", "status", "workers"]

_SHOWN_RUNS = 20


@click.command("status", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@one_object
def status(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Say where a run is."""
    with any_client(broker_url) as client:
        run = client.find(run_id)
        now, model = run.status(), run.spec.named_models
    resume = f"nobody works on it: `fanout resume {now.run_id}` goes on"
    progress = Progress(idle=resume if client.is_embedded else NO_CONSUMER)
    if as_json or not can_draw(sys.stdout):
        say(_line(now, progress), now.to_dict(), as_json=as_json)
        return
    from fanout.cli.views import draw, run_view

    draw(run_view, now, None, None, model, note=now.error or progress.hint(now))


def _line(now: Status, progress: Progress) -> str:
    if not now.status.has_ended:
        return " · ".join(
            [f"run {now.run_id} {progress.line(now)}", *vanished_parts(now), *notice_parts(now)]
        )
    return " · ".join([summary(now), *cap_parts(now), *([now.error] if now.error else [])])


@click.command("results", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@out_options
@json_option
@quiet_option
def results(
    run_id: str,
    broker_url: str | None,
    open_out: Callable[[RunSpec], AbstractContextManager[Destination | None]],
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Print or write what a run has given, as `fanout run` does.

    Of a run that has not ended that is what there is so far, and the exit status is 1.
    """
    progress = Progress(is_quiet=quiet)
    with one_run(broker_url, run_id) as run, open_out(run.spec) as out:
        now = run.status()
        require_room(out, now.total)
        if not now.status.has_ended:
            progress.note("the run has not ended: this is what there is so far")
        return deliver(run, now, progress, Delivery(out=out, as_json=as_json))


@click.command("errors", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@kind_option
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), help="The first N only. [default: all]"
)
@click.option(
    "--summary",
    "has_summary",
    is_flag=True,
    help="Each kind once: how many, and an example; the most frequent first.",
)
@objects
def errors(
    run_id: str,
    broker_url: str | None,
    kinds: tuple[str, ...],
    limit: int | None,
    has_summary: bool,  # noqa: FBT001 - a click flag
    as_json: bool,  # noqa: FBT001 - a click flag
) -> None:
    """List the branches of a run that have failed, one a line, then the failed calls of its reduces.

    Behind them are the groups without an aggregate for which no call was made, as too little is behind them.
    """
    with one_run(broker_url, run_id) as run:
        rows = _error_rows(run, frozenset(kinds))
        if has_summary:
            _print_summary(rows, limit, as_json=as_json)
            return
        for row in islice(rows, limit):
            say(_error(row, has_kind=True), row, as_json=as_json)
        more = 0 if limit is None else _count(run, frozenset(kinds)) - limit
    if more > 0:
        print_line(f"and {more:,} more", err=True)


def _error_rows(run: Run, kinds: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yield the branches that have failed, then the calls of reduces that have, or were not made."""
    for branch in run.outcomes():
        if branch.kind is not None and (not kinds or branch.kind.value in kinds):
            yield error_row(branch)
    for error in _calls(run):
        if not kinds or error.kind.value in kinds:
            yield call_row(error)


def _calls(run: Run) -> Iterator[ReduceError]:
    """Yield the failed calls of reduces, then the groups for which none was made."""
    values = run.stored_aggregate().values
    return chain(values.errors(), values.left_out())


def _count(run: Run, kinds: frozenset[str]) -> int:
    counts = Counter({kind.value: count for kind, count in run.status().errors.items()})
    counts.update(error.kind.value for error in _calls(run))
    return sum(count for kind, count in counts.items() if not kinds or kind in kinds)


def _error(row: dict[str, Any], *, has_kind: bool) -> str:
    # A message may quote a provider's page, and a group be any text: a line stays a line.
    message = _one_line(row["message"])
    if row["index"] is None:
        cells = [f"reduce {row['reduce']}".rstrip(), _one_line(row["group"])]
    else:
        cells = [str(row["index"]), str(row["document"])]
    cells += [row["kind"]] if has_kind else []
    return "\t".join([*cells, f"{message} (after {plural(row['attempts'], 'call', 'calls')})"])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_summary(rows: Iterable[dict[str, Any]], limit: int | None, *, as_json: bool) -> None:
    # Calls of reduces are counted by themselves.
    counts: Counter[tuple[str, bool]] = Counter()
    examples: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in rows:
        sort = (row["kind"], row["index"] is None)
        counts[sort] += 1
        examples.setdefault(sort, row)
    for sort, count in counts.most_common(limit):
        kind, example = sort[0], examples[sort]
        text = f"{count:,}\t{kind}\tsuch as {_error(example, has_kind=False)}"
        say(text, {"kind": kind, "count": count, "example": example}, as_json=as_json)


@click.command("report", epilog=RUN_EPILOG)
@run_argument
@click.option(
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the page here; - is standard output. [default: fanout-RUN.html]",
)
@broker_option(EMBEDDED)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the figures as one JSON object, and no page."
)
def report(run_id: str, out: str | None, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Write a run as one web page: its answer, its failures, its course over time.

    The page loads nothing, so it can be kept and sent. It has prompts, answers and names of
    documents in it. A run that has not ended is shown as far as it is. Prints the name of the
    file.
    """
    if as_json and out is not None:
        raise click.UsageError("--json prints to standard output: leave --out out")
    from fanout.report import gather, render, write

    with one_run(broker_url, run_id) as run:
        if as_json:
            now, branches = run.status(), run.outcomes(with_text=True)
            figures = gather(branches, created_at=now.created_at, latency=now.latency)
            found = run.evaluation()
            evaluation = {} if found is None else {"evaluation": found.to_dict()}
            print_json({**now.to_dict(), "figures": figures.to_dict(), **evaluation})
        elif out == "-":
            # The page declares UTF-8: the encoding of the terminal does not matter.
            print_page(render(run))
        else:
            path = Path(out or f"fanout-{run.run_id}.html")
            require_no_input([path], run.spec, "--out")
            try:
                write(run, path)
            except OSError as error:
                raise InputError(f"cannot write to --out {path}: {error.strerror}") from None
            print_line(str(path), is_data=True)


@click.command("runs")
@broker_option(EMBEDDED)
@click.option(
    "--status",
    "statuses",
    metavar="STATUS",
    multiple=True,
    type=click.Choice([status.value for status in RunStatus]),
    help="Only runs that are enqueuing, running, reducing, paused, succeeded, failed or cancelled; "
    "give several. [default: all]",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(0),
    help=f"The newest N only; 0 is all. [default: {_SHOWN_RUNS} on a terminal, else all]",
)
@objects
def runs(
    broker_url: str | None,
    statuses: tuple[str, ...],
    limit: int | None,
    as_json: bool,  # noqa: FBT001 - a click flag
) -> None:
    """List the runs that are remembered, the newest first."""
    is_table = sys.stdout.isatty() and not as_json
    if limit is None:
        limit = _SHOWN_RUNS if is_table else 0
    wanted = frozenset(RunStatus(status) for status in statuses) if statuses else None
    with any_client(broker_url) as client:
        found = client.runs(wanted)
        rows = list(_rows(islice(found, limit or None)))
        more = sum(1 for _ in found)
    if as_json:
        for now, spec in rows:
            models = spec.models or (spec.model,)
            fields = {"model": ", ".join(models), "models": models, "fallback": spec.fallback}
            print_json({**now.to_dict(), **fields})
    else:
        _print_table([(now, spec.named_models) for now, spec in rows], has_head=is_table)
    if more:
        print_line(f"and {more:,} more: --limit 0 lists all", err=True)


def _rows(runs: Iterable[Run]) -> Iterator[tuple[Status, RunSpec]]:
    """Yield status and job of each run that still exists."""
    for run in runs:
        with suppress(UnknownRunError):
            yield run.status(), run.spec


def _print_table(rows: list[tuple[Status, str]], *, has_head: bool) -> None:
    if can_draw(sys.stdout):
        from fanout.cli.views import draw, runs_table

        draw(runs_table, rows)
        return
    for line in runs_lines(rows, has_head=has_head):
        print_line(line)


@click.command("workers")
@broker_option()
@one_object
def workers(broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """List the queues, and the live workers with their load."""
    with fleet(broker_url) as client:
        now = client.fleet()
    if as_json:
        print_json(now.to_dict())
    elif can_draw(sys.stdout):
        from fanout.cli.views import draw, workers_view

        draw(workers_view, now)
    else:
        for line in capacity_lines(now):
            print_line(line)
