"""``fanout report``: a run as one web page that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.session import EMBEDDED, RUN_EPILOG, broker_option, one_run, run_argument
from fanout.core.errors import InputError
from fanout.report import gather, render, write
from fanout.system.terminal import print_line, print_page

if TYPE_CHECKING:
    from fanout.client.run import Run

__all__ = ["command"]

_STDOUT = "-"


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
def command(run_id: str, out: str | None, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Write a run as one web page: its answer, its failures, its course over time.

    The page loads nothing, so it can be kept and sent. It has prompts, answers and names of
    documents in it. A run that has not ended is shown as far as it is. Prints the name of the
    file.
    """
    if as_json and out is not None:
        raise click.UsageError("--json prints to standard output: leave --out out")
    with one_run(broker_url, run_id) as run:
        if as_json:
            print_line(json.dumps(_figures(run), ensure_ascii=False))
        elif out == _STDOUT:
            # The page declares UTF-8: the encoding of the terminal does not matter.
            print_page(render(run))
        else:
            print_line(str(_write(run, Path(out or f"fanout-{run.run_id}.html"))))


def _figures(run: Run) -> dict[str, Any]:
    status = run.status()
    figures = gather(
        run.outcomes(with_text=True), created_at=status.created_at, latency=status.latency
    )
    return {**status.to_dict(), "figures": figures.to_dict()}


def _write(run: Run, path: Path) -> Path:
    try:
        write(run, path)
    except OSError as error:
        raise InputError(f"cannot write to --out {path}: {error.strerror}") from None
    return path
