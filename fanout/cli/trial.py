"""``fanout trial``: runs a random sample of a job, and projects the rest."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.delivery import quiet_option
from fanout.cli.estimate_view import trial_lines
from fanout.cli.exits import INTERRUPTED
from fanout.cli.following import follow
from fanout.cli.job_options import job_options
from fanout.cli.options import in_words, job_spec
from fanout.cli.session import (
    EMBEDDED,
    Faults,
    Stop,
    broker_option,
    client_for,
    one_object,
    print_json,
    progress_of,
)
from fanout.client.arguments import checked_count
from fanout.client.trials import begin_trial, trial_of
from fanout.core.settings import load_settings
from fanout.runs.rows import stream_row
from fanout.system.terminal import one_line, print_text

if TYPE_CHECKING:
    from fanout.client.run import Run

__all__ = ["command"]

_SAMPLE = 20
_SHOWN_CHARS = 200


@click.command("trial", epilog="A JOB.yaml has the same fields; options win over it.")
@job_options
@broker_option(EMBEDDED)
@one_object
@quiet_option
def command(
    inputs: tuple[str, ...],
    broker_url: str | None,
    as_json: bool,  # noqa: FBT001 - a click flag
    quiet: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Run a random sample of a job, show the answers, and project the rest.

    Cost, tokens, failures and time are projected with 95% intervals; the lengths of answers are those of
    the sample. --sample is its size in chunks, with --split model in documents (20 without it); --seed
    chooses another one. The calls are those of the job, so that the response cache has them when it runs.
    There is no aggregate. A budget holds for the sample, too; what it cuts is left out of the projection,
    which says for how many branches of the job the budget is enough.
    """
    size = checked_count("--sample", options["sample"]) or _SAMPLE
    options["sample"] = None
    settings = load_settings(broker_url=broker_url)
    spec = job_spec(inputs, options, settings)
    progress = progress_of(settings, is_quiet=quiet)
    stop = Stop(progress)
    with ExitStack() as stack:
        stack.enter_context(stop)
        client = stack.enter_context(client_for(spec, settings, broker_url))
        faults = Faults(progress)
        with in_words(inputs, options):
            begun = begin_trial(
                client,
                spec,
                None,
                size=size,
                notify=faults.notice,
                on_created=stop.arm,
                should_stop=stop.is_set,
            )
        run: Run = begun.run
        follow(run, progress, should_stop=stop.is_set, has_own_worker=client.is_embedded)
        trial = trial_of(begun)
        if as_json:
            print_json({**trial.to_dict(), "outputs": [stream_row(one) for one in run.outcomes()]})
        else:
            print_text("\n".join([*_answers(run), "", *trial_lines(trial)]))
    if stop.is_set():
        return INTERRUPTED
    return 0 if trial.succeeded else 1


def _answers(run: Run) -> list[str]:
    lines = []
    for one in run.outcomes():
        aspect = "" if one.aspect is None else f" · {one.aspect}"
        answer = one.output if isinstance(one.output, str) else json.dumps(one.output, default=str)
        text = answer if one.kind is None else f"{one.kind.value}: {one.message}"
        lines.append(f"[{one.document}{aspect}] {_short(one_line(text))}")
    return lines


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
