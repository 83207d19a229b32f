"""Shared parts of the measurements: CPU and memory of processes, statistics, result files."""

from __future__ import annotations

import ctypes
import heapq
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Self

__all__ = [
    "RESULTS",
    "MemoryPeak",
    "adopt_orphans",
    "cpu_s",
    "descendants",
    "ideal_s",
    "machine",
    "ratios",
    "save",
    "spread",
    "versions",
]

RESULTS = Path(__file__).with_name("results")
_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_DIGITS = 5


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent has ended. Linux only.

    So a daemon that a contender leaves behind still counts, and can be found and ended.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans")


def descendants(roots: Iterable[int], *, but: Iterable[int] = ()) -> list[int]:
    """Return processes and all their descendants, except those of ``but``."""
    skipped = set(but)
    found: dict[int, None] = {}
    for root in roots:
        try:
            below = [child.pid for child in psutil.Process(root).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        found.update(dict.fromkeys(pid for pid in [root, *below] if pid not in skipped))
    return list(found)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds, user and system, of processes and of their children that ended."""
    used_s = 0.0
    for pid in pids:
        with suppress(OSError):
            used_s += time.clock_gettime(_cpu_clock(pid)) + _children_s(pid)
    return used_s


def _cpu_clock(pid: int) -> int:
    """Return the clock of clock_getcpuclockid(3): in nanoseconds, while /proc counts ticks."""
    return (~pid << 3) | 2


def _children_s(pid: int) -> float:
    # The name, in brackets, may itself contain spaces and brackets.
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[13:15]) / _TICKS_PER_S


class MemoryPeak:
    """Samples, in a thread, the memory of a tree of processes.

    Args:
        root: Its first process.
        every_s: Seconds between samples; each sample takes some time of the watched processes.

    Attributes:
        rss_mb: The maximum, with shared pages counted for each process.
        pss_mb: The maximum, with shared pages counted once.
    """

    def __init__(self, root: int, *, every_s: float = 0.5) -> None:
        self.rss_mb = 0.0
        self.pss_mb = 0.0
        self._root = root
        self._every_s = every_s
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            self._look()
            if self._is_done.wait(self._every_s):
                self._look()
                return

    def _look(self) -> None:
        rss_kb = pss_kb = 0
        for pid in descendants([self._root]):
            rollup = _rollup_kb(pid)
            rss_kb += rollup.get("Rss", 0)
            pss_kb += rollup.get("Pss", 0)
        self.rss_mb = max(self.rss_mb, rss_kb / 1000)
        self.pss_mb = max(self.pss_mb, pss_kb / 1000)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_done.set()
        self._thread.join()


def _rollup_kb(pid: int) -> dict[str, int]:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    words = (line.split() for line in lines)
    return {name.rstrip(":"): int(value) for name, value, *_ in words}


def ideal_s(latencies: Iterator[float], calls: int, in_flight: int) -> float:
    """Return the least seconds for calls that start in order, with a limit of calls in flight."""
    free = [0.0] * min(calls, in_flight)
    end = 0.0
    for latency in islice(latencies, calls):
        done = heapq.heappop(free) + latency
        heapq.heappush(free, done)
        end = max(end, done)
    return end


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of values."""
    return {
        "median": rounded(statistics.median(values)),
        "min": rounded(min(values)),
        "max": rounded(max(values)),
    }


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Return the ratios of our values to theirs, for each round that has both, in order."""
    both = sorted(ours.keys() & theirs.keys())
    return [ours[number] / theirs[number] for number in both if theirs[number]]


def rounded(value: float) -> float:
    """Return a value rounded to its significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    memory_gb = round(psutil.virtual_memory().total / 1e9, 1)
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gb": memory_gb,
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    lines = (_PROC / "cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


_VERSIONS = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(names: Iterable[str], python: str | Path = sys.executable) -> dict[str, str]:
    """Return the installed versions of packages in an interpreter."""
    command = [str(python), "-c", _VERSIONS, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}", file=sys.stderr, flush=True)
