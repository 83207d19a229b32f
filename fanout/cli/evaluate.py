"""``fanout eval``: a job, or a run that has ended, against labels."""

from __future__ import annotations

import re
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.delivery import Delivery, Scoring, deliver, quiet_option
from fanout.cli.destinations import out_options, require_room
from fanout.cli.evaluation_view import Threshold
from fanout.cli.job_options import job_options
from fanout.cli.options import in_words, labels_of
from fanout.cli.progress import Progress
from fanout.cli.run import JOB_EPILOG, carry_out, report_option, sure_option
from fanout.cli.session import EMBEDDED, broker_option, one_run
from fanout.core.errors import InputError, SpecError
from fanout.inputs.documents.files import RUN, STDIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from fanout.cli.destinations import Destination
    from fanout.core.spec import RunSpec

__all__ = ["command"]

# What an id of a run begins with.
_RUN = re.compile(r"latest|[0-9a-z]{1,8}")
# Job files, patterns, URLs, runs and standard input, which have messages of their own.
_ELSEWHERE = re.compile(rf"\.ya?ml$|[*?\[]|://|^{RUN}|^{STDIN}$")


def _number(
    _context: click.Context, _parameter: click.Parameter, value: float | None
) -> float | None:
    """Refuse what is no number, which is below nothing."""
    if value is not None and isnan(value):
        raise click.BadParameter("nan is not in the range 0<=x<=1.")
    return value


@click.command("eval", epilog=JOB_EPILOG)
@job_options
@broker_option(EMBEDDED)
@out_options
@report_option
@click.option(
    "--metric",
    type=click.Choice(["accuracy", "macro_f1"]),
    help="What --fail-under is about. [default: accuracy]",
)
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 1),
    callback=_number,
    metavar="SHARE",
    help="Exit with 1 if the metric of any model, prompt or field is below this, 0 to 1.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the status and the evaluation as JSON."
)
@quiet_option
@sure_option
def command(
    inputs: tuple[str, ...],
    broker_url: str | None,
    open_out: Callable[[RunSpec], AbstractContextManager[Destination | None]],
    report: Path | None,
    metric: str | None,
    fail_under: float | None,
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
    is_sure: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Run a job as `fanout run` does, and print how good the answers are instead of them.

    The right answers are in a column of the input: --label COLUMN. Several models and prompts are
    compared on the same documents. `fanout eval RUN` evaluates a run that there is already, by its own
    labels or by --label. docs/evaluation.md describes the measures.
    """
    if metric is not None and fail_under is None:
        raise click.UsageError(
            "--metric has no effect without --fail-under: leave it out, or give it"
        )
    threshold = None if fail_under is None else Threshold(metric or "accuracy", fail_under)
    if _is_run(inputs, options):
        if is_sure:
            raise click.UsageError("--yes has no effect on a run that there is: leave it out")
        delivery = Delivery(
            report=report,
            as_json=as_json,
            scoring=Scoring(threshold=threshold, labels=labels_of(options["labels"]) or None),
        )
        with in_words((), options):
            return _evaluate_run(
                inputs[0], broker_url, open_out, Progress(is_quiet=quiet), delivery
            )
    if _is_nothing(inputs, options):
        raise InputError("there is no such run, and no such file", source=inputs[0])
    return carry_out(
        inputs,
        options,
        broker_url=broker_url,
        open_out=open_out,
        delivery=Delivery(report=report, as_json=as_json, scoring=Scoring(threshold=threshold)),
        quiet=quiet,
        is_sure=is_sure,
    )


def _is_run(inputs: tuple[str, ...], options: dict[str, Any]) -> bool:
    """Say whether the only argument is a run: a job needs a prompt, of its file or of an option."""
    return _is_alone(inputs, options) and _RUN.fullmatch(inputs[0]) is not None


def _is_nothing(inputs: tuple[str, ...], options: dict[str, Any]) -> bool:
    """Say whether the only argument is neither a file nor what may be one of several."""
    return _is_alone(inputs, options) and _ELSEWHERE.search(inputs[0]) is None


def _is_alone(inputs: tuple[str, ...], options: dict[str, Any]) -> bool:
    """Say whether there is nothing but one argument, which is no file, and labels."""
    given = {name for name, value in options.items() if value not in (None, ())}
    return len(inputs) == 1 and given <= {"labels"} and not Path(inputs[0]).exists()


def _evaluate_run(
    name: str,
    broker_url: str | None,
    open_out: Callable[[RunSpec], AbstractContextManager[Destination | None]],
    progress: Progress,
    delivery: Delivery,
) -> int:
    with one_run(broker_url, name) as run, open_out(run.spec) as out:
        is_labelled = delivery.scoring is not None and delivery.scoring.labels is not None
        if not is_labelled and not run.spec.labels:
            raise SpecError(
                "is required, as the run has no labels: which column has the right answers?",
                field="labels",
            )
        now = run.status()
        require_room(out, now.total)
        if not now.status.has_ended:
            progress.note("the run has not ended: this is what there is so far")
        return deliver(run, now, progress, replace(delivery, out=out))
