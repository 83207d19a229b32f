"""``fanout worker``: a Celery worker, set up for fanout."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from fanout.llm.keys import key_files
from fanout.settings import DEFAULT_BROKER_URL, check_traces, load_settings
from fanout.stores import RedisStore, connect

if TYPE_CHECKING:
    from fanout.settings import Settings

__all__ = ["check_broker", "command", "pass_on_broker"]


@click.command(
    "worker",
    context_settings={"ignore_unknown_options": True},
    epilog="Any further option is handed to `celery worker`; see `celery worker --help`.",
)
@click.option(
    "--concurrency",
    "-c",
    metavar="N",
    type=click.IntRange(1, 10_000),
    help="Branches in flight at once [default: $FANOUT_CONCURRENCY, else 32]",
)
@click.option(
    "--pool",
    "-P",
    type=click.Choice(["threads", "prefork", "solo"]),
    help="prefork is for functions that need the CPU. [default: $FANOUT_POOL, else threads]",
)
@click.option(
    "--loglevel",
    "-l",
    metavar="LEVEL",
    default="INFO",
    show_default=True,
    help="DEBUG, INFO, WARNING or ERROR.",
)
@click.option(
    "--broker-url",
    metavar="URL",
    help="The fleet's Redis server, or sentinel://HOST,.../0?master=NAME "
    "[default: $FANOUT_BROKER_URL, else this machine's]",
)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def command(
    concurrency: int | None,
    pool: str | None,
    loglevel: str,
    broker_url: str | None,
    celery_options: tuple[str, ...],
) -> None:
    """Process the branches of a fleet until stopped.

    SIGTERM or Ctrl-C finishes what is in flight. It is the same worker as
    `celery -A workers.app worker`.
    """
    settings = load_settings(broker_url=broker_url, concurrency=concurrency, pool=pool)
    check_traces(settings)
    key_files(os.environ)
    os.environ["FANOUT_POOL"] = settings.pool
    pass_on_broker(settings, broker_url)
    check_broker(settings)
    arguments = ["--concurrency", str(settings.concurrency)]
    arguments += ["--loglevel", loglevel, *celery_options]
    # The same process from here on: signals and exit status are Celery's own. A name and not an
    # import, because the workers import this package.
    celery = [sys.executable, "-m", "celery", "-A", "workers.app", "worker"]
    if settings.log_format == "json":
        # Celery's banner is no JSON, and goes to standard output.
        celery.insert(3, "--quiet")
    os.execv(sys.executable, [*celery, *arguments])  # noqa: S606 - our own interpreter


def pass_on_broker(settings: Settings, broker_url: str | None) -> None:
    """Have the program that takes this one's place use the server that an option names.

    By the environment, as everybody could read a password among the arguments.
    """
    if broker_url is None:
        return
    os.environ["FANOUT_BROKER_URL"] = broker_url
    os.environ.pop("FANOUT_BROKER_URL_FILE", None)
    if settings.broker_ca_file is None:
        os.environ.pop("FANOUT_BROKER_CA_FILE", None)


def check_broker(settings: Settings) -> None:
    """Say at once what is wrong with a broker: Celery would try for ever. Raises BrokerError."""
    url = settings.broker_url or DEFAULT_BROKER_URL
    store = RedisStore(connect(url, ca_file=settings.broker_ca_file))
    try:
        store.ping()
    finally:
        store.close()
