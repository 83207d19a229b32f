"""Blobs of the Redis store: in the server, or as files that it refers to.

A file is written before the script that makes it count, and deleted after the one by which it does
not count any more: a process that dies in between leaves a file that nothing refers to, which goes
with its run, and never a reference to nothing.
"""

from __future__ import annotations

import re
from typing import cast

from fanout.core.errors import StorageError
from fanout.stores.blobs.marker import sound_id, storage_problem
from fanout.stores.redis.base import RedisBase, translated

__all__ = ["RedisKept"]

_RUN_ID = re.compile(r"[\w-]+", re.ASCII)


class RedisKept(RedisBase):
    """Keeps, loads and deletes blobs by name."""

    def _keep(self, run_id: str, name: str, blob: bytes, *, is_input: bool = False) -> bytes:
        """Keep a blob, and return what its key is to hold; inputs may be a client's."""
        if self._blobs.root is not None:
            if self._blobs.known_id is None:
                # The first of this process, which may be a prefork child.
                problem = storage_problem(self, self._blobs)
                if problem is not None:
                    raise StorageError(problem, is_passing=True)
            # Before the first file: the sweep finds what is left of a run by it.
            registry = self._inputs if is_input else self._stored
            self._redis.sadd(registry, self._entry(run_id))
            self._blobs.claim(run_id)
        return self._blobs.keep(name, blob)

    def _drop_if_late(self, key: str, name: str, held: bytes) -> None:
        """Delete a file that does not count, as somebody else's was there first."""
        if self._blobs.root is not None and self._held(key) != held:
            self._blobs.drop(name, held)

    def storage_problem(self, *, is_worker: bool = False) -> str | None:
        """Return why files cannot be kept from here, in one line; None where they can.

        A worker registers a storage that nobody has registered yet: see
        fanout.stores.blobs.marker. Raises BrokerError.
        """
        return storage_problem(self, self._blobs, is_worker=is_worker)

    @translated
    def storage_id(
        self, root: str, *, first: str | None = None, is_worker: bool = False
    ) -> str | None:
        """See fanout.stores.blobs.marker.Ids."""
        own = self._storages if is_worker else self._noted_storages
        if first is not None:
            self._redis.hsetnx(own, root, first)
        known = cast("bytes | None", self._redis.hget(self._storages, root))
        if known is None and not is_worker:
            known = cast("bytes | None", self._redis.hget(own, root))
        return sound_id(known)

    def _held(self, key: str) -> bytes | None:
        return cast("bytes | None", self._redis.get(key))

    def _entry(self, run_id: str) -> str:
        return f"{run_id} {self._blobs.root}"

    @translated
    def sweep_files(self, *, everything: bool = False) -> int:
        """Delete the files of runs that are gone, where blobs are kept as files.

        Args:
            everything: Those of all other runs, too: the store itself is about to end.

        Returns:
            Of how many runs.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """
        # Only under the root that is set here: what the server says must not make a process
        # delete whatever else it can.
        root = self._blobs.root
        if root is None:
            return 0
        entries = cast("set[bytes]", self._redis.sunion([self._stored, self._inputs]))
        pairs = (entry.decode(errors="replace").partition(" ") for entry in entries)
        own = sorted(run_id for run_id, _, of_root in pairs if of_root == root)
        gone = own if everything else self._gone(own)
        return sum(self._sweep_one(run_id) for run_id in gone)

    def _sweep_one(self, run_id: str) -> bool:
        # What is not the run's stays, and is said once: nothing names it any more.
        is_gone = bool(_RUN_ID.fullmatch(run_id)) and self._blobs.drop_all(run_id)
        for registry in (self._stored, self._inputs):
            self._redis.srem(registry, self._entry(run_id))
        return is_gone

    def _gone(self, run_ids: list[str]) -> list[str]:
        with self._redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.exists(self._run(run_id))
            answers = pipe.execute()
        return [run_id for run_id, is_there in zip(run_ids, answers, strict=True) if not is_there]

    def _drop_files(self, run_id: str) -> None:
        """Delete the files of a run that is deleted; the sweep forgets what workers have noted."""
        if self._blobs.drop_all(run_id):
            self._redis.srem(self._inputs, self._entry(run_id))
