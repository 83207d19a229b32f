"""The indexes of passages in a worker process: files of this machine, mapped into memory."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import FanoutError, LostDataError
from fanout.retrieval.index_file import PassageIndex
from fanout.retrieval.local_files import LocalIndexes
from fanout.system.threads import ReadyThreads
from workers.context.batches import LoadingCache

if TYPE_CHECKING:
    from fanout.core.settings import Settings
    from fanout.retrieval.passages import Passage
    from fanout.stores import RedisStore

__all__ = ["Passages"]

_RUNS = 64
# A mapped index takes memory that all processes of a machine share, and that the system can take back.
_INDEXES = 8
# Those that fetch among them.
_THREADS = 4
# An index is kept from expiring so often in the time that the records of runs are kept.
_USES = 8

_log = logging.getLogger(__name__)


class _Ready(NamedTuple):
    """What there is once a run retrieves.

    Attributes:
        threads: The threads that fetch and search.
        names: The names of the indexes of a run, by where their passages are from.
        indexes: The index of a name.
    """

    threads: ReadyThreads
    names: LoadingCache[str, dict[str, str]]
    indexes: LoadingCache[str, PassageIndex]


class Passages:
    """Searches the indexes of runs, each fetched once for a machine; used on the loop of branches.

    Args:
        store: Where indexes are fetched from.
        settings: Have the folder of the cache.
    """

    def __init__(self, store: RedisStore, settings: Settings) -> None:
        self._store = store
        self._cache_dir = settings.cache_dir
        self._use_s = settings.run_ttl_s / _USES
        self._threads: ReadyThreads | None = None
        self._used: dict[str, float] = {}

    @cached_property
    def _ready(self) -> _Ready:
        # Most workers have no run that retrieves.
        self._threads = threads = ReadyThreads(_THREADS, "fanout-search", first=1)
        return _Ready(
            threads=threads,
            names=LoadingCache(self._store.passages_of, threads, size=_RUNS),
            indexes=LoadingCache(self._opened, threads, size=_INDEXES),
        )

    async def search(self, run_id: str, source: str, query: str, k: int) -> list[Passage]:
        """Return the passages of a run that fit a query best, best first.

        Args:
            run_id: The run.
            source: Where the passages are from, as its job says.
            query: What is looked for.
            k: The most passages.

        Raises:
            LostDataError: The server has lost the index.
            StorageError: The index cannot be fetched now, or not be written here.
            ModelError: A package of the extra ``retrieval`` is not installed.
        """
        ready = self._ready
        name = (await ready.names(run_id)).get(source)
        if name is None:
            raise LostDataError("the server has no index of the passages")
        index = await ready.indexes(name)
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if now - self._used.setdefault(name, now) > self._use_s:
            self._used[name] = now
            loop.run_in_executor(ready.threads, self._use, name)
        return await loop.run_in_executor(ready.threads, index.search, query, k)

    def _opened(self, name: str) -> PassageIndex:
        # The name is that of the store: see fanout.stores.redis.passages.
        content = name.removeprefix("passages-").rpartition("-")[0]
        local = LocalIndexes(self._cache_dir)
        path = local.found(content)
        if path is not None:
            try:
                return PassageIndex(path)
            except LostDataError as error:
                _log.warning("the index is fetched again: %s", error)
                path.unlink(missing_ok=True)
        digest = self._store.passage_digest(name)
        return PassageIndex(local.fetched(content, self._store.passage_pieces(name), digest))

    def _use(self, name: str) -> None:
        with suppress(FanoutError):
            self._store.use_passages(name)

    def close(self) -> None:
        """End the threads that search."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
