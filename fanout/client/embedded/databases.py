"""Gives each client of the embedded server its own database, and finds the database of a run.

So the worker of one client, with its keys and imports, never takes the branches of another client.
Database 0 records the database of each run. A database belongs to the client that holds the lock on
its file. After that client dies, another one may take the database to resume its runs; once the
runs have expired or been deleted, any new client may take it.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fanout.broker.inspection import UNACKED, UNACKED_INDEX, MessageReader
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

__all__ = ["Database", "Databases", "RunLocation", "put_back"]

_RUNS = "fanout:embedded:runs"
_SWEPT = "fanout:embedded:swept"
# Seconds between two sweeps of expired runs: a sweep costs a few round trips per database.
_SWEEP_S = 6 * 3600


class RunLocation(NamedTuple):
    """The database and key prefix of a run, and the time of its creation."""

    database: int
    prefix: str
    created_at: float


class Database:
    """A database that belongs to this process, until released.

    Attributes:
        number: Its number on the server.
        url: Its URL.
    """

    def __init__(self, number: int, url: str, lock: FileLock) -> None:
        self.number = number
        self.url = url
        self._lock = lock

    def release(self) -> None:
        """Release the database to other clients. Safe to call twice."""
        self._lock.release()


class Databases(RedisBase):
    """The databases of the embedded server. Raises BrokerError if it does not answer.

    Args:
        server: The server; the constructor waits until it has started.
        settings: The prefix of keys, and the storage of runs.
    """

    def __init__(self, server: EmbeddedServer, settings: Settings) -> None:
        server.wait()
        super().__init__(connect(server.url(0)), prefix=settings.key_prefix)
        self._server = server
        self._folder = server.folder.databases
        self._settings = settings

    def claim(self) -> Database:
        """Return a free database without runs, which knows what runs have shown of models."""
        self.gather()
        if self._is_sweep_due():
            self.sweep()
        with self._one_at_a_time():
            used = self._used()
            for number in count(1):
                lock = None if number in used else self._lock_of(number)
                if lock is not None:
                    lock.share()
                    self._lend(number)
                    return Database(number, self._server.url(number), lock)
        raise AssertionError  # pragma: no cover - the count does not end

    def take_over(self, number: int) -> Database | None:
        """Return the database of a dead client; None if it is alive, or another one has taken it.

        The messages that its worker had taken return to their queues at once.
        """
        with self._one_at_a_time():
            lock = self._lock_of(number)
            if lock is None:
                return None
            self._put_back(number)
            # The guard of its worker shares it: it may outlive its client for a moment.
            lock.share()
        return Database(number, self._server.url(number), lock)

    def is_owned(self, number: int) -> bool:
        """Return whether a client or its worker is alive."""
        with self._one_at_a_time():
            lock = self._lock_of(number)
        if lock is not None:
            lock.release()
        return lock is None

    @translated
    def remember(self, run_id: str, number: int, *, created_at: float) -> None:
        """Record the database of a run that is about to be created."""
        self._redis.hset(_RUNS, run_id, json.dumps([number, self._prefix, created_at]))

    @translated
    def location(self, run_id: str) -> RunLocation | None:
        """Return the location of a run, also of a former one; None if it is unknown."""
        location = cast("bytes | None", self._redis.hget(_RUNS, run_id))
        return None if location is None else RunLocation(*json.loads(location))

    @translated
    def locations(self) -> dict[str, RunLocation]:
        """Return the locations of all runs, also of former ones, the newest first."""
        stored = cast("dict[bytes, bytes]", self._redis.hgetall(_RUNS))
        locations = {
            run_id.decode(): RunLocation(*json.loads(location))
            for run_id, location in stored.items()
        }
        return dict(sorted(locations.items(), key=lambda item: -item[1].created_at))

    @translated
    def gather(self) -> RedisStore:
        """Return a store that knows what the newest run has shown of models, as it was begun with it."""
        newest = next(iter(self.locations().values()), None)
        if newest is not None and newest.prefix == self._prefix:
            with self._connected(newest.database) as client:
                for key in (self._tokens, self._cut_ratios):
                    client.copy(key, key, destination_db="0", replace=True)
        return RedisStore(self._redis, prefix=self._prefix)

    @translated
    def _lend(self, number: int) -> None:
        for key in (self._tokens, self._cut_ratios):
            self._redis.copy(key, key, destination_db=str(number), replace=True)

    @translated
    def sweep(self) -> None:
        """Forget runs that have expired or been deleted, and the databases without any other."""
        self._redis.set(_SWEPT, time.time())
        runs: dict[int, dict[str, RunLocation]] = {number: {} for number in self._used()}
        for run_id, location in self.locations().items():
            runs.setdefault(location.database, {})[run_id] = location
        # The first database has the kept answers, which may be files.
        self._sweep_files(self._redis)
        for number, locations in runs.items():
            with self._one_at_a_time():
                lock = self._lock_of(number)
            if lock is not None:
                with lock:
                    self._sweep_one(number, locations)

    @translated
    def forget(self, database: Database) -> None:
        """Empty a database of this process that has no run, for the next client."""
        with self._connected(database.number) as client:
            client.flushdb()

    def _sweep_one(self, number: int, locations: dict[str, RunLocation]) -> None:
        with self._connected(number) as client:
            gone = list(_gone(client, locations))
            self._sweep_files(client)
            if len(gone) == len(locations):
                client.flushdb()
        if gone:
            self._redis.hdel(_RUNS, *gone)

    def _sweep_files(self, client: redis.Redis) -> None:
        if self._settings.storage is not None:
            blobs = make_blobs(self._settings.storage)
            with suppress(StorageError):
                # The next sweep deletes the rest.
                RedisStore(client, prefix=self._prefix, blobs=blobs).sweep_files()

    @translated
    def _is_sweep_due(self) -> bool:
        swept = cast("bytes | None", self._redis.get(_SWEPT))
        return time.time() - float(swept or 0) > _SWEEP_S

    @translated
    def _used(self) -> set[int]:
        """Return the databases that are not empty, without the first."""
        keyspace: dict[str, Any] = self._redis.info("keyspace")
        return {int(name.removeprefix("db")) for name in keyspace} - {0}

    @translated
    def _put_back(self, number: int) -> None:
        with self._connected(number) as client:
            put_back(client, self._prefix)

    def _connected(self, number: int) -> redis.Redis:
        return connect(self._server.url(number))

    def _one_at_a_time(self) -> FileLock:
        return FileLock(self._folder / "mutex.lock")

    def _lock_of(self, number: int) -> FileLock | None:
        """Return the lock of a database; None if it is taken. The caller holds the mutex."""
        try:
            return FileLock(self._folder / f"{number}.lock", waits=False)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Release connections."""
        self._redis.close()


