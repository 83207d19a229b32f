"""The four ways in which a server refuses writes for a while, though it answers."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import ServerProcess

__all__ = ["WAYS", "refusing"]


@contextlib.contextmanager
def _full_disk(server: ServerProcess) -> Iterator[None]:
    """MISCONF: the last snapshot could not be written, and ``stop-writes-on-bgsave-error``."""
    with server.client() as admin:
        # A folder in its place cannot be replaced by a file.
        target = server.folder / "dump.rdb"
        target.mkdir()
        admin.config_set("save", "3600 1000000")
        admin.bgsave()
        while admin.info("persistence")["rdb_last_bgsave_status"] == "ok":
            time.sleep(0.02)
        yield
        admin.config_set("save", "")
        target.rmdir()


@contextlib.contextmanager
def _no_replicas(server: ServerProcess) -> Iterator[None]:
    """NOREPLICAS: too few replicas are connected."""
    with server.client() as admin:
        admin.config_set("min-replicas-to-write", 1)
        yield
        admin.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def _long_script(server: ServerProcess) -> Iterator[None]:
    """BUSY: somebody's script runs on and on."""
    with server.client() as admin:
        admin.config_set("busy-reply-threshold", 100)

    def run() -> None:
        with (
            redis.Redis(port=server.port, host="127.0.0.1", retry=None) as own,
            contextlib.suppress(redis.RedisError),
        ):
            own.eval("while true do end", 0)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    with server.client() as admin:
        while thread.is_alive():
            with contextlib.suppress(redis.RedisError):
                admin.script_kill()
            thread.join(0.05)


@contextlib.contextmanager
def _no_rights(server: ServerProcess) -> Iterator[None]:
    """NOPERM: the user's ACL has no writes; whoever sees to it is another user."""
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "keeper", "on", "nopass", "~*", "&*", "+@all")
    keeper = redis.Redis(port=server.port, host="127.0.0.1", username="keeper", password="x")
    with keeper:
        keeper.execute_command("ACL", "SETUSER", "default", "-@write")
        yield
        keeper.execute_command("ACL", "SETUSER", "default", "+@all")


WAYS: dict[str, Callable[[ServerProcess], contextlib.AbstractContextManager[None]]] = {
    "MISCONF": _full_disk,
    "NOREPLICAS": _no_replicas,
    "BUSY": _long_script,
    "NOPERM": _no_rights,
}


def refusing(way: str, server: ServerProcess) -> contextlib.AbstractContextManager[None]:
    """Have a server refuse writes in one of the four ways until the block ends."""
    return WAYS[way](server)
