"""The command that draws what a job does: ``explain``."""

from __future__ import annotations

from typing import Any

import click

from fanout.cli.estimate_view import estimate_lines
from fanout.cli.options import in_words, job_options, job_spec
from fanout.cli.progress import Progress
from fanout.cli.session import EMBEDDED, Faults, any_client, broker_option, one_object, print_json
from fanout.core.settings import load_settings
from fanout.runs.job_drawing import job_drawing
from fanout.system.terminal import print_text

__all__ = ["command"]


@click.command("explain", epilog="A JOB.yaml has the same fields; options win over it.")
@job_options
@broker_option(EMBEDDED)
@one_object
def command(
    inputs: tuple[str, ...],
    broker_url: str | None,
    as_json: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Draw what a job does, from its documents to its answer, and say what that would use.

    It makes no call. The whole input is read, as by `fanout estimate`.
    """
    spec = job_spec(inputs, options, load_settings(broker_url=broker_url))
    faults = Faults(Progress(is_quiet=as_json))
    with any_client(broker_url) as client, in_words(inputs, options):
        estimate = client.estimate(spec, on_notice=faults.notice)
    drawing = job_drawing(spec)
    if as_json:
        print_json({"drawing": drawing, "estimate": estimate.to_dict()})
    else:
        print_text("\n".join([*drawing, "", *estimate_lines(estimate)]))
    return 0
