"""The command that draws what a job does: ``explain``."""

from __future__ import annotations

from typing import Any

import click

from fanout.cli.delivery import quiet_option
from fanout.cli.estimate import estimated
from fanout.cli.estimate_view import estimate_lines
from fanout.cli.job_options import job_options
from fanout.cli.session import EMBEDDED, broker_option, one_object, print_json
from fanout.runs.job_drawing import job_drawing
from fanout.system.terminal import print_text

__all__ = ["command"]


@click.command("explain", epilog="A JOB.yaml has the same fields; options win over it.")
@job_options
@broker_option(EMBEDDED)
@quiet_option
@one_object
def command(
    inputs: tuple[str, ...],
    broker_url: str | None,
    quiet: bool,  # noqa: FBT001 - a click flag
    as_json: bool,  # noqa: FBT001 - a click flag
    **options: Any,
) -> int:
    """Draw what a job does, from its documents to its answer, and say what that would use.

    It makes no call. The whole input is read, as by `fanout estimate`.
    """
    spec, estimate = estimated(inputs, options, broker_url=broker_url, is_quiet=quiet or as_json)
    drawing = job_drawing(spec)
    if as_json:
        print_json({"drawing": drawing, "estimate": estimate.to_dict()})
    else:
        print_text("\n".join([*drawing, "", *estimate_lines(estimate)]))
    return 0
