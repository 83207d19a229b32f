"""The commands that act on runs: ``cancel``, ``pause``, ``retry``, ``resume`` and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fanout.cli.completion import complete_files
from fanout.cli.progress import Progress
from fanout.cli.session import (
    RUN_EPILOG,
    Faults,
    Stop,
    broker_option,
    fleet,
    kind_option,
    one_object,
    one_run,
    run_argument,
    say,
)
from fanout.documents import from_paths
from fanout.runs import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.handle import Run
    from fanout.runs import Document

__all__ = ["cancel", "delete", "heal", "pause", "resume", "retry", "unpause"]

_INTERRUPTED = 130


@click.command("cancel", epilog=RUN_EPILOG)
@run_argument
@broker_option()
@one_object
def cancel(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Stop a run: no further call is made, and what has finished is kept."""
    with one_run(broker_url, run_id) as run:
        did = run.cancel()
        done, had = "is stopped", "had been stopped or had ended"
        _steered(run, did, done if did else had, as_json=as_json)


@click.command("pause", epilog=RUN_EPILOG)
@run_argument
@broker_option()
@one_object
def pause(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Let no further call of a run begin; those in flight go on to their end."""
    with one_run(broker_url, run_id) as run:
        did = run.pause()
        had = f"was {run.status().status.value} already"
        _steered(run, did, "is paused" if did else had, as_json=as_json)


@click.command("unpause", epilog=RUN_EPILOG)
@run_argument
@broker_option()
@one_object
def unpause(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Let a run that is paused go on."""
    with one_run(broker_url, run_id) as run:
        did = run.unpause()
        _steered(run, did, "goes on" if did else "was not paused", as_json=as_json)


def _steered(run: Run, changed: bool, what: str, *, as_json: bool) -> None:  # noqa: FBT001 - a fact
    status = run.status().status.value
    fields = {"run_id": run.run_id, "changed": changed, "status": status}
    say(f"run {run.run_id} {what}", fields, as_json=as_json)


@click.command("retry", epilog=RUN_EPILOG)
@run_argument
@broker_option()
@kind_option
@one_object
def retry(
    run_id: str,
    broker_url: str | None,
    kinds: tuple[str, ...],
    as_json: bool,  # noqa: FBT001 - a click flag
) -> None:
    """Process the failed branches of a run that has ended again, and redo its aggregate."""
    with one_run(broker_url, run_id) as run:
        count = run.retry_failed([ErrorKind(kind) for kind in kinds] or None)
        text = f"{count:,} branches of run {run.run_id} are processed again"
        fields = {"run_id": run.run_id, "branches": count, "status": run.status().status.value}
        say(text, fields, as_json=as_json)


@click.command("resume", epilog=RUN_EPILOG)
@run_argument
@click.argument("inputs", nargs=-1, metavar="[INPUT]...", shell_complete=complete_files)
@broker_option()
@one_object
def resume(
    run_id: str,
    inputs: tuple[str, ...],
    broker_url: str | None,
    as_json: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Go on with enqueuing a run whose `fanout submit` or `fanout run` died while it did so.

    Its files are found again by themselves; give an INPUT where they have moved. What came from
    standard input is given there again.
    """
    progress = Progress()
    stop, faults = Stop(progress), Faults(progress)
    with fleet(broker_url) as client, stop:
        run = client.find(run_id)
        documents = _documents(run, inputs) if inputs else None
        stop.arm()
        client.resume(run.run_id, documents, on_bad_document=faults, should_stop=stop.is_set)
        faults.close()
        now = run.status()
    say(run.run_id, now.to_dict(), as_json=as_json)
    progress.note(f"run {run.run_id} {now.status.value}: {now.total:,} branches are enqueued")
    return _INTERRUPTED if stop.is_set() else 0


def _documents(run: Run, inputs: tuple[str, ...]) -> Iterator[Document]:
    spec = run.spec
    max_bytes = int(spec.max_document_mb * 1_000_000)
    return from_paths(inputs, text_column=spec.text_column, max_bytes=max_bytes)


@click.command("delete", epilog=RUN_EPILOG)
@run_argument
@broker_option()
@one_object
def delete(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Forget a run and all its records, whether it has ended or not."""
    with one_run(broker_url, run_id) as run:
        run.delete()
    say(f"run {run.run_id} is deleted", {"run_id": run.run_id, "deleted": True}, as_json=as_json)


@click.command("heal")
@broker_option()
@one_object
def heal(broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Look for what got lost, and do it again, at once: the workers do so by themselves."""
    with fleet(broker_url) as client:
        count = client.heal()
    text = f"{count:,} steps were done again" if count else "nothing was missing"
    say(text, {"steps": count}, as_json=as_json)
