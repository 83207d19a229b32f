"""The memory limit of this process: data that it reads from the store must fit."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

__all__ = ["memory_limit_bytes"]

# The memory limits of a container: cgroups of version 2, and of version 1.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@lru_cache(maxsize=1)
def memory_limit_bytes() -> int:
    """Return the smallest of the machine's memory, the container's limit and RLIMIT_AS, in bytes."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with suppress(OSError, ValueError):
            known.append(int(path.read_text()))
    mapped = resource.getrlimit(resource.RLIMIT_AS)[0]
    if mapped != resource.RLIM_INFINITY:
        known.append(mapped)
    return min(each for each in known if each > 0)
