"""What a reduce has come to, before it is stored."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fanout.core.records import ErrorKind
from fanout.core.units import plural
from fanout.runs.status import ReduceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.aggregators import Aggregate, Streamed
    from fanout.core.records import Outcome

__all__ = ["FailedCalls", "FirstFailedCalls", "Made", "failed_call", "why_failed"]

_BLOCK_BYTES = 64_000
_MOST_ERRORS = 100


class Made(NamedTuple):
    """What a reduce has come to.

    Attributes:
        aggregates: The aggregates by group; each must be read before the next is asked for.
        errors: The calls that failed.
        problem: Why there is no aggregate, or None.
    """

    aggregates: Iterable[tuple[str, Aggregate | Streamed]] = ()
    errors: list[ReduceError] = []  # noqa: RUF012 - nobody changes it
    problem: str | None = None


def failed_call(reduce: str, group: str, outcome: Outcome) -> ReduceError:
    """Return the error of a call that failed."""
    return ReduceError(
        reduce=reduce,
        group=group,
        kind=outcome.kind or ErrorKind.INTERNAL,
        message=outcome.message or "",
        attempts=outcome.attempts,
    )


def why_failed(error: ReduceError) -> str:
    """Return why a call failed."""
    calls = plural(error.attempts, "call", "calls")
    return f"{error.kind.value}: {error.message} (after {calls})"


class FirstFailedCalls:
    """The failed calls of comparisons: the first ones, and the first of each kind.

    Attributes:
        errors: Them.
        over_budget: All calls that the budget had no room for.
    """

    def __init__(self, reduce: str) -> None:
        self._reduce = reduce
        self.errors: list[ReduceError] = []
        self.over_budget = 0
        self._kinds: set[ErrorKind | None] = set()

    def add(self, outcome: Outcome, group: str = "") -> None:
        """Take a failed call."""
        if len(self.errors) < _MOST_ERRORS or outcome.kind not in self._kinds:
            self.errors.append(failed_call(self._reduce, group, outcome))
        self._kinds.add(outcome.kind)
        self.over_budget += outcome.kind is ErrorKind.BUDGET

    @property
    def why(self) -> str:
        """Why the last one failed; if the budget had no room for some, that."""
        unpaid = [error for error in self.errors if error.kind is ErrorKind.BUDGET]
        return why_failed((unpaid or self.errors)[-1])


class FailedCalls:
    """The failed calls of a reduce by groups, which may all have failed for the same reason: compressed.

    Attributes:
        last: The last one; None without any.
    """

    def __init__(self) -> None:
        self.last: ReduceError | None = None
        self._compressor = zlib.compressobj(1)
        self._data = bytearray()

    def add(self, error: ReduceError) -> None:
        """Take a failed call."""
        self.last = error
        self._data += self._compressor.compress(msgspec.json.encode(error) + b"\n")

    def __iter__(self) -> Iterator[ReduceError]:
        """Yield all, in order."""
        rest = b""
        for block in _inflated(bytes(self._data) + self._compressor.copy().flush()):
            *lines, rest = (rest + block).split(b"\n")
            yield from map(_decoded, lines)


def _inflated(data: bytes) -> Iterator[bytes]:
    """Yield what compressed data has in it, in blocks."""
    reader, whole = zlib.decompressobj(), memoryview(data)
    # What a block does not use is copied each time, so it must not be all that is left.
    for start in range(0, len(whole), _BLOCK_BYTES):
        some: memoryview | bytes = whole[start : start + _BLOCK_BYTES]
        while some:
            yield reader.decompress(some, _BLOCK_BYTES)
            some = reader.unconsumed_tail
    yield reader.flush()


_decoded = msgspec.json.Decoder(ReduceError).decode
