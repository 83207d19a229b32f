"""The commands for operators: ``doctor``, ``probe``, ``setup-server`` and ``heal``."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from fanout.cli.session import broker_option, broker_store, fleet, one_object, print_json, say
from fanout.core.errors import BrokerError
from fanout.core.units import plural
from fanout.doctor import Finding, State, worst
from fanout.system.terminal import can_draw, print_error, print_line

if TYPE_CHECKING:
    from fanout.stores import RedisStore

__all__ = ["doctor", "heal", "probe", "setup_server"]

_LOCAL = "$FANOUT_BROKER_URL, else this machine's"
# A server that hangs must not make the probe hang.
_TIMEOUT_S = 3.0


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
def doctor(models: tuple[str, ...], broker_url: str | None, as_json: bool) -> int:  # noqa: FBT001
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
        print_json({"state": state, "findings": msgspec.to_builtins(findings)})
    else:
        _print_findings(findings)
    return 1 if state is State.FAIL else 0


def _print_findings(findings: list[Finding]) -> None:
    if can_draw(sys.stdout):
        from fanout.cli.views import draw, findings_view

        draw(findings_view, findings)
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            print_line(f"{finding.state:<5} {finding.check:<{width}}  {finding.found}")
            if finding.advice is not None:
                print_line(f"{'':6}{'':{width}}  -> {finding.advice}")
    counts = {state: sum(finding.state is state for finding in findings) for state in State}
    print_line(", ".join(f"{count} {state.value}" for state, count in counts.items()))


@click.command("probe")
@click.option(
    "--name",
    "-n",
    metavar="NAME",
    envvar="FANOUT_WORKER_NAME",
    help="One worker, as it is called; %h is the host "
    "[default: $FANOUT_WORKER_NAME, else all workers of this machine]",
)
@click.option(
    "--within",
    "within_s",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="How long ago a worker may have last looked for messages.",
)
@broker_option(_LOCAL)
def probe(name: str | None, within_s: float, broker_url: str | None) -> int:
    """Exit with 0 where this machine's workers take messages, with 1 and the reason if not.

    A worker counts that looks at its queues, or whose places are all taken; not one whose branches
    make no progress, or that sees another storage. That it lives is not enough. Where the server
    refuses writes, it says that. It asks nobody but the server.
    """
    from fanout.core.settings import load_settings
    from fanout.observe.probe import probe_problem, write_refusal

    host = socket.gethostname()
    with broker_store(load_settings(broker_url=broker_url), timeout_s=_TIMEOUT_S) as (store, _):
        workers = store.workers()
        refused = write_refusal(store, "probe")
    name = None if name is None else name.replace("%h", host)
    problem = probe_problem(workers, host=host, name=name, now=time.time(), within_s=within_s)
    # What only the user of this check may not do is no matter of the workers, while they are heard.
    if problem is None and not (refused and refused.is_passing):
        return 0
    # Where writes are refused, workers cannot say that they are there; to restart them is no help.
    print_error(str(refused or problem))
    return 1


@click.command("setup-server")
@broker_option(_LOCAL)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How long to wait for a server that does not answer yet. [default: not at all]",
)
@one_object
def setup_server(broker_url: str | None, wait_s: float, as_json: bool) -> None:  # noqa: FBT001
    """Load the functions that this version of fanout calls on its server.

    A server whose users may do anything needs none of this: they are loaded when they are missing.
    Where users have ACLs, as those of ops/make-secrets, the admin does it before an upgrade; those
    of other versions stay. It may be repeated.
    """
    from fanout.broker.server_setup import load_functions
    from fanout.core.settings import load_settings

    with broker_store(load_settings(broker_url=broker_url)) as (store, client):
        _await(store, until=time.monotonic() + wait_s)
        count = load_functions(client)
    say(f"the server has the {count} functions of this version", {"functions": count},
        as_json=as_json)  # fmt: skip


def _await(store: RedisStore, *, until: float) -> None:
    """Wait until the server answers, at most until a time of the monotonic clock."""
    while True:
        try:
            store.ping()
        except BrokerError as error:
            if not error.is_passing or time.monotonic() > until:
                raise
        else:
            return


@click.command("heal")
@broker_option()
@one_object
def heal(broker_url: str | None, as_json: bool) -> None:  # noqa: FBT001 - a click flag
    """Look for what got lost, and do it again, at once: the workers do so by themselves."""
    with fleet(broker_url) as client:
        count = client.heal()
    again = plural(count, "step was done again", "steps were done again")
    text = again if count else "nothing was missing"
    say(text, {"steps": count}, as_json=as_json)
