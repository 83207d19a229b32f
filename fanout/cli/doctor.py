"""``fanout doctor``: what is wrong with this machine, the server and the fleet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import msgspec

from fanout.cli.session import broker_option
from fanout.client import Client
from fanout.doctor import Finding, State, worst
from fanout.doctor.collect import (
    Server,
    embedded_facts,
    local_model_facts,
    machine_facts,
    model_facts,
)
from fanout.doctor.findings import fail
from fanout.doctor.fleet import fleet_findings, model_finding
from fanout.doctor.machine import embedded_findings, machine_findings
from fanout.doctor.server import connection_findings, server_findings
from fanout.errors import BrokerError
from fanout.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.settings import Settings

__all__ = ["command"]

_COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


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
    settings = load_settings(broker_url=broker_url)
    if not models and settings.model is not None:
        models = (settings.model,)
    findings = list(_examine(settings, models))
    state = worst(findings)
    if as_json:
        rows = [msgspec.to_builtins(finding) for finding in findings]
        click.echo(json.dumps({"state": state, "findings": rows}, ensure_ascii=False))
    else:
        _print(findings)
    return 1 if state is State.FAIL else 0


def _examine(settings: Settings, models: tuple[str, ...]) -> Iterator[Finding]:
    yield from machine_findings(machine_facts())
    if settings.broker_url is None:
        yield from embedded_findings(embedded_facts(settings), is_local_wanted="local" in models)
        yield from (model_finding(local_model_facts(settings, model)) for model in models)
        return
    try:
        server = Server(settings)
    except BrokerError as error:
        yield fail("broker", "does not answer as it should", str(error))
        return
    try:
        yield from _examine_server(settings, server, models)
    except BrokerError as error:
        yield fail("broker", "has stopped answering, or refuses what fanout needs", str(error))
    finally:
        server.close()


def _examine_server(
    settings: Settings, server: Server, models: tuple[str, ...]
) -> Iterator[Finding]:
    yield from connection_findings(server.connection())
    timeout_s = settings.visibility_timeout_s
    yield from server_findings(server.facts(), visibility_timeout_s=timeout_s)
    fleet = server.fleet()
    yield from fleet_findings(fleet)
    if not models:
        return
    if not fleet.workers or fleet.wire not in {None, fleet.own_wire}:
        yield from (model_finding(local_model_facts(settings, model)) for model in models)
        return
    with Client(settings.broker_url) as client:
        for model in models:
            yield model_finding(model_facts(client, model, workers=len(fleet.workers)))


def _print(findings: Iterable[Finding]) -> None:
    findings = list(findings)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        state = click.style(f"{finding.state:<5}", fg=_COLOURS[finding.state])
        click.echo(f"{state} {finding.check:<{width}}  {finding.found}")
        if finding.advice is not None:
            click.echo(f"{'':6}{'':{width}}  -> {finding.advice}")
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    click.echo(", ".join(f"{count} {state.value}" for state, count in counts.items()))
