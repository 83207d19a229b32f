"""A worker in a thread of the calling process, for functions that other processes cannot import."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import _state
from celery.app.trace import reset_worker_optimizations, setup_worker_optimizations
from celery.exceptions import WorkerShutdown
from celery.worker import WorkController
from redis.exceptions import RedisError

from fanout.broker.app import connect_broker
from fanout.core.errors import EmbeddedError, SettingsError
from fanout.system.open_files import raise_open_file_limit
from workers.config import make_worker_app

if TYPE_CHECKING:
    import redis

    from fanout.core.settings import Settings

__all__ = ["WorkerThread"]

_START_S = 30.0
_STOP_S = 30.0
_LOOK_S = 0.02


class WorkerThread:
    """A Celery worker without signal handlers. One at a time in a process."""

    def __init__(self, settings: Settings, *, concurrency: int) -> None:
        self._app = make_worker_app(settings)
        self._settings = settings
        self._concurrency = concurrency
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._worker: WorkController | None = None
        self._thread = threading.Thread(target=self._run, name="fanout-worker", daemon=True)

    def _run(self) -> None:
        for name in ("celery", "kombu", "fanout", "workers"):
            # The calling program decides what to log; without a handler, Python would print.
            logging.getLogger(name).addHandler(logging.NullHandler())
        hostname = f"thread-{os.getpid()}@localhost"
        try:
            raise_open_file_limit(concurrency=self._concurrency, pool="asyncio")
            self._take_process(hostname)
            self._worker = WorkController(
                app=self._app,
                hostname=hostname,
                pool_cls="workers.consumer.pool:AsyncioPool",
                concurrency=self._concurrency,
                without_heartbeat=True,
                without_mingle=True,
                without_gossip=True,
                ready_callback=self._on_ready,
            )
            self._worker.start()
        except BaseException as error:  # noqa: BLE001 - raised in the caller of start or check
            self._error = error
        finally:
            self._ready.set()

    def _take_process(self, hostname: str) -> None:
        # The first step of the worker command. It also makes the application the default of the
        # process: restore the default, which may be the caller's.
        default = _state.default_app
        setup_worker_optimizations(self._app, hostname)
        _state.set_default_app(default)

    def _on_ready(self, _consumer: Any) -> None:
        self._ready.set()

    def start(self) -> None:
        """Start, and wait until the worker consumes. Raises as ``check`` does."""
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise EmbeddedError(f"the embedded worker did not start within {_START_S:.0f} s")
        self.check()

    def check(self) -> None:
        """Make sure that the worker is running.

        Raises:
            SettingsError: It was refused for a setting.
            EmbeddedError: It has stopped.
        """
        if isinstance(self._error, SettingsError):
            raise self._error
        if not self._thread.is_alive() or self._error is not None:
            raise EmbeddedError(f"the embedded worker has stopped: {self._error!r}")

    def stop(self) -> None:
        """Let the branches in flight end, and stop. Safe to call twice."""
        if self._thread.is_alive() and self._worker is not None:
            # Celery's own way, a flag in worker.state, would also stop every later worker.
            self._worker.consumer.hub.call_soon(_shut_down)
            # The caller that closes an embedded fleet does not wait for calls in flight.
            self._app.context.hand_back.all()
            self._join()
            reset_worker_optimizations(self._app)
        self._app.context.close()
        self._app.close()

    def _join(self) -> None:
        """Wait for the end of the worker, and end its wait of up to a second for a message.

        Only this worker uses the database, so the server may unblock all its clients.
        """
        until = time.monotonic() + _STOP_S
        with connect_broker(self._settings) as client:
            while self._thread.is_alive() and time.monotonic() < until:
                with suppress(RedisError):
                    _unblock_all(client)
                self._thread.join(_LOOK_S)


def _unblock_all(client: redis.Redis) -> None:
    database = str(client.connection_pool.connection_kwargs.get("db", 0))
    for connection in client.client_list():
        if "b" in connection["flags"] and connection["db"] == database:
            client.client_unblock(int(connection["id"]))


def _shut_down() -> None:
    raise WorkerShutdown(0)
