"""Writes the aggregates of a run: small values in their record, and the others in pieces."""

from __future__ import annotations

import secrets
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import structs

from fanout.aggregators import Aggregate, Held, Streamed, value_of
from fanout.core.errors import FanoutError
from fanout.runs.status import ReduceError, StoredResult
from fanout.system.external_sort import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self

    from fanout.stores import RedisStore

__all__ = ["ResultTooLargeError", "standing_problems", "write_result", "write_results"]

PIECE_BYTES = 2_000_000
# Values that are in the record: up to so many bytes each, and in all.
_SMALL_BYTES = 100_000
_SMALL_BYTES_IN_ALL = 1_000_000
# Aggregates without their values that are in the record.
_LISTED_BYTES = 1_000_000
# Redis accepts values of up to 512 MB.
_MAX_RECORD_BYTES = 256_000_000


class ResultTooLargeError(Exception):
    """The record of a result would be too large to be stored: it has very many groups."""


class _LateError(Exception):
    """Another process has written the result, or the run has ended."""


def write_result(
    store: RedisStore,
    run_id: str,
    made: Iterable[tuple[str, Aggregate | Streamed]],
    errors: Iterable[ReduceError] = (),
    *,
    problem: Callable[[], str | None] = lambda: None,
    opening: float | None = None,
) -> bool:
    """Write the aggregates of a run by group, in pieces of some MB where they are large.

    They count once all is written, in one step. The first result stands.

    Args:
        store: Where the run is.
        run_id: The run.
        made: The aggregates; each is read before the next is asked for.
        errors: The calls of the reduce that failed.
        problem: Returns why the run is to end as failed, or None; called once ``made`` is read.
        opening: The opening of the run whose outcomes these are of (RunRecord.opening); None is any.

    Returns:
        Whether this result stands.

    Raises:
        ResultTooLargeError: There are too many groups.
        UnknownRunError: There is no such run.
    """
    with _ResultWriter(store, run_id, opening) as writer:
        try:
            result = writer.with_errors(writer.entries(made), errors)
            return writer.finish(structs.replace(result, problems=_problems({"": problem()})))
        except _LateError:
            return False


class ReduceMade(Protocol):
    """What a reduce has come to."""

    @property
    def aggregates(self) -> Iterable[tuple[str, Aggregate | Streamed]]:
        """Its aggregates by group; each is read before the next is asked for."""

    @property
    def errors(self) -> Iterable[ReduceError]:
        """Its calls that failed; all are known once its aggregates have been read."""

    @property
    def problem(self) -> str | None:
        """Why there is no aggregate, or None."""


def write_results(
    store: RedisStore, run_id: str, made: Mapping[str, ReduceMade], *, opening: float | None = None
) -> bool:
    """Write the aggregates of a run with a list of reduces, by name: see write_result."""
    with _ResultWriter(store, run_id, opening) as writer:
        try:
            named: dict[str, StoredResult] = {}
            for name, some in made.items():
                result = writer.with_errors(writer.entries(some.aggregates), some.errors)
                named[name] = structs.replace(result, problem=some.problem)
            problems = _problems({name: one.problem for name, one in named.items()})
            return writer.finish(StoredResult(named=named, problems=problems))
        except _LateError:
            return False


def standing_problems(store: RedisStore, run_id: str) -> dict[str, str] | None:
    """Return why a run ends as failed, as the result that stands has it; None if there is no result."""
    data = store.result(run_id)
    return None if data is None else msgspec.json.decode(data, type=StoredResult).problems


def _problems(found: Mapping[str, str | None]) -> dict[str, str]:
    return {name: problem for name, problem in found.items() if problem}


