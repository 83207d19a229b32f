"""The indexes of passages that a run needs: built, or found, before the run begins."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from fanout.core.errors import LostDataError, RunError, StorageError
from fanout.core.retrieval import is_retrieval_function
from fanout.core.units import plural
from fanout.inputs.documents import Notice
from fanout.retrieval.building import IndexBuilder
from fanout.retrieval.extra import require_extra
from fanout.retrieval.index_file import PassageIndex
from fanout.retrieval.local_files import LocalIndexes, pieces_of
from fanout.retrieval.reading import read_passages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Notify
    from fanout.inputs.documents.past_runs import OpenRun
    from fanout.stores import RedisStore

__all__ = ["Passages"]


class Passages:
    """Reads the passages of jobs, and puts their indexes into the store.

    Args:
        cache_dir: The folder of the cache.
        notify: Receives notices of what is left out, and of what is indexed.
        open_run: Opens the runs that passages come from.
        should_stop: Says whether the caller wants no run any more.
    """

    def __init__(
        self,
        cache_dir: Path,
        *,
        notify: Notify,
        open_run: OpenRun | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._cache_dir = cache_dir
        self._notify = notify
        self._open_run = open_run
        self._should_stop = should_stop

    def stored(self, store: RedisStore, run_id: str, spec: RunSpec) -> dict[str, str]:
        """Return the names of the indexes of a run, by where their passages are from; write new ones.

        Raises:
            InputError: The passages cannot be read, or there is none.
            SpecError: The extra ``retrieval`` is not installed.
            RunError: The caller wants no run any more.
            StorageError: The folder of the cache, or the storage of runs, cannot be written to.
        """
        sources = [one for one in spec.retrieval_sources if not is_retrieval_function(one)]
        if sources:
            require_extra()
        return {source: self._stored(store, run_id, spec, source) for source in sources}

    def _stored(self, store: RedisStore, run_id: str, spec: RunSpec, source: str) -> str:
        local = LocalIndexes(self._cache_dir)
        try:
            with IndexBuilder(local.folder) as builder:
                self._read(builder, spec, source)
                name = store.share_passages(run_id, builder.content)
                if name is None:
                    # Of several clients of a machine, one indexes the passages and sends them.
                    with local.lock(builder.content):
                        name = store.share_passages(run_id, builder.content)
                        if name is None:
                            return self._written(store, run_id, source, builder, local)
                return name
        except OSError as error:
            raise StorageError(
                f"the index of the passages in {local.folder} cannot be written: {error.strerror}"
            ) from None

    def _written(
        self,
        store: RedisStore,
        run_id: str,
        source: str,
        builder: IndexBuilder,
        local: LocalIndexes,
    ) -> str:
        """Index passages, where no file of this machine has them, and send them; return their name."""
        count, content = builder.count, builder.content
        path = _found(local, content)
        if path is None:
            builder.finish()
            path = local.adopt(builder.path, content)
        name = store.put_passages(run_id, content, pieces_of(path), digest=_digest(path))
        self._notify(Notice(text=f"{plural(count, 'passage', 'passages')} of {source} indexed"))
        return name

    def _read(self, builder: IndexBuilder, spec: RunSpec, source: str) -> None:
        passages = read_passages(spec, source, notify=self._notify, open_run=self._open_run)
        for number, passage in enumerate(passages):
            if not number % 1_000 and self._should_stop is not None and self._should_stop():
                raise RunError("the run was stopped before it began")
            builder.add(*passage)


def _found(local: LocalIndexes, content: str) -> Path | None:
    """Return the file of an index if a sound one is here."""
    path = local.found(content)
    if path is None:
        return None
    try:
        PassageIndex(path)
    except LostDataError:
        return None
    return path


def _digest(path: Path) -> str:
    found = blake2b(digest_size=16)
    for piece in pieces_of(path):
        found.update(piece)
    return found.hexdigest()
