"""Ports for servers of tests and benchmarks."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["free_port"]

# Below the ports of outgoing connections (from 32768 on Linux, 49152 elsewhere): the kernel may
# assign one of those before the server listens on it.
_PORTS = range(10_000, 32_000)
# Of processes of pytest-xdist each has its own: a server may be away for a while and come back.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
# Not the seeded generator: parallel tests would draw the same ports.
_random = random.SystemRandom()
_given: set[int] = set()


def free_port() -> int:
    """Return a free port on loopback that this process has not received before."""
    while True:
        port = _random.choice(_PORTS[_NUMBER::_PROCESSES])
        with socket.socket() as probe:
            # Like servers, ignore closed connections that still occupy the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
