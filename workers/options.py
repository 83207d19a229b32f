"""The worker as a program, with options from the command line or from ``FANOUT_*`` variables.

``celery -A workers.app worker`` and ``fanout worker`` start the same program.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from celery import concurrency
from celery.apps.worker import Worker
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.utils.nodenames import default_nodename, host_format

from fanout.core.errors import SettingsError
from fanout.core.queue_names import parse_queues
from fanout.core.settings import AUTOSCALE_NEEDS_PREFORK, parse_autoscale
from fanout.stores.blobs import check_storage
from fanout.system.open_files import raise_open_file_limit
from fanout.system.terminal import print_error

if TYPE_CHECKING:
    from celery import Celery

    from fanout.core.settings import Settings

__all__ = ["Program", "unique_nodename"]

_USAGE = 2


def unique_nodename() -> str:
    """Return a Celery nodename that no other worker has.

    Celery's own default is the same for all workers of a host. Process ids do not help: containers
    may share a host name and have the same ids.
    """
    return str(default_nodename(f"fanout-{secrets.token_hex(4)}@"))


class Program(Worker):  # type: ignore[misc]
    """Celery's worker with a unique name, short names for queues, and no ignored option."""

    def __init__(
        self, app: Celery | None = None, hostname: str | None = None, **options: Any
    ) -> None:
        settings: Settings = (app or self.app).settings
        try:
            options.update(_queues(settings, options.get("queues")))
            pool = (app or self.app).conf.worker_pool
            options.update(_autoscale(settings, options, pool))
            check_storage(settings.storage)
            raise_open_file_limit(
                concurrency=int(options.get("concurrency") or settings.concurrency),
                pool=_pool_name(options.get("pool_cls") or pool),
            )
        except SettingsError as error:
            print_error(str(error))
            raise SystemExit(_USAGE) from None
        super().__init__(app=app, hostname=_nodename(settings, hostname), **options)


def _pool_name(pool: Any) -> str:
    return pool if isinstance(pool, str) else str(pool.__module__).rpartition(".")[2]


def _nodename(settings: Settings, given: str | None) -> str:
    """Return the name of a worker; Celery's default name counts as not given."""
    if given and given != default_nodename(None):
        return given
    if settings.worker_name is not None:
        name = settings.worker_name
        return str(host_format(default_nodename(name if "@" in name else f"{name}@%h")))
    return unique_nodename()


def _queues(settings: Settings, given: Any) -> dict[str, Any]:
    names = given or settings.queues
    if not names:
        return {}
    try:
        # Celery takes messages from the queues in this order.
        return {"queues": list(parse_queues(names if isinstance(names, str) else ",".join(names)))}
    except ValueError as error:
        raise SettingsError(f"--queues: {error}") from None


def _autoscale(settings: Settings, options: dict[str, Any], pool: str) -> dict[str, Any]:
    given = options.get("autoscale") or settings.autoscale
    if not given:
        return {}
    chosen = concurrency.get_implementation(options.get("pool_cls") or pool)
    if not issubclass(chosen, PreforkPool):
        raise SettingsError(f"--autoscale: {AUTOSCALE_NEEDS_PREFORK}")
    text = given if isinstance(given, str) else ",".join(map(str, given))
    try:
        most, fewest = parse_autoscale(text)
    except ValueError as error:
        raise SettingsError(f"--autoscale: {error} (got {text!r})") from None
    # The window of a run follows from the greatest concurrency of its workers.
    return {"autoscale": (most, fewest), "concurrency": most}
