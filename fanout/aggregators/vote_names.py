"""What the answers of a vote are called: no two have the same name."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

from fanout.system.external_sort import grouped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from fanout.system.external_sort import Scratch

__all__ = ["Ballots", "First"]

# The index of the branch, which of its answers it is, and which value of that.
First = tuple[int, int, int]

_NUMBERED = re.compile(r" \(\d+\)\Z")


class Ballots:
    """The different answers of a vote with their votes, in the order of the input.

    An answer is called by its label; where another one has that label too, by its full form; and by
    that and a number, if that is taken.

    Args:
        scratch: What may be used, in memory and in files.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._by_label = scratch.sorter()
        self._by_name = scratch.sorter()
        self._in_order = scratch.sorter()
        self.cast = 0
        self.most = 0
        self.with_most = 0

    def add(self, first: First, label: str, full: str, votes: int) -> None:
        """Take an answer, as it is in the first branch that gave it."""
        self._by_label.add((label, first), full, votes)
        self.cast += votes
        if votes > self.most:
            self.most, self.with_most = votes, 0
        self.with_most += votes == self.most

    def close_list(self) -> None:
        """Give the answers their names: there are no more."""
        for label, same in grouped(self._by_label):
            one, other = next(same), next(same, None)
            some = [one] if other is None else chain([one, other], same)
            for (_, first), (full, votes) in some:
                self._by_name.add((label if other is None else full, first), full, votes)
        self._by_label.close()
        for name, same in grouped(self._by_name):
            for at, ((_, first), (full, votes)) in enumerate(same):
                self._in_order.add((first,), name, full, votes, at > 0)
        self._by_name.close()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield the name and the votes of each answer, as often as asked."""
        # Of the names that have been given, those that may be in the way of a number.
        taken: set[str] = set()
        for _, (name, full, votes, is_taken) in self._in_order:
            given, number = name, 1
            while (is_taken and number == 1) or given in taken:
                number += 1
                given = f"{full} ({number})"
            if number > 1 or _NUMBERED.search(given):
                taken.add(given)
            yield given, votes

    def leaders(self) -> Iterable[str]:
        """Yield the names of the answers with most votes."""
        return (name for name, votes in self if votes == self.most)

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        for sorter in (self._by_label, self._by_name, self._in_order):
            sorter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
