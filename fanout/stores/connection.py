"""How a client of the server is made, and how every connection to it notices that it has died."""

from __future__ import annotations

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
from fanout.stores.failover import WatchedConnection
from fanout.stores.functions import FunctionsClient
from fanout.stores.retrying import outlasts, passes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "HEALTH_CHECK_S",
    "PACKER",
    "SOCKET_OPTIONS",
    "MasterConnection",
    "address_of",
    "connect",
    "sentinel_options",
    "tls_options",
    "tolerant_retry",
]

# Seconds that a connection may be idle before it is tried out ahead of the next command.
HEALTH_CHECK_S = 10
_PATIENT_RETRIES = 3_600
_SHORT_RETRIES = 4
# Some 9 s: until the sentinels have agreed on a new master, there is none.
_FAILOVER_RETRIES = 12


def _keepalive_options() -> dict[int, int]:
    # An idle peer is asked after 10 s and given up after 25; Linux's own defaults are two hours.
    # Data that nobody acknowledges would be sent again for a quarter of an hour: 20 s here. macOS
    # lacks some of the constants.
    values = {
        "TCP_KEEPIDLE": 10,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 20_000,
    }
    return {getattr(socket, name): at for name, at in values.items() if hasattr(socket, name)}


class _Packer(HiredisRespSerializer):
    """Encodes commands; redis-py looks at each argument first, which takes as long again."""

    def pack(self, *args: Any) -> Any:
        """Return a command as it is sent."""
        if isinstance(args[0], str) and " " not in args[0]:
            with suppress(TypeError):
                return [hiredis.pack_command(args)]
        # A command of two words, or what hiredis does not take.
        return super().pack(*args)


PACKER = _Packer()

# What kombu's transport, Celery's result backend and our own clients all take.
SOCKET_OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": 5,
    # A server that hangs acknowledges at the level of TCP: only this tells it from a slow one.
    "socket_timeout": 20,
    "socket_keepalive": True,
    "socket_keepalive_options": _keepalive_options(),
}


class MasterConnection(WatchedConnection):
    """A connection to whichever server is the master now.

    redis-py 8.1 asks the sentinels when a connection is taken from the pool; but a command that is
    sent again, because its server has died, would go to that server for as long as it is tried.
    """

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Send a command; where the connection was lost, to the master that there is now."""
        if not self._sock:
            self._connect_retry()  # type: ignore[no-untyped-call]
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class _RetryWhere(Retry):
    """Tries again what is worth it: to redis-py a refused write has no class of its own."""

    def __init__(self, retries: int, is_worth: Callable[[BaseException], bool]) -> None:
        super().__init__(_backoff(), retries, supported_errors=(redis.RedisError, OSError))
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


def tolerant_retry(retries: int, *, is_worth: Callable[[BaseException], bool] = passes) -> Retry:
    """Return a policy that rides out a server which is away, or refuses, by ``is_worth``."""
    return _RetryWhere(retries, is_worth)


def _backoff() -> ExponentialBackoff:
    return ExponentialBackoff(cap=1.0, base=0.05)


def tls_options(url: str, ca_file: Path | None) -> dict[str, Any]:
    """Return what a TLS connection to ``url`` takes, by redis-py's names; nothing without TLS.

    The server's certificate is verified: kombu would not, where nothing is said. The query of a
    URL has the last word (``?ssl_cert_reqs=none``).
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
    """Return a client for ``url`` that rides out short interruptions, or, if patient, long ones.

    What it sends again may have been carried out: every script bears that.

    Args:
        url: Where the server is.
        ca_file: The certificates that vouch for it, where it has TLS; None are the system's.
        is_patient: Whether it waits for a server that is away, or refuses for now.
        away_s: About how many seconds a patient one waits. None: an hour, and also for rights that
            its user lacks, as it has in hand what was paid for.
        timeout_s: Ask once, and wait no longer than this; None is as usual.
    """
    has_failover = url.startswith(SCHEME)
    impatient = Retry(_backoff(), _FAILOVER_RETRIES if has_failover else _SHORT_RETRIES)
    options = {
        **SOCKET_OPTIONS,
        "health_check_interval": HEALTH_CHECK_S,
        "command_packer": PACKER,
        # After the first few there is one retry a second.
        "retry": _patient(away_s) if is_patient else impatient,
    }
    if timeout_s is not None:
        options.update(socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        options["retry"] = Retry(_backoff(), 0)
    if url.startswith(UNIX_SCHEME):
        options = {name: at for name, at in options.items() if "keepalive" not in name}
    if not has_failover:
        return FunctionsClient.from_url(url, **options, **tls_options(url, ca_file))
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


def _patient(away_s: float | None) -> Retry:
    if away_s is None:
        return tolerant_retry(_PATIENT_RETRIES, is_worth=outlasts)
    return tolerant_retry(int(away_s))


def sentinel_options(username: str | None, password: str | None) -> dict[str, Any]:
    """Return how to connect to a sentinel: where one does not answer, the next one is asked."""
    # Without this None, redis-py would wait for a dead sentinel again and again first.
    once: dict[str, Any] = {"retry": None, "socket_timeout": 2, "socket_connect_timeout": 2}
    credentials = {"username": username, "password": password}
    return {**SOCKET_OPTIONS, **once, **{k: v for k, v in credentials.items() if v is not None}}


def address_of(client: redis.Redis) -> str:
    """Return where a client's server is, without credentials."""
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
