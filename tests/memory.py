"""Measures the memory of a piece of work."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["peak_bytes"]


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that ``work`` holds at once; the garbage of other work does not count.

    The collector runs whenever something else has made enough garbage, so a peak varies by some tens of
    kilobytes: compare it with one that would be several times as high.
    """
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