def put_back(client: redis.Redis, prefix: str) -> None:
    """Restore the messages that dead workers had taken, and delete their records and permits."""
    taken = cast("dict[bytes, bytes]", client.hgetall(UNACKED))
    theirs = [
        key
        for pattern in ("lock:*", "run:*:permits")
        for key in client.scan_iter(match=f"{prefix}:{pattern}", count=1_000)
    ]
    names = ("holders", "wire:holders", "workers", "worker-records")
    with client.pipeline() as pipe:
        for queue, message in _messages(taken.values()):
            pipe.rpush(queue, message)
        pipe.delete(UNACKED, UNACKED_INDEX, *(f"{prefix}:{name}" for name in names), *theirs)
        pipe.execute()
    # Nothing of runs with a limit is taken any more.
    MessageReader(client).give_turns()


def _gone(client: redis.Redis, locations: dict[str, RunLocation]) -> Iterator[str]:
    with client.pipeline(transaction=False) as pipe:
        for run_id, location in locations.items():
            pipe.exists(f"{location.prefix}:run:{run_id}")
        answers = pipe.execute() if locations else []
    return (run_id for run_id, is_there in zip(locations, answers, strict=True) if not is_there)


def _messages(taken: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield queue and message of what was taken, marked as kombu marks a redelivery."""
    for raw in taken:
        with suppress(ValueError, TypeError, KeyError):
            message, _exchange, queue = json.loads(raw)
            if queue in QUEUES:
                message["headers"]["redelivered"] = True
                message["properties"]["delivery_info"]["redelivered"] = True
                yield queue, json.dumps(message)
