"""How many cores this process may use, and how many threads a model should."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["model_threads", "quota_cores", "usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def model_threads(cores: int) -> int:
    """Return how many threads to have a model calculate with: one fewer than there are cores.

    Its threads wait for one another by spinning, many times a token. One that has to share its
    core with anything else, such as the worker that asks, holds up all of them
    (``benchmarks/local_threads.py``).
    """
    return max(1, cores - 1)


def usable_cores() -> int:
    """Return the cores of this process: those it may run on, or the quota of its control group."""
    quotas = quota_cores(_read(_OWN) or "", _CGROUPS)
    return max(1, min([_allowed_cores(), *(int(quota) for quota in quotas)]))


def _allowed_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cores(own: str, root: Path) -> list[float]:
    """Return the CPU quotas, in cores, of the groups that a process is in.

    Args:
        own: The text of ``/proc/self/cgroup``.
        root: Where control groups are mounted, of version 1 or 2.
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
    """Yield the quota of a group and of all above it: in a container, its own is the root's."""
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
