"""The four ways in which a server that answers refuses writes for a while."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["WAYS", "refusing"]

_HOST = "127.0.0.1"
_ONCE = Retry(NoBackoff(), 0)
_KEEPER = {"username": "keeper", "password": "-"}


def _client(port: int, **options: Any) -> redis.Redis:
    return redis.Redis(port=port, host=_HOST, retry=_ONCE, socket_timeout=5, **options)


@contextlib.contextmanager
def _full_disk(port: int, folder: Path) -> Iterator[None]:
    """MISCONF: a snapshot cannot be written, and ``stop-writes-on-bgsave-error`` is on."""
    # What is a folder cannot be replaced by a file.
    target = folder / "dump.rdb"
    target.mkdir()
    with _client(port) as admin:
        admin.config_set("save", "3600 1000000")
        admin.bgsave()
        while admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.02)
        yield
        admin.config_set("save", "")
    target.rmdir()


@contextlib.contextmanager
def _no_replicas(port: int, _folder: Path) -> Iterator[None]:
    """NOREPLICAS: too few replicas are connected."""
    with _client(port) as admin:
        admin.config_set("min-replicas-to-write", 1)
        yield
        admin.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def _long_script(port: int, _folder: Path) -> Iterator[None]:
    """BUSY: somebody's script runs on and on."""
    with _client(port) as admin:
        admin.config_set("busy-reply-threshold", 100)

    def run() -> None:
        own = redis.Redis(port=port, host=_HOST, retry=_ONCE, socket_timeout=None)
        with own, contextlib.suppress(redis.RedisError):
            own.eval("while true do end", 0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    with _client(port) as admin:
        while thread.is_alive():
            with contextlib.suppress(redis.RedisError):
                admin.script_kill()
            thread.join(0.05)


@contextlib.contextmanager
def _no_rights(port: int, _folder: Path) -> Iterator[None]:
    """NOPERM: the user's ACL has no writes; another user puts that right."""
    with _client(port) as admin:
        admin.execute_command("ACL", "SETUSER", "keeper", "on", "nopass", "~*", "&*", "+@all")
    with _client(port, **_KEEPER) as keeper:
        keeper.execute_command("ACL", "SETUSER", "default", "-@write")
        yield
        keeper.execute_command("ACL", "SETUSER", "default", "+@all")


WAYS: dict[str, Callable[[int, Path], contextlib.AbstractContextManager[None]]] = {
    "MISCONF": _full_disk,
    "NOREPLICAS": _no_replicas,
    "BUSY": _long_script,
    "NOPERM": _no_rights,
}


def refusing(way: str, *, port: int, folder: Path) -> contextlib.AbstractContextManager[None]:
    """Have the server on a port refuse writes until the block ends.

    Args:
        way: One of WAYS.
        port: Of a server on this machine that lets its default user do everything.
        folder: Where it keeps its data.
    """
    return WAYS[way](port, folder)
