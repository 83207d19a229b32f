"""``fanout flower``: Celery's monitor, set up for fanout."""

from __future__ import annotations

import os

import click

__all__ = ["command"]


@click.command(
    "flower",
    context_settings={"ignore_unknown_options": True},
    epilog="Any further option is handed to Flower as --name=value; "
    "`fanout flower -- --help` lists them.",
)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65_535),
    help="Where to listen [default: $FLOWER_PORT, else 5555]",
)
@click.option(
    "--address",
    metavar="HOST",
    help="Where to listen: 0.0.0.0 is every network of this machine. "
    "[default: $FLOWER_ADDRESS, else 127.0.0.1]",
)
@click.option(
    "--broker-url",
    metavar="URL",
    help="The fleet's Redis server, or sentinel://HOST,.../0?master=NAME "
    "[default: $FANOUT_BROKER_URL, else this machine's]",
)
@click.option("--no-auth", is_flag=True, help="Let everybody in who can connect.")
@click.option(
    "--control",
    is_flag=True,
    help="Let those who log in stop workers, resize their pools and revoke tasks.",
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
def command(
    port: int | None,
    address: str | None,
    broker_url: str | None,
    no_auth: bool,  # noqa: FBT001 - click's signature
    control: bool,  # noqa: FBT001 - click's signature
    flower_options: tuple[str, ...],
) -> None:
    """Serve a web page that shows the workers, tasks and queues of a fleet.

    Who may see it: $FANOUT_FLOWER_USER (else "fanout") with $FANOUT_FLOWER_PASSWORD, or with the
    password that is in $FANOUT_FLOWER_PASSWORD_FILE.
    """
    from fanout.cli.worker import check_broker, pass_on_broker
    from fanout.core.settings import load_settings
    from fanout.system.programs import flower_command

    settings = load_settings(broker_url=broker_url)
    pass_on_broker(settings, broker_url)
    given = {"--port": port, "--address": address}
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    if no_auth:
        arguments.append("--no_auth=true")
    if control:
        arguments.append("--read_only=false")
    check_broker(settings)
    # The same process from here on, as with the worker.
    flower = flower_command()
    os.execv(flower[0], [*flower, *arguments, *flower_options])  # noqa: S606 - our own interpreter
