"""``fanout metrics``: the fleet's figures over HTTP, for Prometheus."""

from __future__ import annotations

import hmac
import signal
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fanout.cli.session import broker_option, broker_store
from fanout.core.errors import BrokerError, InputError
from fanout.system.terminal import print_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.settings import Settings
    from fanout.stores import RedisStore

    App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

__all__ = ["command"]

_PORT = 9808
_METRICS = "/metrics"
_HEALTH = "/healthz"


@click.command("metrics")
@click.option(
    "--address", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Where to listen."
)
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65_535),
    default=_PORT,
    show_default=True,
    help="The port; 0 takes a free one.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    envvar="FANOUT_METRICS_TOKEN_FILE",
    help="A scraper must send this token as a bearer token [default: $FANOUT_METRICS_TOKEN_FILE]",
)
@click.option("--no-auth", is_flag=True, help="Let anybody read who reaches the address.")
@broker_option("$FANOUT_BROKER_URL, else this machine's")
def command(
    address: str,
    port: int,
    token_file: Path | None,
    no_auth: bool,  # noqa: FBT001 - a click flag
    broker_url: str | None,
) -> None:
    """Serve the fleet's figures at /metrics, for Prometheus, until stopped.

    One for a fleet is enough: they are read from the store, and exact. /healthz says to anybody
    whether the broker answers.
    """
    from fanout.core.settings import load_settings
    from fanout.stores.connection import is_loopback

    if no_auth and token_file is not None:
        raise click.UsageError(
            "--no-auth lets everybody read, and --token-file ($FANOUT_METRICS_TOKEN_FILE) only who "
            "has the token: leave one of them out"
        )
    token = None if token_file is None else _token(token_file)
    if token is None and not no_auth and not is_loopback(address):
        raise click.UsageError(
            f"--address {address} can be reached from other machines: give --token-file, "
            "or --no-auth where the network keeps others away"
        )
    settings = load_settings(broker_url=broker_url)
    # Before any thread is started: a signal must come to the one that waits for it.
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    with _served(settings, address, port, token) as url:
        print_line(f"metrics are at {url}{_METRICS}", err=True)
        signal.sigwait(stops)


def _token(path: Path) -> bytes:
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"--token-file {path} cannot be read: {error.strerror}") from None
    if not token:
        raise InputError(f"--token-file {path} is empty; it must hold the token")
    return token


@contextmanager
def _served(settings: Settings, address: str, port: int, token: bytes | None) -> Iterator[str]:
    from prometheus_client import CollectorRegistry, make_wsgi_app, start_wsgi_server

    from fanout.observe.metrics import FleetCollector

    registry = CollectorRegistry()
    with broker_store(settings) as (store, client):
        registry.register(FleetCollector(store, client))
        try:
            server, thread = start_wsgi_server(port, address, registry)
        except OSError as error:
            raise InputError(f"cannot listen at {address}:{port}: {error.strerror}") from None
        server.set_app(_guarded(make_wsgi_app(registry), store, token))
        host, bound = str(server.server_address[0]), server.server_port
        try:
            yield f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _guarded(metrics: App, store: RedisStore, token: bytes | None) -> App:
    """Return an application that shows the metrics to clients that send the token."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == _HEALTH:
            status = _health(store)
        elif path != _METRICS:
            status = HTTPStatus.NOT_FOUND
        elif token is None or _has_token(environ, token):
            return metrics(environ, start_response)
        else:
            status = HTTPStatus.UNAUTHORIZED
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        if status is HTTPStatus.UNAUTHORIZED:
            headers.append(("WWW-Authenticate", "Bearer"))
        start_response(f"{status.value} {status.phrase}", headers)
        return [f"{status.phrase}\n".encode()]

    return app


def _has_token(environ: dict[str, Any], token: bytes) -> bool:
    given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
    return hmac.compare_digest(given, b"Bearer " + token)


def _health(store: RedisStore) -> HTTPStatus:
    try:
        store.ping()
    except BrokerError:
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.OK
