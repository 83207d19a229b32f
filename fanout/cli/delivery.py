"""How a run is followed, and how its answer is handed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from fanout.cli.output import answer_text, output_row
from fanout.cli.progress import summary
from fanout.runs import RunStatus
from fanout.terminal import print_error, print_line, print_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.cli.output import OutputFolder
    from fanout.cli.progress import Progress
    from fanout.handle import Run
    from fanout.results import Status

__all__ = ["Follower", "conclude", "deliver", "follow", "json_option", "out_option", "quiet_option"]

out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write outputs.jsonl, errors.jsonl, the aggregate and run.json here.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the status and the answer as JSON."
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


class Follower(Protocol):
    """Shows how a run goes on."""

    def show(self, status: Status) -> None:
        """Show the status, unless one was shown a moment ago and the run goes on."""

    def away(self) -> None:
        """Say that the server does not answer."""

    def close(self) -> None:
        """Make room for what is said at the end."""


def follow(run: Run, progress: Follower, *, on_status: Callable[[], None] = lambda: None) -> Status:
    """Show how a run goes on until it has ended; ``on_status`` is called each time it is looked at.

    Raises:
        BrokerError: The server was away for too long; the run goes on.
    """

    def on_progress(status: Status) -> None:
        progress.show(status)
        on_status()

    status = run.wait(on_progress=on_progress, on_away=lambda _error: progress.away())
    progress.close()
    return status


def deliver(
    run: Run, status: Status, folder: OutputFolder | None, progress: Progress, *, as_json: bool
) -> int:
    """Print what a run gave, and write it to a folder; return the exit status."""
    aggregated, notes = run.aggregate()
    try:
        if folder is not None:
            folder.write(run, status, aggregated, notes)
    finally:
        # A full disk must not cost the answer too.
        _print(run, status, aggregated, notes, folder, as_json=as_json)
        for note in notes:
            progress.note(f"note: {note}")
        exit_status = conclude(status, progress)
    return exit_status


def conclude(status: Status, progress: Progress) -> int:
    """Say how a run ended; return the exit status."""
    progress.note(summary(status))
    if status.error:
        print_error(status.error)
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
        print_line(json.dumps(record, ensure_ascii=False))
    elif aggregated is not None:
        print_text(answer_text(aggregated))
    elif folder is None:
        for branch in run.outcomes():
            if branch.kind is None:
                print_line(json.dumps(output_row(branch), ensure_ascii=False))
