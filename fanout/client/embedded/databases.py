"""Whose runs are where: each client of the embedded server has a database of its own.

So the worker of one client, with its keys and what it can import, never takes the branches of
another. Database 0 says in which of the others a run is. A database belongs to the client that
holds the lock on its file; that of a client that has died is there for whoever goes on with its
runs, and, when these have expired or been deleted, for the next client.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fanout.broker.inspection import UNACKED, UNACKED_INDEX
from fanout.core.errors import StorageError
from fanout.core.queue_names import QUEUES
from fanout.stores import RedisStore, connect
from fanout.stores.blobs import make_blobs
from fanout.stores.redis.base import RedisBase, translated
from fanout.system.file_locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import redis

    from fanout.client.embedded.server import EmbeddedServer
    from fanout.core.settings import Settings

__all__ = ["Database", "Databases", "Place"]

_RUNS = "fanout:embedded:runs"
_SWEPT = "fanout:embedded:swept"
# How often what has expired is looked for: it costs a few round trips for each database.
_SWEEP_S = 6 * 3600


class Place(NamedTuple):
    """Where a run is: in which database, under which prefix, and since when."""

    database: int
    prefix: str
    created_at: float


class Database:
    """A database that belongs to this process: to be released.

    Attributes:
        number: Which one of the server's it is.
        url: Where it is.
    """

    def __init__(self, number: int, url: str, lock: FileLock) -> None:
        self.number = number
        self.url = url
        self._lock = lock

    def release(self) -> None:
        """Let somebody else have it. Safe to call twice."""
        self._lock.release()


class Databases(RedisBase):
    """The databases of the embedded server. Raises BrokerError where it does not answer.

    Args:
        server: The server, which is waited for.
        settings: The prefix of keys, and where files of runs are kept.
    """

    def __init__(self, server: EmbeddedServer, settings: Settings) -> None:
        server.wait()
        super().__init__(connect(server.url(0)), prefix=settings.key_prefix)
        self._server = server
        self._folder = server.folder.databases
        self._settings = settings

    def claim(self) -> Database:
        """Return a database without runs that nobody else has."""
        if self._is_sweep_due():
            self.sweep()
        with self._one_at_a_time():
            used = self._used()
            for number in count(1):
                lock = None if number in used else self._lock_of(number)
                if lock is not None:
                    lock.share()
                    return Database(number, self._server.url(number), lock)
        raise AssertionError  # pragma: no cover - the count does not end

    def take_over(self, number: int) -> Database | None:
        """Return a database whose client has died; None where that lives, or somebody else has it.

        What that client's worker had taken is put back at once.
        """
        with self._one_at_a_time():
            lock = self._lock_of(number)
            if lock is None:
                return None
            self._put_back(number)
            # The process that keeps its worker shares it: it may outlive its client for a moment.
            lock.share()
        return Database(number, self._server.url(number), lock)

    def is_owned(self, number: int) -> bool:
        """Say whether a client, or its worker, still lives."""
        with self._one_at_a_time():
            lock = self._lock_of(number)
        if lock is not None:
            lock.release()
        return lock is None

    @translated
    def remember(self, run_id: str, number: int, *, created_at: float) -> None:
        """Say where a run is about to be."""
        place = json.dumps([number, self._prefix, created_at])
        self._redis.hset(_RUNS, run_id, place)

    @translated
    def place(self, run_id: str) -> Place | None:
        """Return where a run is, or was; None where that is not known."""
        said = cast("bytes | None", self._redis.hget(_RUNS, run_id))
        return None if said is None else Place(*json.loads(said))

    @translated
    def places(self) -> dict[str, Place]:
        """Return where each run is, or was, the newest first."""
        said = cast("dict[bytes, bytes]", self._redis.hgetall(_RUNS))
        places = {run_id.decode(): Place(*json.loads(place)) for run_id, place in said.items()}
        return dict(sorted(places.items(), key=lambda item: -item[1].created_at))

    @translated
    def sweep(self) -> None:
        """Forget runs that have expired or been deleted, and the databases without any other."""
        self._redis.set(_SWEPT, time.time())
        runs: dict[int, dict[str, Place]] = {number: {} for number in self._used()}
        for run_id, place in self.places().items():
            runs.setdefault(place.database, {})[run_id] = place
        for number, places in runs.items():
            with self._one_at_a_time():
                lock = self._lock_of(number)
            if lock is not None:
                with lock:
                    self._sweep_one(number, places)

    @translated
    def forget(self, database: Database) -> None:
        """Empty a database of one's own that has no run, so that it can be used again."""
        with self._connected(database.number) as client:
            client.flushdb()

    def _sweep_one(self, number: int, places: dict[str, Place]) -> None:
        with self._connected(number) as client:
            gone = list(_gone(client, places))
            if self._settings.storage is not None:
                blobs = make_blobs(self._settings.storage)
                with suppress(StorageError):
                    # What stays is deleted the next time.
                    RedisStore(client, prefix=self._prefix, blobs=blobs).sweep_files()
            if len(gone) == len(places):
                client.flushdb()
        if gone:
            self._redis.hdel(_RUNS, *gone)

    @translated
    def _is_sweep_due(self) -> bool:
        swept = cast("bytes | None", self._redis.get(_SWEPT))
        return time.time() - float(swept or 0) > _SWEEP_S

    @translated
    def _used(self) -> set[int]:
        """Return the databases that hold anything, but for the first."""
        said: dict[str, Any] = self._redis.info("keyspace")
        return {int(name.removeprefix("db")) for name in said} - {0}

    @translated
    def _put_back(self, number: int) -> None:
        """Put back what workers that have died had taken, and forget that they lived."""
        with self._connected(number) as client:
            taken = cast("dict[bytes, bytes]", client.hgetall(UNACKED))
            locks = list(client.scan_iter(match=f"{self._prefix}:lock:*", count=1_000))
            known = [self._holders, f"{self._wire}:holders"]
            known += [f"{self._prefix}:workers", f"{self._prefix}:worker-records"]
            with client.pipeline() as pipe:
                for queue, message in _messages(taken.values()):
                    pipe.rpush(queue, message)
                pipe.delete(UNACKED, UNACKED_INDEX, *known, *locks)
                pipe.execute()

    def _connected(self, number: int) -> redis.Redis:
        return connect(self._server.url(number))

    def _one_at_a_time(self) -> FileLock:
        return FileLock(self._folder / "mutex.lock")

    def _lock_of(self, number: int) -> FileLock | None:
        """Return the lock of a database; None where somebody has it. By one at a time only."""
        try:
            return FileLock(self._folder / f"{number}.lock", waits=False)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Release connections."""
        self._redis.close()


def _gone(client: redis.Redis, places: dict[str, Place]) -> Iterator[str]:
    with client.pipeline(transaction=False) as pipe:
        for run_id, place in places.items():
            pipe.exists(f"{place.prefix}:run:{run_id}")
        answers = pipe.execute() if places else []
    return (run_id for run_id, is_there in zip(places, answers, strict=True) if not is_there)


def _messages(taken: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield queue and message of what was taken, marked as kombu marks what comes again."""
    for raw in taken:
        with suppress(ValueError, TypeError, KeyError):
            message, _exchange, queue = json.loads(raw)
            if queue in QUEUES:
                message["headers"]["redelivered"] = True
                message["properties"]["delivery_info"]["redelivered"] = True
                yield queue, json.dumps(message)
