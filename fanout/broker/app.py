"""Task names, and the Celery configuration that clients, workers and monitors share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.queue_names import BRANCHES_QUEUE, CONTROL_QUEUE, QUEUES
from fanout.core.records import ErrorKind  # noqa: TC001 - msgspec reads the annotation
from fanout.core.redaction import learn
from fanout.core.sentinel_url import SCHEME, parse_sentinel_url
from fanout.core.settings import UNIX_SCHEME
from fanout.core.version import WIRE_VERSION
from fanout.stores import RedisStore, connect
from fanout.stores.blobs import make_blobs
from fanout.stores.connection import (
    HEALTH_CHECK_S,
    SOCKET_OPTIONS,
    sentinel_options,
    tls_options,
)
from fanout.stores.redis.base import run_keys

if TYPE_CHECKING:
    import redis
    from celery import Celery

    from fanout.core.settings import Settings

__all__ = [
    "AGGREGATE",
    "BRANCH",
    "BRANCHES_QUEUE",
    "COLLECT",
    "CONTROL_QUEUE",
    "EXPAND",
    "PACK",
    "PATIENT_S",
    "PREFLIGHT",
    "SEAL",
    "WIRE_VERSION",
    "Preflight",
    "connect_broker",
    "make_app",
    "make_store",
]

EXPAND = "fanout.expand"  # publishes a shard's chord
BRANCH = "fanout.branch"  # makes one LLM call: a member of a shard chord's header
COLLECT = "fanout.collect"  # a shard chord's callback, and a member of the root chord's header
SEAL = "fanout.seal"  # the last member of the root chord's header: all shards are known
AGGREGATE = "fanout.aggregate"  # the root chord's callback
PACK = "fanout.pack"  # packs what has ended of a partition of groups into prompts
PREFLIGHT = "fanout.preflight"  # asks a worker whether a model can be used

# Kombu's keys for the messages of processes that are not workers.
_WATCHERS_KEYS = {
    "unacked_key": "fanout.watchers.unacked",
    "unacked_index_key": "fanout.watchers.unacked_index",
    "unacked_mutex_key": "fanout.watchers.unacked_mutex",
}

# A run that outlives the counters of its chords would never end.
_CHORD_LIFETIME_S = 30 * 24 * 3600
# Seconds that a process with paid answers waits for a server: longer than any restart.
PATIENT_S = 3_600.0


class Preflight(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's answer about a model.

    Attributes:
        message: One line that says what to set, or None if the model can be used.
        kind: The kind of error that a call would end with, if it is known.
        batches: Why no batches of it can be made: empty if they can, None if that was not asked, or if
            it has no batch API.
    """

    message: str | None = None
    kind: ErrorKind | None = None
    batches: str | None = None


def make_app(
    settings: Settings, *, app_class: type[Celery] | None = None, takes_messages: bool = False
) -> Celery:
    """Return the Celery application for ``settings.broker_url``.

    Args:
        settings: The server's URL and the settings of its connections.
        app_class: A subclass of ``Celery`` to use instead.
        takes_messages: Whether a worker uses it. Other readers, such as Flower, must not restore
            the messages of dead workers: they lack the right to.
    """
    # Imported here, as callers of the names or of the store do not need Celery.
    from celery import Celery
    from kombu import Queue

    from fanout.broker.transport import LimitedAMQP

    learn(settings.broker_url)
    app = (app_class or Celery)("fanout", set_as_current=False, amqp=LimitedAMQP)
    url, backend, found_by = _server(settings.broker_url or "")
    tls = tls_options(url, settings.broker_ca_file)
    app.conf.update(
        broker_url=url,
        # Not {}: kombu would take that, too, as a request not to verify.
        broker_use_ssl=tls or False,
        redis_backend_use_ssl=tls or None,
        # The callback of a chord must run although header tasks failed: see fanout.broker.result_backend.
        result_backend=f"fanout.broker.result_backend:{backend}+{url.removeprefix('redis+')}",
        # The backend's connections retry by themselves; more rounds of Celery's would multiply.
        result_backend_transport_options={"retry_policy": {"max_retries": 1}, **found_by},
        redis_socket_connect_timeout=SOCKET_OPTIONS["socket_connect_timeout"],
        # Celery's default is two minutes.
        redis_socket_timeout=SOCKET_OPTIONS["socket_timeout"],
        # A Unix socket has no keepalive, and the backend would not leave it out.
        redis_socket_keepalive=not (settings.broker_url or "").startswith(UNIX_SCHEME),
        redis_backend_health_check_interval=HEALTH_CHECK_S,
        # Otherwise each thread creates its own backend, with its own connections.
        result_backend_thread_safe=True,
        result_chord_expires=_CHORD_LIFETIME_S,
        # The server only keeps a few bytes for each member of a chord.
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # Pickle would let every user of the broker run code on the workers.
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_queues=[Queue(name) for name in QUEUES],
        task_default_queue=CONTROL_QUEUE,
        task_routes={BRANCH: {"queue": BRANCHES_QUEUE}},
        # A typo in a queue's name must not make a queue without a consumer.
        task_create_missing_queues=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_transport_options(
            settings, found_by, takes_messages=takes_messages
        ),
        # The store knows whether a task's work is done; Celery's own check costs a round trip each.
        worker_deduplicate_successful_tasks=False,
    )
    return app


