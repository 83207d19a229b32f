"""Flower for a fleet: ``fanout flower``, which runs ``python -m workers.telemetry.flower``.

It is Celery's Flower with other defaults and access rules: visitors must log in, and can read but not
change anything. All of Flower's own options work, as arguments (``--name=value``), as ``FLOWER_*``
variables and in a ``flowerconfig.py``.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flower import command
from flower.api.tasks import GetQueueLengths
from flower.app import Flower, rewrite_handler
from flower.events import Events
from flower.inspector import Inspector
from flower.urls import settings as web_settings
from flower.views.broker import BrokerView
from flower.views.error import NotFoundErrorHandler
from flower.views.monitor import Healthcheck, Metrics
from kombu.exceptions import OperationalError
from tornado.ioloop import IOLoop
from tornado.options import Error as OptionError
from tornado.options import define, options
from tornado.web import authenticated

from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE, connect_broker, make_app
from fanout.core.errors import FanoutError, SettingsError
from fanout.core.queue_names import BEHIND
from fanout.core.sentinel_url import secrets_of
from fanout.core.settings import DEFAULT_BROKER_URL, Settings, load_settings
from fanout.system.terminal import print_error
from workers.telemetry.flower_guard import Attempts, SecurityHeaders, TooManyAttempts, is_wrong

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery import Celery
    from tornado.httputil import HTTPServerRequest

__all__ = ["FleetFlower", "configure", "login_of", "main", "masked", "readable"]

_log = logging.getLogger(__name__)

define("no_auth", type=bool, default=False, help="let everybody in who can connect")
define("max_login_failures", type=int, default=20, help="wrong passwords of an address at once")

# Defaults of Flower's options.
_DEFAULTS = {
    "address": "127.0.0.1",
    "read_only": True,
    # The latest tasks; events of older tasks still count.
    "max_tasks": 20_000,
    "tasks_columns": "uuid,name,kwargs,state,exception,worker,runtime,received",
    # Each new worker of an autoscaled fleet has a new name.
    "purge_offline_workers": 24 * 3600,
}

# Every user of a machine can read the arguments of its processes.
_SECRET_OPTIONS = ("basic_auth", "cookie_secret", "oauth2_secret")
_MASK = "********"

# The event that Flower sends to itself.
_HELLO = "fanout-hello"
_HELLO_EVERY_S = 0.2


class _Queues:
    """Reads the lengths of queues, in place of Flower's brokers.

    Those support neither the options in a ``rediss://`` URL nor several sentinels.
    """

    def __init__(self, flower: FleetFlower) -> None:
        self._flower = flower

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        queues = sorted({*names, CONTROL_QUEUE, BRANCHES_QUEUE})
        lengths = await IOLoop.current().run_in_executor(None, self._lengths, queues)
        if not self._flower.alive_workers() <= set(self._flower.workers):
            # Flower itself asks workers for their queues only when it starts.
            await self._flower.update_workers()
        return [
            {"name": name, "messages": n, "messages_ready": n, "consumers": self._consumers(name)}
            for name, n in zip(queues, lengths, strict=True)
        ]

    def _lengths(self, names: list[str]) -> list[int]:
        with connect_broker(self._flower.fleet_settings) as client:
            more = {BRANCHES_QUEUE: int(client.llen(BEHIND))}
            return [int(client.llen(name)) + more.get(name, 0) for name in names]

    def _consumers(self, name: str) -> int:
        alive, known = self._flower.alive_workers(), self._flower.workers
        every = (known[worker].get("active_queues", ()) for worker in alive & set(known))
        return sum(any(queue["name"] == name for queue in queues) for queues in every)


class _FanoutQueues:
    """A page that reads the queues with fanout's connections."""

    application: FleetFlower

    def get_broker(self) -> _Queues:
        return _Queues(self.application)


class _BrokerView(_FanoutQueues, BrokerView):  # type: ignore[misc]
    """The broker tab."""


class _QueueLengths(_FanoutQueues, GetQueueLengths):  # type: ignore[misc]
    """The lengths of queues, for programs."""


class _Metrics(Metrics):  # type: ignore[misc]
    """Flower's metrics, after a login: they name tasks and machines."""

    @authenticated
    async def get(self) -> None:
        await super().get()


