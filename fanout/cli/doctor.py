"""``fanout doctor``: what is wrong with this machine, the server and the fleet."""

from __future__ import annotations

import json
import sys

import click
import msgspec

from fanout.cli.session import broker_option
from fanout.doctor import Finding, State, worst
from fanout.system.terminal import can_draw, print_line

__all__ = ["command"]


@click.command("doctor")
@click.option(
    "--model",
    "-m",
    "models",
    metavar="M",
    multiple=True,
    help="Ask whether the workers can use this model; give several. [default: $FANOUT_MODEL]",
)
@broker_option("$FANOUT_BROKER_URL; without one, what `fanout run` would start is checked")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(models: tuple[str, ...], broker_url: str | None, as_json: bool) -> int:  # noqa: FBT001
    """Check this machine, the server and the fleet, and say what to do.

    The exit status is 1 where something fails. Warnings do not count.
    """
    from fanout.core.settings import load_settings
    from fanout.doctor.examination import examine

    settings = load_settings(broker_url=broker_url)
    if not models and settings.model is not None:
        models = (settings.model,)
    findings = list(examine(settings, models))
    state = worst(findings)
    if as_json:
        rows = [msgspec.to_builtins(finding) for finding in findings]
        print_line(json.dumps({"state": state, "findings": rows}, ensure_ascii=False))
    else:
        _print(findings)
    return 1 if state is State.FAIL else 0


def _print(findings: list[Finding]) -> None:
    if can_draw(sys.stdout):
        from fanout.cli.console import draw
        from fanout.cli.views import findings_view

        draw(lambda _width: findings_view(findings))
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            print_line(f"{finding.state:<5} {finding.check:<{width}}  {finding.found}")
            if finding.advice is not None:
                print_line(f"{'':6}{'':{width}}  -> {finding.advice}")
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    print_line(", ".join(f"{count} {state.value}" for state, count in counts.items()))
