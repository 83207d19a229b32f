"""The commands that act on runs: ``cancel``, ``pause``, ``retry``, ``resume`` and the like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.completion import complete_files
from fanout.cli.delivery import conclude, left_out, quiet_option, unpaid_calls
from fanout.cli.exits import INTERRUPTED
from fanout.cli.following import follow
from fanout.cli.progress import Progress
from fanout.cli.run_facts import pause_hint, stop_hint
from fanout.cli.session import (
    EMBEDDED,
    RUN_EPILOG,
    Faults,
    Stop,
    any_client,
    broker_option,
    enqueued,
    kind_option,
    one_object,
    one_run,
    run_argument,
    say,
)
from fanout.client.past_runs import run_opener
from fanout.core.errors import SpecError
from fanout.core.model_names import keeps_answers
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.units import plural
from fanout.inputs.sources import source_of_files
from fanout.runs.status import retry_help
from fanout.system.terminal import print_line

if TYPE_CHECKING:
    from fanout.client.run import Run
    from fanout.core.spec import RunSpec
    from fanout.runs.status import Status

__all__ = ["cancel", "delete", "pause", "resume", "retry", "unpause"]

# A cancelled run ends once its calls in flight have ended.
_CANCEL_S = 60.0


@click.command("cancel", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@one_object
def cancel(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Stop a run: no further call is made, and what has finished is kept."""
    with any_client(broker_url) as client:
        run = client.find(run_id)
        did = run.cancel()
        now = run.status()
        if now.gathered:
            print_line(f"run {run.run_id} is {stop_hint(now)}", err=True)
        if client.is_embedded and not now.status.has_ended:
            # Only a worker ends a run; the client that started one may have died.
            run.wait(_CANCEL_S)
        _print_change(run, did, "is stopped" if did else "had been stopped", as_json=as_json)