class _ResultWriter:
    """Writes one result. Its pieces are deleted if it does not come to its end."""

    def __init__(self, store: RedisStore, run_id: str, opening: float | None) -> None:
        self._store = store
        self._run_id = run_id
        self._opening = opening
        self._name = secrets.token_hex(4)
        self._small = 0
        # The bytes of the aggregates that are in the record.
        self._listed = 0
        self._piece = bytearray()
        # The bytes before that piece, and the pieces.
        self._before = 0
        self._pieces = 0
        self._stands = False

    def entries(self, made: Iterable[tuple[str, Aggregate | Streamed]]) -> StoredResult:
        """Write aggregates; return their result, without errors.

        Very many of them follow their values, in the pieces: until then they are in a temporary file.
        """
        with _Lines() as lines:
            for group, one in made:
                lines.add(msgspec.json.encode((group, self.add(one))))
            place = self._placed(lines)
            if place is None:
                return StoredResult(aggregates=dict(map(_entry, lines)))
            return StoredResult(entries=place)

    def with_errors(self, result: StoredResult, errors: Iterable[ReduceError]) -> StoredResult:
        """Return a result with its errors; very many of them are in the pieces, too."""
        with _Lines() as lines:
            for error in errors:
                lines.add(msgspec.json.encode(error))
            place = self._placed(lines)
            if place is None:
                return structs.replace(result, errors=list(map(_error, lines)))
            return structs.replace(result, error_lines=place)

    def _placed(self, lines: _Lines) -> tuple[int, int] | None:
        """Write lines into the pieces, and return where; None if they are to be in the record."""
        if not lines.size or self._listed + lines.size <= _LISTED_BYTES:
            self._listed += lines.size
            return None
        start = self._size
        for chunk in lines.chunks():
            self._write(chunk)
        return start, self._size

    def add(self, made: Aggregate | Streamed) -> Aggregate:
        """Write a value, and return its aggregate as the record has it."""
        if isinstance(made, Aggregate):
            made = _streamed(made)
        chunks = made.chunks
        some: list[bytes] = []
        size = 0
        for chunk in chunks:
            some.append(chunk)
            size += len(chunk)
            if size > _SMALL_BYTES:
                break
        else:
            if self._small + size <= _SMALL_BYTES_IN_ALL:
                self._small += size
                return structs.replace(made.end(), value=value_of(made.form, b"".join(some)))
        start, rows = self._size, 0
        for chunk in chain(some, chunks):
            self._write(chunk)
            rows += chunk.count(b"\n") if made.form == "rows" else 0
        held = Held(form=made.form, start=start, end=self._size, rows=rows)
        return structs.replace(made.end(), value=None, held=held)

    @property
    def _size(self) -> int:
        return self._before + len(self._piece)

    def _write(self, chunk: bytes) -> None:
        self._piece += chunk
        while len(self._piece) >= PIECE_BYTES:
            self._put(bytes(self._piece[:PIECE_BYTES]))
            del self._piece[:PIECE_BYTES]

    def _put(self, piece: bytes) -> None:
        is_written = self._store.put_result_piece(
            self._run_id,
            piece,
            writer=self._name,
            number=self._pieces,
            opening=self._opening,
        )
        if not is_written:
            raise _LateError
        self._before += len(piece)
        self._pieces += 1

    def finish(self, result: StoredResult) -> bool:
        """Write the rest and the record; return whether this result stands."""
        if self._piece:
            self._put(bytes(self._piece))
        writer = self._name if self._pieces else ""
        data = msgspec.json.encode(structs.replace(result, writer=writer, piece_bytes=PIECE_BYTES))
        if len(data) > _MAX_RECORD_BYTES:
            raise ResultTooLargeError
        self._stands = self._store.put_result(
            self._run_id, data, writer=writer, opening=self._opening
        )
        return self._stands

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._pieces and not self._stands:
            # Otherwise they are deleted with the run, or when another result is written.
            with suppress(FanoutError):
                self._store.drop_result_pieces(self._run_id, writer=self._name)


_entry = msgspec.json.Decoder(tuple[str, Aggregate]).decode
_error = msgspec.json.Decoder(ReduceError).decode


class _Lines:
    """Lines of JSON, in a temporary file once they are many."""

    def __init__(self) -> None:
        self._pile = Scratch().pile()
        self._latest = bytearray()

    @property
    def size(self) -> int:
        return self._pile.size + len(self._latest)

    def add(self, line: bytes) -> None:
        """Take a line. Raises RunError: there is no room for temporary files."""
        self._latest += line + b"\n"
        if len(self._latest) > _LISTED_BYTES:
            self._pile.add(bytes(self._latest))
            self._latest.clear()

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes."""
        yield from self._pile.read(0, self._pile.size)
        yield bytes(self._latest)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the lines; they are few."""
        yield from b"".join(self.chunks()).splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pile.close()


def _streamed(made: Aggregate) -> Streamed:
    """Return the aggregate of a value that is in memory."""

    def chunks() -> Iterator[bytes]:
        value = made.value
        yield value.encode() if isinstance(value, str) else msgspec.json.encode(value)

    is_text = isinstance(made.value, str)
    return Streamed(form="text" if is_text else "json", chunks=chunks(), end=lambda: made)
