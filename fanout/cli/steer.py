"""The commands that act on runs: ``cancel``, ``pause``, ``retry``, ``resume`` and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fanout.cli.progress import Progress
from fanout.cli.session import Faults, Stop, broker_option, fleet, one_run, run_argument
from fanout.documents import from_paths
from fanout.runs import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.handle import Run
    from fanout.runs import Document

__all__ = ["cancel", "delete", "heal", "pause", "resume", "retry", "unpause"]

_INTERRUPTED = 130


@click.command("cancel")
@run_argument
@broker_option()
def cancel(run_id: str, broker_url: str | None) -> None:
    """Stop a run: no further call is made, and what has finished is kept."""
    with one_run(broker_url, run_id) as run:
        did = run.cancel()
    click.echo(f"run {run_id} is stopped" if did else f"run {run_id} had been stopped or had ended")


@click.command("pause")
@run_argument
@broker_option()
def pause(run_id: str, broker_url: str | None) -> None:
    """Let no further call of a run begin; those in flight go on to their end."""
    with one_run(broker_url, run_id) as run:
        did = run.pause()
        status = run.status().status.value
    click.echo(f"run {run_id} is paused" if did else f"run {run_id} was {status} already")


@click.command("unpause")
@run_argument
@broker_option()
def unpause(run_id: str, broker_url: str | None) -> None:
    """Let a run that is paused go on."""
    with one_run(broker_url, run_id) as run:
        did = run.unpause()
    click.echo(f"run {run_id} goes on" if did else f"run {run_id} was not paused")


@click.command("retry")
@run_argument
@broker_option()
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind.value for kind in ErrorKind]),
    help="Only branches that failed in this way; give several. [default: all]",
)
def retry(run_id: str, broker_url: str | None, kinds: tuple[str, ...]) -> None:
    """Process the failed branches of a run that has ended again, and redo its aggregate."""
    with one_run(broker_url, run_id) as run:
        count = run.retry_failed([ErrorKind(kind) for kind in kinds] or None)
    click.echo(f"{count:,} branches of run {run_id} are processed again")


@click.command("resume")
@run_argument
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@broker_option()
def resume(run_id: str, inputs: tuple[str, ...], broker_url: str | None) -> int:
    """Go on with enqueuing a run whose `fanout submit` or `fanout run` died while it did so.

    Its files are found again by themselves; give an INPUT where they have moved. What came from
    standard input is given there again.
    """
    progress = Progress()
    stop, faults = Stop(progress), Faults(progress)
    with fleet(broker_url) as client, stop:
        documents = _documents(client.run(run_id), inputs) if inputs else None
        stop.arm()
        run = client.resume(run_id, documents, on_bad_document=faults, should_stop=stop.is_set)
        faults.close()
        now = run.status()
    click.echo(run_id)
    progress.note(f"run {run_id} {now.status.value}: {now.total:,} branches are enqueued")
    return _INTERRUPTED if stop.is_set() else 0


def _documents(run: Run, inputs: tuple[str, ...]) -> Iterator[Document]:
    spec = run.spec
    max_bytes = int(spec.max_document_mb * 1_000_000)
    return from_paths(inputs, text_column=spec.text_column, max_bytes=max_bytes)


@click.command("delete")
@run_argument
@broker_option()
def delete(run_id: str, broker_url: str | None) -> None:
    """Forget a run and all its records, whether it has ended or not."""
    with one_run(broker_url, run_id) as run:
        run.delete()
    click.echo(f"run {run_id} is deleted")


@click.command("heal")
@broker_option()
def heal(broker_url: str | None) -> None:
    """Look for what got lost, and do it again, at once: the workers do so by themselves."""
    with fleet(broker_url) as client:
        count = client.heal()
    click.echo(f"{count:,} steps were done again" if count else "nothing was missing")