@click.command("pause", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@one_object
def pause(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Let no further call of a run begin; those in flight go on to their end."""
    with one_run(broker_url, run_id) as run:
        did = run.pause()
        _print_change(run, did, "is paused" if did else "was paused already", as_json=as_json)


@click.command("unpause", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@one_object
def unpause(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Let a run that is paused go on."""
    with any_client(broker_url) as client:
        run = client.find(run_id)
        did = run.unpause()
        goes_on = "goes on"
        if did and not client.goes_on_without(run.run_id):
            goes_on = f"is not paused any more, and `fanout resume {run.run_id}` goes on"
        _print_change(run, did, goes_on if did else "was not paused", as_json=as_json)


def _print_change(run: Run, changed: bool, what: str, *, as_json: bool) -> None:  # noqa: FBT001 - a fact
    status = run.status().status
    if not changed and status.has_ended:
        what = f"has ended already ({status.value})"
    fields = {"run_id": run.run_id, "changed": changed, "status": status.value}
    say(f"run {run.run_id} {what}", fields, as_json=as_json)


@click.command("retry", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@kind_option
@click.option(
    "--budget-usd",
    metavar="N",
    type=float,
    help="A new budget of the whole run in US dollars, what it has spent included.",
)
@click.option("--budget-calls", metavar="N", type=int, help="The same in calls.")
@click.option("--budget-tokens", metavar="N", type=int, help="The same in tokens.")
@quiet_option
@one_object
def retry(
    run_id: str,
    broker_url: str | None,
    kinds: tuple[str, ...],
    budget_usd: float | None,
    budget_calls: int | None,
    budget_tokens: int | None,
    quiet: bool,  # noqa: FBT001 - a click flag
    as_json: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Process the failed branches of a run that has ended again, and redo its aggregate.

    Where only calls of its aggregate have failed, such as comparisons, these are made again.
    Documents that could not be read are not read again: that takes a new run.
    Without a broker this command does the work, and follows it to its end.
    """
    progress = Progress(is_quiet=quiet, idle="")
    stop = Stop(progress)
    given = {"usd": budget_usd, "calls": budget_calls, "tokens": budget_tokens}
    budget = {name: limit for name, limit in given.items() if limit is not None} or None
    with any_client(broker_url) as client, stop:
        run = client.find(run_id)
        chosen = [ErrorKind(kind) for kind in kinds] or list(ErrorKind)
        before = run.status()
        hint = None if budget else _budget_hint(run, before, chosen)
        failed_calls = sum(error.kind in chosen for error in run.stored_result().all_errors)
        try:
            count = run.retry_failed(chosen, budget=budget)
        except SpecError as error:
            part, _, name = (error.field or "").partition(".")
            field = f"--{part}-{name}" if name else error.field
            raise SpecError(error.reason, field=field) from None
        stop.arm(run.run_id)
        left = sum(before.errors.get(kind, 0) for kind in chosen) - count
        # Of a run with a budget, others are left where that has no room for them.
        bad = before.errors.get(ErrorKind.BAD_REQUEST, 0) if ErrorKind.BAD_REQUEST in chosen else 0
        unread = left if before.budget is None else min(left, bad)
        now = run.status()
        redoes = _redoes_aggregate(before, now, run.spec)
        again = failed_calls if count or redoes else 0
        text = _retried(
            run.run_id,
            count,
            unread,
            redoes=redoes,
            is_any=not kinds,
            calls=again,
            unpaid=left - unread,
            unmade=failed_calls - again if before.budget is not None else 0,
            keeps=_keeps_answers(run.spec),
        )
        if budget and not count and now.budget is not None:
            text += f"; its {now.budget.words}"
        if hint:
            progress.note(hint)
        fields = {"run_id": run.run_id, "branches": count, "aggregate_calls": again}
        if not client.is_embedded:
            say(text, {**fields, "status": now.status.value}, as_json=as_json)
            return 0
        progress.note(text)
        return _work_off(run, progress, stop, fields, as_json=as_json)


def _budget_hint(run: Run, status: Status, kinds: list[ErrorKind]) -> str | None:
    """Return how to give a run a larger budget whose calls did not fit; None if all did."""
    over = status.errors.get(ErrorKind.BUDGET, 0) if ErrorKind.BUDGET in kinds else 0
    errors = run.stored_result().all_errors
    is_over = over or any(one.kind is ErrorKind.BUDGET for one in errors)
    if status.budget is None or not is_over:
        return None
    option = f"--budget-{status.budget.fullest}"
    return (
        f"calls of run {run.run_id} did not fit into its budget, which has {status.budget.left_words} "
        f"left: `fanout retry {run.run_id} {option} N` gives it a larger one"
    )


def _keeps_answers(spec: RunSpec) -> bool:
    """Return whether all answers of a job's reduces are kept, if a model gives any."""
    models = {reduce.model for reduce in spec.called_reductions}
    return not models or (spec.cache and all(map(keeps_answers, models)))


def _redoes_aggregate(before: Status, now: Status, spec: RunSpec) -> bool:
    """Say whether a retry of no branch makes the aggregate of a run again.

    Args:
        before: The run as it had ended.
        now: The run after the retry.
        spec: Its job.
    """
    goes_on = not now.status.has_ended
    # It may have ended again by now, and then later than before.
    is_again = goes_on or now.elapsed_s != before.elapsed_s
    if before.status is not RunStatus.SUCCEEDED and not goes_on:
        is_again = is_again and 0 < before.succeeded >= spec.min_success * before.total
    return is_again and bool(spec.reductions)


def _retried(
    run_id: str,
    count: int,
    unread: int,
    *,
    redoes: bool,
    is_any: bool,
    calls: int = 0,
    unpaid: int = 0,
    unmade: int = 0,
    keeps: bool = True,
) -> str:
    """Return what becomes of the failed branches of a run.

    Args:
        run_id: The run.
        count: How many are processed again.
        unread: How many others have no readable document.
        redoes: Whether the aggregate is made again if no branch is processed.
        is_any: Whether failures of all kinds are asked for.
        calls: How many calls of the aggregate have failed, and are made again.
        unpaid: How many branches stay as they are, as the budget has no room for a call.
        unmade: The same of calls of the aggregate that have failed.
        keeps: Whether the answers of its other calls are kept, so that these are not made again.
    """
    branches = plural(count, "branch", "branches")
    text = f"{branches} of run {run_id} {'is' if count == 1 else 'are'} processed again"
    if not count:
        why = (
            "can be processed again"
            if unread or unpaid
            else "has failed"
            if is_any
            else "has failed so"
        )
        again = f"only its aggregate is made again{_with_calls(calls, keeps=keeps)}"
        then = again if redoes else "nothing is processed again"
        text = f"no branch of run {run_id} {why}: {then}"
    if unread:
        failed = plural(unread, "branch has", "branches have")
        text += f"; {failed} a document that could not be read, which only a new run reads again"
    if unpaid:
        text += f"; the budget has no room for calls of {plural(unpaid, 'branch', 'branches')}"
    elif unmade:
        text += "; the budget has no room to make its aggregate again"
    return text


def _with_calls(failed: int, *, keeps: bool) -> str:
    """Return which calls of an aggregate are made again; empty where it is not known, or none are."""
    if keeps:
        return f", with {plural(failed, 'call', 'calls')} that had failed" if failed else ""
    of_these = f", of which {failed:,} had failed" if failed else ""
    return f", with all its calls{of_these}: their answers are not kept"


def _work_off(
    run: Run, progress: Progress, stop: Stop, fields: dict[str, Any], *, as_json: bool
) -> int:
    """Follow an embedded run to its end with a worker of this client; return the exit status."""
    now = follow(run, progress, should_stop=stop.is_set, has_own_worker=True)
    say(run.run_id, {**fields, "status": now.status.value}, as_json=as_json)
    exit_status = conclude(now, progress, run=run)
    if not stop.is_set():
        # The budget may have ended it again.
        for line in (
            *left_out(now),
            *unpaid_calls(run.run_id, now, run.stored_result().all_errors),
        ):
            progress.note(line)
    progress.note(f"its answers: `fanout results {run.run_id}`, with --out DIR into files")
    return INTERRUPTED if stop.is_set() else exit_status


@click.command("resume", epilog=RUN_EPILOG)
@run_argument
@click.argument("inputs", nargs=-1, metavar="[INPUT]...", shell_complete=complete_files)
@broker_option(EMBEDDED)
@quiet_option
@one_object
def resume(
    run_id: str,
    inputs: tuple[str, ...],
    broker_url: str | None,
    quiet: bool,  # noqa: FBT001 - a click flag
    as_json: bool,  # noqa: FBT001 - a click flag
) -> int:
    """Go on with a run whose `fanout submit` or `fanout run` died while it was enqueued.

    Its files are found again by themselves; give an INPUT where they have moved. What came from
    standard input is given there again. Without a broker this command does the work that is left,
    whenever the run was interrupted, and follows it to its end.
    """
    progress = Progress(is_quiet=quiet, idle="")
    stop, faults = Stop(progress), Faults(progress)
    with any_client(broker_url) as client, stop:
        run = client.find(run_id)
        documents = None
        if inputs:
            source = source_of_files(
                run.spec,
                inputs,
                base=Path(),
                notify=faults.notice,
                open_run=run_opener(client),
            )
            documents = source.documents()
        stop.arm(run.run_id)
        before = run.status()
        client.resume(
            run.run_id,
            documents,
            on_bad_document=faults,
            on_notice=faults.notice,
            should_stop=stop.is_set,
        )
        faults.close()
        if before.status.has_ended:
            say(run.run_id, before.to_dict(), as_json=as_json)
            progress.note(_ended(before))
            return 0
        now = run.status()
        hint = pause_hint(now)
        state = f"run {run.run_id} {now.status.value}: {enqueued(now.total)}"
        progress.note(f"{state}; {hint}" if hint else state)
        if client.is_embedded:
            return _work_off(run, progress, stop, now.to_dict(), as_json=as_json)
    say(run.run_id, now.to_dict(), as_json=as_json)
    return INTERRUPTED if stop.is_set() else 0


def _ended(now: Status) -> str:
    text = (
        f"run {now.run_id} has ended ({now.status.value}): {enqueued(now.total)}, "
        "and there is nothing to resume"
    )
    if now.failed:
        failed = plural(now.failed, "branch has", "branches have")
        text += f"; {failed} failed: {retry_help(now)}"
    return text


@click.command("delete", epilog=RUN_EPILOG)
@run_argument
@broker_option(EMBEDDED)
@one_object
def delete(run_id: str, broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Forget a run and all its records, whether it has ended or not."""
    with one_run(broker_url, run_id) as run:
        run.delete()
    say(f"run {run.run_id} is deleted", {"run_id": run.run_id, "deleted": True}, as_json=as_json)
