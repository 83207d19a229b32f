"""Samples of processes: memory and CPU from /proc, and the server's own figures."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout.core.ids import StageId
from fanout.core.queue_names import BEHIND, QUEUES
from fanout.stores import RedisStore, connect

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Sampler", "cpu_s", "peak_mb", "thinned"]

# The places of waiting messages: BEHIND is the total of those behind the queues.
_WAITING = (*QUEUES, BEHIND)
_TICKS = os.sysconf("SC_CLK_TCK")
_SIZE = re.compile(r"^(Rss|Pss|VmHWM):\s+(\d+) kB", re.MULTILINE)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended; 0 if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, cutime, cstime
    return sum(int(field) for field in fields[11:15]) / _TICKS


def memory_mb(pid: int) -> tuple[float | None, float | None]:
    """Return RSS and PSS of a process in megabytes; None if it has ended."""
    sizes = _sizes(pid, "smaps_rollup")
    return sizes.get("Rss"), sizes.get("Pss")


def peak_mb(pid: int) -> float | None:
    """Return the peak memory of a process; None if it has ended."""
    return _sizes(pid, "status").get("VmHWM")


def _sizes(pid: int, file: str) -> dict[str, float]:
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return {}
    return {name: round(int(kb) * 1024 / 1e6, 1) for name, kb in _SIZE.findall(text)}


class Sampler:
    """Takes a sample each second in a thread until it is closed."""

    def __init__(
        self, url: str, pids: Mapping[str, int], *, run_id: str, interval_s: float = 1.0
    ) -> None:
        self.samples: list[dict[str, Any]] = []
        self._pids = dict(pids)
        self._run_id = run_id
        self._interval_s = interval_s
        self._client = connect(url, timeout_s=20)
        self._store = RedisStore(self._client)
        self._began_at = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        while not self._is_over.wait(self._interval_s):
            self._take()

    def _take(self) -> None:
        stage = self._store.stage(StageId(self._run_id, 0))
        info: Any = self._client.info("memory")
        unacked: Any = self._client.hlen("unacked")
        waiting: Any = [self._client.llen(queue) for queue in _WAITING]
        sample: dict[str, Any] = {
            "at_s": round(time.monotonic() - self._began_at, 2),
            "done": stage.done,
            "written": stage.total,
            "messages": sum(waiting) + unacked,
            "redis_used_mb": round(info["used_memory"] / 1e6, 1),
        }
        for name, pid in self._pids.items():
            rss_mb, pss_mb = memory_mb(pid)
            sample[f"{name} rss_mb"], sample[f"{name} pss_mb"] = rss_mb, pss_mb
            sample[f"{name} cpu_s"] = round(cpu_s(pid), 2)
        self.samples.append(sample)

    def close(self) -> None:
        """Take a last sample, and stop."""
        self._is_over.set()
        self._thread.join()
        self._take()
        self._store.close()


def thinned(samples: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return at most so many samples, spread evenly, the last one among them."""
    if len(samples) <= most:
        return samples
    step = (len(samples) - 1) / (most - 1)
    return [samples[round(i * step)] for i in range(most)]
