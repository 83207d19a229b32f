"""The values of stored aggregates: in memory, or piece by piece."""

from __future__ import annotations

import codecs
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from fanout.aggregators import Aggregate, Held, value_of
from fanout.core.records import ErrorKind
from fanout.runs.status import ReduceError, StoredResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.stores import RedisStore

__all__ = ["ResultValues", "stored_values"]


class ResultValues:
    """The values of a result, of which only some MB are in memory where they are read piece by piece.

    Args:
        stored: The result.
        read: Returns one of its pieces by number; None if it has none.

    Attributes:
        stored: The result; the values that are in pieces are None in it, and aggregates and errors that are
            in pieces are not in it: ``aggregates`` and ``errors`` have them, and ``listed``.
    """

    def __init__(self, stored: StoredResult, read: Callable[[int], bytes] | None = None) -> None:
        self.stored = stored
        self._read = read
        # Small values of groups are many to a piece.
        self._last: tuple[int, bytes] = (-1, b"")

    def of(self, name: str) -> ResultValues:
        """Return the values of a reduce of a list, by its name; without a name, these."""
        if not name:
            return self
        named = self.stored.named.get(name, StoredResult())
        return ResultValues(structs.replace(named, piece_bytes=self.stored.piece_bytes), self._read)

    def aggregates(self) -> Iterator[tuple[str, Aggregate]]:
        """Yield the aggregates by group, one after the other where there are very many."""
        yield from self.stored.aggregates.items()
        if self.stored.entries is not None:
            yield from map(_entry, self._lines_at(self.stored.entries))

    def errors(self) -> Iterator[ReduceError]:
        """Yield the failed calls, those of all reduces of a list."""
        yield from self.stored.errors
        if self.stored.error_lines is not None:
            yield from map(_error, self._lines_at(self.stored.error_lines))
        for name in self.stored.named:
            yield from self.of(name).errors()

    def left_out(self) -> Iterator[ReduceError]:
        """Yield the groups without an aggregate for which no call has failed, those of all reduces of a list.

        Too little is behind them, or all their branches have failed.
        """
        for name in self.stored.named or ("",):
            own = self.of(name)
            # Of a list, each error has the name of its reduce.
            called = {one.group for one in own.errors()}
            for group, one in own.aggregates():
                problem = None if one.coverage is None else one.coverage.problem
                if problem is not None and group not in called and (group or name):
                    yield ReduceError(
                        reduce=name,
                        group=group,
                        kind=ErrorKind.BAD_REQUEST,
                        message=problem,
                        attempts=0,
                    )

    def _lines_at(self, place: tuple[int, int]) -> Iterator[bytes]:
        held = Held(form="rows", start=place[0], end=place[1])
        return self.lines(Aggregate(value=None, held=held))

    def listed(self) -> ResultValues:
        """Return these values with the aggregates and errors that are in pieces in memory."""
        stored = self.stored
        named = {name: self.of(name).listed().stored for name in stored.named}
        if stored.entries is None and stored.error_lines is None and not named:
            return self
        # The values of aggregates are not in memory.
        own = ResultValues(structs.replace(stored, named={}), self._read)
        found = structs.replace(
            stored,
            aggregates=dict(own.aggregates()),
            errors=list(own.errors()),
            entries=None,
            error_lines=None,
            named=named,
        )
        return ResultValues(found, self._read)

    def chunks(self, one: Aggregate) -> Iterator[bytes]:
        """Yield the bytes of a value that is in pieces: see ``fanout.aggregators.streams``."""
        held, size = one.held, self.stored.piece_bytes
        if held is None:
            return
        at = held.start
        while at < held.end:
            number = at // size
            start = number * size
            yield self._piece(number)[at - start : held.end - start]
            at = start + size

    def _piece(self, number: int) -> bytes:
        if self._last[0] != number and self._read is not None:
            self._last = (-1, b"")
            self._last = (number, self._read(number))
        return self._last[1]

    def value(self, one: Aggregate) -> Any:
        """Return a value; all of it is in memory."""
        if one.held is None:
            return one.value
        return value_of(one.held.form, b"".join(self.chunks(one)))

    def preview(self, one: Aggregate, *, most_bytes: int, most_rows: int) -> Any:
        """Return a value, or as much of its beginning as a page shows.

        Of rows these are the first; a text, or the JSON of another value that is longer, is cut.
        """
        held = one.held
        if held is None or (held.form == "json" and held.end - held.start <= most_bytes):
            return self.value(one)
        if held.form == "rows":
            return list(islice(self.rows(one), most_rows))
        shown = structs.replace(held, end=min(held.end, held.start + most_bytes))
        data = b"".join(self.chunks(structs.replace(one, held=shown)))
        return data.decode(errors="ignore")

    def texts(self, one: Aggregate) -> Iterator[str]:
        """Yield a value that is a text, or the JSON of another one, a part at a time."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        for chunk in self.chunks(one):
            yield decoder.decode(chunk)

    def rows(self, one: Aggregate) -> Iterator[Any]:
        """Yield the rows of a value that has some."""
        if one.held is None:
            yield from one.value or ()
            return
        for line in self.lines(one):
            yield msgspec.json.decode(line)

    def lines(self, one: Aggregate) -> Iterator[bytes]:
        """Yield the JSON of the rows of a value that is in pieces."""
        rest = b""
        for chunk in self.chunks(one):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


def stored_values(store: RedisStore, run_id: str) -> ResultValues | None:
    """Return the result of a run, or None if it has none yet."""
    data = store.result(run_id)
    if data is None:
        return None
    stored = msgspec.json.decode(data, type=StoredResult)
    return ResultValues(
        stored,
        lambda number: store.result_piece(run_id, writer=stored.writer, number=number),
    )


_entry = msgspec.json.Decoder(tuple[str, Aggregate]).decode
_error = msgspec.json.Decoder(ReduceError).decode
