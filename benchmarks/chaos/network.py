"""A network namespace for each worker, joined to a bridge, so that its link can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import count

__all__ = ["Network", "why_not"]

_networks = count()


def why_not() -> str | None:
    """Return why there can be no namespaces, or None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (iproute2)"
    probe = f"fo{os.getpid()}probe"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "delete", probe)
    except subprocess.CalledProcessError as error:
        return f"there can be no network namespaces here: {error.stderr.strip()}"
    return None


def _ip(*words: str) -> None:
    command = [shutil.which("ip") or "ip", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)


class Network:
    """A bridge, and for each slot a namespace whose link can be cut.

    Args:
        slots: How many namespaces there are.
    """

    def __init__(self, slots: int) -> None:
        # Names of links have 15 characters at most.
        self._prefix = f"fo{os.getpid() % 100_000}x{next(_networks)}"
        self._bridge = f"{self._prefix}b"
        subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.host = f"{subnet}.1"
        self._slots = slots
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.host}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for slot in range(slots):
                self._join(slot, f"{subnet}.{slot + 2}/24")
        except subprocess.CalledProcessError as error:
            self.close()
            raise RuntimeError(f"no network: {error.stderr.strip()}") from error

    def _name(self, slot: int) -> str:
        return f"{self._prefix}n{slot}"

    def _join(self, slot: int, address: str) -> None:
        name, outer, inner = self._name(slot), f"{self._prefix}h{slot}", f"{self._prefix}p{slot}"
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", name)
        _ip("link", "set", outer, "master", self._bridge, "up")
        _ip("-n", name, "address", "add", address, "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def inside(self, slot: int, command: list[str]) -> list[str]:
        """Return a command that runs in the namespace of a slot, as the same process."""
        return [shutil.which("ip") or "ip", "netns", "exec", self._name(slot), *command]

    def cut(self, slot: int) -> None:
        """Take the link of a slot down."""
        _ip("link", "set", f"{self._prefix}h{slot}", "down")

    def mend(self, slot: int) -> None:
        """Bring it up again."""
        _ip("link", "set", f"{self._prefix}h{slot}", "up")

    def close(self) -> None:
        """Remove all of it."""
        for words in [
            *(("netns", "delete", self._name(slot)) for slot in range(self._slots)),
            *(("link", "delete", f"{self._prefix}h{slot}") for slot in range(self._slots)),
            ("link", "delete", self._bridge),
        ]:
            subprocess.run([shutil.which("ip") or "ip", *words], check=False, capture_output=True)
