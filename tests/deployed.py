"""A server in its deployed form: the shipped configuration and the users of ops/make-secrets."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from ports import free_port

from fanout.stores import connect

from .servers import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

ROOT = Path(__file__).parents[1]


def make_secrets(folder: Path, *options: str) -> Path:
    """Run ops/make-secrets; return the folder of the secrets."""
    secrets = folder / "secrets"
    command = [str(ROOT / "ops" / "make-secrets"), "--dir", str(secrets), *options]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return secrets


class DeployedServer(ServerProcess):
    """A server with ``ops/redis/redis.conf`` and an ACL file, on its own port, with or without TLS.

    For TLS it uses the server of the system, as the embedded one is built without TLS.
    """

    def __init__(self, folder: Path, *, tls: bool = False, prefix: str = "fanout") -> None:
        self._tls = tls
        self._given_port = free_port()
        options = ["--broker", f"127.0.0.1:{self._given_port}", "--prefix", prefix]
        self.secrets = make_secrets(folder, *options, *(["--tls"] if tls else []))
        self._data = folder / "server"
        super().__init__(self._data)

    @property
    def _command(self) -> list[str]:
        self.port = self._given_port
        binary = shutil.which("redis-server") if self._tls else super()._command[0]
        listen = ["--port", str(self.port)]
        if self._tls:
            listen = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            listen += ["--tls-cert-file", str(self.secrets / "server.crt")]
            listen += ["--tls-key-file", str(self.secrets / "server.key")]
        command = [str(binary), str(ROOT / "ops" / "redis" / "redis.conf"), *listen]
        command += ["--aclfile", str(self.secrets / "users.acl")]
        return [*command, "--bind", "127.0.0.1", "--dir", str(self._data)]

    @property
    def ca_file(self) -> Path | None:
        return self.secrets / "ca.crt" if self._tls else None

    def url_of(self, role: str) -> str:
        return (self.secrets / f"{role}.url").read_text().strip()

    def environment(self, role: str) -> dict[str, str]:
        """The environment of a process with this role."""
        ca = {"FANOUT_BROKER_CA_FILE": str(self.ca_file)} if self._tls else {}
        return {"FANOUT_BROKER_URL_FILE": str(self.secrets / f"{role}.url"), **ca}

    @contextlib.contextmanager
    def client(self, role: str = "admin") -> Iterator[redis.Redis]:
        with connect(self.url_of(role), ca_file=self.ca_file) as client:
            client.set_retry(None)  # no retries: errors appear at once
            yield client

    def denied(self) -> list[tuple[str, str, str]]:
        """The refused commands since the log was cleared: user, reason, object."""
        with self.client() as client:
            log = client.acl_log()
        return [tuple(str(e[k]) for k in ("username", "reason", "object")) for e in log]  # type: ignore[misc]
