"""Makes clients of the server, with timeouts and retries that notice a dead server."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hiredis
import redis
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from fanout.core.sentinel_url import SCHEME, parse_sentinel_url
from fanout.core.settings import TLS_SCHEME, UNIX_SCHEME
from fanout.stores.connection_pool import FastPool
from fanout.stores.failover import WatchedConnection
from fanout.stores.functions import FunctionsClient
from fanout.stores.retrying import is_recoverable, is_transient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "DRIVER",
    "HEALTH_CHECK_S",
    "PACKER",
    "SOCKET_OPTIONS",
    "MasterConnection",
    "TolerantRetry",
    "address_of",
    "connect",
    "is_loopback",
    "sentinel_options",
    "tls_options",
]

# Seconds that a connection may be idle before the client pings ahead of the next command.
HEALTH_CHECK_S = 10
_PATIENT_RETRIES = 3_600
_SHORT_RETRIES = 4
# About 9 s: there is no master until the sentinels agree on a new one.
_FAILOVER_RETRIES = 12
_BACKOFF = ExponentialBackoff(cap=1.0, base=0.05)
# The kernel probes an idle peer after 10 s and gives up after 25 s; Linux's default is two hours.
# It resends unacknowledged data for 20 s instead of 15 minutes. macOS lacks some constants.
_KEEPALIVE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,
}


class _HiredisPacker(HiredisRespSerializer):
    """Encodes commands without redis-py's check of each argument, which doubles the time."""

    def pack(self, *args: Any) -> Any:
        """Return the encoded command."""
        if isinstance(args[0], str) and " " not in args[0]:
            with suppress(TypeError):
                return [hiredis.pack_command(args)]
        # A command of two words, or an argument that hiredis does not support.
        return super().pack(*args)


PACKER = _HiredisPacker()

# What connections tell the server of their client. redis-py would read its version from a file, for each.
DRIVER = redis.DriverInfo(lib_version=redis.__version__)

# For kombu's transport, Celery's result backend and fanout's own clients.
SOCKET_OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": 5,
    # A server that hangs still acknowledges TCP segments, so only this timeout detects it.
    "socket_timeout": 20,
    "socket_keepalive": True,
    "socket_keepalive_options": {
        getattr(socket, name): at for name, at in _KEEPALIVE.items() if hasattr(socket, name)
    },
}


class MasterConnection(WatchedConnection):
    """A connection that always connects to the current master.

    redis-py 8.1 asks the sentinels when a caller takes a connection from the pool. But it would
    retry a command only at the server that has died.
    """

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Send a command; connect to the current master first if the connection was lost."""
        if not self._sock:
            self._connect_retry()  # type: ignore[no-untyped-call]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class TolerantRetry(Retry):
    """Retries the errors for which ``is_worth`` is true: redis-py has no class for a refused write."""

    def __init__(
        self, retries: int, *, is_worth: Callable[[BaseException], bool] = is_transient
    ) -> None:
        super().__init__(_BACKOFF, retries, supported_errors=(redis.RedisError, OSError))
        self._is_worth = is_worth

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Any,
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002 - redis-py's
    ) -> Any:
        """See Retry."""

        def is_worth(error: Exception) -> bool:
            return self._is_worth(error) and (is_retryable is None or is_retryable(error))

        return super().call_with_retry(do, fail, is_worth, with_failure_count)


def tls_options(url: str, ca_file: Path | None) -> dict[str, Any]:
    """Return redis-py's options for a TLS connection to ``url``; empty without TLS.

    The options verify the server's certificate; kombu's default does not. The query of a URL
    overrides them (``?ssl_cert_reqs=none``).
    """
    if not url.startswith(TLS_SCHEME):
        return {}
    options: dict[str, Any] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    if ca_file is not None:
        options["ssl_ca_certs"] = str(ca_file)
    return options


def connect(
    url: str,
    *,
    ca_file: Path | None = None,
    is_patient: bool = False,
    away_s: float | None = None,
    timeout_s: float | None = None,
) -> redis.Redis:
    """Return a client for ``url`` that tolerates short outages, or, if patient, long ones.

    The client may send a command again that was carried out: every script is idempotent.

    Args:
        url: The server.
        ca_file: CA certificates for TLS; None uses the system's.
        is_patient: Whether it waits for a server that is unreachable or refuses for now.
        away_s: Seconds, roughly, that a patient client waits. None: an hour, and also for missing
            rights, as the caller holds paid answers.
        timeout_s: Seconds to wait for a single attempt; None uses the default timeouts and retries.
    """
    has_failover = url.startswith(SCHEME)
    retry = Retry(_BACKOFF, _FAILOVER_RETRIES if has_failover else _SHORT_RETRIES)
    if is_patient and away_s is None:
        retry = TolerantRetry(_PATIENT_RETRIES, is_worth=is_recoverable)
    elif is_patient and away_s is not None:
        # After the first few there is one retry a second.
        retry = TolerantRetry(int(away_s))
    options = {
        **SOCKET_OPTIONS,
        "driver_info": DRIVER,
        "health_check_interval": HEALTH_CHECK_S,
        "command_packer": PACKER,
        "retry": retry,
    }
    if timeout_s is not None:
        options.update(socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        options["retry"] = Retry(_BACKOFF, 0)
    if url.startswith(UNIX_SCHEME):
        options = {name: at for name, at in options.items() if "keepalive" not in name}
    if not has_failover:
        pool = FastPool.from_url(url, **options, **tls_options(url, ca_file))
        return FunctionsClient.from_pool(pool)
    server = parse_sentinel_url(url)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        server.sentinels,
        sentinel_kwargs=sentinel_options(server.sentinel_username, server.sentinel_password),
        db=server.db,
        username=server.username,
        password=server.password,
        **options,
    )
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        server.master, redis_class=FunctionsClient, connection_class=MasterConnection
    )
    return client


def sentinel_options(username: str | None, password: str | None) -> dict[str, Any]:
    """Return options for connections to sentinels: if one does not answer, ask the next."""
    # Without this None, redis-py would retry a dead sentinel first.
    once: dict[str, Any] = {"retry": None, "socket_timeout": 2, "socket_connect_timeout": 2}
    credentials = {"username": username, "password": password}
    return {**SOCKET_OPTIONS, **once, **{k: v for k, v in credentials.items() if v is not None}}


def is_loopback(host: str | None) -> bool:
    """Return whether a host is this machine; None, a socket in a file, is."""
    try:
        return host in {None, "localhost"} or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(client: redis.Redis) -> str:
    """Return the address of a client's server, without credentials."""
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        sentinels = sorted(_host_and_port(each) for each in pool.sentinel_manager.sentinels)
        return f"{pool.service_name} behind the sentinels {', '.join(sentinels)}"
    return _host_and_port(client)


def _host_and_port(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
