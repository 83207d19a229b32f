"""The cores and the memory that this process may use."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "memory_limit_bytes",
    "model_threads",
    "quota_cores",
    "share_free_memory",
    "usable_cores",
]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# The memory limits of a container: cgroups of version 2, and of version 1.
_MEMORY_LIMITS = (_CGROUPS / "memory.max", _CGROUPS / "memory" / "memory.limit_in_bytes")
# A parameter of glibc, and how many pools of memory the threads of a process have: each keeps what is free.
_M_ARENA_MAX = -8
_ARENAS = 2


def share_free_memory() -> bool:
    """Have the threads of this process share few pools of free memory; return whether it does.

    Each would otherwise have its own: a worker has some twenty threads, one at a time of which runs Python.
    glibc can; another C library does not need it. ``MALLOC_ARENA_MAX`` of the environment stands.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return False
    # Commands import this module, and need no such thing.
    import ctypes

    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS))
    except (AttributeError, OSError, TypeError):
        return False


def model_threads(cores: int) -> int:
    """Return how many threads a local model should use: one fewer than there are cores.

    The threads of a model wait for one another by spinning, many times for each token. A thread
    that shares its core, for example with the calling worker, slows down all of them
    (``benchmarks/local_threads.py``).
    """
    return max(1, cores - 1)


def usable_cores() -> int:
    """Return the cores of this process: its CPU affinity, or a smaller quota of its cgroups."""
    quotas = quota_cores(_read(_OWN) or "", _CGROUPS)
    return max(1, min([_allowed_cores(), *(int(quota) for quota in quotas)]))


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cores(own: str, root: Path) -> list[float]:
    """Return the CPU quotas, in cores, of a process's cgroups.

    Args:
        own: The text of ``/proc/self/cgroup``.
        root: The mount point of the cgroups, of version 1 or 2.
    """
    found: list[float] = []
    for line in own.splitlines():
        _number, controllers, path = line.split(":", 2)
        if not controllers:
            found += _quotas(root, path, _unified)
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu"):
                found += _quotas(root / name, path, _legacy)
    return found


def _quotas(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterable[float]:
    """Yield the quotas of a cgroup and its parents; in a container, the process's is the root."""
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        quota = read(folder)
        if quota is not None:
            yield quota
        if folder == root:
            return


def _unified(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _legacy(folder: Path) -> float | None:
    quota = (_read(folder / "cpu.cfs_quota_us") or "").strip()
    period = (_read(folder / "cpu.cfs_period_us") or "").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


@lru_cache(maxsize=1)
def memory_limit_bytes() -> int:
    """Return the smallest of the machine's memory, the container's limit and RLIMIT_AS, in bytes."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):
            known.append(int(path.read_text()))
    mapped = resource.getrlimit(resource.RLIMIT_AS)[0]
    if mapped != resource.RLIM_INFINITY:
        known.append(mapped)
    return min(each for each in known if each > 0)
