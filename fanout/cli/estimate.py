"""``fanout estimate``, and what ``fanout run`` says of a cost before it is spent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.delivery import quiet_option
from fanout.cli.estimate_view import estimate_lines, short_estimate
from fanout.cli.job_options import job_options
from fanout.cli.options import in_words, job_spec
from fanout.cli.progress import Progress
from fanout.cli.session import EMBEDDED, Faults, any_client, broker_option, one_object, print_json
from fanout.core.asks import first_models
from fanout.core.settings import load_settings
from fanout.inputs.documents.files import STDIN
from fanout.llm.prices import price_of
from fanout.system.terminal import asks, print_text

if TYPE_CHECKING:
    from fanout.client.client import Client
    from fanout.core.settings import Settings
    from fanout.core.spec import RunSpec
    from fanout.runs.estimate_result import Estimate

__all__ = ["command", "dry_run", "estimated", "is_agreed"]


@click.command("estimate", epilog="A JOB.yaml has the same fields; options win over it.")
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
    """Say what a job would use, cost and take, without a call.

    The whole input is read, as a stream. Costs are ranges, as answers may be long or short; calls that
    are made again are not in it. With a budget, it says for how many branches that is enough. The first
    prompt is shown as it would be sent.
    """
    return dry_run(inputs, options, broker_url=broker_url, as_json=as_json, is_quiet=quiet)


def dry_run(
    inputs: tuple[str, ...],
    options: dict[str, Any],
    *,
    broker_url: str | None,
    as_json: bool,
    is_quiet: bool,
) -> int:
    """Print the estimate of a job."""
    _, estimate = estimated(inputs, options, broker_url=broker_url, is_quiet=is_quiet or as_json)
    if as_json:
        print_json(estimate.to_dict())
    else:
        print_text("\n".join(estimate_lines(estimate)))
    return 0


def estimated(
    inputs: tuple[str, ...], options: dict[str, Any], *, broker_url: str | None, is_quiet: bool
) -> tuple[RunSpec, Estimate]:
    """Return the job of a command line, and its estimate. Raises SpecError and InputError."""
    spec = job_spec(inputs, options, load_settings(broker_url=broker_url))
    faults = Faults(Progress(is_quiet=is_quiet))
    with any_client(broker_url) as client, in_words(inputs, options):
        return spec, client.estimate(spec, on_notice=faults.notice)


def is_agreed(
    client: Client, spec: RunSpec, settings: Settings, progress: Progress, *, is_sure: bool
) -> bool:
    """Say what a job costs if that is much, and return whether it is to be run.

    Args:
        client: Has what runs have shown of models.
        spec: The job.
        settings: The cost from which a user is asked.
        progress: Shows the estimate.
        is_sure: Whether the user has agreed beforehand.
    """
    if not _is_paid(spec):
        return True
    if STDIN in spec.inputs:
        progress.note("not estimated: standard input can be read only once")
        return True
    estimate = client.estimate(spec, on_notice=lambda _notice: None)
    cost = estimate.chosen.cost_usd_likely
    if cost is not None and cost < settings.confirm_usd:
        return True
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    is_asked = can_ask and cost is not None and not is_sure
    progress.note(short_estimate(estimate), is_needed=is_asked)
    if not is_asked:
        return True
    return asks("run it?")


def _is_paid(spec: RunSpec) -> bool:
    """Return whether a run may cost anything that is not the user's own."""
    prices = {model: price_of(model, spec.price) for model in first_models(spec)}
    return any(
        "/" in model if price is None else not price.is_free for model, price in prices.items()
    )
