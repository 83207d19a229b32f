"""What the aggregators of several groups keep of the answers: one sorter has it for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.system.external_sort import Record, Scratch, grouped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.system.external_sort import ExternalSorter

__all__ = ["GroupedRecords", "Records"]


class GroupedRecords:
    """Records of groups, which have numbers.

    Args:
        scratch: What may be used for them, in memory and in files.

    Attributes:
        held_bytes: About what aggregators hold beside their records.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self.held_bytes = 0
        self._sorter: ExternalSorter = scratch.sorter()
        self._groups: Iterator[tuple[int, Iterator[Record]]] | None = None
        self._next: tuple[int, Iterator[Record]] | None = None

    @property
    def is_full(self) -> bool:
        """Whether aggregators hold so much that they should make records of it."""
        return self.held_bytes >= self.scratch.memory_bytes

    def of(self, number: int) -> Records:
        """Return the records of a group."""
        return Records(self, number)

    def add(self, number: int, key: tuple[Any, ...], data: tuple[Any, ...]) -> None:
        """Take a record of a group."""
        self._sorter.add((number, *key), *data)

    def taken(self, number: int) -> Iterator[Record]:
        """Yield the records of a group, in order; groups are asked for in the order of their numbers."""
        if self._groups is None:
            self._groups = grouped(self._sorter)
            self._next = next(self._groups, None)
        while self._next is not None and self._next[0] < number:
            self._next = next(self._groups, None)
        if self._next is not None and self._next[0] == number:
            for key, data in self._next[1]:
                yield key[1:], data

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        self._sorter.close()


class Records:
    """The records of one group.

    Args:
        of_all: Those of all groups; None makes some for this one alone.
        number: The number of the group.
    """

    def __init__(self, of_all: GroupedRecords | None = None, number: int = 0) -> None:
        self._of_all = of_all or GroupedRecords(Scratch())
        self._number = number

    @property
    def scratch(self) -> Scratch:
        """What may be used for further work."""
        return self._of_all.scratch

    def add(self, key: tuple[Any, ...], *data: Any) -> None:
        """Take a record: a key, and what it stands for; both are tuples of plain values."""
        self._of_all.add(self._number, key, data)

    def hold(self, size_bytes: int) -> None:
        """Note that the aggregator holds more beside its records."""
        self._of_all.held_bytes += size_bytes

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order, once; no more may be added then."""
        return self._of_all.taken(self._number)
