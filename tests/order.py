"""The order of tests on several processes.

Most tests of some rooms wait for other processes, for up to a minute. They come first, in all processes
but one, and the quick tests fill what is left: of time while they wait, and at the end, where a long
test would keep one process busy alone. Tests of a module stay together, as they share what it starts.
Slow modules are shared out by the seconds that they have taken, which `seconds.json` has.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

__all__ = ["dealt", "turned"]

_T = TypeVar("_T")


def dealt(
    tests: Iterable[_T],
    *,
    processes: int,
    module: Callable[[_T], Hashable],
    is_slow: Callable[[_T], bool],
    is_long: Callable[[_T], bool],
    seconds: Callable[[Sequence[_T]], float] = len,
) -> list[_T]:
    """Return the tests so that each process, which takes an equal slice, begins with slow ones.

    The last process begins with quick ones, and the others have slow ones for equally long. Slow modules
    with a long test come first, then those that take longest: one that began last would keep its process
    busy alone.

    Args:
        tests: In the order in which quick ones stay.
        processes: Their number.
        module: The module of a test.
        is_slow: Whether a module, by its first test, is slow.
        is_long: Whether a test may take very long.
        seconds: How long the tests of a slow module take.
    """
    modules = [list(group) for _, group in groupby(tests, key=module)]
    slow = [group for group in modules if is_slow(group[0])]
    quick = [test for group in modules if not is_slow(group[0]) for test in group]
    hands: list[list[_T]] = [[] for _ in range(processes)]
    takes = [0.0] * max(1, processes - 1)
    slow.sort(key=lambda group: (any(map(is_long, group)), seconds(group)), reverse=True)
    for group in slow:
        least = takes.index(min(takes))
        takes[least] += seconds(group)
        hands[least] += group
    result: list[_T] = []
    left = len(quick) + sum(map(len, hands))
    for number, hand in enumerate(hands):
        # As pytest-xdist slices them.
        size = left // (processes - number)
        room = max(0, size - len(hand))
        result += [*hand, *quick[:room]]
        del quick[:room]
        left -= len(hand) + room
    return result


def turned(folders: Sequence[_T], *, sizes: Sequence[int], number: int, processes: int) -> list[_T]:
    """Return the folders from where the share of a process begins, and then those before it.

    pytest rewrites a module where it is first collected and keeps the result. Processes that begin at
    the same one would all rewrite all modules, as they come to each at the same time.
    """
    before, begin = 0, sum(sizes) * number // processes
    for at, size in enumerate(sizes):
        if before + size // 2 >= begin:
            return [*folders[at:], *folders[:at]]
        before += size
    return [*folders]
