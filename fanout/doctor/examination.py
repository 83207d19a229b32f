"""All checks of the doctor, in the order of its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

# First: it loads redis-py.
import fanout.stores  # noqa: F401
from fanout.client.client import Client
from fanout.core.errors import BrokerError
from fanout.doctor.collect import (
    Server,
    embedded_facts,
    local_model_facts,
    machine_facts,
    model_facts,
    storage_facts,
)
from fanout.doctor.findings import fail
from fanout.doctor.fleet import fleet_findings, model_findings
from fanout.doctor.machine import embedded_findings, machine_findings, storage_finding
from fanout.doctor.server import connection_findings, server_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.settings import Settings
    from fanout.doctor.findings import Finding

__all__ = ["examine"]


def examine(settings: Settings, models: tuple[str, ...]) -> Iterator[Finding]:
    """Yield the findings about this machine and the server with its fleet, or embedded runs."""
    yield from machine_findings(machine_facts())
    if settings.storage is not None:
        yield storage_finding(storage_facts(settings.storage))
    if settings.broker_url is None:
        yield from embedded_findings(embedded_facts(settings), is_local_wanted="local" in models)
        for model in models:
            yield from model_findings(local_model_facts(settings, model))
        return
    try:
        server = Server(settings)
    except BrokerError as error:
        yield fail("broker", "cannot be used", str(error))
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
        for model in models:
            yield from model_findings(local_model_facts(settings, model))
        return
    with Client(settings.broker_url) as client:
        for model in models:
            yield from model_findings(model_facts(client, model, workers=len(fleet.workers)))