class _MaskingInspector(Inspector):  # type: ignore[misc]
    """Masks the passwords in the connection settings that workers report."""

    secrets: frozenset[str] = frozenset()

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        super()._on_update(workername, method, masked(response, self.secrets))


def masked(value: Any, secrets: frozenset[str]) -> Any:
    """Return a JSON-like value without the secrets in its strings."""
    if isinstance(value, dict):
        return {name: masked(each, secrets) for name, each in value.items()}
    if isinstance(value, list):
        return [masked(each, secrets) for each in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, _MASK)
    return value


class _Healthcheck(Healthcheck):  # type: ignore[misc]
    """For probes, without a login: 503 until Flower receives events."""

    async def get(self) -> None:
        if not self.application.events.is_listening:
            self.set_status(503)
            self.write("not listening to the broker yet")
            return
        await super().get()


class _Events(Events):  # type: ignore[misc]
    """Receives events, and knows when it has begun to: when it receives an event of its own.

    Nothing else shows when the server has accepted the subscription.
    """

    is_listening = False

    def start(self) -> None:
        super().start()
        self.io_loop.add_callback(self._send_until_received)

    async def _send_until_received(self) -> None:
        while not self.is_listening:
            await self.io_loop.run_in_executor(None, self._send)
            await asyncio.sleep(_HELLO_EVERY_S)

    def _send(self) -> None:
        with suppress(OperationalError), self.capp.events.default_dispatcher() as dispatcher:
            dispatcher.send(_HELLO)

    def on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == _HELLO:
            self.is_listening = True
        else:
            super().on_event(event)


_HANDLERS = [
    (r"/healthcheck", _Healthcheck),
    (r"/metrics", _Metrics),
    (r"/broker", _BrokerView),
    (r"/api/queues/length", _QueueLengths),
    # Nobody starts tasks through a monitor, and fanout's tasks have no results.
    (r"/api/task/(?:apply|async-apply|send-task|result|abort)/.*", NotFoundErrorHandler),
]


