"""``fanout probe``: a health check for containers and service managers."""

from __future__ import annotations

import secrets
import socket
import time
from typing import TYPE_CHECKING

import click

from fanout.cli.session import broker_option
from fanout.system.terminal import print_error

if TYPE_CHECKING:
    from fanout.core.errors import BrokerError
    from fanout.stores import RedisStore

__all__ = ["command"]

# A server that hangs must not make the check hang.
_TIMEOUT_S = 3.0


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
@broker_option("$FANOUT_BROKER_URL, else this machine's")
def command(name: str | None, within_s: float, broker_url: str | None) -> int:
    """Exit with 0 where this machine's workers take messages, with 1 and the reason if not.

    A worker counts that looks at its queues, or whose slots are all taken; not one whose branches
    make no progress, or that sees another storage. That it lives is not enough. Where the server
    refuses writes, it says that. It asks nobody but the server.
    """
    from fanout.core.settings import DEFAULT_BROKER_URL, load_settings
    from fanout.observe.probe import probe_problem
    from fanout.stores import RedisStore, connect

    settings = load_settings(broker_url=broker_url)
    host = socket.gethostname()
    client = connect(
        settings.broker_url or DEFAULT_BROKER_URL,
        ca_file=settings.broker_ca_file,
        timeout_s=_TIMEOUT_S,
    )
    store = RedisStore(client, prefix=settings.key_prefix)
    try:
        workers = store.workers()
        refused = _refused(store)
    finally:
        store.close()
    name = None if name is None else name.replace("%h", host)
    problem = probe_problem(workers, host=host, name=name, now=time.time(), within_s=within_s)
    # What only the user of this check may not do is no matter of the workers, while they are heard.
    if problem is None and not (refused and refused.is_passing):
        return 0
    # Where writes are refused, workers cannot say that they are there; to restart them is no help.
    print_error(str(refused or problem))
    return 1


def _refused(store: RedisStore) -> BrokerError | None:
    """Return why the server refuses what a worker writes, or None where it does not."""
    from fanout.core.errors import BrokerError

    try:
        store.take_lock(f"probe-{secrets.token_hex(4)}", "probe", ttl_s=1)
    except BrokerError as error:
        return error
    return None