def _transport_options(
    settings: Settings, found_by: dict[str, Any], *, takes_messages: bool
) -> dict[str, Any]:
    """Return kombu's options, without any ``retry*``: it would publish messages one by one."""
    return {
        **SOCKET_OPTIONS,
        **found_by,
        # Kombu's default of 10 is fewer than the acks that a busy worker has in flight.
        "max_connections": 1024,
        "max_message_bytes": 1_000 * settings.max_message_kb,
        # The prefix of a run's key: nothing is published for a deleted run.
        "run_keys": run_keys(settings.key_prefix),
        "visibility_timeout": settings.visibility_timeout_s,
        # The default restores ten messages at a time, every 100 s: half an hour for 200.
        "unacked_restore_limit": 10_000,
        # A lapsed message is restored within a sixth of the timeout.
        "unacked_restore_interval": max(1, settings.visibility_timeout_s // 6),
        # By default, a worker that dies while it restores blocks the others for five minutes.
        "unacked_mutex_expire": 15,
        "unacked_restore_throttle": 1,
        **({} if takes_messages else _WATCHERS_KEYS),
        # Control before branches, in the order of task_queues.
        "queue_order_strategy": "priority",
        # One list per queue instead of four: priorities are not used.
        "priority_steps": [0],
        # Also the timeout of a BRPOP that the server does not answer.
        "health_check_interval": HEALTH_CHECK_S,
    }


def _server(url: str) -> tuple[str, str, dict[str, Any]]:
    """Return a URL for Celery, the result backend's class, and options of broker and backend."""
    if url.startswith(UNIX_SCHEME):
        path, _, database = url.removeprefix(UNIX_SCHEME).partition("?db=")
        return f"redis+socket://{path}?virtual_host={database or 0}", "TolerantRedisBackend", {}
    if not url.startswith(SCHEME):
        return url, "TolerantRedisBackend", {}
    server = parse_sentinel_url(url)
    options = {
        "master_name": server.master,
        "sentinel_kwargs": sentinel_options(server.sentinel_username, server.sentinel_password),
    }
    return server.for_celery(), "TolerantSentinelBackend", options


def connect_broker(
    settings: Settings, *, is_patient: bool = False, away_s: float | None = None
) -> redis.Redis:
    """Return a client of the server that is both broker and store."""
    return connect(
        settings.broker_url or "",
        ca_file=settings.broker_ca_file,
        is_patient=is_patient,
        away_s=away_s,
    )


def make_store(
    settings: Settings,
    *,
    is_patient: bool = False,
    away_s: float | None = None,
    storage_away_s: float | None = None,
) -> RedisStore:
    """Return the run store on the same server.

    A patient store waits while the server is unreachable or full, instead of raising BrokerError:
    for about ``away_s`` seconds, or an hour if that is None. For the storage of inputs and
    outcomes it waits ``storage_away_s`` seconds, if given.
    """
    client = connect_broker(settings, is_patient=is_patient, away_s=away_s)
    options = {"patience_s": storage_away_s or away_s or PATIENT_S} if is_patient else {}
    blobs = make_blobs(settings.storage, **options)
    return RedisStore(client, prefix=settings.key_prefix, ttl_s=settings.run_ttl_s, blobs=blobs)