class FleetFlower(Flower):  # type: ignore[misc]
    """Flower on a fleet's broker."""

    def __init__(self, settings: Settings, **web: Any) -> None:
        app = make_app(settings)
        super().__init__(options=options, capp=app, events=_events(app), **web)
        self.fleet_settings = settings
        timeout_s = options.inspect_timeout / 1000
        self.inspector = _MaskingInspector(self.io_loop, self.capp, timeout_s)
        self.inspector.secrets = secrets_of(settings.broker_url or "")
        prefix = options.url_prefix or ""
        self.add_handlers(".*", [rewrite_handler(h, prefix) if prefix else h for h in _HANDLERS])
        self.transforms.append(SecurityHeaders)
        self._attempts = Attempts(options.max_login_failures)

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of a request; an error if its address has tried too many passwords."""
        given = request.headers.get("Authorization")
        if not options.basic_auth or given is None:
            return super().find_handler(request, **kwargs)
        address = str(request.remote_ip)
        wait_s = self._attempts.wait_s(address)
        if wait_s:
            return self.get_handler_delegate(request, TooManyAttempts, {"wait_s": wait_s})
        if is_wrong(given, options.basic_auth):
            self._attempts.failed(address)
        return super().find_handler(request, **kwargs)

    def alive_workers(self) -> set[str]:
        """Return the names of the workers that have sent events lately."""
        return {worker.hostname for worker in self.events.state.alive_workers()}


def _events(app: Celery) -> _Events:
    return _Events(
        app,
        IOLoop.current(),
        db=options.db,
        persistent=options.persistent,
        state_save_interval=options.state_save_interval,
        enable_events=options.enable_events,
        max_workers_in_memory=options.max_workers,
        max_tasks_in_memory=options.max_tasks,
    )


def readable(task: Any) -> Any:
    """Return a task with its arguments as short text: ``run_id=... stage=0 shard=3``."""
    try:
        given = ast.literal_eval(task.kwargs)
        named = [f"{name}={value}" for name, value in given.items()]
    except (AttributeError, SyntaxError, ValueError, TypeError):
        # A task of another application, or one whose first event Flower has missed.
        return task
    task.kwargs = " ".join(named)
    return task


def configure(settings: Settings, arguments: Sequence[str]) -> None:
    """Set Flower's options from arguments, variables, its file and the settings.

    Raises:
        SettingsError: An option is wrong, or no login is set.
    """
    _check(arguments)
    for name, value in {**_DEFAULTS, "format_task": readable}.items():
        setattr(options, name, value)
    try:
        command.apply_env_options()
        command.apply_options("flower", arguments)
    except (OptionError, ValueError, FileNotFoundError) as error:
        raise SettingsError(f"Flower: {error}") from None
    _decide_login(settings)


def _check(arguments: Sequence[str]) -> None:
    for argument in arguments:
        # Tornado takes values in no other form, and Flower ignores options that it does not know.
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if not argument.startswith("--") or name not in options:
            raise SettingsError(
                f"Flower has no option {argument.partition('=')[0]!r}: they are given as "
                "--name=value, and listed by `fanout flower -- --help`"
            )
        if name in _SECRET_OPTIONS:
            raise SettingsError(
                f"--{name} would be in the list of processes for everybody to read: "
                f"set FLOWER_{name.upper()} instead"
            )


def _decide_login(settings: Settings) -> None:
    if options.no_auth:
        options.basic_auth = []
        options.auth = ""
        return
    login = login_of(settings)
    if login is not None:
        options.basic_auth = [login]
    if not (options.basic_auth or options.auth):
        raise SettingsError(
            "Flower wants a password: set FANOUT_FLOWER_PASSWORD or FANOUT_FLOWER_PASSWORD_FILE "
            f"(the user is {settings.flower_user!r}), or let everybody in with --no-auth"
        )


def login_of(settings: Settings) -> str | None:
    """Return ``user:password`` for Flower, or None. Raises SettingsError."""
    path = settings.flower_password_file
    if settings.flower_password is not None and path is not None:
        raise SettingsError("FANOUT_FLOWER_PASSWORD and FANOUT_FLOWER_PASSWORD_FILE are both set")
    if path is None:
        password = settings.flower_password and settings.flower_password.get_secret_value()
        name = "FANOUT_FLOWER_PASSWORD"
    else:
        name = "FANOUT_FLOWER_PASSWORD_FILE"
        try:
            password = path.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{name}: {path} cannot be read: {error}") from None
        if not password:
            raise SettingsError(f"{name}: {path} is empty")
    if password is None:
        if "flower_user" in settings.model_fields_set:
            raise SettingsError(
                "FANOUT_FLOWER_USER: has no effect without FANOUT_FLOWER_PASSWORD or "
                "FANOUT_FLOWER_PASSWORD_FILE: set one of them, or unset it"
            )
        return None
    if not f"{settings.flower_user}{password}".isascii():
        # Flower's comparison accepts nothing else.
        raise SettingsError(f"{name}: user and password must be of ASCII characters")
    return f"{settings.flower_user}:{password}"


def main(arguments: Sequence[str]) -> None:
    """Serve until stopped. Raises FanoutError."""
    settings = load_settings()
    if settings.broker_url is None:
        settings = settings.model_copy(update={"broker_url": DEFAULT_BROKER_URL})
    configure(settings, arguments)
    command.extract_settings()
    command.setup_logging()
    flower = FleetFlower(settings, **web_settings)
    signal.signal(signal.SIGTERM, command.sigterm_handler)
    port = _listen(flower)
    scheme = "https" if "ssl_options" in web_settings else "http"
    _log.info(
        "Flower is at %s, and watches %s",
        options.unix_socket or f"{scheme}://{options.address or '0.0.0.0'}:{port}",  # noqa: S104
        flower.broker_uri,
    )
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        # Flower ends in this way.
        flower.stop()
        # Threads with requests to workers would delay the end while the server is unreachable.
        os._exit(0)


def _listen(flower: FleetFlower) -> int | None:
    try:
        port: int | None = flower.start_http_server()
    except OSError as error:
        raise FanoutError(
            f"Flower cannot listen on {options.address}:{options.port}: {error.strerror or error}"
        ) from error
    return port


def _run() -> int:
    try:
        main(sys.argv[1:])
    except FanoutError as error:
        print_error(str(error))
        return 2 if isinstance(error, SettingsError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_run())
