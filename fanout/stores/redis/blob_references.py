"""Blobs of the Redis store: in the server, or in files that the server refers to.

A process writes a file before the script that stores its reference, and deletes it after the script
that removes the reference. If the process dies in between, it leaves a file without a reference,
which is deleted with its run, but never a reference without a file.

An unmounted folder is empty, and a wrong mount has other files: reads and writes alone notice
neither. So the first process that uses a storage writes an id there and in the run store. A process
that finds another id, or none, does not use the storage. Only an id that a worker found is
authoritative. The run store notes apart the id that a client found before the first worker started:
it only keeps a worker from marking another folder.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import cast

from fanout.core.errors import StorageError
from fanout.stores.blobs.base import MARKER, valid_storage_id
from fanout.stores.redis.base import RedisBase, or_empty, translated
from fanout.stores.redis.run_scripts import PUT_BLOB

__all__ = ["RedisBlobReferences"]

# The first process may be about to write the marker.
_LOOKS = 10
_LOOK_S = 0.2
_RUN_ID = re.compile(r"[\w-]+", re.ASCII)


class RedisBlobReferences(RedisBase):
    """Writes, loads and deletes blobs, and stores their references."""

    def _keep(self, run_id: str, name: str, blob: bytes, *, is_input: bool = False) -> bytes:
        """Write a blob, and return the value for its key. Clients may write inputs only."""
        if self._blobs.root is not None:
            if self._blobs.known_id is None:
                # The first blob of this process, which may be a prefork child.
                problem = self.storage_problem()
                if problem is not None:
                    raise StorageError(problem, is_passing=True)
            # Registered before the first file, so that the sweep finds the run's files.
            registry = self._inputs if is_input else self._stored
            self._redis.sadd(registry, self._entry(run_id))
            self._blobs.claim(run_id)
        return self._blobs.keep(name, blob)

    def _put_blob(
        self,
        run_id: str,
        key: str,
        name: str,
        held: bytes,
        *,
        replaces: tuple[str, ...] = (),
        opening: float | None = None,
    ) -> bool:
        """Store the value of a written blob, and delete the keys that it replaces.

        The first blob stands. Returns False, and does nothing, if a retry has reopened the run since
        ``opening``. Raises UnknownRunError.
        """
        keys = [self._run(run_id), key, *replaces]
        answer: int = self._call(PUT_BLOB, keys, [held, self._ttl_s, or_empty(opening)])
        self._drop_if_late(key, name, held)
        self._require(run_id, answer)
        return answer > 0

    def _drop_if_late(self, key: str, name: str, held: bytes) -> None:
        """Delete the file of a blob if another process stored its reference first."""
        if self._blobs.root is not None and self._held(key) != held:
            self._blobs.drop(name, held)

    def storage_problem(self, *, is_worker: bool = False) -> str | None:
        """Return in one line why this process must not use its storage, or None if it may.

        The first process that asks marks the storage. Raises BrokerError.
        """
        if self._blobs.root is None:
            return None
        try:
            return self._storage_problem(self._blobs.root, is_worker=is_worker)
        except StorageError as error:
            return str(error)

    def _storage_problem(self, root: str, *, is_worker: bool) -> str | None:
        blobs = self._blobs
        found = blobs.marker()
        if found is not None and found == blobs.known_id and not is_worker:
            return None
        known = self._storage_id(root, is_worker=is_worker)
        if known is None:
            noted = self._storage_id(root) if is_worker else None
            own = found or noted or secrets.token_hex(8)
            known = self._storage_id(root, first=own, is_worker=is_worker)
            if known == own and found is None and noted is None:
                blobs.mark(own)
                found = blobs.marker()
        for _ in range(_LOOKS):
            if found is not None or known == blobs.known_id:
                break
            time.sleep(_LOOK_S)
            found = blobs.marker()
        if found == known:
            blobs.known_id = known
            return None
        what = "has no marker: it is not mounted here, or was emptied"
        if found is not None:
            what = f"is another storage (its marker is {found})"
        return (
            f"{root} {what}; runs of this broker have their files in the one whose marker is "
            f"{known}. Mount that, or, if this is the right one, write {known} into {root}/{MARKER}"
        )

    @translated
    def _storage_id(
        self, root: str, *, first: str | None = None, is_worker: bool = False
    ) -> str | None:
        """Return the id of the storage at ``root``; set it to ``first`` if there is none.

        A client also reads the ids that clients have noted, and its ``first`` is noted there.
        """
        own = self._storages if is_worker else self._noted_storages
        if first is not None:
            self._redis.hsetnx(own, root, first)
        known = cast("bytes | None", self._redis.hget(self._storages, root))
        if known is None and not is_worker:
            known = cast("bytes | None", self._redis.hget(own, root))
        return valid_storage_id(known)

    def _held(self, key: str) -> bytes | None:
        return cast("bytes | None", self._redis.get(key))

    def _entry(self, run_id: str) -> str:
        return f"{run_id} {self._blobs.root}"

    @translated
    def sweep_files(self) -> int:
        """Delete the files of runs that are gone, where blobs are kept as files.

        Returns:
            The number of runs whose files were deleted.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """
        # Only under the configured root: the server's data must not make a process delete other
        # files.
        root = self._blobs.root
        if root is None:
            return 0
        entries = cast("set[bytes]", self._redis.sunion([self._stored, self._inputs]))
        pairs = (entry.decode(errors="replace").partition(" ") for entry in entries)
        own = sorted(run_id for run_id, _, of_root in pairs if of_root == root)
        return sum(self._sweep_one(run_id) for run_id in self._gone(own))

    def _sweep_one(self, run_id: str) -> bool:
        # Files that are not the run's stay; the log names them once, as the entry is removed.
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
        """Delete the files of a deleted run; the sweep removes the entries of workers."""
        if self._blobs.drop_all(run_id):
            self._redis.srem(self._inputs, self._entry(run_id))
