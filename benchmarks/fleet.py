"""A fleet of fanout for measurements: a server, `fanout worker` processes, and a client."""

from __future__ import annotations

import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from measure import cpu_s, descendants, rounded
from ports import free_port
from services import Processes, Valkey, wait_for_answer

from fanout import Client

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

    from fanout import RunSpec

__all__ = ["Fleet", "IncompleteRunError", "documents"]

_START_S = 240.0
_BOUND_S = 3600.0
_RELAY = Path(__file__).resolve().parents[1] / "tests/relay.py"
_PINGS = 50
_WORDS = "some text that has to be read "


class IncompleteRunError(Exception):
    """A run ended without an answer of each branch: its figures mean nothing."""


def documents(count: int, size: int = 200) -> list[str]:
    """Return distinct texts of a given size in bytes."""
    filler = (_WORDS * (size // len(_WORDS) + 1))[:size]
    return [f"document {number}: {filler}" for number in range(count)]


class Fleet:
    """A server, workers and a client that run for a ``with`` block.

    Args:
        folder: The folder of logs and of the server's files.
        workers: The number of worker processes.
        concurrency: Branches in flight on each worker.
        base_url: The provider's URL, for ``openai/`` models.
        append_only: Whether the server writes an append-only file, synced each second.
        delay_ms: The extra delay of a round trip between workers and server.
        command: The command of a worker; ``fanout worker`` by default.
        env: Further settings of the workers.

    Attributes:
        client: The client.
        worker_pids: The process ids of the workers.
        server_pid: The process id of the server.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        workers: int = 1,
        concurrency: int = 32,
        base_url: str | None = None,
        append_only: bool = False,
        delay_ms: float = 0.0,
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._processes = Processes(str(folder))
        try:
            server = Valkey(self._processes, append_only=append_only)
            self.url = server.url
            self.server_pid = server.pid
            self.worker_url = self._delayed(delay_ms) if delay_ms else server.url
            fanout = str(Path(sys.executable).with_name("fanout"))
            words = [*(command or [fanout, "worker"]), "--concurrency", str(concurrency)]
            settings = {"FANOUT_BROKER_URL": self.worker_url, **_provider(base_url), **(env or {})}
            self._start_worker = partial(self._started, words, settings)
            self.worker_pids = [self._start_worker(f"worker{number}") for number in range(workers)]
            self.client = Client(server.url)
            self._wait_until_up()
        except BaseException:
            self._processes.close()
            raise

    def _started(self, words: Sequence[str], env: Mapping[str, str], name: str) -> int:
        return self._processes.start(name, [*words, "--hostname", f"{name}@bench"], env)

    def replace_worker(self, name: str) -> None:
        """Have another process in place of the only worker, which must be idle."""
        [before] = self.worker_pids
        self._processes.stop(before)
        self.worker_pids = [self._start_worker(name)]
        self._wait_until_up(name)

    def _delayed(self, delay_ms: float) -> str:
        """Start a slow line to the server; return the server's URL through it."""
        near, target = f"127.0.0.1:{free_port()}", self.url.split("/")[2]
        words = [sys.executable, str(_RELAY), near, target, str(delay_ms / 2)]
        self._processes.start("relay", words, {})
        url = f"redis://{near}/0"
        wait_for_answer(url, self._processes)
        return url

    def _wait_until_up(self, name: str = "") -> None:
        until = time.monotonic() + _START_S
        while not self._is_up(name):
            self._processes.check()
            if time.monotonic() > until:
                raise RuntimeError(f"workers do not start: see {self._processes.folder}")
            time.sleep(0.05)

    def _is_up(self, name: str) -> bool:
        """Return whether the worker of a name is there; of no name, whether all are."""
        names = self.client.workers()
        return f"{name}@bench" in names if name else len(names) >= len(self.worker_pids)

    def round_trip_ms(self) -> float:
        """Return the round trip time between a worker and the server."""
        with redis.Redis.from_url(self.worker_url) as client:
            took_s = []
            for _ in range(_PINGS):
                started = time.perf_counter()
                client.ping()
                took_s.append(time.perf_counter() - started)
        return rounded(statistics.median(took_s) * 1e3)

    def run(self, spec: RunSpec, texts: Iterable[str], count: int) -> dict[str, Any]:
        """Run ``count`` branches; return the duration and the CPU time.

        Raises:
            IncompleteRunError: Not all branches succeeded.
        """
        before, started = self._cpu_s(), time.perf_counter()
        status = self.client.submit(spec, texts).wait(_BOUND_S)
        wall_s, after = time.perf_counter() - started, self._cpu_s()
        if status.succeeded != count:
            raise IncompleteRunError(f"{status.succeeded} of {count} branches succeeded")
        cpu_ms = {name: (after[name] - before[name]) * 1e3 / count for name in after}
        return {
            "wall_s": rounded(wall_s),
            "branches_per_s": rounded(count / wall_s),
            "cpu_ms_per_branch": {
                **{name: rounded(value) for name, value in cpu_ms.items()},
                "total": rounded(sum(cpu_ms.values())),
            },
        }

    def _cpu_s(self) -> dict[str, float]:
        return {
            "client": cpu_s([os.getpid()]),
            "workers": cpu_s(descendants(self.worker_pids)),
            "server": cpu_s([self.server_pid]),
        }

    def close(self) -> None:
        """Stop all processes."""
        self.client.close()
        self._processes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _provider(base_url: str | None) -> dict[str, str]:
    return {} if base_url is None else {"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "none"}
