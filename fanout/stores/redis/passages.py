"""The indexes of passages in the store: one for the same passages, shared by the runs that use it.

An index is kept in pieces, each a blob. Its name has the hash of its passages, and a token of its own. It
expires some time after its last use, and is deleted with the last run that uses it. To the sweep of files
it is like a run: its files stay as long as its record.
"""

from __future__ import annotations

import re
import secrets
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import msgspec

from fanout.core.errors import LostDataError, StorageError, StoredDataError
from fanout.stores.redis import passage_scripts
from fanout.stores.redis.base import run_keys, translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["RedisPassages"]

_NAME = re.compile(r"passages-[0-9a-f]{32}-[0-9a-f]{8}")
_LEVEL = 1
# It outlives the records of the runs that use it, which expire after their last write.
_TTLS = 2
_MOST_BYTES = 64_000_000


class RedisPassages(RedisBlobReferences):
    """Writes, shares and deletes indexes of passages."""

    @translated
    def share_passages(self, run_id: str, content: str) -> str | None:
        """Say that a run uses the index of some content; return its name, or None if there is none."""
        args = [run_id, _TTLS * self._ttl_s, run_keys(self._prefix)]
        name = self._call(passage_scripts.SHARE_PASSAGES, [self._pointer(content)], args)
        if name is None:
            return None
        found = cast("bytes", name).decode()
        self.use_passages(found)
        return found

    @translated
    def put_passages(
        self, run_id: str, content: str, pieces: Iterable[bytes], *, digest: str
    ) -> str:
        """Write an index, for a run that uses it; return its name.

        If another process has written it meanwhile, its index stands.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """
        name = f"passages-{content}-{secrets.token_hex(4)}"
        base, ttl_s = self._run(name), _TTLS * self._ttl_s
        self._redis.hset(base, "content", content)
        self._redis.expire(base, ttl_s)
        count = 0
        for count, piece in enumerate(pieces, 1):
            part = f"{count - 1}.part"
            held = self._keep(name, f"{name}/{part}", zlib.compress(piece, _LEVEL), is_input=True)
            self._redis.set(f"{base}:{count - 1}", held, ex=ttl_s)
        keys = [self._pointer(content), base, f"{base}:runs"]
        args = [name, run_id, ttl_s, count, digest, run_keys(self._prefix)]
        stands = cast("bytes", self._call(passage_scripts.PUBLISH_PASSAGES, keys, args)).decode()
        if stands != name:
            self._redis.delete(base)
            self._delete_pieces(name, count)
        return stands

    @translated
    def passages_of(self, run_id: str) -> dict[str, str]:
        """Return the names of the indexes of a run, by where their passages are from."""
        return _names(run_id, cast("bytes | None", self._redis.hget(self._run(run_id), "passages")))

    @translated
    def passage_digest(self, name: str) -> str:
        """Return the hash of an index as it is in pieces. Raises LostDataError."""
        return self._passage_record(name)[1]

    def _passage_record(self, name: str) -> tuple[int, str]:
        found: list[bytes | None] = [None, None]
        if _NAME.fullmatch(name):
            found = cast(
                "list[bytes | None]", self._redis.hmget(self._run(name), "pieces", "digest")
            )
        count, digest = found
        if count is None or digest is None or not count.isdigit():
            raise LostDataError("the server has lost the index of the passages")
        return int(count), digest.decode(errors="replace")

    @translated
    def passage_pieces(self, name: str) -> Iterator[bytes]:
        """Return the pieces of an index, which are read one at a time.

        Raises:
            LostDataError: The server has lost the index, or a piece of it.
            StorageError: The storage does not answer.
        """
        count, _ = self._passage_record(name)
        return (self._piece(name, number) for number in range(count))

    @translated
    def _piece(self, name: str, number: int) -> bytes:
        held = self._held(f"{self._run(name)}:{number}")
        if held is None:
            raise LostDataError("the server has lost a piece of the index of the passages")
        data = self._blobs.load(f"{name}/{number}.part", held)
        try:
            unpack = zlib.decompressobj()
            return unpack.decompress(data, _MOST_BYTES)
        except zlib.error:
            raise LostDataError("a piece of the index of the passages is damaged") from None

    @translated
    def use_passages(self, name: str) -> None:
        """Keep an index from expiring for a while."""
        if not _NAME.fullmatch(name):
            return
        base, ttl_s = self._run(name), _TTLS * self._ttl_s
        found = cast("list[bytes | None]", self._redis.hmget(base, "pieces", "pointer"))
        count, pointer = int(found[0] or 0), found[1]
        with self._redis.pipeline(transaction=False) as pipe:
            for key in (base, f"{base}:runs", *(f"{base}:{number}" for number in range(count))):
                pipe.expire(key, ttl_s)
            if pointer is not None:
                pipe.expire(pointer.decode(errors="replace"), ttl_s)
            pipe.execute()

    def _drop_passages(self, run_id: str) -> None:
        """Delete the indexes that only a run has used whose deletion has begun."""
        names: dict[str, str] = {}
        with suppress(StoredDataError):
            names = _names(run_id, self._held(f"{self._run(run_id)}:passages"))
        for name in {*names.values()}:
            if not _NAME.fullmatch(name):
                continue
            base = self._run(name)
            keys = [base, f"{base}:runs"]
            count: int = self._call(passage_scripts.DROP_PASSAGES, keys, [run_id, name])
            if count >= 0:
                self._delete_pieces(name, count)

    def _delete_pieces(self, name: str, count: int) -> None:
        keys = [f"{self._run(name)}:{number}" for number in range(count)]
        if keys:
            self._redis.delete(*keys)
        if self._blobs.root is not None:
            with suppress(StorageError):
                # If the storage is unreachable, the sweep deletes them later.
                self._drop_files(name)

    def _pointer(self, content: str) -> str:
        return f"{run_keys(self._prefix)}passages-{content}"


def _names(run_id: str, data: bytes | None) -> dict[str, str]:
    """Return the names of the indexes of a run. Raises StoredDataError."""
    if data is None:
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"the passages of run {run_id} are damaged ({error})") from None
