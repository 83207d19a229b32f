"""``fanout setup-server``: what the server's operator does once for each version of fanout."""

from __future__ import annotations

import time

import click

from fanout.cli.session import broker_option, one_object, say

__all__ = ["command"]


@click.command("setup-server")
@broker_option("$FANOUT_BROKER_URL, else this machine's")
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How long to wait for a server that does not answer yet. [default: not at all]",
)
@one_object
def command(broker_url: str | None, wait_s: float, as_json: bool) -> None:  # noqa: FBT001
    """Load the functions that this version of fanout calls on its server.

    A server whose users may do anything needs none of this: they are loaded when they are missing.
    Where users have ACLs, as those of ops/make-secrets, the admin does it before an upgrade; those
    of other versions stay. It may be repeated.
    """
    from fanout.broker.server_setup import load_functions
    from fanout.core.errors import BrokerError
    from fanout.core.settings import DEFAULT_BROKER_URL, load_settings
    from fanout.stores import RedisStore, connect

    settings = load_settings(broker_url=broker_url)
    url = settings.broker_url or DEFAULT_BROKER_URL
    client = connect(url, ca_file=settings.broker_ca_file)
    store = RedisStore(client, prefix=settings.key_prefix)
    until = time.monotonic() + wait_s
    try:
        while True:
            try:
                store.ping()
                break
            except BrokerError as error:
                if not error.is_passing or time.monotonic() > until:
                    raise
        count = load_functions(client)
    finally:
        store.close()
    say(f"the server has the {count} functions of this version", {"functions": count},
        as_json=as_json)  # fmt: skip
