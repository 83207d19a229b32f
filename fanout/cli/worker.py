"""``fanout worker`` and ``fanout flower``: a Celery worker and its monitor, set up for fanout."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import click

from fanout.cli.session import broker_store
from fanout.core.errors import SettingsError
from fanout.core.settings import MAX_CONCURRENCY, load_settings
from fanout.core.trace_settings import check_traces
from fanout.llm.keys import key_files
from fanout.system.programs import program_command, worker_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.settings import Settings

__all__ = ["flower", "worker"]

# Until the worker says so itself.
_START_S = 10.0
# The settings that its options set.
_OF_WORKERS = ("concurrency", "queues", "worker_name", "pool", "autoscale", "storage")
_LEVELS = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_broker_option = click.option(
    "--broker-url",
    metavar="URL",
    help="The fleet's Redis server, or sentinel://HOST,.../0?master=NAME "
    "[default: $FANOUT_BROKER_URL, else this machine's]",
)


@click.command(
    "worker",
    context_settings={"ignore_unknown_options": True},
    epilog="Any further option is handed to `celery worker`; see `celery worker --help`.",
)
@click.option(
    "--concurrency",
    "-c",
    metavar="N",
    type=click.IntRange(1, MAX_CONCURRENCY),
    help="Branches in flight at once [default: $FANOUT_CONCURRENCY, else 32]",
)
@click.option(
    "--queues",
    "-Q",
    metavar="NAMES",
    help="What to take: control, branches, or both by comma. Some worker must take each. "
    "[default: $FANOUT_QUEUES, else both]",
)
@click.option(
    "--name",
    "-n",
    "--hostname",
    "worker_name",
    metavar="NAME",
    help="What this worker is called; %h is the host, and @%h is added where there is no @. Two "
    "workers must not have the same name. [default: $FANOUT_WORKER_NAME, else a random one]",
)
@click.option(
    "--pool",
    "-P",
    type=click.Choice(["asyncio", "threads", "prefork", "solo"]),
    help="prefork is for functions that need the CPU. [default: $FANOUT_POOL, else asyncio]",
)
@click.option(
    "--autoscale",
    metavar="MAX,MIN",
    help="Processes of the prefork pool, instead of --concurrency. [default: $FANOUT_AUTOSCALE]",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Keep outcomes here and not in the server: a folder that all machines see, or "
    "s3://BUCKET/PREFIX [default: $FANOUT_STORAGE, else the server]",
)
@click.option(
    "--loglevel",
    "-l",
    metavar="LEVEL",
    type=click.Choice(_LEVELS, case_sensitive=False),
    envvar="FANOUT_LOGLEVEL",
    default="INFO",
    help="DEBUG, INFO, WARNING, ERROR or CRITICAL. [default: $FANOUT_LOGLEVEL, else INFO]",
)
@_broker_option
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(
    loglevel: str,
    broker_url: str | None,
    celery_options: tuple[str, ...],
    **given: str | int | None,
) -> None:
    """Process the branches of a fleet until stopped.

    SIGTERM or Ctrl-C finishes what is in flight within $FANOUT_GRACE_S seconds (20), and hands the
    rest back to the queue; a second Ctrl-C, or SIGQUIT, hands back at once. It is the same worker
    as `celery -A workers.app worker`.
    """
    from fanout.broker.fleet_version import claim_wire

    settings = load_settings(broker_url=broker_url, **given)
    _require_room_for(given, settings)
    check_traces(settings)
    key_files(os.environ)
    # The worker reads its environment, as it does where Celery's own command starts it.
    for name in _OF_WORKERS:
        value = getattr(settings, name)
        if value is not None:
            os.environ[f"FANOUT_{name.upper()}"] = str(value)
    _pass_on_broker(settings, broker_url)
    with broker_store(settings) as (store, _):
        claim_wire(store, holder=f"worker-{os.getpid()}", ttl_s=_START_S)
    # Celery's banner is no JSON, and goes to standard output.
    quiet = ["--quiet"] if settings.log_format == "json" else []
    _become(worker_command(*quiet), "--loglevel", loglevel, *celery_options)


def _require_room_for(given: Mapping[str, object], settings: Settings) -> None:
    """Make sure that the concurrency that somebody gave is the one that the worker has.

    Raises:
        SettingsError: Another option, or a variable of the environment, takes its place.
    """
    if given.get("concurrency") is None:
        # The variable is for all workers of a machine: an option that takes its place is meant.
        is_set = "concurrency" in settings.model_fields_set
        if is_set and settings.autoscale is not None and given.get("autoscale") is None:
            raise SettingsError(
                "FANOUT_CONCURRENCY: has no effect, as FANOUT_AUTOSCALE takes its place: unset one "
                "of them"
            )
    elif settings.autoscale is not None:
        name = "FANOUT_AUTOSCALE" if given.get("autoscale") is None else "--autoscale"
        raise SettingsError(
            f"--concurrency: has no effect, as {name} takes its place: leave it out"
        )
    elif settings.pool == "solo" and settings.concurrency > 1:
        raise SettingsError("--concurrency: has no effect with --pool solo, which makes one call")


def _pass_on_broker(settings: Settings, broker_url: str | None) -> None:
    """Have the program that takes this one's place use the server that an option names.

    By the environment, as everybody could read a password among the arguments.
    """
    if broker_url is None:
        return
    os.environ["FANOUT_BROKER_URL"] = broker_url
    os.environ.pop("FANOUT_BROKER_URL_FILE", None)
    if settings.broker_ca_file is None:
        os.environ.pop("FANOUT_BROKER_CA_FILE", None)


def _become(program: list[str], *arguments: str) -> NoReturn:
    """Go on as another program, whose signals and exit status are its own, in this process."""
    os.execv(program[0], [*program, *arguments])  # noqa: S606 - our own interpreter


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
@_broker_option
@click.option("--no-auth", is_flag=True, help="Let everybody in who can connect.")
@click.option(
    "--control",
    is_flag=True,
    help="Let those who log in stop workers, resize their pools and revoke tasks.",
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED)
def flower(
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
    settings = load_settings(broker_url=broker_url)
    _pass_on_broker(settings, broker_url)
    given = {"--port": port, "--address": address}
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    if no_auth:
        arguments.append("--no_auth=true")
    if control:
        arguments.append("--read_only=false")
    with broker_store(settings) as (store, _):
        store.ping()
    _become(program_command("flower"), *arguments, *flower_options)
