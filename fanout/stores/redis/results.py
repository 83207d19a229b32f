"""The aggregates of runs in the Redis store: one record, and pieces of what is too large for it.

Two processes may make the aggregate of a run, one after the other or at once. So each writes pieces of its
own, under a name of its own, and the record, which names one of the two, is written last: the first one
stands. The other's pieces are deleted then, or with the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fanout.core.errors import UnknownRunError
from fanout.stores import codec
from fanout.stores.redis import run_scripts
from fanout.stores.redis.base import or_empty, translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RedisResults"]

# Bytes above which an aggregate gets a file.
_LARGE_RESULT = 100_000
# Keys per command.
_PAGE = 100


class RedisResults(RedisBlobReferences):
    """Writes, reads and deletes the aggregates of runs."""

    @translated
    def put_result(
        self, run_id: str, result: bytes, *, writer: str = "", opening: float | None = None
    ) -> bool:
        """Write the run's aggregate; the first one stands.

        Args:
            run_id: The run.
            result: Its record.
            writer: Whose pieces it names; empty if it has none.
            opening: The opening of the run that it is of (RunRecord.opening); None is any.

        Returns:
            Whether it stands: not if there is another, or if the run has ended, or was reopened.

        Raises:
            UnknownRunError: There is no such run.
        """
        name = f"{run_id}/result"
        held = self._keep(run_id, name, result) if len(result) > _LARGE_RESULT else result
        key, writers = f"{self._run(run_id)}:result", self._result_writers(run_id)
        keys = [self._run(run_id), key, writers]
        answer = self._call(
            run_scripts.PUT_RESULT, keys, [held, self._ttl_s, writer, or_empty(opening)]
        )
        self._drop_if_late(key, name, held)
        self._require(run_id, answer >= 0)
        if answer:
            self._delete_result_pieces(run_id, but=writer)
        return bool(answer)

    @translated
    def result(self, run_id: str) -> bytes | None:
        """Return the run's aggregate, or None if there is none."""
        held = self._held(f"{self._run(run_id)}:result")
        return None if held is None else self._blobs.load(f"{run_id}/result", held)

    @translated
    def put_result_piece(
        self, run_id: str, piece: bytes, *, writer: str, number: int, opening: float | None = None
    ) -> bool:
        """Write a piece of an aggregate whose record is still to come.

        Args:
            run_id: The run.
            piece: The bytes.
            writer: The name of this attempt to make the aggregate, which no other has.
            number: The place of the piece among those of the writer, from 0.
            opening: The opening of the run that it is of (RunRecord.opening); None is any.

        Returns:
            Whether it was written: not if the run has ended, has an aggregate, or was reopened.

        Raises:
            UnknownRunError: There is no such run.
        """
        name = _piece_name(run_id, writer, number)
        held = self._keep(run_id, name, codec.encode_piece(piece))
        run = self._run(run_id)
        keys = [
            run,
            f"{run}:result",
            self._result_writers(run_id),
            self._result_piece_key(run_id, writer, number),
        ]
        args = [held, self._ttl_s, writer, number, or_empty(opening)]
        answer = self._call(run_scripts.PUT_PIECE, keys, args)
        if answer <= 0:
            self._blobs.drop(name, held)
        self._require(run_id, answer >= 0)
        return bool(answer)

    @translated
    def result_piece(self, run_id: str, *, writer: str, number: int) -> bytes:
        """Return a piece of an aggregate. Raises UnknownRunError if it has expired."""
        held = self._held(self._result_piece_key(run_id, writer, number))
        if held is None:
            raise UnknownRunError(run_id)
        return codec.decode_piece(self._blobs.load(_piece_name(run_id, writer, number), held))

    @translated
    def drop_result_pieces(self, run_id: str, *, writer: str) -> None:
        """Delete the pieces of a writer whose record will not come."""
        count = cast("bytes | None", self._redis.hget(self._result_writers(run_id), writer))
        self._drop_result_pieces(run_id, {writer: int(count or 0)})
        self._redis.hdel(self._result_writers(run_id), writer)

    def _delete_result_pieces(self, run_id: str, *, but: str = "") -> None:
        """Delete the pieces of all writers, or of all but one."""
        pieces = self._result_pieces(run_id)
        pieces.pop(but, None)
        if pieces:
            self._drop_result_pieces(run_id, pieces)
            self._redis.hdel(self._result_writers(run_id), *pieces)

    def _result_pieces(self, run_id: str) -> dict[str, int]:
        """Return how many pieces each writer has written."""
        found = cast("dict[bytes, bytes]", self._redis.hgetall(self._result_writers(run_id)))
        return {writer.decode(): int(count) for writer, count in found.items()}

    def _drop_result_pieces(self, run_id: str, pieces: dict[str, int]) -> None:
        for page in _pages(pieces):
            keys = [self._result_piece_key(run_id, writer, number) for writer, number in page]
            if self._blobs.root is not None:
                for one, held in zip(
                    page, cast("list[bytes]", self._redis.mget(keys)), strict=True
                ):
                    if held is not None:
                        self._blobs.drop(_piece_name(run_id, *one), held)
            self._redis.delete(*keys)

    def _result_writers(self, run_id: str) -> str:
        return f"{self._run(run_id)}:result:writers"

    def _result_piece_key(self, run_id: str, writer: str, number: int) -> str:
        return f"{self._run(run_id)}:result:{writer}:{number}"


def _piece_name(run_id: str, writer: str, number: int) -> str:
    return f"{run_id}/result-{writer}.{number}"


def _pages(pieces: dict[str, int]) -> Iterator[list[tuple[str, int]]]:
    """Yield all pieces, some at a time."""
    for writer, count in pieces.items():
        for start in range(0, count, _PAGE):
            yield [(writer, number) for number in range(start, min(start + _PAGE, count))]
